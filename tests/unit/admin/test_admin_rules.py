"""What a schema cannot say: adapters, secrets, kept values."""

from __future__ import annotations

import hashlib
import json
import time
from typing import Any

import pytest
import trustme

from aisix.admin import rules
from aisix.admin.refusals import Refusal, in_use
from aisix.core.ports import StoredResource
from aisix.upstream.azure import AzureOpenAI
from aisix.upstream.openai import OpenAI
from tests.support.client_certificates import DAY, certificate_pem, client_pem
from tests.support.control import AZURE_KEY, MODEL, StubAdapter

ADAPTER = StubAdapter()
ADAPTERS: Any = {"azure-openai": ADAPTER}


def stored_key(**fields: Any) -> StoredResource:
    doc = {"display_name": "azure-prod", "provider": "azure", "adapter": "azure-openai"}
    values = {"kind": "provider_keys", "id": "1", "name": "azure-prod", "revision": 1, "doc": doc}
    return StoredResource(**{**values, "secret": "old", **fields})


def key_draft(stored: StoredResource | None = None, adapter: Any = None, **fields: Any):
    body = {name: value for name, value in {**AZURE_KEY, **fields}.items() if value is not None}
    adapters: Any = {"azure-openai": adapter or ADAPTER}
    return rules.draft_provider_key(body, stored, adapters=adapters, now=0.0)


def refusal(call, *args, **fields) -> str:
    with pytest.raises(Refusal) as caught:
        call(*args, **fields)
    assert caught.value.status == 400
    return caught.value.message.removeprefix("schema validation failed at ")


def test_a_provider_key_is_stored_in_normal_form_without_its_secret():
    draft = key_draft(api_base="https://acme/", api_version="V1")
    assert draft.doc == {
        "display_name": "azure-prod",
        "provider": "azure",
        "adapter": "azure-openai",
        "api_base": "https://acme",
        "api_version": "v1",
    }
    assert draft.secret == "the-resource-key"
    assert "the-resource-key" not in repr(draft)


def test_api_key_is_another_name_of_secret():
    assert key_draft(secret=None, api_key="other").secret == "other"


def test_the_adapter_follows_from_the_provider_azure_only():
    assert key_draft(adapter=None).doc["adapter"] == "azure-openai"
    body = {"display_name": "k", "provider": "azure", "secret": "s", "api_base": "b"}
    draft = rules.draft_provider_key(body, None, adapters=ADAPTERS, now=0.0)
    assert draft.doc["adapter"] == "azure-openai"
    for provider in ("openai", "", "Azure"):
        said = refusal(
            rules.draft_provider_key,
            {**body, "provider": provider},
            None,
            adapters=ADAPTERS,
            now=0.0,
        )
        assert said.startswith("/adapter: is required")
        assert '"azure-openai"' in said


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"api_base": "https://acme?x"}, "/api_base: must not have a query"),
        ({"api_base": None}, "/api_base: api_base is required"),
        ({"api_version": "never"}, "/api_version: is no version"),
    ],
)
def test_what_the_adapter_cannot_use_is_refused_at_its_field(fields, said):
    assert refusal(key_draft, **fields) == said


def test_an_unusable_secret_is_refused_under_the_name_it_was_given():
    adapter = StubAdapter()
    adapter.refused = {"bad"}
    assert refusal(key_draft, adapter=adapter, secret="bad") == "/secret: is not usable"
    said = refusal(key_draft, adapter=adapter, secret=None, api_key="bad")
    assert said == "/api_key: is not usable"


@pytest.mark.parametrize(
    "fields", [{"secret": None}, {"secret": "***"}, {"secret": None} | {"api_key": "***"}]
)
def test_a_put_without_secret_or_with_the_mask_keeps_the_stored_one(fields):
    assert key_draft(stored_key(), **fields).secret == "old"


def test_a_kept_secret_is_not_judged_again_unless_the_adapter_changes():
    adapter = StubAdapter()
    adapter.refused = {"old"}
    assert key_draft(stored_key(), adapter, secret=None).secret == "old"
    other = stored_key(doc={"adapter": "another"})
    assert refusal(key_draft, other, adapter, secret=None) == "/secret: is not usable"


