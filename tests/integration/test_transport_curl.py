"""The libcurl transport against odd upstreams: framing, cuts, kept connections, slow readers."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import os
import socket
from collections.abc import AsyncIterator

import pytest

from aisix import __version__
from aisix.core.ports import Deadlines, UpstreamCall, UpstreamTarget
from aisix.errors import (
    UpstreamBroken,
    UpstreamFailed,
    UpstreamMisconfigured,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from aisix.transport.curl import CurlTransport
from aisix.transport.transfer import Transfer
from tests.support.raw_server import (
    CHUNKED_HEAD,
    LAST_CHUNK,
    RawConnection,
    RawRequest,
    answers,
    chunk,
    raw_server,
)
from tests.support.transports import curl_transport, wired

plain_and_tls = pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
MIB = 1024 * 1024


def call(url: str, body: bytes | AsyncIterator[bytes] = b"{}", **more) -> UpstreamCall:
    """A call to a target of its own, all headers on the target; it streams unless said."""
    target = UpstreamTarget(
        more.pop("method", "POST"), url, more.pop("headers", ()), more.pop("streaming", True)
    )
    off = {"connect_s": 5.0, "first_byte_s": 0.0, "idle_s": 0.0}
    return UpstreamCall(target, more.pop("own", ()), body, Deadlines(**{**off, **more}))


async def fetch(transport: CurlTransport, wanted: UpstreamCall) -> bytes:
    async with transport.open(wanted) as answer:
        return await answer.read_all()


def always(*pieces: bytes):
    """Serve every request with these bytes."""
    return lambda connection: answers(connection, *pieces)


def once(*pieces: bytes):
    """Serve one request with these bytes, then close."""

    async def serve(connection: RawConnection) -> None:
        if await connection.request() is not None:
            await connection.send(*pieces)

    return serve


def recording(requests: list[RawRequest], reply: bytes = OK):
    async def serve(connection: RawConnection) -> None:
        while (request := await connection.request()) is not None:
            requests.append(request)
            await connection.send(reply)

    return serve


# ── what goes out ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.gen_test
async def test_nothing_is_sent_but_the_call_and_two_headers_of_ours():
    requests: list[RawRequest] = []
    async with raw_server(recording(requests)) as server, curl_transport() as transport:
        url = server.url("/a/../b?api-version=1&x=%20y")
        headers = [("api-key", "k"), ("X-Empty", ""), ("x-twice", "1"), ("x-twice", "2 ")]
        assert await fetch(transport, call(url, b'{"a":1}', headers=headers)) == b"ok"
    (request,) = requests
    assert (request.method, request.target) == ("POST", "/a/../b?api-version=1&x=%20y")
    assert sorted(request.headers) == sorted(
        [
            ("host", f"127.0.0.1:{server.port}"),
            ("api-key", "k"),
            ("x-empty", ""),
            ("x-twice", "1"),
            ("x-twice", "2"),
            ("user-agent", f"aisix/{__version__}"),
            ("accept-encoding", "identity"),
            ("content-length", "7"),
        ]
    )
    assert request.body == b'{"a":1}'


@pytest.mark.gen_test
async def test_the_calls_own_headers_win_and_framing_is_ours():
    requests: list[RawRequest] = []
    headers = [
        ("USER-AGENT", "mine"),
        ("Accept", "text/event-stream"),
        ("Content-Type", "application/json"),
        ("Accept-Encoding", "br"),
        ("Content-Length", "999"),
        ("Transfer-Encoding", "chunked"),
        ("Expect", "100-continue"),
        ("Connection", "close"),
    ]
    async with raw_server(recording(requests)) as server, curl_transport() as transport:
        await fetch(transport, call(server.url(), b"body", headers=headers))
        await fetch(transport, call(server.url(), b"x" * MIB * 2))
        assert len(server.connections) == 1
    first, second = requests
    assert first.header("user-agent") == "mine"
    assert first.header("accept") == "text/event-stream"
    assert first.header("content-type") == "application/json"
    assert first.header("accept-encoding") == "br"
    assert first.header("content-length") == "4"
    assert first.header("transfer-encoding") is None
    assert [r.header("expect") for r in requests] == [None, None]
    assert first.header("connection") is None
    assert second.header("content-type") is None
    assert len(second.body) == 2 * MIB


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("method", "body"),
    [("HEAD", b"")]
    + [(m, b) for m in ("GET", "POST", "PUT", "PATCH", "DELETE") for b in (b"", b"body")],
)
async def test_every_method_is_sent_as_it_is_named(method, body):
    requests: list[RawRequest] = []
    reply = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n" + (b"" if method == "HEAD" else b"ok")
    async with raw_server(recording(requests, reply)) as server, curl_transport() as transport:
        got = await fetch(transport, call(server.url(), body, method=method))
    assert got == (b"" if method == "HEAD" else b"ok")
    assert (requests[0].method, requests[0].body) == (method, body)


@pytest.mark.gen_test
@pytest.mark.parametrize(
    "header",
    [
        ("api-key", "secret\r\nX-Evil: 1"),
        ("api-key", "secret\n"),
        ("api-key", "secret\0"),
        ("api-key", "secret\x7f"),
        ("api-key", "secret\u2028"),
        ("api key", "secret"),
        ("", "secret"),
        ("x\r\ny", "secret"),
    ],
)
async def test_a_header_that_could_break_out_is_refused_unsent_and_unechoed(header):
    async with raw_server(always(OK)) as server, curl_transport() as transport:
        with pytest.raises(UpstreamMisconfigured) as caught:
            await fetch(transport, call(server.url(), headers=[header]))
        assert "secret" not in str(caught.value)
        assert transport.stats().open_transfers == 0
        assert server.connections == []


@pytest.mark.gen_test
@pytest.mark.parametrize(
    "url",
    [
        "ftp://127.0.0.1/",
        "file:///etc/passwd",
        "http:///x",
        "127.0.0.1/x",
        "http://127.0.0.1:bad/",
        "http://127.0.0.1:99999999/",
        "http://[::1/",
        "http://a b/",
        "http://127.0.0.1/\r\nX: y",
        "http://127.0.0.1/\0",
        "http://127.0.0.1/ü",
        "",
    ],
)
async def test_an_address_that_cannot_be_called_is_refused_unechoed(url):
    async with curl_transport() as transport:
        with pytest.raises(UpstreamMisconfigured) as caught:
            await fetch(transport, call(url))
        assert "127.0.0.1" not in caught.value.message


@pytest.mark.gen_test
async def test_a_large_body_with_nuls_arrives_whole():
    body = os.urandom(MIB) * 5 + b"\0" * 10
    requests: list[RawRequest] = []
    async with raw_server(recording(requests)) as server, curl_transport() as transport:
        await fetch(transport, call(server.url(), body))
    assert hashlib.sha256(requests[0].body).digest() == hashlib.sha256(body).digest()


@pytest.mark.gen_test
async def test_the_environment_names_no_proxy_for_us(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    async with raw_server(always(OK)) as server, curl_transport() as transport:
        assert await fetch(transport, call(server.url())) == b"ok"


# ── bodies from a source ────────────────────────────────────────────────────────────────────────


@pytest.mark.gen_test
async def test_an_upload_is_sent_piece_by_piece_as_it_comes():
    seen: asyncio.Queue[bytes] = asyncio.Queue()
    heads = []

    async def serve(connection: RawConnection) -> None:
        heads.append(await connection.head())
        async for piece in connection.chunks():
            seen.put_nowait(piece)
        await connection.send(OK)

    async def source() -> AsyncIterator[bytes]:
        for piece in (b"one", b"two", b"three"):
            yield piece
            assert await asyncio.wait_for(seen.get(), 5) == piece

    async with raw_server(serve) as server, curl_transport() as transport:
        assert await fetch(transport, call(server.url(), source(), method="PUT")) == b"ok"
    head = heads[0]
    assert head is not None
    method, _target, headers = head
    assert method == "PUT"
    assert ("transfer-encoding", "chunked") in headers
    assert "content-length" not in dict(headers)


@pytest.mark.gen_test
async def test_a_large_upload_arrives_whole_and_holds_its_source_back():
    piece = os.urandom(100_000)
    pulled = 0
    gate = asyncio.Event()
    received = hashlib.sha256()
    piece_count = 200

    async def source() -> AsyncIterator[bytes]:
        nonlocal pulled
        for _ in range(piece_count):
            pulled += 1
            yield piece

    async def serve(connection: RawConnection) -> None:
        await connection.head()
        await gate.wait()
        async for data in connection.chunks():
            received.update(data)
        await connection.send(OK)

    async with raw_server(serve) as server, curl_transport() as transport:
        task = asyncio.create_task(fetch(transport, call(server.url(), source())))
        await steady(lambda: pulled)
        assert 0 < pulled < piece_count
        gate.set()
        assert await task == b"ok"
    assert received.digest() == hashlib.sha256(piece * piece_count).digest()


@pytest.mark.gen_test
async def test_an_upload_without_a_piece_is_an_empty_body():
    nothing: tuple[bytes, ...] = ()

    async def source() -> AsyncIterator[bytes]:
        for piece in nothing:
            yield piece

    requests: list[RawRequest] = []
    async with raw_server(recording(requests)) as server, curl_transport() as transport:
        assert await fetch(transport, call(server.url(), source())) == b"ok"
    assert requests[0].body == b""


@pytest.mark.gen_test
async def test_an_early_answer_ends_an_upload():
    closed = asyncio.Event()

    async def source() -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"x" * 65536
                await asyncio.sleep(0)
        finally:
            closed.set()

    async def serve(connection: RawConnection) -> None:
        await connection.head()
        await connection.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig")
        await connection.until_gone()

    async with raw_server(serve) as server, curl_transport() as transport:
        async with transport.open(call(server.url(), source())) as answer:
            assert (answer.status, await answer.read_all()) == (413, b"big")
        assert closed.is_set()


@pytest.mark.gen_test
async def test_an_upload_that_fails_or_is_cancelled_ends_at_the_upstream_and_at_the_source():
    gone = asyncio.Semaphore(0)
    closed = 0

    async def serve(connection: RawConnection) -> None:
        await connection.head()
        await connection.until_gone()
        gone.release()

    async def source(error: Exception | None) -> AsyncIterator[bytes]:
        nonlocal closed
        try:
            yield b"first"
            if error is not None:
                raise error
            await asyncio.Event().wait()
        finally:
            closed += 1

    async with raw_server(serve) as server, curl_transport() as transport:
        with pytest.raises(ZeroDivisionError):
            await fetch(transport, call(server.url(), source(ZeroDivisionError())))
        await asyncio.wait_for(gone.acquire(), 5)
        task = asyncio.create_task(fetch(transport, call(server.url(), source(None))))
        await steady(lambda: len(server.connections))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert closed == 2
        assert transport.stats().open_transfers == 0


# ── what comes back ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.gen_test
@plain_and_tls
async def test_interim_answers_are_skipped_and_the_last_head_counts(tls):
    reply = (
        b"HTTP/1.1 100 Continue\r\n\r\n"
        b"HTTP/1.1 103 Early Hints\r\nX-Hint: 1\r\nLink: a\r\n\r\n"
        b"HTTP/1.1 201 Created\r\nX-A: 1\r\nx-a:2\r\nX-Folded: a\r\n  b\r\n"
        b"Content-Length: 2\r\n\r\nok"
    )
    async with (
        wired(always(reply), tls=tls) as (server, transport),
        transport.open(call(server.url())) as answer,
    ):
        assert answer.status == 201
        assert dict(answer.headers) == {"x-a": "1, 2", "x-folded": "a b", "content-length": "2"}
        assert await answer.read_all() == b"ok"


@pytest.mark.gen_test
@plain_and_tls
async def test_an_interim_answer_does_not_satisfy_the_first_byte_deadline(tls):
    async def serve(connection: RawConnection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 103 Early Hints\r\n\r\n")
        await connection.until_gone()

    async with wired(serve, tls=tls) as (server, transport):
        with pytest.raises(UpstreamTimeout) as caught:
            await fetch(transport, call(server.url(), first_byte_s=0.1))
        assert caught.value.phase == "first_byte"


@pytest.mark.gen_test
@plain_and_tls
async def test_a_close_after_an_interim_answer_is_a_close_before_the_head(tls):
    async with wired(once(b"HTTP/1.1 103 Hints\r\n\r\n"), tls=tls) as (server, transport):
        with pytest.raises(UpstreamUnreachable):
            await fetch(transport, call(server.url()))
        assert transport.stats().open_transfers == 0


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("reply", "body"),
    [
        (b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nuntil the end", b"until the end"),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", b""),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b""),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
        (b"HTTP/1.1 200 \r\nContent-Length: 1\r\n\r\nx", b"x"),
        (b"HTTP/1.1 200\r\nContent-Length: 1\r\n\r\nx", b"x"),
        (b"HTTP/1.1 200 OK\nContent-Length: 1\n\nx", b"x"),
        (CHUNKED_HEAD + b"1;ext=1\r\nx\r\n0\r\nX-Trailer: 1\r\n\r\n", b"x"),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nraw", b"raw"),
    ],
    ids=["1.0", "until-close", "zero", "204", "no-reason", "bare", "lf", "trailer", "encoded"],
)
async def test_a_legal_answer_is_read_as_it_is(reply, body):
    async with (
        raw_server(once(reply)) as server,
        curl_transport() as transport,
        transport.open(call(server.url())) as answer,
    ):
        assert await answer.read_all() == body
        assert "x-trailer" not in answer.headers


@pytest.mark.gen_test
@pytest.mark.parametrize(
    "reply",
    [
        b"this is not HTTP at all\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: a\0b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: %b\r\n" % (b"y" * 8000) * 60,
        b"HTTP/1.1 200 OK\r\nX: %b\r\n" % (b"y" * 480_000),
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        CHUNKED_HEAD + b"f" * 40 + b"\r\nx\r\n",
        CHUNKED_HEAD + b"zz\r\nx\r\n",
        CHUNKED_HEAD + b"1\r\nxyz\r\n",
    ],
    ids=lambda reply: repr(reply[:12] + reply[-24:]),
)
async def test_an_answer_that_is_not_http_is_broken_by_decoding(reply):
    async with raw_server(once(reply)) as server, curl_transport() as transport:
        with pytest.raises(UpstreamBroken) as caught:
            await fetch(transport, call(server.url()))
        assert caught.value.kind == "decode"
        assert caught.value.detail is not None


@pytest.mark.parametrize("length", [b"9" * 25, b"9" * 5000, b"0" * 5000 + b"2"])
@pytest.mark.gen_test
async def test_a_length_that_no_number_holds_is_no_length(length, capfd):
    reply = b"HTTP/1.1 200 OK\r\nContent-Length: %b\r\n\r\nok" % length
    async with raw_server(once(reply)) as server, curl_transport() as transport:
        assert await fetch(transport, call(server.url(), streaming=False)) == b"ok"
    assert capfd.readouterr().err == "", "libcurl's callbacks have nobody to raise to"


@pytest.mark.gen_test
async def test_redirects_are_not_followed_and_cookies_not_kept():
    requests: list[RawRequest] = []
    reply = (
        b"HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\nSet-Cookie: a=b\r\nSet-Cookie: c=d\r\n"
        b"Content-Length: 0\r\n\r\n"
    )
    async with raw_server(recording(requests, reply)) as server, curl_transport() as transport:
        for _ in range(2):
            async with transport.open(call(server.url("/here"))) as answer:
                assert answer.status == 302
                assert answer.headers["set-cookie"] == "a=b, c=d"
    assert [request.target for request in requests] == ["/here", "/here"]
    assert [request.header("cookie") for request in requests] == [None, None]


# ── cuts ────────────────────────────────────────────────────────────────────────────────────────


FRAMED = {
    "length": b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n0123456789",
    "chunked": CHUNKED_HEAD + chunk(b"01234") + chunk(b"56789") + LAST_CHUNK,
}


def cut(connection: RawConnection, manner: str) -> None:
    """End the connection now; "close" and "truncate" differ over TLS."""
    if manner == "reset":
        connection.reset()
    elif manner == "truncate":
        connection.truncate()
    else:
        connection.cut()


@pytest.mark.gen_test
@pytest.mark.parametrize("framing", FRAMED)
@pytest.mark.parametrize("manner", ["close", "truncate", "reset"])
@plain_and_tls
async def test_an_answer_cut_at_any_byte_is_never_taken_for_whole(framing, manner, tls):
    whole = FRAMED[framing]
    head_bytes = whole.index(b"\r\n\r\n") + 4
    # the last CRLF of a chunked body may be missing: the answer is whole without it
    necessary = len(whole) - (2 if framing == "chunked" else 0)
    offsets = iter(range(len(whole) + 1))

    async def serve(connection: RawConnection) -> None:
        await connection.request()
        await connection.send(whole[: next(offsets)])
        cut(connection, manner)

    async with wired(serve, tls=tls) as (server, transport):
        for offset in range(len(whole) + 1):
            outcome = await outcome_of(transport, call(server.url()))
            if manner == "reset":
                # the kernel may throw away what it had not handed over when the reset came
                assert outcome in {"unreachable", "cut"} or offset >= necessary, offset
            elif offset < head_bytes:
                assert outcome == "unreachable", offset
            elif offset < necessary:
                assert outcome == "cut", offset
            else:
                assert outcome == "0123456789" or (outcome == "cut" and offset < len(whole))
            assert transport.stats().open_transfers == 0


async def outcome_of(transport: CurlTransport, wanted: UpstreamCall) -> str:
    try:
        return (await fetch(transport, wanted)).decode()
    except UpstreamUnreachable:
        return "unreachable"
    except UpstreamBroken as error:
        return error.kind


@pytest.mark.gen_test
@plain_and_tls
async def test_bytes_before_a_cut_are_delivered(tls):
    async def serve(connection: RawConnection) -> None:
        await connection.request()
        await connection.send(CHUNKED_HEAD, chunk(b"x" * 100_000), b"5\r\nab")

    async with wired(serve, tls=tls) as (server, transport):
        got = b""
        with pytest.raises(UpstreamBroken) as caught:
            async with transport.open(call(server.url("/p?key=s3cret"))) as answer:
                while piece := await answer.read():
                    got += piece
        assert got == b"x" * 100_000 + b"ab"
        error = caught.value
        assert "127.0.0.1" not in error.message
        assert f"[{server.url('/p')}]" in (error.detail or "")
        assert "s3cret" not in (error.detail or "")


@pytest.mark.gen_test
async def test_over_tls_an_answer_without_a_length_ends_only_with_a_proper_goodbye():
    """Anybody on the way can close a TCP connection; only the upstream can close the TLS in it."""
    manners = iter(["close", "truncate"])

    async def serve(connection: RawConnection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\n\r\nall")
        cut(connection, next(manners))

    async with wired(serve, tls=True) as (server, transport):
        assert await outcome_of(transport, call(server.url())) == "all"
        assert await outcome_of(transport, call(server.url())) == "cut"


# ── connections ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.gen_test
@pytest.mark.parametrize("tcp_keepalive_s", [0, 60])
async def test_calls_one_after_the_other_share_a_connection(tcp_keepalive_s):
    async with (
        raw_server(always(OK)) as server,
        curl_transport(tcp_keepalive_s=tcp_keepalive_s) as transport,
    ):
        for _ in range(20):
            assert await fetch(transport, call(server.url())) == b"ok"
        assert len(server.connections) == 1


@pytest.mark.gen_test
async def test_a_connection_left_early_is_not_used_again():
    big = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"
    async with raw_server(always(big)) as server, curl_transport() as transport:
        for expected in (1, 2):
            async with transport.open(call(server.url())) as answer:
                assert await answer.read() == b"half"
            assert len(server.connections) == expected


HALF_A_STREAM = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\ndone\r\n"


@pytest.mark.gen_test
async def test_an_answer_that_is_let_to_end_saves_its_connection():
    go_on = asyncio.Event()

    async def serve(connection: RawConnection) -> None:
        await connection.request()
        await connection.send(HALF_A_STREAM)
        await go_on.wait()
        await connection.send(b"5\r\nmore!\r\n0\r\n\r\n")
        await connection.request()
        await connection.send(OK)

    async with raw_server(serve) as server, curl_transport() as transport:
        async with transport.open(call(server.url())) as answer:
            assert await answer.read() == b"done"
            answer.let_end(10.0)
        assert transport.stats().open_transfers == 1
        go_on.set()
        await at_rest(transport)
        assert await fetch(transport, call(server.url())) == b"ok"
        assert len(server.connections) == 1


@pytest.mark.gen_test
async def test_an_answer_that_does_not_end_in_time_is_cut():
    async def serve(connection: RawConnection) -> None:
        await connection.request()
        await connection.send(HALF_A_STREAM)
        await connection.until_gone()

    async with raw_server(serve) as server, curl_transport() as transport:
        async with transport.open(call(server.url())) as answer:
            assert await answer.read() == b"done"
            answer.let_end(0.01)
        await asyncio.wait_for(server.connections[0].gone.wait(), 5)
        await at_rest(transport)


@pytest.mark.gen_test
async def test_an_answer_that_is_let_to_end_is_dropped_however_much_still_comes():
    piece = b"10000\r\n" + b"x" * 65536 + b"\r\n"

    async def serve(connection: RawConnection) -> None:
        await connection.request()
        await connection.send(HALF_A_STREAM, *[piece] * 64, b"0\r\n\r\n")
        await connection.request()
        await connection.send(OK)

    async with raw_server(serve) as server, curl_transport() as transport:
        async with transport.open(call(server.url())) as answer:
            await answer.read()
            answer.let_end(10.0)
        await at_rest(transport)
        assert await fetch(transport, call(server.url())) == b"ok"
        assert len(server.connections) == 1
        assert transport.stats().peak_body_bytes <= 65_536


@pytest.mark.gen_test
async def test_closing_ends_answers_that_were_let_to_end():
    async def serve(connection: RawConnection) -> None:
        await connection.request()
        await connection.send(HALF_A_STREAM)
        await connection.until_gone()

    async with raw_server(serve) as server, curl_transport() as transport:
        async with transport.open(call(server.url())) as answer:
            await answer.read()
            answer.let_end(600.0)
        await transport.close()
        await asyncio.wait_for(server.connections[0].gone.wait(), 5)
        assert transport.stats().open_transfers == 0


@pytest.mark.gen_test
async def test_a_kept_connection_that_was_closed_is_replaced():
    closed = asyncio.Semaphore(0)

    async def serve(connection: RawConnection) -> None:
        await connection.request()
        await connection.send(OK)
        connection.cut()
        closed.release()

    async with raw_server(serve) as server, curl_transport() as transport:
        for count in range(1, 4):
            assert await fetch(transport, call(server.url())) == b"ok"
            await closed.acquire()
            assert len(server.connections) == count


@pytest.mark.gen_test
@pytest.mark.parametrize("manner", ["close", "reset"])
async def test_a_kept_connection_that_dies_under_a_request_is_retried_once_on_a_new_one(manner):
    bodies: list[bytes | None] = []

    async def take(connection: RawConnection) -> None:
        request = await connection.request()
        bodies.append(None if request is None else request.body)

    async def serve(connection: RawConnection) -> None:
        first = len(server.connections) == 1
        await take(connection)
        await connection.send(OK)
        await take(connection)
        if first and manner == "reset":
            connection.reset()

    async with raw_server(serve) as server, curl_transport() as transport:
        assert await fetch(transport, call(server.url(), b"one")) == b"ok"
        assert await fetch(transport, call(server.url(), b"two" * 50_000)) == b"ok"
        assert len(server.connections) == 2
        assert bodies == [b"one", b"two" * 50_000, b"two" * 50_000]


@pytest.mark.gen_test
async def test_a_new_connection_that_dies_is_not_retried():
    async def serve(connection: RawConnection) -> None:
        await connection.request()

    async with raw_server(serve) as server, curl_transport() as transport:
        with pytest.raises(UpstreamUnreachable):
            await fetch(transport, call(server.url()))
        assert len(server.connections) == 1


@pytest.mark.gen_test
async def test_a_kept_connection_that_dies_inside_an_answer_is_not_retried():
    async def serve(connection: RawConnection) -> None:
        await connection.request()
        await connection.send(OK)
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\n")

    async with raw_server(serve) as server, curl_transport() as transport:
        await fetch(transport, call(server.url()))
        with pytest.raises(UpstreamUnreachable):
            await fetch(transport, call(server.url()))
        assert len(server.connections) == 1


@pytest.mark.gen_test
async def test_a_started_upload_on_a_dying_connection_fails_and_is_not_sent_twice():
    async def source() -> AsyncIterator[bytes]:
        yield b"once"

    async def serve(connection: RawConnection) -> None:
        await connection.request()
        await connection.send(OK)
        await connection.request()

    async with raw_server(serve) as server, curl_transport() as transport:
        await fetch(transport, call(server.url()))
        with pytest.raises(UpstreamUnreachable):
            await fetch(transport, call(server.url(), source()))


@pytest.mark.gen_test
async def test_nobody_listening_is_unreachable():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}/x?key=s3cret"
        async with curl_transport() as transport:
            with pytest.raises(UpstreamUnreachable) as caught:
                await fetch(transport, call(url))
    assert caught.value.message == "could not connect to the upstream"
    assert "127.0.0.1" in (caught.value.detail or "")
    assert "s3cret" not in (caught.value.detail or "")


@pytest.mark.gen_test
async def test_a_name_that_does_not_resolve_is_unreachable():
    # a label of more than 63 bytes is refused before any name server is asked
    async with curl_transport() as transport:
        with pytest.raises(UpstreamUnreachable) as caught:
            await fetch(transport, call(f"http://{'a' * 64}.invalid/"))
    assert caught.value.message == "upstream host name could not be resolved"
    assert caught.value.code == "transport_error"


@pytest.mark.gen_test
async def test_names_are_resolved_beside_the_loop():
    """libcurl's resolver is a thread that reports through a socket like any other."""
    async with raw_server(always(OK)) as server, curl_transport() as transport:
        url = server.url(host="localhost")
        got = await asyncio.gather(*(fetch(transport, call(url)) for _ in range(20)))
        assert got == [b"ok"] * 20


