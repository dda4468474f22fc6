"""Gateway and simulator as processes of their own, as operators run them. I/O.

Everything goes over public doors: command line, environment, signals, sockets, standard error. No
event loop is needed, so blocking SDKs can be clients. Output is read by threads into lists; who
waits for a line waits on a condition, with a timeout.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import ssl
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlencode, urlsplit

ROOT = Path(__file__).parents[2]
PYTHON = (sys.executable, "-u")
ADMIN_KEY = "admin-local-only-change-me"
CALLER_KEY = "sk-azure-caller"
SIMULATOR_KEY = "simulator-key"
START_TIMEOUT_S = 20.0
WAIT_S = 10.0


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole HTTP answer; header names are lower-case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The inside of the OpenAI error envelope, which must be complete."""
        inner = self.json["error"]
        assert {"message", "type", "param", "code"} <= set(inner), inner
        return dict(inner)

    @property
    def events(self) -> list[Any]:
        """The data of each SSE event: JSON, or the text `[DONE]`."""
        datas = [
            line.removeprefix("data: ")
            for line in self.body.decode().splitlines()
            if line.startswith("data: ")
        ]
        return [data if data == "[DONE]" else json.loads(data) for data in datas]


def send(
    method: str,
    url: str,
    body: Any = None,
    *,
    headers: Mapping[str, str] | None = None,
    timeout_s: float = WAIT_S,
) -> Answer:
    """One request on a connection of its own. Bytes are sent as they are, all else as JSON."""
    place = urlsplit(url)
    host, port = place.hostname or "", place.port
    if place.scheme == "https":
        trusting = ssl._create_unverified_context()  # our own simulator
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(
            host, port, timeout=timeout_s, context=trusting
        )
    else:
        connection = http.client.HTTPConnection(host, port, timeout=timeout_s)
    sent = dict(headers or {})
    if body is not None and not isinstance(body, bytes):
        body = json.dumps(body).encode()
        sent.setdefault("Content-Type", "application/json")
    target = (place.path or "/") + (f"?{place.query}" if place.query else "")
    try:
        connection.request(method, target, body=body, headers=sent)
        answer = connection.getresponse()
        named = {name.lower(): value for name, value in answer.getheaders()}
        return Answer(answer.status, named, answer.read())
    finally:
        connection.close()


@dataclass(frozen=True, slots=True)
class Ended:
    """A process that has ended: its exit status and what it wrote."""

    status: int
    stdout: str
    stderr: str


class Program:
    """A running process whose output can be waited for."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path = ROOT,
        preexec: Callable[[], None] | None = None,
    ) -> None:
        self.process = subprocess.Popen(
            command,
            cwd=cwd,
            env=clean_env(env),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="backslashreplace",
            preexec_fn=preexec,  # noqa: PLW1509 - resource limits of the child; no threads hold locks
            start_new_session=True,
        )
        self._changed = threading.Condition()
        self._lines: dict[str, list[str]] = {"stdout": [], "stderr": []}
        self._open = 2
        self._readers = [
            threading.Thread(target=self._read, args=(name, stream), daemon=True)
            for name, stream in (("stdout", self.process.stdout), ("stderr", self.process.stderr))
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, name: str, stream: IO[str] | None) -> None:
        for line in stream or ():
            with self._changed:
                self._lines[name].append(line.rstrip("\n"))
                self._changed.notify_all()
        with self._changed:
            self._open -= 1
            self._changed.notify_all()

    def lines(self, name: str = "stderr") -> list[str]:
        """What it has written so far."""
        with self._changed:
            return list(self._lines[name])

    def wait_for(
        self,
        matches: Callable[[str], object],
        *,
        name: str = "stderr",
        count: int = 1,
        timeout_s: float = WAIT_S,
    ) -> list[str]:
        """The lines that match, as soon as there are `count`. Raises AssertionError."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while True:
                found = [line for line in self._lines[name] if matches(line)]
                if len(found) >= count:
                    return found
                left = deadline - time.monotonic()
                if left <= 0 or self._open == 0:
                    said = "\n".join(self._lines["stdout"] + self._lines["stderr"])
                    why = "ended first" if self._open == 0 else f"not within {timeout_s} s"
                    raise AssertionError(f"the line did not come ({why}); there is:\n{said}")
                self._changed.wait(left)

    def send_signal(self, number: int) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    def press_ctrl_c(self) -> None:
        """SIGINT to it and to all it started, as a terminal does."""
        os.killpg(self.process.pid, signal.SIGINT)

    def wait(self, timeout_s: float = WAIT_S) -> Ended:
        """Wait for the end, killing what does not come to one."""
        try:
            status = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            said = "\n".join(self.lines())
            raise AssertionError(f"still running after {timeout_s} s:\n{said}") from None
        for reader in self._readers:
            reader.join(WAIT_S)
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()
        return Ended(status, "\n".join(self.lines("stdout")), "\n".join(self.lines("stderr")))

    def stop(self, number: int = signal.SIGTERM) -> Ended:
        """Signal and wait."""
        self.send_signal(number)
        return self.wait()

    def close(self) -> None:
        """End it, whatever it is doing."""
        if self.process.poll() is None:
            self.process.kill()
        self.wait()


