"""The process: bind, load, accept, drain, close. I/O.

Order matters: sockets are bound before anything is opened, so that a busy port is told at once and
nothing is touched; connections are accepted only when resources are loaded. SIGTERM drains as
decisions §9 says; SIGINT skips the first wait; a second signal ends the process at once.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import signal
import socket
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application

from aisix import __version__
from aisix.app import Gateway, build
from aisix.config import Address, Config, ListenerTls, describe
from aisix.core.ports import StoreUnavailable
from aisix.telemetry import logs
from aisix.web.base import ProcessState
from aisix.web.framing import UNLIMITED_BYTES
from aisix.web.inference import ProxyFront
from aisix.web.server import ProxyServer

_ABORT_GRACE_S = 1.0
_BACKLOG = 4096  # a burst of new callers must not wait for TCP to try again
_BIND_HINTS = {
    errno.EADDRINUSE: "is another gateway running there? choose another address or stop it",
    errno.EACCES: "ports below 1024 need a privilege; choose a higher one",
}
_log = logging.getLogger("aisix.lifecycle")


class StartRefused(Exception):
    """The process cannot start; the text is for the operator."""


@dataclass(slots=True)
class Listener:
    """One bound address and what answers on it."""

    name: str
    sockets: list[socket.socket]
    tls: ssl.SSLContext | None
    server: HTTPServer | ProxyServer | None = None

    @property
    def url(self) -> str:
        """Where it can be reached."""
        host, port = self.sockets[0].getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        return f"{'https' if self.tls else 'http'}://{shown}:{port}"

    def open(self, served: Application | ProxyFront) -> None:
        """Begin to accept: callers on our own server, everything else on Tornado's."""
        if isinstance(served, ProxyFront):
            self.server = ProxyServer(served, tls=self.tls)
        else:
            self.server = HTTPServer(
                served, ssl_options=self.tls, max_body_size=UNLIMITED_BYTES, xheaders=False
            )
        self.server.add_sockets(self.sockets)

    def stop(self) -> None:
        """Accept no more; open connections live on."""
        if self.server is not None:
            self.server.stop()
        else:
            for bound in self.sockets:
                bound.close()

    async def close(self) -> None:
        """Close what is still open."""
        self.stop()
        if self.server is not None:
            await self.server.close_all_connections()


def bind(name: str, addr: Address, tls: ListenerTls, *, setting: str = "") -> Listener:
    """Bind `addr`, which `setting` (default `<name>.addr`) gave. Raises StartRefused naming the
    setting and the fix."""
    context = _tls_context(name, tls)
    return Listener(name, _bound(setting or f"{name}.addr", addr), context)


def bind_shared(name: str, addr: Address, tls: ListenerTls, *, count: int) -> list[Listener]:
    """Bind `addr` `count` times; the kernel spreads connections over the sockets. Raises
    StartRefused, also when it belongs to another program that would share it."""
    context = _tls_context(name, tls)
    setting = f"{name}.addr"
    if addr.port:
        for alone in _bound(setting, addr):
            alone.close()
    listeners: list[Listener] = []
    try:
        for _ in range(count):
            listener = Listener(name, _bound(setting, addr, shared=True), context)
            listeners.append(listener)
            addr = Address(addr.host, listener.sockets[0].getsockname()[1])
    except StartRefused:
        for listener in listeners:
            listener.stop()
        raise
    return listeners


def _bound(setting: str, addr: Address, *, shared: bool = False) -> list[socket.socket]:
    try:
        return bind_sockets(addr.port, addr.host, backlog=_BACKLOG, reuse_port=shared)
    except OSError as error:
        hint = _BIND_HINTS.get(error.errno or 0, "choose an address of this machine")
        raise StartRefused(
            f"{setting}: cannot listen on {addr}: {error.strerror or error}; {hint}"
        ) from error


def _tls_context(name: str, tls: ListenerTls) -> ssl.SSLContext | None:
    if tls.cert_file is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        # OpenSSL would ask the terminal for the passphrase of a key that has one
        context.load_cert_chain(tls.cert_file, tls.key_file, password="")
    except (OSError, ssl.SSLError) as error:
        raise StartRefused(
            f"{name}.tls: cannot load the certificate {tls.cert_file} with the key {tls.key_file}: "
            f"{error}; both must be PEM files that belong together, the key without a passphrase"
        ) from error
    return context


