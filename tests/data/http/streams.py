"""Good streams of requests for fuzzers to spoil, and what they spoil them with."""

from __future__ import annotations

AUTHORIZED = b"Host: x\r\nAuthorization: Bearer sk-of-the-harness\r\n"
_JSON = b'{"model":"gpt-4o-azure","messages":[{"role":"user","content":"hello"}]}'
_STREAM = _JSON[:-1] + b',"stream":true}'
_H2C = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
_CHAT = b"/v1/chat/completions"
_MODELS = b"GET /v1/models HTTP/1.1\r\n" + AUTHORIZED + b"\r\n"


def _post(
    body: bytes, fields: bytes = b"", target: bytes = _CHAT, version: bytes = b"1.1"
) -> bytes:
    head = b"POST %b HTTP/%b\r\n" % (target, version) + AUTHORIZED + fields
    return head + b"Content-Length: %d\r\n\r\n" % len(body) + body


def _chunks(body: bytes, fields: bytes = b"", size: int = 20) -> bytes:
    head = b"POST %b HTTP/1.1\r\n" % _CHAT + AUTHORIZED + fields
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    wire = b"".join(b"%x;n=%d\r\n%b\r\n" % (len(each), len(each), each) for each in pieces)
    return head + b"Transfer-Encoding: chunked\r\n\r\n" + wire + b"0\r\nX-Sum: 1\r\n\r\n"


POSTS: tuple[bytes, ...] = (
    _post(_JSON),
    _post(_STREAM, b"User-Agent: sdk\r\nAccept: application/json\r\n"),
    _post(b"", b"Connection: keep-alive\r\n"),
    _post(_JSON).replace(b"Content-Length: ", b"content-LENGTH:\t 00"),
    _post(_JSON).replace(b"Content-Length: ", b"X-A: Content-Length: 1\r\nContent-Length: "),
    _post(_JSON, b"Content-Type: application/json\r\n", version=b"1.1").replace(b"Host", b"hOST"),
)
"""Single requests with a body of known length, which a connection may repeat."""

STREAMS: tuple[bytes, ...] = (
    _MODELS * 3,
    _post(_JSON) + _MODELS + _post(_STREAM),
    _chunks(_JSON) + _chunks(_STREAM, size=1_000) + _MODELS,
    _chunks(_JSON, _H2C) + _post(_JSON, _H2C) + _MODELS,
    _MODELS.replace(b"Host", _H2C + b"Host") * 2 + _chunks(b"{}", _H2C),
    b"HEAD /v1/models HTTP/1.1\r\nHost: x\r\n\r\n" + _MODELS + _post(b"{}", target=b"/nowhere"),
    _post(_JSON, b"Expect: 100-continue\r\n") + _chunks(_JSON, b"Expect: 100-continue\r\n"),
    _post(_JSON, b"Connection: keep-alive\r\n", version=b"1.0") + _post(_STREAM, version=b"1.0"),
    _post(_JSON, b"Connection: close\r\n") + _MODELS,
    b"GET http://x/v1/models?a=b#c HTTP/1.1\r\nHost: x:1\r\nX-A: 1\r\nX-A: 2\r\n\r\n" + _MODELS,
    b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\nCONNECT y:1 HTTP/1.1\r\nHost: y\r\n\r\n\x16\x03",
    b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\nHEAD /readyz HTTP/1.1\r\nHost: x\r\n\r\n" + _MODELS,
    _chunks(b"{}").replace(_CHAT, b"/livez") + _post(b"{}", target=b"/readyz") + _MODELS,
    b"GET /livez HTTP/1.1\r\nHost: x\r\n" + _H2C + b"\r\n" + _MODELS,
    _MODELS
    + b"GET /v1/x HTTP/1.1\r\n"
    + AUTHORIZED
    # what no proxy forwards, and a server must take for a request
    + b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\r\n\x81\x00",
)

TOKENS: tuple[bytes, ...] = (
    b"\r",
    b"\n",
    b"\r\n",
    b"\r\n\r\n",
    b"\x00",
    b"\x0b",
    b"\x7f",
    b"\x80",
    b"\xff",
    b" ",
    b"\t",
    b":",
    b";",
    b",",
    b'"',
    b"0",
    b"0\r\n\r\n",
    b"5\r\nhello\r\n",
    b"f" * 16,
    b"9" * 20,
    b"-",
    b"+",
    b"0x",
    b"GET ",
    b"HEAD ",
    b"POST / HTTP/1.1\r\n",
    b" HTTP/1.0\r\n",
    b" HTTP/1.1\r\n",
    b" HTTP/2.0\r\n",
    b"Host: y\r\n",
    b"Content-Length: 5\r\n",
    b"Content-Length: 0\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: identity\r\n",
    b"chunked",
    b"Connection: close\r\n",
    b"Connection: keep-alive\r\n",
    b"Connection: Upgrade\r\nUpgrade: h2c\r\n",
    b"Connection: Upgrade\r\nUpgrade: websocket\r\n",
    b"Expect: 100-continue\r\n",
    b"X: " + b"y" * 300 + b"\r\n",
    b"\r\n folded\r\n",
)
