"""What a simulator is set up with: resource, directory, defaults, listener.

One frozen value, made by the command line or by a test. Pure.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from aisix.simulator.entra import Directory
from aisix.simulator.script import NORMAL, Script

API_VERSIONS = frozenset(
    {
        "2022-12-01",
        "2023-05-15",
        "2023-12-01-preview",
        "2024-02-01",
        "2024-02-15-preview",
        "2024-03-01-preview",
        "2024-04-01-preview",
        "2024-05-01-preview",
        "2024-06-01",
        "2024-07-01-preview",
        "2024-08-01-preview",
        "2024-09-01-preview",
        "2024-10-01-preview",
        "2024-10-21",
        "2024-12-01-preview",
        "2025-01-01-preview",
        "2025-02-01-preview",
        "2025-03-01-preview",
        "2025-04-01-preview",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatorOptions:
    """The set-up of one simulator; every field has a default that just works."""

    # listener
    host: str = "127.0.0.1"
    port: int = 0
    tls: ssl.SSLContext | None = None
    send_buffer_bytes: int | None = None  # SO_SNDBUF; below 128 KiB loopback crawls
    max_body_bytes: int = 1024 * 1024 * 1024
    max_json_bytes: int = 64 * 1024 * 1024  # of bodies that are kept whole; 413 beyond
    hold_body_bytes: int | None = None  # read so much of each body, then wait for a release
    # resource
    api_keys: frozenset[str] = frozenset({"simulator-key"})
    key_auth: bool = True
    deployments: frozenset[str] | None = None  # None: any name but one that begins with `missing`
    scripted_names: bool = True
    api_versions: frozenset[str] = API_VERSIONS
    context_tokens: int = 128_000
    chat_model: str = "gpt-4o-2024-08-06"
    text_model: str = "gpt-35-turbo-instruct"
    embeddings_model: str = "text-embedding-3-small"
    region: str = "East US 2"
    limit_requests: int = 1_000
    limit_tokens: int = 1_000_000
    # behaviour of every request unless scripted otherwise
    script: Script = NORMAL
    # Entra ID
    entra: bool = True
    directory: Directory = field(default_factory=Directory)
    # journal
    keep_requests: int = 10_000
    keep_body_bytes: int = 1024 * 1024
    clock: Callable[[], float] = time.time
