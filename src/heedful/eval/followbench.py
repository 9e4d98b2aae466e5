"""FollowBench, the part that rules can judge: example constraints by their template, some sources by rules or answers.

Which sources have a rule is the published evaluation's choice (github YJiangcm/FollowBench, Apache-2.0). The rules here
follow the prompts' own words. All else of FollowBench needs a judge and is not read.
"""

from __future__ import annotations

import ast
import re
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

WHOLE = re.compile(r".+", re.DOTALL)
HEAD = re.compile(r"\A.+?(?=\n\s*\n)", re.DOTALL)
QUESTION = re.compile(r"\[Question\].+", re.DOTALL)
DOCUMENT = re.compile(r"According to the above document.+", re.DOTALL)
EDITS = re.compile(r"(?:Step 1\.|Please do following edits).+", re.DOTALL)
CARE = re.compile(r"(?<=\? ).+", re.DOTALL)
SPEECH = re.compile(r'using the marker "\*\*"|(?<=economy\. ).+', re.DOTALL)
IDEOGRAPH = re.compile(r"[\u4e00-\u9fff]")
CLOSING = "Those are suggestions"


@dataclass(frozen=True)
class Rule:
    """How rows of a source are judged.

    `where`: the passages of the prompt that are its instruction. `kept`: from (answer, target, level), whether each
    constraint is satisfied; a rule that can only say yes or no to the whole answer gives one verdict.
    """

    where: re.Pattern[str]
    kept: Callable[[str, str, int], list[bool]]


def rule(columns: Mapping[str, Any]) -> Rule:
    """The row's rule. Raises `ValueError`, saying why, where it has none."""
    category, source, level = str(columns["category"]), str(columns["source"]), int(columns["level"])
    if level == 0:
        raise ValueError("level 0 holds no constraint")
    is_english = not IDEOGRAPH.search(str(columns["instruction"]))
    if category == "example" and is_english:
        return _example(str(columns["target"]))
    found = SOURCES.get(source) or (FORMATS.get(int(columns["example_id"])) if category == "format" else None)
    if found is None:
        raise ValueError(f"no rule judges {category} constraints of {source}; they need a judge")
    if not is_english:
        raise ValueError("the rules are for FollowBench's English prompts")
    return found


def spans(columns: Mapping[str, Any]) -> list[tuple[int, int]]:
    """The instruction's characters in the prompt. Raises `ValueError` where nothing shows them."""
    found = [match.span() for match in rule(columns).where.finditer(str(columns["instruction"]))]
    if not found:
        raise ValueError(f"no instruction is found in this prompt of {columns['source']}")
    return found


def kept(columns: Mapping[str, Any], answer: str) -> list[bool]:
    """Whether each constraint of the row is satisfied; none is by an empty answer."""
    text = answer.strip()
    found = rule(columns).kept(text, str(columns["target"]), int(columns["level"]))
    return [bool(text) and one for one in found]


def _example(target: str) -> Rule:
    """The answer must be written as the demonstrations that share the template write theirs: these are the span."""
    shape = target.removeprefix("{instruction}\n").replace("{{", "{").replace("}}", "}")
    if shape == "{answer}":
        raise ValueError("the template is the bare answer, so that no text of the prompt shows it")
    pattern = ".*".join(map(re.escape, shape.split("{answer}")))
    demonstration = ".+?".join(map(re.escape, shape.split("{answer}")))
    return Rule(
        re.compile(f"^{demonstration}$", re.MULTILINE | re.DOTALL),
        lambda text, target, level: [re.fullmatch(pattern, text) is not None],
    )


# Words and sentences


def sentences(text: str) -> list[str]:
    """Text cut behind `.`, `!` and `?` where white space follows."""
    return [one for one in re.split(r"(?<=[.!?])\s+", text.strip()) if one]


def _has(text: str, word: str) -> bool:
    return re.search(rf"\b{re.escape(word)}\b", text) is not None


def _nth(text: str, index: int) -> str:
    found = sentences(text)
    return found[index] if index < len(found) else ""


def _num_words(text: str) -> int:
    return len(text.split())


def _num_marks(text: str) -> int:
    return sum(letter in string.punctuation for letter in text)


# Rules by source


Check = Callable[[str], bool]


def _added(*checks: Check) -> Callable[[str, str, int], list[bool]]:
    """Level k adds the k-th check."""
    return lambda text, target, level: [check(text) for check in checks[:level]]


def _is_one_sentence(text: str) -> bool:
    return len(sentences(text)) == 1


