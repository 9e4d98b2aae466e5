"""What a row of an lm-eval task marks: its span columns, found again in the prompt that the task made of the row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from heedful.errors import DataError, SpanError
from heedful.prompt import Instructions
from heedful.spans import Span, excerpt, find_substring, parse_tags

RANGES = ("heedful_spans", "original_spans")
TEXTS = ("original_prompt", "prompt")


@dataclass(frozen=True)
class Ranged:
    """A text of a row, and the character ranges in it that are to be heeded."""

    text: str
    ranges: list[tuple[int, int]]


def marked_by(row: Mapping[str, Any], prompt: str, message: int | None = None) -> Instructions:
    """What `row` wants heeded in `prompt`; None where the prompt's own tags say so, or nothing does.

    Asked in this order: `<heed>` tags in the prompt; ranges (`heedful_spans` or `original_spans` over the row's
    `original_prompt` or `prompt`; all of `split_prompt` behind `task`) whose whole text stands in the prompt;
    `instructions`, exact texts; the ranges' passages, each for itself. `message`: the index of the message whose
    content `prompt` is. Raises `DataError` for a column of another shape, `SpanError` where a passage is not in the
    prompt, or more than once.
    """
    if parse_tags(prompt)[1]:
        return None
    ranged = _ranged(row)
    for one in ranged:
        places = find_substring(prompt, one.text.strip())
        if len(places) == 1:
            shift = places[0][0] - (len(one.text) - len(one.text.lstrip()))
            return [_span(start + shift, end + shift, len(prompt), message) for start, end in one.ranges]
    texts = row.get("instructions")
    if texts:
        return _texts(texts)
    return [_passage(prompt, ranged[0].text[start:end], message) for start, end in ranged[0].ranges] if ranged else None


def _ranged(row: Mapping[str, Any]) -> list[Ranged]:
    """The row's ranges, in the order in which they are asked."""
    found: list[Ranged] = []
    for column in RANGES:
        if row.get(column):
            text = next((row[name] for name in TEXTS if isinstance(row.get(name), str)), None)
            if text is None:
                raise DataError(f"{column} are ranges over the column {' or '.join(TEXTS)}, which the row lacks")
            found.append(Ranged(text, _pairs(column, row[column], text)))
    task, split = row.get("task"), row.get("split_prompt")
    if isinstance(task, str) and isinstance(split, str) and split.startswith(task) and len(split) > len(task):
        found.append(Ranged(split, [(len(task), len(split))]))
    return found


def _pairs(column: str, value: Any, text: str) -> list[tuple[int, int]]:
    try:
        pairs = [(int(start), int(end)) for start, end in value]
    except (TypeError, ValueError):
        raise DataError(f"{column} must be pairs [start, stop], not {excerpt(repr(value))}") from None
    for start, end in pairs:
        if not 0 <= start < end <= len(text):
            raise DataError(f"{column} names {start}:{end}, which is no passage of a text of {len(text)} characters")
    return pairs


def _texts(value: Any) -> Instructions:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise DataError(f"instructions must be exact texts, not {excerpt(repr(value))}")
    return texts


def _span(start: int, end: int, size: int, message: int | None) -> Span:
    """The span, less what was stripped from either end of the text."""
    return Span(max(start, 0), min(end, size), message=message)


def _passage(prompt: str, passage: str, message: int | None) -> Span:
    places = find_substring(prompt, passage)
    if len(places) != 1:
        found = f"in it {len(places)} times" if places else "not in it"
        raise SpanError(
            f"the task writes the row's text anew, and the marked passage {excerpt(passage)!r} is {found}: "
            "mark it by <heed> tags or by a column of exact instructions"
        )
    return Span(*places[0], message=message)
