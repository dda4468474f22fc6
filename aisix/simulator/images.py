"""Image generations and edits, in the shapes of DALL-E and of gpt-image.

A deployment whose name holds `gpt-image` is of the newer family: always base64, usage, streams of
partial images, no filter annotations. Any other is a DALL-E. Edits are the newer family's alone.
The pictures are small valid PNG files that follow from the prompt; `size<N>` pads them. Pure.
"""

from __future__ import annotations

import base64
import hashlib
import struct
import zlib
from collections.abc import Iterator

from aisix.simulator import faults
from aisix.simulator.answers import choice_filter, prompt_filter
from aisix.simulator.content import JsonObject, tokens_for
from aisix.simulator.exchange import Call, Events, Handler, Json, Outcome
from aisix.simulator.faults import Fault
from aisix.simulator.forms import Form
from aisix.simulator.response_events import sse

_DALLE_SIZES = ("1024x1024", "1792x1024", "1024x1792")
_GPT_SIZES = ("1024x1024", "1024x1536", "1536x1024", "auto")
_OUTPUT_TOKENS = {"low": 272, "medium": 1056, "high": 4160}
_INPUT_IMAGE_TOKENS = 323
_MOST_PROMPT_CHARACTERS = {"dalle": 4_000, "gpt": 32_000}
_MOST_IMAGES = 10
_MOST_INPUT_IMAGES = 16
_MOST_PARTIAL_IMAGES = 3
_MOST_PICTURE_BYTES = 32 * 1024 * 1024
_FORM_NUMBERS = ("n", "partial_images")


def handlers() -> dict[str, Handler]:
    """The handlers of this module by operation."""
    return {"POST images/generations": _generate, "POST images/edits": _edit}


def _generate(call: Call) -> Outcome:
    if _is_gpt(call):
        return _check_gpt(call.body) or _paint(call, call.body, "image_generation", pictures=0)
    fault = _check_dalle(call.body)
    if fault is None and call.script.filtered:
        fault = faults.content_policy()
    return fault or _dalle(call)


def _edit(call: Call) -> Outcome:
    if "dall-e" in call.deployment:
        message = f"The imageEdit operation does not work with the model {call.deployment}."
        return faults.wrapped(400, "OperationNotSupported", message)
    pictures = call.form.files("image")
    if not pictures or any(not picture.filename for picture in pictures):
        found = call.form.file("image")
        return found if isinstance(found, Fault) else faults.missing("image")
    if len(pictures) > _MOST_INPUT_IMAGES:
        message = f"Invalid 'image': at most {_MOST_INPUT_IMAGES} images, got {len(pictures)}."
        return faults.invalid(message, param="image", code="invalid_value")
    body = _body_of(call.form)
    if isinstance(body, Fault):
        return body
    return _check_gpt(body) or _paint(call, body, "image_edit", pictures=len(pictures))


def _is_gpt(call: Call) -> bool:
    return "gpt-image" in call.deployment


def _body_of(form: Form) -> JsonObject | Fault:
    """The plain fields of a form as the JSON body would say them."""
    body: JsonObject = {p.name: p.text for p in form.parts if p.filename is None}
    for name in _FORM_NUMBERS:
        text = body.get(name)
        if text is not None and not text.isdecimal():
            return faults.wrong_type(name, f"an integer, got '{text}'")
        if text is not None:
            body[name] = int(text)
    if "stream" in body:
        body["stream"] = body["stream"] == "true"
    return body


# --- refusals -----------------------------------------------------------------------------------


def _check_prompt(body: JsonObject, most: int) -> Fault | None:
    prompt = body.get("prompt")
    if prompt is None:
        return faults.missing("prompt")
    if not isinstance(prompt, str):
        return faults.wrong_type("prompt", "a string")
    if not 1 <= len(prompt) <= most:
        message = f"Invalid 'prompt': expected 1 to {most} characters, got {len(prompt)}."
        return faults.invalid(message, param="prompt", code="string_above_max_length")
    return None


def _check_number(body: JsonObject, name: str, least: int, most: int) -> Fault | None:
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        message = f"Invalid '{name}': expected an integer from {least} to {most}, got {value!r}."
        return faults.invalid(message, param=name, code="invalid_value")
    return None


def _check_choice(body: JsonObject, name: str, *allowed: str) -> Fault | None:
    value = body.get(name)
    return None if value is None or value in allowed else faults.unacceptable(name, value, *allowed)


def _check_dalle(body: JsonObject) -> Fault | None:
    if body.get("stream"):
        message = "Unknown parameter: 'stream'."
        return faults.invalid(message, param="stream", code="unknown_parameter")
    return (
        _check_prompt(body, _MOST_PROMPT_CHARACTERS["dalle"])
        or _check_number(body, "n", 1, 1)
        or _check_choice(body, "size", *_DALLE_SIZES)
        or _check_choice(body, "quality", "standard", "hd")
        or _check_choice(body, "style", "vivid", "natural")
        or _check_choice(body, "response_format", "url", "b64_json")
    )