@pytest.mark.gen_test
async def test_connect_to_sends_a_host_name_elsewhere():
    requests: list[RawRequest] = []
    async with raw_server(recording(requests)) as server:
        rule = f"contoso.openai.azure.com:80:127.0.0.1:{server.port}"
        async with curl_transport(connect_to=[rule]) as transport:
            assert await fetch(transport, call("http://contoso.openai.azure.com/x")) == b"ok"
    assert requests[0].header("host") == "contoso.openai.azure.com"


# ── backpressure and deadlines ──────────────────────────────────────────────────────────────────


async def steady(figure) -> None:
    """Wait until `figure()` has stood still for a quarter of a second."""
    before, still = figure(), 0
    while still < 25:
        await asyncio.sleep(0.01)
        still = still + 1 if figure() == before and before else 0
        before = figure()


async def at_rest(transport: CurlTransport) -> None:
    """Wait until no transfer runs any more."""
    async with asyncio.timeout(5):
        while transport.stats().open_transfers:
            await asyncio.sleep(0)


async def send_big(connection: RawConnection, block: bytes, count: int) -> None:
    await connection.request()
    await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (len(block) * count))
    for _ in range(count):
        await connection.send(block)
    await connection.until_gone()


@pytest.mark.gen_test
async def test_a_slow_reader_holds_the_upstream_back_and_gets_every_byte_once():
    block = os.urandom(MIB)
    async with (
        raw_server(lambda connection: send_big(connection, block, 24)) as server,
        curl_transport() as transport,
        transport.open(call(server.url())) as answer,
    ):
        upstream = server.connections[0]
        await steady(lambda: upstream.sent_bytes)
        assert upstream.sent_bytes < 24 * MIB
        digest, size, largest = hashlib.sha256(), 0, 0
        while piece := await answer.read():
            digest.update(piece)
            size += len(piece)
            largest = max(largest, len(piece))
            if size % 7 == 0:
                await asyncio.sleep(0.001)
        assert size == 24 * MIB
        assert digest.digest() == hashlib.sha256(block * 24).digest()
        assert transport.stats().peak_body_bytes <= 64 * 1024
        assert largest <= 64 * 1024


