"""What every upstream dialect has in common: targets, headers, bodies, refusals. Pure.

A dialect says where its operations are and how it is signed in to; the call for it is built here.
Invariants of every call: exactly one authentication header, none of the caller's headers but those
handed in as `forward`, the deployment as the body's `model`, and the caller's document left
unchanged. What operators change about requests (`core.shaping`) is applied before what the upstream
needs.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import lru_cache
from urllib.parse import parse_qsl, quote, urlencode

from aisix import __version__
from aisix.core.endpoints import OPTED_USAGE, Action, BodyForm, EndpointSpec
from aisix.core.exchange import Errand, Payload
from aisix.core.ports import Deadlines, Finding, Route, UpstreamCall, UpstreamTarget
from aisix.core.resources import Credential, Deployment
from aisix.core.shaping import OWN_HEADERS
from aisix.errors import (
    CredentialUnusable,
    FieldError,
    UpstreamFailed,
    UpstreamMisconfigured,
    UpstreamRejected,
)
from aisix.upstream import address, findings, refusals
from aisix.upstream.body import render_body

_ADDRESSING = frozenset({"api-version", "deployment", "model"})
_REMEMBERED_TARGETS = 1024

MODELS_PROBE = EndpointSpec(
    operation="probe_resource", method="GET", path="/models", body=BodyForm.NONE
)


class Dialect(ABC):
    """The half of an Adapter that does not differ. `now` is UTC epoch seconds, for retry hints
    given as a date."""

    def __init__(
        self, *, now: Callable[[], float] = time.time, allow_link_local: bool = False
    ) -> None:
        self._now = now
        self._allow_link_local = allow_link_local
        self._targets: OrderedDict[tuple[Hashable, ...], UpstreamTarget] = OrderedDict()
        """By all that a target is made of; least recently used first."""

    # ── what a dialect says ─────────────────────────────────────────────────────────────────────

    @abstractmethod
    def check_deployment_name(self, name: str) -> None:
        """Raises FieldError when `name` cannot be a deployment."""

    @abstractmethod
    def canonical_base(self, api_base: str | None) -> str:
        """Canonical base, wherever it leads. Raises FieldError with the reason and the fix."""

    @abstractmethod
    def url(self, spec: EndpointSpec, deployment: Deployment, path: str) -> str:
        """Where an operation of `deployment` is; `path` is the row's, or that of an object."""

    @abstractmethod
    def session_url(self, spec: EndpointSpec, deployment: Deployment) -> str:
        """Where sessions with `deployment` are opened; it is named in the query."""

    @abstractmethod
    def authentication(self, credential: Credential, token: str | None) -> tuple[str, str] | None:
        """The one header that signs in; None when there is nothing to sign in with."""

    # ── what follows from it ────────────────────────────────────────────────────────────────────

    def parse_api_base(self, api_base: str | None) -> str:
        """Canonical base. Raises FieldError with the reason and the fix."""
        base = self.canonical_base(api_base)
        if not self._allow_link_local:
            address.refuse_link_local(base)
        return base

    def build_call(
        self,
        spec: EndpointSpec,
        deployment: Deployment,
        *,
        payload: Payload,
        inject_stream_options: bool,
        token: str | None,
        forward: Sequence[tuple[str, str]],
        deadlines: Deadlines,
    ) -> UpstreamCall:
        """The HTTP request for one attempt.

        Raises UpstreamMisconfigured, CredentialUnusable, and BadRequest when the document cannot
        be written as JSON.
        """
        streaming = payload.stream and spec.may_stream
        headers = [pair for pair in forward if _may_forward(*pair)]
        if payload.errand is not None:
            target = self._errand_target(
                spec, deployment, payload.errand, token=token, streaming=streaming
            )
        else:
            target = self._target(
                spec, deployment, token=token, streaming=streaming, query=payload.query
            )
        if spec.body is BodyForm.JSON:
            opted = streaming and spec.usage in OPTED_USAGE
            body = render_body(
                payload,
                deployment.name,
                streaming=opted,
                inject=inject_stream_options,
                shaping=deployment.shaping,
            )
            return UpstreamCall(target, headers, body, deadlines)
        source = payload.source
        if source is None:
            return UpstreamCall(target, headers, b"", deadlines)
        if source.content_type:
            headers.append(("Content-Type", source.content_type))
        return UpstreamCall(target, headers, source.open(deployment.name), deadlines, source.length)

    def _errand_target(
        self,
        spec: EndpointSpec,
        deployment: Deployment,
        errand: Errand,
        *,
        token: str | None,
        streaming: bool,
    ) -> UpstreamTarget:
        """Where and as whom to call about one object: hardly ever the same again, so not kept."""
        url = self._checked_url(spec, deployment, _object_path(spec, errand.resource))
        query = passed_query(errand.query)
        if query:
            url = f"{url}{'&' if '?' in url else '?'}{query}"
        return UpstreamTarget(
            method=errand.method,
            url=url,
            headers=_headers(
                spec, deployment, self._sign_in(deployment, token), streaming=streaming
            ),
            streaming=streaming or spec.flows,
            route=Route(ca_cert=deployment.ca_cert, verify=deployment.verify),
        )

    def _target(
        self,
        spec: EndpointSpec,
        deployment: Deployment,
        *,
        token: str | None,
        streaming: bool,
        query: tuple[tuple[str, str], ...] = (),
    ) -> UpstreamTarget:
        """Where and as whom to call. The credential is part of the key, so that a renewed token or
        a changed key is a new target."""
        authentication = self._sign_in(deployment, token)
        shaping = deployment.shaping
        defaults = shaping.default_headers if shaping is not None else ()
        key = (
            deployment.api_base,
            deployment.name,
            deployment.api_version,
            spec.operation,
            streaming,
            authentication,
            defaults,
            deployment.ca_cert,
            deployment.verify,
            query,
        )
        target = self._targets.get(key)
        if target is not None:
            self._targets.move_to_end(key)
            return target
        target = self._targets[key] = UpstreamTarget(
            method=spec.method,
            url=self._session_url(spec, deployment, query)
            if spec.action is Action.SESSION
            else self._checked_url(spec, deployment, spec.path),
            headers=_headers(spec, deployment, authentication, streaming=streaming),
            streaming=streaming or spec.flows,
            route=Route(ca_cert=deployment.ca_cert, verify=deployment.verify),
        )
        if len(self._targets) > _REMEMBERED_TARGETS:
            self._targets.popitem(last=False)
        return target

    def _sign_in(self, deployment: Deployment, token: str | None) -> tuple[str, str]:
        credential = deployment.credential
        header = None if credential is None else self.authentication(credential, token)
        if header is None:
            raise CredentialUnusable(
                "invalid upstream credentials: there is nothing to authenticate with"
            )
        return header

    def _checked_url(self, spec: EndpointSpec, deployment: Deployment, path: str) -> str:
        if spec is not MODELS_PROBE:
            self._check_name(deployment)
        return self.url(spec, deployment, path)

    def _session_url(
        self, spec: EndpointSpec, deployment: Deployment, query: Sequence[tuple[str, str]]
    ) -> str:
        self._check_name(deployment)
        url = self.session_url(spec, deployment).replace("http", "ws", 1)
        return f"{url}&{urlencode(query)}" if query else url

    def _check_name(self, deployment: Deployment) -> None:
        # a wildcard alias puts the caller's text into the name: it is not checked before
        try:
            self.check_deployment_name(deployment.name)
        except FieldError as error:
            raise UpstreamMisconfigured(f"invalid upstream configuration: {error}") from error

    def probe_resource(
        self, deployment: Deployment, *, token: str | None, deadlines: Deadlines
    ) -> UpstreamCall:
        """A call for the list of models, which costs nothing and needs no deployment."""
        target = self._target(MODELS_PROBE, deployment, token=token, streaming=False)
        return UpstreamCall(target, deadlines=deadlines)

    def refused_stream_options(self, status: int, body: bytes) -> bool:
        """Whether this answer says that the upstream does not know `stream_options`."""
        return refusals.refused_stream_options(status, body)

    def explain(
        self,
        status: int,
        headers: Mapping[str, str],
        body: bytes,
        *,
        deployment: Deployment | None = None,
        of_object: bool = False,
    ) -> UpstreamRejected:
        """The error that a caller gets. With `deployment` its own host and name are scrubbed too,
        not only what looks like one.
        """
        return refusals.explain(
            status,
            headers,
            body,
            now=self._now(),
            deployment=deployment,
            of_object=of_object,
        )

    def judge_failure(self, error: UpstreamFailed) -> Finding:
        """What it means that a probe has no answer."""
        return findings.judge_failure(error)


