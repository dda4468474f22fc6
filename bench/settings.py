"""What a run is told by its environment. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
BIN = HERE / "bin"
PEERS = HERE / ".peers"  # hidden: type checkers and test runners stay out of it


class BadSetting(ValueError):
    """A BENCH_ variable that cannot be used; the text is for the caller."""


@dataclass(frozen=True, slots=True)
class Settings:
    """One run.

    `seconds` is the length of a measuring window, `rounds` how often each contender gets one;
    `only` selects scenarios ("quick", "all" or ids), `peers` rivals that are not installed by
    default ("all" or names), `out` the JSON file of the results.
    """

    seconds: float = 5.0
    rounds: int = 3
    soak_seconds: float = 600.0
    only: tuple[str, ...] = ("quick",)
    peers: tuple[str, ...] = ()
    out: Path = HERE / "results" / "latest.json"

    @property
    def warm_up_s(self) -> float:
        """Load before each measuring window, seconds."""
        return min(2.0, self.seconds / 2)


def parse(environ: Mapping[str, str]) -> Settings:
    """The settings in BENCH_SECONDS, _ROUNDS, _SOAK_SECONDS, _ONLY, _PEERS, _OUT.

    Raises BadSetting naming the variable.
    """
    default = Settings()
    out = environ.get("BENCH_OUT")
    return Settings(
        seconds=_positive(environ, "BENCH_SECONDS", default.seconds),
        rounds=int(_positive(environ, "BENCH_ROUNDS", default.rounds)),
        soak_seconds=_positive(environ, "BENCH_SOAK_SECONDS", default.soak_seconds),
        only=_names(environ, "BENCH_ONLY") or default.only,
        peers=_names(environ, "BENCH_PEERS"),
        out=Path(out) if out else default.out,
    )


def _positive(environ: Mapping[str, str], name: str, default: float) -> float:
    text = environ.get(name)
    if not text:
        return default
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not number > 0 or (name == "BENCH_ROUNDS" and number != int(number)):
        raise BadSetting(f"{name} must be a number above 0 (rounds: a whole one), not {text!r}")
    return number


def _names(environ: Mapping[str, str], name: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in environ.get(name, "").split(",") if word.strip())
