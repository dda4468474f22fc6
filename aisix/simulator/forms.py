"""A multipart body, read piece by piece and judged.

Files are counted and hashed as they pass; of each only a prefix is kept, and all prefixes of a
form share one budget, so an upload of any size takes bounded memory. Values of plain fields are
kept whole up to a limit. What is not a form ends in `Form.problem`, and the rest of the body is
then let go unread. Foreign errors end here. No I/O.
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass, field
from typing import Any

from multipart import (
    MultipartError,
    MultipartSegment,
    PushMultipartParser,
    parse_options_header,
)

from aisix.simulator import faults
from aisix.simulator.faults import Fault

TYPE = "multipart/form-data"
_MOST_PARTS = 128
_MOST_VALUE_BYTES = 256 * 1024
_KEPT_FILE_BYTES = 1024 * 1024
_BRIEF_BYTES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One part of a form. `prefix` is its beginning, all of it when `size` says so."""

    name: str
    filename: str | None
    content_type: str
    size: int
    sha256: str
    lines: int
    prefix: bytes

    @property
    def text(self) -> str:
        """The value of a plain field."""
        return self.prefix.decode("utf-8", "replace")

    def brief(self) -> Part:
        """The same without most of a file's beginning: what a journal can afford."""
        if self.filename is None:
            return self
        return dataclasses.replace(self, prefix=self.prefix[:_BRIEF_BYTES])

    def render(self) -> dict[str, Any]:
        """The part as the control endpoint shows it."""
        shown = {name: getattr(self, name) for name in ("name", "filename", "content_type")}
        value = {"value": self.text} if self.filename is None else {}
        return {**shown, "size": self.size, "sha256": self.sha256, **value}


@dataclass(frozen=True, slots=True)
class Form:
    """The parts in the order in which they came; `problem` says why there are no more."""

    parts: tuple[Part, ...] = ()
    problem: str = ""

    def value(self, name: str) -> str | None:
        """The value of a plain field; the last one wins."""
        found = [part.text for part in self.parts if part.name == name and part.filename is None]
        return found[-1] if found else None

    def values(self, name: str) -> list[str]:
        """Every value of a field that may be repeated, with or without brackets."""
        names = (name, f"{name}[]")
        return [p.text for p in self.parts if p.name in names and p.filename is None]

    def files(self, name: str) -> list[Part]:
        """The files of a name, with or without brackets."""
        names = (name, f"{name}[]")
        return [p for p in self.parts if p.name in names and p.filename is not None]

    def file(self, name: str) -> Part | Fault:
        """The one file of a name, or the refusal of a form without it."""
        files = self.files(name)
        if files and files[0].filename:
            return files[0]
        if files or self.value(name) is not None:
            message = f"Invalid '{name}': expected an uploaded file with a filename."
            return faults.invalid(message, param=name, code="invalid_value")
        return faults.missing(name)


@dataclass(slots=True)
class _Growing:
    """A part that is still coming in."""

    segment: MultipartSegment
    room: int
    size: int = 0
    lines: int = 0
    prefix: bytearray = field(default_factory=bytearray)
    digest: Any = field(default_factory=hashlib.sha256)

    def add(self, data: bytes) -> None:
        self.size += len(data)
        self.lines += data.count(b"\n")
        self.digest.update(data)
        self.prefix += data[: self.room - len(self.prefix)]

    def done(self) -> Part:
        return Part(
            name=self.segment.name,
            filename=self.segment.filename,
            content_type=self.segment.content_type or "",
            size=self.size,
            sha256=self.digest.hexdigest(),
            lines=self.lines,
            prefix=bytes(self.prefix),
        )


class FormReader:
    """Takes a multipart body in pieces of any size."""

    def __init__(self, content_type: str) -> None:
        _, options = parse_options_header(content_type)
        self._parts: list[Part] = []
        self._growing: _Growing | None = None
        self._room = _KEPT_FILE_BYTES
        self._problem = ""
        self._parser: PushMultipartParser | None = None
        try:
            self._parser = PushMultipartParser(
                options.get("boundary", ""), max_segment_count=_MOST_PARTS
            )
        except MultipartError as error:
            self._fail(error)

    def feed(self, data: bytes) -> None:
        """The next piece of the body."""
        if self._parser is None or not data:
            return
        try:
            for event in self._parser.parse(data):
                self._take(event)
        except MultipartError as error:
            self._fail(error)

    def finish(self) -> Form:
        """The form, now that the body has ended."""
        if self._parser is not None:
            try:
                self._parser.close()
            except MultipartError as error:
                self._fail(error)
        return Form(tuple(self._parts), self._problem)

    def _take(self, event: MultipartSegment | bytes | bytearray | None) -> None:
        if isinstance(event, MultipartSegment):
            room = _MOST_VALUE_BYTES if event.filename is None else self._room
            self._growing = _Growing(event, room)
        elif self._growing is not None and event is None:
            if self._growing.segment.filename is not None:
                self._room -= len(self._growing.prefix)
            self._parts.append(self._growing.done())
            self._growing = None
        elif self._growing is not None and event is not None:
            self._growing.add(bytes(event))
            if self._growing.segment.filename is None and self._growing.size > _MOST_VALUE_BYTES:
                raise MultipartError(f"{self._growing.segment.name} is too long for a field")

    def _fail(self, error: MultipartError) -> None:
        self._problem = str(error) or type(error).__name__
        self._parser = self._growing = None


def is_form(content_type: str) -> bool:
    """Whether a content type announces a form."""
    return content_type.partition(";")[0].strip().lower() == TYPE
