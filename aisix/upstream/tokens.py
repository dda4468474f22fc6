"""Keeps one access token per Entra ID credential usable, at the least number of fetches. asyncio.

Knows no token endpoint: how to fetch is a constructor argument. Rules:

* a usable token costs a dictionary look-up and a comparison;
* one fetch at a time per credential, shared by all who wait, and no waiter's departure ends it;
* a token in the last part of its life is renewed behind the requests that use it, and is kept
  until its expiry when that fails;
* after a failure the authority is left alone for a while, and callers get the same failure;
* a token that Azure refused is replaced by one forced fetch, at most every 30 s per credential.

Renewal is driven by use: a credential that nobody uses is not refreshed, and is forgotten.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

from aisix.core.ports import Clock, TokenLease, TokenState
from aisix.core.resources import TokenCredential
from aisix.errors import CredentialRefused, CredentialUnavailable, UpstreamFailed

EXPIRY_MARGIN_S = 60.0
"""A token is not handed out during its last seconds: the request has to arrive with it."""

REFRESH_AHEAD_S = 300.0
REFRESH_AHEAD_SHARE = 0.2
JITTER_SHARE = 0.05

FORCED_EVERY_S = 30.0
REFUSED_HOLD_OFF_S = 30.0
FIRST_HOLD_OFF_S = 5.0
MAX_HOLD_OFF_S = 30.0
FORGET_AFTER_S = 3600.0

_log = logging.getLogger("aisix.upstream")


@dataclass(frozen=True, slots=True)
class Grant:
    """A token fresh from the authority. Durations count from now."""

    token: str = field(repr=False)
    lifetime_s: float
    refresh_in_s: float | None = None


class FetchFailed(Exception):
    """The authority gave no token. `refused` means that the credential itself is wrong.

    `message` is for callers, `detail` for the log; neither holds a secret.
    """

    def __init__(
        self, message: str, *, refused: bool, detail: str, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.refused = refused
        self.detail = detail
        self.retry_after_s = retry_after_s


class FetchRecorder(Protocol):
    """The part of core.ports.Recorder that is needed here."""

    def token_fetched(self, *, ok: bool, reason: str) -> None:
        """The token authority was asked."""


Fetch = Callable[[TokenCredential], Awaitable[Grant]]


@dataclass(frozen=True, slots=True)
class _Failure:
    message: str
    detail: str
    refused: bool
    at: float
    """UTC epoch seconds."""

    def error(self, retry_after_s: float) -> UpstreamFailed:
        """A new exception each time: one instance raised to many waiters would mix their traces."""
        if self.refused:
            return CredentialRefused(self.message, detail=self.detail, should_retry=False)
        wait = retry_after_s if retry_after_s > 0 else None
        return CredentialUnavailable(self.message, detail=self.detail, retry_after_s=wait)


@dataclass(slots=True)
class _Entry:
    """What is known of one credential. Times are monotonic seconds but `expires_at_utc`; 0.0 =
    never."""

    used_at: float
    token: str | None = field(default=None, repr=False)
    refresh_at: float = 0.0
    usable_until: float = 0.0
    expires_at: float = 0.0
    expires_at_utc: float = 0.0
    fetch: asyncio.Task[None] | None = None
    failure: _Failure | None = None
    failures: int = 0
    hold_off_until: float = 0.0
    forced_at: float | None = None

    def accept(self, grant: Grant, clock: Clock, jitter: float) -> None:
        """Take a new token. Short lives get proportionally short margins."""
        life, now = grant.lifetime_s, clock.monotonic()
        margin = min(EXPIRY_MARGIN_S, life * REFRESH_AHEAD_SHARE)
        ahead = max(life * REFRESH_AHEAD_SHARE, min(REFRESH_AHEAD_S, life / 2))
        refresh_in = life - ahead
        if grant.refresh_in_s is not None:
            refresh_in = min(refresh_in, max(0.0, grant.refresh_in_s))
        self.token = grant.token
        self.expires_at = now + life
        self.expires_at_utc = clock.time() + life
        self.usable_until = now + life - margin
        # early, never late: several gateways with one credential must not all come at once
        self.refresh_at = now + max(0.0, refresh_in - jitter * JITTER_SHARE * life)
        self.failure = None
        self.failures = 0
        self.hold_off_until = 0.0

    def reject(self, failure: FetchFailed, clock: Clock) -> None:
        """Remember a failure, and how long to leave the authority alone."""
        self.failure = _Failure(failure.message, failure.detail, failure.refused, clock.time())
        if failure.refused:
            wait = REFUSED_HOLD_OFF_S
        else:
            wait = min(MAX_HOLD_OFF_S, FIRST_HOLD_OFF_S * 2 ** min(self.failures, 8))
            wait = max(wait, min(failure.retry_after_s or 0.0, 2 * MAX_HOLD_OFF_S))
        self.failures += 1
        self.hold_off_until = clock.monotonic() + wait


class TokenKeeper:
    """A TokenSource over any way to fetch. Belongs to one event loop."""

    def __init__(
        self,
        fetch: Fetch,
        *,
        clock: Clock,
        recorder: FetchRecorder,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._fetch = fetch
        self._clock = clock
        self._recorder = recorder
        self._jitter = jitter
        # all fields of a credential are its key: a rotated secret never meets the old token
        self._entries: dict[TokenCredential, _Entry] = {}
        self._closed = False

    async def token(self, credential: TokenCredential) -> str:
        """A usable access token. Raises CredentialRefused, CredentialUnavailable."""
        now = self._clock.monotonic()
        entry = self._entries.get(credential) or self._enter(credential, now)
        entry.used_at = now
        if entry.token is not None and now < entry.usable_until:
            if now >= entry.refresh_at:
                self._start(credential, entry, reason="refresh")
            return entry.token
        await self._wait(credential, entry, reason="cold" if entry.token is None else "refresh")
        if entry.token is not None and self._clock.monotonic() < entry.expires_at:
            return entry.token
        raise self._error(entry)

    async def renew(self, credential: TokenCredential, rejected: str) -> str:
        """A token other than `rejected`, which Azure refused.

        Raises CredentialRefused, CredentialUnavailable when there is no other one: the authority
        fails, gives the same token again, or was asked for this less than 30 s ago. The caller
        then does best to pass Azure's own refusal on.
        """
        now = self._clock.monotonic()
        entry = self._entries.get(credential) or self._enter(credential, now)
        entry.used_at = now
        if entry.token in {None, rejected}:
            if entry.fetch is None and self._forced_recently(entry, now):
                raise _same_token()
            await self._wait(credential, entry, reason="rejected")
            if entry.failure is not None:
                raise self._error(entry)
        if entry.token is None or entry.token == rejected:
            raise _same_token()
        return entry.token

    def lease(self, credential: TokenCredential) -> TokenLease:
        """How long the token handed out last may be kept by its user."""
        entry = self._entries.get(credential)
        if entry is None:
            return TokenLease(0.0, 0.0, 0.0)
        now = self._clock.monotonic()
        times = (entry.refresh_at, entry.usable_until, entry.expires_at)
        return TokenLease(*[max(0.0, time - now) for time in times])

    def state(self, credential: TokenCredential) -> TokenState:
        """What an operator may know of a credential's token. Asking does not count as a use."""
        entry = self._entries.get(credential)
        if entry is None:
            return TokenState()
        alive = entry.token is not None and self._clock.monotonic() < entry.expires_at
        failure = entry.failure
        return TokenState(
            expires_at=entry.expires_at_utc if alive else None,
            failure=None if failure is None else (failure.at, failure.detail),
        )

    async def close(self) -> None:
        """End running fetches and forget all tokens. Idempotent."""
        self._closed = True
        tasks = [entry.fetch for entry in self._entries.values() if entry.fetch is not None]
        self._entries.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _enter(self, credential: TokenCredential, now: float) -> _Entry:
        # only a new credential makes the table grow, so this is the one place to shorten it
        stale = [
            known
            for known, entry in self._entries.items()
            if entry.fetch is None and now - entry.used_at > FORGET_AFTER_S
        ]
        for known in stale:
            del self._entries[known]
        return self._entries.setdefault(credential, _Entry(used_at=now))

    @staticmethod
    def _forced_recently(entry: _Entry, now: float) -> bool:
        return entry.forced_at is not None and now - entry.forced_at < FORCED_EVERY_S

    def _start(
        self, credential: TokenCredential, entry: _Entry, *, reason: str
    ) -> asyncio.Task[None] | None:
        """The running fetch, a new one, or None while the authority is left alone."""
        if entry.fetch is not None:
            return entry.fetch
        now = self._clock.monotonic()
        if self._closed or now < entry.hold_off_until:
            return None
        if reason == "rejected":
            entry.forced_at = now
        entry.fetch = asyncio.create_task(self._run(credential, entry, reason))
        return entry.fetch

    async def _wait(self, credential: TokenCredential, entry: _Entry, *, reason: str) -> None:
        task = self._start(credential, entry, reason=reason)
        if task is not None:
            # not `await task`: a waiter may be cancelled, and the fetch goes on for the others
            await asyncio.wait({task})

    async def _run(self, credential: TokenCredential, entry: _Entry, reason: str) -> None:
        """One fetch. Never raises: who waits reads the outcome from `entry`."""
        ok = False
        try:
            grant = await self._fetch(credential)
            entry.accept(grant, self._clock, self._jitter())
            ok = True
        except FetchFailed as failure:
            entry.reject(failure, self._clock)
            _log.warning(
                "token.failed",
                extra={
                    "reason": reason,
                    "credential": credential.kind,
                    **credential.names,
                    "detail": failure.detail,
                },
            )
        except Exception:
            # a defect of ours must not leave everyone waiting on a dead fetch
            _log.exception("token.crashed", extra={"reason": reason})
            entry.reject(_crashed(), self._clock)
        finally:
            entry.fetch = None
        self._recorder.token_fetched(ok=ok, reason=reason)

    def _error(self, entry: _Entry) -> UpstreamFailed:
        if entry.failure is None:
            return CredentialUnavailable(
                "upstream authentication failed: no token could be had",
                detail="closing" if self._closed else "the token expired on arrival",
            )
        return entry.failure.error(entry.hold_off_until - self._clock.monotonic())


def _same_token() -> CredentialRefused:
    return CredentialRefused(
        "upstream authentication failed",
        detail="Azure refused the access token, and no other one can be had yet",
        should_retry=False,
    )


def _crashed() -> FetchFailed:
    return FetchFailed(
        "upstream authentication failed: the token could not be fetched",
        refused=False,
        detail="unforeseen error while fetching a token; its traceback is in the log",
    )
