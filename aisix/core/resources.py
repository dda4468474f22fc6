"""What operators configure, compiled for the data path: caller keys, aliases, deployments, limits.

Frozen values, valid by construction: whoever holds one need not check it again. Secrets are kept
out of every repr. Three identities are never mixed: `Alias` (what a caller asks for), `Deployment`
(what we call), and the served model (what Azure says answered). Pure.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from aisix.core.patterns import matches

REQUEST_LIMITS = {"rps": 1.0, "rpm": 60.0, "rph": 3600.0, "rpd": 86400.0}
"""Request limits and their windows in seconds."""

TOKEN_LIMITS = {"tpm": 60.0, "tpd": 86400.0}
"""Token limits and their windows in seconds."""


@dataclass(frozen=True, slots=True)
class LimitPolicy:
    """Limits of one caller key or model. None is "no limit"; 0 denies (decisions §6)."""

    rps: int | None = None
    rpm: int | None = None
    rph: int | None = None
    rpd: int | None = None
    tpm: int | None = None
    tpd: int | None = None
    concurrency: int | None = None


@dataclass(frozen=True, slots=True)
class ResourceKey:
    """An Azure OpenAI resource key, sent as `api-key`."""

    key: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class ClientSecret:
    """An Entra ID app registration. `authority` is an origin, `scope` ends in `/.default`."""

    tenant_id: str
    client_id: str
    client_secret: str = field(repr=False)
    authority: str
    scope: str

    def fingerprint(self) -> str:
        """Identity for caches: all fields, so that a rotated secret never meets the old token."""
        parts = (self.tenant_id, self.client_id, self.client_secret, self.authority, self.scope)
        text = "".join(f"{len(part)}:{part}" for part in parts)
        return hashlib.sha256(text.encode()).hexdigest()


Credential = ResourceKey | ClientSecret


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a stored resource cannot be used. `kind` is "configuration" or "credential"."""

    kind: str
    reason: str


@dataclass(frozen=True, slots=True)
class Deployment:
    """Where an alias leads: one Azure deployment behind one provider key.

    `api_base` is an origin with an optional path prefix and no trailing slash; `api_version` is a
    dated version or "v1". A deployment with a `fault` is refused when used, with the reason.
    """

    name: str
    provider: str
    adapter: str
    api_base: str
    api_version: str
    provider_key_id: str
    provider_key_name: str
    credential: Credential | None = None
    fault: Fault | None = None


@dataclass(frozen=True, slots=True)
class Alias:
    """A caller-facing model name. `name` may hold one `*` (a wildcard model).

    Timeouts are seconds; None means the gateway's default. In `timeout_s` 0 means none, in
    `stream_timeout_s` it falls back to `timeout_s`. `created` is UTC epoch seconds.
    """

    id: str
    name: str
    deployment: Deployment
    limits: LimitPolicy = LimitPolicy()
    timeout_s: float | None = None
    stream_timeout_s: float | None = None
    created: int = 0


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A caller key; only its SHA-256 is known. `expires_at` is UTC epoch seconds.

    `allowed_resources` names the families of shared objects (files, …) that it may reach.
    """

    id: str
    key_hash: str = field(repr=False)
    allowed_models: tuple[str, ...] = ()
    display_name: str | None = None
    limits: LimitPolicy = LimitPolicy()
    expires_at: float | None = None
    disabled: bool = False
    allowed_resources: tuple[str, ...] = ()

    def allows(self, name: str) -> bool:
        """Whether this key may ask for `name`; an empty list allows nothing."""
        allowed = self.allowed_models
        return "*" in allowed or any(matches(pattern, name) for pattern in allowed)
