"""The OpenAPI document, its page, and docs/admin-api.md: equal to what is served."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from aisix import __version__
from aisix.admin.openapi import OPERATIONS, build_document, static_file
from aisix.admin.schemas import Schemas
from aisix.core.ports import TokenState
from aisix.web.admin import UnknownHandler, admin_routes
from aisix.web.base import ProcessState
from tests.support.control import AZURE_KEY, make_control, serve_admin

DOCUMENT = build_document(Schemas(("azure-openai",)), version=__version__)
ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs" / "admin-api.md"
STATIC = Path(__file__).parents[2] / "aisix" / "admin" / "static"


def handler_of(path: str) -> type:
    """The handler of the first route that the whole path fits, as Tornado finds it."""
    routes = admin_routes(make_control().service, admin_keys=["k"], state=ProcessState())
    return next(handler for pattern, handler, _ in routes if re.fullmatch(pattern, path))


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
@pytest.mark.gen_test
async def test_every_operation_of_the_document_is_served_and_no_other_method(operation):
    handler = handler_of(operation.path.replace("{id}", "1"))
    assert handler is not UnknownHandler
    served = {
        method.upper()
        for method in ("get", "post", "put", "delete", "patch", "head", "options")
        if getattr(handler, method) is not getattr(UnknownHandler, method)
    }
    documented = {other.method for other in OPERATIONS if other.path == operation.path}
    assert served == documented
    assert operation.method.lower() in DOCUMENT["paths"][operation.path]


def test_the_document_has_the_paths_of_the_table_and_no_other():
    documented = {
        (method.upper(), path) for path, item in DOCUMENT["paths"].items() for method in item
    }
    assert documented == {(operation.method, operation.path) for operation in OPERATIONS}
    names = [operation.name for operation in OPERATIONS]
    assert len(names) == len(set(names))


def references(node) -> set[str]:
    if isinstance(node, dict):
        found = {node["$ref"]} if "$ref" in node else set()
        return found.union(*(references(child) for child in node.values()))
    if isinstance(node, list):
        return set().union(*(references(child) for child in node))
    return set()


def test_every_reference_leads_somewhere_and_every_schema_is_one():
    for reference in references(DOCUMENT):
        node = DOCUMENT
        for part in reference.removeprefix("#/").split("/"):
            node = node[part]
    for schema in DOCUMENT["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)


def validator(name: str) -> Draft202012Validator:
    return Draft202012Validator({**DOCUMENT, "$ref": f"#/components/schemas/{name}"})


@pytest.mark.gen_test
async def test_real_answers_fit_their_documented_schemas():
    async with serve_admin() as api:
        v1 = "/admin/v1"
        key = await api.json("POST", f"{v1}/provider_keys", AZURE_KEY)
        managed = {**AZURE_KEY, "display_name": "m", "secret": '{"client_id":"mine"}'}
        api.control.tokens.states["mine"] = TokenState(0.0, (0.0, "no such identity"))
        await api.json("POST", f"{v1}/provider_keys", managed)
        model = await api.control.create_model(rate_limit={"rpm": 1}, timeout=5)
        caller = await api.json("POST", f"{v1}/apikeys", {"key": "k", "allowed_models": ["*"]})
        api.control.health.failures["gpt-4o-azure"] = (0.0, "timeout")
        for name, answer in (
            ("ProviderKeyEntry", key),
            ("ModelEntry", model),
            ("ApiKeyEntry", caller),
            ("ProviderKeyList", await api.json("GET", f"{v1}/provider_keys")),
            ("ModelList", await api.json("GET", f"{v1}/models")),
            ("ApiKeyList", await api.json("GET", f"{v1}/apikeys")),
            ("Rotated", await api.json("POST", f"{v1}/apikeys/{caller['id']}/rotate")),
            ("Verification", await api.json("POST", f"{v1}/models/{model['id']}/verify")),
            ("Health", await api.json("GET", f"{v1}/health")),
            ("ModelStatusList", await api.json("GET", f"{v1}/models/status")),
            ("Deleted", await api.json("DELETE", f"{v1}/apikeys/{caller['id']}")),
            ("Problem", json.loads((await api.call("GET", f"{v1}/models/none")).body)),
        ):
            validator(name).validate(answer)


def test_every_stage_of_a_verdict_is_in_the_document_and_in_the_guide():
    stages = set(DOCUMENT["components"]["schemas"]["Verification"]["properties"]["stage"]["enum"])
    parts = ("upstream/findings", "upstream/verdicts", "upstream/model_list", "admin/verify")
    sources = "".join((ROOT / f"aisix/{part}.py").read_text("utf-8") for part in parts)
    assert all(f'"{stage}"' in sources for stage in stages if stage)
    section = DOCS.read_text("utf-8").split("## Verify", 1)[1].split("\n## ", 1)[0]
    told = set(re.findall(r"^\| `(\w+)` \|", section, flags=re.MULTILINE))
    assert told == {stage for stage in stages if stage}


@pytest.mark.gen_test
async def test_document_page_and_script_are_served_to_everyone_from_here():
    async with serve_admin() as api:
        served = await api.json("GET", "/admin/openapi.json", key=None)
        assert served == DOCUMENT
        assert served["openapi"] == "3.1.0"
        page = await api.call("GET", "/admin/docs", key=None)
        assert page.headers["Content-Type"].startswith("text/html")
        policy = page.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe-eval" not in policy
        assert b"http://" not in page.body
        assert b"https://" not in page.body
        assert b'load-fonts="false"' in page.body
        for address in re.findall(r'(?:src|spec-url)="([^"]+)"', page.body.decode()):
            assert (await api.call("GET", address, key=None)).code == 200
        script = await api.call("GET", "/admin/docs/rapidoc-min.js", key=None)
        assert script.headers["Content-Type"].startswith("text/javascript")
        assert script.body == static_file("rapidoc-min.js")


def test_the_vendored_viewer_is_the_one_its_readme_names():
    readme = (STATIC / "README.md").read_text("utf-8")
    digest = hashlib.sha256(static_file("rapidoc-min.js")).hexdigest()
    assert f"`{digest}`" in readme
    assert b"RapiDoc 9.3.8" in static_file("rapidoc-min.js")[:200]
    assert "9.3.8" in readme
    assert (STATIC / "LICENSE.rapidoc.txt").read_text("utf-8").startswith("MIT License")


def test_every_route_is_in_the_guide_to_the_admin_api_and_no_other():
    text = DOCS.read_text("utf-8")
    told = set(re.findall(r"^\| `([A-Z]+)` \| `(/admin[^`]*)` \|", text, flags=re.MULTILINE))
    assert told == {(operation.method, operation.path) for operation in OPERATIONS}


@pytest.mark.parametrize("name", ["ProviderKeyCreate", "ModelCreate", "ApiKeyCreate"])
def test_every_field_is_in_the_guide_to_the_admin_api(name):
    text = DOCS.read_text("utf-8")
    for field in DOCUMENT["components"]["schemas"][name]["properties"]:
        assert f"`{field}`" in text, field


def test_the_examples_of_the_guide_fit_the_schemas():
    """Each `-d '…'` of docs/admin-api.md, by the resource it is sent to."""
    text = DOCS.read_text("utf-8")
    titles = {"provider_keys": "ProviderKey", "models": "Model", "apikeys": "ApiKey"}
    checked = []
    for kind, body in re.findall(r"/admin/v1/(\w+)\"[^`]*?-d '(\{.*?\})'\n", text, flags=re.DOTALL):
        document = json.loads(body)
        validator(f"{titles[kind]}Create").validate(document)
        checked.append(kind)
    assert sorted(set(checked)) == ["apikeys", "models", "provider_keys"]
