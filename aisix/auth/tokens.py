"""Reading and hashing credentials. Pure.

A plaintext key lives only for the length of one comparison: resources hold its SHA-256. Admin keys
are compared in constant time; caller keys are looked up by hash, which leaks nothing useful.
"""

from __future__ import annotations

import hashlib
from urllib.parse import parse_qsl

from aisix.core.request import HeaderView
from aisix.core.websocket import KEY_PROTOCOL, offered_protocols

_BEARER = "Bearer "


def hash_token(plaintext: str) -> str:
    """Lower-case SHA-256 hex of a token as it came over the wire.

    Header text is decoded as latin-1, so encoding it back gives the caller's own bytes: the digest
    equals `printf '%s' "$KEY" | shasum -a 256`.
    """
    return hashlib.sha256(plaintext.encode("latin-1", "replace")).hexdigest()


def caller_token(headers: HeaderView, *, azure_style: bool) -> str | None:
    """The caller's credential, or None when there is none or it is malformed.

    `api-key` is what AzureOpenAI SDKs send, so it wins on Azure-style paths (old ones send both);
    elsewhere Bearer wins, and an Authorization header that is not a Bearer is a mistake, not a
    reason to look further.
    """
    azure_key: str | None = headers.get("api-key")
    if azure_style and azure_key:
        return azure_key.strip() or None
    authorization: str | None = headers.get("authorization")
    if authorization is not None:
        if not authorization.startswith(_BEARER):
            return None
        return authorization[len(_BEARER) :].strip() or None
    other: str | None = headers.get("x-api-key") or azure_key
    return (other.strip() or None) if other else None


def session_token(headers: HeaderView, query: str) -> str | None:
    """The credential of a caller that cannot set headers, as a browser on a WebSocket: OpenAI's SDK
    sends it as a subprotocol, AzureOpenAI's as the query parameter `api-key`."""
    if headers.get("authorization") is not None:
        return None  # it was no credential, and a mistake is not to be passed over
    for name in offered_protocols(headers):
        if name.startswith(KEY_PROTOCOL):
            return name[len(KEY_PROTOCOL) :] or None
    for name, value in parse_qsl(query):
        if name == "api-key":
            return value.strip() or None
    return None
