"""The wire between the control process and its workers: messages over a Unix socket. asyncio.

A message is its length and a pickle. Pickle would run what a stranger sends, so nothing is read
before the peer has shown that it is one of us: the kernel says under which user it runs, and its
first bytes are a secret that only forks of the supervisor know. The socket has an abstract name of
128 random bits and is bound by the supervisor, so that it is there while the control process is
not: workers that connect meanwhile wait in its queue.
"""

from __future__ import annotations

import asyncio
import hmac
import os
import pickle
import secrets
import socket
import struct
from dataclasses import dataclass, field

from aisix.core.resources import Alias, ApiKey, Deployment, TokenCredential
from aisix.core.snapshot import Snapshot

BACKLOG = 128
GREETING_S = 2.0
"""How long a new peer may take to show who it is."""

MAX_MESSAGE_BYTES = 256 * 1024 * 1024
MAX_WAITING_BYTES = 2 * MAX_MESSAGE_BYTES
"""A peer that reads nothing while so much waits for it is cut off."""

_COOKIE_BYTES = 32
_LENGTH = struct.Struct("!I")
_PEER = struct.Struct("3i")


# ── messages ────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Hello:
    """Worker: I am number `worker`."""

    worker: int


@dataclass(frozen=True, slots=True)
class Publication:
    """Control: serve by these resources from now on. `serial` numbers the publications."""

    serial: int
    revision: int
    taken_at: float
    keys: tuple[ApiKey, ...] = field(repr=False)
    aliases: tuple[Alias, ...]
    homes: tuple[Deployment, ...] = ()
    seal_key: bytes = field(repr=False, default=b"")

    @classmethod
    def of(cls, serial: int, snapshot: Snapshot) -> Publication:
        """What a snapshot is made of: its own mappings cannot be pickled."""
        keys = tuple(snapshot.keys_by_hash.values())
        return cls(
            serial,
            snapshot.revision,
            snapshot.taken_at,
            keys,
            snapshot.every_alias(),
            tuple(snapshot.homes.values()),
            snapshot.seal_key,
        )

    def snapshot(self) -> Snapshot:
        """The same snapshot."""
        return Snapshot.build(
            revision=self.revision,
            taken_at=self.taken_at,
            keys=self.keys,
            aliases=self.aliases,
            homes=self.homes,
            seal_key=self.seal_key,
        )


@dataclass(frozen=True, slots=True)
class Applied:
    """Worker: publication `serial` is effective here."""

    serial: int


@dataclass(frozen=True, slots=True)
class HealthReport:
    """Worker: how an alias's upstream fares as seen from here."""

    alias_name: str
    level: int
    failure: tuple[float, str] | None


@dataclass(frozen=True, slots=True)
class TokenWanted:
    """Worker: a token, please; other than `rejected` if that is set."""

    number: int
    credential: TokenCredential
    rejected: str | None = field(repr=False, default=None)


@dataclass(frozen=True, slots=True)
class TokenGiven:
    """Control: the answer. Seconds count from now."""

    number: int
    token: str = field(repr=False)
    refresh_in_s: float
    usable_s: float
    expires_in_s: float


@dataclass(frozen=True, slots=True)
class TokenRefused:
    """Control: there is none; an error's parts, `refused` means CredentialRefused."""

    number: int
    refused: bool
    message: str
    detail: str | None
    retry_after_s: float | None
    should_retry: bool | None


Message = Hello | Publication | Applied | HealthReport | TokenWanted | TokenGiven | TokenRefused


# ── the wire ────────────────────────────────────────────────────────────────────────────────────


class LinkLost(Exception):
    """The peer has gone, or is none of us."""


class Link:
    """A connection on which both sides have shown who they are."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    def send(self, message: Message) -> None:
        """Queue a message; a lost link swallows it, which `receive` will tell."""
        self.send_frame(encode(message))

    def send_frame(self, frame: bytes) -> None:
        """Queue what `encode` made, for several peers."""
        self._writer.write(frame)
        if self._writer.transport.get_write_buffer_size() > MAX_WAITING_BYTES:
            self._writer.transport.abort()

    async def receive(self) -> Message:
        """The next message. Raises LinkLost."""
        try:
            (length,) = _LENGTH.unpack(await self._reader.readexactly(_LENGTH.size))
            if length > MAX_MESSAGE_BYTES:
                raise LinkLost(f"a message of {length} bytes")
            message: Message = pickle.loads(await self._reader.readexactly(length))  # noqa: S301 - see above
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            raise LinkLost(str(error)) from error
        return message

    def close(self) -> None:
        """Send what waits, then close."""
        self._writer.close()

    async def closed(self) -> None:
        """Until it is."""
        try:
            await self._writer.wait_closed()
        except OSError:
            return


class Meeting:
    """Where workers find the control process; made by the supervisor, inherited by all."""

    def __init__(self) -> None:
        self._name = f"\0aisix-{secrets.token_hex(16)}"
        self.cookie = secrets.token_bytes(_COOKIE_BYTES)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.setblocking(False)
        self.socket.bind(self._name)
        self.socket.listen(BACKLOG)

    async def connect(self, worker: int) -> Link:
        """Worker: a link to the control process, which may still be on its way. Raises LinkLost."""
        try:
            reader, writer = await asyncio.open_unix_connection(self._name)
        except OSError as error:
            raise LinkLost(str(error)) from error
        if not _is_ours(writer):
            writer.transport.abort()
            raise LinkLost("the peer runs under another user")
        writer.write(self.cookie)
        link = Link(reader, writer)
        link.send(Hello(worker))
        return link

    async def greet(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> tuple[Link, int]:
        """Control: the link of a new peer and its number. Raises LinkLost."""
        link = Link(reader, writer)
        try:
            async with asyncio.timeout(GREETING_S):
                if not _is_ours(writer):
                    raise LinkLost("the peer runs under another user")
                cookie = await reader.readexactly(_COOKIE_BYTES)
                if not hmac.compare_digest(cookie, self.cookie):
                    raise LinkLost("the peer does not know the password")
                hello = await link.receive()
        except (OSError, EOFError) as error:  # a time-out is an OSError
            raise LinkLost(str(error)) from error
        if not isinstance(hello, Hello):
            raise LinkLost("the peer did not say its number")
        return link, hello.worker

    def close(self) -> None:
        """Give up this process's copy of the listening socket."""
        self.socket.close()


def encode(message: Message) -> bytes:
    """A message as it travels."""
    body = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    return _LENGTH.pack(len(body)) + body


def _is_ours(writer: asyncio.StreamWriter) -> bool:
    peer = writer.get_extra_info("socket").getsockopt(
        socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size
    )
    _, uid, _ = _PEER.unpack(peer)
    return bool(uid == os.geteuid())
