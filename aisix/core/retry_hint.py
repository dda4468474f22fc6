"""How long an upstream asks to wait, in whatever form it says so (decisions §4). Pure.

Azure uses `retry-after-ms`, `x-ms-retry-after-ms`, `Retry-After` in seconds or as a date, and often
nothing but the text of its message. OpenAI's text may have hours and minutes (`6m0s`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

_RETRY_TEXT = re.compile(
    r"(?:retry|try again) (?:after|in) (\d{1,7}(?:\.\d{1,3})?) ?(milliseconds?|ms|seconds?|s)\b",
    re.IGNORECASE,
)
_RETRY_DURATION = re.compile(
    r"try again in (?:(\d{1,4})h)?(?:(\d{1,4})m)?(\d{1,4}(?:\.\d{1,3})?)s\b", re.IGNORECASE
)


def retry_hint_s(headers: Mapping[str, str], message: str, now: float) -> float | None:
    """Seconds to wait: the exact forms first, the text last, as Azure often sends nothing else."""
    for name in ("retry-after-ms", "x-ms-retry-after-ms"):
        wait = _number(headers.get(name))
        if wait is not None:
            return wait / 1000
    value = headers.get("retry-after")
    wait = _number(value)
    if wait is None and value:
        wait = _until(value, headers.get("date"), now)
    if wait is not None:
        return wait
    text = _RETRY_TEXT.search(message)
    if text is not None:
        return float(text[1]) / (1000 if text[2].lower().startswith("m") else 1)
    duration = _RETRY_DURATION.search(message)
    if duration is None:
        return None
    hours, minutes, seconds = (float(part or 0) for part in duration.groups())
    return 3600 * hours + 60 * minutes + seconds


def _number(value: str | None) -> float | None:
    try:
        number = float(value or "")
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0 else None


def _until(value: str, sent: str | None, now: float) -> float | None:
    # the answer's own date spares us the difference between Azure's clock and ours
    start = _epoch(sent or "")
    end = _epoch(value)
    if end is None:
        return None
    return max(0.0, end - (now if start is None else start))


def _epoch(value: str) -> float | None:
    try:
        return parsedate_to_datetime(value).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None
