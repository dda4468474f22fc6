"""Real clients, each in its own environment, against simulator and gateway as processes.

Run by `make test-clients`; `CLIENTS="NAME …"` chooses some of them.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.clients import environments, results
from tests.clients.registry import UPSTREAMS, Client
from tests.support.process import CALLER_KEY, Stand, clean_env, stand
from tests.support.tls import Certificate, make_certificate

pytestmark = [pytest.mark.clients, pytest.mark.timeout(1200)]

PROGRAM_TIMEOUT_S = 240.0
STORING_KEY = f"{CALLER_KEY}-storing"
BARRED_KEY = f"{CALLER_KEY}-barred"
ROLES = {
    "chat": "gpt4o-prod",
    "embeddings": "embedding-3",
    "dall_e": "dalle3",
    "gpt_image": "gpt-image-1",
    "whisper": "whisper",
    "transcribe": "gpt-4o-transcribe",
    "speech": "tts",
    "realtime": "rt",
    "throttled": "gpt4o-err429",
    "every_other_throttled": "gpt4o-err429-retryms10-every2",
    "broken": "gpt4o-cut3-d20",
}
"""Deployments by the role they play; their names hold scripts (docs/simulator.md)."""


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("tls"), "127.0.0.1")


@contextmanager
def peopled(folder: Path, settings: dict[str, str] | None = None) -> Iterator[Stand]:
    """A gateway with an alias for each role in front of each api-version."""
    with stand(folder, settings) as running:
        gateway = running.gateway
        for upstream in UPSTREAMS:
            key = gateway.create_provider_key(running.azure.url, api_version=upstream)
            for role, deployment in ROLES.items():
                gateway.create_model(alias(role, upstream), deployment, key)
        gateway.create_caller_key(STORING_KEY, allowed_resources=["files", "batches"])
        gateway.create_caller_key(BARRED_KEY, rate_limit={"rpm": 0})
        yield running


def alias(role: str, upstream: str) -> str:
    """The alias of a role in front of an api-version."""
    return f"{role}.{upstream}"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    with peopled(tmp_path_factory.mktemp("plain")) as running:
        yield running


@pytest.fixture(scope="module")
def secured(certificate: Certificate, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    settings = {
        "AISIX_PROXY__TLS__CERT_FILE": str(certificate.chain),
        "AISIX_PROXY__TLS__KEY_FILE": str(certificate.key),
    }
    with peopled(tmp_path_factory.mktemp("secured"), settings) as running:
        yield running


@pytest.mark.parametrize("upstream", UPSTREAMS)
@pytest.mark.parametrize(
    "client",
    environments.chosen(os.environ.get("AISIX_TEST_CLIENTS", "").split()),
    ids=lambda client: client.name,
)
def test_a_client_can_do_all_that_it_has(
    client: Client, upstream: str, certificate: Certificate, request: pytest.FixtureRequest
) -> None:
    results.forget(client, upstream)
    try:
        environments.prepare(client)
    except environments.CannotMake as error:
        if os.environ.get("REQUIRE_SERVICES") == "1":
            pytest.fail(str(error))
        pytest.skip(str(error))
    bench: Stand = request.getfixturevalue("secured" if client.tls else "plain")
    command, place = environments.command(client)
    given = {
        "GATEWAY_URL": bench.gateway.proxy,
        "GATEWAY_KEY": STORING_KEY,
        "GATEWAY_BARRED_KEY": BARRED_KEY,
        "GATEWAY_ALIASES": json.dumps({role: alias(role, upstream) for role in ROLES}),
        "SSL_CERT_FILE": str(certificate.authority),
    }
    done = subprocess.run(
        command,
        cwd=place,
        env=clean_env(given),
        capture_output=True,
        text=True,
        timeout=PROGRAM_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    attempts = results.parse(done.stdout)
    assert results.complaints(client, attempts) == []
    results.keep(client, upstream, results.Result(environments.runtime(client), attempts))
