"""The server-sent events of the Responses API, in its order and numbering.

created (→ queued) → in_progress → per output item: added, parts and deltas, done → one terminal
event. Each event has an `event:` line and repeats its type and its number in the data; there is
no `[DONE]`. The story follows from the finished response alone, so that a stored one can be told
again. Lazy, so a stream of any length takes no memory. Pure.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence

from aisix.simulator.content import JsonObject
from aisix.simulator.events import render
from aisix.simulator.script import Script

Step = tuple[str, JsonObject]
_UNFINISHED: JsonObject = {
    "completed_at": None,
    "content_filters": None,
    "error": None,
    "incomplete_details": None,
    "output": [],
    "status": "in_progress",
    "usage": None,
}
_TERMINAL = ("completed", "failed", "incomplete")  # a cancelled one has no event of its own
_BULK_PIECE = "x" * 1024
_PIECES_PER_MIB = 1024


def sse(kind: str, data: JsonObject) -> bytes:
    """One event with its name on a line of its own."""
    return f"event: {kind}\ndata: {render({'type': kind, **data})}\n\n".encode()


def numbered(kind: str, number: int, data: JsonObject) -> bytes:
    """One event of a response."""
    return sse(kind, {"sequence_number": number, **data})


def unfinished(response: JsonObject, status: str) -> JsonObject:
    """The response as it looked before it was finished."""
    return {**response, **_UNFINISHED, "status": status}


def failed(response: JsonObject, error: JsonObject | None) -> JsonObject:
    """The response as it looks when it failed; usage is then not known."""
    return {**unfinished(response, "failed"), "error": error}


def events(
    response: JsonObject,
    pieces: Sequence[str],
    *,
    script: Script,
    error: JsonObject | None = None,
    after: int = -1,
) -> Iterator[bytes]:
    """Every event with a number beyond `after`; `error` is what `failed<N>` reports."""
    for number, (kind, data) in enumerate(_story(response, pieces, script)):
        if script.failed is not None and number >= script.failed:
            yield numbered("response.failed", number, {"response": failed(response, error)})
            return
        if number > after:
            yield numbered(kind, number, data)


def throttled(response: JsonObject) -> Iterator[bytes]:
    """A rate limit inside a 200: the failure says nothing, the event after it does."""
    yield numbered("response.failed", 1, {"response": failed(response, None)})
    error = {
        "type": "too_many_requests",
        "code": "rate_limit_exceeded",
        "message": "Your requests to the deployment have exceeded rate limit.",
        "headers": {"x-ms-fe-error": "true"},
    }
    yield sse("error", {"error": error, "sequence_number": 2})


def _story(response: JsonObject, pieces: Sequence[str], script: Script) -> Iterator[Step]:
    first = "queued" if response["background"] else "in_progress"
    yield "response.created", {"response": unfinished(response, first)}
    if response["background"]:
        yield "response.queued", {"response": unfinished(response, "queued")}
    yield "response.in_progress", {"response": unfinished(response, "in_progress")}
    said: Iterable[str] = pieces
    if script.bulk is not None:
        said = itertools.repeat(_BULK_PIECE, script.bulk * _PIECES_PER_MIB)
    for index, item in enumerate(response["output"]):
        yield from _item(index, item, said)
    if not script.nodone and response["status"] in _TERMINAL:
        yield f"response.{response['status']}", {"response": response}


def _item(index: int, item: JsonObject, pieces: Iterable[str]) -> Iterator[Step]:
    at: JsonObject = {"output_index": index}
    here = {"item_id": item["id"], **at}
    started = {**item, "status": "in_progress"}
    if item["type"] == "message":
        yield "response.output_item.added", {**at, "item": {**started, "content": []}}
        for number, part in enumerate(item["content"]):
            yield from _part({**here, "content_index": number}, part, pieces)
    elif item["type"] == "function_call":
        yield "response.output_item.added", {**at, "item": {**started, "arguments": ""}}
        for piece in pieces:
            yield "response.function_call_arguments.delta", {**here, "delta": piece}
        done = {**here, "arguments": item["arguments"], "name": item["name"]}
        yield "response.function_call_arguments.done", done
    else:
        yield "response.output_item.added", {**at, "item": started}
    yield "response.output_item.done", {**at, "item": item}


def _part(here: JsonObject, part: JsonObject, pieces: Iterable[str]) -> Iterator[Step]:
    key = "refusal" if part["type"] == "refusal" else "text"
    name = "response.refusal" if key == "refusal" else "response.output_text"
    extra: JsonObject = {} if key == "refusal" else {"logprobs": []}
    yield "response.content_part.added", {**here, "part": {**part, key: ""}}
    for piece in pieces:
        yield f"{name}.delta", {**here, "delta": piece, **extra}
    yield f"{name}.done", {**here, key: part[key], **extra}
    yield "response.content_part.done", {**here, "part": part}
