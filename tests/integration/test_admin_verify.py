"""Every verdict of a verification, at the simulator and at listeners in bad order."""

from __future__ import annotations

import asyncio
import datetime
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trustme

from aisix.admin.refusals import Refusal
from aisix.admin.verify import AT_ONCE, Verification, Verifier
from aisix.core.resources import ClientSecret, Credential, Deployment, Fault, ResourceKey
from aisix.simulator.server import Simulator
from aisix.upstream.azure import AzureOpenAI
from aisix.upstream.credentials import EntraTokens
from aisix.upstream.openai import OpenAI
from tests.integration.test_credentials_entra import CountingRecorder
from tests.support.azure import CLIENT, CLIENT_SECRET, KEY, TENANT, azure
from tests.support.builders import make_deployment, make_openai_deployment
from tests.support.raw_server import RawConnection, answers, raw_server
from tests.support.transports import RealClock, curl_transport

pytestmark = pytest.mark.gen_test

VERSION = "api-version=2024-10-21"
LATER_VERSION = b'{"error":{"message":"Model o3 is enabled only for api versions x and later"}}'
UNKNOWN_VERSION = b'{"error":{"code":"UnsupportedApiVersion","message":""}}'
SCOPE = "https://cognitiveservices.azure.com/.default"


@asynccontextmanager
async def verifier(*, deadline_s: float = 15.0, **options: Any) -> AsyncIterator[Verifier]:
    """One as the control half has it, over libcurl and azure-identity."""
    clock = RealClock()
    async with curl_transport(**options) as transport:
        tokens = EntraTokens(transport=transport, clock=clock, recorder=CountingRecorder())
        yield Verifier(
            adapters={"azure-openai": AzureOpenAI(), "openai": OpenAI()},
            transport=transport,
            tokens=tokens,
            clock=clock,
            deadline_s=deadline_s,
        )
        await tokens.close()


def at(api_base: str, credential: Credential | None = None, **fields: Any) -> Deployment:
    return make_deployment(api_base=api_base, credential=credential or ResourceKey(KEY), **fields)


def entra(authority: str, **changes: Any) -> ClientSecret:
    fields = {
        "tenant_id": TENANT,
        "client_id": CLIENT,
        "client_secret": CLIENT_SECRET,
        "authority": authority,
        "scope": SCOPE,
    }
    return ClientSecret(**{**fields, **changes})


def fault(found: Verification, stage: str, message: str, fix: str) -> None:
    """The verdict, in its words; nothing of a secret in it."""
    told = found.render()
    assert (told["ok"], told["stage"]) == (False, stage), told
    assert message in told["message"]
    assert fix in (told["fix"] or "")
    assert CLIENT_SECRET not in json.dumps(told)
    assert f'"{KEY}"' not in json.dumps(told)


# ── all is well ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("api_version", ["2024-10-21", "v1"])
async def test_a_provider_key_is_tried_by_the_list_of_models(api_version):
    async with azure() as simulator, verifier() as verify:
        found = await verify.verify(at(simulator.url, name="", api_version=api_version))
        (asked,) = simulator.azure_requests
    path, query = ("/v1/models", "") if api_version == "v1" else ("/models", f"?{VERSION}")
    path = f"/openai{path}"
    assert (asked.method, asked.path, asked.body) == ("GET", path, b"")
    told = found.render()
    assert told | {"latency_ms": 0, "upstream_request_id": ""} == {
        "ok": True,
        "stage": None,
        "message": "address, credential and api_version are right",
        "fix": None,
        "request": f"GET {simulator.url}{path}{query}",
        "upstream_status": 200,
        "upstream_message": None,
        "upstream_request_id": "",
        "latency_ms": 0,
    }
    assert told["upstream_request_id"]
    assert 0 <= told["latency_ms"] < 15_000


@pytest.mark.parametrize("api_version", ["2024-10-21", "v1"])
async def test_a_model_is_tried_by_a_chat_that_azure_refuses_before_any_work(api_version):
    async with azure() as simulator, verifier() as verify:
        found = await verify.verify(at(simulator.url, api_version=api_version))
        (asked,) = simulator.azure_requests
    assert asked.json == {"messages": [], "model": "gpt4o-prod"}
    assert asked.status == found.upstream_status == 400
    assert found.finding.ok
    assert found.finding.message == (
        "address, credential, api_version and deployment are right: Azure refused only the empty "
        "request"
    )


