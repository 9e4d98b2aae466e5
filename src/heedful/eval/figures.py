"""Draws a comparison's figures as SVG: narrow enough for a phone, in colours that the colour-blind can tell apart.

Knows nothing of runs: the numbers come from `charts`. Needs matplotlib, which is imported when something is drawn.
"""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from heedful.eval import charts
from heedful.eval.charts import Bar, Bars, Map, Panel, Stacks, Strengths
from heedful.eval.runs import Comparison

WIDTH = 4.5
"""Inches, so few that 9 points are still read on a phone's 360 pixels."""
INK = "#24292f"
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")
"""Okabe and Ito's palette."""
ACCEPTED, REJECTED, SKIPPED = "#0072b2", "#d55e00", "#c4c4c4"
MARKERS = "osD^vP"
MOST_MAPS = 6
STYLE: Any = {
    "svg.hashsalt": "heedful",  # the same report, the same bytes
    "svg.fonttype": "path",
    "text.parse_math": False,  # a method's name may hold a dollar
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}


@dataclass(frozen=True)
class Drawn:
    """A figure's file below the report's folder, and its SVG for a page; or why there is none."""

    alt: str
    path: str = ""
    svg: str = ""
    error: str = ""


def bars(data: Bars) -> Any:
    """Groups of horizontal bars, each group under its label."""
    figure, axes, tops = _rows(data.labels, len(data.series), data.unit)
    for at, (colour, found) in enumerate(zip(_cycle(COLOURS, len(data.series)), data.series.values(), strict=True)):
        for top, bar in zip(tops, found, strict=True):
            if bar is not None:
                _bar(axes, bar, top + LABEL + THICK * (at + 0.5), colour)
    axes.set_xlim(0, 1.12 * max((_end(b) for found in data.series.values() for b in found if b), default=1.0) or 1.0)
    if len(data.series) > 1:
        _legend(figure, dict(zip(data.series, _cycle(COLOURS, len(data.series)), strict=True)))
    return figure


LABEL, THICK, GAP = 0.22, 0.16, 0.1
"""Inches: height of a label, thickness of a bar, and what is left before the next label."""


def _rows(labels: Sequence[str], num_bars: int, unit: str) -> tuple[Any, Any, list[float]]:
    """A figure whose y axis counts inches from the top, and where each label's group begins."""
    from matplotlib.figure import Figure

    step = LABEL + num_bars * THICK + GAP
    figure = Figure(figsize=(WIDTH, len(labels) * step + 1.0), layout="constrained")
    axes = figure.add_subplot()
    axes.set_ylim(len(labels) * step, 0)
    axes.yaxis.set_visible(False)
    axes.spines.left.set_visible(False)
    axes.set_xlabel("\n".join(textwrap.fill(line, 50) for line in unit.splitlines()))
    tops = [at * step for at in range(len(labels))]
    for top, label in zip(tops, labels, strict=True):
        axes.text(0, top + LABEL - 0.04, _short(label), transform=axes.get_yaxis_transform(), va="bottom", fontsize=9)
    return figure, axes, tops


def _bar(axes: Any, bar: Bar, y: float, colour: str) -> None:
    axes.barh(y, bar.value, height=0.85 * THICK, color=colour)
    if bar.low is not None and bar.high is not None:
        axes.errorbar(bar.value, y, xerr=[[bar.value - bar.low], [bar.high - bar.value]], color=INK, lw=1, capsize=2)
    axes.annotate(f"{bar.value:.1f}", (_end(bar), y), (4, 0), textcoords="offset points", va="center", fontsize=8)


def _end(bar: Bar) -> float:
    return bar.value if bar.high is None else bar.high


