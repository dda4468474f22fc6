"""Reads tokens out of an answer as it passes, and estimates them when none are reported. Pure.

Azure may put usage on any chunk, on several, or (cut stream, old api-version) on none: every
non-null block is merged by the larger count. Text is counted until usage is reported: nothing else
shows whether it is needed. Nothing an upstream sends makes the meter fail: what it cannot read it
skips.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aisix.core.endpoints import EndpointSpec, UsageForm
from aisix.core.exchange import Usage, merge_usage

_BYTES_PER_TOKEN = 4
_MAX_TOKENS = 2**53
"""Counts beyond this are junk, and would not survive every reader of JSON."""


class UsageMeter:
    """The meter of one exchange (port `Meter`).

    `served_model` is the first model name the answer carried, `finish_reason` the last one.
    """

    def __init__(self, spec: EndpointSpec) -> None:
        self._form = spec.usage
        self._reported: Usage | None = None
        self._text_bytes = 0
        self.served_model: str | None = None
        self.finish_reason: str | None = None

    def observe(self, document: Mapping[str, Any], /) -> None:
        """Take in one JSON answer, or the JSON of one stream event."""
        if self.served_model is None:
            model = document.get("model")
            if isinstance(model, str) and model:
                self.served_model = model
        if self._form is UsageForm.NONE:
            return
        block = document.get("usage")
        if block is not None:
            seen = parse_usage(block)
            if seen is not None:
                self._reported = merge_usage(self._reported, seen)
        choices = document.get("choices")
        if isinstance(choices, list):
            for choice in choices:
                if isinstance(choice, dict):
                    reason = choice.get("finish_reason")
                    if reason and isinstance(reason, str):
                        self.finish_reason = reason
                    if self._reported is None:
                        self._text_bytes += _choice_bytes(choice)

    def observe_text(self, size_bytes: int, /) -> None:
        """Take in so many more bytes of UTF-8 that the model wrote."""
        self._text_bytes += size_bytes

    def usage(self, prompt_estimate_tokens: int) -> Usage:
        """What was reported, else an estimate from the text that came."""
        if self._reported is not None:
            return self._reported
        completion = -(-self._text_bytes // _BYTES_PER_TOKEN)
        return Usage(
            prompt_tokens=prompt_estimate_tokens,
            completion_tokens=completion,
            total_tokens=prompt_estimate_tokens + completion,
            estimated=True,
        )


def parse_usage(block: Any) -> Usage | None:
    """A usage block of chat, completions or embeddings; None when it counts nothing."""
    if not isinstance(block, dict):
        return None
    prompt = _count(block.get("prompt_tokens"))
    completion = _count(block.get("completion_tokens"))
    total = _count(block.get("total_tokens"))
    if prompt is None and completion is None and total is None:
        return None
    prompt = prompt or 0
    completion = completion or 0
    cached = _count(_member(block.get("prompt_tokens_details"), "cached_tokens")) or 0
    reasoning = _count(_member(block.get("completion_tokens_details"), "reasoning_tokens")) or 0
    return Usage(prompt, completion, total or prompt + completion, cached, reasoning)


def _count(value: Any) -> int | None:
    """`value` when it is a token count (true and false are none)."""
    return value if type(value) is int and 0 <= value < _MAX_TOKENS else None


def _choice_bytes(choice: Mapping[str, Any]) -> int:
    """UTF-8 bytes of all that the model wrote in a choice, whole or streamed."""
    text = choice.get("text")
    count = _text_bytes(text) if text else 0
    for name in ("delta", "message"):
        message = choice.get(name)
        if message and isinstance(message, dict):
            count += _message_bytes(message)
    return count


def _message_bytes(message: Mapping[str, Any]) -> int:
    """UTF-8 bytes of all that the model wrote in a delta or message."""
    count = 0
    if content := message.get("content"):
        count += _text_bytes(content)
    if refusal := message.get("refusal"):
        count += _text_bytes(refusal)
    # Some servers spell the same reasoning under both names.
    if reasoning := message.get("reasoning_content") or message.get("reasoning"):
        count += _text_bytes(reasoning)
    if call := message.get("function_call"):
        count += _text_bytes(_member(call, "arguments"))
    calls = message.get("tool_calls")
    if calls and isinstance(calls, list):
        for call in calls:
            count += _text_bytes(_member(_member(call, "function"), "arguments"))
            count += _text_bytes(_member(_member(call, "custom"), "input"))
    return count


def _text_bytes(text: Any) -> int:
    """UTF-8 bytes of a text, or of the text parts of a list of content parts."""
    if isinstance(text, str):
        return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
    if isinstance(text, list):
        parts = (_member(item, "text") for item in text)
        return sum(_text_bytes(part) for part in parts if isinstance(part, str))
    return 0


def _member(holder: Any, name: str) -> Any:
    return holder.get(name) if isinstance(holder, dict) else None
