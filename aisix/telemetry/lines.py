"""Finished log lines on their way to a descriptor: at once, or in batches by a thread. I/O.

A full pipe or a closed one never stops a request; what cannot be written is counted and dropped.
Processes that share a pipe do not mix their lines: one write to it is whole lines of PIPE_BUF
bytes together at most, which the kernel never splits (only a single longer line may be torn).
"""

from __future__ import annotations

import logging
import os
import select
import stat
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import TextIO

from aisix.telemetry.redaction import Redactor

BATCH_S = 0.25
"""A line that is put waits at most this long for others; only SIGKILL loses it meanwhile."""

BATCH_LINES = 256
"""So many lines are written at once, however young."""

FLUSH_TIMEOUT_S = 1.0
"""How long a writer that must not hang waits for a reader."""

_COALESCE_S = 0.005


class LineHandler(logging.Handler):
    """Renders records and writes each line where it is logged, for a process that must have no
    thread because it is going to fork. Never raises; stops for FLUSH_TIMEOUT_S at most."""

    def __init__(self, stream: TextIO, formatter: logging.Formatter, redactor: Redactor) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self.redactor = redactor
        self.dropped = 0
        self.closed = False
        self.stream = stream
        self._outlet = Outlet(stream)
        self._dropping = threading.Lock()
        self._on_dropped: Callable[[int], None] = _nobody

    def emit(self, record: logging.LogRecord) -> None:
        """Send the line of a record; called with the handler's lock held."""
        try:
            line = self.format(record)
        except Exception:
            # a record that cannot be rendered is lost, the request that logged it is not
            self._drop(1)
            return
        self._send(line + "\n")

    def put(self, line: str) -> None:
        """Send a finished line, its line break included. It may wait BATCH_S for others."""
        self.acquire()
        try:
            self._send(line)
        finally:
            self.release()

    def flush(self, timeout_s: float = FLUSH_TIMEOUT_S) -> None:
        """Wait until what was logged so far is written or lost, at most `timeout_s`."""

    def close(self) -> None:
        """Lines that come later are lost, and counted."""
        self.closed = True
        super().close()

    def on_dropped(self, tell: Callable[[int], None]) -> None:
        """Call `tell` with the number of lines lost so far and then with each further loss; any
        thread calls it, one at a time."""
        with self._dropping:
            self._on_dropped = tell
            if self.dropped:
                tell(self.dropped)

    def _send(self, line: str) -> None:
        if self.closed:
            self._drop(1)
        else:
            self._write([line], patience_s=FLUSH_TIMEOUT_S)

    def _write(self, lines: list[str], *, patience_s: float | None = None) -> None:
        for piece in self._outlet.pieces(lines):
            try:
                self._outlet.write("".join(piece), patience_s)
            except (OSError, ValueError):  # a broken pipe, a closed stream, a reader that sleeps
                self._drop(len(piece))

    def _drop(self, count: int) -> None:
        with self._dropping:
            self.dropped += count
            self._on_dropped(count)


