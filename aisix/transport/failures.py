"""libcurl's error numbers in the words of `aisix.errors`: one table. Pure.

The caller's `message` is fixed text: libcurl's own names the host. That text goes into `detail`,
with the host and without the query, for the log. Whether a failure means "unreachable" or "broken"
depends on one thing only: had the head of an answer arrived?
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

import pycurl

from aisix.core.ports import UpstreamCall
from aisix.errors import (
    UpstreamBroken,
    UpstreamFailed,
    UpstreamMisconfigured,
    UpstreamTimeout,
    UpstreamUnreachable,
)

CUT = "upstream connection broke before the answer was complete"
UNANSWERED = "upstream closed the connection without an answer"
UNREADABLE = "upstream answer is not valid HTTP"
CLOSING = "the gateway is shutting down"
LINK_LOCAL = (
    "the upstream has a link-local address or that of a metadata service, which only "
    "upstream.allow_link_local permits"
)
_PROXY_LINK_LOCAL = LINK_LOCAL.replace("the upstream has", "the proxy has")

_E_TOO_LARGE = 100  # CURLE_TOO_LARGE: a header block beyond libcurl's bound; pycurl has no name

_CERTIFICATE = "upstream TLS certificate could not be verified"
_UNREACHABLE = {
    pycurl.E_COULDNT_RESOLVE_HOST: "upstream host name could not be resolved",
    pycurl.E_COULDNT_CONNECT: "could not connect to the upstream",
    pycurl.E_SSL_CONNECT_ERROR: "TLS handshake with the upstream failed",
    pycurl.E_PEER_FAILED_VERIFICATION: _CERTIFICATE,
    pycurl.E_SSL_ISSUER_ERROR: _CERTIFICATE,
    pycurl.E_SSL_CACERT_BADFILE: _CERTIFICATE,
    pycurl.E_GOT_NOTHING: UNANSWERED,
    pycurl.E_SEND_ERROR: UNANSWERED,
    pycurl.E_RECV_ERROR: UNANSWERED,
    pycurl.E_PARTIAL_FILE: UNANSWERED,
    pycurl.E_SEND_FAIL_REWIND: UNANSWERED,
}
_REASONS = {
    pycurl.E_COULDNT_RESOLVE_HOST: "dns",
    pycurl.E_COULDNT_CONNECT: "connect",
    pycurl.E_SSL_CONNECT_ERROR: "tls",
    pycurl.E_PEER_FAILED_VERIFICATION: "tls_untrusted",
    pycurl.E_SSL_ISSUER_ERROR: "tls_untrusted",
    pycurl.E_SSL_CACERT_BADFILE: "tls_ca_file",
}
_CERTIFICATE_REASONS = (
    ("subject name", "tls_host"),
    ("has expired", "tls_time"),
    ("not yet valid", "tls_time"),
)
"""Which of a certificate's faults it is, libcurl 8.23 tells by its text only."""
_AT_THE_PROXY = {
    pycurl.E_COULDNT_RESOLVE_PROXY: "the proxy's host name could not be resolved",
    pycurl.E_COULDNT_CONNECT: "could not connect to the proxy",
    pycurl.E_SSL_CONNECT_ERROR: "TLS handshake with the proxy failed",
    pycurl.E_PEER_FAILED_VERIFICATION: "proxy TLS certificate could not be verified",
}
"""Before there is a tunnel, so only of new connections."""
_TUNNEL_CUT = "Proxy CONNECT aborted"
"""How libcurl 8.23 words a proxy that closes instead of answering."""
_UNREADABLE = {
    pycurl.E_FTP_WEIRD_SERVER_REPLY,  # its name for CURLE_WEIRD_SERVER_REPLY, of any protocol
    pycurl.E_UNSUPPORTED_PROTOCOL,  # our scheme was checked, so this is an HTTP/0.9 answer
    pycurl.E_BAD_CONTENT_ENCODING,
    _E_TOO_LARGE,
}
_UNREADABLE_TEXTS = ("chunk hex-length", "chunked-enco", "response headers")
"""Malformed answers that libcurl 8.23 reports as a plain E_RECV_ERROR, known by their text."""


