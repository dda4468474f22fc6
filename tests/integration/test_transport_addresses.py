"""Which addresses the transport connects to: judged when a socket is opened, whatever the name."""

from __future__ import annotations

import fcntl
import os

import pytest

from aisix.core.ports import Deadlines, Route, UpstreamCall, UpstreamTarget
from aisix.errors import UpstreamMisconfigured, UpstreamUnreachable
from aisix.transport.curl import CurlTransport
from tests.support.raw_server import RawConnection, answers, raw_server
from tests.support.transports import curl_transport

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
LINK_LOCAL = Route(link_local=True)
PLAIN = Route()
ON_LOOPBACK = "[fe80::1%25lo]"
"""A link-local address that is on no wire: the system says at once that it cannot be reached."""


async def serve_ok(connection: RawConnection) -> None:
    await answers(connection, OK)


async def fetch(transport: CurlTransport, url: str, *, route: Route = PLAIN) -> bytes:
    target = UpstreamTarget("POST", url, route=route)
    async with transport.open(UpstreamCall(target, [], b"{}", Deadlines())) as answer:
        return await answer.read_all()


@pytest.mark.parametrize(
    "address",
    ["169.254.169.254", "168.63.129.16", "[fe80::1]", "[fd00:ec2::254]", "[::ffff:169.254.1.1]"],
)
@pytest.mark.gen_test
async def test_a_name_that_leads_to_such_an_address_is_not_connected_to(address):
    async with curl_transport(connect_to=[f"gw.test:80:{address}:80"]) as transport:
        with pytest.raises(UpstreamMisconfigured) as caught:
            await fetch(transport, "http://gw.test/x?secret=1")
    error = caught.value
    assert error.status == 400
    assert error.should_retry is False
    assert "upstream.allow_link_local" in error.message
    assert "gw.test" not in error.message
    assert error.detail == "address refused [http://gw.test/x]"


@pytest.mark.parametrize(
    "host", ["169.254.169.254", "2852039166", "0xa9fea9fe", "[fe80::1]", "[64:ff9b::a9fe:a9fe]"]
)
@pytest.mark.gen_test
async def test_a_literal_address_is_refused_before_any_connection(host):
    async with curl_transport() as transport:
        with pytest.raises(UpstreamMisconfigured, match=r"upstream\.allow_link_local"):
            await fetch(transport, f"http://{host}/")


@pytest.mark.gen_test
async def test_the_operator_and_the_target_can_permit_them():
    async with curl_transport(allow_link_local=True) as transport:
        with pytest.raises(UpstreamUnreachable):
            await fetch(transport, f"http://{ON_LOOPBACK}:80/")
    async with curl_transport() as transport:
        with pytest.raises(UpstreamUnreachable):
            await fetch(transport, f"http://{ON_LOOPBACK}:80/", route=LINK_LOCAL)
        with pytest.raises(UpstreamMisconfigured):
            await fetch(transport, f"http://{ON_LOOPBACK}:80/")


@pytest.mark.gen_test
async def test_a_connection_of_a_target_that_may_go_there_is_lent_to_nobody():
    async with raw_server(serve_ok) as server, curl_transport() as transport:
        for route in (LINK_LOCAL, PLAIN, LINK_LOCAL, PLAIN):
            assert await fetch(transport, server.url(), route=route) == b"ok"
        assert len(server.connections) == 3, "the plain target keeps its connection"


@pytest.mark.gen_test
async def test_loopback_is_an_address_like_any_other_by_every_name():
    async with raw_server(serve_ok) as server, curl_transport() as transport:
        for host in ("127.0.0.1", "localhost", "2130706433", "127.1"):
            assert await fetch(transport, server.url(host=host)) == b"ok"


@pytest.mark.gen_test
async def test_a_server_that_is_down_is_not_taken_for_a_refused_address():
    async with raw_server(serve_ok) as server:
        url = server.url()
    async with curl_transport() as transport:
        with pytest.raises(UpstreamUnreachable) as caught:
            await fetch(transport, url)
    assert caught.value.message == "could not connect to the upstream"


@pytest.mark.gen_test
async def test_sockets_are_closed_with_their_connections_and_not_inherited():
    before = set(os.listdir("/proc/self/fd"))
    async with raw_server(serve_ok) as server:
        async with curl_transport() as transport:
            during: set[str] = set()
            target = UpstreamTarget("POST", server.url())
            async with transport.open(UpstreamCall(target, [], b"{}", Deadlines())) as answer:
                during = set(os.listdir("/proc/self/fd")) - before
                for descriptor in during:
                    if os.path.exists(f"/proc/self/fd/{descriptor}"):
                        assert fcntl.fcntl(int(descriptor), fcntl.F_GETFD) & fcntl.FD_CLOEXEC
                assert await answer.read_all() == b"ok"
        assert during
    assert set(os.listdir("/proc/self/fd")) <= before
