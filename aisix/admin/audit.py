"""Who did what: one log line per admin write or verification, on the logger `aisix.admin`.

I/O: logging only. A line names the admin key by a fingerprint, the resource, its revision and the
names of the fields that changed; never a value.
"""

from __future__ import annotations

import hashlib
import logging
from typing import Any

from aisix.core.ports import StoredResource

_FINGERPRINT_DIGITS = 8


class Audit:
    """Writes the audit lines."""

    def __init__(self, logger: logging.Logger | None = None) -> None:
        self._logger = logger or logging.getLogger("aisix.admin")

    def written(
        self,
        action: str,
        *,
        actor: str,
        before: StoredResource | None,
        after: StoredResource | None,
    ) -> None:
        """A write took effect; `before` is None for a create, `after` for a delete."""
        row = after or before
        if row is None:
            raise ValueError("a write has a row before or after it")
        self._logger.info(
            "admin.write",
            extra={
                "action": action,
                "kind": row.kind,
                "id": row.id,
                "revision": row.revision,
                "changed": changed_fields(before, after),
                "admin": actor,
            },
        )

    def verified(self, kind: str, id: str, *, actor: str, stage: str) -> None:
        """A resource was tried; `stage` is what is at fault, "" when nothing is."""
        self._logger.info(
            "admin.verify",
            extra={"kind": kind, "id": id, "ok": not stage, "stage": stage, "admin": actor},
        )

    def denied(self, *, address: str) -> None:
        """Somebody came without a good admin key."""
        self._logger.info("admin.denied", extra={"address": address})


def fingerprint(admin_key: str) -> str:
    """Names an admin key in logs without telling it."""
    return hashlib.sha256(admin_key.encode()).hexdigest()[:_FINGERPRINT_DIGITS]


def changed_fields(before: StoredResource | None, after: StoredResource | None) -> list[str]:
    """Names of fields that differ; of all fields, when there was or will be nothing."""
    old, new = _values(before), _values(after)
    return sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))


def _values(row: StoredResource | None) -> dict[str, Any]:
    if row is None:
        return {}
    values = dict(row.doc)
    if row.secret is not None:
        values["secret"] = row.secret
    if row.header_values:
        values["request.default_headers"] = row.header_values
    return values
