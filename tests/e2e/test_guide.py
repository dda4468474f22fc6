"""The guide "Azure OpenAI Upstream", step by step, its commands as they stand there.

The real host names are called: `upstream.connect_to` leads them to a simulator over TLS, and
`upstream.tls.ca_file` names the authority of its certificate.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.process import (
    SIMULATOR_KEY,
    GatewayProgram,
    SimulatorProgram,
    gateway,
    simulator,
)
from tests.support.shell import Shell
from tests.support.tls import Certificate, make_certificate

AZURE_HOST = "acme-west.openai.azure.com"
ENTRA_HOST = "login.microsoftonline.com"
ADMIN_KEY = 'export AISIX_ADMIN_KEY="admin-local-only-change-me"'
WITH_RESOURCE_KEY = """\
curl -sS -X POST "http://127.0.0.1:3001/admin/v1/provider_keys" \\
-H "Authorization: Bearer ${AISIX_ADMIN_KEY}" \\
-H "Content-Type: application/json" \\
-d '{
"display_name": "azure-prod",
"provider": "azure",
"adapter": "azure-openai",
"secret": "YOUR_AZURE_API_KEY",
"api_base": "https://acme-west.openai.azure.com"
}'"""
WITH_ENTRA_ID = r"""
curl -sS -X POST "http://127.0.0.1:3001/admin/v1/provider_keys" \
-H "Authorization: Bearer ${AISIX_ADMIN_KEY}" \
-H "Content-Type: application/json" \
-d '{
"display_name": "azure-aad-prod",
"provider": "azure",
"adapter": "azure-openai",
"secret": "{\"tenant_id\":\"YOUR_TENANT_ID\",\"client_id\":\"YOUR_CLIENT_ID\",\"client_secret\":\"YOUR_CLIENT_SECRET\"}",
"api_base": "https://acme-west.openai.azure.com"
}'"""  # noqa: E501 - as it stands in the guide
MODEL = """\
export PROVIDER_KEY_ID="YOUR_PROVIDER_KEY_ID"

curl -sS -X POST "http://127.0.0.1:3001/admin/v1/models" \\
-H "Authorization: Bearer ${AISIX_ADMIN_KEY}" \\
-H "Content-Type: application/json" \\
-d '{
"display_name": "gpt-4o-azure",
"provider": "azure",
"model_name": "gpt4o-prod",
"provider_key_id": "'"${PROVIDER_KEY_ID}"'"
}'"""
CALLER_KEY = """\
export AISIX_API_KEY="sk-azure-caller"

CALLER_KEY_HASH=$(printf '%s' "${AISIX_API_KEY}" | shasum -a 256 | awk '{print $1}')"""
API_KEY = """\
curl -sS -X POST "http://127.0.0.1:3001/admin/v1/apikeys" \\
-H "Authorization: Bearer ${AISIX_ADMIN_KEY}" \\
-H "Content-Type: application/json" \\
-d '{
"key_hash": "'"${CALLER_KEY_HASH}"'",
"allowed_models": ["gpt-4o-azure"]
}'"""
VERIFY = """\
curl -sS -X POST "http://127.0.0.1:3000/v1/chat/completions" \\
-H "Authorization: Bearer ${AISIX_API_KEY}" \\
-H "Content-Type: application/json" \\
-d '{
"model": "gpt-4o-azure",
"messages": [
{"role": "user", "content": "Say hello from Azure OpenAI."}
]
}'"""
PLACEHOLDERS = {
    "YOUR_AZURE_API_KEY": SIMULATOR_KEY,
    "YOUR_TENANT_ID": "11111111-2222-3333-4444-555555555555",
    "YOUR_CLIENT_ID": "66666666-7777-8888-9999-000000000000",
    "YOUR_CLIENT_SECRET": "simulator-secret",
}


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("tls"), AZURE_HOST, ENTRA_HOST)


@pytest.fixture(scope="module")
def azure(certificate: Certificate) -> Iterator[SimulatorProgram]:
    with simulator(*certificate.arguments) as program:
        yield program


@pytest.fixture
def fresh(
    azure: SimulatorProgram, certificate: Certificate, tmp_path: Path
) -> Iterator[GatewayProgram]:
    """A gateway without resources, to which the real hosts are the simulator."""
    azure.clear()
    to = f"127.0.0.1:{azure.port}"
    settings = {
        "AISIX_UPSTREAM__CONNECT_TO": f"{AZURE_HOST}:443:{to},{ENTRA_HOST}:443:{to}",
        "AISIX_UPSTREAM__TLS__CA_FILE": str(certificate.authority),
    }
    with gateway(tmp_path, settings) as program:
        yield program


def follow(shell: Shell, create_provider_key: str) -> tuple[list[Any], Any]:
    """All steps: what the admin API answered, and the verifying answer."""

    def step(commands: str) -> Any:
        for placeholder, value in PLACEHOLDERS.items():
            commands = commands.replace(placeholder, value)
        said = shell.run(commands)
        return json.loads(said) if said else None

    step(ADMIN_KEY)
    provider_key = step(create_provider_key)
    model = step(MODEL.replace("YOUR_PROVIDER_KEY_ID", provider_key["id"]))
    step(CALLER_KEY)
    caller_key = step(API_KEY)
    return [provider_key, model, caller_key], step(VERIFY)


