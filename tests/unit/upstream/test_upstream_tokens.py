"""When tokens are fetched, shared, renewed, kept and forgotten; the clock is moved by hand."""

import asyncio

import pytest

from aisix.core.ports import TokenState
from aisix.core.resources import ClientSecret
from aisix.errors import CredentialRefused, CredentialUnavailable
from aisix.upstream.tokens import FetchFailed, Grant, TokenKeeper

pytestmark = pytest.mark.gen_test


class HandClock:
    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now

    def time(self):
        return 1_800_000_000.0 + self.now


class Fetches:
    """A scripted authority: each fetch waits for `gate`, then takes the next outcome."""

    def __init__(self):
        self.gate = asyncio.Event()
        self.gate.set()
        self.asked = []
        self.outcomes = []
        self.recorded = []

    async def __call__(self, credential):
        self.asked.append(credential)
        await self.gate.wait()
        outcome = self.outcomes.pop(0) if self.outcomes else f"token-{len(self.asked)}"
        if isinstance(outcome, Exception):
            raise outcome
        return outcome if isinstance(outcome, Grant) else Grant(token=outcome, lifetime_s=3600.0)

    def token_fetched(self, *, ok, reason):
        self.recorded.append((reason, ok))


def make(jitter=0.0):
    clock, fetches = HandClock(), Fetches()
    keeper = TokenKeeper(fetches, clock=clock, recorder=fetches, jitter=lambda: jitter)
    return keeper, fetches, clock


def app(client_id="client", client_secret="s"):
    return ClientSecret(
        tenant_id="tenant",
        client_id=client_id,
        client_secret=client_secret,
        authority="https://login.test",
        scope="x/.default",
    )


def refused():
    return FetchFailed("upstream authentication failed (AADSTS7000215)", refused=True, detail="d")


def unavailable(retry_after_s=None):
    return FetchFailed("authority down", refused=False, detail="d", retry_after_s=retry_after_s)


