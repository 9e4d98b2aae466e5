"""Runs a task under several methods: every answer is written as it comes, and a run that was stopped goes on.

While a method runs, its answers stand in a journal in the order in which they came; a finished method's file holds them
in the order of the data, so that a run that was stopped and resumed ends in the same bytes as one that was not.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from heedful import journal, provenance
from heedful.errors import HeedfulError, OptionError
from heedful.eval import textstats, times
from heedful.eval.tasks import Example, Task
from heedful.generate import LM, Job, Result
from heedful.journal import file_name
from heedful.provenance import Facts, described, facts_of
from heedful.recipe import Method
from heedful.sampling import Sampling
from heedful.scoring import score

Records = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Plan:
    """What is run on which examples, where it is written, and how many answers are made at a time.

    With a `sampling` that is not greedy, every method is run `num_seeds` times, as `name@0`, `name@1` … `spans`:
    "given" by the task, or found in the prompt ("auto").
    """

    task: Task
    examples: Sequence[Example]
    methods: Mapping[str, Method | None]
    out: Path
    batch: int = 32
    max_new_tokens: int | None = None
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Lines of the data that are no prompt of the task, and why."""
    sampling: Sampling = Sampling()
    num_seeds: int = 1
    spans: Literal["given", "auto"] = "given"
    chosen_on: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """By method, which of these prompts it was chosen on; see `heedful.eval.seen`."""

    @property
    def folder(self) -> Path:
        """Where the task's files are."""
        return self.out / self.task.name

    @property
    def variants(self) -> dict[str, Variant]:
        """What is run, by the name of its file."""
        if self.sampling.is_greedy:
            return {name: Variant(method) for name, method in self.methods.items()}
        return {
            f"{name}@{seed}": Variant(method, self.sampling, seed)
            for name, method in self.methods.items()
            for seed in range(self.num_seeds)
        }


@dataclass(frozen=True)
class Variant:
    """A method, and how its tokens are chosen; every example has random numbers of its own, the same in every run."""

    method: Method | None
    sampling: Sampling = Sampling()
    seed: int = 0

    def job(self, example: Example, max_new_tokens: int) -> Job:
        """What is asked for an example."""
        sampling = replace(self.sampling, seed=self.seed).of(example.key)
        return Job(example.prompt, example.instructions, self.method, max_new_tokens, sampling)


@dataclass(frozen=True)
class Progress:
    """How far a run is."""

    method: str
    done: int
    total: int
    """As many records as there can be: some conversations may end before their last turn."""
    num_tokens: int
    """Tokens generated since the run was started."""


def run(lm: LM, plan: Plan, *, resume: bool = False, report: Callable[[Progress], None] = lambda _: None) -> None:
    """Answers and judges whatever is missing. Raises `OptionError` where `plan.out` holds another run, or any run
    without `resume`, where another process writes to it, and where the disk is full."""
    facts = facts_of(lm)
    checked(facts, plan, resume=resume)  # before the folder is made
    with journal.alone(plan.folder):
        begin(facts, plan, resume=resume)
        _answer(lm, plan, facts.hardware, report)


def _answer(lm: LM, plan: Plan, hardware: str, report: Callable[[Progress], None]) -> None:
    marked = with_spans(plan)
    count = 0
    for name, variant in plan.variants.items():
        done = opened(plan, name)
        if done is None:
            continue
        part, clock = part_of(plan, name), clock_of(plan, name, hardware)
        with journal.kept(part), part.open("a", encoding="utf-8") as file:
            for record in all_turns(lm, marked, variant, done, clock):
                count += int(record.get("generated_tokens", 0))
                file.write(journal.line(record))
                file.flush()
                clock.keep()
                report(progress(plan, name, done, count))
        finish(plan, name, done)


def opened(plan: Plan, name: str) -> Records | None:
    """The variant's records so far, its journal freed of what a kill cut short; None where it is finished."""
    part = part_of(plan, name)
    with journal.kept(part):
        if (plan.folder / file_name(name)).exists():
            part.unlink(missing_ok=True)  # a kill may have come between the one and the other
            return None
        done = read_records(part)
        journal.rewrite(part, done.values())
    return done


def forget_failed(plan: Plan) -> int:
    """Takes the rows that failed out of the records of every variant, so that they are asked again; how many there
    were."""
    count = 0
    for name in plan.variants:
        final, part = plan.folder / file_name(name), part_of(plan, name)
        records = read_records(final if final.exists() else part)
        kept = {key: record for key, record in records.items() if "failed" not in record}
        if len(kept) < len(records):
            count += len(records) - len(kept)
            with journal.kept(part):
                journal.rewrite(part, kept.values())
                final.unlink(missing_ok=True)
    return count


