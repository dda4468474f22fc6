"""A Tornado Application on connections of ours: WebSockets, streamed answers, and their ends."""

from __future__ import annotations

import asyncio

import pytest
from tornado.websocket import websocket_connect

from tests.support.front import Front, event, request
from tests.support.handing import HANDSHAKE, Stand, check_echo
from tests.support.messages import cut_up


@pytest.mark.gen_test
async def test_one_request_after_another_is_handed_over():
    stand = Stand()
    stand.events.go_on.set()
    targets = ["/whole", "/streamed", "/sized", "/nowhere", "/whole"] * 3
    async with stand.served() as front, front.caller() as caller:
        await caller.send(b"".join(request("GET", target) for target in targets))
        answers = [await caller.answer() for _ in targets]
    assert [(each.status, each.body) for each in answers if each.status == 200] == [
        (200, body) for body in (b"whole", b"onetwothree", b"onetwo", b"whole") * 3
    ]
    assert [each.status for each in answers].count(404) == 3


@pytest.mark.gen_test
async def test_a_body_is_handed_over_whole():
    stand = Stand()
    body = b"x" * 5_000
    framed = {"Transfer-Encoding": "chunked"}
    wire = request("POST", "/whole", body) + request("POST", "/whole", headers=framed)
    async with stand.served() as front, front.caller() as caller:
        for piece in cut_up(wire + b"5\r\nhello\r\n0\r\n\r\n", range(0, 5_000, 500)):
            await caller.send(piece)
            await asyncio.sleep(0)
        assert [(await caller.answer()).body for _ in range(2)] == [body, b"hello"]
    assert stand.events.bodies == [body, b"hello"]


@pytest.mark.gen_test
async def test_flushed_pieces_arrive_one_by_one():
    stand = Stand()
    async with stand.served() as front, front.caller() as caller:
        await caller.send(request("GET", "/streamed") + request("GET", "/whole"))
        head = await caller.head()
        assert head.headers["transfer-encoding"] == "chunked"
        assert [await caller.chunk() for _ in range(2)] == [b"one", b"two"]
        stand.events.go_on.set()
        assert [await caller.chunk() for _ in range(2)] == [b"three", b""]
        assert (await caller.answer()).body == b"whole"


@pytest.mark.parametrize("wish", [None, "keep-alive"])
@pytest.mark.gen_test
async def test_a_streamed_answer_to_an_old_caller_ends_with_the_connection(wish: str | None):
    stand = Stand()
    stand.events.go_on.set()
    async with stand.served() as front, front.caller() as caller:
        await caller.send(request("GET", "/streamed", version="1.0", headers={"Connection": wish}))
        head = await caller.head()
        assert "transfer-encoding" not in head.headers
        assert await caller.rest() == b"onetwothree"


@pytest.mark.parametrize("target", ["/whole", "/streamed", "/sized"])
@pytest.mark.gen_test
async def test_the_answer_to_head_has_no_body(target: str):
    stand = Stand()
    stand.events.go_on.set()
    async with stand.served() as front, front.caller() as caller:
        await caller.send(request("HEAD", target) + request("GET", "/whole"))
        answer = await caller.answer(bodiless=True)
        assert answer.status == 200
        assert (await caller.answer()).body == b"whole"


@pytest.mark.parametrize("status", [204, 304])
@pytest.mark.gen_test
async def test_an_answer_that_can_have_no_body_has_no_frame(status: int):
    async with Stand().served() as front, front.caller() as caller:
        await caller.send(request("GET", f"/unchanged/{status}") + request("GET", "/whole"))
        answer = await caller.answer(bodiless=True)
        assert answer.status == status
        assert "transfer-encoding" not in answer.headers
        assert (await caller.answer()).body == b"whole"


@pytest.mark.gen_test
async def test_a_tag_that_matches_is_a_304():
    async with Stand().served() as front, front.caller() as caller:
        await caller.send(request("GET", "/whole"))
        tag = (await caller.answer()).headers["etag"]
        await caller.send(request("GET", "/whole", headers={"If-None-Match": tag}))
        assert (await caller.answer(bodiless=True)).status == 304
        await caller.send(request("GET", "/whole"))
        assert (await caller.answer()).body == b"whole"


@pytest.mark.parametrize("leave", ["close", "reset", "send_eof"])
@pytest.mark.gen_test
async def test_a_handler_is_told_that_its_caller_has_gone(leave: str):
    stand = Stand()
    async with stand.served() as front, front.caller() as caller:
        await caller.send(request("GET", "/waiting"))
        await event(stand.events.begun)
        getattr(caller, leave)()
        await event(stand.events.closed)
        await front.idle()


@pytest.mark.gen_test
async def test_a_handler_that_streams_is_told_that_its_caller_has_gone():
    stand = Stand()
    async with stand.served() as front, front.caller() as caller:
        await caller.send(request("GET", "/streamed"))
        await event(stand.events.begun)
        caller.reset()
        await event(stand.events.closed)
        stand.events.go_on.set()
        await front.idle()


@pytest.mark.gen_test
async def test_a_request_cut_off_by_the_process_ends():
    stand = Stand()
    async with stand.served() as front, front.caller() as caller:
        await caller.send(request("GET", "/streamed"))
        await event(stand.events.begun)
        stand.state.abort_all()
        assert (await caller.rest()).endswith(b"two\r\n")
        await front.idle()
        stand.events.go_on.set()


# ── WebSockets ──────────────────────────────────────────────────────────────────────────────────


def address(front: Front) -> str:
    return f"ws://127.0.0.1:{front.port}/echo"


@pytest.mark.gen_test
async def test_a_websocket_is_opened_and_echoes():
    stand = Stand()
    async with stand.served() as front:
        client = await websocket_connect(address(front))
        for message in ("hello", b"\x00\xff", "x" * 100_000):
            await client.write_message(message, binary=isinstance(message, bytes))
            assert await client.read_message() == message
        client.close()
        await event(stand.events.closed)


@pytest.mark.gen_test
async def test_a_websocket_is_opened_after_other_requests():
    stand = Stand()
    async with stand.served() as front, front.caller() as caller:
        await caller.send(request("GET", "/whole"))
        assert (await caller.answer()).body == b"whole"
        await caller.send(request("GET", "/echo", headers=HANDSHAKE))
        await check_echo(caller)


@pytest.mark.parametrize("leave", ["close", "reset", "send_eof"])
@pytest.mark.gen_test
async def test_a_websocket_is_told_that_its_caller_has_gone(leave: str):
    stand = Stand()
    async with stand.served() as front, front.caller() as caller:
        await caller.send(request("GET", "/echo", headers=HANDSHAKE))
        await check_echo(caller)
        getattr(caller, leave)()
        await event(stand.events.closed)


@pytest.mark.gen_test
async def test_many_websockets_are_open_at_once():
    stand = Stand()
    async with stand.served() as front:
        clients = [await websocket_connect(address(front)) for _ in range(50)]
        for place, client in enumerate(clients):
            await client.write_message(str(place))
        assert [await client.read_message() for client in clients] == [str(n) for n in range(50)]
        for client in clients:
            client.close()
            assert await client.read_message() is None


@pytest.mark.gen_test
async def test_a_handshake_that_is_refused_is_an_answer():
    """No version: Tornado says 426."""
    wish = {"Connection": "Upgrade", "Upgrade": "websocket"}
    async with Stand().served() as front, front.caller() as caller:
        await caller.send(request("GET", "/echo", headers=wish))
        answer = await caller.answer()
        assert answer.status in (400, 426)
        await front.idle()