def test_the_mask_is_no_secret_of_a_new_key():
    assert refusal(key_draft, secret="***").startswith('/secret: "***" only stands for')


def test_a_stored_secret_that_cannot_be_read_must_be_given_again():
    said = refusal(key_draft, stored_key(secret=None, fault="damaged"), secret=None)
    assert said == "/secret: the stored secret cannot be read; give it again"


def test_a_model_needs_a_provider_key_that_exists():
    body = {**MODEL, "provider_key_id": "none"}
    said = refusal(rules.draft_model, body, None, adapters=ADAPTERS)
    assert said.startswith("/provider_key_id: no provider key has this id")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"model_name": "a b"}, "/model_name: must not contain spaces"),
        ({"model_name": "a*"}, '/model_name: may contain "*" only when display_name does'),
        ({"api_version": "never"}, "/api_version: is no version"),
    ],
)
def test_a_model_is_judged_by_the_adapter_of_its_key(fields, said):
    body = {**MODEL, "provider_key_id": "1", **fields}
    assert refusal(rules.draft_model, body, stored_key(), adapters=ADAPTERS) == said


def test_a_wildcard_model_may_capture_its_deployment():
    body = {**MODEL, "display_name": "gpt-*", "model_name": "*", "provider_key_id": "1"}
    draft = rules.draft_model({**body, "api_version": "V1"}, stored_key(), adapters=ADAPTERS)
    assert draft.doc == {**body, "api_version": "v1"}


def test_a_model_of_an_adapter_that_is_gone_is_left_to_the_compiler():
    body = {**MODEL, "model_name": "a b", "provider_key_id": "1"}
    assert rules.draft_model(body, stored_key(), adapters={}).name == "gpt-4o-azure"


def test_a_plaintext_key_is_hashed_as_the_shell_does():
    draft = rules.draft_apikey({"key": "sk-azure-caller", "allowed_models": []}, None)
    assert draft.name == hashlib.sha256(b"sk-azure-caller").hexdigest()
    assert "sk-azure-caller" not in repr(draft)


def test_a_key_hash_is_stored_in_lower_case():
    draft = rules.draft_apikey({"key_hash": "AB" * 32, "allowed_models": []}, None)
    assert draft.doc["key_hash"] == draft.name == "ab" * 32


def test_a_new_caller_key_without_hash_is_refused():
    assert "exactly one" in refusal(rules.draft_apikey, {"allowed_models": []}, None)


@pytest.mark.parametrize(
    "time",
    [
        "2030-01-31",
        "2030-01-31T12:00:00",
        "tomorrow",
        "2030-13-01T00:00:00Z",
        "20300131T120000Z",
        "2030-01-31T12:00:00+0100",
        "2030-01-31T25:00:00Z",
        "٢030-01-31T12:00:00Z",
    ],
)
def test_what_is_no_rfc_3339_time_is_refused(time):
    body = {"key": "k", "allowed_models": [], "expires_at": time}
    assert refusal(rules.draft_apikey, body, None).startswith("/expires_at: ")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1970-01-01T00:00:01Z", 1.0),
        ("1970-01-01t00:00:01z", 1.0),
        ("1970-01-01T01:00:00.25+01:00", 0.25),
        ("1970-01-01 00:00:00.123456789Z", 0.123456),
    ],
)
def test_rfc_3339_times_are_read(text, seconds):
    assert rules.parse_time(text) == pytest.approx(seconds)
    draft = rules.draft_apikey({"key": "k", "allowed_models": [], "expires_at": text}, None)
    assert draft.doc["expires_at"] == text


def caller_row(**doc: Any) -> StoredResource:
    return StoredResource(
        kind="apikeys",
        id="1",
        name="ab" * 32,
        revision=1,
        doc={"key_hash": "ab" * 32, "allowed_models": ["m"], **doc},
    )


def test_a_rotation_changes_only_the_hash():
    before = caller_row(display_name="d")
    draft = rules.rotated_apikey(before, "sk-new", grace_until=None)
    assert draft.doc == {**before.doc, "key_hash": rules.hash_key("sk-new")}


