"""The gateway as a contender: the shipped configuration, everything on. I/O.

Authentication, limits on requests, tokens and concurrency, rewriting, usage, metrics and the
access log (to a file). Resources are made through its admin API, as an operator would.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from bench import proc
from bench.contenders import (
    DEPLOYMENTS,
    MOCK_KEY,
    Running,
    Site,
    StartFailed,
    Unavailable,
    free_port,
    process,
    simulator,
    wait_answer,
)
from bench.load import ALIAS_MARK, KEY_MARK, Target
from bench.nginx import absent as nginx_absent
from bench.nginx import tls_upstream
from bench.scenarios import Measure, Scenario
from bench.settings import ROOT

ADMIN_KEY = "bench-admin-key"
CALLER_KEY = "sk-bench-0123456789abcdef01234567-"
LIMITED_KEY = "sk-bench-limited-0123456789abcdef"
AMPLE: Mapping[str, int] = {"rpm": 100_000_000, "tpm": 10_000_000_000, "concurrency": 1_000_000}


@dataclass(frozen=True, slots=True)
class Gateway:
    """The gateway with a number of workers, over plain HTTP, TLS or HTTP/2 to its upstream."""

    name: str = "gateway"
    workers: int = 1
    upstream_tls: bool = False
    http2: bool = False

    def absent(self) -> str | None:
        """When the upstream needs the nginx that is not there."""
        return nginx_absent() if self.upstream_tls else None

    @contextmanager
    def start(self, site: Site, scenario: Scenario) -> Iterator[Running]:
        """`server.py` with its resources. Raises Unavailable when it has no workers to offer."""
        ports = {"proxy": free_port(), "admin": free_port(), "metrics": free_port()}
        folder = Path(mkdtemp(prefix=self.name, dir=site.folder))
        log = folder / "gateway.log"
        words = site.python("server.py", "--config", "config/config.yaml")
        cpus = site.cpus.workers if self.workers > 1 else site.cpus.contender
        scheme = "https" if scenario.tls_in else "http"
        with ExitStack() as stack:
            upstream = self._upstream(stack, site, scenario)
            env = self._environment(ports, site, scenario) | {
                "AISIX_STORE__PATH": str(folder / "aisix.db")
            }
            began = time.monotonic()
            program = stack.enter_context(process(words, cpus=cpus, log=log, env=env, cwd=ROOT))
            url = f"{scheme}://127.0.0.1:{ports['proxy']}/v1/chat/completions"
            wait_answer(program, url, log=log, authority=site.authority)
            ready_s = time.monotonic() - began
            if self.workers > 1 and len(proc.tree(program.pid)) < self.workers:
                raise Unavailable(f"{self.workers} workers: not supported by this version")
            with Admin(ports["admin"]) as admin:
                prepare(admin, upstream, scenario)
            yield Running(called(url, scenario), program.pid, ready_s)

    def _upstream(self, stack: ExitStack, site: Site, scenario: Scenario) -> str:
        if scenario.measure is Measure.BULK:
            return stack.enter_context(simulator(site))
        return stack.enter_context(tls_upstream(site)) if self.upstream_tls else site.upstream

    def _environment(
        self, ports: Mapping[str, int], site: Site, scenario: Scenario
    ) -> dict[str, str]:
        env = {
            "AISIX_PROXY__ADDR": f"127.0.0.1:{ports['proxy']}",
            "AISIX_PROXY__WORKERS": str(self.workers),
            "AISIX_ADMIN__ADDR": f"127.0.0.1:{ports['admin']}",
            "AISIX_ADMIN__ADMIN_KEYS": ADMIN_KEY,
            "AISIX_OBSERVABILITY__METRICS__PROMETHEUS__ADDR": f"127.0.0.1:{ports['metrics']}",
        }
        if scenario.tls_in:
            env["AISIX_PROXY__TLS__CERT_FILE"] = str(site.certificate)
            env["AISIX_PROXY__TLS__KEY_FILE"] = str(site.certificate)
        if self.upstream_tls:
            env["AISIX_UPSTREAM__TLS__CA_FILE"] = str(site.authority)
            env["AISIX_UPSTREAM__HTTP2"] = str(self.http2).lower()
        return env


def called(url: str, scenario: Scenario) -> Callable[[str], Target]:
    """How the gateway is called in a scenario: one key and alias, or all of them in turn."""
    many = scenario.keys > 1
    key = CALLER_KEY + (KEY_MARK if many else caller_number(0))
    if scenario.limit_rps:
        key = LIMITED_KEY

    def target(deployment: str) -> Target:
        alias = f"{deployment}-{ALIAS_MARK}" if many else deployment
        return Target(url, alias, (("Authorization", f"Bearer {key}"),))

    return target


def caller_number(index: int) -> str:
    """A number as the load generator writes it into the key."""
    return f"{index:0{len(KEY_MARK)}d}"


def alias_number(index: int) -> str:
    """A number as the load generator writes it into the alias."""
    return f"{index:0{len(ALIAS_MARK)}d}"


class Admin:
    """The admin API over one connection."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)

    def __enter__(self) -> Admin:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._connection.close()

    def create(self, kind: str, body: Mapping[str, Any]) -> str:
        """A resource; its id. Raises StartFailed with the answer when it is refused."""
        return self._send("POST", f"/admin/v1/{kind}", body)

    def replace(self, kind: str, id_: str, body: Mapping[str, Any]) -> None:
        """Another value for a resource. Raises StartFailed."""
        self._send("PUT", f"/admin/v1/{kind}/{id_}", body)

    def _send(self, method: str, path: str, body: Mapping[str, Any]) -> str:
        headers = {"Authorization": f"Bearer {ADMIN_KEY}", "Content-Type": "application/json"}
        self._connection.request(method, path, json.dumps(body), headers)
        answer = self._connection.getresponse()
        text = answer.read()
        if answer.status != http.client.OK:
            raise StartFailed(f"{method} {path}: {answer.status} {text[:300]!r}")
        return str(json.loads(text)["id"])


def prepare(admin: Admin, upstream: str, scenario: Scenario) -> None:
    """One provider key, an alias for each deployment, the caller keys, ample limits."""
    provider_key = admin.create(
        "provider_keys",
        {
            "display_name": "mock",
            "provider": "azure",
            "adapter": "azure-openai",
            "secret": MOCK_KEY,
            "api_base": upstream,
        },
    )
    for alias, deployment in _aliases(scenario):
        admin.create(
            "models",
            {
                "display_name": alias,
                "provider": "azure",
                "model_name": deployment,
                "provider_key_id": provider_key,
            },
        )
    for index in range(scenario.keys):
        admin.create("apikeys", caller(CALLER_KEY + caller_number(index), AMPLE))
    if scenario.limit_rps:
        limits = {**AMPLE, "rps": scenario.limit_rps}
        admin.create("apikeys", caller(LIMITED_KEY, limits))


def _aliases(scenario: Scenario) -> Iterator[tuple[str, str]]:
    for deployment in DEPLOYMENTS:
        yield deployment, deployment
    if scenario.aliases > 1:
        for index in range(scenario.aliases):
            yield f"{scenario.deployment}-{alias_number(index)}", scenario.deployment


def caller(key: str, limits: Mapping[str, int]) -> dict[str, Any]:
    """A caller key that may use every alias within these limits. Pure."""
    return {
        "key_hash": hashlib.sha256(key.encode()).hexdigest(),
        "allowed_models": ["*"],
        "allowed_resources": ["files"],
        "rate_limit": dict(limits),
    }
