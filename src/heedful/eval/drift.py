"""Does a system prompt's constraint hold? Conversations of our own, judged by IFEval's checkers; nothing is fetched.

`drift`: twenty short turns. `far`: one question behind some 6,000 tokens of conversation. Every constraint is one that
an answer of two sentences can keep or break.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

NUM_TURNS = 20
NUM_BLOCKS = 4  # of turns that are summed up together
NUM_ROUNDS = 2  # conversations of each constraint
MAX_NEW_TOKENS = 80
NOTED = "Noted."

CONSTRAINTS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("Write in lowercase letters only. Never use a capital letter.", "change_case:english_lowercase", {}),
    ("Write in CAPITAL LETTERS only, in English.", "change_case:english_capital", {}),
    ("Do not use any commas in your answers.", "punctuation:no_comma", {}),
    ("Wrap every answer in double quotation marks.", "startend:quotation", {}),
    ("End every answer with the words: Ask me more.", "startend:end_checker", {"end_phrase": "Ask me more."}),
    (
        "Answer in fewer than 25 words.",
        "length_constraints:number_words",
        {"num_words": 25, "relation": "less than"},
    ),
    (
        "Answer in exactly one sentence, never in more.",
        "length_constraints:number_sentences",
        {"num_sentences": 2, "relation": "less than"},
    ),
    ("Use the word indeed in every answer.", "keywords:existence", {"keywords": ["indeed"]}),
    ("Never use the word also or the word many.", "keywords:forbidden_words", {"forbidden_words": ["also", "many"]}),
    (
        "Begin every answer with a title in double angular brackets, such as <<a title>>.",
        "detectable_format:title",
        {},
    ),
    (
        "Write every answer as a list of exactly 2 bullet points, each a line that begins with *.",
        "detectable_format:number_bullet_lists",
        {"num_bullets": 2},
    ),
    (
        "Put a postscript that starts with P.S. at the end of every answer.",
        "detectable_content:postscript",
        {"postscript_marker": "P.S."},
    ),
)
QUESTIONS = (
    "What is a good breakfast?",
    "Why is the sky blue?",
    "How do I keep a houseplant alive?",
    "What should I pack for a weekend by the sea?",
    "Who wrote Hamlet?",
    "How does a bicycle stay upright?",
    "What is the use of sleep?",
    "Name a fruit that grows in cold countries.",
    "How can I learn a language?",
    "What makes bread rise?",
    "Why do cats purr?",
    "What is a fair price for a used book?",
    "How do I say no politely?",
    "What causes the tides?",
    "Which tools do I need to hang a picture?",
    "How far away is the moon?",
    "What is a good gift for a teacher?",
    "Why do leaves turn red?",
    "How do I boil an egg?",
    "What is the best time for a walk?",
)
GOODS = ("pears", "lamps", "chairs", "bricks", "blankets", "bottles", "ropes", "maps", "tyres", "carpets")
DEPOTS = ("north", "south", "east", "west", "harbour", "old", "new", "river")
NUM_NOTES, LINES_A_NOTE = 6, 44  # some 6,000 tokens in all


def drift_rows() -> list[dict[str, Any]]:
    """`key`, `system`, the user's `turns`, and the constraint as IFEval names it."""
    return [
        {**columns, "turns": [QUESTIONS[(7 * number + turn) % len(QUESTIONS)] for turn in range(NUM_TURNS)]}
        for number, columns in enumerate(_constrained())
    ]


def far_rows() -> list[dict[str, Any]]:
    """`key`, the whole conversation as `prompt`, and the constraint as IFEval names it."""
    return [
        {**columns, "prompt": _long(columns["system"], number, QUESTIONS[(7 * number + 3) % len(QUESTIONS)])}
        for number, columns in enumerate(_constrained())
    ]


def messages(system: str, turns: Sequence[str], answers: Sequence[str]) -> list[dict[str, str]]:
    """The conversation up to the turn behind the last answer."""
    said = [{"role": "system", "content": system}]
    for turn, answer in zip(turns, answers, strict=False):
        said += [{"role": "user", "content": turn}, {"role": "assistant", "content": answer}]
    return [*said, {"role": "user", "content": turns[len(answers)]}]


def block(turn: int) -> str:
    """The name of the turns that are summed up with `turn`, which counts from 0."""
    size = NUM_TURNS // NUM_BLOCKS
    first = turn // size * size
    return f"turns_{first + 1}_{first + size}"


def _constrained() -> Iterator[dict[str, Any]]:
    for round_ in range(NUM_ROUNDS):
        for index, (wording, kind, arguments) in enumerate(CONSTRAINTS):
            yield {
                "key": f"{kind}:{round_ + 1}",
                "system": wording,
                "instruction_id_list": [kind],
                "kwargs": [arguments],
                "constraint": index,
            }


def _long(system: str, number: int, question: str) -> list[dict[str, str]]:
    draw = random.Random(number)
    said = [{"role": "system", "content": system}]
    for note in range(NUM_NOTES):
        lines = [_line(draw, note * LINES_A_NOTE + at + 1) for at in range(LINES_A_NOTE)]
        text = "Here is a part of the depot's log. There is nothing to do with it yet.\n" + "\n".join(lines)
        said += [{"role": "user", "content": text}, {"role": "assistant", "content": NOTED}]
    return [*said, {"role": "user", "content": f"Now something else. {question}"}]


def _line(draw: random.Random, number: int) -> str:
    count, shelf = draw.randrange(10, 99), f"{draw.choice('ABCDEF')}{draw.randrange(1, 10)}"
    return (
        f"Entry {number}: {count} crates of {draw.choice(GOODS)} from the {draw.choice(DEPOTS)} depot, shelf {shelf}."
    )
