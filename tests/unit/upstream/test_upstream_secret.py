"""The `secret` of a provider key: all kinds, and refusals that never repeat a secret."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aisix.core.resources import (
    ClientCertificate,
    ClientSecret,
    ManagedIdentity,
    ResourceKey,
    WorkloadIdentity,
)
from aisix.errors import FieldError
from aisix.upstream.secret import check_cloud, parse_secret

TENANT = "11111111-2222-3333-4444-555555555555"
CLIENT = "66666666-7777-8888-9999-000000000000"
SECRET = "x8Q~hunter2.value"
PEM = "-----BEGIN PRIVATE KEY-----\nhunter2\n-----END PRIVATE KEY-----"
PUBLIC = "https://cognitiveservices.azure.com/.default"
GOV = "https://cognitiveservices.azure.us/.default"
IDENTITY = (
    "/subscriptions/1/resourcegroups/r_(x)/providers/Microsoft.ManagedIdentity"
    "/userAssignedIdentities/gateway"
)


def entra(**changes):
    fields = {"tenant_id": TENANT, "client_id": CLIENT, "client_secret": SECRET} | changes
    return json.dumps({name: value for name, value in fields.items() if value is not ...})


def certified(**changes):
    return entra(client_secret=..., **({"client_certificate": PEM} | changes))


def managed(**fields):
    return json.dumps({"managed_identity": True, **fields})


def workload(**fields):
    return json.dumps({"workload_identity": True, **fields})


def test_plain_text_is_a_resource_key():
    assert parse_secret("  0123abcd\n") == ResourceKey(key="0123abcd")


def test_json_is_a_client_secret_of_the_public_cloud_by_default():
    assert parse_secret(" " + entra() + "\n") == ClientSecret(
        tenant_id=TENANT,
        client_id=CLIENT,
        client_secret=SECRET,
        authority="https://login.microsoftonline.com",
        scope="https://cognitiveservices.azure.com/.default",
    )


@pytest.mark.parametrize(
    ("authority", "origin", "scope"),
    [
        (
            "https://login.microsoftonline.us",
            "https://login.microsoftonline.us",
            "https://cognitiveservices.azure.us/.default",
        ),
        (
            "https://LOGIN.chinacloudapi.cn/",
            "https://login.chinacloudapi.cn",
            "https://cognitiveservices.azure.cn/.default",
        ),
        (
            "https://login.partner.microsoftonline.cn:443",
            "https://login.partner.microsoftonline.cn",
            "https://cognitiveservices.azure.cn/.default",
        ),
        (
            "http://127.0.0.1:8081",
            "http://127.0.0.1:8081",
            "https://cognitiveservices.azure.com/.default",
        ),
        (
            None,
            "https://login.microsoftonline.com",
            "https://cognitiveservices.azure.com/.default",
        ),
    ],
)
def test_the_scope_follows_the_cloud_of_the_authority(authority, origin, scope):
    credential = parse_secret(entra(authority_host=authority))
    assert isinstance(credential, ClientSecret)
    assert (credential.authority, credential.scope) == (origin, scope)


def test_a_certificate_is_kept_as_it_was_pasted():
    text = certified(
        client_certificate=PEM + "\n",
        client_certificate_password=" hunter2 ",
        authority_host="https://login.microsoftonline.us",
    )
    assert parse_secret(text) == ClientCertificate(
        tenant_id=TENANT,
        client_id=CLIENT,
        certificate=PEM,
        password=" hunter2 ",
        authority="https://login.microsoftonline.us",
        scope=GOV,
    )


@pytest.mark.parametrize(
    ("fields", "kind", "identity", "scope"),
    [
        ({}, "", "", PUBLIC),
        ({"client_id": None}, "", "", PUBLIC),
        ({"client_id": CLIENT}, "client_id", CLIENT, PUBLIC),
        ({"object_id": CLIENT, "scope": GOV}, "object_id", CLIENT, GOV),
        ({"resource_id": IDENTITY}, "resource_id", IDENTITY, PUBLIC),
    ],
)
def test_a_managed_identity_is_the_systems_or_a_named_one(fields, kind, identity, scope):
    found = parse_secret(managed(**fields))
    assert found == ManagedIdentity(scope=scope, identity_kind=kind, identity=identity)


def test_a_workload_identity_may_leave_everything_to_its_environment():
    assert parse_secret(workload()) == WorkloadIdentity()


def test_what_a_workload_identity_says_is_kept():
    fields = {"tenant_id": TENANT, "client_id": CLIENT, "token_file": "/var/run/token"}
    authority = "https://login.microsoftonline.us"
    found = parse_secret(workload(**fields, authority_host=authority))
    assert found == WorkloadIdentity(**fields, authority=authority, scope=GOV)
    assert parse_secret(workload(scope=GOV)) == WorkloadIdentity(scope=GOV)


@pytest.mark.parametrize(
    ("secret", "api_base", "words"),
    [
        (entra(), "https://acme.openai.azure.us", '"authority_host": "https://login.microsoftonli'),
        (entra(scope=GOV), "https://acme.openai.azure.com", "azure.us, and api_base of azure.com"),
        (managed(), "https://acme.openai.azure.cn", f'add "scope": "{GOV[:-11]}cn/.default"'),
    ],
)
def test_a_scope_of_another_cloud_than_the_resources_is_refused(secret, api_base, words):
    credential = parse_secret(secret)
    assert not isinstance(credential, ResourceKey)
    with pytest.raises(FieldError, match="the scope is of the cloud") as refused:
        check_cloud(credential, api_base)
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("secret", "api_base"),
    [
        (entra(), "https://acme.openai.azure.com"),
        (entra(), "https://relay.example/us"),
        (entra(scope="https://ai.azure.us/.default"), "https://acme.openai.azure.us"),
        (entra(scope="api://gateway/.default"), "https://acme.openai.azure.us"),
        (managed(scope=GOV), "https://acme.cognitiveservices.azure.us"),
        (workload(), "https://acme.openai.azure.us"),
    ],
)
def test_a_scope_of_the_same_cloud_or_of_none_is_taken(secret, api_base):
    credential = parse_secret(secret)
    assert not isinstance(credential, ResourceKey)
    check_cloud(credential, api_base)


def test_a_scope_of_ones_own_wins():
    credential = parse_secret(entra(scope="https://ai.azure.com/.default"))
    assert isinstance(credential, ClientSecret)
    assert credential.scope == "https://ai.azure.com/.default"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("  \n", "is empty"),
        ("key with space", "no key"),
        ("Bearer hunter2", "no key"),
        ("hunter2\nhunter2", "no key"),
        ("hunter2\x00", "no key"),
        ("hünter2", "no key"),
        ('{"client_secret":"hunter2"', "not valid JSON"),
        ("{" * 100_000, "not valid JSON"),
        ('{"a":' * 100_000, "not valid JSON"),
        ("{}", "tenant_id, client_id, client_secret must be"),
        (entra(client_secret=""), "client_secret must be a non-empty string"),
        (entra(client_secret=...), "client_secret must be a non-empty string"),
        (entra(client_secret=7), "client_secret must be a string"),
        (entra(tenant_id=None), "tenant_id must be a string"),
        (entra(client_secret="hunter2 x"), "client_secret holds"),
        (entra(tenant_id="a/b"), "tenant_id may hold only"),
        (entra(tenant_id="YOUR_TENANT_ID"), "tenant_id may hold only"),
        (entra(tenant_id="a..b"), "tenant_id may hold only"),
        (entra(client_id="a?b"), "client_id may hold only"),
        (entra(authority_host="login.microsoftonline.us"), "needs a scheme"),
        (entra(authority_host="https://u:hunter2@x.test"), "user information"),
        (entra(authority_host="https://x.test/tenant"), "bare origin"),
        (entra(authority_host="https://x.test?x=hunter2"), "bare origin"),
        (entra(authority_host="https://x.test?"), "bare origin"),
        (entra(authority_host="https://x.test#x"), "fragment"),
        (entra(authority_host="https://x.test\\y"), "backslash"),
        (entra(authority_host="ftp://x.test"), "must begin with"),
        (entra(scope="https://cognitiveservices.azure.com"), "/.default"),
        (entra(scope="/.default"), "/.default"),
        (entra(scope="a b/.default"), "/.default"),
        (entra(managed_identity=True), "client_secret and managed_identity exclude each other"),
        (entra(client_certificate="x"), "client_secret and client_certificate exclude each other"),
        (entra(workload_identity=True), "client_secret and workload_identity exclude each other"),
        (entra(token_file="/x"), "token_file does not go with client_secret, which takes tenant_"),
        (entra(client_certificate_path="x"), "unknown field client_certificate_path"),
        (certified(client_certificate="/etc/app.pem"), "must be the text of a PEM file"),
        (certified(client_certificate=""), "client_certificate must be a non-empty string"),
        (certified(client_certificate=7), "client_certificate must be a string"),
        (certified(client_certificate_password=""), "client_certificate_password must be a non-"),
        (certified(client_certificate_password=7), "client_certificate_password must be a non-"),
        (certified(tenant_id=...), "tenant_id must be a non-empty string"),
        ('{"managed_identity":"hunter2"}', "managed_identity must be true"),
        ('{"managed_identity":false}', "managed_identity must be true; leave it out"),
        (managed(tenant_id=TENANT), "tenant_id does not go with managed_identity, which takes cl"),
        (managed(client_id="a", object_id="b"), "client_id and object_id both name"),
        (managed(client_id=""), "client_id is empty; write its value or leave it out"),
        (managed(client_id="a&b=c"), "client_id may hold only"),
        (managed(resource_id="my-identity"), "resource_id must be an Azure resource id"),
        (managed(resource_id="/a/../b"), "resource_id must be an Azure resource id"),
        (managed(scope="x"), "/.default"),
        (workload(token_file="token"), "token_file must be an absolute path"),
        (workload(tenant_id="a/b"), "tenant_id may hold only"),
        (workload(authority_host="https://x.test/t"), "bare origin"),
        (workload(object_id="x"), "object_id does not go with workload_identity"),
        ('{"workload_identity":1}', "workload_identity must be true"),
        (entra(extra=1), "unknown field extra"),
        (entra(clientSecret="hunter2"), "clientSecret (did you mean client_secret?)"),
        (entra(**{"x8Q~hunter2": 1}), "unknown field (unreadable name)"),
    ],
)
def test_an_unusable_secret_is_refused_without_repeating_it(text, words):
    with pytest.raises(FieldError) as refused:
        parse_secret(text)
    assert words in str(refused.value)
    assert "hunter2" not in str(refused.value)
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__ or refused.value.__context__ is None


def test_a_credential_does_not_show_its_secret():
    assert SECRET not in repr(parse_secret(entra()))
    assert "hunter2" not in repr(parse_secret(certified(client_certificate_password="hunter2")))
    assert "0123abcd" not in repr(parse_secret("0123abcd"))


@given(st.one_of(st.text(), st.text().map(lambda text: "{" + text)))
def test_any_text_is_read_or_refused(text):
    try:
        parse_secret(text)
    except FieldError:
        return


values = st.recursive(st.none() | st.booleans() | st.text() | st.floats(), st.lists, max_leaves=3)
MARKS = ("client_secret", "client_certificate", "managed_identity", "workload_identity")
names = st.sampled_from(
    [*MARKS, "tenant_id", "client_id", "object_id", "authority_host", "scope", "token_file", "x"]
)


@given(st.dictionaries(names, values))
def test_any_json_object_is_read_or_refused(document):
    try:
        credential = parse_secret(json.dumps(document))
    except FieldError:
        return
    assert credential.kind in MARKS
