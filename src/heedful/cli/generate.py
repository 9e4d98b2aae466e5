"""`heedful generate`: answers one prompt; streams text, or prints a JSON object, or both answers side by side."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from heedful.cli import options
from heedful.errors import OptionError
from heedful.generate import Event, Job, Result
from heedful.methods import parse_method
from heedful.sampling import Sampling
from heedful.trace import Trace


def generate(
    prompt: options.Prompt = None,
    file: options.PromptFile = None,
    system: options.System = None,
    instruction: options.Marked = None,
    auto: options.Auto = False,
    method: Annotated[str, typer.Option(help=options.METHOD)] = "directer",
    settings: options.SettingsFile = None,
    strength: Annotated[float | None, typer.Option(help="How strongly to steer (α).")] = None,
    threshold: Annotated[float | None, typer.Option(help="How plausible a steered token must be (β).")] = None,
    ranking: Annotated[str | None, typer.Option(help="paper, released, reversed, random[:SEED] or 3,1,2.")] = None,
    compat: Annotated[str | None, typer.Option(help="'released': the released code's quirks.")] = None,
    max_new_tokens: options.NewTokens = None,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_k: Annotated[int, typer.Option(help="0 keeps all.")] = 0,
    top_p: Annotated[float, typer.Option(help="1 keeps all.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="For sampling.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Ends the answer. May be repeated.")] = None,
    model: options.Model = None,
    device: options.Device = "cpu",
    dtype: options.Dtype = "auto",
    raw: options.Raw = False,
    compare: Annotated[bool, typer.Option("--compare", help="Plain and steered side by side.")] = False,
    as_json: options.Json = False,
    trace: Annotated[Path | None, typer.Option(help="Write the trace as JSON to this file.")] = None,
) -> None:
    """Answer PROMPT. Mark what must be heeded with <heed>…</heed>, or name it with --instruction."""
    given = {"strength": strength, "threshold": threshold, "ranking": _ranking(ranking), "compat": compat}
    job = Job(
        prompt=options.read_prompt(prompt, file, system),
        instructions=options.instructions(instruction, auto),
        method=parse_method(options.spelled(method, settings), given),
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature, top_k, top_p, seed),
        stop=tuple(stop or ()),
        raw=raw,
    )
    if compare and job.method is None:
        raise OptionError("--compare shows plain decoding beside a method; choose one")
    lm = options.load_quietly(model, device, dtype)
    result = _compare(lm, job, as_json) if compare else _stream(lm, job, as_json)
    if trace is not None:
        _write(trace, result.trace)


def _ranking(text: str | None) -> str | tuple[int, ...] | None:
    parts = (text or "").split(",")
    is_list = all(part.strip().isascii() and part.strip().isdecimal() for part in parts)
    return tuple(map(int, parts)) if is_list else text


def _write(path: Path, trace: Trace) -> None:
    try:
        path.write_text(trace.to_json(indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise OptionError(f"cannot write the trace: {error}") from error


def _stream(lm: Any, job: Job, as_json: bool) -> Result:
    """Shows the answer as it comes; after Ctrl-C what there is stays."""
    events: list[Event] = []
    try:
        for event in lm.stream_batch([job]):
            events.append(event)
            if not as_json:
                print(event.text, end="", flush=True)
    except KeyboardInterrupt:
        print(json.dumps(_partial(events)) if as_json else "")
        raise
    result = events[-1].result
    assert result is not None
    options.tell(result)
    print(json.dumps(result.to_dict(), ensure_ascii=False) if as_json else "")
    if not as_json and sys.stderr.isatty():
        Console(stderr=True, highlight=False).print(_summary(result), style="dim")
    return result


def _partial(events: Sequence[Event]) -> dict[str, Any]:
    ids = [event.step.token_id for event in events]
    return {"text": "".join(event.text for event in events), "token_ids": ids, "finish_reason": "interrupted"}


def _summary(result: Result) -> str:
    stats = result.stats
    return (
        f"{stats.generated_tokens} tokens in {stats.seconds:.1f} s · gate open at {stats.gated}, "
        f"accepted {stats.accepted}, rejected {stats.rejected}, changed {stats.changed} · "
        f"{stats.forward_passes} forward passes"
    )


def _compare(lm: Any, job: Job, as_json: bool) -> Result:
    """Shows both answers; returns the steered one."""
    from dataclasses import replace

    plain: Result
    steered: Result
    plain, steered = lm.generate_batch([replace(job, method=None), job])
    options.tell(steered)
    if as_json:
        print(json.dumps({"plain": plain.to_dict(), "steered": steered.to_dict()}, ensure_ascii=False))
        return steered
    left, right = _coloured(lm.tokenizer, plain, steered)
    table = Table(expand=True, show_lines=False)
    table.add_column("plain", ratio=1)
    table.add_column(steered.trace.method["name"], ratio=1)
    table.add_row(left, right)
    console = Console(highlight=False)
    console.print(table)
    console.print(_summary(steered), style="dim")
    return steered


def _coloured(tokenizer: Any, plain: Result, steered: Result) -> tuple[Text, Text]:
    """Both answers, the tokens that only one of them has in colour."""
    left, right = Text(), Text()
    matcher = SequenceMatcher(None, plain.token_ids, steered.token_ids, autojunk=False)
    for kind, a, b, c, d in matcher.get_opcodes():
        left.append(tokenizer.decode(plain.token_ids[a:b], skip_special_tokens=True), "" if kind == "equal" else "red")
        right.append(
            tokenizer.decode(steered.token_ids[c:d], skip_special_tokens=True), "" if kind == "equal" else "green"
        )
    return left, right
