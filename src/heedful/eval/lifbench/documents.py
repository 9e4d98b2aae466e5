"""MultiDoc: a collection of documents with some of their fields missing."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from heedful.eval.lifbench.reading import (
    Points,
    Row,
    closeness,
    first_unescaped,
    parse,
)

MAX_LITERAL_CHARS = 100_000
MAX_LITERAL_MARKS = 5_000


def judge_batch_label(row: Row, out: str) -> Points:
    """A label for every document is asked for, as a JSON object; labels follow from the fields a document has."""
    num_docs, objects = row["label"], _objects(out)
    parsed = parse(out)
    format_points = 2.0 if parsed else 0.0
    if not parsed and objects:
        objects.sort(key=len, reverse=True)
        parsed = parse(objects[0])
        format_points = 1.0 if parsed else 0.0
    value = parsed.value if parsed else None
    size = len(value) if isinstance(value, dict | list) and value else out.count("doc")
    num_named = sum(f"doc{number}" in out for number in range(1, num_docs + 1))
    shares = _label_shares(row, objects)
    return Points(
        {
            "candi_ori": 3 * shares[0],
            "logit_correct": 3 * shares[1],
            "num_doc": 2.5 * closeness(size, num_docs, num_docs) + (0.5 if size == num_docs else 0.0),
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


def judge_find_dup(row: Row, out: str) -> Points:
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
            "num_text": 4 * closeness(len(matches), len(groups), len(groups) + 2) + (len(matches) == len(groups)),
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
    parsed = [parse(match[start:]) for match in matches]
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
    unescaped = first_unescaped(text)
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
