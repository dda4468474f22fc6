"""The Responses API: what is asked is answered, kept, continued, polled, cancelled and forgotten.

The words are those of a chat completion with the same messages, so both APIs can be foretold
alike. Responses live in one `Responses`, which is one resource: ids and sealed reasoning of
another are not known here. A background response goes queued → in_progress → done as it is
polled. Pure but for the ids handed in.
"""

from __future__ import annotations

import base64
import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from aisix.simulator import faults
from aisix.simulator.answers import choice_filter, prompt_filter
from aisix.simulator.content import (
    Choice,
    Composition,
    JsonObject,
    compose_chat,
    message_characters,
    tokens_for,
)
from aisix.simulator.exchange import Call, Events, Handler, Headers, Json, Outcome
from aisix.simulator.faults import Fault, Occasion
from aisix.simulator.jobs import polls_of
from aisix.simulator.response_events import events, failed, sse, throttled, unfinished
from aisix.simulator.response_request import (
    as_chat,
    check,
    items_of,
    messages_of,
    over_the_window,
)
from aisix.simulator.shelf import Shelf, page

_ECHOED: JsonObject = {
    # parameter that comes back as it was sent → what it is when it was not
    "background": False,
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "prompt_cache_key": None,
    "reasoning": {"effort": None, "summary": None},
    "safety_identifier": None,
    "service_tier": "default",
    "store": True,
    "temperature": 1.0,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "top_p": 1.0,
    "truncation": "disabled",
    "user": None,
}


@dataclass(slots=True)
class _Stored:
    """One response that is kept, and how far along it is."""

    response: JsonObject
    pieces: tuple[str, ...]
    input_items: list[JsonObject]
    characters: int  # of the whole conversation up to here
    polls_left: int = 0

    def seen(self) -> JsonObject:
        """The response as it is now."""
        if self.polls_left == 0:
            return self.response
        return unfinished(self.response, "in_progress")


