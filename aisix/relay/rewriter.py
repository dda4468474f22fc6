"""What all rewriters of a stream have in common: the way of one event through them. Pure.

A rewriter reads an event, which moves what it knows of the stream, and then writes it, edited or as
it came. `StreamRewriter` knows chunks, `TypedRewriter` events that name their type.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from aisix.relay.document import Observe, parse_object
from aisix.relay.sse import Event


class Rewriter(ABC):
    """Rewrites one stream, event by event, and knows how far the stream has come.

    `saw_done`: the end has passed. `delivered`: data events let through so far that say something.
    `first_content_seen`: one with something to read has passed.
    """

    def __init__(self, observe: Observe) -> None:
        self._observe = observe
        self.saw_done = False
        self.delivered = 0
        self.first_content_seen = False

    @property
    @abstractmethod
    def complete(self) -> bool:
        """Whether something has begun, and all that began has ended."""

    @abstractmethod
    def edit(self, event: Event, document: dict[str, Any]) -> bytes:
        """`event`, which carries `document`, as the caller gets it; b"" when it gets nothing.

        Changes `document`, and nothing of what the rewriter knows of its stream.
        """

    @abstractmethod
    def end(self) -> bytes:
        """The upstream has ended: what is still owed to the caller.

        Raises UpstreamBroken (cut) when the stream was not complete.
        """

    @abstractmethod
    def _check(self, event: Event, document: dict[str, Any]) -> None:
        """Raises UpstreamBroken (in_band) when the event reports an error."""

    @abstractmethod
    def _note(self, event: Event, document: dict[str, Any]) -> None:
        """Remember how far the stream has come by this."""

    def _is_held(self, event: Event, document: dict[str, Any]) -> bool:
        """Whether the event says so little that it is no reason yet to begin an answer."""
        return False

    def feed(self, event: Event) -> bytes:
        """What the caller gets for `event`; b"" when it gets nothing.

        Raises UpstreamBroken (in_band) when the event reports an error. After the end everything is
        ignored.
        """
        if self.saw_done:
            return b""
        return self.write(event, self.read(event))

    def read(self, event: Event) -> dict[str, Any] | None:
        """Take in what `event` says; its document, None when it carries none.

        Raises UpstreamBroken (in_band) when it reports an error.
        """
        if event.is_done:
            self.saw_done = True
        document = None if event.data is None else parse_object(event.data)
        if document is not None:
            self._check(event, document)
            self._observe(document)
            self._note(event, document)
        return document

    def write(self, event: Event, document: dict[str, Any] | None) -> bytes:
        """What the caller gets for an event that was read; b"" when it gets nothing."""
        held = False
        if document is not None:
            held = self._is_held(event, document)
            out = self.edit(event, document)
        elif event.complete or self.saw_done:
            out = event.raw
        else:
            return b""  # half an event before a cut
        if out and event.data is not None and not held:
            self.delivered += 1
        return out
