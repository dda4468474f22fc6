"""Documents say what the code does: their tables are compared with the tables of the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from aisix import errors
from aisix.core.endpoints import ENDPOINTS, EndpointSpec
from aisix.dispatch import FORWARDED_HEADERS
from aisix.errors import GatewayError, UpstreamBroken, UpstreamRejected

ROOT = Path(__file__).resolve().parents[2]
ABSTRACT = {"GatewayError", "RequestRejected", "UpstreamFailed"}


def rows(document: str, begin: str, end: str) -> list[list[str]]:
    """The body rows of the table between two marks, cells without their code quotes."""
    text = (ROOT / document).read_text().split(begin, 1)[1].split(end, 1)[0]
    lines = [line for line in text.splitlines() if line.startswith("|")][2:]
    return [
        [cell.strip().replace("`", "") for cell in line.strip("|").split("|")] for line in lines
    ]


def surfaces(spec: EndpointSpec) -> str:
    listed = ["/v1", "/openai/v1"]
    listed += [] if spec.deployment_scoped else ["/openai"]
    listed += ["/openai/deployments/{alias}"] if spec.takes_path_alias else []
    return ", ".join(listed)


def method(spec: EndpointSpec) -> str:
    return "any" if spec.subtree else spec.method


def path(spec: EndpointSpec) -> str:
    return spec.path + ("/…" if spec.subtree else "")


def test_the_proxy_api_lists_every_endpoint():
    documented = rows("docs/proxy-api.md", "<!-- routes", "<!-- /routes -->")
    assert documented == [
        [
            spec.operation,
            f"{method(spec)} {path(spec)}",
            surfaces(spec),
            "yes" if spec.may_stream else "no",
        ]
        for spec in ENDPOINTS
    ]


def test_the_readme_lists_every_endpoint():
    documented = rows("README.md", "## Endpoints", "## Read on")
    assert [row[0] for row in documented] == [f"{method(s)} /v1{path(s)}" for s in ENDPOINTS]
    assert [row[2] == "yes" for row in documented] == [spec.may_stream for spec in ENDPOINTS]


def test_the_errors_page_lists_every_kind_of_error():
    documented = {row[3]: row for row in rows("docs/errors.md", "<!-- errors", "<!-- /errors -->")}
    kinds = {
        name: kind
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, GatewayError) and name not in ABSTRACT
    }
    assert set(documented) == set(kinds)
    for name, kind in kinds.items():
        status, type_, code, _, _ = documented[name]
        if kind is UpstreamRejected:
            assert type_ == kind.type
            continue
        assert status == str(kind.status), name
        if kind is UpstreamBroken:
            assert set(type_.split(", ")) == set(UpstreamBroken.KINDS.values())
            continue
        assert type_ == kind.type, name
        assert code == (kind.code or kind.type), name


def test_every_forwarded_header_is_documented():
    text = (ROOT / "docs/proxy-api.md").read_text()
    assert all(f"`{name}`" in text for name in FORWARDED_HEADERS)


@pytest.mark.parametrize(
    ("document", "most"), [("README.md", 150), ("ARCHITECTURE.md", 200), ("CONTRIBUTING.md", 100)]
)
def test_documents_keep_their_size(document: str, most: int):
    assert len((ROOT / document).read_text().splitlines()) <= most


def documents() -> list[Path]:
    return [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("bench/*.md")]


@pytest.mark.parametrize("document", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document.read_text()):
        if "://" not in target:
            assert (document.parent / target).exists(), target


@pytest.mark.parametrize("document", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_make_targets_that_are_named_exist(document: Path):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"`make ([a-z-]+)", document.read_text()))
    assert named <= targets