async def test_a_deployment_of_another_kind_is_right_and_said_to_be_no_chat_model():
    body = b'{"error":{"code":"OperationNotSupported","message":"does not work with the model"}}'
    async with answering(400, body) as url, verifier() as verify:
        found = await verify.verify(at(url))
    assert found.finding.ok
    assert "it is no chat model" in found.finding.message


async def test_a_list_of_models_longer_than_is_read_is_good():
    body = b'{"data":[' + b'{"id":"gpt-4o"},' * 20_000 + b'{"id":"last"}]}'
    async with answering(200, body) as url, verifier() as verify:
        assert (await verify.verify(at(url, name=""))).finding.ok


@pytest.mark.parametrize("name", ["", "gpt4o-prod"])
async def test_an_entra_credential_is_tried_with_a_token(name):
    async with azure() as simulator, verifier() as verify:
        found = await verify.verify(at(simulator.url, entra(simulator.url), name=name))
        assert found.finding.ok
        assert len(simulator.token_requests) == 1
        assert simulator.azure_requests[0].headers["authorization"].startswith("Bearer ")


async def test_a_revoked_token_costs_one_renewal_as_in_traffic():
    async with azure() as simulator, verifier() as verify:
        deployment = at(simulator.url, entra(simulator.url))
        assert (await verify.verify(deployment)).finding.ok
        simulator.revoke_tokens()
        assert (await verify.verify(deployment)).finding.ok
        assert [record.status for record in simulator.azure_requests] == [400, 401, 400]
        assert len(simulator.token_requests) == 2


# ── what Azure answers ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("script", "stage", "message", "fix"),
    [
        ("err-key", "authentication", "refuses the resource key", "KEY 1 or KEY 2"),
        ("err-rbac", "authentication", "lacks a role", "Cognitive Services OpenAI User"),
        ("err-tenant", "authentication", "of another tenant", "check tenant_id"),
        ("err-key_disabled", "access", "takes no keys", "use an Entra ID credential"),
        ("err-firewall", "access", "network rules", "page Networking"),
        ("err-vnet", "access", "network rules", "private endpoint"),
        ("err-private", "access", "network rules", "private endpoint"),
        ("err-suspended", "access", "blocked by Azure", "read upstream_message"),
        ("err-deployment", "deployment", 'has no deployment "gpt4o-prod"', "as model_name"),
        ("err-resource", "version", "does not know this path", 'api_version is "2024-10-21"'),
        ("err429", "limits", "throttles it", "tokens per minute"),
        ("err-capacity", "limits", "throttles it", "wait, or"),
        ("err500", "upstream", "answered 500", "try again"),
        ("err-html503", "upstream", "answered 503", "upstream_request_id"),
        ("err408", "upstream", "answered 408", "read upstream_message"),
        ("err302", "address", "answered 302", "as api_base"),
        ("err-html200", "address", "not one of Azure OpenAI", "check api_base"),
        ("err-empty200", "address", "not one of Azure OpenAI", "check api_base"),
    ],
)
async def test_an_answer_of_azure_is_told_in_words_with_a_fix(script, stage, message, fix):
    async with azure() as simulator, verifier() as verify:
        simulator.script("gpt4o-prod", script)
        found = await verify.verify(at(simulator.url))
        fault(found, stage, message, fix)
        (asked,) = simulator.azure_requests
    assert found.upstream_status == asked.status
    assert found.upstream_request_id is not None


@pytest.mark.parametrize(
    ("status", "body", "stage", "message"),
    [
        (404, b"<html>not here</html>", "address", "not one of Azure OpenAI"),
        (403, b"<html>no</html>", "access", "something on the way"),
        (400, b"<html>no</html>", "address", "not one of Azure OpenAI"),
        (418, b"teapot", "address", "not one of Azure OpenAI"),
        (403, b'{"error":{"code":"403","message":"no"}}', "access", "refuses access"),
        (400, LATER_VERSION, "version", "does not take this api_version"),
        (400, UNKNOWN_VERSION, "version", "does not take this api_version"),
    ],
)
async def test_an_answer_of_something_else_is_told_apart(status, body, stage, message):
    async with answering(status, body) as url, verifier() as verify:
        found = await verify.verify(at(url))
    fault(found, stage, message, "")
    assert found.upstream_request_id is None