def _check_gpt(body: JsonObject) -> Fault | None:
    if body.get("response_format") is not None:
        message = "Unknown parameter: 'response_format'."
        return faults.invalid(message, param="response_format", code="unknown_parameter")
    return (
        _check_prompt(body, _MOST_PROMPT_CHARACTERS["gpt"])
        or _check_number(body, "n", 1, _MOST_IMAGES)
        or _check_number(body, "partial_images", 0, _MOST_PARTIAL_IMAGES)
        or _check_choice(body, "size", *_GPT_SIZES)
        or _check_choice(body, "quality", "low", "medium", "high", "auto")
        or _check_choice(body, "background", "transparent", "opaque", "auto")
        or _check_choice(body, "output_format", "png", "jpeg", "webp")
    )


# --- answers ------------------------------------------------------------------------------------


def _dalle(call: Call) -> Json:
    body = call.body
    item: JsonObject = {"revised_prompt": f"A simulated picture of: {body['prompt']}"}
    if body.get("response_format") == "b64_json":
        item["b64_json"] = _picture(call, body["prompt"], 0)
    else:
        item["url"] = (
            f"https://images.example.invalid/private/images/{call.hex_id()}/generated_00.png"
            "?se=2024-11-25T12%3A15%3A05Z&sig=simulated&sp=r&sr=b&sv=2020-10-02"
        )
    if not call.script.plain:
        output = choice_filter()
        item["content_filter_results"] = {n: output[n] for n in output if "protected" not in n}
        profanity = {"profanity": {"detected": False, "filtered": False}}
        item["prompt_filter_results"] = {**prompt_filter(), **profanity}
    return Json({"created": call.now, "data": [item]})


def _paint(call: Call, body: JsonObject, kind: str, *, pictures: int) -> Outcome:
    if call.script.filtered:
        return faults.content_policy()
    quality = body.get("quality") if body.get("quality") in _OUTPUT_TOKENS else "high"
    look = {
        "background": "transparent" if body.get("background") == "transparent" else "opaque",
        "output_format": body.get("output_format") or "png",
        "quality": quality,
        "size": body["size"] if body.get("size") not in (None, "auto") else "1024x1024",
    }
    count = body.get("n") or 1
    usage = _usage(body["prompt"], pictures, count * _OUTPUT_TOKENS[str(quality)])
    told = {} if call.script.nousage else {"usage": usage}
    if body.get("stream"):
        events = _events(call, body, kind, look=look, told=told)
        return Events(events, late_error=lambda said: sse("error", said))
    data = [{"b64_json": _picture(call, body["prompt"], index)} for index in range(count)]
    return Json({"created": call.now, **look, "data": data, **told})


def _events(
    call: Call, body: JsonObject, kind: str, *, look: JsonObject, told: JsonObject
) -> Iterator[bytes]:
    shared = {"created_at": call.now, **look}
    for index in range(body.get("partial_images") or 0):
        picture = _picture(call, body["prompt"], index)
        partial = {"b64_json": picture, **shared, "partial_image_index": index}
        yield sse(f"{kind}.partial_image", partial)
    if not call.script.nodone:
        picture = _picture(call, body["prompt"], 0)
        yield sse(f"{kind}.completed", {"b64_json": picture, **shared, **told})


def _usage(prompt: str, pictures: int, output: int) -> JsonObject:
    text, images = tokens_for(len(prompt)), pictures * _INPUT_IMAGE_TOKENS
    return {
        "input_tokens": text + images,
        "input_tokens_details": {"image_tokens": images, "text_tokens": text},
        "output_tokens": output,
        "output_tokens_details": {"image_tokens": output, "text_tokens": 0},
        "total_tokens": text + images + output,
    }


def _picture(call: Call, prompt: str, index: int) -> str:
    """A PNG of one pixel in base64; its colour follows from prompt and index."""
    colour = hashlib.sha256(f"{prompt}{index}".encode(errors="replace")).digest()[:3]
    head = struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", head), (b"IDAT", zlib.compress(b"\0" + colour))]
    bare = b"".join((b"\x89PNG\r\n\x1a\n", *(_chunk(*part) for part in parts)))
    end = _chunk(b"IEND", b"")
    room = min(call.script.size or 0, _MOST_PICTURE_BYTES) - len(bare) - len(end) - 12
    padding = _chunk(b"tEXt", b"Comment\0".ljust(room, b".")) if room > 8 else b""
    return base64.b64encode(bare + padding + end).decode()


def _chunk(kind: bytes, data: bytes) -> bytes:
    checksum = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)
