"""Batches: the lines of a file answered one by one, into a file of their own.

Each line is judged and answered as a request of its own would be. Only lines of the kept
beginning of a file are seen, and at most a thousand. Pure.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

from aisix.simulator import chat, checks, faults
from aisix.simulator.content import JsonObject
from aisix.simulator.exchange import Call, Handler, Inbound, Json, Outcome
from aisix.simulator.faults import Fault
from aisix.simulator.files import Files, Stored
from aisix.simulator.jobs import Job, polls_of
from aisix.simulator.operations import OPERATIONS, Place
from aisix.simulator.shelf import Shelf, page

_ENDPOINTS = ("/chat/completions", "/completions", "/embeddings")
_WINDOW = "24h"
_WINDOW_S = 24 * 60 * 60
_MOST_LINES = 1000
_TIMES = (
    "cancelled_at",
    "completed_at",
    "expired_at",
    "failed_at",
    "finalizing_at",
)


class Batches:
    """The batches of one resource."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._jobs: Shelf[Job] = Shelf("No batch found with id '{}'.")
        self._answering = chat.handlers()

    def handlers(self) -> dict[str, Handler]:
        """The handlers of this module by operation."""
        return {
            "POST batches": self._create,
            "GET batches": self._list,
            "GET batches/{id}": self._show,
            "POST batches/{id}/cancel": self._cancel,
        }

    def _create(self, call: Call) -> Outcome:
        body = call.body
        for name in ("input_file_id", "endpoint", "completion_window"):
            if body.get(name) is None:
                return faults.missing(name)
        path = str(body["endpoint"]).removeprefix("/v1")
        if path not in _ENDPOINTS:
            return faults.unacceptable("endpoint", body["endpoint"], *_ENDPOINTS)
        if body["completion_window"] != _WINDOW:
            return faults.unacceptable("completion_window", body["completion_window"], _WINDOW)
        file = self._files.find(body["input_file_id"])
        if isinstance(file, Fault):
            return file
        if file.shown["purpose"] != "batch":
            message = "Invalid 'input_file_id': the purpose of the file must be 'batch'."
            return faults.invalid(message, param="input_file_id", code="invalid_value")
        name = f"batch_{call.hex_id()}"
        lines = _lines(file)
        shown = {
            "id": name,
            "object": "batch",
            "endpoint": body["endpoint"],
            "errors": None,
            "input_file_id": body["input_file_id"],
            "completion_window": _WINDOW,
            "status": "validating",
            "output_file_id": None,
            "error_file_id": None,
            "created_at": call.now,
            "in_progress_at": None,
            "expires_at": call.now + _WINDOW_S,
            **dict.fromkeys(_TIMES),
            "request_counts": {"total": len(lines), "completed": 0, "failed": 0},
            "metadata": body.get("metadata"),
        }

        def finish(later: Call) -> JsonObject:
            return self._answer(later, path.removeprefix("/"), lines)

        self._jobs.add(name, Job(shown, finish, polls_of(call.script)))
        return Json(shown)

    def _answer(self, call: Call, operation: str, lines: list[str]) -> JsonObject:
        """Answer every line; what the finished batch says."""
        good: list[str] = []
        bad: list[str] = []
        usages: list[JsonObject] = []
        for line in lines:
            custom_id, outcome = self._answer_line(call, operation, line)
            status, said = 200, outcome.value if isinstance(outcome, Json) else {}
            if isinstance(outcome, Fault):
                status, said = outcome.status, json.loads(outcome.body)
            else:
                usages.append(said.get("usage", {}))
            response = {"status_code": status, "request_id": call.hex_id(), "body": said}
            answered = {"id": f"batch_req_{call.hex_id()}", "custom_id": custom_id}
            row = {**answered, "response": response, "error": None}
            (good if status == 200 else bad).append(json.dumps(row))
        counts = {"total": len(lines), "completed": len(good), "failed": len(bad)}
        times = ("in_progress_at", "finalizing_at", "completed_at")
        return {
            "status": "completed",
            **dict.fromkeys(times, call.now),
            "output_file_id": self._file(call, "output", good),
            "error_file_id": self._file(call, "error", bad),
            "request_counts": counts,
            "usage": _usage(usages),
        }

    def _answer_line(self, call: Call, operation: str, line: str) -> tuple[Any, Outcome]:
        try:
            request = json.loads(line)
        except ValueError:
            return None, faults.invalid("This line is not parseable as valid JSON.")
        if not isinstance(request, dict) or not isinstance(request.get("body"), dict):
            return None, faults.missing("body")
        body = {**request["body"], "stream": False}
        place = Place(kind="azure", operation=operation, deployment=str(body.get("model") or ""))
        inbound = Inbound(method="POST", place=place, query={}, headers={}, json=body)
        row = OPERATIONS[f"POST {operation}"]
        limit = call.options.context_tokens
        fault = checks.check(inbound, row, call.script, context_tokens=limit)
        answer = fault or self._answering[row.key](dataclasses.replace(call, inbound=inbound))
        return request.get("custom_id"), answer

    def _file(self, call: Call, what: str, rows: list[str]) -> str | None:
        if not rows:
            return None
        data = "".join(f"{row}\n" for row in rows).encode()
        return self._files.write(call, f"{what}.jsonl", f"batch_{what}", data)

    def _list(self, call: Call) -> Outcome:
        return page([job.shown for job in self._jobs], call.inbound.query)

    def _show(self, call: Call) -> Outcome:
        job = self._jobs.find(call.ids[0])
        return job if isinstance(job, Fault) else Json(job.poll(call))

    def _cancel(self, call: Call) -> Outcome:
        job = self._jobs.find(call.ids[0])
        return job if isinstance(job, Fault) else Json(job.cancel(call, "cancelled_at"))


def _lines(file: Stored) -> list[str]:
    found: Iterator[str] = (
        line.decode("utf-8", "replace") for line in file.prefix.split(b"\n") if line.strip()
    )
    return [line for line, _ in zip(found, range(_MOST_LINES), strict=False)]


def _usage(usages: list[JsonObject]) -> JsonObject:
    read = sum(usage.get("prompt_tokens", 0) for usage in usages)
    written = sum(usage.get("completion_tokens", 0) for usage in usages)
    return {
        "input_tokens": read,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": written,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": read + written,
    }
