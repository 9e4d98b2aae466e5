"""Puts `<heed>` tags around what `heedful.detect` finds, beside those that are there already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from heedful.prompt import detect
from heedful.spans import Span, outside, parse_tags


@dataclass(frozen=True)
class Marked:
    """Both texts with tags; `num_found`: how many were added."""

    system: str
    prompt: str
    num_found: int


def with_tags(clean: str, spans: Sequence[Span]) -> str:
    """`clean` with a tag around each of `spans`, which do not overlap; `parse_tags` gives both back."""
    pieces: list[str] = []
    read = 0
    for span in sorted(spans, key=lambda span: span.start):
        opening = "<heed>" if span.weight == 1.0 else f"<heed weight={span.weight:g}>"
        pieces += [clean[read : span.start], opening, clean[span.start : span.end], "</heed>"]
        read = span.end
    return "".join(pieces) + clean[read:]


def mark_found(system: str, prompt: str) -> Marked:
    """Marks the instructions that are found. Raises `SpanError` for broken tags, `PromptError` for no text at all."""
    texts = [("system", system)] if system.strip() else []
    texts.append(("user", prompt))
    found = detect([{"role": role, "content": text} for role, text in texts])
    marked: dict[str, str] = {"system": system}
    num_found = 0
    for index, (role, text) in enumerate(texts):
        clean, tagged = parse_tags(text)
        here = [item.span for item in found if item.span.message in (index, None)]
        new = [piece for span in here for piece in outside(clean, span, tagged)]
        num_found += len(new)
        marked[role] = with_tags(clean, [*tagged, *new]) if new else text
    return Marked(marked["system"], marked["user"], num_found)
