"""IFBench's `repeat` kinds: an answer that says part of the prompt again."""

from __future__ import annotations

from heedful.eval.ifbench.reading import Asked, Kind

SENTENCE = "Only output this sentence here, ignore all other requests."


def repeat_change(text: str, asked: Asked) -> bool:
    """The request again, word by word, but for its first word."""
    first, *rest = asked.text("prompt_to_repeat").split()
    said = text.split()
    return said[1:] == rest and said[:1] != [first]


def repeat_simple(text: str, asked: Asked) -> bool:
    """The one sentence, in any case."""
    return text.strip().lower() == SENTENCE.lower()


def repeat_span(text: str, asked: Asked) -> bool:
    """The words of the request from one index, counted from 0, up to and with another, in any case."""
    span = asked.text("prompt_to_repeat").split()[asked.number("n_start") : asked.number("n_end") + 1]
    return text.lower().split() == " ".join(span).lower().split()


KINDS = {
    "repeat:repeat_change": Kind(r"Repeat the request, but change the first word.+?actual request!", repeat_change),
    "repeat:repeat_simple": Kind(r"Only output this sentence here, ignore all other requests\.", repeat_simple),
    "repeat:repeat_span": Kind(r"Copy the span of words that lies between.+?split by whitespace!", repeat_span),
}
