"""The server-sent events of streamed answers, one `bytes` per event, in Azure's order.

Chat: prompt filter chunk (no id, no choices) → role → deltas → finish → usage (when asked for)
→ `[DONE]`, with annotation chunks in between in asynchronous filter mode. The parts that do not
change within a stream are rendered once; a delta costs one small `dumps`. Events come lazily, so
a stream of any length takes no memory. Pure.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from aisix.simulator.answers import (
    Identity,
    audio_head,
    chat_logprobs,
    choice_filter,
    filtered_category,
    prompt_filter_results,
    text_choice,
    text_envelope,
    without_extensions,
)
from aisix.simulator.content import Choice, Composition, JsonObject, sound
from aisix.simulator.script import Script

DONE = b"data: [DONE]\n\n"
_ANNOTATE_EVERY = 3
_BULK_BLOCK_EVENTS = 64
_MARK = "\ue000simulator\ue000"  # stands where a template gets its text; no request can hold it


def render(value: object) -> str:
    """Compact JSON, as the service writes it."""
    return json.dumps(value, separators=(",", ":"))


def event(value: object) -> bytes:
    """One SSE event with LF line ends."""
    return f"data: {render(value)}\n\n".encode()


@dataclass(slots=True)
class ChatStream:
    """Writes the chunks of one chat stream."""

    body: JsonObject
    composition: Composition
    script: Script
    identity: Identity

    def events(self) -> Iterator[bytes]:
        """Every event of the stream, in order."""
        if not self.script.plain:
            yield self._bare({"choices": [], "prompt_filter_results": prompt_filter_results()})
        for index, choice in enumerate(self.composition.choices):
            opening: JsonObject = {"content": "", "refusal": None, "role": "assistant"}
            if choice.tool_call is not None:
                opening["content"] = None
            if choice.spoken:
                opening |= {"content": None, "audio": audio_head(index, self.identity)}
            yield self._chunk(index, opening, filters={})
        if self.script.bulk is not None:
            yield from self._bulk(self.script.bulk)
        else:
            yield from self._deltas()
        yield from self._ends()

    def _deltas(self) -> Iterator[bytes]:
        choices = self.composition.choices
        for index, choice in enumerate(choices):
            if choice.tool_call is not None:
                function = {"arguments": "", "name": choice.tool_call.name}
                call = {"function": function, "id": choice.tool_call.id, "index": 0}
                yield self._chunk(index, {"tool_calls": [{**call, "type": "function"}]}, filters={})
        writers = [self._writer(index, choice) for index, choice in enumerate(choices)]
        written = 0
        for step, row in enumerate(itertools.zip_longest(*(c.pieces for c in choices)), start=1):
            for index, piece in enumerate(row):
                if piece is not None:
                    yield writers[index](piece)
                    if choices[index].spoken:
                        yield self._chunk(index, {"audio": {"data": sound(1)}}, filters={})
            written += len(row[0] or "")
            if self._asynchronous and step % _ANNOTATE_EVERY == 0:
                yield self._annotation(written, finish=None)

    def _ends(self) -> Iterator[bytes]:
        script = self.script
        for index, choice in enumerate(self.composition.choices):
            yield self._finish(index, choice)
        if self._asynchronous:
            written = len(self.composition.choices[0].text)
            yield self._annotation(written, finish="content_filter" if script.late else None)
        if self._wants_usage and not script.finishusage:
            yield event({**self._envelope([]), "usage": self._usage})
        if not script.nodone:
            yield DONE

    def _finish(self, index: int, choice: Choice) -> bytes:
        category = filtered_category(choice)
        chunk = self._frame(
            index, {}, filters=choice_filter(filtered=category), finish=choice.finish_reason
        )
        if self.script.finishusage and not self.script.nousage:
            chunk["usage"] = self._usage
        return event(chunk)

    def _writer(self, index: int, choice: Choice) -> Callable[[str], bytes]:
        """A function from piece to event, with everything else rendered beforehand."""
        if choice.tool_call is not None:
            part: JsonObject = {"function": {"arguments": _MARK}, "index": 0}
            frame = self._frame(index, {"tool_calls": [part]}, filters=choice_filter())
        elif choice.spoken:
            spoken = {"audio": {"transcript": _MARK}}
            frame = self._frame(index, spoken, filters=choice_filter())
        else:
            key = "refusal" if choice.refusal else "content"
            frame = self._frame(index, {key: _MARK}, filters=choice_filter())
        if self.body.get("logprobs") is True and choice.tool_call is None:
            return lambda piece: self._with_logprobs(index, piece)
        before, after = render(frame).split(render(_MARK))
        head, tail = f"data: {before}".encode(), f"{after}\n\n".encode()
        return lambda piece: head + json.dumps(piece).encode() + tail

    def _with_logprobs(self, index: int, piece: str) -> bytes:
        chunk = self._frame(index, {"content": piece}, filters=choice_filter())
        chunk["choices"][0]["logprobs"] = chat_logprobs((piece,), self.body)
        return event(chunk)

    def _bulk(self, mib: int) -> Iterator[bytes]:
        """Blocks of 64 deltas of 1 KiB, so the writer is limited by its reader only."""
        block = self._writer(0, self.composition.choices[0])("x" * 1024) * _BULK_BLOCK_EVENTS
        yield from itertools.repeat(block, mib * 1024 // _BULK_BLOCK_EVENTS)

    def _chunk(self, index: int, delta: JsonObject, *, filters: JsonObject) -> bytes:
        return event(self._frame(index, delta, filters=filters))

    def _frame(
        self, index: int, delta: JsonObject, *, filters: JsonObject, finish: str | None = None
    ) -> JsonObject:
        choice: JsonObject = {
            "content_filter_results": {} if self._asynchronous else filters,
            "delta": delta,
            "finish_reason": finish,
            "index": index,
            "logprobs": None,
        }
        if self.script.plain:
            del choice["content_filter_results"]
        chunk = self._envelope([choice])
        if self._wants_usage:
            chunk["usage"] = None
        return chunk

    def _envelope(self, choices: list[JsonObject]) -> JsonObject:
        return {
            "choices": choices,
            "created": self.identity.created,
            "id": self.identity.id,
            "model": self.identity.served_model,
            "object": "chat.completion.chunk",
            "system_fingerprint": self.identity.fingerprint,
        }

    def _annotation(self, written: int, *, finish: str | None) -> bytes:
        start = self.composition.prompt_characters
        category = "violence" if finish else None
        results = choice_filter(filtered=category)
        del results["protected_material_code"]
        choice = {
            "content_filter_offsets": {
                "check_offset": start + written,
                "end_offset": start + written,
                "start_offset": start,
            },
            "content_filter_results": results,
            "finish_reason": finish,
            "index": 0,
        }
        return self._bare({"choices": [choice]})

    def _bare(self, chunk: JsonObject) -> bytes:
        return event({"created": 0, "id": "", "model": "", "object": "", **chunk})

    @property
    def _asynchronous(self) -> bool:
        return (self.script.asyncfilter or self.script.late) and not self.script.plain

    @property
    def _wants_usage(self) -> bool:
        return wants_usage(self.body) and not self.script.nousage

    @property
    def _usage(self) -> JsonObject:
        usage = self.composition.usage
        if self.script.bulk is None:
            return usage
        completion = self.script.bulk * 1024
        total = usage["prompt_tokens"] + completion
        return {**usage, "completion_tokens": completion, "total_tokens": total}


def wants_usage(body: JsonObject) -> bool:
    """Whether the caller asked for the usage chunk."""
    options = body.get("stream_options")
    return isinstance(options, dict) and options.get("include_usage") is True


def text_events(
    body: JsonObject, composition: Composition, *, script: Script, identity: Identity
) -> Iterator[bytes]:
    """Every event of a completions stream: the object of the JSON answer, piece by piece."""
    usage = wants_usage(body) and not script.nousage

    def chunk(choices: list[JsonObject], numbers: JsonObject | None) -> bytes:
        answer = text_envelope(identity, choices, body)
        if choices:
            answer.pop("prompt_filter_results")
        if usage or numbers:
            answer["usage"] = numbers
        return event(without_extensions(answer) if script.plain else answer)

    if not script.plain:
        yield chunk([], None)
    for row in _rows(composition.choices):
        for index, piece in enumerate(row):
            if piece is not None:
                yield chunk([text_choice(index, piece, body=body, finish=None)], None)
    for index, choice in enumerate(composition.choices):
        category = filtered_category(choice)
        finish = choice.finish_reason
        carried = composition.usage if script.finishusage and not script.nousage else None
        yield chunk([text_choice(index, "", body=body, finish=finish, category=category)], carried)
    if usage and not script.finishusage:
        last = text_envelope(identity, [], body)
        del last["prompt_filter_results"]
        yield event({**last, "usage": composition.usage})
    if not script.nodone:
        yield DONE


def _rows(choices: Sequence[Choice]) -> Iterator[tuple[str | None, ...]]:
    return itertools.zip_longest(*(choice.pieces for choice in choices))
