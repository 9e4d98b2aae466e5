"""Writes what runs say: scores with intervals, paired differences and figures, as Markdown, as a page, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from heedful.errors import OptionError
from heedful.eval import figures, judged, page, seen, tables
from heedful.eval.figures import Drawn
from heedful.eval.paired import BASELINE, LEVEL
from heedful.eval.runs import DEFAULT, Comparison, Entry, Run, short_commit
from heedful.eval.tables import escape

NOISE = (
    "p: McNemar's exact test of fixed against broken prompts, corrected by Holm over the rows of the table. Bold: the "
    f"bootstrap 95 % interval excludes 0, p < {LEVEL}, and both point the same way. All else lies inside the noise."
)

PARTS = (
    "The scores above are means over the parts of the task that have rows, weighted by what a perfect answer to each "
    "earns; intervals resample prompts within each part, and differences are weighted alike. A refusal: what an answer "
    "that only declines scores by these rules."
)


def write(folder: Path, found: Sequence[Comparison]) -> Path:
    """Writes `report.md`, `report.html`, `figures/` and `summary.json`; gives the first one's path.

    A figure, or a page, that cannot be made loses nothing else. Raises `OptionError` where nothing can be written.
    """
    path = folder / "report.md"
    drawn = [figures.draw(comparison, folder) for comparison in found]
    text = markdown(found, drawn)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "summary.json").write_text(json.dumps(summary(found), indent=1) + "\n", encoding="utf-8")
        path.write_text(text, encoding="utf-8")
        svgs = {each.path: each.svg for of_task in drawn for each in of_task.values() if each.svg}
        title = f"Heedful: {', '.join(comparison.task for comparison in found)}"
        (folder / "report.html").write_text(page.page(title, text, svgs), encoding="utf-8")
    except OSError as error:
        raise OptionError(f"cannot write {path}: {error}") from error
    return path


def markdown(found: Sequence[Comparison], drawn: Sequence[Mapping[str, Drawn]] = ()) -> str:
    """The report; `drawn` are each comparison's figures by name."""
    return "\n\n".join(_section(each, drawn[at] if drawn else {}) for at, each in enumerate(found)) + "\n"


def summary(found: Sequence[Comparison]) -> dict[str, Mapping[str, Mapping[str, float]]]:
    """Mean of every metric, by task and entry."""
    return {
        each.task: {label: {m: mean.value for m, mean in means.items()} for label, means in each.scores.items()}
        for each in found
    }


def _section(comparison: Comparison, drawn: Mapping[str, Drawn]) -> str:
    parts = [
        f"## {escape(comparison.task)}",
        *_heads(comparison),
        *_warnings(comparison),
        "### Scores",
        "In percent of the points, with bootstrap 95 % intervals over prompts; one without width says only that all "
        "prompts scored alike.",
        tables.scores(comparison),
        _figure(drawn, "accuracy"),
        *_titled("Over parts of the task", PARTS, tables.parts(comparison)),
        *_differences(comparison),
        *judged.section({escape(label): entry.records for label, entry in comparison.entries.items()}, tables.table),
        *_titled("Over seeds", "Mean ± standard deviation over seeds.", tables.seeds(comparison)),
        *_strengths(drawn),
        *_steering(comparison, drawn),
        "### Answers",
        "Medians over answers: perplexity under the raw model, length in words, shares of different words, word pairs "
        "and triples, share of four-word runs seen before. Cut off: answers that ran into the limit of tokens.",
        tables.texts(comparison),
        *_titled(
            "Speed",
            "Of one process: tokens over wall seconds of generating. Prefill and the batch that empties at the end "
            "count, judging does not. Methods ran one after the other: what else the machine did is in these numbers. "
            "Sum over shards: their speeds added up, which is that of all of them if they ran side by side.",
            tables.speed(comparison),
            _figure(drawn, "speed"),
        ),
    ]
    return "\n\n".join(part for part in parts if part)


def _heads(comparison: Comparison) -> list[str]:
    if len(comparison.runs) == 1:
        return [_head(comparison.runs[0])]
    heads = [
        f"- **{escape(label)}**: {_head(run)}" for label, run in zip(comparison.labels, comparison.runs, strict=True)
    ]
    told = "Different runs of one task, side by side. What they differ in:"
    return ["\n".join(heads), told, tables.runs(comparison)]


