"""Admission: reserve what an exchange may use, hold it, settle it exactly once.

Every limit of the caller's key and of the alias must let the exchange pass; all are asked in one
step, so a refusal consumes nothing. Requests count when they are admitted. Tokens are reserved by
estimate (clamped to the capacity, or a long request could never pass) and settled to what was used:
what was not used comes back, what was used beyond it becomes debt. Where the buckets live is
behind `BucketStore`. No I/O of its own; nothing here is awaited but the store.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from types import MappingProxyType
from typing import Protocol

from aisix.core.exchange import Exchange, Hold
from aisix.errors import LimitExceeded
from aisix.limits.buckets import NEVER, Charge, Decision, Slot
from aisix.limits.estimate import output_tokens, prompt_tokens
from aisix.limits.headers import render_headers
from aisix.limits.plan import Plans, Rule, layer_of

LAYER_NAMES = MappingProxyType({"api_key": "this API key", "model": "this model"})


class BucketStore(Protocol):
    """Where buckets and concurrency counters live: this process, shared memory, another host.

    A store reads time by its own clock. It never raises for want of its backend: what happens then
    is its own decision, and it stays able to answer.
    """

    async def take(self, charges: Sequence[Charge], slots: Sequence[Slot]) -> Decision:
        """Take everything or nothing, atomically; keys are distinct. Cancelled: takes nothing."""

    def give_back(self, corrections: Sequence[Charge], slots: Sequence[Slot], claim: str) -> None:
        """Apply signed corrections and free slots taken under `claim`. Neither waits nor refuses:
        it also runs when the exchange is being torn down."""


class _NoHold:
    """The hold of an exchange without limits; it has no state, so all share one."""

    __slots__ = ()

    @property
    def headers(self) -> Mapping[str, str]:
        return NO_HEADERS

    def settle(self, total_tokens: int) -> None:
        """Nothing was reserved."""

    def keep(self) -> None:
        """Nothing was reserved."""

    def release(self, *, keep_request: bool) -> None:
        """Nothing was reserved."""


NO_HEADERS: Mapping[str, str] = MappingProxyType({})
NO_HOLD: Hold = _NoHold()


class _StoreHold:
    """What one exchange took from a store. The first call ends it; later ones do nothing."""

    __slots__ = ("_charges", "_decision", "_ended", "_rules", "_slots", "_store")

    def __init__(
        self,
        store: BucketStore,
        rules: Sequence[Rule],
        charges: Sequence[Charge],
        *,
        slots: Sequence[Slot],
        decision: Decision,
    ) -> None:
        self._store = store
        self._rules = rules
        self._charges = charges
        self._slots = slots
        self._decision = decision
        self._ended = False

    @property
    def headers(self) -> Mapping[str, str]:
        """Rendered when asked for: an answer shows them once, or not at all, and may be long."""
        return render_headers(self._rules, self._slots, self._decision)

    def settle(self, total_tokens: int) -> None:
        self._end(total_tokens if total_tokens > 0 else 0, keep_request=True)

    def keep(self) -> None:
        self._end(None, keep_request=True)

    def release(self, *, keep_request: bool) -> None:
        self._end(0, keep_request=keep_request)

    def _end(self, total_tokens: int | None, *, keep_request: bool) -> None:
        if self._ended:
            return
        self._ended = True
        corrections = []
        for index, rule in enumerate(self._rules):
            if rule.counts_tokens:
                if total_tokens is None:
                    continue
                used = total_tokens
            elif keep_request:
                continue
            else:
                used = 0
            key, window_s, capacity, cost = self._charges[index]
            if used != cost:
                corrections.append(Charge(key, window_s, capacity, used - cost))
        if corrections or self._slots:
            self._store.give_back(corrections, self._slots, self._decision.claim)


class TokenBucketLimiter:
    """The limiter over any bucket store."""

    def __init__(self, store: BucketStore, *, assumed_output_tokens: int) -> None:
        self._store = store
        self._assumed_output_tokens = assumed_output_tokens
        self._plans = Plans()

    async def admit(self, exchange: Exchange) -> Hold:
        """Reserve for `exchange` and note its prompt estimate. Raises LimitExceeded."""
        payload = exchange.payload
        if payload is not None:
            exchange.prompt_estimate_tokens = prompt_tokens(payload.document, exchange.request.spec)
        of_key = self._plans.of("api_key", exchange.caller)
        of_model = self._plans.of("model", exchange.alias)
        rules = of_key.rules + of_model.rules
        slots = of_key.slots + of_model.slots
        if not rules and not slots:
            return NO_HOLD
        charges = self._charges(rules, exchange)
        decision = await self._store.take(charges, slots)
        if not decision.granted:
            raise _refusal(rules, slots, decision)
        return _StoreHold(self._store, rules, charges, slots=slots, decision=decision)

    def _charges(self, rules: Sequence[Rule], exchange: Exchange) -> list[Charge]:
        """What each rule takes; the estimate is made when a rule is about tokens."""
        charges = []
        tokens = 0
        for rule in rules:
            charge = rule.charge
            if rule.counts_tokens:
                tokens = tokens or self._estimate(exchange)
                key, window_s, capacity, _ = charge
                cost = tokens if tokens < capacity else capacity
                charge = Charge(key, window_s, capacity, cost)
            charges.append(charge)
        return charges

    def _estimate(self, exchange: Exchange) -> int:
        """Tokens to reserve; never 0, or an empty bucket would let a stream of them through."""
        if exchange.payload is None:
            return 1
        output = output_tokens(
            exchange.payload.document, exchange.request.spec, self._assumed_output_tokens
        )
        return max(1, exchange.prompt_estimate_tokens + output)


def _refusal(rules: Sequence[Rule], slots: Sequence[Slot], decision: Decision) -> LimitExceeded:
    """The error for the limit that holds the exchange back longest: the caller's true wait.

    A full concurrency limit names no time, so it is told only when no bucket refuses too; limits of
    0 come first of all.
    """
    headers = render_headers(rules, slots, decision)
    waits = [reading.wait_s for reading in decision.readings]
    longest = max(waits, default=0.0)
    full = [
        (slot.limit, layer_of(slot), count)
        for slot, count in zip(slots, decision.in_flight, strict=True)
        if count >= slot.limit
    ]
    if full and longest < NEVER and (longest <= 0.0 or min(full)[0] <= 0):
        return _concurrency_refusal(*min(full), headers=headers)
    return _bucket_refusal(rules[waits.index(longest)], longest, headers)


def _bucket_refusal(rule: Rule, wait_s: float, headers: Mapping[str, str]) -> LimitExceeded:
    who = LAYER_NAMES[rule.layer]
    capacity = rule.charge.capacity
    if wait_s >= NEVER:
        message = f"Rate limit reached: {rule.limit} of {who} is {capacity}: nothing may pass."
    else:
        unit = rule.scope if capacity != 1 else rule.scope.removesuffix("s")
        message = (
            f"Rate limit reached: {rule.limit} of {who} ({capacity} {unit} per "
            f"{rule.charge.window_s:.0f} s). Try again in {ceil(wait_s * 10) / 10:.1f} s."
        )
    return LimitExceeded(
        message,
        layer=rule.layer,
        limit=rule.limit,
        scope=rule.scope,
        retry_after_s=wait_s if wait_s < NEVER else None,
        should_retry=False if wait_s >= NEVER else None,
        headers=headers,
    )


def _concurrency_refusal(
    limit: int, layer: str, in_flight: int, *, headers: Mapping[str, str]
) -> LimitExceeded:
    who = LAYER_NAMES[layer]
    return LimitExceeded(
        f"Rate limit reached: concurrency limit exceeded ({in_flight} in flight). "
        f"{who[0].upper()}{who[1:]} may have {limit} at once.",
        layer=layer,
        limit="concurrency",
        scope="concurrency",
        should_retry=False if limit <= 0 else None,
        headers=headers,
    )
