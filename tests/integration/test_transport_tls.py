"""The libcurl transport over TLS: who is trusted, what is said when not, and how calls end."""

from __future__ import annotations

import asyncio
import datetime
import ssl
from pathlib import Path

import pytest
import trustme

from aisix.core.ports import Deadlines, Route, UpstreamCall, UpstreamTarget
from aisix.errors import UpstreamTimeout, UpstreamUnreachable
from aisix.transport.curl import CurlTransport
from tests.support.raw_server import CHUNKED_HEAD, RawConnection, answers, chunk, raw_server
from tests.support.transports import curl_transport

HOST = "contoso.openai.azure.com"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
AS_CONFIGURED = Route()
NOT_VERIFIED = "upstream TLS certificate could not be verified"


def context(ca: trustme.CA, *names: str, **more) -> ssl.SSLContext:
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ca.issue_cert(*names, **more).configure_cert(server)
    return server


@pytest.fixture
def ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def ca_file(ca: trustme.CA, tmp_path: Path) -> str:
    path = tmp_path / "ca.pem"
    ca.cert_pem.write_to_path(str(path))
    return str(path)


async def serve_ok(connection: RawConnection) -> None:
    await answers(connection, OK)


async def fetch(
    transport: CurlTransport, url: str, *, route: Route = AS_CONFIGURED, **deadlines: float
) -> bytes:
    limits = Deadlines(**{"connect_s": 5.0, **deadlines})
    call = UpstreamCall(UpstreamTarget("POST", url, route=route), [], b"{}", limits)
    async with transport.open(call) as answer:
        return await answer.read_all()


async def refusal(
    transport: CurlTransport, url: str, *, route: Route = AS_CONFIGURED
) -> UpstreamUnreachable:
    with pytest.raises(UpstreamUnreachable) as caught:
        await fetch(transport, url, route=route)
    assert HOST not in caught.value.message
    assert caught.value.detail
    return caught.value


@pytest.mark.gen_test
async def test_the_ca_file_is_trusted_and_connections_are_kept(ca, ca_file):
    tls = context(ca, HOST)
    async with raw_server(serve_ok, tls=tls) as server:
        rules = [f"{HOST}:443:127.0.0.1:{server.port}"]
        async with curl_transport(ca_file=ca_file, connect_to=rules) as transport:
            for _ in range(3):
                assert await fetch(transport, f"https://{HOST}/x") == b"ok"
        assert len(server.connections) == 1


@pytest.mark.gen_test
async def test_an_unknown_authority_is_refused_and_told_nothing(ca):
    requests = []

    async def serve(connection: RawConnection) -> None:
        requests.append(await connection.request())

    async with (
        raw_server(serve, tls=context(ca, "127.0.0.1")) as server,
        curl_transport() as transport,
    ):
        error = await refusal(transport, server.url())
        assert error.message == NOT_VERIFIED
        assert error.detail is not None
        assert "certificate" in error.detail
    assert requests in ([], [None])


@pytest.mark.gen_test
async def test_an_expired_certificate_is_refused(ca, ca_file):
    past = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    tls = context(ca, "127.0.0.1", not_after=past)
    async with (
        raw_server(serve_ok, tls=tls) as server,
        curl_transport(ca_file=ca_file) as transport,
    ):
        error = await refusal(transport, server.url())
        assert error.message == NOT_VERIFIED
        assert error.detail is not None
        assert "expired" in error.detail


@pytest.mark.gen_test
async def test_a_certificate_for_another_name_is_refused(ca, ca_file):
    async with (
        raw_server(serve_ok, tls=context(ca, "other.test")) as server,
        curl_transport(ca_file=ca_file) as transport,
    ):
        assert (await refusal(transport, server.url())).message == NOT_VERIFIED


@pytest.mark.gen_test
async def test_a_ca_file_that_cannot_be_read_trusts_nobody(ca, tmp_path):
    async with (
        raw_server(serve_ok, tls=context(ca, "127.0.0.1")) as server,
        curl_transport(ca_file=str(tmp_path / "absent.pem")) as transport,
    ):
        assert (await refusal(transport, server.url())).message == NOT_VERIFIED


@pytest.mark.gen_test
async def test_verification_can_be_turned_off(ca):
    async with (
        raw_server(serve_ok, tls=context(ca, "other.test")) as server,
        curl_transport(verify=False) as transport,
    ):
        assert await fetch(transport, server.url()) == b"ok"


