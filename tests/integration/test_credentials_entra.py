"""Entra tokens over libcurl from the simulator's token endpoint, by http and by https."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trustme

from aisix.core.resources import ClientSecret
from aisix.errors import CredentialRefused, CredentialUnavailable
from aisix.transport.request import Proxy
from aisix.upstream.credentials import EntraTokens
from tests.support.azure import API_VERSION, CLIENT, CLIENT_SECRET, TENANT, ask, azure
from tests.support.proxy import forward_proxy
from tests.support.transports import RealClock, curl_transport

pytestmark = pytest.mark.gen_test

CHAT = f"/openai/deployments/gpt4o-prod/chat/completions?api-version={API_VERSION}"
QUESTION = {"messages": [{"role": "user", "content": "hello"}]}


class CountingRecorder:
    def __init__(self) -> None:
        self.fetches: list[tuple[str, bool]] = []

    def token_fetched(self, *, ok: bool, reason: str) -> None:
        self.fetches.append((reason, ok))


@asynccontextmanager
async def entra_tokens(
    *, ca_file: str | None = None, proxy: Proxy | None = None, **options
) -> AsyncIterator[EntraTokens]:
    options.setdefault("recorder", CountingRecorder())
    async with curl_transport(ca_file=ca_file, proxy=proxy) as transport:
        tokens = EntraTokens(transport=transport, clock=RealClock(), **options)
        try:
            yield tokens
        finally:
            await tokens.close()


def app(authority, *, tenant=TENANT, secret=CLIENT_SECRET, cloud="com"):
    return ClientSecret(
        tenant_id=tenant,
        client_id=CLIENT,
        client_secret=secret,
        authority=authority,
        scope=f"https://cognitiveservices.azure.{cloud}/.default",
    )


async def status_of(simulator, token):
    answer = await ask(simulator, CHAT, QUESTION, authorization=f"Bearer {token}")
    return answer.status


async def test_a_token_from_an_http_authority_opens_azure():
    async with azure() as simulator, entra_tokens() as tokens:
        token = await tokens.token(app(simulator.url))
        assert await status_of(simulator, token) == 200
        (asked,) = simulator.token_requests
        assert asked.path == f"/{TENANT}/oauth2/v2.0/token"


async def test_a_token_comes_over_tls_checked_against_the_configured_authority(tmp_path):
    authority = trustme.CA()
    server = authority.issue_cert("127.0.0.1")
    server.private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    pem = str(tmp_path / "server.pem")
    async with (
        azure(tls=(pem, pem)) as simulator,
        entra_tokens(ca_file=str(tmp_path / "ca.pem")) as tokens,
    ):
        assert simulator.url.startswith("https://")
        assert await tokens.token(app(simulator.url))


async def test_a_token_comes_by_the_proxy():
    async with (
        azure() as simulator,
        forward_proxy(simulator.port, login=("user", "password")) as proxy,
        entra_tokens(proxy=Proxy(proxy.url, "user", "password")) as tokens,
    ):
        assert await tokens.token(app("http://login.test"))
    assert [asked.target for asked in proxy.seen] == [
        f"http://login.test/{TENANT}/oauth2/v2.0/token"
    ]


@pytest.mark.logs("token.failed")
async def test_a_proxy_that_refuses_is_not_taken_for_the_authority():
    async with (
        azure() as simulator,
        forward_proxy(simulator.port, login=("user", "password")) as proxy,
        entra_tokens(proxy=Proxy(proxy.url)) as tokens,
    ):
        with pytest.raises(CredentialUnavailable) as caught:
            await tokens.token(app("http://login.test"))
    assert "the proxy on the way to the upstream asks for a user" in str(caught.value.detail)


@pytest.mark.logs("token.failed", "aisix.simulator", "tornado")
async def test_an_authority_with_an_unknown_certificate_is_not_trusted(tmp_path):
    server = trustme.CA().issue_cert("127.0.0.1")
    server.private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
    pem = str(tmp_path / "server.pem")
    async with azure(tls=(pem, pem)) as simulator, entra_tokens() as tokens:
        with pytest.raises(CredentialUnavailable, match="cannot be reached"):
            await tokens.token(app(simulator.url))
        assert simulator.token_requests == []


async def test_fifty_concurrent_cold_requests_cause_one_token_call():
    async with azure() as simulator, entra_tokens() as tokens:
        found = await asyncio.gather(*(tokens.token(app(simulator.url)) for _ in range(50)))
        assert len(set(found)) == 1
        assert len(simulator.token_requests) == 1


async def test_revoked_tokens_are_renewed_by_one_forced_call():
    recorder = CountingRecorder()
    async with azure() as simulator, entra_tokens(recorder=recorder) as tokens:
        credential = app(simulator.url)
        old = await tokens.token(credential)
        simulator.revoke_tokens()
        assert await status_of(simulator, old) == 401
        renewed = await asyncio.gather(*(tokens.renew(credential, old) for _ in range(20)))
        assert len(set(renewed)) == 1
        assert await status_of(simulator, renewed[0]) == 200
        assert len(simulator.token_requests) == 2
        assert recorder.fetches == [("cold", True), ("rejected", True)]


@pytest.mark.logs("token.failed")
@pytest.mark.parametrize(
    ("wrong", "number"),
    [
        ({"secret": "wrong-secret"}, 7000215),
        ({"secret": "expired-secret"}, 7000222),
        ({"tenant": "missing-tenant"}, 90002),
    ],
)
async def test_a_wrong_credential_is_told_by_its_number_and_asked_for_once(wrong, number):
    async with azure() as simulator, entra_tokens() as tokens:
        credential = app(simulator.url, **wrong)
        for _ in range(3):
            with pytest.raises(CredentialRefused) as failed:
                await tokens.token(credential)
            assert failed.value.message == f"upstream authentication failed (AADSTS{number})"
            assert credential.client_secret not in (failed.value.detail or "")
        assert len(simulator.token_requests) == 1


@pytest.mark.logs("token.failed")
@pytest.mark.parametrize("script", ["err429-retry7", "err503-retry7", "err500", "drop", "rst"])
async def test_a_failing_authority_is_named_and_left_alone(script):
    async with azure() as simulator, entra_tokens() as tokens:
        simulator.script("@entra", script)
        for _ in range(3):
            with pytest.raises(CredentialUnavailable) as failed:
                await tokens.token(app(simulator.url))
            assert 0 < (failed.value.retry_after_s or 0) <= 7
        assert len(simulator.token_requests) == 1


@pytest.mark.logs("token.failed")
async def test_a_hanging_authority_ends_at_the_deadline_and_is_hung_up_on():
    async with azure() as simulator, entra_tokens(deadline_s=0.2) as tokens:
        simulator.script("@entra", "hang")
        with pytest.raises(CredentialUnavailable):
            await tokens.token(app(simulator.url))
        await simulator.wait_for(lambda record: record.outcome == "client_closed")


@pytest.mark.logs("token.failed")
async def test_a_port_where_nobody_listens_is_unreachable():
    async with entra_tokens() as tokens:
        with pytest.raises(CredentialUnavailable, match="cannot be reached") as failed:
            await tokens.token(app("http://127.0.0.1:1"))
        assert "127.0.0.1" not in failed.value.message


async def test_a_short_lived_token_is_renewed_behind_its_users():
    recorder = CountingRecorder()
    async with (
        azure(token_lifetime_s=3600, refresh_in_s=0) as simulator,
        entra_tokens(recorder=recorder) as tokens,
    ):
        first = await tokens.token(app(simulator.url))
        assert await tokens.token(app(simulator.url)) == first
        await simulator.wait_for_count(lambda record: record.operation == "token", 2)
        assert await status_of(simulator, first) == 200


async def test_closing_leaves_no_call_behind():
    async with azure() as simulator, entra_tokens() as tokens:
        simulator.script("@entra", "hang")
        waiting = asyncio.create_task(tokens.token(app(simulator.url)))
        await simulator.wait_for(lambda record: record.operation == "token")
        await tokens.close()
        with pytest.raises(CredentialUnavailable):
            await waiting
        await simulator.wait_for(lambda record: record.outcome == "client_closed")