@pytest.mark.gen_test
async def test_a_slow_reader_is_never_an_idle_upstream():
    block = bytes(MIB)
    async with (
        raw_server(lambda connection: send_big(connection, block, 16)) as server,
        curl_transport() as transport,
        transport.open(call(server.url(), idle_s=0.15)) as answer,
    ):
        upstream = server.connections[0]
        size = len(await answer.read())
        await steady(lambda: upstream.sent_bytes)
        await asyncio.sleep(0.3)
        while piece := await answer.read():
            size += len(piece)
        assert size == 16 * MIB


@pytest.mark.gen_test
async def test_the_idle_deadline_runs_again_after_the_reader_caught_up():
    async def serve(connection: RawConnection) -> None:
        await connection.request()
        await connection.send(CHUNKED_HEAD, chunk(bytes(MIB)))
        await connection.until_gone()

    async with (
        raw_server(serve) as server,
        curl_transport() as transport,
        transport.open(call(server.url(), idle_s=0.15)) as answer,
    ):
        await asyncio.sleep(0.3)
        size = 0
        with pytest.raises(UpstreamTimeout) as caught:
            while piece := await answer.read():
                size += len(piece)
        assert size == MIB
        assert caught.value.phase == "idle"


@pytest.mark.gen_test
async def test_bytes_within_the_idle_deadline_keep_a_long_answer_alive():
    async def serve(connection: RawConnection) -> None:
        await connection.request()
        await connection.send(CHUNKED_HEAD)
        for _ in range(12):
            await connection.send(chunk(b"x"))
            await asyncio.sleep(0.05)
        await connection.send(LAST_CHUNK)

    async with raw_server(serve) as server, curl_transport() as transport:
        got = await fetch(transport, call(server.url(), idle_s=0.3, first_byte_s=0.3))
        assert got == b"x" * 12


