"""Why an admin request is refused: one exception, a status and a text that names the remedy. Pure.

The texts follow the admin API's established wording (`schema validation failed at <pointer>: …`,
`resource not found`, `name "…" already in use by another resource`). None ever holds a secret or
a key.
"""

from __future__ import annotations

from collections.abc import Sequence

_SHOWN_USERS = 10


class Refusal(Exception):
    """An admin request that is not carried out; nothing was changed."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


def invalid(pointer: str, reason: str) -> Refusal:
    """A field breaks its rule; `pointer` is a JSON pointer, "" for the document."""
    return Refusal(400, f"schema validation failed at {pointer}: {reason}")


def malformed(reason: str) -> Refusal:
    """The body is not JSON as we take it."""
    return Refusal(400, f"malformed JSON: {reason}")


def not_found() -> Refusal:
    """No resource with this id."""
    return Refusal(404, "resource not found")


def name_taken(name: str) -> Refusal:
    """Another resource of the kind has the name."""
    return Refusal(409, f'name "{name}" already in use by another resource')


def in_use(users: Sequence[str]) -> Refusal:
    """Models still need the resource."""
    shown = ", ".join(f'"{user}"' for user in users[:_SHOWN_USERS])
    more = f" and {len(users) - _SHOWN_USERS} more" if len(users) > _SHOWN_USERS else ""
    noun = "model" if len(users) == 1 else "models"
    return Refusal(409, f"provider key is in use by {noun} {shown}{more}; change or delete first")


def stale(revision: int) -> Refusal:
    """If-Match names another revision."""
    return Refusal(412, f"resource has revision {revision}, which If-Match does not name")


def changed_meanwhile() -> Refusal:
    """Another process wrote the same row between our read and our write."""
    return Refusal(409, "resource was changed by another process meanwhile; try again")


def busy(at_once: int) -> Refusal:
    """As many verifications as are allowed run already."""
    return Refusal(429, f"{at_once} verifications are running already; try again in some seconds")


def store_failed(cause: str) -> Refusal:
    """The store could not read or write."""
    return Refusal(500, f"store error: {cause}")
