"""Spoilt requests by the thousand: never an exception, a hang, a 5xx or a leaked exchange.

Mutations are drawn from a seed (`AISIX_TEST_SEED`, or FUZZ_SEED of `make fuzz`), so that a run can
be repeated; a failure shows the bytes. The parser alone sees fifty for each example of hypothesis,
the server five, or AISIX_TEST_SERVED in all (FUZZ_SERVED of `make fuzz`).
"""

from __future__ import annotations

import asyncio
import os
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aisix.pipeline import BodyLimits
from aisix.web.base import ProcessState
from aisix.web.codec import Message
from aisix.web.connection import Connection
from aisix.web.inference import ProxyFront
from aisix.web.routes import Routes
from tests.data.http.streams import POSTS, STREAMS, TOKENS
from tests.support.front import BODY_LIMIT_BYTES, Front, FrontCaller, serve_application
from tests.support.hygiene import ObligingHarness, check_serving
from tests.support.messages import COMING, COMPLETE, Seen, cut_up, parsed, taken

SEED = int(os.environ.get("AISIX_TEST_SEED", "1"))
EXAMPLES = settings().max_examples
ROUNDS = 10
PARSED = 50 * EXAMPLES // ROUNDS
SERVED = int(os.environ.get("AISIX_TEST_SERVED", 5 * EXAMPLES)) // ROUNDS
LONG_S = 3600.0
TURNS = 40
"""Of the loop, before a caller leaves: enough for some answers, not always for all."""

_STATUS_LINE = re.compile(rb"HTTP/1\.1 ([1-5][0-9][0-9]) [ -~]+")
_FIELD = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+: [\t -~]*")


class Mutator:
    """Spoils good streams."""

    def __init__(self, seed: int, place: int) -> None:
        self.random = random.Random(f"{seed}/{place}")
        self._ways = (
            self._flip,
            self._replace,
            self._insert,
            self._delete,
            self._duplicate,
            self._splice,
            self._truncate,
        )

    def wires(self, count: int) -> Iterator[tuple[bytes, list[bytes]]]:
        """So many spoilt streams, each whole and cut into pieces."""
        for _ in range(count):
            wire = self.random.choice(STREAMS)
            for _ in range(self.random.choice((1, 1, 2, 3, 6))):
                wire = self.random.choice(self._ways)(wire) or b"\r"
            cuts = [self.random.randrange(len(wire)) for _ in range(self.random.randrange(8))]
            yield wire, cut_up(wire, range(len(wire)) if self.random.random() < 0.03 else cuts)

    def _span(self, wire: bytes) -> tuple[int, int]:
        start = self.random.randrange(len(wire))
        return start, min(len(wire), start + self.random.choice((1, 1, 2, 5, 20, 100)))

    def _flip(self, wire: bytes) -> bytes:
        place = self.random.randrange(len(wire))
        return (
            wire[:place] + bytes([wire[place] ^ 1 << self.random.randrange(8)]) + wire[place + 1 :]
        )

    def _replace(self, wire: bytes) -> bytes:
        start, end = self._span(wire)
        return wire[:start] + self.random.choice(TOKENS) + wire[end:]

    def _insert(self, wire: bytes) -> bytes:
        place = self.random.randrange(len(wire) + 1)
        if self.random.random() < 0.5:  # where a field may stand
            place = wire.find(b"\r\n", place) + 2 or place
        return wire[:place] + self.random.choice(TOKENS) + wire[place:]

    def _delete(self, wire: bytes) -> bytes:
        start, end = self._span(wire)
        return wire[:start] + wire[end:]

    def _duplicate(self, wire: bytes) -> bytes:
        start, end = self._span(wire)
        return wire[:end] + wire[start:end] * self.random.choice((1, 1, 3)) + wire[end:]

    def _splice(self, wire: bytes) -> bytes:
        other = self.random.choice(STREAMS)
        return wire[: self.random.randrange(len(wire))] + other[self.random.randrange(len(other)) :]

    def _truncate(self, wire: bytes) -> bytes:
        return wire[: self.random.randrange(len(wire))]


# ── the parser ──────────────────────────────────────────────────────────────────────────────────


def judged(found: list[Seen]) -> list[Seen]:
    """Without the words of refusals: of two faults in one head, the cut decides which is named."""
    sound = (COMPLETE, COMING)
    return [
        seen._replace(refusal=seen.refusal[:3], end=seen.end if seen.end in sound else seen.end[:3])
        for seen in found
    ]


@pytest.mark.parametrize("place", range(ROUNDS))
def test_a_spoilt_stream_is_the_same_messages_for_every_cut(place: int):
    for wire, pieces in Mutator(SEED, place).wires(PARSED):
        whole, cut = parsed(wire), parsed(*pieces)
        assert (whole.ended, whole.ended or whole.in_head) == (
            cut.ended,
            cut.ended or cut.in_head,
        ), pieces
        found = taken(whole)
        assert judged(found) == judged(taken(cut)), pieces
        assert sum(len(seen.body) for seen in found) <= len(wire)
        assert not [seen for seen in found[:-1] if seen.refusal or not seen.keep_alive], pieces
        for parser in (whole, cut):
            parser.eof()


