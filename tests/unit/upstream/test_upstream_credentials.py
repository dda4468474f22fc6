"""Fetching one token: the wire as Entra ID expects it, and every kind of bad answer."""

import asyncio
import json
import logging
from contextlib import asynccontextmanager
from urllib.parse import parse_qs

import pytest

from aisix.core.ports import Route
from aisix.core.resources import ClientSecret, ManagedIdentity
from aisix.errors import (
    CredentialRefused,
    CredentialUnavailable,
    UpstreamBroken,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from aisix.upstream.credentials import EntraTokens

pytestmark = [pytest.mark.gen_test, pytest.mark.logs("token.failed")]

SECRET = "hunter2+/~ü"
JSON = {"content-type": "application/json; charset=utf-8"}


class Answer:
    def __init__(self, status, headers, body):
        self.status, self.headers, self._body = status, headers, body

    async def read_all(self, limit=0):
        if isinstance(self._body, Exception):
            raise self._body
        return self._body


class ScriptedTransport:
    """A Transport that gives one scripted outcome and keeps what it was asked."""

    def __init__(self, outcome):
        self.outcome = outcome
        self.calls = []

    @asynccontextmanager
    async def open(self, call):
        self.calls.append(call)
        if isinstance(self.outcome, Exception):
            raise self.outcome
        if self.outcome is None:
            await asyncio.Event().wait()
        yield Answer(*self.outcome)

    async def close(self):
        pass


class Clock:
    def monotonic(self):
        return 1000.0

    def time(self):
        return 0.0


class NoRecorder:
    def token_fetched(self, *, ok, reason):
        pass


def tokens_over(outcome, **options):
    transport = ScriptedTransport(outcome)
    tokens = EntraTokens(transport=transport, clock=Clock(), recorder=NoRecorder(), **options)
    return tokens, transport


def app(authority="https://login.test"):
    return ClientSecret(
        tenant_id="tenant-1",
        client_id="client-1",
        client_secret=SECRET,
        authority=authority,
        scope="https://cognitiveservices.azure.com/.default",
    )


def granted(**changes):
    fields = {"token_type": "Bearer", "expires_in": 3599, "access_token": "eyJtoken"} | changes
    return (200, JSON, json.dumps(fields).encode())


@pytest.mark.parametrize(
    "authority", ["https://login.test", "http://127.0.0.1:8081", "http://[::1]:8081"]
)
async def test_one_post_goes_to_the_authority_under_its_own_scheme(authority):
    tokens, transport = tokens_over(granted())
    assert await tokens.token(app(authority)) == "eyJtoken"
    (call,) = transport.calls
    assert call.target.method == "POST"
    assert call.target.route == Route()
    assert call.target.url == f"{authority}/tenant-1/oauth2/v2.0/token"
    assert parse_qs(call.body.decode()) == {
        "client_id": ["client-1"],
        "client_secret": [SECRET],
        "grant_type": ["client_credentials"],
        "scope": ["https://cognitiveservices.azure.com/.default"],
    }
    headers = {name.lower(): value for name, value in call.headers}
    assert headers["content-type"] == "application/x-www-form-urlencoded"
    assert 0 < call.deadlines.total_s <= 10
    assert "authorization" not in headers


async def test_only_a_managed_identity_may_be_fetched_from_a_link_local_address(monkeypatch):
    for name in ("IDENTITY_ENDPOINT", "MSI_ENDPOINT", "AZURE_POD_IDENTITY_AUTHORITY_HOST"):
        monkeypatch.delenv(name, raising=False)
    tokens, transport = tokens_over(granted(resource="https://cognitiveservices.azure.com"))
    scope = "https://cognitiveservices.azure.com/.default"
    assert await tokens.token(ManagedIdentity(scope)) == "eyJtoken"
    (call,) = transport.calls
    assert call.target.url.startswith("http://169.254.169.254/metadata/identity/oauth2/token?")
    assert call.target.route == Route(link_local=True)
    assert call.body == b""


@pytest.mark.parametrize("expiry", [{"expires_in": "3599"}, {"expires_in": 3599, "refresh_in": 9}])
async def test_expiry_is_read_in_its_several_forms(expiry):
    tokens, _ = tokens_over(granted(**expiry))
    assert await tokens.token(app()) == "eyJtoken"


def refusal(status, number, **changes):
    fields = {
        "error": "invalid_client",
        "error_description": f"AADSTS{number}: wrong {SECRET}.\r\nTrace ID: 1",
        "error_codes": [number],
    }
    return (status, JSON, json.dumps(fields | changes).encode())


@pytest.mark.parametrize(
    ("status", "number"), [(401, 7000215), (401, 7000222), (400, 700016), (400, 90002)]
)
async def test_a_refusal_names_only_its_number_to_callers(status, number, caplog):
    tokens, _ = tokens_over(refusal(status, number))
    with pytest.raises(CredentialRefused) as failed:
        await tokens.token(app())
    assert failed.value.message == f"upstream authentication failed (AADSTS{number})"
    assert failed.value.detail is not None
    assert "Trace ID: 1" in failed.value.detail
    assert failed.value.detail.isprintable()
    assert SECRET not in failed.value.detail
    assert SECRET not in repr([vars(record) for record in caplog.records])


@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        ((404, {"content-type": "text/html"}, b"<html>"), "answered 404"),
        ((403, {}, b""), "answered 403"),
        ((400, JSON, b"[]"), "answered 400"),
        ((400, JSON, b'{"access_token":"a","expires_in":900}'), "answered 400"),
    ],
)
async def test_any_other_4xx_is_a_refusal_too(outcome, words):
    tokens, _ = tokens_over(outcome)
    with pytest.raises(CredentialRefused, match=words):
        await tokens.token(app())


