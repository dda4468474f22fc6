"""The record of what the simulator received and what became of it.

Tests wait on it instead of sleeping: every change of a record wakes those who wait. Keeps the
newest `keep` records and counts all of them. No I/O; runs on one event loop.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from aisix.simulator.forms import Part

# phase: receiving ⇄ holding → answering → delayed | hanging | sending | stalled → done
DONE = "done"
# outcome: what became of it once done
COMPLETED = "completed"  # the whole answer went out
CLIENT_CLOSED = "client_closed"  # the caller left first
CUT = "cut"  # the script ended it early
STOPPED = "stopped"  # the simulator was stopped


@dataclass(slots=True, kw_only=True)
class RequestRecord:
    """One request as it came in, and its fate."""

    id: int
    connection: int
    method: str
    version: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    header_list: list[tuple[str, str]]
    received_at: float
    operation: str = ""
    deployment: str = ""
    body: bytes = b""
    body_bytes: int = 0
    body_sha256: str = ""  # of a multipart body, which is not kept whole
    form: tuple[Part, ...] = ()
    script: str = ""
    status: int = 0
    phase: str = "receiving"
    outcome: str = ""
    events_sent: int = 0
    bytes_sent: int = 0
    finished_at: float | None = None
    close_code: int | None = None  # of the caller's Close, in a session

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    def render(self) -> dict[str, Any]:
        """The record as the control endpoint shows it."""
        shown = {name: getattr(self, name) for name in self.__dataclass_fields__}
        shown["body"] = self.body.decode("utf-8", "replace")
        shown["form"] = [part.render() for part in self.form]
        return shown


@dataclass(slots=True, eq=False)
class _Waiter:
    predicate: Callable[[RequestRecord], object]
    count: int
    future: asyncio.Future[list[RequestRecord]]


@dataclass(slots=True)
class Journal:
    """Records, newest last."""

    keep: int
    records: deque[RequestRecord] = field(init=False)
    total: int = 0
    inflight: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    _waiters: list[_Waiter] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.records = deque(maxlen=self.keep)

    def add(self, record: RequestRecord) -> None:
        """Note a request whose head has come in."""
        self.total += 1
        self.inflight += 1
        self.records.append(record)
        self.changed()

    def close(self, record: RequestRecord, outcome: str, now: float) -> None:
        """Note what became of a request; the first word counts."""
        if record.outcome:
            return
        record.outcome, record.phase, record.finished_at = outcome, DONE, now
        self.inflight -= 1
        self.outcomes[outcome] += 1
        self.changed()

    def clear(self) -> None:
        """Forget the records; the counts stay."""
        self.records.clear()

    def changed(self) -> None:
        """Wake those whose condition now holds."""
        if not self._waiters:
            return
        for waiter in list(self._waiters):
            found = self.matching(waiter.predicate)
            if len(found) >= waiter.count:
                self._waiters.remove(waiter)
                if not waiter.future.done():
                    waiter.future.set_result(found)

    def matching(self, predicate: Callable[[RequestRecord], object]) -> list[RequestRecord]:
        """The records that fulfil a condition, oldest first."""
        return [record for record in self.records if predicate(record)]

    async def wait_for(
        self, predicate: Callable[[RequestRecord], object], *, count: int, timeout_s: float
    ) -> list[RequestRecord]:
        """Wait until at least `count` records fulfil the condition, and return them.

        Raises:
            TimeoutError: not within `timeout_s`; the text says what there is instead.
        """
        found = self.matching(predicate)
        if len(found) >= count:
            return found
        waiter = _Waiter(predicate, count, asyncio.get_running_loop().create_future())
        self._waiters.append(waiter)
        try:
            return await asyncio.wait_for(waiter.future, timeout_s)
        except TimeoutError:
            seen = [(r.id, r.path, r.phase, r.outcome, r.bytes_sent) for r in self.records]
            raise TimeoutError(
                f"no {count} matching request(s) within {timeout_s} s; there are: {seen[-20:]}"
            ) from None
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
