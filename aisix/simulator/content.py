"""What the simulated model says: request body in, pieces of text and token counts out.

The words are an echo, so a test can foretell them: the same request always gets the same answer,
streamed or not. One piece is one token and, in a stream, one delta. Prompt tokens are estimated
at four characters each. Pure.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import math
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aisix.simulator.script import Script

GREETING = "Hello from Azure OpenAI!"
_REFUSAL = "I'm sorry, I can't help with that."
_ECHO_CHARACTERS = 400
_REASONING_TOKENS = 64
_CHARACTERS_PER_TOKEN = 4
_IMAGE_TOKENS = 85
_AUDIO_PART_TOKENS = 100
_AUDIO_TOKENS_PER_PIECE = 5
_SOUND_BYTES_PER_PIECE = 480
DEFAULT_DIMENSIONS = 1536

JsonObject = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call of a tool: its id, name and arguments (a JSON text)."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One choice of an answer."""

    pieces: tuple[str, ...]
    finish_reason: str
    tool_call: ToolCall | None = None
    refusal: bool = False
    spoken: bool = False  # said as audio; the text is its transcript

    @property
    def text(self) -> str:
        """The pieces joined."""
        return "".join(self.pieces)


@dataclass(frozen=True, slots=True)
class Composition:
    """All that is said in answer to one request, before it takes a wire form."""

    choices: tuple[Choice, ...]
    usage: JsonObject
    prompt_characters: int


def compose_chat(body: JsonObject, script: Script) -> Composition:
    """The answer to a chat request that has passed the checks."""
    messages: Sequence[Any] = body["messages"]
    characters = sum(message_characters(m) for m in messages)
    asked = next((m for m in reversed(messages) if _role(m) == "user"), messages[-1])
    said = _say(body, script, text_of(asked))
    heard = sum(_parts(m, "input_audio") for m in messages) * _AUDIO_PART_TOKENS
    return _compose(body, script, characters, said, audio_tokens=heard)


def compose_text(body: JsonObject, script: Script) -> Composition:
    """The answer to a completions request that has passed the checks."""
    prompts = prompts_of(body.get("prompt"))
    characters = sum(_CHARACTERS_PER_TOKEN * tokens_of(p) for p in prompts)
    text = prompts[0] if isinstance(prompts[0], str) else ""
    pieces = echo(text, script)
    if body.get("echo") is True and text:
        pieces = (text, *pieces)
    return _compose(body, script, characters, (pieces, None, "stop"), prompts=len(prompts))


def _say(
    body: JsonObject, script: Script, asked: str
) -> tuple[tuple[str, ...], ToolCall | None, str]:
    if script.refuse:
        return _pieces(_REFUSAL), None, "stop"
    called = _called_tool(body, script)
    if called is not None:
        name, parameters, end = called
        arguments = json.dumps(sample(parameters))
        digest = hashlib.sha256(f"{name}{asked}".encode(errors="replace")).hexdigest()
        return _pieces(arguments), ToolCall(f"call_{digest[:24]}", name, arguments), end
    wanted = body.get("response_format")
    kind = wanted.get("type") if isinstance(wanted, dict) else None
    if kind == "json_schema":
        named = (wanted or {}).get("json_schema")
        schema = named.get("schema") if isinstance(named, dict) else None
        return _pieces(json.dumps(sample(schema or {}))), None, "stop"
    if kind == "json_object":
        return _pieces(json.dumps({"reply": GREETING})), None, "stop"
    return echo(asked, script), None, "stop"


def _compose(
    body: JsonObject,
    script: Script,
    characters: int,
    said: tuple[tuple[str, ...], ToolCall | None, str],
    *,
    prompts: int = 1,
    audio_tokens: int = 0,
) -> Composition:
    pieces, call, end = said
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    if isinstance(limit, int) and limit < len(pieces) and call is None:
        pieces, end = pieces[:limit], "length"
    if script.filtered:
        pieces, call, end = (), None, "content_filter"
    count = (body.get("n") or 1) * prompts
    choices = tuple(
        Choice(
            pieces=pieces if i == 0 or call is not None else (*pieces, f" ({i + 1})"),
            finish_reason=end,
            tool_call=call,
            refusal=script.refuse,
            spoken=wants_audio(body) and call is None and not script.refuse,
        )
        for i in range(count)
    )
    usage = _usage(characters, choices, script, audio_tokens=audio_tokens)
    return Composition(choices, usage, characters)


