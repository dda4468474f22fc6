"""The log as lines: their form, what never gets into them, and a standard error that fails."""

from __future__ import annotations

import io
import json
import logging
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

import pytest

from aisix.telemetry import logs
from aisix.telemetry.lines import LineHandler
from aisix.telemetry.redaction import Redactor

OWN = logging.getLogger("aisix.test")
SECRET = "secret-of-the-test"


@contextmanager
def logging_to(stream: TextIO | None = None, **options) -> Iterator[io.StringIO]:
    """Lines go to `stream`, or without one to what is yielded."""
    out = io.StringIO()
    logs.configure(stream=out if stream is None else stream, **options)
    try:
        yield out
    finally:
        logs.reset()


def documents(out: io.StringIO) -> list[dict]:
    logs.flush()
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_a_record_is_one_json_object():
    with logging_to(service_name="edge") as out:
        OWN.info("thing.happened", extra={"request_id": "r-1", "n": 3, "list": [1, "x"]})
        [line] = documents(out)
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "info",
        "logger": "aisix.test",
        "event": "thing.happened",
        "service": "edge",
        "request_id": "r-1",
        "n": 3,
        "list": [1, "x"],
    }


@pytest.mark.parametrize("form", ["json", "text"])
def test_marks_are_on_every_line(form):
    with logging_to(form=form, marks={"worker": 3}) as out:
        OWN.info("thing.happened", extra={"worker": "forged", "n": 1})
        OWN.info("thing.happened")
        logs.flush()
        lines = out.getvalue().splitlines()
    if form == "json":
        assert [json.loads(line)["worker"] for line in lines] == [3, 3]
    else:
        assert all(" worker=3" in line for line in lines)


def test_times_are_utc_with_milliseconds():
    assert logs.timestamp(1_700_000_000.0419) == "2023-11-14T22:13:20.041Z"


@pytest.mark.logs("tornado.general")
def test_prose_of_libraries_is_a_message():
    with logging_to() as out:
        logging.getLogger("tornado.general").error("it %s", "broke")
        [line] = documents(out)
    assert line["message"] == "it broke"
    assert "event" not in line


def test_fields_given_as_one_mapping_are_fields_like_others():
    with logging_to() as out:
        OWN.info("thing.happened", extra={"fields": {"name": "x", "status": 200}})
        [line] = documents(out)
    assert line["name"] == "x"
    assert line["status"] == 200


def test_a_field_cannot_take_the_place_of_what_the_log_says_itself():
    with logging_to() as out:
        OWN.info("thing.happened", extra={"level": "forged", "event": "forged", "time": 0})
        [line] = documents(out)
    assert (line["level"], line["event"]) == ("info", "thing.happened")
    assert line["time"] != 0


@pytest.mark.parametrize("form", ["json", "text"])
def test_no_value_can_forge_a_line_or_reach_the_terminal(form):
    with logging_to(form=form) as out:
        OWN.info("x\n{}\x1b[31m\u2028", extra={"path": "a\r\nb\x00\x9b\u202e\ud800"})
        logs.flush()
        text = out.getvalue()
    assert text.count("\n") == 1
    assert text[:-1].isprintable()


def test_values_that_json_does_not_know_are_spelt():
    with logging_to() as out:
        OWN.info("x", extra={"nan": float("nan"), "deep": [{"inf": float("-inf")}], "big": 10**30})
        OWN.info("x", extra={"object": Exception("why"), "bytes": b"\xff"})
        first, second = documents(out)
    assert (first["nan"], first["deep"], first["big"]) == ("nan", [{"inf": "-inf"}], 10**30)
    assert (second["object"], second["bytes"]) == ("why", "b'\\xff'")