@pytest.mark.gen_test
async def test_the_total_deadline_runs_even_while_the_reader_is_slow():
    async with (
        raw_server(lambda connection: send_big(connection, bytes(MIB), 16)) as server,
        curl_transport() as transport,
        transport.open(call(server.url(), total_s=0.2)) as answer,
    ):
        await asyncio.wait_for(server.connections[0].gone.wait(), 5)
        with pytest.raises(UpstreamTimeout) as caught:
            while await answer.read():
                pass
        assert caught.value.phase == "total"
        assert transport.stats().open_transfers == 1


@pytest.mark.gen_test
async def test_an_event_is_delivered_before_the_next_is_sent():
    """Delivery is not batched: each event is read before the upstream may send another."""
    turn = asyncio.Event()

    async def serve(connection: RawConnection) -> None:
        await connection.request()
        await connection.send(CHUNKED_HEAD)
        for number in range(50):
            turn.clear()
            await connection.send(chunk(b"data: %d\n\n" % number))
            await turn.wait()
        await connection.send(LAST_CHUNK)

    async with (
        raw_server(serve) as server,
        curl_transport() as transport,
        transport.open(call(server.url())) as answer,
    ):
        for number in range(50):
            assert await answer.read() == b"data: %d\n\n" % number
            turn.set()
        assert await answer.read() == b""


