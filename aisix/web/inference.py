"""From a request on a connection to the pipeline: every path, every method, one way.

The pipeline starts as soon as the head has arrived, so that a refusal need not wait for the body.
Only what belongs to Tornado's `Application` (probes) is handed over to it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import tornado.web
import ujson

from aisix.core.endpoints import Action
from aisix.core.request import InboundRequest
from aisix.errors import GatewayError, InternalError, answer_headers, body_too_large, envelope
from aisix.pipeline import BodyLimits, Pipeline
from aisix.web.base import ProcessState, RequestIds, given_id
from aisix.web.body import SWALLOW_S
from aisix.web.codec import Message
from aisix.web.connection import Connection, Patience
from aisix.web.handover import Handover
from aisix.web.handshake import check_handshake
from aisix.web.ops import PROBE_PATHS, probe_routes
from aisix.web.reply import ConnectionReply
from aisix.web.routes import Match, Routes

_JSON = {"Content-Type": "application/json"}
_PATIENCE = Patience(swallow_s=SWALLOW_S)
_log = logging.getLogger("aisix.web")


@dataclass(frozen=True, slots=True)
class ProxyFront:
    """Serves the requests of all connections of the proxy listener."""

    pipeline: Pipeline
    routes: Routes
    state: ProcessState
    body_limits: BodyLimits
    accept_request_ids: Sequence[str]
    max_connections: int = 0
    patience: Patience = _PATIENCE
    ids: RequestIds = field(default_factory=RequestIds)
    application: tornado.web.Application = field(init=False)

    def __post_init__(self) -> None:
        """Build what serves the probes."""
        application = tornado.web.Application(
            probe_routes(self.state), log_function=lambda _handler: None
        )
        object.__setattr__(self, "application", application)

    async def serve(self, message: Message, connection: Connection) -> None:
        """Run the exchange of `message`."""
        path = message.path
        if path in PROBE_PATHS and message.refusal is None:
            await self._hand_over(message, connection)
            return
        match = self.routes.match(message.method, path)
        refusal = message.refusal or self._refusal(match, message)
        if message.upgrade and match.spec.action is Action.SESSION and refusal is None:
            connection.tunnel()
        elif message.upgrade:
            connection.watch()  # nobody takes the connection over
        headers = message.headers
        id = given_id(headers, self.accept_request_ids) or self.ids.new()
        reply = ConnectionReply(connection, id)
        connection.way_back = reply
        inbound = InboundRequest(
            request_id=id,
            spec=match.spec,
            method=message.method,
            path=path,
            headers=headers,
            body=message.body,
            client_address=connection.remote_ip,
            path_name=match.path_name,
            resource=match.resource,
            query=message.query if match.spec.forwards_query else "",
            refusal=refusal,
        )
        try:
            await self.pipeline.run(inbound, reply)
        except Exception:
            _log.exception("exchange.crashed", extra={"request_id": id})
            if not reply.committed:
                error = InternalError("the gateway failed to serve this request")
                await reply.send(error.status, _JSON, ujson.dumps(envelope(error)).encode())

    async def _hand_over(self, message: Message, connection: Connection) -> None:
        handover = Handover(connection, message)
        connection.way_back = handover
        try:
            await handover.run(self.application)
        except GatewayError as error:  # of its body: nothing was answered yet
            reply = ConnectionReply(connection, self.ids.new())
            connection.way_back = reply
            headers = {**_JSON, **answer_headers(error)}
            await reply.send(error.status, headers, ujson.dumps(envelope(error)).encode())

    def _refusal(self, match: Match, message: Message) -> GatewayError | None:
        if match.refusal is not None:
            return match.refusal
        if match.spec.action is Action.SESSION:
            return check_handshake(message)
        limit = self.body_limits.of(match.spec.body)
        if limit and not message.body.complete:
            declared = message.headers.get("content-length")
            if declared and int(declared) > limit:
                return body_too_large(limit)
        return None
