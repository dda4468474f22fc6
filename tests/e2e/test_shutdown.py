"""How the process ends: it drains, hurries when told twice, and cuts when time is up."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.process import WAIT_S, GatewayProgram, Stand, send, simulator, stand
from tests.support.wire import Wire, chat


@contextmanager
def stream_under_way(bench: Stand, deployment: str = "gpt4o-stall4") -> Iterator[Wire]:
    """A stream whose first pieces have arrived and that waits for the simulator."""
    with Wire(bench.gateway.proxy) as wire:
        wire.send(chat(bench.alias(deployment), stream=True))
        status, headers = wire.answer_head()
        assert status == 200
        assert headers["content-type"].startswith("text/event-stream")
        wire.read_until(b'"Hello"')
        yield wire


@contextmanager
def call_under_way(bench: Stand, deployment: str = "gpt4o-hang") -> Iterator[Wire]:
    """A call that is not a stream and that Azure has not answered yet."""
    with Wire(bench.gateway.proxy) as wire:
        wire.send(chat(bench.alias(deployment)))
        bench.azure.requests(deployment=deployment, phase="hanging", wait=1)
        yield wire


def drain(gateway: GatewayProgram, number: int = signal.SIGTERM) -> None:
    gateway.send_signal(number)
    gateway.events("gateway.draining")


def wait_refusing(gateway: GatewayProgram) -> None:
    """Until the listener is closed."""
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        try:
            Wire(gateway.proxy).close()
        except ConnectionRefusedError:
            return
    raise AssertionError("new connections are still accepted")


def test_an_idle_gateway_ends_at_once(tmp_path: Path) -> None:
    """A kept-alive connection holds nothing up."""
    with stand(tmp_path) as bench, Wire(bench.gateway.proxy) as kept:
        kept.send(chat(bench.alias("gpt4o-prod")))
        assert kept.answer().status == 200
        ended = bench.gateway.stop()
        assert kept.rest() == b""
    assert ended.status == 0
    assert '"drained":true' in ended.stderr
    print(f"ready in {bench.gateway.ready_s:.2f} s")


def test_what_is_in_flight_is_finished_before_the_end(tmp_path: Path) -> None:
    with stand(tmp_path) as bench:
        gateway = bench.gateway
        with stream_under_way(bench) as stream, call_under_way(bench) as call:
            drain(gateway)
            wait_refusing(gateway)
            bench.azure.release()
            assert stream.rest().endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
            answer = call.answer()
            assert answer.status == 200
            assert answer.headers["connection"] == "close"
            assert call.rest() == b""
        ended = gateway.wait()
    assert ended.status == 0
    assert '"drained":true' in ended.stderr
    assert ended.stderr.count('"request.completed"') == 2
    assert "Traceback" not in ended.stderr


def test_new_requests_are_taken_until_balancers_have_noticed(tmp_path: Path) -> None:
    with stand(tmp_path, {"AISIX_SHUTDOWN__MIN_DRAIN_SECS": "2"}) as bench:
        gateway = bench.gateway
        alias = bench.alias("gpt4o-prod")
        assert send("GET", f"{gateway.proxy}/readyz").status == 200
        began = time.monotonic()
        drain(gateway)
        for door in (gateway.proxy, gateway.admin):
            ready = send("GET", f"{door}/readyz")
            assert ready.status == 503
            assert b"[-]not-draining" in ready.body
            assert send("GET", f"{door}/livez").status == 200
        answer = gateway.chat(alias)
        assert answer.status == 200
        assert answer.headers["connection"] == "close"
        read = gateway.manage("GET", "models")
        assert read.status == 200
        assert read.headers["connection"] == "close"
        ended = gateway.wait()
        assert time.monotonic() - began >= 2.0
    assert ended.status == 0


def test_sigint_does_not_wait_for_balancers(tmp_path: Path) -> None:
    with stand(tmp_path, {"AISIX_SHUTDOWN__MIN_DRAIN_SECS": "60"}) as bench:
        ended = bench.gateway.stop(signal.SIGINT)
    assert ended.status == 0


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_the_process_at_once(tmp_path: Path, second: signal.Signals) -> None:
    with stand(tmp_path) as bench:
        with stream_under_way(bench) as stream, call_under_way(bench) as call:
            drain(bench.gateway)
            ended = bench.gateway.stop(second)
            late = stream.rest()
            refused = call.answer()
        records = bench.azure.requests(outcome="client_closed", wait=2)
    assert ended.status == 1
    assert '"gateway.cut"' in ended.stderr
    assert b"event: error\n" in late
    assert b"[DONE]" not in late
    assert refused.status == 503
    assert refused.error["code"] == "overloaded"
    assert len(records) == 2
    assert "Traceback" not in ended.stderr


def test_a_drain_that_takes_too_long_is_cut_with_an_error_event(tmp_path: Path) -> None:
    with stand(tmp_path, {"AISIX_SHUTDOWN__MAX_DRAIN_SECS": "1"}) as bench:
        with stream_under_way(bench) as stream:
            bench.gateway.send_signal(signal.SIGTERM)
            late = stream.rest()
        ended = bench.gateway.wait()
    assert ended.status == 1
    assert b"event: error\n" in late
    assert b"the gateway is shutting down" in late
    assert b"[DONE]" not in late
    assert late.endswith(b"0\r\n\r\n"), "the answer must end properly"
    assert ended.stderr.count('"request.completed"') == 1


def test_a_caller_that_reads_nothing_cannot_hold_the_end_up(tmp_path: Path) -> None:
    settings = {"AISIX_SHUTDOWN__MAX_DRAIN_SECS": "1"}
    with stand(tmp_path, settings) as bench, Wire(bench.gateway.proxy) as deaf:
        deaf.send(chat(bench.alias("gpt4o-bulk64"), stream=True))
        deaf.read_until(b"data:")
        bench.gateway.send_signal(signal.SIGTERM)
        ended = bench.gateway.wait()
    assert ended.status == 1
    assert ended.stderr.count('"request.completed"') == 1


def test_a_killed_gateway_finds_its_resources_again(tmp_path: Path) -> None:
    with simulator() as azure:
        first = GatewayProgram(tmp_path)
        first.wait_ready()
        first.create_model("survivor", "gpt4o-prod", first.create_provider_key(azure.url))
        first.create_caller_key()
        first.stop(signal.SIGKILL)
        second = GatewayProgram(tmp_path)
        try:
            second.wait_ready()
            assert second.events("gateway.ready")[0]["resource_revision"] == 3
            assert second.chat("survivor").status == 200
        finally:
            second.close()
