"""README's commands, run as they stand there, from the first to the last.

Only the `YOUR_…` placeholders are filled in. curl is led from the ports in the text to those in
use; the Azure host in the text is the simulator over TLS.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.process import (
    ROOT,
    SIMULATOR_KEY,
    GatewayProgram,
    Program,
    clean_env,
    gateway,
    simulator,
)
from tests.support.shell import Shell, blocks
from tests.support.tls import make_certificate

README = (ROOT / "README.md").read_text(encoding="utf-8")
AZURE_HOST = "acme-west.openai.azure.com"
MAKE_BLOCKS = ["make demo\n", "make test\n"]
FREE_PORTS = "--proxy-port 0 --admin-port 0 --metrics-port 0 --simulator-port 0"


@dataclass(frozen=True)
class Followed:
    """A gateway after its reader has run all of README's shell blocks, and what each printed."""

    gateway: GatewayProgram
    said: list[str]


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Followed]:
    folder = tmp_path_factory.mktemp("readme")
    certificate = make_certificate(folder, AZURE_HOST)
    with simulator(*certificate.arguments) as azure:
        settings = {
            "AISIX_UPSTREAM__CONNECT_TO": f"{AZURE_HOST}:443:127.0.0.1:{azure.port}",
            "AISIX_UPSTREAM__TLS__CA_FILE": str(certificate.authority),
        }
        with (
            gateway(folder, settings) as program,
            Shell(folder, {3000: program.proxy, 3001: program.admin}) as shell,
        ):
            yield Followed(program, _follow(shell))


def _follow(shell: Shell) -> list[str]:
    said: list[str] = []
    for block in blocks(README, "sh"):
        if block in MAKE_BLOCKS:
            continue
        filled = block.replace("YOUR_AZURE_API_KEY", SIMULATOR_KEY)
        if "YOUR_PROVIDER_KEY_ID" in filled:
            filled = filled.replace("YOUR_PROVIDER_KEY_ID", json.loads(said[-1])["id"])
        assert "YOUR_" not in filled, "a placeholder that this test does not know"
        said.append(shell.run(filled))
    return said


def test_it_is_read_in_five_minutes() -> None:
    assert len(README.splitlines()) <= 150


def test_it_begins_with_the_two_commands() -> None:
    assert blocks(README, "sh")[:2] == MAKE_BLOCKS


def test_its_shell_commands_lead_to_an_answer(followed: Followed) -> None:
    *resources, answer = (json.loads(text) for text in followed.said)
    assert [entry["revision"] for entry in resources] == [1, 1, 1]
    assert answer["model"] == "gpt-4o-azure"
    assert answer["choices"][0]["message"]["content"].startswith("Hello from Azure OpenAI!")


def test_its_python_snippet_runs(followed: Followed) -> None:
    (snippet,) = blocks(README, "python")
    code = snippet.replace("http://127.0.0.1:3000", followed.gateway.proxy)
    assert code != snippet
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "Hello from Azure OpenAI! You said: Hello\n" * 2


@pytest.mark.service("node", "npm")
def test_its_javascript_snippet_runs(followed: Followed, js_folder: Path) -> None:
    (snippet,) = blocks(README, "js")
    code = snippet.replace("http://127.0.0.1:3000", followed.gateway.proxy)
    assert code != snippet
    (js_folder / "readme.mjs").write_text(code)
    done = subprocess.run(
        ["node", "readme.mjs"],
        cwd=js_folder,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "Hello from Azure OpenAI! You said: Hello\n" * 2


def test_its_links_lead_somewhere() -> None:
    targets = [part.partition(")")[0] for part in README.split("](")[1:]]
    local = [target for target in targets if "://" not in target]
    assert local
    assert [target for target in local if not (ROOT / target).exists()] == []


# --- the two commands ---------------------------------------------------------------------------


def make_env() -> dict[str, str]:
    """The environment for make. In a checkout that make has not set up, it uses this Python."""
    env = {"DEMO_ARGS": FREE_PORTS}
    question = ["make", "-q", ".venv/.runtime"]
    if subprocess.run(question, cwd=ROOT, env=clean_env(), check=False).returncode:
        env["MAKEFLAGS"] = f"-o .venv/.runtime -- BIN={Path(sys.executable).parent}"
    return env


def test_make_demo_talks_and_stays_up_until_ctrl_c(tmp_path: Path) -> None:
    block = blocks(README, "sh")[0]
    demo = Program(["bash", "-c", block], env={**make_env(), "TMPDIR": str(tmp_path)})
    try:
        demo.wait_for(lambda line: line.startswith("curl "), name="stdout", timeout_s=40)
        demo.wait_for(lambda line: "-d '{" in line, name="stdout")
        said = demo.lines("stdout")
        with Shell(tmp_path, {}) as shell:
            streamed = shell.run("\n".join(said[said.index("Next:") + 1 :]))
        demo.press_ctrl_c()
        ended = demo.wait()
    finally:
        demo.close()
    text = ended.stdout
    assert '"content": "Hello from Azure OpenAI! You said: Say hello from Azure OpenAI."' in text
    after = text.split("==> the same, streamed\n")[1]
    assert after.startswith("Hello from Azure OpenAI! You said: Say hello from Azure OpenAI.\n")
    for name in ("proxy", "admin", "metrics", "simulator"):
        assert f"\n  {name} " in text
    assert "caller key sk-azure-caller" in text
    assert "admin key  admin-local-only-change-me" in text
    assert streamed.endswith("data: [DONE]")
    assert "stopped" in text
    assert "Traceback" not in text + ended.stderr
    assert list(tmp_path.glob("aisix-demo-*")) == []


def test_make_demo_says_which_port_is_in_use(followed: Followed) -> None:
    port = followed.gateway.proxy.rpartition(":")[2]
    env = {**make_env(), "DEMO_ARGS": FREE_PORTS.replace("--proxy-port 0", f"--proxy-port {port}")}
    demo = Program(["bash", "-c", blocks(README, "sh")[0]], env=env)
    ended = demo.wait(40)
    assert ended.status != 0
    assert f"demo: port {port} (proxy) is in use: stop what runs there" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_make_test_runs_the_whole_suite() -> None:
    command = ["make", "-n", *blocks(README, "sh")[1].split()[1:]]
    done = subprocess.run(
        command, cwd=ROOT, env=clean_env(make_env()), capture_output=True, text=True, check=True
    )
    assert "python -m pytest -q" in done.stdout.splitlines()[-1]


def test_make_alone_prints_help() -> None:
    done = subprocess.run(
        ["make"], cwd=ROOT, env=clean_env(), capture_output=True, text=True, check=True
    )
    for target in ("demo", "test", "run", "check", "bench"):
        assert f"  {target} " in done.stdout


def test_make_run_starts_the_gateway_alone(tmp_path: Path) -> None:
    env = {
        **make_env(),
        "AISIX_PROXY__ADDR": "127.0.0.1:0",
        "AISIX_ADMIN__ADDR": "127.0.0.1:0",
        "AISIX_OBSERVABILITY__METRICS__PROMETHEUS__ADDR": "127.0.0.1:0",
        "AISIX_STORE__PATH": str(tmp_path / "aisix.db"),
    }
    run = Program(["make", "run"], env=env)
    try:
        run.wait_for(lambda line: "gateway.ready" in line, timeout_s=40)
        os.killpg(run.process.pid, signal.SIGTERM)
        ended = run.wait()
    finally:
        run.close()
    assert '"gateway.stopped"' in ended.stderr
