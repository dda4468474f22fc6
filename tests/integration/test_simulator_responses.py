"""The simulator's Responses API, through the official SDK and on the wire."""

from __future__ import annotations

import contextlib
from typing import Any

import openai
import pytest

from tests.support.azure import ask, azure
from tests.support.sdk import AZURE, KINDS, PLAIN, sdk_at

PATH = "/openai/v1/responses"
SAID = "Hello from Azure OpenAI! You said: ping"
TOOL = {
    "type": "function",
    "name": "weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": False,
}
by_both = pytest.mark.parametrize("kind", KINDS)


def ping(model: str = "gpt4o-prod", **more: Any) -> dict[str, Any]:
    return {"model": model, "input": "ping", **more}


# --- create -------------------------------------------------------------------------------------


@by_both
@pytest.mark.gen_test
async def test_a_response_is_what_the_sdk_expects(kind: str) -> None:
    async with azure() as sim, sdk_at(sim, kind) as sdk:
        answer = await sdk.responses.create(**ping(instructions="be brief", metadata={"a": "b"}))
        [record] = sim.requests
    assert answer.output_text == SAID
    assert (answer.status, answer.model, answer.object) == ("completed", "gpt4o-prod", "response")
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    assert answer.metadata == {"a": "b"}
    sources = [entry["source_type"] for entry in answer.model_extra["content_filters"]]
    assert sources == ["prompt", "completion"]
    assert (record.operation, record.deployment) == ("responses", "gpt4o-prod")


@by_both
@pytest.mark.gen_test
async def test_a_stream_tells_the_whole_story_in_numbered_events(kind: str) -> None:
    async with azure() as sim, sdk_at(sim, kind) as sdk:
        stream = await sdk.responses.create(**ping(stream=True))
        events = [event async for event in stream]
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == SAID == events[-1].response.output_text
    assert events[-1].response.usage.output_tokens == len(deltas)
    assert events[0].response.usage is None


@pytest.mark.gen_test
async def test_events_have_a_name_and_no_done() -> None:
    async with azure() as sim:
        answer = await ask(sim, PATH, ping(stream=True))
    assert answer.body.startswith(b"event: response.created\ndata: {")
    assert b"[DONE]" not in answer.body
    assert answer.headers["x-ms-served-model"] == "gpt-4o-2024-08-06"
    assert answer.headers["x-ms-deployment-name"] == "gpt4o-prod"


@pytest.mark.gen_test
async def test_the_streaming_helper_of_the_sdk_builds_the_same_response() -> None:
    async with azure() as sim, sdk_at(sim, PLAIN) as sdk:
        async with sdk.responses.stream(**ping()) as stream:
            async for _ in stream:
                pass
            final = await stream.get_final_response()
        kept = await sdk.responses.retrieve(final.id)
    assert final.output_text == kept.output_text == SAID


@pytest.mark.gen_test
async def test_tools_are_called_and_their_outcome_is_answered() -> None:
    async with azure() as sim, sdk_at(sim, PLAIN) as sdk:
        first = await sdk.responses.create(**ping("agent-tools", tools=[TOOL]))
        [call] = first.output
        outcome = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
        second = await sdk.responses.create(
            model="agent-tools", input=[outcome], previous_response_id=first.id, tools=[TOOL]
        )
        stream = await sdk.responses.create(**ping("agent-tools", tools=[TOOL], stream=True))
        events = [event async for event in stream]
        forced = await sdk.responses.create(
            **ping(tools=[TOOL], tool_choice={"type": "function", "name": "weather"})
        )
    assert (call.type, call.name, call.arguments) == (
        "function_call",
        "weather",
        '{"city": "text"}',
    )
    assert second.output_text.endswith("You said: sunny")
    deltas = [e.delta for e in events if e.type == "response.function_call_arguments.delta"]
    assert "".join(deltas) == call.arguments
    assert forced.output[0].type == "function_call"


