"""The simulator as a server: listens, reads requests, answers them as scripted.

`Simulator` runs on the current event loop and is what tests use; `python -m aisix.simulator`
wraps it. Tornado parses the requests; JSON bodies are read whole, forms pass through `forms`;
what goes back is written by `wire.Wire`. Every request but those under
`/_sim/` leaves one record in the journal, with exactly one outcome. I/O.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Any, cast
from urllib.parse import parse_qsl, urlsplit

from tornado.http1connection import HTTP1Connection
from tornado.httpserver import HTTPServer
from tornado.httputil import (
    HTTPConnection,
    HTTPHeaders,
    HTTPMessageDelegate,
    HTTPServerConnectionDelegate,
    RequestStartLine,
    ResponseStartLine,
)
from tornado.iostream import IOStream
from tornado.netutil import bind_sockets

from aisix.simulator import faults
from aisix.simulator.checks import MALFORMED
from aisix.simulator.compatible import CompatibleSurface
from aisix.simulator.control import PREFIX, control
from aisix.simulator.entra import Authority, openid_configuration
from aisix.simulator.exchange import Answer, Inbound
from aisix.simulator.forms import Form
from aisix.simulator.identity import Identities
from aisix.simulator.intake import Body
from aisix.simulator.journal import CLIENT_CLOSED, CUT, STOPPED, Journal, RequestRecord
from aisix.simulator.operations import Place, deployment_in_body, locate
from aisix.simulator.options import SimulatorOptions
from aisix.simulator.realtime import RealtimeSession, deployment_of, is_session, knows_sessions
from aisix.simulator.script import ENTRA, HEADER, NORMAL, Script, ScriptBook, ScriptError
from aisix.simulator.surface import Surface
from aisix.simulator.wire import BrokenOff, CallerLeft, Gate, Wire

__all__ = ["RequestRecord", "Simulator", "SimulatorOptions"]

_log = logging.getLogger("aisix.simulator")
_BACKLOG = 1024
_BUFFER_BYTES = 64 * 1024 * 1024


class Simulator:
    """One simulated Azure OpenAI resource with its token endpoint, on one port."""

    def __init__(self, options: SimulatorOptions | None = None) -> None:
        self.options = options or SimulatorOptions()
        self.journal = Journal(self.options.keep_requests)
        self.authority = Authority(self.options.directory, clock=self.options.clock)
        self.identities = Identities(self.authority)
        self.book = ScriptBook(
            self.options.script, faults.NAMES, scripted_names=self.options.scripted_names
        )
        self.gate = Gate()
        self.surface = Surface(self.options, self.authority)
        self.compatible = CompatibleSurface(self.options, self.authority)
        self.port = 0
        self.connections_opened = 0
        self.connections_open = 0
        self.tasks: set[asyncio.Task[None]] = set()
        self._server: _Server | None = None

    # --- life -----------------------------------------------------------------------------------

    def start(self) -> None:
        """Bind and listen; the port is then in `port`.

        Raises:
            OSError: the address cannot be had.
        """
        options = self.options
        sockets = bind_sockets(options.port, options.host, family=socket.AF_INET, backlog=_BACKLOG)
        self.port = sockets[0].getsockname()[1]
        self._server = _Server(
            _Requests(self),
            ssl_options=options.tls,
            max_body_size=options.max_body_bytes,
            max_buffer_size=_BUFFER_BYTES,
        )
        self._server.simulator = self
        self._server.add_sockets(sockets)

    async def stop(self) -> None:
        """Close the listener and every connection, and end every answer."""
        server, self._server = self._server, None
        if server is None:
            return
        server.stop()
        tasks = list(self.tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.gate.release()  # uploads that are held belong to no task
        await server.close_all_connections()

    @property
    def url(self) -> str:
        """The origin, also to be used as authority."""
        scheme = "https" if self.options.tls is not None else "http"
        host = "127.0.0.1" if self.options.host in ("", "0.0.0.0") else self.options.host
        return f"{scheme}://{host}:{self.port}"

    # --- what tests and the control endpoint use ------------------------------------------------

    @property
    def requests(self) -> list[RequestRecord]:
        """Every recorded request, oldest first."""
        return list(self.journal.records)

    @property
    def azure_requests(self) -> list[RequestRecord]:
        """The recorded requests but those for tokens."""
        return self.journal.matching(lambda r: r.operation not in ("token", "openid-configuration"))

    @property
    def token_requests(self) -> list[RequestRecord]:
        """The recorded requests for tokens, at any of their endpoints."""
        return self.journal.matching(lambda r: r.operation == "token")

    def script(self, deployment: str, script: str, times: int = 1) -> Script:
        """Queue a script for the next requests of a deployment, of `*`, or of `@entra`."""
        return self.book.queue(deployment, script, times=times)

    def release(self) -> int:
        """Let every stalled or hanging answer go on; says how many there were."""
        return self.gate.release()

    def revoke_tokens(self) -> None:
        """Refuse every token given out so far."""
        self.authority.revoke_all()

    async def wait_for(
        self, predicate: Callable[[RequestRecord], object], timeout_s: float = 5.0
    ) -> RequestRecord:
        """The first record that fulfils the condition, as soon as there is one."""
        return (await self.wait_for_count(predicate, 1, timeout_s))[0]

    async def wait_for_count(
        self, predicate: Callable[[RequestRecord], object], count: int, timeout_s: float = 5.0
    ) -> list[RequestRecord]:
        """The records that fulfil the condition, as soon as there are `count`."""
        return await self.journal.wait_for(predicate, count=count, timeout_s=timeout_s)

    def stats(self) -> dict[str, Any]:
        """Counts since the start."""
        return {
            "requests": self.journal.total,
            "inflight": self.journal.inflight,
            "waiting": self.gate.waiting,
            "outcomes": dict(self.journal.outcomes),
            "token_requests": self.authority.requests,
            "tokens_issued": self.authority.issued,
            "connections_opened": self.connections_opened,
            "connections_open": self.connections_open,
        }


class _Server(HTTPServer):
    """Tornado's server, counting its connections."""

    simulator: Simulator

    def handle_stream(self, stream: IOStream, address: tuple[Any, ...]) -> None:
        self.simulator.connections_opened += 1
        self.simulator.connections_open += 1
        size = self.simulator.options.send_buffer_bytes
        if size is not None:
            stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)
        super().handle_stream(stream, address)

    def on_close(self, server_conn: object) -> None:
        self.simulator.connections_open -= 1
        super().on_close(server_conn)


