"""The `secret` of a provider key: both schemes, and refusals that never repeat a secret."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aisix.core.resources import ClientSecret, ResourceKey
from aisix.errors import FieldError
from aisix.upstream.secret import parse_secret

TENANT = "11111111-2222-3333-4444-555555555555"
CLIENT = "66666666-7777-8888-9999-000000000000"
SECRET = "x8Q~hunter2.value"


def entra(**changes):
    fields = {"tenant_id": TENANT, "client_id": CLIENT, "client_secret": SECRET} | changes
    return json.dumps({name: value for name, value in fields.items() if value is not ...})


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


def test_a_scope_of_ones_own_wins():
    credential = parse_secret(entra(scope="https://ai.azure.com/.default"))
    assert isinstance(credential, ClientSecret)
    assert credential.scope == "https://ai.azure.com/.default"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("  \n", "is empty"),
        ("key with space", "no resource key"),
        ("Bearer hunter2", "no resource key"),
        ("hunter2\nhunter2", "no resource key"),
        ("hunter2\x00", "no resource key"),
        ("hünter2", "no resource key"),
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
        (entra(managed_identity=True), "managed_identity is not supported by this version"),
        ('{"workload_identity":true}', "workload_identity is not supported by this version"),
        (entra(certificate="x"), "certificate is not supported by this version"),
        (entra(client_certificate_path="x"), "client_certificate_path is not supported"),
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
    assert "0123abcd" not in repr(parse_secret("0123abcd"))


@given(st.one_of(st.text(), st.text().map(lambda text: "{" + text)))
def test_any_text_is_read_or_refused(text):
    try:
        parse_secret(text)
    except FieldError:
        return


values = st.recursive(st.none() | st.booleans() | st.text() | st.floats(), st.lists, max_leaves=3)
names = st.sampled_from(["tenant_id", "client_id", "client_secret", "authority_host", "scope", "x"])


@given(st.dictionaries(names, values))
def test_any_json_object_is_read_or_refused(document):
    try:
        credential = parse_secret(json.dumps(document))
    except FieldError:
        return
    assert isinstance(credential, ClientSecret)
