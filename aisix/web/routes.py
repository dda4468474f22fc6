"""Which row of the endpoint table a request meets. Pure; built from ENDPOINTS once.

A row is served under every surface (decisions §3): `/v1`, `/openai/v1`, `/openai` for rows whose
dated path names no deployment (AzureOpenAI SDKs), and `/openai/deployments/{alias}` for rows that
may be told their alias so. Duplicate and trailing slashes are tolerated, because base URLs are
pasted. What a path captures is decoded and checked here: nothing of it can lead elsewhere upstream.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import unquote

from aisix.core.endpoints import ENDPOINTS, OTHER, SUBTREE_METHODS, EndpointSpec
from aisix.errors import BadRequest, GatewayError, MethodNotAllowed, NotFound

PLAIN_SURFACES = (("v1",), ("openai", "v1"))
AZURE_SURFACE = ("openai",)
DEPLOYMENTS = "deployments"

_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._~@:=+,-]{0,2047}")
"""Ids of responses, files and the like; none begins with a dot, so none is `..`."""


@dataclass(frozen=True, slots=True)
class Match:
    """A row, the alias in the path if there is one, or why the request meets no row.

    `resource` is the response id in the path, or what follows the path of a row with a subtree,
    from its first slash.
    """

    spec: EndpointSpec
    path_name: str | None = None
    resource: str = ""
    refusal: GatewayError | None = None


class Routes:
    """Finds rows by method and path."""

    def __init__(self, endpoints: Iterable[EndpointSpec] = ENDPOINTS) -> None:
        self._rows = tuple((_segments(spec.path), spec) for spec in endpoints)
        self._listed = ", ".join(sorted({_listed(spec) for _, spec in self._rows}))
        # as SDKs spell them, which is nearly always
        self._plain = {
            (spec.method, "/" + "/".join((*surface, *segments))): Match(spec)
            for segments, spec in self._rows
            if not spec.subtree and "{" not in spec.path
            for surface in _surfaces(spec)
        }

    def match(self, method: str, path: str) -> Match:
        """The row for an undecoded request path."""
        plain = self._plain.get((method, path))
        if plain is not None:
            return plain
        parts = tuple([part for part in path.split("/") if part])
        allowed: list[str] = []
        for surface, alias, rest in _readings(parts):
            for segments, spec in self._rows:
                served = spec.takes_path_alias if alias is not None else surface in _surfaces(spec)
                if not served or not _meets(segments, rest, subtree=spec.subtree):
                    continue
                methods = SUBTREE_METHODS if spec.subtree else (spec.method,)
                if method in methods:
                    return _captured(spec, segments, rest, alias)
                allowed += methods
            if allowed:
                return Match(OTHER, refusal=_wrong_method(allowed))
        return Match(OTHER, refusal=self._not_found())

    def _not_found(self) -> NotFound:
        return NotFound(f"no such route; this gateway serves {self._listed}")


def _segments(path: str) -> tuple[str, ...]:
    return tuple(path.strip("/").split("/"))


def _listed(spec: EndpointSpec) -> str:
    return spec.template + ("/…" if spec.subtree else "")


def _surfaces(spec: EndpointSpec) -> tuple[tuple[str, ...], ...]:
    return PLAIN_SURFACES if spec.deployment_scoped else (*PLAIN_SURFACES, AZURE_SURFACE)


def _readings(
    parts: tuple[str, ...],
) -> Iterable[tuple[tuple[str, ...], str | None, tuple[str, ...]]]:
    """Surface, alias and the rest of a path, in every way it can be read; longest surface first."""
    for surface in (("openai", "v1"), ("openai",), ("v1",)):
        if parts[: len(surface)] == surface:
            rest = parts[len(surface) :]
            if len(rest) > 2 and rest[0] == DEPLOYMENTS:
                yield surface, rest[1], rest[2:]
            yield surface, None, rest


def _meets(segments: Sequence[str], rest: Sequence[str], *, subtree: bool) -> bool:
    if len(rest) != len(segments) and not (subtree and len(rest) > len(segments)):
        return False
    return all(
        part == segment or segment.startswith("{")
        for segment, part in zip(segments, rest, strict=False)
    )


def _captured(
    spec: EndpointSpec, segments: Sequence[str], rest: Sequence[str], alias: str | None
) -> Match:
    name, resource = alias, ""
    for segment, part in zip(segments, rest, strict=False):
        if segment == "{model}":
            name = part
        elif segment == "{response_id}":
            resource = part
    try:
        if name is not None:
            name = unquote(name, errors="strict")
        if resource:
            resource = _id(resource)
        elif spec.subtree:
            resource = "".join([f"/{_id(part)}" for part in rest[len(segments) :]])
    except UnicodeDecodeError:
        refusal = BadRequest("the model name in the path is not UTF-8", param="model")
        return Match(OTHER, refusal=refusal)
    except ValueError as error:
        return Match(OTHER, refusal=BadRequest(str(error)))
    return Match(spec, path_name=name, resource=resource)


def _id(part: str) -> str:
    """An id as it stands in a path, decoded. Raises ValueError for what could be no id."""
    plain = unquote(part)
    if not _ID.fullmatch(plain):
        raise ValueError(
            "the id in the path is not valid: it may hold letters, digits and . _ ~ @ : = + , -"
        )
    return plain


def _wrong_method(methods: Iterable[str]) -> MethodNotAllowed:
    allowed = ", ".join(sorted(set(methods)))
    return MethodNotAllowed(f"method not allowed; use {allowed}", headers={"Allow": allowed})
