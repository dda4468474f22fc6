"""The requests of one connection: what is a message, what is refused, and what is held."""

from __future__ import annotations

from typing import Any

import pytest

from aisix.errors import HeadTooLarge, RequestTimeout
from aisix.web.codec import MAX_HEAD_BYTES, MAX_WAITING, Message, MessageParser
from tests.data.http.malformed import ACCEPTED, REFUSED
from tests.data.http.smuggling import (
    AMBIGUOUS_HEADS,
    BROKEN_CHUNKS,
    OLD_CHUNKED,
    SOUND_CHUNKS,
)
from tests.support.messages import COMING, COMPLETE, DEPARTED, Seen, cut_up, parsed, taken

POST = b"POST /v1/x HTTP/1.1\r\nHost: x\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
GET = b"GET /v1/y HTTP/1.1\r\nHost: x\r\n\r\n"
LONG = b"x" * (4 * MAX_HEAD_BYTES)


def get(*fields: str, version: str = "1.1") -> bytes:
    """A request without a body."""
    return "\r\n".join([f"GET /v1/y HTTP/{version}", "Host: x", *fields, "", ""]).encode()


def one(data: bytes) -> Seen:
    """The only message of `data`."""
    (seen,) = taken(parsed(data))
    return seen


# ── heads ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("wire", REFUSED.values(), ids=REFUSED)
def test_what_is_not_http_1_1_is_refused_and_nothing_is_parsed_behind_it(wire: bytes):
    parser = parsed(wire, GET)
    (seen,) = taken(parser)
    assert seen.refusal.startswith("400 the request is malformed: ")
    assert (parser.ended, seen.keep_alive) == (True, False)


@pytest.mark.parametrize("wire", REFUSED.values(), ids=REFUSED)
def test_a_refusal_does_not_depend_on_how_the_bytes_arrive(wire: bytes):
    whole = taken(parsed(wire))
    assert taken(parsed(*cut_up(wire, range(len(wire))))) == whole


@pytest.mark.parametrize("wire", [wire for wire, _ in ACCEPTED.values()], ids=ACCEPTED)
def test_what_is_odd_and_in_order_is_one_message(wire: bytes):
    seen = one(wire)
    assert (seen.refusal, seen.end) == ("", COMPLETE)
    assert taken(parsed(*cut_up(wire, range(len(wire))))) == [seen]


def test_a_head_is_handed_out_as_soon_as_it_is_whole():
    parser = parsed(POST + b"Content-Length: 2\r\n\r\n")
    assert [message.body.complete for message in parser.messages] == [False]
    parser.feed(b"hi")
    assert [message.body.complete for message in parser.messages] == [True]


def test_part_of_a_head_is_a_head_that_has_begun():
    parser = MessageParser()
    states = [parser.in_head]
    for piece in (b"\r\n", b"G", GET[1:-1], b"\n", b"\r\n"):
        parser.feed(piece)
        states.append(parser.in_head)
    assert states == [False, False, True, True, False, False]


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("/", "/"),
        ("/v1/models?x=/y", "/v1/models"),
        ("/v1/models#x?y", "/v1/models"),
        ("/v1/%2e%2e/models", "/v1/%2e%2e/models"),
        ("//host/v1", "//host/v1"),
        ("http://host:1/v1/models?x", "/v1/models"),
        ("HTTPS://host/v1/models", "/v1/models"),
        ("http://host", ""),
        ("http://host?x=/y", ""),
        ("ftp://host/v1/models", "ftp://host/v1/models"),
        ("*", "*"),
    ],
)
def test_the_path_of_a_target_has_no_authority_and_no_query(target: str, path: str):
    message = Message()
    message.target = target
    assert message.path == path


def test_names_of_fields_are_lower_case_and_repeats_are_joined_in_order():
    parser = parsed(get("X-A: 1", "x-b:2", "X-a: \t 3", "X-C: \xe9"))
    headers = parser.messages[0].headers
    assert (headers.get("x-a"), headers.get("x-b")) == ("1, 3", "2")
    assert headers.get("absent") is None
    assert [name for name, _ in headers.items()] == ["host", "x-a", "x-b", "x-c"]


