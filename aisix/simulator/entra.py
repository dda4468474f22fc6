"""The Entra ID token endpoint: a client's secret or assertion in, signed bearer tokens out.

Tokens look like JWTs and carry their audience, expiry and the authority's generation, signed
with a key of this process, so nothing is stored per token and revoking them all is one
increment. The errors are those of the real endpoint, AADSTS number and all.
No I/O but the file of a federated token; the clock is handed in.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs

from aisix.simulator import assertion
from aisix.simulator.faults import JSON_TYPE, Fault, Occasion, build
from aisix.simulator.script import Script

SCOPE_ENDING = "/.default"
RESOURCES = frozenset(
    f"https://{host}"
    for cloud in ("com", "us", "cn")
    for host in (f"cognitiveservices.azure.{cloud}", f"ai.azure.{cloud}")
)
UNKNOWN = "missing"  # tenants and clients so begun do not exist
EXPIRED = "expired"  # secrets so begun are past their date

# AADSTS number → status, error, text
ERRORS: dict[int, tuple[int, str, str]] = {
    50027: (401, "invalid_client", "JWT token is invalid or malformed."),
    70011: (400, "invalid_scope", "The provided request must include a 'scope' input parameter."),
    90002: (400, "invalid_request", "Tenant '{tenant}' not found. Check the tenant ID."),
    500011: (400, "invalid_resource", "The resource principal named {scope} was not found."),
    700016: (
        400,
        "unauthorized_client",
        "Application with identifier '{client}' was not found in the directory '{tenant}'.",
    ),
    700021: (
        401,
        "invalid_client",
        "Client assertion application identifier doesn't match 'client_id' parameter.",
    ),
    700023: (
        401,
        "invalid_client",
        "Client assertion audience claim does not match Realm issuer.",
    ),
    700024: (
        401,
        "invalid_client",
        "Client assertion is not within its valid time range. Current time and expiry do not fit.",
    ),
    700027: (
        401,
        "invalid_client",
        "The certificate with identifier used to sign the client assertion is not registered on "
        "application '{client}'.",
    ),
    700213: (
        401,
        "invalid_client",
        "No matching federated identity record found for presented assertion subject. Check your "
        "federated identity credential Subject, Audience and Issuer against the presented "
        "assertion.",
    ),
    900023: (400, "invalid_request", "Specified tenant identifier '{tenant}' is not valid."),
    1002012: (
        400,
        "invalid_scope",
        "The provided value for scope {scope} is not valid. Client credential flows must have a "
        "scope value with /.default suffixed to the resource identifier (application ID URI).",
    ),
    7000215: (
        401,
        "invalid_client",
        "Invalid client secret provided. Ensure the secret being sent in the request is the client "
        "secret value, not the client secret ID, for a secret added to app '{client}'.",
    ),
    7000218: (
        401,
        "invalid_client",
        "The request body must contain the following parameter: 'client_assertion' or "
        "'client_secret'.",
    ),
    7000222: (
        401,
        "invalid_client",
        "The provided client secret keys for app '{client}' are expired.",
    ),
    9002313: (400, "invalid_request", "Invalid request. Request is malformed or invalid."),
}
UNSUPPORTED_GRANT = 70003


@dataclass(frozen=True, slots=True, kw_only=True)
class Directory:
    """Who may have tokens. None means: any name but one that begins with `missing`."""

    tenants: frozenset[str] | None = None
    clients: frozenset[str] | None = None
    client_secrets: frozenset[str] = frozenset({"simulator-secret"})
    audiences: frozenset[str] = frozenset(
        {"https://cognitiveservices.azure.com", "https://ai.azure.com"}
    )
    certificates: tuple[str, ...] = ()  # PEM texts, registered with every app
    federated_tokens: frozenset[str] = frozenset()
    federated_token_file: Path | None = None  # one more, as the file has it at the moment
    # managed identity: of the host, and those that may be named by any of their names
    system_identity: bool = True
    identities: frozenset[str] = frozenset()
    identity_header: str = "simulator-identity-header"
    token_lifetime_s: int = 3599
    refresh_in_s: int | None = None


class Authority:
    """Mints tokens, checks them, and counts how often it was asked."""

    def __init__(self, directory: Directory, *, clock: Callable[[], float] = time.time) -> None:
        self.directory = directory
        self.requests = 0
        self.issued = 0
        self.clock = clock
        self._key = secrets.token_bytes(32)
        self._generation = 0

    def revoke_all(self) -> None:
        """Every token given out so far is refused from now on."""
        self._generation += 1

    def answer(self, tenant: str, body: bytes, script: Script) -> Fault:
        """The answer to one POST at `/{tenant}/oauth2/v2.0/token` (a `Fault` with status 200)."""
        self.requests += 1
        form = {
            name: values[-1]
            for name, values in parse_qs(
                body.decode("utf-8", "replace"), keep_blank_values=True
            ).items()
        }
        if script.err is not None:
            return self.scripted(script, tenant, form)
        problem = self._check(tenant, form)
        if problem is not None:
            return self.error(problem, tenant, form)
        token = self.mint(tenant, form["scope"].removesuffix(SCOPE_ENDING), form["client_id"])
        lifetime = self.directory.token_lifetime_s
        granted: dict[str, object] = {
            "token_type": "Bearer",
            "expires_in": lifetime,
            "ext_expires_in": lifetime,
        }
        if self.directory.refresh_in_s is not None:
            granted["refresh_in"] = self.directory.refresh_in_s
        return Fault(200, json.dumps({**granted, "access_token": token}).encode())

    def _check(self, tenant: str, form: dict[str, str]) -> int | None:
        """The AADSTS number of what is wrong with a request, or None."""
        known = self.directory
        scope, client = form.get("scope", ""), form.get("client_id", "")
        secret = form.get("client_secret", "")
        problems = (
            (not form.get("grant_type"), 9002313),
            (form.get("grant_type") != "client_credentials", UNSUPPORTED_GRANT),
            (not _knows(known.tenants, tenant), 90002),
            (not client, 9002313),
            (not _knows(known.clients, client), 700016),
            (not scope, 70011),
            (not scope.endswith(SCOPE_ENDING), 1002012),
            (scope.removesuffix(SCOPE_ENDING) not in RESOURCES | known.audiences, 500011),
            (not secret and not form.get("client_assertion"), 7000218),
        )
        problem = next((number for wrong, number in problems if wrong), None)
        if problem is None and "client_assertion" in form:
            return self._check_assertion(tenant, form)
        if problem is None and secret.startswith(EXPIRED):
            return 7000222
        return 7000215 if problem is None and secret not in known.client_secrets else problem

    def _check_assertion(self, tenant: str, form: dict[str, str]) -> int | None:
        known = self.directory
        if form.get("client_assertion_type") != assertion.ASSERTION_TYPE:
            return 9002313
        in_file = assertion.read_federated(known.federated_token_file)
        return assertion.judge(
            form["client_assertion"],
            certificates=known.certificates,
            federated=known.federated_tokens | ({in_file} if in_file else set()),
            client=form["client_id"],
            tenant=tenant,
            now=self.clock(),
        )

    def scripted(self, script: Script, tenant: str, form: dict[str, str]) -> Fault:
        """The answer that a script with an error asks for."""
        name = script.err or ""
        if name.startswith("aadsts"):
            return self.error(int(name.removeprefix("aadsts")), tenant, form)
        if name in {"429", "503"}:
            return self._throttled(int(name), script, tenant, form)
        if name == "500":
            name = "html500"  # the authority's own failures are pages
        return build(name, Occasion(now=self.clock(), script=script))

    def _throttled(self, status: int, script: Script, tenant: str, form: dict[str, str]) -> Fault:
        text = "The server is temporarily too busy to handle the request."
        fault = self._render(status, "temporarily_unavailable", (90033, text), (tenant, form))
        hint = build("overloaded", Occasion(now=self.clock(), script=script)).headers
        return Fault(fault.status, fault.body, fault.content_type, hint)

    def error(self, number: int, tenant: str, form: dict[str, str]) -> Fault:
        """The answer for one AADSTS number."""
        if number == UNSUPPORTED_GRANT:
            entry = (400, "unsupported_grant_type", "The app requested an unsupported grant type.")
        else:
            entry = ERRORS.get(number, (400, "invalid_request", "The request was refused."))
        status, error, text = entry
        return self._render(status, error, (number, text), (tenant, form))

    def _render(
        self, status: int, error: str, what: tuple[int, str], where: tuple[str, dict[str, str]]
    ) -> Fault:
        number, text = what
        tenant, form = where
        words = text.format(
            tenant=tenant, client=form.get("client_id", ""), scope=form.get("scope", "")
        )
        stamp = time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(self.clock()))
        trace, correlation = str(uuid.uuid4()), str(uuid.uuid4())
        body = {
            "error": error,
            "error_description": (
                f"AADSTS{number}: {words} Trace ID: {trace} Correlation ID: {correlation} "
                f"Timestamp: {stamp}"
            ),
            "error_codes": [number],
            "timestamp": stamp,
            "trace_id": trace,
            "correlation_id": correlation,
            "error_uri": f"https://login.microsoftonline.com/error?code={number}",
        }
        return Fault(status, json.dumps(body).encode(), JSON_TYPE)

    def mint(self, tenant: str, audience: str, client: str) -> str:
        """A bearer token for an audience."""
        self.issued += 1
        now = self.clock()
        claims = {
            "aud": audience,
            "iss": f"https://sts.windows.net/{tenant}/",
            "iat": int(now),
            "nbf": int(now),
            "exp": now + self.directory.token_lifetime_s,
            "appid": client,
            "tid": tenant,
            "gen": self._generation,
            "jti": secrets.token_hex(8),
            "ver": "1.0",
        }
        head = _encode(b'{"typ":"JWT","alg":"HS256"}')
        signed = f"{head}.{_encode(json.dumps(claims).encode())}"
        return f"{signed}.{self._sign(signed)}"

    def accepts(self, token: str) -> bool:
        """Whether a bearer token is ours, current, in time and for this resource."""
        signed, _, signature = token.rpartition(".")
        if not hmac.compare_digest(self._sign(signed).encode(), signature.encode(errors="replace")):
            return False
        claims = json.loads(_decode(signed.partition(".")[2]))
        return bool(
            claims["gen"] == self._generation
            and claims["exp"] > self.clock()
            and claims["aud"] in self.directory.audiences
        )

    def _sign(self, text: str) -> str:
        return _encode(hmac.digest(self._key, text.encode(errors="replace"), hashlib.sha256))


def openid_configuration(origin: str, tenant: str) -> bytes:
    """The discovery document that MSAL reads before it asks for a token."""
    base = f"{origin}/{tenant}"
    return json.dumps(
        {
            "token_endpoint": f"{base}/oauth2/v2.0/token",
            "authorization_endpoint": f"{base}/oauth2/v2.0/authorize",
            "issuer": f"{base}/v2.0",
            "token_endpoint_auth_methods_supported": ["client_secret_post", "private_key_jwt"],
        }
    ).encode()


def _knows(names: frozenset[str] | None, name: str) -> bool:
    return not name.startswith(UNKNOWN) if names is None else name in names


def _encode(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
