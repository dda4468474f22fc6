"""What is compared: how each contender is started, called, and charged for CPU and memory. I/O.

A contender is a name, a reason for its absence, and a context manager that runs it on the
gateway's CPU. Here are the simple ones; the gateway is in `gateway.py`, the rivals in `rivals.py`,
the table of all in `field.py`.
"""

from __future__ import annotations

import os
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from bench import proc
from bench.load import Target, pinned
from bench.scenarios import SCENARIOS, Scenario
from bench.settings import HERE, ROOT

MOCK_KEY = "mock-key"
WARM_UP_STREAM = "n2000"
DEPLOYMENTS = tuple(sorted({row.deployment for row in SCENARIOS} | {"n50-d5000", WARM_UP_STREAM}))
API_VERSION = "2024-10-21"
_READY_TIMEOUT_S = 120.0
_STOP_TIMEOUT_S = 15.0


class Unavailable(Exception):
    """A contender that cannot take part; the text is the reason."""


class StartFailed(Exception):
    """A contender that should take part and does not start; the text is what it said."""


@dataclass(frozen=True, slots=True)
class Cpus:
    """Which CPUs are whose. On two CPUs: one for the contender, one for everything else."""

    contender: tuple[int, ...]
    workers: tuple[int, ...]
    mock: int
    load: int


@dataclass(frozen=True, slots=True)
class Site:
    """Where a run takes place: its folder, its CPUs, the mock's address, a certificate. `tool` is
    a program under which our own contenders run."""

    folder: Path
    cpus: Cpus
    upstream: str
    certificate: Path
    authority: Path
    tool: tuple[str, ...] = ()

    def python(self, *words: str) -> list[str]:
        """The command of a Python program of ours."""
        return [*self.tool, sys.executable, *words]


@dataclass(frozen=True, slots=True)
class Running:
    """A contender at work.

    `target` tells how a deployment is called; `root` is the process that is charged, with all that
    descend from it (None: nothing is); `ready_s` the seconds from its start to the first answer.
    """

    target: Callable[[str], Target]
    root: int | None = None
    ready_s: float = 0.0

    def pids(self) -> list[int]:
        """The processes that are charged."""
        return proc.tree(self.root) if self.root else []

    def cpu_s(self) -> float:
        """CPU seconds of all of them so far."""
        return proc.cpu_s(self.pids())

    def port(self) -> int:
        """Where it listens."""
        return urlsplit(self.target("").url).port or 0


class Contender(Protocol):
    """One line of every table."""

    @property
    def name(self) -> str:
        """The name in scenarios and tables."""

    def absent(self) -> str | None:
        """Why it cannot take part; None when it can."""

    def start(self, site: Site, scenario: Scenario) -> AbstractContextManager[Running]:
        """Run it for a scenario. Raises Unavailable, StartFailed."""


def cpus(allowed: Sequence[int]) -> Cpus:
    """Share out the CPUs that the process may use. Pure."""
    if len(allowed) >= 4:
        return Cpus(tuple(allowed[:1]), tuple(allowed[:-2]), allowed[-2], allowed[-1])
    workers = tuple(allowed[: max(1, len(allowed) - 1)])
    return Cpus(tuple(allowed[:1]), workers, mock=allowed[-1], load=allowed[-1])


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def deployment_path(deployment: str) -> str:
    """Azure's own path of a deployment."""
    return f"/openai/deployments/{deployment}/chat/completions?api-version={API_VERSION}"


@contextmanager
def process(
    words: Sequence[str],
    *,
    cpus: Sequence[int],
    log: Path,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """A program on these CPUs with its output in `log`; ended with all its children."""
    with log.open("wb") as out:
        running = subprocess.Popen(
            pinned(cpus, words),
            stdout=out,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **(env or {})},
            cwd=cwd,
            start_new_session=True,
        )
    try:
        yield running
    finally:
        running.terminate()
        with suppress(subprocess.TimeoutExpired):
            running.wait(_STOP_TIMEOUT_S)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(running.pid, signal.SIGKILL)
        running.wait()


