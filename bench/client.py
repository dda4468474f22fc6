"""Single requests, where the load generator is too much: one large body, one slow reader. I/O."""

from __future__ import annotations

import http.client
import re
import socket
import time
from urllib.parse import urlsplit

from bench.load import Target, VoidWindow, request_body
from bench.scenarios import Scenario

_TIMEOUT_S = 120.0
_PIECE_BYTES = 16_384
_SLOW_PAUSE_S = 0.05
_RECEIVE_BUFFER_BYTES = 65_536
_CONTENT = re.compile(rb'"content": ?" t')
_LONGEST_MARK = len(b'"content": " t')


def open_stream(target: Target, scenario: Scenario) -> http.client.HTTPResponse:
    """Send the scenario's request; the answer, unread. Raises VoidWindow unless it is a 200."""
    parts = urlsplit(target.url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=_TIMEOUT_S)
    connection.sock = socket.socket()
    connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
    connection.sock.settimeout(_TIMEOUT_S)
    connection.sock.connect((parts.hostname, parts.port))
    body = request_body(target.model, chunks=scenario.chunks, body_bytes=scenario.body_bytes)
    headers = target.all_headers() | {"Content-Type": "application/json", "Connection": "close"}
    path = parts.path + (f"?{parts.query}" if parts.query else "")
    try:
        connection.request("POST", path, body, headers)
        answer = connection.getresponse()
    except OSError as error:
        raise VoidWindow(f"no answer: {error}") from error
    if answer.status != http.client.OK:
        raise VoidWindow(f"HTTP {answer.status}: {answer.read(300)!r}")
    return answer


def post(target: Target, scenario: Scenario) -> None:
    """One request and its answer. Raises VoidWindow when the answer is not right."""
    with open_stream(target, scenario) as answer:
        body = answer.read()
    if b'"choices"' not in body:
        raise VoidWindow(f"an answer without choices: {body[:300]!r}")


def read_slowly(target: Target, scenario: Scenario, *, slow_s: float) -> int:
    """Read a stream at 16 KiB every 50 ms for `slow_s`, then as fast as it comes; bytes read.

    Raises VoidWindow when a chunk or the end is missing.
    """
    counter = ChunkCounter()
    slow_until = time.monotonic() + slow_s
    with open_stream(target, scenario) as answer:
        try:
            while piece := answer.read1(_PIECE_BYTES):
                counter.feed(piece)
                if time.monotonic() < slow_until:
                    time.sleep(_SLOW_PAUSE_S)
        except (OSError, http.client.HTTPException) as error:
            raise VoidWindow(f"the stream broke: {error}") from error
    if counter.chunks != scenario.chunks or not counter.done:
        raise VoidWindow(f"{counter.chunks} of {scenario.chunks} chunks, done: {counter.done}")
    return counter.total_bytes


class ChunkCounter:
    """Counts the mock's content chunks in a stream that is cut anywhere. Pure."""

    def __init__(self) -> None:
        self.chunks = 0
        self.total_bytes = 0
        self.done = False
        self._tail = b""

    def feed(self, piece: bytes) -> None:
        """The next bytes."""
        self.total_bytes += len(piece)
        text = self._tail + piece
        last = 0
        for match in _CONTENT.finditer(text):
            self.chunks += 1
            last = match.end()
        self.done = self.done or b"[DONE]" in text
        self._tail = text[max(last, len(text) - _LONGEST_MARK + 1) :]
