"""Reads tokens out of the events of a realtime session, and adds them up. Pure.

Each response reports its own usage, and so may each transcription of what the caller said. A
response that has not reported when the session ends is estimated by the text that came of it. What
cannot be read is skipped.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aisix.core.exchange import Usage
from aisix.usage.meter import estimated_tokens, member, parse_usage, text_bytes

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
            self._open_bytes += text_bytes(document["delta"])
            return
        model = member(document.get("session"), "model")
        if self.served_model is None and isinstance(model, str) and model:
            self.served_model = model
        response = document.get("response")
        if document.get("type") == "response.done":
            self._open_bytes = 0
            status = member(response, "status")
            self.finish_reason = status if isinstance(status, str) else None
        self._add(document.get("usage"))
        self._add(member(response, "usage"))

    def observe_text(self, size_bytes: int, /) -> None:
        """Take in so many more bytes of UTF-8 that the model wrote."""
        self._open_bytes += size_bytes

    def usage(self, prompt_estimate_tokens: int) -> Usage:
        """What was reported, and an estimate of what was not."""
        open_tokens = estimated_tokens(self._open_bytes)
        if not open_tokens:
            return self._total
        return self._total._replace(
            prompt_tokens=self._total.prompt_tokens + prompt_estimate_tokens,
            completion_tokens=self._total.completion_tokens + open_tokens,
            total_tokens=self._total.total_tokens + prompt_estimate_tokens + open_tokens,
            estimated=True,
        )

    def _add(self, block: Any) -> None:
        seen = parse_usage(block)
        if seen is not None:
            known = self._total
            self._total = known._replace(
                prompt_tokens=known.prompt_tokens + seen.prompt_tokens,
                completion_tokens=known.completion_tokens + seen.completion_tokens,
                total_tokens=known.total_tokens + seen.total_tokens,
                cached_tokens=known.cached_tokens + seen.cached_tokens,
                audio_seconds=known.audio_seconds + seen.audio_seconds,
            )
