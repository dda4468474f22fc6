"""Which row a path meets."""

from __future__ import annotations

import pytest

from aisix.core.endpoints import ENDPOINTS, OTHER, EndpointSpec
from aisix.web.routes import Routes

ROUTES = Routes()


@pytest.mark.parametrize("spec", ENDPOINTS, ids=lambda spec: spec.operation)
@pytest.mark.parametrize("surface", ["/v1", "/openai/v1", "//v1/", "/openai//v1"])
def test_every_row_is_served_under_every_surface(spec: EndpointSpec, surface: str):
    path = surface + spec.path.replace("{model}", "gpt%204o")
    for tail in ("", "/", "//"):
        match = ROUTES.match(spec.method, path + tail)
        assert match.spec is spec
        assert match.path_name == ("gpt 4o" if "{model}" in spec.path else None)


@pytest.mark.parametrize("spec", [s for s in ENDPOINTS if s.deployment_scoped], ids=str)
def test_deployment_paths_carry_the_alias(spec: EndpointSpec):
    match = ROUTES.match("POST", f"/openai/deployments/gpt-4o%C3%BC{spec.path}")
    assert (match.spec, match.path_name) == (spec, "gpt-4oü")


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
        "/v1/responses",
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
