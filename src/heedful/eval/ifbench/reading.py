"""How IFBench's checkers read an answer: its words, sentences, tokens and lines. Judges nothing."""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

OUTER = string.punctuation + string.whitespace + "“”‘’«»–—…"


@dataclass(frozen=True)
class Asked:
    """A constraint's arguments, by name as in the row's `kwargs`, and the row's prompt."""

    arguments: Mapping[str, Any]
    prompt: str

    def number(self, name: str) -> int:
        """An argument that is a whole number. Raises `KeyError` where the row lacks it."""
        return int(self.arguments[name])

    def text(self, name: str) -> str:
        """An argument that is text. Raises `KeyError` where the row lacks it."""
        return str(self.arguments[name]).strip()


@dataclass(frozen=True)
class Kind:
    """A kind of constraint: `wording`, how a prompt states it; `check`, whether an answer keeps it."""

    wording: str
    check: Callable[[str, Asked], bool]


def words(text: str) -> list[str]:
    """Lower-cased, as white space parts them, without outer punctuation; what is punctuation only is no word."""
    return [word for part in text.lower().split() if (word := part.strip(OUTER))]


def sentences(text: str) -> list[str]:
    """As IFEval's checkers part them, which IFBench builds on: by rule, with no trained data."""
    from lm_eval.tasks.ifeval.instructions_util import split_into_sentences

    return [one for part in split_into_sentences(text) if (one := str(part).strip())]


def tokens(text: str) -> list[str]:
    """Words and marks apart, as nltk's tokenizer writes them, sentence by sentence."""
    from nltk.tokenize import NLTKWordTokenizer

    tokenizer = NLTKWordTokenizer()
    return [str(token) for sentence in sentences(text) for token in tokenizer.tokenize(sentence)]


def word_tokens(text: str) -> list[str]:
    """The tokens that hold a letter or digit, lower-cased."""
    return [token.lower() for token in tokens(text) if any(letter.isalnum() for letter in token)]


def lines(text: str) -> list[str]:
    """The lines that are not blank, with their indent."""
    return [line for line in text.split("\n") if line.strip()]


def num_found(word: str, text: str) -> int:
    """How often a word stands in the text as a whole word, in any case."""
    return len(re.findall(rf"\b{re.escape(word)}\b", text, re.IGNORECASE))


def word_set(text: str) -> frozenset[str]:
    """Words written one behind another."""
    return frozenset(text.split())
