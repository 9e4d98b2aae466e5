"""LIFBench (Wu et al., 2024): how far an answer follows its instruction over a long input, by rules alone.

Scores one answer of one row; it generates nothing, reads no files and averages nothing. Written from a description of
the published scorers, and gives their numbers, oddities included: results are only worth comparing when the same
mistakes are marked down. Where the published scorers raise, hang or run the model's text as code, these do not.
"""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate, product
from typing import Any

from heedful.errors import OptionError

Row = Mapping[str, Any]

MAX_CHARS = 200_000  # of an answer; far above what the generation limits allow, low enough that nothing takes minutes
MAX_LITERAL_CHARS = 100_000
MAX_LITERAL_MARKS = 5_000
MAX_JSON_DEPTH = 900
MAX_JSON_DIGITS = 4300
KINDS = ("#Topic#", "@argument@", "!Transition!", "|Summary|", "*Evidence*", "-Concession-")


@dataclass(frozen=True)
class Verdict:
    """The total and each criterion as shares of what could be earned; `ori` of find_dup_text can pass 1."""

    score: float
    criteria: dict[str, float]


@dataclass(frozen=True)
class Points:
    """What an answer earned for each criterion; where `is_void`, its total is 0 all the same."""

    earned: dict[str, float]
    is_void: bool = False


@dataclass(frozen=True)
class Subtask:
    """A kind of question: its group, how long an answer may be, what each criterion is worth, and who judges."""

    group: str
    max_new_tokens: int
    maxima: dict[str, int]
    judge: Callable[[Row, str], Points]

    @property
    def points(self) -> int:
        """What a perfect answer earns; the weight of the subtask in weighted means."""
        return sum(self.maxima.values())


def score(subtask: str, row: Row, output: str | None) -> Verdict:
    """Judges `output`, the model's answer to `row["prompt"]`; no answer counts as an empty one.

    Raises `OptionError` for an unknown subtask, and nothing on account of the answer. `row` is left as it is.
    """
    if subtask not in SUBTASKS:
        raise OptionError(f"unknown subtask {subtask!r}; known: {', '.join(SUBTASKS)}")
    task = SUBTASKS[subtask]
    out = output.strip()[:MAX_CHARS] if isinstance(output, str) else ""
    got = task.judge(row, out) if out else Points(dict.fromkeys(task.maxima, 0.0))
    total = 0.0 if got.is_void else sum(got.earned.values()) / task.points
    return Verdict(total, {name: got.earned[name] / most for name, most in task.maxima.items()})


# Reading an answer.


@dataclass(frozen=True)
class Json:
    """A value that was read; a box, since null is a value too."""

    value: Any


def _json(text: str) -> Json | None:
    """Reads JSON as Python does (NaN and Infinity included); None where it is none, or nested too deeply.

    The limits are our own as those of Python differ between its versions.
    """
    if _is_too_deep(text):
        return None
    try:
        return Json(json.loads(text, parse_int=_int))
    except (ValueError, RecursionError):
        return None


def _int(digits: str) -> int:
    if len(digits.lstrip("-")) > MAX_JSON_DIGITS:
        raise ValueError("too many digits")
    return int(digits)


def _is_too_deep(text: str) -> bool:
    """Whether brackets outside quoted text are nested more than `MAX_JSON_DEPTH` deep."""
    if text.count("[") + text.count("{") <= MAX_JSON_DEPTH:
        return False
    steps = (1 if mark in "[{" else -1 if mark in "]}" else 0 for mark in _JSON_MARK.findall(text))
    return max(accumulate(steps), default=0) > MAX_JSON_DEPTH


_JSON_MARK = re.compile(r'"(?:[^"\\]|\\.)*"?|[\[\]{}]', re.DOTALL)


def _unescape(text: str) -> str:
    """Takes the UTF-8 bytes of `text` as Latin-1 and resolves Python's backslash escapes. Raises `ValueError`."""
    return _ESCAPE.sub(_settle, text.encode()).decode("unicode_escape")


_ESCAPE = re.compile(rb"\\(?:[0-7]{1,3}|.)", re.DOTALL)
_KNOWN_ESCAPES = b"\n\\'\"abfnrtvxuUN"


