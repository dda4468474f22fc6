"""The control half, wired: store, admin, Entra tokens. The first token brings azure-identity.

A gateway of one process builds it beside the data half; otherwise it lives in the control process
(see `aisix.workers`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass

from aisix.admin.service import AdminService
from aisix.admin.verify import Verifier
from aisix.config import Config
from aisix.core.ports import Adapter, Clock, HealthView, SnapshotSink, Transport
from aisix.store.cipher import Cipher, unlock
from aisix.store.database import Database
from aisix.store.resources import SqliteResourceStore
from aisix.upstream.credentials import EntraTokens
from aisix.upstream.tokens import FetchRecorder

_log = logging.getLogger("aisix.control")


@dataclass(frozen=True, slots=True)
class ControlHalf:
    """What is durable or slow."""

    database: Database
    service: AdminService
    tokens: EntraTokens
    transport: Transport
    following: asyncio.Task[None]

    async def close(self) -> None:
        """Finish the write under way, close the rest."""
        self.following.cancel()
        await asyncio.gather(self.following, return_exceptions=True)
        await self.service.close()
        await self.tokens.close()
        await self.transport.close()
        await self.database.close()


async def build_control(
    config: Config,
    *,
    clock: Clock,
    adapters: Mapping[str, Adapter],
    health: HealthView,
    sink: SnapshotSink,
    recorder: FetchRecorder,
    transport: Transport,
) -> ControlHalf:
    """Open the store, publish what it holds, follow it. `transport` is its own from now on.

    Raises StoreUnavailable.
    """
    tokens = EntraTokens(transport=transport, clock=clock, recorder=recorder)
    try:
        database = await Database.open(config.store.path)
        try:
            cipher = await _unlock(config, database)
            service = AdminService(
                SqliteResourceStore(database, cipher),
                sink,
                adapters=adapters,
                health=health,
                tokens=tokens,
                verifier=Verifier(
                    adapters=adapters, transport=transport, tokens=tokens, clock=clock
                ),
                clock=clock,
                seal_key=cipher.derive("response ids"),
            )
            await service.load()
        except BaseException:
            await database.close()
            raise
    except BaseException:
        await transport.close()
        raise
    return ControlHalf(
        database=database,
        service=service,
        tokens=tokens,
        transport=transport,
        following=asyncio.get_running_loop().create_task(service.follow()),
    )


async def _unlock(config: Config, database: Database) -> Cipher:
    unlocked = await unlock(database, key=config.store.encryption_key)
    if unlocked.created:
        _log.info(
            "store.key_created",
            extra={"path": str(unlocked.key_file), "advice": "back it up with the database"},
        )
    if unlocked.exposed:
        _log.warning(
            "store.key_exposed",
            extra={"path": str(unlocked.key_file), "advice": "chmod 600: it opens all secrets"},
        )
    return unlocked.cipher
