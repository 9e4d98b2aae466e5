"""List: elements of a numbered list."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from heedful.eval.lifbench.reading import (
    MAX_CHARS,
    Points,
    Row,
    closeness,
    first_unescaped,
    is_near,
    read_list,
)


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


def judge_query(row: Row, out: str) -> Points:
    """One element is asked for: given by its number, or as the neighbour of another."""
    items, wanted = _items(row["prompt"]), _wanted(row["param"])
    size = _size_points(items, out)
    num_found = sum(out.count(item) for item in items)
    if not num_found:
        return Points({"format": size, "correct": 0.0, "ori": 0.0}, is_void=True)
    alone = 0.0 if num_found > 1 else 0.8 if out in items else 0.3
    correct = 2.0 if wanted in out else 1.0 if is_near(wanted, out) else 0.0
    return Points({"format": size + alone, "correct": correct, "ori": 1.0})


def _wanted(param: Row) -> str:
    name = {0: "element", 1: "post_element", -1: "pre_element"}[param.get("bias") or 0]
    return str(param[name])


def judge_blur(row: Row, out: str) -> Points:
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


def judge_multi(row: Row, out: str) -> Points:
    """Several elements are asked for, as a JSON list in the order given."""
    wanted, listing, text = row["param"]["elements"], read_list(out), first_unescaped(out)
    size = listing.size
    if size is None:
        size = sum(out.count(item) for item in _items(row["prompt"]))
    places = [text.find(element) for element in wanted if element in text]
    in_order = 2.0 if places == sorted(places) else 0.0
    return Points(
        {
            "format": 2 * listing.neatness,
            "num": 2 * closeness(size, len(wanted), len(wanted)) + (size == len(wanted)),
            "correct": 3 * len(places) / len(wanted),
            "order": in_order if len(places) > 1 else 1.0,
        }
    )