def _settle(match: re.Match[bytes]) -> bytes:
    """Rewrites the escapes that Python reads with a warning, and will refuse one day, as ones that mean the same."""
    escape = match[0]
    if escape[1:].isdigit() and escape[1] < ord("8"):
        return b"\\u%04x" % int(escape[1:], 8)
    return escape if escape[1] in _KNOWN_ESCAPES else b"\\" + escape


def _unescaped(*texts: str) -> str:
    """The first of `texts` that can be unescaped, so; where none can, the first as it is."""
    for text in texts:
        try:
            return _unescape(text)
        except ValueError:
            continue
    return texts[0]


@dataclass(frozen=True)
class Listing:
    """The JSON list in an answer: its length (None: no list), and from 0 to 1 how well it is put."""

    size: int | None
    neatness: float


def _listing(out: str) -> Listing:
    """The answer itself, or what lies between its outermost square brackets, as a list that should hold only text."""
    whole = _json(out)
    if whole and not isinstance(whole.value, list):
        return Listing(None, 0.25)
    found = whole or _json(_bracketed(out))
    if not found:
        return Listing(None, 0.0)
    is_plain = all(isinstance(member, str) for member in found.value)
    return Listing(len(found.value), (1.0 if whole else 0.75) - (0.0 if is_plain else 0.25))


def _bracketed(out: str) -> str:
    start, stop = out.find("["), out.rfind("]")
    return out[start : stop + 1] if 0 <= start < stop else ""


def _closeness(found: int, wanted: int, spread: int) -> float:
    """1 where as many are found as wanted, falling to 0 at `spread` more or fewer."""
    return max(0.0, 1 - abs(found - wanted) / spread)


def _is_near(wanted: str, text: str) -> bool:
    """Whether `text` is `wanted` but for a sixth of its length and three edits."""
    limit = len(wanted) // 6 + 3
    return abs(len(wanted) - len(text)) <= limit and distance(wanted, text) <= limit


def distance(first: str, second: str) -> int:
    """Levenshtein distance, by Myers' bit vectors: a column of the table is two integers, +1 and -1 steps down it.

    Written out as no dependency has it; linear in `second` for texts of a few hundred characters.
    """
    if not first:
        return len(second)
    at = _positions(first)
    mask, last = (1 << len(first)) - 1, 1 << (len(first) - 1)
    up, down, total = mask, 0, len(first)
    for char in second:
        same = at.get(char, 0)
        level = (((same & up) + up) ^ up) | same
        right_up, right_down = down | (~(level | up) & mask), up & level
        total += bool(right_up & last) - bool(right_down & last)
        right_up, right_down = right_up << 1 | 1, right_down << 1
        same |= down
        up, down = (right_down | ~(same | right_up)) & mask, right_up & same
    return total


@lru_cache(maxsize=256)
def _positions(text: str) -> dict[str, int]:
    """For each character the set of its places, as bits."""
    found: dict[str, int] = {}
    for place, char in enumerate(text):
        found[char] = found.get(char, 0) | 1 << place
    return found


# List: elements of a numbered list.


def _items(prompt: str) -> list[str]:
    """The elements of the list in `prompt`, without their numbers."""
    text = prompt.rpartition("List to be retrieved:\n")[2].partition("\nInstruction:")[0]
    text = "\n" + text.strip()
    starts: list[int] = []
    start = text.find("\n1. ")
    while start >= 0:
        starts.append(start)
        start = text.find(f"\n{len(starts) + 1}. ", start)
    ends = [*starts[1:], len(text)]
    return [text[start:end].partition(". ")[2] for start, end in zip(starts, ends, strict=True)]


def _size_points(items: Sequence[str], out: str) -> float:
    sizes = [len(item) for item in items] or [MAX_CHARS]
    return 0.2 if min(sizes) <= len(out) <= max(sizes) else 0.0


