"""Multipart bodies: read in pieces of any size, hashed, bounded and judged."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aisix.simulator.faults import Fault
from aisix.simulator.forms import Form, FormReader, Part, is_form
from aisix.simulator.intake import Body

TYPE = "multipart/form-data; boundary=edge"
AUDIO = b"RIFF\r\n--edg\r\n\x00\xff" * 50


def part(name: str, data: bytes, filename: str | None = None) -> bytes:
    named = f'; filename="{filename}"' if filename is not None else ""
    head = f'--edge\r\nContent-Disposition: form-data; name="{name}"{named}\r\n\r\n'
    return head.encode() + data + b"\r\n"


WHOLE = part("model", b"whisper") + part("file", AUDIO, "a.wav") + b"--edge--\r\n"


def read(body: bytes, size: int = 65536, kind: str = TYPE) -> Form:
    reader = FormReader(kind)
    for at in range(0, len(body), size):
        reader.feed(body[at : at + size])
    return reader.finish()


@given(size=st.integers(1, 400))
def test_a_form_is_the_same_in_pieces_of_any_size(size: int) -> None:
    form = read(WHOLE, size)
    assert form == read(WHOLE)
    assert form.problem == ""
    file = form.file("file")
    assert isinstance(file, Part)
    assert (file.filename, file.size, file.prefix) == ("a.wav", len(AUDIO), AUDIO)
    assert file.sha256 == hashlib.sha256(AUDIO).hexdigest()
    assert form.value("model") == "whisper"


def test_repeated_fields_are_found_with_and_without_brackets() -> None:
    form = read(part("a[]", b"1") + part("a", b"2") + part("b", b"x", "f") + b"--edge--")
    assert form.values("a") == ["1", "2"]
    assert [file.filename for file in form.files("b")] == ["f"]


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (WHOLE, "multipart/form-data"),
        (WHOLE, "multipart/form-data; boundary=other"),
        (WHOLE[:-20], TYPE),
        (b"", TYPE),
        (b"{}", TYPE),
        (part("x" * 5000, b"1") + b"--edge--", TYPE),
        (part("prompt", b"y" * 300_000) + b"--edge--", TYPE),
        (part("a", b"1") * 200 + b"--edge--", TYPE),
    ],
)
def test_what_is_no_form_is_said_and_the_rest_let_go(body: bytes, kind: str) -> None:
    assert read(body, kind=kind).problem


def test_a_file_is_missing_or_has_no_name() -> None:
    def refusal(form: Form) -> str:
        fault = form.file("file")
        assert isinstance(fault, Fault)
        assert fault.status == 400
        return fault.body.decode()

    assert "missing_required_parameter" in refusal(Form())
    assert "filename" in refusal(read(part("file", b"x") + b"--edge--"))
    assert "filename" in refusal(read(part("file", b"x", "") + b"--edge--"))


def test_large_files_are_counted_and_hashed_but_not_kept() -> None:
    reader = FormReader(TYPE)
    block, digest = b"0123456789\n" * 6000, hashlib.sha256()
    reader.feed(b'--edge\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n')
    for _ in range(100):
        reader.feed(block)
        digest.update(block)
    reader.feed(b"\r\n" + part("second", b"z" * 100, "g") + b"--edge--")
    first, second = reader.finish().parts
    assert (first.size, first.lines) == (6_600_000, 600_000)
    assert first.sha256 == digest.hexdigest()
    assert len(first.prefix) == 1024 * 1024
    assert (second.size, second.prefix) == (100, b"")
    assert len(first.brief().prefix) == 4096


def test_a_body_keeps_what_it_may_and_says_when_it_was_more() -> None:
    small = Body("application/json", 10)
    small.feed(b"12345")
    small.feed(b"67890")
    assert not small.overflowed
    small.feed(b"1")
    small.finish()
    assert (bytes(small.kept), small.overflowed, small.form) == (b"1234567890", True, None)
    form = Body(TYPE, 10)
    form.feed(WHOLE)
    form.finish()
    assert form.sha256 == hashlib.sha256(WHOLE).hexdigest()
    assert form.form is not None
    assert not form.overflowed


def test_the_type_of_a_form_is_told_by_its_name_alone() -> None:
    assert is_form("Multipart/Form-Data; boundary=x")
    assert not is_form("application/json")
    assert not is_form("")
