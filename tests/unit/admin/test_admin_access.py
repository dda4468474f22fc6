"""Admin keys and the audit trail."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
from tornado.httputil import HTTPHeaders

from aisix.admin.access import AdminAccess
from aisix.admin.audit import Audit, changed_fields, fingerprint
from aisix.core.ports import StoredResource

ACCESS = AdminAccess(["first", "zweiter-schlüssel", ""])


@pytest.mark.parametrize(
    ("headers", "key"),
    [
        ({"Authorization": "Bearer first"}, "first"),
        ({"Authorization": "Bearer   first "}, "first"),
        ({"x-api-key": "first"}, "first"),
        ({"x-api-key": "zweiter-schlüssel".encode().decode("latin-1")}, "zweiter-schlüssel"),
        ({"Authorization": "Bearer first", "x-api-key": "wrong"}, "first"),
        ({}, None),
        ({"Authorization": "Bearer wrong"}, None),
        ({"Authorization": "Bearer wrong", "x-api-key": "first"}, None),
        ({"Authorization": "bearer first"}, None),
        ({"Authorization": "Basic first"}, None),
        ({"Authorization": "Bearer ", "x-api-key": "first"}, None),
        ({"Authorization": "", "x-api-key": "first"}, None),
        ({"x-api-key": ""}, None),
        ({"x-api-key": "firs"}, None),
        ({"api-key": "first"}, None),
    ],
)
def test_a_credential_opens_or_does_not(headers, key):
    found = ACCESS.identify(HTTPHeaders(headers))
    assert found == (fingerprint(key) if key else None)


def test_no_key_opens_nothing():
    assert AdminAccess([]).identify(HTTPHeaders({"x-api-key": ""})) is None
    assert AdminAccess([""]).identify(HTTPHeaders({"Authorization": "Bearer "})) is None


def row(revision: int = 1, secret: str = "s1", **doc) -> StoredResource:
    return StoredResource(
        kind="provider_keys", id="1", name="n", revision=revision, doc=doc, secret=secret
    )


def test_the_audit_line_names_fields_and_never_values(caplog):
    with caplog.at_level(logging.INFO, "aisix.admin"):
        Audit().written(
            "replace",
            actor=fingerprint("admin"),
            before=row(a="value-one", b=1),
            after=row(2, "s2", a="value-two", b=1, c=3),
        )
    (record,) = caplog.records
    assert record.getMessage() == "admin.write"
    fields = {
        "action": "replace",
        "kind": "provider_keys",
        "id": "1",
        "revision": 2,
        "changed": ["a", "c", "secret"],
        "admin": fingerprint("admin"),
    }
    assert fields.items() <= record.__dict__.items()
    assert "value-" not in str(record.__dict__)
    assert "s2" not in [*record.__dict__.values()]


def test_a_delete_is_told_by_what_was_there(caplog):
    with caplog.at_level(logging.INFO, "aisix.admin"):
        Audit().written("delete", actor="x", before=row(3, a=1), after=None)
    (record,) = caplog.records
    assert (record.__dict__["revision"], record.__dict__["changed"]) == (3, ["a", "secret"])


def test_a_write_without_rows_is_a_mistake():
    with pytest.raises(ValueError, match="row"):
        Audit().written("create", actor="x", before=None, after=None)


def test_a_refused_admin_is_noted_without_the_key(caplog):
    with caplog.at_level(logging.INFO, "aisix.admin"):
        Audit().denied(address="10.0.0.9")
    (record,) = caplog.records
    assert (record.getMessage(), record.__dict__["address"]) == ("admin.denied", "10.0.0.9")


def test_fields_of_a_new_resource_are_all_changed():
    assert changed_fields(None, row(a=1)) == ["a", "secret"]
    assert changed_fields(row(a=1), row(2, a=1)) == []


def test_a_changed_header_value_is_told_by_its_fields_name():
    changed = replace(row(a=1), header_values={"x-a": "hunter2"})
    assert changed_fields(row(a=1), changed) == ["request.default_headers"]
