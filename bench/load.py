"""Drives the load generator: a target and a scenario in, the figures of one window out. I/O."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bench.scenarios import Scenario
from bench.settings import BIN, HERE, ROOT

PROMPT = "Write one line about gateways. " * 8
# what an OpenAI SDK sends besides Host, Accept, Content-Type, Content-Length and the key
SDK_HEADERS = (
    ("User-Agent", "OpenAI/Python 3.54.0"),
    ("X-Stainless-Lang", "python"),
    ("X-Stainless-Package-Version", "3.54.0"),
    ("X-Stainless-OS", "Linux"),
    ("X-Stainless-Arch", "x64"),
    ("X-Stainless-Runtime", "CPython"),
    ("X-Stainless-Runtime-Version", "3.11.7"),
    ("X-Stainless-Async", "false"),
    ("X-Stainless-Retry-Count", "0"),
    ("X-Stainless-Read-Timeout", "600"),
    ("Accept-Encoding", "gzip, deflate"),
)
# the load generator replaces these by numbers (its option -V)
KEY_MARK = "@kkkk@"
ALIAS_MARK = "@mm@"
_IMAGE_FROM_BYTES = 1_000_000
_OPEN_TIMEOUT_S = 120.0


class VoidWindow(Exception):
    """A window that says nothing, because an answer was wrong or missing."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where one contender is called and how: the URL, the model's name, headers of its own.

    Its headers replace those of the SDK that have the same name.
    """

    url: str
    model: str
    headers: tuple[tuple[str, str], ...] = ()

    def all_headers(self) -> dict[str, str]:
        """The SDK's headers and its own."""
        return {**dict(SDK_HEADERS), **dict(self.headers)}


def compile_tools() -> None:
    """Build the load generator and the mock. Exits with advice when there is no compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        sys.exit("bench: a C compiler is needed (on Debian: apt-get install gcc libc6-dev)")
    BIN.mkdir(exist_ok=True)
    for name in ("lg", "mockaz"):
        source, program = HERE / f"{name}.c", BIN / name
        if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
            subprocess.run(
                [compiler, "-O2", "-pthread", "-w", "-o", program, source], check=True, cwd=HERE
            )


def is_pinning() -> bool:
    """Whether programs can be kept on their CPUs."""
    return shutil.which("taskset") is not None


def pinned(cpus: Sequence[int], command: Sequence[str]) -> list[str]:
    """The command, on these CPUs."""
    if not is_pinning():
        return list(command)
    return ["taskset", "-c", ",".join(map(str, cpus)), *command]


def request_body(model: str, *, chunks: int = 0, body_bytes: int = 0) -> bytes:
    """A chat request; a large one carries a long text, a very large one an image."""
    content: Any = PROMPT
    if body_bytes >= _IMAGE_FROM_BYTES:
        picture = {"url": "data:image/png;base64," + "iVBORw0KGgo" * (body_bytes // 11)}
        content = [{"type": "text", "text": PROMPT}, {"type": "image_url", "image_url": picture}]
    elif body_bytes:
        content = 'A line of a "document".\n' * (body_bytes // 27)
    body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": content}]}
    if chunks:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return json.dumps(body).encode()


def command(target: Target, scenario: Scenario, body: Path) -> list[str]:
    """The load generator's command for this scenario, without its times."""
    words = [str(BIN / "lg"), "-u", target.url, "-c", str(scenario.connections), "-B", str(body)]
    for name, value in target.all_headers().items():
        words += ["-H", f"{name}: {value}"]
    if scenario.chunks:
        words += ["-s", str(scenario.chunks)]
    if scenario.rate:
        words += ["-R", str(scenario.rate)]
    if scenario.limit_rps:
        words += ["-x", "429"]
    if scenario.lockstep:
        words.append("-g")
    if scenario.keys > 1:
        words += ["-V", f"{scenario.keys}:{scenario.aliases}"]
    return words