def test_names_stay_right_beyond_those_that_are_remembered():
    fields = [f"X-{number}: {number}" for number in range(1_000)]
    parser = MessageParser()
    for start in range(0, 1_000, 100):
        parser.feed(get(*fields[start : start + 100]))
    found = [dict(message.headers.items()) for message in parser.messages]
    assert all(each["host"] == "x" for each in found)
    assert [each[f"x-{place}99"] for place, each in enumerate(found) if place] == [
        f"{place}99" for place in range(1, 10)
    ]


# ── framing ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("wire", AMBIGUOUS_HEADS.values(), ids=AMBIGUOUS_HEADS)
def test_a_head_that_can_be_read_in_two_ways_is_refused(wire: bytes):
    parser = parsed(POST + wire)
    (seen,) = taken(parser)
    assert seen.refusal.startswith("400 ")
    assert parser.ended
    assert taken(parsed(*cut_up(POST + wire, range(1_000)))) == [seen]


def test_chunks_in_http_1_0_are_refused():
    assert one(b"POST /v1/x HTTP/1.0\r\n" + OLD_CHUNKED).refusal.startswith("400 ")


@pytest.mark.parametrize("wire", BROKEN_CHUNKS.values(), ids=BROKEN_CHUNKS)
def test_a_broken_body_breaks_its_message_and_ends_everything(wire: bytes):
    parser = parsed(POST + wire)
    (seen,) = taken(parser)
    assert (seen.target, seen.refusal, seen.keep_alive) == ("/v1/x", "", False)
    assert seen.end.startswith("400 the request is malformed: ")
    assert parser.ended
    assert [
        (each.target, each.end) for each in taken(parsed(*cut_up(POST + wire, range(999))))
    ] == [(seen.target, seen.end)]


@pytest.mark.parametrize("chunks", SOUND_CHUNKS.values(), ids=SOUND_CHUNKS)
def test_a_sound_body_is_the_same_for_every_cut(chunks: bytes):
    wire = CHUNKED + chunks + GET
    expected = [("/v1/x", b"hello", COMPLETE), ("/v1/y", b"", COMPLETE)]
    start = len(CHUNKED) - 2
    ways = [[], range(len(wire)), *([cut] for cut in range(start, len(wire)))]
    for cuts in ways:
        found = taken(parsed(*cut_up(wire, cuts)))
        assert [(seen.target, seen.body, seen.end) for seen in found] == expected


@pytest.mark.parametrize(
    ("fields", "body"),
    [
        (b"Content-Length: 5\r\n\r\nhello", b"hello"),
        (b"Content-Length: \t 5 \t \r\n\r\nhello", b"hello"),
        (b"Content-Length: 0000005\r\n\r\nhello", b"hello"),
        (b"Content-Length: 0\r\n\r\n", b""),
        (b"\r\n", b""),
        (b"Transfer-Encoding:chunked\r\n\r\n0\r\n\r\n", b""),
        (b"Transfer-Encoding: \t chunked\r\n\r\n0\r\n\r\n", b""),
        (b"TRANSFER-ENCODING: CHUNKED\r\n\r\n0\r\n\r\n", b""),
        (b"Transfer_Encoding: chunked\r\nContent-Length: 5\r\n\r\nhello", b"hello"),
        (b"X-Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\nhello", b"hello"),
    ],
    ids=str,
)
def test_a_clear_head_says_where_the_body_ends(fields: bytes, body: bytes):
    found = taken(parsed(POST + fields + GET))
    assert [(seen.target, seen.body, seen.end) for seen in found] == [
        ("/v1/x", body, COMPLETE),
        ("/v1/y", b"", COMPLETE),
    ]


def test_a_length_beyond_all_memory_is_a_body_that_is_coming():
    seen = one(POST + b"Content-Length: 18446744073709551615\r\n\r\nhello")
    assert (seen.body, seen.end) == (b"hello", COMING)


