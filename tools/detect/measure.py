"""How well `heedful.detect` finds instructions that it did not learn from; prints the tables of docs/results/detect.md.

    python tools/detect/measure.py --data ../shared/data [--thresholds 0.5,0.7,0.8,0.87,0.95]

Counts are over the default model's tokens. A false span is one of which less than half belongs to an instruction.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from rows import Marked, adversarial, split_rows

from heedful.detection import DEFAULT_THRESHOLD, find
from heedful.models import resolve
from heedful.spans import Span, tokens_in

ROOT = Path(__file__).parents[2]
LEAST_KEPT = 0.95  # of the words of a FollowBench prompt without constraints, in the one with them


def ifbench(path: Path, size: int = 5) -> list[Marked]:
    """IFBench's prompts. The set marks nothing, so a constraint is a sentence with `size` words in a row that another
    prompt of the same kind of constraint has too, unless both prompts begin alike."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    by_kind: dict[str, list[str]] = {}
    for row in rows:
        for kind in row["instruction_id_list"]:
            by_kind.setdefault(kind, []).append(row["prompt"])
    found = []
    for row in rows:
        text = row["prompt"]
        others = [o for kind in row["instruction_id_list"] for o in by_kind[kind] if o[:40] != text[:40]]
        known = {gram for other in others for gram in _grams(other, size)}
        ranges = [place for place in _sentences(text) if any(g in known for g in _grams(text[slice(*place)], size))]
        found.append(Marked(text, tuple(ranges), "IFBench"))
    return [row for row in found if row.ranges]


def _grams(text: str, size: int) -> Iterator[tuple[str, ...]]:
    words = re.findall(r"\w+", re.sub(r"\d+", "0", text.lower()))
    return (tuple(words[at : at + size]) for at in range(len(words) - size + 1))


def _sentences(text: str) -> list[tuple[int, int]]:
    ends = [match.end() for match in re.finditer(r"[.!?][\"')]*(?=\s)|\n+|$", text)]
    return [(start, end) for start, end in zip([0, *ends], ends, strict=False) if text[start:end].strip()]


def followbench(folder: Path) -> list[Marked]:
    """FollowBench's prompts of the highest level that keeps the words of the one without constraints: what was put
    between (three words or more) is the constraint. Its set of examples says no constraint in words and is left out."""
    found = []
    for path in sorted(folder.glob("*_constraints.json")):
        groups: dict[int, list[dict[str, Any]]] = {}
        for row in json.loads(path.read_text(encoding="utf-8")) if "example" not in path.name else []:
            groups.setdefault(row["example_id"], []).append(row)
        for rows in groups.values():
            plain = next((row["instruction"] for row in rows if row["level"] == 0), None)
            for row in sorted(rows, key=lambda row: -row["level"]) if plain else []:
                ranges = _inserted(str(plain), row["instruction"])
                if row["level"] and ranges:
                    found.append(Marked(row["instruction"], ranges, "FollowBench"))
                    break
    return found


def _inserted(plain: str, text: str) -> tuple[tuple[int, int], ...]:
    """Ranges of `text` that `plain` lacks; none unless it keeps nearly all of its words."""
    words = list(re.finditer(r"\w+|[^\w\s]", text))
    before = re.findall(r"\w+|[^\w\s]", plain)
    blocks = SequenceMatcher(None, before, [word[0] for word in words], autojunk=False).get_matching_blocks()
    if sum(block.size for block in blocks) < LEAST_KEPT * len(before):
        return ()
    gaps = [(a.b + a.size, b.b) for a, b in zip([blocks[0]._replace(b=0, size=0), *blocks], blocks, strict=False)]
    return tuple((words[first].start(), words[behind - 1].end()) for first, behind in gaps if behind - first >= 3)


