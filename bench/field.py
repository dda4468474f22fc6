"""The table of all contenders, and how those of a scenario are chosen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

from bench import nginx
from bench.contenders import Contender, Direct, Running, Site, StaticJson, StockBaseline
from bench.gateway import Gateway
from bench.rivals import Envoy, LiteLLM, Portkey, TensorZero
from bench.scenarios import Scenario

PEERS = ("envoy", "tensorzero", "portkey", "litellm")
_ALL: tuple[Contender, ...] = (
    Direct(),
    StaticJson(),
    nginx.Nginx(),
    Envoy(),
    TensorZero(),
    Portkey(),
    LiteLLM(),
    StockBaseline(),
    Gateway(),
    Gateway("gateway-2", workers=2),
    Gateway("gateway-tls", upstream_tls=True),
    Gateway("gateway-h2", upstream_tls=True, http2=True),
)
FIELD: Mapping[str, Contender] = {contender.name: contender for contender in _ALL}
# what must be measured without a failed request, or the run has failed
OURS = tuple(c.name for c in _ALL if isinstance(c, Direct | StaticJson | StockBaseline | Gateway))


def wanted_peers(asked: Sequence[str]) -> set[str]:
    """The rivals of BENCH_PEERS. Raises ValueError naming an unknown one."""
    unknown = [name for name in asked if name not in (*PEERS, "all")]
    if unknown:
        raise ValueError(f"BENCH_PEERS: no rival {unknown[0]!r}; there are all, {', '.join(PEERS)}")
    return set(PEERS) if "all" in asked else set(asked)


def taking_part(scenario: Scenario, peers: set[str]) -> list[Contender]:
    """The scenario's contenders, without the rivals that were not asked for."""
    names = [name for name in scenario.contenders if name not in PEERS or name in peers]
    return [FIELD[name] for name in names]


@contextmanager
def started(contender: Contender, site: Site, scenario: Scenario) -> Iterator[Running]:
    """The contender at work, behind a TLS end for the load where the scenario wants one."""
    with ExitStack() as stack:
        running = stack.enter_context(contender.start(site, scenario))
        if scenario.tls_in:
            running = stack.enter_context(nginx.tls_front(running, site))
        yield running
