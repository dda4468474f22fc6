"""The script vocabulary: tokens in, behaviour out."""

from __future__ import annotations

import dataclasses

import pytest

from aisix.simulator import faults
from aisix.simulator.script import (
    ANY,
    ENTRA,
    NORMAL,
    Script,
    ScriptBook,
    ScriptError,
    parse,
    vocabulary,
)


def lenient(text: str) -> Script:
    return parse(text, lenient=True, errors=faults.NAMES)


def strict(text: str) -> Script:
    return parse(text, errors=faults.NAMES)


def book(default: Script = NORMAL, *, scripted_names: bool = True) -> ScriptBook:
    return ScriptBook(default, faults.NAMES, scripted_names=scripted_names)


@pytest.mark.parametrize(
    "name", ["gpt-4o", "gpt4o-prod", "gpt-4.1-mini", "o3", "echo", "text-embedding-3-small", "err"]
)
def test_an_ordinary_deployment_name_behaves_normally(name: str) -> None:
    assert lenient(name) == NORMAL


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("echo-slow200-n50", Script(slow=200, n=50)),
        ("gpt4o-err429-retry7", Script(err="429", retry=7)),
        ("x-err-content_filter-first2", Script(err="content_filter", first=2)),
        ("err-429", Script(err="429")),
        ("CRLF split1", Script(crlf=True, split=1)),
        ("stall2,d5", Script(stall=2, d=5)),
        ("err-aadsts7000215", Script(err="aadsts7000215")),
    ],
)
def test_tokens_set_their_fields(text: str, expected: Script) -> None:
    assert lenient(text) == expected


@pytest.mark.parametrize(
    "text", ["slow", "nonsense", "crlf5", "err-nothing", "err", "err999", "n-5"]
)
def test_an_explicit_script_refuses_what_it_does_not_know(text: str) -> None:
    with pytest.raises(ScriptError, match="unknown token"):
        strict(text)


def test_every_token_parses_back_from_its_rendered_form() -> None:
    values: dict[str, object] = {}
    for field in dataclasses.fields(Script):
        kind = field.metadata["kind"]
        values[field.name] = {"number": 0, "flag": True, "err": "rbac"}[kind]
    whole = Script(**values)  # type: ignore[arg-type]
    assert strict(whole.render()) == whole
    assert len(vocabulary()) == len(values)


def test_a_later_script_wins_token_by_token_even_with_zero() -> None:
    assert strict("cut0 slow0").over(strict("slow50 n3")) == Script(cut=0, slow=0, n=3)


def test_faults_can_be_taken_away_without_the_pace() -> None:
    assert strict("slow5 err429 cut1 drop").without_faults() == Script(slow=5)


def test_the_queue_wins_over_header_over_name_over_default() -> None:
    scripts = book(Script(slow=1, n=1, d=1))
    scripts.queue("dep-n2", "n4")
    assert scripts.resolve("dep-n2", "n3 d9") == Script(slow=1, n=4, d=9)
    assert scripts.resolve("dep-n2", "n3") == Script(slow=1, n=3, d=1)
    assert scripts.resolve("dep-n2") == Script(slow=1, n=2, d=1)


def test_a_queued_script_serves_as_often_as_told() -> None:
    scripts = book()
    scripts.queue("dep", "err429", times=2)
    scripts.queue("dep", "err500")
    assert [scripts.resolve("dep").err for _ in range(4)] == ["429", "429", "500", None]


def test_a_star_queue_serves_any_deployment_but_not_the_token_endpoint() -> None:
    scripts = book()
    scripts.queue(ANY, "err503")
    scripts.queue(ENTRA, "err500")
    assert scripts.resolve(ENTRA).err == "500"
    assert scripts.resolve(ENTRA).err is None
    assert scripts.resolve("whatever").err == "503"


def test_first_and_every_count_requests_per_deployment() -> None:
    scripts = book()
    assert [scripts.resolve("err429-first2").err for _ in range(3)] == ["429", "429", None]
    assert [scripts.resolve("err500-every2").err for _ in range(4)] == [None, "500", None, "500"]
    assert scripts.resolve("err429-every0").err is None


def test_names_can_be_switched_off() -> None:
    assert book(scripted_names=False).resolve("err429") == NORMAL


def test_clearing_forgets_queues_and_counts() -> None:
    scripts = book()
    scripts.queue("dep", "err429")
    scripts.resolve("err500-first1")
    scripts.clear()
    assert scripts.resolve("dep") == NORMAL
    assert scripts.resolve("err500-first1").err == "500"


def test_a_queue_for_no_request_is_refused() -> None:
    with pytest.raises(ScriptError, match="at least 1"):
        book().queue("dep", "err429", times=0)
