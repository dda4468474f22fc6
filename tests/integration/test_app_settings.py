"""Settings reach the parts that act on them, each its own: a Config of distinct values, built.

What a part does with a value is tested where the part is; here only that `aisix.app` hands it the
right one. No two values are alike, in whatever unit, so that settings which change places show.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from aisix import __version__
from aisix.app import Gateway, build, build_adapters
from aisix.config import Config, parse
from aisix.core.ports import Deadlines
from aisix.errors import FieldError
from aisix.limits.limiter import TokenBucketLimiter
from aisix.pipeline import BodyLimits, Pipeline
from aisix.telemetry.access import AccessLogger
from aisix.transport.curl import CurlTransport
from aisix.transport.request import Proxy, Wire
from aisix.web.body import SWALLOW_S
from aisix.web.connection import Patience
from tests.support.tls import make_certificate

RULES = ("contoso.openai.azure.com:443:127.0.0.1:8443", "example.com:443:127.0.0.1:8444")
ID_HEADERS = ("x-request-id", "x-correlation-id")


def read(path: str) -> bytes:
    return Path(path).read_bytes()


def distinct(folder: Path, **upstream: Any) -> Config:
    """Every setting of the data half unlike the others and unlike its default."""
    document: dict[str, Any] = {
        "admin": {"admin_keys": ["k"]},
        "downstream": {
            "header_timeout_secs": 101,
            "body_timeout_secs": 102,
            "idle_timeout_secs": 103,
            "sse_keepalive_interval_secs": 104,
        },
        "observability": {"access_log": False},
        "proxy": {
            "max_connections": 105,
            "request_body_limit_bytes": 106,
            "upload_limit_bytes": 115,
            "request_id": {"accept_headers": list(ID_HEADERS)},
        },
        "ratelimit": {"assumed_output_tokens": 107},
        "store": {"path": str(folder / "aisix.db")},
        "upstream": {
            "connect_timeout_ms": 108_000,
            "first_byte_timeout_ms": 109_000,
            "stream_timeout_ms": 110_000,
            "timeout_ms": 111_000,
            "pool_idle_timeout_secs": 112,
            "pool_max_idle_per_host": 113,
            "tcp_keepalive_secs": 114,
            "http2": True,
            "allow_link_local": True,
            "proxy": "http://user:pass@127.0.0.1:115",
            "no_proxy": [".corp.test", "10.0.0.0/8"],
            "connect_to": list(RULES),
            "tls": {"ca_file": str(folder / "server-ca.pem"), "verify": False},
            **upstream,
        },
    }
    make_certificate(folder, "127.0.0.1")
    return parse(document, {}, read_file=read)


@asynccontextmanager
async def built(config: Config) -> AsyncIterator[Gateway]:
    """The whole gateway; it listens nowhere and connects to nothing."""
    gateway = await build(config)
    try:
        yield gateway
    finally:
        await gateway.close()


def pipeline_of(gateway: Gateway) -> Pipeline:
    return gateway.data.front.pipeline


def transports_of(gateway: Gateway) -> list[CurlTransport]:
    """Of the data half, and of the control half, which fetches tokens."""
    control = gateway.control.transport
    assert isinstance(control, CurlTransport)
    return [gateway.data.transport, control]


def test_no_setting_of_either_wire_is_left_out_here(tmp_path: Path):
    origins = distinct(tmp_path).origins
    wires = {path: x for path, x in origins.items() if path.startswith(("downstream", "upstream"))}
    assert set(wires.values()) == {"file"}, wires


@pytest.mark.gen_test
async def test_the_front_has_the_patience_that_was_set(tmp_path: Path):
    async with built(distinct(tmp_path)) as gateway:
        assert gateway.data.front.patience == Patience(
            head_s=101, body_s=102, idle_s=103, swallow_s=SWALLOW_S
        )


@pytest.mark.gen_test
async def test_streams_are_kept_alive_as_often_as_was_set(tmp_path: Path):
    async with built(distinct(tmp_path)) as gateway:
        assert pipeline_of(gateway)._relay._keepalive_s == 104


@pytest.mark.gen_test
async def test_the_front_takes_as_many_connections_as_were_set(tmp_path: Path):
    async with built(distinct(tmp_path)) as gateway:
        assert gateway.data.front.max_connections == 105


@pytest.mark.gen_test
async def test_front_and_pipeline_take_bodies_of_the_size_that_was_set(tmp_path: Path):
    """The front refuses what is announced, the pipeline what comes unannounced."""
    async with built(distinct(tmp_path)) as gateway:
        assert gateway.data.front.body_limits == BodyLimits(106, 115)
        assert pipeline_of(gateway)._body_limits == BodyLimits(106, 115)


@pytest.mark.gen_test
async def test_request_ids_are_taken_from_the_headers_that_were_set(tmp_path: Path):
    async with built(distinct(tmp_path)) as gateway:
        assert gateway.data.front.accept_request_ids == ID_HEADERS


@pytest.mark.gen_test
async def test_the_limiter_assumes_as_many_output_tokens_as_were_set(tmp_path: Path):
    async with built(distinct(tmp_path)) as gateway:
        limiter = pipeline_of(gateway)._limiter
        assert isinstance(limiter, TokenBucketLimiter)
        assert limiter._assumed_output_tokens == 107


@pytest.mark.gen_test
async def test_requests_leave_no_line_when_that_was_set(tmp_path: Path):
    async with built(distinct(tmp_path)) as gateway:
        log = pipeline_of(gateway)._access_log
        assert isinstance(log, AccessLogger)
        assert not log._enabled


@pytest.mark.gen_test
async def test_the_dispatcher_gives_calls_the_deadlines_that_were_set(tmp_path: Path):
    async with built(distinct(tmp_path)) as gateway:
        dispatcher = pipeline_of(gateway)._dispatcher
        assert dispatcher._for_whole == Deadlines(
            connect_s=108, first_byte_s=109, idle_s=110, total_s=111
        )
        assert dispatcher._for_stream == Deadlines(
            connect_s=108, first_byte_s=109, idle_s=110, total_s=0
        )


@pytest.mark.gen_test
async def test_calls_are_dispatched_on_the_transport_that_is_closed_with_the_data_half(
    tmp_path: Path,
):
    async with built(distinct(tmp_path)) as gateway:
        data, control = transports_of(gateway)
        assert pipeline_of(gateway)._dispatcher._transport is data
        assert data is not control


@pytest.mark.gen_test
async def test_both_transports_are_wired_as_was_set(tmp_path: Path):
    wire = Wire(
        user_agent=f"aisix/{__version__}",
        http2=True,
        connect_to=RULES,
        ca_file=str(tmp_path / "server-ca.pem"),
        verify=False,
        proxy=Proxy("http://127.0.0.1:115", "user", "pass", (".corp.test", "10.0.0.0/8")),
        allow_link_local=True,
        tcp_keepalive_s=114,
        keep_connections=True,
        max_idle_s=112,
    )
    async with built(distinct(tmp_path)) as gateway:
        assert [transport._wire for transport in transports_of(gateway)] == [wire, wire]


@pytest.mark.parametrize("allowed", [False, True])
def test_the_adapter_takes_link_local_addresses_when_that_was_set(tmp_path: Path, allowed: bool):
    config = distinct(tmp_path, allow_link_local=allowed)
    adapter = build_adapters(config)["azure-openai"]
    if allowed:
        assert adapter.parse_api_base("http://169.254.1.1") == "http://169.254.1.1"
    else:
        with pytest.raises(FieldError, match=r"upstream\.allow_link_local"):
            adapter.parse_api_base("http://169.254.1.1")


@pytest.mark.gen_test
async def test_both_transports_keep_as_many_connections_as_were_set(tmp_path: Path):
    async with built(distinct(tmp_path)) as gateway:
        kept = [transport._max_connections_kept for transport in transports_of(gateway)]
        assert kept == [113, 113]


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("setting", "value", "field"),
    [
        ("http2", False, "http2"),
        ("allow_link_local", False, "allow_link_local"),
        ("pool_max_idle_per_host", 0, "keep_connections"),
    ],
)
async def test_what_is_turned_off_is_off_and_nothing_else_with_it(
    tmp_path: Path, setting: str, value: object, field: str
):
    async with built(distinct(tmp_path, **{setting: value})) as gateway:
        wire = gateway.data.transport._wire
        switches = ("http2", "allow_link_local", "keep_connections")
        off = [name for name in switches if not getattr(wire, name)]
        assert off == [field]


@pytest.mark.gen_test
async def test_without_a_proxy_there_is_none(tmp_path: Path):
    async with built(distinct(tmp_path, proxy=None)) as gateway:
        assert [transport._wire.proxy for transport in transports_of(gateway)] == [None, None]


@pytest.mark.gen_test
async def test_certificates_are_checked_when_that_was_set(tmp_path: Path):
    tls = {"ca_file": None, "verify": True}
    async with built(distinct(tmp_path, http2=False, tls=tls)) as gateway:
        wire = gateway.data.transport._wire
        assert (wire.verify, wire.ca_file, wire.http2) == (True, None, False)