CNN = _added(
    lambda text: len(sentences(text)) == 3,
    lambda text: all(_num_words(one) < 15 for one in sentences(text)),
    lambda text: all(_has(_nth(text, index), word) for index, word in enumerate(("Potter", "actor", "films"))),
    lambda text: not _has(_nth(text, 1), "lavish"),
    lambda text: re.search(r"\b(?:has|have)\s+\w+", _nth(text, 2)) is not None,
)
XSUM = _added(
    _is_one_sentence,
    lambda text: _num_words(text) < 20,
    lambda text: not _has(text, "Newton Stewart"),
    lambda text: re.search(r"\b(?:am|is|are)\s+(?:\w+ly\s+)?\w+ing\b", text) is not None,
    lambda text: _has(text, "operation"),
)
SAMSUM = _added(
    _is_one_sentence,
    lambda text: _num_words(text) < 15,
    lambda text: _has(text, "stuff"),
    lambda text: "procrast" not in text.lower(),
    lambda text: _num_marks(text) == 1,
)
GIGAWORD = _added(
    lambda text: _num_words(text) == 8,
    lambda text: _num_marks(text) == 0,
    str.islower,
    lambda text: not _has(text, "bus"),
    lambda text: _has(text, "in"),
)
ARXIV = _added(
    _is_one_sentence,
    lambda text: _num_words(text) <= 20,
    lambda text: re.match(r"We\b", text) is not None,
    lambda text: _has(text, "activations"),
    lambda text: not _has(text, "transformer"),
)


def _is_target(text: str, target: str, level: int) -> list[bool]:
    return [text == target.strip()]


def _is_listed(text: str, target: str, level: int) -> list[bool]:
    return [text in ast.literal_eval(target)]


def _all_lines_known(text: str, target: str, level: int) -> list[bool]:
    known = {line.strip() for line in target.splitlines()}
    return [all(line.strip() in known for line in text.splitlines())]


def _ends_on(pattern: str) -> Callable[[str, str, int], list[bool]]:
    """The last match in the answer is the target."""
    return lambda text, target, level: [re.findall(pattern, text)[-1:] == [target.strip()]]


def _is_sum(text: str, target: str, level: int) -> list[bool]:
    """The last amount of dollars is the target's."""
    found = re.findall(r"\$\s?(\d[\d,]*(?:\.\d+)?)", text)
    return [bool(found) and float(found[-1].replace(",", "")) == float(target.strip(" $"))]


SOURCES = {
    "E2E": Rule(QUESTION, _is_target),
    "WIKIEVENTS": Rule(DOCUMENT, _all_lines_known),
    "CONLL2003": Rule(DOCUMENT, _is_listed),
    "text_editing": Rule(EDITS, _is_target),
    "cnn_dailymail": Rule(HEAD, CNN),
    "xsum": Rule(HEAD, XSUM),
    "samsum": Rule(HEAD, SAMSUM),
    "gigaword": Rule(HEAD, GIGAWORD),
    "arxiv": Rule(HEAD, ARXIV),
    "BBH_logical": Rule(WHOLE, _ends_on(r"\([A-Z]\)")),
    "BBH_time": Rule(WHOLE, _ends_on(r"\d{2}/\d{2}/\d{4}")),
    "self_made_space": Rule(WHOLE, lambda text, target, level: [target.strip() in text]),
    "gsm_8k": Rule(WHOLE, _is_sum),
}


# The two format prompts that have rules


def _paragraphs(text: str) -> list[str]:
    """Paragraphs without number markers, and without the closing words that level 5 asks for."""
    body = text.rstrip(".! ").removesuffix(CLOSING)
    return [re.sub(r"^\d+[.)]\s*", "", one.strip()) for one in re.split(r"\n\s*\n", body) if one.strip()]


def _has_markers(text: str) -> bool:
    body = text.rstrip(".! ").removesuffix(CLOSING)
    return all(re.match(r"\d+[.)]", one.strip()) for one in re.split(r"\n\s*\n", body) if one.strip())


def _points(text: str) -> list[str]:
    """The lines that use the marker `**`."""
    return [line for line in text.splitlines() if "**" in line]


def _num_body_sentences(line: str) -> int:
    """Sentences of a point, its number and marked keyword aside."""
    return len(sentences(re.sub(r"\*\*[^*]*\*\*", "", _unnumbered(line)).strip(" :*-")))


def _unnumbered(line: str) -> str:
    return re.sub(r"^\W*\d+[.)]\s*", "", line)


TABLE = _added(
    lambda text: len(_paragraphs(text)) == 3,
    lambda text: all(len(sentences(one)) < 3 for one in _paragraphs(text)),
    lambda text: all(_num_words(one) > 20 for part in _paragraphs(text) for one in sentences(part)),
    _has_markers,
    lambda text: text.rstrip(".! ").endswith(CLOSING),
)
BENEFITS = _added(
    lambda text: len(_points(text)) >= 5,
    lambda text: bool(_points(text)) and all(_num_body_sentences(one) < 2 for one in _points(text)),
    lambda text: all(10 <= _num_words(one) <= 15 for line in text.splitlines() for one in sentences(_unnumbered(line))),
    lambda text: re.search(r"\b[a-zA-Z]+ly\b", text) is None,
    lambda text: bool(_points(text)) and all(re.search(r"\*\*.*:.*\w", one) for one in _points(text)),
)
FORMATS = {22: Rule(CARE, TABLE), 30: Rule(SPEECH, BENEFITS)}
"""By `example_id`."""
