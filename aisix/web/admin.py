"""The admin listener: thin handlers from HTTP to `AdminService`, and its own error envelope.

Routes are built from `aisix.admin.openapi.OPERATIONS`, so the document and the listener cannot
differ. Order of a request: known method, admin key, size, then (when the body is complete) JSON
and the use case. Whatever goes wrong, Tornado's own refusals included, leaves as
`{"error_msg": …}`; no header, key or body is ever logged.
"""

from __future__ import annotations

import json
import logging
import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tornado.web import HTTPError, stream_request_body

from aisix import __version__
from aisix.admin.access import AdminAccess
from aisix.admin.openapi import OPERATIONS, build_document, static_file
from aisix.admin.refusals import Refusal
from aisix.admin.schemas import APIKEYS, parse_body
from aisix.admin.service import AdminService, Revisions, Written
from aisix.core.request import HeaderView
from aisix.web.base import BaseHandler, ProcessState, given_id
from aisix.web.framing import is_framed

BODY_LIMIT_BYTES = 2 * 1024 * 1024
SWALLOW_BYTES = 32 * BODY_LIMIT_BYTES
"""How much of an unwanted body is read before the connection is closed instead."""

LAGGING_HEADER = "x-aisix-lagging-workers"
"""On the answer to a write: workers that did not say in time that it is effective there."""

_REQUEST_ID_HEADERS = ("x-aisix-request-id",)
_JSON_TYPE = re.compile(r"application/(?:[a-z0-9.-]+\+)?json", flags=re.ASCII | re.IGNORECASE)
_REVISION = re.compile(r'(?:"(\d{1,18})"|(\d{1,18}))', flags=re.ASCII)
_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; connect-src 'self'; style-src 'unsafe-inline'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_FRAMEWORK_ERRORS = {
    400: "the request is malformed",
    404: "no such route; /admin/openapi.json lists them all",
    405: "method not allowed",
}
_logger = logging.getLogger("aisix.admin")


@dataclass(frozen=True, slots=True)
class AdminFront:
    """What the handlers need of the rest."""

    service: AdminService
    access: AdminAccess
    state: ProcessState
    files: dict[str, tuple[str, bytes]]


