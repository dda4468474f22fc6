"""The stock baseline: Tornado's RequestHandler and CurlAsyncHTTPClient, forwarding and no more.

What anybody would write with Tornado: the POST goes to the upstream with the upstream's key, the
answer comes back, a stream as it arrives. No authentication, limits, rewriting, usage, metrics or
log. It is tuned as far as its parts allow: enough clients (the default of 10 would queue), no size
limits, no access log, TCP_NODELAY, no redirects, no decompression.
"""

from __future__ import annotations

import argparse
import asyncio
import ssl
import sys

from tornado.curl_httpclient import CurlAsyncHTTPClient
from tornado.http1connection import HTTP1Connection
from tornado.httpclient import HTTPRequest
from tornado.httputil import HTTPHeaders
from tornado.web import Application, RequestHandler

_NO_LIMIT_BYTES = 1 << 40
_MAX_BODY_BYTES = 64 << 20


class ForwardHandler(RequestHandler):
    """Forwards any POST to the same path of the upstream."""

    def initialize(self, client: CurlAsyncHTTPClient, upstream: str, key: str) -> None:
        """What every request needs."""
        self.client = client
        self.upstream = upstream
        self.key = key

    async def post(self) -> None:
        """Forward, and answer with what comes back."""
        streamed = b'"stream": true' in self.request.body  # as the load generator writes it
        request = HTTPRequest(
            self.upstream + self.request.uri,
            method="POST",
            headers=HTTPHeaders({"Content-Type": "application/json", "api-key": self.key}),
            body=self.request.body,
            request_timeout=0,
            follow_redirects=False,
            decompress_response=False,
            streaming_callback=self._forward if streamed else None,
        )
        if streamed:
            self.set_header("Content-Type", "text/event-stream; charset=utf-8")
            connection = self.request.connection
            if isinstance(connection, HTTP1Connection):
                connection.stream.set_nodelay(True)
        answer = await self.client.fetch(request, raise_error=False)
        if not streamed:
            self.set_status(answer.code)
            self.set_header("Content-Type", answer.headers.get("Content-Type", ""))
            self.write(answer.body)

    def _forward(self, piece: bytes) -> None:
        self.write(piece)
        self.flush()


def tls_context(certificate: str) -> ssl.SSLContext:
    """The caller's side with a certificate (a PEM file with chain and key)."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    return context


async def main(arguments: argparse.Namespace) -> None:
    """Serve until terminated."""
    client = CurlAsyncHTTPClient(
        force_instance=True, max_clients=arguments.clients, max_body_size=_NO_LIMIT_BYTES
    )
    behind = {"client": client, "upstream": arguments.upstream, "key": arguments.key}
    application = Application([(r".*", ForwardHandler, behind)], log_function=lambda _handler: None)
    application.listen(
        arguments.port,
        "127.0.0.1",
        backlog=4096,
        max_body_size=_MAX_BODY_BYTES,
        max_buffer_size=2 * _MAX_BODY_BYTES,
        ssl_options=tls_context(arguments.certificate) if arguments.certificate else None,
    )
    await asyncio.Event().wait()


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--upstream", required=True)
    parser.add_argument("--key", required=True)
    parser.add_argument("--clients", type=int, default=1024)
    parser.add_argument("--certificate")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    asyncio.run(main(parse(sys.argv[1:])))
