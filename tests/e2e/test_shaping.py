"""What a provider key and a model change about requests, as the upstream sees it; and whom they
trust, where they may not lead, how long they wait."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import pytest

from tests.support.process import ADMIN_KEY, Stand, gateway, send, simulator
from tests.support.tls import make_certificate

AZURE_HOST = "acme-west.openai.azure.com"


def shaped(bench: Stand, deployment: str, *, model: Any = None, **key_fields: Any) -> str:
    """A new alias for a deployment behind a provider key of its own."""
    alias = f"{deployment}.{uuid.uuid4().hex[:8]}"
    key_id = bench.gateway.create_provider_key(bench.azure.url, **key_fields)
    bench.gateway.create_model(alias, deployment, key_id, **(model or {}))
    return alias


def deployment_named(*script: str) -> str:
    """A deployment that no other test asks."""
    return "-".join(["gpt4o", *script, uuid.uuid4().hex])


def seen(bench: Stand, deployment: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Body and headers of the only request to a deployment."""
    (record,) = bench.azure.requests(deployment=deployment, wait=1)
    return json.loads(record["body"]), dict(record["headers"])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("padding", ["", "x" * 8000])
def test_max_tokens_is_renamed_for_a_reasoning_deployment(
    bench: Stand, stream: bool, padding: str
) -> None:
    renames = {"param_renames": {"max_tokens": "max_completion_tokens"}}
    deployment = deployment_named("reasoning")
    alias = shaped(bench, deployment, model=renames)
    answer = bench.gateway.chat(alias, max_tokens=50, stream=stream, user=padding)
    assert answer.status == 200, answer.body
    body, _ = seen(bench, deployment)
    assert body["max_completion_tokens"] == 50
    assert "max_tokens" not in body
    plain = bench.alias(deployment_named("reasoning"))
    refused = bench.gateway.chat(plain, max_tokens=50)
    assert (refused.status, refused.error["param"]) == (400, "max_tokens")


def test_a_body_is_shaped_by_key_and_model_together(bench: Stand) -> None:
    deployment = deployment_named()
    request = {
        "param_renames": {"heat": "temperature", "kept": "never"},
        "param_constraints": {"temperature_max": 0.5},
        "default_body_fields": {"user": "gateway", "seed": None},
    }
    model = {"param_renames": {"kept": "kept"}}
    alias = shaped(bench, deployment, request=request, model=model)
    answer = bench.gateway.chat(alias, heat=1.5, kept="as it is", stream=True)
    assert answer.status == 200, answer.body
    body, _ = seen(bench, deployment)
    assert body == {
        "model": deployment,
        "messages": [{"role": "user", "content": "ping"}],
        "temperature": 0.5,
        "kept": "as it is",
        "user": "gateway",
        "seed": None,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_headers_are_added_passed_on_and_stripped(bench: Stand) -> None:
    deployment = deployment_named()
    alias = shaped(
        bench,
        deployment,
        request={
            "default_headers": {"Ocp-Apim-Subscription-Key": "front-door-key"},
            "forward_client_headers": ["x-tenant-*", "*"],
        },
        strip_headers=["X-Note"],
    )
    answer = bench.gateway.chat(
        alias,
        x_tenant_id="acme",
        x_note="not for azure",
        x_other="2",
        x_api_key="sk-azure-caller",
        x_stainless_lang="python",
    )
    assert answer.status == 200, answer.body
    _, headers = seen(bench, deployment)
    assert headers["ocp-apim-subscription-key"] == "front-door-key"
    assert (headers["x-tenant-id"], headers["x-other"]) == ("acme", "2")
    assert headers["api-key"] == "simulator-key"
    assert not {"x-note", "x-api-key", "authorization", "x-stainless-lang"} & set(headers)
    assert "front-door-key" not in "\n".join(bench.gateway.lines())


def test_a_key_that_is_not_shaped_passes_no_further_header(bench: Stand) -> None:
    deployment = deployment_named()
    assert bench.gateway.chat(bench.alias(deployment), x_tenant_id="acme").status == 200
    _, headers = seen(bench, deployment)
    assert "x-tenant-id" not in headers


def test_what_a_read_shows_of_a_shaped_key_can_be_put_back(bench: Stand) -> None:
    deployment = deployment_named()
    alias = f"shown.{uuid.uuid4().hex[:8]}"
    request = {"default_headers": {"x-front-door": "front-door-key"}}
    key_id = bench.gateway.create_provider_key(bench.azure.url, request=request)
    bench.gateway.create_model(alias, deployment, key_id)
    read = bench.gateway.manage("GET", f"provider_keys/{key_id}")
    assert read.json["value"]["request"] == {"default_headers": {"x-front-door": "***"}}
    put = bench.gateway.manage("PUT", f"provider_keys/{key_id}", read.json["value"])
    assert put.status == 200, put.body
    assert bench.gateway.chat(alias).status == 200
    assert seen(bench, deployment)[1]["x-front-door"] == "front-door-key"
    assert "front-door-key" not in "\n".join(bench.gateway.lines())


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"request": {"default_headers": {"Host": "x"}}}, '"host" cannot be set'),
        (
            {"request": {"default_body_fields": {"messages": []}}},
            '"messages" cannot have a default',
        ),
        ({"tls": {"ca_cert": "nothing"}}, "/tls/ca_cert: holds no certificate"),
        ({"api_base": "http://169.254.169.254"}, "set upstream.allow_link_local"),
    ],
)
def test_what_cannot_be_used_is_refused_when_written(
    bench: Stand, fields: dict[str, Any], said: str
) -> None:
    key = {"display_name": "bad", "provider": "azure", "secret": "s", "api_base": "acme"}
    answer = bench.gateway.manage("POST", "provider_keys", {**key, **fields})
    assert answer.status == 400
    assert said in answer.json["error_msg"]