@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        ((500, {"content-type": "text/html"}, b"<html>"), "answered 500"),
        ((503, JSON, b'{"error":"temporarily_unavailable"}'), "answered 503"),
        ((302, {"location": "https://evil.test"}, b""), "answered 302"),
        ((200, JSON, b""), "unreadable"),
        ((200, JSON, b"nope"), "unreadable"),
        ((200, JSON, b"[]"), "unreadable"),
        ((200, JSON, b"7"), "unreadable"),
        ((200, JSON, b"\xff"), "unreadable"),
        ((200, {"content-type": "text/html"}, b"<html>"), "unreadable"),
        ((200, JSON, b'{"error":"odd"}'), "unreadable"),
        (granted(access_token=""), "unreadable"),
        (granted(access_token=None), "unreadable"),
        (granted(access_token="a\r\nb"), "unreadable"),
        (granted(expires_in=0), "unreadable"),
        (granted(expires_in="soon"), "unreadable"),
        (granted(expires_in=None), "unreadable"),
        (UpstreamUnreachable("no connection", detail="refused"), "cannot be reached"),
        (UpstreamTimeout("too slow", phase="connect"), "cannot be reached"),
        ((200, JSON, UpstreamBroken("cut", kind="cut")), "cannot be reached"),
    ],
)
async def test_a_failing_authority_is_no_fault_of_the_credential(outcome, words):
    tokens, _ = tokens_over(outcome)
    with pytest.raises(CredentialUnavailable, match=words) as failed:
        await tokens.token(app())
    assert failed.value.message.startswith("upstream authentication failed")
    assert failed.value.retry_after_s == 5.0
    assert "login.test" not in failed.value.message


async def test_throttling_is_waited_out_as_the_authority_asks():
    body = b'{"error":"temporarily_unavailable"}'
    tokens, _ = tokens_over((429, {**JSON, "retry-after": "17"}, body))
    with pytest.raises(CredentialUnavailable) as failed:
        await tokens.token(app())
    assert failed.value.retry_after_s == 17.0


async def test_a_silent_authority_ends_at_the_deadline():
    tokens, _ = tokens_over(None, deadline_s=0.02)
    with pytest.raises(CredentialUnavailable, match="cannot be reached"):
        await tokens.token(app())


async def test_closing_ends_a_fetch_under_way():
    tokens, transport = tokens_over(None)
    waiting = asyncio.create_task(tokens.token(app()))
    while not transport.calls:
        await asyncio.sleep(0)
    await tokens.close()
    with pytest.raises(CredentialUnavailable):
        await waiting


async def test_azures_own_loggers_are_never_heard(caplog):
    caplog.set_level(logging.DEBUG)
    tokens, _ = tokens_over(refusal(401, 7000215))
    with pytest.raises(CredentialRefused):
        await tokens.token(app())
    assert {record.name for record in caplog.records} <= {"aisix.upstream", "asyncio"}