def _judge_query(row: Row, out: str) -> Points:
    """One element is asked for: given by its number, or as the neighbour of another."""
    items, wanted = _items(row["prompt"]), _wanted(row["param"])
    size = _size_points(items, out)
    num_found = sum(out.count(item) for item in items)
    if not num_found:
        return Points({"format": size, "correct": 0.0, "ori": 0.0}, is_void=True)
    alone = 0.0 if num_found > 1 else 0.8 if out in items else 0.3
    correct = 2.0 if wanted in out else 1.0 if _is_near(wanted, out) else 0.0
    return Points({"format": size + alone, "correct": correct, "ori": 1.0})


def _wanted(param: Row) -> str:
    name = {0: "element", 1: "post_element", -1: "pre_element"}[param.get("bias") or 0]
    return str(param[name])


def _judge_blur(row: Row, out: str) -> Points:
    """Any element before (bias -1) or after (bias 1) the anchor is asked for."""
    items = _items(row["prompt"])
    size = _size_points(items, out)
    found = {place for place, item in enumerate(items) if item in out}
    if not found:
        return Points({"ori": 0.0, "position": 0.0, "format": size}, is_void=True)
    alone = 0.0 if len(found) > 1 else 0.8 if out == items[min(found)] else 0.3
    return Points({"ori": 1.0, "position": _side_points(found, row["param"]), "format": size + alone})


def _side_points(found: Iterable[int], param: Row) -> float:
    """3 where all lie on the side asked for, 1 where some are the anchor itself, else 0."""
    anchor, sign = param["id"] - 1, 1 if param["bias"] == 1 else -1
    nearest = min(sign * (place - anchor) for place in found)
    return 3.0 if nearest > 0 else 1.0 if nearest == 0 else 0.0


def _judge_multi(row: Row, out: str) -> Points:
    """Several elements are asked for, as a JSON list in the order given."""
    wanted, listing, text = row["param"]["elements"], _listing(out), _unescaped(out)
    size = listing.size
    if size is None:
        size = sum(out.count(item) for item in _items(row["prompt"]))
    places = [text.find(element) for element in wanted if element in text]
    in_order = 2.0 if places == sorted(places) else 0.0
    return Points(
        {
            "format": 2 * listing.neatness,
            "num": 2 * _closeness(size, len(wanted), len(wanted)) + (size == len(wanted)),
            "correct": 3 * len(places) / len(wanted),
            "order": in_order if len(places) > 1 else 1.0,
        }
    )


# OneDoc: sentences of an essay, marked as being of a kind, some of them decoys.


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


def _judge_repeat(row: Row, out: str) -> Points:
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
    return any(sentence.kind in tag and _is_near(sentence.text, said) for sentence in sentences)


def _judge_extract(row: Row, out: str) -> Points:
    """All sentences of one kind are asked for, as a JSON list; the order earns its points with any sentence at all."""
    kind = row["param"]["type"][1:-1]
    if kind == "|Summary|" and out == "[]":
        return Points({"format": 4.0, "correct": 4.0, "order": 4.0, "ori": 2.0})
    listing, text, sentences = _listing(out), _unescaped(out, out[:-1]), _sentences(row)
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


def _judge_qa(row: Row, out: str) -> Points:
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


# MultiDoc: a collection of documents with some of their fields missing.


def _judge_batch_label(row: Row, out: str) -> Points:
    """A label for every document is asked for, as a JSON object; labels follow from the fields a document has."""
    num_docs, objects = row["label"], _objects(out)
    parsed = _json(out)
    format_points = 2.0 if parsed else 0.0
    if not parsed and objects:
        objects.sort(key=len, reverse=True)
        parsed = _json(objects[0])
        format_points = 1.0 if parsed else 0.0
    value = parsed.value if parsed else None
    size = len(value) if isinstance(value, dict | list) and value else out.count("doc")
    num_named = sum(f"doc{number}" in out for number in range(1, num_docs + 1))
    shares = _label_shares(row, objects)
    return Points(
        {
            "candi_ori": 3 * shares[0],
            "logit_correct": 3 * shares[1],
            "num_doc": 2.5 * _closeness(size, num_docs, num_docs) + (0.5 if size == num_docs else 0.0),
            "format": format_points + (isinstance(value, dict) and bool(value)) + 2 * num_named / num_docs,
        }
    )


