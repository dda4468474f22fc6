"""The `x-ratelimit-*` headers of an answer, from how the limits stood at admission. Pure.

A caller sees one limit of each kind: per layer the per-minute one where there is one, else the
tightest of the others, and of key and model the one with the least fraction left (decisions §9).
Without a limit of a kind its headers are absent. A limit of 0 never refills, so it has no reset.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, inf

from aisix.limits.buckets import NEVER, TOLERANCE, Decision, Reading, Slot
from aisix.limits.plan import Rule


def render_headers(
    rules: Sequence[Rule], slots: Sequence[Slot], decision: Decision
) -> dict[str, str]:
    """The headers for a decision about the charges of `rules` and `slots`."""
    headers: dict[str, str] = {}
    tightest: dict[str, tuple[Rule, Reading]] = {}
    readings = decision.readings
    for index, rule in enumerate(rules):
        if rule.shown:
            reading = readings[index]
            known = tightest.get(rule.scope)
            if known is None or _share(rule, reading) < _share(*known):
                tightest[rule.scope] = (rule, reading)
    for rule, (_, remaining, full_in_s) in tightest.values():
        limit_name, remaining_name, reset_name = rule.header_names
        headers[limit_name] = rule.capacity_text
        headers[remaining_name] = str(int(remaining + TOLERANCE)) if remaining > 0.0 else "0"
        if full_in_s < NEVER:
            headers[reset_name] = f"{ceil(full_in_s - TOLERANCE)}s"
    if slots:
        limit, free = _tightest_slot(slots, decision.in_flight)
        headers["x-ratelimit-limit-concurrent"] = str(limit)
        headers["x-ratelimit-remaining-concurrent"] = str(free) if free > 0 else "0"
    return headers


def _tightest_slot(slots: Sequence[Slot], in_flight: Sequence[int]) -> tuple[int, int]:
    """Limit and free places of the slot with the least fraction left."""
    limit = slots[0].limit
    free = limit - in_flight[0]
    for index in range(1, len(slots)):
        other = slots[index].limit
        left = other - in_flight[index]
        if (_fraction(left, other), other) < (_fraction(free, limit), limit):
            limit, free = other, left
    return limit, free


def _share(rule: Rule, reading: Reading) -> float:
    return _fraction(reading.remaining, rule.charge.capacity)


def _fraction(remaining: float, capacity: int) -> float:
    """What is left of a limit; a limit of 0 has less left than any other."""
    return remaining / capacity if capacity > 0 else -inf