def test_the_grace_of_a_rotation_survives_a_put_that_keeps_the_key_and_no_other():
    draft = rules.rotated_apikey(caller_row(), "sk-new", grace_until=50.0)
    rotated = StoredResource(kind="apikeys", id="1", name=draft.name, revision=2, doc=draft.doc)
    assert rules.live_hashes(rotated, 49.0) == {"ab" * 32, draft.name}
    assert rules.live_hashes(rotated, 50.0) == {draft.name}
    kept = rules.draft_apikey({"allowed_models": []}, rotated)
    assert kept.doc["previous_key_hash"] == "ab" * 32
    given = rules.draft_apikey({"allowed_models": [], "key_hash": draft.name}, rotated)
    assert given.doc == {**kept.doc}
    changed = rules.draft_apikey({"allowed_models": [], "key": "third"}, rotated)
    assert "previous_key_hash" not in changed.doc
    assert "previous_key_hash" not in rules.present(rotated)["value"]
    assert "previous_expires_at" not in rules.present(rotated)["value"]


def test_reads_show_the_mask_and_leave_out_what_is_unset():
    assert rules.present(stored_key())["value"] == {**stored_key().doc, "secret": "***"}
    draft = rules.draft_apikey({"key": "k", "allowed_models": [], "disabled": False}, None)
    assert sorted(draft.doc) == ["allowed_models", "key_hash"]
    draft = rules.draft_apikey({"key": "k", "allowed_models": [], "disabled": True}, None)
    assert draft.doc["disabled"] is True


def test_times_are_shown_in_rfc_3339():
    assert rules.render_time(1.5) == "1970-01-01T00:00:01.500Z"


def test_many_users_are_counted():
    message = in_use([f"m{number}" for number in range(12)]).message
    assert '"m9" and 2 more' in message
    assert "m10" not in message


REAL: Any = {"azure-openai": AzureOpenAI(), "openai": OpenAI()}


OPENAI_KEY = {
    "display_name": "vllm",
    "provider": "vllm",
    "adapter": "openai",
    "secret": "sk-1",
}


def openai_draft(stored: StoredResource | None = None, **fields: Any) -> Any:
    return rules.draft_provider_key({**OPENAI_KEY, **fields}, stored, adapters=REAL, now=0.0)


def test_a_key_for_openai_itself_needs_a_secret_only():
    draft = openai_draft()
    assert draft.doc["api_base"] == "https://api.openai.com/v1"
    assert "api_version" not in draft.doc


def test_the_provider_is_a_label_whatever_it_says():
    assert openai_draft(provider="azure").doc["adapter"] == "openai"
    assert openai_draft(provider="").doc["adapter"] == "openai"
    body = {name: value for name, value in OPENAI_KEY.items() if name != "adapter"}
    said = refusal(rules.draft_provider_key, body, None, adapters=REAL, now=0.0)
    assert 'must be one of "azure-openai", "openai"' in said


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"api_base": "vllm:8000"}, "/api_base: api_base needs a scheme"),
        ({"api_version": "v1"}, "/api_version: api_version is Azure's"),
        ({"secret": '{"managed_identity":true}'}, "/secret: secret is JSON"),
    ],
)
def test_what_is_azure_s_alone_is_refused_for_openai(fields, said):
    assert refusal(openai_draft, **fields).startswith(said)


def test_a_kept_entra_credential_does_not_pass_to_openai():
    stored = stored_key(secret='{"managed_identity":true}')
    assert refusal(openai_draft, stored, secret="***").startswith("/secret: secret is JSON")


def entra(pem: str, **fields: str) -> str:
    return json.dumps({"tenant_id": "t", "client_id": "c", "client_certificate": pem, **fields})


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: entra(certificate_pem()), "client_certificate has no private key"),
        (lambda: entra(client_pem(begins=-2 * DAY, ends=-DAY)), "client_certificate expired on"),
        (
            lambda: '{"managed_identity":true,"scope":"https://ai.azure.us/.default"}',
            "the scope is of the cloud azure.us",
        ),
        (lambda: '{"managed_identity":"yes"}', "managed_identity must be true"),
    ],
)
def test_a_credential_that_cannot_work_is_refused_when_written(make, words):
    body = {**AZURE_KEY, "secret": make()}
    said = refusal(rules.draft_provider_key, body, None, adapters=REAL, now=time.time())
    assert said.startswith("/secret: secret: ")
    assert words in said


