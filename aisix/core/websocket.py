"""The words of a WebSocket's opening handshake (RFC 6455 §4) that both our sides need. Pure.

Browsers cannot set headers on a WebSocket, so OpenAI's SDKs send the key as one of the subprotocols
that they offer. It opens our door and goes no further.
"""

from __future__ import annotations

import base64
import binascii
import hashlib

from aisix.core.request import HeaderView

KEY_PROTOCOL = "openai-insecure-api-key."
"""Begins the subprotocol that carries a caller's key."""

REALTIME_PROTOCOL = "realtime"

_GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_NONCE_BYTES = 16


def is_key(key: str | None) -> bool:
    """Whether `key` can be a `Sec-WebSocket-Key`: 16 bytes in base64."""
    if key is None:
        return False
    try:
        return len(base64.b64decode(key, validate=True)) == _NONCE_BYTES
    except (binascii.Error, ValueError):
        return False


def accept_of(key: str) -> str:
    """The `Sec-WebSocket-Accept` that answers a `Sec-WebSocket-Key`."""
    digest = hashlib.sha1(f"{key}{_GUID}".encode("latin-1"), usedforsecurity=False).digest()
    return base64.b64encode(digest).decode()


def offered_protocols(headers: HeaderView) -> list[str]:
    """The subprotocols of a request, the key among them."""
    offered = headers.get("sec-websocket-protocol") or ""
    return [name for part in offered.split(",") if (name := part.strip(" \t"))]


def open_protocols(headers: HeaderView) -> list[str]:
    """The subprotocols of a request that hold no key."""
    return [name for name in offered_protocols(headers) if not name.startswith(KEY_PROTOCOL)]
