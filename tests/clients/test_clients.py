"""Real clients, each in its own environment, against simulator and gateway as processes.

Run by `make test-clients`; `CLIENTS="NAME …"` chooses some of them.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
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
    "chat": ("gpt-4o", "gpt4o-prod"),
    "embeddings": ("text-embedding-3-small", "embedding-prod"),
    "dall_e": ("dall-e-3", "dalle-prod"),
    "gpt_image": ("gpt-image-1", "gpt-image-prod"),
    "whisper": ("whisper-1", "whisper-prod"),
    "transcribe": ("gpt-4o-transcribe", "gpt-4o-transcribe-prod"),
    "speech": ("tts-1", "tts-prod"),
    "realtime": ("gpt-realtime", "rt-prod"),
    "throttled": ("throttled", "gpt4o-err429"),
    "every_other_throttled": ("every-other-throttled", "gpt4o-err429-retryms10-every2"),
    "broken": ("broken", "gpt4o-cut3-d20"),
}
"""Alias and deployment by the role they play.

Some clients look at a model's name, so the aliases are OpenAI's names; a deployment's name holds
what the simulator is to do (docs/simulator.md).
"""


@contextmanager
def peopled(folder: Path, upstream: str, certificate: Certificate | None) -> Iterator[Stand]:
    """A gateway that calls Azure by one api-version and has every alias; with TLS, or without."""
    settings = {}
    if certificate is not None:
        settings["AISIX_PROXY__TLS__CERT_FILE"] = str(certificate.chain)
        settings["AISIX_PROXY__TLS__KEY_FILE"] = str(certificate.key)
    with stand(folder, settings) as running:
        gateway = running.gateway
        key = gateway.create_provider_key(running.azure.url, api_version=upstream)
        for alias, deployment in ROLES.values():
            gateway.create_model(alias, deployment, key)
        gateway.create_caller_key(STORING_KEY, allowed_resources=["files", "batches"])
        gateway.create_caller_key(BARRED_KEY, rate_limit={"rpm": 0})
        yield running


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("tls"), "127.0.0.1")


Open = Callable[[str, bool], Stand]


@pytest.fixture(scope="module")
def stand_for(certificate: Certificate, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Open]:
    """Stands by api-version and TLS, started when first asked for."""
    with ExitStack() as stack:

        @functools.cache
        def opened(upstream: str, tls: bool) -> Stand:
            folder = tmp_path_factory.mktemp("stand")
            return stack.enter_context(peopled(folder, upstream, certificate if tls else None))

        yield opened


@pytest.mark.parametrize("upstream", UPSTREAMS)
@pytest.mark.parametrize(
    "client",
    environments.chosen(os.environ.get("AISIX_TEST_CLIENTS", "").split()),
    ids=lambda client: client.name,
)
def test_a_client_can_do_all_that_it_has(
    client: Client, upstream: str, certificate: Certificate, stand_for: Open
) -> None:
    results.forget(client, upstream)
    try:
        environments.prepare(client)
    except environments.CannotMake as error:
        if os.environ.get("REQUIRE_SERVICES") == "1":
            pytest.fail(str(error))
        pytest.skip(str(error))
    bench = stand_for(upstream, client.tls)
    command, place = environments.command(client)
    given = {
        "GATEWAY_URL": bench.gateway.proxy,
        "GATEWAY_KEY": STORING_KEY,
        "GATEWAY_BARRED_KEY": BARRED_KEY,
        "GATEWAY_ALIASES": json.dumps({role: alias for role, (alias, _) in ROLES.items()}),
        "SSL_CERT_FILE": str(certificate.authority),
        "NODE_EXTRA_CA_CERTS": str(certificate.authority),
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
    wrong = results.complaints(client, attempts)
    assert not wrong, "\n".join(wrong)
    results.keep(client, upstream, results.Result(environments.runtime(client), attempts))
