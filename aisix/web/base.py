"""What every handler of the proxy shares: request ids, own headers, the error envelope.

Errors that Tornado raises itself (a strange method, a bad header) leave through `write_error` in
the same envelope as the pipeline's. Tornado's one idiom for shared handler code is a base class,
hence the name.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Sequence
from typing import Any, Protocol

import ujson
from tornado.web import RequestHandler

from aisix import __version__
from aisix.errors import BadRequest, GatewayError, InternalError, MethodNotAllowed, envelope

SERVER = f"AISIX/{__version__}"
_MAX_REQUEST_ID_BYTES = 256
_RANDOM_BYTES = 4096
_VARIANT_DIGIT = {digit: "89ab"[int(digit, 16) % 4] for digit in "0123456789abcdef"}


class InFlight(Protocol):
    """A request that has not been answered to its end."""

    def cut(self) -> None:
        """End it now: the process will not wait for it."""


class ProcessState:
    """What the process tells its listeners (ready, draining), and what they tell it (in flight)."""

    def __init__(self) -> None:
        self.ready = False
        self.draining = False
        self.inflight: set[InFlight] = set()
        self._idle: asyncio.Future[None] | None = None

    def begin(self, request: InFlight) -> None:
        """A request arrived."""
        self.inflight.add(request)

    def end(self, request: InFlight) -> None:
        """Its answer has been handed to the socket, or its connection is closed."""
        self.inflight.discard(request)
        if self._idle is not None and not self.inflight and not self._idle.done():
            self._idle.set_result(None)

    async def wait_idle(self) -> None:
        """Until nothing is in flight."""
        while self.inflight:  # whoever was woken may come too late
            if self._idle is None or self._idle.done():
                self._idle = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._idle)  # others may wait for it too

    def abort_all(self) -> None:
        """End everything that is in flight."""
        for request in tuple(self.inflight):
            request.cut()


def given_id(headers: Any, accept: Sequence[str]) -> str | None:
    """The first acceptable inbound id (1–256 visible ASCII characters), None without one."""
    for name in accept:  # in lower case
        value = headers.get(name)
        if value and len(value) <= _MAX_REQUEST_ID_BYTES and _is_visible_ascii(value):
            return str(value)
    return None


class RequestIds:
    """Random UUIDs (version 4) as text, many from one question to the kernel, at a fifth of the
    cost of uuid.uuid4. To be made after a fork: two copies would mint the same ids."""

    def __init__(self) -> None:
        self._digits = ""
        self._at = 0

    def new(self) -> str:
        """Another one."""
        at = self._at
        if at >= len(self._digits):
            self._digits = os.urandom(_RANDOM_BYTES).hex()
            at = 0
        self._at = end = at + 32
        digits = self._digits[at:end]
        variant = _VARIANT_DIGIT[digits[16]]
        return (
            f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:]}"
        )


def _is_visible_ascii(text: str) -> bool:
    return text.isascii() and text.isprintable() and " " not in text


class BaseHandler(RequestHandler):
    """Base of proxy and ops handlers."""

    state: ProcessState
    request_id: str = ""

    def set_default_headers(self) -> None:
        """Own headers on every answer; the id is set when the request is known."""
        self.set_header("Server", SERVER)
        self.clear_header("Content-Type")
        if self.request_id:  # Tornado clears the headers before an error
            self.name_request(self.request_id)

    def name_request(self, request_id: str) -> None:
        """Give the exchange its id, in both headers SDKs and operators look for."""
        self.request_id = request_id
        self.set_header("x-aisix-request-id", request_id)
        self.set_header("x-request-id", request_id)

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Tornado's own refusals in our envelope."""
        error: GatewayError
        if status_code == 405:
            error = MethodNotAllowed("method not allowed")
        elif status_code < 500:
            error = BadRequest("the request is malformed")
        else:
            error = InternalError("the gateway failed to serve this request")
        if not self.request_id:
            self.name_request(str(uuid.uuid4()))
        self.set_header("Content-Type", "application/json")
        self.finish(ujson.dumps(envelope(error)).encode())

    def compute_etag(self) -> None:
        """No ETags: answers are not cacheable, and hashing them costs."""
        return

    def log_exception(self, *args: Any) -> None:
        """Tornado's 4xx warnings are access-log matters; others keep the traceback."""
        if args and isinstance(args[1], Exception) and getattr(args[1], "status_code", 500) < 500:
            return
        super().log_exception(*args)
