"""libcurl's easy handles, kept per target: a call sets only what is its own. I/O: none by itself.

The options of a target are set once, when a handle is made. Invariants:
* A handle comes back only after a whole answer to a call whose body was bytes; after anything else
  (an error, a cancellation, an upload) its state is not known well enough, and it is closed.
* A handle in the pool holds no body, no answer and no transfer. Headers and deadlines of the last
  call stay set until a call differs in them.
* The pool is bounded, per target and in total; the target that was not used for the longest time
  goes first. A handle that nobody used for long is closed.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Protocol

import pycurl

from aisix.core.ports import UpstreamCall, UpstreamTarget
from aisix.transport.alarm import NEVER
from aisix.transport.failures import Passage
from aisix.transport.head import fields_of, status_of
from aisix.transport.request import (
    Headers,
    PreparedTarget,
    Wire,
    goes_by_proxy,
    milliseconds,
    set_body,
    set_target,
    set_tunnel,
    set_upload,
)
from aisix.transport.sockets import SocketGuard, keep_from_children

_MAX_HANDLES = 1024
_MAX_HANDLES_PER_TARGET = 512
_MAX_TARGETS = 1024
_BLANK_LINES = (b"\r\n", b"\n")
_PROXY_AUTHENTICATION = 407
_USED_PROXY = 0x200000 + 66  # CURLINFO_USED_PROXY, which pycurl (7.49) has no name for
_SWITCHING = 101
_REFUSED = -1
"""What libcurl takes for a failure of its callback: it ends the transfer."""


class Receiver(Protocol):
    """Who is told what libcurl's callbacks bring. Nothing below may call libcurl."""

    def on_head(self, status: int, headers: dict[str, str], first_byte_at: float) -> bool:
        """The final head is complete; False ends the transfer."""

    def on_body(self, piece: bytes) -> int | None:
        """A piece of the body; WRITEFUNC_PAUSE refuses it and holds the transfer."""

    def on_end(self, code: int, text: str) -> None:
        """The transfer came to its own end; `code` is libcurl's. Not inside a libcurl callback."""


class Handle:
    """An easy handle set up for one target. `now` is monotonic seconds, for stamps.

    It has a `pycurl.Curl` and is none: pycurl (7.49) looks every attribute up in a table of its
    own first, which makes a read of one ten times as dear as that of a slot.
    """

    __slots__ = (
        "_began_at",
        "_by_proxy",
        "_connect_s",
        "_headers",
        "_lines",
        "_prepared",
        "_proxy_status",
        "_set",
        "_sockets",
        "curl",
        "idle_since",
        "receiver",
        "reusable",
        "target",
    )

    def __init__(self, prepared: PreparedTarget, wire: Wire, now: Callable[[], float]) -> None:
        self.curl = pycurl.Curl()
        self._set = self.curl.setopt
        self.target = prepared.target
        self.receiver: Receiver | None = None
        self.reusable = False
        self.idle_since = 0.0
        self._prepared = prepared
        self._headers: Headers | None = None
        self._connect_s: float | None = None
        self._lines: list[bytes] = []
        self._began_at = 0.0
        set_target(self.curl, prepared.target, wire)
        self._by_proxy = goes_by_proxy(wire, prepared.target.route)
        self._proxy_status = 0
        self._sockets = SocketGuard()
        if not (wire.allow_link_local or prepared.target.route.link_local):
            self._set(pycurl.OPENSOCKETFUNCTION, self._sockets.open)
            self._set(pycurl.SOCKOPTFUNCTION, keep_from_children)
        self._listen(now)

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self.curl.closed

    def passage(self) -> Passage:
        """What became of the way to the upstream. Not inside a libcurl callback."""
        if not self._by_proxy:
            return Passage(address_refused=self._sockets.refused)
        tunnel_status = self.curl.getinfo(pycurl.HTTP_CONNECTCODE)
        return Passage(
            by_proxy=bool(self.curl.getinfo(_USED_PROXY)),
            tunnelled=200 <= tunnel_status < 300,
            proxy_status=self._proxy_status or (tunnel_status if tunnel_status >= 300 else 0),
            address_refused=self._sockets.refused,
        )

    def close(self) -> None:
        """Free it; the callbacks, and with them what they hold, go too."""
        self.curl.close()

    def load(self, call: UpstreamCall, read: Callable[[int], bytes | int] | None = None) -> None:
        """Set what is `call`'s own; `read` gives the body when it is not bytes.

        Raises UpstreamMisconfigured.
        """
        self._sockets.refused = False
        if call.headers != self._headers:
            self._set(pycurl.HTTPHEADER, self._prepared.lines(call.headers))
            self._headers = call.headers
        connect_s = call.deadlines.connect_s
        if connect_s != self._connect_s:
            self._set(pycurl.CONNECTTIMEOUT_MS, milliseconds(connect_s))
            self._connect_s = connect_s
        method = self.target.method
        if isinstance(call.body, bytes):
            # only POST takes a body and no body by the same options
            self.reusable = method == "POST"
            set_body(self._set, method, call.body)
        elif read is not None and self.target.is_tunnel:
            set_tunnel(self._set, read)
        elif read is not None:
            set_upload(self._set, method, read, call.body_length)

    def unload(self) -> None:
        """Let go of the last call's body and answer."""
        self.receiver = None
        self._lines.clear()
        self._set(pycurl.POSTFIELDS, b"")

    def _listen(self, now: Callable[[], float]) -> None:
        """Set the callbacks. They stand for as long as the handle does.

        The one for header lines runs a dozen times per answer: a closure over the list's own
        `append` costs 0.1 µs a line more than giving libcurl that `append`, a method 0.4 µs; and
        only a function tells at once that the head is complete.
        """
        lines = self._lines
        append = lines.append

        def on_header(line: bytes) -> int | None:
            if not lines:
                self._began_at = now()
            append(line)
            return self._on_blank_line() if line in _BLANK_LINES else None

        def on_body(piece: bytes) -> int | None:
            receiver = self.receiver
            return receiver.on_body(piece) if receiver is not None else None

        self._set(pycurl.HEADERFUNCTION, on_header)
        self._set(pycurl.WRITEFUNCTION, on_body)

    def _on_blank_line(self) -> int | None:
        """The end of a head. Trailers come without their blank line (libcurl 8.23)."""
        lines = self._lines
        status = status_of(lines[0])
        taken = True
        if status == _PROXY_AUTHENTICATION and self._by_proxy:
            # a plain http call has no tunnel: this answer of the proxy is no upstream's
            self._proxy_status = status
            return _REFUSED
        # an interim answer is not the answer; but the one that opens a tunnel is its last
        final = status >= 200 or (status == _SWITCHING and self.target.is_tunnel)
        if final and self.receiver is not None:
            taken = self.receiver.on_head(status, fields_of(lines[1:]), self._began_at)
        lines.clear()
        return None if taken else _REFUSED