async def test_a_resource_that_will_not_list_its_models_says_to_try_one():
    body = b'{"error":{"code":"400","message":"no"}}'
    async with answering(400, body) as url, verifier() as verify:
        fault(await verify.verify(at(url, name="")), "upstream", "to list", "verify a model")


async def test_azures_own_words_and_request_id_are_shown():
    async with azure() as simulator, verifier() as verify:
        found = await verify.verify(at(simulator.url, name="missing-dep"))
    assert found.upstream_request_id
    assert found.render()["upstream_message"].startswith("The API deployment for this resource")


async def test_a_token_that_stays_refused_is_azures_refusal():
    async with azure(audiences=frozenset({"https://other"})) as simulator, verifier() as verify:
        found = await verify.verify(at(simulator.url, entra(simulator.url)))
        fault(found, "authentication", "refuses the access token", f"(it is {SCOPE})")
        assert "audience is incorrect" in found.render()["upstream_message"]
        assert len(simulator.token_requests) == 2
        again = await verify.verify(at(simulator.url, entra(simulator.url)))
        fault(again, "authentication", "refuses the access token", "")
        assert len(simulator.token_requests) == 2, "no other token can be had so soon"


# ── the way to a token ──────────────────────────────────────────────────────────────────────────


@pytest.mark.logs("token.failed")
@pytest.mark.parametrize(
    ("changes", "number", "fix"),
    [
        ({"client_secret": "wrong"}, 7000215, "the client secret's value, not its ID"),
        ({"client_secret": "expired-1"}, 7000222, "has expired"),
        ({"client_id": "missing"}, 700016, "check client_id"),
        ({"tenant_id": "missing"}, 90002, "check tenant_id"),
        ({"scope": "https://elsewhere/.default"}, 500011, "check scope"),
    ],
)
async def test_a_refused_credential_is_told_with_its_number_and_azure_is_not_asked(
    changes, number, fix
):
    async with azure() as simulator, verifier() as verify:
        found = await verify.verify(at(simulator.url, entra(simulator.url, **changes)))
        fault(found, "credential", f"(AADSTS{number})", fix)
        assert simulator.azure_requests == []
    assert found.request is None
    assert found.upstream_status is None
    assert f"AADSTS{number}:" in found.render()["upstream_message"]


@pytest.mark.logs("token.failed")
async def test_an_authority_out_of_reach_is_told_apart_from_azure_out_of_reach():
    async with azure() as simulator, verifier() as verify:
        found = await verify.verify(at(simulator.url, entra("http://127.0.0.1:1")))
    fault(found, "credential", "the token authority cannot be reached", "is authority_host right")


@pytest.mark.logs("token.failed")
async def test_a_silent_authority_ends_at_the_deadline():
    async with azure() as simulator, verifier(deadline_s=0.2) as verify:
        simulator.script("@entra", "hang")
        found = await verify.verify(at(simulator.url, entra(simulator.url)))
    fault(found, "credential", "no verdict within 0.2 s", "token authority")


@pytest.mark.logs("token.failed")
async def test_a_fresh_token_that_cannot_be_had_is_told_as_the_credentials_fault():
    async with azure() as simulator, verifier() as verify:
        deployment = at(simulator.url, entra(simulator.url))
        assert (await verify.verify(deployment)).finding.ok
        simulator.revoke_tokens()
        simulator.script("@entra", "err503")
        found = await verify.verify(deployment)
    fault(found, "credential", "the token authority answered 503", "asked again within a minute")


# ── the way to Azure ────────────────────────────────────────────────────────────────────────────


