"""Runs lm-eval's tasks on the model `heedful`: finds the tasks, has lm-eval evaluate them, gives back its tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import filter as matching
from pathlib import Path
from typing import Any

from heedful.errors import DataError, HeedfulError, OptionError
from heedful.harness import register


@dataclass(frozen=True)
class Plan:
    """What lm-eval is asked for: its own words, as its `simple_evaluate` has them.

    `tasks`: names, patterns or YAML files. `out`: a folder for its result files. `raw`: no chat template.
    """

    tasks: Sequence[str]
    model_args: dict[str, Any]
    batch_size: int = 16
    include_path: Path | None = None
    limit: int | None = None
    num_fewshot: int | None = None
    gen_kwargs: str | None = None
    system_instruction: str | None = None
    raw: bool = False
    out: Path | None = None


def run(plan: Plan) -> str:
    """Evaluates, and returns lm-eval's table of the results.

    Raises `OptionError` for a task that lm-eval does not know or that does not generate, and without the eval extra;
    `DataError` for a task that cannot be loaded.
    """
    register()
    from lm_eval import simple_evaluate
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.utils import make_table

    if plan.out is not None:
        _make(plan.out)
    manager, names = _known(plan)
    tracker = EvaluationTracker(output_path=str(plan.out)) if plan.out is not None else None
    results = simple_evaluate(
        model="heedful",
        model_args=plan.model_args,
        tasks=_loaded(manager, names),
        task_manager=manager,
        batch_size=plan.batch_size,
        limit=plan.limit,
        num_fewshot=plan.num_fewshot,
        gen_kwargs=plan.gen_kwargs,
        system_instruction=plan.system_instruction,
        apply_chat_template=not plan.raw,
        fewshot_as_multiturn=not plan.raw,
        evaluation_tracker=tracker,
        log_samples=tracker is not None,
    )
    if tracker is not None:
        samples = results.pop("samples")
        tracker.save_results_aggregated(results=results, samples=samples)
        for task, rows in samples.items():
            tracker.save_results_samples(task_name=task, samples=rows)
    tables = [make_table(results)] + ([make_table(results, "groups")] if results.get("groups") else [])
    return "\n".join(tables)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionError(f"cannot write to {folder}: {error}") from error


def _loaded(manager: Any, names: list[str]) -> list[Any]:
    """The tasks and groups that were asked for, loaded; all of them generate."""
    try:
        loaded = manager.load(names)
    except HeedfulError:
        raise
    except Exception as error:  # a task's own code, its data set, the hub
        first = next(iter(str(error).strip().splitlines()), "")
        raise DataError(f"lm-eval cannot load {', '.join(names)}: {type(error).__name__}: {first}") from error
    for name, task in loaded["tasks"].items():
        if task.OUTPUT_TYPE != "generate_until":
            raise OptionError(f"task {name} asks for {task.OUTPUT_TYPE}, which steering does not define; take others")
    groups = [loaded["groups"][name] for name in names if name in loaded["groups"]]
    inside = {id(task) for group in groups for task in group.get_all_tasks()}
    return [*groups, *(task for task in loaded["tasks"].values() if id(task) not in inside)]


def _known(plan: Plan) -> tuple[Any, list[str]]:
    """lm-eval's task manager, and the names that `plan.tasks` means in it.

    lm-eval's own thousands of tasks are looked through only where the included ones are not enough: that takes a while.
    """
    from lm_eval.tasks import TaskManager

    include = None if plan.include_path is None else str(plan.include_path)
    if include is not None and not Path(include).is_dir():
        raise OptionError(f"no folder of tasks at {include}")
    if include is not None:
        local = TaskManager(include_path=include, include_defaults=False)
        if all(task in local.all_subtasks for task in plan.tasks):
            return local, list(plan.tasks)
    manager = TaskManager(include_path=include)
    names: list[str] = []
    for task in plan.tasks:
        found = [task] if task.endswith((".yaml", ".yml")) and Path(task).is_file() else []
        found = found or matching(manager.all_tasks, task)
        if not found:
            close = ", ".join(get_close_matches(task, manager.all_tasks)) or "none; lm-eval ls tasks lists all"
            raise OptionError(f"lm-eval knows no task {task!r}; close names: {close}")
        names += found
    return manager, names