# ── connections ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("version", "fields", "kept"),
    [
        ("1.1", [], True),
        ("1.1", ["Connection: keep-alive"], True),
        ("1.1", ["Connection: close"], False),
        ("1.1", ["connection: CLOSE"], False),
        ("1.1", ["Connection: x, close"], False),
        ("1.1", ["Connection: close, x"], False),
        ("1.1", ["Connection: x,Close ,y"], False),
        ("1.1", ["Connection: keep-alive, close"], False),
        ("1.1", ["Connection: close, keep-alive"], False),
        ("1.1", ["Connection: keep-alive", "Connection: close"], False),
        ("1.1", ["Connection: close", "Connection: keep-alive"], False),
        ("1.1", ["Connection: closed"], True),
        ("1.1", ["Connection: not-close"], True),
        ("1.1", ["Connection:"], True),
        ("1.0", [], False),
        ("1.0", ["Connection: close"], False),
        ("1.0", ["Connection: keep-alive"], True),
        ("1.0", ["Connection: Keep-Alive"], True),
        ("1.0", ["Connection: x, keep-alive"], True),
        ("1.0", ["Connection: x"], False),
    ],
    ids=str,
)
def test_the_connection_is_kept_or_not(version: str, fields: list[str], kept: bool):
    parser = parsed(get(*fields, version=version) + GET)
    found = taken(parser)
    assert found[0].keep_alive is kept
    assert found[0].old is (version == "1.0")
    assert [seen.target for seen in found] == ["/v1/y"] * (2 if kept else 1)
    assert parser.ended is not kept


@pytest.mark.parametrize(
    ("version", "fields", "expects"),
    [
        ("1.1", [], False),
        ("1.1", ["Expect: 100-continue"], True),
        ("1.1", ["expect:\t100-CONTINUE "], True),
        ("1.1", ["Expect: 100-continues"], False),
        ("1.1", ["Expect: 200-ok"], False),
        ("1.0", ["Expect: 100-continue"], False),
    ],
    ids=str,
)
def test_only_an_http_1_1_caller_waits_to_be_told_to_go_on(
    version: str, fields: list[str], expects: bool
):
    assert one(get(*fields, version=version)).expects_continue is expects


# ── upgrades ────────────────────────────────────────────────────────────────────────────────────