class _Kept:
    """What is kept of one target."""

    __slots__ = ("handles", "prepared", "used_at")

    def __init__(self, prepared: PreparedTarget, now: float) -> None:
        self.prepared = prepared
        self.used_at = now
        self.handles: deque[Handle] = deque()
        """Idle ones; the last was used last."""


class HandlePool:
    """Handles at rest. `max_idle_s` 0 keeps them however long."""

    def __init__(
        self,
        wire: Wire,
        *,
        now: Callable[[], float],
        max_idle_s: float,
        max_handles: int = _MAX_HANDLES,
        max_per_target: int = _MAX_HANDLES_PER_TARGET,
        max_targets: int = _MAX_TARGETS,
    ) -> None:
        self._wire = wire
        self._now = now
        self._max_idle_s = max_idle_s or NEVER
        self._max_handles = max_handles
        self._max_per_target = max_per_target
        self._max_targets = max_targets
        self._targets: OrderedDict[UpstreamTarget, _Kept] = OrderedDict()
        """Least recently used first."""
        self.due = NEVER
        """When `expire` has something to do."""
        self.size = 0
        """Handles at rest."""

    def take(self, target: UpstreamTarget) -> Handle:
        """A handle for `target`, to be loaded. Raises UpstreamMisconfigured."""
        kept = self._targets.get(target)
        if kept is None:
            kept = self._keep(target)
        else:
            self._targets.move_to_end(target)
        if kept.handles:
            self.size -= 1
            return kept.handles.pop()
        return Handle(kept.prepared, self._wire, self._now)

    def give(self, handle: Handle, now: float) -> None:
        """Take back a handle after a whole answer; `now` is the moment it became idle."""
        kept = self._targets.get(handle.target)
        if kept is None or not handle.reusable or len(kept.handles) >= self._max_per_target:
            handle.close()
            return
        handle.unload()
        handle.idle_since = kept.used_at = now
        kept.handles.append(handle)
        self.due = min(self.due, now + self._max_idle_s)
        self.size += 1
        if self.size > self._max_handles:
            self._shed()

    def expire(self, now: float) -> None:
        """Close what was idle for too long, and forget targets that nobody uses any more."""
        if now < self.due:
            return
        self.due = NEVER
        for target, kept in tuple(self._targets.items()):
            while kept.handles and kept.handles[0].idle_since + self._max_idle_s <= now:
                self._close_oldest(kept)
            ends_at = kept.handles[0].idle_since if kept.handles else kept.used_at
            ends_at += self._max_idle_s
            if ends_at <= now:
                del self._targets[target]
            else:
                self.due = min(self.due, ends_at)

    def clear(self) -> None:
        """Close all handles at rest and forget every target."""
        for kept in self._targets.values():
            while kept.handles:
                self._close_oldest(kept)
        self._targets.clear()

    def _keep(self, target: UpstreamTarget) -> _Kept:
        prepared = PreparedTarget.of(
            target,
            user_agent=self._wire.user_agent,
            allow_link_local=self._wire.allow_link_local,
        )
        kept = self._targets[target] = _Kept(prepared, self._now())
        self.due = min(self.due, kept.used_at + self._max_idle_s)
        if len(self._targets) > self._max_targets:
            _, evicted = self._targets.popitem(last=False)
            while evicted.handles:
                self._close_oldest(evicted)
        return kept

    def _shed(self) -> None:
        """Close one handle, of the least recently used target that has any."""
        kept = next(kept for kept in self._targets.values() if kept.handles)
        self._close_oldest(kept)

    def _close_oldest(self, kept: _Kept) -> None:
        self.size -= 1
        kept.handles.popleft().close()