def finish(plan: Plan, name: str, done: Records) -> None:
    """Puts the variant's records, of which none may be missing, into the order of the data."""
    part = part_of(plan, name)
    with journal.kept(part):
        journal.rewrite(plan.folder / file_name(name), _in_data_order(plan, done))
        part.unlink()


def part_of(plan: Plan, name: str) -> Path:
    """The variant's journal."""
    return plan.folder / file_name(name, is_finished=False)


def clock_of(plan: Plan, name: str, hardware: str) -> times.Stopwatch:
    """The variant's time on such a machine."""
    return times.Stopwatch(plan.folder / times.FILE, name, hardware)


def progress(plan: Plan, name: str, done: Records, num_tokens: int) -> Progress:
    """How far the variant is."""
    return Progress(name, len(done), len(plan.examples) * plan.task.num_turns, num_tokens)


def with_spans(plan: Plan) -> Plan:
    """The plan with its examples marked as it says, those of later turns too."""
    if plan.spans == "given":
        return plan

    def follow(example: Example, text: str) -> Example | None:
        follower = plan.task.follow(example, text)
        return None if follower is None else replace(follower, instructions=plan.spans)

    found = [replace(example, instructions=plan.spans) for example in plan.examples]
    return replace(plan, examples=found, task=replace(plan.task, follow=follow))


def all_turns(lm: LM, plan: Plan, variant: Variant, done: Records, clock: times.Clock) -> Iterator[dict[str, Any]]:
    """The records that `done` lacks, each put there too: all first turns, then those that their answers lead to."""
    turn = list(plan.examples)
    while turn:
        for record in _answers(lm, plan, variant, [example for example in turn if example.key not in done], clock):
            done[record["key"]] = record
            yield record
        followers = []
        for example in turn:
            before = done[example.key]
            follower = plan.task.follow(example, before["text"])
            if follower is None:
                continue
            followers.append(follower)
            if "failed" in before and follower.key not in done:
                reason = f"the turn before it failed: {before['failed']}"
                done[follower.key] = _failed(plan.task, follower, reason)
                yield done[follower.key]
        turn = followers


def is_complete(plan: Plan, first: Example, done: Records) -> bool:
    """Whether `done` has the example's record, and those of all its further turns."""
    example: Example | None = first
    while example is not None:
        if example.key not in done:
            return False
        example = plan.task.follow(example, done[example.key]["text"])
    return True


def _in_data_order(plan: Plan, done: Records) -> Iterator[dict[str, Any]]:
    """Every example's record, and behind it those of its further turns."""
    for first in plan.examples:
        example: Example | None = first
        while example is not None:
            yield done[example.key]
            example = plan.task.follow(example, done[example.key]["text"])


def _answers(
    lm: LM, plan: Plan, variant: Variant, examples: Sequence[Example], clock: times.Clock
) -> Iterator[dict[str, Any]]:
    """A record for each example, as they are done; first those that cannot be asked at all."""
    jobs: list[Job] = []
    asked: list[Example] = []
    for example in examples:
        try:
            job = _job(lm, plan, variant, example)
            lm.request(job)
        except HeedfulError as error:
            yield _failed(plan.task, example, str(error))
            continue
        asked.append(example)
        jobs.append(job)
    for index, result in lm.results(jobs, num_slots=plan.batch, watch=clock.timed):
        if isinstance(result, HeedfulError):
            yield _failed(plan.task, asked[index], str(result))
        else:
            yield _record(lm, plan.task, asked[index], result)


def _job(lm: LM, plan: Plan, variant: Variant, example: Example) -> Job:
    """As many new tokens as the task allows and the context leaves."""
    limit = min(example.max_new_tokens, plan.max_new_tokens or example.max_new_tokens)
    if lm.engine.context_length is not None:
        left = lm.engine.context_length - len(lm.encode(example.prompt, example.instructions).token_ids)
        limit = max(1, min(limit, left))
    return variant.job(example, limit)


