"""Judged runs: which verdicts a run needs, the file that they are kept in, and what they say.

`judged.jsonl` lies beside the methods' files and is the cache as well: one line a judgement, found again by the hash of
model and messages. A line counts only for the very answers that it was made for.
"""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from heedful import journal
from heedful.checks import choice
from heedful.errors import OptionError
from heedful.eval import criteria
from heedful.eval.judge import CONCURRENCY, Judge, Outcome, Question
from heedful.eval.paired import BASELINE, LEVEL, baseline_of, holm, mcnemar, mean
from heedful.eval.run import read_answers, read_header

FILE = "judged.jsonl"
ORDERS = ("first", "second")
FIELDS = {"id", "judge", "criterion", "method", "key", "order", "answers"}

Record: TypeAlias = Mapping[str, Any]
Records: TypeAlias = Mapping[str, Mapping[str, Record]]
"""A run's records, by method and key."""
Line: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Judgement:
    """One verdict that a run needs. `order`: where the method's answer stands in a pair, None where it stands alone.

    `answers` is a hash of the texts that are judged. `known` says what needs no judge: that two answers are the same,
    or that there is no answer; else `question` is to be asked.
    """

    criterion: str
    method: str
    key: str
    order: str | None
    answers: str
    question: Question | None = None
    known: Line = field(default_factory=dict)

    def line(self, judge: str, found: Line) -> Line:
        """This judgement as a line of the file."""
        return {
            "id": self.question.id(judge) if self.question else None,
            "judge": judge,
            "criterion": self.criterion,
            "method": self.method,
            "key": self.key,
            "order": self.order,
            "answers": self.answers,
            **found,
        }


def criteria_for(task: str, methods: Collection[str], asked: Sequence[str] | None = None) -> list[str]:
    """What a run can be judged by, or `asked`. Raises `OptionError` where that is nothing, or cannot be had."""
    can_compare = any(baseline_of(method, methods) is not None for method in methods)
    alone = [criteria.SINGLE[task]] if task in criteria.SINGLE else []
    if asked is None:
        asked = [*alone, *(criteria.PAIRWISE if can_compare else ())]
    for name in asked:
        choice("criterion", name, (*alone, *criteria.PAIRWISE))
        if name in criteria.PAIRWISE and not can_compare:
            raise OptionError(f"{name} compares methods with `{BASELINE}`: run {task} with it and with another method")
    if not asked:
        raise OptionError(f"nothing of {task} can be judged: run it with `{BASELINE}` and with another method")
    return list(dict.fromkeys(asked))


