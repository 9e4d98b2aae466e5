"""Which layers were steered when, how sensitive each layer is, and how fast each method was, as SVG. Numbers only."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from heedful.playground.state import Column

WIDTH, HEIGHT = 420, 168
LEFT, TOP = 34.0, 16.0
MAP_WIDTH, MAP_HEIGHT = 262.0, 122.0
BARS_LEFT, BARS_WIDTH = 318.0, 92.0


def figures(columns: Sequence[Column]) -> str:
    """A chart of its layers under each column, and the speed of all."""
    if not any(column.tokens for column in columns):
        return ""
    charts = "".join(
        f'<figure class="hp-figure"><figcaption><b>{escape(column.method)}</b>: layers steered at each token, '
        f"and each layer's sensitivity</figcaption>{_layers(column)}</figure>"
        for column in columns
    )
    return f'<div class="hp-columns hp-charts">{charts}</div>{_speeds(columns)}'


def _layers(column: Column) -> str:
    if not any(token.layers for token in column.tokens):
        return '<p class="hp-hint">No layer was steered.</p>'
    cell_width = MAP_WIDTH / max(len(column.tokens), 1)
    cell_height = MAP_HEIGHT / max(column.num_layers, 1)
    inside = _axes(column) + _map(column, cell_width, cell_height) + _bars(column, cell_height)
    count = sum(1 for token in column.tokens if token.layers)
    label = f"Layers steered by {column.method}: {count} of {len(column.tokens)} tokens were steered"
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">'
        f"<title>{escape(label)}</title>{inside}</svg>"
    )


def _map(column: Column, width: float, height: float) -> str:
    """One path for each layer: the tokens in a row at which it was steered, joined."""
    runs: dict[int, list[tuple[int, int]]] = {}
    for at, token in enumerate(column.tokens):
        for layer in column.steered_layers(token):
            row = runs.setdefault(layer, [])
            if row and row[-1][1] == at:
                row[-1] = (row[-1][0], at + 1)
            else:
                row.append((at, at + 1))
    paths = []
    for layer, row in sorted(runs.items()):
        top = _top(layer, column.num_layers, height)
        steps = "".join(
            f"M{LEFT + start * width:.1f} {top:.1f}h{size:.2f}v{height:.2f}h{-size:.2f}z"
            for start, size in ((start, (end - start) * width) for start, end in row)
        )
        paths.append(f'<path class="hp-cell" d="{steps}"/>')
    return "".join(paths) + _rejections(column, width)


def _rejections(column: Column, width: float) -> str:
    """A small cross above each token at which every try was refused."""
    marks = "".join(
        f"M{LEFT + (at + 0.5) * width - 2:.1f} {TOP - 7:.1f}l4 4m0 -4l-4 4"
        for at, token in enumerate(column.tokens)
        if token.decision == "rejected"
    )
    return f'<path class="hp-cross" d="{marks}"/>' if marks else ""


def _bars(column: Column, height: float) -> str:
    """Each layer's score as a bar on the map's own rows."""
    if not column.sensitivity:
        return _text(BARS_LEFT + BARS_WIDTH / 2, TOP + MAP_HEIGHT / 2, "not measured", "middle")
    low, high = min(column.sensitivity), max(column.sensitivity)
    zero = min(low, 0.0)
    scale = BARS_WIDTH / ((high - zero) or 1.0)
    bars = "".join(
        f'<rect class="hp-bar" x="{BARS_LEFT}" y="{_top(layer, column.num_layers, height):.1f}" '
        f'width="{max((score - zero) * scale, 0.5):.1f}" height="{height * 0.8:.2f}">'
        f"<title>layer {layer}: {score:.4g}</title></rect>"
        for layer, score in enumerate(column.sensitivity)
    )
    return bars + _text(BARS_LEFT + BARS_WIDTH, TOP + MAP_HEIGHT + 12, f"{high:.2g}", "end")


def _axes(column: Column) -> str:
    bottom = TOP + MAP_HEIGHT
    last = max(column.num_layers - 1, 0)
    return (
        f'<rect class="hp-frame" x="{LEFT}" y="{TOP}" width="{MAP_WIDTH}" height="{MAP_HEIGHT}"/>'
        + _text(LEFT - 4, TOP + 8, str(last), "end")
        + _text(LEFT - 4, bottom, "0", "end")
        + f'<text transform="rotate(-90 10 {TOP + MAP_HEIGHT / 2})" x="10" y="{TOP + MAP_HEIGHT / 2}" '
        + 'text-anchor="middle">layer</text>'
        + _text(LEFT, bottom + 12, "1", "start")
        + _text(LEFT + MAP_WIDTH, bottom + 12, str(len(column.tokens)), "end")
        + _text(LEFT + MAP_WIDTH / 2, bottom + 24, "token  (× above: rejected)", "middle")
        + _text(BARS_LEFT, bottom + 24, "sensitivity", "start")
    )


def _speeds(columns: Sequence[Column]) -> str:
    most = max(column.tokens_per_second for column in columns) or 1.0
    rows = "".join(
        f'<tr><th scope="row">{escape(column.method)}</th>'
        f'<td><span class="hp-speed" style="width:{100 * column.tokens_per_second / most:.0f}%"></span></td>'
        f"<td>{column.tokens_per_second:.1f}</td></tr>"
        for column in columns
    )
    caption = "tokens/s, while all share the model's forward passes"
    return (
        f'<figure class="hp-figure"><figcaption>{caption}</figcaption><table class="hp-speeds">{rows}</table></figure>'
    )


def _top(layer: int, num_layers: int, height: float) -> float:
    """Layer 0 is at the bottom."""
    return TOP + (num_layers - 1 - layer) * height


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
