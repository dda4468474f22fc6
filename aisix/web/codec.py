"""HTTP/1.1 requests out of bytes: llhttp (httptools) for the grammar, our own rules on top.
Pure (sans-I/O).

llhttp is strict where smuggling begins: bare LF, folded headers, repeated or conflicting framing,
malformed chunks are errors. What it leaves to its user is done here: the size of a head, exactly
one Host (RFC 9112 §3.2), Transfer-Encoding only in HTTP/1.1 and only `chunked` (§6.1), versions
other than 1.0 and 1.1, and `Upgrade`: llhttp stops reading at any upgrade, but a server that does
not know the protocol ignores the header and serves the request (RFC 9110 §7.8; curl --http2 and
Java's client send `Upgrade: h2c` with a body behind it).

A head that the caller repeats is not parsed again (`heads`).

Invariants: messages come out in the order in which they went in; after an error nothing more is
parsed, because nobody can tell where the next message begins; what is held beyond the bodies is
bounded by the head's limit and `MAX_WAITING` messages.
"""

from __future__ import annotations

import re
from functools import lru_cache

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser

from aisix.errors import BadRequest, GatewayError, HeadTooLarge
from aisix.web.body import StreamedBody
from aisix.web.heads import HeadTemplate, learn

MAX_HEAD_BYTES = 64 * 1024
"""Request line and headers together; also trailers, and what lies between pieces of a body."""

MAX_FIELDS = 256
"""Of one head; SDKs send twenty."""

MAX_WAITING = 64
"""Requests that a caller may send ahead on one connection."""

_HOST = re.compile(r"[A-Za-z0-9._~!$&'()*+,;=%:\[\]-]*")
_AUTHORITY = re.compile(r"https?://[^/?#]*", re.IGNORECASE)
_METHODS = {
    name.encode(): name for name in ("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH")
}
_LESSONS = 4
"""How often a connection's heads are learnt: one that differs each time must not cost more."""
_MAX_KNOWN = 64  # fields remembered of a connection
_MAX_KNOWN_BYTES = 256  # of one
_FIELD_BYTES = 4  # of a field's line, beside name and value
_SPACE = b" \t"  # llhttp takes away only what stands before a value
_FRAMING = ("content-length", "transfer-encoding")


class Message:
    """A request whose head is complete; its body may still be coming.

    `refusal` is set on the last message of a connection that sent what is not HTTP.
    """

    __slots__ = (
        "body",
        "expects_continue",
        "headers",
        "keep_alive",
        "method",
        "old",
        "refusal",
        "target",
        "upgrade",
    )

    def __init__(self) -> None:
        self.method = ""
        self.target = ""
        self.headers: dict[str, str] = {}
        """Names in lower case; repeated ones joined by ", "."""
        self.body = StreamedBody()
        self.keep_alive = False
        self.old = False
        """Whether the caller speaks HTTP/1.0."""
        self.expects_continue = False
        """Whether the caller holds its body back until it is told `100 Continue`."""
        self.upgrade = False
        """Whether it asks for a WebSocket; the connection is then no longer HTTP."""
        self.refusal: GatewayError | None = None

    @property
    def path(self) -> str:
        """The undecoded path without its query; of an absolute target, its path too."""
        target = self.target
        if not target.startswith("/"):
            target = _AUTHORITY.sub("", target, count=1)
        return target.partition("?")[0].partition("#")[0]

    @property
    def query(self) -> str:
        """The undecoded text between the question mark and a fragment."""
        return self.target.partition("#")[0].partition("?")[2]


