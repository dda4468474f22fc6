"""For every row of ENDPOINTS: a request that it accepts, what Azure answers, what a caller sees.

The pipeline suite runs every row through every ending; what differs between rows is here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from aisix.core.endpoints import BodyForm, EndpointSpec, Naming, UsageForm
from aisix.core.resources import Alias, ApiKey
from aisix.routing.affinity import Affinity, place_of
from aisix.transport.memory import MemoryAnswer, Step

ALIAS = "gpt-4o-azure"
SERVED = "gpt-4o-2024-08-06"
RESPONSE_ID = "resp_0123456789abcdef"
BOUNDARY = "a-boundary"
USAGE = {"prompt_tokens": 11, "completion_tokens": 4, "total_tokens": 15}
TYPED_USAGE = {"input_tokens": 11, "output_tokens": 4, "total_tokens": 15}
DONE = b"data: [DONE]\n\n"

_PROMPTS: dict[str, Any] = {
    "messages": [{"role": "user", "content": "hello"}],
    "prompt": "hello",
    "input": "hello",
}
TEXTUAL = (UsageForm.CHAT, UsageForm.COMPLETION, UsageForm.RESPONSE, UsageForm.TRANSCRIPT)
"""Their streams carry text, by which a cut one is estimated."""


def sealed(alias: Alias, key: ApiKey, id: str = RESPONSE_ID, *, seal_key: bytes = b"") -> str:
    """The id that `key` sees of a response that `alias` made."""
    deployment = alias.deployment
    place = place_of(alias, deployment, alias.name)
    return Affinity(seal_key).seal(replace(place, id=id), key)


def good_body(spec: EndpointSpec, *, stream: bool = False) -> dict[str, Any]:
    """A JSON body that `spec` accepts."""
    if spec.prompt_field is None:
        return {}
    document = {"model": ALIAS, spec.prompt_field: _PROMPTS[spec.prompt_field]}
    if stream:
        document["stream"] = True
    return document


def form(*parts: tuple[str, str, bytes]) -> bytes:
    """A multipart body: name, file name ("" for a field), content."""
    out = b""
    for name, filename, content in parts:
        file = f'; filename="{filename}"\r\nContent-Type: audio/wav' if filename else ""
        head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'
        out += head.encode() + content + b"\r\n"
    return out + f"--{BOUNDARY}--\r\n".encode()


def good_content(spec: EndpointSpec, *, stream: bool = False) -> bytes:
    """The bytes of a body that `spec` accepts."""
    if spec.body is BodyForm.FORM:
        parts = [("model", "", ALIAS.encode()), ("file", "a.wav", b"RIFF....")]
        return form(*parts, *([("stream", "", b"true")] if stream else []))
    if spec.body is BodyForm.NONE:
        return b""
    if spec.body is BodyForm.STREAM:
        return b'{"purpose":"batch"}'
    return json.dumps(good_body(spec, stream=stream)).encode()


def good_headers(spec: EndpointSpec, content: bytes = b"") -> dict[str, str]:
    """What a client says of such a body."""
    if spec.body is BodyForm.FORM:
        return {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}
    if spec.body is BodyForm.STREAM:
        length = (
            ("content-length", str(len(content))) if content else ("transfer-encoding", "chunked")
        )
        return {"content-type": "application/json", "x-aisix-model": ALIAS, **dict([length])}
    return {}


def request_fields(
    spec: EndpointSpec, *, alias: Alias, key: ApiKey, stream: bool = False
) -> dict[str, Any]:
    """The fields of a request to `spec` beside its headers and body."""
    fields: dict[str, Any] = {}
    if spec.subtree:
        fields["method"] = "POST"
    if "{model}" in spec.path:
        fields["path_name"] = alias.name
    if spec.naming is Naming.RESPONSE:
        fields["resource"] = sealed(alias, key)
        fields["query"] = "stream=true" if stream else ""
    return fields


def good_document(spec: EndpointSpec) -> dict[str, Any]:
    """What Azure answers to `spec`."""
    form = spec.usage
    if form is UsageForm.RESPONSE:
        return response()
    if form in (UsageForm.IMAGE, UsageForm.TRANSCRIPT, UsageForm.SPEECH):
        told = {"text": "hi"} if form is UsageForm.TRANSCRIPT else {"data": [{"b64_json": "AA=="}]}
        return {"model": SERVED, **told, "usage": TYPED_USAGE}
    document: dict[str, Any] = {"id": "x-1", "model": SERVED, "usage": USAGE}
    if form is UsageForm.NONE:
        return document
    if form is UsageForm.EMBEDDING:
        return {**document, "data": [{"index": 0, "embedding": [0.5]}]}
    text = {"message": {"role": "assistant", "content": "hi"}}
    choice = text if form is UsageForm.CHAT else {"text": "hi"}
    return {**document, "choices": [{"index": 0, "finish_reason": "stop", **choice}]}


def response(**fields: Any) -> dict[str, Any]:
    """A whole response, as Azure's Responses API has it."""
    content = [{"type": "output_text", "text": "hello", "annotations": []}]
    message = {"type": "message", "id": "msg_1", "role": "assistant", "content": content}
    return {
        "id": RESPONSE_ID,
        "object": "response",
        "status": "completed",
        "error": None,
        "model": SERVED,
        "output": [message],
        "previous_response_id": None,
        "usage": TYPED_USAGE,
        **fields,
    }


