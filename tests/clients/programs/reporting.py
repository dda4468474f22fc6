"""What every program of this folder shares: what it is given, and how it says what came of it.

A program runs inside the environment of one client, tries each operation in each way that the
client can be set up, and prints one line of JSON per attempt. It imports nothing of the gateway.
I/O.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import sys
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

GATEWAY = os.environ["GATEWAY_URL"]
KEY = os.environ["GATEWAY_KEY"]
BARRED_KEY = os.environ["GATEWAY_BARRED_KEY"]
"""A key whose limit lets nothing through."""
ALIASES: Mapping[str, str] = json.loads(os.environ["GATEWAY_ALIASES"])
"""The alias that plays each role, such as `chat`."""
UNKNOWN_KEY = "sk-unknown"
UNKNOWN_ALIAS = "nowhere"

SAID = "Hello from Azure OpenAI! You said: ping"
DATED = "2025-04-01-preview"
"""What a client must say as its api-version; the gateway uses its own."""

WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
}
"""The arguments of the tool that is offered."""

Attempt = Callable[[], Awaitable[None]]


def same(actual: Any, wanted: Any) -> None:
    """Raise AssertionError unless both are equal."""
    if actual != wanted:
        raise AssertionError(f"{actual!r} instead of {wanted!r}")


def holds(condition: Any, otherwise: Any) -> None:
    """Raise AssertionError unless `condition` holds."""
    if not condition:
        raise AssertionError(f"unexpected: {otherwise!r}")


async def got(value: Any) -> Any:
    """What a call gives, of a blocking client or an async one."""
    return await value if inspect.isawaitable(value) else value


async def gathered(stream: Any) -> list[Any]:
    """All that a stream brings, of a blocking client or an async one."""
    source = await got(stream)
    if hasattr(source, "__aiter__"):
        return [item async for item in source]
    return list(source)


@asynccontextmanager
async def entered(manager: Any) -> AsyncIterator[Any]:
    """A context manager of a blocking client or an async one."""
    if hasattr(manager, "__aenter__"):
        async with manager as inside:
            yield inside
    else:
        with manager as inside:
            yield inside


async def failure(attempt: Callable[[], Any]) -> Exception:
    """The exception of a call that must fail."""
    try:
        await got(attempt())
    except Exception as error:
        return error
    raise AssertionError("an error was expected")


def _where(error: BaseException) -> str:
    steps = [step for step in traceback.extract_tb(error.__traceback__) if "programs" in step[0]]
    return ":".join(str(step.lineno) for step in steps if "reporting" not in step.filename)


async def _attempt(way: str, operation: str, attempt: Attempt) -> None:
    outcome, note = "ok", ""
    try:
        await attempt()
    except Exception as error:
        outcome, note = "failed", f"{type(error).__name__}: {error} (line {_where(error)})"[:800]
    line = {"way": way, "operation": operation, "outcome": outcome, "note": note}
    print(json.dumps(line), flush=True)


def run(attempts: Mapping[tuple[str, str], Attempt]) -> None:
    """Try each (way, operation), or those whose operation the arguments name."""

    async def every() -> None:
        for (way, operation), attempt in attempts.items():
            if operation in sys.argv[1:] or not sys.argv[1:]:
                await _attempt(way, operation, attempt)

    asyncio.run(every())
