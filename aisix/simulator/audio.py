"""Transcriptions, translations and speech, in the shapes of Whisper, of gpt-4o and of TTS.

A deployment whose name holds `gpt-4o` and `transcribe` counts tokens and streams; any other is a
Whisper, which counts seconds, and on dated releases nothing. What was heard is an echo of the
file's name and size. Spoken audio is filler of the size that the script says, made while it is
sent. Pure.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator

from aisix.simulator import faults
from aisix.simulator.content import JsonObject, echo, filler, tokens_for
from aisix.simulator.events import event
from aisix.simulator.exchange import Call, Content, Events, Handler, Json, Outcome
from aisix.simulator.faults import AUDIO_LIMIT_BYTES, Fault
from aisix.simulator.forms import Form, Part

_FILE_FORMATS = ("flac", "m4a", "mp3", "mp4", "mpeg", "mpga", "oga", "ogg", "wav", "webm")
_ANSWER_FORMATS = ("json", "text", "srt", "verbose_json", "vtt")
_TEXT_TYPE = "text/plain; charset=utf-8"
_BYTES_PER_SECOND = 32_000
_AUDIO_TOKENS_PER_SECOND = 10
_LOGPROB = -0.0078125

_SPEECH_TYPES = {
    "mp3": "audio/mpeg",
    "opus": "audio/ogg",
    "aac": "audio/aac",
    "flac": "audio/flac",
    "wav": "audio/wav",
    "pcm": "audio/pcm",
}
_MOST_SPOKEN_CHARACTERS = 4096
_SPEECH_PIECE_BYTES = 2048
_MIB = 1024 * 1024


def handlers() -> dict[str, Handler]:
    """The handlers of this module by operation."""
    return {
        "POST audio/transcriptions": _transcribe,
        "POST audio/translations": _translate,
        "POST audio/speech": _speak,
    }


# --- hearing ------------------------------------------------------------------------------------


def _transcribe(call: Call) -> Outcome:
    return _hear(call, "transcribe")


def _translate(call: Call) -> Outcome:
    return _hear(call, "translate")


def _hear(call: Call, task: str) -> Outcome:
    form, counted = call.form, _counts_tokens(call)
    file = _checked_file(form)
    if isinstance(file, Fault):
        return file
    fault = _check_fields(form, counted=counted)
    if fault is not None:
        return fault
    pieces = echo(f"{file.filename}, {file.size} bytes", call.script)
    text, seconds = "".join(pieces), _seconds(file)
    usage = _usage(call, form, pieces, seconds)
    wanted = form.value("response_format") or "json"
    if counted and task == "transcribe" and form.value("stream") == "true":
        return Events(_events(call, pieces, usage))
    if wanted == "json":
        heard: JsonObject = {"text": text, **usage}
        if counted and "logprobs" in form.values("include"):
            heard["logprobs"] = [_logprob(piece) for piece in pieces]
        return Json(heard)
    if wanted == "verbose_json":
        return Json({**_verbose(form, task, text, seconds), **usage})
    said = {"text": f"{text}\n", "srt": _srt(text, seconds), "vtt": _vtt(text, seconds)}[wanted]
    data = said.encode()
    return Content(_TEXT_TYPE, iter((data,)), len(data))


def _counts_tokens(call: Call) -> bool:
    return "gpt-4o" in call.deployment and "transcribe" in call.deployment


def _checked_file(form: Form) -> Part | Fault:
    file = form.file("file")
    if isinstance(file, Fault):
        return file
    if file.size > AUDIO_LIMIT_BYTES:
        return faults.content_too_large(AUDIO_LIMIT_BYTES, file.size)
    if str(file.filename).rpartition(".")[2].lower() not in _FILE_FORMATS:
        message = f"Invalid file format. Supported formats: {list(_FILE_FORMATS)}"
        return faults.invalid(message, param="file", code="invalid_value")
    if file.size == 0:
        message = "Audio file is too short. Minimum audio length is 0.1 seconds."
        return faults.invalid(message, param="file", code="audio_too_short")
    return file


def _check_fields(form: Form, *, counted: bool) -> Fault | None:
    wanted = form.value("response_format")
    allowed = ("json", "text") if counted else _ANSWER_FORMATS
    if wanted is not None and wanted not in allowed:
        return faults.unacceptable("response_format", wanted, *allowed)
    temperature = form.value("temperature")
    if temperature is not None and not _within(temperature, 0, 1):
        message = f"Invalid 'temperature': expected a number from 0 to 1, got '{temperature}'."
        return faults.invalid(message, param="temperature", code="invalid_value")
    granularities = form.values("timestamp_granularities")
    if granularities and wanted != "verbose_json":
        message = "'timestamp_granularities' needs the response_format 'verbose_json'."
        return faults.invalid(message, param="timestamp_granularities", code="invalid_value")
    unknown = next((each for each in granularities if each not in ("word", "segment")), None)
    if unknown is not None:
        return faults.unacceptable("timestamp_granularities", unknown, "word", "segment")
    return None


def _within(text: str, least: float, most: float) -> bool:
    try:
        return least <= float(text) <= most
    except ValueError:
        return False


def _seconds(file: Part) -> float:
    return max(0.1, round(file.size / _BYTES_PER_SECOND, 2))


def _usage(call: Call, form: Form, pieces: tuple[str, ...], seconds: float) -> JsonObject:
    if call.script.nousage:
        return {}
    if not _counts_tokens(call):
        version = call.inbound.query.get("api-version", "")
        dated_release = not call.inbound.place.v1 and not version.endswith("-preview")
        return (
            {} if dated_release else {"usage": {"type": "duration", "seconds": math.ceil(seconds)}}
        )
    heard = max(1, math.ceil(seconds * _AUDIO_TOKENS_PER_SECOND))
    prompt = form.value("prompt")
    read = tokens_for(len(prompt)) if prompt else 0
    usage = {
        "type": "tokens",
        "input_tokens": heard + read,
        "input_token_details": {"audio_tokens": heard, "text_tokens": read},
        "output_tokens": len(pieces),
        "total_tokens": heard + read + len(pieces),
    }
    return {"usage": usage}


def _events(call: Call, pieces: tuple[str, ...], usage: JsonObject) -> Iterator[bytes]:
    logprobs = "logprobs" in call.form.values("include")
    for piece in pieces:
        more = {"logprobs": [_logprob(piece)]} if logprobs else {}
        yield event({"type": "transcript.text.delta", "delta": piece, **more})
    if not call.script.nodone:
        yield event({"type": "transcript.text.done", "text": "".join(pieces), **usage})


def _logprob(piece: str) -> JsonObject:
    return {"token": piece, "logprob": _LOGPROB, "bytes": list(piece.encode(errors="replace"))}


def _verbose(form: Form, task: str, text: str, seconds: float) -> JsonObject:
    verbose: JsonObject = {
        "task": task,
        "language": "english",
        "duration": seconds,
        "text": text,
    }
    granularities = form.values("timestamp_granularities")
    if "segment" in granularities or not granularities:
        verbose["segments"] = [
            {
                "id": 0,
                "seek": 0,
                "start": 0.0,
                "end": seconds,
                "text": text,
                "tokens": [50364],
                "temperature": float(form.value("temperature") or 0),
                "avg_logprob": _LOGPROB,
                "compression_ratio": 1.0,
                "no_speech_prob": 0.01,
            }
        ]
    if "word" in granularities:
        words = text.split()
        step = seconds / len(words)
        verbose["words"] = [
            {"word": word, "start": round(i * step, 2), "end": round((i + 1) * step, 2)}
            for i, word in enumerate(words)
        ]
    return verbose


def _clock(seconds: float, mark: str) -> str:
    whole, milliseconds = divmod(round(seconds * 1000), 1000)
    hours, rest = divmod(whole, 3600)
    return f"{hours:02}:{rest // 60:02}:{rest % 60:02}{mark}{milliseconds:03}"


def _srt(text: str, seconds: float) -> str:
    return f"1\n{_clock(0, ',')} --> {_clock(seconds, ',')}\n{text}\n\n"


def _vtt(text: str, seconds: float) -> str:
    return f"WEBVTT\n\n{_clock(0, '.')} --> {_clock(seconds, '.')}\n{text}\n\n"


# --- speaking -----------------------------------------------------------------------------------


def _speak(call: Call) -> Outcome:
    body = call.body
    fault = _check_speech(body)
    if fault is not None:
        return fault
    pieces = _sound(call)
    if body.get("stream_format") == "sse":
        return Events(_spoken(call, pieces))
    return Content(_SPEECH_TYPES[body.get("response_format") or "mp3"], pieces)


def _check_speech(body: JsonObject) -> Fault | None:
    for name in ("input", "voice"):
        if body.get(name) is None:
            return faults.missing(name)
    text = body["input"]
    if not isinstance(text, str) or not 1 <= len(text) <= _MOST_SPOKEN_CHARACTERS:
        message = f"Invalid 'input': expected 1 to {_MOST_SPOKEN_CHARACTERS} characters of text."
        return faults.invalid(message, param="input", code="string_above_max_length")
    choices = {"response_format": tuple(_SPEECH_TYPES), "stream_format": ("audio", "sse")}
    for name, allowed in choices.items():
        if body.get(name) is not None and body[name] not in allowed:
            return faults.unacceptable(name, body[name], *allowed)
    speed = body.get("speed")
    if speed is not None and not _within(str(speed), 0.25, 4):
        message = f"Invalid 'speed': expected a number from 0.25 to 4, got {speed!r}."
        return faults.invalid(message, param="speed", code="invalid_value")
    return None


def _sound(call: Call) -> Iterator[bytes]:
    """Audio bytes: `n` pieces of `size` bytes, or `bulk` MiB; a piece per word without a script."""
    script = call.script
    if script.bulk is not None:
        return filler(script.bulk * _MIB)
    count = script.n if script.n is not None else len(call.body["input"].split()) or 1
    size = script.size if script.size is not None else _SPEECH_PIECE_BYTES
    return filler(count * size, size)


def _spoken(call: Call, pieces: Iterator[bytes]) -> Iterator[bytes]:
    spoken = 0
    for piece in pieces:
        spoken += len(piece)
        yield event({"type": "speech.audio.delta", "audio": base64.b64encode(piece).decode()})
    if call.script.nodone:
        return
    read, said = tokens_for(len(call.body["input"])), math.ceil(spoken / 1024)
    usage = {"input_tokens": read, "output_tokens": said, "total_tokens": read + said}
    told = {} if call.script.nousage else {"usage": usage}
    yield event({"type": "speech.audio.done", **told})
