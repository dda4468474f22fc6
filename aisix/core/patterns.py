"""Names with at most one `*`, as allow-lists and wildcard models use them. Pure.

One `*` stands anywhere, is anchored at both ends and may match nothing. A pattern with more than
one `*` never matches: two stars would make "what was captured" ambiguous.
"""

from __future__ import annotations


def capture(pattern: str, name: str) -> str | None:
    """What `*` stands for when `name` fits `pattern`; "" for an exact fit; None when it does not
    fit.
    """
    stars = pattern.count("*")
    if stars == 0:
        return "" if pattern == name else None
    if stars > 1:
        return None
    head, tail = pattern.split("*")
    if len(name) < len(head) + len(tail):
        return None
    if not (name.startswith(head) and name.endswith(tail)):
        return None
    return name[len(head) : len(name) - len(tail)]


def matches(pattern: str, name: str) -> bool:
    """Whether `name` fits `pattern`."""
    return capture(pattern, name) is not None