def shown_document(spec: EndpointSpec, *, alias: Alias, key: ApiKey) -> dict[str, Any]:
    """What a caller sees of that answer."""
    document = good_document(spec)
    if spec.body is BodyForm.STREAM:
        return document
    document["model"] = ALIAS
    if spec.usage is UsageForm.RESPONSE:
        document["id"] = sealed(alias, key)
    return document


def event(document: Mapping[str, Any], name: str | None = None) -> bytes:
    """One SSE event."""
    head = b"" if name is None else b"event: " + name.encode() + b"\n"
    return head + b"data: " + json.dumps(document).encode() + b"\n\n"


def typed(kind: str, **fields: Any) -> bytes:
    """One event that names its type, as Responses events do."""
    return event({"type": kind, **fields}, kind)


_DELTAS = {
    UsageForm.RESPONSE: ("response.output_text.delta", "delta"),
    UsageForm.TRANSCRIPT: ("transcript.text.delta", "delta"),
    UsageForm.IMAGE: ("image_generation.partial_image", "b64_json"),
    UsageForm.SPEECH: ("speech.audio.delta", "audio"),
}
_CLOSINGS = {
    UsageForm.TRANSCRIPT: "transcript.text.done",
    UsageForm.IMAGE: "image_generation.completed",
    UsageForm.SPEECH: "speech.audio.done",
}


def delta(spec: EndpointSpec, text: str, finish: str | None = None) -> bytes:
    """One event with text."""
    if spec.usage in _DELTAS:
        kind, field = _DELTAS[spec.usage]
        return typed(kind, **{field: text})
    piece = {"delta": {"content": text}} if spec.usage is UsageForm.CHAT else {"text": text}
    choice = {"index": 0, "finish_reason": finish, **piece}
    return event({"id": "x-1", "model": SERVED, "choices": [choice]})


def usage_event() -> bytes:
    """The usage chunk."""
    return event({"id": "x-1", "model": SERVED, "choices": [], "usage": USAGE})


def last_event(spec: EndpointSpec) -> bytes:
    """The event after which an answer is complete, by its own account."""
    if spec.usage is UsageForm.RESPONSE:
        return typed("response.completed", response=response())
    if spec.usage in _CLOSINGS:
        return typed(_CLOSINGS[spec.usage], model=SERVED, usage=TYPED_USAGE)
    return delta(spec, "", "stop")


def ending(spec: EndpointSpec) -> list[Step]:
    """How a stream ends well."""
    if spec.usage in _DELTAS:
        return [last_event(spec)]
    return [last_event(spec), usage_event(), DONE]


def good_answer(spec: EndpointSpec, *, stream: bool) -> MemoryAnswer:
    """Azure's answer, whole or streamed."""
    if stream:
        return streamed([delta(spec, "hel"), delta(spec, "lo"), *ending(spec)])
    return MemoryAnswer(
        headers={"content-type": "application/json", "apim-request-id": "apim-1"},
        pieces=[json.dumps(good_document(spec)).encode()],
    )


def streamed(pieces: Sequence[Step]) -> MemoryAnswer:
    """A stream of these pieces."""
    return MemoryAnswer(
        headers={"content-type": "text/event-stream", "apim-request-id": "apim-1"}, pieces=pieces
    )


def refused(status: int, error: Any, **headers: str) -> MemoryAnswer:
    """An error of Azure."""
    return MemoryAnswer(
        status=status,
        headers={"content-type": "application/json", **headers},
        pieces=[json.dumps({"error": error}).encode()],
    )
