"""Labels come from configured names alone: a wildcard model must not let callers make series."""

from __future__ import annotations

from aisix.core.resources import Alias
from aisix.routing.health import Health
from aisix.telemetry.metrics import PrometheusRecorder
from tests.support.builders import make_alias, make_deployment, make_exchange
from tests.support.clock import FakeClock

WILD = make_alias(name="gpt-*", deployment=make_deployment(name="dep-*"))


def ask(recorder: PrometheusRecorder, alias: Alias, captured: str) -> None:
    """One exchange of a wildcard model, as the resolver and dispatch see it."""
    deployment = make_deployment(name=f"dep-{captured}")
    exchange = make_exchange(alias=alias, deployment=deployment)
    recorder.exchange_started(exchange)
    recorder.attempt_ended(alias.deployment, alias.name, ok=True, status=200)
    recorder.exchange_ended(exchange)


def test_what_a_wildcard_captured_is_in_no_label():
    clock = FakeClock()
    recorder = PrometheusRecorder(clock=clock, health=Health(clock))
    ask(recorder, WILD, "first")
    before = recorder.render()[1].count(b"\naisix_")
    for number in range(20):
        ask(recorder, WILD, f"caller-text-{number}")
    text = recorder.render()[1]
    assert b"caller-text" not in text
    assert b'upstream_model="dep-*"' in text
    assert text.count(b"\naisix_") == before
