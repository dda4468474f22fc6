"""Managed identity: the metadata service of a machine (IMDS), and the endpoint of an app (App
Service, Container Apps).

Both give the tokens that `entra.Authority` mints, each in its own form: all values are texts. A
call that came by a proxy is refused, as the metadata service does. No I/O.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping

from aisix.simulator.entra import RESOURCES, Authority
from aisix.simulator.faults import JSON_TYPE, Fault
from aisix.simulator.script import Script

IMDS_PATH = "/metadata/identity/oauth2/token"
APP_PATH = "/msi/token"

_IMDS_VERSIONS = frozenset({"2018-02-01", "2019-08-01", "2021-02-01"})
_APP_VERSIONS = frozenset({"2019-08-01"})
_IMDS_NAMES = ("client_id", "object_id", "msi_res_id")
_APP_NAMES = ("client_id", "object_id", "principal_id", "mi_res_id")

Fields = Mapping[str, str]


class Identities:
    """Answers for the identities that a host was given."""

    def __init__(self, authority: Authority) -> None:
        self._authority = authority

    def answer(self, path: str, *, query: Fields, headers: Fields, script: Script) -> Fault:
        """The answer to one GET at either path (a `Fault` with status 200)."""
        self._authority.requests += 1
        if script.err is not None:
            return self._authority.scripted(script, "", {"scope": query.get("resource", "")})
        app = path == APP_PATH
        problem = self._app_problem(query, headers) if app else _imds_problem(query, headers)
        if problem is None:
            problem = self._identity_problem(query, _APP_NAMES if app else _IMDS_NAMES)
        return problem or self._grant(query, app=app)

    def _app_problem(self, query: Fields, headers: Fields) -> Fault | None:
        if headers.get("x-identity-header") != self._authority.directory.identity_header:
            return Fault(401, b"", "text/plain")
        if query.get("api-version") not in _APP_VERSIONS:
            return _error("invalid_request", "The api-version is not supported")
        return None

    def _identity_problem(self, query: Fields, names: tuple[str, ...]) -> Fault | None:
        directory = self._authority.directory
        resource = query.get("resource", "")
        if not resource:
            return _error("invalid_request", "Required query variable 'resource' is missing")
        if resource.rstrip("/") not in RESOURCES | directory.audiences:
            return _error(
                "invalid_resource",
                f"AADSTS500011: The resource principal named {resource} was not found.",
            )
        wanted = [query[name] for name in names if name in query]
        if len(wanted) > 1:
            return _error("invalid_request", "Only one identity can be named")
        known = directory.identities
        has = wanted[0] in known if wanted else directory.system_identity
        return None if has else _error("invalid_request", "Identity not found")

    def _grant(self, query: Fields, *, app: bool) -> Fault:
        authority = self._authority
        client = query.get("client_id", str(uuid.uuid4()))
        resource = query["resource"].rstrip("/")
        lifetime = authority.directory.token_lifetime_s
        now = int(authority.clock())
        answer = {
            "access_token": authority.mint("managed", resource, client),
            "client_id": client,
            "expires_on": str(now + lifetime),
            "resource": query["resource"],
            "token_type": "Bearer",
        }
        if not app:
            answer |= {
                "expires_in": str(lifetime),
                "ext_expires_in": str(lifetime),
                "not_before": str(now),
            }
        return Fault(200, json.dumps(answer).encode())


def _imds_problem(query: Fields, headers: Fields) -> Fault | None:
    if headers.get("metadata") != "true":
        return _error("invalid_request", "Required metadata header not specified")
    if "x-forwarded-for" in headers:
        return _error("invalid_request", "Proxied requests are not served")
    if query.get("api-version") not in _IMDS_VERSIONS:
        return _error("invalid_request", "Bad api-version")
    return None


def _error(error: str, text: str) -> Fault:
    return Fault(400, json.dumps({"error": error, "error_description": text}).encode(), JSON_TYPE)
