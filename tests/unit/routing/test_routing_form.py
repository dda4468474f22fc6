"""A form on its way: its alias is found, its model edited, its files untouched."""

from __future__ import annotations

from collections.abc import AsyncIterator
from io import BytesIO

import pytest
from multipart import MultipartParser

from aisix.core.endpoints import ENDPOINTS
from aisix.errors import BadRequest, BodyTooLarge
from aisix.routing.form import (
    MAX_PREAMBLE_BYTES,
    SPOOL_BYTES,
    FormEditor,
    FormSource,
    boundary_of,
    read_form,
)
from tests.support.builders import Pieces, make_request
from tests.support.rows import BOUNDARY, form

TRANSCRIPTION = next(spec for spec in ENDPOINTS if spec.operation == "create_transcription")
FILE = bytes(range(256)) * 40 + b"\r\n--" + BOUNDARY[:-1].encode() + b"\r\n"
MODEL = ("model", "", b"my-alias")
AUDIO = ("file", "a.wav", FILE)


def parsed(content: bytes) -> list[tuple[str, str | None, bytes]]:
    """The parts of a form, by the library's own whole-form parser."""
    found = []
    for part in MultipartParser(BytesIO(content), BOUNDARY, strict=True):
        found.append((part.name, part.filename or "", part.raw))
        part.close()
    return found


def cut(content: bytes, size: int) -> list[bytes]:
    return [content[at : at + size] for at in range(0, len(content), size)]


def source(*pieces: bytes, limit_bytes: int = 0) -> FormSource:
    return FormSource(Pieces(*pieces), BOUNDARY, limit_bytes=limit_bytes)


async def sent(given: FormSource, name: str = "my-deployment") -> bytes:
    return b"".join([piece async for piece in given.open(name)])


@pytest.mark.parametrize("parts", [(MODEL, AUDIO), (AUDIO, MODEL)], ids=["before", "after"])
@pytest.mark.parametrize("size", [1, 7, 1000, 100_000])
@pytest.mark.gen_test
async def test_the_model_is_edited_wherever_it_stands(parts, size):
    given = source(*cut(form(*parts, ("language", "", b"en")), size))
    assert await given.find_alias() == "my-alias"
    expected = [("model", "", b"my-deployment") if part is MODEL else part for part in parts]
    assert parsed(await sent(given)) == [*expected, ("language", "", b"en")]
    assert given.fields == {"model": "my-alias", "language": "en"}
    given.close()


@pytest.mark.gen_test
async def test_a_form_without_a_model_gets_one_when_its_path_names_the_alias():
    given = source(form(AUDIO))
    assert parsed(await sent(given)) == [AUDIO, ("model", "", b"my-deployment")]


@pytest.mark.gen_test
async def test_no_second_model_can_smuggle_another_deployment_in():
    given = source(form(MODEL, AUDIO, ("model", "", b"not-allowed"), ("model", "x", b"nor-this")))
    assert await given.find_alias() == "my-alias"
    assert parsed(await sent(given)) == [
        ("model", "", b"my-deployment"),
        AUDIO,
        ("model", "", b"my-deployment"),
        ("model", "x", b"my-deployment"),
    ]


@pytest.mark.gen_test
async def test_a_form_that_is_all_there_can_be_sent_again():
    given = source(form(AUDIO, MODEL))
    await given.find_alias()
    assert not given.replayable, "its end has not been seen"
    first = await sent(given)
    assert await sent(given, "my-deployment") == first or not given.replayable
    small = source(form(MODEL))
    await small.find_alias()
    assert parsed(await sent(small)) == [("model", "", b"my-deployment")]


@pytest.mark.gen_test
async def test_a_large_file_before_the_model_goes_to_a_file_and_comes_back_whole():
    large = ("file", "a.wav", b"\x00\xff" * (SPOOL_BYTES + 5000))
    given = source(*cut(form(large, MODEL), 65_536))
    assert await given.find_alias() == "my-alias"
    assert given._spool._file is not None
    assert given._spool._file.name is None or isinstance(given._spool._file.name, int)
    assert parsed(await sent(given)) == [large, ("model", "", b"my-deployment")]
    given.close()
    given.close()
    assert given._spool._file.closed


