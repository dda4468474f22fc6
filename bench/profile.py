"""Where the gateway's CPU time goes, stage by stage: `python -m bench.profile [SCENARIO]`. I/O.

py-spy samples the gateway under the load of a scenario; each sample counts for the innermost frame
of `aisix/`, so that what Tornado, asyncio, libcurl and other C code do counts for the stage that
called them. With `--raw FILE` the samples are kept in the form that flame graph programs read.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from bench.contenders import cpus
from bench.field import FIELD, started
from bench.load import LoadGenerator, compile_tools
from bench.measures import Bench, window
from bench.report import markdown_table
from bench.run import raise_file_limit, site
from bench.scenarios import SCENARIOS
from bench.settings import Settings

RATE_HZ = 150
"""More would slow the gateway down: py-spy stops it for each sample."""

SECONDS = 20.0
LOOP = "event loop"
_FRAME = re.compile(r"(?P<function>.*) \((?P<file>[^()]*):(?P<line>\d+)\)$")


def parse(lines: Iterable[str]) -> Iterator[tuple[list[tuple[str, str]], int]]:
    """Stacks of py-spy's raw format, outermost frame first, as (file, function), with their counts.
    Only those of the main thread: the others wait. Pure."""
    for line in lines:
        stack, _, count = line.rpartition(" ")
        found = [_FRAME.match(frame) for frame in stack.split(";")]
        frames = [(match["file"], match["function"]) for match in found if match]
        if any(file.endswith("server.py") and name == "<module>" for file, name in frames):
            yield frames, int(count)


def stage_of(frames: Sequence[tuple[str, str]]) -> str:
    """The folder or module of `aisix/` that a stack is in. Pure."""
    for file, _ in reversed(frames):
        if file.startswith("aisix/"):
            return "/".join(file.split("/")[1:2]).removesuffix(".py")
    return LOOP


def by_stage(lines: Iterable[str]) -> Counter[str]:
    """Samples of each stage. Pure."""
    samples: Counter[str] = Counter()
    for frames, count in parse(lines):
        samples[stage_of(frames)] += count
    return samples


def table(samples: Counter[str], cpu_us: float) -> str:
    """The share of each stage, and that share of the CPU time of a request. Pure."""
    total = sum(samples.values()) or 1
    rows = [
        [stage, f"{count / total * 100:.1f}", f"{count / total * cpu_us:.0f}"]
        for stage, count in samples.most_common()
    ]
    return markdown_table(["stage", "% of CPU", f"µs of {cpu_us:.0f}"], rows)


def _py_spy() -> str:
    beside = Path(sys.executable).with_name("py-spy")
    found = str(beside) if beside.exists() else shutil.which("py-spy")
    if found is None:
        sys.exit("bench: py-spy is needed (pip install -r bench/requirements.txt)")
    return found


def main(arguments: Sequence[str]) -> None:
    """Profile the gateway under one scenario and print the table."""
    scenarios = {scenario.id: scenario for scenario in SCENARIOS}
    parser = argparse.ArgumentParser(prog="python -m bench.profile")
    parser.add_argument("scenario", nargs="?", default="echo-c64", choices=sorted(scenarios))
    parser.add_argument("--raw", type=Path, help="keep the samples here")
    asked = parser.parse_args(arguments)
    scenario = scenarios[asked.scenario]
    program = _py_spy()
    compile_tools()
    raise_file_limit()
    shared = cpus(sorted(os.sched_getaffinity(0)))
    with (
        site(shared) as where,
        started(FIELD["gateway"], where, scenario) as running,
        tempfile.TemporaryDirectory() as folder,
    ):
        os.sched_setaffinity(0, {shared.load})
        raw = asked.raw or Path(folder) / "samples.txt"
        settings = Settings(seconds=SECONDS)
        bench = Bench(settings, where, LoadGenerator(where.folder, cpu=shared.load))
        plain = window(bench, scenario, running).figures
        words = [program, "record", "--pid", str(running.root), "--format", "raw"]
        words += ["--rate", str(RATE_HZ), "--duration", str(int(SECONDS)), "--output", str(raw)]
        with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as spy:
            window(bench, scenario, running)
            _, complaint = spy.communicate()
        if spy.returncode:
            sys.exit(f"bench: py-spy failed: {complaint.decode(errors='replace').strip()}")
        print(table(by_stage(raw.read_text().splitlines()), plain["cpu_us"]))


if __name__ == "__main__":
    main(sys.argv[1:])
