"""What the ordinary chunks of one stream have in common, learnt from one of them. Pure.

The chunks of a stream differ in a piece of text, and some servers add padding; the bytes around
them are the same again and again, and so are those that the caller gets for them. A
`ChunkTemplate` is learnt from a chunk that was edited as a document, and copies the chunks that
follow without parsing them.

Why both ways give the same document: for learning, probes take the place of text and padding; the
bytes with the probes parse to the same document, the probes being its values there. So these bytes
hold a string at that place, whichever it is, and the edit, which never looks at that string, was
made with the probes in it. A text with an escape or beyond ASCII is copied only when ujson reads
it, as it would have to in its document.

Why the meter loses nothing: of such a chunk it takes the size of that one text. It has no other
text and no finish_reason, and its model and usage were seen before.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import ujson

from aisix.relay.document import parse_object
from aisix.relay.sse import Event, parse_event

Edit = Callable[[Event, dict[str, Any]], bytes]
"""An event and its document, which may be changed, to what the caller gets."""

_Match = Callable[[bytes, int], re.Match[bytes]]
_plain: _Match = re.compile(rb"[ !#-\[\]-~]*+").match  # type: ignore[assignment]  # b"" matches too
"""Text that is spelt as it is."""
_any: _Match = re.compile(  # type: ignore[assignment]  # b"" matches too
    rb'[^"\\\x00-\x1f]*+(?:\\.[^"\\\x00-\x1f]*+)*+'
).match
"""Text up to its closing quote, or up to a control character, which ujson would read."""
_opening = re.compile(rb'[ \t]*+:[ \t]*+"').match

_BODIES = frozenset({"delta", "text", "message"})
_TEXTS = frozenset({"content", "refusal", "reasoning_content", "reasoning"})
_PADDING = "obfuscation"
_PROBES = (b"aisix puts a probe here", b"and another one there")

_Place = tuple[dict[str, Any], str]
"""A member: its holder and its name."""


class ChunkTemplate:
    """The bytes around the text, and the padding if any, as they come and as they go."""

    __slots__ = ("_head", "_last", "_new_head", "_new_last", "_new_tail", "_tail")

    def __init__(self, old: Sequence[bytes], new: Sequence[bytes]) -> None:
        self._head, self._tail, *last = old
        self._new_head, self._new_tail, *new_last = new
        self._last = last[0] if last else b""
        self._new_last = new_last[0] if new_last else b""

    def copy(self, data: bytes, at: int, out: list[bytes]) -> tuple[int, int, int]:
        """Append to `out` what the caller gets for the events of this form that stand at `at`.

        Returns where the next event of another form begins, how many there were, and how many
        bytes of UTF-8 their texts have.
        """
        head, tail, last = self._head, self._tail, self._last
        count = text_bytes = 0
        while data.startswith(head, at):
            start = at + len(head)
            end = _plain(data, start).end()
            size = end - start
            if not data.startswith(tail, end):
                end = _any(data, start).end()
                if not data.startswith(tail, end):
                    break
                size = _text_bytes(data[start:end])
                if size < 0:
                    break
            pieces = [self._new_head, data[start:end], self._new_tail]
            behind = end + len(tail)
            if last:
                end = _plain(data, behind).end()
                if not data.startswith(last, end):
                    break
                pieces += (data[behind:end], self._new_last)
                behind = end + len(last)
            out += pieces
            text_bytes += size
            count += 1
            at = behind
        return at, count, text_bytes


def learn(event: Event, document: dict[str, Any], edit: Edit) -> ChunkTemplate | None:
    """The template of the events like `event`, which carries `document`.

    None when it is not an ordinary chunk; then `document` is as it was, else it is used up.
    """
    if b"\r" in event.raw:
        return None  # with a CR, where an event ends can depend on what follows
    place = _place_of_text(document)
    if place is None:
        return None
    template = _learn(event, document, place, edit)
    if template is None or not template.copy(event.raw, 0, [])[1]:
        document.clear()
        document.update(parse_object(event.data or b"") or {})
        return None
    return template


def _learn(
    event: Event, document: dict[str, Any], place: _Place, edit: Edit
) -> ChunkTemplate | None:
    places = [place]
    if isinstance(document.get(_PADDING), str):
        places.append((document, _PADDING))
    for (holder, name), probe in zip(places, _PROBES, strict=False):
        holder[name] = probe.decode()
        probed = _with_probe(event.raw, name, probe, document)
        if probed is None:
            return None
        event = probed
    old = _around(event.raw, len(places))
    new = _around(edit(event, document), len(places)) if old else []
    return ChunkTemplate(old, new) if new else None


def _place_of_text(document: dict[str, Any]) -> _Place | None:
    """Where the text of an ordinary chunk stands: the only thing that its only choice says."""
    choices = document.get("choices")
    if not isinstance(choices, list) or len(choices) != 1:
        return None
    (choice,) = choices
    if not isinstance(choice, dict) or choice.get("finish_reason"):
        return None
    place: _Place = (choice, "text")
    bodies = _BODIES & choice.keys()
    if bodies == {"delta"}:
        place = _only_word(choice["delta"])
    elif bodies != {"text"}:
        return None
    holder, name = place
    text = holder.get(name)
    return place if text and isinstance(text, str) else None


def _only_word(delta: Any) -> _Place:
    """The member that a delta says something with; a place without a text when it is not one."""
    nowhere: _Place = ({}, "")
    if not isinstance(delta, dict):
        return nowhere
    said = [name for name, value in delta.items() if value and name != "role"]
    if len(said) != 1:
        return nowhere
    if said[0] in _TEXTS:
        return delta, said[0]
    calls = delta.get("tool_calls")
    if isinstance(calls, list) and len(calls) == 1 and isinstance(calls[0], dict):
        function = calls[0].get("function")
        if isinstance(function, dict) and not calls[0].get("custom"):
            return function, "arguments"
    return nowhere


def _with_probe(raw: bytes, name: str, probe: bytes, document: dict[str, Any]) -> Event | None:
    """The event with the probe as a member of this name; None when its place is not certain.

    It is where the event with the probe carries `document`, which has the probe already.
    """
    key = b'"' + name.encode() + b'"'
    at = raw.find(key)
    while at >= 0:
        at += len(key)
        opening = _opening(raw, at)
        if opening is not None:
            start = opening.end()
            probed = parse_event(b"".join((raw[:start], probe, raw[_any(raw, start).end() :])))
            if probed.data is not None and parse_object(probed.data) == document:
                return probed
        at = raw.find(key, at)
    return None


def _around(wire: bytes, count: int) -> list[bytes]:
    """The bytes around the first `count` probes; empty unless each is there once, in order."""
    pieces = [wire]
    for probe in _PROBES[:count]:
        parts = pieces.pop().split(probe)
        if len(parts) != 2:
            return []
        pieces += parts
    return pieces


def _text_bytes(spelt: bytes) -> int:
    """Bytes of UTF-8 of a text that is spelt with escapes or beyond ASCII; -1 when it is none."""
    try:
        text = ujson.loads(b'"' + spelt + b'"')
    except ValueError:
        return -1
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
