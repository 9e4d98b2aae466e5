"""`heedful eval` on a Ray cluster: whole conversations go to the replicas, their records come back to one journal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from heedful import journal
from heedful.batch import Local
from heedful.errors import OptionError
from heedful.eval import run, times
from heedful.eval.run import Plan, Progress, Records
from heedful.eval.tasks import Example
from heedful.ray.pool import BATCHES, Lost, Pool

Asked = tuple[str, Sequence[Example], Records]
"""A variant's name, conversations that it is to have, and the records that there are of them."""
Told = tuple[str, Records, times.Time]
"""A variant's name, records that are new, and the time that they took."""


def answer(
    pool: Pool, plan: Plan, *, resume: bool = False, report: Callable[[Progress], None] = lambda _: None
) -> None:
    """Answers and judges whatever is missing, as `heedful.eval.run.run` does. Raises what that raises, and
    `OptionError` where pieces were lost; what came back of the others is kept."""
    run.checked(pool.facts, plan, resume=resume)
    with journal.alone(plan.folder):
        run.begin(pool.facts, plan, resume=resume)
        _answer(pool, plan, report)


def _answer(pool: Pool, plan: Plan, report: Callable[[Progress], None]) -> None:
    done = {name: found for name in plan.variants if (found := run.opened(plan, name)) is not None}
    clocks = {name: run.clock_of(plan, name, pool.facts.hardware) for name in done}
    lost: list[str] = []
    count = 0
    # Rows of the data, settings and places stay here: a worker is told only what is asked of it.
    bare = replace(plan, examples=(), left_out={})
    for _, told in pool.results(partial(_records, bare), _pieces(pool, plan, done)):
        if isinstance(told, Lost):
            lost.append(told.why)
            continue
        name, records, spent = told
        part = run.part_of(plan, name)
        with journal.kept(part):
            journal.append(part, records.values())
            clocks[name].time += spent
            clocks[name].keep()
        done[name] |= records
        count += spent.tokens
        report(run.progress(plan, name, done[name], count))
    if lost:
        raise OptionError(f"{len(lost)} pieces of the run came to nothing ({lost[0]}); go on with --resume")
    for name, records in done.items():
        run.finish(plan, name, records)


def _pieces(pool: Pool, plan: Plan, done: dict[str, Records]) -> list[Asked]:
    """What is missing, a variant at a time, in pieces small enough that every replica gets some."""
    found: list[Asked] = []
    for name, records in done.items():
        missing = [example for example in plan.examples if not run.is_complete(plan, example, records)]
        size = max(1, min(BATCHES * plan.batch, -(-len(missing) // pool.replicas)))
        for begin in range(0, len(missing), size):
            examples = missing[begin : begin + size]
            found.append((name, examples, _of(plan, examples, records)))
    return found


def _of(plan: Plan, examples: Sequence[Example], records: Records) -> Records:
    """The records that there are of these conversations."""
    found: Records = {}
    for first in examples:
        example: Example | None = first
        while example is not None and example.key in records:
            found[example.key] = records[example.key]
            example = plan.task.follow(example, records[example.key]["text"])
    return found


def _records(plan: Plan, model: Local, asked: Asked) -> Told:
    """On a replica: the records that are missing of some conversations, in the order in which they came."""
    name, examples, had = asked
    plan.task.check()
    clock, done = times.Clock(), dict(had)
    marked = run.with_spans(replace(plan, examples=examples))
    new = {record["key"]: record for record in run.all_turns(model.lm, marked, plan.variants[name], done, clock)}
    return name, new, clock.time
