"""The `x-ratelimit-*` headers of an answer, from how the limits stood at admission. Pure.

A caller sees one limit of each kind: per layer the per-minute one where there is one, else the
tightest of the others, and of key and model the one with the least fraction left (decisions §9).
Without a limit of a kind its headers are absent. A limit of 0 never refills, so it has no reset.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, floor
from typing import NamedTuple

from aisix.limits.buckets import NEVER, TOLERANCE, Charge, Decision, Reading, Slot

SHOWN_FIRST = frozenset({"rpm", "tpm"})
"""These stand for their kind wherever they are set."""


class Rule(NamedTuple):
    """Which limit a charge belongs to: `layer` "api_key" or "model", `scope` "requests" or
    "tokens", `limit` the policy field.
    """

    layer: str
    scope: str
    limit: str
    charge: Charge


def render_headers(
    rules: Sequence[Rule], slots: Sequence[Slot], decision: Decision
) -> dict[str, str]:
    """The headers for a decision about the charges of `rules` and `slots`."""
    headers: dict[str, str] = {}
    preferred = {(rule.layer, rule.scope) for rule in rules if rule.limit in SHOWN_FIRST}
    tightest: dict[str, tuple[float, Rule, Reading]] = {}
    for rule, reading in zip(rules, decision.readings, strict=True):
        if rule.limit not in SHOWN_FIRST and (rule.layer, rule.scope) in preferred:
            continue
        fraction = _fraction(reading.remaining, rule.charge.capacity)
        if rule.scope not in tightest or fraction < tightest[rule.scope][0]:
            tightest[rule.scope] = (fraction, rule, reading)
    for scope, (_, rule, reading) in tightest.items():
        remaining = max(0, floor(reading.remaining + TOLERANCE))
        headers[f"x-ratelimit-limit-{scope}"] = str(rule.charge.capacity)
        headers[f"x-ratelimit-remaining-{scope}"] = str(remaining)
        if reading.full_in_s < NEVER:
            headers[f"x-ratelimit-reset-{scope}"] = f"{ceil(reading.full_in_s - TOLERANCE)}s"
    if slots:
        pairs = zip(slots, decision.in_flight, strict=True)
        _, limit, left = min(
            (_fraction(slot.limit - count, slot.limit), slot.limit, slot.limit - count)
            for slot, count in pairs
        )
        headers["x-ratelimit-limit-concurrent"] = str(limit)
        headers["x-ratelimit-remaining-concurrent"] = str(max(0, left))
    return headers


def _fraction(remaining: float, capacity: int) -> float:
    """What is left of a limit; a limit of 0 has less left than any other."""
    return remaining / capacity if capacity > 0 else float("-inf")
