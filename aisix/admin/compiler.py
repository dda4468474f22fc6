"""From stored rows to the Snapshot that the data path reads. Pure.

Lenient where writes are strict: a row that cannot be understood is left out and named, and a model
whose credential or address cannot be used is kept with a `fault`, so that its callers learn the
reason instead of "not found". One bad row never takes the others down.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from aisix.admin.rules import PREVIOUS_EXPIRES, PREVIOUS_HASH, live_hashes, parse_time
from aisix.admin.schemas import APIKEYS, MODELS, PROVIDER_KEYS
from aisix.core.ports import Adapter, StoredResource
from aisix.core.resources import Alias, ApiKey, Deployment, Fault, LimitPolicy
from aisix.core.shaping import Shaping
from aisix.core.snapshot import Snapshot
from aisix.errors import FieldError


@dataclass(frozen=True, slots=True)
class Compiled:
    """A snapshot, and what is wrong with the rows it was made of."""

    snapshot: Snapshot
    problems: tuple[str, ...] = ()
    unverified: frozenset[str] = frozenset()
    """Provider keys whose upstream may be anyone."""


def compile_snapshot(
    rows: Iterable[StoredResource],
    adapters: Mapping[str, Adapter],
    *,
    revision: int,
    taken_at: float,
    seal_key: bytes = b"",
) -> Compiled:
    """The snapshot of `rows` at `taken_at`. `seal_key` is for the ids that callers get to see."""
    rows = list(rows)
    provider_keys = {row.id: row for row in rows if row.kind == PROVIDER_KEYS}
    keys: list[ApiKey] = []
    aliases: list[Alias] = []
    problems: list[str] = []
    for row in rows:
        try:
            if row.kind == APIKEYS:
                keys.extend(_caller_keys(row, now=taken_at))
            elif row.kind == MODELS:
                alias = _alias(row, provider_keys, adapters)
                aliases.append(alias)
                if alias.deployment.fault is not None:
                    problems.append(f"models/{row.id}: {alias.deployment.fault.reason}")
        except (KeyError, TypeError, ValueError, AttributeError):
            reason = row.fault or "the stored document is damaged"
            problems.append(f"{row.kind}/{row.id} is left out: {reason}")
    snapshot = Snapshot.build(
        revision=revision,
        taken_at=taken_at,
        keys=keys,
        aliases=aliases,
        homes=[_home(row, adapters) for row in provider_keys.values()],
        seal_key=seal_key,
    )
    unverified = frozenset(
        row.name for row in provider_keys.values() if _member(row.doc, "tls").get("verify") is False
    )
    return Compiled(snapshot, tuple(problems), unverified)


def deployment_of(
    row: StoredResource, rows: Iterable[StoredResource], adapters: Mapping[str, Adapter]
) -> Deployment:
    """Where a model, or a provider key, leads; a provider key's deployment has no name."""
    if row.kind == PROVIDER_KEYS:
        return _home(row, adapters)
    provider_keys = {other.id: other for other in rows if other.kind == PROVIDER_KEYS}
    doc = row.doc
    try:
        return _deployment(doc, provider_keys.get(doc["provider_key_id"]), adapters)
    except (KeyError, TypeError, ValueError, AttributeError):
        bare = Deployment("", "", "", "", "", provider_key_id="", provider_key_name="")
        return _faulty(bare, "configuration", row.fault or "the stored document is damaged")


def _caller_keys(row: StoredResource, *, now: float) -> list[ApiKey]:
    """The key, and while a rotation's grace lasts also the one before it, under the same id."""
    doc = row.doc
    expires = doc.get("expires_at")
    key = ApiKey(
        id=row.id,
        key_hash=doc["key_hash"],
        allowed_models=tuple(doc["allowed_models"]),
        display_name=doc.get("display_name"),
        limits=_limits(doc),
        expires_at=None if expires is None else parse_time(expires),
        disabled=bool(doc.get("disabled", False)),
        allowed_resources=tuple(doc.get("allowed_resources", ())),
    )
    if len(live_hashes(row, now)) == 1:
        return [key]
    until = float(doc[PREVIOUS_EXPIRES])
    if key.expires_at is not None:
        until = min(until, key.expires_at)
    return [key, replace(key, key_hash=doc[PREVIOUS_HASH], expires_at=until)]


