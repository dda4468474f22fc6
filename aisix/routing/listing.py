"""The model list a caller sees: the aliases its key may use. Pure."""

from __future__ import annotations

from typing import Any

from aisix.core.resources import Alias, ApiKey
from aisix.core.snapshot import Snapshot


def entry(alias: Alias, name: str) -> dict[str, Any]:
    """One model object as SDKs expect it; `created` is the resource's creation time."""
    return {
        "id": name,
        "object": "model",
        "created": alias.created,
        "owned_by": alias.deployment.provider or "aisix",
    }


def listing(snapshot: Snapshot, caller: ApiKey) -> dict[str, Any]:
    """All aliases of `caller`, sorted by name; wildcard models have no name to list."""
    names = sorted(name for name in snapshot.aliases if caller.allows(name))
    return {"object": "list", "data": [entry(snapshot.aliases[name], name) for name in names]}
