"""From a target and a call to the options of an easy handle. Pure but for the handle it fills.

What goes out is exactly what target and call say: libcurl's own Accept, Content-Type, Expect and
User-Agent are taken away, redirects, cookies, netrc, the environment's proxies and decompression
are off. Two headers are added when there are none: `User-Agent`, and `Accept-Encoding: identity`.
Headers that frame the body are libcurl's alone, because it knows what it sends.

A target of scheme ws or wss is a tunnel: libcurl (8.23) makes the handshake of a WebSocket and then
hands bytes through in both directions as they are. It checks the status and nothing else of the
answer, and speaks HTTP/1.1 for it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import ceil
from typing import Any
from urllib.parse import urlsplit

import pycurl

from aisix.core.addresses import is_link_local
from aisix.core.ports import Route, UpstreamTarget
from aisix.transport.failures import LINK_LOCAL, misconfigured

_FRAMING = frozenset({"connection", "content-length", "expect", "transfer-encoding"})
_LIBCURLS_OWN = ("Accept", "Content-Type", "Expect")
_SPECIAL = _FRAMING | {"accept", "accept-encoding", "content-type", "user-agent"}
"""Names that change which lines are added, taken away or left out."""
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")

_SUPPRESS_CONNECT_HEADERS = 265  # an option of libcurl's that pycurl (7.49) has no name for
_HTTP = pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS
_WEBSOCKET = 1 << 30 | 1 << 31  # CURLPROTO_WS and CURLPROTO_WSS, for which pycurl has no names

_FOR_EVER_MS = 2**31 - 1
_MAX_LIFETIME_S = 600
"""Connections older than this are not used again, however busy: a moved host name is noticed
within this time."""
_SEND_BUFFER_BYTES = 16 * 1024
"""libcurl (8.23) gives each handle such a buffer with its first body and keeps it until the handle
is closed, also while a stream is silent and at rest in the pool. Its default is 64 KiB; this is its
least, and no slower, not for bodies of 200 KB either."""

Headers = Sequence[tuple[str, str]]
SetOption = Callable[[int, Any], None]
"""An easy handle's own `setopt`, looked up once."""


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy on the way to upstreams. `url` is scheme, host and port; `bypass` are the hosts that
    are called without it, in libcurl's form."""

    url: str
    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    bypass: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Wire:
    """What all transfers of a transport have in common."""

    user_agent: str
    http2: bool = False
    connect_to: Sequence[str] = ()
    ca_file: str | None = None
    verify: bool = True
    proxy: Proxy | None = None
    allow_link_local: bool = False
    tcp_keepalive_s: int = 60
    keep_connections: bool = True
    max_idle_s: float = 90.0
    """Connections idle for longer are not used again; 0 = however long."""


@dataclass(frozen=True, slots=True)
class PreparedTarget:
    """A target that was checked, with its header lines in libcurl's form."""

    target: UpstreamTarget
    user_agent: str
    _lines: list[bytes] = field(repr=False)

    @classmethod
    def of(
        cls, target: UpstreamTarget, *, user_agent: str, allow_link_local: bool = False
    ) -> PreparedTarget:
        """Check `target`. Raises UpstreamMisconfigured."""
        host = _checked_host(target.url)
        if not (allow_link_local or target.route.link_local) and is_link_local(host):
            raise misconfigured(LINK_LOCAL)
        return cls(target, user_agent, header_lines(target.headers, user_agent=user_agent))

    def lines(self, headers: Headers) -> list[bytes]:
        """All header lines of a call with `headers` of its own. Raises UpstreamMisconfigured."""
        lines = self._lines.copy()
        for name, value in headers:
            if name.lower() in _SPECIAL:
                both = [*self.target.headers, *headers]
                return header_lines(both, user_agent=self.user_agent)
            lines.append(_line(name, value))
        return lines


