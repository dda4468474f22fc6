"""Reads tokens out of an answer as it passes, and estimates them when none are reported. Pure.

Azure may put usage on any chunk, on several, or (cut stream, old api-version) on none: every
non-null block is merged by the larger count. Text is counted until usage is reported: nothing else
shows whether it is needed. Nothing an upstream sends makes the meter fail: what it cannot read it
skips.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeGuard

from aisix.core.endpoints import EndpointSpec, UsageForm
from aisix.core.exchange import Usage, merge_usage

_BYTES_PER_TOKEN = 4
_TYPED = frozenset({UsageForm.RESPONSE, UsageForm.TRANSCRIPT, UsageForm.SPEECH, UsageForm.IMAGE})
_PROMPT_DETAILS = ("prompt_tokens_details", "input_tokens_details", "input_token_details")
_COMPLETION_DETAILS = (
    "completion_tokens_details",
    "output_tokens_details",
    "output_token_details",
)
_UNFINISHED = frozenset({"queued", "in_progress"})
_MAX_TOKENS = 2**53
"""Counts beyond this are junk, and would not survive every reader of JSON."""


class UsageMeter:
    """The meter of one exchange (port `Meter`).

    `served_model` is the first model name the answer carried, `finish_reason` the last one.
    """

    def __init__(self, spec: EndpointSpec) -> None:
        self._form = spec.usage
        self._counts = spec.counts
        self._reported: Usage | None = None
        self._text_bytes = 0
        self._background = False
        self.served_model: str | None = None
        self.finish_reason: str | None = None

    @property
    def unfinished(self) -> bool:
        """Whether the work goes on behind the answer: a background response. Any other that is left
        in the middle is given up by the upstream."""
        return self._counts and self._background and self.finish_reason in _UNFINISHED

    def observe(self, document: Mapping[str, Any], /) -> None:
        """Take in one JSON answer, or the JSON of one stream event."""
        response = document.get("response")
        streamed = isinstance(response, dict)  # an event about a whole response
        if isinstance(response, dict):
            document = response
        if self.served_model is None:
            model = document.get("model")
            if isinstance(model, str) and model:
                self.served_model = model
        if not self._counts:
            return
        block = document.get("usage")
        if block is not None:
            seen = parse_usage(block)
            if seen is not None:
                self._reported = merge_usage(self._reported, seen)
        choices = document.get("choices")
        if isinstance(choices, list):
            self._observe_choices(choices)
        elif self._form in _TYPED:
            self._observe_typed(document, streamed=streamed)

    def observe_text(self, size_bytes: int, /) -> None:
        """Take in so many more bytes of UTF-8 that the model wrote."""
        self._text_bytes += size_bytes

    def usage(self, prompt_estimate_tokens: int) -> Usage:
        """What was reported, else an estimate from the text that came."""
        if not self._counts:
            return Usage()
        if self._reported is not None:
            return self._reported
        if self._form is UsageForm.NONE:
            return Usage()  # nothing was reported of what uses no model
        completion = estimated_tokens(self._text_bytes)
        return Usage(
            prompt_tokens=prompt_estimate_tokens,
            completion_tokens=completion,
            total_tokens=prompt_estimate_tokens + completion,
            estimated=True,
        )

    def _observe_choices(self, choices: list[Any]) -> None:
        for choice in choices:
            if isinstance(choice, dict):
                reason = choice.get("finish_reason")
                if reason and isinstance(reason, str):
                    self.finish_reason = reason
                if self._reported is None:
                    self._text_bytes += _choice_bytes(choice)

    def _observe_typed(self, document: Mapping[str, Any], *, streamed: bool) -> None:
        status = document.get("status")
        if isinstance(status, str) and document.get("object") == "response":
            self.finish_reason = status
            # a whole answer that is not done can be nothing else
            self._background = document.get("background", not streamed) is True
        if self._reported is not None:
            return
        kind = document.get("type")
        if isinstance(kind, str) and kind.endswith(".delta"):
            self._text_bytes += text_bytes(document.get("delta"))
        elif "output" in document and not self._text_bytes:
            self._text_bytes += _output_bytes(document["output"])
        elif kind is None:
            self._text_bytes += text_bytes(document.get("text"))


def estimated_tokens(size_bytes: int) -> int:
    """Tokens of so many bytes of UTF-8 text."""
    return -(-size_bytes // _BYTES_PER_TOKEN)


def parse_usage(block: Any) -> Usage | None:
    """A usage block of any operation; None when it counts nothing.

    Chat and its kin count prompt and completion, the newer operations input and output; what was
    transcribed may be measured in seconds.
    """
    if not isinstance(block, dict):
        return None
    if block.get("type") == "duration":
        seconds = block.get("seconds")
        return Usage(audio_seconds=float(seconds)) if _is_number(seconds) else None
    prompt = _count(block.get("prompt_tokens", block.get("input_tokens")))
    completion = _count(block.get("completion_tokens", block.get("output_tokens")))
    total = _count(block.get("total_tokens"))
    if prompt is None and completion is None and total is None:
        return None
    prompt = prompt or 0
    completion = completion or 0
    cached = _detail(block, _PROMPT_DETAILS, "cached_tokens")
    reasoning = _detail(block, _COMPLETION_DETAILS, "reasoning_tokens")
    return Usage(prompt, completion, total or prompt + completion, cached, reasoning)


def _detail(block: Mapping[str, Any], holders: tuple[str, ...], name: str) -> int:
    for holder in holders:
        if holder in block:
            return _count(member(block[holder], name)) or 0
    return 0


def _is_number(value: Any) -> TypeGuard[int | float]:
    return type(value) in (int, float) and 0 <= value < _MAX_TOKENS


def _output_bytes(output: Any) -> int:
    """UTF-8 bytes of what a whole response holds: messages, calls, reasoning."""
    count = 0
    for item in output if isinstance(output, list) else ():
        if isinstance(item, dict):
            count += text_bytes(item.get("content")) + text_bytes(item.get("arguments"))
            count += text_bytes(item.get("summary"))
    return count


def _count(value: Any) -> int | None:
    """`value` when it is a token count (true and false are none)."""
    return value if type(value) is int and 0 <= value < _MAX_TOKENS else None


def _choice_bytes(choice: Mapping[str, Any]) -> int:
    """UTF-8 bytes of all that the model wrote in a choice, whole or streamed."""
    text = choice.get("text")
    count = text_bytes(text) if text else 0
    for name in ("delta", "message"):
        message = choice.get(name)
        if message and isinstance(message, dict):
            count += _message_bytes(message)
    return count


def _message_bytes(message: Mapping[str, Any]) -> int:
    """UTF-8 bytes of all that the model wrote in a delta or message."""
    count = 0
    if content := message.get("content"):
        count += text_bytes(content)
    if refusal := message.get("refusal"):
        count += text_bytes(refusal)
    # Some servers spell the same reasoning under both names.
    if reasoning := message.get("reasoning_content") or message.get("reasoning"):
        count += text_bytes(reasoning)
    if call := message.get("function_call"):
        count += text_bytes(member(call, "arguments"))
    calls = message.get("tool_calls")
    if calls and isinstance(calls, list):
        for call in calls:
            count += text_bytes(member(member(call, "function"), "arguments"))
            count += text_bytes(member(member(call, "custom"), "input"))
    return count


def text_bytes(text: Any) -> int:
    """UTF-8 bytes of a text, or of the text parts of a list of content parts."""
    if isinstance(text, str):
        return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
    if isinstance(text, list):
        parts = (member(item, "text") for item in text)
        return sum(text_bytes(part) for part in parts if isinstance(part, str))
    return 0


def member(holder: Any, name: str) -> Any:
    """`holder[name]` where that is something, else None."""
    return holder.get(name) if isinstance(holder, dict) else None
