"""The limiter against a naive model of the same rules, step by step, over any history.

The model keeps a list of everything that was ever taken or corrected and works out what is spent by
walking it from the start, with exact fractions; it knows nothing of how the limiter keeps state.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from aisix.core.exchange import Exchange, Hold
from aisix.core.resources import REQUEST_LIMITS, TOKEN_LIMITS, LimitPolicy
from aisix.errors import LimitExceeded
from aisix.limits.estimate import output_tokens, prompt_tokens
from aisix.limits.limiter import TokenBucketLimiter
from aisix.limits.local import LocalBuckets
from tests.support.limited import (
    CHAT,
    COMPLETION,
    EMBEDDING,
    HandClock,
    make_exchange,
    run,
    tokens,
)

WINDOWS = REQUEST_LIMITS | TOKEN_LIMITS

small = st.none() | st.integers(0, 6)
amounts = st.none() | st.integers(0, 400)
policies = st.builds(
    LimitPolicy, rps=small, rpm=small, rph=small, rpd=small, tpm=amounts, tpd=amounts,
    concurrency=st.none() | st.integers(0, 4),
)  # fmt: skip


class NaiveBucket:
    """Everything that happened to one limit."""

    def __init__(self, capacity: int, window_s: float) -> None:
        self.capacity = capacity
        self.window_s = Fraction(window_s)
        self.events: list[tuple[Fraction, int]] = []

    def spent(self, now: Fraction) -> Fraction:
        rate = Fraction(self.capacity) / self.window_s
        spent, stamp = Fraction(0), now
        for when, cost in self.events:
            if cost == 0:
                continue
            spent = max(Fraction(0), spent - (when - stamp) * rate) if when > stamp else spent
            spent, stamp = max(Fraction(0), spent + cost), when
        return max(Fraction(0), spent - (now - stamp) * rate) if now > stamp else spent

    def fits(self, cost: int, now: Fraction) -> bool:
        return self.capacity > 0 and self.spent(now) + cost <= self.capacity


class LimiterMachine(RuleBasedStateMachine):
    """Admits, ends and time steps in quarter seconds, which floats and fractions both hold."""

    @initialize(key=policies, model=policies)
    def start(self, key: LimitPolicy, model: LimitPolicy) -> None:
        self.policies = {"api_key": key, "model": model}
        self.clock = HandClock(0.0)
        self.store = LocalBuckets(self.clock)
        self.limiter = TokenBucketLimiter(self.store, assumed_output_tokens=100)
        self.buckets = {
            (layer, limit): NaiveBucket(capacity, window_s)
            for layer, policy in self.policies.items()
            for limit, window_s in WINDOWS.items()
            if (capacity := getattr(policy, limit)) is not None
        }
        self.holds: list[tuple[Hold, int]] = []
        self.ended: list[Hold] = []

    @property
    def now(self) -> Fraction:
        return Fraction(self.clock.now)

    def cost(self, limit: str, estimate: int, capacity: int) -> int:
        return min(estimate, capacity) if limit in TOKEN_LIMITS else 1

    def exchange(self, prompt: int, output: int) -> Exchange:
        return make_exchange(
            self.policies["api_key"],
            self.policies["model"],
            document=tokens(prompt, output=output),
            spec=COMPLETION,
        )

    @rule(prompt=st.integers(1, 60), output=st.integers(0, 300))
    def admit(self, prompt: int, output: int) -> None:
        estimate = prompt + output
        refusing = {
            key
            for key, bucket in self.buckets.items()
            if not bucket.fits(self.cost(key[1], estimate, bucket.capacity), self.now)
        } | {
            (layer, "concurrency")
            for layer, policy in self.policies.items()
            if policy.concurrency is not None and len(self.holds) >= policy.concurrency
        }
        told: tuple[str, str] | None = None
        try:
            hold = run(self.limiter.admit(self.exchange(prompt, output)))
        except LimitExceeded as error:
            told = (error.layer, error.limit)
        assert told in refusing if refusing else told is None
        if told is not None:
            return
        self.holds.append((hold, estimate))
        for (_, limit), bucket in self.buckets.items():
            bucket.events.append((self.now, self.cost(limit, estimate, bucket.capacity)))

    @precondition(lambda self: self.holds)
    @rule(data=st.data(), used=st.integers(0, 900))
    def settle(self, data: st.DataObject, used: int) -> None:
        hold, estimate = self.end(data)
        hold.settle(used)
        self.correct(estimate, used, keep_request=True)

    @precondition(lambda self: self.holds)
    @rule(data=st.data())
    def settle_as_reserved(self, data: st.DataObject) -> None:
        hold, estimate = self.end(data)
        hold.settle(estimate)
        self.correct(estimate, estimate, keep_request=True)

    @precondition(lambda self: self.holds)
    @rule(data=st.data(), keep_request=st.booleans())
    def release(self, data: st.DataObject, keep_request: bool) -> None:
        hold, estimate = self.end(data)
        hold.release(keep_request=keep_request)
        self.correct(estimate, 0, keep_request=keep_request)

    @precondition(lambda self: self.ended)
    @rule(data=st.data(), used=st.integers(0, 900))
    def end_again(self, data: st.DataObject, used: int) -> None:
        hold = data.draw(st.sampled_from(self.ended))
        hold.settle(used)
        hold.release(keep_request=False)

    @rule(quarters=st.integers(0, 400) | st.sampled_from([1, 4, 240, 14400, 345600]))
    def pass_time(self, quarters: int) -> None:
        self.clock.now += quarters / 4

    def end(self, data: st.DataObject) -> tuple[Hold, int]:
        entry = self.holds.pop(data.draw(st.integers(0, len(self.holds) - 1)))
        self.ended.append(entry[0])
        return entry

    def correct(self, estimate: int, used: int, *, keep_request: bool) -> None:
        for (_, limit), bucket in self.buckets.items():
            taken = self.cost(limit, estimate, bucket.capacity)
            counted = taken if keep_request else 0
            kept = used if limit in TOKEN_LIMITS else counted
            bucket.events.append((self.now, kept - taken))

    @invariant()
    def in_flight_never_exceeds_a_limit(self) -> None:
        for policy in self.policies.values() if hasattr(self, "policies") else ():
            if policy.concurrency is not None:
                assert len(self.holds) <= policy.concurrency

    def teardown(self) -> None:
        """When all have ended and all time has passed, nothing is left anywhere."""
        if not hasattr(self, "holds"):
            return
        for hold, _ in self.holds:
            hold.release(keep_request=False)
        self.clock.now += 1e12
        for _ in range(40):
            try:
                run(self.limiter.admit(self.exchange(1, 0))).release(keep_request=False)
            except LimitExceeded as error:
                assert getattr(self.policies[error.layer], error.limit) == 0  # noqa: PT017 -- raised or not, both are right
        assert len(self.store) == 0


TestLimiterMachine = LimiterMachine.TestCase
TestLimiterMachine.settings = settings(stateful_step_count=40)


@given(policies, policies, st.integers(1, 60), st.integers(0, 300))
def test_a_refusal_leaves_the_store_as_it_was(key, model, prompt, output):
    clock = HandClock()
    store = LocalBuckets(clock)
    limiter = TokenBucketLimiter(store, assumed_output_tokens=100)
    body = tokens(prompt, output=output)
    for _ in range(8):
        before = len(store)
        try:
            run(limiter.admit(make_exchange(key, model, document=body, spec=COMPLETION)))
        except LimitExceeded:
            assert len(store) == before


junk: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec=None, exclude_categories=()), max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["content", "type", "text", "role", "refusal", "n", "max_tokens", "image_url"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
fields = ["messages", "prompt", "input", "max_tokens", "max_completion_tokens", "n", "best_of"]


@given(st.dictionaries(st.sampled_from(fields), junk))
def test_any_json_has_an_estimate(document):
    for spec in (CHAT, COMPLETION, EMBEDDING):
        prompt = prompt_tokens(document, spec)
        output = output_tokens(document, spec, 100)
        assert type(prompt) is int
        assert type(output) is int
        assert prompt >= 0
        assert output >= 0
