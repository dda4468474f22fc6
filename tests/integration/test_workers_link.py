"""Hub and uplinks over real sockets, in one process: publications, health, tokens, strangers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from aisix.core.ports import TokenLease
from aisix.core.resources import ClientSecret, TokenCredential
from aisix.core.snapshot import Snapshot
from aisix.errors import CredentialRefused, CredentialUnavailable
from aisix.routing.health import UNHEALTHY_AFTER, Health
from aisix.workers.hub import Hub
from aisix.workers.link import Applied, Link, LinkLost, Meeting
from aisix.workers.tokens import LinkedTokens
from aisix.workers.uplink import Uplink
from tests.support.builders import make_alias, make_snapshot
from tests.support.control import ManualClock

SECRET = ClientSecret("tenant", "client", "secret", "https://login.example", "scope/.default")
WAIT_S = 10.0
pytestmark = pytest.mark.gen_test


class Lender:
    """A TokenLender as the test says."""

    def __init__(self) -> None:
        self.asked: list[str | None] = []
        self.error: Exception | None = None
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def token(self, credential: TokenCredential) -> str:
        return await self._give(None)

    async def renew(self, credential: TokenCredential, rejected: str) -> str:
        return await self._give(rejected)

    def lease(self, credential: TokenCredential) -> TokenLease:
        return TokenLease(100.0, 200.0, 300.0)

    async def _give(self, rejected: str | None) -> str:
        self.asked.append(rejected)
        await self.go_on.wait()
        if self.error is not None:
            raise self.error
        return f"token {len(self.asked)}"


class Worker:
    """One worker's side of the link; it applies when `may_apply`."""

    def __init__(self, number: int, meeting: Meeting) -> None:
        self.uplink = Uplink(worker=number, meeting=meeting)
        self.clock = ManualClock()
        self.health = Health(self.clock, on_change=self.uplink.note)
        self.tokens = LinkedTokens(self.uplink, self.clock)
        self.applied: list[Snapshot] = []
        self.may_apply = asyncio.Event()
        self.may_apply.set()
        self.task = asyncio.ensure_future(self.uplink.run(self._apply, self.health))

    async def _apply(self, snapshot: Snapshot) -> None:
        await self.may_apply.wait()
        self.applied.append(snapshot)

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        await self.tokens.close()


class Processes:
    """A control process's hub and any number of workers, in this one."""

    def __init__(self, workers: int, acknowledge_s: float) -> None:
        self.count = workers
        self.acknowledge_s = acknowledge_s
        self.meeting = Meeting()
        self.lender = Lender()
        self.replaced: list[int] = []
        self.workers: dict[int, Worker] = {}
        self.hub = self.new_hub()

    def new_hub(self) -> Hub:
        self.hub = Hub(
            workers=self.count,
            meeting=self.meeting,
            replace=self.replaced.append,
            acknowledge_s=self.acknowledge_s,
        )
        return self.hub

    def start(self, number: int) -> Worker:
        self.workers[number] = Worker(number, self.meeting)
        return self.workers[number]


@asynccontextmanager
async def processes(workers: int = 2, *, acknowledge_s: float = WAIT_S) -> AsyncIterator[Processes]:
    """All linked, the empty snapshot published."""
    those = Processes(workers, acknowledge_s)
    try:
        for number in range(workers):
            those.start(number)
        await those.hub.publish(Snapshot())
        await those.hub.open(those.lender)
        assert await those.hub.wait_current(WAIT_S) == []
        yield those
    finally:
        for worker in those.workers.values():
            await worker.stop()
        await those.hub.close()
        those.meeting.close()


async def seen(condition: Callable[[], object]) -> None:
    """Let the loop turn until `condition` holds."""
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0)


# ── publications ────────────────────────────────────────────────────────────────────────────────


async def test_a_publication_is_effective_in_every_worker_when_it_returns():
    snapshot = make_snapshot(revision=7)
    async with processes(3) as those:
        assert await those.hub.publish(snapshot) == 0
        for worker in those.workers.values():
            assert worker.applied[-1] == snapshot
    assert those.replaced == []


async def test_a_worker_that_comes_late_begins_with_the_newest_snapshot():
    async with processes(1) as those:
        await those.hub.publish(make_snapshot(revision=7))
        await those.workers[0].stop()
        successor = those.start(0)
        await seen(lambda: successor.applied)
        assert [snapshot.revision for snapshot in successor.applied] == [7]


@pytest.mark.logs("worker.lagging")
async def test_a_worker_that_does_not_acknowledge_is_counted_and_replaced():
    async with processes(3, acknowledge_s=0.05) as those:
        those.workers[1].may_apply.clear()
        assert await those.hub.publish(make_snapshot(revision=7)) == 1
        assert those.replaced == [1]
        assert those.workers[0].applied[-1].revision == 7


@pytest.mark.logs("worker.lagging")
async def test_a_worker_that_is_not_there_is_late_too():
    async with processes(2, acknowledge_s=0.05) as those:
        await those.workers[0].stop()
        assert await those.hub.publish(make_snapshot()) == 1


async def test_the_successor_of_a_dead_worker_acknowledges_in_its_place():
    async with processes(1) as those:
        await those.workers[0].stop()
        publishing = asyncio.ensure_future(those.hub.publish(make_snapshot()))
        those.start(0)
        assert await publishing == 0


async def test_workers_on_their_way_out_are_not_waited_for():
    async with processes(2) as those:
        await those.workers[0].stop()
        await seen(lambda: len(those.hub) == 1)
        those.hub.wind_down()
        assert await those.hub.publish(make_snapshot()) == 0
        await those.workers[1].stop()
        async with asyncio.timeout(WAIT_S):
            await those.hub.wait_alone()


