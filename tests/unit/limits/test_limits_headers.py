"""Which of several limits a caller is shown, and in what form."""

from __future__ import annotations

from collections.abc import Iterable

from aisix.core.resources import ApiKey, LimitPolicy
from aisix.limits.buckets import NEVER, Decision, Reading, Slot
from aisix.limits.headers import render_headers
from aisix.limits.plan import Rule, make_plan

Row = tuple[str, str, int, float]
"""Layer, limit, capacity, what remains."""


def rules_of(layer: str, rows: Iterable[Row]) -> tuple[Rule, ...]:
    policy = LimitPolicy(**{limit: capacity for _, limit, capacity, _ in rows})
    return make_plan(layer, ApiKey("1", "0" * 64, limits=policy)).rules


def headers(*rows: Row, full_in_s: float = 3.0) -> dict[str, str]:
    """Rows of a layer in the order of its rules."""
    layers = {layer: [row for row in rows if row[0] == layer] for layer, *_ in rows}
    rules = [rule for layer, own in layers.items() for rule in rules_of(layer, own)]
    assert [rule.limit for rule in rules] == [limit for _, limit, *_ in rows]
    readings = tuple(Reading(0.0, remaining, full_in_s) for *_, remaining in rows)
    return render_headers(rules, [], Decision(True, readings, ()))


def test_without_a_limit_of_a_kind_its_headers_are_absent():
    assert headers() == {}
    assert set(headers(("api_key", "rpm", 10, 9.0))) == {
        "x-ratelimit-limit-requests",
        "x-ratelimit-remaining-requests",
        "x-ratelimit-reset-requests",
    }


def test_of_key_and_model_the_one_with_the_least_fraction_left_is_shown():
    shown = headers(("api_key", "rpm", 10, 5.0), ("model", "rpm", 100, 40.0))
    assert shown["x-ratelimit-limit-requests"] == "100"
    assert shown["x-ratelimit-remaining-requests"] == "40"


def test_the_per_minute_limit_stands_for_its_layer():
    shown = headers(
        ("api_key", "rps", 2, 0.0),
        ("api_key", "rpm", 60, 50.0),
        ("api_key", "tpm", 500, 400.0),
        ("api_key", "tpd", 1000, 1.0),
    )
    assert shown["x-ratelimit-limit-requests"] == "60"
    assert shown["x-ratelimit-limit-tokens"] == "500"


def test_without_one_the_tightest_of_the_others_is_shown():
    shown = headers(("api_key", "rps", 2, 1.0), ("api_key", "rpd", 100, 10.0))
    assert shown["x-ratelimit-limit-requests"] == "100"


def test_a_layer_without_a_per_minute_limit_still_competes():
    shown = headers(("api_key", "rpm", 60, 50.0), ("model", "rpd", 100, 10.0))
    assert shown["x-ratelimit-limit-requests"] == "100"


def test_remaining_is_whole_and_never_below_zero():
    assert headers(("model", "tpm", 10, 2.9))["x-ratelimit-remaining-tokens"] == "2"
    assert headers(("model", "tpm", 10, 2.9999999))["x-ratelimit-remaining-tokens"] == "3"
    assert headers(("model", "tpm", 10, -7.0))["x-ratelimit-remaining-tokens"] == "0"


def test_reset_is_whole_seconds_rounded_up():
    assert headers(("model", "tpm", 9, 1.0), full_in_s=2.1)["x-ratelimit-reset-tokens"] == "3s"
    assert headers(("model", "tpm", 9, 9.0), full_in_s=0.0)["x-ratelimit-reset-tokens"] == "0s"


def test_a_limit_of_zero_is_the_tightest_and_has_no_reset():
    rules = rules_of("api_key", [("", "rpm", 10, 0.0)]) + rules_of("model", [("", "rpm", 0, 0.0)])
    readings = (Reading(0.0, -5.0, 90.0), Reading(NEVER, 0.0, NEVER))
    assert render_headers(rules, [], Decision(False, readings, ())) == {
        "x-ratelimit-limit-requests": "0",
        "x-ratelimit-remaining-requests": "0",
    }


def test_concurrency_shows_the_tighter_of_key_and_model():
    slots = [Slot("k", 10), Slot("m", 4)]
    assert render_headers([], slots, Decision(True, (), (5, 3))) == {
        "x-ratelimit-limit-concurrent": "4",
        "x-ratelimit-remaining-concurrent": "1",
    }
    alike = render_headers([], slots, Decision(True, (), (5, 2)))
    assert alike["x-ratelimit-limit-concurrent"] == "4"
    lowered = render_headers([], slots, Decision(False, (), (5, 9)))
    assert lowered["x-ratelimit-remaining-concurrent"] == "0"