def _head(run: Run) -> str:
    settings = run.settings
    limit = f", at most {settings['max_new_tokens']} new tokens" if settings["max_new_tokens"] else ""
    counts = ", ".join(f"{name} {len(records)}" for name, records in run.records.items()) or "none"
    named = settings["model"]["name"] or "unnamed model"
    told = f"{named}, {str(settings['dtype']).removeprefix('torch.')}{limit}, {run.header['hardware']}"
    return escape(f"{told}, commit {short_commit(run)}, {run.header['started']}. Prompts answered: {counts}.")


def _warnings(comparison: Comparison) -> list[str]:
    """What a reader must know before the first number: what is missing, left out, or failed."""
    told = []
    entries = comparison.entries.values()
    short = [f"{e.label} {len(e.records)} of {e.num_asked}" for e in entries if len(e.records) < e.num_asked]
    if short:
        told.append(
            f"**Not finished**: {escape(', '.join(short))} prompts. Scores of different prompts do not compare."
        )
    if alone := [entry.label for entry in comparison.unpaired]:
        told.append(
            f"**Not compared with `{BASELINE}`**: {escape(', '.join(alone))}. There is no `{BASELINE}` of the same run "
            "on the same prompts; runs of other methods on the same prompts are joined where settings, commit, "
            "versions and batch are the same."
        )
    for entry in entries:
        if entry.chosen_on is not None:
            told += [f"**{escape(one)}**" for one in seen.told(entry.label, entry.chosen_on)]
    left_out = {where: why for run in comparison.runs for where, why in run.settings["left_out"].items()}
    if left_out:
        where, why = next(iter(left_out.items()))
        told.append(f"**{len(left_out)} lines of the data were left out**; the first, {escape(where)}: {escape(why)}")
    return [*told, *_failures(list(entries))]


def _failures(entries: Sequence[Entry]) -> list[str]:
    failing = [entry for entry in entries if entry.failed]
    if not failing:
        return []
    first = next(record for record in failing[0].records.values() if "failed" in record)
    where = escape(f"{failing[0].label}, {first['key']}: {first['failed']}")
    counts = escape(", ".join(f"{entry.label} {len(entry.failed)} of {len(entry.records)}" for entry in failing))
    return [
        f"**{sum(len(entry.failed) for entry in failing)} rows failed** ({counts}): they could not be asked, answered "
        "or judged. They stay in the means as no point; paired comparisons leave their prompts out, and call a "
        f"difference better or worse only if it holds with them as no point too. The first, {where}"
    ]


def _differences(comparison: Comparison) -> list[str]:
    parts = []
    for title, pairs in (
        (f"Against `{BASELINE}`, prompt by prompt", comparison.against_none),
        (f"Against `{DEFAULT}`, prompt by prompt", comparison.against_default),
        ("Against the same method of the first run, prompt by prompt", comparison.against_first),
    ):
        others = tables.other_differences(pairs, [m for m in comparison.metrics if m != comparison.primary])
        parts += _titled(title, NOISE, tables.differences(pairs, comparison.primary))
        parts += ["The other metrics' differences, each column corrected by itself:", others] if others else []
    return parts


def _strengths(drawn: Mapping[str, Drawn]) -> list[str]:
    told = "Dashed: without steering. A perplexity far above it tells of answers that the model would not have written."
    return _titled("Against strength", told, *(_figure(drawn, name) for name in ("strength", "multiplier")))


def _steering(comparison: Comparison, drawn: Mapping[str, Drawn]) -> list[str]:
    """What the gates did, and where the layers rank."""
    decided = _titled(
        "Steps",
        "Methods with a gate; one without steers every step.",
        tables.steps(comparison),
        *(_figure(drawn, name) for name in ("decisions", "acceptance")),
    )
    told = "Each prompt's ranking orders the layers by how much steering there changes."
    return [*decided, *_titled("Layer sensitivity", told, _figure(drawn, "sensitivity"))]


def _titled(title: str, told: str, *parts: str) -> list[str]:
    """A heading, a line on what is shown, and what is shown; nothing where there is nothing to show."""
    return [f"### {title}", told, *parts] if any(parts) else []


def _figure(drawn: Mapping[str, Drawn], name: str) -> str:
    if name not in drawn:
        return ""
    found = drawn[name]
    if found.error:
        return f"*No figure of {escape(found.alt)}: {escape(found.error)}.*"
    return f"![{escape(found.alt)}]({found.path})"
