"""Calls by a proxy: tunnels and absolute-form, refusals in words, and who is told which secret."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest
import trustme

from aisix.core.ports import Deadlines, Route, UpstreamCall, UpstreamTarget
from aisix.errors import UpstreamFailed, UpstreamMisconfigured, UpstreamTimeout, UpstreamUnreachable
from aisix.transport.curl import CurlTransport
from aisix.transport.request import Proxy
from tests.support.proxy import forward_proxy
from tests.support.raw_server import RawConnection, RawRequest, raw_server
from tests.support.transports import curl_transport

HOST = "acme-west.openai.azure.com"
OK = b"HTTP/1.1 200 OK\r\nX-Of: upstream\r\nContent-Length: 2\r\n\r\nok"
PLAIN = Route()
LOGIN = ("gate way", "p@ss/w:ö")


class Upstream:
    """Serves one request after the other and keeps them."""

    def __init__(self) -> None:
        self.requests: list[RawRequest] = []

    async def serve(self, connection: RawConnection) -> None:
        while (request := await connection.request()) is not None:
            self.requests.append(request)
            await connection.send(OK)


@pytest.fixture
def upstream() -> Upstream:
    return Upstream()


@pytest.fixture
def ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def ca_file(ca: trustme.CA, tmp_path: Path) -> str:
    path = tmp_path / "ca.pem"
    ca.cert_pem.write_to_path(str(path))
    return str(path)


def context(ca: trustme.CA, *names: str) -> ssl.SSLContext:
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ca.issue_cert(*names).configure_cert(server)
    return server


async def fetch(
    transport: CurlTransport, url: str, *, route: Route = PLAIN, connect_s: float = 5.0
) -> bytes:
    target = UpstreamTarget("POST", url, [("api-key", "hunter2")], route=route)
    async with transport.open(UpstreamCall(target, [], b"{}", Deadlines(connect_s))) as answer:
        assert answer.headers["x-of"] == "upstream"
        return await answer.read_all()


async def refusal(transport: CurlTransport, url: str) -> UpstreamFailed:
    with pytest.raises(UpstreamUnreachable) as caught:
        await fetch(transport, url)
    error = caught.value
    assert error.status == 502
    assert HOST not in error.message
    assert "127.0.0.1" not in error.message
    for text in (error.message, error.detail or ""):
        assert LOGIN[0] not in text
        assert LOGIN[1] not in text
    return error


@pytest.mark.parametrize("http2", [False, True])
@pytest.mark.gen_test
async def test_https_goes_through_a_tunnel_that_is_kept_and_sees_no_key(
    upstream, ca, ca_file, http2
):
    async with (
        raw_server(upstream.serve, tls=context(ca, HOST)) as server,
        forward_proxy(server.port) as proxy,
        curl_transport(proxy=Proxy(proxy.url), ca_file=ca_file, http2=http2) as transport,
    ):
        for _ in range(3):
            assert await fetch(transport, f"https://{HOST}/x") == b"ok"
    (asked,) = proxy.seen
    assert (asked.method, asked.target) == ("CONNECT", f"{HOST}:443")
    assert "hunter2" not in str(asked)
    assert asked.headers["user-agent"].startswith("aisix/")
    assert "proxy-authorization" not in asked.headers
    for request in upstream.requests:
        assert (request.method, request.target) == ("POST", "/x")
        assert request.header("api-key") == "hunter2"
        assert not [name for name, _ in request.headers if name.startswith("proxy-")]


@pytest.mark.gen_test
async def test_http_goes_to_the_proxy_with_its_whole_address(upstream):
    async with (
        raw_server(upstream.serve) as server,
        forward_proxy(server.port) as proxy,
        curl_transport(proxy=Proxy(proxy.url)) as transport,
    ):
        assert await fetch(transport, "http://gw.test/x?y=1") == b"ok"
    (asked,) = proxy.seen
    assert (asked.method, asked.target) == ("POST", "http://gw.test/x?y=1")
    assert (upstream.requests[0].target, upstream.requests[0].body) == ("/x?y=1", b"{}")


@pytest.mark.gen_test
async def test_an_answer_bit_by_bit_comes_through_a_tunnel_bit_by_bit(ca, ca_file):
    go_on = asyncio.Event()

    async def serve(connection: RawConnection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\nX-Of: upstream\r\n\r\none")
        await go_on.wait()
        await connection.send(b"two")

    async with (
        raw_server(serve, tls=context(ca, HOST)) as server,
        forward_proxy(server.port) as proxy,
        curl_transport(proxy=Proxy(proxy.url), ca_file=ca_file) as transport,
    ):
        target = UpstreamTarget("POST", f"https://{HOST}/x", streaming=True)
        async with transport.open(UpstreamCall(target)) as answer:
            assert await answer.read() == b"one"
            go_on.set()
            assert await answer.read_all() == b"two"


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.gen_test
async def test_a_proxy_that_asks_for_a_login_gets_it_and_nobody_else(upstream, ca, ca_file, scheme):
    tls = context(ca, HOST) if scheme == "https" else None
    async with (
        raw_server(upstream.serve, tls=tls) as server,
        forward_proxy(server.port, login=LOGIN) as proxy,
        curl_transport(proxy=Proxy(proxy.url, *LOGIN), ca_file=ca_file) as transport,
    ):
        assert await fetch(transport, f"{scheme}://{HOST}/x") == b"ok"
        assert len(proxy.seen) == 1, "asked with its login at once"
    assert upstream.requests[0].header("proxy-authorization") is None
    assert LOGIN[1] not in repr(Proxy("http://p", *LOGIN))


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.gen_test
async def test_a_wrong_login_is_said_to_be_the_proxys_business(upstream, scheme):
    wrong = (LOGIN[0], "wrong")
    async with (
        raw_server(upstream.serve) as server,
        forward_proxy(server.port, login=wrong) as proxy,
        curl_transport(proxy=Proxy(proxy.url, *LOGIN)) as transport,
    ):
        for _ in range(2):
            error = await refusal(transport, f"{scheme}://{HOST}/x")
            assert error.message == (
                "the proxy on the way to the upstream asks for a user and password (status 407)"
            )
            assert error.should_retry is False
    assert upstream.requests == []


@pytest.mark.parametrize(("status", "should_retry"), [(403, False), (502, None), (503, None)])
@pytest.mark.gen_test
async def test_a_proxy_that_opens_no_tunnel_is_named(upstream, status, should_retry):
    async with (
        raw_server(upstream.serve) as server,
        forward_proxy(server.port, refuse_with=status) as proxy,
        curl_transport(proxy=Proxy(proxy.url)) as transport,
    ):
        error = await refusal(transport, f"https://{HOST}/x")
    assert error.message == (
        f"the proxy on the way to the upstream refused to connect (status {status})"
    )
    assert error.should_retry is should_retry
    assert str(error.detail).endswith(f"response {status} [https://{HOST}/x] by proxy")


@pytest.mark.gen_test
async def test_a_proxy_that_only_closes_is_named(upstream):
    async with (
        forward_proxy(1, refuse_with=0) as proxy,
        curl_transport(proxy=Proxy(proxy.url)) as transport,
    ):
        error = await refusal(transport, f"https://{HOST}/x")
    assert error.message == "the proxy closed the connection without an answer"


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.gen_test
async def test_a_proxy_that_is_down_is_named(scheme):
    async with forward_proxy(1) as proxy:
        gone = proxy.url
    async with curl_transport(proxy=Proxy(gone)) as transport:
        error = await refusal(transport, f"{scheme}://{HOST}/x")
    assert error.message == "could not connect to the proxy"
    assert error.should_retry is None


@pytest.mark.gen_test
async def test_a_proxy_that_does_not_answer_ends_at_the_connect_deadline():
    async def serve(connection: RawConnection) -> None:
        await connection.until_gone()

    async with (
        raw_server(serve) as silent,
        curl_transport(proxy=Proxy(silent.url(""))) as transport,
    ):
        with pytest.raises(UpstreamTimeout) as caught:
            await fetch(transport, f"https://{HOST}/x", connect_s=0.1)
        assert caught.value.phase == "connect"
        await asyncio.wait_for(silent.connections[0].gone.wait(), 5)


@pytest.mark.gen_test
async def test_an_upstream_that_fails_behind_the_proxy_is_not_taken_for_it(upstream, ca):
    async with (
        raw_server(upstream.serve, tls=context(ca, HOST)) as server,
        forward_proxy(server.port) as proxy,
        curl_transport(proxy=Proxy(proxy.url)) as transport,
    ):
        error = await refusal(transport, f"https://{HOST}/x")
    assert error.message == "upstream TLS certificate could not be verified"


@pytest.mark.gen_test
async def test_a_proxy_may_speak_tls_itself(upstream, ca, ca_file):
    tls = context(ca, HOST)
    async with (
        raw_server(upstream.serve, tls=tls) as server,
        forward_proxy(server.port, login=LOGIN, tls=context(ca, "127.0.0.1")) as proxy,
    ):
        by_it = Proxy(proxy.url, *LOGIN)
        async with curl_transport(proxy=by_it, ca_file=ca_file) as transport:
            assert await fetch(transport, f"https://{HOST}/x") == b"ok"
            # what one key trusts is not whom the proxy may be
            own = Route(ca_cert=trustme.CA().cert_pem.bytes().decode())
            with pytest.raises(UpstreamUnreachable, match="upstream TLS certificate"):
                await fetch(transport, f"https://{HOST}/x", route=own)
        async with curl_transport(proxy=by_it) as transport:
            error = await refusal(transport, f"https://{HOST}/x")
            assert error.message == "proxy TLS certificate could not be verified"
            with pytest.raises(UpstreamUnreachable, match="proxy TLS certificate"):
                await fetch(transport, f"https://{HOST}/x", route=Route(verify=False))


@pytest.mark.parametrize(
    "bypass", [("127.0.0.1",), ("127.0.0.0/8",), ("*",), ("x.test", "127.0.0.1")]
)
@pytest.mark.gen_test
async def test_hosts_that_need_no_proxy_are_called_directly(upstream, bypass):
    async with (
        raw_server(upstream.serve) as server,
        forward_proxy(server.port) as proxy,
        curl_transport(proxy=Proxy(proxy.url, bypass=bypass)) as transport,
    ):
        assert await fetch(transport, server.url("/x")) == b"ok"
    assert proxy.seen == []


@pytest.mark.parametrize(
    ("host", "direct"),
    [("corp.test", True), ("a.corp.test", True), ("acorp.test", False), ("corp.test.x", False)],
)
@pytest.mark.parametrize("suffix", ["corp.test", ".corp.test"])
@pytest.mark.gen_test
async def test_a_suffix_stands_for_what_is_below_it_and_for_itself(upstream, host, direct, suffix):
    async with (
        raw_server(upstream.serve) as server,
        forward_proxy(server.port) as proxy,
    ):
        rules = [f"{host}:80:127.0.0.1:{server.port}"] if direct else []
        by_it = Proxy(proxy.url, bypass=(suffix,))
        async with curl_transport(proxy=by_it, connect_to=rules) as transport:
            assert await fetch(transport, f"http://{host}/x") == b"ok"
    assert (proxy.seen == []) is direct


@pytest.mark.gen_test
async def test_a_link_local_route_never_goes_by_the_proxy(upstream):
    async with (
        raw_server(upstream.serve) as server,
        forward_proxy(server.port) as proxy,
        curl_transport(proxy=Proxy(proxy.url)) as transport,
    ):
        assert await fetch(transport, server.url(), route=Route(link_local=True)) == b"ok"
    assert proxy.seen == []


@pytest.mark.gen_test
async def test_the_environment_neither_adds_a_proxy_nor_bypasses_ours(upstream, monkeypatch):
    for name in ("http_proxy", "https_proxy", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "*")
    async with (
        raw_server(upstream.serve) as server,
        forward_proxy(server.port) as proxy,
        curl_transport(proxy=Proxy(proxy.url)) as transport,
    ):
        assert await fetch(transport, server.url()) == b"ok"
    assert len(proxy.seen) == 1


@pytest.mark.gen_test
async def test_no_proxy_is_asked_for_a_link_local_address(upstream):
    async with (
        forward_proxy(1) as proxy,
        curl_transport(proxy=Proxy(proxy.url)) as transport,
    ):
        for host in ("169.254.169.254", "2852039166", "[fe80::1]"):
            with pytest.raises(UpstreamMisconfigured, match="the upstream has a link-local"):
                await fetch(transport, f"http://{host}/x")
    assert proxy.seen == []


@pytest.mark.gen_test
async def test_a_proxy_at_a_link_local_address_is_refused_as_such():
    async with curl_transport(proxy=Proxy("http://169.254.1.1:3128")) as transport:
        with pytest.raises(UpstreamMisconfigured, match="the proxy has a link-local"):
            await fetch(transport, f"https://{HOST}/x")
