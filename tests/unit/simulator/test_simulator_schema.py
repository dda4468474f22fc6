"""The simulator's JSON answers against Microsoft's published document."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from aisix.simulator.answers import Identity, chat_answer, embeddings_answer, text_answer
from aisix.simulator.content import compose_chat, compose_text
from aisix.simulator.script import Script, parse

DOCUMENT = json.loads(
    (Path(__file__).parents[2] / "data" / "azure-inference-2024-10-21.json").read_text()
)
IDENTITY = Identity("chatcmpl-1", 1_732_400_000, "gpt-4o-2024-08-06", "fp_1")
MESSAGES = [{"role": "user", "content": "Say hello from Azure OpenAI."}]
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
SCHEMA = {
    "$defs": {"unit": {"enum": ["C", "F"]}},
    "type": "object",
    "properties": {
        "unit": {"$ref": "#/$defs/unit"},
        "days": {"type": "array", "items": {"type": "integer"}},
        "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "wind": {"type": ["number", "null"]},
        "kind": {"const": "x"},
        "none": {"type": "null"},
        "tags": {"type": "array"},
    },
    "required": ["unit", "days", "note"],
}


def allow_null(schema: Any) -> Any:
    """OpenAPI 3.0's `nullable` in the words of JSON schema."""
    if isinstance(schema, list):
        return [allow_null(entry) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    changed = {name: allow_null(value) for name, value in schema.items()}
    if changed.get("nullable") is True and isinstance(changed.get("type"), str):
        changed["type"] = [changed["type"], "null"]
    return changed


def validate(answer: Any, schema: dict[str, Any]) -> None:
    whole = allow_null({**schema, "components": DOCUMENT["components"]})
    jsonschema.Draft7Validator(whole).validate(answer)


def named(name: str) -> dict[str, Any]:
    return {"allOf": [{"$ref": f"#/components/schemas/{name}"}]}


def chat(script: str = "", **more: Any) -> dict[str, Any]:
    body = {"messages": MESSAGES, **more}
    parsed = parse(script)
    return chat_answer(body, compose_chat(body, parsed), script=parsed, identity=IDENTITY)


@pytest.mark.parametrize(
    ("script", "more"),
    [
        ("", {}),
        ("", {"n": 3}),
        ("", {"logprobs": True, "top_logprobs": 2}),
        ("", {"tools": [TOOL], "tool_choice": "required"}),
        ("", {"response_format": {"type": "json_object"}}),
        ("", {"max_tokens": 2}),
        ("refuse", {}),
        ("filtered", {}),
        ("tools", {}),
        ("reasoning cached3", {}),
        ("plain nousage", {}),
    ],
)
def test_chat_answers_are_as_published(script: str, more: dict[str, Any]) -> None:
    validate(chat(script, **more), named("createChatCompletionResponse"))


def test_the_schema_test_can_fail() -> None:
    answer = chat()
    answer["choices"][0]["finish_reason"] = "tired"
    with pytest.raises(jsonschema.ValidationError):
        validate(answer, named("createChatCompletionResponse"))


@pytest.mark.parametrize(
    "more", [{}, {"n": 2}, {"logprobs": 1}, {"prompt": ["a", "b"]}, {"echo": True}]
)
def test_completions_are_as_published(more: dict[str, Any]) -> None:
    body = {"prompt": "Once upon", **more}
    composition = compose_text(body, Script())
    answer = text_answer(body, composition, script=Script(), identity=IDENTITY)
    validate(answer, named("createCompletionResponse"))


def test_embeddings_of_numbers_are_as_published() -> None:
    operation = DOCUMENT["paths"]["/deployments/{deployment-id}/embeddings"]["post"]
    schema = operation["responses"]["200"]["content"]["application/json"]["schema"]
    validate(embeddings_answer({"input": ["a", "b"]}, "text-embedding-3-small"), schema)


def test_structured_output_fits_the_callers_schema() -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "w", "schema": SCHEMA}}
    content = chat(response_format=wanted)["choices"][0]["message"]["content"]
    jsonschema.Draft202012Validator(SCHEMA).validate(json.loads(content))


@pytest.mark.parametrize("schema", [7, {"$ref": "#/$defs/loop", "$defs": {"loop": {"$ref": "#"}}}])
def test_an_odd_schema_does_no_harm(schema: Any) -> None:
    wanted = {"type": "json_schema", "json_schema": {"schema": schema}}
    assert chat(response_format=wanted)["choices"][0]["message"]["content"] == "null"
