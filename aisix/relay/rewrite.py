"""Turns Azure's stream events into the form the caller expects. Pure (sans-I/O).

A stream is edited, never rebuilt: the model's name becomes the one the caller asked for, Azure's
extension fields go (unless kept), a usage block nobody asked for is hidden from a stream. All else
passes, in its order, and an event that needs no edit passes as the bytes that came.

A stream chunk that carried nothing else is dropped: the first one of Azure's streams (no choices)
and the annotations of the asynchronous filter (choices without a delta). What they may carry
besides, a late `finish_reason` or an unknown field, is kept.
"""

from __future__ import annotations

from typing import Any

from aisix.core.endpoints import EndpointSpec, UsageForm
from aisix.errors import UpstreamBroken
from aisix.relay.document import (
    Observe,
    in_band_error,
    rename,
    render,
    render_renamed,
    strip,
)
from aisix.relay.rewriter import Rewriter
from aisix.relay.sse import Event

DONE = b"data: [DONE]\n\n"

_CHUNK_FRAME = frozenset(
    {
        "id",
        "object",
        "created",
        "model",
        "choices",
        "usage",
        "system_fingerprint",
        "service_tier",
        "obfuscation",
    }
)
"""Chunk fields that say nothing by themselves; padding (`obfuscation`) included."""

_CHOICE_FRAME = frozenset({"index", "finish_reason", "logprobs"})
_CHOICE_BODIES = frozenset({"delta", "text", "message"})
_CONTENT_FIELDS = (
    "content",
    "tool_calls",
    "refusal",
    "reasoning_content",
    "reasoning",
    "function_call",
    "audio",
)


class StreamRewriter(Rewriter):
    """The rewriter of chunks, and of what streams besides."""

    def __init__(
        self,
        spec: EndpointSpec,
        *,
        alias_name: str,
        include_usage: bool,
        keep_extensions: bool,
        observe: Observe,
    ) -> None:
        super().__init__(observe)
        self._chunked = spec.usage in (UsageForm.CHAT, UsageForm.COMPLETION)
        self._empty_body: tuple[str, Any] = ("delta", {})
        if spec.usage is UsageForm.COMPLETION:
            self._empty_body = ("text", "")
        self._alias_name = alias_name
        self._include_usage = include_usage
        self._keep_extensions = keep_extensions
        self._identity: dict[str, Any] = {}
        self._finished: dict[int, bool] = {}

    @property
    def complete(self) -> bool:
        """Whether a choice was started and every started choice has its finish_reason."""
        return bool(self._finished) and all(self._finished.values())

    def end(self) -> bytes:
        """The upstream has ended: what is still owed to the caller.

        Raises UpstreamBroken (cut) when the stream ended before its choices did.
        """
        if self.saw_done or not self._chunked:
            return b""
        if not self.complete:
            raise UpstreamBroken(
                "upstream ended the stream before it was complete",
                kind="cut",
                detail=f"{len(self._finished)} choices started, not all finished, no end mark",
            )
        self.saw_done = True
        return DONE

    def edit(self, event: Event, document: dict[str, Any]) -> bytes:
        """`event`, which carries `document`, as the caller gets it; b"" when it gets nothing.

        Changes `document`, and nothing of what this rewriter knows of its stream.
        """
        edited = not self._keep_extensions and strip(document)
        if self._chunked:
            edited |= self._edit_usage(document) | self._edit_choices(document)
            if (edited or "choices" in document) and not _says_something(document):
                return b""
        renamed = rename(document, self._alias_name)
        if not edited and not renamed:
            return event.raw
        source = event.data or b""
        in_place = not edited and b"\n" not in source
        rendered = render_renamed(document, source) if in_place else render(document, source)
        return event.with_data(rendered)

    def _check(self, event: Event, document: dict[str, Any]) -> None:
        if "error" in document or event.name == "error":
            error = in_band_error(document, event.name)
            if error is not None:
                raise error

    def _note(self, event: Event, document: dict[str, Any]) -> None:
        """Remember whose stream this is and how far each choice has come."""
        if not self._chunked:
            return
        if not self._identity and document.get("id"):
            self._identity = {
                name: document[name] for name in ("id", "object", "created") if name in document
            }
        choices = document.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            if not isinstance(choice, dict):
                continue
            index = choice.get("index")
            index = index if isinstance(index, int) else 0
            if choice.get("finish_reason"):
                self._finished[index] = True
            elif not _CHOICE_BODIES.isdisjoint(choice):
                self._finished.setdefault(index, False)
            if not self.first_content_seen:
                self.first_content_seen = _has_content(choice)

    def _edit_usage(self, document: dict[str, Any]) -> bool:
        if self._include_usage or "usage" not in document:
            return False
        del document["usage"]
        return True

    def _edit_choices(self, document: dict[str, Any]) -> bool:
        """Strip choices, drop those that were only annotations, mend a late finish."""
        choices = document.get("choices")
        if not isinstance(choices, list):
            return False
        edited = False
        kept = []
        for choice in choices:
            if isinstance(choice, dict):
                if not self._keep_extensions:
                    edited |= strip(choice)
                if _CHOICE_BODIES.isdisjoint(choice):
                    if choice.get("finish_reason"):
                        choice[self._empty_body[0]] = self._empty_body[1]
                        self._identify(document)
                        edited = True
                    elif not self._keep_extensions and _is_only(choice, _CHOICE_FRAME):
                        continue
            kept.append(choice)
        if len(kept) < len(choices):
            document["choices"] = kept
            edited = True
        return edited

    def _identify(self, document: dict[str, Any]) -> None:
        """Annotations come without the stream's identity, which SDKs expect in every chunk."""
        for name, value in self._identity.items():
            if not document.get(name):
                document[name] = value
        document.setdefault("model", "")


def _says_something(chunk: dict[str, Any]) -> bool:
    """Whether an edited chunk is still worth sending."""
    if chunk.get("choices") or chunk.get("usage") is not None:
        return True
    return not _is_only(chunk, _CHUNK_FRAME)


def _is_only(holder: dict[str, Any], names: frozenset[str]) -> bool:
    """Whether nothing but `names` has a value in `holder`."""
    return all(name in names or value is None for name, value in holder.items())


def _has_content(choice: dict[str, Any]) -> bool:
    if choice.get("text"):
        return True
    delta = choice.get("delta")
    return isinstance(delta, dict) and any(delta.get(name) for name in _CONTENT_FIELDS)
