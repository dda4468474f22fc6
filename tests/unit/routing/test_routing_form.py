"""A form on its way: its alias is found, its model edited, its files untouched."""

from __future__ import annotations

import asyncio
import gc
import os
import re
import resource
import tracemalloc
from collections.abc import AsyncGenerator, AsyncIterator
from io import BytesIO

import pytest
from multipart import MultipartParser

from aisix.core.endpoints import ENDPOINTS
from aisix.errors import BadRequest, BodyTooLarge, Overloaded
from aisix.routing.form import (
    MAX_PREAMBLE_BYTES,
    FormEditor,
    FormSource,
    boundary_of,
    read_form,
)
from aisix.routing.passage import HELD_BYTES, pass_body
from aisix.routing.spool import SPOOL_BYTES, Spool
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


@pytest.mark.parametrize("parts", [(MODEL, AUDIO), (AUDIO, MODEL)], ids=["before", "after"])
@pytest.mark.parametrize("size", [100, 100_000])
@pytest.mark.parametrize("searched", [True, False])
@pytest.mark.gen_test
async def test_a_small_form_can_be_sent_again(parts, size, searched):
    given = source(*cut(form(*parts), size))
    if searched:
        await given.find_alias()
    first = await sent(given)
    assert given.replayable
    assert await sent(given) == first
    given.close()


@pytest.mark.gen_test
async def test_a_form_that_was_given_up_in_the_middle_can_be_sent_again():
    given = source(*cut(form(MODEL, AUDIO), 100))
    await given.find_alias()
    begun = given.open("my-deployment")
    await anext(begun)
    await anext(begun)
    assert isinstance(begun, AsyncGenerator)
    await begun.aclose()
    assert given.replayable
    assert parsed(await sent(given)) == [("model", "", b"my-deployment"), AUDIO]


@pytest.mark.parametrize("when", ["before", "while", "after"])
@pytest.mark.gen_test
async def test_what_is_held_goes_when_it_has_passed_for_the_last_time(when):
    """The answer may be long in coming, and longer."""
    before = open_files()
    large = ("file", "a.wav", b"\x00\xff" * SPOOL_BYTES)
    given = source(*cut(form(large, MODEL), 65_536))
    await given.find_alias()
    assert open_files() == before + 1
    if when == "before":
        given.let_go()
    pieces = []
    async for piece in given.open("my-deployment"):
        pieces.append(piece)
        if when == "while":
            given.let_go()
    if when == "after":
        assert open_files() == before + 1
        given.let_go()
    assert parsed(b"".join(pieces)) == [large, ("model", "", b"my-deployment")]
    assert open_files() == before
    given.close()


@pytest.mark.gen_test
async def test_what_is_let_go_between_two_openings_is_still_there_for_the_second():
    """As dispatch does: the second call is built, then the payload is let go, then it is sent."""
    given = source(form(MODEL, AUDIO))
    await given.find_alias()
    first = await sent(given)
    second = given.open("my-deployment")
    given.let_go()
    assert b"".join([piece async for piece in second]) == first
    given.close()


@pytest.mark.gen_test
async def test_a_large_form_cannot_be_sent_again():
    large = ("file", "a.wav", b"\x00\xff" * HELD_BYTES)
    given = source(*cut(form(MODEL, large), 10_000))
    await given.find_alias()
    await sent(given)
    assert not given.replayable


@pytest.mark.gen_test
async def test_a_body_that_passes_can_be_sent_again_while_it_is_small():
    for size, replayable in ((HELD_BYTES, True), (3 * HELD_BYTES, False)):
        content = b"\x01" * size
        request = make_request(
            TRANSCRIPTION, headers={"transfer-encoding": "chunked"}, body=Body(cut(content, 5000))
        )
        given = pass_body(request, limit_bytes=0).source
        assert given is not None
        assert b"".join([piece async for piece in given.open("any")]) == content
        assert given.replayable is replayable
        given.close()


class Body:
    """A RequestBody of these pieces."""

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = pieces

    async def read_all(self, limit: int) -> bytes:
        raise AssertionError("read whole")

    def chunks(self) -> AsyncIterator[bytes]:
        return Pieces(*self._pieces)


@pytest.mark.gen_test
async def test_a_large_file_before_the_model_is_held_and_comes_back_whole():
    large = ("file", "a.wav", b"\x00\xff" * (SPOOL_BYTES + 5000))
    given = source(*cut(form(large, MODEL), 65_536))
    assert await given.find_alias() == "my-alias"
    assert parsed(await sent(given)) == [large, ("model", "", b"my-deployment")]
    assert parsed(await sent(given)) == [large, ("model", "", b"my-deployment")]
    given.close()
    given.close()


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.gen_test
async def test_what_is_held_on_disk_has_no_name_and_is_given_back():
    before = open_files()
    spool = Spool()
    for _ in range(3):
        await spool.write(b"x" * SPOOL_BYTES)
    assert open_files() == before + 1
    assert len(b"".join([piece async for piece in spool.pieces()])) == spool.size
    spool.close()
    assert open_files() == before


