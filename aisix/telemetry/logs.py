"""The log: one line per record on standard error, JSON or, on a terminal, text. I/O in a thread.

Lines are rendered where they are logged and written by a thread of their own, so that a full pipe
or a closed one never stops a request; what cannot be written is counted and dropped. Every text
passes the redactor first, tracebacks too, and control characters are escaped: no value can forge
a line. The handler on the root logger is the only state; nothing is kept in this module.
"""

from __future__ import annotations

import json
import logging
import os
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any, TextIO

import ujson

from aisix.telemetry.redaction import Redactor

MAX_TEXT_CHARS = 8 * 1024
"""A message or traceback is cut to this."""

MAX_WAITING_LINES = 10_000
"""Lines that wait for a slow reader; more are dropped."""

FLUSH_TIMEOUT_S = 1.0

_COALESCE_S = 0.005
_QUIET = ("asyncio", "azure", "msal", "urllib3", "tornado.application", "tornado.general")
_SILENT = logging.CRITICAL + 1
_OWN = "aisix"
_STANDARD = frozenset(
    {*logging.makeLogRecord({}).__dict__, "message", "asctime", "taskName", "color_message"}
)


class JsonFormatter(logging.Formatter):
    """One JSON object per record: when, how bad, who, what, and the fields."""

    def __init__(self, redactor: Redactor, *, service_name: str) -> None:
        super().__init__()
        self._redactor = redactor
        self._service_name = service_name

    def format(self, record: logging.LogRecord) -> str:
        """The line; ASCII only, so that nothing in it can be a control character."""
        what = "event" if _is_own(record) else "message"
        document: dict[str, Any] = {
            "time": timestamp(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            what: _message(record, self._redactor),
            "service": self._service_name,
        }
        for name, value in self._redactor.fields(_extra(record)).items():
            document.setdefault(name, value)
        trace = _traceback(record, self._redactor)
        if trace:
            document["exception"] = trace
        try:
            return ujson.dumps(document, escape_forward_slashes=False, allow_nan=False)
        except (ValueError, OverflowError, TypeError):  # NaN, huge integers, lone surrogates
            return json.dumps(_finite(document), separators=(",", ":"), allow_nan=False)


class TextFormatter(logging.Formatter):
    """For a person at a terminal."""

    def __init__(self, redactor: Redactor) -> None:
        super().__init__()
        self._redactor = redactor

    def format(self, record: logging.LogRecord) -> str:
        """Time, level, logger, message, name=value; a traceback follows, indented."""
        parts = [
            timestamp(record.created)[11:23],
            f"{record.levelname:<8}",
            record.name,
            _message(record, self._redactor),
        ]
        fields = self._redactor.fields(_extra(record))
        parts.extend(f"{name}={_shown(value)}" for name, value in fields.items())
        line = escape(" ".join(parts))
        for trace_line in _traceback(record, self._redactor).splitlines():
            line += "\n    " + escape(trace_line)
        return line


class LineHandler(logging.Handler):
    """Renders records at once and hands the lines to a writer thread. Never raises."""

    def __init__(
        self, stream: TextIO, formatter: logging.Formatter, redactor: Redactor, *, waiting: int
    ) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self.redactor = redactor
        self.dropped = 0
        self._stream = stream
        self._fd = _descriptor(stream)
        self._limit = waiting
        self._lines: deque[str] = deque()
        self._given = 0
        self._done = 0
        self._wake = threading.Event()
        self._progress = threading.Condition()
        self._closing = threading.Event()
        self._writer = threading.Thread(target=self._run, name="aisix-log", daemon=True)
        self._writer.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue one line; called with the handler's lock held."""
        try:
            if len(self._lines) >= self._limit or self._closing.is_set():
                self.dropped += 1
                return
            line = self.format(record)
        except Exception:
            # a record that cannot be rendered is lost, the request that logged it is not
            self.dropped += 1
            return
        self._given += 1
        self._lines.append(line + "\n")
        if not self._wake.is_set():
            self._wake.set()

    def flush(self, timeout_s: float = FLUSH_TIMEOUT_S) -> None:
        """Wait until what was logged so far is written or lost, at most `timeout_s`."""
        wanted = self._given
        deadline = time.monotonic() + timeout_s
        self._wake.set()
        with self._progress:
            while self._done < wanted and self._writer.is_alive():
                left = deadline - time.monotonic()
                if left <= 0 or not self._progress.wait(left):
                    return

    def close(self) -> None:
        """Write what waits and end the thread; a stuck one is left behind, it holds nothing up."""
        if not self._closing.is_set():
            self._closing.set()
            self._wake.set()
            self._writer.join(FLUSH_TIMEOUT_S)
        super().close()

    def _run(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            lines = [self._lines.popleft() for _ in range(len(self._lines))]
            if lines:
                self._write(lines)
                with self._progress:
                    self._done += len(lines)
                    self._progress.notify_all()
            if self._closing.is_set() and not self._lines:
                return
            if lines:
                # under load one write takes many lines; the loop keeps the interpreter meanwhile
                self._closing.wait(_COALESCE_S)

    def _write(self, lines: list[str]) -> None:
        try:
            self._put("".join(lines))
        except (OSError, ValueError):  # a broken pipe, a closed stream
            self.dropped += len(lines)

    def _put(self, text: str) -> None:
        if self._fd is None:
            self._stream.write(text)
            self._stream.flush()
            return
        if self._stream.closed:  # its number may belong to a socket by now
            raise ValueError("the log's stream is closed")
        # past the stream's own buffer: were this thread stuck in it with its lock held, the
        # interpreter would abort when it flushes the standard streams at exit
        rest = memoryview(text.encode("utf-8", "backslashreplace"))
        while rest:
            try:
                rest = rest[os.write(self._fd, rest) :]
            except BlockingIOError:  # somebody made the shared pipe non-blocking
                select.select([], [self._fd], [])


def configure(
    *,
    level: str = "info",
    service_name: str = "aisix",
    stream: TextIO | None = None,
    form: str = "auto",
) -> LineHandler:
    """Send all logging to `stream` (standard error). `form` is json, text or auto: text when the
    stream is a terminal. A second call replaces the first.

    Raises ValueError for an unknown level or form.
    """
    number = level_number(level)
    out = stream or sys.stderr or open(os.devnull, "w")  # noqa: SIM115 - kept for good
    redactor = Redactor()
    formatter = _formatter(form, out, redactor, service_name)
    reset()
    handler = LineHandler(out, formatter, redactor, waiting=MAX_WAITING_LINES)
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger(_OWN).setLevel(number)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
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


def level_number(level: str) -> int:
    """debug, info, warn, warning, error or critical as logging's number. Raises ValueError."""
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None or number == logging.NOTSET:
        raise ValueError(f"unknown log level {level!r}: debug, info, warning or error")
    return number


def timestamp(seconds: float) -> str:
    """UTC in RFC 3339 with milliseconds."""
    whole, millis = divmod(int(seconds * 1000), 1000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(whole))}.{millis:03d}Z"


def escape(text: str) -> str:
    """`text` with its control characters and line breaks spelt out."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def _handlers() -> list[LineHandler]:
    return [item for item in logging.getLogger().handlers if isinstance(item, LineHandler)]


def _descriptor(stream: TextIO) -> int | None:
    try:
        return stream.fileno()
    except (OSError, ValueError, AttributeError):  # not a file: a buffer in memory
        return None


def _formatter(
    form: str, stream: TextIO, redactor: Redactor, service_name: str
) -> logging.Formatter:
    if form not in ("json", "text", "auto"):
        raise ValueError(f"unknown log form {form!r}: json, text or auto")
    if form == "text" or (form == "auto" and stream.isatty()):
        return TextFormatter(redactor)
    return JsonFormatter(redactor, service_name=service_name)


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