# ── leaving ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.gen_test
async def test_a_cancelled_call_is_gone_one_loop_turn_later():
    async def serve(connection: RawConnection) -> None:
        await connection.request()
        await connection.until_gone()

    async with raw_server(serve) as server, curl_transport() as transport:
        task = asyncio.create_task(fetch(transport, call(server.url())))
        await steady(lambda: len(server.connections))
        task.cancel()
        await asyncio.sleep(0)
        assert transport.stats().open_transfers == 0
        await asyncio.wait_for(server.connections[0].gone.wait(), 1)
        with pytest.raises(asyncio.CancelledError):
            await task


@pytest.mark.parametrize("half", [b"half", b""])
@pytest.mark.gen_test
async def test_whoever_leaves_a_short_answer_that_is_half_here_was_answered(half):
    """It is held until it is whole; but it has begun, which counts for the upstream."""

    async def serve(connection: RawConnection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n" + half)
        await connection.until_gone()

    seen: list[int] = []

    async def read_it(transfer: Transfer) -> None:
        async with transfer as answer:
            seen.append(answer.status)
            await answer.read_all()

    async with raw_server(serve) as server, curl_transport() as transport:
        transfer = transport.open(call(server.url(), streaming=False))
        task = asyncio.create_task(read_it(transfer))
        async with asyncio.timeout(5):
            while not transfer.status:
                await asyncio.sleep(0)
        assert seen == []
        task.cancel()
        await asyncio.sleep(0)
        assert transport.stats().open_transfers == 0
        assert seen == [200]
        await asyncio.wait_for(server.connections[0].gone.wait(), 1)
        with pytest.raises(asyncio.CancelledError):
            await task


@pytest.mark.gen_test
async def test_whoever_leaves_at_any_moment_of_a_short_answer_has_left():
    async def serve(connection: RawConnection) -> None:
        while await connection.request() is not None:
            await connection.send(OK[:-1])
            await connection.send(OK[-1:])

    async with raw_server(serve) as server, curl_transport() as transport:
        for turns in range(60):
            task = asyncio.create_task(fetch(transport, call(server.url(), streaming=False)))
            for _ in range(turns):
                await asyncio.sleep(0)
            accepted = task.cancel()
            await asyncio.wait([task])
            assert task.cancelled() == accepted
            assert transport.stats().open_transfers == 0


@pytest.mark.gen_test
async def test_calls_cancelled_at_every_moment_leave_nothing_behind():
    """Many callers leave after a growing number of loop turns; later calls are untouched."""

    async def serve(connection: RawConnection) -> None:
        while await connection.request() is not None:
            await connection.send(CHUNKED_HEAD)
            for _ in range(5):
                await connection.send(chunk(b"x" * 30_000))
            await connection.send(LAST_CHUNK)

    async with raw_server(serve) as server, curl_transport() as transport:
        for turns in range(60):
            task = asyncio.create_task(fetch(transport, call(server.url())))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            assert transport.stats().open_transfers == 0
        assert len(await fetch(transport, call(server.url()))) == 150_000


@pytest.mark.gen_test
async def test_transports_leave_no_descriptor_open():
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    async def serve(connection: RawConnection) -> None:
        while await connection.request() is not None:
            await connection.send(CHUNKED_HEAD, chunk(b"x"))

    async with raw_server(serve) as server:
        counts = []
        for _ in range(4):
            async with curl_transport() as transport:
                for _ in range(5):
                    with pytest.raises(UpstreamTimeout):
                        await fetch(transport, call(server.url(), total_s=0.01))
            await steady(lambda: sum(c.gone.is_set() for c in server.connections))
            await asyncio.sleep(0)
            counts.append(descriptors())
        assert counts[-1] <= counts[0]


@pytest.mark.gen_test
async def test_a_finished_call_leaves_nothing_to_the_garbage_collector():
    """A cycle per call would make collections, and so pauses, grow with the load."""
    async with raw_server(always(OK)) as server, curl_transport() as transport:
        await fetch(transport, call(server.url()))
        gc.collect()
        gc.disable()
        try:
            for _ in range(50):
                await fetch(transport, call(server.url()))
            assert gc.collect() < 50
        finally:
            gc.enable()


@pytest.mark.gen_test
async def test_a_transport_that_was_never_used_closes():
    transport = CurlTransport(clock=None)  # type: ignore[arg-type]
    await transport.close()
    await transport.close()
    assert transport.stats().open_transfers == 0


@pytest.mark.gen_test
async def test_two_hundred_streams_run_at_once_and_each_is_whole():
    async def serve(connection: RawConnection) -> None:
        request = await connection.request()
        assert request is not None
        await connection.send(CHUNKED_HEAD)
        for number in range(20):
            await connection.send(chunk(request.body + b" %d\n" % number))
            await asyncio.sleep(0)
        await connection.send(LAST_CHUNK)

    async def one(name: bytes) -> bool:
        got = await fetch(transport, call(server.url(), name))
        return got == b"".join(name + b" %d\n" % number for number in range(20))

    async with raw_server(serve) as server, curl_transport() as transport:
        assert all(await asyncio.gather(*(one(b"%d" % number) for number in range(200))))
        assert len(server.connections) == 200


def test_every_failure_is_an_upstream_failure():
    """So that the dispatcher counts it, whatever libcurl says."""
    for kind in (UpstreamBroken, UpstreamMisconfigured, UpstreamTimeout, UpstreamUnreachable):
        assert issubclass(kind, UpstreamFailed)
