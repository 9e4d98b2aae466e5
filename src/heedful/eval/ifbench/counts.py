"""IFBench's `count` kinds: how many of something an answer holds."""

from __future__ import annotations

import re

from heedful.eval.ifbench.reading import Asked, Kind, num_found, word_set, word_tokens, words

COORDINATING = {"for", "and", "nor", "but", "or", "yet", "so"}
TIMES = (1, 2, 3, 5, 7)
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
JAPANESE = re.compile(r"[\u3040-\u30ff\u4e00-\u9fff]")
INTERROBANG = re.compile(r"\?!|!\?|‽")
PRONOUNS = word_set(
    "i me my mine myself we us our ours ourselves you your yours yourself yourselves he him his himself she her hers "
    "herself it its itself they them their theirs themselves this that these those who whom whose which what whoever "
    "whomever whatever whichever anybody anyone anything everybody everyone everything nobody nothing somebody someone "
    "something each either neither both all some any none"
)


def conjunctions(text: str, asked: Asked) -> bool:
    """Enough different coordinating conjunctions."""
    return len(COORDINATING & set(words(text))) >= asked.number("small_n")


def keywords_multiple(text: str, asked: Asked) -> bool:
    """Five keywords, exactly once, twice, three, five and seven times."""
    return all(num_found(asked.text(f"keyword{at}"), text) == times for at, times in enumerate(TIMES, start=1))


def numbers(text: str, asked: Asked) -> bool:
    """Exactly so many numbers in digits; one with a decimal point or thousands' commas is one."""
    return len(NUMBER.findall(text)) == asked.number("N")


def person_names(text: str, asked: Asked) -> bool:
    """Enough different names of the list that the prompt gives."""
    listed = asked.prompt.partition("list of person names:")[2].partition(".")[0]
    names = [name.strip() for name in listed.split(",") if name.strip()]
    return sum(re.search(rf"\b{re.escape(name)}\b", text) is not None for name in names) >= asked.number("N")


def pronouns(text: str, asked: Asked) -> bool:
    """Enough pronouns, each as often as it stands there."""
    return sum(token in PRONOUNS for token in word_tokens(text.replace("/", " "))) >= asked.number("N")


def punctuation(text: str, asked: Asked) -> bool:
    """An interrobang, and apart from it each of `. , ; : ! ?`."""
    rest = INTERROBANG.sub("", text, count=1)
    return rest != text and all(mark in rest for mark in ".,;:!?")


def unique_word_count(text: str, asked: Asked) -> bool:
    """Enough different words."""
    return len(set(words(text))) >= asked.number("N")


def word_count_range(text: str, asked: Asked) -> bool:
    """As many words as the range allows, counted as IFEval's checkers do."""
    from lm_eval.tasks.ifeval.instructions_util import count_words

    return asked.number("min_words") <= int(count_words(text)) <= asked.number("max_words")


def words_japanese(text: str, asked: Asked) -> bool:
    """Every so-manieth word in Japanese script."""
    return all(JAPANESE.search(word) for word in text.split()[asked.number("N") - 1 :: asked.number("N")])


KINDS = {
    "count:conjunctions": Kind(
        r"Use at least [\d.]+ different coordinating conjunctions in the response\.", conjunctions
    ),
    "count:keywords_multiple": Kind(r"Include keyword .+? seven times in your response\.", keywords_multiple),
    "count:numbers": Kind(r"Include exactly \d+ numbers in the response\.", numbers),
    "count:person_names": Kind(r"Mention at least \d+ different person names .+? Jonathan ?\.", person_names),
    "count:pronouns": Kind(r"The response should include at least \d+ pronouns\.", pronouns),
    "count:punctuation": Kind(
        r"Use every standard punctuation mark at least once.+?interrobang \(\?!\)\.", punctuation
    ),
    "count:unique_word_count": Kind(r"Use at least \d+ unique words in the response\.", unique_word_count),
    "count:word_count_range": Kind(r"The response must contain between \d+ and \d+ words\.", word_count_range),
    "count:words_japanese": Kind(
        r"Every \d+(?:st|nd|rd|th) (?:word )?of your response must be in Japanese\.", words_japanese
    ),
}
