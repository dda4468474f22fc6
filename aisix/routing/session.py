"""What a request for a realtime session asks for: all of it is in the query. Pure.

`model` names the alias, or `deployment`, as AzureOpenAI SDKs write; the latter wins, like a
deployment in a path. Of the rest only what is known to be harmless goes upstream: a query may hold
keys, and the upstream's address is not the caller's to write.
"""

from __future__ import annotations

from urllib.parse import parse_qs

from aisix.core.exchange import Payload
from aisix.core.uplink import Uplink
from aisix.errors import BadRequest

_NAMES = ("deployment", "model")
_FORWARDED = {"intent": frozenset({"transcription"})}
"""Parameters that go upstream, and the values that they may have."""

_MAX_PARAMETERS = 64


def parse_session(query: str) -> Payload:
    """The session that `query` asks for. Raises BadRequest naming the parameter."""
    try:
        found = parse_qs(query, keep_blank_values=True, max_num_fields=_MAX_PARAMETERS)
    except ValueError as error:
        raise BadRequest(f"the query has more than {_MAX_PARAMETERS} parameters") from error
    forwarded: list[tuple[str, str]] = []
    for name, values in _FORWARDED.items():
        if name in found:
            value = found[name][-1]
            if value not in values:
                known = ", ".join(sorted(values))
                raise BadRequest(f"the query parameter {name} must be {known}", param=name)
            forwarded.append((name, value))
    return Payload(
        document={},
        requested=_requested_name(found),
        stream=True,
        source=Uplink(),
        query=tuple(forwarded),
    )


def _requested_name(found: dict[str, list[str]]) -> str:
    for name in _NAMES:
        if name in found:
            values = set(found[name])
            if len(values) > 1:
                raise BadRequest(f"the query names more than one {name}", param=name)
            if not found[name][0]:
                raise BadRequest(f"the query parameter {name} must not be empty", param=name)
            return found[name][0]
    raise BadRequest(
        "the query parameter model is required: the name of a model this gateway serves",
        param="model",
    )
