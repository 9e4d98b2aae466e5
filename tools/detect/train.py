"""Learns the weights of `heedful.detect` and writes them into the package.

    python tools/detect/train.py --split ../shared/data/ifeval/split.jsonl [--folds 5]

Learns from the rows of even index of IFEval's split file, from `own.txt` and from those adversarial prompts that
`rows.adversarial` gives to be learnt from; never from the others. With `--folds` it
writes nothing, but tells how well rows are found that were left out.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from rows import Marked, adversarial, split_rows, tagged

from heedful.detection.chunks import Chunk, chunks
from heedful.detection.features import features
from heedful.detection.material import layout
from heedful.detection.model import Weights, probabilities

ROOT = Path(__file__).parents[2]
WEIGHTS = ROOT / "src" / "heedful" / "detection" / "weights.json"
BOUNDARIES = ("paragraph", "line", "sentence", "clause")
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
NEVER = -1e4  # log odds of material


def label(row: Marked, chunk: Chunk) -> bool:
    """Whether more than half of the chunk's characters belong to an instruction."""
    inside = sum(max(0, min(chunk.end, end) - max(chunk.start, start)) for start, end in row.ranges)
    return not chunk.is_material and 2 * inside > chunk.end - chunk.start


class Chains:
    """All rows as padded tensors (rows, chunks)."""

    def __init__(self, rows: Sequence[Marked], least: int) -> None:
        found = [chunks(layout(row.text)) for row in rows]
        named = [[(*own, *shared) for own, shared in features(sequence)] for sequence in found]
        counts = Counter(name for sequence in named for names in sequence for name in names)
        self.names = sorted(name for name, count in counts.items() if count >= least)
        index = {name: at for at, name in enumerate(self.names)}
        flat = [sorted(index[name] for name in names if name in index) for sequence in named for names in sequence]
        self.ids = torch.tensor([at for ids in flat for at in ids])
        self.offsets = torch.tensor([0, *(len(ids) for ids in flat)]).cumsum(0)[:-1]
        width = max(map(len, found))
        shape = len(rows), width
        self.there = torch.zeros(shape, dtype=torch.bool)
        self.yes = torch.zeros(shape)
        self.never = torch.zeros(shape)
        self.boundary = torch.zeros(shape, dtype=torch.long)
        for at, (row, sequence) in enumerate(zip(rows, found, strict=True)):
            for place, chunk in enumerate(sequence):
                self.there[at, place] = True
                self.yes[at, place] = label(row, chunk)
                self.never[at, place] = NEVER * chunk.is_material
                self.boundary[at, place] = BOUNDARIES.index(chunk.boundary)

    def loss(self, weights: torch.Tensor, ties: torch.Tensor) -> torch.Tensor:
        """Negative log likelihood of the labels. `weights` (features, 1), `ties` (boundaries, 2)."""
        odds = torch.zeros(self.there.shape)
        odds[self.there] = torch.nn.functional.embedding_bag(self.ids, weights, self.offsets, mode="sum")[:, 0]
        odds = odds + self.never
        tied = ties[self.boundary]
        no, yes = torch.zeros(len(odds)), odds[:, 0]
        right = self.yes[:, 0] * odds[:, 0]
        for at in range(1, odds.shape[1]):
            there = self.there[:, at]
            next_no = torch.logaddexp(no + tied[:, at, 0], yes)
            next_yes = torch.logaddexp(no, yes + tied[:, at, 1]) + odds[:, at]
            no, yes = torch.where(there, next_no, no), torch.where(there, next_yes, yes)
            now, before = self.yes[:, at], self.yes[:, at - 1]
            step = now * odds[:, at] + now * before * tied[:, at, 1] + (1 - now) * (1 - before) * tied[:, at, 0]
            right = right + torch.where(there, step, 0.0)
        return (torch.logaddexp(no, yes) - right).sum()


def learn(rows: Sequence[Marked], least: int, penalty: float) -> Weights:
    """Weights of greatest likelihood, less `penalty` times half their squares."""
    data = Chains(rows, least)
    weights = torch.zeros(len(data.names), 1, requires_grad=True)
    ties = torch.zeros(len(BOUNDARIES), 2, requires_grad=True)
    optimiser = torch.optim.LBFGS([weights, ties], max_iter=150, history_size=20, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss = data.loss(weights, ties) + penalty / 2 * (weights.square().sum() + ties.square().sum())
        loss.backward()
        return loss

    optimiser.step(closure)
    pairs = zip(data.names, weights[:, 0].tolist(), strict=True)
    kept = {name: round(weight, 3) for name, weight in pairs if abs(weight) >= 0.04}
    return Weights(
        kept, {name: (round(a, 3), round(b, 3)) for name, (a, b) in zip(BOUNDARIES, ties.tolist(), strict=True)}
    )


def cross_validate(rows: Sequence[Marked], folds: int, least: int, penalty: float) -> None:
    """Prints, for several thresholds, precision, recall and F1 over characters; no row is found by what it taught."""
    counts: dict[tuple[float, str], Counter[str]] = {}
    for fold in range(folds):
        model = learn([row for at, row in enumerate(rows) if at % folds != fold], least, penalty)
        for row in rows[fold::folds]:
            found = chunks(layout(row.text))
            likely = probabilities(found, model)
            gold = {at for start, end in row.ranges for at in range(start, end) if not row.text[at].isspace()}
            for threshold in THRESHOLDS:
                marked = [chunk for chunk, score in zip(found, likely, strict=True) if score >= threshold]
                taken = {at for c in marked for at in range(c.start, c.end) if not row.text[at].isspace()}
                count = counts.setdefault((threshold, "ifeval" if row.kind == "ifeval" else "others"), Counter())
                sizes = {"right": len(gold & taken), "taken": len(taken), "gold": len(gold)}
                count.update(sizes | {"clean": not gold, "false": bool(taken and not gold)})
    for (threshold, kind), count in sorted(counts.items()):
        precision, recall = count["right"] / count["taken"], count["right"] / count["gold"]
        f1 = 2 * precision * recall / (precision + recall)
        print(f"{kind} {threshold}: precision {precision:.3f}, recall {recall:.3f}, F1 {f1:.3f}; ", end="")
        print(f"spans in {count['false']} of {count['clean']} prompts without instructions")


def main() -> None:
    """Learns, or validates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--split", type=Path, required=True)
    parser.add_argument("--folds", type=int, default=0)
    parser.add_argument("--least", type=int, default=2)
    parser.add_argument("--penalty", type=float, default=2.0)
    asked = parser.parse_args()
    rows = split_rows(asked.split, 0) + tagged(Path(__file__).with_name("own.txt"))
    rows += adversarial(ROOT / "docs" / "results" / "detect-adversarial.txt", 0)
    if asked.folds:
        cross_validate(rows, asked.folds, asked.least, asked.penalty)
        return
    model = learn(rows, asked.least, asked.penalty)
    data = {"ties": model.ties, "features": model.features}
    text = json.dumps(data, ensure_ascii=False, indent=0).replace(",\n-", ", -").replace("[\n", "[").replace("\n]", "]")
    WEIGHTS.write_text(text + "\n", encoding="utf-8")
    print(f"{len(model.features)} features from {len(rows)} prompts, {WEIGHTS.stat().st_size} bytes: {WEIGHTS}")


if __name__ == "__main__":
    main()