def _alias(
    row: StoredResource,
    provider_keys: Mapping[str, StoredResource],
    adapters: Mapping[str, Adapter],
) -> Alias:
    doc = row.doc
    return Alias(
        id=row.id,
        name=doc["display_name"],
        deployment=_deployment(doc, provider_keys.get(doc["provider_key_id"]), adapters),
        limits=_limits(doc),
        timeout_s=_seconds(doc.get("timeout")),
        stream_timeout_s=_seconds(doc.get("stream_timeout")),
        created=int(row.created_at),
    )


def _home(key: StoredResource, adapters: Mapping[str, Adapter]) -> Deployment:
    """A deployment without a name at the resource of a provider key."""
    doc = {"model_name": "", "provider": key.doc.get("provider", ""), "provider_key_id": key.id}
    return _deployment(doc, key, adapters)


def _deployment(
    doc: Mapping[str, Any], key: StoredResource | None, adapters: Mapping[str, Adapter]
) -> Deployment:
    bare = Deployment(
        name=doc["model_name"],
        provider=doc["provider"],
        adapter="",
        api_base="",
        api_version="",
        provider_key_id=doc["provider_key_id"],
        provider_key_name=key.name if key else "",
    )
    if key is None:
        return _faulty(bare, "configuration", "the provider key of this model does not exist")
    adapter_name = key.doc.get("adapter", "")
    adapter = adapters.get(adapter_name)
    if adapter is None:
        return _faulty(bare, "configuration", "the adapter of the provider key is not built")
    tls = _member(key.doc, "tls")
    bare = replace(
        bare,
        adapter=adapter_name,
        shaping=_shaping(doc, key),
        ca_cert=tls.get("ca_cert"),
        verify=tls.get("verify"),
    )
    try:
        version = doc.get("api_version") or key.doc.get("api_version")
        bare = replace(
            bare,
            api_base=adapter.parse_api_base(key.doc.get("api_base")),
            api_version=adapter.parse_api_version(version),
        )
    except FieldError as error:
        return _faulty(bare, "configuration", str(error))
    if key.secret is None:
        return _faulty(bare, "credential", key.fault or "the provider key has no secret")
    try:
        return replace(bare, credential=adapter.parse_secret(key.secret))
    except FieldError as error:
        return _faulty(bare, "credential", str(error))


def _shaping(doc: Mapping[str, Any], key: StoredResource) -> Shaping | None:
    """What key and model change, the model's word last; None when that is nothing."""
    request = _member(key.doc, "request")
    renames = {**_member(request, "param_renames"), **_member(doc, "param_renames")}
    bounds = _member(request, "param_constraints")
    shaping = Shaping(
        renames=tuple((source, new) for source, new in renames.items() if source != new),
        temperature_min=bounds.get("temperature_min"),
        temperature_max=bounds.get("temperature_max"),
        default_fields=tuple(_member(request, "default_body_fields").items()),
        default_headers=tuple(key.header_values.items()),
        forward_headers=tuple(request.get("forward_client_headers", ())),
        strip_headers=tuple(key.doc.get("strip_headers", ())),
    )
    return None if shaping == Shaping() else shaping


def _member(doc: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """An object inside a document; an empty one when it is absent."""
    member: Mapping[str, Any] = doc.get(name, {})
    return member


def _faulty(deployment: Deployment, kind: str, reason: str) -> Deployment:
    return replace(deployment, fault=Fault(kind=kind, reason=reason))


def _limits(doc: Mapping[str, Any]) -> LimitPolicy:
    return LimitPolicy(**{name: int(limit) for name, limit in doc.get("rate_limit", {}).items()})


def _seconds(milliseconds: int | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000