@dataclass(frozen=True, slots=True)
class Passage:
    """What became of the way to the upstream. `tunnelled` says that the proxy opened a tunnel for
    this call, `proxy_status` is what a proxy refused with, else 0; `address_refused` says that we
    did not let libcurl connect."""

    by_proxy: bool = False
    tunnelled: bool = False
    proxy_status: int = 0
    address_refused: bool = False


def failure(
    code: int, text: str, call: UpstreamCall, *, answered: bool, passage: Passage = Passage()
) -> UpstreamFailed:
    """The error for libcurl's `code` on `call`; `answered` tells whether a head had arrived."""
    detail = f"curl {code}: {text} [{_place(call.target.url)}]"
    if passage.by_proxy:
        detail += " by proxy"
    if passage.proxy_status:
        return _proxy_refused(passage.proxy_status, detail)
    if code == pycurl.E_OPERATION_TIMEDOUT:  # the only timeout that libcurl keeps for us
        return timed_out("connect", call.deadlines.connect_s, call)
    if code == pycurl.E_COULDNT_CONNECT and passage.address_refused:
        reason = _PROXY_LINK_LOCAL if passage.by_proxy else LINK_LOCAL
        return misconfigured(reason, detail=f"address refused [{_place(call.target.url)}]")
    if code == pycurl.E_URL_MALFORMAT:
        return misconfigured("the upstream address is not a valid URL")
    if code in _UNREADABLE or (
        code == pycurl.E_RECV_ERROR and any(known in text for known in _UNREADABLE_TEXTS)
    ):
        return UpstreamBroken(UNREADABLE, kind="decode", detail=detail)
    if answered:
        return UpstreamBroken(CUT, kind="cut", detail=detail)
    message = _UNREACHABLE.get(code, "the upstream could not be reached")
    reason = _reason(code, text)
    if passage.by_proxy and not passage.tunnelled:
        message, reason = _AT_THE_PROXY.get(code, message), "proxy"
        if _TUNNEL_CUT in text:
            message = "the proxy closed the connection without an answer"
    return UpstreamUnreachable(message, reason=reason, detail=detail)


def _reason(code: int, text: str) -> str:
    if code == pycurl.E_PEER_FAILED_VERIFICATION:
        for known, reason in _CERTIFICATE_REASONS:
            if known in text:
                return reason
    if _UNREACHABLE.get(code) == UNANSWERED:
        return "unanswered"
    return _REASONS.get(code, "other")


def _proxy_refused(status: int, detail: str) -> UpstreamUnreachable:
    """A retry mends what a proxy meets further on, not what it forbids."""
    reason = "asks for a user and password" if status == 407 else "refused to connect"
    return UpstreamUnreachable(
        f"the proxy on the way to the upstream {reason} (status {status})",
        reason="proxy",
        detail=detail,
        should_retry=None if status >= 500 else False,
    )


def unanswered(call: UpstreamCall) -> UpstreamUnreachable:
    """A connection that ended properly, but before a whole head."""
    return UpstreamUnreachable(
        UNANSWERED,
        reason="unanswered",
        detail=f"the connection ended inside the head [{_place(call.target.url)}]",
    )


def timed_out(phase: str, seconds: float, call: UpstreamCall) -> UpstreamTimeout:
    """A deadline of `call` passed."""
    return UpstreamTimeout(
        f"upstream request timed out after {round(seconds * 1000)}ms",
        phase=phase,
        detail=f"{phase} deadline of {seconds:g} s passed [{_place(call.target.url)}]",
    )


def misconfigured(reason: str, *, detail: str | None = None) -> UpstreamMisconfigured:
    """What is stored cannot be sent; `reason` echoes none of it."""
    return UpstreamMisconfigured(
        f"invalid upstream configuration: {reason}", should_retry=False, detail=detail
    )


def _place(url: str) -> str:
    """Scheme, host and path of a URL, for the log."""
    return urlsplit(url)._replace(query="", fragment="").geturl()
