"""Admission, refusal and settlement, as the pipeline and the caller see them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from aisix.core.endpoints import ENDPOINTS, Action
from aisix.core.exchange import Exchange, Hold
from aisix.core.resources import REQUEST_LIMITS, TOKEN_LIMITS, LimitPolicy
from aisix.errors import LimitExceeded, answer_headers
from aisix.limits.buckets import Charge, Decision, Reading, Slot
from aisix.limits.limiter import NO_HOLD, TokenBucketLimiter
from aisix.limits.local import LocalBuckets
from tests.support.limited import CHAT, COMPLETION, HandClock, make_exchange, run, tokens

LAYERS = {"api_key": "this API key", "model": "this model"}


class World:
    """A limiter, its store and its clock."""

    def __init__(self) -> None:
        self.clock = HandClock()
        self.store = LocalBuckets(self.clock)
        self.limiter = TokenBucketLimiter(self.store, assumed_output_tokens=100)

    def admit(self, exchange: Exchange) -> Hold:
        return run(self.limiter.admit(exchange))

    def refuse(self, exchange: Exchange) -> LimitExceeded:
        with pytest.raises(LimitExceeded) as caught:
            run(self.limiter.admit(exchange))
        return caught.value


def on(layer: str, **limits: Any) -> Exchange:
    """An exchange of 10 prompt tokens and no output, limited in one layer."""
    policy = LimitPolicy(**limits)
    key, model = (policy, None) if layer == "api_key" else (None, policy)
    return make_exchange(key, model, document=tokens(10), spec=COMPLETION)


def test_without_limits_all_exchanges_share_a_hold_that_does_nothing():
    world = World()
    exchange = make_exchange(document={"messages": [{"role": "user", "content": "12345678"}]})
    hold = world.admit(exchange)
    assert hold is NO_HOLD
    assert dict(hold.headers) == {}
    hold.settle(5)
    hold.release(keep_request=False)
    assert exchange.prompt_estimate_tokens == 6
    assert len(world.store) == 0


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(("limit", "window_s"), REQUEST_LIMITS.items())
def test_every_request_limit_lets_its_number_pass_and_then_tells_the_wait(layer, limit, window_s):
    world = World()
    for _ in range(4):
        world.admit(on(layer, **{limit: 4}))
    error = world.refuse(on(layer, **{limit: 4}))
    assert (error.layer, error.limit, error.scope) == (layer, limit, "requests")
    assert error.retry_after_s is not None
    assert error.retry_after_s == pytest.approx(window_s / 4)
    assert f"{limit} of {LAYERS[layer]} (4 requests per {window_s:.0f} s)" in error.message
    world.clock.now += error.retry_after_s
    world.admit(on(layer, **{limit: 4}))


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(("limit", "window_s"), TOKEN_LIMITS.items())
def test_every_token_limit_reserves_the_estimate_and_then_tells_the_wait(layer, limit, window_s):
    world = World()
    world.admit(on(layer, **{limit: 25}))
    world.admit(on(layer, **{limit: 25}))
    error = world.refuse(on(layer, **{limit: 25}))
    assert (error.layer, error.limit, error.scope) == (layer, limit, "tokens")
    assert error.retry_after_s is not None
    assert error.retry_after_s == pytest.approx(window_s * 5 / 25)
    world.clock.now += error.retry_after_s
    world.admit(on(layer, **{limit: 25}))


def test_the_message_states_limit_layer_window_and_reset():
    world = World()
    policy = LimitPolicy(tpm=1000)
    world.admit(make_exchange(policy, document=tokens(900), spec=COMPLETION))
    error = world.refuse(make_exchange(policy, document=tokens(305), spec=COMPLETION))
    assert error.message == (
        "Rate limit reached: tpm of this API key (1000 tokens per 60 s). Try again in 12.3 s."
    )
    single = World()
    single.admit(on("model", rps=1))
    assert "(1 request per 1 s)" in single.refuse(on("model", rps=1)).message


@pytest.mark.parametrize("layer", LAYERS)
def test_concurrency_refuses_without_a_retry_hint_until_a_slot_is_freed(layer):
    world = World()
    hold = world.admit(on(layer, concurrency=2))
    world.admit(on(layer, concurrency=2))
    error = world.refuse(on(layer, concurrency=2))
    assert (error.layer, error.limit, error.scope) == (layer, "concurrency", "concurrency")
    assert "concurrency limit exceeded (2 in flight)" in error.message
    assert LAYERS[layer][1:] in error.message
    assert "Retry-After" not in answer_headers(error)
    assert "x-should-retry" not in answer_headers(error)
    hold.settle(0)
    world.admit(on(layer, concurrency=2))
    world.refuse(on(layer, concurrency=2))


@pytest.mark.parametrize("limit", [*REQUEST_LIMITS, *TOKEN_LIMITS, "concurrency"])
def test_a_limit_of_zero_denies_and_forbids_retries(limit):
    error = World().refuse(on("api_key", **{limit: 0}))
    assert error.limit == limit
    assert error.retry_after_s is None
    shown = answer_headers(error)
    assert shown["x-should-retry"] == "false"
    assert "Retry-After" not in shown
    assert "0" in error.message


def test_a_wait_above_a_minute_is_told_in_full_and_forbids_retries():
    world = World()
    world.admit(on("api_key", rpd=1))
    shown = answer_headers(world.refuse(on("api_key", rpd=1)))
    assert shown["Retry-After"] == "86400"
    assert shown["x-should-retry"] == "false"


def test_a_refused_answer_carries_the_headers_of_the_limit():
    world = World()
    world.admit(on("api_key", rpm=1))
    shown = answer_headers(world.refuse(on("api_key", rpm=1)))
    assert shown["x-ratelimit-limit-requests"] == "1"
    assert shown["x-ratelimit-remaining-requests"] == "0"
    assert shown["x-ratelimit-reset-requests"] == "60s"
    assert shown["Retry-After"] == "60"


def test_an_admitted_answer_carries_the_headers_as_they_stand_after_admission():
    hold = World().admit(on("api_key", rpm=60, tpm=100, concurrency=3))
    assert hold.headers == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-limit-tokens": "100",
        "x-ratelimit-remaining-tokens": "90",
        "x-ratelimit-reset-tokens": "6s",
        "x-ratelimit-limit-concurrent": "3",
        "x-ratelimit-remaining-concurrent": "2",
    }


def test_of_several_refusing_limits_the_longest_wait_is_told():
    world = World()
    policy = LimitPolicy(rpm=1, tpm=10)
    world.admit(make_exchange(policy, LimitPolicy(rph=1), document=tokens(10), spec=COMPLETION))
    error = world.refuse(
        make_exchange(policy, LimitPolicy(rph=1), document=tokens(10), spec=COMPLETION)
    )
    assert (error.layer, error.limit, error.retry_after_s) == ("model", "rph", 3600.0)


def test_a_bucket_that_names_a_wait_is_told_before_concurrency():
    world = World()
    world.admit(on("api_key", rpm=1, concurrency=1))
    assert world.refuse(on("api_key", rpm=1, concurrency=1)).limit == "rpm"


def test_a_concurrency_of_zero_is_told_before_any_wait():
    world = World()
    world.admit(on("api_key", rpm=1))
    assert world.refuse(on("api_key", rpm=1, concurrency=0)).limit == "concurrency"


def test_a_request_refused_by_one_limit_consumes_none_of_the_others():
    world = World()
    model = LimitPolicy(rpm=1)
    key = LimitPolicy(rpm=10, tpm=1000, concurrency=5)
    world.admit(make_exchange(None, model, document=tokens(10), spec=COMPLETION))
    before = len(world.store)
    for _ in range(20):
        world.refuse(make_exchange(key, model, document=tokens(10), spec=COMPLETION))
    assert len(world.store) == before
    hold = world.admit(make_exchange(key, document=tokens(10), spec=COMPLETION))
    assert hold.headers["x-ratelimit-remaining-requests"] == "9"
    assert hold.headers["x-ratelimit-remaining-tokens"] == "990"
    assert hold.headers["x-ratelimit-remaining-concurrent"] == "4"


def remaining(world: World, **limits: int) -> str:
    """Tokens left of the key's limit, seen by a request of one token."""
    exchange = make_exchange(LimitPolicy(**limits), document=tokens(1), spec=COMPLETION)
    hold = world.admit(exchange)
    hold.release(keep_request=False)
    return str(int(hold.headers["x-ratelimit-remaining-tokens"]) + 1)