def judge_run(
    folder: Path,
    judge: Judge,
    asked: Sequence[str] | None = None,
    *,
    concurrency: int = CONCURRENCY,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Has whatever is not judged yet judged, each verdict written as it comes; `report(done, total)` counts questions.

    Failures of an earlier call are asked again. Raises `OptionError` where the file holds another judge's verdicts or
    cannot be written, or another process writes to the folder, `JudgeError` where the judge cannot be had.
    """
    with journal.alone(folder):
        _judge_run(folder, judge, asked, concurrency, report)


def _judge_run(
    folder: Path,
    judge: Judge,
    asked: Sequence[str] | None,
    concurrency: int,
    report: Callable[[int, int], None],
) -> None:
    header, path = read_header(folder / "run.json"), folder / FILE
    records = read_answers(folder, header)
    names = criteria_for(header["settings"]["task"], records, asked)
    wanted = list(_wanted(records, names))
    others, cache = _begin(path, judge.model, names)
    by_id: dict[str, list[Judgement]] = {}
    for one in wanted:
        if one.question is not None:
            by_id.setdefault(one.question.id(judge.model), []).append(one)
    missing = [(key, same) for key, same in by_id.items() if key not in cache]
    count = len(by_id) - len(missing)
    report(count, len(by_id))
    if missing:
        judge.check()
    with journal.kept(path):
        journal.rewrite(path, [*others, *_lines(wanted, judge.model, cache)])
        with path.open("a", encoding="utf-8") as file:

            def done(index: int, outcome: Outcome) -> None:
                nonlocal count
                key, same = missing[index]
                cache[key] = _found(outcome)
                file.write("".join(journal.line(one.line(judge.model, cache[key])) for one in same))
                file.flush()
                count += 1
                report(count, len(by_id))

            judge.ask([same[0].question for _, same in missing if same[0].question], concurrency, done)
        journal.rewrite(path, [*others, *_lines(wanted, judge.model, cache)])


def _begin(path: Path, model: str, names: Collection[str]) -> tuple[list[Line], dict[str, Line]]:
    """The lines of other criteria, and what is known of this one's questions, by id; failures are not."""
    lines = _read(path)
    strange = [line["judge"] for line in lines if line["judge"] != model]
    if strange:
        raise OptionError(f"{path} holds verdicts of {strange[0]}: use that judge, or move the file away")
    others = [line for line in lines if line["criterion"] not in names]
    known = {
        line["id"]: {name: value for name, value in line.items() if name not in FIELDS}
        for line in lines
        if line["id"] is not None and "verdict" in line
    }
    return others, known


def _read(path: Path) -> list[Line]:
    with journal.kept(path):
        return [entry for entry in journal.entries(path) if entry.keys() >= FIELDS]


def _lines(wanted: Sequence[Judgement], judge: str, cache: Mapping[str, Line]) -> Iterator[Line]:
    """The file's lines, in the order of criteria, methods and prompts, of all that is known."""
    for one in wanted:
        found = one.known if one.question is None else cache.get(one.question.id(judge))
        if found is not None:
            yield one.line(judge, found)


def _found(outcome: Outcome) -> Line:
    if outcome.verdict is None:
        return {"reply": outcome.reply, "failed": outcome.why}
    return {
        "reply": outcome.reply,
        "verdict": outcome.verdict,
        "why": outcome.why,
        "served_by": outcome.served_by,
    }


def _wanted(records: Records, names: Sequence[str]) -> Iterator[Judgement]:
    for name in names:
        for method, answers in records.items():
            for key, record in answers.items():
                if name not in criteria.PAIRWISE:
                    yield _alone(name, method, key, record)
                    continue
                baseline = records.get(baseline_of(method, records) or "", {}).get(key)
                if baseline is not None and _is_same_prompt(record, baseline):
                    for order in ORDERS:
                        yield _pair(name, method, key, order, record, baseline)


def _is_same_prompt(record: Record, baseline: Record) -> bool:
    """Whether two answers can be compared: a conversation's later prompts hold each method's own answers before.

    That of a failed row is not kept, and its judgement fails whatever it was.
    """
    prompts = {one.get("prompt") for one in (record, baseline) if "failed" not in one}
    return len(prompts) < 2


def _alone(name: str, method: str, key: str, record: Record) -> Judgement:
    texts = _digest(record)
    if "failed" in record:
        return Judgement(name, method, key, None, texts, known=_no_answer(record))
    facts = record["why"]
    question = criteria.corrected(record["prompt"], facts["knowledge"], facts["modified knowledge"], record["text"])
    return Judgement(name, method, key, None, texts, question)


def _pair(name: str, method: str, key: str, order: str, record: Record, baseline: Record) -> Judgement:
    texts = _digest(record, baseline)
    for one in (record, baseline):
        if "failed" in one:
            return Judgement(name, method, key, order, texts, known=_no_answer(one))
    if record["text"] == baseline["text"]:
        same = {"reply": None, "verdict": "tie", "why": "the two answers are the same"}
        return Judgement(name, method, key, order, texts, known=same)
    prompt = record["prompt"]
    constraints = [prompt[int(span[0]) : int(span[1])] for span in record["spans"]]
    pair = [record["text"], baseline["text"]]
    question = criteria.pairwise(name, prompt, constraints, *(pair if order == "first" else pair[::-1]))
    return Judgement(name, method, key, order, texts, question)


def _no_answer(record: Record) -> Line:
    return {"reply": None, "failed": f"there is no answer to judge: {record['failed']}"}


def _digest(*answers: Record) -> str:
    """A hash of prompts and answers."""
    texts = [[record.get("prompt"), record.get("text")] for record in answers]
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()


def merged(folder: Path, records: Records) -> dict[str, dict[str, dict[str, Any]]]:
    """The records with what the judge said of them: points of its criteria, and under `judged` how they came about.

    A failed judgement gives no points, nor does a pair of which one order is missing.
    """
    lines = {(line["criterion"], line["method"], line["key"], line["order"]): line for line in _read(folder / FILE)}
    return {
        method: {key: _with_verdicts(records, method, key, lines) for key in answers}
        for method, answers in records.items()
    }


def _with_verdicts(records: Records, method: str, key: str, lines: Mapping[Any, Line]) -> dict[str, Any]:
    record = dict(records[method][key])
    baseline = records.get(baseline_of(method, records) or "", {}).get(key)
    for name in criteria.CRITERIA if lines else ():
        is_pair = name in criteria.PAIRWISE
        if is_pair and baseline is not None and not _is_same_prompt(record, baseline):
            continue
        orders = ORDERS if is_pair else (None,)
        digest = _digest(record, baseline) if is_pair and baseline else _digest(record)
        found = [line for order in orders if (line := lines.get((name, method, key, order))) is not None]
        if len(found) == len(orders) and all(line["answers"] == digest for line in found):
            summed = _summary(found)
            record["judged"] = {**record.get("judged", {}), name: summed}
            if "failed" not in summed:
                record["points"] = {**record["points"], name: [summed["score"], 1.0]}
    return record


def _summary(lines: Sequence[Line]) -> dict[str, Any]:
    """One prompt's verdict by one criterion, of both orders where there are two; `score` from 0 to 1."""
    judge = lines[0]["judge"]
    for line in lines:
        if "verdict" not in line:
            return {"judge": judge, "failed": line.get("failed")}
    scores = [_score(line["verdict"], line["order"]) for line in lines]
    is_asked = any(line["reply"] is not None for line in lines)
    return {"judge": judge, "score": statistics.mean(scores), "is_asked": is_asked, "agree": len(set(scores)) == 1}


def _score(verdict: str, order: str | None) -> float:
    if verdict == "tie":
        return 0.5
    return float(verdict == (order or "yes"))


def section(records: Records, table: Callable[[Sequence[str], Sequence[Sequence[str]]], str]) -> list[str]:
    """The report's paragraphs on what a model judged, none where nothing is to be judged; `table` writes Markdown."""
    said = [one for answers in records.values() for r in answers.values() for one in r.get("judged", {}).values()]
    unjudged = sum("failed" not in r and not r["points"] for answers in records.values() for r in answers.values())
    found = []
    if said:
        judges = ", ".join(sorted({one["judge"] for one in said}))
        places = [(name, method) for name in criteria.CRITERIA for method in records]
        counted = [(name, method, told) for name, method in places if (told := _told(records[method], name))]
        p_values = iter(holm([_p_value(_scores(told)) for name, _, told in counted if name in criteria.PAIRWISE]))
        rows = [
            _row(method, name, told, len(records[method]), next(p_values) if name in criteria.PAIRWISE else None)
            for name, method, told in counted
        ]
        head = ["method", "criterion", "mean", "won / tied / lost", "orders disagree", "verdict", "failed", "not asked"]
        found.append(
            f"Judged by {judges}. Pairs are against `{BASELINE}`, asked in both orders, a win 100, a tie 50: 50 is as "
            "good. Where the orders disagree, position decided, not the answer. Failed and unasked rows are in no "
            f"mean; later turns of a conversation are asked about only where both methods' prompts are the "
            "same. Better or worse: the interval excludes 50, and a sign test of won against lost gives p < {LEVEL}, "
            "corrected by Holm over the rows."
            "\n\n" + table(head, rows)
        )
    if unjudged:
        found.append(f"**{unjudged} answers have no points yet**: a model judges them, see `heedful eval judge`.")
    return found


def _told(answers: Mapping[str, Record], name: str) -> list[Mapping[str, Any]]:
    """What the judge said of a method's answers by one criterion."""
    return [found for record in answers.values() if (found := record.get("judged", {}).get(name)) is not None]


def _scores(told: Sequence[Mapping[str, Any]]) -> list[float]:
    return [float(one["score"]) for one in told if "score" in one]


def _p_value(scores: Sequence[float]) -> float:
    return mcnemar(sum(score > 0.5 for score in scores), sum(score < 0.5 for score in scores))


def _row(method: str, name: str, told: Sequence[Mapping[str, Any]], count: int, p_value: float | None) -> list[str]:
    """A method's line of the table; `p_value`, corrected, of a pairwise criterion."""
    scores = _scores(told)
    asked = [one for one in told if one.get("is_asked")]
    cells = ["–", "–", "–", "–"]
    if scores:
        found = mean({str(i): (score, 1.0) for i, score in enumerate(scores)})
        won, lost = sum(s > 0.5 for s in scores), sum(s < 0.5 for s in scores)
        cells[0] = f"{100 * found.value:.1f} [{100 * found.low:.1f}, {100 * found.high:.1f}]"
        cells[1] = f"{won} / {len(scores) - won - lost} / {lost}"
        if p_value is not None:
            is_noise = found.low <= 0.5 <= found.high or p_value >= LEVEL or (won - lost) * (found.value - 0.5) <= 0
            cells[3] = "inside the noise" if is_noise else "better" if won > lost else "worse"
    if asked and name in criteria.PAIRWISE:
        cells[2] = f"{100 * sum(not one['agree'] for one in asked) / len(asked):.1f} %"
    return [method, name, *cells, str(sum("failed" in one for one in told)), str(count - len(told))]
