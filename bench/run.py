"""Runs the gateway against direct calls and prints medians of interleaved rounds. I/O.

Every figure is read from outside the gateway: latencies by the load generator, CPU time and memory
from /proc. All traffic stays on 127.0.0.1.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
BIN = HERE / "bin"
SECONDS = float(os.environ.get("BENCH_SECONDS", "5"))
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "3"))
ADMIN_KEY = "bench-admin-key"
CALLER_KEY = "sk-bench-0123456789abcdef0123456789abcdef"
MOCK_KEY = "mock-key"
PROMPT = "Write one line about gateways. " * 8
SDK_HEADERS = {
    "User-Agent": "OpenAI/Python 3.54.0",
    "X-Stainless-Lang": "python",
    "X-Stainless-Package-Version": "3.54.0",
    "X-Stainless-OS": "Linux",
    "X-Stainless-Arch": "x64",
    "X-Stainless-Runtime": "CPython",
    "X-Stainless-Runtime-Version": "3.11.7",
    "X-Stainless-Async": "false",
    "X-Stainless-Retry-Count": "0",
    "X-Stainless-Read-Timeout": "600",
    "Accept-Encoding": "gzip, deflate",
}


@dataclass(frozen=True, slots=True)
class Scenario:
    """One load: what the mock does, how many connections, streamed chunks (0 = not a stream)."""

    name: str
    deployment: str
    connections: int
    chunks: int = 0


SCENARIOS = (
    Scenario("echo, c=1", "echo", 1),
    Scenario("echo, c=64", "echo", 64),
    Scenario("stream of 50 chunks, burst, c=1", "n50", 1, chunks=50),
    Scenario("stream of 50 chunks, burst, c=64", "n50", 64, chunks=50),
    Scenario("stream of 50 chunks, 5 ms apart, c=1", "n50-d5000", 1, chunks=50),
    Scenario("stream of 50 chunks, 5 ms apart, c=64", "n50-d5000", 64, chunks=50),
)


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


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def cpus() -> tuple[int, int]:
    """The CPU for the gateway and the one for the rest."""
    allowed = sorted(os.sched_getaffinity(0))
    return allowed[0], allowed[-1]


def pinned(cpu: int, command: list[str]) -> list[str]:
    """The command, on one CPU."""
    taskset = shutil.which("taskset")
    return [taskset, "-c", str(cpu), *command] if taskset else command


@contextmanager
def mock(port: int, cpu: int) -> Iterator[None]:
    """The mock of Azure."""
    command = pinned(cpu, [str(BIN / "mockaz"), "-p", str(port), "-k", MOCK_KEY])
    process = subprocess.Popen(command)
    try:
        wait_port(port)
        yield
    finally:
        process.terminate()
        process.wait()


def yardstick(cpu: int, other: int) -> float:
    """CPU µs per request of Tornado answering static JSON, c=64: what this machine makes of it."""
    port = free_port()
    command = [sys.executable, str(HERE / "baseline.py"), str(port)]
    process = subprocess.Popen(pinned(cpu, command))
    try:
        wait_port(port)
        before = cpu_s(process.pid)
        scenario = Scenario("static", "echo", 64)
        figures = load(f"http://127.0.0.1:{port}/", "none", scenario, other)
        share = SECONDS / (SECONDS + min(2.0, SECONDS))
        return (cpu_s(process.pid) - before) * share / float(figures["ok"]) * 1e6
    finally:
        process.terminate()
        process.wait()


def cpu_s(pid: int) -> float:
    """CPU seconds of all threads of a process so far."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def wait_port(port: int) -> None:
    """Until something listens."""
    for _ in range(500):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.01)


