"""From a text to chunks: sentences, bullets and clauses with their words and exact character ranges.

One pass over the words; what stands between two of them tells whether a chunk ends there, and how.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from heedful.detection.material import MASK, Layout

Boundary = Literal["paragraph", "line", "sentence", "clause"]

_WORD = re.compile(rf"{MASK}+|[^\W\d_]+(?:['’][^\W\d_]+)?|\d+|[^\w\s]|_+")
# Words that may begin a clause or a phrase of its own.
_OPENING = (
    "and but or with without in using that which who whose of for about to from on by as at where while when "
    "if so then also including containing making make wrapped separated written followed starting ending "
    "avoiding no not don't must should don’t do use include ensure each every all no please like such between "
    "after before under over within only keep"
)
_OPENERS = frozenset(_OPENING.split())
_MEASURING = "word words sentence sentences paragraph paragraphs section sections line lines page stanza"
_MEASURES = frozenset(_MEASURING.split())
_ABBREVIATED = "i e g etc vs mr mrs ms dr st no p s u inc ltd jr sr prof approx ca z b d h fig al ft"
_ABBREVIATIONS = frozenset(_ABBREVIATED.split())
_ENDERS = frozenset(".!?。！？…")
_PARTING = _ENDERS | _MEASURES | frozenset(",;:(")  # no other word has a boundary right behind it
_BEGINNING = _OPENERS | {"0"}  # nor any other one right before it, on its line


@dataclass(slots=True)
class Chunk:
    """The characters `start` … `end - 1`; `boundary` is what parts it from the chunk before.

    `words` are in lower case, every number as "0", all that is masked as one word. `is_material`: it is pasted or
    quoted text and never an instruction.
    """

    start: int
    end: int
    boundary: Boundary
    words: list[str]
    is_material: bool = False


def chunks(layout: Layout) -> list[Chunk]:
    """The chunks of a text, in order. Material is a chunk of its own."""
    text = layout.masked
    starts = [material.start for material in layout.materials]
    found: list[Chunk] = []
    read, is_material, before = 0, False, ""
    for match in _WORD.finditer(text):
        start, end = match.span()
        written = match[0]
        word = _normal(written)
        was_material = is_material
        is_material = word == MASK and _inside(layout, starts, start)
        gap = text[read:start]
        boundary: Boundary | None = None
        if before in _PARTING or word in _BEGINNING or "\n" in gap:
            boundary = _boundary(gap, found[-1].words if found else [], word, written)
        if is_material != was_material and boundary is None:
            boundary = "clause"
        if boundary is not None or not found:
            found.append(Chunk(start, end, boundary or "paragraph", [word], is_material))
        else:
            found[-1].end = end
            found[-1].words.append(word)
        read, before = end, word
    return found


def _normal(word: str) -> str:
    if word[0] == MASK:
        return MASK
    return "0" if word[0].isdigit() else word.lower()


def _inside(layout: Layout, starts: Sequence[int], place: int) -> bool:
    at = bisect_right(starts, place) - 1
    return at >= 0 and place < layout.materials[at].end


def _boundary(gap: str, read: Sequence[str], word: str, written: str) -> Boundary | None:
    """What parts `word` from the chunk's words before it; None where nothing does."""
    before = read[-1] if read else ""
    if "\n" in gap:
        if gap.count("\n") > 1:
            return "paragraph"
        is_wrapped = before not in _ENDERS and before != ":" and written[0].islower()
        return "clause" if is_wrapped else "line"
    if before in _ENDERS and (gap or before in "。！？") and not written[0].islower():
        is_abbreviated = before == "." and len(read) > 1 and read[-2] in _ABBREVIATIONS
        is_number = len(read) == 2 and read[0] == "0"
        return None if is_abbreviated or is_number else "sentence"
    if gap and before and before in ",;:(":
        return "clause"
    if word in _OPENERS and before not in _OPENERS:
        return "clause"
    if word == "0" and before in ("a", "an", "the", "of"):
        return "clause"
    return "clause" if before in _MEASURES else None
