"""Writes the reference file and the settings table from the declarations in `aisix.config`.

`python -m tests.support.config_reference` brings both files up to date after a setting has been
added or changed; `tests/meta/test_config_reference.py` fails until that has been done. Only
`main` does I/O.
"""

from __future__ import annotations

import json
from pathlib import Path

from aisix.config import Setting, outline, settings

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "config" / "config.reference.yaml"
DOCUMENT = ROOT / "docs" / "configuration.md"
BEGIN, END = "<!-- settings: begin -->", "<!-- settings: end -->"

HEAD = """\
# Every setting of the gateway with its default. Generated: do not edit.
# A start needs one thing that has no default: a key in admin.admin_keys.
"""


def plain(value: object) -> object:
    """A default in the types that YAML and JSON know."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    return str(value)


def _comment(setting: Setting) -> str:
    unit = f", in {setting.unit}" if setting.unit else ""
    return f"{setting.doc} ({setting.kind.name}{unit})"


def reference_yaml() -> str:
    """The text of `config/config.reference.yaml`."""
    lines = [HEAD.rstrip("\n")]
    for path, entry in outline():
        *parents, name = path.split(".")
        indent = "  " * len(parents)
        if isinstance(entry, Setting):
            value = json.dumps(plain(entry.default))
            lines += [f"{indent}# {_comment(entry)}", f"{indent}{name}: {value}"]
        else:
            lines += [] if parents else [""]
            lines += [f"{indent}# {entry}", f"{indent}{name}:"]
    return "\n".join(lines) + "\n"


def reference_table() -> str:
    """The table of `docs/configuration.md`."""
    lines = ["| Setting | Value | Default | What it does |", "| --- | --- | --- | --- |"]
    for path, setting in settings().items():
        unit = f", {setting.unit}" if setting.unit else ""
        default = json.dumps(plain(setting.default))
        lines.append(f"| `{path}` | {setting.kind.name}{unit} | `{default}` | {setting.doc} |")
    return "\n".join(lines)


def with_table(document: str) -> str:
    """`document` with the table between the two marks renewed."""
    head, _, rest = document.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n{reference_table()}\n{END}{tail}"


def main() -> None:
    """Renew both files."""
    REFERENCE.write_text(reference_yaml(), encoding="utf-8")
    DOCUMENT.write_text(with_table(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
