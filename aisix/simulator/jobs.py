"""Work that takes its time: an object that moves on each time it is looked at.

A job is done after as many polls as the script of its creation says (`polls<N>`, otherwise two),
so tests can foretell every state and nothing depends on a clock. Pure.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from aisix.simulator.content import JsonObject
from aisix.simulator.exchange import Call
from aisix.simulator.script import Script

_DEFAULT_POLLS = 2


def polls_of(script: Script) -> int:
    """After how many polls a job is done: at the first one, at the earliest."""
    return _DEFAULT_POLLS if script.polls is None else max(1, script.polls)


@dataclass(slots=True)
class Job:
    """One job: its object as it is shown, and what the end of it adds."""

    shown: JsonObject
    finish: Callable[[Call], JsonObject]
    polls_left: int
    running: str = "in_progress"

    def poll(self, call: Call) -> JsonObject:
        """Move on by one step and show what the job is now."""
        if self.polls_left > 0:
            self.polls_left -= 1
            step = {"status": self.running} if self.polls_left else self.finish(call)
            self.shown = {**self.shown, **step}
        return self.shown

    def cancel(self, call: Call, stamp: str | None = None) -> JsonObject:
        """End it now, unless it is done; `stamp` is the field that says when."""
        if self.polls_left > 0:
            self.polls_left = 0
            when = {stamp: call.now} if stamp else {}
            self.shown = {**self.shown, "status": "cancelled", **when}
        return self.shown
