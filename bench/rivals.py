"""The rivals of `peers.py` as contenders: configuration, command, and how each is called.

One process and one CPU each, as their documents advise for a worker. None gets more to do than
they do by default: no database, no cache, no log of requests beyond their own. I/O.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import peers
from bench.contenders import (
    API_VERSION,
    DEPLOYMENTS,
    MOCK_KEY,
    Running,
    Site,
    StartFailed,
    forwarded,
    free_port,
    process,
    serve,
    wait_answer,
)
from bench.load import Target
from bench.scenarios import Scenario
from bench.settings import HERE

_LITELLM_KEY = "sk-bench-master"
_URL_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Envoy:
    """A compiled proxy that replaces the key."""

    name: str = "envoy"

    def absent(self) -> str | None:
        """When it is not installed."""
        return peers.ENVOY.absent()

    def start(self, site: Site, scenario: Scenario) -> AbstractContextManager[Running]:
        """One worker thread."""
        port = free_port()
        config = site.folder / f"envoy-{scenario.id}.json"
        config.write_text(json.dumps(envoy_config(port, site.upstream)))
        words = [str(peers.ENVOY.program("envoy")), "-c", str(config), "--concurrency", "1"]
        words += ["--disable-hot-restart", "--log-level", "error"]
        return serve(words, forwarded(port), site=site, name=self.name)


def envoy_config(port: int, upstream: str) -> dict[str, object]:
    """A listener that routes everything to the upstream, with its key. Pure."""
    packages = "type.googleapis.com/envoy.extensions.filters"
    route = {"match": {"prefix": "/"}, "route": {"cluster": "azure", "timeout": "0s"}}
    key = {
        "header": {"key": "api-key", "value": MOCK_KEY},
        "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
    }
    host = {
        "name": "all",
        "domains": ["*"],
        "routes": [route],
        "request_headers_to_add": [key],
        "request_headers_to_remove": ["authorization"],
    }
    router = {
        "name": "envoy.filters.http.router",
        "typed_config": {"@type": f"{packages}.http.router.v3.Router"},
    }
    manager = {
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
            "@type": f"{packages}.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "in",
            "route_config": {"virtual_hosts": [host]},
            "http_filters": [router],
        },
    }
    many = {"max_connections": 100_000, "max_pending_requests": 100_000, "max_requests": 100_000}
    upstream_port = int(upstream.rpartition(":")[2])
    cluster = {
        "name": "azure",
        "type": "STATIC",
        "circuit_breakers": {"thresholds": [many]},
        "load_assignment": {
            "cluster_name": "azure",
            "endpoints": [{"lb_endpoints": [{"endpoint": _envoy_address(upstream_port)}]}],
        },
    }
    listener = {"name": "in", **_envoy_address(port), "filter_chains": [{"filters": [manager]}]}
    return {"static_resources": {"listeners": [listener], "clusters": [cluster]}}


def _envoy_address(port: int) -> dict[str, object]:
    return {"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}}


@dataclass(frozen=True, slots=True)
class TensorZero:
    """A gateway in Rust; its store of observations is switched off."""

    name: str = "tensorzero"

    def absent(self) -> str | None:
        """When it is not installed."""
        return peers.TENSORZERO.absent()

    @contextmanager
    def start(self, site: Site, scenario: Scenario) -> Iterator[Running]:
        """It chooses its port and prints its URL."""
        config = site.folder / f"tensorzero-{scenario.id}.toml"
        config.write_text(tensorzero_config(site.upstream))
        words = [str(peers.TENSORZERO.program("python")), str(HERE / "tensorzero_gateway.py")]
        log = site.folder / f"tensorzero-{scenario.id}.log"
        env = {"MOCK_KEY": MOCK_KEY, "TENSORZERO_DISABLE_PSEUDONYMOUS_USAGE_ANALYTICS": "1"}
        began = time.monotonic()
        with process([*words, str(config)], cpus=site.cpus.contender, log=log, env=env) as started:
            base = _printed_url(log, began)
            url = base.replace("//0.0.0.0", "//127.0.0.1") + "/chat/completions"
            wait_answer(started, url, log=log, authority=site.authority)

            def target(deployment: str) -> Target:
                return Target(url, f"tensorzero::model_name::{deployment}")

            yield Running(target, started.pid, time.monotonic() - began)


def _printed_url(log: Path, began: float) -> str:
    while time.monotonic() < began + _URL_TIMEOUT_S:
        for line in log.read_text(errors="replace").splitlines():
            if line.startswith("http://"):
                return line
        time.sleep(0.005)
    raise StartFailed(f"it did not start: {log.read_text(errors='replace')[-400:]}")


def tensorzero_config(upstream: str) -> str:
    """A model for each deployment. Pure."""
    lines = ["[gateway]", "observability.enabled = false"]
    for name in DEPLOYMENTS:
        lines += [f'[models."{name}"]', 'routing = ["azure"]']
        lines += [f'[models."{name}".providers.azure]', 'type = "azure"']
        lines += [f'deployment_id = "{name}"', f'endpoint = "{upstream}"']
        lines += ['api_key_location = "env::MOCK_KEY"']
    return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class LiteLLM:
    """A gateway in Python (FastAPI), one worker, no database."""

    name: str = "litellm"

    def absent(self) -> str | None:
        """When it is not installed."""
        return peers.LITELLM.absent()

    def start(self, site: Site, scenario: Scenario) -> AbstractContextManager[Running]:
        """With the price list that it carries, so that it fetches nothing."""
        port = free_port()
        config = site.folder / f"litellm-{scenario.id}.yaml"
        config.write_text(json.dumps(litellm_config(site.upstream)))  # JSON is YAML
        words = [str(peers.LITELLM.program("litellm")), "--config", str(config)]
        words += ["--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
        env = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"}
        # it would compress for an SDK that takes gzip; the load generator cannot read that
        headers = (("Authorization", f"Bearer {_LITELLM_KEY}"), ("Accept-Encoding", "identity"))

        def target(deployment: str) -> Target:
            return Target(f"http://127.0.0.1:{port}/v1/chat/completions", deployment, headers)

        return serve(words, target, site=site, name=self.name, env=env)


def litellm_config(upstream: str) -> dict[str, object]:
    """A model for each deployment, one master key. Pure."""
    models = [
        {
            "model_name": name,
            "litellm_params": {
                "model": f"azure/{name}",
                "api_base": upstream,
                "api_key": MOCK_KEY,
                "api_version": API_VERSION,
            },
            "model_info": {"base_model": "azure/gpt-4o"},
        }
        for name in DEPLOYMENTS
    ]
    return {
        "model_list": models,
        "general_settings": {"master_key": _LITELLM_KEY},
        "litellm_settings": {"telemetry": False},
    }


@dataclass(frozen=True, slots=True)
class Portkey:
    """A gateway in JavaScript (Node, Hono). It takes its target from the caller's headers."""

    name: str = "portkey"

    def absent(self) -> str | None:
        """When it is not installed."""
        return peers.PORTKEY.absent()

    def start(self, site: Site, scenario: Scenario) -> AbstractContextManager[Running]:
        """Through its OpenAI dialect, whose base URL may be any."""
        port = free_port()
        package = peers.PORTKEY.folder / "node_modules" / "@portkey-ai" / "gateway"
        words = ["node", str(package / "build" / "start-server.js"), f"--port={port}", "--headless"]
        headers = (
            ("Authorization", f"Bearer {MOCK_KEY}"),
            ("x-portkey-provider", "openai"),
            ("x-portkey-custom-host", f"{site.upstream}/v1"),
        )

        def target(deployment: str) -> Target:
            return Target(f"http://127.0.0.1:{port}/v1/chat/completions", deployment, headers)

        env = {"NODE_ENV": "production"}
        return serve(words, target, site=site, name=self.name, env=env)
