"""`make demo`: the simulator and the gateway side by side, and a first conversation through them.
I/O.

Everything goes over the public doors: two processes, the admin API, the proxy. The store lives in a
temporary folder, so that a demo leaves nothing behind and never meets real resources.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

ADMIN_KEY = "admin-local-only-change-me"
CALLER_KEY = "sk-azure-caller"
ALIAS = "gpt-4o-azure"
DEPLOYMENT = "gpt4o-prod"
SIMULATOR_KEY = "simulator-key"
START_TIMEOUT_S = 20.0
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_ROOT = Path(__file__).resolve().parents[2]


class DemoFailed(Exception):
    """The demo cannot go on; the text says why and what to do."""


class Child:
    """A process of the demo; its output goes to a file, lines of interest to the demo."""

    def __init__(self, name: str, command: Sequence[str], env: dict[str, str], log: Path) -> None:
        self.name = name
        self._log = log
        self.lines: queue.Queue[str | None] = queue.Queue()
        self.process = subprocess.Popen(
            command,
            cwd=_ROOT,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        # a signal taken here would leave the main thread, which is to act on it, asleep in its wait
        signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
        stream: IO[str] | None = self.process.stdout
        with self._log.open("w", encoding="utf-8") as log:
            for line in stream or ():
                log.write(line)
                log.flush()
                self.lines.put(line.rstrip("\n"))
        self.lines.put(None)

    def wait_for(self, text: str) -> str:
        """The first line that holds `text`. Raises DemoFailed when the process ends instead."""
        seen: list[str] = []
        while True:
            try:
                line = self.lines.get(timeout=START_TIMEOUT_S)
            except queue.Empty:
                raise DemoFailed(f"{self.name} did not start in {START_TIMEOUT_S:.0f} s") from None
            if line is None:
                raise DemoFailed(f"{self.name} stopped:\n  " + "\n  ".join(seen[-5:]))
            if text in line:
                return line
            seen.append(line)

    def stop(self) -> None:
        """SIGTERM, and SIGKILL for one that does not listen."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def check_port(name: str, port: int) -> None:
    """Raises DemoFailed when `port` is taken."""
    if port == 0:
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise DemoFailed(
                f"port {port} ({name}) is in use: stop what runs there, or choose another with "
                f"`{sys.executable} -m aisix.simulator.demo --{name}-port N`"
            ) from error


def request(url: str, key: str, body: dict[str, Any]) -> urllib.request.Request:
    """A JSON POST with a Bearer key."""
    return urllib.request.Request(
        url,
        data=json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
    )


def post(url: str, key: str, body: dict[str, Any]) -> dict[str, Any]:
    """The JSON answer. Raises DemoFailed with the gateway's own words."""
    try:
        with urllib.request.urlopen(request(url, key, body), timeout=30) as answer:
            document: dict[str, Any] = json.load(answer)
            return document
    except urllib.error.HTTPError as error:
        raise DemoFailed(f"POST {url}: {error.code} {error.read().decode()}") from error


def stream(url: str, key: str, body: dict[str, Any]) -> Iterator[str]:
    """The text of a streamed chat completion, piece by piece."""
    with urllib.request.urlopen(request(url, key, body), timeout=30) as answer:
        for raw in answer:
            line = raw.decode().strip()
            if not line.startswith("data: {"):
                continue
            for choice in json.loads(line[len("data: ") :])["choices"]:
                yield choice["delta"].get("content") or ""


def create_resources(admin: str, simulator: str) -> None:
    """The guide's three resources, with the simulator as the Azure resource."""
    provider_key = post(
        f"{admin}/admin/v1/provider_keys",
        ADMIN_KEY,
        {
            "display_name": "azure-prod",
            "provider": "azure",
            "adapter": "azure-openai",
            "secret": SIMULATOR_KEY,
            "api_base": simulator,
        },
    )
    print(f"  provider key  azure-prod     -> {simulator}")
    post(
        f"{admin}/admin/v1/models",
        ADMIN_KEY,
        {
            "display_name": ALIAS,
            "provider": "azure",
            "model_name": DEPLOYMENT,
            "provider_key_id": provider_key["id"],
        },
    )
    print(f"  model         {ALIAS}   -> deployment {DEPLOYMENT}")
    post(
        f"{admin}/admin/v1/apikeys",
        ADMIN_KEY,
        {
            "key_hash": hashlib.sha256(CALLER_KEY.encode()).hexdigest(),
            "allowed_models": [ALIAS],
        },
    )
    print(f"  caller key    {CALLER_KEY} may use {ALIAS}")


