"""What the limits of one caller key or one alias ask of a request, worked out once. Pure.

Keys and aliases are frozen and replaced whole by a new snapshot, so a plan is good for as long as
its owner is the same object, and a changed policy is seen by the first request that carries it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

from aisix.core.resources import REQUEST_LIMITS, TOKEN_LIMITS, Alias, ApiKey
from aisix.limits.buckets import Charge, Slot

MAX_PLANS = 4096
"""Plans kept; beyond it all are dropped and made again as they are needed."""

SHOWN_FIRST = frozenset({"rpm", "tpm"})
"""These stand for their kind wherever they are set."""


HEADER_NAMES = MappingProxyType(
    {
        scope: tuple(f"x-ratelimit-{what}-{scope}" for what in ("limit", "remaining", "reset"))
        for scope in ("requests", "tokens")
    }
)
"""What the headers of a limit are called: how much, what is left of it, when it is full again."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One limit of one owner: `layer` "api_key" or "model", `scope` "requests" or "tokens", `limit`
    the policy field. `charge` takes one request; what it takes of tokens is known per request.
    `shown` says whether the headers of an answer may speak of it. The rest follows from these and
    is worked out once: rules are read for every request.
    """

    layer: str
    scope: str
    limit: str
    charge: Charge
    shown: bool
    counts_tokens: bool = field(init=False)
    capacity_text: str = field(init=False)
    header_names: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "counts_tokens", self.scope == "tokens")
        object.__setattr__(self, "capacity_text", str(self.charge.capacity))
        object.__setattr__(self, "header_names", HEADER_NAMES[self.scope])


class Plan(NamedTuple):
    """All limits of one owner. It keeps the owner alive, so that no other can have its id."""

    owner: ApiKey | Alias | None
    rules: tuple[Rule, ...] = ()
    slots: tuple[Slot, ...] = ()


NO_PLAN = Plan(None)
"""The plan of an owner that is not known."""


def make_plan(layer: str, owner: ApiKey | Alias) -> Plan:
    """The limits of `owner`, requests before tokens."""
    policy = owner.limits
    rules = []
    for scope, table in (("requests", REQUEST_LIMITS), ("tokens", TOKEN_LIMITS)):
        limits = [limit for limit in table if getattr(policy, limit) is not None]
        preferred = SHOWN_FIRST.intersection(limits)
        for limit in limits:
            key = f"{layer}:{owner.id}:{limit}"
            charge = Charge(key, table[limit], getattr(policy, limit), 1)
            rules.append(Rule(layer, scope, limit, charge, not preferred or limit in preferred))
    slots: tuple[Slot, ...] = ()
    if policy.concurrency is not None:
        slots = (Slot(f"{layer}:{owner.id}:concurrency", policy.concurrency),)
    return Plan(owner, tuple(rules), slots)


def layer_of(slot: Slot) -> str:
    """The layer of a slot that a plan made."""
    return slot.key.partition(":")[0]


class Plans:
    """Plans by the identity of their owners."""

    def __init__(self) -> None:
        self._plans: dict[int, Plan] = {}

    def __len__(self) -> int:
        return len(self._plans)

    def of(self, layer: str, owner: ApiKey | Alias | None) -> Plan:
        """The plan of `owner`, which stands in `layer`."""
        plan = self._plans.get(id(owner))
        if plan is None:
            if owner is None:
                return NO_PLAN
            if len(self._plans) >= MAX_PLANS:
                self._plans.clear()
            plan = self._plans[id(owner)] = make_plan(layer, owner)
        return plan
