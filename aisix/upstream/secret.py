"""One `secret`, two authentication schemes: reads what an operator stored. Pure.

Text that begins with `{` is an Entra ID app registration, everything else a resource key. The
result is complete: authority and scope are filled in, so that nothing about clouds is decided
later. Invariant: no error text and no exception chain repeats any byte of a secret value.
"""

from __future__ import annotations

import json
import re
from typing import Any

from aisix.core.resources import ClientSecret, Credential, ResourceKey
from aisix.errors import FieldError
from aisix.upstream.address import parse_address

PUBLIC_AUTHORITY = "https://login.microsoftonline.com"

PUBLIC_SCOPE = "https://cognitiveservices.azure.com/.default"

SCOPES = {
    "login.microsoftonline.com": PUBLIC_SCOPE,
    "login.microsoftonline.us": "https://cognitiveservices.azure.us/.default",
    "login.chinacloudapi.cn": "https://cognitiveservices.azure.cn/.default",
    "login.partner.microsoftonline.cn": "https://cognitiveservices.azure.cn/.default",
}
"""Authority host to scope. With the public scope a sovereign cloud's token is refused for its
audience, so the scope must follow the authority."""

_REQUIRED = ("tenant_id", "client_id", "client_secret")
_OPTIONAL = ("authority_host", "scope")
_FIELDS = frozenset(_REQUIRED + _OPTIONAL)
_NOT_BUILT = re.compile(r"managed_identity|workload_identity|(?:client_)?certificate(?:_[a-z]+)?")
_NAMEABLE = re.compile(r"[A-Za-z_]{1,32}")
_TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]*")
_CLIENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_PRINTABLE = re.compile(r"[\x21-\x7e]+")


def parse_secret(secret: str) -> Credential:
    """The credential that `secret` spells. Raises FieldError."""
    text = secret.strip()
    if not text:
        raise FieldError("secret is empty; write the resource key or the Entra ID JSON")
    if text.startswith("{"):
        return _client_secret(_object(text))
    if not _PRINTABLE.fullmatch(text):
        raise FieldError(
            "secret is no resource key: it holds a space, a line break, a control character or a "
            "letter outside ASCII; paste the key alone, without a header name or Bearer"
        )
    return ResourceKey(key=text)


def _object(text: str) -> dict[str, Any]:
    # `from None` and a fixed text: the parser's own error carries the whole document
    try:
        document: dict[str, Any] = json.loads(text)  # it begins with {, so it is an object
    except (ValueError, RecursionError):
        raise FieldError(
            "secret begins with { but is not valid JSON; write "
            '{"tenant_id":"…","client_id":"…","client_secret":"…"}'
        ) from None
    return document


def _client_secret(document: dict[str, Any]) -> ClientSecret:
    _check_names(document)
    fields = {name: _text(name, document[name]) for name in _REQUIRED if name in document}
    missing = [name for name in _REQUIRED if not fields.get(name)]
    if missing:
        raise FieldError(f"secret: {', '.join(missing)} must be a non-empty string")
    _check_identifier("tenant_id", fields["tenant_id"], _TENANT)
    _check_identifier("client_id", fields["client_id"], _CLIENT)
    if not _PRINTABLE.fullmatch(fields["client_secret"]):
        raise FieldError("secret: client_secret holds a space, a control or a non-ASCII character")
    authority, host = _authority(_optional(document, "authority_host"))
    return ClientSecret(
        tenant_id=fields["tenant_id"],
        client_id=fields["client_id"],
        client_secret=fields["client_secret"],
        authority=authority,
        scope=_scope(_optional(document, "scope"), host),
    )


def _check_names(document: dict[str, Any]) -> None:
    for name in document:
        if _NOT_BUILT.fullmatch(name):
            raise FieldError(
                f"secret: {name} is not supported by this version; use a resource key or "
                "tenant_id, client_id and client_secret"
            )
    unknown = [name for name in document if name not in _FIELDS]
    if not unknown:
        return
    known = {name.replace("_", ""): name for name in _FIELDS}
    words = []
    for name in unknown:
        # a name that looks like no field name may be a pasted secret: it is not repeated
        meant = known.get(name.replace("_", "").lower())
        shown = name if _NAMEABLE.fullmatch(name) else "(unreadable name)"
        words.append(f"{shown} (did you mean {meant}?)" if meant else shown)
    raise FieldError(f"secret: unknown field {', '.join(words)}")


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise FieldError(f"secret: {name} must be a string")
    return value.strip()


def _optional(document: dict[str, Any], name: str) -> str | None:
    value = document.get(name)
    return None if value is None else _text(name, value)


def _check_identifier(name: str, value: str, rule: re.Pattern[str]) -> None:
    if not rule.fullmatch(value) or ".." in value:
        kinds = "letters, digits, '.' and '-'" + (" and '_'" if rule is _CLIENT else "")
        raise FieldError(
            f"secret: {name} may hold only {kinds}; copy it from the app registration's overview"
        )


def _authority(value: str | None) -> tuple[str, str]:
    if value is None:
        value = PUBLIC_AUTHORITY
    address = parse_address(value, "secret: authority_host", example=PUBLIC_AUTHORITY)
    if address.segments or "?" in value:
        raise FieldError(
            "secret: authority_host must be a bare origin without path and query, such as "
            f"{PUBLIC_AUTHORITY}; the tenant belongs in tenant_id"
        )
    return address.origin, address.host


def _scope(value: str | None, authority_host: str) -> str:
    if value is None:
        return SCOPES.get(authority_host, PUBLIC_SCOPE)
    if not _PRINTABLE.fullmatch(value) or not value.endswith("/.default") or value == "/.default":
        raise FieldError(
            f"secret: scope must be one resource followed by /.default: {PUBLIC_SCOPE}"
        )
    return value
