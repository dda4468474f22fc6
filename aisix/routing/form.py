"""A multipart form on its way upstream: its alias is found, and its `model` edited. Pure but for
what it holds.

The form is read once, part by part, and written anew part by part: what the upstream gets is what
was understood here, so that the two cannot disagree about where a part begins. Files pass as they
arrive and are never held whole. A form whose alias is not in the path is held until its `model`
part has come (`routing.spool`).

Invariants: every `model` part that goes upstream holds the deployment's name, and there is one;
what is held of a part that is no file is bounded; whatever is wrong with a form is a BadRequest.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing
from typing import Any, NoReturn

from multipart import (
    MultipartError,
    MultipartSegment,
    PushMultipartParser,
    content_disposition_quote,
)

from aisix.core.exchange import Payload
from aisix.core.request import InboundRequest
from aisix.errors import BadRequest, BodyTooLarge
from aisix.routing.passage import Passage

MODEL = "model"
MAX_PARTS = 256
MAX_PREAMBLE_BYTES = 64 * 1024
"""A form that has not begun by then has another boundary than its Content-Type says."""

MAX_FIELD_BYTES = 16 * 1024
"""As much of a part without a file name is looked at; all of it passes."""

_PREFIX = "request payload is invalid: "
_BOUNDARY = re.compile(
    r';\s*boundary\s*=\s*(?:"([ !#-\[\]-~]{1,200})"|([!#-+\--:<-~]{1,200}))\s*(?:;|$)',
    re.IGNORECASE,
)


_DISPOSITION = "Content-Disposition"
_OWN_HEADERS = (_DISPOSITION, "Content-Length")
_EXTENDED = re.compile(r";[ \t]*filename\*[ \t]*=[ \t]*([\w!#$&+^`{}~.%'-]+)", re.A | re.I)
_CONTROL = re.compile(r"[\x00-\x08\n-\x1f\x7f]")


def boundary_of(content_type: str | None) -> str:
    """The boundary that a Content-Type names. Raises BadRequest."""
    media, _, _ = (content_type or "").partition(";")
    if media.strip().lower() != "multipart/form-data":
        raise BadRequest(f"{_PREFIX}send it with Content-Type: multipart/form-data; boundary=…")
    found = _BOUNDARY.search(content_type or "")
    if found is None:
        raise BadRequest(
            f"{_PREFIX}Content-Type names no boundary; let the HTTP client set this header"
        )
    return found[1] or found[2]


class FormEditor:
    """Reads a form piece by piece and writes it anew, with `deployment_name` as its `model`.

    Without a name it only reads. `fields` is filled with what is known of the parts that are no
    files: name to text, the first of each name.
    """

    def __init__(
        self, boundary: str, fields: dict[str, str], deployment_name: str | None = None
    ) -> None:
        self.fields = fields
        self._parser = PushMultipartParser(boundary, max_segment_count=MAX_PARTS)
        self._delimiter = f"--{boundary}".encode()
        self._deployment_name = deployment_name
        self._segment: MultipartSegment | None = None
        self._text: bytearray | None = None
        self._begun = False
        self._named = False
        self._read_bytes = 0

    def feed(self, piece: bytes) -> bytes:
        """What goes upstream for `piece`. Raises BadRequest."""
        out: list[bytes] = []
        self._read_bytes += len(piece)
        try:
            for event in self._parser.parse(piece):
                if event is None:
                    self._end_part(out)
                elif isinstance(event, MultipartSegment):
                    self._begin_part(event, out)
                else:
                    self._take(event, out)
        except MultipartError as error:
            self._refuse(error)
        if not self._begun and self._read_bytes > MAX_PREAMBLE_BYTES:
            self._refuse(None)
        return b"".join(out)

    def end(self) -> bytes:
        """What goes upstream at the end. Raises BadRequest when the form is not complete."""
        try:
            self._parser.close()
        except MultipartError as error:
            self._refuse(error)
        if not self._begun:
            self._refuse(None)
        out: list[bytes] = []
        if self._deployment_name is not None and not self._named:
            header = f'Content-Disposition: form-data; name="{MODEL}"'
            out += (self._delimiter, b"\r\n", header.encode(), b"\r\n\r\n")
            out += (self._deployment_name.encode(), b"\r\n")
        out += (self._delimiter, b"--\r\n")
        return b"".join(out)

    def _begin_part(self, segment: MultipartSegment, out: list[bytes]) -> None:
        self._begun = True
        self._segment = segment
        self._text = bytearray() if segment.filename is None else None
        out += (self._delimiter, b"\r\n")
        for line in self._head(segment):
            out += (line.encode(), b"\r\n")
        out.append(b"\r\n")

    def _head(self, segment: MultipartSegment) -> Iterator[str]:
        """The part's head as it was understood: readers differ over what else could be read there,
        such as a second name. Of an edited part no other header is true any more."""
        disposition = f"form-data; name={_quoted(segment.name or '')}"
        if segment.filename is not None:
            disposition += f"; filename={_quoted(segment.filename)}"
        extended = _EXTENDED.search(segment.header(_DISPOSITION, ""))
        if extended is not None:
            disposition += f"; filename*={extended[1]}"
        yield f"{_DISPOSITION}: {disposition}"
        for name, value in segment.headerlist:
            if _CONTROL.search(value):
                self._refuse(None)
            if name not in _OWN_HEADERS and not self._is_model():
                yield f"{name}: {value}"

    def _take(self, data: bytes, out: list[bytes]) -> None:
        if self._text is not None and len(self._text) < MAX_FIELD_BYTES:
            self._text += data[: MAX_FIELD_BYTES - len(self._text)]
        if not self._is_model():
            out.append(data)

    def _end_part(self, out: list[bytes]) -> None:
        segment, text = self._segment, self._text
        if segment is not None and text is not None:
            self.fields.setdefault(segment.name, text.decode("utf-8", "replace"))
        if self._is_model():
            self._named = True
            out.append((self._deployment_name or "").encode())
        out.append(b"\r\n")
        self._segment = self._text = None

    def _is_model(self) -> bool:
        """Whether any reader could take this part for the model: some look past case and space."""
        return self._segment is not None and (self._segment.name or "").strip().lower() == MODEL

    def _refuse(self, error: MultipartError | None) -> NoReturn:
        if self._begun:
            raise BadRequest(f"{_PREFIX}the multipart form is malformed or not complete") from error
        raise BadRequest(
            f"{_PREFIX}the multipart form does not begin with the boundary that Content-Type "
            "names; let the HTTP client set that header"
        ) from error


class FormSource:
    """A form as a BodySource. `limit_bytes` is for all of it, `hold_bytes` for what is held while
    its alias is looked for; 0 = no limit."""

    length: int | None = None

    def __init__(
        self,
        pieces: AsyncIterator[bytes],
        boundary: str,
        *,
        limit_bytes: int,
        hold_bytes: int = 0,
    ) -> None:
        self.content_type = f'multipart/form-data; boundary="{boundary}"'
        self.fields: dict[str, str] = {}
        self._passage = Passage(pieces, limit_bytes=limit_bytes)
        self._boundary = boundary
        self._hold_bytes = hold_bytes

    @property
    def replayable(self) -> bool:
        """Whether it can be opened once more."""
        return self._passage.replayable

    async def find_alias(self) -> str:
        """Read on until the alias is known. Raises BadRequest, BodyTooLarge, CallerDeparted, and
        Overloaded where there is no room to hold the form meanwhile."""
        editor = FormEditor(self._boundary, self.fields)
        while MODEL not in self.fields:
            piece = await self._passage.next(hold=True)
            if not piece:
                editor.end()
                raise BadRequest(
                    f"{_PREFIX}{MODEL} is required: a part with the name of a model this gateway "
                    "serves",
                    param=MODEL,
                )
            editor.feed(piece)
            if self._hold_bytes and self._passage.read_bytes > self._hold_bytes:
                self._check_found()
        name = self.fields[MODEL]
        if not name:
            raise BadRequest(f"{_PREFIX}{MODEL} must not be empty", param=MODEL)
        return name

    def _check_found(self) -> None:
        """Nobody has been admitted yet: what waits for a model must not fill the disk."""
        if MODEL not in self.fields:
            raise BodyTooLarge(
                f"{_PREFIX}{MODEL} does not come within the first {self._hold_bytes} bytes of the "
                f"form; put {MODEL} before the file, or into the path",
                param=MODEL,
            )

    def open(self, deployment_name: str) -> AsyncIterator[bytes]:
        """The form for a deployment: what is held of it, then the rest as it arrives."""
        editor = FormEditor(self._boundary, self.fields, deployment_name)
        return self._edited(editor, self._passage.pieces())

    async def _edited(
        self, editor: FormEditor, pieces: AsyncGenerator[bytes, None]
    ) -> AsyncIterator[bytes]:
        async with aclosing(pieces):
            async for piece in pieces:
                yield editor.feed(piece)
        yield editor.end()

    def let_go(self) -> None:
        """It will not be opened again."""
        self._passage.let_go()

    def close(self) -> None:
        """Give back what is held of it."""
        self._passage.close()


def _quoted(text: str) -> str:
    """As browsers quote; a backslash would begin an escape to some readers."""
    quoted: str = content_disposition_quote(text.replace("\\", "%5C"))
    return quoted


async def read_form(request: InboundRequest, *, limit_bytes: int, hold_bytes: int = 0) -> Payload:
    """The form of `request`, read as far as its alias. Raises BadRequest, BodyTooLarge."""
    boundary = boundary_of(request.headers.get("content-type"))
    pieces = request.body.chunks()
    source = FormSource(pieces, boundary, limit_bytes=limit_bytes, hold_bytes=hold_bytes)
    name = request.path_name
    if name is None:
        try:
            name = await source.find_alias()
        except BaseException:
            source.close()
            raise
    document: dict[str, Any] = source.fields  # read only, and it grows
    stream = source.fields.get("stream", "").lower() == "true" and request.spec.may_stream
    return Payload(document=document, requested=name, stream=stream, source=source)
