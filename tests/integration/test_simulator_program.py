"""`python -m aisix.simulator` as a process."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "aisix.simulator"]


@contextlib.contextmanager
def simulator(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    process = subprocess.Popen(
        [*COMMAND, "--port", "0", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line.startswith("simulator listening on http://127.0.0.1:")
        yield process, line.split()[-1]
    finally:
        process.kill()
        process.communicate()


def chat(url: str, deployment: str = "dep", key: str = "simulator-key") -> Any:
    path = f"/openai/deployments/{deployment}/chat/completions?api-version=2024-10-21"
    body = json.dumps({"messages": [{"role": "user", "content": "ping"}]}).encode()
    request = urllib.request.Request(url + path, body, {"api-key": key})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_says_where_it_listens_and_ends_quietly(number: signal.Signals) -> None:
    with simulator("--chunks", "3") as (process, url):
        assert chat(url)["usage"]["completion_tokens"] == 3
        process.send_signal(number)
        assert process.communicate(timeout=10) == ("", "")
        assert process.returncode == 0


def test_its_options_reach_the_resource() -> None:
    arguments = ("--api-key", "k1", "--deployments", "a,b", "--script", "cached1", "--no-entra")
    with simulator(*arguments, "--latency-ms", "1", "--chunk-interval-ms", "0") as (_, url):
        assert chat(url, "a", "k1")["usage"]["prompt_tokens_details"]["cached_tokens"] == 1
        for deployment, key, status in (("c", "k1", 404), ("a", "simulator-key", 401)):
            with pytest.raises(urllib.error.HTTPError) as caught:
                chat(url, deployment, key)
            assert caught.value.code == status
            caught.value.close()


def test_its_options_reach_the_token_endpoints(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("federated")
    form = {
        "grant_type": "client_credentials",
        "client_id": "app",
        "scope": "https://cognitiveservices.azure.com/.default",
        "client_assertion": "federated",
        "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
    }
    arguments = ("--federated-token-file", str(file), "--identity", "mine", "--no-system-identity")
    with simulator(*arguments) as (_, url):
        body = urllib.parse.urlencode(form).encode()
        with urllib.request.urlopen(f"{url}/tid/oauth2/v2.0/token", body, timeout=10) as answer:
            assert json.load(answer)["access_token"]
        imds = f"{url}/metadata/identity/oauth2/token?api-version=2018-02-01"
        imds += "&resource=https://cognitiveservices.azure.com"
        named = urllib.request.Request(f"{imds}&client_id=mine", headers={"Metadata": "true"})
        with urllib.request.urlopen(named, timeout=10) as answer:
            assert json.load(answer)["client_id"] == "mine"
        unnamed = urllib.request.Request(imds, headers={"Metadata": "true"})
        with pytest.raises(urllib.error.HTTPError, match="400") as caught:
            urllib.request.urlopen(unnamed, timeout=10)
        caught.value.close()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--script", "nonsense"), "unknown token 'nonsense'"),
        (("--tls-cert", "x.pem"), "go together"),
        (("--tls-cert", "x.pem", "--tls-key", "y.pem"), "cannot use x.pem"),
        (("--client-certificate", "x.pem"), "cannot use x.pem as client certificate"),
        (("--client-certificate", __file__), "as client certificate"),
        (("--port", "99999"), "must be from 0 to 65535"),
        (("--port", "0", "--host", "192.0.2.1"), "cannot listen on 192.0.2.1:0: Cannot assign"),
        (("--port", "0", "--host", "no.such.host.invalid"), "cannot listen on no.such"),
        (("--latency-ms", "soon"), "must be a whole number"),
    ],
)
def test_what_cannot_work_is_said_in_a_line(arguments: tuple[str, ...], words: str) -> None:
    done = subprocess.run(
        [*COMMAND, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=20, check=False
    )
    assert done.returncode == 2
    assert words in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_a_port_in_use_is_said_in_a_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [*COMMAND, "--port", port], cwd=ROOT, capture_output=True, text=True, check=False
        )
    assert done.returncode == 2
    assert done.stderr == (
        f"aisix.simulator: cannot listen on 127.0.0.1:{port}: Address already in use "
        "(choose another with --port)\n"
    )
