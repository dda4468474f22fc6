"""How many tokens a request may use, guessed before it is sent. Pure.

The guess only has to be good enough to reserve: settlement corrects it with what Azure reports.
Text counts one token per four UTF-8 bytes, a message four more; pictures and sound count a flat
amount, never by the length of their base64; token arrays are counted exactly. The body is whatever
a caller sent, so every function here takes any JSON and never raises: what has no sensible shape
counts nothing (Azure will refuse it).

Endpoints differ by their row alone: `prompt_field` says where the prompt is and `usage` whether
there is an output. What a prompt is made of is seen from its shape.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aisix.core.endpoints import BodyForm, EndpointSpec, UsageForm

BYTES_PER_TOKEN = 4
MESSAGE_TOKENS = 4
"""What the framing of one message costs."""

MEDIA_TOKENS = 1000
"""One image, audio or file part, however large."""

MEDIA_PARTS = frozenset(
    {"image_url", "input_image", "image", "input_audio", "audio", "file", "input_file"}
)

OUTPUT_FIELDS = ("max_completion_tokens", "max_output_tokens", "max_tokens")
"""Where a request says how long its answer may be; Azure accepts one of them."""

CHOICE_FIELDS = ("n", "best_of")
"""Where a request asks for several answers to a prompt."""

PROMPT_TYPES = (str, list)
"""What a prompt in a list of several is: a text, or an array of tokens."""

NO_OUTPUT = (UsageForm.EMBEDDING, UsageForm.SPEECH, UsageForm.NONE)


def estimate_text_tokens(byte_count: int) -> int:
    """Tokens of so many bytes of UTF-8 text."""
    return -(-byte_count // BYTES_PER_TOKEN)


def prompt_tokens(document: Mapping[str, Any], spec: EndpointSpec) -> int:
    """Tokens of the prompt in `document`. A form has one file at least, which is still to come."""
    if spec.prompt_field is None:
        return 0
    tokens = MEDIA_TOKENS if spec.body is BodyForm.FORM else 0
    prompt = document.get(spec.prompt_field)
    if isinstance(prompt, str):
        tokens += estimate_text_tokens(_utf8_bytes(prompt))
    elif isinstance(prompt, list):
        tokens += _list_tokens(prompt)
    if spec.usage is UsageForm.RESPONSE:
        instructions = document.get("instructions")
        if isinstance(instructions, str):
            tokens += estimate_text_tokens(_utf8_bytes(instructions))
    return tokens


def output_tokens(document: Mapping[str, Any], spec: EndpointSpec, assumed: int) -> int:
    """The most tokens that the answer can have, `assumed` for each choice without a limit."""
    if spec.usage in NO_OUTPUT or not spec.counts:
        return 0
    stated = -1
    for field in OUTPUT_FIELDS:
        if field in document:
            stated = max(stated, _count(document[field], -1))
    choices = 1
    for field in CHOICE_FIELDS:
        if field in document:
            choices = max(choices, _count(document[field], 1))
    prompt = document.get(spec.prompt_field) if spec.prompt_field is not None else None
    return (assumed if stated < 0 else stated) * choices * _prompt_count(prompt)


def _list_tokens(items: list[Any]) -> int:
    """A list holds messages (their text is summed, then rounded), separate texts, or tokens."""
    if items and type(items[0]) is int:
        return len(items)
    tokens = 0
    message_bytes = 0
    for item in items:
        if isinstance(item, dict):
            tokens += MESSAGE_TOKENS
            content = item.get("content")
            if isinstance(content, str):
                message_bytes += _utf8_bytes(content)
            elif isinstance(content, list):
                text_bytes, media_tokens = _measure_parts(content)
                message_bytes += text_bytes
                tokens += media_tokens
        elif isinstance(item, str):
            tokens += estimate_text_tokens(_utf8_bytes(item))
        elif isinstance(item, list):
            tokens += len(item)
        elif type(item) is int:
            tokens += 1
    return tokens + estimate_text_tokens(message_bytes)


def _measure_parts(parts: list[Any]) -> tuple[int, int]:
    """Bytes of text and tokens of media in the content parts of a message."""
    text_bytes = 0
    media_tokens = 0
    for part in parts:
        if not isinstance(part, dict):
            continue
        kind = part.get("type")
        if isinstance(kind, str) and kind in MEDIA_PARTS:
            media_tokens += MEDIA_TOKENS
            continue
        for field in ("text", "refusal"):
            text = part.get(field)
            if isinstance(text, str):
                text_bytes += _utf8_bytes(text)
    return text_bytes, media_tokens


def _prompt_count(prompt: Any) -> int:
    """How many prompts are answered: a list of texts or of token arrays asks once for each."""
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], PROMPT_TYPES):
        return len(prompt)
    return 1


def _count(value: Any, otherwise: int) -> int:
    """A number of tokens or choices; `otherwise` for all else (true and false are no numbers)."""
    return value if type(value) is int and value >= 0 else otherwise


def _utf8_bytes(text: str) -> int:
    """Length in UTF-8. ASCII is known to be ASCII without a look at it; JSON may hold lone
    surrogates, which count like any other character of their plane.
    """
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