class _Requests(HTTPServerConnectionDelegate):
    """Makes one `_Exchange` per request; connections are numbered in order of first use."""

    def __init__(self, simulator: Simulator) -> None:
        self._simulator = simulator

    def start_request(
        self, server_conn: object, request_conn: HTTPConnection
    ) -> HTTPMessageDelegate:
        number = getattr(server_conn, "simulator_number", None)
        if number is None:
            number = self._simulator.connections_opened
            server_conn.simulator_number = number  # type: ignore[attr-defined]  # lives as long
        return _Exchange(self._simulator, cast(HTTP1Connection, request_conn), number)


class _Exchange(HTTPMessageDelegate):
    """One request and its answer."""

    def __init__(self, simulator: Simulator, connection: HTTP1Connection, number: int) -> None:
        self._simulator = simulator
        self._connection = connection
        self._number = number
        self._body = Body("", 0)
        self._record: RequestRecord
        self._recorded = False
        self._keep_alive = True

    # --- reading (called by Tornado) ------------------------------------------------------------

    def headers_received(
        self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders
    ) -> None:
        line = cast(RequestStartLine, start_line)
        target = urlsplit(line.path) if not line.path.startswith("//") else None
        path, query = (target.path, target.query) if target else (line.path, "")
        pairs = [(name.lower(), value) for name, value in headers.get_all()]
        self._record = RequestRecord(
            id=self._simulator.journal.total + 1,
            connection=self._number,
            method=line.method,
            version=line.version,
            path=path,
            query=dict(parse_qsl(query, keep_blank_values=True)),
            headers={name.lower(): value for name, value in headers.items()},
            header_list=pairs,
            received_at=self._simulator.options.clock(),
        )
        tokens = self._record.headers.get("connection", "").lower()
        self._keep_alive = line.version == "HTTP/1.1" and "close" not in tokens
        self._body = Body(
            self._record.headers.get("content-type", ""), self._simulator.options.max_json_bytes
        )
        self._recorded = not path.startswith(PREFIX)
        if self._recorded:
            place = locate(path)
            self._record.operation = place.operation
            self._record.deployment = place.deployment
            self._simulator.journal.add(self._record)

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        before = self._record.body_bytes
        self._body.feed(chunk)
        self._record.body_bytes += len(chunk)
        self._simulator.journal.changed()
        hold = self._simulator.options.hold_body_bytes
        if hold is None or not self._recorded or not before <= hold < self._record.body_bytes:
            return None
        return self._hold()

    async def _hold(self) -> None:
        """Read on when released: until then the caller's upload meets a full socket."""
        gate = self._simulator.gate
        released = gate.enter()
        self._record.phase = "holding"
        self._simulator.journal.changed()
        try:
            await released
        finally:
            gate.leave(released)
        self._record.phase = "receiving"

    def finish(self) -> None:
        body = self._body
        self._note(body)
        self._connection.stream.set_nodelay(True)
        wire = Wire(
            self._connection, self._record, self._simulator.journal, gate=self._simulator.gate
        )
        self._connection.set_close_callback(wire.caller_left)
        if self._connection.stream.closed():  # gone already: the callback would not be called
            wire.caller_left()
        task = asyncio.get_running_loop().create_task(self._run(body, wire))
        self._simulator.tasks.add(task)
        task.add_done_callback(self._simulator.tasks.discard)

    def on_connection_close(self) -> None:
        """The connection ended while the request was still coming in."""
        self._note(self._body)
        self._close(CLIENT_CLOSED)

    def _note(self, body: Body) -> None:
        body.finish()
        self._record.body = bytes(body.kept[: self._simulator.options.keep_body_bytes])
        self._record.body_sha256 = body.sha256
        self._record.form = tuple(p.brief() for p in body.form.parts) if body.form else ()

    # --- answering ------------------------------------------------------------------------------

    async def _run(self, body: Body, wire: Wire) -> None:
        outcome = STOPPED
        try:
            if self._recorded and is_session(self._record.path):
                outcome = await self._converse(wire)
                return
            if self._recorded:
                answer, script = self._answer(body)
            else:
                answer, script = await self._control(bytes(body.kept)), NORMAL
            self._record.phase = "answering"
            outcome = await wire.play(answer, script, keep_alive=self._keep_alive)
        except CallerLeft:
            outcome = CLIENT_CLOSED
        except Exception:  # a defect of the simulator: say so and drop the connection
            _log.exception("simulator.failed")
            outcome = CUT
            self._connection.close()
        finally:
            self._close(outcome)

    def _close(self, outcome: str) -> None:
        if self._recorded:
            self._simulator.journal.close(self._record, outcome, self._simulator.options.clock())

    async def _converse(self, wire: Wire) -> str:
        """A realtime session, or why there is none."""
        record, simulator = self._record, self._simulator
        deployment = record.deployment = deployment_of(record.path, record.query)
        place = dataclasses.replace(locate(record.path), deployment=deployment)
        inbound = Inbound(
            method=record.method, place=place, query=record.query, headers=record.headers
        )
        refusal: Answer | None
        try:
            script = self._resolve(deployment)
            refusal = self._surface(place).refuse_session(
                inbound, script, version_known=knows_sessions(record.path, record.query)
            )
        except ScriptError as error:
            script, refusal = NORMAL, _refused(error)
        if refusal is not None:
            return await wire.play(refusal, script, keep_alive=self._keep_alive)
        try:
            await wire.delay_head(script)
        except BrokenOff:
            self._connection.stream.close()
            return CUT
        session = RealtimeSession(
            self._connection.detach(),
            record,
            simulator.journal,
            script=script,
            gate=simulator.gate,
            keep_bytes=simulator.options.keep_body_bytes,
        )
        return await session.run()

    async def _control(self, body: bytes) -> Answer:
        record = self._record
        return await control(
            self._simulator, record.method, record.path, query=record.query, body=body
        )

    def _answer(self, body: Body) -> tuple[Answer, Script]:
        place = locate(self._record.path)
        if place.kind in {"token", "identity", "openid"} and self._simulator.options.entra:
            return self._entra(place, bytes(body.kept))
        value = MALFORMED if body.form else _loads(bytes(body.kept))
        if deployment_in_body(place, self._record.method):
            place = dataclasses.replace(place, deployment=_model(value, body.form))
            self._record.deployment = place.deployment
        try:
            script = self._resolve(place.deployment)
        except ScriptError as error:
            return _refused(error), NORMAL
        if body.overflowed:
            limit = self._simulator.options.max_json_bytes
            fault = faults.content_too_large(limit, self._record.body_bytes)
            kind = [("content-type", fault.content_type)]
            return Answer(fault.status, kind, fault.body), script
        inbound = Inbound(
            method=self._record.method,
            place=place,
            query=self._record.query,
            headers=self._record.headers,
            json=value,
            form=body.form,
        )
        return self._surface(place).answer(inbound, script), script

    def _surface(self, place: Place) -> Surface:
        simulator = self._simulator
        return simulator.compatible if place.compatible else simulator.surface

    def _entra(self, place: Place, body: bytes) -> tuple[Answer, Script]:
        simulator = self._simulator
        if place.kind == "openid":
            document = openid_configuration(simulator.url, place.tenant)
            return Answer(200, [("content-type", faults.JSON_TYPE)], document), NORMAL
        try:
            script = self._resolve(ENTRA)
        except ScriptError as error:
            return _refused(error), NORMAL
        if place.kind == "identity":
            record = self._record
            fault = simulator.identities.answer(
                record.path, query=record.query, headers=record.headers, script=script
            )
        else:
            fault = simulator.authority.answer(place.tenant, body, script)
        kind = [("content-type", fault.content_type), ("cache-control", "no-store, no-cache")]
        return Answer(fault.status, [*kind, *fault.headers], fault.body), script

    def _resolve(self, name: str) -> Script:
        script = self._simulator.book.resolve(name, self._record.headers.get(HEADER))
        self._record.script = script.render()
        return script


def _model(value: Any, form: Form | None) -> str:
    """The deployment that a body names; none is an empty text."""
    model = value.get("model") if isinstance(value, dict) else None
    if form is not None:
        model = form.value("model")
    return model if isinstance(model, str) else ""


def _loads(body: bytes) -> Any:
    try:
        return json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return MALFORMED


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _refused(error: ScriptError) -> Answer:
    body = json.dumps({"error": {"code": "SimulatorScript", "message": str(error)}}).encode()
    return Answer(400, [("content-type", faults.JSON_TYPE)], body)
