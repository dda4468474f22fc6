"""libcurl's errors in our words."""

from __future__ import annotations

import pycurl
import pytest

from aisix.core.ports import Deadlines, UpstreamCall, UpstreamTarget
from aisix.errors import UpstreamBroken, UpstreamMisconfigured, UpstreamTimeout, UpstreamUnreachable
from aisix.transport.failures import failure, timed_out

CALL = UpstreamCall(
    UpstreamTarget(
        "POST",
        "https://contoso.openai.azure.com/openai/x?api-version=1&key=s3cret",
        [("api-key", "s3cret")],
    ),
    [("x-own", "s3cret")],
    b"",
    Deadlines(connect_s=2.5),
)
TEXT = "Failed to talk to contoso.openai.azure.com port 443"
NUMBERS = sorted({getattr(pycurl, name) for name in dir(pycurl) if name.startswith("E_")})


@pytest.mark.parametrize("answered", [False, True])
@pytest.mark.parametrize("code", [number for number in NUMBERS if number > 0])
def test_no_message_names_the_host_and_every_detail_keeps_it_without_the_query(code, answered):
    error = failure(code, TEXT, CALL, answered=answered)
    assert "contoso" not in error.message
    assert "s3cret" not in error.message + (error.detail or "")
    if not isinstance(error, UpstreamMisconfigured):
        assert error.detail is not None
        assert "https://contoso.openai.azure.com/openai/x]" in error.detail
    if not isinstance(error, UpstreamMisconfigured | UpstreamTimeout):
        assert TEXT in (error.detail or "")
        assert f"curl {code}:" in (error.detail or "")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (pycurl.E_COULDNT_RESOLVE_HOST, "upstream host name could not be resolved"),
        (pycurl.E_COULDNT_CONNECT, "could not connect to the upstream"),
        (pycurl.E_SSL_CONNECT_ERROR, "TLS handshake with the upstream failed"),
        (pycurl.E_PEER_FAILED_VERIFICATION, "upstream TLS certificate could not be verified"),
        (pycurl.E_GOT_NOTHING, "upstream closed the connection without an answer"),
        (pycurl.E_RECV_ERROR, "upstream closed the connection without an answer"),
        (pycurl.E_OUT_OF_MEMORY, "the upstream could not be reached"),
    ],
)
def test_before_the_head_the_upstream_is_unreachable(code, message):
    error = failure(code, TEXT, CALL, answered=False)
    assert isinstance(error, UpstreamUnreachable)
    assert (error.message, error.status) == (message, 502)


@pytest.mark.parametrize(
    ("code", "text", "reason"),
    [
        (pycurl.E_COULDNT_RESOLVE_HOST, TEXT, "dns"),
        (pycurl.E_COULDNT_CONNECT, TEXT, "connect"),
        (pycurl.E_SSL_CONNECT_ERROR, TEXT, "tls"),
        (pycurl.E_PEER_FAILED_VERIFICATION, "unable to get local issuer", "tls_untrusted"),
        (pycurl.E_PEER_FAILED_VERIFICATION, "certificate has expired (10)", "tls_time"),
        (pycurl.E_PEER_FAILED_VERIFICATION, "certificate is not yet valid or", "tls_time"),
        (pycurl.E_PEER_FAILED_VERIFICATION, "no alternative certificate subject name", "tls_host"),
        (pycurl.E_SSL_CACERT_BADFILE, TEXT, "tls_ca_file"),
        (pycurl.E_GOT_NOTHING, TEXT, "unanswered"),
        (pycurl.E_OUT_OF_MEMORY, TEXT, "other"),
    ],
)
def test_why_the_upstream_is_unreachable_is_told_apart(code, text, reason):
    error = failure(code, text, CALL, answered=False)
    assert isinstance(error, UpstreamUnreachable)
    assert error.reason == reason


@pytest.mark.parametrize(
    "code", [pycurl.E_PARTIAL_FILE, pycurl.E_RECV_ERROR, pycurl.E_HTTP2, pycurl.E_GOT_NOTHING]
)
def test_after_the_head_the_answer_is_cut(code):
    error = failure(code, TEXT, CALL, answered=True)
    assert isinstance(error, UpstreamBroken)
    assert error.kind == "cut"


@pytest.mark.parametrize("answered", [False, True])
@pytest.mark.parametrize(
    ("code", "text"),
    [
        (8, "Header without colon"),
        (1, "Received HTTP/0.9 when not allowed"),
        (100, ""),
        (56, "Too large response headers: 312212 > 307200"),
        (56, "chunk hex-length char not a hex digit: 0x7a"),
        (56, "Malformed encoding found in chunked-encoding"),
    ],
)
def test_what_is_not_http_is_a_decoding_failure(code, text, answered):
    error = failure(code, text, CALL, answered=answered)
    assert isinstance(error, UpstreamBroken)
    assert (error.kind, error.code) == ("decode", "upstream_decode_error")


def test_libcurls_only_timeout_is_the_connect_deadline():
    error = failure(pycurl.E_OPERATION_TIMEDOUT, TEXT, CALL, answered=False)
    assert isinstance(error, UpstreamTimeout)
    assert (error.phase, error.message) == ("connect", "upstream request timed out after 2500ms")


def test_a_timeout_tells_its_length_and_not_its_host():
    error = timed_out("idle", 0.25, CALL)
    assert (error.phase, error.message) == ("idle", "upstream request timed out after 250ms")
    assert error.detail == (
        "idle deadline of 0.25 s passed [https://contoso.openai.azure.com/openai/x]"
    )
