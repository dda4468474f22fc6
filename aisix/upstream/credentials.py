"""The gateway's Entra ID tokens. azure-identity is loaded when the first one is wanted. asyncio.

It costs 11 MB and a tenth of a second, and a gateway whose upstreams take resource keys never needs
it.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from typing import TYPE_CHECKING

from aisix.core.ports import Clock, Transport
from aisix.core.resources import TokenCredential
from aisix.upstream.tokens import FetchRecorder, Grant, TokenKeeper

if TYPE_CHECKING:
    from aisix.upstream.authority import Authority

DEADLINE_S = 10.0
"""For one whole fetch, connection included."""


class EntraTokens(TokenKeeper):
    """The TokenSource of the gateway."""

    def __init__(
        self,
        *,
        transport: Transport,
        clock: Clock,
        recorder: FetchRecorder,
        deadline_s: float = DEADLINE_S,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        super().__init__(self._ask, clock=clock, recorder=recorder, jitter=jitter)
        self._transport = transport
        self._deadline_s = deadline_s
        _silence()

    async def _ask(self, credential: TokenCredential) -> Grant:
        # in a thread: whoever is being served meanwhile must not wait for an import
        kind = await asyncio.to_thread(_load)
        return await kind(self._transport, self._deadline_s).fetch(credential)


def _load() -> type[Authority]:
    from aisix.upstream.authority import Authority  # noqa: PLC0415 - see the module's text

    return Authority


def _silence() -> None:
    """Azure's loggers are never heard: they repeat the authority's text, and at debug level more.

    What they have to say is in our own `token.failed` line.
    """
    for name in ("azure", "msal"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
