"""The words of a WebSocket's handshake, and the way that leads up."""

from __future__ import annotations

import asyncio

import pytest

from aisix.core.uplink import Uplink
from aisix.core.websocket import accept_of, is_key, offered_protocols, open_protocols
from tests.support.builders import Headers


def test_the_answer_to_a_key_is_that_of_the_standard():
    assert accept_of("dGhlIHNhbXBsZSBub25jZQ==") == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


@pytest.mark.parametrize(
    ("key", "good"),
    [
        ("dGhlIHNhbXBsZSBub25jZQ==", True),
        ("AAAAAAAAAAAAAAAAAAAAAA==", True),
        (None, False),
        ("", False),
        ("c2hvcnQ=", False),
        ("dGhlIHNhbXBsZSBub25jZQ", False),
        ("dGhlIHNhbXBsZSBub25jZ!==", False),
        ("\xe9" * 24, False),
    ],
)
def test_a_key_is_sixteen_bytes_in_base64(key: str | None, good: bool):
    assert is_key(key) is good


@pytest.mark.parametrize(
    ("header", "offered", "without_keys"),
    [
        (None, [], []),
        ("", [], []),
        (" , ", [], []),
        ("realtime", ["realtime"], ["realtime"]),
        (
            "realtime,openai-insecure-api-key.sk-1 ,\topenai-beta.realtime-v1",
            ["realtime", "openai-insecure-api-key.sk-1", "openai-beta.realtime-v1"],
            ["realtime", "openai-beta.realtime-v1"],
        ),
    ],
)
def test_offers_with_a_key_are_told_apart(
    header: str | None, offered: list[str], without_keys: list[str]
):
    headers = Headers({} if header is None else {"sec-websocket-protocol": header})
    assert offered_protocols(headers) == offered
    assert open_protocols(headers) == without_keys


@pytest.mark.gen_test
async def test_an_uplink_holds_one_piece_and_gives_it_to_whoever_asks_last():
    uplink = Uplink()
    first = asyncio.ensure_future(anext(uplink))
    await asyncio.sleep(0)
    first.cancel()  # a transfer that was refused
    await asyncio.wait([first])
    await uplink.put(b"one")
    putting = asyncio.ensure_future(uplink.put(b"two"))
    await asyncio.sleep(0)
    assert not putting.done()
    assert [await anext(uplink), await anext(uplink)] == [b"one", b"two"]
    await putting


@pytest.mark.gen_test
async def test_a_closed_uplink_holds_nobody_up():
    uplink = Uplink()
    await uplink.put(b"one")
    putting = asyncio.ensure_future(uplink.put(b"two"))
    await asyncio.sleep(0)
    uplink.close()
    await putting
    await uplink.put(b"three")
