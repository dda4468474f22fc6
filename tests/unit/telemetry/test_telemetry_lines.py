"""Lines on their way to a descriptor: batches, pipes that processes share, forks, losses."""

from __future__ import annotations

import io
import json
import logging
import os
import select
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

import pytest

from aisix.telemetry import logs
from aisix.telemetry.lines import BATCH_LINES, BATCH_S, LineHandler, Outlet
from tests.support.forked import Report, forked, together

OWN = logging.getLogger("aisix.test")


@contextmanager
def configured(stream: TextIO, **options) -> Iterator[LineHandler]:
    handler = logs.configure(stream=stream, **options)
    try:
        yield handler
    finally:
        logs.reset()


@contextmanager
def pipe() -> Iterator[tuple[TextIO, TextIO]]:
    reader, writer = os.pipe()
    with os.fdopen(reader) as source, os.fdopen(writer, "w") as target:
        yield source, target


def test_a_line_is_written_within_the_batch_delay_though_nobody_flushes():
    with pipe() as (source, target), configured(target) as handler:
        before = time.monotonic()
        handler.put("one\n")
        handler.put("two\n")
        assert [source.readline(), source.readline()] == ["one\n", "two\n"]
        assert time.monotonic() - before < BATCH_S + 1.0


def test_lines_wait_for_others():
    with pipe() as (source, target), configured(target) as handler:
        handler.put("one\n")
        assert not select.select([source], [], [], BATCH_S / 5)[0]


def test_a_large_batch_does_not_wait():
    with pipe() as (source, target), configured(target) as handler:
        before = time.monotonic()
        for number in range(BATCH_LINES + 1):
            handler.put(f"{number}\n")
        assert source.readline() == "0\n"
        assert time.monotonic() - before < BATCH_S


def test_a_record_hurries_what_waits_and_the_order_stays():
    with pipe() as (source, target), configured(target) as handler:
        before = time.monotonic()
        handler.put('{"event":"first"}\n')
        OWN.info("second")
        handler.put('{"event":"third"}\n')
        OWN.info("fourth")
        seen = [json.loads(source.readline())["event"] for _ in range(4)]
        assert time.monotonic() - before < BATCH_S
    assert seen == ["first", "second", "third", "fourth"]


def test_flush_and_reset_write_what_waits():
    out = io.StringIO()
    with configured(out) as handler:
        handler.put("one\n")
        logs.flush()
        assert out.getvalue() == "one\n"
        handler.put("two\n")
    assert out.getvalue() == "one\ntwo\n"


def test_no_line_is_lost_while_batches_begin_and_end():
    out = io.StringIO()
    with configured(out) as handler:
        for number in range(5_000):
            handler.put(f"{number}\n")
            if number % 100 == 0:
                logs.flush()
        dropped = handler.dropped
    assert out.getvalue().splitlines() == [str(number) for number in range(5_000)]
    assert dropped == 0


def test_processes_that_share_a_pipe_do_not_mix_their_lines():
    count, processes = 400, 4
    with pipe() as (source, target):

        def work(child: int, _report: Report) -> None:
            with configured(target) as handler:
                for number in range(count):
                    filler = "x" * (number * 37 % (select.PIPE_BUF - 100))
                    handler.put(json.dumps([child, number, filler]) + "\n")
                    if number % 50 == 0:
                        OWN.info("among them")

        with together(work, count=processes) as children:
            target.close()
            lines = [json.loads(line) for line in source]
            assert [child.wait() for child in children] == [0] * processes
    own = [line for line in lines if isinstance(line, list)]
    assert sorted((child, number) for child, number, _ in own) == [
        (child, number) for child in range(processes) for number in range(count)
    ]
    assert len(lines) - len(own) == processes * count // 50


def test_one_write_to_a_pipe_holds_whole_lines_and_no_more_than_the_kernel_keeps_together():
    lines = ["a" * 1_500 + "\n", "ü" * 1_500 + "\n", "b" * 5_000 + "\n", "c\n"]
    with pipe() as (_, target):
        outlet = Outlet(target)
        assert list(outlet.pieces(lines)) == [[line] for line in lines]
        assert list(outlet.pieces(["c\n"] * 3_000)) == [["c\n"] * 2_048, ["c\n"] * 952]
    assert list(Outlet(io.StringIO()).pieces(lines)) == [lines]


def test_without_a_thread_lines_are_written_where_they_are_logged():
    threads = threading.active_count()
    out = io.StringIO()
    with configured(out, threaded=False) as handler:
        OWN.info("x")
        assert json.loads(out.getvalue())["event"] == "x"
        handler.put("line\n")
        assert out.getvalue().endswith("line\n")
        assert threading.active_count() == threads
        logs.flush()
    handler.put("late\n")
    assert handler.dropped == 1


def test_without_a_thread_a_pipe_nobody_reads_holds_nobody_up_for_long():
    with pipe() as (_, target), configured(target, threaded=False) as handler:
        os.set_blocking(target.fileno(), False)
        with pytest.raises(BlockingIOError):
            while True:
                os.write(target.fileno(), b"x" * select.PIPE_BUF)
        os.set_blocking(target.fileno(), True)
        OWN.info("x")
        assert handler.dropped == 1


@pytest.mark.parametrize("threaded", [True, False])
def test_a_child_may_configure_anew_and_its_parents_lines_are_written_once(threaded):
    with pipe() as (source, target):
        with configured(target, threaded=threaded) as handler:
            handler.put('{"event":"of the parent"}\n')

            def work(_report: Report) -> None:
                logs.configure(stream=target)
                OWN.info("of the child")
                logs.reset()

            with forked(work) as child:
                assert child.wait() == 0
        target.close()
        events = sorted(json.loads(line)["event"] for line in source)
    assert events == ["of the child", "of the parent"]


def test_losses_are_told_those_before_and_those_after():
    told: list[int] = []
    with configured(io.StringIO()) as handler:
        handler.stream.close()
        OWN.info("x")
        logs.flush()
        assert not told
        logs.on_dropped(told.append)
        OWN.info("x")
        logs.flush()
        assert told == [1, 1]
        assert logs.lines_dropped() == 2


def test_there_is_a_current_handler_between_configure_and_reset():
    assert logs.current() is None
    with configured(io.StringIO()) as handler:
        assert logs.current() is handler
    assert logs.current() is None
