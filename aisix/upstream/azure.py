"""The Azure OpenAI dialect: builds calls and explains answers, without I/O. Pure.

The only module that knows Azure's URLs, headers and body rules; what operators write is checked
in `address` and `secret`; error answers are read in `refusals`. Invariants of every call: exactly
one authentication header, none of the caller's headers but those handed in as `forward`, the
deployment as the body's `model`, and the caller's document left unchanged. What operators change
about requests (`core.shaping`) is applied before what Azure needs.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import lru_cache
from urllib.parse import parse_qsl, quote, urlencode

from aisix import __version__
from aisix.core.endpoints import OPTED_USAGE, Action, BodyForm, EndpointSpec
from aisix.core.exchange import Errand, Payload
from aisix.core.ports import Deadlines, Finding, Route, UpstreamCall, UpstreamTarget
from aisix.core.resources import ClientCertificate, Credential, Deployment, ResourceKey
from aisix.core.shaping import OWN_HEADERS
from aisix.errors import (
    CredentialUnusable,
    FieldError,
    UpstreamFailed,
    UpstreamMisconfigured,
    UpstreamRejected,
)
from aisix.upstream import address, refusals, verdicts
from aisix.upstream.body import render_body
from aisix.upstream.secret import check_cloud, parse_secret

_ADDRESSING = frozenset({"api-version", "deployment", "model"})
_REMEMBERED_TARGETS = 1024

_MODELS_PROBE = EndpointSpec(
    operation="probe_resource", method="GET", path="/models", body=BodyForm.NONE
)
_CHAT_PROBE = EndpointSpec(
    operation="probe_deployment", method="POST", path="/chat/completions", deployment_scoped=True
)


class AzureOpenAI:
    """The Adapter for Azure OpenAI. `now` is UTC epoch seconds, for retry hints given as a date."""

    name = "azure-openai"

    def __init__(
        self, *, now: Callable[[], float] = time.time, allow_link_local: bool = False
    ) -> None:
        self._now = now
        self._allow_link_local = allow_link_local
        self._targets: OrderedDict[tuple[Hashable, ...], UpstreamTarget] = OrderedDict()
        """By all that a target is made of; least recently used first."""

    def parse_api_base(self, api_base: str | None) -> str:
        """Canonical base. Raises FieldError with the reason and the fix."""
        base = address.parse_api_base(api_base)
        if not self._allow_link_local:
            address.refuse_link_local(base)
        return base

    def parse_api_version(self, api_version: str | None) -> str:
        """Checked api-version, the default for None. Raises FieldError."""
        return address.parse_api_version(api_version)

    def parse_secret(self, secret: str) -> Credential:
        """The credential that `secret` spells. Raises FieldError, never echoing it."""
        return parse_secret(secret)

    def check_credential(self, credential: Credential, *, api_base: str, now: float) -> None:
        """Whether the certificate is good, and the scope of the cloud of `api_base`. Raises
        FieldError, never echoing a secret."""
        if isinstance(credential, ClientCertificate):
            # imported here: only the control half writes, and cryptography is large
            from aisix.upstream.certificate import check_certificate  # noqa: PLC0415

            check_certificate(credential.certificate, credential.password, now=now)
        if not isinstance(credential, ResourceKey):
            check_cloud(credential, api_base)

    def check_deployment_name(self, name: str) -> None:
        """Raises FieldError when `name` cannot be a deployment."""
        address.check_deployment_name(name)

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
        url = _url(spec, deployment, _object_path(spec, errand.resource))
        query = passed_query(errand.query)
        if query:
            url = f"{url}{'&' if '?' in url else '?'}{query}"
        return UpstreamTarget(
            method=errand.method,
            url=url,
            headers=_headers(spec, deployment, token, streaming=streaming),
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
        scheme, secret = _authentication(deployment.credential, token)
        shaping = deployment.shaping
        defaults = shaping.default_headers if shaping is not None else ()
        key = (
            deployment.api_base,
            deployment.name,
            deployment.api_version,
            spec.operation,
            streaming,
            scheme,
            secret,
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
            url=_session_url(spec, deployment, query)
            if spec.action is Action.SESSION
            else _url(spec, deployment, spec.path),
            headers=_headers(spec, deployment, token, streaming=streaming),
            streaming=streaming or spec.flows,
            route=Route(ca_cert=deployment.ca_cert, verify=deployment.verify),
        )
        if len(self._targets) > _REMEMBERED_TARGETS:
            self._targets.popitem(last=False)
        return target

    def refused_stream_options(self, status: int, body: bytes) -> bool:
        """Whether this answer says that the api-version does not know `stream_options`."""
        return refusals.refused_stream_options(status, body)

    def refused_token(self, status: int, body: bytes) -> bool:
        """Whether this answer says that the Entra token itself is bad (not the role)."""
        return refusals.refused_token(status, body)

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

    def build_probe(
        self, deployment: Deployment, *, token: str | None, deadlines: Deadlines
    ) -> UpstreamCall:
        """A call that costs nothing: a chat without messages; of a deployment without a name the
        resource's list of models. Raises what `build_call` raises."""
        if not deployment.name:
            target = self._target(_MODELS_PROBE, deployment, token=token, streaming=False)
            return UpstreamCall(target, deadlines=deadlines)
        return self.build_call(
            _CHAT_PROBE,
            deployment,
            payload=Payload({"messages": []}, requested=deployment.name),
            inject_stream_options=False,
            token=token,
            forward=(),
            deadlines=deadlines,
        )

    def judge_answer(
        self, status: int, headers: Mapping[str, str], body: bytes, *, deployment: Deployment
    ) -> Finding:
        """What the answer to a probe means."""
        return verdicts.judge_answer(status, headers, body, deployment=deployment)

    def judge_failure(self, error: UpstreamFailed) -> Finding:
        """What it means that a probe has no answer."""
        return verdicts.judge_failure(error)


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
    spec: EndpointSpec, deployment: Deployment, token: str | None, *, streaming: bool
) -> tuple[tuple[str, str], ...]:
    accept = "text/event-stream" if streaming else "*/*" if spec.flows else "application/json"
    own = [_authentication(deployment.credential, token)]
    if spec.body is BodyForm.JSON:
        own.append(("Content-Type", "application/json"))
    if spec.action is not Action.SESSION:
        own += (("Accept", accept), ("Accept-Encoding", "identity"))
    return (
        *own,
        ("User-Agent", f"aisix/{__version__}"),
        *(deployment.shaping.default_headers if deployment.shaping is not None else ()),
    )