class LoadGenerator:
    """Runs load generators on a CPU of their own, with bodies kept in a folder."""

    def __init__(self, folder: Path, *, cpu: int) -> None:
        self._folder = folder
        self._cpu = cpu

    def window(
        self,
        target: Target,
        scenario: Scenario,
        *,
        seconds: float,
        warm_up_s: float,
        sample: Callable[[], float],
        extra: Sequence[str] = (),
    ) -> dict[str, float]:
        """One window of load. `sample` is called at its begin and at its end.

        The figures are the load generator's, and `sampled`: the difference of the two samples.
        Raises VoidWindow when an answer was wrong.
        """
        words = [*self._command(target, scenario), "-d", str(seconds), "-w", str(warm_up_s)]
        samples: list[float] = []
        lines = self._lines([*words, *extra], samples, sample)
        figures = json.loads(lines)
        answered = figures["ok"] + figures["refused"]
        if figures["err"] or not answered or len(samples) != 2:
            errors = {name: number for name, number in figures["errors"].items() if number}
            failed = f"{figures['err']} failed of {answered + figures['err']}: {errors}"
            raise VoidWindow(failed if figures["err"] else "no answer within the window")
        numbers = {k: float(v) for k, v in figures.items() if isinstance(v, int | float)}
        return {**numbers, "sampled": samples[1] - samples[0]}

    def _command(self, target: Target, scenario: Scenario) -> list[str]:
        body = self._folder / f"body-{scenario.deployment}.json"
        body.write_bytes(
            request_body(target.model, chunks=scenario.chunks, body_bytes=scenario.body_bytes)
        )
        return command(target, scenario, body)

    def _lines(self, words: list[str], samples: list[float], sample: Callable[[], float]) -> str:
        last = ""
        with subprocess.Popen(
            pinned([self._cpu], words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None and process.stderr is not None  # noqa: PT018
            for line in process.stdout:
                if line.strip() in ("begin", "end"):
                    samples.append(sample())
                else:
                    last = line
            complaint = process.stderr.read()
        if process.returncode or not last:
            raise VoidWindow(f"the load generator failed: {complaint.strip()}")
        if complaint:
            print(f"  {complaint.strip()}", file=sys.stderr)
        return last

    def bulk(self, target: Target, scenario: Scenario) -> dict[str, float]:
        """Run `bench.bulk`, a process of its own; its figures. Raises VoidWindow."""
        credential = dict(target.headers)["Authorization"].removeprefix("Bearer ")
        place = urlsplit(target.url)
        words = [sys.executable, "-m", "bench.bulk", "--url", f"{place.scheme}://{place.netloc}"]
        words += ["--key", credential, "--model", target.model]
        words += ["--mb", str(scenario.body_bytes // 1_000_000)]
        words += ["--readers", str(scenario.connections)]
        ended = subprocess.run(
            pinned([self._cpu], words), cwd=ROOT, capture_output=True, text=True, check=False
        )
        if ended.returncode:
            raise VoidWindow(ended.stderr.strip()[-300:])
        return {name: float(figure) for name, figure in json.loads(ended.stdout).items()}

    @contextmanager
    def idle(self, target: Target, scenario: Scenario) -> Iterator[None]:
        """Hold the scenario's connections open, each with a stream past its first chunk.

        Raises VoidWindow when not all of them opened, or one ended meanwhile.
        """
        words = [*self._command(target, scenario), "-i"]
        process = subprocess.Popen(pinned([self._cpu], words), stdout=subprocess.PIPE)
        try:
            _wait_open(process)
            yield
            if process.poll() is not None:
                raise VoidWindow("an idle stream ended by itself")
        finally:
            process.terminate()
            process.communicate(timeout=30)


def _wait_open(process: subprocess.Popen[bytes]) -> None:
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], _OPEN_TIMEOUT_S)
    said = os.read(process.stdout.fileno(), 4096) if ready else b"nothing in time"
    if said.strip() != b"open":
        raise VoidWindow(f"not all streams opened: {said.decode(errors='replace').strip()}")


def settle() -> None:
    """Let what is under way come to rest before memory is read."""
    time.sleep(0.5)
