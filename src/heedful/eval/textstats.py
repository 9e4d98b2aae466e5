"""What can be said of any answer without a judge: its length, how varied it is, how much it repeats itself."""

from __future__ import annotations


def describe(text: str) -> dict[str, float]:
    """`words`; `distinct_2`: share of different word pairs; `repetition`: share of four-word runs seen before."""
    words = text.split()
    pairs, runs = _grams(words, 2), _grams(words, 4)
    return {
        "words": float(len(words)),
        "distinct_2": len(set(pairs)) / len(pairs) if pairs else 1.0,
        "repetition": 1 - len(set(runs)) / len(runs) if runs else 0.0,
    }


def _grams(words: list[str], size: int) -> list[tuple[str, ...]]:
    return [tuple(words[at : at + size]) for at in range(len(words) - size + 1)]