def clean_env(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """This environment without what configures a gateway or comes from make, and with `more`."""
    env = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("AISIX_", "MAKE", "MFLAGS"))
    }
    env.update(more or {})
    return env


class SimulatorProgram(Program):
    """`python -m aisix.simulator`, and its control endpoint."""

    def __init__(self, *arguments: str) -> None:
        super().__init__([*PYTHON, "-m", "aisix.simulator", "--port", "0", *arguments])
        line = self.wait_for(
            lambda text: "listening on" in text, name="stdout", timeout_s=START_TIMEOUT_S
        )[0]
        self.url = line.split()[-1]
        self.port = urlsplit(self.url).port or 0

    def control(self, method: str, path: str, body: Any = None) -> Any:
        """Ask the control endpoint. Raises AssertionError when it refuses."""
        answer = send(method, f"{self.url}/_sim/{path}", body)
        assert answer.status == 200, answer.body
        return answer.json

    def requests(self, *, wait: int = 0, **filters: str) -> list[dict[str, Any]]:
        """What came in; with `wait`, as soon as there are so many."""
        query = urlencode({**filters, "wait": wait, "timeout_ms": int(WAIT_S * 1000)})
        found = self.control("GET", f"requests?{query}")["requests"]
        return [record for record in found if record["operation"] != "openid-configuration"]

    def script(self, deployment: str, script: str, times: int = 1) -> None:
        """Queue a script for the next requests of a deployment."""
        self.control("POST", "script", {"deployment": deployment, "script": script, "times": times})

    def release(self) -> None:
        """Let stalled and hanging answers go on."""
        self.control("POST", "release")

    def clear(self) -> None:
        """Forget scripts and records."""
        self.control("DELETE", "script")
        self.control("DELETE", "requests")


