"""The OpenAI dialect: OpenAI itself, and the servers and gateways that speak its API. Pure.

Every operation is at `{api_base}{path}`, the key is sent as Bearer, and the model is named in the
body, of a session in the query. Operators paste what an SDK's settings or a curl example gave them:
what is below the base is cut off. Invariants: parsing a canonical base again gives the same base,
and no error text repeats a key. What such an upstream answers to a probe is read in `model_list`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import urlencode

from aisix.core.endpoints import ENDPOINTS, EndpointSpec
from aisix.core.ports import Deadlines, Finding, UpstreamCall
from aisix.core.resources import Credential, Deployment, ResourceKey
from aisix.errors import FieldError
from aisix.upstream import address, model_list
from aisix.upstream.address import V1, Address
from aisix.upstream.dialect import Dialect
from aisix.upstream.secret import parse_key

DEFAULT_API_BASE = "https://api.openai.com/v1"

_OPENAI_HOST = re.compile(r"(?:[a-z]{2}\.)?api\.openai\.com")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_MAX_NAME_CHARS = 256
_PATHS = frozenset(tuple(spec.path.split("/")[1:]) for spec in ENDPOINTS if "{" not in spec.path)
"""The paths of operations, in segments."""

_TREES = frozenset(
    spec.path.split("/")[1] for spec in ENDPOINTS if spec.subtree or "{" in spec.path
)
"""What objects are below of. A prefix of somebody's own may hold such a word too, so it tells of an
operation only where a version stands before it."""


class OpenAI(Dialect):
    """The Adapter for OpenAI and compatible servers."""

    name = "openai"

    def canonical_base(self, api_base: str | None) -> str:
        """Canonical base, OpenAI's own for None. Raises FieldError with the reason and the fix."""
        text = (api_base or "").strip()
        if not text:
            return DEFAULT_API_BASE
        place = address.parse_address(text, "api_base", example=DEFAULT_API_BASE)
        base = _base_of(place)
        if "?" in text:
            hint = "; an api-version is for the adapter azure-openai"
            raise FieldError(
                f'api_base must not have a query string; write "{base}"'
                + (hint if "api-version" in place.query else "")
            )
        return base

    def parse_api_version(self, api_version: str | None) -> str:
        """Nothing: there are none. Raises FieldError for anything but None."""
        if api_version is not None:
            raise FieldError(
                "api_version is Azure's, and the adapter openai has none; leave it out (for "
                "Azure's dated versions the provider key's adapter is azure-openai)"
            )
        return ""

    def parse_secret(self, secret: str) -> Credential:
        """The key that `secret` is. Raises FieldError, never echoing it."""
        text = secret.strip()
        if text.startswith("{"):
            raise FieldError(
                "secret is JSON, as an Entra ID credential is, and the adapter openai takes a key "
                "only; write the key alone, or use the adapter azure-openai"
            )
        if not text:
            raise FieldError(
                "secret is empty; write the upstream's key, or any word if it asks for none"
            )
        return parse_key(text)

    def check_credential(self, credential: Credential, *, api_base: str, now: float) -> None:
        """A key says nothing about itself."""

    def check_deployment_name(self, name: str) -> None:
        """Raises FieldError when `name` cannot be a model: `/` and `:` are part of some names."""
        if not name:
            raise FieldError("the model name is empty")
        if len(name) > _MAX_NAME_CHARS or _CONTROL.search(name):
            raise FieldError(
                f"the model name may have up to {_MAX_NAME_CHARS} characters, and no control "
                "characters: write it as the upstream lists it"
            )

    def url(self, spec: EndpointSpec, deployment: Deployment, path: str) -> str:
        """Where an operation is."""
        return deployment.api_base + path

    def session_url(self, spec: EndpointSpec, deployment: Deployment) -> str:
        """Where sessions are opened: the one place where a model is in a URL."""
        return f"{deployment.api_base}{spec.path}?{urlencode({'model': deployment.name})}"

    def authentication(self, credential: Credential, token: str | None) -> tuple[str, str] | None:
        """The key as Bearer."""
        if not isinstance(credential, ResourceKey):
            return None
        return ("Authorization", f"Bearer {credential.key}")

    def refused_token(self, status: int, body: bytes) -> bool:
        """There are no tokens."""
        return False

    def build_probe(
        self, deployment: Deployment, *, token: str | None, deadlines: Deadlines
    ) -> UpstreamCall:
        """The list of models, which names the deployment too. Some servers would begin to write
        when they are asked for a chat without messages."""
        return self.probe_resource(deployment, token=token, deadlines=deadlines)

    def judge_answer(
        self, status: int, headers: Mapping[str, str], body: bytes, *, deployment: Deployment
    ) -> Finding:
        """What the answer to a probe means."""
        return model_list.judge_answer(status, headers, body, deployment=deployment)


def _base_of(place: Address) -> str:
    if place.is_azure:
        return f"https://{place.host}/openai/{V1}"  # there is no other such surface
    segments = _prefix(place.segments)
    if place.port is None and _OPENAI_HOST.fullmatch(place.host):
        return "/".join((f"https://{place.host}", *(segments or (V1,))))
    return "/".join((place.origin, *segments))


def _prefix(segments: tuple[str, ...]) -> tuple[str, ...]:
    """What stands before the path of an operation. Repeated, so that what is left ends in none."""
    for index, segment in enumerate(segments):
        below_version = index > 0 and segments[index - 1] == V1
        if segments[index:] in _PATHS or (below_version and segment in _TREES):
            return _prefix(segments[:index])
    return segments
