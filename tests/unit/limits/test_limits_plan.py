"""What is worked out once per key and alias, and for how long it is good."""

from __future__ import annotations

from dataclasses import replace

from aisix.core.resources import ApiKey, LimitPolicy
from aisix.limits.buckets import Charge, Slot
from aisix.limits.plan import MAX_PLANS, NO_PLAN, Plans, layer_of, make_plan


def key(id: str = "k", **limits: int) -> ApiKey:
    return ApiKey(id, "0" * 64, limits=LimitPolicy(**limits))


def test_a_plan_names_every_limit_requests_before_tokens():
    plan = make_plan("api_key", key(tpm=100, rpd=9, rpm=5, concurrency=3))
    assert [(rule.scope, rule.limit, rule.shown) for rule in plan.rules] == [
        ("requests", "rpm", True),
        ("requests", "rpd", False),
        ("tokens", "tpm", True),
    ]
    assert plan.rules[1].charge == Charge("api_key:k:rpd", 86400.0, 9, 1)
    assert plan.slots == (Slot("api_key:k:concurrency", 3),)
    assert layer_of(plan.slots[0]) == "api_key"


def test_without_a_per_minute_limit_all_limits_of_a_kind_are_shown():
    plan = make_plan("model", key(rps=1, rph=2, tpd=3))
    assert [rule.shown for rule in plan.rules] == [True, True, True]


def test_a_plan_is_made_once_for_an_owner():
    plans = Plans()
    owner = key(rpm=5)
    assert plans.of("api_key", owner) is plans.of("api_key", owner)
    assert plans.of("api_key", owner).owner is owner


def test_an_owner_that_is_not_known_has_no_limits():
    plans = Plans()
    assert plans.of("api_key", None) is NO_PLAN
    assert len(plans) == 0


def test_a_changed_policy_is_seen_at_once():
    plans = Plans()
    old = key(rpm=5)
    new = replace(old, limits=LimitPolicy(rpm=6))
    assert plans.of("api_key", old).rules[0].charge.capacity == 5
    assert plans.of("api_key", new).rules[0].charge.capacity == 6
    assert plans.of("api_key", old).rules[0].charge.capacity == 5


def test_plans_never_mix_up_owners_that_come_and_go():
    """An id is used again as soon as its object is gone; a plan keeps its owner alive."""
    plans = Plans()
    for number in range(2 * MAX_PLANS + 10):
        plan = plans.of("api_key", key(str(number), rpm=number))
        assert plan.rules[0].charge.key == f"api_key:{number}:rpm"
        assert len(plans) <= MAX_PLANS
