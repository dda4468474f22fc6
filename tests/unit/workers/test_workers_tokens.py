"""A worker's tokens: when they are asked for, kept, renewed, and what errors become."""

from __future__ import annotations

import asyncio

import pytest

from aisix.core.resources import ClientSecret, TokenCredential
from aisix.errors import CredentialRefused, CredentialUnavailable
from aisix.workers.link import TokenGiven, TokenRefused
from aisix.workers.tokens import LinkedTokens
from aisix.workers.uplink import unavailable
from tests.support.control import ManualClock

SECRET = ClientSecret("tenant", "client", "secret", "https://login.example", "scope/.default")
OTHER = ClientSecret("tenant", "other", "secret", "https://login.example", "scope/.default")


def given(token: str, *, refresh_in_s: float = 3000.0, usable_s: float = 3500.0) -> TokenGiven:
    return TokenGiven(0, token, refresh_in_s, usable_s, usable_s + 60.0)


class Asked:
    """A control process that answers what the test queued; None: nobody is there."""

    def __init__(self, *answers: TokenGiven | TokenRefused | None) -> None:
        self.answers = list(answers)
        self.questions: list[tuple[str, str | None]] = []
        self.hold = asyncio.Event()
        self.hold.set()

    async def ask(
        self, credential: TokenCredential, rejected: str | None
    ) -> TokenGiven | TokenRefused:
        self.questions.append((credential.names["client_id"], rejected))
        await self.hold.wait()
        answer = self.answers.pop(0)
        if answer is None:
            raise unavailable("nobody is there")
        return answer


def make(*answers: TokenGiven | TokenRefused | None) -> tuple[LinkedTokens, Asked, ManualClock]:
    source, clock = Asked(*answers), ManualClock(1000.0)
    return LinkedTokens(source, clock), source, clock


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.mark.gen_test
async def test_a_token_is_asked_for_once_and_kept():
    tokens, source, clock = make(given("t1"))
    assert await tokens.token(SECRET) == "t1"
    clock.now += 2999
    assert await tokens.token(SECRET) == "t1"
    assert source.questions == [("client", None)]


@pytest.mark.gen_test
async def test_many_requests_ask_one_question():
    tokens, source, _ = make(given("t1"))
    source.hold.clear()
    waiting = [asyncio.ensure_future(tokens.token(SECRET)) for _ in range(20)]
    await settle()
    waiting[0].cancel()
    source.hold.set()
    assert {await one for one in waiting[1:]} == {"t1"}
    assert len(source.questions) == 1


@pytest.mark.gen_test
async def test_a_token_due_for_renewal_is_renewed_behind_the_requests_that_use_it():
    tokens, source, clock = make(given("t1"), given("t2"))
    await tokens.token(SECRET)
    clock.now += 3001
    assert await tokens.token(SECRET) == "t1"
    await settle()
    assert await tokens.token(SECRET) == "t2"
    assert len(source.questions) == 2


@pytest.mark.gen_test
async def test_a_renewal_that_brings_the_old_token_is_not_repeated_at_every_request():
    again = given("t1", refresh_in_s=0.0)
    tokens, source, clock = make(given("t1"), again, again)
    await tokens.token(SECRET)
    clock.now += 3001
    for _ in range(50):
        assert await tokens.token(SECRET) == "t1"
        await settle()
    assert len(source.questions) == 2
    clock.now += 1
    await tokens.token(SECRET)
    await settle()
    assert len(source.questions) == 3


@pytest.mark.gen_test
async def test_without_a_control_process_a_token_serves_until_it_expires():
    tokens, _, clock = make(given("t1"), None, None, None)
    await tokens.token(SECRET)
    clock.now += 3499
    assert await tokens.token(SECRET) == "t1"
    await settle()
    clock.now += 60
    assert await tokens.token(SECRET) == "t1"
    clock.now += 2
    with pytest.raises(CredentialUnavailable, match="no token could be had") as caught:
        await tokens.token(SECRET)
    assert caught.value.retry_after_s == 1.0


@pytest.mark.gen_test
async def test_a_rejected_token_is_replaced_and_told():
    tokens, source, _ = make(given("t1"), given("t2"))
    await tokens.token(SECRET)
    assert await tokens.renew(SECRET, "t1") == "t2"
    assert await tokens.renew(SECRET, "t1") == "t2", "the one who came late finds the new one"
    assert await tokens.token(SECRET) == "t2"
    assert source.questions == [("client", None), ("client", "t1")]


@pytest.mark.parametrize(
    ("refused", "kind"), [(True, CredentialRefused), (False, CredentialUnavailable)]
)
@pytest.mark.gen_test
async def test_a_refusal_crosses_with_all_it_says(refused: bool, kind: type[Exception]):
    said = TokenRefused(0, refused, "upstream authentication failed", "AADSTS7000215", 7.0, False)
    tokens, _, _ = make(said)
    with pytest.raises(kind, match="upstream authentication failed") as caught:
        await tokens.token(SECRET)
    error = caught.value
    assert isinstance(error, CredentialRefused | CredentialUnavailable)
    assert (error.detail, error.retry_after_s, error.should_retry) == ("AADSTS7000215", 7.0, False)


@pytest.mark.gen_test
async def test_expired_tokens_are_forgotten_when_new_credentials_come():
    tokens, source, clock = make(given("t1"), given("o1"), given("t2"))
    await tokens.token(SECRET)
    clock.now += 4000
    await tokens.token(OTHER)
    assert len(tokens) == 1
    assert await tokens.token(SECRET) == "t2"
    assert len(source.questions) == 3


@pytest.mark.gen_test
async def test_closing_ends_the_questions_under_way():
    tokens, source, _ = make(given("t1"))
    source.hold.clear()
    waiting = asyncio.ensure_future(tokens.token(SECRET))
    await settle()
    await tokens.close()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await tokens.close()
