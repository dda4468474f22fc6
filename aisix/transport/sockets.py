"""Sockets for libcurl, opened only when the address they are to reach may be reached. I/O: sockets.

libcurl asks here with the resolved address at the moment of connecting, so a host name that leads
elsewhere than it did before is judged by where it leads now. A kept connection asks nothing.
"""

from __future__ import annotations

import os
import socket
from typing import Any

import pycurl

from aisix.core.addresses import is_link_local


class SocketGuard:
    """libcurl's two callbacks for sockets, for one easy handle."""

    __slots__ = ("refused",)

    def __init__(self) -> None:
        self.refused = False
        """Whether an address was refused since this was last set to False."""

    def open(self, _purpose: int, address: Any) -> _Descriptor | int:
        """A socket for `address`, or SOCKET_BAD."""
        if is_link_local(address.addr[0]):
            self.refused = True
            return pycurl.SOCKET_BAD
        return _Descriptor(address.family, address.socktype, address.protocol)


def keep_from_children(descriptor: int, _purpose: int) -> int:
    """pycurl (7.49) hands libcurl a copy of our descriptor, which children would inherit."""
    os.set_inheritable(descriptor, False)
    return pycurl.SOCKOPT_OK


class _Descriptor:
    """What pycurl copies the descriptor of, and then drops. A `socket.socket` would warn that
    nobody closed it."""

    __slots__ = ("_fd",)

    def __init__(self, family: int, kind: int, protocol: int) -> None:
        self._fd = socket.socket(family, kind, protocol).detach()

    def fileno(self) -> int:
        """The descriptor, ours until we are dropped."""
        return self._fd

    def __del__(self) -> None:
        os.close(self._fd)