@dataclass(slots=True)
class Gateway:
    """A running gateway."""

    process: subprocess.Popen[str]
    proxy: str
    admin: str
    start_s: float

    def cpu_s(self) -> float:
        """CPU seconds of all its threads so far."""
        return cpu_s(self.process.pid)

    def rss_mb(self) -> float:
        """Resident memory."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
        return 0.0


@contextmanager
def gateway(folder: Path, cpu: int) -> Iterator[Gateway]:
    """The gateway with its shipped configuration, everything on, logging to a file."""
    env = {
        **os.environ,
        "AISIX_PROXY__ADDR": "127.0.0.1:0",
        "AISIX_ADMIN__ADDR": "127.0.0.1:0",
        "AISIX_ADMIN__ADMIN_KEYS": ADMIN_KEY,
        "AISIX_OBSERVABILITY__METRICS__PROMETHEUS__ADDR": "127.0.0.1:0",
        "AISIX_STORE__PATH": str(folder / "aisix.db"),
    }
    log = folder / "gateway.log"
    began = time.monotonic()
    with log.open("w") as out:
        process = subprocess.Popen(
            pinned(cpu, [sys.executable, "server.py", "--config", "config/config.yaml"]),
            cwd=ROOT,
            env=env,
            stderr=out,
            text=True,
        )
    try:
        ready = wait_ready(process, log)
        yield Gateway(process, ready["proxy"], ready["admin"], time.monotonic() - began)
    finally:
        process.terminate()
        process.wait()


def wait_ready(process: subprocess.Popen[str], log: Path) -> dict[str, Any]:
    """The log line that says it accepts requests."""
    for _ in range(2000):
        for line in log.read_text().splitlines():
            if '"gateway.ready"' in line:
                document: dict[str, Any] = json.loads(line)
                return document
        if process.poll() is not None:
            break
        time.sleep(0.005)
    sys.exit(f"bench: the gateway did not start:\n{log.read_text()}")


def create(admin: str, kind: str, body: dict[str, Any]) -> str:
    """A resource through the admin API; its id."""
    request = urllib.request.Request(
        f"{admin}/admin/v1/{kind}",
        data=json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {ADMIN_KEY}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        return str(json.load(answer)["id"])


def prepare(admin: str, mock_url: str) -> None:
    """One provider key, a model for each scenario's deployment, one limited caller key."""
    provider_key = create(
        admin,
        "provider_keys",
        {
            "display_name": "mock",
            "provider": "azure",
            "adapter": "azure-openai",
            "secret": MOCK_KEY,
            "api_base": mock_url,
        },
    )
    for name in sorted({scenario.deployment for scenario in SCENARIOS}):
        create(
            admin,
            "models",
            {
                "display_name": name,
                "provider": "azure",
                "model_name": name,
                "provider_key_id": provider_key,
            },
        )
    create(
        admin,
        "apikeys",
        {
            "key_hash": hashlib.sha256(CALLER_KEY.encode()).hexdigest(),
            "allowed_models": ["*"],
            "rate_limit": {"rpm": 100_000_000, "tpm": 10_000_000_000, "concurrency": 10_000},
        },
    )


def load(url: str, key: str, scenario: Scenario, cpu: int) -> dict[str, Any]:
    """One window of load. Exits when an answer was wrong: the window would say nothing."""
    body: dict[str, Any] = {
        "model": scenario.deployment,
        "messages": [{"role": "user", "content": PROMPT}],
    }
    if scenario.chunks:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    command = [
        str(BIN / "lg"),
        *("-u", url),
        *("-c", str(scenario.connections)),
        *("-d", str(SECONDS)),
        *("-w", str(min(2.0, SECONDS))),
        *("-b", json.dumps(body)),
        *("-H", f"Authorization: Bearer {key}"),
    ]
    for name, value in SDK_HEADERS.items():
        command += ["-H", f"{name}: {value}"]
    if scenario.chunks:
        command += ["-s", str(scenario.chunks)]
    done = subprocess.run(pinned(cpu, command), capture_output=True, text=True, check=True)
    figures: dict[str, Any] = json.loads(done.stdout)
    if figures["err"] or not figures["ok"]:
        sys.exit(f"bench: {scenario.name}: {figures['err']} failed requests\n{done.stderr}")
    return figures


