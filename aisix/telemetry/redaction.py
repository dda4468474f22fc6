"""Keeps secrets out of the log: known ones by their text, others by what they look like. Pure.

Redaction works on values before they are rendered, so that escaping cannot hide a secret from it.
A value under a telling name (`api_key`, `authorization`) is masked whatever it looks like.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote

MASK = "***"

MIN_SECRET_CHARS = 8
"""Shorter texts are not registered: masking them would eat ordinary words."""

_MAX_DEPTH = 6
_MAX_ITEMS = 100

_SECRET_NAMES = frozenset(
    {
        "access_token",
        "api-key",
        "api_key",
        "apikey",
        "authorization",
        "client_assertion",
        "client_secret",
        "encryption_key",
        "ocp-apim-subscription-key",
        "password",
        "plaintext",
        "refresh_token",
        "secret",
        "token",
        "x-api-key",
        "x-goog-api-key",
    }
)

_ASSIGNED = re.compile(
    r"""(?ix)
    ( (?:api[-_]?key | client[-_]secret | client[-_]assertion | authorization | password
       | access[-_]token | refresh[-_]token | subscription-key | encryption[-_]key | secret)
      (?: \\?["'] \s* [:=,] | \s* [:=] ) \s* (?:b?\\?["'])?
    )
    (?: (?:bearer|basic) [ ]+ )?
    [^\s"'\\,;&<>{}()\[\]]+
    """
)
_PATTERNS: tuple[tuple[re.Pattern[str], str], ...] = (
    (_ASSIGNED, rf"\1{MASK}"),
    (re.compile(r"(?i)\b(bearer)[ ]+(?!tokens?\b)[A-Za-z0-9._~+/=-]{4,}"), rf"\1 {MASK}"),
    (re.compile(r"(?i)\b(basic)[ ]+[A-Za-z0-9+/=]{8,}"), rf"\1 {MASK}"),
    (re.compile(r"\bsk-[A-Za-z0-9_-]{4,}"), f"sk-{MASK}"),
    (re.compile(r"\beyJ[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]*){0,2}"), MASK),
    (re.compile(r"(?<![A-Za-z0-9])[A-Za-z0-9]{84}(?![A-Za-z0-9])"), MASK),
)
_MARKERS = (
    *("sk-", "eyj", "bearer", "basic ", "secret", "authorization", "password"),
    *("api-key", "api_key", "apikey", "ption-key", "ption_key"),
    *("access_token", "access-token", "refresh_token", "refresh-token"),
    *("client_assertion", "client-assertion"),
)
"""Every text that a pattern matches holds one of these (in lower case), or is long."""

_LONG_KEY_CHARS = 84
_UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_are_uuids = re.compile(f"{_UUID} (?:{_UUID})?").fullmatch
_PART_OF_UUID = re.compile(r"[0-9a-f]{0,12}(?:-[0-9a-f]{0,12}){0,4}")
_PLAIN = frozenset({int, float, bool, type(None)})


class Redactor:
    """Masks secrets in texts and in structures of them. Groups may be replaced at any time."""

    def __init__(self) -> None:
        self._groups: dict[str, tuple[str, ...]] = {}
        self._secrets: tuple[str, ...] = ()
        self._like_uuids: tuple[str, ...] = ()
        self.revision = 0
        """Grows whenever the secrets change: what was redacted before may not be by today's."""

    def hide(self, group: str, secrets: Iterable[str]) -> None:
        """From now on mask `secrets`, in place of what `group` held before."""
        self._groups[group] = tuple(
            form
            for secret in secrets
            if len(secret) >= MIN_SECRET_CHARS
            for form in (secret, json.dumps(secret)[1:-1], quote(secret, safe=""))
        )
        known = {form for forms in self._groups.values() for form in forms}
        # longest first: a secret that holds another must go as a whole
        self._secrets = tuple(sorted(known, key=lambda form: (-len(form), form)))
        self._like_uuids = tuple(form for form in self._secrets if _PART_OF_UUID.fullmatch(form))
        self.revision += 1

    def text(self, text: str) -> str:
        """`text` without secrets."""
        for secret in self._secrets:
            if secret in text:
                text = text.replace(secret, MASK)
        if len(text) >= _LONG_KEY_CHARS or _has_marker(text):
            for pattern, replacement in _PATTERNS:
                text = pattern.sub(replacement, text)
        return text

    def are_harmless_uuids(self, one: str, other: str) -> bool:
        """Whether both texts are UUIDs in their usual spelling, or `other` is empty, and hold no
        secret: they can be shown as they are. Asked of the ids of every request, which no cache
        can hold."""
        text = f"{one} {other}"
        if not _are_uuids(text):
            return False
        return not self._like_uuids or all(secret not in text for secret in self._like_uuids)

    def fields(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """`fields` without secrets. Values come back as JSON types."""
        return dict(fields) if self._is_clean(fields) else self._mapping(fields, 0)

    def _is_clean(self, fields: Mapping[str, Any]) -> bool:
        """Whether it is plain that nothing is to be masked: most records are spared the work."""
        texts: list[str] = []
        for value in fields.values():
            kind = type(value)
            if kind is str:
                if len(value) >= _LONG_KEY_CHARS:
                    return False
                texts.append(value)
            elif kind not in _PLAIN:
                return False
        joined = "\n".join(texts)
        if _has_marker(joined) or not _SECRET_NAMES.isdisjoint(fields):
            return False
        return not any(secret in joined for secret in self._secrets)

    def _mapping(self, mapping: Mapping[Any, Any], depth: int) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for name, value in list(mapping.items())[:_MAX_ITEMS]:
            text = name if isinstance(name, str) else repr(name)
            if text.lower() in _SECRET_NAMES and value not in (None, "", False, True):
                result[text] = MASK
            else:
                # names at the top are ours; further down they may be anybody's
                shown = self.text(text) if depth else text
                result[shown] = self._value(value, depth + 1)
        return result

    def _value(self, value: Any, depth: int) -> Any:
        if value is None or isinstance(value, bool | int | float):
            return value
        if isinstance(value, str):
            return self.text(value)
        if depth < _MAX_DEPTH:
            if isinstance(value, Mapping):
                return self._mapping(value, depth)
            if isinstance(value, list | tuple | set | frozenset):
                return [self._value(item, depth + 1) for item in list(value)[:_MAX_ITEMS]]
        return self.text(_words(value))


def _words(value: Any) -> str:
    """The text of any object; an object that cannot say it must not break the log."""
    try:
        return str(value)
    except Exception as error:
        return f"<{type(value).__name__} without text: {type(error).__name__}>"


def _has_marker(text: str) -> bool:
    """Whether a pattern could match at all."""
    lowered = text.lower()
    return any(marker in lowered for marker in _MARKERS)
