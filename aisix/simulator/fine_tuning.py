"""Fine-tuning jobs with their events and checkpoints.

A job validates its files, runs and succeeds as it is polled; then it names a model, a result file
and one checkpoint. Pure.
"""

from __future__ import annotations

from aisix.simulator import faults
from aisix.simulator.content import JsonObject
from aisix.simulator.exchange import Call, Handler, Json, Outcome
from aisix.simulator.faults import Fault
from aisix.simulator.files import Files
from aisix.simulator.jobs import Job, polls_of
from aisix.simulator.shelf import Shelf, page

_RESULTS = b"step,train_loss,train_accuracy\n1,1.5,0.5\n2,0.9,0.7\n"
_STEPS = 2


class FineTuning:
    """The fine-tuning jobs of one resource."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._jobs: Shelf[Job] = Shelf("Could not find fine tune: {}")

    def handlers(self) -> dict[str, Handler]:
        """The handlers of this module by operation."""
        return {
            "POST fine_tuning/jobs": self._create,
            "GET fine_tuning/jobs": self._list,
            "GET fine_tuning/jobs/{id}": self._show,
            "POST fine_tuning/jobs/{id}/cancel": self._cancel,
            "GET fine_tuning/jobs/{id}/events": self._events,
            "GET fine_tuning/jobs/{id}/checkpoints": self._checkpoints,
        }

    def _create(self, call: Call) -> Outcome:
        body = call.body
        for name in ("model", "training_file"):
            if body.get(name) is None:
                return faults.missing(name)
        for name in ("training_file", "validation_file"):
            file = self._files.find(body[name]) if body.get(name) is not None else None
            if isinstance(file, Fault):
                return faults.invalid(f"File '{body[name]}' does not exist.", param=name)
        name = f"ftjob-{call.hex_id()}"
        method = body.get("method") or {"type": "supervised"}
        shown = {
            "id": name,
            "object": "fine_tuning.job",
            "created_at": call.now,
            "error": None,
            "estimated_finish": None,
            "fine_tuned_model": None,
            "finished_at": None,
            "hyperparameters": {"batch_size": 1, "learning_rate_multiplier": 1.0, "n_epochs": 1},
            "integrations": [],
            "metadata": body.get("metadata"),
            "method": method,
            "model": body["model"],
            "organization_id": "",
            "result_files": [],
            "seed": body.get("seed") or 0,
            "status": "validating_files",
            "trained_tokens": None,
            "training_file": body["training_file"],
            "validation_file": body.get("validation_file"),
        }
        suffix = f".{body['suffix']}" if isinstance(body.get("suffix"), str) else ""

        def finish(later: Call) -> JsonObject:
            results = self._files.write(later, "results.csv", "fine-tune-results", _RESULTS)
            return {
                "status": "succeeded",
                "fine_tuned_model": f"{body['model']}.ft-{name[-8:]}{suffix}",
                "finished_at": later.now,
                "result_files": [results],
                "trained_tokens": 1000,
            }

        self._jobs.add(name, Job(shown, finish, polls_of(call.script), "running"))
        return Json(shown)

    def _list(self, call: Call) -> Outcome:
        return page([job.shown for job in self._jobs], call.inbound.query)

    def _show(self, call: Call) -> Outcome:
        job = self._jobs.find(call.ids[0])
        return job if isinstance(job, Fault) else Json(job.poll(call))

    def _cancel(self, call: Call) -> Outcome:
        job = self._jobs.find(call.ids[0])
        return job if isinstance(job, Fault) else Json(job.cancel(call, "finished_at"))

    def _events(self, call: Call) -> Outcome:
        job = self._jobs.find(call.ids[0])
        if isinstance(job, Fault):
            return job
        status, created = job.shown["status"], job.shown["created_at"]
        told = ["Job enqueued. Waiting for jobs ahead to complete."]
        if status != "validating_files":
            told.append(f"Job {status}.")
        events: list[JsonObject] = [
            {
                "id": f"ftevent-{call.ids[0][-8:]}-{number}",
                "object": "fine_tuning.job.event",
                "created_at": created,
                "level": "info",
                "message": message,
                "type": "message",
            }
            for number, message in enumerate(told)
        ]
        return page(events, call.inbound.query)

    def _checkpoints(self, call: Call) -> Outcome:
        job = self._jobs.find(call.ids[0])
        if isinstance(job, Fault):
            return job
        checkpoints: list[JsonObject] = []
        if job.shown["status"] == "succeeded":
            checkpoints.append(
                {
                    "id": f"ftckpt-{call.ids[0][-8:]}",
                    "object": "fine_tuning.job.checkpoint",
                    "created_at": job.shown["finished_at"],
                    "fine_tuned_model_checkpoint": f"{job.shown['fine_tuned_model']}:ckpt-step-2",
                    "fine_tuning_job_id": call.ids[0],
                    "metrics": {"step": _STEPS, "train_loss": 0.9},
                    "step_number": _STEPS,
                }
            )
        return page(checkpoints, call.inbound.query)
