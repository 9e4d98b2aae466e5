"""What can be said of any answer without a judge: its length, how varied it is, how much it repeats itself."""

from __future__ import annotations


def describe(text: str) -> dict[str, float]:
    """`words`; `distinct_1`, `_2`, `_3`: share of different words, word pairs and triples; `repetition`: share of
    four-word runs seen before."""
    words = text.split()
    return {
        "words": float(len(words)),
        **{f"distinct_{size}": _distinct(words, size) for size in (1, 2, 3)},
        "repetition": 1 - _distinct(words, 4),
    }


def _distinct(words: list[str], size: int) -> float:
    grams = _grams(words, size)
    return len(set(grams)) / len(grams) if grams else 1.0


def _grams(words: list[str], size: int) -> list[tuple[str, ...]]:
    return [tuple(words[at : at + size]) for at in range(len(words) - size + 1)]
