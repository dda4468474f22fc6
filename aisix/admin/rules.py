"""From a checked body to what is stored, and from what is stored to what is shown. Pure.

Here are the rules a schema cannot say: which adapter a provider key means, whether that adapter
can use the values, what a PUT keeps of the old resource. Whatever an adapter would refuse at
request time is refused here, when the operator is looking.
"""

from __future__ import annotations

import hashlib
import math
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from aisix.admin.refusals import Refusal, invalid
from aisix.admin.schemas import MASK, PROVIDER_KEYS
from aisix.core.ports import Adapter, StoredResource, TokenState
from aisix.core.resources import Credential
from aisix.core.shaping import (
    check_default_fields,
    check_default_headers,
    check_renames,
    normal_names,
    parse_forward_headers,
)
from aisix.errors import FieldError

AZURE_PROVIDER = "azure"
AZURE_ADAPTER = "azure-openai"
PREVIOUS_HASH = "previous_key_hash"
PREVIOUS_EXPIRES = "previous_expires_at"
_INTERNAL = frozenset({PREVIOUS_HASH, PREVIOUS_EXPIRES})

_RFC3339 = re.compile(
    r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)", flags=re.ASCII
)


@dataclass(frozen=True, slots=True)
class Draft:
    """What a write will store."""

    name: str
    doc: dict[str, Any]
    secret: str | None = field(default=None, repr=False)
    header_values: Mapping[str, str] = field(default_factory=dict, repr=False)


def draft_provider_key(
    body: Mapping[str, Any],
    stored: StoredResource | None,
    *,
    adapters: Mapping[str, Adapter],
    now: float,
) -> Draft:
    """A provider key from its body at `now`; `stored` is the one it replaces. Raises Refusal.

    A secret that is kept is not judged again: a certificate that has expired meanwhile must not be
    in the way of another change.
    """
    provider = body.get("provider", "")
    adapter_name = _adapter_name(body.get("adapter"), provider, adapters)
    adapter = adapters[adapter_name]
    secret = _secret(body, stored)
    doc: dict[str, Any] = {
        "display_name": body["display_name"],
        "provider": provider,
        "adapter": adapter_name,
    }
    with _at("/api_base"):
        doc["api_base"] = adapter.parse_api_base(body.get("api_base"))
    if "api_version" in body:
        with _at("/api_version"):
            doc["api_version"] = adapter.parse_api_version(body["api_version"])
    if stored is None or secret != stored.secret or stored.doc.get("adapter") != adapter_name:
        with _at("/api_key" if "api_key" in body else "/secret"):
            credential = adapter.parse_secret(secret)
            adapter.check_credential(credential, api_base=doc["api_base"], now=now)
    header_values: dict[str, str] = {}
    if "request" in body:
        doc["request"], header_values = _request(body["request"], stored)
    if "strip_headers" in body:
        doc["strip_headers"] = list(normal_names(body["strip_headers"]))
    if "tls" in body:
        doc["tls"] = body["tls"]
        if "ca_cert" in body["tls"]:
            with _at("/tls/ca_cert"):
                check_ca_cert(body["tls"]["ca_cert"])
    return Draft(body["display_name"], doc, secret=secret, header_values=header_values)


def _request(
    body: Mapping[str, Any], stored: StoredResource | None
) -> tuple[dict[str, Any], dict[str, str]]:
    """The `request` of a provider key without the values of its default headers, and these."""
    doc = dict(body)
    with _at("/request/param_renames"):
        check_renames(body.get("param_renames", {}))
    bounds = body.get("param_constraints", {})
    if bounds.get("temperature_min", 0) > bounds.get("temperature_max", math.inf):
        raise invalid(
            "/request/param_constraints", "temperature_min must not be above temperature_max"
        )
    with _at("/request/default_body_fields"):
        check_default_fields(body.get("default_body_fields", {}))
    values: dict[str, str] = {}
    if "default_headers" in body:
        with _at("/request/default_headers"):
            check_default_headers(body["default_headers"])
            known = stored.header_values if stored is not None else {}
            for name, value in body["default_headers"].items():
                lower = name.lower()
                if value == MASK and lower not in known:
                    raise FieldError(
                        f'"***" only stands for a stored value; give "{lower}" its value'
                    )
                values[lower] = known[lower] if value == MASK else value
        doc["default_headers"] = dict.fromkeys(values, MASK)
    if "forward_client_headers" in body:
        with _at("/request/forward_client_headers"):
            doc["forward_client_headers"] = list(
                parse_forward_headers(body["forward_client_headers"])
            )
    return doc, values


def check_ca_cert(text: str) -> None:
    """Raises FieldError unless `text` is PEM certificates and nothing that must be secret."""
    if "PRIVATE KEY" in text:
        raise FieldError("holds a private key; give the authority's certificates only")
    if not text.isascii():
        raise FieldError("must be ASCII: PEM certificates, without notes between them")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=text)
    except (ssl.SSLError, ValueError):
        raise FieldError(
            "holds no certificate that can be read; write the PEM text, each certificate from "
            '"-----BEGIN CERTIFICATE-----" to "-----END CERTIFICATE-----" with its line breaks'
        ) from None


