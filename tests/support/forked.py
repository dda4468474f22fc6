"""Children of the test process, forked as workers are. I/O.

They report over pipes and wait at a gate for each other, so that the order of what matters is fixed
by reads that block, never by time. Whoever leaves a context here leaves no process behind.
"""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any, BinaryIO, NoReturn

Report = Callable[[bytes], Any]
"""How a child tells its parent something; it waits while the pipe is full."""

Work = Callable[[Report], None]
"""What a child does before it exits."""


class Child:
    """A forked process and what it reports."""

    def __init__(self, work: Work) -> None:
        reader, writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(reader)
            _run_and_exit(lambda: work(lambda report: os.write(writer, report)))
        os.close(writer)
        self.reports: BinaryIO = os.fdopen(reader, "rb", buffering=0)
        self._status: int | None = None

    def kill(self) -> None:
        """SIGKILL; returns when the process is gone."""
        if self._status is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            self.wait()

    def wait(self) -> int:
        """The exit status; below 0 for a signal."""
        if self._status is None:
            self._status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self._status

    def all(self) -> bytes:
        """Everything it will have reported when it has ended, well."""
        reports = self.reports.read()
        assert self.wait() == 0
        return reports


def _run_and_exit(work: Callable[[], None]) -> NoReturn:
    status = 1
    try:
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


@contextmanager
def forked(work: Work) -> Iterator[Child]:
    """A child that does `work`; killed on leaving if it has not ended."""
    child = Child(work)
    try:
        yield child
    finally:
        child.kill()
        child.reports.close()


@contextmanager
def together(work: Callable[[int, Report], None], *, count: int) -> Iterator[list[Child]]:
    """Children with numbers that all begin when all are there."""
    gate, opener = os.pipe()

    def begin(number: int, report: Report) -> None:
        os.close(opener)
        report(b"!")
        os.read(gate, 1)
        work(number, report)

    with ExitStack() as stack:
        children = [stack.enter_context(forked(partial(begin, number))) for number in range(count)]
        for child in children:
            assert child.reports.read(1) == b"!"
        os.close(gate)
        os.close(opener)
        yield children
