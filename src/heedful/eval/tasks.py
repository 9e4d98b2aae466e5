"""What is evaluated: a task turns lines of a file into prompts, and answers into verdicts. Generates nothing itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from heedful.data import Broken, HubSet, Record
from heedful.errors import DataError
from heedful.eval import drift, followbench, gsm8k, ifbench, ifeval, lifbench, multi_if
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
class Parts:
    """Parts of a task whose scores are averaged, not their rows: `of` an example's key, the name of its part.

    `weights`: what each part counts. `metrics`: those that are averages over several parts. `floors`: what an answer
    that refuses scores, where that is not nothing.
    """

    of: Callable[[str], str]
    weights: Mapping[str, float]
    metrics: tuple[str, ...]
    floors: Mapping[str, float]


@dataclass(frozen=True)
class Task:
    """A benchmark. `primary`: the metric that runs are compared by. `check` raises early if a judge is missing.

    `hub`: the set that is read where no data are named; `rows`: rows of our own, for a task that has any. `follow`:
    from an example and its answer, the example that comes next in the same conversation, if any; it has a key of its
    own. `num_turns`: how many there are at most. `parts`: what the means of its metrics are averaged over.
    """

    name: str
    primary: str
    read: Callable[[Record], Example]
    judge: Callable[[Example, str], Verdict]
    check: Callable[[], None] = lambda: None
    hub: HubSet | None = None
    follow: Callable[[Example, str], Example | None] = lambda example, answer: None
    num_turns: int = 1
    rows: Callable[[], list[dict[str, Any]]] | None = None
    parts: Parts | None = None


def _ifeval_official(record: Record) -> Example:
    text = str(record.columns.get("original_prompt", record.columns.get("prompt", "")))
    record.need(["key", "instruction_id_list", "kwargs", "original_spans"], "ifeval")
    _kinds(record)
    spans = record.ranges("original_spans")
    if not spans:
        raise DataError(f"line {record.number} of {record.path} names no instruction span")
    return Example(str(record.columns["key"]), text, spans, 1280, record.columns)


def _ifeval_split(record: Record) -> Example:
    """Rows with `task` and `split_prompt`, or as on the hub: a `prompt` that holds its `instructions` word for word."""
    record.need(["key", "instruction_id_list", "kwargs"], "ifeval-split")
    _kinds(record)
    is_apart = "split_prompt" in record.columns
    record.need(["task"] if is_apart else ["prompt", "instructions"], "ifeval-split")
    prompt, instructions = record.prompt
    return Example(str(record.columns["key"]), prompt, instructions, 1280, record.columns)


def _ifeval_verdict(example: Example, text: str) -> Verdict:
    return _followed(example.columns["instruction_id_list"], ifeval.followed(example.columns, text))


def _kinds(record: Record, name: str = "instruction_id_list") -> None:
    """Raises `DataError` where a row names no instruction: any answer would follow all of none."""
    if not record.columns[name]:
        raise DataError(f"line {record.number} of {record.path} names no instruction to follow")


def _followed(kinds: Sequence[str], found: ifeval.Followed) -> Verdict:
    points: dict[str, tuple[float, float]] = {}
    for rule, verdicts in (("strict", found.strict), ("loose", found.loose)):
        points[f"prompt_{rule}"] = (float(all(verdicts)), 1.0)
        points[f"instruction_{rule}"] = (float(sum(verdicts)), float(len(verdicts)))
    return Verdict(points, {"followed": [[kind, one] for kind, one in zip(kinds, found.strict, strict=True)]})


def _ifbench(record: Record) -> Example:
    record.need(["key", "prompt", "instruction_id_list", "kwargs"], "ifbench")
    _kinds(record)
    text = str(record.columns["prompt"])
    kinds = ifbench.kinds(record.columns)
    return Example(str(record.columns["key"]), text, ifbench.spans(text, kinds), 1280, record.columns)


def _ifbench_verdict(example: Example, text: str) -> Verdict:
    return _followed(example.columns["instruction_id_list"], ifbench.followed(example.columns, text))


def _multi_if(record: Record) -> Example:
    record.need(["key", "language", "turn_1_prompt", "turn_1_instruction_id_list", "turn_1_kwargs"], "multi-if")
    said = multi_if.turns(record.columns)
    columns = {**record.columns, "turns": said, "answers": []}
    return Example(str(record.columns["key"]), multi_if.messages(said, []), "user", 1280, columns)


def _multi_if_next(example: Example, answer: str) -> Example | None:
    said, answers = example.columns["turns"], [*example.columns["answers"], answer]
    if len(answers) == len(said):
        return None
    key = f"{example.columns['key']}:turn{len(answers) + 1}"
    return Example(key, multi_if.messages(said, answers), "user", 1280, {**example.columns, "answers": answers})


def _multi_if_verdict(example: Example, text: str) -> Verdict:
    """Also `turn_k`, and `last_turn`, where all of a conversation's instructions are in force: one point a row."""
    number = len(example.columns["answers"]) + 1
    turn = example.columns["turns"][number - 1]
    columns = {"prompt": turn.text, "instruction_id_list": turn.kinds, "kwargs": turn.arguments}
    found = _followed(turn.kinds, ifeval.followed(columns, text))
    found.points[f"turn_{number}"] = found.points["prompt_strict"]
    if number == len(example.columns["turns"]):
        found.points["last_turn"] = found.points["prompt_strict"]
    return found


