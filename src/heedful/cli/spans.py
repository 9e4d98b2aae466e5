"""`heedful spans`: the prompt as the model reads it, with the steered tokens shown and their positions."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from heedful.cli import options
from heedful.detection import Detection
from heedful.errors import SpanError
from heedful.models import resolve
from heedful.prompt import EncodedPrompt, encode, way_of


def spans(
    prompt: options.Prompt = None,
    file: options.PromptFile = None,
    system: options.System = None,
    instruction: options.Marked = None,
    auto: options.Auto = False,
    model: options.Model = None,
    raw: options.Raw = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show which tokens of PROMPT would be steered."""
    messages = options.read_prompt(prompt, file, system)
    instructions = options.instructions(instruction, auto)
    way = way_of(instructions)
    if way is not None and way.by_model:
        encoded = options.load_quietly(model, "cpu", "auto").encode(messages, instructions, raw=raw)
    else:
        encoded = encode(_tokenizer(model), messages, instructions, raw=raw)
    if not encoded.span and encoded.detection is None:
        raise SpanError("nothing in the prompt is marked: wrap it in <heed>…</heed> or name it with --instruction")
    if as_json:
        print(json.dumps(_as_dict(encoded), ensure_ascii=False))
        return
    _show(encoded)


def _tokenizer(model: str | None) -> Any:
    from transformers import AutoTokenizer

    from heedful.errors import ModelError

    source = resolve(model)
    try:
        return AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot load the tokenizer of {str(source)!r}: {str(error).splitlines()[0]}") from error


def _as_dict(encoded: EncodedPrompt) -> dict[str, Any]:
    return {
        "text": encoded.text,
        "num_tokens": len(encoded.token_ids),
        "positions": list(encoded.span.positions),
        "weights": list(encoded.span.weights),
        "char_spans": [list(span) for span in encoded.char_spans],
        **({} if encoded.detection is None else {"detection": encoded.detection.to_dict()}),
    }


def _show(encoded: EncodedPrompt) -> None:
    console = Console(highlight=False)
    text = Text(encoded.text)
    for position in encoded.span.positions:
        text.stylize("black on yellow" if position % 2 else "black on bright_yellow", *encoded.offsets[position])
    console.print(text, soft_wrap=True)
    console.print()
    for run in _runs(encoded.span.positions):
        start, end = encoded.offsets[run[0]][0], encoded.offsets[run[-1]][1]
        weight = encoded.span.weights[encoded.span.positions.index(run[0])]
        where = f"positions {run[0]}–{run[-1]}" if len(run) > 1 else f"position {run[0]}"
        line = f"{where} ({len(run)} tokens), weight {weight:g}: "
        console.print(Text(line, "bold") + Text(repr(encoded.text[start:end])), soft_wrap=True)
    if encoded.detection is not None:
        _explain(console, encoded.detection)
    console.print(f"{len(encoded.span.positions)} of {len(encoded.token_ids)} tokens are steered", style="dim")


def _explain(console: Console, detection: Detection) -> None:
    """What was found, how surely, and why."""
    console.print()
    for item in detection.found:
        words = ", ".join(item.why)
        console.print(Text(f"{item.score:.2f} ", "bold") + Text(f"{item.text!r}: {words}"), soft_wrap=True)
    if detection.note:
        console.print(Text(detection.note, "yellow"), soft_wrap=True)


def _runs(positions: tuple[int, ...]) -> list[list[int]]:
    runs: list[list[int]] = []
    for position in positions:
        if runs and runs[-1][-1] == position - 1:
            runs[-1].append(position)
        else:
            runs.append([position])
    return runs
