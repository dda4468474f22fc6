"""What operators configure, compiled for the data path: caller keys, aliases, deployments, limits.

Frozen values, valid by construction: whoever holds one need not check it again. Secrets are kept
out of every repr. Three identities are never mixed: `Alias` (what a caller asks for), `Deployment`
(what we call), and the served model (what Azure says answered). Pure.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from aisix.core.patterns import matches
from aisix.core.shaping import Shaping

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
    """A key of the upstream, sent as it is: an Azure OpenAI resource key, or OpenAI's API key."""

    kind: ClassVar[str] = "resource_key"

    key: str = field(repr=False)

    @property
    def secrets(self) -> tuple[str, ...]:
        """What must never be shown."""
        return (self.key,)


# All fields of a credential are its identity wherever tokens are kept: a rotated secret never meets
# the old token. `authority` is an origin, `scope` ends in `/.default`; both of the same cloud.


@dataclass(frozen=True, slots=True)
class ClientSecret:
    """An Entra ID app registration that shows a secret."""

    kind: ClassVar[str] = "client_secret"

    tenant_id: str
    client_id: str
    client_secret: str = field(repr=False)
    authority: str
    scope: str

    @property
    def names(self) -> dict[str, str]:
        """Who it is, for the log."""
        return {"tenant_id": self.tenant_id, "client_id": self.client_id}

    @property
    def secrets(self) -> tuple[str, ...]:
        """What must never be shown."""
        return (self.client_secret,)


@dataclass(frozen=True, slots=True)
class ClientCertificate:
    """An Entra ID app registration that signs with the key of a certificate.

    `certificate` is PEM text of both, `password` opens the key if it is encrypted.
    """

    kind: ClassVar[str] = "client_certificate"

    tenant_id: str
    client_id: str
    certificate: str = field(repr=False)
    authority: str
    scope: str
    password: str | None = field(repr=False, default=None)

    @property
    def names(self) -> dict[str, str]:
        """Who it is, for the log."""
        return {"tenant_id": self.tenant_id, "client_id": self.client_id}

    @property
    def secrets(self) -> tuple[str, ...]:
        """What must never be shown."""
        return (self.certificate, self.password) if self.password else (self.certificate,)


@dataclass(frozen=True, slots=True)
class ManagedIdentity:
    """The identity that Azure gave the machine, or the one of its several that `identity` names.

    `identity_kind` is "client_id", "object_id" or "resource_id"; "" with an empty `identity` is
    the system-assigned one.
    """

    kind: ClassVar[str] = "managed_identity"

    scope: str
    identity_kind: str = ""
    identity: str = ""

    @property
    def names(self) -> dict[str, str]:
        """Who it is, for the log."""
        return {self.identity_kind: self.identity} if self.identity_kind else {}

    @property
    def secrets(self) -> tuple[str, ...]:
        """Azure keeps them."""
        return ()


@dataclass(frozen=True, slots=True)
class WorkloadIdentity:
    """An Entra ID app registration that trusts the tokens of a Kubernetes service account.

    What is None is the environment's when a token is fetched; without any authority the public
    cloud's, without `scope` the one of the authority's cloud.
    """

    kind: ClassVar[str] = "workload_identity"

    tenant_id: str | None = None
    client_id: str | None = None
    token_file: str | None = None
    authority: str | None = None
    scope: str | None = None

    @property
    def names(self) -> dict[str, str]:
        """Who it is, for the log."""
        named = {"tenant_id": self.tenant_id, "client_id": self.client_id}
        return {name: value for name, value in named.items() if value is not None}

    @property
    def secrets(self) -> tuple[str, ...]:
        """Kubernetes keeps them."""
        return ()


TokenCredential = ClientSecret | ClientCertificate | ManagedIdentity | WorkloadIdentity
"""What an Entra ID token is fetched with."""

Credential = ResourceKey | TokenCredential


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
    `shaping` is None when requests go as they are; `ca_cert` (PEM) and `verify` are None when TLS
    is as the gateway's own settings say.
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
    shaping: Shaping | None = None
    ca_cert: str | None = field(repr=False, default=None)
    verify: bool | None = None


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
