"""Who is calling: a header becomes a caller key of the snapshot, or an Unauthenticated error. Pure.

`detail` of the error is the reason from a closed set, as metrics carry it.
"""

from __future__ import annotations

from aisix.auth.tokens import caller_token, hash_token, session_token
from aisix.core.endpoints import Action
from aisix.core.ports import Clock
from aisix.core.request import InboundRequest
from aisix.core.resources import ApiKey
from aisix.core.snapshot import Snapshot
from aisix.errors import Unauthenticated


class Authenticator:
    """Looks caller keys up in the snapshot; never in the database."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def authenticate(self, request: InboundRequest, snapshot: Snapshot) -> ApiKey:
        """The caller's key. Raises Unauthenticated."""
        token = caller_token(request.headers, azure_style=request.path.startswith("/openai/"))
        if token is None and request.spec.action is Action.SESSION:
            token = session_token(request.headers, request.query)
        if token is None:
            raise Unauthenticated(
                "missing or malformed Authorization header", detail="missing_credentials"
            )
        key = snapshot.keys_by_hash.get(hash_token(token))
        if key is None:
            raise Unauthenticated("invalid API key", detail="unknown_key")
        if key.disabled:
            raise Unauthenticated(
                "this API key is disabled", code="api_key_disabled", detail="key_disabled"
            )
        if key.expires_at is not None and self._clock.time() > key.expires_at:
            raise Unauthenticated(
                "this API key has expired", code="api_key_expired", detail="key_expired"
            )
        return key
