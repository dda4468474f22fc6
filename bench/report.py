"""The results as Markdown: a table for each scenario and the table of demands.

`python -m bench.report RESULTS.json [--plots FOLDER] [--into DOCUMENT]` prints them again, draws
the plots into a folder, and puts both into a document, between its marks.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from os.path import relpath
from pathlib import Path

from bench import plots
from bench.results import Outcome, Reader, Run, added_ms, cpu_over, from_json, median_of
from bench.verdict import DEMANDS, Verdict, show

BEGIN_MARK = "<!-- results: python -m bench.report -->"
END_MARK = "<!-- /results -->"
_COMPARED = ("baseline", "tensorzero")


@dataclass(frozen=True, slots=True)
class Column:
    """A column: its head, how its cells are read, and their digits after the point."""

    head: str
    cell: Reader
    digits: int


COLUMNS = (
    Column("per s", median_of("rps"), 0),
    Column("p50 ms", median_of("p50", 1e-3), 2),
    Column("p99 ms", median_of("p99", 1e-3), 2),
    Column("added p50 ms", added_ms("p50"), 2),
    Column("added TTFT ms", added_ms("ttft_p50"), 2),
    Column("added per chunk ms", added_ms("chunk_p50"), 2),
    Column("CPU µs", median_of("cpu_us"), 0),
    Column("CPU over baseline", cpu_over("baseline"), 2),
    Column("refused", median_of("refused_share"), 3),
    Column("refusal p50 ms", median_of("refused_p50", 1e-3), 2),
    Column("fullest process", median_of("largest_share"), 2),
    Column("KB per stream", median_of("stream_kb"), 1),
    Column("idle CPU %", median_of("idle_cpu_percent"), 2),
    Column("RSS before MB", median_of("before_mb"), 0),
    Column("peak + MB", median_of("peak_mb"), 1),
    Column("RSS after MB", median_of("after_mb"), 0),
    Column("took s", median_of("seconds"), 1),
    Column("read slowly MB", median_of("read_mb"), 0),
    Column("ready s", median_of("ready_s"), 2),
    Column("idle RSS MB", median_of("idle_rss_mb"), 0),
    Column("idle PSS MB", median_of("idle_pss_mb"), 0),
    Column("largest process MB", median_of("process_rss_mb"), 0),
    Column("answers", median_of("answers"), 0),
    Column("streams", median_of("streams"), 0),
    Column("growth MB", median_of("growth_mb"), 1),
    Column("slope MB/h", median_of("slope_mb_per_hour"), 1),
    Column("RSS MB", median_of("rss_mb"), 0),
)


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def scenario_table(outcome: Outcome) -> str:
    """A line for each contender; columns without any figure are left out."""
    names = outcome.names()
    columns = [c for c in COLUMNS if any(c.cell(outcome, name) for name in names)]
    rows = [[name, *(_text(c, c.cell(outcome, name)) for c in columns)] for name in names]
    lines = [markdown_table(["", *(column.head for column in columns)], rows)] if rows else []
    for name, reason in outcome.skipped.items():
        lines.append(f"\n{name} was skipped: {reason}")
    for name, reasons in outcome.void.items():
        lines.append(f"\n{name}: {len(reasons)} void: {'; '.join(sorted(set(reasons)))}")
    return "\n".join(lines)


def _text(column: Column, number: float | None) -> str:
    return "–" if number is None else f"{number:.{column.digits}f}"


def demand_table(run: Run) -> str:
    """What must be shown, what was measured, the verdict, and the same figure of others: some
    bounds are times, which depend on the machine."""
    others = [name for name in _COMPARED if any(d.measured(run, name) for d in DEMANDS)]
    rows = []
    for demand in DEMANDS:
        measured = demand.measured(run)
        figure = "–" if measured is None else show(measured, demand.unit)
        verdict = demand.judge(measured)
        shown = f"**{verdict.value}**" if verdict is Verdict.NOT_MET else verdict.value
        cells = [demand.text, demand.bound(demand.must), demand.bound(demand.aim), figure, shown]
        for name in others:
            theirs = demand.measured(run, name) if demand.contender == "gateway" else None
            cells.append("–" if theirs is None else show(theirs, demand.unit))
        rows.append(cells)
    return markdown_table(["", "must", "aim", "measured", "", *others], rows)


def markdown(run: Run, *, level: int = 2) -> str:
    """The whole report, with headings of this level."""
    head = "#" * level
    about = ", ".join(f"{name}: {value}" for name, value in (run.machine | run.settings).items())
    parts = [about, f"{head} What it must show", demand_table(run)]
    for outcome in run.outcomes.values():
        parts += [f"{head} {outcome.title}", scenario_table(outcome)]
    return "\n\n".join(parts) + "\n"


def between_marks(document: str, text: str) -> str:
    """The document with this text between its marks. Raises ValueError when it has none."""
    before, begin, rest = document.partition(BEGIN_MARK)
    _, end, after = rest.partition(END_MARK)
    if not begin or not end:
        raise ValueError(f"the document has no marks {BEGIN_MARK} and {END_MARK}")
    return f"{before}{begin}\n\n{text.strip()}\n\n{end}{after}"


def main(arguments: Sequence[str]) -> None:
    """Print a run again, from its file; draw it, put it into a document."""
    parser = argparse.ArgumentParser(prog="python -m bench.report")
    parser.add_argument("results", type=Path)
    parser.add_argument("--plots", type=Path, help="folder for the plots")
    parser.add_argument("--into", type=Path, help="Markdown document with the marks")
    asked = parser.parse_args(arguments)
    run = from_json(json.loads(asked.results.read_text()))
    try:
        pictures = plots.draw(run, asked.plots) if asked.plots else []
    except plots.NoPlots as reason:
        sys.exit(str(reason))
    if asked.into is None:
        print(markdown(run))
        return
    links = [f"![{p.title}]({relpath(p.file, asked.into.parent)})" for p in pictures]
    text = "\n\n".join([markdown(run, level=3).strip(), *links])
    asked.into.write_text(between_marks(asked.into.read_text(), text))


if __name__ == "__main__":
    main(sys.argv[1:])
