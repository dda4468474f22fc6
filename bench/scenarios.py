"""The table of scenarios: what is loaded, by how many connections, and who takes part. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from fnmatch import fnmatchcase

# who takes part, in the order of a round
EVERYONE = (
    "direct",
    "nginx",
    "envoy",
    "tensorzero",
    "portkey",
    "litellm",
    "baseline",
    "gateway",
)
OWN = ("baseline", "gateway")


class Measure(Enum):
    """How a scenario is measured: one function of `measures.py` each."""

    LOAD = auto()
    IDLE = auto()
    PEAK = auto()
    SLOW_READER = auto()
    BULK = auto()
    SOAK = auto()
    START = auto()


@dataclass(frozen=True, slots=True)
class Scenario:
    """One row.

    `deployment` tells the mock what to do (see `mockaz.c`; for BULK, which needs files, the
    project's own simulator); `chunks` is the number of streamed content chunks, 0 for an answer in
    one piece; `delay_s` the mock's own time, from which the ideal rate follows; `lockstep` sends
    all requests together, again and again; `spread` asks how the connections are spread over the
    processes; `keys` and `aliases` how many are configured and used in turn; `rate` a constant
    number of requests per second, of which `limit_rps` may pass (0 = as fast as answers come, all
    of them). For BULK `connections` are slow readers, `body_bytes` what goes up and down each.
    """

    id: str
    title: str
    measure: Measure = Measure.LOAD
    deployment: str = "echo"
    connections: int = 1
    contenders: tuple[str, ...] = EVERYONE
    chunks: int = 0
    body_bytes: int = 0
    delay_s: float = 0.0
    lockstep: bool = False
    spread: bool = False
    tls_in: bool = False
    keys: int = 1
    aliases: int = 1
    rate: float = 0.0
    limit_rps: int = 0
    quick: bool = False

    @property
    def ideal_rps(self) -> float:
        """What the mock's delay allows at most; 0 = no such bound."""
        return self.connections / self.delay_s if self.delay_s else 0.0


SCENARIOS = (
    Scenario(
        "start",
        "start to first answer",
        Measure.START,
        contenders=(*EVERYONE[1:], "gateway-2"),
        quick=True,
    ),
    Scenario("echo-c1", "echo, c=1", connections=1, quick=True),
    Scenario(
        "echo-c64",
        "echo, c=64",
        connections=64,
        contenders=("static", *EVERYONE),
        quick=True,
    ),
    Scenario(
        "slow100-c500",
        "upstream of 100 ms, c=500",
        deployment="slow100",
        connections=500,
        delay_s=0.1,
        quick=True,
    ),
    Scenario(
        "stream-burst-c64",
        "stream of 50 chunks, burst, c=64",
        deployment="n50",
        connections=64,
        chunks=50,
        quick=True,
    ),
    Scenario(
        "stream-paced-c1",
        "stream of 50 chunks, 5 ms apart, c=1",
        deployment="n50-d5000",
        connections=1,
        chunks=50,
        contenders=("direct", "nginx", *OWN),
    ),
    Scenario(
        "stream-paced-c64",
        "stream of 50 chunks, 5 ms apart, c=64",
        deployment="n50-d5000",
        connections=64,
        chunks=50,
        quick=True,
    ),
    Scenario(
        "stream-lockstep-c64",
        "64 streams begun at the same instant, 50 chunks 5 ms apart",
        deployment="n50-d5000",
        connections=64,
        chunks=50,
        lockstep=True,
        contenders=("direct", "nginx", *OWN),
    ),
    Scenario(
        "idle-2000",
        "2,000 idle streams",
        Measure.IDLE,
        deployment="hold",
        connections=2000,
        chunks=2,
        contenders=OWN,
        quick=True,
    ),
    Scenario(
        "idle-10000",
        "10,000 idle streams, 2 workers",
        Measure.IDLE,
        deployment="hold",
        connections=10_000,
        chunks=2,
        contenders=("gateway-2",),
    ),
    Scenario(
        "body-200k",
        "requests of 200 KB, c=8",
        connections=8,
        body_bytes=200_000,
        contenders=("direct", "nginx", *OWN),
    ),
    Scenario(
        "body-20m",
        "one request of 20 MB",
        Measure.PEAK,
        body_bytes=20_000_000,
        contenders=OWN,
    ),
    Scenario(
        "slow-reader",
        "slow reader of a stream of 100 MB",
        Measure.SLOW_READER,
        deployment="n220000",
        chunks=220_000,
        contenders=OWN,
    ),
    Scenario(
        "bulk",
        "an upload and a download of 500 MB and 200 slow readers at once",
        Measure.BULK,
        deployment="bulk100",
        connections=200,
        body_bytes=500_000_000,
        contenders=("gateway",),
    ),
    Scenario(
        "tls-in",
        "echo over TLS from the caller, c=64",
        connections=64,
        tls_in=True,
        contenders=OWN,
    ),
    Scenario(
        "tls-upstream",
        "echo over TLS to the upstream, HTTP/1.1 and HTTP/2, c=64",
        connections=64,
        contenders=("gateway-tls", "gateway-h2"),
    ),
    Scenario(
        "keys-1000",
        "echo, 1,000 keys and 50 aliases in turn, c=64",
        connections=64,
        keys=1000,
        aliases=50,
        contenders=("gateway",),
    ),
    Scenario(
        "refusals",
        "limiter refuses nine of ten: 1,000 requests/s against rps 100",
        connections=64,
        rate=1000.0,
        limit_rps=100,
        contenders=("gateway",),
    ),
    Scenario(
        "workers",
        "echo, c=256, one process and two workers",
        connections=256,
        spread=True,
        contenders=("gateway", "gateway-2"),
        quick=True,
    ),
    Scenario(
        "soak",
        "echo and paced streams together for long, c=32 each",
        Measure.SOAK,
        connections=32,
        contenders=("gateway",),
    ),
)


def select(only: Sequence[str], scenarios: Sequence[Scenario] = SCENARIOS) -> list[Scenario]:
    """The scenarios named: "quick", "all", ids or patterns of ids, in the table's order.

    Raises ValueError naming what fits nothing.
    """
    chosen: set[str] = set()
    for word in only:
        found = {row.id for row in scenarios if _fits(row, word)}
        if not found:
            known = ", ".join(row.id for row in scenarios)
            raise ValueError(f"BENCH_ONLY: no scenario {word!r}; there are quick, all, {known}")
        chosen |= found
    return [row for row in scenarios if row.id in chosen]


def _fits(scenario: Scenario, word: str) -> bool:
    if word == "quick":
        return scenario.quick
    return word == "all" or fnmatchcase(scenario.id, word)