async def turn():
    """Let every task that can run do so."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_fifty_cold_callers_share_one_fetch():
    keeper, fetches, _ = make()
    tokens = await asyncio.gather(*(keeper.token(app()) for _ in range(50)))
    assert set(tokens) == {"token-1"}
    assert fetches.recorded == [("cold", True)]


async def test_a_usable_token_is_not_fetched_again():
    keeper, fetches, clock = make()
    await keeper.token(app())
    clock.now += 2000
    assert await keeper.token(app()) == "token-1"
    assert len(fetches.asked) == 1


async def test_a_rotated_secret_never_gets_the_old_token():
    keeper, fetches, _ = make()
    assert await keeper.token(app()) == "token-1"
    assert await keeper.token(app(client_secret="rotated")) == "token-2"
    assert [asked.client_secret for asked in fetches.asked] == ["s", "rotated"]


async def test_an_ageing_token_is_renewed_behind_its_users():
    keeper, fetches, clock = make()
    await keeper.token(app())
    clock.now += 3600 * 0.8
    fetches.gate.clear()
    assert await keeper.token(app()) == "token-1"
    assert await keeper.token(app()) == "token-1"
    await turn()
    assert len(fetches.asked) == 2
    fetches.gate.set()
    await turn()
    assert await keeper.token(app()) == "token-2"
    assert fetches.recorded == [("cold", True), ("refresh", True)]


@pytest.mark.parametrize(
    ("lifetime", "refresh_in", "jitter", "quiet_until"),
    [
        (3600.0, None, 0.0, 2880.0),
        (3600.0, None, 1.0, 2700.0),
        (3600.0, 1000.0, 0.0, 1000.0),
        (3600.0, 9000.0, 0.0, 2880.0),
        (86400.0, None, 0.0, 69120.0),
        (900.0, None, 0.0, 600.0),
        (100.0, None, 0.0, 50.0),
    ],
)
async def test_the_time_of_renewal_follows_the_life_of_the_token(
    lifetime, refresh_in, jitter, quiet_until
):
    keeper, fetches, clock = make(jitter)
    fetches.outcomes = [Grant(token="a", lifetime_s=lifetime, refresh_in_s=refresh_in)]
    await keeper.token(app())
    clock.now += quiet_until - 1
    await keeper.token(app())
    await turn()
    assert len(fetches.asked) == 1
    clock.now += 2
    await keeper.token(app())
    await turn()
    assert len(fetches.asked) == 2


async def test_a_token_in_its_last_minute_is_replaced_before_use():
    keeper, _, clock = make()
    await keeper.token(app())
    clock.now += 3541
    assert await keeper.token(app()) == "token-2"


@pytest.mark.logs("token.failed")
async def test_a_token_is_kept_until_its_expiry_when_renewal_fails():
    keeper, fetches, clock = make()
    await keeper.token(app())
    fetches.outcomes = [unavailable(), refused(), unavailable()]
    for wait in (2900, 100, 595):
        clock.now += wait
        assert await keeper.token(app()) == "token-1"
        await turn()
    assert len(fetches.asked) == 4
    clock.now += 10
    with pytest.raises(CredentialUnavailable):
        await keeper.token(app())


@pytest.mark.logs("token.failed")
async def test_failed_renewals_do_not_storm_the_authority():
    keeper, fetches, clock = make()
    await keeper.token(app())
    fetches.outcomes = [unavailable()]
    clock.now += 3000
    for _ in range(10):
        await keeper.token(app())
        await turn()
    assert len(fetches.asked) == 2


@pytest.mark.logs("token.failed")
async def test_a_refused_credential_is_asked_for_again_after_thirty_seconds(caplog):
    keeper, fetches, clock = make()
    fetches.outcomes = [refused()]
    for _ in range(3):
        with pytest.raises(CredentialRefused, match="AADSTS7000215") as failed:
            await keeper.token(app())
        assert failed.value.status == 500
        assert failed.value.type == "config_error"
        assert failed.value.should_retry is False
        clock.now += 9.9
    assert len(fetches.asked) == 1
    clock.now += 0.5
    assert await keeper.token(app()) == "token-2"
    assert [record.message for record in caplog.records] == ["token.failed"]


@pytest.mark.logs("token.failed")
async def test_every_waiter_gets_an_exception_of_its_own():
    keeper, fetches, _ = make()
    fetches.outcomes = [refused()]
    failures = await asyncio.gather(
        *(keeper.token(app()) for _ in range(3)), return_exceptions=True
    )
    assert len({id(failure) for failure in failures}) == 3
    assert len(fetches.asked) == 1


@pytest.mark.logs("token.failed")
async def test_an_unreachable_authority_is_left_alone_for_growing_times():
    keeper, fetches, clock = make()
    fetches.outcomes = [unavailable() for _ in range(5)]
    waits = []
    for _ in range(5):
        with pytest.raises(CredentialUnavailable) as failed:
            await keeper.token(app())
        assert failed.value.status == 502
        waits.append(failed.value.retry_after_s)
        clock.now += failed.value.retry_after_s
    assert waits == [5.0, 10.0, 20.0, 30.0, 30.0]
    assert await keeper.token(app()) == "token-6"


@pytest.mark.logs("token.failed")
@pytest.mark.parametrize(("hint", "wait"), [(2.0, 5.0), (20.0, 20.0), (3600.0, 60.0)])
async def test_the_authoritys_own_hint_is_honoured_within_reason(hint, wait):
    keeper, fetches, _ = make()
    fetches.outcomes = [unavailable(hint)]
    with pytest.raises(CredentialUnavailable) as failed:
        await keeper.token(app())
    assert failed.value.retry_after_s == wait


async def test_a_waiter_that_leaves_does_not_end_the_fetch_of_the_others():
    keeper, fetches, _ = make()
    fetches.gate.clear()
    leaving = asyncio.create_task(keeper.token(app()))
    staying = asyncio.create_task(keeper.token(app()))
    await turn()
    leaving.cancel()
    await turn()
    assert leaving.cancelled()
    fetches.gate.set()
    assert await staying == "token-1"


async def test_when_all_waiters_leave_the_token_still_arrives():
    keeper, fetches, _ = make()
    fetches.gate.clear()
    leaving = asyncio.create_task(keeper.token(app()))
    await turn()
    leaving.cancel()
    fetches.gate.set()
    await turn()
    assert await keeper.token(app()) == "token-1"
    assert len(fetches.asked) == 1


async def test_all_who_were_refused_share_one_forced_fetch():
    keeper, fetches, _ = make()
    old = await keeper.token(app())
    tokens = await asyncio.gather(*(keeper.renew(app(), old) for _ in range(20)))
    assert set(tokens) == {"token-2"}
    assert await keeper.renew(app(), old) == "token-2"
    assert await keeper.token(app()) == "token-2"
    assert fetches.recorded == [("cold", True), ("rejected", True)]


async def test_a_second_forced_fetch_waits_half_a_minute():
    keeper, fetches, clock = make()
    second = await keeper.renew(app(), await keeper.token(app()))
    clock.now += 29
    with pytest.raises(CredentialRefused) as failed:
        await keeper.renew(app(), second)
    assert failed.value.message == "upstream authentication failed"
    assert len(fetches.asked) == 2
    clock.now += 2
    assert await keeper.renew(app(), second) == "token-3"


async def test_the_same_token_again_is_no_renewal():
    keeper, fetches, _ = make()
    fetches.outcomes = ["same", "same"]
    with pytest.raises(CredentialRefused):
        await keeper.renew(app(), await keeper.token(app()))


@pytest.mark.logs("token.failed")
async def test_a_failing_renewal_tells_why_and_keeps_the_token_for_others():
    keeper, fetches, _ = make()
    old = await keeper.token(app())
    fetches.outcomes = [unavailable()]
    with pytest.raises(CredentialUnavailable):
        await keeper.renew(app(), old)
    assert await keeper.token(app()) == old


async def test_a_renewal_joins_a_fetch_under_way():
    keeper, fetches, clock = make()
    old = await keeper.token(app())
    clock.now += 3000
    fetches.gate.clear()
    await keeper.token(app())
    renewing = asyncio.create_task(keeper.renew(app(), old))
    await turn()
    fetches.gate.set()
    assert await renewing == "token-2"
    assert len(fetches.asked) == 2


async def test_a_renewal_of_a_forgotten_credential_is_a_cold_start():
    keeper, _, _ = make()
    assert await keeper.renew(app(), "from another life") == "token-1"


@pytest.mark.logs("token.crashed")
async def test_a_defect_in_a_fetch_leaves_nobody_waiting(caplog):
    keeper, fetches, _ = make()
    fetches.outcomes = [RuntimeError("a defect")]
    with pytest.raises(CredentialUnavailable):
        await keeper.token(app())
    assert fetches.recorded == [("cold", False)]
    assert [record.message for record in caplog.records] == ["token.crashed"]


async def test_credentials_nobody_uses_are_forgotten():
    keeper, fetches, clock = make()
    await keeper.token(app("old"))
    clock.now += 1000
    await keeper.token(app("used"))
    clock.now += 3000
    await keeper.token(app("new"))
    assert {known.client_id for known in keeper._entries} == {"used", "new"}
    assert len(fetches.asked) == 3


async def test_closing_ends_fetches_and_waiters():
    keeper, fetches, _ = make()
    fetches.gate.clear()
    waiting = asyncio.create_task(keeper.token(app()))
    await turn()
    await keeper.close()
    await keeper.close()
    with pytest.raises(CredentialUnavailable):
        await waiting
    with pytest.raises(CredentialUnavailable):
        await keeper.token(app())
    assert len(fetches.asked) == 1


@pytest.mark.logs("token.failed")
async def test_the_log_names_the_credential_and_not_its_secret(caplog):
    keeper, fetches, _ = make()
    fetches.outcomes = [refused()]
    with pytest.raises(CredentialRefused):
        await keeper.token(app(client_secret="hunter2"))
    (record,) = caplog.records
    assert (record.tenant_id, record.client_id, record.reason) == ("tenant", "client", "cold")
    assert "hunter2" not in repr(vars(record))


EPOCH = 1_800_000_000.0


async def test_before_any_token_was_wanted_there_is_nothing_to_show():
    keeper, fetches, _ = make()
    assert keeper.state(app()) == TokenState()
    assert keeper._entries == {}
    assert fetches.asked == []


@pytest.mark.logs("token.failed")
async def test_the_state_shows_expiry_and_the_newest_failure_until_a_success():
    keeper, fetches, clock = make()
    await keeper.token(app())
    assert keeper.state(app()) == TokenState(expires_at=EPOCH + 1000 + 3600)
    fetches.outcomes = [refused()]
    clock.now += 2900
    await keeper.token(app())
    await turn()
    assert keeper.state(app()) == TokenState(EPOCH + 4600, failure=(EPOCH + 3900, "d"))
    clock.now += 701
    assert keeper.state(app()) == TokenState(None, failure=(EPOCH + 3900, "d")), "it has expired"
    await keeper.token(app())
    assert keeper.state(app()) == TokenState(expires_at=EPOCH + 4601 + 3600)
    assert keeper.state(app(client_secret="rotated")) == TokenState()