def _usage(
    characters: int, choices: Sequence[Choice], script: Script, *, audio_tokens: int
) -> JsonObject:
    prompt = tokens_for(characters)
    reasoning = _REASONING_TOKENS if script.reasoning else 0
    spoken = sum(len(c.pieces) for c in choices if c.spoken) * _AUDIO_TOKENS_PER_PIECE
    completion = sum(len(choice.pieces) for choice in choices) + reasoning + spoken
    return {
        "completion_tokens": completion,
        "completion_tokens_details": {
            "accepted_prediction_tokens": 0,
            "audio_tokens": spoken,
            "reasoning_tokens": reasoning,
            "rejected_prediction_tokens": 0,
        },
        "prompt_tokens": prompt,
        "prompt_tokens_details": {
            "audio_tokens": audio_tokens,
            "cached_tokens": min(script.cached or 0, prompt),
        },
        "total_tokens": prompt + completion,
    }


def wants_audio(body: JsonObject) -> bool:
    """Whether a chat request asks for a spoken answer."""
    modalities = body.get("modalities")
    return isinstance(modalities, list) and "audio" in modalities


def sound(pieces: int) -> str:
    """The audio of so many pieces, in base64."""
    return base64.b64encode(b"".join(filler(pieces * _SOUND_BYTES_PER_PIECE))).decode()


def _called_tool(body: JsonObject, script: Script) -> tuple[str, JsonObject, str] | None:
    """The tool to call, its parameters and how the choice then ends; None to talk instead."""
    tools = [t["function"] for t in body.get("tools") or [] if isinstance(t.get("function"), dict)]
    choice = body.get("tool_choice")
    if isinstance(choice, dict):
        named = choice.get("function")
        name = named.get("name") if isinstance(named, dict) else None
        tools = [t for t in tools if t.get("name") == name]
        end = "stop"  # what the API says for a call that was forced by name
    elif script.tools or choice == "required":
        end = "tool_calls"
    else:
        return None
    if not tools:
        return ("simulated_tool", {}, end) if script.tools else None
    return str(tools[0].get("name")), tools[0].get("parameters") or {}, end


def echo(asked: str, script: Script) -> tuple[str, ...]:
    """The usual answer to a text, in the count and size of pieces that the script wants."""
    return _shape(_words(asked), script)


def _words(asked: str) -> tuple[str, ...]:
    if not asked:
        return _pieces(GREETING)
    shortened = asked[:_ECHO_CHARACTERS] + ("…" if len(asked) > _ECHO_CHARACTERS else "")
    return _pieces(f"{GREETING} You said: {shortened}")


def _pieces(text: str) -> tuple[str, ...]:
    """The text cut before each space, so that the pieces joined are the text again."""
    first, *rest = text.split(" ")
    return (first, *(f" {word}" for word in rest))


def _shape(pieces: tuple[str, ...], script: Script) -> tuple[str, ...]:
    """Make the count and size of the pieces what the script wants."""
    if script.n is not None:
        spaced = itertools.chain(pieces, itertools.cycle((" " + pieces[0], *pieces[1:])))
        pieces = tuple(itertools.islice(spaced, script.n))
    if script.size is not None:
        pieces = tuple(
            (piece * math.ceil(script.size / len(piece)))[: script.size] for piece in pieces
        )
    return pieces


# --- counting -----------------------------------------------------------------------------------


def tokens_for(characters: int) -> int:
    """An estimate, four characters each, at least one."""
    return max(1, math.ceil(characters / _CHARACTERS_PER_TOKEN))


