"""IFBench's `ratio` kinds: shares and proportions of an answer."""

from __future__ import annotations

from heedful.eval.ifbench.reading import Asked, Kind, sentences, tokens, word_set, words

TOLERANCE = 2
STOP_WORDS = word_set(
    "a an the this that these those each every either neither some any no all both such few more most other "
    "another same own i me my mine myself we us our ours ourselves you your yours yourself yourselves he him his "
    "himself she her hers herself it its itself they them their theirs themselves who whom whose which what am "
    "is are was were be been being have has had having do does did doing will would shall should can could may "
    "might must and but or nor so yet if because as until while although though since unless than of at by for "
    "with about against between into through during before after above below to from up down in out on off over "
    "under again further then once here there when where why how not only too very just now also"
)
"""English words of the closed classes: determiners, pronouns, auxiliaries, conjunctions, prepositions, adverbs."""


def overlap(text: str, asked: Asked) -> bool:
    """The share of the answer's different three-token runs that stand in the reference text, within two points."""
    found, reference = _trigrams(text), _trigrams(asked.text("reference_text"))
    return bool(found) and abs(100 * len(found & reference) / len(found) - asked.number("percentage")) <= TOLERANCE


def _trigrams(text: str) -> set[tuple[str, ...]]:
    found = tokens(text)
    return {tuple(found[at : at + 3]) for at in range(len(found) - 2)}


def sentence_balance(text: str, asked: Asked) -> bool:
    """As many sentences on `.` as on `?` and on `!`, and at least one of each."""
    return 0 < _num_ending(text, ".") == _num_ending(text, "?") == _num_ending(text, "!")


def sentence_type(text: str, asked: Asked) -> bool:
    """Twice as many sentences on `.` as on `?`, of which there is one."""
    return _num_ending(text, ".") == 2 * _num_ending(text, "?") > 0


def _num_ending(text: str, mark: str) -> int:
    return sum(one.rstrip("\"'”’)*_ ").endswith(mark) for one in sentences(text))


def sentence_words(text: str, asked: Asked) -> bool:
    """Three sentences of as many characters each, in which no word stands twice."""
    found, used = sentences(text), words(text)
    return len(found) == 3 and len({len(one) for one in found}) == 1 and len(set(used)) == len(used)


def stop_words(text: str, asked: Asked) -> bool:
    """Stop words are at most so many in a hundred words."""
    found = words(text)
    return bool(found) and 100 * sum(word in STOP_WORDS for word in found) / len(found) <= asked.number("percentage")


KINDS = {
    "ratio:overlap": Kind(r"Maintain a trigram overlap of \d+% \(±2%\) with the provided reference text\.", overlap),
    "ratio:sentence_balance": Kind(r"Ensure that the ratio of sentence types \(.+?\).+?balanced\.", sentence_balance),
    "ratio:sentence_type": Kind(r"Maintain a 2:1 ratio of declarative to interrogative sentences.*?\.", sentence_type),
    "ratio:sentence_words": Kind(r"Respond with three sentences, all containing.+?different words\.", sentence_words),
    "ratio:stop_words": Kind(r"Ensure that stop words constitute no more than \d+%.+?in your response\.", stop_words),
}