@pytest.mark.gen_test
async def test_a_form_with_its_alias_in_the_path_is_not_read_before_it_is_sent():
    class Untouched(Pieces):
        async def __anext__(self) -> bytes:
            raise AssertionError("read too early")

    class Body:
        async def read_all(self, limit: int) -> bytes:
            raise AssertionError("read whole")

        def chunks(self) -> AsyncIterator[bytes]:
            return Untouched()

    request = make_request(
        TRANSCRIPTION,
        headers={"content-type": f"multipart/form-data; boundary={BOUNDARY}"},
        body=Body(),
        path_name="alias",
    )
    payload = await read_form(request, limit_bytes=0)
    assert (payload.requested, payload.stream) == ("alias", False)


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        ("multipart/form-data; boundary=abc", "abc"),
        ('multipart/form-data; charset=utf-8; Boundary="a b\'c"', "a b'c"),
        ("Multipart/Form-Data;boundary=----WebKitFormBoundary7MA4YWxk", None),
    ],
)
def test_boundaries_are_read_as_clients_write_them(content_type, boundary):
    assert boundary_of(content_type) == (boundary or "----WebKitFormBoundary7MA4YWxk")


@pytest.mark.parametrize(
    ("content_type", "words"),
    [
        (None, "multipart/form-data"),
        ("application/json", "multipart/form-data"),
        ("multipart/form-data", "no boundary"),
        ("multipart/form-data; boundary=", "no boundary"),
        ('multipart/form-data; boundary="a\r\nb"', "no boundary"),
        ("multipart/form-data; boundary=" + "x" * 300, "no boundary"),
    ],
)
def test_a_content_type_without_a_boundary_is_refused(content_type, words):
    with pytest.raises(BadRequest) as refused:
        boundary = boundary_of(content_type)
        raise AssertionError(boundary)
    assert words in refused.value.message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "boundary"),
        (b"{}", "boundary"),
        (form(MODEL, AUDIO).replace(BOUNDARY.encode(), b"another"), "boundary"),
        (form(AUDIO), "model is required"),
        (form(("model", "", b""), AUDIO), "must not be empty"),
        (form(AUDIO, MODEL)[:-30], "not complete"),
        (form(AUDIO)[:-4], "not complete"),
        (b"--" + BOUNDARY.encode() + b"\r\nno header\r\n\r\nx\r\n", "boundary"),
        (b"--" + BOUNDARY.encode() + b"--\r\n", "boundary"),
        (b"x" * (MAX_PREAMBLE_BYTES + 1), "boundary"),
    ],
    ids=["empty", "json", "other", "none", "blank", "cut", "open", "header", "no parts", "noise"],
)
@pytest.mark.gen_test
async def test_a_bad_form_is_told_what_is_wrong_with_it(content, words):
    given = source(*cut(content, 40_000))
    with pytest.raises(BadRequest) as refused:
        await given.find_alias()
    assert words in refused.value.message


@pytest.mark.gen_test
async def test_a_form_that_breaks_on_its_way_is_refused_there():
    given = source(form(AUDIO)[:-10])
    with pytest.raises(BadRequest, match="not complete"):
        await sent(given)


@pytest.mark.gen_test
async def test_a_form_over_the_limit_is_refused_where_that_shows():
    content = form(MODEL, AUDIO)
    given = source(*cut(content, 100), limit_bytes=len(content) - 1)
    assert await given.find_alias() == "my-alias"
    with pytest.raises(BodyTooLarge):
        await sent(given)


def test_a_form_of_endless_parts_is_refused():
    editor = FormEditor(BOUNDARY, {})
    with pytest.raises(BadRequest):
        editor.feed(form(*[(f"p{number}", "", b"x") for number in range(300)]))


def test_of_a_long_field_only_its_beginning_is_held():
    fields: dict[str, str] = {}
    FormEditor(BOUNDARY, fields).feed(form(("prompt", "", b"x" * 1_000_000)))
    assert 0 < len(fields["prompt"]) <= 16 * 1024
