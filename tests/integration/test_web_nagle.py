"""A stream's pieces leave when they are written: Nagle's algorithm must not hold them back.

Without TCP_NODELAY the second small piece waits for the caller's delayed acknowledgement, 40 ms
and more. The socket option is looked at, not the time: a timed test would fail on a busy machine.
"""

from __future__ import annotations

import asyncio
import socket

import pytest
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler

from aisix.web.reply import HandlerReply


class Streamer(RequestHandler):
    """Streams two pieces through a HandlerReply and notes the socket's option."""

    async def get(self) -> None:
        """One stream."""
        reply = HandlerReply(self, may_finish=lambda: True)
        await reply.start(200, {"Content-Type": "text/event-stream"})
        await reply.write(b"data: 1\n\n")
        connection = self.request.connection
        stream = getattr(connection, "stream", None)
        assert stream is not None
        option = stream.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        await reply.write(f"data: {option}\n\n".encode())
        await reply.finish()


@pytest.mark.gen_test
async def test_a_stream_is_sent_without_nagles_delay():
    server = HTTPServer(Application([("/", Streamer)]))
    sockets = bind_sockets(0, "127.0.0.1")
    server.add_sockets(sockets)
    reader, writer = await asyncio.open_connection(*sockets[0].getsockname())
    try:
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        async with asyncio.timeout(5):
            answer = await reader.read()
    finally:
        writer.close()
        await writer.wait_closed()
        server.stop()
        await server.close_all_connections()
    assert b"data: 1\n\n" in answer
    assert answer.count(b"data: 1\n\n") == 2, "the second piece says that the option is on"