@pytest.mark.parametrize("place", range(ROUNDS))
def test_a_learnt_head_is_the_same_messages_as_a_parsed_one(place: int):
    """Spoilt streams behind good ones of the same connection, whose heads were learnt."""
    mutator = Mutator(SEED, place)
    for wire, _ in mutator.wires(PARSED // 2):
        good = mutator.random.choice(POSTS)
        like = good[: mutator.random.randrange(len(good))] + wire  # a head that begins as learnt
        spoilt = mutator.random.choice((wire, like, good + wire))
        cuts = [mutator.random.randrange(2_000)] if mutator.random.random() < 0.5 else []
        pieces = cut_up(spoilt, cuts)
        learnt, plain = (
            parsed(*pieces, before=(good, good), learning=learning) for learning in (True, False)
        )
        assert (learnt.ended, learnt.in_head) == (plain.ended, plain.in_head), pieces
        assert taken(learnt) == taken(plain), pieces
        for parser in (learnt, plain):
            parser.eof()


@given(st.sampled_from(STREAMS), st.lists(st.integers(0, 2**12), max_size=30))
def test_a_good_stream_is_the_same_messages_for_every_cut(wire: bytes, cuts: list[int]):
    found = taken(parsed(wire))
    assert not [seen for seen in found if seen.refusal]
    assert taken(parsed(*cut_up(wire, cuts))) == found


@given(st.lists(st.binary(max_size=200), max_size=20))
def test_any_bytes_are_taken_without_an_exception(pieces: list[bytes]):
    assert judged(taken(parsed(*pieces))) == judged(taken(parsed(b"".join(pieces))))


# ── the server ──────────────────────────────────────────────────────────────────────────────────


class Cut(Exception):
    """What was said stops in the middle of an answer."""


def answers(said: bytes, methods: list[str]) -> Iterator[tuple[int, bool]]:
    """Status of each answer in `said`, and whether it was interim. Raises Cut, AssertionError."""
    remaining = iter(methods)
    while said:
        head, found, said = said.partition(b"\r\n\r\n")
        line, *lines = head.split(b"\r\n")
        match = _STATUS_LINE.fullmatch(line)
        if not found:
            raise Cut
        assert match, line
        assert all(_FIELD.fullmatch(each) for each in lines), lines
        status = int(match[1])
        yield status, status < 200
        if status >= 200:
            fields = [each.partition(b": ")[::2] for each in lines]
            said = _after_the_body(said, dict(fields), next(remaining, ""))


def _after_the_body(said: bytes, fields: dict[bytes, bytes], method: str) -> bytes:
    """What follows the body that these fields announce."""
    length, coding = fields.get(b"Content-Length"), fields.get(b"Transfer-Encoding")
    assert length is None or coding is None
    if method == "HEAD":
        return said
    if coding is None and length is None:
        assert fields[b"Connection"] == b"close"
        return b""
    if length is not None:
        if len(said) < int(length):
            raise Cut
        return said[int(length) :]
    assert coding == b"chunked"
    size = -1
    while size:
        line, found, said = said.partition(b"\r\n")
        if not found:
            raise Cut
        size = int(line, 16)
        if len(said) < size + 2:
            raise Cut
        assert said[size : size + 2] == b"\r\n"
        said = said[size + 2 :]
    return said


@dataclass(frozen=True)
class WatchedFront(ProxyFront):
    """Remembers the method of each request, and whether its caller departed."""

    served: list[tuple[str, bool]] = field(default_factory=list)

    async def serve(self, message: Message, connection: Connection) -> None:
        """As ever."""
        try:
            await super().serve(message, connection)
        finally:
            way_back = connection.way_back
            self.served.append((message.method, way_back is None or way_back.departed))


@pytest.mark.parametrize("place", range(ROUNDS))
@pytest.mark.gen_test(timeout=LONG_S)
async def test_a_spoilt_stream_is_answered_in_good_http_or_the_caller_departs(place: int):
    harness = ObligingHarness()
    state = ProcessState()
    state.ready = True
    watched = WatchedFront(
        pipeline=harness.pipeline,
        routes=Routes(),
        state=state,
        body_limits=BodyLimits(BODY_LIMIT_BYTES, BODY_LIMIT_BYTES),
        accept_request_ids=(),
    )
    mutator = Mutator(SEED, ROUNDS + place)
    ways = (FrontCaller.send_eof, FrontCaller.send_eof, FrontCaller.reset, FrontCaller.close)
    async with serve_application(watched, state) as front:
        for _, pieces in mutator.wires(SERVED):
            watched.served.clear()
            harness.recorder.ended.clear()
            harness.log.lines.clear()
            harness.recorder.started = 0
            said = await told(front, pieces, mutator.random.choice(ways))
            harness.check_settled()
            assert not [one for one in harness.recorder.ended if one.status >= 500], pieces
            if said is not None:
                check_answers(said, watched.served, pieces)
        async with front.caller() as caller:
            await check_serving(caller)
    harness.check_settled()


def check_answers(said: bytes, served: list[tuple[str, bool]], pieces: list[bytes]) -> None:
    """Each request was answered, but for those whose caller departed."""
    departed = [left for _, left in served]
    final = 0
    try:
        for status, interim in answers(said, [method for method, _ in served]):
            assert status < 500, (pieces, said)
            final += not interim
    except Cut:
        assert any(departed), (pieces, said)
    assert departed.count(False) <= final <= len(served), (pieces, said)


async def told(front: Front, pieces: list[bytes], leave: object) -> bytes | None:
    """What a caller is told that sends `pieces` and leaves; None if it did not listen."""
    async with front.caller() as caller:
        try:
            for piece in pieces:
                await caller.send(piece)
                await asyncio.sleep(0)
            for _ in range(TURNS):
                await asyncio.sleep(0)
            leave(caller)  # type: ignore[operator]
        except OSError:
            pass  # refused before it had sent all
        listens = leave is FrontCaller.send_eof
        said = await caller.rest() if listens else None
    await front.idle()
    return said
