"""Tornado alone: a handler that answers static JSON, no upstream, no policy. The yardstick of a
machine.
"""

from __future__ import annotations

import asyncio
import sys

from tornado.web import Application, RequestHandler


class StaticHandler(RequestHandler):
    """Answers any POST."""

    def post(self) -> None:
        """The same body each time."""
        self.set_header("Content-Type", "application/json")
        self.finish(b'{"choices": []}')


async def main(port: int) -> None:
    """Serve until terminated."""
    application = Application([(r".*", StaticHandler)], log_function=lambda _handler: None)
    application.listen(port, "127.0.0.1")
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
