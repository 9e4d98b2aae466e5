"""Answers, verdicts and the preview as HTML. Whatever a user or a model wrote is escaped here, and nowhere else."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape

from heedful.playground.checks import Verdict
from heedful.playground.state import Column, Told
from heedful.prompt import EncodedPrompt

SPACE, NEWLINE, TAB = "␣", "↵", "⇥"
NO_TEXT = "▯"  # a token that ends the answer, or is a part of a character
VERDICTS = {True: ("pass", "✓ holds"), False: ("fail", "✗ broken"), None: ("open", "? took too long")}
LEGEND = (
    ("skipped", "skipped", "the model is sure: it chooses alone"),
    ("accepted", "accepted", "steered, and plausible; a small number says in how many layers, none: in all"),
    ("changed", "accepted, changed", "and not what the model would have said"),
    ("rejected", "rejected", "steering would have said something implausible"),
    ("unchecked", "unchecked", "steered, and never held against the model's own choice"),
)


def visible(text: str) -> str:
    """`text` with its blanks made visible, for a token that is shown by itself."""
    return text.replace("\n", NEWLINE).replace("\t", TAB).replace(" ", SPACE) or NO_TEXT


def kind_of(token: Told, is_checked: bool) -> str:
    """The CSS class of a token: one of `LEGEND`."""
    if token.decision != "accepted":
        return token.decision
    if not is_checked:
        return "unchecked"
    return "changed" if token.changed else "accepted"


def in_words(token: Told, column: Column) -> str:
    """What was decided, in a sentence."""
    raw = next((text for text, p_raw, _ in _by_raw(token) if p_raw is not None), None)
    would = "" if raw is None else f"; the raw model would say {visible(raw)}"
    where = f"{token.layers} of {column.num_layers} layers" if token.layers else "the logits"
    words = {
        "skipped": "skipped: one token is far likelier than all others" if column.is_checked else "not steered",
        "accepted": f"accepted: steered in {where}, at try {token.trials}; the raw model says the same",
        "changed": f"changed: steered in {where}, accepted at try {token.trials}{would}",
        "rejected": f"rejected: all {token.trials} tries were implausible; the raw model's choice is taken",
        "unchecked": f"steered in {where}, without a check",
    }
    return words[kind_of(token, column.is_checked)]


def _by_raw(token: Told) -> list[tuple[str, float | None, float | None]]:
    return sorted(token.others, key=lambda one: -(one[1] or 0.0))


def answers(columns: Sequence[Column], verdicts: Sequence[Sequence[Verdict]]) -> str:
    """All columns side by side; `verdicts[i]` are those of `columns[i]`, none while it is being written."""
    if not columns:
        return '<p class="hp-hint">Press Run: the answers appear here, side by side.</p>'
    told = list(verdicts) + [()] * (len(columns) - len(verdicts))
    shown = [_column(number, *pair) for number, pair in enumerate(zip(columns, told, strict=True), start=1)]
    return f'<div class="hp-columns">{"".join(shown)}</div>'


def _column(number: int, column: Column, verdicts: Sequence[Verdict]) -> str:
    name = escape(column.method)
    tokens = "".join(_token(token, column) for token in column.tokens)
    return (
        f'<section class="hp-column" aria-label="{name}"><h3>{name} <small>{_kind(column)}</small></h3>'
        f'<div class="hp-answer" id="hp-answer-{number}" tabindex="0" role="group" '
        f'aria-label="Answer by {name}; the arrow keys walk through its tokens">{tokens}</div>'
        f'<p class="hp-facts">{facts(column)}</p>{_checks(verdicts)}</section>'
    )


def _kind(column: Column) -> str:
    if column.is_checked:
        return "steered where that is plausible"
    return (
        "steered at every token"
        if any(token.decision == "accepted" for token in column.tokens)
        else "the model by itself"
    )


def facts(column: Column) -> str:
    """How many tokens, how fast, and what was decided how often."""
    count = {kind: sum(token.decision == kind for token in column.tokens) for kind in ("accepted", "rejected")}
    parts = [f"{len(column.tokens)} tokens", f"{column.tokens_per_second:.1f} tokens/s"]
    if column.is_checked:
        changed = sum(token.changed for token in column.tokens)
        parts += [f"{count['accepted']} accepted", f"{changed} changed", f"{count['rejected']} rejected"]
    elif count["accepted"]:
        parts.append("every token steered, unchecked")
    if column.finish_reason == "length":
        parts.append("cut at the limit")
    return " · ".join(parts)


def _token(token: Told, column: Column) -> str:
    kind = kind_of(token, column.is_checked)
    # Blanks inside of a token stay as they are; what it would look like alone is told by the tooltip.
    text = escape(token.text) or f'<span class="hp-none">{NO_TEXT}</span>'
    few = kind in ("accepted", "changed") and 0 < token.layers < len(column.order)
    layers = f"<sup>{token.layers}</sup>" if few else ""
    details = {
        "text": visible(token.text),
        "words": in_words(token, column),
        "others": [[visible(text), raw, steered] for text, raw, steered in token.others],
        "taken": token.taken,
    }
    data = escape(json.dumps(details, ensure_ascii=False, separators=(",", ":")))
    return f'<span class="hp-t hp-{kind}" data-token="{data}">{text}{layers}</span>'


def _checks(verdicts: Sequence[Verdict]) -> str:
    items = []
    for verdict in verdicts:
        kind, words = VERDICTS[verdict.holds]
        items.append(f'<li class="hp-{kind}"><b>{words}</b> {escape(verdict.name)}</li>')
    return f'<ul class="hp-checks">{"".join(items)}</ul>' if items else ""


def legend() -> str:
    """What the marks mean: each is a line of its own kind, not only a colour."""
    items = "".join(
        f'<li><span class="hp-t hp-{kind}">{escape(name)}</span> {escape(words)}</li>' for kind, name, words in LEGEND
    )
    return f'<ul class="hp-legend" aria-label="Legend">{items}</ul>'


def preview(encoded: EncodedPrompt) -> str:
    """The prompt as the model reads it, the steered tokens marked one by one."""
    num = len(encoded.span)
    if not num:
        return (
            '<p class="hp-facts">0 tokens are steered: select text and press <b>Heed selection</b>, '
            "or write &lt;heed&gt;…&lt;/heed&gt; around it.</p>"
        )
    weights = dict(zip(encoded.span.positions, encoded.span.weights, strict=True))
    pieces: list[str] = []
    read = 0
    for position, (start, end) in enumerate(encoded.offsets):
        start = max(start, read)
        if start >= end:
            continue  # a further byte of the same character, or no text at all
        pieces.append(escape(encoded.text[read:start]))
        piece, read = escape(encoded.text[start:end]), end
        weight = weights.get(position)
        if weight is not None:
            piece = f'<mark title="position {position}, weight {weight:g}">{piece}</mark>'
        pieces.append(piece)
    pieces.append(escape(encoded.text[read:]))
    return (
        f'<p class="hp-facts">{num} of {len(encoded.token_ids)} tokens are steered, each in a box of its own:</p>'
        f'<div class="hp-preview" tabindex="0" role="group" aria-label="The prompt as the model reads it">'
        f"{''.join(pieces)}</div>"
    )


def note(text: str, is_error: bool = False) -> str:
    """A line about what happened, read aloud by screen readers."""
    kind = ("alert", " hp-error") if is_error else ("status", "")
    return f'<p class="hp-note{kind[1]}" role="{kind[0]}">{escape(text)}</p>'
