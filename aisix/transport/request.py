"""From an `UpstreamCall` to the options of one easy handle. Pure but for the handle it fills.

What goes out is exactly what the call says: libcurl's own Accept, Content-Type, Expect and
User-Agent are taken away, redirects, cookies, netrc, proxies and decompression are off. Two headers
are added when the call has none: `User-Agent`, and `Accept-Encoding: identity`. Headers that frame
the body are libcurl's alone, because it knows what it sends.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from urllib.parse import urlsplit

import pycurl

from aisix.core.ports import UpstreamCall
from aisix.transport.failures import misconfigured
from aisix.transport.upload import Upload

_FRAMING = frozenset({"connection", "content-length", "expect", "transfer-encoding"})
_LIBCURLS_OWN = ("Accept", "Content-Type", "Expect")
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")

_FOR_EVER_MS = 2**31 - 1
_MAX_IDLE_S = 118
"""Connections idle for longer are not used again: Azure's front door closes them at 120 s."""
_MAX_LIFETIME_S = 600
"""Nor are older ones, however busy: a moved host name is noticed within this time."""


@dataclass(frozen=True, slots=True)
class Wire:
    """What all transfers of a transport have in common."""

    user_agent: str
    http2: bool = False
    connect_to: Sequence[str] = ()
    ca_file: str | None = None
    verify: bool = True
    tcp_keepalive_s: int = 60


def prepare(curl: pycurl.Curl, call: UpstreamCall, wire: Wire) -> None:
    """Set every option but the callbacks and the body. Raises UpstreamMisconfigured."""
    curl.setopt(pycurl.HTTPHEADER, header_lines(call.headers, user_agent=wire.user_agent))
    curl.setopt(pycurl.URL, _checked_url(call.url))
    curl.setopt(pycurl.PATH_AS_IS, 1)
    curl.setopt(pycurl.PROTOCOLS, pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS)
    curl.setopt(pycurl.FOLLOWLOCATION, 0)
    curl.setopt(pycurl.PROXY, "")  # the empty string also turns the environment's proxies off
    curl.setopt(pycurl.NOPROXY, "*")
    curl.setopt(pycurl.NETRC, pycurl.NETRC_IGNORED)
    curl.setopt(pycurl.HTTP09_ALLOWED, 0)
    curl.setopt(pycurl.NOSIGNAL, 1)
    curl.setopt(pycurl.CONNECTTIMEOUT_MS, _milliseconds(call.deadlines.connect_s))
    _set_connection(curl, wire)


def set_body(curl: pycurl.Curl, call: UpstreamCall, upload: Upload | None) -> None:
    """Set method and body. Bytes are framed by their length; an upload is chunked."""
    body = call.body
    if upload is not None:
        curl.setopt(pycurl.POST, 1)
        curl.setopt(pycurl.POSTFIELDSIZE_LARGE, -1)
        curl.setopt(pycurl.READFUNCTION, upload.read)
    elif body or call.method == "POST":
        curl.setopt(pycurl.POSTFIELDS, body)
    elif call.method == "HEAD":
        curl.setopt(pycurl.NOBODY, 1)
        return
    if not (call.method == "GET" and body == b""):
        curl.setopt(pycurl.CUSTOMREQUEST, call.method)


def header_lines(headers: Sequence[tuple[str, str]], *, user_agent: str) -> list[bytes]:
    """Header lines in libcurl's form: `Name;` is an empty value, `Name:` takes its own away.

    Raises UpstreamMisconfigured for what could break out of its line; the text echoes nothing.
    """
    lines: list[bytes] = []
    given: set[str] = set()
    for name, value in headers:
        if not _NAME.fullmatch(name):
            raise misconfigured("a header name is not valid")
        if not _VALUE.fullmatch(value):
            raise misconfigured("a header value holds a character that HTTP does not allow")
        lower = name.lower()
        if lower in _FRAMING:
            continue
        given.add(lower)
        text = value.strip(" \t")
        lines.append((f"{name}: {text}" if text else f"{name};").encode("latin-1"))
    for name, value in (("User-Agent", user_agent), ("Accept-Encoding", "identity")):
        if name.lower() not in given:
            lines.append(f"{name}: {value}".encode("latin-1"))
    lines.extend(f"{name}:".encode() for name in _LIBCURLS_OWN if name.lower() not in given)
    return lines


def _checked_url(url: str) -> str:
    """`url` when it is plain ASCII with an http scheme and a host; libcurl checks the rest."""
    try:
        parts = urlsplit(url)
    except ValueError:
        raise misconfigured("the upstream address is not a valid URL") from None
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise misconfigured("the upstream address must begin with http:// or https:// and a host")
    if not url.isascii() or not url.isprintable() or " " in url:
        raise misconfigured("the upstream address holds a character that URLs do not allow")
    return url


def _set_connection(curl: pycurl.Curl, wire: Wire) -> None:
    curl.setopt(pycurl.TCP_NODELAY, 1)
    if wire.tcp_keepalive_s:
        curl.setopt(pycurl.TCP_KEEPALIVE, 1)
        curl.setopt(pycurl.TCP_KEEPIDLE, wire.tcp_keepalive_s)
        curl.setopt(pycurl.TCP_KEEPINTVL, wire.tcp_keepalive_s)
    curl.setopt(pycurl.MAXAGE_CONN, _MAX_IDLE_S)
    curl.setopt(pycurl.MAXLIFETIME_CONN, _MAX_LIFETIME_S)
    if wire.http2:
        curl.setopt(pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_2TLS)
        # a burst waits for the first connection instead of opening one each
        curl.setopt(pycurl.PIPEWAIT, 1)
    else:
        curl.setopt(pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_1_1)
    if wire.connect_to:
        curl.setopt(pycurl.CONNECT_TO, list(wire.connect_to))
    curl.setopt(pycurl.SSL_VERIFYPEER, 1 if wire.verify else 0)
    curl.setopt(pycurl.SSL_VERIFYHOST, 2 if wire.verify else 0)
    if wire.ca_file is not None:
        curl.setopt(pycurl.CAINFO, wire.ca_file)


def _milliseconds(seconds: float) -> int:
    """libcurl's own default hides behind 0, so "none" is a very long time."""
    return min(ceil(seconds * 1000), _FOR_EVER_MS) if seconds > 0 else _FOR_EVER_MS
