"""Takes out of Azure's error text what callers must not learn about our side. Pure.

Removed: the deployment's own host and name where they are known, every Azure host, IP address
and request URL where they are not, and stack traces. Links to public documentation stay: they are
why a content filter's message is useful. Scrubbing a scrubbed text changes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from aisix.core.resources import Deployment

HOST = "[host]"
DEPLOYMENT = "[deployment]"
_URL = "[url]"
_TOKEN = "[token]"  # noqa: S105 - a placeholder, not a token

_MAX_DEPTH = 8
_MAX_STRING_CHARS = 4096
_PLACEHOLDER_WORDS = frozenset({"host", "deployment", "url", "token"})
_TRACES = frozenset({"callstack", "call_stack", "stack", "stacktrace", "stack_trace"})
_DOCUMENTATION = frozenset(
    {
        "aka.ms",
        "go.microsoft.com",
        "learn.microsoft.com",
        "docs.microsoft.com",
        "platform.openai.com",
        "help.openai.com",
    }
)
_URLS = re.compile(r"\b(?:https?|wss?)://[^\s\"'<>`]+", re.IGNORECASE)
_HOSTS = re.compile(
    r"(?<![\w.-])(?:[a-z0-9_-]+\.)+(?:azure\.(?:com|us|cn)|microsoft\.com|azure-api\.net|"
    r"windows\.net|internal|local|corp|lan)(?![\w-]|\.\w)(?::\d+)?(?:/[^\s\"'<>`]*)?",
    re.IGNORECASE,
)
_ADDRESSES = re.compile(r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?![\w]|\.\d)(?::\d+)?")
_PATHS = re.compile(r"(?<![\w/])/?openai/deployments/[^\s\"'<>`]+", re.IGNORECASE)
_NAMED = re.compile(
    r"(\bdeployment\b(?: name| id)?[:=]? ?)(['\"`])[A-Za-z0-9._-]+\2", re.IGNORECASE
)
# OpenAI repeats a wrong key with stars in its middle
_TOKENS = re.compile(r"\beyJ[\w-]{8,}(?:\.[\w-]*){0,2}|\bsk-[\w*-]{16,}")
_TRACE_TEXT = re.compile(r"\s*Traceback \(most recent call last\).*", re.DOTALL)
_UNSEEN = re.compile(r"[\x00-\x20\x7f-\xa0\u2028\u2029\ud800-\udfff]+")


def one_line(text: str, limit: int) -> str:
    """`text` without line breaks and control characters, at most `limit` characters."""
    # twice the limit is enough to find that many visible characters in any honest text
    return _UNSEEN.sub(" ", text[: 2 * limit]).strip()[:limit]


class Scrubber:
    """Scrubs for one deployment; without one, by what hosts and paths look like."""

    def __init__(self, deployment: Deployment | None = None) -> None:
        self._own: list[tuple[re.Pattern[str], str]] = []
        if deployment is None:
            return
        host = urlsplit(deployment.api_base).hostname
        if host:
            self._own.append((_word(host), HOST))
            label = host.partition(".")[0]  # the resource's name
            if ".azure." in host:
                self._own.append((_word(label), HOST))
        if deployment.name and deployment.name.lower() not in _PLACEHOLDER_WORDS:
            self._own.append((_word(deployment.name), DEPLOYMENT))

    def text(self, text: str) -> str:
        """`text` without hosts, deployment names, request URLs and tokens."""
        text = _TRACE_TEXT.sub("", text)
        text = _URLS.sub(_link, text)
        text = _PATHS.sub(_URL, text)
        text = _HOSTS.sub(_host, text)
        text = _ADDRESSES.sub(HOST, text)
        text = _NAMED.sub(rf"\1\2{DEPLOYMENT}\2", text)
        for pattern, placeholder in self._own:
            text = pattern.sub(placeholder, text)
        return _TOKENS.sub(_TOKEN, text)

    def value(self, value: Any, depth: int = 0) -> Any:
        """A JSON value, scrubbed throughout, without stack traces, cut off when too deep."""
        if isinstance(value, str):
            return self.text(value[:_MAX_STRING_CHARS])
        if isinstance(value, Mapping | list) and depth >= _MAX_DEPTH:
            return None
        if isinstance(value, Mapping):
            return {
                self.text(str(name)): self.value(item, depth + 1)
                for name, item in value.items()
                if str(name).lower() not in _TRACES
            }
        if isinstance(value, list):
            return [self.value(item, depth + 1) for item in value]
        return value

    @staticmethod
    def for_log(text: str) -> str:
        """Only what may not even be logged: tokens and keys that Azure repeats."""
        return _TOKENS.sub(_TOKEN, text)


def _word(name: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![\w.-]){re.escape(name)}(?![\w-]|\.\w)", re.IGNORECASE)


def _link(match: re.Match[str]) -> str:
    try:
        host = urlsplit(match[0]).hostname
    except ValueError:
        host = None
    return match[0] if host in _DOCUMENTATION else _URL


def _host(match: re.Match[str]) -> str:
    host = re.split(r"[:/]", match[0], maxsplit=1)[0].lower()
    return match[0] if host in _DOCUMENTATION else HOST
