"""The JSON bodies of successful answers, in Azure's shape.

Chat, completions, embeddings and model lists. `model` is always the underlying snapshot, never
the deployment name. The shapes validate against Microsoft's published document (see tests/data),
except where the wire itself departs from it (base64 embeddings). Pure: ids and times come in
with `Identity`.
"""

from __future__ import annotations

import base64
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from aisix.simulator.content import (
    DEFAULT_DIMENSIONS,
    Choice,
    Composition,
    JsonObject,
    ToolCall,
    prompts_of,
    sound,
    tokens_of,
    vector,
)
from aisix.simulator.script import Script

_SEVERITIES = ("hate", "self_harm", "sexual", "violence")
_LOGPROB = -0.0078125
_AUDIO_LIVES_S = 3600


@dataclass(frozen=True, slots=True)
class Identity:
    """What names one answer."""

    id: str
    created: int
    served_model: str
    fingerprint: str


def prompt_filter(*, filtered: str | None = None) -> JsonObject:
    """Content filter results of a prompt; `filtered` is the category that struck."""
    return {**_severities(filtered), "jailbreak": {"detected": False, "filtered": False}}


def choice_filter(*, filtered: str | None = None) -> JsonObject:
    """Content filter results of an output."""
    return {
        **_severities(filtered),
        "protected_material_code": {"detected": False, "filtered": False},
        "protected_material_text": {"detected": False, "filtered": False},
    }


def _severities(filtered: str | None) -> JsonObject:
    return {
        name: {"filtered": name == filtered, "severity": "high" if name == filtered else "safe"}
        for name in _SEVERITIES
    }


def prompt_filter_results(prompts: int = 1) -> list[JsonObject]:
    """The top-level list that Azure adds to answers."""
    return [{"content_filter_results": prompt_filter(), "prompt_index": i} for i in range(prompts)]


def chat_answer(
    body: JsonObject, composition: Composition, *, script: Script, identity: Identity
) -> JsonObject:
    """The body of a chat answer that is not streamed."""
    answer: JsonObject = {
        "choices": [
            _chat_choice(i, choice, body=body, identity=identity)
            for i, choice in enumerate(composition.choices)
        ],
        "created": identity.created,
        "id": identity.id,
        "model": identity.served_model,
        "object": "chat.completion",
        "prompt_filter_results": prompt_filter_results(),
        "system_fingerprint": identity.fingerprint,
        "usage": composition.usage,
    }
    return _trimmed(answer, script)


def _chat_choice(index: int, choice: Choice, *, body: JsonObject, identity: Identity) -> JsonObject:
    message: JsonObject = {"role": "assistant", "content": choice.text, "refusal": None}
    if choice.refusal:
        message |= {"content": None, "refusal": choice.text}
    elif choice.tool_call is not None:
        message |= {"content": None, "tool_calls": [tool_call(choice.tool_call)]}
    elif choice.finish_reason == "content_filter":
        message["content"] = None
    elif choice.spoken:
        said = {"data": sound(len(choice.pieces)), "transcript": choice.text}
        message |= {"content": None, "audio": {**audio_head(index, identity), **said}}
    wanted = body.get("logprobs") is True and choice.tool_call is None
    return {
        "content_filter_results": choice_filter(filtered=filtered_category(choice)),
        "finish_reason": choice.finish_reason,
        "index": index,
        "logprobs": chat_logprobs(choice.pieces, body) if wanted else None,
        "message": message,
    }


def audio_head(index: int, identity: Identity) -> JsonObject:
    """What a spoken answer is called, and how long it can be referred to."""
    name = f"audio_{identity.id.rpartition('-')[2]}_{index}"
    return {"id": name, "expires_at": identity.created + _AUDIO_LIVES_S}


def filtered_category(choice: Choice) -> str | None:
    """Which filter category the simulator says struck, when one did."""
    return "violence" if choice.finish_reason == "content_filter" else None


def tool_call(call: ToolCall) -> JsonObject:
    """A tool call as it stands in a message."""
    function = {"arguments": call.arguments, "name": call.name}
    return {"function": function, "id": call.id, "type": "function"}