@pytest.mark.logs("aisix.test")
@pytest.mark.parametrize("form", ["json", "text"])
def test_secrets_never_get_out(form):
    with logging_to(form=form) as out:
        logs.register_secrets([SECRET])
        OWN.info(f"message {SECRET}")
        OWN.info("arguments %s %r", SECRET, {"a": SECRET})
        OWN.info("x", extra={"error": f"in {SECRET}", "deep": {"a": [SECRET]}, "api_key": "abc"})
        OWN.info("x", extra={"headers": "Authorization: Bearer abcdefgh"})
        try:
            raise ValueError(f"in a traceback {SECRET}, api-key: abcdefgh")
        except ValueError:
            OWN.exception("it.broke", stack_info=True)
        logs.flush()
        text = out.getvalue()
    assert SECRET not in text
    assert "abc" not in text
    assert text.count("***") >= 8


def test_a_secret_at_the_cut_of_a_long_text_leaves_no_part_of_itself():
    with logging_to() as out:
        logs.register_secrets([SECRET])
        OWN.info("x" * (logs.MAX_TEXT_CHARS - 5) + SECRET)
        [line] = documents(out)
    assert len(line["event"]) <= logs.MAX_TEXT_CHARS
    assert line["event"].endswith("x***")
    assert "secr" not in line["event"]


@pytest.mark.logs("aisix.test")
def test_a_traceback_is_kept_at_its_end():
    with logging_to() as out:
        try:
            raise ValueError("y" * 20_000 + " the end")
        except ValueError:
            OWN.exception("it.broke")
        [line] = documents(out)
    assert line["exception"].endswith("the end")
    assert len(line["exception"]) == logs.MAX_TEXT_CHARS


@pytest.mark.logs("aisix.test")
def test_text_for_a_person_shows_fields_and_an_indented_traceback():
    with logging_to(form="text") as out:
        OWN.info("thing.happened", extra={"n": 3, "why": "two words", "empty": ""})
        try:
            raise ValueError("bad")
        except ValueError:
            OWN.exception("it.broke")
        logs.flush()
        first, second, *trace = out.getvalue().splitlines()
    assert first.endswith("INFO     aisix.test thing.happened n=3 why='two words' empty=''")
    assert second.endswith("ERROR    aisix.test it.broke")
    assert all(line.startswith("    ") for line in trace)
    assert trace[-1] == "    ValueError: bad"


def test_a_terminal_gets_text_and_a_pipe_json():
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    with logging_to(terminal):
        OWN.info("x")
        logs.flush()
        assert not terminal.getvalue().startswith("{")
    with logging_to() as out:
        OWN.info("x")
        assert documents(out)


def test_arguments_that_do_not_fit_the_text_do_not_lose_the_record():
    formatter = logs.JsonFormatter(Redactor(), service_name="aisix")
    record = logging.makeLogRecord({"name": "aisix", "msg": "%d of %d", "args": ("one",)})
    assert json.loads(formatter.format(record))["event"] == "%d of %d ('one',)"


def test_levels_are_ours_to_change_and_libraries_are_quiet():
    with logging_to(level="warning") as out:
        OWN.info("unseen")
        logs.set_level("debug")
        OWN.debug("seen")
        logging.getLogger("azure.identity").info("unseen")
        logging.getLogger("asyncio").info("unseen")
        logging.getLogger("tornado.access").critical("unseen")
        logging.getLogger("elsewhere").info("unseen")
        lines = documents(out)
    assert [line["event"] for line in lines] == ["seen"]


@pytest.mark.parametrize("level", ["loud", "", "notset"])
def test_an_unknown_level_is_refused_and_changes_nothing(level):
    before = logging.getLogger().handlers[:]
    with pytest.raises(ValueError, match="log level"):
        logs.configure(level=level, stream=io.StringIO())
    with pytest.raises(ValueError, match="log level"):
        logs.set_level(level)
    assert logging.getLogger().handlers == before


def test_an_unknown_form_is_refused():
    with pytest.raises(ValueError, match="log form"):
        logs.configure(form="xml", stream=io.StringIO())