def draft_model(
    body: Mapping[str, Any],
    provider_key: StoredResource | None,
    *,
    adapters: Mapping[str, Adapter],
) -> Draft:
    """A model from its body and the provider key it names. Raises Refusal."""
    alias, deployment = body["display_name"], body["model_name"]
    if provider_key is None:
        raise invalid("/provider_key_id", "no provider key has this id; create it first")
    if "*" in deployment and "*" not in alias:
        raise invalid("/model_name", 'may contain "*" only when display_name does')
    with _at("/param_renames"):
        check_renames(body.get("param_renames", {}))
    doc = dict(body)
    adapter = adapters.get(provider_key.doc.get("adapter", ""))
    if adapter is not None:
        with _at("/model_name"):
            # what a wildcard captures is known at request time only; any good text stands for it
            adapter.check_deployment_name(deployment.replace("*", "x"))
        if "api_version" in body:
            with _at("/api_version"):
                doc["api_version"] = adapter.parse_api_version(body["api_version"])
    return Draft(name=alias, doc=doc)


def draft_apikey(body: Mapping[str, Any], stored: StoredResource | None) -> Draft:
    """A caller key from its body. A PUT without a key keeps the hash, and a rotation's grace."""
    doc = {name: value for name, value in body.items() if name not in ("key", "key_hash")}
    if "expires_at" in body:
        with _at("/expires_at"):
            parse_time(body["expires_at"])
    if not doc.get("disabled"):
        doc.pop("disabled", None)
    if "key" in body:
        key_hash = hash_key(body["key"])
    elif "key_hash" in body:
        key_hash = body["key_hash"].lower()
    elif stored is not None:
        key_hash = stored.name
    else:
        raise invalid("", 'exactly one of "key_hash" and "key" is required')
    if stored is not None and key_hash == stored.name:
        doc |= {name: stored.doc[name] for name in _INTERNAL if name in stored.doc}
    return Draft(name=key_hash, doc={"key_hash": key_hash, **doc})


def rotated_apikey(stored: StoredResource, plaintext: str, *, grace_until: float | None) -> Draft:
    """The caller key with a new hash; the old one works until `grace_until`, if given."""
    doc = {name: value for name, value in stored.doc.items() if name not in _INTERNAL}
    doc["key_hash"] = hash_key(plaintext)
    if grace_until is not None:
        doc[PREVIOUS_HASH] = stored.name
        doc[PREVIOUS_EXPIRES] = grace_until
    return Draft(name=doc["key_hash"], doc=doc)


def live_hashes(row: StoredResource, now: float) -> frozenset[str]:
    """The hashes under which a caller key is known at `now`."""
    previous, until = row.doc.get(PREVIOUS_HASH), row.doc.get(PREVIOUS_EXPIRES)
    if isinstance(previous, str) and isinstance(until, (int, float)) and until > now:
        return frozenset({row.name, previous})
    return frozenset({row.name})


def present(row: StoredResource) -> dict[str, Any]:
    """A row as the admin API shows it: id, value, revision; no secret, no internals."""
    value = {name: field for name, field in row.doc.items() if name not in _INTERNAL}
    if row.kind == PROVIDER_KEYS:
        value["secret"] = MASK
    return {"id": row.id, "value": value, "revision": row.revision}


def present_credential(credential: Credential, state: TokenState) -> dict[str, Any]:
    """How a provider key signs in, and how its tokens fare."""
    expires_at, failure = state.expires_at, state.failure
    return {
        "kind": credential.kind,
        "token_expires_at": None if expires_at is None else render_time(expires_at),
        "last_error": failure and {"at": render_time(failure[0]), "message": failure[1]},
    }


def hash_key(plaintext: str) -> str:
    """What is stored of a caller key."""
    return hashlib.sha256(plaintext.encode()).hexdigest()


def parse_time(text: str) -> float:
    """UTC epoch seconds of an RFC 3339 time. Raises FieldError."""
    if not _RFC3339.fullmatch(text):
        raise FieldError("must be an RFC 3339 time with zone, such as 2030-01-31T12:00:00Z")
    try:
        return datetime.fromisoformat(text.upper()).timestamp()
    except ValueError as error:
        raise FieldError("is no time that exists") from error


def render_time(seconds: float) -> str:
    """UTC epoch seconds as RFC 3339."""
    moment = datetime.fromtimestamp(seconds, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _adapter_name(given: str | None, provider: str, adapters: Mapping[str, Adapter]) -> str:
    if given is not None:
        return given
    if provider == AZURE_PROVIDER and AZURE_ADAPTER in adapters:
        return AZURE_ADAPTER
    names = ", ".join(f'"{name}"' for name in adapters)
    raise invalid("/adapter", f'is required unless provider is "azure"; must be one of {names}')


def _secret(body: Mapping[str, Any], stored: StoredResource | None) -> str:
    name = "api_key" if "api_key" in body else "secret"
    given: str | None = body.get(name)
    if given is not None and given != MASK:
        return given
    if stored is None:
        raise invalid(f"/{name}", '"***" only stands for a stored secret; give the secret itself')
    if stored.secret is None:
        raise invalid("/secret", "the stored secret cannot be read; give it again")
    return stored.secret


class _at:  # noqa: N801 - reads as a preposition
    """Turns an adapter's FieldError inside the block into a 400 at this field."""

    def __init__(self, pointer: str) -> None:
        self._pointer = pointer

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, FieldError):
            refusal: Refusal = invalid(self._pointer, str(error))
            raise refusal from None
