"""What the resource refuses about a request's body and headers.

Only the refusals that the service is known for, in its words; a body that passes is safe to
compose an answer from. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from aisix.simulator import faults
from aisix.simulator.content import (
    JsonObject,
    message_characters,
    prompts_of,
    tokens_for,
    tokens_of,
    wants_audio,
)
from aisix.simulator.faults import Fault
from aisix.simulator.operations import FORM, JSON, Operation
from aisix.simulator.script import HEADER, Script

if TYPE_CHECKING:
    from aisix.simulator.exchange import Inbound

MALFORMED = object()  # stands for a body that is not JSON

_STREAM_OPTIONS_SINCE = "2024-09-01"
_MOST_MESSAGES = 2048
_MOST_INPUTS = 2048
_MOST_TOOLS = 128
_MOST_DIMENSIONS = 3072
_MOST_CUSTOM_HEADERS = 10
_OWN_HEADERS = ("x-stainless-", "x-ms-", HEADER)
_REASONING_REFUSES = (
    "temperature",
    "top_p",
    "presence_penalty",
    "frequency_penalty",
    "logprobs",
    "top_logprobs",
    "logit_bias",
)
_RANGES: Mapping[str, tuple[float, float]] = {
    "temperature": (0, 2),
    "top_p": (0, 1),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
    "n": (1, 128),
    "max_tokens": (1, 2**31),
    "max_completion_tokens": (1, 2**31),
    "top_logprobs": (0, 20),
}
_INTEGERS = frozenset({"n", "max_tokens", "max_completion_tokens", "top_logprobs"})

Check = Callable[[JsonObject, Script, int], Fault | None]


def custom_headers(headers: Mapping[str, str]) -> Fault | None:
    """431 for more than ten custom headers: what a gateway must not pass along."""
    custom = sum(name.startswith("x-") and not name.startswith(_OWN_HEADERS) for name in headers)
    return (
        faults.CATALOGUE["headers"][1](faults.Occasion()) if custom > _MOST_CUSTOM_HEADERS else None
    )


def check(
    inbound: Inbound, operation: Operation, script: Script, *, context_tokens: int
) -> Fault | None:
    """The first thing wrong with a request's body, or None."""
    if operation.body == FORM:
        return _form(inbound, operation)
    return _json(inbound, operation, script, context_tokens) if operation.body == JSON else None


def _form(inbound: Inbound, operation: Operation) -> Fault | None:
    form = inbound.form
    if form is None:
        kind = inbound.headers.get("content-type", "")
        return faults.invalid(
            f"Invalid content type: expected 'multipart/form-data', got '{kind}'."
        )
    if form.problem:
        return faults.invalid(f"Could not parse multipart form: {form.problem}")
    if inbound.place.v1 and operation.deployment and form.value("model") is None:
        return faults.invalid("you must provide a model parameter")
    return None


def _json(
    inbound: Inbound, operation: Operation, script: Script, context_tokens: int
) -> Fault | None:
    body = inbound.json
    if body is MALFORMED:
        return faults.invalid("We could not parse the JSON body of your request.")
    if not isinstance(body, dict):
        return faults.invalid("The JSON body of your request must be an object.")
    if operation.deployment and not inbound.place.deployment:
        return faults.invalid("you must provide a model parameter")
    own = _BY_OPERATION.get(operation.path)
    if own is None:
        return None
    return (
        _stream_options(inbound, script)
        or _ranges(body)
        or _reasoning(body, script)
        or own(body, script, script.ctx or context_tokens)
    )


def _stream_options(inbound: Inbound, script: Script) -> Fault | None:
    body: JsonObject = inbound.json
    stream, options = body.get("stream"), body.get("stream_options")
    if not isinstance(stream, bool | None):
        return faults.invalid(f"{stream!r} is not of type 'boolean' - 'stream'", param="stream")
    if options is None:
        return None
    version = inbound.query.get("api-version", "")
    dated_before = version[:1].isdigit() and version < _STREAM_OPTIONS_SINCE
    if script.oldapi and inbound.place.compatible:
        return faults.extra_forbidden("stream_options", options)
    if script.oldapi or (dated_before and not inbound.place.v1):
        return faults.unrecognized("stream_options")
    if not isinstance(options, dict):
        message = f"{options!r} is not of type 'object' - 'stream_options'"
        return faults.invalid(message, param="stream_options")
    if stream is not True:
        message = "The 'stream_options' parameter is only allowed when 'stream' is enabled."
        return faults.invalid(message, param="stream_options")
    return None


