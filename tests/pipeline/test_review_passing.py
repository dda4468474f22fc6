"""Answers that pass in pieces: binary ones, text, downloads."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

import pytest

from aisix.core.endpoints import ENDPOINTS, EndpointSpec
from aisix.errors import UpstreamBroken
from aisix.transport.memory import MemoryAnswer
from tests.support.front import request, serve_proxy
from tests.support.pipeline import CALLER_TOKEN, Harness
from tests.support.rows import ALIAS, form, refused, sealed

SPECS: dict[str, EndpointSpec] = {spec.operation: spec for spec in ENDPOINTS}
CUT = UpstreamBroken("upstream broke off", kind="cut")
CALLER = {"Authorization": f"Bearer {CALLER_TOKEN}", "x-aisix-model": ALIAS}
SPEECH = {"model": ALIAS, "input": "hello", "voice": "alloy", "stream": True}
HEARD = form(("model", "", ALIAS.encode()), ("file", "a.wav", b"RIFF"), ("stream", "", b"true"))


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("operation", "body", "media_type"),
    [("create_speech", SPEECH, "audio/mpeg"), ("create_transcription", HEARD, "text/plain")],
)
async def test_what_was_asked_for_as_a_stream_and_is_none_is_cut_like_any_download(
    operation: str, body: Any, media_type: str
) -> None:
    """An error event in the middle of a recording, with a proper end, would be a lie."""
    harness = Harness()
    answer = MemoryAnswer(headers={"content-type": media_type}, pieces=[b"the beginning", CUT])
    harness.transport.script(answer)
    exchange, reply = await harness.run(SPECS[operation], body=body)
    assert (reply.status, reply.body) == (200, b"the beginning")
    assert reply.aborted
    assert not reply.finished
    assert not exchange.streaming
    await harness.audit()


@pytest.mark.gen_test
async def test_what_is_passed_to_a_get_is_not_read_for_its_usage() -> None:
    harness = Harness()
    document = json.dumps({"usage": {"total_tokens": 5}}).encode()
    harness.transport.script(
        MemoryAnswer(headers={"content-type": "application/json"}, pieces=[document])
    )
    exchange, reply = await harness.run(SPECS["files"], method="GET", resource="/file-1/content")
    assert reply.body == document
    assert exchange.usage is not None
    assert exchange.usage.total_tokens == 0
    await harness.audit()


@pytest.mark.gen_test
@pytest.mark.parametrize("row", ["files", "responses"])
async def test_an_answer_without_content_has_no_body_and_no_framing(row: str) -> None:
    """RFC 9110: with a 204 a client reads on at once, so a chunk would be its next answer."""
    harness = Harness()
    harness.transport.script(MemoryAnswer(status=204, headers={}, pieces=[]))
    harness.transport.script(refused(404, {"message": "No such object"}))
    id = "file-1" if row == "files" else sealed(harness.alias, harness.key)
    async with serve_proxy(harness.pipeline) as front, front.caller() as caller:
        path = f"/v1/{row}/{id}"
        await caller.send(request("DELETE", path, headers=CALLER) * 2)
        deleted = await caller.head()
        assert deleted.status == 204
        assert not {"content-length", "transfer-encoding"} & set(deleted.headers)
        again = await caller.answer()
        assert (again.status, again.error["message"]) == (404, "No such object")
        await front.idle()


@pytest.mark.gen_test
async def test_a_caller_of_http_1_0_sees_that_a_download_without_a_length_was_cut() -> None:
    """The end of such an answer is the end of its connection: a proper one would be a lie."""
    harness = Harness()
    harness.transport.script(
        MemoryAnswer(headers={"content-type": "text/plain"}, pieces=[b"the beginning", CUT])
    )
    async with serve_proxy(harness.pipeline) as front:
        reader, writer = await asyncio.open_connection("127.0.0.1", front.port)
        writer.write(request("GET", "/v1/files/file-1/content", headers=CALLER, version="1.0"))
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()
        with contextlib.suppress(ConnectionResetError):
            await writer.wait_closed()
        await front.idle()
    await harness.audit()


@pytest.mark.gen_test
async def test_a_length_that_contradicts_the_framing_is_not_repeated() -> None:
    """RFC 9112 §6.3: chunks overrule a length; who repeats it may promise what never comes."""
    harness = Harness()
    headers = {"content-type": "text/plain", "content-length": "2", "transfer-encoding": "chunked"}
    harness.transport.script(MemoryAnswer(headers=headers, pieces=[b"hello"]))
    async with serve_proxy(harness.pipeline) as front, front.caller() as caller:
        await caller.send(request("GET", "/v1/files/file-1/content", headers=CALLER))
        answer = await caller.answer()
        assert answer.body == b"hello"
        await front.idle()