def test_a_kept_certificate_is_in_the_way_of_no_other_change():
    secret = entra(client_pem())
    draft = rules.draft_provider_key(
        {**AZURE_KEY, "secret": secret}, None, adapters=REAL, now=time.time()
    )
    stored = StoredResource(
        kind="provider_keys", id="1", name="a", revision=1, doc=draft.doc, secret=draft.secret
    )
    later = time.time() + 10 * 86_400
    body = {**AZURE_KEY, "secret": "***", "display_name": "renamed"}
    kept = rules.draft_provider_key(body, stored, adapters=REAL, now=later)
    assert (kept.name, kept.secret) == ("renamed", secret)
    again = {**body, "secret": entra(client_pem(ends=2 * DAY))}
    assert "expired on" in refusal(
        rules.draft_provider_key, again, stored, adapters=REAL, now=later
    )


# ── shaping and trust ───────────────────────────────────────────────────────────────────────────


def shaped(**request: Any) -> Any:
    return key_draft(request=request)


def test_the_values_of_default_headers_are_kept_apart_from_the_document():
    draft = shaped(default_headers={"X-Front-Door": "front-door-key"})
    assert draft.doc["request"] == {"default_headers": {"x-front-door": "***"}}
    assert draft.header_values == {"x-front-door": "front-door-key"}
    assert "front-door-key" not in repr(draft)


def test_the_mask_keeps_the_value_of_a_default_header():
    stored = stored_key(header_values={"x-a": "one", "x-b": "two"})
    assert "two" not in repr(stored)
    headers = {"X-A": "***", "x-c": "three"}
    draft = key_draft(stored, request={"default_headers": headers})
    assert draft.header_values == {"x-a": "one", "x-c": "three"}
    said = refusal(key_draft, stored, request={"default_headers": {"x-c": "***"}})
    assert said == (
        '/request/default_headers: "***" only stands for a stored value; give "x-c" its value'
    )
    assert key_draft(stored).header_values == {}


@pytest.mark.parametrize(
    ("request_fields", "said"),
    [
        ({"param_renames": {"model": "x"}}, '/request/param_renames: "model" cannot be renamed'),
        (
            {"default_body_fields": {"stream": True}},
            '/request/default_body_fields: "stream" cannot',
        ),
        ({"default_headers": {"Host": "x"}}, '/request/default_headers: "host" cannot be set'),
        ({"forward_client_headers": ["*-*"]}, "/request/forward_client_headers: must be names"),
        (
            {"param_constraints": {"temperature_min": 1, "temperature_max": 0.5}},
            "/request/param_constraints: temperature_min must not be above temperature_max",
        ),
    ],
)
def test_what_a_key_may_not_change_is_refused_at_its_field(request_fields, said):
    assert refusal(shaped, **request_fields).startswith(said)


def test_names_of_headers_are_stored_in_normal_form():
    assert key_draft(strip_headers=[" X-A ", "x-a", ""]).doc["strip_headers"] == ["x-a"]
    assert key_draft(strip_headers=[]).doc["strip_headers"] == []
    draft = shaped(forward_client_headers=["X-*"])
    assert draft.doc["request"] == {"forward_client_headers": ["x-*"]}


def test_a_model_renames_fields_under_the_same_rules():
    body = {**MODEL, "provider_key_id": "1", "param_renames": {"max_tokens": "stream"}}
    said = refusal(rules.draft_model, body, stored_key(), adapters=ADAPTERS)
    assert said.startswith('/param_renames: "stream" cannot be renamed or replaced')


def test_certificates_are_read_when_they_are_written():
    authority = trustme.CA()
    pem = authority.cert_pem.bytes().decode()
    tls = {"ca_cert": pem + pem, "verify": True}
    assert key_draft(tls=tls).doc["tls"] == tls


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("pem", "holds no certificate that can be read"),
        ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "holds no certificate"),
        ("ü", "must be ASCII"),
        ("-----BEGIN PRIVATE KEY-----", "holds a private key"),
    ],
)
def test_what_is_no_certificate_is_refused_in_words(text, said):
    assert refusal(key_draft, tls={"ca_cert": text}).startswith(f"/tls/ca_cert: {said}")