def converse(proxy: str) -> None:
    """One whole and one streamed chat completion, shown as they arrive."""
    url = f"{proxy}/v1/chat/completions"
    messages = [{"role": "user", "content": "Say hello from Azure OpenAI."}]
    body: dict[str, Any] = {"model": ALIAS, "messages": messages}
    answer = post(url, CALLER_KEY, body)
    print("\n==> one chat completion")
    print(json.dumps(answer, indent=2))
    print("\n==> the same, streamed")
    for piece in stream(url, CALLER_KEY, {**body, "stream": True}):
        print(piece, end="", flush=True)
    print()


def farewell(addresses: dict[str, str]) -> None:
    """What to try next."""
    print("\n==> up until Ctrl-C")
    print(f"  proxy      {addresses['proxy']}   caller key {CALLER_KEY}")
    print(f"  admin      {addresses['admin']}   admin key  {ADMIN_KEY}   (page: /admin/docs)")
    print(f"  metrics    {addresses['metrics']}/metrics")
    print(f"  simulator  {addresses['simulator']}   resource key {SIMULATOR_KEY}")
    print(
        f"""\nNext:
curl -sS -N {addresses["proxy"]}/v1/chat/completions \\
  -H "Authorization: Bearer {CALLER_KEY}" \\
  -H "Content-Type: application/json" \\
  -d '{{"model": "{ALIAS}", "stream": true, "messages": [{{"role": "user", "content": "Hi"}}]}}'""",
        flush=True,
    )


def run(arguments: argparse.Namespace, folder: Path) -> None:
    """Start both, talk, wait for the end. Raises DemoFailed."""
    for name in ("proxy", "admin", "metrics", "simulator"):
        check_port(name, getattr(arguments, f"{name}_port"))
    children: list[Child] = []
    env = {
        **os.environ,
        "AISIX_PROXY__ADDR": f"127.0.0.1:{arguments.proxy_port}",
        "AISIX_ADMIN__ADDR": f"127.0.0.1:{arguments.admin_port}",
        "AISIX_ADMIN__ADMIN_KEYS": ADMIN_KEY,
        "AISIX_OBSERVABILITY__METRICS__PROMETHEUS__ADDR": f"127.0.0.1:{arguments.metrics_port}",
        "AISIX_STORE__PATH": str(folder / "aisix.db"),
    }
    try:
        print("==> starting the Azure simulator and the gateway", flush=True)
        simulator = Child(
            "the simulator",
            [
                sys.executable,
                "-u",
                "-m",
                "aisix.simulator",
                "--port",
                str(arguments.simulator_port),
                "--chunk-interval-ms",
                "60",
            ],
            env,
            folder / "simulator.log",
        )
        children.append(simulator)
        line = simulator.wait_for("simulator listening on ")
        addresses = {"simulator": line.split("listening on ", 1)[1].split()[0]}
        gateway = Child(
            "the gateway",
            [sys.executable, "server.py", "--config", "config/config.yaml"],
            env,
            folder / "gateway.log",
        )
        children.append(gateway)
        ready = json.loads(gateway.wait_for("gateway.ready"))
        addresses |= {name: ready[name] for name in ("proxy", "admin", "metrics")}
        print("==> creating the guide's three resources", flush=True)
        create_resources(addresses["admin"], addresses["simulator"])
        converse(addresses["proxy"])
        farewell(addresses)
        gateway.process.wait()
        raise DemoFailed("the gateway stopped; its log:\n" + (folder / "gateway.log").read_text())
    finally:
        for child in reversed(children):
            child.stop()


def stop_like_ctrl_c() -> None:
    """Let every way of ending the demo end its children too, a closed terminal included.

    What a shell or nohup has the demo ignore stays ignored, but for SIGTERM.
    """
    for number in _STOP_SIGNALS:
        if number == signal.SIGTERM or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)


def _interrupt(_number: int, _frame: object) -> None:
    # once: a second Ctrl-C must not interrupt the stopping of the children
    for number in _STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def main() -> int:
    """Run the demo; the exit status is 0 after Ctrl-C, 1 when something is in the way."""
    parser = argparse.ArgumentParser(description="AISIX demo: simulator and gateway")
    for name, port in (("proxy", 3000), ("admin", 3001), ("metrics", 9090), ("simulator", 3010)):
        parser.add_argument(f"--{name}-port", type=int, default=port, help="0 = any free port")
    arguments = parser.parse_args()
    stop_like_ctrl_c()
    with tempfile.TemporaryDirectory(prefix="aisix-demo-") as folder:
        try:
            run(arguments, Path(folder))
        except DemoFailed as error:
            print(f"demo: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            with contextlib.suppress(OSError):
                print("\nstopped", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
