"""The sum of each chunk's features' weights, without writing the features out.

Says what `features` says, word by word: the tests hold one against the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import TypeAlias, TypeVar

from heedful.detection.chunks import Chunk
from heedful.detection.features import CLASS_OF, around, classes, of_classes, sentences, signs

Key = TypeVar("Key")
_Pairs: TypeAlias = dict[tuple[str, ...], float]


class Scorer:
    """Weights by feature, sorted by what the features speak of."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        """`weights`: of each feature, in log odds, as `features` names it."""
        own = {name: weight for name, weight in weights.items() if " " not in name}
        self._weights = weights
        self._pairs = _pairs(weights, "")
        self._in_words, self._in_pairs = _behind(weights, "in: "), _pairs(weights, "in: ")
        previous, following = _behind(weights, "prev: "), _behind(weights, "next: ")
        self._words = {  # of each word: in a chunk itself, in the one before it, in the one behind it
            word: (own.get(word, 0.0) + self._of_its_classes(word), previous.get(word, 0.0), following.get(word, 0.0))
            for word in {*own, *CLASS_OF, *previous, *following}
        }
        self._first = _behind(weights, "first ")
        self._before, self._behind = (_behind(weights, name) for name in ("before ", "behind "))
        self._by_classes: dict[frozenset[str], float] = {}

    def scores(self, found: Sequence[Chunk]) -> list[float]:
        """Each chunk's log odds, regarded alone."""
        listed = [*sentences(found)]
        summed: list[float] = []
        for index, sentence in enumerate(listed):
            shared = self._of_sentence(sentence, index) + self._of_names(around(listed, index))
            triples = [self._of_words(set(chunk.words)) for chunk in sentence]
            summed += [shared + self._of_chunk(sentence, triples, at) for at in range(len(sentence))]
        return summed

    def _of_words(self, distinct: set[str]) -> tuple[float, float, float]:
        """What a chunk's words say of it, of the chunk behind it and of the one before it."""
        known, own, previous, following = self._words, 0.0, 0.0, 0.0
        for word in distinct:
            if word in known:
                of_own, of_previous, of_following = known[word]
                own += of_own
                previous += of_previous
                following += of_following
        return own, previous, following

    def _of_sentence(self, sentence: Sequence[Chunk], index: int) -> float:
        words = sentence[0].words if len(sentence) == 1 else [word for chunk in sentence for word in chunk.words]
        distinct = set(words)
        score = _total(self._in_words, distinct) + _total(self._in_pairs, pairwise(words))
        named = classes(distinct)
        if named not in self._by_classes:
            self._by_classes[named] = self._of_names(of_classes(named))
        return score + self._by_classes[named] + self._of_names(signs(sentence, index, words, distinct))

    def _of_chunk(self, sentence: Sequence[Chunk], triples: Sequence[tuple[float, float, float]], at: int) -> float:
        words, weigh = sentence[at].words, self._weights.get
        score = triples[at][0] + self._first.get(words[0], 0.0)
        if len(words) > 1:
            score += _total(self._pairs, pairwise(words))
        if at:
            score += triples[at - 1][1] + self._before.get(sentence[at - 1].words[-1], 0.0) + weigh("goes on", 0.0)
        else:
            score += weigh("before ^", 0.0) + weigh("opens", 0.0)
        if at + 1 < len(sentence):
            return score + triples[at + 1][2] + self._behind.get(sentence[at + 1].words[0], 0.0)
        return score + weigh("behind $", 0.0)

    def _of_its_classes(self, word: str) -> float:
        return self._of_names(f"class {name}" for name in CLASS_OF.get(word, ()))

    def _of_names(self, names: Iterable[str]) -> float:
        return _total(self._weights, names)


def _total(weights: Mapping[Key, float], keys: Iterable[Key]) -> float:
    """The sum of the weights of `keys`, most of which have none."""
    return sum([weights[key] for key in keys if key in weights])


def _behind(weights: Mapping[str, float], start: str) -> dict[str, float]:
    """The weights of the features that begin with `start`, by what stands behind it."""
    return {name.removeprefix(start): weight for name, weight in weights.items() if name.startswith(start)}


def _pairs(weights: Mapping[str, float], start: str) -> _Pairs:
    """Those of them that speak of two words in a row."""
    split = {tuple(name.split(" ")): weight for name, weight in _behind(weights, start).items()}
    return {words: weight for words, weight in split.items() if len(words) == 2}