async def test_a_new_control_process_finds_the_workers_again():
    """They keep what they have meanwhile, and tell what they know of health."""
    async with processes(2) as those:
        those.workers[1].health.failed("gpt", "timeout")
        await those.hub.close()
        await seen(lambda: not those.workers[0].uplink.linked)
        hub = those.new_hub()
        await hub.publish(make_snapshot(revision=9))
        await hub.open(those.lender)
        assert await hub.wait_current(WAIT_S) == []
        assert those.workers[0].applied[-1].revision == 9
        await seen(lambda: hub.last_failure("gpt"))


# ── strangers ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("said", [b"", b"x" * 32, b"x" * 31, b"x" * 4000], ids=len)
async def test_a_stranger_gets_no_word(said: bytes):
    async with processes(1) as those:
        reader, writer = await asyncio.open_unix_connection(those.meeting.socket.getsockname())
        writer.write(said)
        writer.write_eof()
        async with asyncio.timeout(WAIT_S):
            try:
                answer = await reader.read()
            except ConnectionResetError:  # it did not even read all of it
                answer = b""
        assert answer == b""
        writer.close()
        assert len(those.hub) == 1


async def test_a_worker_with_a_number_that_does_not_exist_is_sent_away():
    async with processes(1) as those:
        link = await those.meeting.connect(5)
        with pytest.raises(LinkLost):
            await link.receive()
        link.close()
        assert len(those.hub) == 1


async def test_the_first_word_must_be_a_number():
    async with processes(1) as those:
        reader, writer = await asyncio.open_unix_connection(those.meeting.socket.getsockname())
        writer.write(those.meeting.cookie)
        link = Link(reader, writer)
        link.send(Applied(1))
        with pytest.raises(LinkLost):
            await link.receive()
        link.close()


async def test_a_message_beyond_all_measure_ends_the_link():
    async with processes(1) as those:
        reader, writer = await asyncio.open_unix_connection(those.meeting.socket.getsockname())
        writer.write(those.meeting.cookie + b"\xff\xff\xff\xff")
        async with asyncio.timeout(WAIT_S):
            assert await reader.read() == b""
        writer.close()
        assert len(those.hub) == 1


async def test_nobody_to_meet_is_a_lost_link():
    meeting = Meeting()
    meeting.close()
    with pytest.raises(LinkLost):
        await meeting.connect(0)


# ── health ──────────────────────────────────────────────────────────────────────────────────────


async def test_health_is_the_worst_that_any_worker_sees():
    async with processes(2) as those:
        one, two = those.workers[0], those.workers[1]
        two.clock.now += 5
        one.health.failed("gpt", "timeout")
        for _ in range(UNHEALTHY_AFTER):
            two.health.failed("gpt", "status 500")
        await seen(lambda: those.hub.level("gpt") == 2)
        assert those.hub.last_failure("gpt") == (two.clock.now, "status 500")
        assert those.hub.level("other") == 0
        assert those.hub.last_failure("other") is None
        two.health.succeeded("gpt")
        await seen(lambda: those.hub.level("gpt") == 0)
        assert those.hub.last_failure("gpt") == (one.clock.now, "timeout")
        one.health.succeeded("gpt")
        await seen(lambda: those.hub.last_failure("gpt") is None)


async def test_what_a_dead_worker_saw_is_forgotten():
    async with processes(2) as those:
        those.workers[0].health.failed("gpt", "timeout")
        await seen(lambda: those.hub.last_failure("gpt"))
        await those.workers[0].stop()
        await seen(lambda: those.hub.last_failure("gpt") is None)


async def test_an_alias_that_is_no_more_is_forgotten():
    async with processes(1) as those:
        await those.hub.publish(make_snapshot(aliases=[make_alias(name="gpt")]))
        those.workers[0].health.failed("gpt", "timeout")
        await seen(lambda: those.hub.last_failure("gpt"))
        await those.hub.publish(make_snapshot(aliases=[]))
        assert those.hub.last_failure("gpt") is None


# ── tokens ──────────────────────────────────────────────────────────────────────────────────────


async def test_workers_get_their_tokens_from_the_control_process():
    async with processes(2) as those:
        tokens = those.workers[0].tokens
        assert await tokens.token(SECRET) == "token 1"
        assert await tokens.renew(SECRET, "token 1") == "token 2"
        assert await those.workers[1].tokens.token(SECRET) == "token 3"
        assert those.lender.asked == [None, "token 1", None]


async def test_a_refusal_reaches_the_worker():
    async with processes(1) as those:
        those.lender.error = CredentialRefused(
            "upstream authentication failed (AADSTS1)", detail="why", should_retry=False
        )
        with pytest.raises(CredentialRefused, match="AADSTS1") as caught:
            await those.workers[0].tokens.token(SECRET)
        assert (caught.value.detail, caught.value.should_retry) == ("why", False)


async def test_without_a_control_process_there_is_no_new_token():
    async with processes(1) as those:
        worker = those.workers[0]
        those.lender.go_on.clear()
        waiting = asyncio.ensure_future(worker.tokens.token(SECRET))
        await seen(lambda: those.lender.asked)
        await those.hub.close()
        with pytest.raises(CredentialUnavailable, match="try again shortly"):
            await waiting
        with pytest.raises(CredentialUnavailable, match="try again shortly"):
            await worker.tokens.token(SECRET)


async def test_a_control_process_that_never_answers_is_not_waited_for():
    async with processes(1) as those:
        those.lender.go_on.clear()
        uplink = those.workers[0].uplink
        with pytest.raises(CredentialUnavailable) as caught:
            await uplink.ask(SECRET, None, timeout_s=0.01)
        assert caught.value.detail == "the control process gave none within 0.01 s"