def _objects(out: str) -> list[str]:
    """What looks like JSON objects: in each stretch without `]`, from the first `{` to the last `}`, if not empty."""
    spans = ((part, part.find("{"), part.rfind("}")) for part in out.split("]"))
    return [part[start : stop + 1] for part, start, stop in spans if 0 <= start < stop - 1]


def _label_shares(row: Row, objects: Iterable[str]) -> tuple[float, float]:
    """The shares of documents with any label, and with the right one, in the first object with a part for each."""
    right, candidates = _right_labels(row["param"]), row["param"]["candidates"]
    parts = next((parts for parts in (text.split(",") for text in objects) if len(parts) == row["label"]), [])
    num_labelled = sum(any(candidate in part for candidate in candidates) for part in parts)
    num_right = sum(label in part for label, part in zip(right, parts, strict=False))
    return num_labelled / row["label"], num_right / row["label"]


def _right_labels(param: Row) -> list[str]:
    """The rule key tells, by their first characters, which candidate is for which documents."""
    ranked = sorted(param["candidates"], key=lambda candidate: param["rule_key"].rfind(candidate[0]))
    return [ranked[2 * ("title" not in keys) + ("source" not in keys)] for keys in param["doc_keys"]]


def _judge_find_dup(row: Row, out: str) -> Points:
    """Groups of documents with the same text are asked for, a line each: a JSON list with a list for each document."""
    groups = row["param"]["dup_infos"]
    matches = _double_brackets(out)
    lists, format_points = _inner_lists(out, matches)
    members = [member for inner in lists for member in inner]
    documents = row["prompt"].rpartition("\n\n Documents:\n")[2].partition("\n\n Instructions:")[0].strip()
    text = out.replace("null", "None")
    table = _table(text, row["prompt"].strip().replace('"', ""))
    num_true = sum(member is None or _is_in(documents, member) for member in members)
    return Points(
        {
            "correct": _value_points(groups, text) + _pair_share(row["param"], table.group_of),
            "num_text": 4 * _closeness(len(matches), len(groups), len(groups) + 2) + (len(matches) == len(groups)),
            "ori": 3 * _ratio(num_true, len(members)) + 3 * _ratio(table.num_true, table.num_cells),
            "format": _bracket_points(out) + (len(matches) == out.count("\n") + 1) + format_points,
        }
    )


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _bracket_points(out: str) -> float:
    has_both = "[" in out and "]" in out
    return 0.5 * has_both + 0.5 * (out.startswith("[") and out.endswith("]"))


def _double_brackets(text: str) -> list[str]:
    r"""All matches of `\[\[.*?\]\]`, in linear time, which the regular expression is not on a run of `[[`."""
    found = []
    for line in text.split("\n"):
        start = line.find("[[")
        while start >= 0 and (stop := line.find("]]", start + 2)) >= 0:
            found.append(line[start : stop + 2])
            start = line.find("[[", stop + 2)
    return found


def _inner_lists(out: str, matches: Iterable[str]) -> tuple[list[list[Any]], float]:
    """The lists in those matches that are JSON lists of lists, and up to 3 points for the matches being such.

    Each match is cut by as many characters as stand before the first bracket, which only suits a match at the start:
    a slip of the published scorer, kept.
    """
    start = out.find("[")
    parsed = [_json(match[start:]) for match in matches]
    values = [found.value for found in parsed if found]
    good = [value for value in values if isinstance(value, list) and all(isinstance(inner, list) for inner in value)]
    points = bool(values) + (len(values) == len(parsed)) + (len(good) == len(values))
    return [inner for value in good for inner in value], float(points)


def _is_in(text: str, value: object) -> bool:
    """Whether the value, as Python writes it, stands in `text`; one nested too deeply to be written does not."""
    try:
        return str(value) in text
    except (ValueError, RecursionError):
        return False


def _value_points(groups: Iterable[Iterable[Row]], text: str) -> float:
    """3 for all fields of all duplicates standing anywhere in the answer."""
    values = [str(value) for group in groups for document in group for value in document.values()]
    unescaped = _unescaped(text)
    return 3 * _ratio(sum(value in unescaped for value in values), len(values))


@dataclass
class Table:
    """The answer's lists as rows of cells: which list a row was last in, and how many cells there are in the prompt."""

    group_of: dict[tuple[str, ...], int]
    num_cells: int = 0
    num_true: int = 0


