"""IFBench's `sentence` kinds: what each sentence owes to the one before, or to its place."""

from __future__ import annotations

from itertools import groupby, pairwise

from heedful.eval.ifbench.reading import Asked, Kind, num_found, sentences, words


def alliteration_increment(text: str, asked: Asked) -> bool:
    """Each sentence has a longer run of words with the same first letter than the one before."""
    runs = [_longest_run(words(one)) for one in sentences(text)]
    return all(before < after for before, after in pairwise(runs))


def _longest_run(found: list[str]) -> int:
    return max((len(list(run)) for _, run in groupby(found, key=lambda word: word[0])), default=0)


def increment(text: str, asked: Asked) -> bool:
    """Each sentence has exactly so many words more than the one before."""
    counts = [len(words(one)) for one in sentences(text)]
    return all(after - before == asked.number("small_n") for before, after in pairwise(counts))


def keyword(text: str, asked: Asked) -> bool:
    """The keyword, in any case, in that sentence."""
    found = sentences(text)
    return len(found) >= asked.number("N") and num_found(asked.text("word"), found[asked.number("N") - 1]) > 0


KINDS = {
    "sentence:alliteration_increment": Kind(
        r"Each sentence must have a longer sequence of consecutive alliterative words than the previous one\.",
        alliteration_increment,
    ),
    "sentence:increment": Kind(
        r"Each sentence(?: in your response)? must contain exactly \d+ more words than the previous one\.", increment
    ),
    "sentence:keyword": Kind(r"The response must include keyword .+? in the \d+-\w\w sentence\.", keyword),
}
