"""However a form is cut, the same goes upstream, and its files byte for byte."""

from __future__ import annotations

from contextlib import suppress
from io import BytesIO

from hypothesis import given
from hypothesis import strategies as st
from multipart import MultipartParser

from aisix.errors import BadRequest
from aisix.routing.form import FormEditor
from tests.support.rows import BOUNDARY, form

NAMES = st.text("abcdefgh[]_-", min_size=1, max_size=8)
CONTENTS = st.one_of(
    st.binary(max_size=200),
    st.lists(st.sampled_from([b"\r", b"\n", b"--", BOUNDARY.encode(), b"x"]), max_size=12).map(
        b"".join
    ),
).filter(lambda content: b"\r\n--" + BOUNDARY.encode() not in b"\r\n" + content)
PARTS = st.lists(st.tuples(NAMES, st.sampled_from(["", "a.wav"]), CONTENTS), min_size=1, max_size=5)


def edited(content: bytes, cuts: list[int]) -> bytes:
    editor = FormEditor(BOUNDARY, {}, "deployment")
    out, last = b"", 0
    for at in [*sorted(cuts), len(content)]:
        piece, last = content[last:at], max(last, at)
        if piece:
            out += editor.feed(piece)
    return out + editor.end()


@given(PARTS, st.lists(st.integers(0, 2000), max_size=20))
def test_any_cut_of_a_form_gives_the_same_form(parts, cuts):
    content = form(*parts)
    whole = edited(content, [])
    assert edited(content, [min(cut, len(content)) for cut in cuts]) == whole
    seen = [
        (part.name, part.filename or "", part.raw)
        for part in MultipartParser(BytesIO(whole), BOUNDARY)
    ]
    expected = [(n, f, b"deployment" if n == "model" else c) for n, f, c in parts]
    if not any(name == "model" for name, _, _ in parts):
        expected.append(("model", "", b"deployment"))
    assert seen == expected


@given(st.binary(max_size=400), st.booleans())
def test_noise_is_refused_and_nothing_else_happens(noise, begun):
    content = (b"--" + BOUNDARY.encode() + b"\r\n" if begun else b"") + noise
    with suppress(BadRequest):
        assert edited(content, []).endswith(f"--{BOUNDARY}--\r\n".encode())