class Responses:
    """The responses of one resource."""

    def __init__(self, seal: str) -> None:
        self._seal = seal
        self._stored: Shelf[_Stored] = Shelf()

    def handlers(self) -> dict[str, Handler]:
        """The handlers of this module by operation."""
        return {
            "POST responses": self._create,
            "POST responses/compact": self._compact,
            "GET responses/{id}": self._retrieve,
            "DELETE responses/{id}": self._delete,
            "POST responses/{id}/cancel": self._cancel,
            "GET responses/{id}/input_items": self._input_items,
        }

    # --- create ---------------------------------------------------------------------------------

    def _create(self, call: Call) -> Outcome:
        body, script = call.body, call.script
        fault = check(body, reasoning=script.reasoning) or self._check_origin(body)
        if fault is not None:
            return fault
        items = items_of(body.get("input"), call.hex_id)
        characters = self._history(body) + sum(map(message_characters, messages_of(items, body)))
        limit = script.ctx or call.options.context_tokens
        if tokens_for(characters) > limit:
            return over_the_window()
        composition = compose_chat(as_chat(body, items), _settled(call, items))
        response = self._response(call, composition, tokens_for(characters))
        pieces = composition.choices[0].pieces
        kept = _Stored(response, pieces, items, characters)
        error = _failure(call)
        if script.throttled or script.failed is not None:
            kept.response, kept.pieces = failed(response, error), ()
        self._keep(kept)
        headers: Headers = (("x-ms-served-model", call.options.chat_model), *_hints(call))
        if body.get("stream") is True:
            story = events(response, pieces, script=script, error=error)
            if script.throttled:
                story = throttled(response)
            return Events(story, headers, late_error=lambda said: _late_error(call, said))
        if response["background"]:
            kept.polls_left = polls_of(script)
            return Json(unfinished(response, "queued"), headers)
        return Json(kept.response, headers)

    def _keep(self, stored: _Stored) -> None:
        if stored.response["store"]:
            weight = len(json.dumps(stored.input_items)) + len(json.dumps(stored.response))
            self._stored.add(stored.response["id"], stored, weight_bytes=weight)

    def _check_origin(self, body: JsonObject) -> Fault | None:
        """Whatever the request refers to must have been made here."""
        previous = body.get("previous_response_id")
        if previous is not None and self._stored.get(str(previous)) is None:
            return faults.invalid(
                f"Previous response with id '{previous}' not found.",
                param="previous_response_id",
                code="previous_response_not_found",
            )
        given = body.get("input")
        for item in given if isinstance(given, list) else ():
            sealed = item.get("encrypted_content")
            if isinstance(sealed, str) and not self._made_here(sealed):
                return faults.invalid(
                    f"The encrypted content {sealed[:8]}... could not be verified. Reason: "
                    "Encrypted content could not be decrypted or parsed.",
                    code="invalid_encrypted_content",
                )
        return None

    def _made_here(self, sealed: str) -> bool:
        try:
            return base64.b64decode(sealed, validate=True).decode().startswith(self._seal)
        except ValueError:
            return False

    def _sealed(self, item_id: str) -> str:
        return base64.b64encode(f"{self._seal}{item_id}".encode()).decode()

    def _history(self, body: JsonObject) -> int:
        stored = self._stored.get(str(body.get("previous_response_id")))
        return stored.characters + sum(map(len, stored.pieces)) if stored else 0

    def _response(self, call: Call, composition: Composition, input_tokens: int) -> JsonObject:
        body, script, choice = call.body, call.script, composition.choices[0]
        status, reason = _STATUS.get(choice.finish_reason, ("completed", None))
        echoed = {
            name: body[name] if body.get(name) is not None else usual
            for name, usual in _ECHOED.items()
        }
        response = {
            "id": f"resp_{call.hex_id()}",
            "object": "response",
            "created_at": call.now,
            "completed_at": call.now if status == "completed" else None,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": reason} if reason else None,
            "model": call.deployment,
            "output": self._output(call, choice, status),
            "content_filters": _content_filters(composition, choice),
            "usage": None if script.nousage else _usage(composition, input_tokens, script.bulk),
            **echoed,
        }
        if script.plain:
            del response["content_filters"]
        return response

    def _output(self, call: Call, choice: Choice, status: str) -> list[JsonObject]:
        output: list[JsonObject] = []
        if call.script.reasoning:
            item_id = f"rs_{call.hex_id()}"
            item: JsonObject = {"id": item_id, "type": "reasoning", "summary": []}
            if "reasoning.encrypted_content" in (call.body.get("include") or ()):
                item["encrypted_content"] = self._sealed(item_id)
            output.append(item)
        if choice.finish_reason == "content_filter":
            return output
        state = "incomplete" if status == "incomplete" else "completed"
        if choice.tool_call is not None:
            output.append(
                {
                    "id": f"fc_{call.hex_id()}",
                    "type": "function_call",
                    "status": state,
                    "arguments": choice.tool_call.arguments,
                    "call_id": choice.tool_call.id,
                    "name": choice.tool_call.name,
                }
            )
            return output
        part: JsonObject = {"type": "refusal", "refusal": choice.text}
        if not choice.refusal:
            part = {"type": "output_text", "annotations": [], "logprobs": [], "text": choice.text}
        message = {"id": f"msg_{call.hex_id()}", "type": "message", "status": state}
        output.append({**message, "content": [part], "role": "assistant"})
        return output

    # --- what is kept ---------------------------------------------------------------------------

    def _find(self, call: Call) -> _Stored | Fault:
        name = call.inbound.place.ids[0]
        stored = self._stored.get(name)
        if stored is not None:
            return stored
        if not name.startswith("resp_"):
            message = f"Invalid 'response_id': '{name}'. Expected an ID that begins with 'resp'."
            return faults.invalid(message, param="response_id", code="invalid_value")
        return faults.not_found(f"Response with id '{name}' not found.")

    def _retrieve(self, call: Call) -> Outcome:
        stored = self._find(call)
        if isinstance(stored, Fault):
            return stored
        query = call.inbound.query
        if query.get("stream") != "true":
            stored.polls_left = max(0, stored.polls_left - 1)
            return Json(stored.seen())
        after = query.get("starting_after", "-1")
        if not after.removeprefix("-").isdecimal():
            message = f"Invalid 'starting_after': expected an integer, got '{after}'."
            return faults.invalid(message, param="starting_after", code="invalid_type")
        stored.polls_left = 0
        story = events(stored.response, stored.pieces, script=call.script, after=int(after))
        return Events(story, late_error=lambda said: _late_error(call, said))

    def _delete(self, call: Call) -> Outcome:
        stored = self._find(call)
        if isinstance(stored, Fault):
            return stored
        name = stored.response["id"]
        self._stored.remove(name)
        return Json({"id": name, "object": "response", "deleted": True})

    def _cancel(self, call: Call) -> Outcome:
        stored = self._find(call)
        if isinstance(stored, Fault):
            return stored
        if not stored.response["background"]:
            return faults.invalid("Cannot cancel a synchronous response.")
        if stored.polls_left:
            stored.response = unfinished(stored.response, "cancelled")
            stored.pieces, stored.polls_left = (), 0
        return Json(stored.response)

    def _input_items(self, call: Call) -> Outcome:
        stored = self._find(call)
        if isinstance(stored, Fault):
            return stored
        return page(stored.input_items, call.inbound.query)

    def _compact(self, call: Call) -> Outcome:
        body = call.body
        fault = check(body, reasoning=False) or self._check_origin(body)
        if fault is not None:
            return fault
        items = items_of(body.get("input"), call.hex_id)
        characters = self._history(body) + sum(map(message_characters, messages_of(items, body)))
        item_id = f"cmp_{call.hex_id()}"
        compaction = {
            "id": item_id,
            "type": "compaction",
            "encrypted_content": self._sealed(item_id),
        }
        used = {"input_tokens": tokens_for(characters), "output_tokens": 1}
        usage = {
            **used,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": sum(used.values()),
        }
        return Json(
            {
                "id": f"resp_{call.hex_id()}",
                "object": "response.compaction",
                "created_at": call.now,
                "output": [*(i for i in items if i.get("role") == "user"), compaction],
                "usage": usage,
            }
        )


