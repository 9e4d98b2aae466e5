"""OneDoc: sentences of an essay, marked as being of a kind, some of them decoys."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

from heedful.eval.lifbench.reading import (
    Points,
    Row,
    first_unescaped,
    is_near,
    read_list,
)

KINDS = ("#Topic#", "@argument@", "!Transition!", "|Summary|", "*Evidence*", "-Concession-")


@dataclass(frozen=True)
class Sentence:
    """A marked sentence of the document; one that is not genuine bears the mark of a kind it is not of."""

    kind: str
    text: str
    is_genuine: bool


def _sentences(row: Row) -> list[Sentence]:
    return [Sentence(kind, entry[0], bool(entry[3])) for kind, entries in row["label"].items() for entry in entries]


@dataclass(frozen=True)
class Recital:
    """An answer of repeat, the marked sentences as they stand in it, and which of them do."""

    text: str
    sentences: list[Sentence]
    found: list[Sentence]

    @property
    def lines(self) -> list[str]:
        """Lines with anything on them, blanks count."""
        return [line for line in self.text.split("\n") if line]


def _recital(sentences: Iterable[Sentence], out: str) -> Recital:
    """Looks for each sentence, and takes the line breaks out of those found: what is judged next is lines."""
    recital = Recital(out, [], [])
    for sentence in sentences:
        if sentence.text in recital.text:
            joined = sentence.text.replace("\n", "")
            recital = replace(recital, text=recital.text.replace(sentence.text, joined))
            sentence = replace(sentence, text=joined)
            recital.found.append(sentence)
        recital.sentences.append(sentence)
    return recital


def judge_repeat(row: Row, out: str) -> Points:
    """`num` marked sentences are asked for, one a line, each with the name of its kind behind a separator."""
    wanted, separator = row["param"]["num"], row["param"]["sep"]
    recital = _recital(_sentences(row), out)
    lines = recital.lines
    num_good = sum(count for line, count in Counter(lines).items() if _is_good_line(line, separator, recital.sentences))
    num_decoys = sum(not sentence.is_genuine for sentence in recital.found)
    counts = (recital.text.count(separator), len(lines), len(recital.found))
    return Points(
        {
            "format": _line_points(recital, separator, wanted),
            "ori": 1.0 + any(kind in recital.text for kind in KINDS),
            "hit": 2 * min(1.0, (len(recital.found) - 0.5 * num_decoys) / wanted),
            "num": _agreement(*counts, wanted),
            "correct": 3 * num_good / len(lines) if lines else 0.0,
        }
    )


def _agreement(separators: int, lines: int, found: int, wanted: int) -> float:
    """A point for each count that is as wanted, and a third for each two that agree."""
    pairs = (separators == lines) + (separators == found) + (found == lines)
    return (separators == wanted) + (lines == wanted) + (found == wanted) + pairs / 3


def _line_points(recital: Recital, separator: str, wanted: int) -> float:
    """Line breaks and separators: that there are any, and the share of lines with one separator."""
    points = 0.5 if wanted == 1 or "\n" in recital.text else 0.0
    if separator not in recital.text:
        return points
    num_split = sum(line.count(separator) == 1 for line in recital.lines)
    return points + 0.5 + 2 * min(1.0, num_split / max(len(recital.lines), wanted))


def _is_good_line(line: str, separator: str, sentences: Iterable[Sentence]) -> bool:
    """Whether the line holds a sentence, or nearly, and names its kind; decoys do as well here."""
    said, has_separator, tag = line.partition(separator)
    if not has_separator:
        said = tag = line.strip()
    return any(sentence.kind in tag and is_near(sentence.text, said) for sentence in sentences)


def judge_extract(row: Row, out: str) -> Points:
    """All sentences of one kind are asked for, as a JSON list; the order earns its points with any sentence at all."""
    kind = row["param"]["type"][1:-1]
    if kind == "|Summary|" and out == "[]":
        return Points({"format": 4.0, "correct": 4.0, "order": 4.0, "ori": 2.0})
    listing, text, sentences = read_list(out), first_unescaped(out, out[:-1]), _sentences(row)
    found = [sentence for sentence in sentences if sentence.text in text]
    correct = _extract_points(kind, sentences, found, listing.size or 0)
    return Points(
        {
            "format": 4 * listing.neatness,
            "correct": correct,
            "order": 4.0 if found else 0.0,
            "ori": 2.0 if found else 0.0,
        }
    )


def _extract_points(kind: str, sentences: list[Sentence], found: list[Sentence], size: int) -> float:
    """The share of right ones among all wanted, found or listed; half a point for falling for no decoy."""
    wanted = [sentence for sentence in sentences if sentence.kind == kind and sentence.is_genuine]
    hits = [sentence for sentence in found if sentence.kind == kind]
    most = max(len(found), size, len(wanted))
    right = 3.5 * sum(hit.is_genuine for hit in hits) / most if most else 0.0
    return right + (0.5 if all(hit.is_genuine for hit in hits) else 0.0)


def judge_qa(row: Row, out: str) -> Points:
    """Yes or no: does a sentence belong to the kind it is marked with."""
    yes, no = row["param"]["options"][:2]
    says_yes, says_no = yes in out, no in out
    sizes = len(yes), len(no)
    length = 1.0 if len(out) in sizes else 0.5 if len(out) > max(sizes) + 3 else 0.0
    choice = (0.0, 1.0, 0.5)[says_yes + says_no]
    correct = choice if says_yes == says_no else _answer_points(_is_genuine(row), says_yes)
    return Points({"correct": correct, "format": length + choice})


def _is_genuine(row: Row) -> bool:
    """Whether the first marked sentence with the text asked about is no decoy; False where there is none."""
    asked = row["param"]["evidence"].strip()
    return next((sentence.is_genuine for sentence in _sentences(row) if sentence.text.strip() == asked), False)


def _answer_points(is_yes_right: bool, says_yes: bool) -> float:
    """Wrong answers earn something too, a wrong yes far more than a wrong no."""
    if is_yes_right:
        return 3.0 if says_yes else 0.1
    return 2.0 if says_yes else 3.0
