"""Who may use the admin API: a header against the configured admin keys. Pure.

The rules are the admin API's own: `Authorization: Bearer` first, else `x-api-key`; an Authorization
header that is not a Bearer is a mistake, not a reason to look further. Every configured key is
compared, in constant time, so that the answer's timing tells nothing.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence

from aisix.admin.audit import fingerprint
from aisix.core.request import HeaderView

_BEARER = "Bearer "


class AdminAccess:
    """The admin keys of one gateway."""

    def __init__(self, admin_keys: Sequence[str]) -> None:
        self._keys = tuple((key.encode(), fingerprint(key)) for key in admin_keys if key)

    def identify(self, headers: HeaderView) -> str | None:
        """The fingerprint of the admin key in `headers`; None when there is no good one."""
        token = _token(headers)
        if not token:
            return None
        # header text is decoded as latin-1: this gives the caller's own bytes back
        given = token.encode("latin-1", "replace")
        found: str | None = None
        for key, name in self._keys:
            if hmac.compare_digest(given, key):
                found = name
        return found


def _token(headers: HeaderView) -> str | None:
    authorization: str | None = headers.get("Authorization")
    if authorization is not None:
        if not authorization.startswith(_BEARER):
            return None
        return authorization[len(_BEARER) :].strip()
    other: str | None = headers.get("x-api-key")
    return other.strip() if other is not None else None