def _followbench(record: Record) -> Example:
    record.need(["example_id", "category", "source", "level", "instruction", "target"], "followbench")
    columns = record.columns
    spans = followbench.spans(columns)
    key = f"{columns['source']}:{columns['example_id']}:{columns['level']}"
    return Example(key, str(columns["instruction"]), spans, 1024, columns)


def _followbench_verdict(example: Example, text: str) -> Verdict:
    """`hard`: all constraints satisfied; `soft`: the share of them; both also by level."""
    kept = followbench.kept(example.columns, text)
    hard, soft, level = float(all(kept)), sum(kept) / len(kept), example.columns["level"]
    points = {"hard": (hard, 1.0), "soft": (soft, 1.0), f"hard_{level}": (hard, 1.0), f"soft_{level}": (soft, 1.0)}
    return Verdict(points, {"kept": kept})


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
    subtask = record.path.replace("\\", "/").rpartition("/")[2].removesuffix(".jsonl").removesuffix(".json")
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


def _drift(record: Record) -> Example:
    record.need(["key", "system", "turns", "instruction_id_list", "kwargs"], "drift")
    columns = {**record.columns, "answers": []}
    said = drift.messages(columns["system"], columns["turns"], [])
    return Example(str(columns["key"]), said, "system", drift.MAX_NEW_TOKENS, columns)


def _drift_next(example: Example, answer: str) -> Example | None:
    columns = {**example.columns, "answers": [*example.columns["answers"], answer]}
    turn = len(columns["answers"])
    if turn == len(columns["turns"]):
        return None
    said = drift.messages(columns["system"], columns["turns"], columns["answers"])
    return Example(f"{columns['key']}:turn{turn + 1}", said, "system", drift.MAX_NEW_TOKENS, columns)


def _drift_verdict(example: Example, text: str) -> Verdict:
    """`kept` counts turns; `conversation`, the share of its turns that keep the constraint, comes with the last."""
    answers = [*example.columns["answers"], text]
    last = float(all(ifeval.followed(example.columns, text).strict))
    points = {"kept": (last, 1.0), drift.block(len(answers) - 1): (last, 1.0)}
    if len(answers) == len(example.columns["turns"]):
        kept = [all(ifeval.followed(example.columns, answer).strict) for answer in answers]
        points["conversation"] = (sum(kept) / len(kept), 1.0)
    return Verdict(points)


def _far(record: Record) -> Example:
    record.need(["key", "prompt", "instruction_id_list", "kwargs"], "far")
    return Example(str(record.columns["key"]), record.columns["prompt"], "system", drift.MAX_NEW_TOKENS, record.columns)


