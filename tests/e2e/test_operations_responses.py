"""The Responses API through whole gateways: sealed ids, whoever serves them and whatever has become
of the model since; errors inside a success; what is counted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.support.operations import (
    KINDS,
    V1,
    VERSIONS,
    alias_of,
    async_sdk_to,
    line_of,
    sample,
    sdk_to,
    unique,
)
from tests.support.process import CALLER_KEY, Answer, Stand, gateway, send, simulator, stand
from tests.support.wire import Wire, post
from tests.support.workers import WORKERS, crowd

SAID = "Hello from Azure OpenAI! You said: ping"
OTHER_KEY = "sk-another-caller"
ASKS_PER_WORKER = 15
"""New connections are spread at random: with so many, none of three workers is missed."""

SMALL = {"input": "p", "max_output_tokens": 16}
DAILY = {"tpd": 1_000_000}
NOISE_TOKENS = 500
"""What the small requests around a measured one take."""

by_both = pytest.mark.parametrize("kind", KINDS)
by_version = pytest.mark.parametrize("version", VERSIONS)


@pytest.fixture(scope="module", params=[1, 3], ids=["one worker", "three workers"])
def bench(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stand]:
    """A gateway in front of a simulator, for a whole module."""
    with crowd(tmp_path_factory.mktemp("stand"), request.param) as running:
        running.gateway.create_caller_key(OTHER_KEY)
        yield running


def ask(bench: Stand, method: str, path: str, body: Any = None, *, key: str = CALLER_KEY) -> Answer:
    """One request on a connection of its own, so of any worker."""
    headers = {"Authorization": f"Bearer {key}"}
    return send(method, f"{bench.gateway.proxy}/v1/responses{path}", body, headers=headers)


def made(bench: Stand, alias: str, **fields: Any) -> dict[str, Any]:
    """A new response."""
    answer = ask(bench, "POST", "", {"model": alias, "input": "ping", **fields})
    assert answer.status == 200, answer.body
    return dict(answer.json)


def upstream_ids(bench: Stand) -> set[str]:
    """The ids by which the resource knows the responses that it was asked about."""
    asked = bench.azure.control("GET", "requests")["requests"]
    words = {word for record in asked for word in record["path"].partition("?")[0].split("/")}
    return {word for word in words if word.startswith("resp_")}


# --- what SDKs do -------------------------------------------------------------------------------


@by_both
@by_version
def test_a_response_lives_its_life_through_the_sdk(bench: Stand, kind: str, version: str) -> None:
    alias = alias_of(bench, unique("gpt4o"), version)
    with sdk_to(bench.gateway, kind) as sdk:
        first = sdk.responses.create(model=alias, input="ping")
        assert (first.output_text, first.model, first.status) == (SAID, alias, "completed")
        again = sdk.responses.retrieve(first.id)
        assert (again.id, again.output, again.model) == (first.id, first.output, alias)
        items = list(sdk.responses.input_items.list(first.id))
        assert [item.content[0].text for item in items] == ["ping"]
        second = sdk.responses.create(model=alias, input="ping", previous_response_id=first.id)
        assert second.previous_response_id == first.id
        assert second.id != first.id
        compacted = sdk.responses.compact(model=alias, previous_response_id=second.id)
        assert compacted.object == "response.compaction"
        sdk.responses.delete(first.id)
        with pytest.raises(openai.NotFoundError) as raised:
            sdk.responses.retrieve(first.id)
        assert f"'{first.id}' not found" in str(raised.value)


@by_both
@by_version
def test_a_stream_and_the_same_stream_told_again(bench: Stand, kind: str, version: str) -> None:
    alias = alias_of(bench, unique("gpt4o"), version)
    with sdk_to(bench.gateway, kind) as sdk:
        events = list(sdk.responses.create(model=alias, input="ping", stream=True))
        last = events[-1]
        assert last.type == "response.completed"
        assert last.response.output_text == SAID
        assert {e.response.model for e in events if hasattr(e, "response")} == {alias}
        assert len({e.response.id for e in events if hasattr(e, "response")}) == 1
        again = list(sdk.responses.retrieve(last.response.id, stream=True))
        assert again == events
        rest = list(sdk.responses.retrieve(last.response.id, stream=True, starting_after=4))
        assert rest == events[5:]


@by_both
@by_version
def test_a_background_response_is_polled_and_cancelled(
    bench: Stand, kind: str, version: str
) -> None:
    alias = alias_of(bench, unique("gpt4o"), version)
    with sdk_to(bench.gateway, kind) as sdk:
        answer = sdk.responses.create(model=alias, input="ping", background=True)
        assert answer.status == "queued"
        seen = [sdk.responses.retrieve(answer.id).status for _ in range(2)]
        assert seen == ["in_progress", "completed"]
        other = sdk.responses.create(model=alias, input="ping", background=True)
        assert sdk.responses.cancel(other.id).status == "cancelled"
        with pytest.raises(openai.BadRequestError, match="Cannot cancel a synchronous response"):
            sdk.responses.cancel(sdk.responses.create(model=alias, input="ping").id)


@by_both
@pytest.mark.gen_test(timeout=20)
async def test_the_asynchronous_sdk_has_it_all(bench: Stand, kind: str) -> None:
    alias = alias_of(bench, unique("gpt4o"))
    async with async_sdk_to(bench.gateway, kind) as sdk:
        first = await sdk.responses.create(model=alias, input="ping")
        stream = await sdk.responses.create(
            model=alias, input="ping", previous_response_id=first.id, stream=True
        )
        events = [event async for event in stream]
        assert events[-1].response.previous_response_id == first.id
        again = await sdk.responses.retrieve(events[-1].response.id)
        assert again.output_text == SAID
        items = [item async for item in sdk.responses.input_items.list(again.id)]
        assert items
        await sdk.responses.delete(first.id)


# --- whose they are -----------------------------------------------------------------------------


def test_another_caller_key_finds_nothing(bench: Stand) -> None:
    alias = alias_of(bench, unique("gpt4o"))
    id = made(bench, alias)["id"]
    for method, path in (
        ("GET", f"/{id}"),
        ("GET", f"/{id}?stream=true"),
        ("GET", f"/{id}/input_items"),
        ("POST", f"/{id}/cancel"),
        ("DELETE", f"/{id}"),
    ):
        answer = ask(bench, method, path, key=OTHER_KEY)
        assert (answer.status, answer.error["param"]) == (404, "response_id"), path
        assert f"'{id[:250]}" in answer.error["message"]
    body = {"model": alias, "input": "ping", "previous_response_id": id}
    for path in ("", "/compact"):
        answer = ask(bench, "POST", path, body, key=OTHER_KEY)
        assert (answer.status, answer.error["code"]) == (404, "previous_response_not_found")
    assert ask(bench, "GET", f"/{id}").status == 200


def test_ids_that_were_never_given_out_are_not_found(bench: Stand) -> None:
    deployment = unique("gpt4o")
    id = made(bench, alias_of(bench, deployment))["id"]
    bench.azure.clear()
    assert ask(bench, "GET", f"/{id}").status == 200
    (own,) = upstream_ids(bench)
    for other in ("resp_1", own, id[:-2] + ("AA" if id[-2:] != "AA" else "BB"), f"{id}AAAA", "x"):
        answer = ask(bench, "GET", f"/{other}")
        assert (answer.status, answer.error["param"]) == (404, "response_id"), other


def test_every_worker_serves_what_any_of_them_made(bench: Stand) -> None:
    alias = alias_of(bench, unique("gpt4o"))
    id = made(bench, alias)["id"]
    (ready,) = bench.gateway.events("gateway.ready")
    for _ in range(ASKS_PER_WORKER * ready.get("workers", 1)):
        again = ask(bench, "GET", f"/{id}")
        assert (again.status, again.json["id"]) == (200, id)
        follow = made(bench, alias, previous_response_id=id)
        assert follow["previous_response_id"] == id


@pytest.mark.parametrize("workers", ["1", "3"])
def test_ids_survive_a_restart_on_the_same_store(tmp_path: Path, workers: str) -> None:
    settings = {WORKERS: workers}
    with stand(tmp_path, settings) as bench:
        alias = alias_of(bench, unique("gpt4o"))
        id = made(bench, alias)["id"]
        assert bench.gateway.stop().status == 0
        with gateway(tmp_path, settings) as later:
            after = Stand(bench.azure, later, bench.provider_key_id)
            assert ask(after, "GET", f"/{id}").json["id"] == id
            follow = made(after, alias, previous_response_id=id)
            assert follow["previous_response_id"] == id
            assert ask(after, "DELETE", f"/{id}").status == 200


@by_version
def test_old_ids_lead_to_the_old_resource_and_new_ones_to_the_new(
    bench: Stand, version: str
) -> None:
    deployment = unique("gpt4o")
    with simulator() as second:
        program = bench.gateway
        other_key = program.create_provider_key(second.url)
        alias = deployment
        model = program.create_model(alias, deployment, bench.provider_key_id, api_version=version)
        old = made(bench, alias)["id"]
        moved = {
            "display_name": alias,
            "provider": "azure",
            "model_name": deployment,
            "provider_key_id": other_key,
            "api_version": version,
        }
        assert program.manage("PUT", f"models/{model}", moved).status == 200
        new = made(bench, alias)["id"]
        assert len(second.requests(deployment=deployment)) == 1
        for id in (old, new):
            again = ask(bench, "GET", f"/{id}")
            assert again.status == 200, again.body
            assert again.json["id"] == id
            assert len(list(ask(bench, "GET", f"/{id}/input_items").json["data"])) == 1
            follow = made(bench, alias, previous_response_id=id)
            assert follow["previous_response_id"] == id
            assert ask(bench, "DELETE", f"/{follow['id']}").status == 200
        assert len(second.requests(deployment=deployment)) == 2
        assert len(bench.azure.requests(deployment=deployment)) == 2


@by_version
def test_a_wildcard_model_finds_its_responses_again(bench: Stand, version: str) -> None:
    deployment = unique("gpt4o")
    program = bench.gateway
    family = deployment[-12:]
    pattern = f"{family}-*"
    program.create_model(pattern, "gpt4o-*", bench.provider_key_id, api_version=version)
    first, second = (made(bench, f"{family}-{name}") for name in ("one", "two"))
    for response, name in ((first, "one"), (second, "two")):
        again = ask(bench, "GET", f"/{response['id']}").json
        assert (again["id"], again["model"]) == (response["id"], f"{family}-{name}")
    follow = made(bench, f"{family}-two", previous_response_id=first["id"])
    assert follow["previous_response_id"] == first["id"]


def test_going_on_at_another_resource_is_a_400_that_says_so(bench: Stand) -> None:
    with simulator() as second:
        program = bench.gateway
        there = unique("gpt4o")
        program.create_model(there, there, program.create_provider_key(second.url), api_version=V1)
        id = made(bench, alias_of(bench, unique("gpt4o")))["id"]
        body = {"model": there, "input": "ping", "previous_response_id": id}
        answer = ask(bench, "POST", "", body)
        assert (answer.status, answer.error["param"]) == (400, "previous_response_id")
        assert "another resource" in answer.error["message"]


# --- what callers do not get to see -------------------------------------------------------------


def test_no_byte_tells_the_upstream_s_id_or_the_deployment(bench: Stand) -> None:
    deployment = unique("gpt4o")
    alias = f"seen-{deployment[-8:]}"
    bench.gateway.create_model(alias, deployment, bench.provider_key_id, api_version=V1)
    new = {"model": alias, "input": "ping"}
    bench.azure.clear()
    answers = [ask(bench, "POST", "", new), ask(bench, "POST", "", {**new, "stream": True})]
    id = answers[0].json["id"]
    for method, tail in (
        ("GET", ""),
        ("GET", "?stream=true"),
        ("GET", "?stream=true&starting_after=x"),
        ("GET", "/input_items"),
        ("POST", "/cancel"),
        ("DELETE", ""),
        ("GET", ""),
        ("POST", "/cancel"),
    ):
        answers.append(ask(bench, method, f"/{id}{tail}"))
    for tail in ("", "/compact"):
        answers.append(ask(bench, "POST", tail, {**new, "previous_response_id": id}))
    for script in ("failed3-err-server", "failed6", "fail7", "cut5", "err-parameter", "err404"):
        for stream in (True, False):
            bench.azure.script(deployment, script)
            answers.append(ask(bench, "POST", "", {**new, "stream": stream}))
    seen = b"".join(json.dumps(answer.headers).encode() + answer.body for answer in answers)
    own = upstream_ids(bench)
    assert own
    assert [known for known in own if known.encode() in seen] == []
    assert [word for word in (deployment, "127.0.0.1", "[depl") if word.encode() in seen] == []


# --- rate limits and cuts -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "stream"),
    [
        ("throttled-retry7", True),
        ("failed2-err429-retry7", True),
        ("failed2-err429-retry7", False),
    ],
)
@by_both
def test_a_rate_limit_inside_a_success_is_a_429_with_a_hint(
    bench: Stand, kind: str, script: str, stream: bool
) -> None:
    alias = alias_of(bench, unique("gpt4o", script))
    with sdk_to(bench.gateway, kind) as sdk, pytest.raises(openai.RateLimitError) as raised:
        sdk.responses.create(model=alias, input="ping", stream=stream)
    assert raised.value.response.headers["retry-after"] == "7"
    assert raised.value.code == "rate_limit_exceeded"
    line = line_of(bench, raised.value.response.headers)
    assert (line["status"], line["outcome"]) == (429, "rate_limited")


def test_a_failed_response_is_an_answer(bench: Stand) -> None:
    alias = alias_of(bench, unique("gpt4o", "failed4-err-server"))
    with sdk_to(bench.gateway) as sdk:
        events = list(sdk.responses.create(model=alias, input="ping", stream=True))
    assert events[-1].type == "response.failed"
    assert events[-1].response.error.code


@pytest.mark.parametrize("script", ["cut7", "reset7", "half7", "nodone"])
def test_a_cut_stream_ends_in_an_error_event(bench: Stand, script: str) -> None:
    alias = alias_of(bench, unique("gpt4o", script, "d5"))
    answer = ask(bench, "POST", "", {"model": alias, "input": "ping", "stream": True})
    assert answer.status == 200
    head, _, last = answer.body.rpartition(b"event: error\ndata: ")
    assert b"response.output_text.delta" in head
    assert json.loads(last)["error"]["type"] == "stream_aborted"
    with sdk_to(bench.gateway) as sdk, pytest.raises(openai.APIError):
        list(sdk.responses.create(model=alias, input="ping", stream=True))


# --- what is counted ----------------------------------------------------------------------------


@by_version
@pytest.mark.parametrize("stream", [False, True])
def test_usage_is_in_the_access_line_and_the_metrics(
    bench: Stand, version: str, stream: bool
) -> None:
    alias = alias_of(bench, unique("gpt4o"), version)
    answer = ask(bench, "POST", "", {"model": alias, "input": "ping", "stream": stream})
    document = answer.events[-1]["response"] if stream else answer.json
    used = document["usage"]
    line = line_of(bench, answer.headers)
    assert (line["prompt_tokens"], line["completion_tokens"], line["total_tokens"]) == (
        used["input_tokens"],
        used["output_tokens"],
        used["total_tokens"],
    )
    assert not line["usage_estimated"]
    assert (line["model"], line["stream"], line["status"]) == (alias, stream, 200)
    assert line["endpoint"] == "/v1/responses"
    read = ask(bench, "GET", f"/{document['id']}")
    assert line_of(bench, read.headers).get("total_tokens", 0) == 0
    counted = sample(bench.gateway.scrape(), "aisix_llm_input_tokens_total", model=alias)
    assert counted == used["input_tokens"]


def left_of(bench: Stand, alias: str) -> int:
    """Tokens left of the limit of an alias, seen by a small request."""
    answer = ask(bench, "POST", "", {"model": alias, **SMALL})
    line_of(bench, answer.headers)  # it is settled: another worker may be the next to look
    return int(answer.headers["x-ratelimit-remaining-tokens"])


def tokens_taken(bench: Stand, alias: str, **fields: Any) -> tuple[Answer, int]:
    """An answer, and what of a daily limit stayed taken after it."""
    before = left_of(bench, alias)
    answer = ask(bench, "POST", "", {"model": alias, "input": "p", **fields})
    line_of(bench, answer.headers)
    return answer, before - left_of(bench, alias)


def test_a_background_response_keeps_what_was_reserved(bench: Stand) -> None:
    alias = alias_of(bench, unique("gpt4o"), rate_limit=DAILY)
    answer, taken = tokens_taken(bench, alias, background=True, max_output_tokens=5000)
    assert answer.json["status"] == "queued"
    assert taken > 5000
    _, taken = tokens_taken(bench, alias, max_output_tokens=5000)
    assert taken < NOISE_TOKENS


@pytest.mark.parametrize(
    ("script", "stream"),
    [("throttled", True), ("failed2-err429", True), ("failed2-err429", False), ("err429", True)],
)
def test_what_was_refused_inside_a_success_takes_no_tokens(
    bench: Stand, script: str, stream: bool
) -> None:
    deployment = unique("gpt4o")
    alias = alias_of(bench, deployment, rate_limit=DAILY)
    left = left_of(bench, alias)
    bench.azure.script(deployment, script)
    body = {"model": alias, "input": "p", "max_output_tokens": 5000, "stream": stream}
    refused = ask(bench, "POST", "", body)
    assert refused.status == 429
    line_of(bench, refused.headers)
    assert left - left_of(bench, alias) < NOISE_TOKENS


def test_a_stream_that_its_caller_leaves_is_settled_by_what_came(bench: Stand) -> None:
    deployment = unique("gpt4o")
    alias = alias_of(bench, deployment, rate_limit=DAILY)
    left = left_of(bench, alias)
    bench.azure.script(deployment, "stall8")
    request_id = unique("left")
    with Wire(bench.gateway.proxy) as wire:
        body = {"model": alias, "input": "p", "stream": True, "max_output_tokens": 5000}
        wire.send(post("/v1/responses", body, {"x-aisix-request-id": request_id}))
        wire.read_until(b"response.output_text.delta")
    line = bench.gateway.access_line(request_id)
    assert (line["status"], line["usage_estimated"]) == (499, True)
    bench.azure.requests(deployment=deployment, outcome="client_closed", wait=1)
    assert left - left_of(bench, alias) < NOISE_TOKENS