def header_lines(headers: Headers, *, user_agent: str) -> list[bytes]:
    """Header lines in libcurl's form: `Name;` is an empty value, `Name:` takes its own away.

    Raises UpstreamMisconfigured for what could break out of its line; the text echoes nothing.
    """
    lines: list[bytes] = []
    given: set[str] = set()
    for name, value in headers:
        line = _line(name, value)
        lower = name.lower()
        if lower not in _FRAMING:
            given.add(lower)
            lines.append(line)
    for name, value in (("User-Agent", user_agent), ("Accept-Encoding", "identity")):
        if name.lower() not in given:
            lines.append(_line(name, value))
    lines.extend(f"{name}:".encode() for name in _LIBCURLS_OWN if name.lower() not in given)
    return lines


def _line(name: str, value: str) -> bytes:
    if not _is_name(name):
        raise misconfigured("a header name is not valid")
    if not ((value.isascii() and value.isprintable()) or _VALUE.fullmatch(value)):
        raise misconfigured("a header value holds a character that HTTP does not allow")
    text = value.strip(" \t")
    return (f"{name}: {text}" if text else f"{name};").encode("latin-1")


@lru_cache(maxsize=256)
def _is_name(name: str) -> bool:
    return _NAME.fullmatch(name) is not None


def _checked_host(url: str) -> str:
    """Raises UpstreamMisconfigured unless `url` is plain ASCII with a scheme that we speak and a
    host; libcurl checks the rest."""
    try:
        parts = urlsplit(url)
    except ValueError:
        raise misconfigured("the upstream address is not a valid URL") from None
    if parts.scheme not in {"http", "https", "ws", "wss"} or not parts.hostname:
        raise misconfigured("the upstream address must begin with http:// or https:// and a host")
    if not url.isascii() or not url.isprintable() or " " in url:
        raise misconfigured("the upstream address holds a character that URLs do not allow")
    return parts.hostname


def set_target(curl: pycurl.Curl, target: UpstreamTarget, wire: Wire) -> None:
    """Set what is the same for all calls to `target`: everything but headers, body, deadlines and
    callbacks."""
    curl.setopt(pycurl.URL, target.url)
    curl.setopt(pycurl.PATH_AS_IS, 1)
    curl.setopt(pycurl.PROTOCOLS, _WEBSOCKET if target.is_tunnel else _HTTP)
    curl.setopt(pycurl.FOLLOWLOCATION, 0)
    curl.setopt(pycurl.NETRC, pycurl.NETRC_IGNORED)
    curl.setopt(pycurl.HTTP09_ALLOWED, 0)
    curl.setopt(pycurl.NOSIGNAL, 1)
    curl.setopt(pycurl.UPLOAD_BUFFERSIZE, _SEND_BUFFER_BYTES)
    _set_connection(curl, wire)
    _set_trust(curl, wire, target.route)
    _set_proxy(curl, wire, target.route)
    if target.route.link_local:
        # a connection that others may not open is not lent to them either
        curl.setopt(pycurl.FRESH_CONNECT, 1)
        curl.setopt(pycurl.FORBID_REUSE, 1)
    if target.method == "HEAD":
        curl.setopt(pycurl.NOBODY, 1)
    if target.is_tunnel:
        curl.setopt(pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_1_1)
        curl.setopt(pycurl.WS_OPTIONS, pycurl.WS_RAW_MODE)
        curl.setopt(pycurl.HTTPPROXYTUNNEL, 1)  # a proxy need not know what a WebSocket is


def set_body(setopt: SetOption, method: str, body: bytes) -> None:
    """Set a body of known length, and the method unless libcurl sends it by itself."""
    if body or method == "POST":
        setopt(pycurl.POSTFIELDS, body)
    if method not in {"POST", "HEAD"} and (body or method != "GET"):
        setopt(pycurl.CUSTOMREQUEST, method)


def set_upload(
    setopt: SetOption, method: str, read: Callable[[int], bytes | int], length: int | None
) -> None:
    """Set a body that libcurl pulls by `read`; without a `length` it is chunked."""
    setopt(pycurl.POST, 1)
    setopt(pycurl.POSTFIELDSIZE_LARGE, -1 if length is None else length)
    setopt(pycurl.READFUNCTION, read)
    setopt(pycurl.CUSTOMREQUEST, method)


