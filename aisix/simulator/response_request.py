"""A request to the Responses API: what is refused about it, and what it asks in the words of chat.

A request that passes `check` is safe to compose an answer from. Pure but for the ids handed in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from aisix.simulator import faults
from aisix.simulator.content import JsonObject
from aisix.simulator.faults import Fault

_LEAST_OUTPUT_TOKENS = 16


def check(body: JsonObject, *, reasoning: bool) -> Fault | None:
    """The first thing wrong with a request, or None."""
    moved = {"messages": "input", "max_tokens": "max_output_tokens"}
    for name, instead in moved.items():
        if body.get(name) is not None:
            message = (
                f"Unsupported parameter: '{name}'. In the Responses API, this parameter has moved "
                f"to '{instead}'."
            )
            return faults.invalid(message, param=name, code="unsupported_parameter")
    for name in ("stream", "background", "store"):
        if not isinstance(body.get(name), bool | None):
            return faults.wrong_type(name, "a boolean")
    if reasoning:
        refused = next((n for n in ("temperature", "top_p") if body.get(n) is not None), None)
        if refused:
            return faults.unsupported(refused)
    if body.get("background") and body.get("store") is False:
        message = "Background mode requires store to be true."
        return faults.invalid(message, param="background")
    return _check_input(body) or _check_lists(body)


def _check_input(body: JsonObject) -> Fault | None:
    given = body.get("input")
    if given is None and body.get("previous_response_id") is None:
        return faults.missing("input")
    if not isinstance(given, str | list | None):
        return faults.wrong_type("input", "one of a string or array of input items")
    for index, item in enumerate(given if isinstance(given, list) else ()):
        if not isinstance(item, dict):
            return faults.wrong_type(f"input[{index}]", "an object")
    limit = body.get("max_output_tokens")
    if limit is None:
        return None
    if not isinstance(limit, int) or isinstance(limit, bool):
        return faults.wrong_type("max_output_tokens", "an integer")
    if limit < _LEAST_OUTPUT_TOKENS:
        message = (
            "Invalid 'max_output_tokens': integer below minimum value. Expected a value >= "
            f"{_LEAST_OUTPUT_TOKENS}, but got {limit} instead."
        )
        return faults.invalid(message, param="max_output_tokens", code="integer_below_min_value")
    return None


def _check_lists(body: JsonObject) -> Fault | None:
    for name, kind, words in (("tools", dict, "objects"), ("include", str, "strings")):
        given = body.get(name)
        fits = isinstance(given, list) and all(isinstance(entry, kind) for entry in given)
        if given is not None and not fits:
            return faults.wrong_type(name, f"an array of {words}")
    return None


def over_the_window() -> Fault:
    """400 of an input that does not fit the model."""
    return faults.invalid(
        "Your input exceeds the context window of this model. Please adjust your input and try "
        "again.",
        param="input",
        code="context_length_exceeded",
    )


# --- the request in the words of chat -----------------------------------------------------------


def items_of(given: Any, hex_id: Callable[[], str]) -> list[JsonObject]:
    """The input as the items that are kept, each with an id."""
    if isinstance(given, str):
        content = [{"type": "input_text", "text": given}]
        given = [{"type": "message", "role": "user", "content": content, "status": "completed"}]
    return [{"type": "message", **item, "id": _item_id(item, hex_id)} for item in given or ()]


def _item_id(item: JsonObject, hex_id: Callable[[], str]) -> str:
    known = item.get("id")
    return known if isinstance(known, str) else f"msg_{hex_id()}"


def messages_of(items: Iterable[JsonObject], body: JsonObject) -> list[JsonObject]:
    """The items as chat messages, instructions first."""
    said = [{"role": _role(item), "content": _content(item)} for item in items]
    instructions = body.get("instructions")
    if isinstance(instructions, str):
        said.insert(0, {"role": "system", "content": instructions})
    return said


def _role(item: JsonObject) -> str:
    return "tool" if item["type"] == "function_call_output" else str(item.get("role", "assistant"))


def _content(item: JsonObject) -> Any:
    content = item.get("content", item.get("output"))
    if not isinstance(content, list):
        return content
    return [_as_chat_part(part) for part in content if isinstance(part, dict)]


def _as_chat_part(part: JsonObject) -> JsonObject:
    kind = {"input_image": "image_url", "input_file": "file"}.get(str(part.get("type")), "text")
    return {**part, "type": kind}


def as_chat(body: JsonObject, items: list[JsonObject]) -> JsonObject:
    """The chat request that asks for the same."""
    text = body.get("text")
    form = text.get("format") if isinstance(text, dict) else None
    choice = body.get("tool_choice")
    if isinstance(choice, dict):
        choice = {"type": "function", "function": {"name": choice.get("name")}}
    functions = [tool for tool in body.get("tools") or () if tool.get("type") == "function"]
    return {
        "messages": messages_of(items, body) or [{"role": "user", "content": ""}],
        "max_completion_tokens": body.get("max_output_tokens"),
        "response_format": {**form, "json_schema": form} if isinstance(form, dict) else None,
        "tools": [{"type": "function", "function": tool} for tool in functions],
        "tool_choice": choice,
    }
