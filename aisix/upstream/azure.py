"""The Azure OpenAI dialect. Pure.

The only module that knows Azure's URLs and authentication headers; what operators write is checked
in `address` and `secret`, what Azure answers to probes is read in `verdicts`, and the rest of a
call is built in `dialect`.
"""

from __future__ import annotations

from collections.abc import Mapping

from aisix.core.endpoints import EndpointSpec
from aisix.core.exchange import Payload
from aisix.core.ports import Deadlines, Finding, UpstreamCall
from aisix.core.resources import ClientCertificate, Credential, Deployment, ResourceKey
from aisix.upstream import address, refusals, verdicts
from aisix.upstream.dialect import Dialect
from aisix.upstream.secret import check_cloud, parse_secret

_CHAT_PROBE = EndpointSpec(
    operation="probe_deployment", method="POST", path="/chat/completions", deployment_scoped=True
)


class AzureOpenAI(Dialect):
    """The Adapter for Azure OpenAI."""

    name = "azure-openai"

    def canonical_base(self, api_base: str | None) -> str:
        """Canonical base, wherever it leads. Raises FieldError with the reason and the fix."""
        return address.parse_api_base(api_base)

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

    def url(self, spec: EndpointSpec, deployment: Deployment, path: str) -> str:
        """Where an operation of `deployment` is, on the surface that its api-version selects."""
        if deployment.api_version == address.V1:
            return f"{deployment.api_base}/openai/v1{path}"
        scope = f"/deployments/{deployment.name}" if spec.deployment_scoped else ""
        version = deployment.api_version
        return f"{deployment.api_base}/openai{scope}{path}?api-version={version}"

    def session_url(self, spec: EndpointSpec, deployment: Deployment) -> str:
        """Where sessions are opened: the deployment is in the query of both surfaces."""
        if deployment.api_version == address.V1:
            return f"{deployment.api_base}/openai/v1{spec.path}?model={deployment.name}"
        named = f"api-version={deployment.api_version}&deployment={deployment.name}"
        return f"{deployment.api_base}/openai{spec.path}?{named}"

    def authentication(self, credential: Credential, token: str | None) -> tuple[str, str] | None:
        """A resource key as `api-key`, an Entra token as Bearer."""
        if isinstance(credential, ResourceKey):
            return ("api-key", credential.key)
        return ("Authorization", f"Bearer {token}") if token else None

    def refused_token(self, status: int, body: bytes) -> bool:
        """Whether this answer says that the Entra token itself is bad (not the role)."""
        return refusals.refused_token(status, body)

    def build_probe(
        self, deployment: Deployment, *, token: str | None, deadlines: Deadlines
    ) -> UpstreamCall:
        """A call that costs nothing: a chat without messages; of a deployment without a name the
        resource's list of models. Raises what `build_call` raises."""
        if not deployment.name:
            return self.probe_resource(deployment, token=token, deadlines=deadlines)
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