@pytest.mark.gen_test
async def test_a_wait_for_the_disk_can_be_cancelled_at_any_time():
    before = open_files()
    for turns in range(6):
        spool = Spool()
        writing = asyncio.ensure_future(spool.write(b"x" * (SPOOL_BYTES + 1)))
        for _ in range(turns):
            await asyncio.sleep(0)
        writing.cancel()
        await asyncio.wait([writing])
        spool.close()
        del spool, writing
    gc.collect()
    assert open_files() == before


@pytest.mark.gen_test
async def test_tiny_pieces_cost_their_bytes():
    tracemalloc.start()
    try:
        spool = Spool()
        for _ in range(50_000):
            await spool.write(b"ab")
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 2 * spool.size


@pytest.mark.gen_test
async def test_without_room_for_a_file_the_caller_is_told_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    given = source(*cut(form(("file", "a.wav", b"x" * 2 * SPOOL_BYTES), MODEL), 65_536))
    with pytest.raises(Overloaded, match="put model before the file") as refused:
        await given.find_alias()
    assert refused.value.status == 503
    given.close()


@pytest.mark.gen_test
async def test_a_disk_that_is_full_is_told_of_and_given_back():
    before, limits = open_files(), resource.getrlimit(resource.RLIMIT_FSIZE)
    spool = Spool()
    await spool.write(b"x" * SPOOL_BYTES)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_500, limits[1]))
    try:
        with pytest.raises(Overloaded) as refused:
            for _ in range(40):
                await spool.write(b"x" * 1000)
        spool.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert refused.value.status == 503
    assert open_files() == before


# what other readers could take for a second name, or for the end of a header
AMBIGUOUS = [
    'form-data; name="model"; name="x"',
    'form-data; name="x"; name="model"',
    "form-data; name=x; name*=utf-8''model",
    'form-data; name="x\\"; name="model"',
    'form-data; name="Model"',
    'form-data; name=" model "',
    'form-data; name="x"\r\nContent-Disposition: form-data; name="model"',
    'form-data; name="model"\r\nContent-Disposition: form-data; name="x"',
]


@pytest.mark.parametrize("disposition", AMBIGUOUS)
def test_a_part_goes_on_under_the_one_name_it_was_understood_by(disposition):
    begin = f"--{BOUNDARY}\r\nContent-Disposition: ".encode()
    content = begin + disposition.encode() + b"\r\n\r\nsecret-deployment\r\n" + form(MODEL)
    out = FormEditor(BOUNDARY, {}, "my-deployment")
    written = (out.feed(content) + out.end()).decode()
    for head in re.findall(r"Content-Disposition: (.*)\r\n", written):
        assert re.fullmatch(r'form-data; name="[^"\\]*"', head)
    parts = parsed(written.encode())
    assert [value for name, _, value in parts if name.strip().lower() == "model"] == [
        b"my-deployment"
    ] * sum(name.strip().lower() == "model" for name, _, _ in parts)


@pytest.mark.parametrize("header", ["X: a\nContent-Disposition: form-data; name=model", "X: \0"])
def test_a_part_with_a_control_character_in_its_head_is_refused(header):
    content = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="x"\r\n{header}\r\n\r\n'
    with pytest.raises(BadRequest, match="malformed"):
        FormEditor(BOUNDARY, {}, "my-deployment").feed(content.encode())


def test_names_and_types_of_files_pass():
    named = 'name="file"; filename="na\u00efve %22.wav"; filename*=utf-8\'\'na%C3%AFve.wav'
    begin = f"--{BOUNDARY}\r\nContent-Disposition: form-data; {named}\r\nContent-Type: a/b\r\n"
    content = f"{begin}Content-Length: 1\r\n\r\nx\r\n".encode()
    written = FormEditor(BOUNDARY, {}, "my-deployment").feed(content + form(MODEL))
    assert written.decode().startswith(f"{begin}\r\nx\r\n")


def test_the_model_part_keeps_no_header_of_what_it_was():
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="model"\r\n'
    content = head + "Content-Length: 8\r\nContent-Transfer-Encoding: 8bit\r\n\r\nmy-alias\r\n"
    editor = FormEditor(BOUNDARY, {}, "my-deployment")
    assert editor.feed(content.encode() + form(AUDIO)).startswith(f"{head}\r\nmy-".encode())


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


@pytest.mark.parametrize("parts", [(MODEL, AUDIO), (AUDIO, MODEL)], ids=["before", "after"])
@pytest.mark.gen_test
async def test_only_so_much_is_held_while_the_model_is_looked_for(parts):
    given = FormSource(
        Pieces(*cut(form(*parts), 100)), BOUNDARY, limit_bytes=0, hold_bytes=len(FILE) // 2
    )
    if parts[0] is MODEL:
        assert await given.find_alias() == "my-alias"
        assert parsed(await sent(given))[1] == AUDIO
        return
    with pytest.raises(BodyTooLarge, match="put model before the file") as refused:
        await given.find_alias()
    assert (refused.value.status, refused.value.param) == (413, "model")


def test_a_form_of_endless_parts_is_refused():
    editor = FormEditor(BOUNDARY, {})
    with pytest.raises(BadRequest):
        editor.feed(form(*[(f"p{number}", "", b"x") for number in range(300)]))


def test_of_a_long_field_only_its_beginning_is_held():
    fields: dict[str, str] = {}
    FormEditor(BOUNDARY, fields).feed(form(("prompt", "", b"x" * 1_000_000)))
    assert 0 < len(fields["prompt"]) <= 16 * 1024
