"""How the gateway's refusals look to clients that are built on openai-python. I/O by the client.

`refused` asks for a chat with an alias and a key, and gives the SDK's exception.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import openai

from tests.clients.programs.reporting import (
    ALIASES,
    BARRED_KEY,
    KEY,
    UNKNOWN_ALIAS,
    UNKNOWN_KEY,
    holds,
    same,
)

Refused = Callable[[str, str], Awaitable[Any]]


async def check_401(refused: Refused) -> None:
    """A key that nobody gave out."""
    error = await refused(ALIASES["chat"], UNKNOWN_KEY)
    same((type(error), error.code), (openai.AuthenticationError, "invalid_api_key"))


async def check_404(refused: Refused) -> None:
    """A model that is none."""
    error = await refused(UNKNOWN_ALIAS, KEY)
    same((type(error), error.code), (openai.NotFoundError, "model_not_found"))


async def check_429(refused: Refused) -> None:
    """A limit of the gateway's, and one of the upstream's."""
    error = await refused(ALIASES["chat"], BARRED_KEY)
    same((type(error), error.code), (openai.RateLimitError, "rate_limit_exceeded"))
    error = await refused(ALIASES["throttled"], KEY)
    same((type(error), error.status_code), (openai.RateLimitError, 429))
    holds(error.code, error)


def check_broken(error: Any, *kinds: type[BaseException]) -> None:
    """A stream that broke off after it began is an error of the API, or one of `kinds`, and no
    lost connection."""
    holds(isinstance(error, (openai.APIError, *kinds)), error)
    holds(not isinstance(error, openai.APIConnectionError), error)
