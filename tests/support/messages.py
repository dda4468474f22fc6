"""What a `MessageParser` made of some bytes, as values that can be compared. No loop is needed.

parser = parsed(b"GET / HTTP/1.1\\r\\n", b"Host: x\\r\\n\\r\\n")
assert [seen.target for seen in taken(parser)] == ["/"]
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple

from aisix.errors import CallerDeparted, GatewayError
from aisix.web.body import StreamedBody
from aisix.web.codec import Message, MessageParser

COMPLETE = "complete"
COMING = "coming"
DEPARTED = "departed"


class Seen(NamedTuple):
    """One message; `end` is COMPLETE, COMING, DEPARTED, or status and words of a broken body."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    end: str
    refusal: str
    keep_alive: bool
    old: bool
    expects_continue: bool
    upgrade: bool


def parsed(*pieces: bytes, before: Iterable[bytes] = (), learning: bool = True) -> MessageParser:
    """A parser that was fed these pieces, and served those `before` them one by one.

    One that learns no heads parses every request anew.
    """
    parser = MessageParser() if learning else MessageParser(lessons=0)
    for piece in before:
        parser.feed(piece)
        parser.messages.clear()
    for piece in pieces:
        parser.feed(piece)
    return parser


def taken(parser: MessageParser) -> list[Seen]:
    """Everything that is waiting, taken out; a body that is still coming is given up."""
    messages = list(parser.messages)
    parser.messages.clear()
    return [_seen(message) for message in messages]


def cut_up(data: bytes, cuts: Iterable[int]) -> list[bytes]:
    """`data` in pieces that end at `cuts`."""
    marks = [0, *sorted({cut for cut in cuts if 0 < cut < len(data)}), len(data)]
    return [data[start:end] for start, end in pairwise(marks)]


def _seen(message: Message) -> Seen:
    body, end = _drained(message.body)
    return Seen(
        method=message.method,
        target=message.target,
        headers=tuple(message.headers.items()),
        body=body,
        end=end,
        refusal=_words(message.refusal) if message.refusal else "",
        keep_alive=message.keep_alive,
        old=message.old,
        expects_continue=message.expects_continue,
        upgrade=message.upgrade,
    )


def _drained(body: StreamedBody) -> tuple[bytes, str]:
    """What has come of `body`, and how it stands. It must have an end, or reading would wait."""
    coming = not body.complete and not body.failed
    if coming:
        body.fail(CallerDeparted())
    data = bytearray()
    end = COMPLETE

    async def take() -> None:
        nonlocal end
        try:
            async for piece in body.chunks():
                data.extend(piece)
        except CallerDeparted:
            end = COMING if coming else DEPARTED
        except GatewayError as error:
            end = _words(error)

    step = take()
    try:
        step.send(None)
    except StopIteration:
        return bytes(data), end
    raise AssertionError("a body with an end made its reader wait")


def _words(error: GatewayError) -> str:
    return f"{error.status} {error.message}"
