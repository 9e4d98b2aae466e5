"""LIFBench (Wu et al., 2024): how far an answer follows its instruction over a long input, by rules alone.

Scores one answer of one row; it generates nothing, reads no files and averages nothing. Written from a description of
the published scorers, and gives their numbers, oddities included: results are only worth comparing when the same
mistakes are marked down. Where the published scorers raise, hang or run the model's text as code, these do not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from heedful.errors import OptionError
from heedful.eval.lifbench.documents import judge_batch_label, judge_find_dup
from heedful.eval.lifbench.essays import judge_extract, judge_qa, judge_repeat
from heedful.eval.lifbench.lists import judge_blur, judge_multi, judge_query
from heedful.eval.lifbench.reading import MAX_CHARS, Points, Row


@dataclass(frozen=True)
class Verdict:
    """The total and each criterion as shares of what could be earned; `ori` of find_dup_text can pass 1."""

    score: float
    criteria: dict[str, float]


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


def subtask_of(key: str) -> str:
    """The subtask in an example's key, `SUBTASK:ROW`, a file's name before it where two have the same."""
    return next(part for part in reversed(key.split(":")) if part in SUBTASKS)


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


_QUERY = {"format": 1, "correct": 2, "ori": 1}
_BLUR = {"ori": 1, "position": 3, "format": 1}
_MULTI = {"format": 2, "num": 3, "correct": 3, "order": 2}
_REPEAT = {"format": 3, "ori": 2, "hit": 2, "num": 4, "correct": 3}
_EXTRACT = {"format": 4, "correct": 4, "order": 4, "ori": 2}
_QA = {"correct": 3, "format": 2}
_BATCH_LABEL = {"candi_ori": 3, "logit_correct": 3, "num_doc": 3, "format": 5}
_FIND_DUP = {"correct": 4, "num_text": 5, "ori": 6, "format": 5}

SUBTASKS: dict[str, Subtask] = {
    "list-single_query_id": Subtask("list", 100, _QUERY, judge_query),
    "list-multi_query_id": Subtask("list", 512, _MULTI, judge_multi),
    "list-offset_query_id": Subtask("list", 100, _QUERY, judge_query),
    "list-offset_query_element": Subtask("list", 100, _QUERY, judge_query),
    "list-blur_offset_query_id": Subtask("list", 100, _BLUR, judge_blur),
    "list-blur_offset_query_element": Subtask("list", 100, _BLUR, judge_blur),
    "onedoc-repeat": Subtask("onedoc", 512, _REPEAT, judge_repeat),
    "onedoc-extract": Subtask("onedoc", 512, _EXTRACT, judge_extract),
    "onedoc-qa": Subtask("onedoc", 512, _QA, judge_qa),
    "multidoc-batch_label": Subtask("multidoc", 4096, _BATCH_LABEL, judge_batch_label),
    "multidoc-find_dup_text": Subtask("multidoc", 4096, _FIND_DUP, judge_find_dup),
}

REFUSALS = {
    "list-multi_query_id": 0.1,
    "onedoc-repeat": 0.117,
    "onedoc-extract": 0.036,
    "onedoc-qa": 0.1,
    "multidoc-find_dup_text": 0.233,
}
"""What a plain refusal scores on the published 3k rows; in the other subtasks nothing."""
