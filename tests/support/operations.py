"""Official SDKs and hand-made bodies for the operations beyond chat, at gateway processes. I/O."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from openai import AsyncAzureOpenAI, AsyncOpenAI, AzureOpenAI, OpenAI

from tests.support.process import CALLER_KEY, GatewayProgram, Stand
from tests.support.sdk import AZURE, KINDS, PLAIN, PREVIEW, generators_closed

BOUNDARY = "a-boundary"
FORM = f"multipart/form-data; boundary={BOUNDARY}"
V1 = "v1"
VERSIONS = (PREVIEW, V1)

__all__ = ["AZURE", "BOUNDARY", "FORM", "KINDS", "PLAIN", "PREVIEW", "V1", "VERSIONS"]


@contextmanager
def sdk_to(
    program: GatewayProgram, kind: str = PLAIN, *, key: str = CALLER_KEY, **options: Any
) -> Iterator[Any]:
    """A blocking client, closed at the end. Retries are off unless asked for."""
    options = {"api_key": key, "max_retries": 0, **options}
    made: Any
    if kind == PLAIN:
        made = OpenAI(base_url=f"{program.proxy}/v1", **options)
    else:
        made = AzureOpenAI(azure_endpoint=program.proxy, api_version=PREVIEW, **options)
    with made:
        yield made


@asynccontextmanager
async def async_sdk_to(program: GatewayProgram, kind: str = PLAIN) -> AsyncIterator[Any]:
    """The same, for callers with a loop."""
    options: dict[str, Any] = {"api_key": CALLER_KEY, "max_retries": 0}
    made: Any
    if kind == PLAIN:
        made = AsyncOpenAI(base_url=f"{program.proxy}/v1", **options)
    else:
        made = AsyncAzureOpenAI(azure_endpoint=program.proxy, api_version=PREVIEW, **options)
    async with made:
        yield made
    await generators_closed()


def unique(*parts: str) -> str:
    """A deployment that no other test asks; the parts may hold a script."""
    return "-".join([*parts, uuid.uuid4().hex])


def alias_of(bench: Stand, deployment: str, version: str = V1, **fields: Any) -> str:
    """A new alias that is served by one api-version."""
    return bench.alias(deployment, api_version=version, **fields)


def form(*parts: tuple[str, str | None, bytes], boundary: str = BOUNDARY) -> bytes:
    """A multipart body of (name, file name, content); None for a field."""
    body = b""
    for name, filename, content in parts:
        body += part_head(name, filename, boundary=boundary) + content + b"\r\n"
    return body + f"--{boundary}--\r\n".encode()


def part_head(name: str, filename: str | None = None, *, boundary: str = BOUNDARY) -> bytes:
    """The beginning of one part."""
    file = "" if filename is None else f'; filename="{filename}"\r\nContent-Type: audio/wav'
    disposition = f'Content-Disposition: form-data; name="{name}"{file}'
    return f"--{boundary}\r\n{disposition}\r\n\r\n".encode()


def chunk(data: bytes) -> bytes:
    """`data` in the framing of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def sample(scrape: str, name: str, **labels: str) -> float:
    """The sum of the samples of a metric that carry `labels`."""
    wanted = [f'{label}="{value}"' for label, value in labels.items()]
    lines = (line for line in scrape.splitlines() if line.startswith(f"{name}{{"))
    return sum(float(ln.rpartition(" ")[2]) for ln in lines if all(w in ln for w in wanted))


def line_of(bench: Stand, headers: Mapping[str, str]) -> dict[str, Any]:
    """The access line of the exchange whose answer had these headers."""
    return bench.gateway.access_line(headers["x-aisix-request-id"])
