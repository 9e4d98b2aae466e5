"""What the linear model looks at: a chunk's words, those of its sentence and of its neighbours, and a few signs.

Features are short strings, so that the weights can be read. `CLASSES` are words that say much the same, each class
named as it is shown to the user.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from itertools import combinations, pairwise
from typing import TypeAlias

from heedful.detection.chunks import Chunk
from heedful.detection.material import MASK

Row: TypeAlias = tuple[tuple[str, ...], tuple[str, ...]]  # a chunk's own features, and its sentence's

_CLASSES = {
    "length": "word words sentence sentences paragraph paragraphs section sections stanza stanzas line lines page "
    "pages short brief concise long longer shorter length limit characters syllables tokens exceed maximum minimum",
    "amount": "least most exactly fewer less more than between once twice thrice times only maximum minimum exceed up "
    "under over two three four five six seven eight nine ten twelve single 0",
    "format": "json markdown xml html yaml csv table bullet bullets bulleted list numbered format formatted heading "
    "headings header headers title titled subtitle placeholder placeholders bracket brackets highlight highlighted "
    "bold italic italics italicize italicized divider asterisk asterisks separated separate separator newline wrapped "
    "wrap enclosed enclose latex code block indent structured outline columns",
    "case": "lowercase uppercase capital capitals capitalize capitalized lowercased caps lower upper capitalization "
    "capitalised capitalise",
    "language": "english german french spanish italian portuguese russian chinese japanese korean hindi arabic bengali "
    "telugu tamil kannada marathi gujarati punjabi urdu thai vietnamese finnish bulgarian swahili nepali persian farsi "
    "turkish dutch polish swedish greek hebrew ukrainian language languages latin",
    "punctuation": "comma commas exclamation punctuation period periods semicolon semicolons colon colons dash dashes "
    "hyphen hyphens quotation quotes quote emoji emojis apostrophes question marks mark symbol symbols",
    "wording": "include including mention contain contains containing keyword keywords phrase phrases letter letters "
    "appear appears word avoid exclude excluding omit forbidden vocabulary jargon rhyme alliteration synonym start "
    "starts starting begin begins beginning end ends ending finish conclude postscript repeat adjectives adverbs verbs "
    "nouns vowel vowels consonant contractions pronouns",
    "style": "tone style voice formal informal casual friendly polite professional persona perspective audience "
    "reader act pretend role imagine speak sound humorous sarcastic academic poetic concise tense",
    "demand": "must should make sure ensure please always never do don't dont not cannot can't no without avoid "
    "refrain only need needs entirely exclusively strictly remember don’t can’t shall keep stick use using",
    "answer": "your response answer reply output entire whole answers responses text essay story poem letter article "
    "email post song summary list resume",
}
CLASS_OF: dict[str, tuple[str, ...]] = {}
for _name, _words in _CLASSES.items():
    for _word in _words.split():
        CLASS_OF[_word] = (*CLASS_OF.get(_word, ()), _name)

_CLASS_FEATURES = {word: [f"class {name}" for name in names] for word, names in CLASS_OF.items()}

_SENTENCE_STARTS = ("paragraph", "line", "sentence")
_LENGTHS = (4, 9, 19, 39, 10**9)
_BULLETS = frozenset("-*•–·")


def features(found: Sequence[Chunk]) -> list[Row]:
    """For each chunk its own features and, shared among the chunks of a sentence, the sentence's."""
    rows: list[Row] = []
    listed = [*sentences(found)]
    for index, sentence in enumerate(listed):
        shared = (*_of_sentence(sentence, index), *around(listed, index))
        rows += [(tuple(_of_chunk(sentence, at)), shared) for at in range(len(sentence))]
    return rows


def features_at(found: Sequence[Chunk], places: Sequence[int], most: int = 60) -> list[Row]:
    """The features of the chunks at `places`, in order, as the `most` chunks before and behind them show them.

    Takes time by their number and not by the text's; how far they are from its ends is left out.
    """
    first, last = max(places[0] - most, 0), min(places[-1] + most + 1, len(found))
    rows = features(found[first:last])
    return [rows[place - first] for place in places]


def sentences(found: Sequence[Chunk]) -> Iterator[Sequence[Chunk]]:
    """The chunks, sentence by sentence."""
    start = 0
    for at in range(1, len(found) + 1):
        if at == len(found) or found[at].boundary in _SENTENCE_STARTS:
            yield found[start:at]
            start = at


def _of_chunk(sentence: Sequence[Chunk], at: int) -> list[str]:
    words = sentence[at].words
    distinct = set(words)
    names = [f"first {words[0]}", *distinct]
    for word in distinct:
        names += _CLASS_FEATURES.get(word, ())
    names += [f"{one} {other}" for one, other in pairwise(words)]
    if at:
        names += [f"prev: {word}" for word in set(sentence[at - 1].words)]
        names += [f"before {sentence[at - 1].words[-1]}", "goes on"]
    else:
        names += ["before ^", "opens"]
    if at + 1 < len(sentence):
        names += [f"next: {word}" for word in set(sentence[at + 1].words)]
        names.append(f"behind {sentence[at + 1].words[0]}")
    else:
        names.append("behind $")
    return names


def _of_sentence(sentence: Sequence[Chunk], index: int) -> list[str]:
    words = [word for chunk in sentence for word in chunk.words]
    distinct = set(words)
    names = [f"in: {word}" for word in distinct]
    names += [f"in: {one} {other}" for one, other in pairwise(words)]
    names += of_classes(classes(distinct))
    return names + signs(sentence, index, words, distinct)


def classes(distinct: set[str]) -> frozenset[str]:
    """The classes that the words belong to."""
    return frozenset([name for word in distinct if word in CLASS_OF for name in CLASS_OF[word]])


def signs(sentence: Sequence[Chunk], index: int, words: Sequence[str], distinct: set[str]) -> list[str]:
    """How a sentence begins and ends, how long it is and where it stands."""
    is_bullet = words[0] in _BULLETS or words[1:2] in (["."], [")"])
    opening = words[1 if words[0] in _BULLETS else 2 if is_bullet else 0 :][:2] or words[:2]
    names = [f"opening {opening[0]}", f"opening {' '.join(opening)}", f"new {sentence[0].boundary}"]
    names.append("length " + next(str(most) for most in _LENGTHS if len(words) <= most))
    names.append("sentence 1" if index == 0 else "sentence 2" if index == 1 else "later sentence")
    if words[-1] == "?":
        names += ["a question", f"asks {opening[0]}"]
    if is_bullet:
        names.append("a bullet")
    if MASK in distinct:
        names.append("with a quotation")
    return names


@cache  # at most 2 to the power of the number of classes, in practice a few hundred
def of_classes(names: frozenset[str]) -> tuple[str, ...]:
    """The features of the classes that a sentence has words of: each, and each pair."""
    ordered = sorted(names)
    pairs = [f"in: class {one} and {other}" for one, other in combinations(ordered, 2)]
    return (*(f"in: class {name}" for name in ordered), *pairs)


def around(sentences: Sequence[Sequence[Chunk]], index: int) -> Iterator[str]:
    """What stands before and behind a sentence."""
    if index:
        before = sentences[index - 1][-1]
        if before.words[-1] == ":":
            yield "behind a colon"
        if before.is_material:
            yield "behind material"
    left = len(sentences) - index - 1
    if left:
        yield "then " + sentences[index + 1][0].words[0]
    if left < 2:
        yield "last but one" if left else "last sentence"
