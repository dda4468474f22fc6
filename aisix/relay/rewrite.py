"""Turns Azure's answers into the form the caller expects. Pure (sans-I/O).

An answer is edited, never rebuilt: the model's name becomes the one the caller asked for, Azure's
extension fields go (unless kept), a usage block nobody asked for is hidden from a stream. All else
passes, in its order, and an event or body that needs no edit passes as the bytes that came.

A stream chunk that carried nothing else is dropped: the first one of Azure's streams (no choices)
and the annotations of the asynchronous filter (choices without a delta). What they may carry
besides, a late `finish_reason` or an unknown field, is kept.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import ujson

from aisix.core.endpoints import EndpointSpec, UsageForm
from aisix.errors import UpstreamBroken
from aisix.relay.sse import Event

EXTENSION_FIELDS = frozenset(
    {
        "prompt_filter_results",
        "prompt_annotations",
        "content_filter_results",
        "content_filter_result",
        "content_filter_offsets",
        "content_filter_raw",
        "content_filters",
    }
)
"""What Azure adds to OpenAI's answers, at the top and in the items of `choices` and `data`."""

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
_FILTER_CODES = frozenset({"content_filter", "content_policy_violation"})
_DETAIL_CHARS = 500
_SPLICE_BYTES = 1024
"""Smaller documents are rendered anew faster than their model's name is found."""

_MODEL_MEMBER = re.compile(rb'("model"[ \t\r\n]*:[ \t\r\n]*)"(?:[^"\\]|\\.)*"')

Observe = Callable[[dict[str, Any]], None]
"""Called with every JSON document of an answer before it is edited."""


class StreamRewriter:
    """Rewrites one stream, event by event, and knows how far the stream has come.

    `saw_done`: the end mark has passed. `delivered`: data events let through so far.
    `first_content_seen`: an event with something to read has passed.
    """

    def __init__(
        self,
        spec: EndpointSpec,
        *,
        alias_name: str,
        include_usage: bool,
        keep_extensions: bool,
        observe: Observe,
    ) -> None:
        self._chunked = spec.usage in (UsageForm.CHAT, UsageForm.COMPLETION)
        self._empty_body: tuple[str, Any] = ("delta", {})
        if spec.usage is UsageForm.COMPLETION:
            self._empty_body = ("text", "")
        self._alias_name = alias_name
        self._include_usage = include_usage
        self._keep_extensions = keep_extensions
        self._observe = observe
        self._identity: dict[str, Any] = {}
        self._finished: dict[int, bool] = {}
        self.saw_done = False
        self.delivered = 0
        self.first_content_seen = False

    @property
    def complete(self) -> bool:
        """Whether a choice was started and every started choice has its finish_reason."""
        return bool(self._finished) and all(self._finished.values())

    def feed(self, event: Event) -> bytes:
        """What the caller gets for `event`; b"" when it gets nothing.

        Raises UpstreamBroken (in_band) when the event reports an error. After the end mark
        everything is ignored.
        """
        if self.saw_done:
            return b""
        if event.is_done:
            self.saw_done = True
        out = event.raw
        document = None if event.data is None else _parse_object(event.data)
        if document is not None:
            out = self._rewrite(event, document)
        elif not (event.complete or self.saw_done):
            return b""  # half an event before a cut
        if out and event.data is not None:
            self.delivered += 1
        return out

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

    def _rewrite(self, event: Event, document: dict[str, Any]) -> bytes:
        if "error" in document or event.name == "error":
            error = _in_band_error(document, event.name)
            if error is not None:
                raise error
        self._observe(document)
        edited = not self._keep_extensions and _strip(document)
        if self._chunked:
            self._note(document)
            edited |= self._edit_usage(document) | self._edit_choices(document)
            if (edited or "choices" in document) and not _says_something(document):
                return b""
        renamed = _rename(document, self._alias_name)
        if not edited and not renamed:
            return event.raw
        source = event.data or b""
        return event.with_data(_render(document, source, spliceable=not edited))

    def _note(self, document: dict[str, Any]) -> None:
        """Remember whose stream this is and how far each choice has come."""
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
                    edited |= _strip(choice)
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


