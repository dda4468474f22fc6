"""What a resource keeps: things by id in the order they were made, and lists of them in pages.

A shelf has room for so many things and so much weight; beyond that the oldest go. Pages are
OpenAI's list objects with `limit`, `order`, `after` and `before`. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Generic, TypeVar

from aisix.simulator import faults
from aisix.simulator.content import JsonObject
from aisix.simulator.exchange import Json
from aisix.simulator.faults import Fault

Kept = TypeVar("Kept")

_MOST_THINGS = 10_000
_MOST_WEIGHT_BYTES = 256 * 1024 * 1024
_DEFAULT_LIMIT = 20
_MOST_PER_PAGE = 10_000


class Shelf(Generic[Kept]):
    """Things of one kind. `missing` is what is said when one is not there, with its id."""

    def __init__(self, missing: str = "There is no '{}'.") -> None:
        self._missing = missing
        self._things: dict[str, tuple[Kept, int]] = {}
        self._weight = 0

    def __iter__(self) -> Iterator[Kept]:
        return iter([thing for thing, _ in self._things.values()])

    def add(self, name: str, thing: Kept, *, weight_bytes: int = 0) -> None:
        """Keep a thing under its id."""
        self._things[name] = thing, weight_bytes
        self._weight += weight_bytes
        while len(self._things) > _MOST_THINGS or self._weight > _MOST_WEIGHT_BYTES:
            self.remove(next(iter(self._things)))

    def get(self, name: str) -> Kept | None:
        """The thing of an id."""
        found = self._things.get(name)
        return found[0] if found else None

    def find(self, name: str) -> Kept | Fault:
        """The thing of an id, or its 404."""
        found = self._things.get(name)
        return found[0] if found else faults.not_found(self._missing.format(name))

    def remove(self, name: str) -> Kept | None:
        """Forget a thing; says which it was."""
        found = self._things.pop(name, None)
        if found is None:
            return None
        self._weight -= found[1]
        return found[0]


def page(entries: Sequence[JsonObject], query: Mapping[str, str]) -> Json | Fault:
    """One page of a list whose entries come oldest first, or the refusal of the query."""
    limit = query.get("limit", str(_DEFAULT_LIMIT))
    if not limit.isdecimal() or not 1 <= int(limit) <= _MOST_PER_PAGE:
        message = f"Invalid 'limit': expected an integer from 1 to {_MOST_PER_PAGE}, got '{limit}'."
        return faults.invalid(message, param="limit", code="invalid_value")
    order = query.get("order", "desc")
    if order not in ("asc", "desc"):
        return faults.unacceptable("order", order, "asc", "desc")
    ordered = list(entries) if order == "asc" else list(reversed(entries))
    names = [entry["id"] for entry in ordered]
    for cursor in ("after", "before"):
        if cursor in query and query[cursor] not in names:
            message = f"Invalid '{cursor}': there is no '{query[cursor]}' in this list."
            return faults.invalid(message, param=cursor, code="invalid_value")
    start = names.index(query["after"]) + 1 if "after" in query else 0
    end = names.index(query["before"]) if "before" in query else len(ordered)
    shown = ordered[start:end][: int(limit)]
    return Json(
        {
            "object": "list",
            "data": shown,
            "first_id": shown[0]["id"] if shown else None,
            "last_id": shown[-1]["id"] if shown else None,
            "has_more": start + len(shown) < end,
        }
    )
