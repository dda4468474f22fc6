"""Who is calling."""

from __future__ import annotations

import hashlib

import pytest
from tornado.httputil import HTTPHeaders

from aisix.auth.authenticator import Authenticator
from aisix.auth.tokens import caller_token, hash_token, session_token
from aisix.core.endpoints import ENDPOINTS
from aisix.core.request import InboundRequest
from aisix.core.resources import ApiKey
from aisix.core.snapshot import Snapshot
from aisix.errors import Unauthenticated


class FixedClock:
    """A clock that stands still."""

    def monotonic(self) -> float:
        return 0.0

    def time(self) -> float:
        return 1000.0


def request(headers: dict[str, str], path: str = "/v1/chat/completions") -> InboundRequest:
    return InboundRequest(
        request_id="r1",
        spec=ENDPOINTS[0],
        method="POST",
        path=path,
        headers=HTTPHeaders(headers),
        body=None,  # type: ignore[arg-type]
    )


def snapshot(**fields) -> Snapshot:
    key = ApiKey(id="k1", key_hash=hash_token("sk-good"), **fields)
    return Snapshot.build(revision=1, taken_at=0.0, keys=[key], aliases=[])


@pytest.mark.parametrize(
    ("headers", "azure_style", "token"),
    [
        ({"Authorization": "Bearer sk-1"}, False, "sk-1"),
        ({"Authorization": "Bearer   sk-1  "}, False, "sk-1"),
        ({"Authorization": "Bearer "}, False, None),
        ({"Authorization": "Basic abc"}, False, None),
        ({"Authorization": "Basic abc", "x-api-key": "sk-2"}, False, None),
        ({"x-api-key": "sk-2"}, False, "sk-2"),
        ({"api-key": "sk-3"}, False, "sk-3"),
        ({"api-key": "sk-3"}, True, "sk-3"),
        ({"api-key": "sk-3", "Authorization": "Bearer sk-1"}, True, "sk-3"),
        ({"api-key": "sk-3", "Authorization": "Bearer sk-1"}, False, "sk-1"),
        ({"api-key": "  "}, True, None),
        ({}, False, None),
    ],
)
def test_the_credential_is_found_where_sdks_put_it(headers, azure_style, token):
    assert caller_token(HTTPHeaders(headers), azure_style=azure_style) == token


def test_the_hash_equals_the_shell_commands_of_the_guide():
    assert hash_token("sk-azure-caller") == hashlib.sha256(b"sk-azure-caller").hexdigest()


def test_a_utf8_key_hashes_to_its_own_bytes():
    """Header text is latin-1; the caller sent UTF-8."""
    sent = "schlüssel".encode().decode("latin-1")
    assert hash_token(sent) == hashlib.sha256("schlüssel".encode()).hexdigest()


def test_a_known_key_is_returned():
    caller = Authenticator(FixedClock()).authenticate(
        request({"Authorization": "Bearer sk-good"}), snapshot()
    )
    assert caller.id == "k1"


@pytest.mark.parametrize(
    ("headers", "fields", "code", "reason"),
    [
        ({}, {}, "invalid_api_key", "missing_credentials"),
        ({"Authorization": "Bearer sk-bad"}, {}, "invalid_api_key", "unknown_key"),
        (
            {"Authorization": "Bearer sk-good"},
            {"disabled": True},
            "api_key_disabled",
            "key_disabled",
        ),
        (
            {"Authorization": "Bearer sk-good"},
            {"expires_at": 999.0},
            "api_key_expired",
            "key_expired",
        ),
    ],
)
def test_a_refusal_names_its_reason(headers, fields, code, reason):
    with pytest.raises(Unauthenticated) as caught:
        Authenticator(FixedClock()).authenticate(request(headers), snapshot(**fields))
    assert (caught.value.code, caught.value.detail) == (code, reason)
    assert caught.value.type == "invalid_api_key"


def test_a_key_is_good_until_strictly_past_its_expiry():
    caller = Authenticator(FixedClock()).authenticate(
        request({"Authorization": "Bearer sk-good"}), snapshot(expires_at=1000.0)
    )
    assert caller.id == "k1"


def test_no_repr_shows_the_hash():
    assert hash_token("sk-good") not in repr(snapshot())


@pytest.mark.parametrize(
    ("headers", "query", "token"),
    [
        ({"Sec-WebSocket-Protocol": "realtime, openai-insecure-api-key.sk-1"}, "", "sk-1"),
        ({"Sec-WebSocket-Protocol": "openai-insecure-api-key."}, "api-key=sk-2", None),
        ({"Sec-WebSocket-Protocol": "realtime"}, "model=x&api-key=sk%2D2", "sk-2"),
        ({}, "api-key=%20", None),
        ({}, "apikey=sk-2", None),
        ({"Authorization": "Basic x"}, "api-key=sk-2", None),
        ({}, "", None),
    ],
)
def test_where_a_browsers_token_comes_from(headers, query, token):
    assert session_token(HTTPHeaders(headers), query) == token


def test_only_sessions_look_there():
    asked = request({})
    asked.query = "api-key=sk-good"
    with pytest.raises(Unauthenticated):
        Authenticator(FixedClock()).authenticate(asked, snapshot())
    asked.spec = next(spec for spec in ENDPOINTS if spec.operation == "realtime")
    assert Authenticator(FixedClock()).authenticate(asked, snapshot()).id == "k1"
