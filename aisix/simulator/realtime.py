"""A scripted realtime session: Azure's events over a WebSocket, on the simulator's port. I/O.

The handshake was judged by `surface`; this agrees to it, greets with `session.created` and answers
what the caller says: `session.update`, items, audio and `response.create`, which brings deltas and
a `response.done` with usage. Frames are read and written by code of its own. The script decides how
much is said (`n`, `size`, `bulk`, `d`), what goes wrong after how many events (`cut`, `reset`,
`half`, `stall`), and how it is closed (`closecode`, `mute`).

Every message of the caller is kept in the record, one a line, and so is the code of its Close.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
import socket
import struct
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

from tornado.iostream import IOStream, StreamClosedError

from aisix.simulator.journal import CLIENT_CLOSED, COMPLETED, CUT, Journal, RequestRecord
from aisix.simulator.script import Script
from aisix.simulator.wire import Gate

MODEL = "gpt-4o-realtime-preview-2024-12-17"
PROTOCOLS = ("realtime",)

_PATH = re.compile(r"(?:/openai)?/v1/realtime|/openai/realtime")
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_CONTINUATION, _TEXT, _BINARY, _CLOSE, _PING, _PONG = 0, 1, 2, 8, 9, 10
_FIN, _OPCODE, _MASKED, _LENGTH = 0x80, 0x0F, 0x80, 0x7F
_MAX_MESSAGE_BYTES = 16 * 1024 * 1024
_PIECE_BYTES = 48 * 1024
_RESET = struct.pack("ii", 1, 0)
_DEFAULT_DELTAS = 3


def is_session(path: str) -> bool:
    """Whether sessions are opened at `path`."""
    return _PATH.fullmatch(path) is not None


def deployment_of(path: str, query: Mapping[str, str]) -> str:
    """The deployment that a request for a session names."""
    return query.get("model" if "/v1/" in path else "deployment", "")


def knows_sessions(path: str, query: Mapping[str, str]) -> bool:
    """Whether the version that is asked for has realtime: v1, and previews since 2024-10-01."""
    api_version = query.get("api-version", "")
    if "/v1/" in path:
        return api_version in ("", "v1", "preview")
    return api_version.endswith("-preview") and api_version >= "2024-10-01-preview"


class _Over(Exception):
    """The session is over; says what became of it."""

    def __init__(self, outcome: str) -> None:
        super().__init__(outcome)
        self.outcome = outcome


class RealtimeSession:
    """One session on a stream that speaks HTTP no more."""

    def __init__(
        self,
        stream: IOStream,
        record: RequestRecord,
        journal: Journal,
        *,
        script: Script,
        gate: Gate,
        keep_bytes: int,
    ) -> None:
        self._stream = stream
        self._record = record
        self._journal = journal
        self._script = script
        self._gate = gate
        self._keep_bytes = keep_bytes
        self._v1 = "/v1/" in record.path
        self._deployment = deployment_of(record.path, record.query)
        self._left: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._closed = False
        self._input_bytes = 0
        self._session: dict[str, Any] = {
            "id": _id("sess"),
            "object": "realtime.session",
            "model": MODEL,
            "modalities": ["text", "audio"],
            "instructions": "",
            "voice": "alloy",
            "turn_detection": None,
            "tools": [],
        }

    async def run(self) -> str:
        """Agree, converse, end; returns the outcome."""
        record, stream = self._record, self._stream
        record.status = 101
        record.body = b""
        stream.set_close_callback(self._on_left)
        try:
            await self._send_raw(self._agreement())
            await self._say("session.created", session=self._session)
            async for opcode, payload in self._messages():
                await self._hear(opcode, payload)
        except _Over as over:
            return over.outcome
        except StreamClosedError:
            return CLIENT_CLOSED
        finally:
            stream.close()
        return CLIENT_CLOSED

    def _on_left(self) -> None:
        if not self._left.done():
            self._left.set_result(None)

    def _agreement(self) -> bytes:
        headers = self._record.headers
        digest = hashlib.sha1(
            headers.get("sec-websocket-key", "").encode() + _GUID, usedforsecurity=False
        ).digest()
        lines = [
            "HTTP/1.1 101 Switching Protocols",
            "upgrade: websocket",
            "connection: Upgrade",
            f"sec-websocket-accept: {base64.b64encode(digest).decode()}",
            f"apim-request-id: {uuid.uuid4()}",
            "x-ms-region: East US 2",
        ]
        offered = [name.strip() for name in headers.get("sec-websocket-protocol", "").split(",")]
        lines += [f"sec-websocket-protocol: {name}" for name in PROTOCOLS if name in offered]
        return "\r\n".join([*lines, "", ""]).encode()

    # --- the caller's side ----------------------------------------------------------------------

    async def _hear(self, opcode: int, payload: bytes) -> None:
        if opcode != _TEXT:
            await self._refuse("invalid_request_error", "Only text messages are understood.")
            return
        self._note(payload)
        try:
            event = json.loads(payload)
            kind = event["type"]
        except (ValueError, TypeError, KeyError):
            await self._refuse("invalid_request_error", "The event is not valid JSON with a type.")
            return
        if kind == "session.update":
            await self._update(event.get("session"))
        elif kind == "conversation.item.create":
            item = {"id": _id("item"), "object": "realtime.item", **(event.get("item") or {})}
            await self._say("conversation.item.created", previous_item_id=None, item=item)
        elif kind == "input_audio_buffer.commit":
            await self._say(
                "input_audio_buffer.committed", previous_item_id=None, item_id=_id("item")
            )
        elif kind == "response.create":
            await self._respond(event.get("response"))
        elif kind != "input_audio_buffer.append":
            await self._refuse("invalid_value", f"Invalid value: '{kind}'.", param="type")

    async def _update(self, wanted: Any) -> None:
        if not isinstance(wanted, dict):
            await self._refuse(
                "missing_required_parameter",
                "Missing required parameter: 'session'.",
                param="session",
            )
            return
        if wanted.get("model", self._deployment) not in (self._deployment, MODEL):
            await self._refuse(
                "invalid_value",
                "The model of a session cannot be changed.",
                param="session.model",
            )
            return
        self._session = {**self._session, **wanted, "model": MODEL}
        await self._say("session.updated", session=self._session)

    def _note(self, message: bytes) -> None:
        record = self._record
        record.body_bytes += len(message)
        self._input_bytes += len(message)
        if len(record.body) + len(message) < self._keep_bytes:
            record.body += message + b"\n"
        self._journal.changed()

    async def _messages(self) -> AsyncIterator[tuple[int, bytes]]:
        """Whole messages; pings are answered, a Close ends it."""
        opcode, held = 0, bytearray()
        while True:
            first, payload = await self._frame()
            kind = first & _OPCODE
            if kind == _PING:
                await self._send(_PONG, payload)
            elif kind == _CLOSE:
                await self._answer_close(payload)
            elif kind in (_TEXT, _BINARY, _CONTINUATION):
                opcode = kind or opcode
                held += payload
                if len(held) > _MAX_MESSAGE_BYTES:
                    await self._close(1009, "too large")
                if first & _FIN:
                    yield opcode, bytes(held)
                    held.clear()

    async def _frame(self) -> tuple[int, bytes]:
        first, second = await self._stream.read_bytes(2)
        size = second & _LENGTH
        if size > 125:
            size = int.from_bytes(await self._stream.read_bytes(2 if size == 126 else 8))
        if not second & _MASKED:
            await self._close(1002, "frames of a client must be masked")
        if size > _MAX_MESSAGE_BYTES:
            await self._close(1009, "too large")
        mask = await self._stream.read_bytes(4)
        payload = await self._stream.read_bytes(size) if size else b""
        key = (mask * (size // 4 + 1))[:size]
        return first, (int.from_bytes(payload) ^ int.from_bytes(key)).to_bytes(size)

    # --- the model's side -----------------------------------------------------------------------

    async def _respond(self, wanted: Any) -> None:
        script = self._script
        modalities = self._session["modalities"]
        if isinstance(wanted, dict):
            modalities = wanted.get("modalities", wanted.get("output_modalities", modalities))
        response = {"id": _id("resp"), "object": "realtime.response", "status": "in_progress"}
        await self._say("response.created", response={**response, "output": [], "usage": None})
        place = {"response_id": response["id"], "item_id": _id("item"), "output_index": 0}
        count = script.n if script.n is not None else _DEFAULT_DELTAS
        for content, delta in self._deltas(count, audio="audio" in modalities):
            await self._say(self._kind(content), **place, content_index=0, delta=delta)
        if script.bulk:
            piece = base64.b64encode(bytes(_PIECE_BYTES)).decode()
            for _ in range(script.bulk * 1024 * 1024 // len(piece) + 1):
                await self._say(self._kind("audio"), **place, content_index=0, delta=piece)
        usage = None if script.nousage else self._usage(count, audio="audio" in modalities)
        await self._say(
            "response.done", response={**response, "status": "completed", "usage": usage}
        )
        if script.closecode is not None:
            await self._close(script.closecode, "as scripted")

    def _deltas(self, count: int, *, audio: bool) -> Iterator[tuple[str, str]]:
        text = "a" * (self._script.size or 4)
        for _ in range(count):
            if audio:
                sound = base64.b64encode(text.encode() * 3).decode()
                yield "audio_transcript", text
                yield "audio", sound
            else:
                yield "text", text

    def _kind(self, content: str) -> str:
        """How the deltas of a kind of content are called: v1 says that they are output."""
        return f"response.{'output_' if self._v1 else ''}{content}.delta"

    def _usage(self, count: int, *, audio: bool) -> dict[str, Any]:
        inputs = -(-self._input_bytes // 4)
        cached = min(self._script.cached or 0, inputs)
        return {
            "total_tokens": inputs + count,
            "input_tokens": inputs,
            "output_tokens": count,
            "input_token_details": {
                "cached_tokens": cached,
                "text_tokens": inputs,
                "audio_tokens": 0,
            },
            "output_token_details": {
                "text_tokens": 0 if audio else count,
                "audio_tokens": count if audio else 0,
            },
        }

    async def _refuse(self, code: str, message: str, *, param: str | None = None) -> None:
        error = {"type": "invalid_request_error", "code": code, "message": message, "param": param}
        await self._say("error", error=error)

    # --- the wire -------------------------------------------------------------------------------

    async def _say(self, kind: str, **fields: Any) -> None:
        """One event, with whatever the script has for this moment."""
        event = {"type": kind, "event_id": _id("event"), **fields}
        text = json.dumps(event, separators=(",", ":")).encode()
        script, record = self._script, self._record
        if script.d and record.events_sent:
            await asyncio.wait((self._left,), timeout=script.d / 1000)
        if script.half == record.events_sent:
            await self._send_raw(_encoded(_TEXT, text)[: len(text) // 2])
            raise _Over(CUT)
        if record.events_sent == script.cut:
            raise _Over(CUT)
        if record.events_sent == script.reset:
            self._stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            raise _Over(CUT)
        if record.events_sent == script.stall:
            await self._stall()
        await self._send(_TEXT, text)
        record.events_sent += 1
        self._journal.changed()
        await asyncio.sleep(0)  # a write that the kernel took at once does not yield by itself

    async def _stall(self) -> None:
        released = self._gate.enter()
        self._record.phase = "stalled"
        self._journal.changed()
        try:
            await asyncio.wait((self._left, released), return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._gate.leave(released)
        self._record.phase = "sending"

    async def _answer_close(self, payload: bytes) -> None:
        """The caller closes: the code goes back, unless the script says nothing."""
        self._record.close_code = int.from_bytes(payload[:2]) if payload else 1005
        self._journal.changed()
        if self._script.mute:
            await asyncio.wait((self._left,))
            raise _Over(CLIENT_CLOSED)
        if not self._closed:
            await self._send(_CLOSE, payload)
        raise _Over(COMPLETED)

    async def _close(self, code: int, reason: str) -> None:
        """Close first; the caller's answer is awaited, what else it says is dropped."""
        self._closed = True
        await self._send(_CLOSE, code.to_bytes(2) + reason.encode())
        if code in (1002, 1009):
            raise _Over(COMPLETED)
        while True:
            first, payload = await self._frame()
            if first & _OPCODE == _CLOSE:
                await self._answer_close(payload)

    async def _send(self, opcode: int, payload: bytes) -> None:
        await self._send_raw(_encoded(opcode, payload))
        self._record.bytes_sent += len(payload)

    async def _send_raw(self, data: bytes) -> None:
        await self._stream.write(data)


def _encoded(opcode: int, payload: bytes) -> bytes:
    size = len(payload)
    if size < 126:
        head = bytes((_FIN | opcode, size))
    elif size < 1 << 16:
        head = bytes((_FIN | opcode, 126)) + size.to_bytes(2)
    else:
        head = bytes((_FIN | opcode, 127)) + size.to_bytes(8)
    return head + payload


def _id(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex[:21]}"
