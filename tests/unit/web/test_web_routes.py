"""Which row a path meets."""

from __future__ import annotations

import pytest

from aisix.core.endpoints import ENDPOINTS, OTHER, SUBTREE_METHODS, EndpointSpec
from aisix.web.routes import Routes

ROUTES = Routes()


@pytest.mark.parametrize("spec", ENDPOINTS, ids=lambda spec: spec.operation)
@pytest.mark.parametrize("surface", ["/v1", "/openai/v1", "//v1/", "/openai//v1"])
def test_every_row_is_served_under_every_surface(spec: EndpointSpec, surface: str):
    path = surface + spec.path.replace("{model}", "gpt%204o").replace("{response_id}", "resp_%61")
    for tail in ("", "/", "//"):
        match = ROUTES.match("GET" if spec.subtree else spec.method, path + tail)
        assert match.spec is spec
        assert match.path_name == ("gpt 4o" if "{model}" in spec.path else None)
        assert match.resource == ("resp_a" if "{response_id}" in spec.path else "")


@pytest.mark.parametrize("surface", ["/openai", "/openai/v1", "/v1"])
@pytest.mark.parametrize("spec", [s for s in ENDPOINTS if s.takes_path_alias], ids=str)
def test_deployment_paths_carry_the_alias(spec: EndpointSpec, surface: str):
    match = ROUTES.match("POST", f"{surface}/deployments/gpt-4o%C3%BC{spec.path}")
    assert (match.spec, match.path_name) == (spec, "gpt-4oü")


@pytest.mark.parametrize("spec", [s for s in ENDPOINTS if s.subtree], ids=lambda s: s.operation)
@pytest.mark.parametrize("surface", ["/v1", "/openai/v1", "/openai", "/openai/deployments/a"])
@pytest.mark.parametrize("method", SUBTREE_METHODS)
def test_a_subtree_takes_every_path_below_its_own(spec: EndpointSpec, surface: str, method: str):
    match = ROUTES.match(method, f"{surface}{spec.path}/file-1%7E/content/")
    assert (match.spec, match.resource) == (spec, "/file-1~/content")


@pytest.mark.parametrize(
    "path",
    [
        "/v1/files/../models",
        "/v1/files/%2e%2e/models",
        "/v1/files/a%2Fb",
        "/v1/files/a%5Cb",
        "/v1/files/a%3Fapi-version=x",
        "/v1/files/a%00",
        "/v1/files/.",
        "/v1/files/a%0d%0ab",
        "/v1/files/%ff",
        "/v1/responses/..",
        "/v1/responses/%2e%2e",
        "/v1/responses/a%2f..%2fb/cancel",
        "/openai/vector_stores/vs_1/../../files",
    ],
)
def test_a_path_that_leads_elsewhere_is_refused(path: str):
    refusal = ROUTES.match("GET" if not path.endswith("cancel") else "POST", path).refusal
    assert refusal is not None
    assert refusal.status == 400


def test_a_subtree_has_its_methods():
    refusal = ROUTES.match("PUT", "/v1/files/file-1").refusal
    assert refusal is not None
    assert (refusal.status, refusal.headers["Allow"]) == (405, "DELETE, GET, POST")


def test_compacting_is_no_response_id():
    assert ROUTES.match("POST", "/v1/responses/compact").spec.operation == "compact_response"
    assert ROUTES.match("GET", "/v1/responses/resp_1").spec.operation == "get_response"
    cancelled = ROUTES.match("POST", "/openai/responses/resp_1/cancel")
    assert (cancelled.spec.operation, cancelled.resource) == ("cancel_response", "resp_1")


def test_azure_sdks_list_models_without_a_deployment():
    assert ROUTES.match("GET", "/openai/models").spec.operation == "list_models"
    assert ROUTES.match("GET", "/openai/models/x").path_name == "x"


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "",
        "/v1",
        "/v1/",
        "/v2/models",
        "/v1/chat",
        "/v1/chat/completions/x",
        "/openai/deployments/x",
        "/openai/deployments/a/b/chat/completions",
        "/v1/models/a/b",
        "/v1/responses/a/b",
        "/v1/filesystem",
        "/openai/deployments/x/models",
        "/v1/videos",
        "/openai/chat/completions",
    ],
)
def test_everything_else_is_404_with_the_list(path: str):
    match = ROUTES.match("POST", path)
    assert match.spec is OTHER
    assert match.refusal is not None
    assert match.refusal.status == 404
    assert "/v1/chat/completions" in match.refusal.message


def test_a_wrong_method_is_405_and_names_the_right_one():
    refusal = ROUTES.match("GET", "/v1/chat/completions").refusal
    assert refusal is not None
    assert (refusal.status, refusal.headers["Allow"]) == (405, "POST")


def test_an_encoded_slash_stays_in_the_name():
    assert ROUTES.match("POST", "/openai/deployments/a%2Fb/chat/completions").path_name == "a/b"


def test_a_name_that_is_not_utf8_is_refused():
    refusal = ROUTES.match("GET", "/v1/models/%ff").refusal
    assert refusal is not None
    assert refusal.status == 400
