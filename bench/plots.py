"""The results as pictures (SVG), where matplotlib is installed. I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from bench.results import Run

_OWN_COLOUR = "#1f6feb"
_OTHER_COLOUR = "#8b949e"
_STILL = {"Date": None}  # the same results give the same file
_BARS = (
    ("cpu-echo", "echo-c64", "cpu_us", "CPU µs per request, echo, c=64"),
    ("cpu-stream", "stream-burst-c64", "cpu_us", "CPU µs per stream of 50 chunks, c=64"),
    ("p50-c1", "echo-c1", "p50", "p50 in µs, echo, c=1"),
    ("ttft", "stream-paced-c64", "ttft_p50", "TTFT p50 in µs, 64 paced streams"),
    ("idle-rss", "start", "idle_rss_mb", "resident memory at rest, MB"),
)


class NoPlots(Exception):
    """Pictures cannot be drawn; the text is the reason."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A file, and what it shows."""

    file: Path
    title: str


def draw(run: Run, folder: Path) -> list[Picture]:
    """Write a picture for each figure that the run has. Raises NoPlots."""
    try:
        # not an import statement: types are checked where matplotlib is not installed, too
        matplotlib = import_module("matplotlib")
        matplotlib.use("svg")
        plt = import_module("matplotlib.pyplot")
    except ImportError as error:
        raise NoPlots("no plots: matplotlib is not installed (bench/requirements.txt)") from error
    matplotlib.rcParams["svg.hashsalt"] = "bench"
    matplotlib.rcParams["svg.fonttype"] = "none"  # letters as text, not as outlines
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, scenario, figure, title in _BARS:
        bars = values(run, scenario, figure)
        if bars:
            written.append(Picture(folder / f"{name}.svg", title))
            _bars(plt, bars, written[-1])
    soak = run.outcomes.get("soak")
    for contender, series in soak.series.items() if soak else ():
        title = f"resident memory of the {contender} in MB, soak"
        written.append(Picture(folder / f"soak-{contender}.svg", title))
        _line(plt, series, written[-1])
    return written


def values(run: Run, scenario: str, figure: str) -> list[tuple[str, float]]:
    """The medians of a figure by contender, the smallest first. Pure."""
    outcome = run.outcomes.get(scenario)
    if outcome is None:
        return []
    found = [(name, outcome.median(name, figure)) for name in outcome.names()]
    return sorted(
        ((name, median) for name, median in found if median is not None), key=lambda bar: bar[1]
    )


def _bars(plt: Any, bars: Sequence[tuple[str, float]], picture: Picture) -> None:
    names = [name for name, _ in bars]
    figure, axes = plt.subplots(figsize=(7, 0.4 * len(bars) + 1), layout="constrained")
    colours = [_OWN_COLOUR if name.startswith("gateway") else _OTHER_COLOUR for name in names]
    drawn = axes.barh(names, [value for _, value in bars], color=colours)
    axes.bar_label(drawn, fmt="{:,.0f}", padding=3)
    if bars[-1][1] > 20 * bars[0][1] > 0:
        axes.set_xscale("log")
    axes.margins(x=0.12)
    axes.invert_yaxis()
    axes.set_title(picture.title)
    axes.spines[["top", "right"]].set_visible(False)
    _save(plt, figure, picture.file)


def _line(plt: Any, series: Sequence[Sequence[float]], picture: Picture) -> None:
    figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
    axes.plot([row[0] for row in series], [row[1] for row in series], color=_OWN_COLOUR)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("seconds")
    axes.set_title(picture.title)
    axes.spines[["top", "right"]].set_visible(False)
    _save(plt, figure, picture.file)


def _save(plt: Any, figure: Any, file: Path) -> None:
    figure.savefig(file, format="svg", metadata=_STILL, facecolor="white")
    plt.close(figure)
