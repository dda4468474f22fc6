"""One stream from the upstream's bytes to the caller's. Pure (sans-I/O).

Two ways lead there and give the same result. Every event can be split off, parsed, edited and
rendered; the ordinary chunks, nearly all of a stream, are copied between the bytes that a template
has learnt. What one piece brings comes out in one piece.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aisix.errors import UpstreamBroken
from aisix.relay.rewriter import Rewriter
from aisix.relay.sse import MAX_EVENT_BYTES, Event, SseSplitter
from aisix.relay.template import ChunkTemplate, learn

_LESSONS = 4
"""How often a stream is learnt from: one for each form of its chunks, such as one per choice. A
stream whose chunks all differ must not pay for lessons that never help."""


class StreamEditor:
    """Feed pieces, write what comes out. `rewriter` knows how far the stream has come.

    `observe_text` is told the size, in bytes of UTF-8, of texts that were copied.
    """

    def __init__(self, rewriter: Rewriter, observe_text: Callable[[int], None]) -> None:
        self._rewriter = rewriter
        self._observe_text = observe_text
        self._splitter = SseSplitter()
        self._templates: list[ChunkTemplate] = []
        self._lessons = _LESSONS

    def feed(self, piece: bytes) -> tuple[bytes, UpstreamBroken | None]:
        """What the caller gets for `piece` (b"" is the end), and what went wrong after that."""
        out: list[bytes] = []
        try:
            if piece:
                self._splitter.push(piece)
                self._edit(out)
            else:
                self._end(out)
        except UpstreamBroken as failure:
            return b"".join(out), failure
        return b"".join(out), None

    def _edit(self, out: list[bytes]) -> None:
        splitter, rewriter = self._splitter, self._rewriter
        while not rewriter.saw_done:
            if self._templates:
                self._copy(out)
            event = splitter.take()
            if event is None:
                return
            document = rewriter.read(event)
            if document is None or not self._learn(event, document, out):
                out.append(rewriter.write(event, document))

    def _end(self, out: list[bytes]) -> None:
        rest = self._splitter.finish()
        if rest is not None:
            out.append(self._rewriter.feed(rest))
        out.append(self._rewriter.end())

    def _copy(self, out: list[bytes]) -> None:
        """All events that a template knows, up to the first that none does."""
        splitter = self._splitter
        data, at = splitter.data, splitter.at
        if len(data) - at > MAX_EVENT_BYTES:
            return  # the splitter looks at the size of each event
        start = -1
        while start < at < len(data):
            start = at
            for template in self._templates:
                at, count, text_bytes = template.copy(data, at, out)
                if count:
                    self._rewriter.delivered += count
                    self._observe_text(text_bytes)
        splitter.at = at

    def _learn(self, event: Event, document: dict[str, Any], out: list[bytes]) -> bool:
        """Whether there is a template now that `event` is written by."""
        rewriter = self._rewriter
        if not self._lessons or not rewriter.first_content_seen or rewriter.complete:
            return False
        self._lessons -= 1
        template = learn(event, document, rewriter.edit)
        if template is None:
            return False
        self._templates.append(template)
        _, count, _ = template.copy(event.raw, 0, out)
        rewriter.delivered += count
        return True
