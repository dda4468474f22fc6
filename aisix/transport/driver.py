"""libcurl's multi interface on an asyncio loop: the only module that calls it. I/O.

All of libcurl's sockets are in one epoll of our own, and that epoll's descriptor is the only one
the loop knows: changes of interest then cost a system call but no Python of the loop, and all
events of a loop turn are handled in one callback. New and resumed transfers are started together
by one tick per loop turn; but one that is alone need not wait for the turn, nor a burst of many for
all of them to be prepared: the upstream can work meanwhile.

Invariants, each of which hangs a transfer when it is broken:
* No multi function is called inside a libcurl callback: callbacks only note and schedule.
* A timer callback with 0 always leads to a tick. A later moment may be rung too early, because
  earlier ones that libcurl gave up are not cancelled: after each such tick it names the moment
  again.
* After every `socket_action` finished transfers are collected, after a tick too: a transfer can
  start and end inside one.
* When libcurl loses interest in a socket it stays in the epoll: most come back with the next
  request. One that fires unwanted is taken out then (a kept connection that its peer closed).
  libcurl may close a socket without a word; its number then comes back as a stranger, which
  `modify` reports.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
from collections.abc import Callable
from typing import Any, Protocol

import pycurl

from aisix.transport.alarm import Alarm

_INTEREST = {
    pycurl.POLL_IN: select.EPOLLIN,
    pycurl.POLL_OUT: select.EPOLLOUT,
    pycurl.POLL_INOUT: select.EPOLLIN | select.EPOLLOUT,
}
_EVENTS_PER_TURN = 512
_BURST = 8
"""So many new transfers do not wait for the end of the loop turn."""


class EasyHandle(Protocol):
    """What runs a transfer."""

    @property
    def curl(self) -> pycurl.Curl:
        """libcurl's easy handle."""


class Driver:
    """One CurlMulti, bound to one loop and so to one process.

    `finished(handle, code, text)` is told of each transfer that came to its own end, when its
    handle is free again; `code` is libcurl's, 0 for a whole answer.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        now: Callable[[], float],
        finished: Callable[[Any, int, str], None],
        max_connections_kept: int,
    ) -> None:
        self._loop = loop
        self._now = now
        self._finished = finished
        self._running: dict[pycurl.Curl, EasyHandle] = {}
        self._watched: set[int] = set()
        self._tick_due = False
        self._waiting = 0
        self._closed = False
        self._alarm = Alarm(loop, now=now, ring=self._on_alarm)
        self._epoll = select.epoll()
        self._multi = pycurl.CurlMulti()
        self._multi.setopt(pycurl.M_SOCKETFUNCTION, self._on_socket)
        self._multi.setopt(pycurl.M_TIMERFUNCTION, self._on_timer)
        self._multi.setopt(pycurl.M_MAXCONNECTS, max_connections_kept)
        loop.add_reader(self._epoll.fileno(), self._on_ready)

    @property
    def watched_sockets(self) -> int:
        """Sockets that libcurl waits for now; kept connections are not among them."""
        return len(self._watched)

    def start(self, handle: EasyHandle) -> None:
        """Begin the transfer of `handle`, now or with the next tick. Raises pycurl.error.

        It and others may end within this call. Not to be called inside a libcurl callback.
        """
        curl = handle.curl
        self._multi.add_handle(curl)  # asks for a timer of 0, and so for the tick
        self._running[curl] = handle
        self._waiting += 1
        if self._waiting >= _BURST or len(self._running) == 1:
            self._act()

    def cancel(self, handle: EasyHandle) -> None:
        """End the transfer now, if it began; an unfinished connection is closed, a stream of HTTP/2
        reset."""
        if self._running.pop(handle.curl, None) is not None:
            self._multi.remove_handle(handle.curl)

    def resume(self, handle: EasyHandle) -> None:
        """Let a paused transfer go on, in both directions. What waited may be delivered inside."""
        handle.curl.pause(pycurl.PAUSE_CONT)
        self._tick_soon()

    def close(self) -> None:
        """Close all connections. Every transfer must have ended or been cancelled. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._alarm.cancel()
        self._loop.remove_reader(self._epoll.fileno())
        self._multi.close()
        self._epoll.close()

    # ── libcurl's callbacks ──

    def _on_socket(self, what: int, fd: int, _multi: pycurl.CurlMulti, _data: object) -> None:
        interest = _INTEREST.get(what)
        if interest is None:
            self._watched.discard(fd)
            return
        self._watched.add(fd)
        try:
            self._epoll.modify(fd, interest)
        except FileNotFoundError:
            self._epoll.register(fd, interest)

    def _on_timer(self, timeout_ms: int) -> None:
        if timeout_ms == 0:
            self._tick_soon()
        elif timeout_ms > 0:
            self._alarm.want(self._now() + timeout_ms / 1000)

    # ── the loop's callbacks ──

    def _on_ready(self) -> None:
        act, watched = self._multi.socket_action, self._watched
        for fd, events in self._epoll.poll(0, _EVENTS_PER_TURN):
            if fd in watched:
                act(fd, _selected(events))
            else:
                with contextlib.suppress(OSError):
                    self._epoll.unregister(fd)
        self._collect()

    def _tick_soon(self) -> None:
        if not self._tick_due:
            self._tick_due = True
            self._loop.call_soon(self._tick)

    def _tick(self) -> None:
        if self._tick_due and not self._closed:  # it may have been forestalled
            self._act()

    def _on_alarm(self) -> None:
        if not self._closed:
            self._act()

    def _act(self) -> None:
        """Let libcurl begin, go on and time out what it has to. It may ask for the next tick."""
        self._tick_due = False
        self._waiting = 0
        self._multi.socket_action(pycurl.SOCKET_TIMEOUT, 0)
        self._collect()

    def _collect(self) -> None:
        queued = 1
        while queued:
            queued, whole, failed = self._multi.info_read()
            for curl in whole:
                self._multi.remove_handle(curl)
                self._finished(self._running.pop(curl), 0, "")
            for curl, code, text in failed:
                self._multi.remove_handle(curl)
                self._finished(self._running.pop(curl), code, text)


def _selected(events: int) -> int:
    """epoll's events in libcurl's bits; a peer that hung up may have sent something before."""
    if events == select.EPOLLIN:
        return pycurl.CSELECT_IN
    selected = 0
    if events & (select.EPOLLIN | select.EPOLLHUP):
        selected |= pycurl.CSELECT_IN
    if events & select.EPOLLOUT:
        selected |= pycurl.CSELECT_OUT
    if events & (select.EPOLLERR | select.EPOLLHUP):
        selected |= pycurl.CSELECT_ERR
    return selected
