"""Who changed what: one log line per admin write, on the logger `aisix.admin`.

I/O: logging only. A line names the admin key by a fingerprint, the resource, its revision and the
names of the fields that changed; never a value.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
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
        fields = {
            "action": action,
            "kind": row.kind,
            "id": row.id,
            "revision": row.revision,
            "changed": changed_fields(before, after),
            "admin": actor,
        }
        self._line("admin.write", fields)

    def denied(self, *, address: str) -> None:
        """Somebody came without a good admin key."""
        self._line("admin.denied", {"address": address})

    def _line(self, event: str, fields: Mapping[str, Any]) -> None:
        text = " ".join(f"{name}={_shown(value)}" for name, value in fields.items())
        self._logger.info("%s %s", event, text, extra={"event": event, "fields": dict(fields)})


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
    return values


def _shown(value: Any) -> str:
    return ",".join(value) if isinstance(value, list) else str(value)
