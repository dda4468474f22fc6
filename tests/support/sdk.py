"""The official openai SDK pointed at a simulator: as the plain client of its resource or of its
OpenAI-compatible server, and as the Azure client. I/O."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from openai import AsyncAzureOpenAI, AsyncOpenAI

from aisix.simulator.server import Simulator
from tests.support.azure import KEY

PLAIN, AZURE, COMPATIBLE = "OpenAI", "AzureOpenAI", "OpenAI at a compatible server"
KINDS = (PLAIN, AZURE)
PREVIEW = "2025-04-01-preview"


@asynccontextmanager
async def sdk_at(sim: Simulator, kind: str, *, api_version: str = PREVIEW) -> AsyncIterator[Any]:
    """One client, closed at the end. Retries are off: an error is to be seen."""
    made: Any
    if kind != AZURE:
        surface = "/openai/v1" if kind == PLAIN else "/v1"
        made = AsyncOpenAI(base_url=sim.url + surface, api_key=KEY, max_retries=0)
    else:
        made = AsyncAzureOpenAI(
            azure_endpoint=sim.url, api_key=KEY, api_version=api_version, max_retries=0
        )
    async with made:
        yield made
    await generators_closed()


async def generators_closed() -> None:
    """Wait for what the SDK leaves behind: after `[DONE]` it drops a chain of generators, and the
    loop closes each of them in a task of its own."""
    while True:
        await asyncio.sleep(0)  # the task of a dropped generator is made in the next turn
        kinds = ((task, type(task.get_coro()).__name__) for task in asyncio.all_tasks())
        closing = [task for task, kind in kinds if kind.startswith("async_generator_")]
        if not closing:
            return
        await asyncio.wait(closing)
