"""Several sockets on one address, and nobody else's."""

from __future__ import annotations

import socket

import pytest

from aisix.config import Address, ListenerTls
from aisix.lifecycle import Listener, StartRefused, bind_shared

PLAIN = ListenerTls()
# Tornado drops the socket that it could not bind without closing it; the process ends anyway
tornado_drops_a_socket = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")


def stop(listeners: list[Listener]) -> None:
    for listener in listeners:
        listener.stop()


def port_of(listener: Listener) -> int:
    port: int = listener.sockets[0].getsockname()[1]
    return port


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_all_share_one_free_port(host: str):
    listeners = bind_shared("proxy", Address(host, 0), PLAIN, count=3)
    assert len({port_of(listener) for listener in listeners}) == 1
    assert len({listener.sockets[0].fileno() for listener in listeners}) == 3
    port = port_of(listeners[0])
    stop(listeners)
    again = bind_shared("proxy", Address(host, port), PLAIN, count=2)
    assert port_of(again[1]) == port
    stop(again)


def test_the_address_stays_taken_until_the_last_one_is_closed():
    listeners = bind_shared("proxy", Address("127.0.0.1", 0), PLAIN, count=2)
    address = ("127.0.0.1", port_of(listeners[0]))
    listeners[0].stop()
    socket.create_connection(address, 5).close()
    listeners[1].stop()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address, 5)


@tornado_drops_a_socket
@pytest.mark.parametrize("shared", [False, True], ids=["alone", "shared"])
def test_an_address_of_another_program_is_refused_in_words(shared: bool):
    """Also when that program would share it: its callers are not ours."""
    with socket.socket() as taken:
        if shared:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(StartRefused, match=r"^proxy\.addr: .* another gateway"):
            bind_shared("proxy", Address("127.0.0.1", port), PLAIN, count=2)