def set_tunnel(setopt: SetOption, read: Callable[[int], bytes | int]) -> None:
    """Set what libcurl sends through a tunnel: bytes that it pulls by `read`."""
    setopt(pycurl.UPLOAD, 1)
    setopt(pycurl.READFUNCTION, read)


def milliseconds(seconds: float) -> int:
    """libcurl's own default hides behind 0, so "none" is a very long time."""
    return min(ceil(seconds * 1000), _FOR_EVER_MS) if seconds > 0 else _FOR_EVER_MS


def _set_connection(curl: pycurl.Curl, wire: Wire) -> None:
    curl.setopt(pycurl.TCP_NODELAY, 1)
    if wire.tcp_keepalive_s:
        curl.setopt(pycurl.TCP_KEEPALIVE, 1)
        curl.setopt(pycurl.TCP_KEEPIDLE, wire.tcp_keepalive_s)
        curl.setopt(pycurl.TCP_KEEPINTVL, wire.tcp_keepalive_s)
    curl.setopt(pycurl.MAXAGE_CONN, ceil(wire.max_idle_s))
    curl.setopt(pycurl.MAXLIFETIME_CONN, _MAX_LIFETIME_S)
    if not wire.keep_connections:
        curl.setopt(pycurl.FORBID_REUSE, 1)
    if wire.http2:
        curl.setopt(pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_2TLS)
        # a burst waits for the first connection instead of opening one each
        curl.setopt(pycurl.PIPEWAIT, 1)
    else:
        curl.setopt(pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_1_1)
    if wire.connect_to:
        curl.setopt(pycurl.CONNECT_TO, list(wire.connect_to))


def goes_by_proxy(wire: Wire, route: Route) -> bool:
    """Whether the proxy is asked, unless it is to be bypassed for the host."""
    return wire.proxy is not None and not route.link_local


def _set_proxy(curl: pycurl.Curl, wire: Wire, route: Route) -> None:
    proxy = wire.proxy
    if proxy is None or not goes_by_proxy(wire, route):
        curl.setopt(pycurl.PROXY, "")  # the empty string also turns the environment's proxies off
        curl.setopt(pycurl.NOPROXY, "*")
        return
    curl.setopt(pycurl.PROXY, proxy.url)
    curl.setopt(pycurl.NOPROXY, ",".join(proxy.bypass))
    curl.setopt(_SUPPRESS_CONNECT_HEADERS, 1)  # the proxy's answer is not the upstream's
    curl.setopt(pycurl.HEADEROPT, pycurl.HEADER_SEPARATE)  # and ours are not for the proxy
    curl.setopt(pycurl.USERAGENT, wire.user_agent)
    if proxy.username is not None:
        curl.setopt(pycurl.PROXYAUTH, pycurl.HTTPAUTH_BASIC)
        curl.setopt(pycurl.PROXYUSERNAME, proxy.username.encode())
        curl.setopt(pycurl.PROXYPASSWORD, (proxy.password or "").encode())
    curl.setopt(pycurl.PROXY_SSL_VERIFYPEER, 1 if wire.verify else 0)
    curl.setopt(pycurl.PROXY_SSL_VERIFYHOST, 2 if wire.verify else 0)
    if wire.ca_file is not None:
        curl.setopt(pycurl.PROXY_CAINFO, wire.ca_file)


def _set_trust(curl: pycurl.Curl, wire: Wire, route: Route) -> None:
    """Who may be at the other end. libcurl keeps connections and TLS sessions of different trust
    apart (8.23): one that was opened unchecked never serves a target that is checked."""
    verify = wire.verify if route.verify is None else route.verify
    curl.setopt(pycurl.SSL_VERIFYPEER, 1 if verify else 0)
    curl.setopt(pycurl.SSL_VERIFYHOST, 2 if verify else 0)
    if route.ca_cert is not None:
        curl.unsetopt(pycurl.CAPATH)  # its own default would be trusted beside
        curl.setopt(pycurl.CAINFO_BLOB, route.ca_cert.encode())
    elif wire.ca_file is not None:
        curl.setopt(pycurl.CAINFO, wire.ca_file)