@stream_request_body
class AdminHandler(BaseHandler):
    """What all admin handlers share."""

    public = False

    def initialize(self, front: AdminFront, kind: str, allowed: Sequence[str]) -> None:
        """Called by Tornado for each request."""
        self.front = front
        self.kind = kind
        self.allowed = allowed
        self.actor = ""
        self.name_request(given_id(self.request.headers, _REQUEST_ID_HEADERS) or str(uuid.uuid4()))
        self._pieces: list[bytes] = []
        self._size_bytes = 0
        self._early = False

    def prepare(self) -> None:
        """Admin key and size, before any of the body is read. Raises Refusal."""
        self.front.state.begin(self)
        if self.front.state.draining:
            self.set_header("Connection", "close")
        if not is_framed(self.request.headers):
            return  # Tornado is about to answer 400 itself; two answers would be read as two
        try:
            if not self.public:
                self._authenticate()
            if _declared_bytes(self.request.headers) > BODY_LIMIT_BYTES:
                raise _too_large()
        except Refusal as refusal:
            self.refuse(refusal)

    def refuse(self, refusal: Exception) -> None:
        """Answer `refusal` now, but go on reading a body of bearable size: a client that reads only
        when it has sent everything would otherwise meet a reset connection. Raises `refusal` when
        no body will come."""
        headers = self.request.headers
        coming = "Transfer-Encoding" in headers or _declared_bytes(headers) > 0
        if not coming or "Expect" in headers or _declared_bytes(headers) > SWALLOW_BYTES:
            raise refusal
        self._early = True
        status = refusal.status_code if isinstance(refusal, HTTPError) else 500
        self.set_status(status)
        self.write_error(status, exc_info=(type(refusal), refusal, None))
        # what Tornado calls when the body is complete
        setattr(self, (self.request.method or "").lower(), self._end_early)

    def _end_early(self, *_path: str) -> None:
        self._early = False
        self.finish()

    def data_received(self, chunk: bytes) -> None:
        """Keep the body, up to the limit; more is counted and dropped, and in the end cut off."""
        self._size_bytes += len(chunk)
        if self._size_bytes <= BODY_LIMIT_BYTES:
            self._pieces.append(chunk)
        else:
            self._pieces.clear()
        if self._size_bytes > SWALLOW_BYTES:
            self.cut()

    def document(self) -> Any:
        """The JSON body. Raises Refusal."""
        if self._size_bytes > BODY_LIMIT_BYTES:
            raise _too_large()
        headers = self.request.headers
        media, _, parameters = headers.get("Content-Type", "").partition(";")
        if not _JSON_TYPE.fullmatch(media.strip()) or not _is_utf8(parameters):
            raise Refusal(415, "content type must be application/json")
        if headers.get("Content-Encoding", "identity").lower() != "identity":
            raise Refusal(415, "the body must not be compressed (Content-Encoding)")
        return parse_body(b"".join(self._pieces))

    def if_match(self) -> Revisions:
        """The revisions that If-Match names; None when any will do. Raises Refusal."""
        header: str | None = self.request.headers.get("If-Match")
        if header is None or header.strip() == "*":
            return None
        revisions = set()
        for part in header.split(","):
            match = _REVISION.fullmatch(part.strip())
            if match is None:
                raise Refusal(400, 'malformed If-Match: must be a revision, such as 3 or "3", or *')
            revisions.add(int(match[1] or match[2]))
        return revisions

    def answer_write(self, written: Written) -> None:
        """200 with JSON; a header when the write is not known to be effective everywhere."""
        if written.lagging_workers:
            self.set_header(LAGGING_HEADER, str(written.lagging_workers))
        self.answer(written.answer)

    def answer(self, value: Any) -> None:
        """200 with JSON; an entry also tells its revision as ETag."""
        if isinstance(value, dict) and "revision" in value:
            self.set_header("ETag", f'"{value["revision"]}"')
        self.send_json(value)

    def send_json(self, value: Any, *, indent: int | None = None) -> None:
        """The body, and that nobody may keep it."""
        self.set_header("Content-Type", "application/json")
        self.set_header("Cache-Control", "no-store")
        text = json.dumps(value, ensure_ascii=False, indent=indent)
        self.finish((text + "\n" if indent else text).encode("utf-8", "replace"))

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Every error in the admin envelope."""
        self.name_request(self.request_id)
        error = (kwargs.get("exc_info") or (None, None, None))[1]
        if isinstance(error, Refusal):
            self.set_status(error.status)
            message = error.message
        else:
            message = _FRAMEWORK_ERRORS.get(
                status_code,
                f"internal error; the log has it under request id {self.request_id}"
                if status_code >= 500
                else self._reason.lower(),
            )
        status = self.get_status()
        if status == 401:
            self.set_header("WWW-Authenticate", "Bearer")
        if status == 405 and self.allowed:
            self.set_header("Allow", ", ".join(self.allowed))
        if status == 413 or self.front.state.draining:
            self.set_header("Connection", "close")
        self.send_json({"error_msg": message})

    def log_exception(self, *args: Any) -> None:
        """Refusals are answers, not events; anything else is ours to mend."""
        if isinstance(args[1], (Refusal, HTTPError)):
            return
        _logger.error("admin.failed", extra={"request_id": self.request_id}, exc_info=args[1])

    def finish(self, chunk: Any = None) -> Any:
        """The request is in flight until the socket has its last byte."""
        if self._early:
            self.set_header("Content-Length", str(len(chunk)))
            self.write(chunk)
            return self.flush()
        future = super().finish(chunk)
        future.add_done_callback(lambda _: self.front.state.end(self))
        return future

    def on_connection_close(self) -> None:
        """The caller has gone; a write that began goes on (see AdminService)."""
        super().on_connection_close()
        self.front.state.end(self)

    def cut(self) -> None:
        """End the connection; the process will not wait for the caller."""
        stream = getattr(self.request.connection, "stream", None)
        if stream is not None:
            stream.close()

    def _authenticate(self) -> None:
        actor = self.front.access.identify(self.request.headers)
        if actor is None:
            self.front.service.audit.denied(address=self.request.remote_ip or "")
            raise Refusal(401, "missing or malformed admin authorization")
        self.actor = actor


class CollectionHandler(AdminHandler):
    """All resources of a kind."""

    async def get(self) -> None:
        """List."""
        self.answer(await self.front.service.list_all(self.kind))

    async def post(self) -> None:
        """Create."""
        document = self.document()
        self.answer_write(await self.front.service.create(self.kind, document, actor=self.actor))


class ItemHandler(AdminHandler):
    """One resource."""

    async def get(self, id: str) -> None:
        """Read."""
        self.answer(await self.front.service.read(self.kind, id))

    async def put(self, id: str) -> None:
        """Replace."""
        document = self.document()
        written = await self.front.service.replace(
            self.kind, id, document, if_match=self.if_match(), actor=self.actor
        )
        self.answer_write(written)

    async def delete(self, id: str) -> None:
        """Delete."""
        written = await self.front.service.delete(
            self.kind, id, if_match=self.if_match(), actor=self.actor
        )
        self.answer_write(written)


class RotationHandler(AdminHandler):
    """A caller key's secret."""

    async def post(self, id: str) -> None:
        """Rotate; the body is optional."""
        document = self.document() if self._size_bytes else None
        rotated = await self.front.service.rotate(
            id, document, if_match=self.if_match(), actor=self.actor
        )
        self.set_header("ETag", f'"{rotated.answer["entry"]["revision"]}"')
        self.answer_write(rotated)