def tokens_of(prompt: str | list[int]) -> int:
    """Tokens of a text, or of tokens already cut."""
    return tokens_for(len(prompt)) if isinstance(prompt, str) else len(prompt)


def prompts_of(given: Any) -> list[str | list[int]]:
    """`prompt` or `input` in any of its forms, as a list of texts or token lists."""
    if isinstance(given, str):
        return [given]
    if isinstance(given, list) and given:
        return [given] if isinstance(given[0], int) else given
    return [""]


def message_characters(message: Any) -> int:
    """The characters of one message that count; an image is 85 tokens, a recording 100."""
    content = message.get("content") if isinstance(message, dict) else None
    if isinstance(content, str):
        return len(content)
    if not isinstance(content, list):
        return 0
    tokens = _parts(message, "image_url") * _IMAGE_TOKENS
    tokens += _parts(message, "input_audio") * _AUDIO_PART_TOKENS
    return len(text_of(message)) + tokens * _CHARACTERS_PER_TOKEN


def _parts(message: Any, kind: str) -> int:
    """How many parts of a kind one message has."""
    content = message.get("content") if isinstance(message, dict) else None
    parts = content if isinstance(content, list) else []
    return sum(int(isinstance(part, dict) and part.get("type") == kind) for part in parts)


def text_of(message: Any) -> str:
    """The text parts of one message, joined."""
    content = message.get("content") if isinstance(message, dict) else None
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    texts = (p.get("text") for p in content if isinstance(p, dict) and p.get("type") == "text")
    return " ".join(text for text in texts if isinstance(text, str))


def _role(message: Any) -> Any:
    return message.get("role") if isinstance(message, dict) else None


# --- JSON by schema, filler, vectors --------------------------------------------------------------

_SAMPLES: Mapping[str, Any] = {"string": "text", "integer": 1, "number": 1.5, "boolean": True}
_DEEPEST = 8
_FILLER_BYTES = 64 * 1024
_FILLER = bytes(range(256)) * (_FILLER_BYTES // 256 + 1)


def sample(schema: Any, root: Any = None, depth: int = 0) -> Any:
    """A small value that the JSON schema allows (the common keywords)."""
    root = schema if root is None else root
    if not isinstance(schema, dict) or depth > _DEEPEST:
        return None
    if "$ref" in schema:
        return sample(_refer(root, str(schema["$ref"])), root, depth + 1)
    for key in ("const", "default"):
        if key in schema:
            return schema[key]
    for key in ("enum", "anyOf", "oneOf", "allOf"):
        options = schema.get(key)
        if isinstance(options, list) and options:
            return options[0] if key == "enum" else sample(options[0], root, depth + 1)
    kind = schema.get("type", "object")
    if isinstance(kind, list):
        kind = kind[0] if kind else "null"
    if kind == "object":
        properties = schema.get("properties") or {}
        return {name: sample(inner, root, depth + 1) for name, inner in properties.items()}
    if kind == "array":
        return [sample(schema["items"], root, depth + 1)] if "items" in schema else []
    return _SAMPLES.get(str(kind))


def _refer(root: Any, reference: str) -> Any:
    target = root
    for part in reference.removeprefix("#").split("/")[1:]:
        target = target.get(part) if isinstance(target, dict) else None
    return target


def filler(length: int, piece_bytes: int = _FILLER_BYTES) -> Iterator[bytes]:
    """Bytes that stand for a file, in pieces: the one at offset n is n modulo 256."""
    step = max(1, min(piece_bytes, _FILLER_BYTES))
    for at in range(0, length, step):
        start = at % 256
        yield _FILLER[start : start + min(step, length - at)]


def vector(prompt: str | list[int], dimensions: int) -> array[float]:
    """A unit vector that depends on nothing but the input."""
    text = prompt if isinstance(prompt, str) else json.dumps(prompt)
    noise = array("h", hashlib.shake_256(text.encode(errors="replace")).digest(2 * dimensions))
    length = math.sqrt(math.fsum(x * x for x in noise)) or 1.0
    return array("f", (x / length for x in noise))
