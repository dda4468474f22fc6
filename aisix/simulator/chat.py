"""Handlers of chat completions, completions, embeddings and the model list.

The bodies have passed `checks`; the words come from `content`, the shapes from `answers` and
`events`. Pure.
"""

from __future__ import annotations

from aisix.simulator import answers
from aisix.simulator.content import compose_chat, compose_text
from aisix.simulator.events import ChatStream, text_events
from aisix.simulator.exchange import Call, Events, Handler, Json

_FINGERPRINT = "fp_3bc1b5746c"
_MODELS_CREATED = 1_722_902_400


def handlers() -> dict[str, Handler]:
    """The handlers of this module by operation."""
    return {
        "POST chat/completions": _chat,
        "POST completions": _completions,
        "POST embeddings": _embeddings,
        "GET models": _models,
    }


def _chat(call: Call) -> Json | Events:
    body, script = call.body, call.script
    composition = compose_chat(body, script)
    identity = _identity(call, "chatcmpl", call.options.chat_model)
    if body.get("stream") is True:
        return Events(ChatStream(body, composition, script, identity).events())
    return Json(answers.chat_answer(body, composition, script=script, identity=identity))


def _completions(call: Call) -> Json | Events:
    body, script = call.body, call.script
    composition = compose_text(body, script)
    identity = _identity(call, "cmpl", call.options.text_model)
    if body.get("stream") is True:
        return Events(text_events(body, composition, script=script, identity=identity))
    return Json(answers.text_answer(body, composition, script=script, identity=identity))


def _embeddings(call: Call) -> Json:
    return Json(answers.embeddings_answer(call.body, call.options.embeddings_model))


def _models(call: Call) -> Json:
    options = call.options
    names = (options.chat_model, options.text_model, options.embeddings_model)
    return Json(answers.models_answer(names, _MODELS_CREATED))


def _identity(call: Call, prefix: str, model: str) -> answers.Identity:
    return answers.Identity(f"{prefix}-{call.hex_id()[:29]}", call.now, model, _FINGERPRINT)
