"""The shipped configuration files and the documentation say what the code does."""

from __future__ import annotations

import re

import yaml

from aisix.config import (
    SHIPPED_ADMIN_KEY,
    TOLERATED_SECTIONS,
    UNSUPPORTED,
    Config,
    load,
    outline,
    parse,
    settings,
    variable,
)
from tests.support.config_reference import (
    BEGIN,
    DOCUMENT,
    END,
    REFERENCE,
    ROOT,
    reference_table,
    reference_yaml,
    with_table,
)

RENEW = "run: .venv/bin/python -m tests.support.config_reference"


def test_the_reference_file_is_what_the_declarations_make():
    assert REFERENCE.read_text(encoding="utf-8") == reference_yaml(), RENEW


def test_the_documented_table_is_what_the_declarations_make():
    text = DOCUMENT.read_text(encoding="utf-8")
    assert text.count(BEGIN) == text.count(END) == 1
    assert text == with_table(text), RENEW
    assert reference_table().count("\n") == len(settings()) + 1


def test_the_reference_file_spells_every_default():
    document = yaml.safe_load(REFERENCE.read_text(encoding="utf-8"))
    assert set(document) == {path for path, _ in outline() if "." not in path}
    document["admin"]["admin_keys"] = ["one"]
    read = parse(document, {})
    assert read == parse({"admin": {"admin_keys": ["one"]}}, {})
    assert set(read.origins.values()) == {"file"}
    assert set(read.origins) == set(settings())


def test_every_setting_is_declared_in_full():
    for path, setting in settings().items():
        assert setting.doc.endswith("."), path
        assert "\n" not in setting.doc, path
        assert len(setting.doc) <= 80, path
        assert setting.kind.name, path
        unit = {"_ms": "ms", "_secs": "seconds", "_bytes": "bytes", "_tokens": "tokens"}
        expected = next((word for end, word in unit.items() if path.endswith(end)), "")
        assert setting.unit == expected, path


def test_defaults_of_the_dataclasses_are_the_declared_ones():
    for path, setting in settings().items():
        value: object = Config()
        for name in path.split("."):
            value = getattr(value, name)
        assert value == setting.default, path


def test_the_shipped_file_starts_the_gateway_of_the_guide():
    config = load(ROOT / "config" / "config.yaml", {"AISIX_ADMIN_KEY": SHIPPED_ADMIN_KEY})
    assert str(config.proxy.addr) == "0.0.0.0:3000"
    assert str(config.admin.addr) == "127.0.0.1:3001"
    assert str(config.observability.metrics.prometheus.addr) == "127.0.0.1:9090"
    assert config.admin.admin_keys == (SHIPPED_ADMIN_KEY,)


def test_what_is_not_built_is_not_also_a_setting():
    known = {path for path, _ in outline()}
    assert known.isdisjoint(UNSUPPORTED | TOLERATED_SECTIONS)
    for path in UNSUPPORTED:
        parent = path.rpartition(".")[0]
        assert not parent or parent in known, path


def test_variables_in_the_document_exist():
    text = DOCUMENT.read_text(encoding="utf-8")
    for name in re.findall(r"`(AISIX_[A-Z0-9_]*__[A-Z0-9_]+)=", text):
        assert name in {variable(path) for path in settings()}
