"""The token endpoint without its wire."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlencode

import pytest

from aisix.simulator import faults
from aisix.simulator.entra import Authority, Directory, openid_configuration
from aisix.simulator.faults import Fault
from aisix.simulator.script import Script, parse

FORM = {
    "grant_type": "client_credentials",
    "client_id": "app",
    "client_secret": "simulator-secret",
    "scope": "https://cognitiveservices.azure.com/.default",
}


class FakeClock:
    def __init__(self) -> None:
        self.now = 1_732_400_000.0

    def __call__(self) -> float:
        return self.now


def ask(
    authority: Authority, tenant: str = "tid", *, script: Script | None = None, **changes: Any
) -> Fault:
    form = {name: value for name, value in {**FORM, **changes}.items() if value}
    return authority.answer(tenant, urlencode(form).encode(), script or Script())


def token(authority: Authority, **changes: Any) -> str:
    answer = ask(authority, **changes)
    assert answer.status == 200
    given: str = json.loads(answer.body)["access_token"]
    return given


def test_a_token_is_given_and_accepted() -> None:
    authority = Authority(Directory(refresh_in_s=100))
    answer = json.loads(ask(authority).body)
    assert answer["token_type"] == "Bearer"
    assert answer["expires_in"] == answer["ext_expires_in"] == 3599
    assert answer["refresh_in"] == 100
    assert authority.accepts(answer["access_token"])
    assert (authority.requests, authority.issued) == (1, 1)


def test_a_token_ends_with_its_time() -> None:
    clock = FakeClock()
    authority = Authority(Directory(token_lifetime_s=10), clock=clock)
    given = token(authority)
    clock.now += 9
    assert authority.accepts(given)
    clock.now += 1
    assert not authority.accepts(given)


def test_a_token_for_another_cloud_is_refused() -> None:
    authority = Authority(Directory())
    assert not authority.accepts(
        token(authority, scope="https://cognitiveservices.azure.us/.default")
    )
    assert authority.accepts(token(authority, scope="https://ai.azure.com/.default"))


def test_revoking_ends_all_tokens_so_far() -> None:
    authority = Authority(Directory())
    old = token(authority)
    authority.revoke_all()
    assert not authority.accepts(old)
    assert authority.accepts(token(authority))


@pytest.mark.parametrize("forged", ["", "x", "a.b.c", "é.ü.ö", "..", "a.b.\ud800"])
def test_a_forged_token_is_refused(forged: str) -> None:
    assert not Authority(Directory()).accepts(forged)


def test_a_token_of_another_simulator_is_refused() -> None:
    assert not Authority(Directory()).accepts(token(Authority(Directory())))


@pytest.mark.parametrize(
    ("changes", "status", "number", "error"),
    [
        ({"client_secret": "wrong"}, 401, 7000215, "invalid_client"),
        ({"client_secret": "expired-1"}, 401, 7000222, "invalid_client"),
        ({"client_secret": ""}, 401, 7000218, "invalid_client"),
        ({"client_id": "missing-app"}, 400, 700016, "unauthorized_client"),
        ({"client_id": ""}, 400, 9002313, "invalid_request"),
        ({"tenant": "missing-tenant"}, 400, 90002, "invalid_request"),
        ({"scope": ""}, 400, 70011, "invalid_scope"),
        ({"scope": "https://cognitiveservices.azure.com"}, 400, 1002012, "invalid_scope"),
        ({"scope": "https://elsewhere/.default"}, 400, 500011, "invalid_resource"),
        ({"grant_type": ""}, 400, 9002313, "invalid_request"),
        ({"grant_type": "password"}, 400, 70003, "unsupported_grant_type"),
    ],
)
def test_what_is_wrong_is_said_with_its_number(
    changes: dict[str, Any], status: int, number: int, error: str
) -> None:
    answer = ask(Authority(Directory()), **changes)
    body = json.loads(answer.body)
    assert (answer.status, body["error"], body["error_codes"]) == (status, error, [number])
    assert body["error_description"].startswith(f"AADSTS{number}: ")
    assert "Trace ID" in body["error_description"]


def test_tenants_and_clients_can_be_listed() -> None:
    authority = Authority(Directory(tenants=frozenset({"tid"}), clients=frozenset({"app"})))
    assert ask(authority).status == 200
    assert json.loads(ask(authority, tenant="other").body)["error_codes"] == [90002]
    assert json.loads(ask(authority, client_id="other").body)["error_codes"] == [700016]


@pytest.mark.parametrize(
    ("script", "status", "needle"),
    [
        ("err429-retry3", 429, b"temporarily_unavailable"),
        ("err503", 503, b"temporarily_unavailable"),
        ("err500", 500, b"<html>"),
        ("err-badjson", 200, b"{"),
        ("err-aadsts7000222", 401, b"AADSTS7000222"),
        ("err-aadsts50001", 400, b"AADSTS50001"),
    ],
)
def test_errors_can_be_scripted(script: str, status: int, needle: bytes) -> None:
    answer = ask(Authority(Directory()), script=parse(script, errors=faults.NAMES))
    assert answer.status == status
    assert needle in answer.body


def test_throttling_says_how_long() -> None:
    answer = ask(Authority(Directory()), script=parse("err429-retry3", errors=faults.NAMES))
    assert ("retry-after", "3") in answer.headers


def test_the_discovery_document_names_the_token_endpoint() -> None:
    document = json.loads(openid_configuration("http://h:1", "tid"))
    assert document["token_endpoint"] == "http://h:1/tid/oauth2/v2.0/token"
