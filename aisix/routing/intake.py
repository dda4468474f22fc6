"""The body of a request in the form its row asks for: read whole, held in part, or left to pass.

Pure but for the reading.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import parse_qsl

from aisix.core.endpoints import BodyForm
from aisix.core.exchange import Payload
from aisix.core.request import InboundRequest
from aisix.routing.form import read_form
from aisix.routing.passage import pass_body
from aisix.routing.payload import check_encoding, check_headers, parse_payload
from aisix.routing.session import parse_session


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """Bytes; 0 = no limit. `whole` for bodies that are read whole, and for what is held of others;
    `upload` for those that pass."""

    whole: int = 0
    upload: int = 0

    def of(self, form: BodyForm) -> int:
        """The limit of a body that is taken in this form."""
        return self.whole if form is BodyForm.JSON else self.upload


async def take_in(request: InboundRequest, limits: BodyLimits) -> Payload:
    """The payload of `request`. Raises BadRequest, BodyTooLarge, UnsupportedEncoding."""
    form = request.spec.body
    if form is BodyForm.JSON:
        check_headers(request.headers)
        raw = await request.body.read_all(limits.whole)
        return parse_payload(raw, request.spec, request.path_name)
    if form is BodyForm.SESSION:
        return parse_session(request.query)
    if form is BodyForm.NONE:
        stream = request.spec.may_stream and _wants_stream(request.query)
        return Payload(document={}, requested="", stream=stream)
    check_encoding(request.headers)
    if form is BodyForm.FORM:
        return await read_form(request, limit_bytes=limits.upload, hold_bytes=limits.whole)
    return pass_body(request, limit_bytes=limits.upload)


def _wants_stream(query: str) -> bool:
    return ("stream", "true") in parse_qsl(query.lower())