H2C = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
BODIES: dict[str, tuple[bytes, bytes]] = {
    "none": (b"\r\n", b""),
    "length": (b"Content-Length: 5\r\n\r\nhello", b"hello"),
    "length zero": (b"Content-Length: 0\r\n\r\n", b""),
    "chunks": (b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", b"hello"),
    "chunks and a trailer": (
        b"Transfer-Encoding: chunked\r\n\r\n5;a\r\nhello\r\n0\r\nA: b\r\n\r\n",
        b"hello",
    ),
}


@pytest.mark.parametrize(("framed", "body"), BODIES.values(), ids=BODIES)
@pytest.mark.parametrize("line", [b"POST /v1/x HTTP/1.1\r\n", b"GET /v1/x HTTP/1.1\r\n"])
@pytest.mark.parametrize("protocol", [b"h2c", b"TLS/1.3", b"h2c, websocket", b"foo/2"])
def test_an_unknown_upgrade_is_ignored(protocol: bytes, line: bytes, framed: bytes, body: bytes):
    """In every cut, with the same request once more and another one behind it."""
    asking = line + b"Host: x\r\n" + H2C.replace(b"h2c", protocol) + framed
    wire = asking * 2 + GET
    expected = [("/v1/x", body, COMPLETE)] * 2 + [("/v1/y", b"", COMPLETE)]
    for cuts in [[], range(len(wire)), *([cut] for cut in range(0, len(wire), 7))]:
        found = taken(parsed(*cut_up(wire, cuts)))
        assert [(seen.target, seen.body, seen.end) for seen in found] == expected
        assert not any(seen.upgrade for seen in found)


def test_an_unknown_upgrade_does_not_keep_a_connection_that_is_to_close():
    parser = parsed(POST + H2C.replace(b"Upgrade,", b"Upgrade, close,") + b"\r\n" + GET)
    assert [seen.keep_alive for seen in taken(parser)] == [False]
    assert parser.ended


def test_an_unknown_upgrade_of_an_old_caller_ends_as_it_asked():
    wire = b"POST /v1/x HTTP/1.0\r\n" + H2C + b"Content-Length: 5\r\n\r\nhello" + GET
    found = taken(parsed(wire))
    assert [(seen.body, seen.end, seen.keep_alive) for seen in found] == [
        (b"hello", COMPLETE, False)
    ]


@pytest.mark.parametrize("wire", AMBIGUOUS_HEADS.values(), ids=AMBIGUOUS_HEADS)
def test_an_unknown_upgrade_hides_no_ambiguity(wire: bytes):
    for way in ([POST + H2C + wire], cut_up(POST + H2C + wire, range(1_000))):
        found = taken(parsed(*way))
        assert [seen.refusal[:4] for seen in found] == ["400 "]


@pytest.mark.parametrize("wire", BROKEN_CHUNKS.values(), ids=BROKEN_CHUNKS)
def test_an_unknown_upgrade_hides_no_broken_body(wire: bytes):
    for way in ([POST + H2C + wire], cut_up(POST + H2C + wire, range(1_000))):
        found = taken(parsed(*way))
        assert [(seen.target, seen.end[:4]) for seen in found] == [("/v1/x", "400 ")]


WEBSOCKET = ["Connection: keep-alive, Upgrade", "Upgrade: WebSocket"]


def test_a_websocket_leaves_http_and_what_follows_is_kept_apart():
    parser = parsed(get(*WEBSOCKET) + b"\x81\x05hello")
    (seen,) = taken(parser)
    assert (seen.upgrade, seen.end, parser.ended, parser.rest) == (
        True,
        COMPLETE,
        True,
        b"\x81\x05hello",
    )
    parser.feed(GET)
    assert not parser.messages


@pytest.mark.parametrize(
    "fields",
    [["Upgrade: websocket"], ["Connection: Upgrade"], ["Connection: keep-alive", WEBSOCKET[1]]],
    ids=str,
)
def test_an_upgrade_needs_both_of_its_fields(fields: list[str]):
    found = taken(parsed(get(*fields) + GET))
    assert [seen.upgrade for seen in found] == [False, False]


def test_only_a_get_becomes_a_websocket():
    wire = POST + b"\r\n".join(line.encode() for line in WEBSOCKET) + b"\r\n"
    found = taken(parsed(wire + b"Content-Length: 5\r\n\r\nhello" + GET))
    assert [(seen.upgrade, seen.body) for seen in found] == [(False, b"hello"), (False, b"")]


@pytest.mark.parametrize("body", [b"", b"Content-Length: 3\r\n"], ids=["bare", "with a body"])
def test_connect_is_the_last_message(body: bytes):
    parser = parsed(b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n" + body + b"\r\nabc" + GET)
    (seen,) = taken(parser)
    assert (seen.method, seen.keep_alive, seen.upgrade, seen.end) == (
        "CONNECT",
        False,
        False,
        COMPLETE,
    )
    assert parser.ended


# ── limits ──────────────────────────────────────────────────────────────────────────────────────

ENDLESS_HEADS: dict[str, bytes] = {
    "a target": b"GET /" + LONG,
    "a name": POST + LONG,
    "a value": POST + b"A: " + LONG,
    "an empty value": POST + b"A:" + b" " * len(LONG),
    "fields": POST + b"A: b\r\n" * (len(LONG) // 6),
    "fields without values": POST + b"A:\r\n" * (len(LONG) // 4),
    "empty lines": b"\r\n" * (len(LONG) // 2),
    "spaces before the target": b"GET " + b" " * len(LONG),
}
ENDLESS_BODIES: dict[str, bytes] = {
    "a chunk's size": CHUNKED + b"0" * len(LONG),
    "an extension": CHUNKED + b"5;" + LONG,
    "a quoted extension": CHUNKED + b'5;a="' + LONG,
    "a trailer": CHUNKED + b"0\r\nA: " + LONG,
    "the name of a trailer": CHUNKED + b"0\r\n" + LONG,
    "trailers": CHUNKED + b"0\r\n" + b"A: b\r\n" * (len(LONG) // 6),
}


def fed_until_refused(wire: bytes, size: int) -> tuple[MessageParser, int]:
    """A parser that was fed pieces of `size` until it had enough, and how many bytes that was."""
    parser = MessageParser()
    for start in range(0, len(wire), size):
        if parser.ended:
            return parser, start
        parser.feed(wire[start : start + size])
    return parser, len(wire)


@pytest.mark.parametrize("size", [1, 7, 1_000, 16_384, 65_536])
@pytest.mark.parametrize("wire", ENDLESS_HEADS.values(), ids=ENDLESS_HEADS)
def test_an_endless_head_is_refused_near_its_limit(wire: bytes, size: int):
    parser, used = fed_until_refused(wire, size)
    (seen,) = taken(parser)
    assert seen.refusal == f"431 the request's head exceeds {MAX_HEAD_BYTES} bytes"
    assert used <= MAX_HEAD_BYTES + 2 * max(size, 100)


@pytest.mark.parametrize("size", [1, 7, 1_000, 16_384, 65_536])
@pytest.mark.parametrize("wire", ENDLESS_BODIES.values(), ids=ENDLESS_BODIES)
def test_what_lies_between_the_pieces_of_a_body_is_bounded(wire: bytes, size: int):
    parser, used = fed_until_refused(wire, size)
    (seen,) = taken(parser)
    assert (seen.body, seen.end) == (b"", f"431 the request's head exceeds {MAX_HEAD_BYTES} bytes")
    assert used <= MAX_HEAD_BYTES + 2 * max(size, 100)


def test_a_head_of_the_limit_is_taken_and_a_longer_one_is_not():
    def sized(extra: int) -> bytes:
        line = len("/v1/y") + len("Hostx") + 4
        return get("A: " + "x" * (MAX_HEAD_BYTES - line - 5 + extra))

    assert one(sized(0)).refusal == ""
    assert one(sized(1)).refusal.startswith("431 ")


def test_the_limit_is_a_message_s_own():
    half = get("A: " + "x" * (MAX_HEAD_BYTES // 2))
    for size in (1_000, 65_536, len(half) * 10):
        parser, _ = fed_until_refused(half * 10, size)
        assert [seen.refusal for seen in taken(parser)] == [""] * 10


def test_a_body_may_be_as_long_as_it_likes():
    wire = CHUNKED + (b"1;%b\r\nx\r\n" % (b"e" * 500)) * 1_000 + b"0\r\n\r\n"
    parser, _ = fed_until_refused(wire, 100)
    (seen,) = taken(parser)
    assert (seen.body, seen.end) == (b"x" * 1_000, COMPLETE)


def test_only_so_many_requests_are_taken_ahead():
    parser = parsed(GET * (MAX_WAITING + 10))
    found = taken(parser)
    assert [seen.refusal[:4] for seen in found] == [""] * MAX_WAITING + ["400 "]
    assert parser.ended


def test_as_many_come_in_when_some_are_taken_out():
    parser = MessageParser()
    for _ in range(5):
        parser.feed(GET * MAX_WAITING)
        assert [seen.refusal for seen in taken(parser)] == [""] * MAX_WAITING
    assert not parser.ended


# ── the end ─────────────────────────────────────────────────────────────────────────────────────


def refuse(parser: MessageParser) -> None:
    parser.refuse(RequestTimeout("too slow"))


@pytest.mark.parametrize("end", [refuse, MessageParser.eof], ids=["refusal", "departure"])
def test_nothing_is_parsed_after_the_end(end: Any):
    parser = parsed(GET)
    end(parser)
    before = len(parser.messages)
    parser.feed(GET)
    assert (len(parser.messages), parser.ended) == (before, True)


def test_a_head_that_took_too_long_is_answered_last():
    parser = parsed(GET, GET[:10])
    refuse(parser)
    assert [seen.refusal for seen in taken(parser)] == ["", "408 too slow"]


def test_a_body_that_was_coming_fails_with_the_refusal():
    parser = parsed(CHUNKED + b"5\r\nhel")
    parser.refuse(HeadTooLarge("too much"))
    (seen,) = taken(parser)
    assert (seen.body, seen.end, seen.keep_alive) == (b"hel", "431 too much", False)


def test_a_caller_that_leaves_in_a_body_has_departed_from_it():
    parser = parsed(CHUNKED + b"5\r\nhel")
    parser.eof()
    (seen,) = taken(parser)
    assert (seen.body, seen.end) == (b"hel", DEPARTED)


def test_bytes_behind_the_last_message_are_no_message():
    wire = get("Connection: close")
    for behind in (GET, b"\x00\xff", b"GET / HTTP/9\r\n\r\n"):
        assert [seen.refusal for seen in taken(parsed(wire + behind))] == [""]
        assert [seen.refusal for seen in taken(parsed(wire, behind))] == [""]


def test_a_head_of_too_many_fields_is_refused():
    for count, status in ((200, 0), (300, 431)):
        parser = parsed(get(*[f"x-{number}: 1" for number in range(count)]))
        refusal = parser.messages[-1].refusal
        assert (refusal.status if refusal is not None else 0) == status
