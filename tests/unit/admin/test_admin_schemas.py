"""Bodies of the admin API: what is taken, and in which words the rest is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from aisix.admin.refusals import Refusal
from aisix.admin.schemas import KINDS, NOT_BUILT, ROTATION, Schemas, parse_body

SCHEMAS = Schemas(("azure-openai",))
KEY = {"display_name": "k", "adapter": "azure-openai", "secret": "s", "api_base": "acme"}
MODEL = {"display_name": "m", "provider": "azure", "model_name": "d", "provider_key_id": "1"}
CALLER = {"key_hash": "ab" * 32, "allowed_models": ["m"]}
GOOD: dict[str, dict[str, Any]] = {"provider_keys": KEY, "models": MODEL, "apikeys": CALLER}
LIMITS = {"rps": 1, "rpm": 2, "rph": 3, "rpd": 4, "tpm": 5, "tpd": 6, "concurrency": 0}


def refused(kind: str, document, *, replacing: bool = False) -> str:
    with pytest.raises(Refusal) as caught:
        SCHEMAS.check(kind, document, replacing=replacing)
    assert caught.value.status == 400
    prefix = "schema validation failed at "
    assert caught.value.message.startswith(prefix)
    return caught.value.message.removeprefix(prefix)


@pytest.mark.parametrize("kind", KINDS)
def test_the_schemas_are_schemas(kind):
    for schema in (SCHEMAS.create[kind], SCHEMAS.replace[kind], SCHEMAS.value[kind]):
        Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("replacing", [False, True])
def test_a_good_body_passes_unchanged(kind, replacing):
    assert SCHEMAS.check(kind, GOOD[kind], replacing=replacing) == GOOD[kind]


def test_every_field_may_be_given():
    request = {
        "param_renames": {"a": "b"},
        "param_constraints": {"temperature_min": 0, "temperature_max": 0.7},
        "default_body_fields": {"user": None, "seed": 1.0, "deep": {"x": None}},
        "default_headers": {"x-a": "v"},
        "forward_client_headers": ["x-*"],
    }
    tls = {"ca_cert": "pem", "verify": True}
    key = {**KEY, "provider": "azure", "api_version": "v1", "request": request, "tls": tls}
    key |= {"strip_headers": ["x-b"]}
    model = {**MODEL, "api_version": "v1", "timeout": 0, "stream_timeout": 5, "rate_limit": LIMITS}
    model |= {"param_renames": {"a": "c"}}
    caller = {
        **CALLER,
        "rate_limit": LIMITS,
        "expires_at": "2030-01-01T00:00:00Z",
        "disabled": True,
        "display_name": "team",
    }
    for kind, body in zip(KINDS, (key, model, caller), strict=True):
        assert SCHEMAS.check(kind, body) == body


@pytest.mark.parametrize(
    ("kind", "change", "said"),
    [
        ("provider_keys", {"display_name": 1}, "/display_name: must be a string"),
        ("provider_keys", {"display_name": None}, "/display_name: must be a string"),
        ("provider_keys", {"display_name": ""}, "/display_name: must not be empty"),
        ("provider_keys", {"display_name": "a\nb"}, "/display_name: must not contain control"),
        ("provider_keys", {"display_name": "a\x00"}, "/display_name: must not contain control"),
        ("provider_keys", {"display_name": " a"}, "/display_name: must not begin or end with"),
        ("provider_keys", {"display_name": "a\u3000"}, "/display_name: must not begin or end"),
        ("provider_keys", {"display_name": "x" * 257}, "/display_name: must have at most 256"),
        ("provider_keys", {"adapter": "bedrock"}, '/adapter: must be one of "azure-openai"'),
        ("provider_keys", {"provider": None}, "/provider: must be a string"),
        ("provider_keys", {"secret": ""}, "/secret: must not be empty"),
        ("provider_keys", {"secret": None}, "/secret: must be a string"),
        ("provider_keys", {"secret": {"tenant_id": "x"}}, "/secret: must be a string"),
        ("provider_keys", {"api_base": 5}, "/api_base: must be a string or null"),
        ("provider_keys", {"api_key": "s"}, ': exactly one of "secret" and its other name'),
        ("provider_keys", {"response": {}}, "/response: field is not supported by this version"),
        ("provider_keys", {"tls": {"ca": "x"}}, '/tls/ca: unknown field "ca"'),
        ("provider_keys", {"tls": {"verify": "no"}}, "/tls/verify: must be a boolean or null"),
        ("provider_keys", {"tls": {"ca_cert": ""}}, "/tls/ca_cert: must not be empty"),
        (
            "provider_keys",
            {"request": {"headers": {}}},
            '/request/headers: unknown field "headers"',
        ),
        ("provider_keys", {"request": []}, "/request: must be an object or null"),
        (
            "provider_keys",
            {"request": {"param_renames": {"a": 5}}},
            "/request/param_renames/a: must be a string",
        ),
        (
            "provider_keys",
            {"request": {"param_constraints": {"temperature_max": -1}}},
            "/request/param_constraints/temperature_max: must be 0 or more",
        ),
        (
            "provider_keys",
            {"request": {"param_constraints": {"temperature_max": "1"}}},
            "/request/param_constraints/temperature_max: must be a number or null",
        ),
        (
            "provider_keys",
            {"request": {"default_headers": {f"x-{n}": "v" for n in range(8)}}},
            "/request/default_headers: must have at most 7 entries",
        ),
        (
            "provider_keys",
            {"request": {"default_headers": {"x-a": 1}}},
            "/request/default_headers/x-a: must be a string",
        ),
        (
            "provider_keys",
            {"request": {"forward_client_headers": "x-a"}},
            "/request/forward_client_headers: must be an array or null",
        ),
        ("provider_keys", {"strip_headers": None}, "/strip_headers: must be an array"),
        ("provider_keys", {"strip_headers": ["a"] * 65}, "/strip_headers: must have at most 64"),
        ("models", {"param_renames": None}, "/param_renames: must be an object"),
        ("models", {"param_renames": {"a": ""}}, "/param_renames/a: must not be empty"),
        ("models", {"display_name": "a/b"}, '/display_name: must not contain "/"'),
        ("models", {"display_name": "a*b*"}, '/display_name: may contain at most one "*"'),
        ("models", {"display_name": "a "}, "/display_name: must not begin or end"),
        ("models", {"display_name": "a\n"}, "/display_name: must not "),
        ("models", {"model_name": "**"}, '/model_name: may contain at most one "*"'),
        ("models", {"provider": "Azure"}, "/provider: must be lower-case"),
        ("models", {"provider": "azure\n"}, "/provider: must be lower-case"),
        ("models", {"provider": "a" * 65}, "/provider: must have at most 64"),
        ("models", {"timeout": None}, "/timeout: must be an integer"),
        ("models", {"timeout": -1}, "/timeout: must be 0 or more"),
        ("models", {"timeout": True}, "/timeout: must be an integer"),
        ("models", {"timeout": 1.5}, "/timeout: must be an integer"),
        ("models", {"timeout": 10**30}, "/timeout: must be 9007199254740991 or less"),
        ("models", {"api_version": None}, "/api_version: must be a string"),
        ("models", {"rate_limit": None}, "/rate_limit: must be an object"),
        ("models", {"rate_limit": {"rpm": None}}, "/rate_limit/rpm: must be an integer"),
        ("models", {"rate_limit": {"rpm": "5"}}, "/rate_limit/rpm: must be an integer"),
        ("models", {"rate_limit": {"tph": 5}}, '/rate_limit/tph: unknown field "tph"'),
        ("models", {"cost": {}}, "/cost: field is not supported by this version"),
        ("models", {"routing": None}, "/routing: field is not supported by this version"),
        ("apikeys", {"key_hash": "ab"}, "/key_hash: must be a SHA-256"),
        ("apikeys", {"key_hash": "ab" * 32 + "\n"}, "/key_hash: must be a SHA-256"),
        ("apikeys", {"key": "sk-1"}, ': exactly one of "key_hash" and "key"'),
        ("apikeys", {"allowed_models": "m"}, "/allowed_models: must be an array"),
        ("apikeys", {"allowed_models": ["m", 5]}, "/allowed_models/1: must be a string"),
        ("apikeys", {"allowed_models": [""]}, "/allowed_models/0: must not be empty"),
        ("apikeys", {"allowed_models": None}, "/allowed_models: must be an array"),
        ("apikeys", {"disabled": None}, "/disabled: must be a boolean"),
        ("apikeys", {"disabled": "no"}, "/disabled: must be a boolean"),
        ("apikeys", {"rate_limit": []}, "/rate_limit: must be an object or null"),
        ("apikeys", {"team_id": "t"}, "/team_id: field is not supported by this version"),
    ],
)
def test_a_broken_rule_is_named_with_its_place(kind, change, said):
    assert said in refused(kind, {**GOOD[kind], **change})
    assert refused(kind, {**GOOD[kind], **change}).startswith(said.split(":")[0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("document", [None, [], "x", 5, True, [{}]])
def test_a_body_must_be_an_object(kind, document):
    assert refused(kind, document) == ": must be an object"


@pytest.mark.parametrize(
    ("kind", "name"),
    [(kind, name) for kind in KINDS for name in SCHEMAS.create[kind]["required"]],
)
def test_a_missing_field_is_named(kind, name):
    body = {field: value for field, value in GOOD[kind].items() if field != name}
    assert refused(kind, body) == f': "{name}" is required'


def test_one_of_secret_and_key_is_needed_on_create_only():
    key = {name: value for name, value in KEY.items() if name != "secret"}
    caller: dict[str, object] = {"allowed_models": []}
    assert "exactly one" in refused("provider_keys", key)
    assert "exactly one" in refused("apikeys", caller)
    assert SCHEMAS.check("provider_keys", key, replacing=True) == key
    assert SCHEMAS.check("apikeys", caller, replacing=True) == caller
    both = {**KEY, "api_key": "s"}
    assert "same field" in refused("provider_keys", both, replacing=True)
    assert "exclude each other" in refused("apikeys", {**CALLER, "key": "k"}, replacing=True)


@pytest.mark.parametrize("kind", KINDS)
def test_fields_that_are_not_built_are_refused_by_name(kind):
    for name in NOT_BUILT[kind]:
        assert name not in SCHEMAS.create[kind]["properties"]
        said = refused(kind, {**GOOD[kind], name: {}})
        assert said == f"/{name}: field is not supported by this version"


def test_unknown_fields_are_named_with_a_guess():
    said = refused("models", {**MODEL, "dispaly_name": "x"})
    assert said == '/dispaly_name: unknown field "dispaly_name" (did you mean "display_name"?)'
    said = refused("models", {**MODEL, "zzz": 1, "timout": 2})
    assert said == ': unknown fields "zzz", "timout" (did you mean "timeout"?)'


def test_a_hostile_field_name_is_escaped_and_cut():
    said = refused("models", {**MODEL, "a/b~c\n" + "x" * 500: 1})
    assert "\n" not in said
    assert said.startswith("/a~1b~0c")
    assert len(said) < 300


def test_null_means_absent_where_it_is_allowed():
    key = {**KEY, "api_version": None, "adapter": None}
    caller = {**CALLER, "rate_limit": {"rpm": None, "tpm": 5}, "expires_at": None}
    assert "api_version" not in SCHEMAS.check("provider_keys", key)
    assert "adapter" not in SCHEMAS.check("provider_keys", key)
    checked = SCHEMAS.check("apikeys", {**caller, "display_name": None})
    assert checked == {**CALLER, "rate_limit": {"tpm": 5}}
    assert SCHEMAS.check("apikeys", {**CALLER, "rate_limit": None}) == CALLER
    shaped = {**KEY, "request": {"param_renames": None, "default_headers": None}, "tls": None}
    assert SCHEMAS.check("provider_keys", shaped) == {**KEY, "request": {}}


def test_a_whole_number_may_be_spelt_as_a_float():
    checked = SCHEMAS.check("models", {**MODEL, "timeout": 1000.0, "rate_limit": {"rpm": 5.0}})
    assert repr(checked["timeout"]) == "1000"
    assert repr(checked["rate_limit"]["rpm"]) == "5"


@pytest.mark.parametrize("key", ["sk-1\n", "a b", "ü", "\x00", "a\tb", "\x7f", "\u2028"])
def test_a_key_that_a_header_cannot_carry_is_refused(key):
    said = refused("apikeys", {"key": key, "allowed_models": []})
    assert said.startswith("/key: must be visible ASCII characters only")


def test_an_empty_key_is_refused():
    assert refused("apikeys", {"key": "", "allowed_models": []}) == "/key: must not be empty"


def test_no_refusal_repeats_a_secret():
    secret = "top-secret-value"
    bodies = [
        ("provider_keys", {**KEY, "secret": [secret]}),
        ("provider_keys", {**KEY, "secret": secret, "api_key": secret}),
        ("provider_keys", {**KEY, "secret": secret * 5000}),
        ("apikeys", {"key": secret + "\n", "allowed_models": []}),
        ("apikeys", {"key_hash": secret, "allowed_models": []}),
        ("apikeys", {**CALLER, "key": secret}),
        ("models", [secret]),
    ]
    for kind, body in bodies:
        assert secret not in refused(kind, body)


@pytest.mark.parametrize("grace", [-1, "5", 1.5, None, 10**9, True])
def test_a_rotation_takes_only_a_bounded_grace(grace):
    assert refused(ROTATION, {"grace_seconds": grace}).startswith("/grace_seconds: must be")
    assert SCHEMAS.check(ROTATION, {}) == {}


def test_the_adapters_named_are_those_there_are():
    schemas = Schemas(("azure-openai", "openai"))
    assert schemas.check("provider_keys", {**KEY, "adapter": "openai"})["adapter"] == "openai"
    with pytest.raises(Refusal, match='"azure-openai", "openai"'):
        schemas.check("provider_keys", {**KEY, "adapter": "vertex"})


# ── reading JSON ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "Expecting value at line 1 column 1"),
        (b"{", "line 1 column 2"),
        (b'{"a":1,}', "line 1 column"),
        (b"{'a':1}", "line 1 column 2"),
        (b'{"a":1} x', "Extra data"),
        (b'{"a":"\n"}', "Invalid control character"),
        (b'{"a":NaN}', "NaN is not a JSON number"),
        (b'{"a":-Infinity}', "-Infinity is not a JSON number"),
        (b'{"a":1e999}', "a number is too large"),
        (b'{"a":' + b"1" * 5000 + b"}", "a number is too long"),
        (b'{"a":1,"a":1}', 'field "a" is given twice'),
        (b'{"b":{"a":1,"c":2,"a":1}}', 'field "a" is given twice'),
        (b'{"a":"\xff"}', "not UTF-8"),
        ('{"a":1}'.encode("utf-16"), "not UTF-8"),
        (b"\xef\xbb\xbf{}", "BOM"),
        (b'{"a":"\\ud800"}', "half of a surrogate pair"),
        (b'{"\\udc00":1}', "half of a surrogate pair"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
    ],
)
def test_what_is_no_json_of_ours_is_refused_with_the_reason(raw, said):
    with pytest.raises(Refusal) as caught:
        parse_body(raw)
    assert caught.value.status == 400
    assert caught.value.message.startswith("malformed JSON: ")
    assert said in caught.value.message


def test_good_json_is_read():
    document = {"a": [1, 2.5, None, True, "ü\U0001f600"], "b": {"a": 1}}
    assert parse_body(json.dumps(document).encode()) == document