# --- failures ---------------------------------------------------------------------------------


def _failure(call: Call) -> JsonObject | None:
    """What `response.error` says when the script has the response fail."""
    if call.script.throttled:
        return None
    said = faults.late_failure(_occasion(call)).get("error", {})
    code = "rate_limit_exceeded" if call.script.err in _THROTTLES else "server_error"
    return {"code": code, "message": said.get("message") or "The response failed."}


def _hints(call: Call) -> Headers:
    """Retry-After, which the service also sends with the 200 of a response that fails so."""
    limited = call.script.failed is not None and call.script.err in _THROTTLES
    return faults.hints(_occasion(call)) if call.script.throttled or limited else ()


def _late_error(call: Call, said: JsonObject) -> bytes:
    number = call.script.fail or 0
    return sse("error", {"error": said.get("error", said), "sequence_number": number})


def _occasion(call: Call) -> Occasion:
    return Occasion(now=call.now, operation="Responses_Create", script=call.script)


def _settled(call: Call, items: list[JsonObject]) -> Any:
    """The script; a call whose outcome has come is not made again."""
    answered = bool(items) and items[-1]["type"] == "function_call_output"
    return dataclasses.replace(call.script, tools=False) if answered else call.script


# --- parts of the answer ------------------------------------------------------------------------

_STATUS = {
    "length": ("incomplete", "max_output_tokens"),
    "content_filter": ("incomplete", "content_filter"),
}
_THROTTLES = frozenset({"429", "tokens", "calls", "day", "short", "capacity", "unavailable", "ptu"})


def _content_filters(composition: Composition, choice: Choice) -> list[JsonObject]:
    blocked = choice.finish_reason == "content_filter"
    results = choice_filter(filtered="violence" if blocked else None)
    lengths = (composition.prompt_characters, len(choice.text))
    return [
        {
            "blocked": source == "completion" and blocked,
            "source_type": source,
            "content_filter_raw": [],
            "content_filter_results": judged,
            "content_filter_offsets": {"start_offset": 0, "end_offset": end, "check_offset": 0},
        }
        for source, judged, end in (
            ("prompt", prompt_filter(), lengths[0]),
            ("completion", results, lengths[1]),
        )
    ]


def _usage(composition: Composition, input_tokens: int, bulk: int | None) -> JsonObject:
    usage = composition.usage
    output = usage["completion_tokens"] if bulk is None else bulk * 1024
    cached = min(usage["prompt_tokens_details"]["cached_tokens"], input_tokens)
    reasoning = usage["completion_tokens_details"]["reasoning_tokens"]
    return {
        "input_tokens": input_tokens,
        "input_tokens_details": {"cached_tokens": cached},
        "output_tokens": output,
        "output_tokens_details": {"reasoning_tokens": reasoning},
        "total_tokens": input_tokens + output,
    }
