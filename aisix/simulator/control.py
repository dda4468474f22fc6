"""The control endpoints under `/_sim/`: scripts, the journal, releases, counts.

Meant for whoever runs the simulator from another process; tests inside one use the methods of
`Simulator` instead. Not authenticated, like everything of a test stand-in. No I/O of its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from aisix.simulator import faults
from aisix.simulator.exchange import Answer
from aisix.simulator.journal import RequestRecord
from aisix.simulator.script import ANY, ScriptError, vocabulary

if TYPE_CHECKING:
    from aisix.simulator.server import Simulator

PREFIX = "/_sim/"
_FILTERS = ("outcome", "deployment", "operation", "phase", "path", "method")
_DEFAULT_WAIT_MS = 5_000


async def control(
    simulator: Simulator, method: str, path: str, *, query: Mapping[str, str], body: bytes
) -> Answer:
    """Answer one control request."""
    what = f"{method} {path.removeprefix(PREFIX)}"
    try:
        if what == "GET requests":
            return await _requests(simulator, query)
        return _ACTIONS[what](simulator, body)
    except KeyError:
        known = ", ".join(["GET requests", *_ACTIONS])
        return _json(404, {"error": f"there is no {what}; there are: {known}"})
    except (ScriptError, ValueError) as error:
        return _json(400, {"error": str(error)})


async def _requests(simulator: Simulator, query: Mapping[str, str]) -> Answer:
    wanted = {name: query[name] for name in _FILTERS if name in query}

    def matches(record: RequestRecord) -> bool:
        return all(str(getattr(record, name)) == value for name, value in wanted.items())

    status = 200
    count = _whole(query, "wait", 0)
    timeout_s = _whole(query, "timeout_ms", _DEFAULT_WAIT_MS) / 1000
    try:
        found = await simulator.wait_for_count(matches, count, timeout_s)
    except TimeoutError:
        status, found = 408, simulator.journal.matching(matches)
    return _json(status, {"count": len(found), "requests": [r.render() for r in found]})


def _whole(query: Mapping[str, str], name: str, default: int) -> int:
    text = query.get(name, str(default))
    if not text.isdecimal():
        raise ValueError(f"{name} must be a whole number, not {text!r}")
    return int(text)


def _forget(simulator: Simulator, _: bytes) -> Answer:
    simulator.journal.clear()
    return _json(200, {"cleared": True})


def _script(simulator: Simulator, body: bytes) -> Answer:
    given: Any = json.loads(body or b"{}")
    if not isinstance(given, dict) or not isinstance(given.get("script"), str):
        raise ValueError('send {"deployment": "…", "script": "…", "times": 1}')
    times = given.get("times", 1)
    if not isinstance(times, int) or isinstance(times, bool):
        raise ValueError("times must be a whole number")
    deployment = str(given.get("deployment", ANY))
    script = simulator.script(deployment, given["script"], times=times)
    return _json(200, {"deployment": deployment, "script": script.render(), "times": times})


def _clear_scripts(simulator: Simulator, _: bytes) -> Answer:
    simulator.book.clear()
    return _json(200, {"cleared": True})


def _release(simulator: Simulator, _: bytes) -> Answer:
    return _json(200, {"released": simulator.release()})


def _revoke(simulator: Simulator, _: bytes) -> Answer:
    simulator.revoke_tokens()
    return _json(200, {"revoked": True})


def _stats(simulator: Simulator, _: bytes) -> Answer:
    return _json(200, simulator.stats())


def _health(_: Simulator, __: bytes) -> Answer:
    return _json(200, {"status": "ok"})


def _vocabulary(_: Simulator, __: bytes) -> Answer:
    errors = {name: what for name, (what, _build) in faults.CATALOGUE.items()}
    return _json(200, {"tokens": dict(vocabulary()), "errors": errors})


_ACTIONS = {
    "DELETE requests": _forget,
    "POST script": _script,
    "DELETE script": _clear_scripts,
    "POST release": _release,
    "POST revoke_tokens": _revoke,
    "GET stats": _stats,
    "GET health": _health,
    "GET vocabulary": _vocabulary,
}


def _json(status: int, value: object) -> Answer:
    body = json.dumps(value, ensure_ascii=False, indent=1).encode("utf-8", "replace") + b"\n"
    return Answer(status, [("content-type", faults.JSON_TYPE)], body)