def _record(lm: LM, task: Task, example: Example, result: Result) -> dict[str, Any]:
    encoded = lm.encode(example.prompt, example.instructions)
    stats, raw = result.stats, score(lm.engine, encoded.token_ids, result.token_ids)
    try:
        verdict = task.judge(example, result.text)
    except Exception as error:  # a checker's own fault must not end a run of hours; it is reported, and scores nothing
        return _failed(task, example, f"the judge failed: {error!r}", result.text)
    by_layers: dict[str, int] = {}
    for step in result.trace.steps:
        if step.decision == "accepted":
            by_layers[str(step.layers)] = by_layers.get(str(step.layers), 0) + 1
    return {
        "key": example.key,
        "prompt": encoded.text,
        "spans": [list(span) for span in encoded.char_spans],
        "text": result.text,
        "finish_reason": result.finish_reason,
        "points": {name: list(pair) for name, pair in verdict.points.items()},
        "why": verdict.why,
        "prompt_tokens": stats.prompt_tokens,
        "generated_tokens": stats.generated_tokens,
        "steps": {
            "gated": stats.gated,
            "accepted": stats.accepted,
            "rejected": stats.rejected,
            "changed": stats.changed,
            "accepted_by_layers": by_layers,
        },
        "ranking": list(result.trace.ranking),
        "perplexity": raw.perplexity,
        **textstats.describe(result.text),
    }


def _failed(task: Task, example: Example, reason: str, text: str = "") -> dict[str, Any]:
    """A row that could not be asked or judged: named, counted as failed, and worth no point in any metric."""
    try:
        points = {name: [0.0, most] for name, (_, most) in task.judge(example, "").points.items()}
    except Exception:  # the row itself cannot be judged; a conversation counts once, with its last turn
        points = {task.primary: [0.0, 1.0]} if task.follow(example, "") is None else {}
    return {"key": example.key, "failed": reason, "text": text, "points": points}


def header(facts: Facts, plan: Plan) -> dict[str, Any]:
    """What is needed to read a run, and to know whether another may go on with it."""
    settings = {
        "task": plan.task.name,
        "primary": plan.task.primary,
        **facts.settings(),
        "methods": {name: described(variant.method) for name, variant in plan.variants.items()},
        "sampling": asdict(plan.sampling),
        "spans": plan.spans,
        "keys": [example.key for example in plan.examples],
        "prompts": {example.key: _digest(example) for example in plan.examples},
        "left_out": dict(plan.left_out),
        "max_new_tokens": plan.max_new_tokens,
        "batch": plan.batch,
    }
    # Beside the settings, not among them: it changes no answer, and runs begun without it may be gone on with.
    return {**provenance.header(settings, facts.hardware), "chosen_on": dict(plan.chosen_on)}


def _digest(example: Example) -> str:
    """Tells whether two runs asked the same: a key may be no more than a line's number."""
    text = json.dumps([example.prompt, example.columns], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def begin(facts: Facts, plan: Plan, *, resume: bool = False) -> None:
    """Writes the header, that of a run which is gone on with and of this one in one. Raises as `checked` does; keeps no
    other process out (`journal.alone` does)."""
    path = plan.folder / "run.json"
    wanted = checked(facts, plan, resume=resume)
    with journal.kept(path):
        journal.write(path, json.dumps(wanted, indent=1) + "\n")


def checked(facts: Facts, plan: Plan, *, resume: bool = False) -> dict[str, Any]:
    """The header that `begin` would write. Raises `OptionError` where a method does not fit the model, a judge is
    missing, or the folder holds another run; methods may be added to one."""
    plan.task.check()
    for method in plan.methods.values():
        facts.check(method)
    path, wanted = plan.folder / "run.json", header(facts, plan)
    if not path.exists():
        return wanted
    if not resume:
        raise OptionError(f"{path.parent} holds a run already: go on with it by --resume, or choose another --out")
    found = read_header(path)
    chosen_on = {**found.get("chosen_on", {}), **wanted["chosen_on"]}
    return {**provenance.merged(path, found, json.loads(json.dumps(wanted))), "chosen_on": chosen_on}


def read_header(path: Path) -> dict[str, Any]:
    """A run's header. Raises `OptionError` where it cannot be read."""
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found["settings"]["methods"].items()
        for name in ("task", "primary", "keys", "model", "left_out"):
            found["settings"][name]
        for name in ("commit", "hardware", "started"):
            found[name]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise OptionError(f"{path} is no run's header: {error!r}") from error
    return found


def read_records(path: Path) -> dict[str, dict[str, Any]]:
    """The records of a method's file by key."""
    return {entry["key"]: entry for entry in journal.entries(path) if "key" in entry and "points" in entry}


def read_answers(folder: Path, header: Mapping[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
    """The records of a run, finished or not, by method and key; a method without any is left out."""
    found = {}
    for name in header["settings"]["methods"]:
        final, part = folder / file_name(name), folder / file_name(name, is_finished=False)
        found[name] = read_records(final if final.exists() else part)
    return {name: answers for name, answers in found.items() if answers}
