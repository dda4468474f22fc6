"""A worker's side of the link: takes snapshots, tells health, asks for tokens. asyncio.

The control process may die and come back: the worker goes on serving by its snapshot, and links
again as soon as there is someone to link to. Reports are held back a little and merged: a storm of
failures is one message.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

from aisix.core.ports import HealthView
from aisix.core.resources import TokenCredential
from aisix.core.snapshot import Snapshot
from aisix.errors import CredentialUnavailable
from aisix.workers.link import (
    Applied,
    HealthReport,
    Link,
    LinkLost,
    Meeting,
    Message,
    Publication,
    TokenGiven,
    TokenRefused,
    TokenWanted,
)

REPORT_EVERY_S = 0.1
RELINK_AFTER_S = 0.05
TOKEN_S = 15.0
"""How long a token is waited for: longer than a fetch from the authority may take."""

_log = logging.getLogger("aisix.workers")

Apply = Callable[[Snapshot], Awaitable[None]]


class Observed(HealthView, Protocol):
    """Health as one worker sees it."""

    def failing(self) -> list[str]:
        """The aliases that have something to tell."""


class Uplink:
    """The link of one worker, whatever becomes of the process at its other end."""

    def __init__(self, *, worker: int, meeting: Meeting) -> None:
        self._worker = worker
        self._meeting = meeting
        self._link: Link | None = None
        self._health: Observed | None = None
        self._wishes: dict[int, asyncio.Future[TokenGiven | TokenRefused]] = {}
        self._wish_number = 0
        self._changed: set[str] = set()
        self._reporting: asyncio.TimerHandle | None = None

    @property
    def linked(self) -> bool:
        """Whether the control process is there and has published."""
        return self._link is not None

    async def run(self, apply: Apply, health: Observed) -> None:
        """Take what is published, tell how `health` changes; until cancelled."""
        self._health = health
        while True:
            try:
                link = await self._meeting.connect(self._worker)
                try:
                    await self._follow(link, apply)
                finally:
                    self._lost()
                    link.close()
            except LinkLost as lost:
                _log.debug("link.lost", extra={"reason": str(lost)})
            await asyncio.sleep(RELINK_AFTER_S)

    async def _follow(self, link: Link, apply: Apply) -> None:
        while True:
            message = await link.receive()
            if isinstance(message, Publication):
                await apply(message.snapshot())
                link.send(Applied(message.serial))
                if self._link is None:
                    self._link = link
                    self._tell_all()
            else:
                self._answered(message)

    # ── health ──

    def note(self, alias_name: str) -> None:
        """The health of an alias changed; told soon."""
        self._changed.add(alias_name)
        if self._reporting is None:
            loop = asyncio.get_running_loop()
            self._reporting = loop.call_later(REPORT_EVERY_S, self._report)

    def _tell_all(self) -> None:
        if self._health is not None:
            self._changed.update(self._health.failing())
        self._report()

    def _report(self) -> None:
        if self._reporting is not None:
            self._reporting.cancel()
            self._reporting = None
        health, link = self._health, self._link
        if health is None or link is None:
            return  # all is told anew when there is a link
        for name in self._changed:
            link.send(HealthReport(name, health.level(name), health.last_failure(name)))
        self._changed.clear()

    # ── tokens ──

    async def ask(
        self, credential: TokenCredential, rejected: str | None, *, timeout_s: float = TOKEN_S
    ) -> TokenGiven | TokenRefused:
        """What the control process says. Raises CredentialUnavailable when it says nothing."""
        if self._link is None:
            raise unavailable("the control process is being restarted")
        self._wish_number += 1
        number = self._wish_number
        answer: asyncio.Future[TokenGiven | TokenRefused]
        answer = asyncio.get_running_loop().create_future()
        self._wishes[number] = answer
        try:
            self._link.send(TokenWanted(number, credential, rejected))
            async with asyncio.timeout(timeout_s):
                return await answer
        except TimeoutError:
            raise unavailable(f"the control process gave none within {timeout_s:g} s") from None
        finally:
            self._wishes.pop(number, None)

    def _answered(self, message: Message) -> None:
        if isinstance(message, TokenGiven | TokenRefused):
            wish = self._wishes.get(message.number)
            if wish is not None and not wish.done():
                wish.set_result(message)

    def _lost(self) -> None:
        self._link = None
        for wish in self._wishes.values():
            if not wish.done():
                wish.set_exception(unavailable("the control process went away"))


def unavailable(detail: str) -> CredentialUnavailable:
    """No token for now, and why."""
    return CredentialUnavailable(
        "upstream authentication failed: no token could be had; try again shortly",
        detail=detail,
        retry_after_s=1.0,
    )
