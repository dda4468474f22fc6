"""Which row of the endpoint table a request meets. Pure; built from ENDPOINTS once.

A row is served under every surface (decisions §3): `/v1`, `/openai/v1`,
`/openai/deployments/{alias}` for rows that name a deployment, and `/openai` for those that do not
(AzureOpenAI SDKs). Duplicate and trailing slashes are tolerated, because base URLs are pasted.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import unquote

from aisix.core.endpoints import ENDPOINTS, OTHER, EndpointSpec
from aisix.errors import BadRequest, GatewayError, MethodNotAllowed, NotFound

SURFACES = ("/v1", "/openai/v1")
DEPLOYMENTS = "/openai/deployments/"


@dataclass(frozen=True, slots=True)
class Match:
    """A row, the alias in the path if there is one, or why the request meets no row."""

    spec: EndpointSpec
    path_name: str | None = None
    refusal: GatewayError | None = None


class Routes:
    """Finds rows by method and path."""

    def __init__(self, endpoints: Iterable[EndpointSpec] = ENDPOINTS) -> None:
        self._exact: dict[str, dict[str, EndpointSpec]] = {}
        self._named: dict[str, dict[str, EndpointSpec]] = {}
        self._deployment: dict[str, dict[str, EndpointSpec]] = {}
        for spec in endpoints:
            surfaces = SURFACES if spec.deployment_scoped else (*SURFACES, "/openai")
            for surface in surfaces:
                stem, star, _ = spec.path.partition("{model}")
                table = self._named if star else self._exact
                table.setdefault(surface + stem, {})[spec.method] = spec
            if spec.deployment_scoped:
                self._deployment.setdefault(spec.path, {})[spec.method] = spec
        # as SDKs spell them, which is nearly always
        self._plain = {
            (method, path): Match(spec)
            for path, rows in self._exact.items()
            for method, spec in rows.items()
        }
        self._listed = ", ".join(sorted({spec.template for spec in endpoints}))

    def match(self, method: str, path: str) -> Match:
        """The row for an undecoded request path."""
        plain = self._plain.get((method, path))
        if plain is not None:
            return plain
        parts = [part for part in path.split("/") if part]
        normal = "/" + "/".join(parts)
        rows = self._exact.get(normal)
        name: str | None = None
        if rows is None and normal.startswith(DEPLOYMENTS) and len(parts) > 3:
            rows = self._deployment.get("/" + "/".join(parts[3:]))
            name = parts[2]
        if rows is None and len(parts) > 1:
            rows = self._named.get("/" + "/".join(parts[:-1]) + "/")
            name = parts[-1]
        if rows is None:
            return Match(OTHER, refusal=self._not_found())
        spec = rows.get(method)
        if spec is None:
            return Match(OTHER, refusal=_wrong_method(rows))
        if name is None:
            return Match(spec)
        return _with_name(spec, name)

    def _not_found(self) -> NotFound:
        return NotFound(f"no such route; this gateway serves {self._listed}")


def _wrong_method(rows: dict[str, EndpointSpec]) -> MethodNotAllowed:
    allowed = ", ".join(sorted(rows))
    return MethodNotAllowed(f"method not allowed; use {allowed}", headers={"Allow": allowed})


def _with_name(spec: EndpointSpec, raw: str) -> Match:
    try:
        return Match(spec, path_name=unquote(raw, errors="strict"))
    except UnicodeDecodeError:
        refusal = BadRequest("the model name in the path is not UTF-8", param="model")
        return Match(OTHER, refusal=refusal)