@pytest.mark.gen_test
async def test_refusals_filters_and_limits_end_as_the_api_says() -> None:
    async with azure() as sim, sdk_at(sim, PLAIN) as sdk:
        refused = await sdk.responses.create(**ping("dep-refuse"))
        filtered = await sdk.responses.create(**ping("dep-filtered"))
        cut_short = await sdk.responses.create(model="dep-n40", input="ping", max_output_tokens=20)
        stream = await sdk.responses.create(**ping("dep-filtered", stream=True))
        last = [event async for event in stream][-1]
    assert refused.output[0].content[0].type == "refusal"
    assert (filtered.status, filtered.output) == ("incomplete", [])
    assert filtered.incomplete_details.reason == "content_filter"
    assert filtered.model_extra["content_filters"][1]["blocked"] is True
    assert cut_short.incomplete_details.reason == "max_output_tokens"
    assert cut_short.usage.output_tokens == 20
    assert last.type == "response.incomplete"


@pytest.mark.gen_test
async def test_structured_output_follows_the_schema() -> None:
    schema = {"type": "object", "properties": {"days": {"type": "integer"}}}
    form = {"format": {"type": "json_schema", "name": "w", "schema": schema}}
    async with azure() as sim, sdk_at(sim, PLAIN) as sdk:
        answer = await sdk.responses.create(**ping(text=form))
    assert answer.output_text == '{"days": 1}'


# --- what is kept -------------------------------------------------------------------------------


@by_both
@pytest.mark.gen_test
async def test_a_response_is_kept_continued_listed_and_deleted(kind: str) -> None:
    async with azure() as sim, sdk_at(sim, kind) as sdk:
        first = await sdk.responses.create(**ping())
        again = await sdk.responses.retrieve(first.id)
        second = await sdk.responses.create(**ping(previous_response_id=first.id))
        items = await sdk.responses.input_items.list(first.id)
        await sdk.responses.delete(first.id)
        with pytest.raises(openai.NotFoundError, match="not found"):
            await sdk.responses.retrieve(first.id)
        with pytest.raises(openai.BadRequestError) as raised:
            await sdk.responses.create(**ping(previous_response_id=first.id))
    assert again == first
    assert second.previous_response_id == first.id
    assert second.usage.input_tokens > first.usage.input_tokens
    assert items.data[0].content[0].text == "ping"
    assert raised.value.code == "previous_response_not_found"


@pytest.mark.gen_test
async def test_input_items_come_in_pages() -> None:
    messages = [{"role": "user", "content": str(number)} for number in range(5)]
    async with azure() as sim, sdk_at(sim, PLAIN) as sdk:
        answer = await sdk.responses.create(model="dep", input=messages)
        items = sdk.responses.input_items.list(answer.id, limit=2, order="asc")
        seen = [item.content async for item in items]
        newest = await sdk.responses.input_items.list(answer.id, limit=1)
        wrong = [
            (await ask(sim, f"{PATH}/{answer.id}/input_items?{query}")).status
            for query in ("limit=0", "limit=x", "order=up", "after=msg_none")
        ]
    assert seen == ["0", "1", "2", "3", "4"]
    assert newest.data[0].content == "4"
    assert newest.has_more
    assert wrong == [400, 400, 400, 400]
    pages = [r.query.get("after") for r in sim.requests if r.query.get("limit") == "2"]
    assert len(pages) == 3


@pytest.mark.gen_test
async def test_what_is_not_stored_is_not_found() -> None:
    async with azure() as sim, sdk_at(sim, PLAIN) as sdk:
        answer = await sdk.responses.create(**ping(store=False))
        with pytest.raises(openai.NotFoundError):
            await sdk.responses.retrieve(answer.id)


@pytest.mark.gen_test
async def test_another_resource_knows_neither_the_id_nor_the_sealed_reasoning() -> None:
    sealed = {"include": ["reasoning.encrypted_content"], "store": False}
    async with azure() as one, azure() as other, sdk_at(one, PLAIN) as at_one:
        answer = await at_one.responses.create(**ping("o4-reasoning", **sealed))
        item = answer.output[0].to_dict()
        question = {"role": "user", "content": "and?"}
        again = await at_one.responses.create(model="o4-reasoning", input=[item, question])
        async with sdk_at(other, PLAIN) as at_other:
            with pytest.raises(openai.BadRequestError) as raised:
                await at_other.responses.create(model="o4-reasoning", input=[item, question])
            with pytest.raises(openai.NotFoundError):
                await at_other.responses.retrieve(again.id)
    assert answer.usage.output_tokens_details.reasoning_tokens == 64
    assert again.output_text.endswith("You said: and?")
    assert raised.value.code == "invalid_encrypted_content"