def _table(text: str, prompt: str) -> Table:
    """Reads the answer a second time, now as Python literals, after tidying that breaks some lists and mends others."""
    for old, new in (("\n", ","), ('\\"', ""), ("\\", ",")):
        text = text.replace(old, new)
    table = Table({})
    for number, match in enumerate(_double_brackets(text)):
        rows = _rows(match)
        table.num_cells += len(rows) * len(rows[0]) if rows else 0  # ragged lists count by their first row
        table.num_true += sum(cell in prompt for cells in rows for cell in cells)
        table.group_of.update(dict.fromkeys(rows, number))
    return table


def _rows(match: str) -> list[tuple[str, ...]]:
    """The rows of a list (or tuple) of lists written as a Python literal; none where any part cannot be read.

    The published scorer runs the text instead. What may be a chain of operators, attributes or calls is limited first:
    one of tens of thousands crashes Python 3.10 while parsing (python/cpython#95185), and no literal has any.
    """
    if len(match) > MAX_LITERAL_CHARS or sum(map(match.count, "+-*/%@&|^<>.([")) > MAX_LITERAL_MARKS:
        return []
    try:
        return [_cells(row) for row in ast.literal_eval(match.replace(',"', ""))]
    except Exception:  # the parser's are many, memory and recursion among them, and all mean the same
        return []


def _cells(row: Any) -> tuple[str, ...]:
    """Anything empty is a row without cells; anything else that is no list raises, and so does a number too long."""
    if not isinstance(row, list) and len(row):
        raise TypeError(f"a row must be a list, not {type(row).__name__}")
    return tuple(str(cell) for cell in row)


def _pair_share(param: Row, group_of: Mapping[tuple[str, ...], int]) -> float:
    """The share of pairs of duplicates that the answer has, and puts together or apart as they should be."""
    names = param["info_keys"].split(" ")
    right = {
        tuple(str(document.get(name)).replace('"', "") for name in names): number
        for number, group in enumerate(param["dup_infos"])
        for document in group
    }
    pairs = [(one, other) for one, other in product(right, right) if one in group_of and other in group_of]
    num_right = sum((right[one] == right[other]) == (group_of[one] == group_of[other]) for one, other in pairs)
    return _ratio(num_right, len(right) ** 2)


_QUERY = {"format": 1, "correct": 2, "ori": 1}
_BLUR = {"ori": 1, "position": 3, "format": 1}
_MULTI = {"format": 2, "num": 3, "correct": 3, "order": 2}
_REPEAT = {"format": 3, "ori": 2, "hit": 2, "num": 4, "correct": 3}
_EXTRACT = {"format": 4, "correct": 4, "order": 4, "ori": 2}
_QA = {"correct": 3, "format": 2}
_BATCH_LABEL = {"candi_ori": 3, "logit_correct": 3, "num_doc": 3, "format": 5}
_FIND_DUP = {"correct": 4, "num_text": 5, "ori": 6, "format": 5}

SUBTASKS: dict[str, Subtask] = {
    "list-single_query_id": Subtask("list", 100, _QUERY, _judge_query),
    "list-multi_query_id": Subtask("list", 512, _MULTI, _judge_multi),
    "list-offset_query_id": Subtask("list", 100, _QUERY, _judge_query),
    "list-offset_query_element": Subtask("list", 100, _QUERY, _judge_query),
    "list-blur_offset_query_id": Subtask("list", 100, _BLUR, _judge_blur),
    "list-blur_offset_query_element": Subtask("list", 100, _BLUR, _judge_blur),
    "onedoc-repeat": Subtask("onedoc", 512, _REPEAT, _judge_repeat),
    "onedoc-extract": Subtask("onedoc", 512, _EXTRACT, _judge_extract),
    "onedoc-qa": Subtask("onedoc", 512, _QA, _judge_qa),
    "multidoc-batch_label": Subtask("multidoc", 4096, _BATCH_LABEL, _judge_batch_label),
    "multidoc-find_dup_text": Subtask("multidoc", 4096, _FIND_DUP, _judge_find_dup),
}
