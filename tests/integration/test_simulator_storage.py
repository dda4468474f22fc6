"""What the simulated resource keeps: files, batches, fine-tuning, vector stores and evals."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import openai
import pytest

from tests.support.azure import KEY, ask, azure
from tests.support.sdk import AZURE, KINDS, PLAIN, sdk_at

QUESTION = {"model": "gpt4o-prod", "messages": [{"role": "user", "content": "ping"}]}
SAID = "Hello from Azure OpenAI! You said: ping"
SCHEMA = {"type": "object", "properties": {"q": {"type": "string"}}}
GRADER = {"type": "string_check", "name": "g", "input": "a", "operation": "eq", "reference": "a"}
by_both = pytest.mark.parametrize("kind", KINDS)


def line(number: int, body: Any = QUESTION) -> str:
    request = {"custom_id": f"r{number}", "method": "POST", "url": "/chat/completions"}
    return json.dumps({**request, "body": body}) + "\n"


# --- files --------------------------------------------------------------------------------------


@by_both
@pytest.mark.gen_test
async def test_a_file_is_kept_listed_read_and_deleted(kind: str) -> None:
    data = b'{"a": 1}\n' * 100
    async with azure() as sim, sdk_at(sim, kind) as sdk:
        file = await sdk.files.create(file=("a.jsonl", data), purpose="batch")
        other = await sdk.files.create(file=("b.txt", b"text"), purpose="assistants")
        record = sim.requests[0]
        shown = await sdk.files.retrieve(file.id)
        content = await sdk.files.content(file.id)
        listed = [each.id async for each in sdk.files.list(limit=1)]
        chosen = [each.id async for each in sdk.files.list(purpose="batch")]
        deleted = await sdk.files.delete(file.id)
        with pytest.raises(openai.NotFoundError, match="No such File"):
            await sdk.files.content(file.id)
    assert shown == file
    assert (file.bytes, file.filename, file.status) == (900, "a.jsonl", "processed")
    assert content.content == data
    assert content.response.headers["content-disposition"] == 'attachment; filename="a.jsonl"'
    assert (listed, chosen) == ([other.id, file.id], [file.id])
    assert deleted.deleted
    assert (record.operation, record.deployment) == ("files", "")
    assert [p.sha256 for p in record.form if p.filename] == [hashlib.sha256(data).hexdigest()]


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"file": ("a.jsonl", b"x"), "purpose": "fun"}, "purpose"),
        ({"file": ("a.txt", b"x"), "purpose": "batch"}, "file"),
    ],
)
async def test_a_bad_file_is_refused(given: dict[str, Any], param: str) -> None:
    async with azure() as sim, sdk_at(sim, PLAIN) as sdk:
        with pytest.raises(openai.BadRequestError) as raised:
            await sdk.files.create(**given)
    assert raised.value.param == param


@pytest.mark.gen_test
async def test_contents_of_any_size_are_made_as_they_are_read() -> None:
    expected = bytes(n % 256 for n in range(70_000))
    async with azure() as sim, sdk_at(sim, PLAIN) as sdk:
        named = await sdk.files.create(file=("out-bulk64.bin", b"x"), purpose="user_data")
        small = await sdk.files.create(file=("small.bin", b"x"), purpose="user_data")
        received = 0
        async with sdk.files.with_streaming_response.content(named.id) as answer:
            assert answer.headers["content-length"] == str(64 * 1024 * 1024)
            async for piece in answer.iter_bytes(65536):
                received += len(piece)
                if received == len(piece):
                    record = await sim.wait_for(lambda r: r.operation == "files/{id}/content")
                    assert record.bytes_sent < 64 * 1024 * 1024
        path = f"/openai/v1/files/{small.id}/content"
        by_header = await ask(sim, path, x_sim_script="size70000")
        sim.script("*", "size1000 n3")
        by_queue = await ask(sim, path)
        whole = await ask(sim, path)
    assert received == 64 * 1024 * 1024
    assert by_header.body == expected
    assert len(by_queue.body) == 3000
    assert whole.body == b"x"


@pytest.mark.gen_test
async def test_beyond_the_kept_beginning_a_file_comes_back_as_filler() -> None:
    data = b"y" * (1024 * 1024 + 10)
    async with azure() as sim, sdk_at(sim, PLAIN) as sdk:
        file = await sdk.files.create(file=("y.bin", data), purpose="user_data")
        content = (await sdk.files.content(file.id)).content
    assert content == data[: 1024 * 1024] + bytes(range(10))


# --- batches ------------------------------------------------------------------------------------


@by_both
@pytest.mark.gen_test
async def test_a_batch_answers_the_lines_of_its_file(kind: str) -> None:
    lines = line(1) + "not json\n" + line(2) + line(3, {"model": "dep"})
    async with azure() as sim, sdk_at(sim, kind) as sdk:
        file = await sdk.files.create(file=("in.jsonl", lines.encode()), purpose="batch")
        batch = await sdk.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        states = [await sdk.batches.retrieve(batch.id) for _ in range(3)]
        done = states[-1]
        output = (await sdk.files.content(done.output_file_id)).text
        errors = (await sdk.files.content(done.error_file_id)).text
        listed = [each.id async for each in sdk.batches.list()]
    assert batch.status == "validating"
    assert [state.status for state in states] == ["in_progress", "completed", "completed"]
    counts = done.request_counts
    assert (counts.total, counts.completed, counts.failed) == (4, 2, 2)
    rows = [json.loads(row) for row in output.splitlines()]
    assert [row["custom_id"] for row in rows] == ["r1", "r2"]
    assert rows[0]["response"]["body"]["choices"][0]["message"]["content"] == SAID
    assert done.usage.total_tokens == 2 * rows[0]["response"]["body"]["usage"]["total_tokens"]
    failed = [json.loads(row)["response"]["status_code"] for row in errors.splitlines()]
    assert failed == [400, 400]
    assert listed == [batch.id]


@pytest.mark.gen_test
async def test_a_batch_can_be_cancelled_until_it_is_done() -> None:
    async with azure() as sim, sdk_at(sim, PLAIN) as sdk:
        file = await sdk.files.create(file=("in.jsonl", line(1).encode()), purpose="batch")
        given = {"input_file_id": file.id, "endpoint": "/embeddings", "completion_window": "24h"}
        sim.script("*", "polls3")
        batch = await sdk.batches.create(**given)
        await sdk.batches.retrieve(batch.id)
        cancelled = await sdk.batches.cancel(batch.id)
        later = await sdk.batches.retrieve(batch.id)
        done = await sdk.batches.create(**given)
        for _ in range(2):
            await sdk.batches.retrieve(done.id)
        too_late = await sdk.batches.cancel(done.id)
        for change in ({"endpoint": "/x"}, {"completion_window": "1h"}):
            with pytest.raises(openai.BadRequestError):
                await sdk.batches.create(**{**given, **change})
        for change in ({"input_file_id": "file-none"},):
            with pytest.raises(openai.NotFoundError):
                await sdk.batches.create(**{**given, **change})
        with pytest.raises(openai.NotFoundError):
            await sdk.batches.retrieve("batch_none")
    assert cancelled.status == later.status == "cancelled"
    assert cancelled.cancelled_at
    assert too_late.status == "completed"


@pytest.mark.gen_test
async def test_a_batch_needs_a_file_for_batches_and_every_parameter() -> None:
    async with azure() as sim, sdk_at(sim, PLAIN) as sdk:
        file = await sdk.files.create(file=("a.txt", b"x"), purpose="assistants")
        given = {"endpoint": "/completions", "completion_window": "24h", "input_file_id": file.id}
        wrong = await ask(sim, "/openai/v1/batches", given)
        del given["input_file_id"]
        lacking = await ask(sim, "/openai/v1/batches", given)
    assert (wrong.status, wrong.json["error"]["code"]) == (400, "invalid_value")
    assert lacking.json["error"]["param"] == "input_file_id"


# --- fine-tuning --------------------------------------------------------------------------------


@by_both
@pytest.mark.gen_test
async def test_a_fine_tuning_job_succeeds_as_it_is_polled(kind: str) -> None:
    async with azure() as sim, sdk_at(sim, kind) as sdk:
        file = await sdk.files.create(file=("t.jsonl", b"{}\n"), purpose="fine-tune")
        job = await sdk.fine_tuning.jobs.create(
            model="gpt-4o-mini", training_file=file.id, suffix="mine"
        )
        states = [await sdk.fine_tuning.jobs.retrieve(job.id) for _ in range(2)]
        events = [e async for e in sdk.fine_tuning.jobs.list_events(job.id)]
        checkpoints = [c async for c in sdk.fine_tuning.jobs.checkpoints.list(job.id)]
        listed = [each.id async for each in sdk.fine_tuning.jobs.list()]
        results = await sdk.files.content(states[-1].result_files[0])
    assert [job.status, *(state.status for state in states)] == [
        "validating_files",
        "running",
        "succeeded",
    ]
    assert states[-1].fine_tuned_model.endswith(".mine")
    assert events[0].message == "Job succeeded."
    assert checkpoints[0].fine_tuning_job_id == job.id == listed[0]
    assert results.text.startswith("step,")


@pytest.mark.gen_test
async def test_a_fine_tuning_job_can_be_cancelled_and_needs_its_files() -> None:
    async with azure() as sim, sdk_at(sim, PLAIN) as sdk:
        jobs = sdk.fine_tuning.jobs
        file = await sdk.files.create(file=("t.jsonl", b"{}\n"), purpose="fine-tune")
        job = await jobs.create(model="gpt-4o-mini", training_file=file.id)
        cancelled = await jobs.cancel(job.id)
        checkpoints = [c async for c in jobs.checkpoints.list(job.id)]
        with pytest.raises(openai.BadRequestError) as raised:
            await jobs.create(model="m", training_file=file.id, validation_file="file-none")
        with pytest.raises(openai.NotFoundError):
            await jobs.retrieve("ftjob-none")
        lacking = await ask(sim, "/openai/v1/fine_tuning/jobs", {"model": "m"})
    assert cancelled.status == "cancelled"
    assert checkpoints == []
    assert raised.value.param == "validation_file"
    assert lacking.json["error"]["param"] == "training_file"


# --- vector stores ------------------------------------------------------------------------------


@by_both
@pytest.mark.gen_test
async def test_a_vector_store_holds_files_and_finds_words(kind: str) -> None:
    async with azure() as sim, sdk_at(sim, kind) as sdk:
        cats = await sdk.files.create(file=("c.txt", b"cats purr"), purpose="assistants")
        dogs = await sdk.files.create(file=("d.txt", b"dogs bark"), purpose="assistants")
        store = await sdk.vector_stores.create(name="pets", file_ids=[cats.id])
        added = await sdk.vector_stores.files.create(store.id, file_id=dogs.id)
        renamed = await sdk.vector_stores.update(store.id, name="animals")
        found = await sdk.vector_stores.search(store.id, query="do dogs bark")
        files = [each.id async for each in sdk.vector_stores.files.list(store.id)]
        updated = await sdk.vector_stores.files.update(
            dogs.id, vector_store_id=store.id, attributes={"kind": "dog"}
        )
        content = await sdk.vector_stores.files.content(dogs.id, vector_store_id=store.id)
        removed = await sdk.vector_stores.files.delete(dogs.id, vector_store_id=store.id)
        shown = await sdk.vector_stores.retrieve(store.id)
        listed = [each.id async for each in sdk.vector_stores.list()]
        deleted = await sdk.vector_stores.delete(store.id)
        with pytest.raises(openai.NotFoundError):
            await sdk.vector_stores.files.retrieve(cats.id, vector_store_id=store.id)
    assert (store.name, renamed.name) == ("pets", "animals")
    assert (store.file_counts.total, renamed.file_counts.total, shown.usage_bytes) == (1, 2, 9)
    assert (added.status, added.vector_store_id) == ("completed", store.id)
    assert [result.filename for result in found.data] == ["d.txt", "c.txt"]
    assert found.data[0].score > found.data[1].score == 0
    assert files == [dogs.id, cats.id]
    assert updated.attributes == {"kind": "dog"}
    assert content.data[0].text == "dogs bark"
    assert removed.deleted
    assert deleted.deleted
    assert listed == [store.id]


@pytest.mark.gen_test
async def test_vector_stores_refuse_what_they_do_not_know() -> None:
    path = "/openai/v1/vector_stores"
    no_results = {"query": "x", "max_num_results": 0}
    async with azure() as sim, sdk_at(sim, PLAIN) as sdk:
        store = await sdk.vector_stores.create()
        statuses = [
            (await ask(sim, path, {"file_ids": ["file-none"]})).status,
            (await ask(sim, path, {"file_ids": 1})).status,
            (await ask(sim, f"{path}/{store.id}/search", {})).status,
            (await ask(sim, f"{path}/{store.id}/search", no_results)).status,
            (await ask(sim, f"{path}/{store.id}/files", {})).status,
            (await ask(sim, f"{path}/{store.id}/files", {"file_id": "file-none"})).status,
            (await ask(sim, f"{path}/{store.id}/files/file-none")).status,
            (await ask(sim, f"{path}/vs_none/search", {"query": "x"})).status,
        ]
        dated = await ask(sim, "/openai/vector_stores?api-version=2024-10-21")
    assert statuses == [404, 400, 400, 400, 400, 404, 404, 404]
    assert dated.status == 404


# --- evals --------------------------------------------------------------------------------------


@by_both
@pytest.mark.gen_test
async def test_an_eval_is_run_and_passes(kind: str) -> None:
    items = [{"item": {"q": "1"}}, {"item": {"q": "2"}}]
    source = {"type": "jsonl", "source": {"type": "file_content", "content": items}}
    async with azure() as sim, sdk_at(sim, kind) as sdk:
        made = await sdk.evals.create(
            name="mine",
            data_source_config={"type": "custom", "item_schema": SCHEMA},
            testing_criteria=[GRADER],
        )
        run = await sdk.evals.runs.create(made.id, data_source=source)
        states = [await sdk.evals.runs.retrieve(run.id, eval_id=made.id) for _ in range(2)]
        outputs = [each async for each in sdk.evals.runs.output_items.list(run.id, eval_id=made.id)]
        renamed = await sdk.evals.update(made.id, name="yours")
        runs = [each.id async for each in sdk.evals.runs.list(made.id)]
        second = await sdk.evals.runs.create(made.id, data_source=source)
        cancelled = await sdk.evals.runs.cancel(second.id, eval_id=made.id)
        removed = await sdk.evals.runs.delete(second.id, eval_id=made.id)
        listed = [each.id async for each in sdk.evals.list()]
        deleted = await sdk.evals.delete(made.id)
        with pytest.raises(openai.NotFoundError):
            await sdk.evals.retrieve(made.id)
    assert (made.name, renamed.name) == ("mine", "yours")
    assert [run.status, *(s.status for s in states)] == ["queued", "in_progress", "completed"]
    assert states[-1].result_counts.passed == 2
    assert [each.datasource_item for each in outputs] == [{"q": "1"}, {"q": "2"}]
    assert cancelled.status == "cancelled"
    assert removed.deleted
    assert deleted.deleted
    assert (runs, listed) == ([run.id], [made.id])


@pytest.mark.gen_test
async def test_evals_refuse_what_is_not_there() -> None:
    path = "/openai/v1/evals"
    async with azure() as sim:
        config = {"data_source_config": {"type": "logs"}, "testing_criteria": []}
        made = (await ask(sim, path, config)).json["id"]
        statuses = [
            (await ask(sim, path, {})).status,
            (await ask(sim, path, {**config, "testing_criteria": 1})).status,
            (await ask(sim, f"{path}/{made}/runs", {})).status,
            (await ask(sim, f"{path}/eval_none/runs", {"data_source": {}})).status,
            (await ask(sim, f"{path}/{made}/runs/evalrun_none")).status,
            (await ask(sim, f"{path}/{made}/runs/evalrun_none/output_items")).status,
        ]
    assert statuses == [400, 400, 400, 404, 404, 404]


@pytest.mark.gen_test
async def test_every_resource_keeps_its_own() -> None:
    async with azure() as one, azure() as other, sdk_at(one, AZURE) as sdk:
        file = await sdk.files.create(file=("a.txt", b"x"), purpose="assistants")
        elsewhere = await ask(other, f"/openai/v1/files/{file.id}")
        here = await ask(one, f"/openai/v1/files/{file.id}", api_key=KEY)
    assert (here.status, elsewhere.status) == (200, 404)
