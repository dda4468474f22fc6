"""Evals and their runs.

A run goes queued → in_progress → completed as it is polled, and passes on every item it finds in
its data source. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from aisix.simulator import faults
from aisix.simulator.content import JsonObject
from aisix.simulator.exchange import Call, Handler, Json, Outcome
from aisix.simulator.faults import Fault
from aisix.simulator.jobs import Job, polls_of
from aisix.simulator.shelf import Shelf, page

_MOST_ITEMS = 1000


@dataclass(slots=True)
class _Eval:
    shown: JsonObject
    runs: Shelf[Job] = field(default_factory=lambda: Shelf("Run with id '{}' not found."))


class Evals:
    """The evals of one resource."""

    def __init__(self) -> None:
        self._evals: Shelf[_Eval] = Shelf("Eval with id '{}' not found.")

    def handlers(self) -> dict[str, Handler]:
        """The handlers of this module by operation."""
        return {
            "POST evals": self._create,
            "GET evals": self._list,
            "GET evals/{id}": self._show,
            "POST evals/{id}": self._update,
            "DELETE evals/{id}": self._delete,
            "POST evals/{id}/runs": self._start,
            "GET evals/{id}/runs": self._list_runs,
            "GET evals/{id}/runs/{id}": self._show_run,
            "POST evals/{id}/runs/{id}": self._cancel_run,
            "POST evals/{id}/runs/{id}/cancel": self._cancel_run,  # as later SDKs spell it
            "DELETE evals/{id}/runs/{id}": self._delete_run,
            "GET evals/{id}/runs/{id}/output_items": self._output_items,
        }

    # --- evals ----------------------------------------------------------------------------------

    def _create(self, call: Call) -> Outcome:
        body, name = call.body, f"eval_{call.hex_id()}"
        for wanted in ("data_source_config", "testing_criteria"):
            if body.get(wanted) is None:
                return faults.missing(wanted)
        if not isinstance(body["testing_criteria"], list):
            return faults.wrong_type("testing_criteria", "an array of objects")
        source = body["data_source_config"]
        if isinstance(source, dict) and "item_schema" in source:
            source = {"type": source.get("type"), "schema": {"item": source["item_schema"]}}
        criteria = [
            {"id": f"criterion_{number}", **criterion}
            for number, criterion in enumerate(body["testing_criteria"])
            if isinstance(criterion, dict)
        ]
        shown = {
            "id": name,
            "object": "eval",
            "created_at": call.now,
            "data_source_config": source,
            "metadata": body.get("metadata") or {},
            "name": body.get("name") or name,
            "testing_criteria": criteria,
        }
        self._evals.add(name, _Eval(shown))
        return Json(shown)

    def _list(self, call: Call) -> Outcome:
        return page([each.shown for each in self._evals], _oldest_first(call))

    def _show(self, call: Call) -> Outcome:
        found = self._evals.find(call.ids[0])
        return found if isinstance(found, Fault) else Json(found.shown)

    def _update(self, call: Call) -> Outcome:
        found = self._evals.find(call.ids[0])
        if isinstance(found, Fault):
            return found
        body = call.body
        changes: JsonObject = {n: body[n] for n in ("name", "metadata") if n in body}
        found.shown = {**found.shown, **changes}
        return Json(found.shown)

    def _delete(self, call: Call) -> Outcome:
        found = self._evals.find(call.ids[0])
        if isinstance(found, Fault):
            return found
        self._evals.remove(call.ids[0])
        return Json({"object": "eval.deleted", "deleted": True, "eval_id": call.ids[0]})

    # --- runs -----------------------------------------------------------------------------------

    def _start(self, call: Call) -> Outcome:
        found = self._evals.find(call.ids[0])
        if isinstance(found, Fault):
            return found
        source = call.body.get("data_source")
        if not isinstance(source, dict):
            return faults.missing("data_source")
        name = f"evalrun_{call.hex_id()}"
        shown: JsonObject = {
            "id": name,
            "object": "eval.run",
            "created_at": call.now,
            "data_source": source,
            "error": None,
            "eval_id": call.ids[0],
            "metadata": call.body.get("metadata") or {},
            "model": str(source.get("model") or ""),
            "name": call.body.get("name") or name,
            "per_model_usage": [],
            "per_testing_criteria_results": [],
            "report_url": f"https://evals.example.invalid/{call.ids[0]}/{name}",
            "result_counts": {"errored": 0, "failed": 0, "passed": 0, "total": 0},
            "status": "queued",
        }
        passed = len(_items(source))
        results = [
            {"testing_criteria": criterion["id"], "passed": passed, "failed": 0}
            for criterion in found.shown["testing_criteria"]
        ]

        def finish(_: Call) -> JsonObject:
            counts = {"errored": 0, "failed": 0, "passed": passed, "total": passed}
            end = {"status": "completed", "result_counts": counts}
            return {**end, "per_testing_criteria_results": results}

        found.runs.add(name, Job(shown, finish, polls_of(call.script)))
        return Json(shown)

    def _list_runs(self, call: Call) -> Outcome:
        found = self._evals.find(call.ids[0])
        if isinstance(found, Fault):
            return found
        return page([run.shown for run in found.runs], _oldest_first(call))

    def _run(self, call: Call) -> Job | Fault:
        found = self._evals.find(call.ids[0])
        return found if isinstance(found, Fault) else found.runs.find(call.ids[1])

    def _show_run(self, call: Call) -> Outcome:
        run = self._run(call)
        return run if isinstance(run, Fault) else Json(run.poll(call))

    def _cancel_run(self, call: Call) -> Outcome:
        run = self._run(call)
        return run if isinstance(run, Fault) else Json(run.cancel(call))

    def _delete_run(self, call: Call) -> Outcome:
        found = self._evals.find(call.ids[0])
        if isinstance(found, Fault):
            return found
        if found.runs.remove(call.ids[1]) is None:
            return faults.not_found(f"Run with id '{call.ids[1]}' not found.")
        return Json({"object": "eval.run.deleted", "deleted": True, "run_id": call.ids[1]})

    def _output_items(self, call: Call) -> Outcome:
        run = self._run(call)
        if isinstance(run, Fault):
            return run
        done = run.shown["status"] == "completed"
        items = [_output_item(run.shown, n, item) for n, item in enumerate(_items_of(run, done))]
        return page(items, _oldest_first(call))


def _oldest_first(call: Call) -> dict[str, str]:
    return {"order": "asc", **call.inbound.query}


def _items(source: JsonObject) -> list[JsonObject]:
    """The items that stand in the request itself."""
    inner: Any = source.get("source")
    content = inner.get("content") if isinstance(inner, dict) else None
    listed = content if isinstance(content, list) else []
    return [entry for entry in listed if isinstance(entry, dict)][:_MOST_ITEMS]


def _items_of(run: Job, done: bool) -> list[JsonObject]:
    return _items(run.shown["data_source"]) if done else []


def _output_item(run: JsonObject, number: int, content: JsonObject) -> JsonObject:
    counts = ("cached_tokens", "completion_tokens", "prompt_tokens", "total_tokens")
    return {
        "id": f"outputitem_{run['id'][-8:]}_{number}",
        "object": "eval.run.output_item",
        "created_at": run["created_at"],
        "datasource_item": content.get("item") or {},
        "datasource_item_id": number,
        "eval_id": run["eval_id"],
        "results": [
            {"name": each["testing_criteria"], "passed": True, "score": 1.0}
            for each in run["per_testing_criteria_results"]
        ],
        "run_id": run["id"],
        "sample": {
            "error": None,
            "finish_reason": "stop",
            "input": [],
            "max_completion_tokens": 0,
            "model": run["model"],
            "output": [],
            "seed": 0,
            "temperature": 1.0,
            "top_p": 1.0,
            "usage": dict.fromkeys(counts, 0),
        },
        "status": "pass",
    }