def passed_query(query: str) -> str:
    """A caller's query as the upstream gets it: all but what addresses an upstream."""
    pairs = parse_qsl(query, keep_blank_values=True, errors="replace")
    return urlencode([pair for pair in pairs if pair[0].lower() not in _ADDRESSING])


def _object_path(spec: EndpointSpec, resource: str) -> str:
    """The path of a row about `resource`, whose characters the router has checked."""
    if spec.subtree:
        return spec.path + quote(resource, safe="/:@=+,~")
    return spec.path.replace("{response_id}", quote(resource, safe=""))


def _headers(
    spec: EndpointSpec,
    deployment: Deployment,
    authentication: tuple[str, str],
    *,
    streaming: bool,
) -> tuple[tuple[str, str], ...]:
    accept = "text/event-stream" if streaming else "*/*" if spec.flows else "application/json"
    own = [authentication]
    if spec.body is BodyForm.JSON:
        own.append(("Content-Type", "application/json"))
    if spec.action is not Action.SESSION:
        own += (("Accept", accept), ("Accept-Encoding", "identity"))
    return (
        *own,
        ("User-Agent", f"aisix/{__version__}"),
        *(deployment.shaping.default_headers if deployment.shaping is not None else ()),
    )


def _may_forward(name: str, value: str) -> bool:
    return value.isascii() and value.isprintable() and _is_forwardable(name)


@lru_cache(maxsize=256)
def _is_forwardable(name: str) -> bool:
    return name.lower() not in OWN_HEADERS and name.isascii() and name.isprintable()
