"""A head that a caller repeats on its connection, recognised by its bytes. Pure.

SDKs send the same head with every request of a connection; only the length of the body differs.
A head that llhttp and our own rules have accepted becomes a template: what stands before the digits
of its Content-Length, and what stands behind them to the blank line. A request whose bytes are the
same but for those digits can mean nothing else, so it need not be parsed again. Whatever differs in
one byte more is not recognised and is parsed like any request.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

MAX_LEARNT_BYTES = 8 * 1024
"""Longer heads are not learnt: a template is kept for as long as its connection."""

_BEGIN = b"POST "
_END = b"\r\n\r\n"
_LENGTH_NAME = b"content-length"
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]+)[ \t]*\r\n", re.IGNORECASE)
_MAX_DIGITS = 12


class HeadTemplate:
    """One head, but for the length of its body. `fields` are those of the head it was learnt from,
    in order; `target` is as the caller spelt it."""

    __slots__ = ("_begin", "_end", "fields", "target")

    def __init__(self, begin: bytes, end: bytes, *, target: str, fields: Mapping[str, str]) -> None:
        self._begin = begin
        self._end = end
        self.target = target
        self.fields = dict(fields)

    def match(self, data: bytes) -> tuple[str, int] | None:
        """The digits of the Content-Length and where the body begins, when `data` begins with this
        head; None when it does not."""
        begin = self._begin
        if not data.startswith(begin):
            return None
        at = len(begin)
        # what stands behind the digits is compared, so this need not find the right byte
        stop = data.find(self._end[:1], at, at + _MAX_DIGITS + 1)
        if stop < 0 or not data.startswith(self._end, stop):
            return None
        digits = data[at:stop]
        if not digits.isdigit():
            return None
        return digits.decode(), stop + len(self._end)


def learn(data: bytes, *, target: str, fields: Mapping[str, str]) -> HeadTemplate | None:
    """A template of the head that `data` begins with, which was accepted as one of a POST with a
    body of known length; None when its Content-Length is not to be found beyond doubt."""
    if not data.startswith(_BEGIN):
        return None
    end = data.find(_END, 0, MAX_LEARNT_BYTES) + len(_END)
    if end < len(_END):
        return None
    head = data[:end]
    found = _LENGTH.search(head)
    if found is None or head.lower().count(_LENGTH_NAME) != 1:
        return None
    start, stop = found.span(1)
    if stop - start > _MAX_DIGITS:
        return None
    return HeadTemplate(head[:start], head[stop:], target=target, fields=fields)
