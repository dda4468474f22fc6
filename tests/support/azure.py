"""The Azure simulator for tests: one `async with`, on a free port of 127.0.0.1.

Options are the fields of `SimulatorOptions` and of `Directory` (token lifetime, tenants, …);
`tls` may be a (certificate file, key file) pair, `script` a text of tokens. I/O.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aisix.simulator import faults
from aisix.simulator.entra import Directory
from aisix.simulator.options import SimulatorOptions
from aisix.simulator.script import parse
from aisix.simulator.server import Simulator

KEY = "simulator-key"
TENANT = "11111111-2222-3333-4444-555555555555"
CLIENT = "66666666-7777-8888-9999-000000000000"
CLIENT_SECRET = "simulator-secret"
API_VERSION = "2024-10-21"

_DIRECTORY = {field.name for field in dataclasses.fields(Directory)}


@asynccontextmanager
async def azure(**options: Any) -> AsyncIterator[Simulator]:
    """A running simulator; stopped, connections and all, at the end of the block."""
    simulator = Simulator(build_options(**options))
    simulator.start()
    try:
        yield simulator
    finally:
        await simulator.stop()


def build_options(**options: Any) -> SimulatorOptions:
    """Options from keywords in their handiest form."""
    directory = {name: options.pop(name) for name in list(options) if name in _DIRECTORY}
    if directory:
        options["directory"] = Directory(**directory)
    if isinstance(options.get("tls"), tuple):
        options["tls"] = server_tls(*options["tls"])
    if isinstance(options.get("script"), str):
        options["script"] = parse(options["script"], errors=faults.NAMES)
    return SimulatorOptions(**options)


def server_tls(certificate: str, key: str) -> ssl.SSLContext:
    """A server's TLS context from two PEM files."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    return context


def chat_path(deployment: str = "gpt4o-prod", *, api_version: str = API_VERSION) -> str:
    """The dated path of a chat completion."""
    return f"/openai/deployments/{deployment}/chat/completions?api-version={api_version}"


@dataclasses.dataclass(frozen=True, slots=True)
class Answered:
    """An answer as it came over a raw socket, up to the end of the connection."""

    raw: bytes
    was_reset: bool = False

    @property
    def head(self) -> str:
        """Status line and headers of the last head (after any 1xx)."""
        heads = self.raw
        while heads.startswith(b"HTTP/1.1 1"):
            heads = heads.partition(b"\r\n\r\n")[2]
        return heads.partition(b"\r\n\r\n")[0].decode("latin-1")

    @property
    def status(self) -> int:
        """The status code."""
        return int(self.head.split(" ", 2)[1])

    @property
    def headers(self) -> dict[str, str]:
        """Headers, names in lower case."""
        lines = (line.partition(": ") for line in self.head.split("\r\n")[1:])
        return {name.lower(): value for name, _, value in lines}

    @property
    def chunks(self) -> list[bytes]:
        """The chunks of a chunked body, as far as they are whole."""
        rest, chunks = self._body_bytes, []
        while b"\r\n" in rest:
            size, _, rest = rest.partition(b"\r\n")
            chunk, rest = rest[: int(size, 16)], rest[int(size, 16) + 2 :]
            if chunk:  # the last one, of no length, only ends the body
                chunks.append(chunk)
        return chunks

    @property
    def _body_bytes(self) -> bytes:
        head = self.head.encode("latin-1") + b"\r\n\r\n"
        return self.raw.partition(head)[2]

    @property
    def body(self) -> bytes:
        """The body without its framing."""
        if self.headers.get("transfer-encoding") == "chunked":
            return b"".join(self.chunks)
        return self._body_bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """The data of each SSE event: JSON, or the text `[DONE]`; comments left out."""
        blocks = self.body.decode().replace("\r\n", "\n").split("\n\n")
        datas = [
            line.removeprefix("data: ")
            for block in blocks
            for line in block.split("\n")
            if line.startswith("data: ")
        ]
        return [data if data == "[DONE]" else json.loads(data) for data in datas]


async def ask(
    simulator: Simulator, path: str, body: Any = None, *, close: bool = True, **headers: str
) -> Answered:
    """One request over a socket of its own; GET without a body. Underscores in header names
    become dashes; without `api_key` and `authorization` the simulator's key is sent."""
    if "api_key" not in headers and "authorization" not in headers:
        headers["api_key"] = KEY
    payload = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"{'GET' if body is None else 'POST'} {path} HTTP/1.1", "host: simulator"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items() if value]
    if close:
        lines.append("connection: close")
    if body is not None:
        lines.append(f"content-length: {len(payload)}")
    head = "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", simulator.port)
    received, was_reset = bytearray(), False
    try:
        writer.write(head + (payload if body is not None else b""))
        while data := await reader.read(65536):
            received += data
    except ConnectionError:
        was_reset = True
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
    return Answered(bytes(received), was_reset)
