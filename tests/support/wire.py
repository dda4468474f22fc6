"""A caller that writes its own bytes: for bad input, slow callers and sudden departures. I/O.

    with Wire(gateway.proxy) as wire:
        wire.send(post("/v1/chat/completions", {"model": "m"}))
        answer = wire.answer()

Blocking, with a timeout on everything; a timeout is a test failure, never a way of waiting.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Mapping
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from tests.support.process import CALLER_KEY, WAIT_S, Answer


def head(
    method: str, target: str, headers: Mapping[str, str] | None = None, *, version: str = "1.1"
) -> bytes:
    """A request head with a good credential, unless `headers` say otherwise (`""` leaves out)."""
    fields = {"Host": "gateway", "Authorization": f"Bearer {CALLER_KEY}", **(headers or {})}
    lines = [f"{method} {target} HTTP/{version}"]
    lines += [f"{name}: {value}" for name, value in fields.items() if value]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def post(target: str, body: Any, headers: Mapping[str, str] | None = None) -> bytes:
    """A whole POST; bytes are sent as they are, all else as JSON."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    framing = {"Content-Type": "application/json", "Content-Length": str(len(content))}
    return head("POST", target, {**framing, **(headers or {})}) + content


def chat(alias: str, headers: Mapping[str, str] | None = None, **fields: Any) -> bytes:
    """A whole chat completion request."""
    body = {"model": alias, "messages": [{"role": "user", "content": "ping"}], **fields}
    return post("/v1/chat/completions", body, headers)


class Wire:
    """One connection; a context manager."""

    def __init__(self, url: str, *, timeout_s: float = WAIT_S) -> None:
        place = urlsplit(url)
        self._socket = socket.create_connection((place.hostname, place.port), timeout_s)
        self._held = bytearray()

    def send(self, data: bytes) -> None:
        """Write all of it."""
        self._socket.sendall(data)

    def send_eof(self) -> None:
        """Say that nothing more will be sent, and go on reading."""
        self._socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Close so that the other side gets a reset."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def read_until(self, mark: bytes) -> bytes:
        """What comes, up to and with `mark`. Raises AssertionError when the other side closes."""
        while mark not in self._held:
            piece = self._socket.recv(65536)
            assert piece, f"closed before {mark!r}; there is {bytes(self._held)!r}"
            self._held += piece
        end = self._held.index(mark) + len(mark)
        return self._take(end)

    def read_exactly(self, count: int) -> bytes:
        """The next `count` bytes."""
        while len(self._held) < count:
            piece = self._socket.recv(65536)
            assert piece, f"closed after {len(self._held)} of {count} bytes"
            self._held += piece
        return self._take(count)

    def rest(self) -> bytes:
        """Everything until the other side closes; a reset counts as closing."""
        try:
            while piece := self._socket.recv(65536):
                self._held += piece
        except ConnectionResetError:
            pass
        return self._take(len(self._held))

    def answer_head(self) -> tuple[int, dict[str, str]]:
        """Status and headers (names in lower case) of the next answer, 1xx included."""
        lines = self.read_until(b"\r\n\r\n").decode("latin-1").split("\r\n")
        named = (line.partition(":") for line in lines[1:] if line)
        return int(lines[0].split()[1]), {n.lower(): value.strip() for n, _, value in named}

    def answer(self) -> Answer:
        """The next whole answer, 1xx skipped."""
        status, headers = self.answer_head()
        while status < 200:
            status, headers = self.answer_head()
        if headers.get("transfer-encoding") == "chunked":
            body = b"".join(iter(self.chunk, b""))
        elif "content-length" in headers:
            body = self.read_exactly(int(headers["content-length"]))
        else:
            body = self.rest()
        return Answer(status, headers, body)

    def chunk(self) -> bytes:
        """The next piece of a chunked body; the last one is empty."""
        size = int(self.read_until(b"\r\n"), 16)
        return self.read_exactly(size + 2)[:-2]

    def event(self) -> str:
        """The next SSE event of a chunked answer whose chunks end with events."""
        return self.read_until(b"\n\n").decode().strip()

    def _take(self, count: int) -> bytes:
        taken = bytes(self._held[:count])
        del self._held[:count]
        return taken

    def __enter__(self) -> Wire:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