class Shutdown:
    """What the signals have asked for so far."""

    def __init__(self) -> None:
        self.requested = asyncio.Event()
        self.at_once = asyncio.Event()
        self.skip_wait = False

    def on_orphaned(self) -> None:
        """Whoever started this process is gone: end as if a person at a terminal asked for it."""
        if not self.requested.is_set():
            self.on_signal(signal.SIGINT)

    def on_signal(self, number: int) -> None:
        """First signal: drain. Second: end."""
        if self.requested.is_set():
            self.at_once.set()
            return
        self.skip_wait = number == signal.SIGINT
        self.requested.set()

    async def wait_at_once(self, timeout_s: float | None) -> bool:
        """Wait up to `timeout_s` (None = no end) for a second signal; whether it came."""
        try:
            async with asyncio.timeout(timeout_s):
                await self.at_once.wait()
        except TimeoutError:
            return False
        return True


async def serve(config: Config) -> int:
    """Run the gateway until it is told to stop. Exit status: 0 drained, 1 refused or cut short."""
    logs.configure(
        level=config.observability.log_level, service_name=config.observability.service_name
    )
    logs.register_secrets(config.secrets)
    shutdown = Shutdown()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, shutdown.on_signal, number)
    listeners: list[Listener] = []
    try:
        _bind_all(config, listeners)
        gateway = await build(config)
    except (StartRefused, StoreUnavailable) as error:
        _log.error("gateway.refused", extra={"error": str(error)})
        for listener in listeners:
            listener.stop()
        return 1
    finally:
        logs.flush()
    drained = False
    try:
        announce(
            config,
            {listener.name: listener.url for listener in listeners},
            resource_revision=gateway.data.snapshots.current().revision,
        )
        _open_all(gateway, listeners)
        await shutdown.requested.wait()
        drained = await drain(config, gateway.data.state, listeners=listeners, shutdown=shutdown)
    finally:
        # also when something above fails: the store's threads would keep the process alive
        for listener in listeners:
            await listener.close()
        await gateway.close()
        _log.info("gateway.stopped", extra={"drained": drained})
        logs.flush()
    return 0 if drained else 1


def _bind_all(config: Config, listeners: list[Listener]) -> None:
    listeners.append(bind("proxy", config.proxy.addr, config.proxy.tls))
    bind_control(config, listeners)


def bind_control(config: Config, listeners: list[Listener]) -> None:
    """Add what the control half listens on to `listeners`. Raises StartRefused."""
    if config.admin.enabled:
        listeners.append(bind("admin", config.admin.addr, config.admin.tls))
    prometheus = config.observability.metrics.prometheus
    if prometheus.enabled:
        setting = "observability.metrics.prometheus.addr"
        listeners.append(bind("metrics", prometheus.addr, ListenerTls(), setting=setting))


def _open_all(gateway: Gateway, listeners: list[Listener]) -> None:
    applications: dict[str, Application | ProxyFront] = {
        "proxy": gateway.data.front,
        "admin": gateway.admin_application,
        "metrics": gateway.metrics_application,
    }
    for listener in listeners:
        listener.open(applications[listener.name])


def announce(config: Config, addresses: Mapping[str, str], **more: object) -> None:
    """Log what is configured, and that the gateway is ready where."""
    lines = describe(config)
    chosen = [line for line in lines if not line.endswith("(default)")]
    _log.info("config.loaded", extra={"settings": chosen})
    _log.debug("config.defaults", extra={"settings": [x for x in lines if x not in chosen]})
    if config.ignored_sections:
        sections = ", ".join(config.ignored_sections)
        _log.warning("config.ignored", extra={"sections": sections})
    _log.info("gateway.ready", extra={"version": __version__, **addresses, **more})


async def drain(
    config: Config, state: ProcessState, *, listeners: Sequence[Listener], shutdown: Shutdown
) -> bool:
    """Finish what is in flight; whether all of it could finish."""
    state.draining = True
    limits = config.shutdown
    _log.info("gateway.draining", extra={"in_flight": len(state.inflight)})
    if not shutdown.skip_wait and limits.min_drain_secs:
        await shutdown.wait_at_once(float(limits.min_drain_secs))
    for listener in listeners:
        listener.stop()
    idle = asyncio.ensure_future(state.wait_idle())
    cut = asyncio.ensure_future(shutdown.wait_at_once(float(limits.max_drain_secs) or None))
    await asyncio.wait({idle, cut}, return_when=asyncio.FIRST_COMPLETED)
    drained = idle.done()
    if not drained:
        _log.warning("gateway.cut", extra={"in_flight": len(state.inflight)})
        state.abort_all()
        await asyncio.wait({idle}, timeout=_ABORT_GRACE_S)
    for task in (idle, cut):
        task.cancel()
    return drained
