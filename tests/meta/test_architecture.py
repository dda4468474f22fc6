"""The import law of ARCHITECTURE.md, read off the source; nothing is imported."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "aisix"
STAGES = frozenset(
    {
        "auth",
        "routing",
        "limits",
        "upstream",
        "transport",
        "relay",
        "usage",
        "telemetry",
        "store",
        "admin",
    }
)
WIRING = frozenset({"heritage", "data_process", "control_process"})
"""The modules of `workers` that are processes, and so wire; the others only talk."""

GROUND = frozenset({"core", "errors", "__version__", ""})
DOORS = {
    "tornado": {"web", "lifecycle", "simulator"},
    "httptools": {"web"},
    "pycurl": {"transport"},
    "fcntl": {"limits"},
    "mmap": {"limits", "telemetry", "workers"},
    "aiosqlite": {"store"},
    "sqlite3": {"store"},
    "cryptography": {"store", "routing", "upstream", "simulator"},
    "multipart": {"routing", "simulator"},
    "prometheus_client": {"telemetry"},
    "azure": {"upstream"},
    "msal": {"upstream"},
    "yaml": {"config"},
    "jsonschema": {"admin"},
}
TORNADO_FREE = STAGES | {"core", "pipeline", "dispatch", "config", "errors"}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def part_of(path: Path) -> str:
    """The folder under `aisix/`, or the module's own name at the top."""
    relative = path.relative_to(PACKAGE)
    return relative.parts[0].removesuffix(".py")


def typing_only(tree: ast.Module) -> set[ast.AST]:
    """What stands under `if TYPE_CHECKING:`, which never runs."""
    blocks = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
    ]
    return {inner for block in blocks for inner in ast.walk(block)}


def imports(path: Path, *, at_run_time: bool = False) -> set[str]:
    """Dotted names that a module imports, wherever the statement stands; a name taken from a module
    may be a module itself."""
    found: set[str] = set()
    tree = ast.parse(path.read_text())
    skipped = typing_only(tree) if at_run_time else set()
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            assert all(alias.name != "*" for alias in node.names), f"{path}: star import"
            if node.module == "aisix":
                found.update(f"aisix.{alias.name}" for alias in node.names)
            else:
                found.add(node.module)
                found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def own_parts(path: Path) -> set[str]:
    """The parts of aisix that a module imports, itself left out."""
    parts = {name.split(".")[1] for name in imports(path) if name.startswith("aisix.")}
    return parts - {part_of(path)}


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_a_module_imports_only_what_its_level_allows(path: Path):
    part = part_of(path)
    reached = own_parts(path)
    if part in STAGES:
        assert reached <= GROUND, f"a stage knows {sorted(reached - GROUND)}"
    elif part == "core" or part in {"errors", "config"}:
        assert reached <= {"errors"}
    elif part == "simulator":
        assert reached <= {"__version__"}
    elif part in {"pipeline", "dispatch"}:
        assert reached <= STAGES | GROUND | {"dispatch"}
    elif part == "workers" and path.stem not in WIRING:
        assert reached <= GROUND
    elif part == "web":
        assert reached <= GROUND | {"pipeline", "admin"}
    assert "simulator" not in reached, "nothing imports the simulator"


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_a_foreign_library_has_one_door(path: Path):
    roots = {name.split(".")[0] for name in imports(path)}
    for library, allowed in DOORS.items():
        if library in roots:
            assert part_of(path) in allowed, f"{library} is imported outside {sorted(allowed)}"


def test_no_dialect_knows_another():
    folder = PACKAGE / "upstream"
    known = {path.stem: imports(path) for path in folder.glob("*.py")}
    dialects = {name for name in known if "aisix.upstream.dialect" in known[name]}
    assert dialects >= {"azure", "openai"}
    for name in (*dialects, "dialect"):
        assert not known[name] & {f"aisix.upstream.{other}" for other in dialects}


def test_core_uses_the_standard_library_only():
    import sys

    for path in (PACKAGE / "core").glob("*.py"):
        for name in imports(path):
            root = name.split(".")[0]
            assert root == "aisix" or root in sys.stdlib_module_names, f"{path}: {name}"


def test_there_is_no_import_cycle():
    graph = {}
    for path in modules():
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        graph[name] = imports(path, at_run_time=True)
    known = set(graph)
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail, name))
        if name in done:
            return
        for target in graph[name] & known:
            if target != name:
                visit(target, (*trail, name))
        done.add(name)

    for name in graph:
        visit(name, ())


def test_no_module_has_a_drawers_name():
    names = {path.stem for path in modules()}
    assert not names & {"utils", "util", "common", "helpers", "misc", "logging", "types"}
    assert [path for path in modules() if path.stem == "base"] == [PACKAGE / "web" / "base.py"]


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_every_module_says_what_it_is(path: Path):
    assert ast.get_docstring(ast.parse(path.read_text())), "a module docstring is missing"
