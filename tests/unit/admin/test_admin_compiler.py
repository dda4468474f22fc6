"""Rows become the snapshot; one bad row never takes the others down."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any

import pytest

from aisix.admin.compiler import compile_snapshot, deployment_of
from aisix.core.ports import StoredResource
from aisix.core.resources import Deployment, Fault, LimitPolicy, ResourceKey
from aisix.core.shaping import Shaping
from tests.support.control import StubAdapter

NOW = 1000.0


def key_row(secret: str | None = "s", fault: str | None = None, **doc: Any) -> StoredResource:
    plain = {"display_name": "azure", "provider": "azure", "adapter": "azure-openai"}
    return StoredResource(
        kind="provider_keys",
        id="pk",
        name="azure",
        revision=1,
        doc={**plain, "api_base": "https://acme", **doc},
        secret=secret,
        fault=fault,
    )


def model_row(id: str = "m", **doc: Any) -> StoredResource:
    plain = {"display_name": id, "provider": "azure", "model_name": "dep", "provider_key_id": "pk"}
    return StoredResource(
        kind="models", id=id, name=id, revision=1, doc={**plain, **doc}, created_at=12.9
    )


def caller_row(id: str = "c", **doc: Any) -> StoredResource:
    plain = {"key_hash": "aa" * 32, "allowed_models": ["m"]}
    return StoredResource(kind="apikeys", id=id, name="aa" * 32, revision=1, doc={**plain, **doc})


def compiled(*rows: StoredResource, adapter: StubAdapter | None = None):
    adapters: Any = {"azure-openai": adapter or StubAdapter()}
    return compile_snapshot(rows, adapters, revision=7, taken_at=NOW)


def test_a_model_and_its_key_become_an_alias_with_its_deployment():
    limits = {"rpm": 5, "tpm": 0}
    model = model_row(timeout=1500, stream_timeout=0, rate_limit=limits)
    result = compiled(key_row(), model)
    alias = result.snapshot.aliases["m"]
    assert result.problems == ()
    assert (result.snapshot.revision, result.snapshot.taken_at) == (7, NOW)
    assert (alias.timeout_s, alias.stream_timeout_s, alias.created) == (1.5, 0.0, 12)
    assert alias.limits == LimitPolicy(rpm=5, tpm=0)
    deployment = alias.deployment
    assert deployment.credential == ResourceKey("s")
    assert (deployment.name, deployment.api_base, deployment.api_version) == (
        "dep",
        "https://acme",
        "2024-10-21",
    )
    assert (deployment.provider_key_id, deployment.provider_key_name) == ("pk", "azure")
    assert deployment.fault is None


def test_timeouts_that_are_not_set_are_left_to_the_gateway():
    alias = compiled(key_row(), model_row()).snapshot.aliases["m"]
    assert (alias.timeout_s, alias.stream_timeout_s) == (None, None)


@pytest.mark.parametrize(
    ("of_key", "of_model", "version"),
    [({"api_version": "v1"}, {}, "v1"), ({"api_version": "v1"}, {"api_version": "v2"}, "v2")],
)
def test_the_model_api_version_wins_over_the_keys(of_key, of_model, version):
    snapshot = compiled(key_row(**of_key), model_row(**of_model)).snapshot
    assert snapshot.aliases["m"].deployment.api_version == version


def test_wildcard_models_are_found_by_name():
    snapshot = compiled(key_row(), model_row("gpt-*")).snapshot
    found = snapshot.find("gpt-5")
    assert found is not None
    assert (found[0].name, found[1]) == ("gpt-*", "5")


@pytest.mark.parametrize(
    ("key", "kind", "reason"),
    [
        (key_row(adapter="gone"), "configuration", "not built"),
        (key_row(api_base="x?y"), "configuration", "must not have a query"),
        (key_row(api_version="never"), "configuration", "is no version"),
        (key_row(secret=None), "credential", "has no secret"),
        (key_row(secret=None, fault="does not open"), "credential", "does not open"),
        (key_row(secret="bad"), "credential", "is not usable"),
    ],
)
def test_an_unusable_provider_key_makes_its_models_faulty_not_unknown(key, kind, reason):
    adapter = StubAdapter()
    adapter.refused = {"bad"}
    result = compiled(key, model_row(), adapter=adapter)
    deployment = result.snapshot.aliases["m"].deployment
    assert isinstance(deployment.fault, Fault)
    assert deployment.fault.kind == kind
    assert reason in deployment.fault.reason
    assert deployment.credential is None
    assert len(result.problems) == 1
    assert "models/m" in result.problems[0]


def test_a_model_without_its_provider_key_is_faulty():
    fault = compiled(model_row()).snapshot.aliases["m"].deployment.fault
    assert fault is not None
    assert "does not exist" in fault.reason


@pytest.mark.parametrize(
    "bad",
    [
        StoredResource(kind="models", id="b", name="b", revision=1, doc={}, fault="damaged"),
        model_row("b", timeout="x"),
        model_row("b", rate_limit={"rpm": "x"}),
        model_row("b", rate_limit={"nonsense": 1}),
        model_row("b", rate_limit=[]),
        StoredResource(kind="apikeys", id="b", name="b", revision=1, doc={"key_hash": "x"}),
        caller_row("b", expires_at="never"),
        caller_row("b", expires_at=5),
    ],
)
def test_a_row_that_cannot_be_understood_is_left_out_and_named(bad):
    result = compiled(key_row(), bad, model_row(), caller_row())
    assert list(result.snapshot.aliases) == ["m"]
    assert [key.id for key in result.snapshot.keys_by_hash.values()] == ["c"]
    assert len(result.problems) == 1
    assert f"{bad.kind}/b is left out: " in result.problems[0]


def test_a_caller_key_is_compiled_whole():
    row = caller_row(
        display_name="team",
        rate_limit={"concurrency": 2},
        expires_at="1970-01-01T01:00:00Z",
        disabled=True,
    )
    key = compiled(row).snapshot.keys_by_hash["aa" * 32]
    assert (key.id, key.display_name, key.allowed_models) == ("c", "team", ("m",))
    assert (key.expires_at, key.disabled) == (3600.0, True)
    assert key.limits == LimitPolicy(concurrency=2)


@pytest.mark.parametrize(
    ("expires_at", "until"),
    [(None, NOW + 5), ("1970-01-01T00:16:42Z", 1002.0), ("1970-01-01T01:00:00Z", NOW + 5)],
)
def test_a_rotated_key_also_works_under_its_old_hash_while_the_grace_lasts(expires_at, until):
    doc: dict[str, Any] = {"previous_key_hash": "bb" * 32, "previous_expires_at": NOW + 5}
    if expires_at:
        doc["expires_at"] = expires_at
    keys = compiled(caller_row(**doc)).snapshot.keys_by_hash
    assert keys["bb" * 32].id == keys["aa" * 32].id == "c"
    assert keys["bb" * 32].expires_at == until


def test_an_ended_grace_is_not_compiled():
    row = caller_row(previous_key_hash="bb" * 32, previous_expires_at=NOW)
    assert list(compiled(row).snapshot.keys_by_hash) == ["aa" * 32]


def leads_to(row: StoredResource, *rows: StoredResource):
    adapters: Any = {"azure-openai": StubAdapter()}
    return deployment_of(row, [row, *rows], adapters)


def test_a_provider_key_leads_to_its_resource_and_no_deployment():
    found = leads_to(key_row(api_version="v1"), model_row())
    assert (found.name, found.api_base, found.api_version) == ("", "https://acme", "v1")
    assert (found.credential, found.fault) == (ResourceKey("s"), None)


def test_a_model_leads_where_the_snapshot_says():
    alias = compiled(key_row(), model_row()).snapshot.aliases["m"]
    assert leads_to(model_row(), key_row()) == alias.deployment


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        (key_row(secret=None, fault="it does not open"), Fault("credential", "it does not open")),
        (
            model_row(provider_key_id="gone"),
            Fault("configuration", "the provider key of this model does not exist"),
        ),
        (
            StoredResource(kind="models", id="m", name="m", revision=1, doc={}),
            Fault("configuration", "the stored document is damaged"),
        ),
    ],
)
def test_what_leads_nowhere_says_why(row: StoredResource, fault: Fault):
    assert leads_to(row).fault == fault


# ── shaping and trust ───────────────────────────────────────────────────────────────────────────


def compiled_deployment(key: StoredResource, **model: Any) -> Deployment:
    return compiled(key, model_row(**model)).snapshot.aliases["m"].deployment


def test_nothing_to_shape_is_none_at_all():
    empty: dict[str, Any] = {"param_renames": {}, "param_constraints": {}, "default_headers": {}}
    for key in (key_row(), key_row(request={}), key_row(request=empty, strip_headers=[])):
        deployment = compiled_deployment(key)
        assert (deployment.shaping, deployment.ca_cert, deployment.verify) == (None, None, None)
    assert compiled_deployment(key_row(), param_renames={"a": "a"}).shaping is None


def test_a_key_shapes_the_requests_of_its_models():
    request = {
        "param_renames": {"a": "b"},
        "param_constraints": {"temperature_min": 0.1, "temperature_max": 1},
        "default_body_fields": {"user": None, "list": [{"x": 1}]},
        "default_headers": {"x-a": "***"},
        "forward_client_headers": ["x-*"],
    }
    key = replace(
        key_row(request=request, strip_headers=["x-b"], tls={"ca_cert": "pem", "verify": True}),
        header_values={"x-a": "hunter2"},
    )
    deployment = compiled_deployment(key)
    assert deployment.shaping == Shaping(
        renames=(("a", "b"),),
        temperature_min=0.1,
        temperature_max=1,
        default_fields=(("user", None), ("list", [{"x": 1}])),
        default_headers=(("x-a", "hunter2"),),
        forward_headers=("x-*",),
        strip_headers=("x-b",),
    )
    assert (deployment.ca_cert, deployment.verify) == ("pem", True)
    assert "hunter2" not in repr(deployment)
    assert pickle.loads(pickle.dumps(deployment)) == deployment  # as workers get it


def test_the_renames_of_a_model_win_over_its_keys():
    key = key_row(request={"param_renames": {"a": "b", "c": "d", "e": "f"}})
    shaping = compiled_deployment(key, param_renames={"a": "x", "c": "c", "g": "h"}).shaping
    assert shaping is not None
    assert dict(shaping.renames) == {"a": "x", "e": "f", "g": "h"}


def test_a_key_that_trusts_anyone_is_named():
    assert compiled(key_row(tls={"verify": False})).unverified == {"azure"}
    assert compiled(key_row(tls={"verify": True})).unverified == frozenset()
