"""Multi-IF: three turns of a user, whose instructions pile up; a later turn's prompt holds the answers before it.

Columns as published (hub set facebook/Multi-IF): `turn_1_prompt` and so on, a message as JSON text; the kinds and their
arguments, as JSON texts too, are those of all turns up to this one. Judges nothing: IFEval's checkers do.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

NUM_TURNS = 3
LANGUAGE = "English"


@dataclass(frozen=True)
class Turn:
    """One turn of a row: what the user says, and the instructions in force, with their arguments."""

    text: str
    kinds: list[str]
    arguments: list[dict[str, Any]]


def turns(columns: Mapping[str, Any]) -> list[Turn]:
    """The row's turns; some rows have fewer than three. Raises `ValueError` where one cannot be read."""
    language = str(columns["language"])
    if language != LANGUAGE:
        raise ValueError(f"the checkers are for English, and this row is {language}")
    found = []
    for number in range(1, NUM_TURNS + 1):
        said = columns.get(f"turn_{number}_prompt")
        if said in (None, "", "None"):
            break
        found.append(_turn(columns, number, said))
    if not found:
        raise ValueError("the row has no turn")
    return found


def messages(said: list[Turn], answers: list[str]) -> list[dict[str, str]]:
    """The conversation up to the turn behind the last answer."""
    found = []
    for turn, answer in zip(said, answers, strict=False):
        found += [{"role": "user", "content": turn.text}, {"role": "assistant", "content": answer}]
    return [*found, {"role": "user", "content": said[len(answers)].text}]


def _turn(columns: Mapping[str, Any], number: int, said: Any) -> Turn:
    message = _plain(said)
    kinds = _plain(columns[f"turn_{number}_instruction_id_list"])
    arguments = [_plain(one) for one in _plain(columns[f"turn_{number}_kwargs"])]
    if not isinstance(message, dict) or not isinstance(message.get("content"), str):
        raise ValueError(f"turn_{number}_prompt must be a message with a content")
    if not kinds or len(kinds) != len(arguments):
        raise ValueError(f"turn {number} names {len(kinds)} instructions and {len(arguments)} sets of arguments")
    return Turn(message["content"], list(kinds), arguments)


def _plain(value: Any) -> Any:
    """A value that may stand as JSON text."""
    return json.loads(value) if isinstance(value, str) else value
