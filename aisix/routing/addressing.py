"""Which alias a request means, and which deployment serves it: by each row's own way of naming.

Pure. What a response id says is read and written by `affinity`.
"""

from __future__ import annotations

from aisix.core.endpoints import EndpointSpec, Naming, UsageForm
from aisix.core.exchange import Errand, Exchange, Payload
from aisix.core.resources import Alias, ApiKey, Deployment
from aisix.errors import Forbidden
from aisix.routing.affinity import PREVIOUS, Affinity, follow, locate, place_of
from aisix.routing.resolver import ALIAS_HEADER, meant, resolve


def check_family(spec: EndpointSpec, caller: ApiKey) -> None:
    """Objects that all users of a resource share are for caller keys that were given them by name.

    Raises Forbidden.
    """
    if spec.family is not None and spec.family not in caller.allowed_resources:
        raise Forbidden(
            f"API key is not allowed to use {spec.family}; an operator may add it to the key's "
            "allowed_resources"
        )


class Addressing:
    """Finds where exchanges go."""

    def __init__(self) -> None:
        self._affinity: Affinity | None = None

    def find(self, exchange: Exchange, caller: ApiKey, payload: Payload) -> None:
        """Set alias and deployment of `exchange`, and what it says upstream of earlier responses.

        Raises UnknownAlias, Forbidden, NotFound, BadRequest.
        """
        request, snapshot = exchange.request, exchange.snapshot
        spec = request.spec
        if spec.naming is Naming.RESPONSE:
            self._find_response(exchange, caller, payload)
            return
        if spec.naming is Naming.HEADER:
            named = request.path_name or request.headers.get(ALIAS_HEADER)
            payload.requested = meant(snapshot, caller, named)
            payload.errand = Errand(request.method, request.resource, request.query)
        alias, deployment = resolve(snapshot, caller, payload.requested)
        if spec.usage is UsageForm.RESPONSE:
            self._go_on(exchange, caller, payload, alias=alias, deployment=deployment)
            return
        exchange.alias, exchange.deployment = alias, deployment

    def _find_response(self, exchange: Exchange, caller: ApiKey, payload: Payload) -> None:
        shown = exchange.request.resource
        origin = self._seals(exchange).open(shown, caller)
        alias, deployment = locate(origin, exchange.snapshot, caller, shown=shown)
        if origin is not None:
            payload.requested = origin.requested
            request = exchange.request
            payload.errand = Errand(request.method, origin.id, request.query)
        exchange.alias, exchange.deployment = alias, deployment
        place = place_of(alias, deployment, payload.requested)
        exchange.seal = self._seals(exchange).sealer(place, caller, named=origin, shown=shown)

    def _go_on(
        self,
        exchange: Exchange,
        caller: ApiKey,
        payload: Payload,
        *,
        alias: Alias,
        deployment: Deployment,
    ) -> None:
        """A new response is made beside the one it goes on from, if any."""
        previous = payload.document.get(PREVIOUS)
        origin = None
        shown = ""
        if isinstance(previous, str):
            shown = previous
            origin = self._seals(exchange).open(previous, caller)
            deployment = follow(origin, alias, deployment, exchange.snapshot, shown=previous)
        if origin is not None:
            payload.document[PREVIOUS] = origin.id
            payload.raw = b""  # it says something else now
        exchange.alias, exchange.deployment = alias, deployment
        place = place_of(alias, deployment, payload.requested)
        exchange.seal = self._seals(exchange).sealer(place, caller, named=origin, shown=shown)

    def _seals(self, exchange: Exchange) -> Affinity:
        key = exchange.snapshot.seal_key
        if self._affinity is None or self._affinity.key != key:
            self._affinity = Affinity(key)
        return self._affinity
