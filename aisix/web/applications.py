"""The applications of the listeners beside the proxy: admin and metrics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tornado.web

from aisix.admin.service import AdminService
from aisix.web.admin import admin_routes
from aisix.web.base import ProcessState
from aisix.web.ops import MetricsHandler, NoRouteHandler, probe_routes

Application = tornado.web.Application
"""What a listener serves; named here so that the composition root need not know Tornado."""


def admin_application(
    service: AdminService, *, admin_keys: Sequence[str], state: ProcessState
) -> Application:
    """What operators call."""
    routes = admin_routes(service, admin_keys=admin_keys, state=state)
    return _application([*probe_routes(state, admin=True), *routes])


def metrics_application(
    render: Callable[[], tuple[str, bytes]], *, path: str, state: ProcessState
) -> Application:
    """What Prometheus scrapes."""
    return _application(
        [
            (path, MetricsHandler, {"render": render}),
            *probe_routes(state),
            (r".*", NoRouteHandler),
        ]
    )


def _application(routes: list[Any]) -> Application:
    """Tornado's own access log is off: the pipeline and the audit log write ours."""
    return Application(routes, log_function=lambda _handler: None)