@by_both
@pytest.mark.gen_test
async def test_a_background_response_gets_done_as_it_is_polled(kind: str) -> None:
    async with azure() as sim, sdk_at(sim, kind) as sdk:
        answer = await sdk.responses.create(**ping(background=True))
        polled = [await sdk.responses.retrieve(answer.id) for _ in range(3)]
        cancelled = await sdk.responses.cancel(answer.id)
    assert answer.status == "queued"
    assert [response.status for response in polled] == ["in_progress", "completed", "completed"]
    assert polled[0].usage is None
    assert polled[-1].output_text == SAID
    assert cancelled.status == "completed"


@pytest.mark.gen_test
async def test_a_background_response_can_be_cancelled_and_another_one_cannot() -> None:
    async with azure() as sim, sdk_at(sim, PLAIN) as sdk:
        answer = await sdk.responses.create(**ping("dep-polls5", background=True))
        cancelled = await sdk.responses.cancel(answer.id)
        later = await sdk.responses.retrieve(answer.id)
        told = await sdk.responses.retrieve(answer.id, stream=True)
        last = [event async for event in told][-1]
        plain = await sdk.responses.create(**ping())
        with pytest.raises(openai.BadRequestError, match="synchronous"):
            await sdk.responses.cancel(plain.id)
    assert cancelled.status == later.status == "cancelled"
    assert last.type == "response.in_progress"


@pytest.mark.gen_test
async def test_a_stream_can_be_taken_up_again_after_any_event() -> None:
    async with azure() as sim, sdk_at(sim, PLAIN) as sdk:
        stream = await sdk.responses.create(**ping(background=True, stream=True))
        events = [event async for event in stream]
        name = events[0].response.id
        rest = await sdk.responses.retrieve(name, stream=True, starting_after=4)
        again = [event async for event in rest]
        wrong = await ask(sim, f"{PATH}/{name}?stream=true&starting_after=x")
    assert events[1].type == "response.queued"
    assert again == events[5:]
    assert wrong.status == 400


@by_both
@pytest.mark.gen_test
async def test_a_conversation_is_compacted(kind: str) -> None:
    async with azure() as sim, sdk_at(sim, kind) as sdk:
        compacted = await sdk.responses.compact(model="gpt4o-prod", input="ping")
        items = [item.to_dict(warnings=False) for item in compacted.output]
        answer = await sdk.responses.create(model="gpt4o-prod", input=items)
    assert [item["type"] for item in items] == ["message", "compaction"]
    assert compacted.usage.total_tokens > 0
    assert answer.output_text == SAID


# --- refusals and faults ------------------------------------------------------------------------


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"model": "dep"}, "input"),
        ({"input": "ping"}, None),
        (ping(messages=[]), "messages"),
        (ping(max_tokens=20), "max_tokens"),
        (ping(max_output_tokens=1), "max_output_tokens"),
        (ping(max_output_tokens="20"), "max_output_tokens"),
        (ping(stream="yes"), "stream"),
        (ping(background=True, store=False), "background"),
        (ping("o4-reasoning", temperature=1), "temperature"),
        (ping(tools={}), "tools"),
        ({"model": "dep", "input": 7}, "input"),
        ({"model": "dep", "input": ["a"]}, "input[0]"),
        ({"model": "dep-ctx1", "input": "a long one"}, "input"),
    ],
)
async def test_a_bad_request_is_told_which_parameter(body: Any, param: str | None) -> None:
    async with azure() as sim:
        answer = await ask(sim, PATH, body)
    assert answer.status == 400
    assert answer.json["error"]["param"] == param


