"""One `secret`, five ways to authenticate: reads what an operator stored. Pure.

Text that begins with `{` is an Entra ID credential, everything else a resource key. Which kind a
document is, is told by the one field that only that kind has, never by trying. The result is
complete: authority and scope are filled in, so that nothing about clouds is decided later, but for
what a workload identity leaves to its environment. Invariant: no error text and no exception chain
repeats any byte of a secret value.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from aisix.core.resources import (
    ClientCertificate,
    ClientSecret,
    Credential,
    ManagedIdentity,
    ResourceKey,
    TokenCredential,
    WorkloadIdentity,
)
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

_NAMEABLE = re.compile(r"[A-Za-z_]{1,32}")
_TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]*")
_CLIENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_RESOURCE_ID = re.compile(r"(?:/[A-Za-z0-9._()-]+)+")
_PRINTABLE = re.compile(r"[\x21-\x7e]+")
_CLOUD = re.compile(r"https://[a-z0-9.-]+\.azure\.(com|us|cn)(?:/|\Z)")
_EXAMPLE = '{"tenant_id":"…","client_id":"…","client_secret":"…"}'

Document = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Form:
    """One kind of document: the field that marks it, and what it may hold beside it."""

    mark: str
    required: tuple[str, ...]
    optional: tuple[str, ...]
    read: Callable[[Document], TokenCredential]

    @property
    def fields(self) -> tuple[str, ...]:
        """All of them."""
        return (self.mark, *self.required, *self.optional)


def parse_secret(secret: str) -> Credential:
    """The credential that `secret` spells. Raises FieldError."""
    text = secret.strip()
    if not text:
        raise FieldError("secret is empty; write the resource key or the Entra ID JSON")
    if text.startswith("{"):
        document = _object(text)
        form = _form(document)
        _check_names(document, form)
        _check_required(document, form)
        return form.read(document)
    return parse_key(text)


def parse_key(text: str) -> ResourceKey:
    """A key that a header can carry. Raises FieldError."""
    if not _PRINTABLE.fullmatch(text):
        raise FieldError(
            "secret is no key: it holds a space, a line break, a control character or a "
            "letter outside ASCII; paste the key alone, without a header name or Bearer"
        )
    return ResourceKey(key=text)


def parse_authority(value: str | None, field: str = "secret: authority_host") -> tuple[str, str]:
    """Origin and host of a token authority, the public cloud's for None. Raises FieldError."""
    text = PUBLIC_AUTHORITY if value is None else value
    address = parse_address(text, field, example=PUBLIC_AUTHORITY)
    if address.segments or "?" in text:
        raise FieldError(
            f"{field} must be a bare origin without path and query, such as "
            f"{PUBLIC_AUTHORITY}; the tenant belongs in tenant_id"
        )
    return address.origin, address.host


def check_identifiers(tenant_id: str, client_id: str) -> None:
    """Raises FieldError unless both can be part of a request to an authority."""
    _check_identifier("tenant_id", tenant_id, _TENANT)
    _check_identifier("client_id", client_id, _CLIENT)


def check_cloud(credential: TokenCredential, api_base: str) -> None:
    """Raises FieldError when the token would be for Azure OpenAI in another cloud than `api_base`
    is in: Azure refuses it for its audience, at each request."""
    meant, asked = _CLOUD.match(api_base), _CLOUD.match(credential.scope or "")
    if meant is None or asked is None or meant[1] == asked[1]:
        return
    fix = f'add "scope": "https://cognitiveservices.azure.{meant[1]}/.default"'
    hosts = [host for host, scope in SCOPES.items() if f".azure.{meant[1]}/" in scope]
    if credential.kind != "managed_identity":
        fix = f'write "authority_host": "https://{hosts[0]}", or {fix}'
    raise FieldError(
        f"secret: the scope is of the cloud azure.{asked[1]}, and api_base of azure.{meant[1]}; "
        f"{fix}"
    )


def scope_of(authority_host: str) -> str:
    """The scope of Azure OpenAI in the authority's cloud."""
    return SCOPES.get(authority_host, PUBLIC_SCOPE)


def _object(text: str) -> Document:
    # `from None` and a fixed text: the parser's own error carries the whole document
    try:
        document: Document = json.loads(text)  # it begins with {, so it is an object
    except (ValueError, RecursionError):
        raise FieldError(f"secret begins with {{ but is not valid JSON; write {_EXAMPLE}") from None
    return document


# ── which kind ──────────────────────────────────────────────────────────────────────────────────


def _form(document: Document) -> _Form:
    marks = [form.mark for form in _FORMS if form.mark in document]
    if len(marks) > 1:
        raise FieldError(
            f"secret: {' and '.join(marks)} exclude each other; keep the one that is meant"
        )
    if not marks:
        return _CLIENT_SECRET
    return next(form for form in _FORMS if form.mark == marks[0])


def _check_names(document: Document, form: _Form) -> None:
    unknown = [name for name in document if name not in form.fields]
    elsewhere = [name for name in unknown if any(name in other.fields for other in _FORMS)]
    if elsewhere:
        raise FieldError(
            f"secret: {', '.join(elsewhere)} does not go with {form.mark}, which takes "
            f"{', '.join((*form.required, *form.optional))}; remove one of the two"
        )
    if not unknown:
        return
    known = {name.replace("_", ""): name for other in _FORMS for name in other.fields}
    words = []
    for name in unknown:
        # a name that looks like no field name may be a pasted secret: it is not repeated
        meant = known.get(name.replace("_", "").lower())
        shown = name if _NAMEABLE.fullmatch(name) else "(unreadable name)"
        words.append(f"{shown} (did you mean {meant}?)" if meant else shown)
    raise FieldError(f"secret: unknown field {', '.join(words)}")