@pytest.mark.logs("py.warnings")
def test_warnings_of_python_are_records():
    with logging_to() as out, warnings.catch_warnings():
        warnings.simplefilter("always")
        logs.configure(stream=out)
        warnings.warn("old thing", UserWarning, stacklevel=1)
        lines = documents(out)
        logs.reset()
    assert [line["logger"] for line in lines] == ["py.warnings"]


def test_configuring_twice_replaces_and_reset_leaves_nothing():
    handlers = logging.getLogger().handlers[:]
    threads = threading.active_count()
    first = io.StringIO()
    with logging_to(first):
        second = io.StringIO()
        logs.configure(stream=second)
        OWN.info("x")
        assert documents(second)
        assert not first.getvalue()
    assert logging.getLogger().handlers == handlers
    assert threading.active_count() == threads
    assert logs.lines_dropped() == 0
    logs.flush()


def test_reset_writes_what_waits():
    out = io.StringIO()
    with logging_to(out):
        for number in range(100):
            OWN.info("x", extra={"n": number})
    assert [json.loads(line)["n"] for line in out.getvalue().splitlines()] == list(range(100))


def test_lines_of_many_threads_are_whole():
    def write() -> None:
        for _ in range(50):
            OWN.info("x" * 200)

    with logging_to() as out:
        threads = [threading.Thread(target=write) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(documents(out)) == 200


def test_a_broken_pipe_loses_lines_and_nothing_else():
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream, logging_to(stream):
        OWN.info("x")
        logs.flush()
        assert logs.lines_dropped() == 1


def test_a_closed_stream_loses_lines_and_nothing_else():
    reader, writer = os.pipe()
    stream = os.fdopen(writer, "w")
    with logging_to(stream), os.fdopen(reader):
        stream.close()
        OWN.info("x")
        logs.flush()
        assert logs.lines_dropped() == 1
    with logging_to() as out:
        out.close()
        OWN.info("x")
        logs.flush()
        assert logs.lines_dropped() == 1


@pytest.mark.parametrize("blocking", [True, False])
def test_a_pipe_nobody_reads_stops_no_caller_and_loses_no_line_until_the_bound(blocking):
    reader, writer = os.pipe()
    os.set_blocking(writer, blocking)
    with os.fdopen(writer, "w") as stream, logging_to(stream):
        for number in range(logs.MAX_WAITING_LINES + 5_000):
            OWN.info("x", extra={"n": number, "filler": "y" * 100})
        dropped = logs.lines_dropped()
        assert dropped > 0
        received: list[list[str]] = []
        read = threading.Thread(target=lambda: received.append(read_lines(reader)))
        read.start()
        logs.reset()
        stream.close()
        read.join(10)
    [lines] = received
    assert len(lines) == logs.MAX_WAITING_LINES + 5_000 - dropped
    assert all(json.loads(line) for line in lines)


def read_lines(descriptor: int) -> list[str]:
    with os.fdopen(descriptor) as source:
        return source.read().splitlines()


def test_a_record_that_cannot_be_rendered_is_counted_not_raised():
    with logging_to() as out:
        [handler] = [h for h in logging.getLogger().handlers if isinstance(h, LineHandler)]

        class Broken(logging.Formatter):
            def format(self, record: logging.LogRecord) -> str:
                raise RuntimeError("no")

        handler.setFormatter(Broken())
        OWN.info("x")
        assert logs.lines_dropped() == 1
        assert not documents(out)


def test_a_record_after_the_end_is_counted_not_raised():
    handler = logs.configure(stream=io.StringIO())
    logs.reset()
    handler.handle(logging.makeLogRecord({"msg": "late"}))
    assert handler.dropped == 1


def test_a_process_without_standard_error_still_runs(monkeypatch):
    monkeypatch.setattr("sys.stderr", None)
    with_none = logs.configure()
    OWN.info("x")
    logs.reset()
    assert with_none.dropped == 0
    with_none.stream.close()
