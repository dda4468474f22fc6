"""Reads the bytes of one caller: off its socket while that is plain, by IOStream otherwise. I/O.

IOStream is made for protocols that ask for so many bytes or for a delimiter; for "what has come" it
runs through its buffer, its states and two reads of the socket. A plain socket needs none of that:
one reader of the loop stays in place as long as somebody reads, and each event is one `recv`.

Invariants: one read at a time. The loop has one reader per socket, so IOStream must not listen to
it meanwhile: before anything that may make it do so (a write that may wait, a handler of Tornado's)
`hand_back` gives it the socket for good. A closed socket is never left registered with the loop,
where its number would meet a stranger: closing goes through `close`.
"""

from __future__ import annotations

import asyncio
import socket
from functools import partial
from typing import cast

from tornado.concurrent import Future
from tornado.iostream import IOStream, StreamClosedError

READ_BYTES = 64 * 1024


class Intake:
    """What a connection reads with. `plain` is False for TLS."""

    __slots__ = ("_listening", "_loop", "_reading", "_socket", "_stream")

    def __init__(self, stream: IOStream, *, plain: bool) -> None:
        self._stream = stream
        self._loop = asyncio.get_running_loop()
        self._socket: socket.socket | None = stream.socket if plain else None
        self._reading: Future[bytes] | None = None
        self._listening = False

    def read(self) -> Future[bytes]:
        """What comes next, at most 64 KiB. The future fails with StreamClosedError at the end.

        Raises StreamClosedError.
        """
        if self._socket is None:
            return self._read_stream()
        if self._stream.closed():
            raise StreamClosedError
        reading = self._reading = self._loop.create_future()
        if not self._listening:
            self._listening = True
            self._loop.add_reader(self._socket, self._on_readable)
        return reading

    def hand_back(self) -> None:
        """Let IOStream read from now on; a read that waits goes on there."""
        if self._socket is None:
            return
        self._stop_listening()
        self._socket = None
        reading, self._reading = self._reading, None
        if reading is not None and not reading.done():
            try:
                self._read_stream().add_done_callback(partial(_pass_on, reading))
            except StreamClosedError as error:
                _fail(reading, error)

    def close(self) -> None:
        """Close the connection. Idempotent."""
        self._stop_listening()
        self._stream.close()
        reading, self._reading = self._reading, None
        if reading is not None and not reading.done():
            _fail(reading, StreamClosedError())

    def _read_stream(self) -> Future[bytes]:
        try:
            reading = self._stream.read_bytes(READ_BYTES, partial=True)
        except StreamClosedError:
            raise
        except (
            OSError
        ) as error:  # it reads at once, and not every broken connection is a reset to it
            raise StreamClosedError(error) from error
        return cast("Future[bytes]", reading)  # declared as an Awaitable

    def _on_readable(self) -> None:
        reading = self._reading
        if reading is None or reading.done() or self._socket is None:
            self._stop_listening()  # nobody reads now, and the event would come again and again
            return
        try:
            data = self._socket.recv(READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""  # reset: an end like any
        if data:
            self._reading = None
            reading.set_result(data)
        else:
            self.close()

    def _stop_listening(self) -> None:
        if self._listening and self._socket is not None:
            self._listening = False
            self._loop.remove_reader(self._socket)


def _pass_on(reading: Future[bytes], read: Future[bytes]) -> None:
    """What the stream has read, to who began to wait before it was the stream's to read."""
    if read.cancelled():
        return
    error = read.exception()
    if reading.done():
        pass
    elif error is None:
        reading.set_result(read.result())
    else:
        _fail(reading, error)


def _fail(reading: Future[bytes], error: BaseException) -> None:
    reading.set_exception(error)
    reading.exception()  # seen, whether anybody waits for it or not