@pytest.mark.gen_test
async def test_the_dated_surface_has_it_since_march_2025() -> None:
    async with azure() as sim:
        early = await ask(sim, "/openai/responses?api-version=2024-10-21", ping())
        since = await ask(sim, "/openai/responses?api-version=2025-03-01-preview", ping())
        below = await ask(
            sim, "/openai/deployments/dep/responses?api-version=2025-03-01-preview", ping()
        )
        unknown = await ask(sim, f"{PATH}/abc")
        missing = await ask(sim, PATH, ping("missing-one"))
    assert [early.status, since.status, below.status] == [404, 200, 404]
    assert (unknown.status, unknown.json["error"]["param"]) == (400, "response_id")
    assert missing.json["error"]["code"] == "DeploymentNotFound"


@pytest.mark.gen_test
async def test_a_rate_limit_can_stand_inside_a_200() -> None:
    async with azure() as sim:
        bare = await ask(sim, PATH, ping("dep-throttled-retry7", stream=True))
        told = await ask(sim, PATH, ping("dep-failed2-err429-retry9", stream=True))
        whole = await ask(sim, PATH, ping("dep-failed0-err429"))
        later = await ask(sim, f"{PATH}/{told.events[0]['response']['id']}")
    assert (bare.status, bare.headers["retry-after"]) == (200, "7")
    failed, error = bare.events
    assert (failed["type"], failed["response"]["error"]) == ("response.failed", None)
    assert failed["response"]["usage"] is None
    assert error["error"]["type"] == "too_many_requests"
    assert error["error"]["code"] == "rate_limit_exceeded"
    assert error["sequence_number"] == 2
    assert (told.status, told.headers["retry-after"]) == (200, "9")
    assert [event["type"] for event in told.events] == [
        "response.created",
        "response.in_progress",
        "response.failed",
    ]
    assert told.events[-1]["response"]["error"]["code"] == "rate_limit_exceeded"
    assert (whole.status, whole.json["status"]) == (200, "failed")
    assert whole.json["error"]["code"] == "rate_limit_exceeded"
    assert later.json["status"] == "failed"


@pytest.mark.gen_test
async def test_a_stream_can_fail_late_or_end_without_its_terminal_event() -> None:
    async with azure() as sim:
        late = await ask(sim, PATH, ping("dep-fail5-err-capacity", stream=True))
        failed = await ask(sim, PATH, ping("dep-failed6", stream=True))
        unended = await ask(sim, PATH, ping("dep-nodone", stream=True))
        cut = await ask(sim, PATH, ping("dep-cut5", stream=True))
        record = await sim.wait_for(lambda r: r.outcome == "cut")
    assert b"event: error\n" in late.body
    assert late.events[-1]["sequence_number"] == 5
    assert late.events[-1]["error"]["code"] == "429"
    assert failed.events[-1]["response"]["error"]["code"] == "server_error"
    assert len(failed.events) == 7
    assert unended.events[-1]["type"] == "response.output_item.done"
    assert len(cut.events) == 5
    assert record.events_sent == 5


@pytest.mark.gen_test
async def test_reads_are_scripted_by_header_and_by_the_queue_of_any() -> None:
    async with azure() as sim:
        made = await ask(sim, PATH, ping())
        path = f"{PATH}/{made.json['id']}"
        by_header = await ask(sim, path, x_sim_script="err503")
        sim.script("*", "err429")
        by_queue = await ask(sim, path)
        usual = await ask(sim, path)
    assert [by_header.status, by_queue.status, usual.status] == [503, 429, 200]


@pytest.mark.gen_test
async def test_a_long_stream_goes_out_as_its_reader_takes_it() -> None:
    async with azure() as sim, sdk_at(sim, AZURE) as sdk:
        stream = await sdk.responses.create(**ping("dep-bulk2", stream=True))
        deltas = 0
        async for event in stream:
            deltas += event.type == "response.output_text.delta"
        with contextlib.suppress(openai.APIError):
            await stream.close()
    assert deltas == 2048
    assert event.response.usage.output_tokens == 2048