class MessageParser:
    """The requests of one connection, fed as bytes arrive."""

    def __init__(self, *, head_limit_bytes: int = MAX_HEAD_BYTES, lessons: int = _LESSONS) -> None:
        self._head_limit_bytes = head_limit_bytes
        self._lessons = lessons
        self._template: HeadTemplate | None = None
        self._returned = False
        self._parser = HttpRequestParser(self)
        self._message: Message | None = None  # whose body is coming
        self._fields: dict[str, str] = {}
        self._known: dict[bytes, tuple[str, bytes, str]] = {}
        self._url = b""
        self._head_bytes = 0
        self._silent_bytes = 0
        self._in_head = False
        self._switched = False
        self._replaying = False
        self._refusal: GatewayError | None = None
        self._moved = False
        self.messages: list[Message] = []
        """Complete heads, oldest first; whoever takes one removes it."""
        self.ended = False
        """Nothing more will be parsed: an error, an upgrade, or the caller's own last message."""
        self.switched = False
        """The last message asks for a WebSocket: what follows is not for this parser."""
        self.rest = b""
        """What came behind it."""

    @property
    def in_head(self) -> bool:
        """Whether part of a head has come, but not all."""
        return self._in_head

    @property
    def full(self) -> bool:
        """Whether the body that is coming in must be read before more of it is fed."""
        return self._message is not None and self._message.body.full

    def feed(self, data: bytes) -> None:
        """Take in what has arrived. Never raises: an error becomes a message with a refusal."""
        if self.ended:
            return
        begins = self._message is None and not self._in_head
        if begins and self._template is not None:
            data = self._take_repeated(self._template, data)
            if not data:
                return
        begins = begins and not self.messages
        self._moved = False
        try:
            self._parser.feed_data(data)
        except HttpParserUpgrade as stop:
            self._switch(data[stop.args[0] :])
            return
        except HttpParserError as error:
            self._fail(self._refusal or BadRequest(f"the request is malformed: {error}"))
            return
        # part of a field is held by llhttp until it is complete; so is nothing of a chunk's
        # extension or a trailer, but neither may go on for ever
        self._silent_bytes = 0 if self._moved else self._silent_bytes + len(data)
        if self._silent_bytes > self._head_limit_bytes:
            self._fail(_head_too_large(self._head_limit_bytes))
        elif begins and len(self.messages) == 1 and self._lessons and not self.ended:
            self._learn_head(data, self.messages[0])

    def refuse(self, refusal: GatewayError) -> None:
        """Nothing more will be parsed; what has not come in full is answered with `refusal`."""
        self._fail(refusal)

    def eof(self) -> None:
        """The caller has gone."""
        self.ended = True
        message, self._message = self._message, None
        if message is not None:
            message.body.depart()
        del self._parser  # it holds our methods: no cycle outlives the connection

    # ── llhttp's callbacks ──

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        if self._replaying:
            return
        self._in_head = self._moved = True
        self._fields = {}
        self._url = b""
        self._head_bytes = 0

    def on_url(self, piece: bytes) -> None:
        """All or part of the target."""
        if self._replaying:
            return
        self._moved = True
        self._url += piece
        if len(self._url) > self._head_limit_bytes:
            self._refuse(_head_too_large(self._head_limit_bytes))

    def on_header(self, name: bytes, value: bytes) -> None:
        """One field, or one of a trailer."""
        if not self._in_head:
            return  # replayed, or of a trailer, which nothing here reads
        self._head_bytes += len(name) + len(value) + _FIELD_BYTES
        if self._head_bytes > self._head_limit_bytes:
            self._refuse(_head_too_large(self._head_limit_bytes))
        known = self._known.get(name)
        if known is None or known[1] != value:
            known = self._learn(name, value)
        lower = known[0]
        if lower in self._fields:
            self._repeat(lower, known[2])
        else:
            self._fields[lower] = known[2]

    def on_headers_complete(self) -> None:
        """The head is whole: check what llhttp does not, and hand the message out."""
        if self._replaying:
            self._replaying = False
            return
        self._in_head = False
        parser = self._parser
        message = Message()
        fields = message.headers = self._fields
        size = len(self._url) + self._head_bytes
        if size > self._head_limit_bytes or len(fields) > MAX_FIELDS:
            self._refuse(_head_too_large(self._head_limit_bytes))
        method = parser.get_method()
        message.method = _METHODS.get(method) or method.decode("latin-1")
        message.target = self._url.decode("latin-1")
        message.old = self._check_framing(parser.get_http_version())
        message.keep_alive = parser.should_keep_alive()
        self._switched = parser.should_upgrade()
        if self._switched:
            wish = fields.get("upgrade", "").lower()
            message.upgrade = wish == "websocket" and method == b"GET"
            if method == b"CONNECT" or message.upgrade:
                message.keep_alive = False
        if "expect" in fields and not message.old:
            message.expects_continue = fields["expect"].lower() == "100-continue"
        if len(self.messages) >= MAX_WAITING:
            self._refuse(BadRequest(f"more than {MAX_WAITING} requests were sent ahead"))
        self._message = message
        self.messages.append(message)

    def on_body(self, piece: bytes) -> None:
        """More of the body."""
        self._moved = True
        message = self._message
        if message is not None:
            message.body.feed(piece)

    def on_message_complete(self) -> None:
        """The last byte of a request."""
        self._moved = True
        if self._switched or self._replaying:
            return  # llhttp takes what follows an upgrade for another protocol
        message, self._message = self._message, None
        if message is not None:
            self._complete(message)

    # ── heads that are known ──

    def _learn_head(self, data: bytes, message: Message) -> None:
        """Know the head of `message`, with which `data` begins, from now on; but not that of a
        connection's first request: many have no other, and a stream may be silent for long."""
        if not self._returned:
            self._returned = True
            return
        self._lessons -= 1
        self._template = _template_of(data, message)

    def _take_repeated(self, template: HeadTemplate, data: bytes) -> bytes:
        """Take whole requests with the known head off the front of `data`; what is left. llhttp
        sees nothing of them: it stands between two messages before and after."""
        while len(self.messages) < MAX_WAITING:
            found = template.match(data)
            if found is None:
                break
            digits, at = found
            end = at + int(digits)
            if end > len(data):
                break  # the body comes in pieces
            message = Message()
            message.method = "POST"
            message.target = template.target
            message.headers = template.fields.copy()
            message.headers["content-length"] = digits
            message.keep_alive = True
            if end > at:
                message.body.feed(data[at:end])
            message.body.finish()
            self.messages.append(message)
            self._silent_bytes = self._lessons = 0
            self._known.clear()  # the template knows them all
            if end == len(data):
                return b""
            data = data[end:]
        return data

    # ── our own rules ──

    def _complete(self, message: Message) -> None:
        message.body.finish()
        if not message.keep_alive:
            self.ended = True

    def _learn(self, name: bytes, value: bytes) -> tuple[str, bytes, str]:
        """A field's name in lower case, and its value as it came and as text. A caller sends the
        same few again and again, most with the same value."""
        text = value.rstrip(_SPACE).decode("latin-1")
        if len(self._known) >= _MAX_KNOWN or len(name) + len(value) > _MAX_KNOWN_BYTES:
            return name.decode("latin-1").lower(), value, text
        name, lower = _names(name)
        known = self._known[name] = lower, value, text
        return known

    def _repeat(self, name: str, value: str) -> None:
        if name == "host":
            self._refuse(BadRequest("the request is malformed: more than one Host header"))
        self._fields[name] += ", " + value

    def _check_framing(self, version: str) -> bool:
        """Whether the caller speaks HTTP/1.0. Raises for what could be read in two ways."""
        fields = self._fields
        if version not in ("1.1", "1.0"):
            self._refuse(BadRequest("the request is malformed: this server speaks HTTP/1.1"))
        host = fields.get("host")
        if host is None and version == "1.1":
            self._refuse(BadRequest("the request is malformed: the Host header is missing"))
        if host is not None and not _HOST.fullmatch(host):
            self._refuse(BadRequest("the request is malformed: the Host header is not valid"))
        coding = fields.get("transfer-encoding")
        if coding is not None and (version == "1.0" or coding.lower() != "chunked"):
            self._refuse(
                BadRequest(
                    "the request is malformed: Transfer-Encoding must be chunked, in HTTP/1.1"
                )
            )
        return version == "1.0"

    def _refuse(self, refusal: GatewayError) -> None:
        """Stop llhttp from within a callback."""
        self._refusal = refusal
        raise ValueError("refused")

    def _fail(self, refusal: GatewayError) -> None:
        """The bytes make no sense from here on. A body that was coming will not be complete."""
        if self.ended:
            return  # bytes behind the caller's own last message
        self.ended = True
        message, self._message = self._message, None
        if message is not None:
            message.keep_alive = False
            message.body.fail(refusal)
            return
        last = Message()
        last.refusal = refusal
        last.body.finish()
        self.messages.append(last)

    def _switch(self, rest: bytes) -> None:
        """llhttp stopped at an upgrade: leave HTTP for a WebSocket, go on for anything else."""
        message = self._message
        self._switched = False
        if message is None or message.upgrade or message.method == "CONNECT":
            self.ended = self.switched = True
            self.rest = rest
            self._message = None
            if message is not None:
                message.body.finish()
            return
        # a parser that has seen the same framing, but no upgrade
        self._parser = HttpRequestParser(self)
        self._replaying = True
        framing = "".join(
            f"{name}: {value}\r\n" for name in _FRAMING if (value := message.headers.get(name))
        )
        ending = "" if message.keep_alive else "Connection: close\r\n"
        head = f"POST / HTTP/1.1\r\nHost: replayed\r\n{framing}{ending}\r\n"
        self._parser.feed_data(head.encode("latin-1"))
        if rest:
            self.feed(rest)


def _template_of(data: bytes, message: Message) -> HeadTemplate | None:
    """A template of the head of `message`, the first of `data`, unless its framing or what it asks
    of the connection is out of the ordinary. Behind a last message nothing is parsed, and one that
    llhttp takes for an upgrade never comes here."""
    fields = message.headers
    if message.old or "content-length" not in fields or "expect" in fields:
        return None
    return learn(data, target=message.target, fields=fields)


def _head_too_large(limit: int) -> HeadTooLarge:
    return HeadTooLarge(f"the request's head exceeds {limit} bytes")


@lru_cache(maxsize=1024)
def _names(name: bytes) -> tuple[bytes, str]:
    """A field's name as it came and in lower case, shared by all connections."""
    return name, name.decode("latin-1").lower()