def _url(spec: EndpointSpec, deployment: Deployment, path: str) -> str:
    if spec is not _MODELS_PROBE:
        _check_name(deployment)
    if deployment.api_version == address.V1:
        return f"{deployment.api_base}/openai/v1{path}"
    scope = f"/deployments/{deployment.name}" if spec.deployment_scoped else ""
    version = deployment.api_version
    return f"{deployment.api_base}/openai{scope}{path}?api-version={version}"


def _session_url(
    spec: EndpointSpec, deployment: Deployment, query: Sequence[tuple[str, str]]
) -> str:
    """Where sessions are opened: the deployment is in the query of both surfaces."""
    _check_name(deployment)
    base = deployment.api_base.replace("http", "ws", 1)
    if deployment.api_version == address.V1:
        path, named = "/openai/v1", {"model": deployment.name}
    else:
        path = "/openai"
        named = {"api-version": deployment.api_version, "deployment": deployment.name}
    return f"{base}{path}{spec.path}?{urlencode([*named.items(), *query])}"


def _check_name(deployment: Deployment) -> None:
    # a wildcard alias puts the caller's text into the name: it is not checked before
    try:
        address.check_deployment_name(deployment.name)
    except FieldError as error:
        raise UpstreamMisconfigured(f"invalid upstream configuration: {error}") from error


def _authentication(credential: Credential | None, token: str | None) -> tuple[str, str]:
    if isinstance(credential, ResourceKey):
        return ("api-key", credential.key)
    if credential is not None and token:
        return ("Authorization", f"Bearer {token}")
    raise CredentialUnusable("invalid upstream credentials: there is nothing to authenticate with")


def _may_forward(name: str, value: str) -> bool:
    return value.isascii() and value.isprintable() and _is_forwardable(name)


@lru_cache(maxsize=256)
def _is_forwardable(name: str) -> bool:
    return name.lower() not in OWN_HEADERS and name.isascii() and name.isprintable()