async def serve_ok(connection: RawConnection) -> None:
    await answers(connection, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")


async def test_an_upstream_that_repeats_what_it_was_sent_is_shown_without_the_secret():
    async def echo(connection: RawConnection) -> None:
        request = await connection.request()
        assert request is not None
        body = json.dumps({"error": {"code": "401", "message": str(request.headers)}}).encode()
        head = b"HTTP/1.1 401 X\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        await connection.send(head % len(body), body)

    async with azure() as simulator, raw_server(echo) as server, verifier() as verify:
        url = server.url("")
        for credential in (ResourceKey("k3y-of-the-resource"), entra(simulator.url)):
            said = (await verify.verify(at(url, credential))).render()["upstream_message"]
            assert "***" in said
            assert "eyJ" not in said
            assert "k3y-of-the-resource" not in said


@asynccontextmanager
async def answering(status: int, body: bytes) -> AsyncIterator[str]:
    """The address of a server that always answers so."""
    kind = "application/json" if body.startswith(b"{") else "text/html"
    head = f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"

    async def serve(connection: RawConnection) -> None:
        await answers(connection, head.encode() + body)

    async with raw_server(serve) as server:
        yield server.url("")


def secured(authority: trustme.CA, *names: str, **dates: Any) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(*names, **dates).configure_cert(context)
    return context


YESTERDAY = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)


@pytest.mark.parametrize(
    ("names", "dates", "trusted", "message", "fix"),
    [
        (("127.0.0.1",), {}, False, "does not trust", "upstream.tls.ca_file"),
        (("127.0.0.1",), {"not_after": YESTERDAY}, True, "has expired", "renew it"),
        (("other.test",), {}, True, "for another host", "private endpoint"),
    ],
)
async def test_a_bad_certificate_is_told_by_its_fault(
    names, dates, trusted, message, fix, tmp_path: Path
):
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    ca_file = str(tmp_path / "ca.pem") if trusted else None
    async with (
        raw_server(serve_ok, tls=secured(authority, *names, **dates)) as server,
        verifier(ca_file=ca_file) as verify,
    ):
        found = await verify.verify(at(server.url("")))
    fault(found, "tls", message, fix)
    assert found.upstream_status is None
    assert found.request is not None


async def test_a_ca_file_that_is_not_there_is_named_as_the_fault(tmp_path: Path):
    async with (
        raw_server(serve_ok, tls=secured(trustme.CA(), "127.0.0.1")) as server,
        verifier(ca_file=str(tmp_path / "absent.pem")) as verify,
    ):
        fault(await verify.verify(at(server.url(""))), "tls", "cannot be used", "file exists")


async def test_a_tls_handshake_that_ends_early_is_told():
    async def serve(connection: RawConnection) -> None:
        connection.cut()

    async with raw_server(serve) as server, verifier() as verify:
        found = await verify.verify(at(server.url("").replace("http:", "https:")))
    fault(found, "tls", "handshake failed", "https where TLS is spoken")


@pytest.mark.parametrize(
    ("api_base", "message", "fix"),
    [
        ("http://127.0.0.1:1", "nobody takes connections", "check host and port"),
        ("https://no-such-resource.invalid", "does not resolve", "check its spelling"),
    ],
)
async def test_an_address_where_nobody_is_is_told(api_base, message, fix):
    async with verifier() as verify:
        fault(await verify.verify(at(api_base)), "network", message, fix)


async def test_an_upstream_that_hangs_up_is_told():
    async with azure() as simulator, verifier() as verify:
        simulator.script("gpt4o-prod", "drop")
        fault(await verify.verify(at(simulator.url)), "network", "closed before", "https://")


async def test_an_upstream_that_is_no_http_server_is_told():
    async with azure() as simulator, verifier() as verify:
        simulator.script("gpt4o-prod", "garbage")
        fault(await verify.verify(at(simulator.url)), "address", "not valid HTTP", "api_base")


