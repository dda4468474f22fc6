"""The admin API's page in a real browser that can reach this machine only.

The viewer draws into shadow roots, which `--dump-dom` leaves out; so the browser is spoken to in
its own DevTools protocol, over a WebSocket.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from tornado.websocket import WebSocketClientConnection, websocket_connect

from aisix.admin.openapi import OPERATIONS
from tests.support.process import ADMIN_KEY, Program, gateway

BROWSER_START_S = 30.0
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--remote-debugging-port=0",
)
ALL_TEXT = """
(() => {
  const texts = [];
  const walk = node => {
    for (const child of node.childNodes) {
      if (child.nodeType === Node.TEXT_NODE) texts.push(child.data);
      else if (!['STYLE', 'SCRIPT'].includes(child.nodeName)) {
        walk(child);
        if (child.shadowRoot) walk(child.shadowRoot);
      }
    }
  };
  walk(document);
  return texts.join(' ').replace(/\\s+/g, ' ');
})()
"""


class Tab:
    """One page of a browser: commands, and what it reported."""

    def __init__(self, socket: WebSocketClientConnection) -> None:
        self._socket = socket
        self._session = ""
        self._count = 0
        self.events: list[dict[str, Any]] = []

    async def open(self) -> None:
        """Make the page and have it report."""
        target = await self.command("Target.createTarget", url="about:blank")
        attached = await self.command(
            "Target.attachToTarget", targetId=target["targetId"], flatten=True
        )
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self.command(f"{domain}.enable")

    async def command(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of one command. Raises AssertionError when it is refused."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        await self._socket.write_message(json.dumps(message))
        while True:
            raw = await self._socket.read_message()
            assert raw is not None, "the browser has gone"
            answer = json.loads(raw)
            if answer.get("id") == self._count:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result
            self.events.append(answer)

    async def evaluate(self, expression: str) -> Any:
        """The value of an expression in the page; promises are awaited."""
        answer = await self.command(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    async def text_with(self, *wanted: str) -> str:
        """All text of the page, shadow roots included, as soon as it holds `wanted`."""
        text = ""
        with suppress(TimeoutError):
            async with asyncio.timeout(15):
                while not all(part in text for part in wanted):
                    text = await self.evaluate(ALL_TEXT)
        assert [part for part in wanted if part not in text] == [], text[:2000]
        return text

    def reported(self, method: str) -> list[dict[str, Any]]:
        """The parameters of the events of one sort."""
        return [event["params"] for event in self.events if event.get("method") == method]


@asynccontextmanager
async def browser(profile: Path) -> AsyncIterator[Tab]:
    """A page of a browser of its own."""
    command = [shutil.which("chromium") or "chromium", *OPTIONS, f"--user-data-dir={profile}"]
    program = Program([*command, "about:blank"])
    socket: WebSocketClientConnection | None = None
    try:
        line = await asyncio.to_thread(
            program.wait_for, lambda text: "listening on ws://" in text, timeout_s=BROWSER_START_S
        )
        socket = await websocket_connect(line[0].split()[-1], max_message_size=2**26)
        tab = Tab(socket)
        await tab.open()
        yield tab
    finally:
        if socket is not None:
            socket.close()
        program.send_signal(signal.SIGTERM)
        await asyncio.to_thread(program.wait)


@pytest.mark.service("chromium")
@pytest.mark.timeout(120)
@pytest.mark.gen_test(timeout=110)
async def test_the_page_lists_and_tries_every_operation_without_the_internet(tmp_path: Path):
    with gateway(tmp_path) as program:
        async with browser(tmp_path / "profile") as tab:
            await tab.command("Page.navigate", url=f"{program.admin}/admin/docs")
            text = await tab.text_with(*(operation.summary for operation in OPERATIONS))
            assert [o.path for o in OPERATIONS if o.path not in text] == []

            await tab.evaluate(
                "(() => { const page = document.querySelector('rapi-doc');"
                f" page.setApiKey('bearer', {ADMIN_KEY!r}); }})()"
            )
            await tab.evaluate(
                "(() => { const root = document.querySelector('rapi-doc').shadowRoot;"
                " const health = root.querySelector('[id=\"get-/admin/v1/health\"]');"
                " const request = health.querySelector('api-request').shadowRoot;"
                " request.querySelector('[part~=\"btn-try\"]').click(); })()"
            )
            await tab.text_with("Response Status: OK:200")

            said = [entry["entry"] for entry in tab.reported("Log.entryAdded")]
            assert [entry for entry in said if "favicon" not in entry.get("url", "")] == []
            assert tab.reported("Runtime.exceptionThrown") == []
            urls = {sent["request"]["url"] for sent in tab.reported("Network.requestWillBeSent")}
            assert {url for url in urls if not url.startswith((program.admin, "data:"))} == set()
            assert f"{program.admin}/admin/v1/health" in urls
