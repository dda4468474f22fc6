"""Alias to deployment, for one caller. Pure.

An unknown name is 404 before the allow-list says 403 (aisix-behaviour §3). A wildcard model puts
what its `*` captured into the deployment name.
"""

from __future__ import annotations

from dataclasses import replace

from aisix.core.resources import Alias, ApiKey, Deployment
from aisix.core.snapshot import Snapshot
from aisix.errors import BadRequest, Forbidden, UnknownAlias

ALIAS_HEADER = "x-aisix-model"
"""Request header: the alias whose resource is meant, where neither path nor body says it."""

_SHOWN_CHARACTERS = 256


def resolve(snapshot: Snapshot, caller: ApiKey, requested: str) -> tuple[Alias, Deployment]:
    """The alias that serves `requested` and the deployment to call.

    Raises UnknownAlias, Forbidden.
    """
    found = snapshot.find(requested)
    if found is None:
        raise UnknownAlias(f'model "{requested[:_SHOWN_CHARACTERS]}" not found', param="model")
    plainly = requested in caller.allowed_models and "*" not in requested
    if not plainly and not caller.allows(requested):
        shown = requested[:_SHOWN_CHARACTERS]
        raise Forbidden(f'API key is not allowed to use model "{shown}"', param="model")
    alias, captured = found
    deployment = alias.deployment
    if "*" in alias.name and "*" in deployment.name:
        deployment = replace(deployment, name=deployment.name.replace("*", captured))
    return alias, deployment


def meant(snapshot: Snapshot, caller: ApiKey, named: str | None) -> str:
    """The alias that a request means which need not name one: the named one, or the only one that
    `caller` may use; a wildcard is none, it has no name of its own. Raises BadRequest."""
    if named:
        return named
    usable = [name for name in snapshot.aliases if "*" not in name and caller.allows(name)]
    if len(usable) == 1:
        return usable[0]
    raise BadRequest(
        f"which resource is meant is not clear: name one of your models in the header "
        f"{ALIAS_HEADER}",
        param=ALIAS_HEADER,
    )
