"""GSM8K-Format: a word problem whose answer must be one JSON object with the keys `reasoning` and `answer`.

The paper's own prompt and scorer are not released; this is its idea, with rules that leave nothing out of the count.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any

INSTRUCTION = (
    "Respond with exactly one JSON object and nothing else. It must have exactly two keys: "
    '"reasoning", a string with your step-by-step reasoning, and "answer", the final answer as a number.'
)
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?|-?\.\d+")
ANSWER = re.compile(r'"answer"\s*:\s*"?\s*\$?\s*(-?[\d,]*\.?\d+)')


@dataclass(frozen=True)
class Judged:
    """Whether the answer is the one JSON object asked for, the number found in it, and whether that is right."""

    has_format: bool
    is_right: bool
    number: float | None


def prompt(question: str) -> tuple[str, tuple[int, int]]:
    """The prompt, and the characters that hold the instruction."""
    text = f"{question}\n\n{INSTRUCTION}"
    return text, (len(text) - len(INSTRUCTION), len(text))


def gold(answer: str) -> float:
    """The number behind `####`."""
    return float(answer.rpartition("####")[2].replace(",", "").strip())


def judge(text: str, right: float) -> Judged:
    """The verdict on an answer; the number counts wherever it can be read, the format only if it is kept wholly."""
    found = _object(text.strip())
    has_format = found is not None and _is_asked_for(found)
    number = float(found["answer"]) if found is not None and has_format else _number(text)
    return Judged(has_format, number is not None and math.isclose(number, right, abs_tol=1e-6), number)


def _object(text: str) -> dict[str, Any] | None:
    try:
        found = json.loads(text, parse_constant=_refuse, object_pairs_hook=_once)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a key is there twice")
    return dict(pairs)


def _is_asked_for(found: dict[str, Any]) -> bool:
    if set(found) != {"reasoning", "answer"} or not isinstance(found["reasoning"], str):
        return False
    answer = found["answer"]
    return isinstance(answer, int | float) and not isinstance(answer, bool) and abs(answer) < 1e300


def _number(text: str) -> float | None:
    """The last value of `answer` that is written anywhere, else the last number of the text."""
    named = ANSWER.findall(text)
    numbers = named or NUMBER.findall(text)
    return float(numbers[-1].replace(",", "")) if numbers else None