def _ranges(body: JsonObject) -> Fault | None:
    for name, (least, most) in _RANGES.items():
        value = body.get(name)
        if value is None:
            continue
        kind = "integer" if name in _INTEGERS else "number"
        allowed = int if name in _INTEGERS else (int, float)
        if isinstance(value, bool) or not isinstance(value, allowed):
            return faults.invalid(f"{value!r} is not of type '{kind}' - '{name}'", param=name)
        if value < least:
            return faults.invalid(
                f"{value} is less than the minimum of {least} - '{name}'", param=name
            )
        if value > most:
            message = f"{value} is greater than the maximum of {most} - '{name}'"
            return faults.invalid(message, param=name)
    return None


def _reasoning(body: JsonObject, script: Script) -> Fault | None:
    if not script.reasoning:
        return None
    if body.get("max_tokens") is not None:
        return faults.unsupported("max_tokens", "max_completion_tokens")
    refused = next((name for name in _REASONING_REFUSES if body.get(name) is not None), None)
    return faults.unsupported(refused) if refused else None


def _chat(body: JsonObject, script: Script, context_tokens: int) -> Fault | None:
    if "messages" not in body:
        return faults.invalid("'messages' is a required property")
    messages = body["messages"]
    if messages is None:  # the service really answers 500 here
        return faults.CATALOGUE["server"][1](faults.Occasion())
    if not isinstance(messages, list):
        return faults.invalid(
            f"{_kind(messages)} is not of type 'array' - 'messages'", param="messages"
        )
    if not messages:
        return faults.invalid("[] is too short - 'messages'", param="messages")
    if len(messages) > _MOST_MESSAGES:
        return faults.invalid("too many messages - 'messages'", param="messages")
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            where = f"messages.{index}"
            return faults.invalid(f"'role' is a required property - '{where}'", param="messages")
    problem = _tools(body) or _audio(body)
    if problem is not None:
        return problem
    return _context(tokens_for(sum(map(message_characters, messages))), context_tokens)


def _tools(body: JsonObject) -> Fault | None:
    tools = body.get("tools")
    if tools is None:
        if body.get("tool_choice") not in (None, "none"):
            message = "'tool_choice' is only allowed when 'tools' are specified."
            return faults.invalid(message, param="tool_choice")
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        return faults.invalid("'tools' must be an array of objects", param="tools")
    if not 1 <= len(tools) <= _MOST_TOOLS:
        return faults.invalid(f"'tools' must hold 1 to {_MOST_TOOLS} entries", param="tools")
    return None


def _audio(body: JsonObject) -> Fault | None:
    if not wants_audio(body):
        return None
    wanted = body.get("audio")
    if not isinstance(wanted, dict):
        return faults.missing("audio")
    if body.get("stream") is True and wanted.get("format") != "pcm16":
        return faults.unacceptable("audio.format", wanted.get("format"), "pcm16")
    return None


def _text(body: JsonObject, script: Script, context_tokens: int) -> Fault | None:
    if body.get("prompt") is None:
        return faults.invalid("'prompt' is a required property")
    problem = _prompts(body["prompt"], "prompt")
    if problem is not None:
        return problem
    return _context(sum(map(tokens_of, prompts_of(body["prompt"]))), context_tokens)


def _embeddings(body: JsonObject, script: Script, context_tokens: int) -> Fault | None:
    if body.get("input") is None:
        return faults.invalid("'input' is a required property")
    problem = _prompts(body["input"], "input")
    if problem is not None:
        return problem
    if body.get("encoding_format") not in (None, "float", "base64"):
        message = "'encoding_format' must be 'float' or 'base64'"
        return faults.invalid(message, param="encoding_format")
    dimensions = body.get("dimensions")
    whole = isinstance(dimensions, int) and not isinstance(dimensions, bool)
    if dimensions is not None and not (whole and 1 <= dimensions <= _MOST_DIMENSIONS):
        message = f"'dimensions' must be from 1 to {_MOST_DIMENSIONS}"
        return faults.invalid(message, param="dimensions")
    return _context(max(map(tokens_of, prompts_of(body["input"]))), context_tokens)


def _prompts(given: Any, param: str) -> Fault | None:
    """Refuses what is neither a text, texts, tokens, nor lists of tokens."""
    entries = prompts_of(given) if isinstance(given, str | list) else []
    if given in ("", []) or not entries or not all(map(_is_prompt, entries)):
        return faults.invalid(f"'{param}' cannot be an empty string or of that type", param=param)
    if len(entries) > _MOST_INPUTS:
        return faults.invalid(f"'{param}' holds more than {_MOST_INPUTS} entries", param=param)
    return None


def _is_prompt(entry: Any) -> bool:
    if isinstance(entry, str):
        return True
    return isinstance(entry, list) and bool(entry) and all(isinstance(t, int) for t in entry)


def _context(tokens: int, limit: int) -> Fault | None:
    return faults.context_length(limit, tokens) if tokens > limit else None


def _kind(value: object) -> str:
    return repr(value)[:80]


_BY_OPERATION: Mapping[str, Check] = {
    "chat/completions": _chat,
    "completions": _text,
    "embeddings": _embeddings,
}
