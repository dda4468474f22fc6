"""One envelope, one set of retry hints."""

from __future__ import annotations

import pytest

from aisix import errors
from aisix.errors import (
    BadRequest,
    GatewayError,
    LimitExceeded,
    UpstreamRejected,
    answer_headers,
    envelope,
)


def test_the_base_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        GatewayError("x")


def test_all_four_keys_are_present():
    assert envelope(BadRequest("m")) == {
        "error": {
            "message": "m",
            "type": "invalid_request_error",
            "param": None,
            "code": "invalid_request_error",
        }
    }


def limited(wait: float | None) -> LimitExceeded:
    return LimitExceeded("m", layer="api_key", limit="rpm", scope="requests", retry_after_s=wait)


@pytest.mark.parametrize(
    ("error", "headers"),
    [
        (limited(0.2), {"Retry-After": "1", "retry-after-ms": "200"}),
        (limited(59.5), {"Retry-After": "60", "retry-after-ms": "59500"}),
        (
            limited(86400.0),
            {"Retry-After": "86400", "retry-after-ms": "86400000", "x-should-retry": "false"},
        ),
        (limited(None), {}),
        (
            UpstreamRejected("m", status=429, upstream_status=429, retry_after_s=86400.0),
            {"Retry-After": "60", "retry-after-ms": "60000"},
        ),
        (BadRequest("m", should_retry=False), {"x-should-retry": "false"}),
    ],
)
def test_retry_hints(error, headers):
    """Our own hints are true, an upstream's are clamped (decisions §9)."""
    assert answer_headers(error) == headers


def test_every_kind_has_a_status_and_a_type():
    kinds = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, GatewayError) and kind is not GatewayError
    ]
    assert len(kinds) > 15
    for kind in kinds:
        assert 400 <= kind.status <= 599
        assert kind.type
        assert kind.__doc__
