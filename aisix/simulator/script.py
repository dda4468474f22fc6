"""Behaviour scripts: the one vocabulary that tells the simulator how to answer.

A script is a handful of tokens (`slow200 n50 cut3`). The same tokens work joined by dashes inside
a deployment name, in the request header `x-sim-script`, and through the control endpoint. Each
field of `Script` below is one token, so this table *is* the vocabulary; docs/simulator.md is
checked against it. A token with a number carries it at its end.

In a deployment name an unknown token is simply part of the name; elsewhere it is an error.
Pure: no I/O, no clock.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections import deque
from dataclasses import dataclass, field
from typing import Any

HEADER = "x-sim-script"
ENTRA = "@entra"  # the name under which scripts for the token endpoint are queued
ANY = "*"  # the name that stands for every deployment

_SEPARATORS = re.compile(r"[-,\s]+")
_TOKEN = re.compile(r"([a-z_]+?)(\d{1,9})?")


class ScriptError(ValueError):
    """A script that was given on purpose holds something that is not in the vocabulary."""


def _number(what: str) -> Any:
    return field(default=None, metadata={"help": what, "kind": "number"})


def _flag(what: str) -> Any:
    return field(default=False, metadata={"help": what, "kind": "flag"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """What one request is to meet. Every field is a token; unset fields leave normal behaviour."""

    # pace and size
    slow: int | None = _number("wait this many ms before the head of the answer")
    gap: int | None = _number("send the head, then wait this many ms before the first body byte")
    n: int | None = _number("answer with exactly this many content pieces (stream: deltas)")
    d: int | None = _number("wait this many ms between SSE events")
    size: int | None = _number("make every content piece this many characters long")
    bulk: int | None = _number("stream this many MiB of deltas as fast as the reader takes them")
    # form of the answer
    crlf: bool = _flag("end SSE lines with CRLF")
    split: int | None = _number("write the body in pieces of exactly this many bytes")
    burst: bool = _flag("write the whole stream at once")
    comments: bool = _flag("put an SSE comment before every event")
    chunked: bool = _flag("send JSON with chunked transfer encoding, without content-length")
    asyncfilter: bool = _flag("asynchronous content filter: annotation chunks without `delta`")
    late: bool = _flag("asyncfilter, and the last annotation blocks (finish_reason content_filter)")
    finishusage: bool = _flag("put the usage on the finish chunk instead of a chunk of its own")
    nousage: bool = _flag("never send a usage block")
    plain: bool = _flag("leave out Azure's extension fields")
    nodone: bool = _flag("end the stream cleanly without `data: [DONE]` or its terminal event")
    # content of the answer
    tools: bool = _flag("answer with a tool call (of the first tool)")
    refuse: bool = _flag("answer with a refusal")
    filtered: bool = _flag("the output filter strikes: finish_reason content_filter")
    reasoning: bool = _flag("a reasoning model: reasoning tokens, max_tokens and the like refused")
    cached: int | None = _number("report this many prompt tokens as cached")
    ctx: int | None = _number("the context window of the model, in tokens")
    polls: int | None = _number("background responses and jobs are done after this many polls (2)")
    oldapi: bool = _flag("a deployment that does not know stream_options")
    # faults after the head; the number counts SSE events, or bytes of a JSON body
    cut: int | None = _number("close the connection (FIN) after K events")
    reset: int | None = _number("reset the connection (RST) after K events")
    half: int | None = _number("after K events send half of the next one, then close")
    end: int | None = _number("end the body cleanly after K events, without [DONE]")
    stall: int | None = _number("fall silent after K events until released or the client leaves")
    fail: int | None = _number('after K events send `data: {"error":…}` (body: err) and end')
    failed: int | None = _number("Responses: after K events send response.failed (err) and end")
    throttled: bool = _flag("Responses: a rate limit inside the 200: response.failed, then error")
    # faults before the head
    err: str | None = field(
        default=None, metadata={"help": "answer with this error", "kind": "err"}
    )
    retry: int | None = _number("err: retry-after in seconds, in the header and in the text")
    retryms: int | None = _number("err: retry-after-ms in milliseconds")
    retryxms: int | None = _number("err: x-ms-retry-after-ms in milliseconds")
    retrydate: int | None = _number("err: retry-after as an HTTP date, this many seconds ahead")
    noretry: bool = _flag("err: no retry header, only the text says how long")
    drop: bool = _flag("close the connection before any byte")
    rst: bool = _flag("reset the connection before any byte")
    hang: bool = _flag("do not answer until released or the client leaves")
    hints: bool = _flag("send an interim 103 Early Hints first")
    garbage: bool = _flag("answer something that is not HTTP")
    halfhead: bool = _flag("send half of the head, then close")
    # connection
    close: bool = _flag("send `connection: close` and close")
    closecode: int | None = _number("realtime: close with this code after the first response")
    mute: bool = _flag("realtime: never answer the caller's Close")
    closeafter: bool = _flag("close after the answer without having said so (a dead reused one)")
    # when the faults apply
    first: int | None = _number("the faults strike only the first N requests of the deployment")
    every: int | None = _number("the faults strike only every Nth request of the deployment")

    def over(self, base: Script) -> Script:
        """This script laid over another: what is set here wins."""
        if base == NORMAL:
            return self
        if self == NORMAL:
            return base
        return dataclasses.replace(base, **self.set_fields())

    def set_fields(self) -> dict[str, Any]:
        """What is set, in the order of the table; a number may be zero."""
        every = ((name, getattr(self, name)) for name in _FIELDS)
        return {name: value for name, value in every if value is not None and value is not False}

    def without_faults(self) -> Script:
        """The same pace and form, without anything that goes wrong."""
        changes: dict[str, Any] = {**dict.fromkeys(_FAULT_NUMBERS), **_FAULT_FLAGS}
        return dataclasses.replace(self, **changes)

    def strikes(self, count: int) -> bool:
        """Whether the faults apply to the `count`th request (from 1) of a deployment."""
        if self.first is not None and count > self.first:
            return False
        return self.every is None or (self.every > 0 and count % self.every == 0)

    def render(self) -> str:
        """The tokens of this script in the order of the table; parses back to the same script."""
        if self == NORMAL:
            return ""
        return "-".join(_render(name, value) for name, value in self.set_fields().items())


def _render(name: str, value: Any) -> str:
    if value is True:
        return name
    return f"err-{value}" if name == "err" else f"{name}{value}"


_FIELDS: dict[str, dataclasses.Field[Any]] = {f.name: f for f in dataclasses.fields(Script)}
_FAULT_NUMBERS = ("err", "cut", "reset", "half", "end", "stall", "fail", "failed")
_FAULT_FLAGS = dict.fromkeys(
    ("throttled", "drop", "rst", "hang", "garbage", "halfhead", "closeafter"), False
)
NORMAL = Script()


def vocabulary() -> list[tuple[str, str]]:
    """Every token as it is written, with its meaning; `<N>` stands for the number."""
    endings = {"number": "<N>", "flag": "", "err": "-<NAME>"}
    return [(f.name + endings[f.metadata["kind"]], f.metadata["help"]) for f in _FIELDS.values()]


@functools.lru_cache(maxsize=1024)
def parse(text: str, *, lenient: bool = False, errors: frozenset[str] = frozenset()) -> Script:
    """Tokens → Script. `errors` are the names that may follow `err-`.

    Raises:
        ScriptError: an unknown token, unless `lenient` (deployment names), where it is a name.
    """
    found: dict[str, Any] = {}
    pieces = deque(piece for piece in _SEPARATORS.split(text.lower()) if piece)
    while pieces:
        piece = pieces.popleft()
        name, number = _split(piece)
        if name == "err":
            value = number if number is not None else (pieces.popleft() if pieces else "")
            if value in errors or re.fullmatch(r"[2-5]\d\d|aadsts\d{4,7}", value):
                found["err"] = value
                continue
            piece = f"err-{value}"
        elif _apply(found, name, number):
            continue
        if not lenient:
            raise ScriptError(f"unknown token {piece!r} in script {text!r}")
    return Script(**found)


def _split(piece: str) -> tuple[str, str | None]:
    match = _TOKEN.fullmatch(piece)
    return (match[1], match[2]) if match else (piece, None)


def _apply(found: dict[str, Any], name: str, number: str | None) -> bool:
    """Note one token; False when it is not one."""
    known = _FIELDS.get(name)
    kind = known.metadata["kind"] if known else None
    if kind == "number" and number is not None:
        found[name] = int(number)
    elif kind == "flag" and number is None:
        found[name] = True
    else:
        return name == "echo" and number is None  # the normal behaviour, said out loud
    return True


class ScriptBook:
    """Which script the next request of a deployment meets.

    Later wins, token by token: the defaults, the deployment name, the request header, the queue.
    A queued script is used up by the requests it was queued for. Request counts per deployment
    serve `first` and `every`; deployments beyond `_COUNTED` share one count, so that invented
    names cannot grow the book without end.
    """

    _COUNTED = 10_000

    def __init__(self, default: Script, errors: frozenset[str], *, scripted_names: bool) -> None:
        self._default = default
        self._errors = errors
        self._scripted_names = scripted_names
        self._queues: dict[str, deque[list[Any]]] = {}
        self._counts: dict[str, int] = {}

    def queue(self, deployment: str, text: str, *, times: int = 1) -> Script:
        """Queue a script for the next `times` requests of a deployment (`*`: of any)."""
        script = parse(text, errors=self._errors)
        if times < 1:
            raise ScriptError(f"times must be at least 1, not {times}")
        self._queues.setdefault(deployment, deque()).append([script, times])
        return script

    def clear(self) -> None:
        """Forget every queued script and every count."""
        self._queues.clear()
        self._counts.clear()

    def resolve(self, deployment: str, header: str | None = None) -> Script:
        """The script for one request, which it also counts.

        Raises:
            ScriptError: the header holds an unknown token.
        """
        script = self._default if deployment != ENTRA else NORMAL
        if self._scripted_names and deployment != ENTRA:
            script = parse(deployment, lenient=True, errors=self._errors).over(script)
        if header:
            script = parse(header, errors=self._errors).over(script)
        if self._queues:
            script = self._dequeue(deployment).over(script)
        if script.first is None and script.every is None:
            return script
        count = self._count(deployment)
        return script if script.strikes(count) else script.without_faults()

    def _count(self, deployment: str) -> int:
        key = deployment if deployment in self._counts or len(self._counts) < self._COUNTED else ""
        self._counts[key] = self._counts.get(key, 0) + 1
        return self._counts[key]

    def _dequeue(self, deployment: str) -> Script:
        names = (deployment,) if deployment == ENTRA else (deployment, ANY)
        for name in names:
            queue = self._queues.get(name)
            if not queue:
                continue
            entry = queue[0]
            entry[1] -= 1
            if entry[1] == 0:
                queue.popleft()
            return entry[0]  # type: ignore[no-any-return]  # the pair is [Script, int]
        return NORMAL
