"""Vector stores: named sets of files that can be searched.

A search finds the beginning of every file of the store, the ones that share words with the query
first. Pure.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from aisix.simulator import faults
from aisix.simulator.content import JsonObject
from aisix.simulator.exchange import Call, Handler, Json, Outcome
from aisix.simulator.faults import Fault
from aisix.simulator.files import Files, Stored
from aisix.simulator.shelf import Shelf, page

_SNIPPET_BYTES = 800
_MOST_RESULTS = 50
_DEFAULT_RESULTS = 10
_DAY_S = 24 * 60 * 60


@dataclass(slots=True)
class _Store:
    shown: JsonObject
    files: Shelf[JsonObject] = field(
        default_factory=lambda: Shelf("No file found with id '{}' in vector store.")
    )


class VectorStores:
    """The vector stores of one resource."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._stores: Shelf[_Store] = Shelf("Vector store with id '{}' not found.")

    def handlers(self) -> dict[str, Handler]:
        """The handlers of this module by operation."""
        return {
            "POST vector_stores": self._create,
            "GET vector_stores": self._list,
            "GET vector_stores/{id}": self._show,
            "POST vector_stores/{id}": self._modify,
            "DELETE vector_stores/{id}": self._delete,
            "POST vector_stores/{id}/search": self._search,
            "POST vector_stores/{id}/files": self._attach,
            "GET vector_stores/{id}/files": self._list_files,
            "GET vector_stores/{id}/files/{id}": self._show_file,
            "POST vector_stores/{id}/files/{id}": self._modify_file,
            "GET vector_stores/{id}/files/{id}/content": self._show_content,
            "DELETE vector_stores/{id}/files/{id}": self._detach,
        }

    # --- stores ---------------------------------------------------------------------------------

    def _create(self, call: Call) -> Outcome:
        body, name = call.body, f"vs_{call.hex_id()}"
        expires = body.get("expires_after")
        days = expires.get("days") if isinstance(expires, dict) else None
        shown = {
            "id": name,
            "object": "vector_store",
            "created_at": call.now,
            "expires_after": expires,
            "expires_at": call.now + days * _DAY_S if isinstance(days, int) else None,
            "last_active_at": call.now,
            "metadata": body.get("metadata") or {},
            "name": body.get("name") or "",
            "status": "completed",
        }
        store = _Store(shown)
        named = body.get("file_ids") or []
        if not isinstance(named, list):
            return faults.wrong_type("file_ids", "an array of strings")
        for file_id in named:
            file = self._files.find(file_id)
            if isinstance(file, Fault):
                return file
            self._add(call, store, file, {})
        self._stores.add(name, store)
        return Json(_counted(store))

    def _list(self, call: Call) -> Outcome:
        return page([_counted(store) for store in self._stores], call.inbound.query)

    def _show(self, call: Call) -> Outcome:
        store = self._stores.find(call.ids[0])
        return store if isinstance(store, Fault) else Json(_counted(store))

    def _modify(self, call: Call) -> Outcome:
        store = self._stores.find(call.ids[0])
        if isinstance(store, Fault):
            return store
        for name in ("name", "metadata", "expires_after"):
            if name in call.body:
                store.shown[name] = call.body[name]
        return Json(_counted(store))

    def _delete(self, call: Call) -> Outcome:
        store = self._stores.find(call.ids[0])
        if isinstance(store, Fault):
            return store
        self._stores.remove(call.ids[0])
        return Json({"id": call.ids[0], "object": "vector_store.deleted", "deleted": True})

    def _search(self, call: Call) -> Outcome:
        store, query = self._stores.find(call.ids[0]), call.body.get("query")
        if isinstance(store, Fault):
            return store
        asked = [query] if isinstance(query, str) else query
        if not isinstance(asked, list) or not asked:
            return faults.missing("query")
        most = call.body.get("max_num_results", _DEFAULT_RESULTS)
        if not isinstance(most, int) or not 1 <= most <= _MOST_RESULTS:
            message = f"Invalid 'max_num_results': expected an integer from 1 to {_MOST_RESULTS}."
            return faults.invalid(message, param="max_num_results", code="invalid_value")
        wanted = _words(" ".join(map(str, asked)))
        found = [
            _result(entry, file, wanted)
            for entry in store.files
            if isinstance(file := self._files.find(entry["id"]), Stored)
        ]
        found.sort(key=lambda result: -result["score"])
        return Json(
            {
                "object": "vector_store.search_results.page",
                "search_query": asked,
                "data": found[:most],
                "has_more": False,
                "next_page": None,
            }
        )

    # --- their files ----------------------------------------------------------------------------

    def _attach(self, call: Call) -> Outcome:
        store = self._stores.find(call.ids[0])
        if isinstance(store, Fault):
            return store
        if call.body.get("file_id") is None:
            return faults.missing("file_id")
        file = self._files.find(call.body["file_id"])
        if isinstance(file, Fault):
            return file
        return Json(self._add(call, store, file, call.body.get("attributes") or {}))

    def _add(self, call: Call, store: _Store, file: Stored, attributes: JsonObject) -> JsonObject:
        entry = {
            "id": file.shown["id"],
            "object": "vector_store.file",
            "created_at": call.now,
            "attributes": attributes,
            "chunking_strategy": {
                "type": "static",
                "static": {"chunk_overlap_tokens": 400, "max_chunk_size_tokens": 800},
            },
            "last_error": None,
            "status": "completed",
            "usage_bytes": file.shown["bytes"],
            "vector_store_id": store.shown["id"],
        }
        store.files.add(str(file.shown["id"]), entry)
        return entry

    def _list_files(self, call: Call) -> Outcome:
        store = self._stores.find(call.ids[0])
        if isinstance(store, Fault):
            return store
        return page(list(store.files), call.inbound.query)

    def _show_file(self, call: Call) -> Outcome:
        entry = self._entry(call)
        return entry if isinstance(entry, Fault) else Json(entry)

    def _modify_file(self, call: Call) -> Outcome:
        entry = self._entry(call)
        if isinstance(entry, Fault):
            return entry
        entry["attributes"] = call.body.get("attributes") or {}
        return Json(entry)

    def _show_content(self, call: Call) -> Outcome:
        entry, file = self._entry(call), self._files.find(call.ids[1])
        if isinstance(entry, Fault):
            return entry
        if isinstance(file, Fault):
            return file
        text = file.prefix.decode("utf-8", "replace")
        listed = {
            "object": "vector_store.file_content.page",
            "data": [{"type": "text", "text": text}],
            "has_more": False,
            "next_page": None,
        }
        return Json(listed)

    def _detach(self, call: Call) -> Outcome:
        store = self._stores.find(call.ids[0])
        if isinstance(store, Fault):
            return store
        entry = store.files.find(call.ids[1])
        if isinstance(entry, Fault):
            return entry
        store.files.remove(call.ids[1])
        return Json({"id": call.ids[1], "object": "vector_store.file.deleted", "deleted": True})

    def _entry(self, call: Call) -> JsonObject | Fault:
        store = self._stores.find(call.ids[0])
        return store if isinstance(store, Fault) else store.files.find(call.ids[1])


def _counted(store: _Store) -> JsonObject:
    entries = list(store.files)
    counts = {"cancelled": 0, "failed": 0, "in_progress": 0}
    return {
        **store.shown,
        "file_counts": {**counts, "completed": len(entries), "total": len(entries)},
        "usage_bytes": sum(entry["usage_bytes"] for entry in entries),
    }


def _result(entry: JsonObject, file: Stored, wanted: frozenset[str]) -> JsonObject:
    text = file.prefix[:_SNIPPET_BYTES].decode("utf-8", "replace")
    shared = len(wanted & _words(text))
    return {
        "file_id": entry["id"],
        "filename": file.shown["filename"],
        "score": round(shared / len(wanted), 4) if wanted else 0.0,
        "attributes": entry["attributes"],
        "content": [{"type": "text", "text": text}],
    }


def _words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", text.lower()))
