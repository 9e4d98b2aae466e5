"""Runs a task under several methods: every answer is written as it comes, and a run that was stopped goes on.

While a method runs, its answers stand in a journal in the order in which they came; a finished method's file holds them
in the order of the data, so that a run that was stopped and resumed ends in the same bytes as one that was not.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
import transformers

from heedful.errors import HeedfulError, OptionError
from heedful.eval import textstats
from heedful.eval.tasks import Example, Task
from heedful.generate import LM, Job, Result
from heedful.recipe import Method
from heedful.scoring import score


@dataclass(frozen=True)
class Plan:
    """What is run on which examples, where it is written, and how many answers are made at a time."""

    task: Task
    examples: Sequence[Example]
    methods: Mapping[str, Method | None]
    out: Path
    batch: int = 32
    max_new_tokens: int | None = None


@dataclass(frozen=True)
class Progress:
    """How far a run is."""

    method: str
    done: int
    total: int
    num_tokens: int
    """Tokens generated since the run was started."""


def run(lm: LM, plan: Plan, *, resume: bool = False, report: Callable[[Progress], None] = lambda _: None) -> None:
    """Answers and judges whatever is missing. Raises `OptionError` where `plan.out` holds another run, or any run
    without `resume`, and where the disk is full."""
    plan.task.check()
    folder = plan.out / plan.task.name
    _begin(folder / "run.json", header(lm, plan), resume)
    count = 0
    for name, method in plan.methods.items():
        final, journal = folder / f"{file_name(name)}.jsonl", folder / f"{file_name(name)}.part.jsonl"
        if final.exists():
            continue
        done = read_journal(journal)
        missing = [example for example in plan.examples if example.key not in done]
        with _writable(journal):
            _rewrite(journal, done.values())
            with journal.open("a", encoding="utf-8") as file:
                for record in _answers(lm, plan, method, missing):
                    done[record["key"]] = record
                    count += int(record.get("generated_tokens", 0))
                    file.write(_line(record))
                    file.flush()
                    report(Progress(name, len(done), len(plan.examples), count))
            _rewrite(final, [done[example.key] for example in plan.examples])
            journal.unlink()


def _answers(lm: LM, plan: Plan, method: Method | None, examples: Sequence[Example]) -> Iterator[dict[str, Any]]:
    """A record for each example, as they are done; first those that cannot be asked at all."""
    jobs: list[Job] = []
    asked: list[Example] = []
    for example in examples:
        limit = min(example.max_new_tokens, plan.max_new_tokens or example.max_new_tokens)
        try:
            encoded = lm.encode(example.prompt, example.instructions)
            room = (lm.engine.context_length or 1 << 30) - len(encoded.token_ids)
            if room < 1:
                raise OptionError(f"the prompt has {len(encoded.token_ids)} tokens, the context is shorter")
            if method is not None and not encoded.span:
                raise OptionError("nothing in the prompt is marked")
        except HeedfulError as error:
            yield _failed(plan.task, example, str(error))
            continue
        asked.append(example)
        jobs.append(Job(example.prompt, example.instructions, method, min(limit, room)))
    for event in lm.stream_batch(jobs, num_slots=plan.batch) if jobs else ():
        if event.result is not None:
            yield _record(lm, plan.task, asked[event.index], event.result)


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
    """A row that could not be asked or judged: named, counted as failed, and worth no point."""
    return {"key": example.key, "failed": reason, "text": text, "points": {task.primary: [0.0, 1.0]}}


def header(lm: LM, plan: Plan) -> dict[str, Any]:
    """What is needed to read a run, and to know whether another may go on with it."""
    return {
        "settings": {
            "task": plan.task.name,
            "primary": plan.task.primary,
            "model": asdict(lm.engine.shape),
            "dtype": str(lm.model.dtype),
            "methods": {name: method.describe() if method else {"name": "none"} for name, method in sorted_(plan)},
            "keys": [example.key for example in plan.examples],
            "max_new_tokens": plan.max_new_tokens,
            "batch": plan.batch,
        },
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__, "heedful": _version()},
        "commit": _commit(),
        "hardware": f"{platform.machine()}, {torch.get_num_threads()} threads, {lm.engine.device.type}",
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def sorted_(plan: Plan) -> list[tuple[str, Method | None]]:
    """The methods by name."""
    return sorted(plan.methods.items(), key=lambda item: item[0])


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("heedful")
    except PackageNotFoundError:
        return "not installed"


def _commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _begin(path: Path, wanted: dict[str, Any], resume: bool) -> None:
    """Writes the header, or checks that the one that is there asks for the same; more methods may be added."""
    wanted = json.loads(json.dumps(wanted))
    if path.exists():
        if not resume:
            raise OptionError(f"{path.parent} holds a run already: go on with it by --resume, or choose another --out")
        found = read_header(path)
        for name, value in wanted["settings"].items():
            before = found["settings"].get(name)
            if name == "methods":
                value = {**before, **value} if all(value.get(k, v) == v for k, v in before.items()) else value
                wanted["settings"][name] = value
                before = {**before, **{k: v for k, v in value.items() if k not in before}}
            if before != value:
                raise OptionError(f"{path} was begun with another {name}: use the same, or choose another --out")
        wanted = {**found, "settings": wanted["settings"]}
    with _writable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _replace(path, json.dumps(wanted, indent=1) + "\n")


def read_header(path: Path) -> dict[str, Any]:
    """A run's header. Raises `OptionError` where it cannot be read."""
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found["settings"]["methods"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OptionError(f"{path} is no run's header: {error!r}") from error
    return found


def read_journal(path: Path) -> dict[str, dict[str, Any]]:
    """The records of a file by key; a line that a kill cut short is dropped."""
    found: dict[str, dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            record = json.loads(line)
            found[record["key"]] = record
        except (ValueError, KeyError, TypeError):
            continue
    return found


def file_name(method: str) -> str:
    """A method's spec as a file name."""
    return "".join(letter if letter.isalnum() or letter in "-_=.," else "+" for letter in method)


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"


def _rewrite(path: Path, records: Any) -> None:
    _replace(path, "".join(map(_line, records)))


def _replace(path: Path, text: str) -> None:
    """Writes `path` at once or not at all."""
    half = path.with_name(path.name + ".half")
    half.write_text(text, encoding="utf-8")
    os.replace(half, path)


class _writable:
    """Turns a full disk, or a folder that cannot be written, into one line."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if isinstance(error, OSError):
            raise OptionError(
                f"cannot write {self.path}: {error.strerror or error}; what is there is kept: go on with --resume"
            ) from error
