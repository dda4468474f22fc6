"""The `x-ratelimit-*` headers of an answer, from how the limits stood at admission. Pure.

A caller sees one limit of each kind: per layer the per-minute one where there is one, else the
tightest of the others, and of key and model the one with the least fraction left (decisions §9).
Without a limit of a kind its headers are absent. A limit of 0 never refills, so it has no reset.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, inf
from types import MappingProxyType

from aisix.limits.buckets import NEVER, TOLERANCE, Decision, Reading, Slot
from aisix.limits.plan import Rule

NAMES = MappingProxyType(
    {
        scope: tuple(f"x-ratelimit-{what}-{scope}" for what in ("limit", "remaining", "reset"))
        for scope in ("requests", "tokens")
    }
)


def render_headers(
    rules: Sequence[Rule], slots: Sequence[Slot], decision: Decision
) -> dict[str, str]:
    """The headers for a decision about the charges of `rules` and `slots`."""
    headers: dict[str, str] = {}
    tightest: dict[str, tuple[float, int, Reading]] = {}
    for index, rule in enumerate(rules):
        if not rule.shown:
            continue
        reading = decision.readings[index]
        capacity = rule.charge.capacity
        fraction = _fraction(reading.remaining, capacity)
        known = tightest.get(rule.scope)
        if known is None or fraction < known[0]:
            tightest[rule.scope] = (fraction, capacity, reading)
    for scope, (_, capacity, (_, remaining, full_in_s)) in tightest.items():
        limit_name, remaining_name, reset_name = NAMES[scope]
        headers[limit_name] = str(capacity)
        headers[remaining_name] = str(int(remaining + TOLERANCE)) if remaining > 0.0 else "0"
        if full_in_s < NEVER:
            headers[reset_name] = f"{ceil(full_in_s - TOLERANCE)}s"
    if slots:
        least = (inf, 0, 0)
        for index, slot in enumerate(slots):
            free = slot.limit - decision.in_flight[index]
            least = min(least, (_fraction(free, slot.limit), slot.limit, free))
        _, limit, left = least
        headers["x-ratelimit-limit-concurrent"] = str(limit)
        headers["x-ratelimit-remaining-concurrent"] = str(max(0, left))
    return headers


def _fraction(remaining: float, capacity: int) -> float:
    """What is left of a limit; a limit of 0 has less left than any other."""
    return remaining / capacity if capacity > 0 else -inf