def test_a_models_own_timeout_ends_a_call(bench: Stand) -> None:
    alias = bench.alias(deployment_named("hang"), timeout=200)
    answer = bench.gateway.chat(alias)
    assert answer.status == 504
    assert answer.error["message"] == "upstream request timed out after 200ms"


def test_a_models_own_gap_ends_a_stream(bench: Stand) -> None:
    alias = bench.alias(deployment_named("stall3"), stream_timeout=200)
    answer = bench.gateway.chat(alias, stream=True)
    assert answer.status == 200
    assert answer.events[-1]["error"]["message"] == "upstream request timed out after 200ms"


def test_a_private_authority_is_trusted_by_the_key_that_names_it(tmp_path: Path) -> None:
    served = make_certificate(tmp_path, AZURE_HOST)
    authority = served.authority.read_text()
    with simulator(*served.arguments) as azure:
        settings = {"AISIX_UPSTREAM__CONNECT_TO": f"{AZURE_HOST}:443:127.0.0.1:{azure.port}"}
        with gateway(tmp_path, settings) as program:
            program.create_caller_key()
            for name, fields, status in (
                ("plain", {}, 502),
                ("trusting", {"tls": {"ca_cert": authority}}, 200),
                ("careless", {"tls": {"verify": False}}, 200),
                ("plain-again", {"tls": {"verify": True}}, 502),
            ):
                key_id = program.create_provider_key(f"https://{AZURE_HOST}", **fields)
                program.create_model(name, "gpt4o-prod", key_id)
                answer = program.chat(name)
                assert answer.status == status, (name, answer.body)
                if status == 502:
                    assert "certificate could not be verified" in answer.error["message"]
            (warning,) = program.events("admin.tls_not_verified")
            assert warning["level"] == "warning"
            assert "BEGIN CERTIFICATE" not in "\n".join(program.lines())


def test_a_name_that_leads_to_a_metadata_service_is_not_called(tmp_path: Path) -> None:
    """The system is never asked to connect there: it would be refused before."""
    settings = {"AISIX_UPSTREAM__CONNECT_TO": "gw.test:443:169.254.169.254:80"}
    with gateway(tmp_path, settings) as program:
        program.create_caller_key()
        key_id = program.create_provider_key("https://gw.test")
        program.create_model("leads-away", "gpt4o-prod", key_id)
        answer = program.chat("leads-away")
        assert answer.status == 400
        assert answer.error["code"] == "invalid_upstream_configuration"
        assert "upstream.allow_link_local" in answer.error["message"]
        assert "gw.test" not in answer.body.decode()
        assert answer.headers["x-should-retry"] == "false"
        headers = {"Authorization": f"Bearer {ADMIN_KEY}"}
        (status,) = send("GET", f"{program.admin}/admin/v1/models/status", headers=headers).json
        assert status["status_reason"] == "upstream_misconfigured"
