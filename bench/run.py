"""Runs the benchmark: `python -m bench.run`, or `make bench`. I/O.

The gateway and its contenders share one CPU and take turns within each round; the mock of Azure
and the load generator have the others. Every figure is read from outside the contenders. All
traffic stays on loopback.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import trustme

from bench import plots
from bench.contenders import MOCK_KEY, Cpus, Site, cpus, free_port, process, wait_answer
from bench.field import OURS, taking_part, wanted_peers
from bench.load import LoadGenerator, compile_tools, is_pinning
from bench.measures import Bench, measure
from bench.peers import PEERS_TABLE
from bench.report import demand_table, markdown, scenario_table
from bench.results import Run, to_json
from bench.scenarios import Scenario, select
from bench.settings import BIN, BadSetting, Settings, parse


def machine() -> dict[str, str]:
    """What the run runs on: the class of machine and the date, no name of it."""
    model = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    about = {
        "date": datetime.now(UTC).date().isoformat(),
        "CPU": f"{len(os.sched_getaffinity(0))} × {model}",
        "Python": platform.python_version(),
    }
    if not is_pinning():
        about["CPUs"] = "not pinned: taskset is not installed, so nothing here can be compared"
    return about


def described(settings: Settings, peers: Iterable[str]) -> dict[str, str]:
    """How the run was asked for: enough to repeat it. Pure."""
    wanted = {
        "BENCH_SECONDS": f"{settings.seconds:g}",
        "BENCH_ROUNDS": str(settings.rounds),
        "BENCH_ONLY": ",".join(settings.only),
    }
    if "soak" in settings.only or "all" in settings.only:
        wanted["BENCH_SOAK_SECONDS"] = f"{settings.soak_seconds:g}"
    pins = [pin for peer in PEERS_TABLE if peer.name in peers for pin in peer.pins]
    return wanted | ({"rivals": " ".join(pins)} if pins else {})


def raise_file_limit() -> None:
    """Thousands of connections need as many files; children inherit the limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@contextmanager
def site(shared: Cpus) -> Iterator[Site]:
    """A folder, certificates and the mock of Azure."""
    with tempfile.TemporaryDirectory(prefix="aisix-bench-") as name:
        folder = Path(name)
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(folder / "authority.pem"))
        own = authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem
        own.write_to_path(str(folder / "certificate.pem"))
        port = free_port()
        made = Site(
            folder=folder,
            cpus=shared,
            upstream=f"http://127.0.0.1:{port}",
            certificate=folder / "certificate.pem",
            authority=folder / "authority.pem",
        )
        log = folder / "mock.log"
        words = [str(BIN / "mockaz"), "-p", str(port), "-k", MOCK_KEY]
        with process(words, cpus=[shared.mock], log=log) as mock:
            wait_answer(mock, made.upstream, log=log, authority=made.authority)
            yield made


def main() -> int:
    """Run the chosen scenarios, write the results; 1 when a window of ours is void."""
    try:
        settings = parse(os.environ)
        scenarios = select(settings.only)
        peers = wanted_peers(settings.peers)
    except (BadSetting, ValueError) as error:
        sys.exit(f"bench: {error}")
    compile_tools()
    raise_file_limit()
    shared = cpus(sorted(os.sched_getaffinity(0)))
    run = Run(machine(), described(settings, peers))
    with site(shared) as where:
        # what measures must not disturb what is measured
        os.sched_setaffinity(0, {shared.load})
        bench = Bench(settings, where, LoadGenerator(where.folder, cpu=shared.load))
        for scenario in scenarios:
            _run_one(bench, scenario, peers, run)
    print(f"## What it must show\n\n{demand_table(run)}")
    write(run, settings)
    return int(any(name in OURS for row in run.outcomes.values() for name in row.void))


def _run_one(bench: Bench, scenario: Scenario, peers: set[str], run: Run) -> None:
    began = time.monotonic()
    outcome = measure(bench, scenario, taking_part(scenario, peers))
    run.outcomes[scenario.id] = outcome
    took = time.monotonic() - began
    print(f"## {outcome.title}\n\n{scenario_table(outcome)}\n", flush=True)
    print(f"  {scenario.id}: {took:.0f} s", file=sys.stderr, flush=True)


def write(run: Run, settings: Settings) -> None:
    """JSON, Markdown and plots, beside each other."""
    out = settings.out
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(to_json(run), indent=1))
    out.with_suffix(".md").write_text(markdown(run))
    print(f"\nresults in {out} and {out.with_suffix('.md').name}", file=sys.stderr)
    try:
        for picture in plots.draw(run, out.parent / f"{out.stem}-plots"):
            print(f"  {picture.file}", file=sys.stderr)
    except plots.NoPlots as reason:
        print(f"  {reason}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