class GatewayProgram(Program):
    """`server.py` on free ports with its store in `folder`."""

    def __init__(
        self,
        folder: Path,
        *,
        settings: Mapping[str, str] | None = None,
        config: Path = ROOT / "config" / "config.yaml",
        preexec: Callable[[], None] | None = None,
    ) -> None:
        env = {
            "AISIX_PROXY__ADDR": "127.0.0.1:0",
            "AISIX_ADMIN__ADDR": "127.0.0.1:0",
            "AISIX_OBSERVABILITY__METRICS__PROMETHEUS__ADDR": "127.0.0.1:0",
            "AISIX_STORE__PATH": str(folder / "aisix.db"),
            **(settings or {}),
        }
        self.began = time.monotonic()
        super().__init__(
            [*PYTHON, str(ROOT / "server.py"), "--config", str(config)], env=env, preexec=preexec
        )
        self.proxy = self.admin = self.metrics = ""
        self.ready_s = 0.0

    def wait_ready(self) -> None:
        """Until it accepts; its addresses are then known."""
        line = self.wait_for(lambda text: '"gateway.ready"' in text, timeout_s=START_TIMEOUT_S)[0]
        self.ready_s = time.monotonic() - self.began
        ready = json.loads(line)
        self.proxy, self.admin, self.metrics = ready["proxy"], ready["admin"], ready["metrics"]

    # --- the log --------------------------------------------------------------------------------

    def events(self, event: str, *, count: int = 1, timeout_s: float = WAIT_S) -> list[Any]:
        """The log records of one event, as soon as there are `count`."""
        found = self.wait_for(
            lambda text: f'"event":"{event}"' in text, count=count, timeout_s=timeout_s
        )
        return [json.loads(line) for line in found]

    def access_line(self, request_id: str) -> dict[str, Any]:
        """The access line of one request; there must be exactly one."""
        found = self.wait_for(
            lambda text: '"request.completed"' in text and f'"{request_id}"' in text
        )
        assert len(found) == 1, found
        line: dict[str, Any] = json.loads(found[0])
        return line

    # --- its doors ------------------------------------------------------------------------------

    def manage(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """A request to the admin API."""
        sent = {"Authorization": f"Bearer {ADMIN_KEY}", **headers}
        return send(method, f"{self.admin}/admin/v1/{path}", body, headers=sent)

    def create(self, kind: str, **fields: Any) -> str:
        """Create a resource; its id."""
        answer = self.manage("POST", kind, fields)
        assert answer.status == 200, answer.body
        return str(answer.json["id"])

    def create_provider_key(self, api_base: str, **fields: Any) -> str:
        """A provider key that opens the simulator."""
        defaults = {
            "display_name": f"azure-{uuid.uuid4().hex[:8]}",
            "provider": "azure",
            "adapter": "azure-openai",
            "secret": SIMULATOR_KEY,
            "api_base": api_base,
        }
        return self.create("provider_keys", **{**defaults, **fields})

    def create_model(self, alias: str, deployment: str, provider_key_id: str, **fields: Any) -> str:
        """An alias for a deployment."""
        defaults = {
            "display_name": alias,
            "provider": "azure",
            "model_name": deployment,
            "provider_key_id": provider_key_id,
        }
        return self.create("models", **{**defaults, **fields})

    def create_caller_key(self, key: str = CALLER_KEY, **fields: Any) -> str:
        """A caller key that may use every model."""
        return self.create("apikeys", **{"key": key, "allowed_models": ["*"], **fields})

    def call(self, path: str, body: Any = None, *, key: str = CALLER_KEY, **headers: str) -> Answer:
        """A request to the proxy: POST with a body, GET without. `_` in header names is `-`."""
        sent = {"Authorization": f"Bearer {key}"}
        sent.update({name.replace("_", "-"): value for name, value in headers.items()})
        return send("GET" if body is None else "POST", self.proxy + path, body, headers=sent)

    def chat(self, alias: str, *, key: str = CALLER_KEY, **fields: Any) -> Answer:
        """A chat completion; what is no header (`x_…`) is a field of the body."""
        headers = {name: fields.pop(name) for name in list(fields) if name.startswith("x_")}
        body = {"model": alias, "messages": [{"role": "user", "content": "ping"}], **fields}
        return self.call("/v1/chat/completions", body, key=key, **headers)

    def scrape(self) -> str:
        """The metrics."""
        return send("GET", f"{self.metrics}/metrics").body.decode()


@dataclass(frozen=True, slots=True)
class Stand:
    """A gateway in front of a simulator: a provider key, a caller key, and aliases as needed."""

    azure: SimulatorProgram
    gateway: GatewayProgram
    provider_key_id: str

    def alias(self, deployment: str, **fields: Any) -> str:
        """A new alias for a deployment, whose name may hold a script (docs/simulator.md)."""
        name = f"{deployment}.{uuid.uuid4().hex[:8]}"
        self.gateway.create_model(name, deployment, self.provider_key_id, **fields)
        return name


@contextmanager
def simulator(*arguments: str) -> Iterator[SimulatorProgram]:
    """A simulator process."""
    program = SimulatorProgram(*arguments)
    try:
        yield program
    finally:
        program.close()


@contextmanager
def gateway(
    folder: Path, settings: Mapping[str, str] | None = None, **options: Any
) -> Iterator[GatewayProgram]:
    """A gateway process that is ready. `settings` are environment variables."""
    program = GatewayProgram(folder, settings=settings, **options)
    try:
        program.wait_ready()
        yield program
    finally:
        program.close()


@contextmanager
def stand(
    folder: Path, settings: Mapping[str, str] | None = None, arguments: Sequence[str] = ()
) -> Iterator[Stand]:
    """Simulator, gateway, and the resources to go from one to the other."""
    with simulator(*arguments) as azure, gateway(folder, settings) as program:
        provider_key_id = program.create_provider_key(azure.url)
        program.create_caller_key()
        yield Stand(azure, program, provider_key_id)


def start_refused(folder: Path, settings: Mapping[str, str] | None = None, **options: Any) -> Ended:
    """A gateway that is expected to give up at once."""
    program = GatewayProgram(folder, settings=settings, **options)
    with contextlib.closing(program):
        return program.wait(START_TIMEOUT_S)
