"""The log: one line per record on standard error, JSON or, on a terminal, text.

Lines are rendered where they are logged; `telemetry.lines` writes them. Every text passes the
redactor first, tracebacks too, and control characters are escaped: no value can forge a line. The
handler on the root logger is the only state; nothing is kept in this module.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any, TextIO

import ujson

from aisix.telemetry.lines import BatchingHandler, LineHandler
from aisix.telemetry.redaction import Redactor

MAX_TEXT_CHARS = 8 * 1024
"""A message or traceback is cut to this."""

MAX_WAITING_LINES = 10_000
"""Lines that wait for a slow reader; more are dropped."""

FORMS = ("json", "text", "auto")

_QUIET = ("asyncio", "azure", "msal", "urllib3", "tornado.application", "tornado.general")
_SILENT = logging.CRITICAL + 1
_OWN = "aisix"
_STANDARD = frozenset(
    {*logging.makeLogRecord({}).__dict__, "message", "asctime", "taskName", "color_message"}
)


class JsonFormatter(logging.Formatter):
    """One JSON object per record: when, how bad, who, what, and the fields."""

    def __init__(
        self, redactor: Redactor, *, service_name: str, marks: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.own_fields: Mapping[str, Any] = {"service": service_name, **(marks or {})}
        """What every line of this process says of it."""
        self._redactor = redactor

    def format(self, record: logging.LogRecord) -> str:
        """The line; ASCII only, so that nothing in it can be a control character."""
        what = "event" if _is_own(record) else "message"
        document: dict[str, Any] = {
            "time": timestamp(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            what: _message(record, self._redactor),
            **self.own_fields,
        }
        for name, value in self._redactor.fields(_extra(record)).items():
            document.setdefault(name, value)
        trace = _traceback(record, self._redactor)
        if trace:
            document["exception"] = trace
        return render_json(document)


class TextFormatter(logging.Formatter):
    """For a person at a terminal."""

    def __init__(self, redactor: Redactor, *, marks: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self._marks = dict(marks or {})
        self._redactor = redactor

    def format(self, record: logging.LogRecord) -> str:
        """Time, level, logger, message, name=value; a traceback follows, indented."""
        parts = [
            timestamp(record.created)[11:23],
            f"{record.levelname:<8}",
            record.name,
            _message(record, self._redactor),
        ]
        fields = {**self._redactor.fields(_extra(record)), **self._marks}
        parts.extend(f"{name}={_shown(value)}" for name, value in fields.items())
        line = escape(" ".join(parts))
        for trace_line in _traceback(record, self._redactor).splitlines():
            line += "\n    " + escape(trace_line)
        return line


def configure(
    *,
    level: str = "info",
    service_name: str = "aisix",
    stream: TextIO | None = None,
    form: str = "auto",
    threaded: bool = True,
    marks: Mapping[str, Any] | None = None,
) -> LineHandler:
    """Send all logging to `stream` (standard error). `form` is json, text or auto: text when the
    stream is a terminal. Without `threaded` lines are written where they are logged, for a process
    that is going to fork. `marks` are fields of every line, such as the number of a worker. A
    second call replaces the first, in a forked process too.

    Raises ValueError for an unknown level or form.
    """
    number = level_number(level)
    if form not in FORMS:
        raise ValueError(f"unknown log form {form!r}: {', '.join(FORMS)}")
    out = stream or sys.stderr or open(os.devnull, "w")  # noqa: SIM115 - kept for good
    redactor = Redactor()
    text = form == "text" or (form == "auto" and out.isatty())
    formatter: logging.Formatter = (
        TextFormatter(redactor, marks=marks)
        if text
        else JsonFormatter(redactor, service_name=service_name, marks=marks)
    )
    reset()
    handler = (
        BatchingHandler(out, formatter, redactor, waiting=MAX_WAITING_LINES)
        if threaded
        else LineHandler(out, formatter, redactor)
    )
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger(_OWN).setLevel(number)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    # whoever speaks plain HTTP to a TLS port must not fill the log
    logging.getLogger("tornado.general").setLevel(logging.ERROR)
    # Tornado's own line per request would repeat ours, with the raw path and query
    logging.getLogger("tornado.access").setLevel(_SILENT)
    logging.captureWarnings(True)
    return handler


def reset() -> None:
    """Undo `configure`: write what waits, end the thread, give the loggers back their levels."""
    for handler in _handlers():
        logging.getLogger().removeHandler(handler)
        handler.close()
        logging.captureWarnings(False)
    for name in (_OWN, "tornado.access", *_QUIET):
        logging.getLogger(name).setLevel(logging.NOTSET)


def set_level(level: str) -> None:
    """Change the level of our own loggers. Raises ValueError."""
    logging.getLogger(_OWN).setLevel(level_number(level))


def register_secrets(secrets: Iterable[str], *, group: str = "configuration") -> None:
    """Mask these texts wherever they turn up, in place of what `group` held before."""
    known = tuple(secrets)
    for handler in _handlers():
        handler.redactor.hide(group, known)


def flush() -> None:
    """Wait, not for ever, until what was logged is written."""
    for handler in _handlers():
        handler.flush()


def lines_dropped() -> int:
    """How many lines were lost since `configure`."""
    return sum(handler.dropped for handler in _handlers())


def on_dropped(tell: Callable[[int], None]) -> None:
    """Call `tell` with the number of lines lost since `configure`, then with each further loss;
    any thread calls it, one at a time."""
    for handler in _handlers():
        handler.on_dropped(tell)


def current() -> LineHandler | None:
    """The handler that `configure` made last; None before the first time and after `reset`."""
    return next(iter(_handlers()), None)


def level_number(level: str) -> int:
    """debug, info, warn, warning, error or critical as logging's number. Raises ValueError."""
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None or number == logging.NOTSET:
        raise ValueError(f"unknown log level {level!r}: debug, info, warning or error")
    return number


