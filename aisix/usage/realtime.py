"""Reads tokens out of the events of a realtime session, and adds them up. Pure.

Each response reports its own usage, and so may each transcription of what the caller said. A
response that has not reported when the session ends is estimated by the text that came of it. What
cannot be read is skipped.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aisix.core.exchange import Usage

_BYTES_PER_TOKEN = 4
_MAX_TOKENS = 2**53
"""Counts beyond this are junk, and would not survive every reader of JSON."""

_NOTHING = Usage()


class SessionMeter:
    """The meter of one session (port `Meter`). `served_model` is the first model that it named."""

    def __init__(self) -> None:
        self._total = _NOTHING
        self._open_bytes = 0
        self.served_model: str | None = None
        self.finish_reason: str | None = None
        self.unfinished = False

    def observe(self, document: Mapping[str, Any], /) -> None:
        """Take in one event."""
        if "delta" in document:
            self._open_bytes += _text_bytes(document["delta"])
            return
        model = _member(document.get("session"), "model")
        if self.served_model is None and isinstance(model, str) and model:
            self.served_model = model
        response = document.get("response")
        if document.get("type") == "response.done":
            self._open_bytes = 0
            status = _member(response, "status")
            self.finish_reason = status if isinstance(status, str) else None
        self._add(document.get("usage"))
        self._add(_member(response, "usage"))

    def observe_text(self, size_bytes: int, /) -> None:
        """Take in so many more bytes of UTF-8 that the model wrote."""
        self._open_bytes += size_bytes

    def usage(self, prompt_estimate_tokens: int) -> Usage:
        """What was reported, and an estimate of what was not."""
        open_tokens = -(-self._open_bytes // _BYTES_PER_TOKEN)
        if not open_tokens:
            return self._total
        return self._total._replace(
            prompt_tokens=self._total.prompt_tokens + prompt_estimate_tokens,
            completion_tokens=self._total.completion_tokens + open_tokens,
            total_tokens=self._total.total_tokens + prompt_estimate_tokens + open_tokens,
            estimated=True,
        )

    def _add(self, block: Any) -> None:
        prompt = _count(_member(block, "input_tokens"))
        completion = _count(_member(block, "output_tokens"))
        total = _count(_member(block, "total_tokens")) or prompt + completion
        cached = _count(_member(_member(block, "input_token_details"), "cached_tokens"))
        known = self._total
        self._total = known._replace(
            prompt_tokens=known.prompt_tokens + prompt,
            completion_tokens=known.completion_tokens + completion,
            total_tokens=known.total_tokens + total,
            cached_tokens=known.cached_tokens + cached,
        )


def _count(value: Any) -> int:
    """`value` when it is a token count, else 0 (true and false are none)."""
    return value if type(value) is int and 0 <= value < _MAX_TOKENS else 0


def _member(holder: Any, name: str) -> Any:
    return holder.get(name) if isinstance(holder, dict) else None


def _text_bytes(text: Any) -> int:
    return len(text.encode("utf-8", "surrogatepass")) if isinstance(text, str) else 0
