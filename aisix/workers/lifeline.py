"""A pipe from the supervisor to one child: it carries orders, and its end is the supervisor's.

Children obey this pipe and no signal: a terminal or an init system that signals all processes at
once would otherwise stop each of them twice, and twice means "at once".
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable

_ORDERS = {signal.SIGTERM: b"t", signal.SIGINT: b"i"}
_SIGNALS = {order[0]: number for number, order in _ORDERS.items()}


class Lifeline:
    """Both ends; each process closes the one that it has no use for."""

    def __init__(self) -> None:
        self._reading, self._writing = os.pipe()

    def order(self, number: int) -> None:
        """Supervisor: have the child act as on signal `number`. A dead child hears nothing."""
        try:
            os.write(self._writing, _ORDERS[signal.Signals(number)])
        except BrokenPipeError:
            return

    def let_go(self) -> None:
        """Close the supervisor's end; in a fork of it this leaves the pipe to the others."""
        os.close(self._writing)

    def drop(self) -> None:
        """Close the child's end, in the supervisor."""
        os.close(self._reading)

    def watch(self, on_signal: Callable[[int], None], on_orphaned: Callable[[], None]) -> None:
        """Child: pass on what comes, in the running loop."""
        loop = asyncio.get_running_loop()

        def ready() -> None:
            said = os.read(self._reading, 64)
            if not said:
                loop.remove_reader(self._reading)
                on_orphaned()
            for order in said:
                on_signal(_SIGNALS[order])

        loop.add_reader(self._reading, ready)

    def unwatch(self) -> None:
        """Child: hear no more."""
        asyncio.get_running_loop().remove_reader(self._reading)
        os.close(self._reading)
