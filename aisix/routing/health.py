"""How the upstream behind each alias fares: consecutive retryable failures. No I/O, clock injected.

Fewer than 4 in a row is healthy, 4 to 7 shaky, 8 or more unhealthy; one success resets
(aisix-behaviour §1). An alias with one deployment is never blocked by this: it is a view, not a
breaker.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from aisix.core.ports import Clock

SHAKY_AFTER = 4
UNHEALTHY_AFTER = 8


@dataclass(slots=True)
class _Record:
    failures: int
    at: float
    reason: str


class Health:
    """Failure streaks by alias name; implements HealthView."""

    def __init__(
        self, clock: Clock, on_change: Callable[[str], None] = lambda _alias: None
    ) -> None:
        """`on_change` hears the name of each alias whose level or last failure changed."""
        self._clock = clock
        self._on_change = on_change
        self._records: dict[str, _Record] = {}

    def succeeded(self, alias_name: str) -> None:
        """The upstream answered: the streak is over."""
        if self._records and self._records.pop(alias_name, None) is not None:
            self._on_change(alias_name)

    def failed(self, alias_name: str, reason: str) -> None:
        """The upstream failed in a way that a retry could mend."""
        record = self._records.get(alias_name)
        failures = record.failures + 1 if record else 1
        self._records[alias_name] = _Record(failures, self._clock.time(), reason)
        self._on_change(alias_name)

    def level(self, alias_name: str) -> int:
        """0 healthy, 1 shaky, 2 unhealthy."""
        record = self._records.get(alias_name)
        if record is None or record.failures < SHAKY_AFTER:
            return 0
        return 1 if record.failures < UNHEALTHY_AFTER else 2

    def last_failure(self, alias_name: str) -> tuple[float, str] | None:
        """UTC time and reason of the newest failure of the current streak."""
        record = self._records.get(alias_name)
        return (record.at, record.reason) if record else None

    def failing(self) -> list[str]:
        """Aliases with a streak."""
        return list(self._records)

    def retain(self, alias_names: frozenset[str]) -> None:
        """Forget aliases that are no longer configured."""
        for name in [name for name in self._records if name not in alias_names]:
            del self._records[name]
