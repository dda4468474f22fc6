"""The Azure simulator for tests: one `async with`, on a free port of 127.0.0.1.

Options are the fields of `SimulatorOptions` and of `Directory` (token lifetime, tenants, …);
`tls` may be a (certificate file, key file) pair, `script` a text of tokens. I/O.
"""

from __future__ import annotations

import dataclasses
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