def test_tokens_not_used_come_back():
    world = World()
    policy = LimitPolicy(tpm=1000)
    hold = world.admit(make_exchange(policy, document=tokens(200, output=300), spec=COMPLETION))
    assert hold.headers["x-ratelimit-remaining-tokens"] == "500"
    hold.settle(220)
    assert remaining(world, tpm=1000) == "780"


def test_tokens_used_beyond_the_reservation_become_debt():
    world = World()
    world.admit(on("api_key", tpm=100)).settle(160)
    error = world.refuse(on("api_key", tpm=100))
    assert error.retry_after_s == pytest.approx((60 + 10) * 60 / 100)
    assert error.headers["x-ratelimit-remaining-tokens"] == "0"
    assert error.headers["x-ratelimit-reset-tokens"] == "96s"


def test_a_request_larger_than_the_limit_reserves_all_of_it_and_passes():
    world = World()
    big = make_exchange(LimitPolicy(tpm=50), document=tokens(10, output=10**9), spec=COMPLETION)
    assert world.admit(big).headers["x-ratelimit-remaining-tokens"] == "0"
    world.refuse(on("api_key", tpm=50))


def test_a_request_without_an_output_limit_reserves_the_assumed_output_per_choice():
    body = {"messages": [{"role": "user", "content": "1234"}], "n": 2}
    hold = World().admit(make_exchange(LimitPolicy(tpm=1000), document=body))
    assert hold.headers["x-ratelimit-remaining-tokens"] == str(1000 - 5 - 200)


