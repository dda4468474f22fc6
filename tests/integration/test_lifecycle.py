"""Binding and draining with small real pieces: sockets, certificates, exchanges in flight."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization

from aisix.config import Address, Config, ListenerTls, parse
from aisix.lifecycle import Listener, Shutdown, StartRefused, bind, drain, serve
from aisix.pipeline import BodyLimits
from aisix.telemetry import logs
from aisix.transport.memory import MemoryAnswer
from aisix.web.base import ProcessState
from aisix.web.inference import ProxyFront
from aisix.web.routes import Routes
from tests.support.builders import CHAT
from tests.support.front import Front, FrontCaller, post, request, until
from tests.support.pipeline import Harness
from tests.support.rows import DONE, delta, good_answer, good_body, streamed
from tests.support.tls import Certificate, make_certificate

ANY_PORT = Address("127.0.0.1", 0)
PLAIN = ListenerTls()
# Tornado drops the socket that it could not bind without closing it; the process ends anyway
tornado_drops_a_socket = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
WAIT_S = 10.0


@contextmanager
def bound(addr: Address = ANY_PORT, tls: ListenerTls = PLAIN) -> Iterator[Listener]:
    """A listener that nothing is served on."""
    listener = bind("proxy", addr, tls)
    try:
        yield listener
    finally:
        listener.stop()


def refusal(addr: Address, tls: ListenerTls = PLAIN, **options: Any) -> str:
    """Why `addr` cannot be bound."""
    with pytest.raises(StartRefused) as caught:
        bind("proxy", addr, tls, **options)
    text = str(caught.value)
    del caught
    gc.collect()  # what leaked shows here, not in a later test
    return text


def tls_of(certificate: Certificate) -> ListenerTls:
    """The settings that name its files."""
    return ListenerTls(str(certificate.chain), str(certificate.key))


# ── bind ────────────────────────────────────────────────────────────────────────────────────────


def test_a_listener_knows_where_it_can_be_reached():
    with bound() as listener:
        port = listener.sockets[0].getsockname()[1]
        assert listener.url == f"http://127.0.0.1:{port}"
        with closing(socket.create_connection(("127.0.0.1", port), WAIT_S)):
            pass


@pytest.mark.skipif(not socket.has_ipv6, reason="this machine has no IPv6")
def test_an_ipv6_address_is_shown_in_brackets():
    try:
        with bound(Address("::1", 0)) as listener:
            assert listener.url.startswith("http://[::1]:")
    except StartRefused as error:
        pytest.skip(f"IPv6 is off: {error}")


@tornado_drops_a_socket
def test_a_busy_port_is_said_with_its_setting_and_the_way_out():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        text = refusal(Address("127.0.0.1", port))
    assert text.startswith(f"proxy.addr: cannot listen on 127.0.0.1:{port}: Address already in use")
    assert "another gateway" in text


@tornado_drops_a_socket
def test_a_setting_of_another_name_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        text = refusal(Address("127.0.0.1", port), setting="some.where.addr")
    assert text.startswith("some.where.addr: ")


@tornado_drops_a_socket
@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.host.invalid"])
def test_an_address_of_no_interface_is_refused(host: str):
    assert f"cannot listen on {host}:0: " in refusal(Address(host, 0))


def test_a_port_can_be_bound_again_after_a_stop():
    with bound() as listener:
        port = listener.sockets[0].getsockname()[1]
    with bound(Address("127.0.0.1", port)) as again:
        assert again.url.endswith(f":{port}")


# ── certificates ────────────────────────────────────────────────────────────────────────────────


def write_locked_key(certificate: Certificate) -> None:
    """Give the key a passphrase."""
    key = serialization.load_pem_private_key(certificate.key.read_bytes(), password=None)
    certificate.key.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.BestAvailableEncryption(b"open sesame"),
        )
    )


def take_away_key(certificate: Certificate) -> None:
    certificate.key.unlink()


def take_away_chain(certificate: Certificate) -> None:
    certificate.chain.unlink()


def write_nonsense(certificate: Certificate) -> None:
    certificate.chain.write_text("no certificate")


def take_another_key(certificate: Certificate) -> None:
    other = make_certificate(certificate.key.parent, "127.0.0.1", label="other")
    certificate.key.write_bytes(other.key.read_bytes())


@pytest.mark.parametrize(
    "spoil", [take_away_key, take_away_chain, write_nonsense, take_another_key, write_locked_key]
)
def test_a_bad_certificate_is_refused_with_its_files(tmp_path: Path, spoil: Any):
    """And nothing stays bound: a leaked socket would be a warning, which fails the test."""
    certificate = make_certificate(tmp_path, "127.0.0.1")
    spoil(certificate)
    text = refusal(ANY_PORT, tls_of(certificate))
    assert text.startswith("proxy.tls: cannot load the certificate ")
    assert str(certificate.chain) in text
    assert str(certificate.key) in text


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.gen_test
async def test_a_listener_with_a_certificate_speaks_tls(tmp_path: Path, version: ssl.TLSVersion):
    certificate = make_certificate(tmp_path, "127.0.0.1")
    harness = Harness()
    harness.transport.script(good_answer(CHAT, stream=True))
    async with running(harness, tls=tls_of(certificate)) as process:
        assert process.listener.url.startswith("https://127.0.0.1:")
        context = ssl.create_default_context(cafile=str(certificate.authority))
        context.minimum_version = context.maximum_version = version
        reader, writer = await asyncio.open_connection("127.0.0.1", process.port, ssl=context)
        writer.write(chat(stream=True, headers={"Connection": "close"}))
        async with asyncio.timeout(WAIT_S):
            said = await reader.read()
        writer.close()
        await writer.wait_closed()
    assert said.startswith(b"HTTP/1.1 200 OK\r\n")
    assert DONE in said


@pytest.mark.logs("SSL Error")
@pytest.mark.gen_test
async def test_plain_http_to_a_tls_listener_is_no_answer(tmp_path: Path):
    certificate = make_certificate(tmp_path, "127.0.0.1")
    async with running(Harness(), tls=tls_of(certificate)) as process, process.caller() as caller:
        await caller.send(request("GET", "/v1/models"))
        assert b"HTTP/1.1 200" not in await caller.rest()


# ── signals ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("number", "skips"), [(signal.SIGTERM, False), (signal.SIGINT, True)], ids=["TERM", "INT"]
)
@pytest.mark.gen_test
async def test_the_first_signal_asks_for_a_drain(number: int, skips: bool):
    """SIGINT is a person at a terminal: no balancer needs time to notice."""
    shutdown = Shutdown()
    assert not shutdown.requested.is_set()
    shutdown.on_signal(number)
    assert shutdown.requested.is_set()
    assert not shutdown.at_once.is_set()
    assert shutdown.skip_wait is skips


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.gen_test
async def test_the_second_signal_asks_for_the_end(second: int):
    shutdown = Shutdown()
    shutdown.on_signal(signal.SIGTERM)
    shutdown.on_signal(second)
    assert shutdown.at_once.is_set()
    assert not shutdown.skip_wait, "the first one decides"
    assert await shutdown.wait_at_once(None)


@pytest.mark.gen_test
async def test_waiting_for_a_second_signal_ends_in_time():
    shutdown = Shutdown()
    shutdown.on_signal(signal.SIGTERM)
    assert not await shutdown.wait_at_once(0.001)


# ── drain ───────────────────────────────────────────────────────────────────────────────────────


class Running:
    """A listener that serves a pipeline, and what stops it."""

    def __init__(self, listener: Listener, state: ProcessState) -> None:
        self.listener = listener
        self.state = state
        self.shutdown = Shutdown()
        self.port = listener.sockets[0].getsockname()[1]

    def drain(self, **settings: int) -> asyncio.Task[bool]:
        """Begin to drain with these settings."""
        config: Config = parse({"admin": {"enabled": False}, "shutdown": settings}, {})
        return asyncio.get_running_loop().create_task(
            drain(config, self.state, listeners=[self.listener], shutdown=self.shutdown)
        )

    @asynccontextmanager
    async def caller(self, **options: Any) -> AsyncIterator[FrontCaller]:
        """A new connection."""
        assert self.listener.server is not None
        front = Front(self.port, self.state, self.listener.server)
        async with front.caller(**options) as caller:
            yield caller

    async def refuses(self) -> bool:
        """Whether no new connection is taken."""
        try:
            async with self.caller():
                return False
        except ConnectionError:
            return True


@asynccontextmanager
async def running(harness: Harness, tls: ListenerTls = PLAIN) -> AsyncIterator[Running]:
    """The proxy of `harness` behind a listener of the product."""
    state = ProcessState()
    state.ready = True
    front = ProxyFront(
        pipeline=harness.pipeline,
        routes=Routes(),
        state=state,
        body_limits=BodyLimits(harness.body_limit_bytes),
        accept_request_ids=(),
    )
    listener = bind("proxy", ANY_PORT, tls)
    listener.open(front)
    try:
        yield Running(listener, state)
    finally:
        async with asyncio.timeout(WAIT_S):
            await listener.close()


def chat(*, stream: bool = False, **options: Any) -> bytes:
    """A chat completion request."""
    return post("/v1/chat/completions", good_body(CHAT, stream=stream), **options)


async def result(task: asyncio.Task[bool]) -> bool:
    """Whether the drain could finish everything."""
    async with asyncio.timeout(WAIT_S):
        return await task


@pytest.mark.gen_test
async def test_with_nothing_in_flight_a_drain_is_over_at_once():
    async with running(Harness()) as process, process.caller() as idle:
        await idle.send(request("GET", "/v1/models"))
        assert (await idle.answer()).status == 200
        assert await result(process.drain())
        assert process.state.draining
        assert await process.refuses()
        await process.listener.close()
        assert await idle.rest() == b"", "idle connections are closed at the end"


@pytest.mark.gen_test
async def test_an_exchange_in_flight_is_finished_first():
    gate = asyncio.Event()
    harness = Harness()
    harness.transport.script(streamed([delta(CHAT, "one"), gate, delta(CHAT, "", "stop"), DONE]))
    async with running(harness) as process, process.caller() as caller:
        await caller.send(chat(stream=True))
        await caller.head()
        assert await caller.chunk()
        task = process.drain()
        await until(lambda: process.state.draining)
        for _ in range(50):
            await asyncio.sleep(0)
        assert not task.done()
        gate.set()
        assert await result(task)
        rest = b""
        while piece := await caller.chunk():
            rest += piece
    assert rest.endswith(DONE)


@pytest.mark.gen_test
async def test_balancers_get_time_to_notice_before_connections_are_refused():
    harness = Harness()
    async with running(harness) as process:
        task = process.drain(min_drain_secs=30)
        await until(lambda: process.state.draining)
        async with process.caller() as late:
            await late.send(request("GET", "/readyz"))
            assert (await late.answer()).status == 503
            await late.send(request("GET", "/livez"))
            assert (await late.answer()).status == 200
            await late.send(request("GET", "/v1/models"))
            answer = await late.answer()
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert not task.done()
        process.shutdown.at_once.set()
        assert await result(task)
        assert await process.refuses()


@pytest.mark.gen_test
async def test_sigint_gives_balancers_no_time():
    async with running(Harness()) as process:
        process.shutdown.on_signal(signal.SIGINT)
        assert await result(process.drain(min_drain_secs=30))


@pytest.mark.logs("gateway.cut")
@pytest.mark.gen_test
async def test_a_second_signal_cuts_what_is_in_flight():
    """An exchange without an answer gets one; a stream gets its error event."""
    harness = Harness()
    harness.transport.script(
        MemoryAnswer(before=[asyncio.Event()]), streamed([delta(CHAT, "one"), asyncio.Event()])
    )
    async with (
        running(harness) as process,
        process.caller() as waiting,
        process.caller() as reading,
    ):
        await waiting.send(chat())
        await until(lambda: harness.transport.opened == 1)
        await reading.send(chat(stream=True))
        await reading.head()
        await reading.chunk()
        process.shutdown.on_signal(signal.SIGTERM)
        task = process.drain()
        await until(lambda: process.state.draining)
        process.shutdown.on_signal(signal.SIGTERM)
        assert not await result(task)
        answer = await waiting.answer()
        assert (answer.status, answer.error["code"]) == (503, "overloaded")
        assert answer.headers["connection"] == "close"
        assert (await reading.chunk()).startswith(b"event: error\n")
        assert await reading.chunk() == b""
        assert not process.state.inflight
    assert harness.transport.closed == 2


@pytest.mark.logs("gateway.cut")
@pytest.mark.gen_test
async def test_a_drain_that_takes_too_long_is_cut():
    harness = Harness()
    harness.transport.script(MemoryAnswer(before=[asyncio.Event()]))
    async with running(harness) as process, process.caller() as caller:
        await caller.send(chat())
        await until(lambda: harness.transport.opened == 1)
        assert not await result(process.drain(max_drain_secs=1))
        assert (await caller.answer()).status == 503


@pytest.mark.logs("gateway.cut")
@pytest.mark.gen_test
async def test_a_caller_that_reads_nothing_does_not_hold_up_the_end():
    """Its error event cannot be written: the connection is closed over it."""
    harness = Harness()
    harness.transport.script(streamed([delta(CHAT, "x" * 100_000)] * 200))
    async with (
        running(harness) as process,
        process.caller(receive_buffer_bytes=4_096) as caller,
    ):
        await caller.send(chat(stream=True))
        await caller.head()
        process.shutdown.on_signal(signal.SIGTERM)
        process.shutdown.on_signal(signal.SIGTERM)
        assert not await result(process.drain())
        async with asyncio.timeout(WAIT_S):
            await process.listener.close()
            await process.state.wait_idle()
        await until(lambda: harness.transport.closed == 1)
        assert len(harness.log.lines) == 1


@pytest.mark.gen_test
async def test_a_listener_that_was_never_opened_can_be_closed():
    listener = bind("admin", ANY_PORT, PLAIN)
    await listener.close()
    assert all(bound_socket.fileno() == -1 for bound_socket in listener.sockets)


class ReadyWatch(logging.Handler):
    """Tells when the log says that the gateway is ready."""

    def __init__(self) -> None:
        super().__init__()
        self.ready = asyncio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage() == "gateway.ready":
            self.ready.set()


@pytest.mark.gen_test
async def test_a_cancelled_process_closes_what_it_opened(tmp_path: Path):
    """The store has threads of its own: left open, they would keep the process from ending."""
    settings = {
        "proxy": {"addr": "127.0.0.1:0"},
        "admin": {"addr": "127.0.0.1:0", "admin_keys": ["an-admin-key"]},
        "observability": {"metrics": {"prometheus": {"addr": "127.0.0.1:0"}}},
        "store": {"path": str(tmp_path / "aisix.db")},
    }
    before = threading.active_count()
    watch = ReadyWatch()
    logging.getLogger("aisix.lifecycle").addHandler(watch)
    serving = asyncio.ensure_future(serve(parse(settings, {})))
    try:
        async with asyncio.timeout(WAIT_S):
            await watch.ready.wait()
        assert threading.active_count() > before
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving
    finally:
        logging.getLogger("aisix.lifecycle").removeHandler(watch)
        logs.reset()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().remove_signal_handler(number)
    assert threading.active_count() <= before
