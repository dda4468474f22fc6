"""Turns Azure's typed stream events into the form the caller expects. Pure (sans-I/O).

Responses, images, transcripts and speech do not stream chunks of one answer but events that say in
`type` what they are; the last of them ends the stream, no end mark is needed. They are edited like
chunks are: the model's name, Azure's extension fields, response ids; all else passes.

What says only that work has begun (`response.created`) is no reason yet to commit a stream: Azure
may report a rate limit next, inside the 200. So such events are not counted as delivered, and an
error that comes before any other becomes an error status.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from aisix.core.endpoints import UsageForm
from aisix.errors import UpstreamBroken
from aisix.relay.document import (
    Observe,
    in_band_error,
    is_rate_limit,
    rate_limited,
    rename,
    render,
    seal_ids,
    strip,
)
from aisix.relay.rewriter import Rewriter
from aisix.relay.sse import Event

FAILED = "response.failed"


@dataclass(frozen=True, slots=True)
class Dialect:
    """The event types that matter: `opening` say that work has begun, `closing` end the answer. A
    stream `ends_there`, or may have several answers and ends by itself."""

    opening: frozenset[str] = frozenset()
    closing: frozenset[str] = frozenset()
    ends_there: bool = False


DIALECTS = {
    UsageForm.RESPONSE: Dialect(
        opening=frozenset({"response.created", "response.queued", "response.in_progress"}),
        closing=frozenset({"response.completed", "response.incomplete", FAILED}),
        ends_there=True,
    ),
    UsageForm.IMAGE: Dialect(
        closing=frozenset({"image_generation.completed", "image_edit.completed"})
    ),
    UsageForm.TRANSCRIPT: Dialect(closing=frozenset({"transcript.text.done"})),
    UsageForm.SPEECH: Dialect(closing=frozenset({"speech.audio.done"})),
}


class TypedRewriter(Rewriter):
    """The rewriter of events that name their type."""

    complete = False

    def __init__(
        self,
        dialect: Dialect,
        *,
        alias_name: str,
        keep_extensions: bool,
        observe: Observe,
        seal: Callable[[str], str] | None = None,
    ) -> None:
        super().__init__(observe)
        self._dialect = dialect
        self._alias_name = alias_name
        self._keep_extensions = keep_extensions
        self._seal = seal

    def edit(self, event: Event, document: dict[str, Any]) -> bytes:
        """`event` as the caller gets it; `document` is used up."""
        edited = False
        response = document.get("response")
        for holder in (document, response):
            if isinstance(holder, dict):
                edited |= rename(holder, self._alias_name)
                if not self._keep_extensions:
                    edited |= strip(holder)
                if self._seal is not None:
                    edited |= seal_ids(holder, self._seal)
        if edited:
            return event.with_data(render(document, event.raw))
        return event.raw

    def end(self) -> bytes:
        """The upstream has ended. Raises UpstreamBroken (cut) when no answer was complete."""
        if not (self.complete or self.saw_done):
            raise UpstreamBroken(
                "upstream ended the stream before it was complete",
                kind="cut",
                detail=f"{self.delivered} events delivered, none of them the last",
            )
        return b""

    def _check(self, event: Event, document: dict[str, Any]) -> None:
        """Before anything was delivered, a response that failed for a rate limit is an error too:
        it becomes a status."""
        kind = _kind(event, document)
        if kind == "error" or (kind is None and "error" in document):
            failure = in_band_error(document, "error")
            if failure is not None:
                raise failure
        if kind != FAILED or self.delivered:
            return
        response = document.get("response")
        error = response.get("error") if isinstance(response, dict) else None
        if isinstance(error, dict) and is_rate_limit(error):
            raise rate_limited(error)

    def _note(self, event: Event, document: dict[str, Any]) -> None:
        kind = _kind(event, document)
        if kind in self._dialect.closing:
            self.complete = True
            # a failure without a reason may be followed by the reason
            self.saw_done |= self._dialect.ends_there and not _unexplained(kind, document)
        if isinstance(kind, str) and kind.endswith((".delta", ".partial_image")):
            self.first_content_seen = True

    def _is_held(self, event: Event, document: dict[str, Any]) -> bool:
        kind = _kind(event, document)
        return kind in self._dialect.opening or _unexplained(kind, document)


def _kind(event: Event, document: dict[str, Any]) -> str | None:
    """The type of an event; None when it names none."""
    kind = document.get("type")
    return kind if isinstance(kind, str) and kind else event.name


def _unexplained(kind: str | None, document: dict[str, Any]) -> bool:
    """Whether this is a failed response that does not say why."""
    if kind != FAILED:
        return False
    response = document.get("response")
    return not (isinstance(response, dict) and response.get("error"))
