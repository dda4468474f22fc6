"""Files of a resource: uploaded, listed, read back and deleted.

Of an upload the beginning is kept; what lies beyond comes back as filler, so size and shape are
right and memory is bounded. A script in the file's name (`answers-bulk500.jsonl`) or of the
request says how large its content is when it is read: made while it is sent. Pure.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from aisix.simulator import faults
from aisix.simulator.content import JsonObject, filler
from aisix.simulator.exchange import Call, Content, Handler, Json, Outcome
from aisix.simulator.faults import Fault
from aisix.simulator.script import Script, parse
from aisix.simulator.shelf import Shelf, page

_PURPOSES = ("assistants", "batch", "evals", "fine-tune", "user_data", "vision")
_LINES_ONLY = ("batch", "fine-tune")
_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Stored:
    """One file: its object as lists show it, and its beginning."""

    shown: JsonObject
    prefix: bytes


class Files:
    """The files of one resource."""

    def __init__(self) -> None:
        self._files: Shelf[Stored] = Shelf("No such File object: {}")

    def handlers(self) -> dict[str, Handler]:
        """The handlers of this module by operation."""
        return {
            "POST files": self._upload,
            "GET files": self._list,
            "GET files/{id}": self._show,
            "DELETE files/{id}": self._delete,
            "GET files/{id}/content": self._content,
        }

    def find(self, name: object) -> Stored | Fault:
        """The file of an id, or its 404."""
        return self._files.find(str(name))

    def write(self, call: Call, filename: str, purpose: str, data: bytes) -> str:
        """Keep what the resource itself has made; returns the id."""
        file = self._keep(call, filename, purpose, size=len(data), prefix=data)
        return str(file.shown["id"])

    def _keep(self, call: Call, filename: str, purpose: str, *, size: int, prefix: bytes) -> Stored:
        name = f"file-{call.hex_id()}"
        shown = {
            "id": name,
            "object": "file",
            "bytes": size,
            "created_at": call.now,
            "filename": filename,
            "purpose": purpose,
            "status": "processed",
        }
        file = Stored(shown, prefix)
        self._files.add(name, file, weight_bytes=len(prefix))
        return file

    def _upload(self, call: Call) -> Outcome:
        purpose = call.form.value("purpose")
        if purpose is None:
            return faults.missing("purpose")
        if purpose not in _PURPOSES:
            return faults.unacceptable("purpose", purpose, *_PURPOSES)
        part = call.form.file("file")
        if isinstance(part, Fault):
            return part
        filename = str(part.filename)
        if purpose in _LINES_ONLY and not filename.endswith(".jsonl"):
            message = f"Invalid file format for '{purpose}': expected a .jsonl file."
            return faults.invalid(message, param="file", code="invalidPayload")
        file = self._keep(call, filename, purpose, size=part.size, prefix=part.prefix)
        return Json(file.shown)

    def _list(self, call: Call) -> Outcome:
        purpose = call.inbound.query.get("purpose")
        shown = [f.shown for f in self._files if purpose in (None, f.shown["purpose"])]
        return page(shown, call.inbound.query)

    def _show(self, call: Call) -> Outcome:
        file = self.find(call.ids[0])
        return file if isinstance(file, Fault) else Json(file.shown)

    def _delete(self, call: Call) -> Outcome:
        file = self.find(call.ids[0])
        if isinstance(file, Fault):
            return file
        self._files.remove(call.ids[0])
        return Json({"id": call.ids[0], "object": "file", "deleted": True})

    def _content(self, call: Call) -> Outcome:
        file = self.find(call.ids[0])
        if isinstance(file, Fault):
            return file
        filename = str(file.shown["filename"])
        named = parse(filename.rpartition(".")[0], lenient=True)
        pieces, length = _pieces(file, call.script.over(named))
        printable = "".join(c for c in filename if c.isascii() and c.isprintable() and c != '"')
        headers = (("content-disposition", f'attachment; filename="{printable}"'),)
        return Content("application/octet-stream", pieces, length, headers)


def _pieces(file: Stored, script: Script) -> tuple[Iterator[bytes], int]:
    """The content and its length."""
    if script.bulk is not None:
        return filler(script.bulk * _MIB), script.bulk * _MIB
    if script.size is not None:
        length = script.size * (1 if script.n is None else script.n)
        return filler(length, script.size), length
    rest = file.shown["bytes"] - len(file.prefix)
    return itertools.chain((file.prefix,), filler(rest)), file.shown["bytes"]