async def test_an_answer_that_breaks_off_is_told():
    async def serve(connection: RawConnection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 400 X\r\nContent-Length: 99\r\n\r\n{")
        connection.cut()

    async with raw_server(serve) as server, verifier() as verify:
        found = await verify.verify(at(server.url("")))
    fault(found, "network", "before the answer was complete", "check the network")


async def silent(connection: RawConnection) -> None:
    await connection.until_gone()


async def test_a_silent_upstream_ends_within_the_deadline():
    async with raw_server(silent) as server, verifier(deadline_s=0.3) as verify:
        fault(await verify.verify(at(server.url(""))), "network", "no answer came", "try again")


async def test_a_handshake_that_hangs_ends_within_the_deadline():
    async with raw_server(silent) as server, verifier(deadline_s=0.3) as verify:
        found = await verify.verify(at(server.url("").replace("http:", "https:")))
    fault(found, "network", "no connection within", "check firewalls")


async def test_a_slow_token_and_a_slow_answer_together_end_at_the_deadline():
    async with azure() as simulator:
        async with verifier() as verify:  # the first token brings azure-identity, which takes time
            assert (await verify.verify(at(simulator.url, entra(simulator.url)))).finding.ok
        async with verifier(deadline_s=1.5) as verify:
            simulator.script("@entra", "slow1000")
            simulator.script("gpt4o-prod", "hang")
            found = await verify.verify(at(simulator.url, entra(simulator.url)))
    fault(found, "network", "no verdict within 1.5 s", "try again")


# ── an OpenAI-compatible server ─────────────────────────────────────────────────────────────────


def compatible(api_base: str, **fields: Any) -> Deployment:
    return make_openai_deployment(
        api_base=api_base, **{"credential": ResourceKey(KEY), "name": "", **fields}
    )


async def test_a_compatible_server_is_tried_by_its_list_of_models():
    listed = frozenset({"meta-llama/Llama-3-8B", "mistral"})
    async with azure(deployments=listed) as simulator, verifier() as verify:
        base = f"{simulator.url}/v1"
        found = await verify.verify(compatible(base))
        told = found.render()
        assert (told["ok"], told["message"]) == (True, "address and key are right")
        assert told["request"] == f"GET {base}/models"
        assert told["upstream_request_id"].startswith("req_")
        model = await verify.verify(compatible(base, name="meta-llama/Llama-3-8B"))
        assert (model.finding.ok, model.upstream_status) == (True, 200)
        other = await verify.verify(compatible(base, name="gpt-4o"))
        fault(other, "deployment", 'does not list a model "gpt-4o"', "Llama-3-8B, mistral)")
        wrong = await verify.verify(compatible(base, credential=ResourceKey("sk-other-" + "x" * 9)))
        fault(wrong, "authentication", "the upstream refuses the key", "a key that is valid")
        assert "sk-other" not in json.dumps(wrong.render())
        elsewhere = await verify.verify(compatible(f"{base}/v1"))
        fault(elsewhere, "address", "no list of models below api_base", "ends in /v1")


# ── no call at all ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("kind", "stage"), [("credential", "credential"), ("configuration", "settings")]
)
async def test_what_is_stored_and_cannot_be_used_is_told_without_a_call(kind, stage):
    deployment = replace(at("http://127.0.0.1:1"), fault=Fault(kind, "the reason"))
    async with verifier() as verify:
        found = await verify.verify(deployment)
    fault(found, stage, "the reason", "write the provider key again")
    assert found.request is None


async def test_a_wildcard_model_cannot_be_tried_and_says_so():
    async with verifier() as verify:
        found = await verify.verify(at("http://127.0.0.1:1", name="gpt-*"))
    fault(found, "deployment", "wildcard model", "verify its provider key")


async def test_a_deployment_name_that_azure_cannot_have_is_told():
    async with verifier() as verify:
        fault(await verify.verify(at("http://127.0.0.1:1", name="a/b")), "settings", "may hold", "")


async def test_without_any_credential_there_is_nothing_to_try():
    deployment = replace(at("http://127.0.0.1:1"), credential=None)
    async with verifier() as verify:
        fault(await verify.verify(deployment), "credential", "nothing to authenticate with", "")


async def started(simulator: Simulator, count: int) -> None:
    await simulator.wait_for_count(lambda record: record.phase == "hanging", count)


async def test_only_a_few_run_at_once_and_the_others_are_told_to_come_again():
    async with azure() as simulator, verifier() as verify:
        simulator.script("gpt4o-prod", "hang", times=AT_ONCE)
        running = [asyncio.ensure_future(verify.verify(at(simulator.url))) for _ in range(AT_ONCE)]
        await started(simulator, AT_ONCE)
        with pytest.raises(Refusal, match="are running already") as refused:
            await verify.verify(at(simulator.url))
        assert refused.value.status == 429
        simulator.release()
        assert all(found.finding.ok for found in await asyncio.gather(*running))
        assert (await verify.verify(at(simulator.url))).finding.ok