def _check_required(document: Document, form: _Form) -> None:
    is_switch = form.mark in {"managed_identity", "workload_identity"}
    if is_switch and document[form.mark] is not True:
        raise FieldError(
            f"secret: {form.mark} must be true; leave it out for another kind of credential"
        )
    wanted = form.required if is_switch else (*form.required, form.mark)
    missing = [name for name in wanted if not _optional(document, name, required=True)]
    if missing:
        raise FieldError(f"secret: {', '.join(missing)} must be a non-empty string")


# ── one reader for each kind ────────────────────────────────────────────────────────────────────


def _registration(document: Document) -> dict[str, str]:
    """What both kinds of app registration have beside their proof."""
    tenant, client = (_text(name, document[name]) for name in ("tenant_id", "client_id"))
    check_identifiers(tenant, client)
    authority, host = parse_authority(_optional(document, "authority_host"))
    scope = _scope(_optional(document, "scope")) or scope_of(host)
    return {"tenant_id": tenant, "client_id": client, "authority": authority, "scope": scope}


def _client_secret(document: Document) -> ClientSecret:
    secret = _text("client_secret", document["client_secret"])
    if not _PRINTABLE.fullmatch(secret):
        raise FieldError("secret: client_secret holds a space, a control or a non-ASCII character")
    return ClientSecret(client_secret=secret, **_registration(document))


def _client_certificate(document: Document) -> ClientCertificate:
    pem = _text("client_certificate", document["client_certificate"])
    if "-----BEGIN " not in pem:
        raise FieldError(
            "secret: client_certificate must be the text of a PEM file with certificate and "
            "private key, not its path; convert a .pfx file with openssl pkcs12 -nodes"
        )
    password = document.get("client_certificate_password")
    if password is not None and (not isinstance(password, str) or not password):
        raise FieldError("secret: client_certificate_password must be a non-empty string")
    return ClientCertificate(certificate=pem, password=password, **_registration(document))


def _managed_identity(document: Document) -> ManagedIdentity:
    given = {name: _optional(document, name) for name in ("client_id", "object_id", "resource_id")}
    named = {name: value for name, value in given.items() if value is not None}
    if len(named) > 1:
        raise FieldError(
            f"secret: {' and '.join(named)} both name a user-assigned identity; keep one of them, "
            "or none for the system-assigned identity"
        )
    for name, value in named.items():
        _check_identifier(name, value, _RESOURCE_ID if name == "resource_id" else _CLIENT)
    kind, identity = next(iter(named.items()), ("", ""))
    scope = _scope(_optional(document, "scope")) or PUBLIC_SCOPE
    return ManagedIdentity(scope=scope, identity_kind=kind, identity=identity)


def _workload_identity(document: Document) -> WorkloadIdentity:
    tenant, client = _optional(document, "tenant_id"), _optional(document, "client_id")
    check_identifiers(tenant or "absent", client or "absent")
    token_file = _optional(document, "token_file")
    if token_file is not None and not (token_file.startswith("/") and token_file.isprintable()):
        raise FieldError("secret: token_file must be an absolute path, such as /var/run/secrets/…")
    authority_host = _optional(document, "authority_host")
    authority, host = parse_authority(authority_host) if authority_host else (None, "")
    scope = _scope(_optional(document, "scope"))
    return WorkloadIdentity(
        tenant_id=tenant,
        client_id=client,
        token_file=token_file,
        authority=authority,
        scope=scope or (scope_of(host) if authority else None),
    )


_CLIENT_SECRET = _Form(
    "client_secret", ("tenant_id", "client_id"), ("authority_host", "scope"), _client_secret
)
_FORMS = (
    _CLIENT_SECRET,
    _Form(
        "client_certificate",
        ("tenant_id", "client_id"),
        ("client_certificate_password", "authority_host", "scope"),
        _client_certificate,
    ),
    _Form(
        "managed_identity",
        (),
        ("client_id", "object_id", "resource_id", "scope"),
        _managed_identity,
    ),
    _Form(
        "workload_identity",
        (),
        ("tenant_id", "client_id", "token_file", "authority_host", "scope"),
        _workload_identity,
    ),
)


# ── fields ──────────────────────────────────────────────────────────────────────────────────────


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise FieldError(f"secret: {name} must be a string")
    return value.strip()


def _optional(document: Document, name: str, *, required: bool = False) -> str | None:
    """The text of a field; None when it is absent, or null where it need not be there."""
    if name not in document or (document[name] is None and not required):
        return None
    text = _text(name, document[name])
    if not text and not required:
        raise FieldError(f"secret: {name} is empty; write its value or leave it out")
    return text


def _check_identifier(name: str, value: str, rule: re.Pattern[str]) -> None:
    if rule.fullmatch(value) and ".." not in value:
        return
    if rule is _RESOURCE_ID:
        raise FieldError(
            f"secret: {name} must be an Azure resource id, such as /subscriptions/…/resourcegroups/"
            "…/providers/Microsoft.ManagedIdentity/userAssignedIdentities/…"
        )
    kinds = "letters, digits, '.' and '-'" + (" and '_'" if rule is _CLIENT else "")
    raise FieldError(
        f"secret: {name} may hold only {kinds}; copy it from the identity's overview in the portal"
    )


def _scope(value: str | None) -> str | None:
    if value is None:
        return None
    if not _PRINTABLE.fullmatch(value) or not value.endswith("/.default") or value == "/.default":
        raise FieldError(
            f"secret: scope must be one resource followed by /.default: {PUBLIC_SCOPE}"
        )
    return value