class VerificationHandler(AdminHandler):
    """A provider key or model, tried at Azure."""

    async def post(self, id: str) -> None:
        """Try it; a body is not looked at. Indented, for people at a terminal."""
        found = await self.front.service.verify(self.kind, id, actor=self.actor)
        self.send_json(found, indent=2)


class ModelsStatusHandler(AdminHandler):
    """How each model's upstream fares."""

    def get(self) -> None:
        """Show it."""
        self.answer(self.front.service.models_status())


class HealthHandler(AdminHandler):
    """How the gateway fares."""

    async def get(self) -> None:
        """Show it."""
        self.answer(await self.front.service.health())


class FileHandler(AdminHandler):
    """The OpenAPI document, its page and the page's script: the same bytes for everyone."""

    public = True

    def get(self) -> None:
        """Show it."""
        media, content = self.front.files[self.request.path.rstrip("/")]
        self.set_header("Content-Type", media)
        self.set_header("Content-Security-Policy", _PAGE_POLICY)
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Cache-Control", "no-cache")
        self.finish(content)


class UnknownHandler(AdminHandler):
    """Every other path."""

    public = True

    def prepare(self) -> None:
        """There is nothing here."""
        super().prepare()
        self.refuse(HTTPError(404))


_HANDLERS: dict[str, type[AdminHandler]] = {
    "collection": CollectionHandler,
    "item": ItemHandler,
    "rotation": RotationHandler,
    "verification": VerificationHandler,
    "models_status": ModelsStatusHandler,
    "health": HealthHandler,
    "document": FileHandler,
    "page": FileHandler,
    "script": FileHandler,
}


def admin_routes(
    service: AdminService, *, admin_keys: Sequence[str], state: ProcessState
) -> list[Any]:
    """Tornado rules for every operation, and a catch-all; put other routes before them."""
    document = build_document(service.schemas, version=__version__)
    front = AdminFront(
        service=service,
        access=AdminAccess(admin_keys),
        state=state,
        files={
            "/admin/openapi.json": ("application/json", json.dumps(document).encode()),
            "/admin/docs": ("text/html; charset=utf-8", static_file("docs.html")),
            "/admin/docs/rapidoc-min.js": (
                "text/javascript; charset=utf-8",
                static_file("rapidoc-min.js"),
            ),
        },
    )
    routes: dict[str, Any] = {}
    for operation in OPERATIONS:
        if operation.path in routes:
            continue
        methods = [other.method for other in OPERATIONS if other.path == operation.path]
        settings = {"front": front, "kind": operation.kind, "allowed": methods}
        routes[operation.path] = (
            _pattern(operation.path),
            _HANDLERS[operation.resource],
            settings,
        )
    unknown = {"front": front, "kind": "", "allowed": ()}
    return [*routes.values(), (r".*", UnknownHandler, unknown)]


def _pattern(path: str) -> str:
    """The path as a regular expression; `api_keys` is another spelling of `apikeys`."""
    pattern = re.escape(path).replace(re.escape("{id}"), "([^/]+)")
    return pattern.replace(f"/{APIKEYS}", f"/(?:{APIKEYS}|api_keys)") + "/?"


def _declared_bytes(headers: HeaderView) -> int:
    declared: str = headers.get("Content-Length") or ""
    return int(declared[:18]) if declared.isdecimal() else 0


def _is_utf8(parameters: str) -> bool:
    for parameter in parameters.split(";"):
        name, _, value = parameter.strip().partition("=")
        if name.lower() == "charset" and value.strip('"').lower() not in ("utf-8", "utf8"):
            return False
    return True


def _too_large() -> Refusal:
    return Refusal(413, f"request body exceeds {BODY_LIMIT_BYTES}-byte limit")