SPLIT_IFEVAL = HubSet("ibm-research/Split-IFEval")
HEED_TRUTH = "If the question rests on a false premise, say so and correct it."


def _advfactuality(record: Record) -> Example:
    record.need(["prompt", "knowledge", "modified knowledge"], "advfactuality")
    text = f"{record.columns['prompt']}\n\n{HEED_TRUTH}"
    return Example(str(record.number), text, [(len(text) - len(HEED_TRUTH), len(text))], 512, record.columns)


def _advfactuality_verdict(example: Example, text: str) -> Verdict:
    """No points: a model judges afterwards (`heedful eval judge`), by what the verdict keeps for it."""
    return Verdict({}, {name: str(example.columns[name]) for name in ("knowledge", "modified knowledge")})


LIFBENCH_PARTS = Parts(
    lifbench.subtask_of,
    {name: float(subtask.points) for name, subtask in lifbench.SUBTASKS.items()},
    ("score", *dict.fromkeys(subtask.group for subtask in lifbench.SUBTASKS.values())),
    lifbench.REFUSALS,
)
TASKS = {
    task.name: task
    for task in (
        Task("ifeval", "prompt_strict", _ifeval_official, _ifeval_verdict, ifeval.check, SPLIT_IFEVAL),
        Task("ifeval-split", "prompt_strict", _ifeval_split, _ifeval_verdict, ifeval.check, SPLIT_IFEVAL),
        Task("ifbench", "prompt_strict", _ifbench, _ifbench_verdict, ifbench.check, HubSet("allenai/IFBench_test")),
        Task(
            "multi-if",
            "last_turn",
            _multi_if,
            _multi_if_verdict,
            ifeval.check,
            HubSet("facebook/Multi-IF"),
            _multi_if_next,
            multi_if.NUM_TURNS,
        ),
        Task("followbench", "hard", _followbench, _followbench_verdict, hub=HubSet("YuxinJiang/FollowBench")),
        Task("gsm8k-format", "joint", _gsm8k, _gsm8k_verdict, hub=HubSet("openai/gsm8k", "test", "main")),
        Task("lifbench", "score", _lifbench, _lifbench_verdict, parts=LIFBENCH_PARTS),
        Task("advfactuality", "corrected", _advfactuality, _advfactuality_verdict),
        Task(
            "drift",
            "conversation",
            _drift,
            _drift_verdict,
            ifeval.check,
            follow=_drift_next,
            num_turns=drift.NUM_TURNS,
            rows=drift.drift_rows,
        ),
        Task("far", "prompt_strict", _far, _ifeval_verdict, ifeval.check, rows=drift.far_rows),
    )
}


def examples(task: Task, records: Sequence[Record | Broken]) -> tuple[list[Example], dict[str, str]]:
    """The task's prompts, and for each line that is none of them the reason, by its number, and file if several."""
    if not records:
        raise DataError(f"there is no row for {task.name}: this shard of the data is empty")
    found: dict[str, Example] = {}
    failed: dict[str, str] = {}
    paths: dict[str, str] = {}
    has_one_path = len({record.path for record in records}) == 1
    for record in records:
        where = f"line {record.number}" if has_one_path else f"line {record.number} of {record.path}"
        if isinstance(record, Broken):
            failed[where] = f"it {record.reason}"
            continue
        try:
            example = task.read(record)
        except (DataError, ValueError, TypeError, KeyError) as error:
            failed[where] = str(error)
            continue
        if paths.get(example.key, record.path) != record.path:  # keys that are line numbers, in several files
            example = replace(example, key=f"{record.path.replace(chr(92), '/').rpartition('/')[2]}:{example.key}")
        if example.key in found:
            failed[where] = f"its key {example.key!r} is that of a line before"
        else:
            found[example.key] = example
            paths.setdefault(example.key, record.path)
    if not found:
        raise DataError(f"no line can be used for {task.name}: {next(iter(failed.values()))}")
    return list(found.values()), failed
