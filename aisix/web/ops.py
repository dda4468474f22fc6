"""Probes and the scrape: `/livez`, `/readyz` on proxy and admin, `/metrics` on its own port."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from typing import Any

from aisix.web.base import BaseHandler, ProcessState, given_id

PROBE_PATHS = frozenset({"/livez", "/livez/", "/readyz", "/readyz/"})

_TEXT = "text/plain; charset=utf-8"
_REQUEST_ID_HEADERS = ("x-aisix-request-id",)


class _ProbeHandler(BaseHandler):
    """A probe: 200 `ok`, or 503 naming itself; `?verbose` lists its checks."""

    name = ""

    def initialize(self, state: ProcessState, admin: bool) -> None:
        """Called by Tornado for each request. `admin`: errors wear the admin API's envelope."""
        self.state = state
        self.admin = admin

    def prepare(self) -> None:
        """Every answer has an id."""
        self.name_request(given_id(self.request.headers, _REQUEST_ID_HEADERS) or str(uuid.uuid4()))

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Tornado's own refusals in the envelope of the listener."""
        self.prepare()  # Tornado has dropped the headers, or refused before `prepare`
        if status_code == 405:
            self.set_header("Allow", "GET, HEAD")
        if not self.admin:
            super().write_error(status_code, **kwargs)
            return
        self.set_header("Content-Type", "application/json")
        self.finish(json.dumps({"error_msg": self._reason.lower()}).encode())

    def checks(self) -> dict[str, bool]:
        """Named checks; all must pass."""
        return {"process": True}

    def get(self) -> None:
        """Answer the probe."""
        checks = self.checks()
        good = all(checks.values())
        lines: list[str] = []
        if "verbose" in self.request.query_arguments or not good:
            lines = [f"[{'+' if ok else '-'}]{name}" for name, ok in checks.items()]
        lines.append("ok" if good else f"{self.name} check failed")
        self.set_status(200 if good else 503)
        self.set_header("Content-Type", _TEXT)
        self.finish("\n".join(lines))

    head = get


class LivenessHandler(_ProbeHandler):
    """The process runs; it stays live while it drains (decisions §9)."""

    name = "livez"


class ReadinessHandler(_ProbeHandler):
    """The process should receive traffic: resources are loaded and it is not draining."""

    name = "readyz"

    def checks(self) -> dict[str, bool]:
        """Loaded, and not on the way out."""
        return {"resources-loaded": self.state.ready, "not-draining": not self.state.draining}


class MetricsHandler(BaseHandler):
    """The Prometheus scrape."""

    def initialize(self, render: Callable[[], tuple[str, bytes]]) -> None:
        """Called by Tornado for each request."""
        self._render = render

    def get(self) -> None:
        """The current values."""
        content_type, body = self._render()
        self.set_header("Content-Type", content_type)
        self.finish(body)


class NoRouteHandler(BaseHandler):
    """404 in words, for listeners without a pipeline."""

    def prepare(self) -> None:
        """Answer whatever was asked."""
        self.set_status(404)
        self.set_header("Content-Type", _TEXT)
        self.finish("no such route")


def probe_routes(state: ProcessState, *, admin: bool = False) -> list[Any]:
    """The probes, for any listener; `admin` when it is the admin API's."""
    settings = {"state": state, "admin": admin}
    return [
        (r"/livez/?", LivenessHandler, settings),
        (r"/readyz/?", ReadinessHandler, settings),
    ]
