"""Options that several commands share, and the reading of prompts. Defaults come from the library, never from here."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from heedful.errors import OptionError, PromptError
from heedful.methods import NAMES
from heedful.prompt import AUTO, ROLES, Instructions, Messages, is_auto

Prompt = Annotated[str | None, typer.Argument(help="The prompt; '-' reads standard input.", show_default=False)]
PromptFile = Annotated[Path | None, typer.Option("--file", "-f", help="Read the prompt from a file.")]
System = Annotated[str | None, typer.Option(help="A system message before the prompt.")]
Marked = Annotated[
    list[str] | None,
    typer.Option("--instruction", "-i", help="Exact text to heed, or a role such as 'system'. May be repeated."),
]
Auto = Annotated[
    bool,
    typer.Option(
        "--auto",
        help="Find the instructions; -i auto:user in the user's messages only, -i auto:0.8 with another least score, "
        "-i auto:model by the model.",
    ),
]
Model = Annotated[str | None, typer.Option("--model", "-m", help="Hub id or folder; else the built-in model.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1 …")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
METHOD = f"One of {', '.join(NAMES)}; with options, as in spotlight:target=0.3 or pasta:profile=heads.json."
SettingsFile = Annotated[Path | None, typer.Option("--settings", help="Method of a file made by `heedful tune`.")]
Limit = Annotated[int | None, typer.Option(help="Only the first rows of each file.")]
Shard = Annotated[str | None, typer.Option(help="i/n: every n-th row, from the i-th on (from 0).")]
MetricName = Annotated[
    str | None, typer.Option(help="json, regex, regex:PATTERN, exact, ifeval, ifeval-prompt or ifbench.")
]
TaskName = Annotated[
    str | None,
    typer.Option("--task", help="In place of --metric: rows, marks and score of this task of `heedful eval`."),
]
NewTokens = Annotated[int | None, typer.Option("--max-new-tokens", "-n", help="At most this many.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Raw = Annotated[bool, typer.Option("--raw", help="The prompt as plain text, without the chat template.")]

RayAddress = Annotated[
    str | None, typer.Option("--ray", help="A Ray cluster: host:port, auto, or local for one on this machine.")
]
Replicas = Annotated[int, typer.Option(help="With --ray: how many workers load the model; a GPU each with cuda.")]
Cpus = Annotated[
    float | None, typer.Option(help="With --ray: CPUs, and threads, of each replica; else one, or less if few.")
]


def metric_name(metric: str | None, task: str | None) -> str:
    """What answers are scored by. Raises `OptionError` unless exactly one of the two is given."""
    if (metric is None) == (task is None):
        raise OptionError("say what answers are scored by: --metric, or --task with rows of that task; one of them")
    return str(metric) if task is None else f"task:{task}"


def tell_left_out(console: Any, what: str, failed: Mapping[str, str]) -> None:
    """One line a reason: the first line of the data that it holds for, and how many more."""
    places: dict[str, list[str]] = {}
    for where, why in failed.items():
        places.setdefault(why, []).append(where)
    for why, found in places.items():
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        console.print(f"{what}: left out: {found[0]}{more}: {why}", style="yellow", markup=False)


def tell_cost(console: Any, search: Any, max_new_tokens: int, batch: int) -> None:
    """What a `Tuner` or `Profiler` costs: answers and tokens before the first of them, minutes once some are there."""
    count = search.num_answers
    console.print(
        f"{count} answers of at most {max_new_tokens} tokens to generate: at most {count * max_new_tokens:,} tokens"
    )
    each = search.seconds_each(batch)
    if each:
        console.print(
            f"about {each * search.num_answers / 60:.0f} min, by the first {count - search.num_answers} answers"
        )


def read_prompt(prompt: str | None, file: Path | None, system: str | None) -> Messages:
    """The prompt from argument, file or standard input. Raises `PromptError` where there is none or more than one."""
    if (prompt is None) == (file is None):
        raise PromptError("give the prompt as an argument, with --file, or '-' for standard input: exactly one of them")
    try:
        if file is not None:
            text = file.read_text(encoding="utf-8")
        else:
            text = sys.stdin.read() if prompt == "-" else str(prompt)
    except (OSError, UnicodeDecodeError) as error:
        raise PromptError(f"cannot read the prompt: {error}") from error
    if system is None:
        return text
    return [{"role": "system", "content": system}, {"role": "user", "content": text}]


def instructions(marked: list[str] | None, auto: bool = False) -> Instructions:
    """One role, or a way to find them, or a list of exact texts, or nothing. Raises `OptionError` for two at once."""
    if auto and marked:
        raise OptionError("--auto finds the instructions and -i names them; give one of them")
    if not marked:
        return AUTO if auto else None
    return marked[0] if len(marked) == 1 and (marked[0] in ROLES or is_auto(marked[0])) else list(marked)


def spelled(method: str, settings: Path | None) -> str:
    """The method as `parse_method` reads it: that of the settings file where one is given."""
    return method if settings is None else f"@{settings}"


def needs_ray(ray: str | None, replicas: int, cpus: float | None) -> None:
    """Raises `OptionError` where options of a cluster come without one."""
    if ray is None and (replicas != 1 or cpus is not None):
        raise OptionError("--replicas and --cpus are for a Ray cluster: name it with --ray")


def load_quietly(model: str | None, device: str, dtype: str) -> Any:
    """The model; a mistake in the other options is better said before it is loaded."""
    from heedful.generate import load

    return load(model, device=device, dtype=dtype)  # type: ignore[arg-type]


def tell(result: Any) -> None:
    """Says on standard error what the result of found instructions has to say."""
    if result.detection is not None and result.detection.note:
        print(f"heedful: {result.detection.note}", file=sys.stderr)
