"""Instructions per request, counted by valgrind: `python -m bench.instructions [SCENARIO]`. I/O.

CPU time swings with the neighbours of a shared machine; a count of instructions does not, so small
changes can be judged by it (within 0.3 % from run to run). It says nothing of caches and the
kernel. The gateway runs many times slower meanwhile.
"""

from __future__ import annotations

import argparse
import http.client
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from bench.contenders import Running, Site, cpus
from bench.field import FIELD, started
from bench.load import Target, compile_tools, request_body
from bench.run import site
from bench.scenarios import SCENARIOS, Scenario

CONNECTIONS = 16
REQUESTS = 320
_TOTALS = re.compile(r"^totals: (\d+)", re.MULTILINE)


def under_valgrind(where: Site, profile: Path) -> Site:
    """The same site, where our contenders run under callgrind, which counts nothing yet."""
    tool = ("valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={profile}")
    return replace(where, tool=tool)


def send(target: Target, scenario: Scenario, *, requests: int) -> None:
    """So many requests over kept connections. Exits when one fails."""
    address = urlsplit(target.url)
    path = f"{address.path}?{address.query}" if address.query else address.path
    body = request_body(target.model, chunks=scenario.chunks, body_bytes=scenario.body_bytes)
    headers = {**target.all_headers(), "Content-Type": "application/json"}

    def one_connection(_number: int) -> None:
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=60)
        for _ in range(requests // CONNECTIONS):
            connection.request("POST", path, body, headers)
            answer = connection.getresponse()
            said = answer.read()
            if answer.status != http.client.OK:
                sys.exit(f"bench: {answer.status} {said[:300]!r}")
        connection.close()

    with ThreadPoolExecutor(CONNECTIONS) as pool:
        list(pool.map(one_connection, range(CONNECTIONS)))


def counted(running: Running, scenario: Scenario) -> None:
    """Warm up, then send the requests that count."""
    target = running.target(scenario.deployment)
    send(target, scenario, requests=REQUESTS)
    control = ["callgrind_control", str(running.root), "-i"]
    subprocess.run([*control, "on"], check=True, capture_output=True)
    send(target, scenario, requests=REQUESTS)
    subprocess.run([*control, "off"], check=True, capture_output=True)


def main(arguments: Sequence[str]) -> None:
    """Count for one contender under one scenario."""
    scenarios = {scenario.id: scenario for scenario in SCENARIOS}
    parser = argparse.ArgumentParser(prog="python -m bench.instructions")
    parser.add_argument("scenario", nargs="?", default="echo-c64", choices=sorted(scenarios))
    parser.add_argument("--of", default="gateway", choices=("gateway", "baseline", "static"))
    parser.add_argument(
        "--profile", type=Path, help="keep callgrind's file, for callgrind_annotate"
    )
    asked = parser.parse_args(arguments)
    if shutil.which("valgrind") is None:
        sys.exit("bench: valgrind is needed (on Debian: apt-get install valgrind)")
    compile_tools()
    scenario = scenarios[asked.scenario]
    with site(cpus(sorted(os.sched_getaffinity(0)))) as where:
        profile = asked.profile or where.folder / "callgrind.out"
        counting = under_valgrind(where, profile)
        with started(FIELD[asked.of], counting, scenario) as running:
            counted(running, scenario)
        if not profile.is_file():  # it writes at its end, and is killed when that takes too long
            sys.exit("bench: valgrind has written nothing")
        totals = [int(number) for number in _TOTALS.findall(profile.read_text())]
    print(f"{asked.of}, {scenario.title}: {max(totals) / REQUESTS:,.0f} instructions per request")


if __name__ == "__main__":
    main(sys.argv[1:])
