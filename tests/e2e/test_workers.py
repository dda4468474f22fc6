"""Several workers behind one address: they share the traffic, and a death is nobody's end."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.client_certificates import client_pem
from tests.support.process import (
    ROOT,
    WAIT_S,
    GatewayProgram,
    Stand,
    gateway,
    send,
    simulator,
    start_refused,
)
from tests.support.wire import Wire, chat
from tests.support.workers import (
    WORKERS,
    children,
    control_pid,
    crowd,
    eventually,
    kill,
    libraries,
    running,
    worker_pids,
)

BACK_WITHIN_S = 1.0
"""A dead child is back within this."""

NOISE_S = 1.5
"""What a busy machine may add to a second."""

SEAL = {"AISIX_STORE__ENCRYPTION_KEY": "env:SEAL", "SEAL": b64encode(bytes([1]) * 32).decode()}
OTHER_SEAL = {**SEAL, "SEAL": b64encode(bytes([2]) * 32).decode()}

PROBE = """
import sys
import server
import aisix.workers.data_process
brought = {name.split(".")[0] for name in sys.modules}
print(sorted(brought & {"azure", "msal", "aiosqlite", "sqlite3", "cryptography"}))
"""

MAPPED = frozenset({"sqlite", "cryptography"})
"""What of these can be seen in the memory of a process; azure-identity brings the second."""


def asked_at_once(bench: Stand, alias: str, count: int) -> list[int]:
    """Statuses of so many requests, each on a connection of its own; none begins before all can."""
    together = threading.Barrier(count, timeout=WAIT_S)

    def asked(_: int) -> int:
        together.wait()
        return bench.gateway.chat(alias).status

    with ThreadPoolExecutor(count) as callers:
        return list(callers.map(asked, range(count)))


def loaded(pid: int) -> set[str]:
    """What a living process has loaded of the control half."""
    mapped = libraries(pid)
    return {name for name in MAPPED if name in mapped}


def threads(program: GatewayProgram) -> list[int]:
    """The threads of its first process."""
    return [int(thread) for thread in os.listdir(f"/proc/{program.process.pid}/task")]


def admin_answers(program: GatewayProgram) -> bool:
    try:
        return program.manage("GET", "health").status == 200
    except OSError:
        return False


# ── traffic ─────────────────────────────────────────────────────────────────────────────────────


def test_workers_share_the_traffic_and_one_ready_line_names_them(tmp_path: Path) -> None:
    with crowd(tmp_path, 3) as bench:
        (ready,) = bench.gateway.events("gateway.ready")
        assert ready["workers"] == 3
        assert len(set(ready["pids"])) == 3
        assert set(ready["pids"]) < set(children(bench.gateway))
        alias = bench.alias("gpt4o-prod")
        assert set(asked_at_once(bench, alias, 60)) == {200}
        ended = bench.gateway.stop()
    assert ended.status == 0
    assert ended.stderr.count('"gateway.ready"') == 1
    assert ended.stderr.count('"gateway.stopped"') == 1
    assert ended.stderr.count('"request.completed"') == 60
    for line in ended.stderr.splitlines():
        json.loads(line)  # all write to one pipe, none into another's line


def test_the_supervisor_never_has_a_second_thread(tmp_path: Path) -> None:
    """It forks: a lock that another thread held would be held in the child for ever."""
    with crowd(tmp_path) as bench:
        supervisor = bench.gateway.process.pid
        assert threads(bench.gateway) == [supervisor]
        alias = bench.alias("gpt4o-prod")
        assert set(asked_at_once(bench, alias, 20)) == {200}
        kill(worker_pids(bench.gateway)[0])
        bench.gateway.events("process.died")
        eventually(lambda: len(children(bench.gateway)) == 3)
        assert set(asked_at_once(bench, alias, 20)) == {200}
        assert threads(bench.gateway) == [supervisor]


def test_every_worker_gets_its_share_of_connections(tmp_path: Path) -> None:
    """The kernel spreads them by address and port: 40 never miss one of two."""

    def sockets(pid: int) -> int:
        folder = Path(f"/proc/{pid}/fd")
        return sum("socket:" in os.readlink(folder / name) for name in os.listdir(folder))

    with crowd(tmp_path) as bench, ExitStack() as open_wires:
        pids = worker_pids(bench.gateway)
        before = [sockets(pid) for pid in pids]
        for _ in range(40):
            open_wires.enter_context(Wire(bench.gateway.proxy))
        eventually(lambda: sum(map(sockets, pids)) - sum(before) == 40)
        assert all(sockets(pid) > had for pid, had in zip(pids, before, strict=True))


def test_a_write_is_effective_in_every_worker_when_it_is_answered(tmp_path: Path) -> None:
    with crowd(tmp_path, 3) as bench:
        headers = {"Authorization": "Bearer sk-of-this-test"}

        def statuses() -> set[int]:
            with ThreadPoolExecutor(16) as callers:
                url = f"{bench.gateway.proxy}/v1/models"
                ask = [callers.submit(send, "GET", url, headers=headers) for _ in range(50)]
                return {one.result().status for one in ask}

        for _ in range(3):
            id = bench.gateway.create("apikeys", key="sk-of-this-test", allowed_models=["*"])
            assert statuses() == {200}
            gone = bench.gateway.manage("DELETE", f"apikeys/{id}")
            assert (gone.status, gone.headers.get("x-aisix-lagging-workers")) == (200, None)
            assert statuses() == {401}


def test_a_limit_holds_for_all_workers_together(tmp_path: Path) -> None:
    with crowd(tmp_path, 4) as bench:
        alias = bench.alias("gpt4o-prod", rate_limit={"rpm": 5})
        assert sorted(asked_at_once(bench, alias, 30)) == [200] * 5 + [429] * 25
        lines = bench.gateway.events("request.completed", count=30)
        assert len({line["worker"] for line in lines}) > 1


def test_slots_of_killed_workers_are_free_again(tmp_path: Path) -> None:
    with crowd(tmp_path) as bench, ExitStack() as wires:
        alias = bench.alias("gpt4o-stall4", rate_limit={"concurrency": 3})
        streams_under_way(bench, wires, 3, alias=alias)
        assert bench.gateway.chat(alias).status == 429
        for pid in worker_pids(bench.gateway):
            kill(pid)
        streams_under_way(bench, wires, 3, alias=alias)
        assert bench.gateway.chat(alias).status == 429


def test_one_token_is_fetched_for_all_workers(tmp_path: Path) -> None:
    secret = {
        "tenant_id": "11111111-2222-3333-4444-555555555555",
        "client_id": "66666666-7777-8888-9999-000000000000",
        "client_secret": "simulator-secret",
    }
    with crowd(tmp_path, 4) as bench:
        azure, program = bench.azure, bench.gateway
        for name, value in (("entra", "simulator-secret"), ("entra-bad", "wrong")):
            text = json.dumps({**secret, "client_secret": value, "authority_host": azure.url})
            key = program.create_provider_key(azure.url, secret=text, display_name=f"key-{name}")
            program.create_model(name, "gpt4o-prod", key)
        assert set(asked_at_once(bench, "entra", 40)) == {200}
        assert len(azure.requests(operation="token")) == 1
        refused = program.chat("entra-bad")
        assert (refused.status, refused.error["code"]) == (500, "config_error")
        assert "upstream authentication failed (AADSTS" in refused.error["message"]
        shown = {
            entry["value"]["display_name"]: entry["credential"]
            for entry in program.manage("GET", "provider_keys").json
            if entry["value"]["display_name"].startswith("key-")
        }
        assert {credential["kind"] for credential in shown.values()} == {"client_secret"}
        good, bad = (shown[f"key-{name}"] for name in ("entra", "entra-bad"))
        assert good["token_expires_at"] > "2026"
        assert good["last_error"] is bad["token_expires_at"] is None
        assert "AADSTS7000215" in bad["last_error"]["message"]
        control = control_pid(program)
        assert loaded(control) == MAPPED
        kill(control)
        assert set(asked_at_once(bench, "entra", 20)) == {200}
        assert len(azure.requests(operation="token")) == 2
        assert [loaded(pid) for pid in worker_pids(program)] == [set()] * 4


def test_a_certificate_crosses_to_the_workers_which_load_nothing_for_it(tmp_path: Path) -> None:
    pem = client_pem()
    file = tmp_path / "app.pem"
    file.write_text(pem)
    with (
        simulator("--client-certificate", str(file)) as azure,
        gateway(tmp_path, {WORKERS: "2"}) as program,
    ):
        secret = {"tenant_id": "t", "client_id": "c", "client_certificate": pem}
        text = json.dumps({**secret, "authority_host": azure.url})
        key = program.create_provider_key(azure.url, secret=text)
        program.create_model("entra", "gpt4o-prod", key)
        program.create_caller_key()
        assert program.chat("entra").status == 200
        assert [loaded(pid) for pid in worker_pids(program)] == [set()] * 2
        ended = program.stop()
    assert not any(line in ended.stderr for line in pem.splitlines())


def test_a_verification_uses_the_control_process_and_no_callers_limit(tmp_path: Path) -> None:
    with crowd(tmp_path) as bench:
        azure, program = bench.azure, bench.gateway
        good = program.create_model("good", "dep", bench.provider_key_id, rate_limit={"rpm": 0})
        bad = program.create_model("bad", "missing-dep", bench.provider_key_id)
        found = program.manage("POST", f"models/{good}/verify")
        assert (found.status, found.json["ok"]) == (200, True)
        found = program.manage("POST", f"models/{bad}/verify")
        assert (found.json["ok"], found.json["stage"]) == (False, "deployment")
        found = program.manage("POST", f"provider_keys/{bench.provider_key_id}/verify")
        assert found.json["ok"]
        assert found.json["request"] == f"GET {azure.url}/openai/models?api-version=2024-10-21"
        assert [line["ok"] for line in program.events("admin.verify", count=3)] == [
            True,
            False,
            True,
        ]
        assert total(program.scrape(), "aisix_upstream_attempts_total") == 0
        assert program.chat("bad").status == 404
        assert total(program.scrape(), "aisix_upstream_attempts_total") == 1


def counters(scrape: str) -> dict[str, float]:
    """Every sample of ours that must never go back."""
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", scrape, flags=re.MULTILINE))
    samples = re.findall(r"^(aisix_.*) (\S+)$", scrape, flags=re.MULTILINE)
    return {
        sample: float(value)
        for sample, value in samples
        if kinds.get(sample.partition("{")[0]) != "gauge"
    }


def total(scrape: str, name: str) -> float:
    samples = counters(scrape).items()
    return sum(value for sample, value in samples if sample.partition("{")[0] == name)


def test_a_scrape_is_the_sum_of_all_workers_and_never_goes_back(tmp_path: Path) -> None:
    with crowd(tmp_path, 3) as bench:
        program = bench.gateway
        alias = bench.alias("gpt4o-prod")
        scrapes: list[str] = []

        def counted(requests: int) -> bool:
            """An exchange is settled when its answer has left, so the last ones may be missing."""
            scrapes.append(program.scrape())
            return total(scrapes[-1], "aisix_requests_total") == requests

        asked_at_once(bench, alias, 40)
        eventually(lambda: counted(40))
        assert "aisix_workers 3.0" in scrapes[-1]
        kill(worker_pids(program)[0])
        eventually(lambda: counted(40))
        asked_at_once(bench, alias, 20)
        eventually(lambda: counted(60))
        kill(control_pid(program))
        asked_at_once(bench, alias, 20)
        eventually(lambda: admin_answers(program))
        eventually(lambda: counted(80))
        assert total(scrapes[-1], "aisix_worker_restarts_total") == 1
    for earlier, later in itertools.pairwise(map(counters, scrapes)):
        gone_back = {s: (v, later.get(s)) for s, v in earlier.items() if later.get(s, -1.0) < v}
        assert gone_back == {}


def test_health_of_a_model_is_what_any_worker_sees(tmp_path: Path) -> None:
    with crowd(tmp_path) as bench:
        alias = bench.alias("gpt4o-err500")
        assert set(asked_at_once(bench, alias, 30)) == {502}

        def shown() -> object:
            (model,) = bench.gateway.manage("GET", "models/status").json
            return model["status"] == "unhealthy" and model["last_check_status"] == "failed"

        eventually(shown)


# ── deaths ──────────────────────────────────────────────────────────────────────────────────────


def test_a_killed_worker_is_back_and_its_callers_are_served(tmp_path: Path) -> None:
    """Who connects meanwhile waits in the queue of its socket, which its successor inherits."""
    with crowd(tmp_path) as bench:
        alias = bench.alias("gpt4o-prod")
        first, second = worker_pids(bench.gateway)
        before = set(children(bench.gateway))
        kill(first)
        began = time.monotonic()
        assert set(asked_at_once(bench, alias, 40)) == {200}
        assert time.monotonic() - began < BACK_WITHIN_S + NOISE_S
        assert len(set(children(bench.gateway)) - before) == 1
        (died,) = bench.gateway.events("process.died")
        assert (died["child"], died["pid"], died["status"]) == ("worker 0", first, -9)
        assert died["restart_in_s"] == 0.0
        assert running(second)
        assert bench.gateway.stop().status == 0


def test_traffic_goes_on_without_the_control_process_which_comes_back(tmp_path: Path) -> None:
    with crowd(tmp_path) as bench:
        gateway = bench.gateway
        alias = bench.alias("gpt4o-prod")
        kill(control_pid(gateway))
        assert set(asked_at_once(bench, alias, 20)) == {200}
        assert eventually(lambda: admin_answers(gateway)) < BACK_WITHIN_S + NOISE_S
        written = gateway.manage("POST", "apikeys", {"key": "sk-after", "allowed_models": ["*"]})
        assert written.status == 200
        assert "x-aisix-lagging-workers" not in written.headers
        assert {gateway.chat(alias, key="sk-after").status for _ in range(20)} == {200}
        gateway.events("control.ready")
        ended = gateway.stop()
    assert ended.status == 0
    assert ended.stderr.count('"gateway.ready"') == 1


def test_a_stuck_worker_is_counted_and_replaced(tmp_path: Path) -> None:
    with crowd(tmp_path) as bench:
        gateway = bench.gateway
        alias = bench.alias("gpt4o-prod")
        stuck, _ = worker_pids(gateway)
        os.kill(stuck, signal.SIGSTOP)
        written = gateway.manage("POST", "apikeys", {"key": "sk-late", "allowed_models": ["*"]})
        assert written.status == 200
        assert written.headers["x-aisix-lagging-workers"] == "1"
        (lagging,) = gateway.events("worker.lagging")
        assert "aisix_lagging_workers_total 1.0" in gateway.scrape()
        assert lagging["worker"] == 0
        eventually(lambda: not running(stuck))
        assert {gateway.chat(alias, key="sk-late").status for _ in range(30)} == {200}
        assert gateway.stop().status == 0


def test_children_end_with_their_supervisor(tmp_path: Path) -> None:
    with crowd(tmp_path) as bench:
        orphans = children(bench.gateway)
        assert len(orphans) == 3
        bench.gateway.process.kill()
        bench.gateway.process.wait()
        eventually(lambda: not any(map(running, orphans)))


# ── the end ─────────────────────────────────────────────────────────────────────────────────────


def streams_under_way(bench: Stand, wires: ExitStack, count: int, *, alias: str = "") -> list[Wire]:
    """Streams that have begun and wait for the simulator."""
    alias = alias or bench.alias("gpt4o-stall4")
    streams = [wires.enter_context(Wire(bench.gateway.proxy)) for _ in range(count)]
    for stream in streams:
        stream.send(chat(alias, stream=True))
        assert stream.answer_head()[0] == 200
        stream.read_until(b'"Hello"')
    return streams


@pytest.mark.parametrize("by", ["the supervisor alone", "a terminal", "an init system"])
def test_streams_in_all_workers_are_finished_first(tmp_path: Path, by: str) -> None:
    """Some signal the first process, some all at once, which is still one wish."""
    with crowd(tmp_path) as bench, ExitStack() as wires:
        streams = streams_under_way(bench, wires, 16)
        if by == "a terminal":
            bench.gateway.press_ctrl_c()
        else:
            bench.gateway.send_signal(signal.SIGTERM)
        if by == "an init system":
            for child in children(bench.gateway):
                os.kill(child, signal.SIGTERM)
        bench.gateway.events("gateway.draining", count=3)
        bench.azure.release()
        for stream in streams:
            assert stream.rest().endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        ended = bench.gateway.wait()
    assert ended.status == 0
    assert '"drained":true' in ended.stderr
    assert "Traceback" not in ended.stderr


def test_nobody_listens_while_workers_drain(tmp_path: Path) -> None:
    """No copy of a socket may be left open: callers would wait for an answer that never comes."""
    with crowd(tmp_path) as bench, ExitStack() as wires:
        (stream,) = streams_under_way(bench, wires, 1)
        bench.gateway.send_signal(signal.SIGTERM)

        def refused() -> bool:
            try:
                Wire(bench.gateway.proxy).close()
            except ConnectionRefusedError:
                return True
            return False

        eventually(refused)
        bench.azure.release()
        assert b"[DONE]" in stream.rest()
        assert bench.gateway.wait().status == 0


def test_a_second_signal_ends_all_processes_at_once(tmp_path: Path) -> None:
    with crowd(tmp_path) as bench, ExitStack() as wires:
        streams = streams_under_way(bench, wires, 4)
        processes = children(bench.gateway)
        bench.gateway.send_signal(signal.SIGTERM)
        bench.gateway.events("gateway.draining", count=3)
        ended = bench.gateway.stop()
        for stream in streams:
            assert b"event: error\n" in stream.rest()
    assert ended.status == 1
    assert '"drained":false' in ended.stderr
    assert not any(map(running, processes))


def test_a_worker_that_hears_nothing_is_killed_in_the_end(tmp_path: Path) -> None:
    with crowd(tmp_path) as bench:
        os.kill(worker_pids(bench.gateway)[0], signal.SIGSTOP)
        bench.gateway.send_signal(signal.SIGTERM)
        bench.gateway.events("gateway.draining", count=2)
        ended = bench.gateway.stop()
    assert ended.status == 1


# ── the start ───────────────────────────────────────────────────────────────────────────────────


def test_workers_load_nothing_of_the_control_half(tmp_path: Path) -> None:
    probe = subprocess.run(
        [sys.executable, "-c", PROBE], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert probe.stdout == "[]\n"
    with crowd(tmp_path) as bench:
        assert bench.gateway.chat(bench.alias("gpt4o-prod")).status == 200
        assert control_pid(bench.gateway) not in worker_pids(bench.gateway)


def test_a_port_in_use_is_said_in_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        ended = start_refused(tmp_path, {WORKERS: "2", "AISIX_PROXY__ADDR": address})
    assert ended.status == 1
    (line,) = ended.stderr.splitlines()
    assert f'"proxy.addr: cannot listen on {address}: Address already in use; is another' in line
    assert not (tmp_path / "aisix.db").exists()


def test_two_gateways_cannot_share_an_address(tmp_path: Path) -> None:
    """Although each of them lets its own workers share it."""
    with gateway(tmp_path, {WORKERS: "2"}) as first:
        address = first.proxy.removeprefix("http://")
        ended = start_refused(tmp_path, {WORKERS: "2", "AISIX_PROXY__ADDR": address})
    assert ended.status == 1
    assert f"proxy.addr: cannot listen on {address}: Address already in use" in ended.stderr


def test_an_unusable_store_stops_the_start_in_one_line(tmp_path: Path) -> None:
    with gateway(tmp_path, SEAL) as first:
        first.create_provider_key("acme-west")
        assert first.stop().status == 0
    ended = start_refused(tmp_path, {**OTHER_SEAL, WORKERS: "3"})
    assert ended.status == 1
    (line,) = ended.stderr.splitlines()
    assert "gateway.refused" in line
    assert "the encryption key from store.encryption_key is not the one" in line


def test_a_stop_before_the_start_is_complete_is_a_clean_end(tmp_path: Path) -> None:
    program = GatewayProgram(tmp_path, settings={WORKERS: "2"})
    try:
        eventually(lambda: children(program))
        ended = program.stop()
    finally:
        program.close()
    assert ended.status == 0, ended.stderr
