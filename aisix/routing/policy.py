"""What an attempt's outcome means: return it, or repair the call and try once more. Pure.

The gateway does not retry on its own yet (decisions §9); two repairs are no retries in that sense,
because they change the call: a fresh Entra token after a 401 that says so, and leaving
`stream_options` out for an api-version that does not know it. Each is made at most once per
exchange.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from aisix.errors import (
    CredentialRefused,
    CredentialUnavailable,
    GatewayError,
    UpstreamBroken,
    UpstreamMisconfigured,
    UpstreamRejected,
    UpstreamTimeout,
    UpstreamUnreachable,
)


class Verdict(Enum):
    """The next step after an answer with an error status."""

    RETURN = "return"
    RENEW_TOKEN = "renew_token"  # noqa: S105 - a verdict, not a credential
    DROP_STREAM_OPTIONS = "drop_stream_options"


@dataclass(slots=True)
class Repairs:
    """What may still be repaired in this exchange."""

    token: bool
    stream_options: bool

    def judge(self, *, token_refused: bool, stream_options_refused: bool) -> Verdict:
        """The verdict on an error answer; a repair is spent when it is chosen."""
        if self.token and token_refused:
            self.token = False
            return Verdict.RENEW_TOKEN
        if self.stream_options and stream_options_refused:
            self.stream_options = False
            return Verdict.DROP_STREAM_OPTIONS
        return Verdict.RETURN


def health_reason(error: GatewayError) -> str | None:
    """Why `error` counts against the upstream's health, or None: callers' mistakes and quotas do
    not.
    """
    if isinstance(error, UpstreamTimeout):
        return "request_timeout"
    if isinstance(error, UpstreamUnreachable | CredentialUnavailable):
        return "transport_error"
    if isinstance(error, UpstreamMisconfigured):
        return "upstream_misconfigured"
    if isinstance(error, CredentialRefused):
        return "upstream_auth_failure"
    if isinstance(error, UpstreamBroken):
        if error.status == 429:
            return None
        return "upstream_decode_error" if error.kind == "decode" else "upstream_stream_error"
    if isinstance(error, UpstreamRejected):
        if error.upstream_status >= 500:
            return "upstream_server_error"
        if error.upstream_status in (401, 403):
            return "upstream_auth_failure"
    return None