def timestamp(seconds: float) -> str:
    """UTC in RFC 3339 with milliseconds."""
    whole, millis = divmod(int(seconds * 1000), 1000)
    return f"{_until_second(whole)}.{millis:03d}Z"


@lru_cache(maxsize=4)
def _until_second(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


def render_json(value: Any) -> str:
    """`value` as JSON in ASCII; what is not finite is spelt as a text."""
    try:
        return ujson.dumps(value, escape_forward_slashes=False, allow_nan=False)
    except (ValueError, OverflowError, TypeError):  # NaN, huge integers, lone surrogates
        return json.dumps(_finite(value), separators=(",", ":"), allow_nan=False)


def escape(text: str) -> str:
    """`text` with its control characters and line breaks spelt out."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def _handlers() -> list[LineHandler]:
    return [item for item in logging.getLogger().handlers if isinstance(item, LineHandler)]


def _is_own(record: logging.LogRecord) -> bool:
    return record.name == _OWN or record.name.startswith(f"{_OWN}.")


def _message(record: logging.LogRecord, redactor: Redactor) -> str:
    try:
        text = record.getMessage()
    except Exception:  # wrong arguments for the text: show both rather than lose the record
        text = f"{record.msg} {record.args!r}"
    return redactor.text(text)[:MAX_TEXT_CHARS]


def _traceback(record: logging.LogRecord, redactor: Redactor) -> str:
    """The newest part of a traceback: its end names the error."""
    text = ""
    if record.exc_info and record.exc_info[0] is not None:
        text = logging.Formatter().formatException(record.exc_info)
    if record.stack_info:
        text = f"{text}\n{record.stack_info}" if text else record.stack_info
    # redacted whole, then cut: a cut first could leave a part of a secret
    return redactor.text(text)[-MAX_TEXT_CHARS:]


def _extra(record: logging.LogRecord) -> Mapping[str, Any]:
    """The fields of a record: each `extra`, and those of a mapping that is given as `fields`,
    which spares logging's own checks where every microsecond counts."""
    extra = {name: value for name, value in record.__dict__.items() if name not in _STANDARD}
    if isinstance(extra.get("fields"), Mapping):
        extra.update(extra.pop("fields"))
    return extra


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if value - value == 0.0 else str(value)
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return value


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return value if value and " " not in value else repr(value)
    return str(value)