def test_an_empty_bucket_refuses_even_a_request_that_seems_to_need_nothing():
    world = World()
    nothing = {"prompt": "", "max_tokens": 0}
    policy = LimitPolicy(tpm=10)
    world.admit(on("api_key", tpm=10))
    world.refuse(make_exchange(policy, document=nothing, spec=COMPLETION))


def test_an_exchange_without_a_body_reserves_one_token():
    exchange = on("api_key", tpm=10)
    exchange.payload = None
    assert World().admit(exchange).headers["x-ratelimit-remaining-tokens"] == "9"


def test_an_exchange_before_authentication_meets_no_limit_of_its_own():
    exchange = on("api_key", rpm=0)
    exchange.caller = None
    exchange.alias = None
    assert World().admit(exchange) is NO_HOLD


def test_a_release_returns_tokens_and_keeps_the_request_when_azure_answered():
    world = World()
    world.admit(on("api_key", rpm=10, tpm=100)).release(keep_request=True)
    hold = world.admit(on("api_key", rpm=10, tpm=100))
    assert hold.headers["x-ratelimit-remaining-requests"] == "8"
    assert hold.headers["x-ratelimit-remaining-tokens"] == "90"


def test_a_release_returns_everything_when_azure_was_not_reached():
    world = World()
    world.admit(on("api_key", rpm=10, tpm=100, concurrency=2)).release(keep_request=False)
    assert len(world.store) == 0


def test_a_hold_ends_once_whatever_is_called_afterwards():
    world = World()
    held = world.admit(on("api_key", tpm=100, concurrency=2))
    first = world.admit(on("api_key", tpm=100, concurrency=2))
    first.settle(5)
    first.settle(500)
    first.release(keep_request=False)
    hold = world.admit(on("api_key", tpm=100, concurrency=2))
    assert hold.headers["x-ratelimit-remaining-tokens"] == "75"
    world.refuse(on("api_key", concurrency=2))
    held.release(keep_request=False)


def test_a_negative_usage_report_counts_as_none():
    world = World()
    world.admit(on("api_key", tpm=100)).settle(-1000)
    assert remaining(world, tpm=100) == "100"


def test_a_hold_settles_after_its_bucket_drained_and_was_dropped():
    world = World()
    late = world.admit(on("api_key", tpm=100))
    world.clock.now += 3600.0
    world.admit(on("model", rpm=5)).release(keep_request=False)
    late.settle(160)
    error = world.refuse(make_long(LimitPolicy(tpm=100), 60))
    assert error.retry_after_s == pytest.approx((150 + 60 - 100) * 60 / 100)