@pytest.mark.gen_test
async def test_a_server_that_does_not_speak_tls_is_unreachable():
    async def serve(connection: RawConnection) -> None:
        await connection.send(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

    async with raw_server(serve) as server, curl_transport() as transport:
        error = await refusal(transport, f"https://127.0.0.1:{server.port}/")
        assert error.message == "TLS handshake with the upstream failed"


@pytest.mark.gen_test
async def test_a_handshake_that_stalls_ends_at_the_connect_deadline():
    async def serve(connection: RawConnection) -> None:
        await connection.until_gone()

    async with raw_server(serve) as server, curl_transport() as transport:
        with pytest.raises(UpstreamTimeout) as caught:
            await fetch(transport, f"https://127.0.0.1:{server.port}/", connect_s=0.1)
        assert caught.value.phase == "connect"
        await asyncio.wait_for(server.connections[0].gone.wait(), 5)


@pytest.mark.gen_test
async def test_leaving_a_stream_and_closing_end_at_the_upstream_at_once(ca, ca_file):
    async def serve(connection: RawConnection) -> None:
        await connection.request()
        await connection.send(CHUNKED_HEAD, chunk(b"x"))
        await connection.until_gone()

    loop = asyncio.get_running_loop()
    async with (
        raw_server(serve, tls=context(ca, "127.0.0.1")) as server,
        curl_transport(ca_file=ca_file) as transport,
    ):
        call = UpstreamCall(UpstreamTarget("POST", server.url()))
        async with transport.open(call) as answer:
            assert await answer.read() == b"x"
        await asyncio.wait_for(server.connections[0].gone.wait(), 1)
        async with transport.open(call) as answer:
            assert await answer.read() == b"x"
            began = loop.time()
            await transport.close()
            assert loop.time() - began < 0.5
            with pytest.raises(UpstreamUnreachable):
                await answer.read()
        await asyncio.wait_for(server.connections[1].gone.wait(), 1)


@pytest.mark.gen_test
async def test_a_large_answer_arrives_whole_over_tls(ca, ca_file):
    block = bytes(range(256)) * 4096

    async def serve(connection: RawConnection) -> None:
        await connection.request()
        await connection.send(CHUNKED_HEAD)
        for _ in range(8):
            await connection.send(chunk(block))
        await connection.send(b"0\r\n\r\n")

    async with (
        raw_server(serve, tls=context(ca, "127.0.0.1")) as server,
        curl_transport(ca_file=ca_file) as transport,
    ):
        assert await fetch(transport, server.url()) == block * 8
        assert transport.stats().peak_body_bytes <= 64 * 1024


# ── a target's own trust ────────────────────────────────────────────────────────────────────────

UNCHECKED = Route(verify=False)


def trusting(authority: trustme.CA) -> Route:
    return Route(ca_cert=authority.cert_pem.bytes().decode())


@pytest.mark.gen_test
async def test_a_targets_own_authority_is_trusted_for_that_target_only(ca, ca_file):
    own = trustme.CA()
    async with (
        raw_server(serve_ok, tls=context(own, "127.0.0.1")) as private,
        raw_server(serve_ok, tls=context(ca, "127.0.0.1")) as public,
        curl_transport(ca_file=ca_file) as transport,
    ):
        assert await fetch(transport, private.url(), route=trusting(own)) == b"ok"
        assert (await refusal(transport, private.url())).message == NOT_VERIFIED
        assert await fetch(transport, public.url()) == b"ok"
        # it stands instead of the gateway's own, not beside
        refused = await refusal(transport, public.url(), route=trusting(own))
        assert refused.message == NOT_VERIFIED
        assert await fetch(transport, private.url(), route=trusting(own)) == b"ok"
        assert len(private.connections) == 2


@pytest.mark.gen_test
async def test_of_two_authorities_in_one_text_both_are_trusted(ca):
    other = trustme.CA()
    both = Route(ca_cert=f"two\n{trusting(other).ca_cert}\nmine\n{trusting(ca).ca_cert}")
    async with (
        raw_server(serve_ok, tls=context(ca, "127.0.0.1")) as server,
        curl_transport() as transport,
    ):
        assert await fetch(transport, server.url(), route=both) == b"ok"


@pytest.mark.parametrize("http2", [False, True])
@pytest.mark.gen_test
async def test_an_unchecked_connection_is_never_lent_to_a_target_that_checks(ca, ca_file, http2):
    """Neither the connection, nor its TLS session."""
    tls = context(ca, "other.test")
    async with (
        raw_server(serve_ok, tls=tls) as server,
        curl_transport(ca_file=ca_file, http2=http2) as transport,
    ):
        for _ in range(3):
            assert await fetch(transport, server.url(), route=UNCHECKED) == b"ok"
            for route in (Route(), Route(verify=True), trusting(ca)):
                error = await refusal(transport, server.url(), route=route)
                assert error.message == NOT_VERIFIED
        kept = [connection for connection in server.connections if connection.sent_bytes]
        assert len(kept) == 1, "the unchecked target itself keeps its connection"


@pytest.mark.gen_test
async def test_targets_that_check_and_that_do_not_use_connections_of_their_own(ca, ca_file):
    tls = context(ca, "127.0.0.1")
    routes = (Route(), UNCHECKED, trusting(ca), trusting(trustme.CA()))
    async with (
        raw_server(serve_ok, tls=tls) as server,
        curl_transport(ca_file=ca_file) as transport,
    ):
        for _ in range(2):
            for route in routes[:3]:
                assert await fetch(transport, server.url(), route=route) == b"ok"
            await refusal(transport, server.url(), route=routes[3])
        kept = [connection for connection in server.connections if connection.sent_bytes]
        assert len(kept) == 3


@pytest.mark.gen_test
async def test_a_target_may_check_where_the_gateway_does_not(ca):
    async with (
        raw_server(serve_ok, tls=context(ca, "127.0.0.1")) as server,
        curl_transport(verify=False) as transport,
    ):
        assert await fetch(transport, server.url()) == b"ok"
        error = await refusal(transport, server.url(), route=Route(verify=True))
        assert error.message == NOT_VERIFIED