class BatchingHandler(LineHandler):
    """Renders records where they are logged and leaves the writing to a thread of its own: records
    go without delay, lines that are put within BATCH_S, all in the order of logging."""

    def __init__(
        self, stream: TextIO, formatter: logging.Formatter, redactor: Redactor, *, waiting: int
    ) -> None:
        super().__init__(stream, formatter, redactor)
        self._limit = waiting
        self._pid = os.getpid()
        self._lines: deque[str] = deque()
        self._flushing: deque[threading.Event] = deque()
        self._growing = False
        self._something = threading.Event()
        self._hurry = threading.Event()
        self._closing = threading.Event()
        self._writer = threading.Thread(target=self._run, name="aisix-log", daemon=True)
        self._writer.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue the line of a record; called with the handler's lock held."""
        if len(self._lines) >= self._limit or self.closed:
            self._drop(1)
        else:
            super().emit(record)

    def put(self, line: str) -> None:
        """Queue a finished line, its line break included, to be written within BATCH_S."""
        waiting = len(self._lines)
        if waiting >= self._limit or self.closed:
            self._drop(1)
            return
        self._lines.append(line)
        if not self._growing:
            self._growing = True
            self._something.set()
        elif waiting >= BATCH_LINES and not self._hurry.is_set():
            self._hurry.set()

    def flush(self, timeout_s: float = FLUSH_TIMEOUT_S) -> None:
        """Wait until what was logged so far is written or lost, at most `timeout_s`."""
        if self._writer.is_alive():
            written = threading.Event()
            self._flushing.append(written)
            self._urge()
            written.wait(timeout_s)

    def close(self) -> None:
        """Write what waits and end the thread; a stuck one is left behind, it holds nothing up.

        In a fork of the process that made the handler nothing is written: what waits is the
        parent's to write.
        """
        if not self.closed:
            self.closed = True
            if self._pid == os.getpid():
                self._closing.set()
                self._urge()
                self._writer.join(FLUSH_TIMEOUT_S)
        super().close()

    def _send(self, line: str) -> None:
        self._lines.append(line)
        self._urge()

    def _urge(self) -> None:
        """Have what waits written now."""
        self._hurry.set()
        if not self._something.is_set():
            self._something.set()

    def _run(self) -> None:
        while True:
            self._something.wait()
            self._hurry.wait(BATCH_S)
            self._something.clear()
            self._hurry.clear()
            self._growing = False  # before the lines are taken: a later one starts the next batch
            flushing = len(self._flushing)
            while self._lines:
                # few at a time: what is held while the reader sleeps waits beside the bound
                count = min(len(self._lines), BATCH_LINES)
                self._write([self._lines.popleft() for _ in range(count)])
            for _ in range(flushing):
                self._flushing.popleft().set()
            if self._closing.is_set() and not self._lines:
                return
            # records that come in a burst share a write; the loop keeps the interpreter meanwhile
            self._closing.wait(_COALESCE_S)


class Outlet:
    """A stream that takes whole lines."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._fd = _descriptor(stream)
        self._is_pipe = self._fd is not None and stat.S_ISFIFO(os.fstat(self._fd).st_mode)

    def pieces(self, lines: list[str]) -> Iterator[list[str]]:
        """`lines`, divided into what is written in one call each."""
        if not self._is_pipe:
            yield lines
            return
        piece: list[str] = []
        size = 0
        for line in lines:
            length = len(line) if line.isascii() else len(_encoded(line))
            if size + length > select.PIPE_BUF and piece:
                yield piece
                piece, size = [], 0
            piece.append(line)
            size += length
        yield piece

    def write(self, text: str, patience_s: float | None) -> None:
        """Write a piece; wait for a slow reader, for ever if `patience_s` is None.

        Raises OSError, ValueError.
        """
        if self._fd is None:
            self._stream.write(text)
            self._stream.flush()
            return
        if self._stream.closed:  # its number may belong to a socket by now
            raise ValueError("the log's stream is closed")
        # past the stream's own buffer: were this thread stuck in it with its lock held, the
        # interpreter would abort when it flushes the standard streams at exit
        rest = memoryview(_encoded(text))
        while rest:
            if patience_s is not None:
                _wait_writable(self._fd, patience_s)
            try:
                rest = rest[os.write(self._fd, rest) :]
            except BlockingIOError:  # somebody made the shared pipe non-blocking
                _wait_writable(self._fd, patience_s)


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")


def _wait_writable(fd: int, patience_s: float | None) -> None:
    """Until a write of PIPE_BUF bytes would not block. Raises TimeoutError."""
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    if not poll.poll(None if patience_s is None else patience_s * 1000):
        raise TimeoutError("nobody reads the log")


def _descriptor(stream: TextIO) -> int | None:
    try:
        return stream.fileno()
    except (OSError, ValueError, AttributeError):  # not a file: a buffer in memory
        return None


def _nobody(_count: int) -> None:
    """Nobody is told."""
