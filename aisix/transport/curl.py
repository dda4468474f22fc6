"""The wire to the upstream, on libcurl: the Transport of the gateway. I/O.

The body is pulled: what libcurl delivers waits in a `BodyBuffer`, and when that is full the write
callback refuses, which stops libcurl from reading the socket until the reader catches up.

What libcurl does with connections, of one transport (8.23):
* A connection is kept after a whole answer and used again for the same host, port and TLS. One
  that was idle for longer than `pool_idle_timeout_s`, or opened more than ten minutes ago, is never
  used again. It is closed when the next call, to wherever, finds it; when there is none, with the
  engine. 0 keeps idle connections however long.
* `pool_max_idle_per_host` bounds all open connections together, busy ones too: libcurl has no
  figure per host, and looks only when a transfer ends. Above it the connection that was idle for
  the longest time is closed. So it must not be less than the calls that run at once, or
  connections are opened and closed under load. 0 keeps none.
* A request is sent again by libcurl itself when a kept connection turns out dead before a byte of
  the answer came, and over HTTP/2 when the upstream says that it has not looked at it (a refused
  stream, a GOAWAY: at most five times) or wants it over HTTP/1.1. Nothing else is retried here.
* Over HTTP/2 an answer without a length whose stream is reset with NO_ERROR counts as whole:
  libcurl does not tell the difference. The relay notices what lacks its end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from aisix import __version__
from aisix.core.ports import Clock, UpstreamCall
from aisix.errors import UpstreamUnreachable
from aisix.transport.engine import Engine
from aisix.transport.failures import CLOSING
from aisix.transport.request import Proxy, Wire
from aisix.transport.transfer import Transfer


@dataclass(frozen=True, slots=True)
class TransportStats:
    """What a transport is doing now."""

    open_transfers: int
    peak_body_bytes: int
    """The most that the buffer of any one transfer has held."""
    pooled_handles: int
    """Easy handles at rest."""
    watched_sockets: int
    """Sockets that a transfer waits for; kept connections are not counted, libcurl hides them."""


class CurlTransport:
    """`Transport` on libcurl. Made anywhere; bound to the process and the loop that call first."""

    def __init__(  # noqa: PLR0913 - one argument per setting
        self,
        *,
        clock: Clock,
        http2: bool = False,
        connect_to: Sequence[str] = (),
        ca_file: str | None = None,
        verify: bool = True,
        proxy: Proxy | None = None,
        allow_link_local: bool = False,
        tcp_keepalive_s: int = 60,
        pool_idle_timeout_s: float = 90.0,
        pool_max_idle_per_host: int = 1024,
        user_agent: str = f"aisix/{__version__}",
    ) -> None:
        self._clock = clock
        self._max_connections_kept = pool_max_idle_per_host
        self._wire = Wire(
            user_agent=user_agent,
            http2=http2,
            connect_to=tuple(connect_to),
            ca_file=ca_file,
            verify=verify,
            proxy=proxy,
            allow_link_local=allow_link_local,
            tcp_keepalive_s=tcp_keepalive_s,
            keep_connections=pool_max_idle_per_host > 0,
            max_idle_s=pool_idle_timeout_s,
        )
        self._engine: Engine | None = None
        self._peak_body_bytes = 0
        self._closed = False

    def open(self, call: UpstreamCall) -> Transfer:
        """A context that sends `call` and waits for the final head; leaving ends the transfer."""
        return Transfer(self._running_engine, call)

    async def close(self) -> None:
        """End all transfers, then all connections. Idempotent."""
        self._closed = True
        engine = self._engine
        if engine is not None:
            for transfer in tuple(engine.transfers):
                transfer.end(UpstreamUnreachable(CLOSING))
            engine.close()

    def stats(self) -> TransportStats:
        """Figures for tests and for people."""
        engine = self._engine
        if engine is None:
            return TransportStats(0, self._peak_body_bytes, 0, 0)
        running = (transfer.peak_body_bytes for transfer in engine.transfers)
        return TransportStats(
            open_transfers=len(engine.transfers),
            peak_body_bytes=max(self._peak_body_bytes, engine.peak_body_bytes, *running),
            pooled_handles=engine.pool.size,
            watched_sockets=engine.driver.watched_sockets,
        )

    def _running_engine(self) -> Engine:
        if self._closed:
            raise UpstreamUnreachable(CLOSING)
        engine = self._engine
        if engine is None or engine.closed:
            engine = self._new_engine()
        return engine

    def _new_engine(self) -> Engine:
        if self._engine is not None:
            self._peak_body_bytes = max(self._peak_body_bytes, self._engine.peak_body_bytes)
        self._engine = Engine(
            asyncio.get_running_loop(),
            wire=self._wire,
            now=self._clock.monotonic,
            max_connections_kept=self._max_connections_kept,
        )
        return self._engine