def check_resources(resources: list[Any], name: str) -> None:
    provider_key, model, caller_key = resources
    assert provider_key["revision"] == model["revision"] == caller_key["revision"] == 1
    assert provider_key["value"] == {
        "display_name": name,
        "provider": "azure",
        "adapter": "azure-openai",
        "secret": "***",
        "api_base": f"https://{AZURE_HOST}",
    }
    assert model["value"]["provider_key_id"] == provider_key["id"]
    assert caller_key["value"]["key_hash"] == hashlib.sha256(b"sk-azure-caller").hexdigest()


def check_answer(answer: Any) -> None:
    assert answer["object"] == "chat.completion"
    assert answer["model"] == "gpt-4o-azure"
    assert answer["choices"][0]["message"]["role"] == "assistant"
    assert answer["choices"][0]["message"]["content"].startswith("Hello from Azure OpenAI!")
    assert answer["choices"][0]["finish_reason"] == "stop"
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert "filter_results" not in json.dumps(answer)


def check_upstream_request(record: dict[str, Any]) -> None:
    assert record["path"] == "/openai/deployments/gpt4o-prod/chat/completions"
    assert record["query"] == {"api-version": "2024-10-21"}
    assert record["headers"]["host"] == AZURE_HOST


def test_every_step_works_with_a_resource_key(
    azure: SimulatorProgram, fresh: GatewayProgram, tmp_path: Path
) -> None:
    with Shell(tmp_path, {3000: fresh.proxy, 3001: fresh.admin}) as shell:
        resources, answer = follow(shell, WITH_RESOURCE_KEY)
    check_resources(resources, "azure-prod")
    check_answer(answer)
    (record,) = azure.requests(operation="chat/completions")
    check_upstream_request(record)
    assert record["headers"]["api-key"] == SIMULATOR_KEY
    assert "authorization" not in record["headers"]


def test_every_step_works_with_entra_id(
    azure: SimulatorProgram, fresh: GatewayProgram, tmp_path: Path
) -> None:
    with Shell(tmp_path, {3000: fresh.proxy, 3001: fresh.admin}) as shell:
        resources, answer = follow(shell, WITH_ENTRA_ID)
        check_answer(json.loads(shell.run(VERIFY)))
    check_resources(resources, "azure-aad-prod")
    check_answer(answer)
    (token,) = azure.requests(operation="token")
    assert token["path"] == f"/{PLACEHOLDERS['YOUR_TENANT_ID']}/oauth2/v2.0/token"
    assert token["headers"]["host"] == ENTRA_HOST
    assert "scope=https%3A%2F%2Fcognitiveservices.azure.com%2F.default" in token["body"]
    first, second = azure.requests(operation="chat/completions")
    check_upstream_request(first)
    assert first["headers"]["authorization"].startswith("Bearer ")
    assert first["headers"]["authorization"] == second["headers"]["authorization"]
    assert "api-key" not in first["headers"]
    for line in fresh.lines():
        assert "simulator-secret" not in line
        assert first["headers"]["authorization"].split()[1] not in line


def test_the_bare_resource_name_is_enough(
    azure: SimulatorProgram, fresh: GatewayProgram, tmp_path: Path
) -> None:
    bare = WITH_RESOURCE_KEY.replace(f"https://{AZURE_HOST}", "acme-west")
    with Shell(tmp_path, {3000: fresh.proxy, 3001: fresh.admin}) as shell:
        _, answer = follow(shell, bare)
    check_answer(answer)
    check_upstream_request(azure.requests(operation="chat/completions")[0])


@pytest.mark.parametrize("tail", ["?api-version=2024-10-21", "#top"])
def test_an_api_base_with_more_than_a_place_is_refused(
    fresh: GatewayProgram, tmp_path: Path, tail: str
) -> None:
    with Shell(tmp_path, {3001: fresh.admin}) as shell:
        shell.run(ADMIN_KEY)
        said = json.loads(shell.run(WITH_RESOURCE_KEY.replace(AZURE_HOST, AZURE_HOST + tail)))
    assert said["error_msg"].startswith("schema validation failed at /api_base")


def test_a_wrong_key_and_a_wrong_deployment_are_told_apart(
    azure: SimulatorProgram, fresh: GatewayProgram
) -> None:
    """As the guide says: an authentication error is the key, a route error the deployment."""
    fresh.create_caller_key()
    good = fresh.create_provider_key(f"https://{AZURE_HOST}")
    bad = fresh.create_provider_key(f"https://{AZURE_HOST}", secret="not-the-key")
    fresh.create_model("bad-key", "gpt4o-prod", bad)
    fresh.create_model("bad-deployment", "missing-prod", good)
    for alias, status in (("bad-key", 401), ("bad-deployment", 404)):
        answer = fresh.chat(alias)
        assert answer.status == status
        assert answer.error["type"] == "upstream_error"
        assert "acme-west" not in answer.body.decode()
        assert "missing-prod" not in answer.body.decode()
