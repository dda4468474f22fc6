"""The pool of easy handles: bounds, expiry, and what a handle forgets. No network."""

from __future__ import annotations

import sys

import pytest

from aisix.core.ports import Deadlines, UpstreamCall, UpstreamTarget
from aisix.errors import UpstreamMisconfigured
from aisix.transport.alarm import NEVER
from aisix.transport.handles import Handle, HandlePool
from aisix.transport.request import Wire

WIRE = Wire(user_agent="aisix/1")


class Clock:
    now_s = 1000.0

    def now(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def pool_of(clock: Clock, max_idle_s: float = 10.0, **bounds: int) -> HandlePool:
    return HandlePool(WIRE, now=clock.now, max_idle_s=max_idle_s, **bounds)


def target(name: str = "a") -> UpstreamTarget:
    return UpstreamTarget("POST", f"http://127.0.0.1:1/{name}", [("api-key", name)])


def loaded(pool: HandlePool, wanted: UpstreamTarget, body: bytes = b"{}") -> Handle:
    handle = pool.take(wanted)
    handle.load(UpstreamCall(wanted, [("x-own", "1")], body, Deadlines()))
    return handle


def test_a_handle_comes_back_to_its_own_target_only(clock: Clock):
    pool = pool_of(clock)
    first, second = target("a"), target("a")
    handle = loaded(pool, first)
    pool.give(handle, clock.now_s)
    assert pool.size == 1
    assert pool.take(second) is not handle, "targets are compared by identity"
    assert pool.take(first) is handle
    assert pool.size == 0
    pool.clear()


def test_a_handle_at_rest_holds_no_body(clock: Clock):
    pool = pool_of(clock)
    body = bytes(1000)
    before = sys.getrefcount(body)
    handle = loaded(pool, target(), body)
    assert sys.getrefcount(body) > before
    pool.give(handle, clock.now_s)
    assert not handle.closed
    pool.give(loaded(pool, target(), body), clock.now_s)
    assert sys.getrefcount(body) == before
    pool.clear()
    assert handle.closed


@pytest.mark.parametrize("method", ["GET", "PUT", "HEAD", "DELETE"])
def test_only_posts_of_bytes_are_kept(clock: Clock, method: str):
    pool = pool_of(clock)
    wanted = UpstreamTarget(method, "http://127.0.0.1:1/")
    handle = loaded(pool, wanted)
    pool.give(handle, clock.now_s)
    assert (handle.closed, pool.size) == (True, 0)


def test_an_upload_leaves_no_handle(clock: Clock):
    async def source():
        yield b""

    pool = pool_of(clock)
    handle = pool.take(target())
    handle.load(UpstreamCall(target(), body=source()), lambda _size: b"")
    pool.give(handle, clock.now_s)
    assert (handle.closed, pool.size) == (True, 0)


def test_each_target_keeps_no_more_than_its_share(clock: Clock):
    pool = pool_of(clock, max_per_target=2)
    wanted = target()
    handles = [loaded(pool, wanted) for _ in range(3)]
    for handle in handles:
        pool.give(handle, clock.now_s)
    assert [handle.closed for handle in handles] == [False, False, True]
    pool.clear()


def test_above_the_bound_the_target_used_least_recently_loses_a_handle(clock: Clock):
    pool = pool_of(clock, max_handles=3)
    old, new = target("old"), target("new")
    of_old = [loaded(pool, old) for _ in range(2)]
    of_new = [loaded(pool, new) for _ in range(2)]
    for handle in (*of_old, *of_new):
        pool.give(handle, clock.now_s)
    assert [handle.closed for handle in (*of_old, *of_new)] == [True, False, False, False]
    assert pool.size == 3
    pool.give(loaded(pool, old), clock.now_s)
    pool.give(loaded(pool, target("third")), clock.now_s)
    assert of_new[0].closed, "now the other one was used before"
    pool.clear()
    assert pool.size == 0


def test_a_target_too_many_pushes_out_the_least_recently_used(clock: Clock):
    pool = pool_of(clock, max_targets=2)
    first, second = target("1"), target("2")
    kept = loaded(pool, first)
    busy = loaded(pool, first)
    pool.give(kept, clock.now_s)
    loaded(pool, second).close()
    loaded(pool, target("3")).close()
    assert kept.closed
    pool.give(busy, clock.now_s)
    assert (busy.closed, pool.size) == (True, 0), "its target is not known any more"


def test_idle_handles_expire_and_then_their_target_is_forgotten(clock: Clock):
    pool = pool_of(clock, max_idle_s=10.0)
    wanted = target()
    before = sys.getrefcount(wanted)
    early, late = loaded(pool, wanted), loaded(pool, wanted)
    pool.give(early, clock.now_s)
    pool.give(late, clock.now_s + 4)
    assert pool.due == clock.now_s + 10
    pool.expire(clock.now_s + 9)
    assert not early.closed
    pool.expire(clock.now_s + 10)
    assert (early.closed, late.closed) == (True, False)
    assert pool.due == clock.now_s + 14
    pool.expire(clock.now_s + 14)
    assert (late.closed, pool.size, pool.due) == (True, 0, NEVER)
    del early, late
    assert sys.getrefcount(wanted) == before


def test_a_target_whose_handles_are_all_at_work_is_forgotten_like_any_other(clock: Clock):
    pool = pool_of(clock, max_idle_s=10.0)
    handle = loaded(pool, target())
    pool.expire(clock.now_s + 10)
    pool.give(handle, clock.now_s + 11)
    assert handle.closed


def test_without_a_bound_on_idleness_handles_stay(clock: Clock):
    pool = pool_of(clock, max_idle_s=0.0)
    handle = loaded(pool, target())
    pool.give(handle, clock.now_s)
    pool.expire(clock.now_s + 1e9)
    assert not handle.closed
    pool.clear()


@pytest.mark.parametrize(
    "wanted",
    [
        UpstreamTarget("POST", "ftp://x/"),
        UpstreamTarget("POST", "http://127.0.0.1/", [("api-key", "s3cret\n")]),
    ],
)
def test_a_bad_target_is_refused_each_time_and_not_kept(clock: Clock, wanted: UpstreamTarget):
    pool = pool_of(clock)
    for _ in range(2):
        with pytest.raises(UpstreamMisconfigured) as caught:
            pool.take(wanted)
        assert "s3cret" not in str(caught.value)
    assert pool.due == NEVER