def make_long(policy: LimitPolicy, count: int) -> Exchange:
    return make_exchange(policy, document=tokens(count), spec=COMPLETION)


def test_a_limit_changed_while_requests_are_in_flight_keeps_what_is_spent():
    world = World()
    hold = world.admit(make_long(LimitPolicy(tpm=100), 80))
    assert remaining(world, tpm=200) == "120"
    hold.settle(30)
    assert remaining(world, tpm=200) == "170"
    assert world.refuse(make_long(LimitPolicy(tpm=20), 1)).limit == "tpm"


@pytest.mark.parametrize(("old", "new", "wait_s"), [(100, 20, 210.0), (20, 10, 90.0)])
def test_the_wait_under_a_lowered_limit_is_true(old, new, wait_s):
    world = World()
    world.admit(make_long(LimitPolicy(tpm=old), 80)).settle(70 if old == 100 else 15)
    error = world.refuse(make_long(LimitPolicy(tpm=new), 80))
    assert error.retry_after_s == pytest.approx(wait_s)
    world.clock.now += wait_s / 2
    again = world.refuse(make_long(LimitPolicy(tpm=new), 80))
    assert again.retry_after_s == pytest.approx(wait_s / 2)
    world.clock.now += wait_s / 2
    world.admit(make_long(LimitPolicy(tpm=new), 80))


def test_keys_and_models_have_buckets_of_their_own():
    world = World()
    policy = LimitPolicy(rpm=1)
    world.admit(make_exchange(policy, policy, key_id="same", alias_id="same"))
    world.admit(make_exchange(policy, policy, key_id="other", alias_id="other"))
    error = world.refuse(make_exchange(policy, policy, key_id="new", alias_id="same"))
    assert error.layer == "model"


@pytest.mark.parametrize(
    "spec", [row for row in ENDPOINTS if row.action is Action.RELAY], ids=lambda row: row.operation
)
def test_every_relayed_endpoint_is_held_to_token_limits(spec):
    world = World()
    if spec.prompt_field is None:
        full = make_exchange(LimitPolicy(tpm=1), spec=spec)
        world.admit(full)
        assert world.refuse(full).limit == "tpm", "what uses no tokens waits for an empty bucket"
        return
    body: dict[str, Any] = {spec.prompt_field: [{"role": "user", "content": "x" * 400}]}
    if spec is not CHAT:
        body = {spec.prompt_field: "x" * 400}
    exchange = make_exchange(LimitPolicy(tpm=150), document=body, spec=spec)
    world.admit(exchange)
    assert exchange.prompt_estimate_tokens >= 100
    assert world.refuse(exchange).limit == "tpm"


class LeasingStore:
    """A store that names what it gives out, as one across hosts must."""

    def __init__(self) -> None:
        self.given: list[tuple[Sequence[Charge], Sequence[Slot], str]] = []

    async def take(self, charges: Sequence[Charge], slots: Sequence[Slot]) -> Decision:
        readings = tuple(Reading(0.0, 1.0, 1.0) for _ in charges)
        return Decision(True, readings, tuple(1 for _ in slots), "lease-7")

    def give_back(self, corrections: Sequence[Charge], slots: Sequence[Slot], claim: str) -> None:
        self.given.append((list(corrections), list(slots), claim))


def test_slots_go_back_under_the_claim_they_were_given_under():
    store = LeasingStore()
    limiter = TokenBucketLimiter(store, assumed_output_tokens=100)
    hold = run(limiter.admit(on("api_key", concurrency=4)))
    hold.release(keep_request=True)
    assert store.given == [([], [Slot("api_key:k1:concurrency", 4)], "lease-7")]


def test_nothing_is_sent_to_the_store_when_there_is_nothing_to_correct():
    store = LeasingStore()
    limiter = TokenBucketLimiter(store, assumed_output_tokens=1)
    run(limiter.admit(on("model", rpm=5))).settle(99)
    run(limiter.admit(on("model", tpm=50))).settle(10)
    assert store.given == []