def measure(rows: Sequence[Marked], tokenizer: Any, threshold: float) -> dict[str, Any]:
    """Token-level counts, and the prompts with a false span."""
    count: Counter[str] = Counter()
    for row in rows:
        offsets = tokenizer(row.text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        found = find([("user", row.text)], threshold=threshold).found
        taken = set(tokens_in([item.span for item in found], offsets).positions)
        gold = set(tokens_in([Span(*place) for place in row.ranges], offsets).positions)
        false = [item for item in found if 2 * _inside(item.span, row.ranges) < item.span.end - item.span.start]
        count.update(right=len(gold & taken), taken=len(taken), gold=len(gold), false=bool(false))
    precision, recall = count["right"] / max(count["taken"], 1), count["right"] / max(count["gold"], 1)
    f1 = 2 * precision * recall / max(precision + recall, 1e-9)
    return {"precision": precision, "recall": recall, "F1": f1, "false": count["false"], "prompts": len(rows)}


def _inside(span: Span, ranges: Sequence[tuple[int, int]]) -> int:
    return sum(max(0, min(span.end, end) - max(span.start, start)) for start, end in ranges)


def milliseconds(rows: Sequence[Marked], tokenizer: Any, tokens: int = 1000, calls: int = 15) -> list[float]:
    """Processor time for prompts of about `tokens` tokens, made of whole prompts in a row: each one's median call."""
    texts, text = [], ""
    for row in rows:
        text += row.text + "\n\n"
        if len(tokenizer(text)["input_ids"]) >= tokens:
            texts.append(text)
            text = ""
    find([("user", texts[0])])  # reads the weights
    return [statistics.median(_milliseconds(text) for _ in range(calls)) for text in texts]


def _milliseconds(text: str) -> float:
    start = time.process_time()
    find([("user", text)])
    return 1000 * (time.process_time() - start)


def main() -> None:
    """Prints the tables."""
    from transformers import AutoTokenizer

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--thresholds", default="0.5,0.7,0.8,0.87,0.95")
    parser.add_argument("--show", action="store_true", help="Also every false span in the adversarial prompts.")
    asked = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(resolve(None))
    odd = split_rows(asked.data / "ifeval" / "split.jsonl", 1)
    quoted = ROOT / "docs" / "results" / "detect-adversarial.txt"
    sets = {
        "IFEval, odd rows": odd,
        "IFBench": ifbench(asked.data / "ifbench" / "test.jsonl"),
        "FollowBench": followbench(asked.data / "followbench" / "data"),
        "adversarial, held out": adversarial(quoted, 1),
        "adversarial, learnt from": adversarial(quoted, 0),
    }
    print("| prompts | | precision | recall | F1 | no false span |\n| --- | ---: | ---: | ---: | ---: | ---: |")
    for name, rows in sets.items():
        print(_line(f"{name} | {len(rows)}", measure(rows, tokenizer, DEFAULT_THRESHOLD)))
    print("\n| least score | precision | recall | F1 | no false span |\n| --- | ---: | ---: | ---: | ---: |")
    for threshold in map(float, asked.thresholds.split(",")):
        print(_line(f"{threshold:g}", measure(odd, tokenizer, threshold)))
    times = milliseconds(odd, tokenizer)
    print(
        f"\nProcessor time for a prompt of 1,000 tokens, the median of 15 calls for each of {len(times)} prompts: ",
        end="",
    )
    print(f"median {statistics.median(times):.1f} ms, largest {max(times):.1f} ms")
    if asked.show:
        for row in sets["adversarial, held out"]:
            for item in find([("user", row.text)]).found:
                if 2 * _inside(item.span, row.ranges) < item.span.end - item.span.start:
                    print(f"[{row.kind}] {item.score:.2f} {item.text!r}")


def _line(name: str, figures: dict[str, Any]) -> str:
    share = 1 - figures["false"] / figures["prompts"]
    return f"| {name} | {figures['precision']:.3f} | {figures['recall']:.3f} | {figures['F1']:.3f} | {share:.1%} |"


if __name__ == "__main__":
    main()
