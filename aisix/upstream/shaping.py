"""Applies a `Shaping` to a request: its body, and what goes upstream of its headers. Pure.

The same for every dialect, and done before the dialect's own changes. The caller's document is
never changed; when nothing is to be changed, it is the very same object that comes back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aisix.core.request import HeaderView
from aisix.core.shaping import MAX_DEFAULT_HEADERS, Shaping, passes

Headers = list[tuple[str, str]]


def shape_document(document: dict[str, Any], shaping: Shaping) -> dict[str, Any]:
    """`document` with the changes to the body; itself when there are none."""
    shaped = dict(document)
    moved = [
        (target, shaped.pop(source)) for source, target in shaping.renames if source in document
    ]
    shaped.update(moved)
    clamped = _clamped(shaped.get("temperature"), shaping)
    if clamped is not None:
        shaped["temperature"] = clamped
    missing = [(name, value) for name, value in shaping.default_fields if name not in shaped]
    shaped.update(missing)
    return shaped if moved or clamped is not None or missing else document


def _clamped(temperature: object, shaping: Shaping) -> float | None:
    """The bound that a temperature passes; None when it may stay, or is no number."""
    if isinstance(temperature, bool) or not isinstance(temperature, int | float):
        return None
    least, most = shaping.temperature_min, shaping.temperature_max
    if most is not None and temperature > most:
        return most
    if least is not None and temperature < least:
        return least
    return None


def forwarded_headers(
    headers: HeaderView, allowed: Sequence[str], *, shaping: Shaping | None
) -> Headers:
    """What goes upstream of a caller's headers: the `allowed` names, then those that `shaping`
    lets pass, as many as there is room for beside the request id and the default headers.

    A name that has a default is the operator's: the caller's value does not replace it.
    """
    found = [(name, value) for name in allowed if (value := headers.get(name))]
    if shaping is None:
        return [pair for pair in found if _is_plain(pair[1])]
    found += _let_pass(headers, shaping.forward_headers, allowed)
    closed = {*shaping.strip_headers, *(name for name, _ in shaping.default_headers)}
    passing = [(name, value) for name, value in found if name not in closed and _is_plain(value)]
    return passing[: max(0, MAX_DEFAULT_HEADERS - len(shaping.default_headers))]


def _let_pass(headers: HeaderView, patterns: Sequence[str], allowed: Sequence[str]) -> Headers:
    if not patterns:
        return []
    # what a caller declares to be the connection's own is not meant for anyone behind us
    nominated = {name.strip().lower() for name in (headers.get("connection") or "").split(",")}
    return [
        (lower, value)
        for name, value in headers.items()
        if (lower := name.lower()) not in allowed
        and lower not in nominated
        and any(passes(pattern, lower) for pattern in patterns)
    ]


def _is_plain(value: str) -> bool:
    return value.isascii() and value.isprintable()