def measure(scenario: Scenario, running: Gateway, mock_url: str, cpu: int) -> dict[str, Any]:
    """Interleaved rounds, direct and through the gateway; medians."""
    path = f"/openai/deployments/{scenario.deployment}/chat/completions?api-version=2024-10-21"
    direct: list[dict[str, Any]] = []
    through: list[dict[str, Any]] = []
    for _ in range(ROUNDS):
        direct.append(load(mock_url + path, MOCK_KEY, scenario, cpu))
        before = running.cpu_s()
        figures = load(f"{running.proxy}/v1/chat/completions", CALLER_KEY, scenario, cpu)
        # warm-up requests are paid in CPU too: scale by the whole time of the window
        share = SECONDS / (SECONDS + min(2.0, SECONDS))
        figures["cpu_us"] = (running.cpu_s() - before) * share / figures["ok"] * 1e6
        through.append(figures)

    def median(rows: list[dict[str, Any]], name: str) -> float:
        middle: float = statistics.median(row[name] for row in rows)
        return middle

    result: dict[str, Any] = {
        "scenario": scenario.name,
        "direct_rps": median(direct, "rps"),
        "rps": median(through, "rps"),
        "p50_us": median(through, "p50"),
        "p99_us": median(through, "p99"),
        "added_p50_us": median(through, "p50") - median(direct, "p50"),
        "cpu_us": median(through, "cpu_us"),
        "rss_mb": running.rss_mb(),
    }
    if scenario.chunks:
        result["added_ttft_us"] = median(through, "ttft_p50") - median(direct, "ttft_p50")
        result["added_chunk_us"] = median(through, "chunk_p50") - median(direct, "chunk_p50")
        result["chunks_s"] = median(through, "events_s")
    return result


def table(results: list[dict[str, Any]]) -> str:
    """The figures as Markdown."""
    lines = [
        "| scenario | direct /s | gateway /s | ratio | p50 ms | p99 ms | added p50 ms"
        " | added TTFT ms | added per chunk ms | chunks/s | CPU µs | RSS MB |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in results:
        ttft = f"{row['added_ttft_us'] / 1000:.2f}" if "added_ttft_us" in row else "–"
        chunk = f"{row['added_chunk_us'] / 1000:.2f}" if "added_chunk_us" in row else "–"
        chunks = f"{row['chunks_s']:.0f}" if "chunks_s" in row else "–"
        lines.append(
            f"| {row['scenario']} | {row['direct_rps']:.0f} | {row['rps']:.0f}"
            f" | {row['rps'] / row['direct_rps']:.2f}"
            f" | {row['p50_us'] / 1000:.2f} | {row['p99_us'] / 1000:.2f}"
            f" | {row['added_p50_us'] / 1000:.2f} | {ttft} | {chunk} | {chunks}"
            f" | {row['cpu_us']:.0f} | {row['rss_mb']:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run all scenarios and print the table."""
    compile_tools()
    gateway_cpu, other_cpu = cpus()
    port = free_port()
    mock_url = f"http://127.0.0.1:{port}"
    results: list[dict[str, Any]] = []
    with (
        tempfile.TemporaryDirectory(prefix="aisix-bench-") as folder,
        mock(port, other_cpu),
        gateway(Path(folder), gateway_cpu) as running,
    ):
        prepare(running.admin, mock_url)
        idle_mb = running.rss_mb()
        print(f"start to ready: {running.start_s:.2f} s; idle RSS: {idle_mb:.0f} MB", flush=True)
        before_us = yardstick(gateway_cpu, other_cpu)
        print(f"{ROUNDS} interleaved rounds of {SECONDS:g} s\n", flush=True)
        for scenario in SCENARIOS:
            results.append(measure(scenario, running, mock_url, other_cpu))
            print(f"  {scenario.name}: done", file=sys.stderr, flush=True)
        static_us = (before_us + yardstick(gateway_cpu, other_cpu)) / 2
    print(table(results))
    ratio = results[1]["cpu_us"] / static_us
    print(f"\nTornado answering static JSON by itself, c=64: {static_us:.0f} µs CPU per request;")
    print(f"the gateway, calling an upstream with everything on: {ratio:.1f} times that")
    out = os.environ.get("BENCH_OUT")
    if out:
        figures = {
            "start_s": running.start_s,
            "idle_rss_mb": idle_mb,
            "static_cpu_us": static_us,
            "results": results,
        }
        Path(out).write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