def wait_answer(running: subprocess.Popen[bytes], url: str, *, log: Path, authority: Path) -> None:
    """Until the program gives any HTTP answer. Raises StartFailed with the end of its log."""
    trust = ssl.create_default_context(cafile=authority)
    request = urllib.request.Request(url, data=b"{}", headers={"Connection": "close"})
    deadline = time.monotonic() + _READY_TIMEOUT_S
    while time.monotonic() < deadline and running.poll() is None:
        try:
            with urllib.request.urlopen(request, timeout=5, context=trust):
                return
        except urllib.error.HTTPError as error:
            error.close()
            return
        except OSError:
            time.sleep(0.005)
    tail = log.read_text(errors="replace").strip()[-400:]
    raise StartFailed(f"it did not start: {tail}")


@contextmanager
def simulator(site: Site) -> Iterator[str]:
    """Its address: the project's own stand-in for Azure, which has more operations than the mock
    and is slower."""
    port = free_port()
    log = site.folder / "simulator.log"
    words = [sys.executable, "-m", "aisix.simulator", "--port", str(port), "--api-key", MOCK_KEY]
    with process(words, cpus=[site.cpus.mock], log=log, cwd=ROOT) as program:
        url = f"http://127.0.0.1:{port}"
        wait_answer(program, url, log=log, authority=site.authority)
        yield url


@contextmanager
def serve(
    words: Sequence[str],
    target: Callable[[str], Target],
    *,
    site: Site,
    name: str,
    env: Mapping[str, str] | None = None,
) -> Iterator[Running]:
    """A contender that is one program and needs no more than to be started."""
    log = site.folder / f"{name}.log"
    began = time.monotonic()
    with process(words, cpus=site.cpus.contender, log=log, env=env, cwd=site.folder) as program:
        wait_answer(program, target(DEPLOYMENTS[0]).url, log=log, authority=site.authority)
        yield Running(target, program.pid, time.monotonic() - began)


@dataclass(frozen=True, slots=True)
class Direct:
    """The mock itself, without anything between."""

    name: str = "direct"

    def absent(self) -> str | None:
        """Never."""
        return None

    @contextmanager
    def start(self, site: Site, scenario: Scenario) -> Iterator[Running]:
        """Nothing to start."""

        def target(deployment: str) -> Target:
            return Target(
                site.upstream + deployment_path(deployment), deployment, (("api-key", MOCK_KEY),)
            )

        yield Running(target)


@dataclass(frozen=True, slots=True)
class StaticJson:
    """Tornado answering static JSON: the yardstick of the machine."""

    name: str = "static"

    def absent(self) -> str | None:
        """Never."""
        return None

    def start(self, site: Site, scenario: Scenario) -> AbstractContextManager[Running]:
        """The server of `static_json.py`."""
        port = free_port()
        words = site.python(str(HERE / "static_json.py"), str(port))
        return serve(words, forwarded(port), site=site, name=self.name)


@dataclass(frozen=True, slots=True)
class StockBaseline:
    """RequestHandler and CurlAsyncHTTPClient, forwarding and no more."""

    name: str = "baseline"

    def absent(self) -> str | None:
        """Never."""
        return None

    def start(self, site: Site, scenario: Scenario) -> AbstractContextManager[Running]:
        """The server of `baseline_proxy.py`, with as many clients as connections."""
        port = free_port()
        words = site.python(str(HERE / "baseline_proxy.py"), "--port", str(port))
        words += ["--upstream", site.upstream, "--key", MOCK_KEY]
        words += ["--clients", str(scenario.connections + 16)]
        if scenario.tls_in:
            words += ["--certificate", str(site.certificate)]
        scheme = "https" if scenario.tls_in else "http"
        return serve(words, forwarded(port, scheme), site=site, name=self.name)


def forwarded(port: int, scheme: str = "http") -> Callable[[str], Target]:
    """How a proxy is called that passes Azure's own path on and puts the key in."""

    def target(deployment: str) -> Target:
        url = f"{scheme}://127.0.0.1:{port}{deployment_path(deployment)}"
        return Target(url, deployment, (("Authorization", "Bearer sk-bench-caller"),))

    return target
