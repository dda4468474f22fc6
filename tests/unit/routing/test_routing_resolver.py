"""Alias to deployment, health, and the model list."""

from __future__ import annotations

import pytest

from aisix.core.patterns import capture, matches
from aisix.core.resources import Alias, ApiKey, Deployment
from aisix.core.snapshot import Snapshot
from aisix.errors import (
    BadRequest,
    CredentialRefused,
    Forbidden,
    UnknownAlias,
    UpstreamBroken,
    UpstreamMisconfigured,
    UpstreamRejected,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from aisix.routing.health import Health
from aisix.routing.listing import listing
from aisix.routing.policy import Repairs, Verdict, health_reason
from aisix.routing.resolver import resolve


def alias(name: str, deployment: str = "d") -> Alias:
    target = Deployment(
        name=deployment,
        provider="azure",
        adapter="azure-openai",
        api_base="https://x",
        api_version="v1",
        provider_key_id="p",
        provider_key_name="pn",
    )
    return Alias(id=f"id-{name}", name=name, deployment=target, created=7)


SNAPSHOT = Snapshot.build(
    revision=1,
    taken_at=0.0,
    keys=[],
    aliases=[
        alias("gpt-4o"),
        alias("gpt-*", "prod-*"),
        alias("gpt-4*", "four"),
        alias("*-mini", "m-*"),
    ],
)
ANY = ApiKey(id="k", key_hash="h", allowed_models=("*",))


@pytest.mark.parametrize(
    ("requested", "row", "deployment"),
    [
        ("gpt-4o", "gpt-4o", "d"),
        ("gpt-4x", "gpt-4*", "four"),
        ("gpt-5", "gpt-*", "prod-5"),
        ("gpt-", "gpt-*", "prod-"),
        ("o3-mini", "*-mini", "m-o3"),
    ],
)
def test_exact_wins_then_the_longest_pattern(requested, row, deployment):
    found, target = resolve(SNAPSHOT, ANY, requested)
    assert (found.name, target.name) == (row, deployment)


def test_an_unknown_alias_is_404_before_403():
    nobody = ApiKey(id="k", key_hash="h")
    with pytest.raises(UnknownAlias) as caught:
        resolve(SNAPSHOT, nobody, "claude")
    assert caught.value.message == 'model "claude" not found'
    with pytest.raises(Forbidden):
        resolve(SNAPSHOT, nobody, "gpt-4o")


def test_a_long_unknown_name_is_cut_in_the_message():
    with pytest.raises(UnknownAlias) as caught:
        resolve(SNAPSHOT, ANY, "x" * 10_000)
    assert len(caught.value.message) < 300


@pytest.mark.parametrize(
    ("pattern", "name", "captured"),
    [
        ("a", "a", ""),
        ("a", "b", None),
        ("*", "anything", "anything"),
        ("*", "", ""),
        ("gpt-*", "gpt-", ""),
        ("a*a", "a", None),
        ("a*a", "aa", ""),
        ("a*b*c", "abc", None),
    ],
)
def test_patterns_have_at_most_one_star(pattern, name, captured):
    assert capture(pattern, name) == captured
    assert matches(pattern, name) is (captured is not None)


def test_the_listing_shows_allowed_exact_names_sorted():
    some = Snapshot.build(
        revision=1,
        taken_at=0.0,
        keys=[],
        aliases=[alias("b"), alias("a"), alias("c-*"), alias("x")],
    )
    caller = ApiKey(id="k", key_hash="h", allowed_models=("a", "b", "c-*"))
    shown = listing(some, caller)
    assert [entry["id"] for entry in shown["data"]] == ["a", "b"]
    assert shown["data"][0] == {"id": "a", "object": "model", "created": 7, "owned_by": "azure"}


class TickingClock:
    """A clock set by hand."""

    def __init__(self) -> None:
        self.now = 5.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now


def test_health_counts_failures_in_a_row():
    health = Health(TickingClock())
    levels = []
    for _ in range(9):
        health.failed("a", "request_timeout")
        levels.append(health.level("a"))
    assert levels == [0, 0, 0, 1, 1, 1, 1, 2, 2]
    assert health.last_failure("a") == (5.0, "request_timeout")
    health.succeeded("a")
    assert health.level("a") == 0
    assert health.last_failure("a") is None


def test_health_forgets_removed_aliases():
    health = Health(TickingClock())
    health.failed("gone", "x")
    health.failed("kept", "x")
    health.retain(frozenset({"kept"}))
    assert health.last_failure("gone") is None
    assert health.last_failure("kept") is not None


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (UpstreamTimeout("x", phase="idle"), "request_timeout"),
        (UpstreamUnreachable("x"), "transport_error"),
        (UpstreamBroken("x", kind="decode"), "upstream_decode_error"),
        (UpstreamBroken("x", kind="cut"), "upstream_stream_error"),
        (CredentialRefused("x"), "upstream_auth_failure"),
        (UpstreamMisconfigured("x"), "upstream_misconfigured"),
        (UpstreamRejected("x", status=502, upstream_status=500), "upstream_server_error"),
        (UpstreamRejected("x", status=401, upstream_status=401), "upstream_auth_failure"),
        (UpstreamRejected("x", status=429, upstream_status=429), None),
        (UpstreamRejected("x", status=400, upstream_status=400), None),
        (BadRequest("x"), None),
    ],
)
def test_callers_mistakes_and_quotas_do_not_hurt_health(error, reason):
    assert health_reason(error) == reason


def test_each_repair_is_made_once():
    repairs = Repairs(token=True, stream_options=True)
    refusals = {"token_refused": True, "stream_options_refused": True}
    assert repairs.judge(**refusals) is Verdict.RENEW_TOKEN
    assert repairs.judge(**refusals) is Verdict.DROP_STREAM_OPTIONS
    assert repairs.judge(**refusals) is Verdict.RETURN


@pytest.mark.parametrize(
    ("allowed", "may"), [("gpt-4o", True), ("gpt-*", True), ("gpt-4", False), ("gpt-**", False)]
)
def test_names_and_patterns_allow(allowed, may):
    caller = ApiKey(id="k", key_hash="h", allowed_models=(allowed,))
    if may:
        assert resolve(SNAPSHOT, caller, "gpt-4o")[0].name == "gpt-4o"
        return
    for requested in ("gpt-4o", allowed):
        with pytest.raises(Forbidden):
            resolve(SNAPSHOT, caller, requested if requested != "gpt-4" else "gpt-4o")