def rewrite_answer(
    body: bytes,
    spec: EndpointSpec,
    *,
    alias_name: str,
    keep_extensions: bool,
    observe: Observe,
) -> bytes:
    """A whole JSON answer as the caller gets it.

    Raises UpstreamBroken: decode when it is no JSON object though the endpoint answers with one,
    in_band when it is an error in the guise of a success.
    """
    try:
        document = ujson.loads(body)
    except ValueError as error:
        raise UpstreamBroken(
            "upstream answer could not be decoded",
            kind="decode",
            detail=f"{len(body)} bytes, no JSON: {error}"[:_DETAIL_CHARS],
        ) from error
    if not isinstance(document, dict):
        if spec.usage is UsageForm.NONE:
            return body
        raise UpstreamBroken(
            "upstream answer could not be decoded",
            kind="decode",
            detail=f"{len(body)} bytes, JSON but no object",
        )
    if spec.usage is not UsageForm.NONE and "choices" not in document and "data" not in document:
        failure = _in_band_error(document, None)
        if failure is not None:
            raise failure
    observe(document)
    edited = False
    if not keep_extensions:
        edited = _strip(document)
        for items in (document.get("choices"), document.get("data")):
            for item in _dicts(items):
                edited |= _strip(item)
    renamed = _rename(document, alias_name)
    if not edited and not renamed:
        return body
    return _render(document, body, spliceable=not edited)


def _parse_object(data: bytes) -> dict[str, Any] | None:
    """The JSON object that `data` is, None for anything else."""
    try:
        document = ujson.loads(data)
    except ValueError:
        return None
    return document if isinstance(document, dict) else None


def _render(document: dict[str, Any], source: bytes, *, spliceable: bool) -> bytes:
    """`document` as bytes, non-ASCII spelt as in `source`, the bytes it was read from.

    A document that is `spliceable` differs from its source in the model's name only.
    """
    if spliceable and len(source) >= _SPLICE_BYTES:
        spliced = _splice_model(source, document["model"])
        if spliced is not None:
            return spliced
    # Raw UTF-8 only for a source that escaped nothing: then no lone surrogate and no line
    # separator that the source had escaped (some SSE clients split at U+2028) comes out raw.
    ascii_only = source.isascii() or b"\\u" in source
    text = ujson.dumps(document, ensure_ascii=ascii_only, escape_forward_slashes=False)
    return text.encode("utf-8", "surrogatepass")


def _splice_model(source: bytes, name: str) -> bytes | None:
    """`source` with another value of its top-level `model`; None when that is not certain.

    The document is known to have that member. When no ASCII letter of `source` is escaped, its key
    is spelt plainly; when the spelling occurs once, that one is it.
    """
    if source.count(b'"model"') != 1 or b"\\u006" in source:
        return None
    found = _MODEL_MEMBER.search(source)
    if found is None:
        return None
    value = ujson.dumps(name, escape_forward_slashes=False).encode()
    return b"".join((source[: found.start()], found.group(1), value, source[found.end() :]))


def _rename(document: dict[str, Any], name: str) -> bool:
    if document.get("model", name) == name:
        return False
    document["model"] = name
    return True


def _strip(holder: dict[str, Any]) -> bool:
    if EXTENSION_FIELDS.isdisjoint(holder):
        return False
    for name in EXTENSION_FIELDS & holder.keys():
        del holder[name]
    return True


def _says_something(chunk: dict[str, Any]) -> bool:
    """Whether an edited chunk is still worth sending."""
    if chunk.get("choices") or chunk.get("usage") is not None:
        return True
    return not _is_only(chunk, _CHUNK_FRAME)


def _is_only(holder: dict[str, Any], names: frozenset[str]) -> bool:
    """Whether nothing but `names` has a value in `holder`."""
    return all(name in names or value is None for name, value in holder.items())


def _dicts(items: Any) -> list[dict[str, Any]]:
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []


def _has_content(choice: dict[str, Any]) -> bool:
    if choice.get("text"):
        return True
    delta = choice.get("delta")
    return isinstance(delta, dict) and any(delta.get(name) for name in _CONTENT_FIELDS)


def _in_band_error(document: dict[str, Any], event_name: str | None) -> UpstreamBroken | None:
    """The error that a document of a 200 answer reports, with our wording and its status."""
    error = document.get("error")
    if isinstance(error, str) and "choices" not in document:
        error = {"message": error}
    elif event_name == "error" and not isinstance(error, dict):
        error = document
    if not isinstance(error, dict):
        return None
    code = error.get("code")
    detail = f"code {code!r}, type {error.get('type')!r}: {error.get('message')!r}"[:_DETAIL_CHARS]
    if isinstance(code, str) and code in _FILTER_CODES:
        failure = UpstreamBroken(
            "upstream's content filter stopped the answer", kind="in_band", code=code, detail=detail
        )
        failure.status = 400
        return failure
    failure = UpstreamBroken(
        "upstream reported an error in the stream", kind="in_band", detail=detail
    )
    for hint in (code, error.get("status"), error.get("statusCode"), document.get("status")):
        if (status := _error_status(hint)) is not None:
            failure.status = status
            break
    return failure


def _error_status(hint: Any) -> int | None:
    """`hint` as an HTTP error status, when it is one."""
    if isinstance(hint, str) and hint.isdecimal() and len(hint) == 3:
        hint = int(hint)
    return hint if isinstance(hint, int) and 400 <= hint <= 599 else None
