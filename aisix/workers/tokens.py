"""A worker's tokens: asked of the control process, kept as long as it says. asyncio.

Fetching is the control process's: one fetch per host, not per worker. A token is kept here until
it is due for renewal and a while longer: it is asked for anew behind the requests that use it, and
used until its expiry when nobody answers. One question at a time per credential.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Protocol

from aisix.core.ports import Clock
from aisix.core.resources import TokenCredential
from aisix.errors import CredentialRefused, CredentialUnavailable, UpstreamFailed
from aisix.workers.link import TokenGiven, TokenRefused

ASK_AGAIN_S = 1.0
"""Least time between two questions behind the requests."""


class Source(Protocol):
    """Where tokens are asked for: the uplink."""

    async def ask(
        self, credential: TokenCredential, rejected: str | None
    ) -> TokenGiven | TokenRefused:
        """A token or a refusal. Raises CredentialUnavailable."""


@dataclass(slots=True)
class _Kept:
    """A token and its times, in monotonic seconds."""

    token: str = field(repr=False)
    renew_at: float
    usable_until: float
    expires_at: float


_Question = tuple[TokenCredential, str | None]


class LinkedTokens:
    """Implements TokenSource over the link."""

    def __init__(self, source: Source, clock: Clock) -> None:
        self._source = source
        self._clock = clock
        self._kept: dict[TokenCredential, _Kept] = {}
        self._questions: dict[_Question, asyncio.Task[str]] = {}

    def __len__(self) -> int:
        """Tokens held."""
        return len(self._kept)

    async def token(self, credential: TokenCredential) -> str:
        """A usable access token. Raises CredentialRefused, CredentialUnavailable."""
        now = self._clock.monotonic()
        kept = self._kept.get(credential)
        if kept is not None and now < kept.usable_until:
            if now >= kept.renew_at:
                kept.renew_at = now + ASK_AGAIN_S
                self._question(credential, None)
            return kept.token
        try:
            return await self._answer(credential, None)
        except UpstreamFailed:
            if kept is not None and self._clock.monotonic() < kept.expires_at:
                return kept.token
            raise

    async def renew(self, credential: TokenCredential, rejected: str) -> str:
        """A token other than `rejected`. Raises CredentialRefused, CredentialUnavailable."""
        kept = self._kept.get(credential)
        now = self._clock.monotonic()
        if kept is not None and kept.token != rejected and now < kept.usable_until:
            return kept.token
        return await self._answer(credential, rejected)

    async def close(self) -> None:
        """Forget all. Idempotent."""
        self._kept.clear()
        questions = list(self._questions.values())
        for task in questions:
            task.cancel()
        await asyncio.gather(*questions, return_exceptions=True)

    async def _answer(self, credential: TokenCredential, rejected: str | None) -> str:
        # shielded: a waiter may be cancelled, and the question stands for the others
        return await asyncio.shield(self._question(credential, rejected))

    def _question(self, credential: TokenCredential, rejected: str | None) -> asyncio.Task[str]:
        key = (credential, rejected)
        task = self._questions.get(key)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._ask(credential, rejected))
            self._questions[key] = task
            task.add_done_callback(lambda done: self._answered(key, done))
        return task

    def _answered(self, key: _Question, task: asyncio.Task[str]) -> None:
        self._questions.pop(key, None)
        if not task.cancelled():
            task.exception()  # asked behind the requests: nobody may be waiting for it

    async def _ask(self, credential: TokenCredential, rejected: str | None) -> str:
        said = await self._source.ask(credential, rejected)
        if isinstance(said, TokenRefused):
            raise _error(said)
        self._keep(credential, said)
        return said.token

    def _keep(self, credential: TokenCredential, given: TokenGiven) -> None:
        now = self._clock.monotonic()
        if credential not in self._kept:
            # only a new credential makes the table grow, so this is the one place to shorten it
            for old in [key for key, kept in self._kept.items() if now >= kept.expires_at]:
                del self._kept[old]
        self._kept[credential] = _Kept(
            token=given.token,
            renew_at=now + max(given.refresh_in_s, ASK_AGAIN_S),
            usable_until=now + given.usable_s,
            expires_at=now + given.expires_in_s,
        )


def _error(said: TokenRefused) -> UpstreamFailed:
    kind = CredentialRefused if said.refused else CredentialUnavailable
    return kind(
        said.message,
        detail=said.detail,
        retry_after_s=said.retry_after_s,
        should_retry=said.should_retry,
    )
