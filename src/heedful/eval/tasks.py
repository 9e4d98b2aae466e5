"""What is evaluated: a task turns lines of a file into prompts, and answers into verdicts. Generates nothing itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from heedful.data import Record
from heedful.errors import DataError
from heedful.eval import gsm8k, ifeval, lifbench
from heedful.prompt import Instructions, Messages


@dataclass(frozen=True)
class Example:
    """One prompt of a task. `key` is the same in every run, whatever was left out before it."""

    key: str
    prompt: Messages
    instructions: Instructions
    max_new_tokens: int
    columns: Mapping[str, Any]


@dataclass(frozen=True)
class Verdict:
    """What an answer scored: for each metric, points and the most that could be had; and why, in words."""

    points: dict[str, tuple[float, float]]
    why: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """A benchmark. `primary`: the metric that runs are compared by. `check` raises early if a judge is missing."""

    name: str
    primary: str
    read: Callable[[Record], Example]
    judge: Callable[[Example, str], Verdict]
    check: Callable[[], None] = lambda: None


def _ifeval_official(record: Record) -> Example:
    text = str(record.columns.get("original_prompt", record.columns.get("prompt", "")))
    record.need(["key", "instruction_id_list", "kwargs", "original_spans"], "ifeval")
    spans = record.ranges("original_spans")
    if not spans:
        raise DataError(f"line {record.number} of {record.path} names no instruction span")
    return Example(str(record.columns["key"]), text, spans, 1280, record.columns)


def _ifeval_split(record: Record) -> Example:
    record.need(["key", "instruction_id_list", "kwargs", "task", "split_prompt"], "ifeval-split")
    prompt, instructions = record.prompt
    return Example(str(record.columns["key"]), prompt, instructions, 1280, record.columns)


def _ifeval_verdict(example: Example, text: str) -> Verdict:
    found = ifeval.followed(example.columns, text)
    points: dict[str, tuple[float, float]] = {}
    for rule, verdicts in (("strict", found.strict), ("loose", found.loose)):
        points[f"prompt_{rule}"] = (float(all(verdicts)), 1.0)
        points[f"instruction_{rule}"] = (float(sum(verdicts)), float(len(verdicts)))
    return Verdict(points, {"followed": dict(zip(example.columns["instruction_id_list"], found.strict, strict=True))})


def _gsm8k(record: Record) -> Example:
    record.need(["question", "answer"], "gsm8k-format")
    text, span = gsm8k.prompt(str(record.columns["question"]))
    return Example(str(record.number), text, [span], 512, record.columns)


def _gsm8k_verdict(example: Example, text: str) -> Verdict:
    found = gsm8k.judge(text, gsm8k.gold(str(example.columns["answer"])))
    joint = found.has_format and found.is_right
    return Verdict(
        {
            "format": (float(found.has_format), 1.0),
            "task": (float(found.is_right), 1.0),
            "joint": (float(joint), 1.0),
        },
        {"number": found.number},
    )


def _lifbench(record: Record) -> Example:
    subtask = record.path.replace("\\", "/").rpartition("/")[2].removesuffix(".jsonl")
    if subtask not in lifbench.SUBTASKS:
        raise DataError(f"{record.path} is no LIFBench subtask; known: {', '.join(lifbench.SUBTASKS)}")
    record.need(["prompt", "label", "param", "instruction_char_span"], "lifbench")
    start, stop = record.columns["instruction_char_span"]
    limit = lifbench.SUBTASKS[subtask].max_new_tokens
    columns = {**record.columns, "subtask": subtask}
    return Example(f"{subtask}:{record.number}", record.columns["prompt"], [(start, stop)], limit, columns)


def _lifbench_verdict(example: Example, text: str) -> Verdict:
    subtask = example.columns["subtask"]
    found = lifbench.score(subtask, example.columns, text)
    points = dict.fromkeys(("score", lifbench.SUBTASKS[subtask].group, subtask), (found.score, 1.0))
    return Verdict(points, {"criteria": found.criteria})


HEED_TRUTH = "If the question rests on a false premise, say so and correct it."


def _advfactuality(record: Record) -> Example:
    record.need(["prompt", "knowledge", "modified knowledge"], "advfactuality")
    text = f"{record.columns['prompt']}\n\n{HEED_TRUTH}"
    return Example(str(record.number), text, [(len(text) - len(HEED_TRUTH), len(text))], 512, record.columns)


def _advfactuality_verdict(example: Example, text: str) -> Verdict:
    """No points: a model judges afterwards (`heedful eval judge`), by what the verdict keeps for it."""
    return Verdict({}, {name: str(example.columns[name]) for name in ("knowledge", "modified knowledge")})


TASKS = {
    task.name: task
    for task in (
        Task("ifeval", "prompt_strict", _ifeval_official, _ifeval_verdict, ifeval.check),
        Task("ifeval-split", "prompt_strict", _ifeval_split, _ifeval_verdict, ifeval.check),
        Task("gsm8k-format", "joint", _gsm8k, _gsm8k_verdict),
        Task("lifbench", "score", _lifbench, _lifbench_verdict),
        Task("advfactuality", "corrected", _advfactuality, _advfactuality_verdict),
    )
}


def examples(task: Task, records: Sequence[Record]) -> tuple[list[Example], dict[str, str]]:
    """The task's prompts, and for each line that is none of them the reason, by its number."""
    found: list[Example] = []
    failed: dict[str, str] = {}
    for record in records:
        try:
            found.append(task.read(record))
        except (DataError, ValueError, TypeError, KeyError) as error:
            failed[f"line {record.number}"] = str(error)
    if not found:
        raise DataError(f"no line can be used for {task.name}: {next(iter(failed.values()))}")
    return found, failed
