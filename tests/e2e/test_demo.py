"""How the demo ends: whatever stops it, no process of its own is left. What it shows is tested
with README."""

from __future__ import annotations

import re
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support.process import PYTHON, Program

_FREE = [f"--{name}-port=0" for name in ("proxy", "admin", "metrics", "simulator")]
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_LAST_LINE = '"stream": true, "messages"'


@contextmanager
def _demo(*arguments: str) -> Iterator[Program]:
    program = Program([*PYTHON, "-m", "aisix.simulator.demo", *(arguments or _FREE)])
    try:
        yield program
    finally:
        if program.process.poll() is None:
            program.send_signal(signal.SIGTERM)  # the only way its children end too
            with suppress(AssertionError):
                program.wait()
        program.close()


def _addresses(program: Program) -> dict[str, str]:
    program.wait_for(lambda line: _LAST_LINE in line, name="stdout", timeout_s=30)
    said = "\n".join(program.lines("stdout"))
    found = re.findall(r"^  (proxy|admin|metrics|simulator) +(http://\S+)", said, re.MULTILINE)
    return dict(found)


def _is_open(url: str) -> bool:
    place = urlsplit(url)
    with suppress(OSError), socket.create_connection((place.hostname, place.port), timeout=5):
        return True
    return False


def _threads(pid: int) -> list[Path]:
    return list(Path(f"/proc/{pid}/task").iterdir())


def _takes_signals(thread: Path) -> bool:
    """Whether `thread` leaves none of the signals that stop the demo to the others."""
    status = (thread / "status").read_text()
    blocked = int(status.split("SigBlk:", 1)[1].split()[0], 16)
    return not any(blocked >> (number - 1) & 1 for number in _STOP_SIGNALS)


@pytest.mark.parametrize(
    "signals",
    [
        (signal.SIGINT,),
        (signal.SIGTERM,),
        (signal.SIGHUP,),
        (signal.SIGINT, signal.SIGINT, signal.SIGTERM),
    ],
    ids=lambda numbers: "-".join(number.name for number in numbers),
)
def test_a_stopped_demo_leaves_no_process_behind(signals):
    with _demo() as program:
        addresses = _addresses(program)
        assert all(_is_open(url) for url in addresses.values())
        for number in signals:
            program.send_signal(number)
        assert program.wait(20).status == 0
        assert not [url for url in addresses.values() if _is_open(url)]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux's /proc")
def test_only_the_main_thread_of_the_demo_takes_signals():
    """The kernel gives a signal to any thread that takes it, and would not wake the one that
    waits."""
    with _demo() as program:
        _addresses(program)
        taken = {thread: _takes_signals(thread) for thread in _threads(program.process.pid)}
    assert taken == {thread: thread.name == str(program.process.pid) for thread in taken}
    assert len(taken) == 3, "the output of each child has a thread"


def test_a_demo_in_the_background_of_a_shell_can_be_ended():
    # such a shell lets its background jobs ignore Ctrl-C
    script = (
        "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); "
        "os.execv(sys.executable, [sys.executable, '-u', '-m', 'aisix.simulator.demo', "
        f"*{_FREE!r}])"
    )
    program = Program([*PYTHON, "-c", script])
    try:
        addresses = _addresses(program)
        assert program.stop(signal.SIGTERM).status == 0
        assert not [url for url in addresses.values() if _is_open(url)]
    finally:
        program.close()


@pytest.mark.parametrize("name", ["proxy", "admin", "metrics", "simulator"])
def test_a_port_in_use_is_named_with_the_way_out(name):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        others = [argument for argument in _FREE if not argument.startswith(f"--{name}-")]
        with _demo(*others, f"--{name}-port={port}") as program:
            ended = program.wait()
    assert ended.status == 1
    assert ended.stderr.startswith(f"demo: port {port} ({name}) is in use")
    assert f"--{name}-port" in ended.stderr
    assert "Traceback" not in ended.stderr