def stacks(data: Stacks, colours: Sequence[str]) -> Any:
    """Horizontal bars of 100 %, each part with its share where it has room for it."""
    figure, axes, tops = _rows(data.labels, 1, data.unit)
    left = [0.0] * len(data.labels)
    for colour, (_, shares) in zip(colours, data.parts.items(), strict=True):
        for at, share in enumerate(shares):
            y = tops[at] + LABEL + THICK / 2
            axes.barh(y, 100 * share, left=left[at], height=THICK, color=colour)
            if share >= 0.07:
                middle = left[at] + 50 * share
                text = f"{100 * share:.0f}"
                axes.text(middle, y, text, ha="center", va="center_baseline", fontsize=8, color=_readable(colour))
            left[at] += 100 * share
    axes.set_xlim(0, 100)
    _legend(figure, dict(zip(data.parts, colours, strict=True)))
    return figure


def acceptance(data: Stacks) -> Any:
    """From dark (all layers) to light (one), and what was rejected."""
    import matplotlib

    scale = matplotlib.colormaps["cividis"]
    count = len(data.parts) - 1
    shades = [matplotlib.colors.to_hex(scale(at / max(1, count - 1))) for at in range(count)]
    return stacks(data, [*shades, REJECTED])


def strengths(data: Strengths) -> Any:
    """One panel above another, on one log axis."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, 2.3 * len(data.panels) + 0.9), layout="constrained")
    panels = figure.subplots(len(data.panels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, panel in zip(panels, data.panels, strict=True):
        _panel(axes, panel)
    ticks = sorted({x for panel in data.panels for curve in panel.curves for x in curve.strengths})
    panels[-1].set_xscale("log")
    panels[-1].xaxis.set_major_formatter("{x:,.10g}")
    if len(ticks) <= 8:
        panels[-1].set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        panels[-1].xaxis.minorticks_off()
    panels[-1].set_xlabel(f"{data.setting} (log scale)")
    figure.align_ylabels(panels)
    handles = {text: line for axes in panels for line, text in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles, loc="outside upper left", frameon=False, fontsize=9)
    return figure


def _panel(axes: Any, panel: Panel) -> None:
    for at, (curve, colour) in enumerate(zip(panel.curves, _cycle(COLOURS, len(panel.curves)), strict=True)):
        values = [bar.value for bar in curve.bars]
        style = {"color": colour, "marker": MARKERS[at % len(MARKERS)], "label": _short(curve.label)}
        if panel.is_share:
            low = [bar.value - (bar.value if bar.low is None else bar.low) for bar in curve.bars]
            axes.errorbar(
                curve.strengths, values, [low, [_end(bar) - bar.value for bar in curve.bars]], capsize=2, **style
            )
        else:
            axes.plot(curve.strengths, values, **style)
    for (label, bar), dash in zip(
        panel.unsteered.items(), _cycle(("--", ":", "-."), len(panel.unsteered)), strict=True
    ):
        axes.axhline(bar.value, color=INK, ls=dash, lw=1, label=_short(label))
    if panel.is_share:
        axes.set_ylim(bottom=0)
        axes.set_ylabel(f"{panel.title}, %")
    else:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(_between)
        axes.set_ylabel(f"median {panel.title}")


def _between(value: float, _: int | None = None) -> str:
    """Labels of 2, 5, 20, 50 …: an axis that spans no power of ten would have none."""
    return f"{value:g}" if f"{value:e}"[0] in "25" else ""


def sensitivity(data: Sequence[Map]) -> Any:
    """A heat map for each ranking, all in one scale of colours."""
    from matplotlib.figure import Figure

    shown = data[:MOST_MAPS]
    columns = 1 if len(shown) == 1 else 2
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(WIDTH, rows * (WIDTH / columns + 0.35) + 0.5), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    most = max(share for each in shown for row in each.shares for share in row)
    for axes in grid.flat[len(shown) :]:
        axes.set_visible(False)
    for axes, each in zip(grid.flat, shown, strict=False):
        count = len(each.shares)
        percent = [[100 * share for share in row] for row in each.shares]
        extent = (0.5, count + 0.5, -0.5, count - 0.5)
        image = axes.imshow(
            percent, origin="lower", extent=extent, vmin=0, vmax=100 * most, cmap="cividis", interpolation="none"
        )
        axes.set_title(textwrap.fill(_short(each.label, 84), 50 // columns), fontsize=9)
        axes.set(xlabel="rank, 1 = most sensitive", ylabel="layer")
    beside = f"; the first {len(shown)} of {len(data)}" if len(data) > len(shown) else ""
    figure.colorbar(image, ax=list(grid.flat), location="bottom", shrink=0.8, label=f"% of prompts{beside}")
    return figure


FIGURES: dict[str, tuple[Callable[[Comparison], Any], Callable[[Any], Any], str]] = {
    "accuracy": (charts.accuracy, bars, "scores of every method with their intervals"),
    "strength": (partial(charts.strengths, setting="strength"), strengths, "what a method scores at each strength"),
    "multiplier": (
        partial(charts.strengths, setting="multiplier"),
        strengths,
        "what a method scores at each multiplier",
    ),
    "decisions": (
        charts.decisions,
        partial(stacks, colours=(ACCEPTED, REJECTED, SKIPPED)),
        "share of steps accepted, rejected and skipped",
    ),
    "acceptance": (charts.acceptance, acceptance, "how many layers the accepted trials steered"),
    "sensitivity": (charts.sensitivity, sensitivity, "how often each layer stands at each rank of sensitivity"),
    "speed": (charts.speed, bars, "generated tokens a second of every method"),
}


def draw(comparison: Comparison, folder: Path) -> dict[str, Drawn]:
    """Draws what there is to draw, and writes it below `folder`; what fails says why, and loses nothing else."""
    found = {}
    for name, (read, plot, meaning) in FIGURES.items():
        path = f"figures/{re.sub(r'[^A-Za-z0-9.-]', '_', comparison.task)}-{name}.svg"
        alt = f"{comparison.task}: {meaning}"
        try:
            data = read(comparison)
            if data:
                found[name] = _drawn(plot, data, folder, path, alt)
            else:
                (folder / path).unlink(missing_ok=True)
        except ImportError as error:
            found[name] = Drawn(alt, error=f"{error}: pip install 'heedful[eval]'")
        except Exception as error:  # numbers that no one has drawn before must not lose a report of hours
            found[name] = Drawn(alt, error=str(error) or type(error).__name__)
    return found


def _drawn(plot: Callable[[Any], Any], data: Any, folder: Path, path: str, alt: str) -> Drawn:
    import matplotlib

    with matplotlib.rc_context(STYLE):
        file = io.StringIO()
        plot(data).savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.S)
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    white = text.replace(">", '><rect width="100%" height="100%" fill="#ffffff"/>', 1)
    (folder / path).write_text(white, encoding="utf-8")
    # In a page, ink is the page's own; ids of groups would stand there once a figure.
    return Drawn(alt, path, re.sub(r'<g id="[^"]*"', "<g", text.replace(INK, "currentColor")))


def _legend(figure: Any, colours: dict[str, str]) -> None:
    from matplotlib.patches import Patch

    columns = max(1, min(len(colours), 48 // (max(map(len, colours)) + 5)))
    patches = [Patch(color=colour, label=_short(name)) for name, colour in colours.items()]
    figure.legend(handles=patches, loc="outside upper left", ncols=columns, frameon=False, fontsize=9)


def _short(label: str, most: int = 50) -> str:
    """A label that fits the figure: its middle goes, as methods share their beginnings and runs their ends."""
    return label if len(label) <= most else f"{label[: most // 2]}…{label[len(label) - most // 2 + 1 :]}"


def _readable(colour: str) -> str:
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return "#000000" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "#ffffff"


def _cycle(listed: Sequence[str], count: int) -> list[str]:
    return [listed[at % len(listed)] for at in range(count)]