def chat_logprobs(pieces: Iterable[str], body: JsonObject) -> JsonObject:
    """The `logprobs` object of a chat choice or delta."""
    top = body.get("top_logprobs") or 0
    entries = [_logprob(piece, _LOGPROB) for piece in pieces]
    for entry in entries:
        entry["top_logprobs"] = [
            _logprob(entry["token"], _LOGPROB - rank) for rank in range(int(top))
        ]
    return {"content": entries, "refusal": None}


def _logprob(token: str, logprob: float) -> JsonObject:
    return {"bytes": list(token.encode(errors="replace")), "logprob": logprob, "token": token}


def text_answer(
    body: JsonObject, composition: Composition, *, script: Script, identity: Identity
) -> JsonObject:
    """The body of a completions answer that is not streamed."""
    choices = [
        text_choice(
            i,
            choice.text,
            body=body,
            finish=choice.finish_reason,
            category=filtered_category(choice),
        )
        for i, choice in enumerate(composition.choices)
    ]
    return _trimmed({**text_envelope(identity, choices, body), "usage": composition.usage}, script)


def text_envelope(identity: Identity, choices: list[JsonObject], body: JsonObject) -> JsonObject:
    """The object of completions, streamed or not, around its choices."""
    return {
        "choices": choices,
        "created": identity.created,
        "id": identity.id,
        "model": identity.served_model,
        "object": "text_completion",
        "prompt_filter_results": prompt_filter_results(len(prompts_of(body.get("prompt")))),
    }


def text_choice(
    index: int, text: str, *, body: JsonObject, finish: str | None, category: str | None = None
) -> JsonObject:
    """One choice of completions."""
    logprobs = None
    if body.get("logprobs") is not None:
        logprobs = {
            "text_offset": [0],
            "token_logprobs": [_LOGPROB],
            "tokens": [text],
            "top_logprobs": [{text: _LOGPROB}],
        }
    return {
        "content_filter_results": choice_filter(filtered=category),
        "finish_reason": finish,
        "index": index,
        "logprobs": logprobs,
        "text": text,
    }


def embeddings_answer(body: JsonObject, served_model: str) -> JsonObject:
    """The body of an embeddings answer; vectors follow from the input alone."""
    prompts = prompts_of(body["input"])
    dimensions = body.get("dimensions") or DEFAULT_DIMENSIONS
    as_text = body.get("encoding_format") == "base64"
    tokens = sum(tokens_of(prompt) for prompt in prompts)
    return {
        "data": [
            {
                "embedding": _embedding(prompt, dimensions, as_text=as_text),
                "index": index,
                "object": "embedding",
            }
            for index, prompt in enumerate(prompts)
        ],
        "model": served_model,
        "object": "list",
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def _embedding(prompt: str | list[int], dimensions: int, *, as_text: bool) -> str | list[float]:
    values = vector(prompt, dimensions)
    if not as_text:
        return values.tolist()
    if sys.byteorder == "big":
        values.byteswap()  # the wire is little-endian
    return base64.b64encode(values.tobytes()).decode()


def models_answer(served_models: Iterable[str], created: int) -> JsonObject:
    """The body of `GET …/models`: base models, not deployments, as Azure lists them."""
    return {
        "data": [
            {
                "capabilities": {
                    "chat_completion": not name.startswith("text-embedding"),
                    "completion": name.startswith("gpt-35-turbo-instruct"),
                    "embeddings": name.startswith("text-embedding"),
                    "fine_tune": False,
                    "inference": True,
                },
                "created": created,
                "id": name,
                "lifecycle_status": "generally-available",
                "object": "model",
                "owned_by": "azure-openai",
                "status": "succeeded",
            }
            for name in sorted(set(served_models))
        ],
        "object": "list",
    }


def _trimmed(answer: JsonObject, script: Script) -> JsonObject:
    if script.nousage:
        del answer["usage"]
    return without_extensions(answer) if script.plain else answer


def without_extensions(answer: dict[str, Any]) -> JsonObject:
    """The same answer as OpenAI itself would send it."""
    answer.pop("prompt_filter_results", None)
    for choice in answer["choices"]:
        choice.pop("content_filter_results", None)
    return answer
