"""Reports: the numbers in figures and tables, what is called noise, which runs are shards, and text that stays text."""

import itertools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from heedful import journal
from heedful.cli import app
from heedful.errors import OptionError
from heedful.eval import charts, figures, page, paired, report, runs, tables, times
from heedful.eval.lifbench import SUBTASKS
from heedful.eval.run import file_name
from heedful.eval.runs import Comparison, Run
from heedful.provenance import both

pytest.importorskip("matplotlib")
GATE = {"threshold": 0.5, "strict": False}
METHODS: dict[str, dict[str, Any]] = {
    "none": {"name": "none"},
    "directer": {"name": "directer", "strength": 100.0, "threshold": 0.5},
    "static:strength=2": {"name": "static", "strength": 2.0, "gate": None},
    "static:strength=10": {"name": "static", "strength": 10.0, "gate": None},
    "instaboost-gated": {"name": "instaboost", "multiplier": 3.0, "gate": GATE},
}


def record(key: str, points: float, **more: Any) -> dict[str, Any]:
    """An answer of ten tokens: the gate open at five, four accepted."""
    steps = {"gated": 5, "accepted": 4, "rejected": 1, "changed": 2, "accepted_by_layers": {"4": 3, "1": 1}}
    plain: dict[str, Any] = {
        "key": key,
        "text": "x",
        "finish_reason": "length",
        "points": {"strict": [points, 1.0], "loose": [1.0, 2.0]},
        "generated_tokens": 10,
        "steps": steps,
        "ranking": [2, 0, 1, 3],
        "perplexity": 2.0,
        "words": 5.0,
        "distinct_2": 1.0,
        "repetition": 0.0,
    }
    return plain | more


def made(scores: dict[str, Sequence[float]], first: int = 0, commit: str = "abc", **settings: Any) -> Run:
    """A run whose methods scored `scores` on the prompts from `first` on."""
    keys = [str(first + at) for at in range(len(next(iter(scores.values()))))]
    header = {
        "settings": {
            "task": "made-up",
            "primary": "strict",
            "model": {"name": "Tiny", "num_layers": 4, "num_heads": 2},
            "dtype": "torch.float32",
            "methods": {name: METHODS.get(name, {"name": name}) for name in scores},
            "keys": keys,
            "prompts": {key: f"row {key}" for key in keys},
            "left_out": {},
            "max_new_tokens": None,
            "batch": 8,
        }
        | settings,
        "versions": {"torch": "2"},
        "commit": commit,
        "hardware": "cpu",
        "started": "2026-01-01T00:00:00+00:00",
    }
    records = {
        name: {key: record(key, had) for key, had in zip(keys, points, strict=False)} for name, points in scores.items()
    }
    spent = {name: {"cpu": times.Time(2.0, 10 * len(found))} for name, found in records.items()}
    return Run(header, {name: found for name, found in records.items() if found}, spent)


def only(*made_runs: Run) -> Comparison:
    (found,) = runs.gather(made_runs)
    return found


def lines(text: str, start: str) -> list[list[str]]:
    return [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith(f"| {start}")
    ]


HALF, MORE = [1.0, 0.0] * 20, [1.0, 1.0] * 10 + [1.0, 0.0] * 10


def test_accuracy_bars_are_the_means() -> None:
    found = charts.accuracy(only(made({"none": HALF, "directer": MORE})))
    assert found is not None
    assert found.labels == ["none", "directer"]
    assert list(found.series) == ["strict", "loose"]
    bar = found.series["strict"][1]
    assert bar is not None
    assert bar.value == 75.0
    assert bar.low is not None
    assert bar.high is not None
    assert bar.low < 75.0 < bar.high
    assert found.series["loose"][0] == charts.Bar(50.0, 50.0, 50.0)


def test_decisions_and_acceptance_are_shares_of_gated_methods_only() -> None:
    comparison = only(made({"none": HALF, "directer": MORE, "static:strength=2": HALF}))
    decided, accepted = charts.decisions(comparison), charts.acceptance(comparison)
    assert decided is not None
    assert accepted is not None
    assert decided.labels == accepted.labels == ["directer"]
    assert {name: shares[0] for name, shares in decided.parts.items()} == pytest.approx(
        {"accepted": 0.4, "rejected": 0.1, "skipped": 0.5}
    )
    assert accepted.parts == {"4 layers": [0.6], "1 layer": [0.2], "rejected": [0.2]}
    assert lines(tables.steps(comparison), "directer") == [["directer", "400", "50.0 %", "40.0 %", "10.0 %", "20.0 %"]]


def test_strengths_need_two_of_one_method() -> None:
    run = made({"none": HALF, "static:strength=10": HALF, "static:strength=2": MORE, "directer": MORE})
    found = charts.strengths(only(run), "strength")
    assert found is not None
    assert [panel.title for panel in found.panels] == ["strict", "perplexity"]
    score, perplexity = found.panels
    (curve,) = score.curves
    assert (curve.label, curve.strengths, [bar.value for bar in curve.bars]) == ("static", [2.0, 10.0], [75.0, 50.0])
    assert score.unsteered["none"].value == 50.0
    assert perplexity.curves[0].bars == [charts.Bar(2.0), charts.Bar(2.0)]
    assert charts.strengths(only(run), "multiplier") is None
    assert charts.strengths(only(made({"none": HALF, "directer": MORE})), "strength") is None


def test_judged_fidelity_joins_the_curve() -> None:
    run = made({"none": HALF, "static:strength=10": HALF, "static:strength=2": MORE})
    for name, fidelity in (("static:strength=2", 1.0), ("static:strength=10", 0.25)):
        for each in run.records[name].values():
            each["points"]["fidelity"] = [fidelity, 1.0]
    found = charts.strengths(only(run), "strength")
    assert found is not None
    assert [panel.title for panel in found.panels] == ["strict", "fidelity", "perplexity"]
    assert [bar.value for bar in found.panels[1].curves[0].bars] == [100.0, 25.0]


def test_sensitivity_counts_each_layer_at_each_rank() -> None:
    run = made({"none": [1.0] * 4, "directer": [1.0] * 4, "instaboost-gated": [0.0] * 4})
    for each in run.records["none"].values():
        each["ranking"] = [0, 1, 2, 3]  # the order of layers where nothing was ranked
    run.records["directer"]["0"]["ranking"] = [0, 2, 1, 3]
    first, second = charts.sensitivity(only(run))
    assert (first.label, first.num_prompts) == ("directer", 4)
    assert [row[0] for row in first.shares] == [0.25, 0.0, 0.75, 0.0]
    assert [row[1] for row in first.shares] == [0.75, 0.0, 0.25, 0.0]
    assert [row[0] for row in second.shares] == [0.0, 0.0, 1.0, 0.0]
    run.records["directer"]["0"]["ranking"] = [2, 0, 1, 3]
    (both,) = charts.sensitivity(only(run))
    assert both.label == "directer, instaboost-gated"


def test_methods_that_rank_alike_share_a_map(monkeypatch: pytest.MonkeyPatch) -> None:
    methods = [f"directer:threshold={threshold}" for threshold in (0.1, 0.2, 0.3, 0.4)]
    for at, method in enumerate(methods, start=1):
        monkeypatch.setitem(METHODS, method, {**METHODS["directer"], "threshold": at / 10})
    run = made({"none": [1.0], **{method: [1.0] for method in methods}})
    for method in methods:
        run.records[method]["0"]["ranking"] = [0, 2, 1, 3]
    (found,) = charts.sensitivity(only(run))
    assert found.label == "directer:threshold=0.1, and 3 more that rank alike"


def test_many_strengths_have_numbers_for_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    strengths = [1.5, 2.0, 3.0, 5.0, 10.0, 100.0, 1000.0, 10_000.0, 100_000.0]
    for strength in strengths:
        described = {"name": "static", "strength": strength, "gate": None}
        monkeypatch.setitem(METHODS, f"static:strength={strength:g}", described)
    run = made({"none": HALF, **{f"static:strength={strength:g}": HALF for strength in strengths}})
    found = charts.strengths(only(run), "strength")
    assert found is not None
    figure = figures.strengths(found)
    figure.canvas.draw()
    told = [label.get_text() for label in figure.axes[-1].get_xticklabels()]
    assert {"10", "1,000", "100,000"} <= set(told)
    assert not any("$" in text for text in told)


def test_speed_names_batch_and_hardware(tmp_path: Path) -> None:
    comparison = only(made({"none": HALF}))
    found = charts.speed(comparison)
    assert found is not None
    assert found.series == {"cpu": [charts.Bar(200.0)]}
    assert "batch 8\ncpu" in found.unit
    assert lines(tables.speed(comparison), "none") == [["none", "200.0", "400", "2", "8", "cpu"]]


def lifbench_run(scores: dict[str, dict[str, Sequence[float]]]) -> Run:
    """A run of LIFBench: by method and subtask, what the rows scored."""
    subtasks = next(iter(scores.values()))
    keys = [f"{subtask}:{at}" for subtask, found in subtasks.items() for at in range(len(found))]
    flat = {method: [one for found in of.values() for one in found] for method, of in scores.items()}
    run = made(flat, task="lifbench", primary="score", keys=keys, prompts={})
    for method, records in run.records.items():
        told = {}
        for key, (had, _) in zip(keys, (each["points"]["strict"] for each in records.values()), strict=True):
            subtask = key.partition(":")[0]
            points = {name: [had, 1.0] for name in ("score", SUBTASKS[subtask].group, subtask, "fidelity")}
            told[key] = record(key, had) | {"points": points}
        run.records[method] = told
    return run


def test_lifbench_averages_subtasks_by_their_points() -> None:
    """By hand: single 4 points, multi 10, repeat 14; ten rows of the first do not outweigh two of the others."""
    single, multi, repeat = "list-single_query_id", "list-multi_query_id", "onedoc-repeat"
    plain = {single: [1.0] * 10, multi: [0.0, 0.5], repeat: [0.2]}
    better = {single: [1.0] * 9 + [0.0], multi: [0.5, 1.0], repeat: [0.2]}
    found = only(lifbench_run({"none": plain, "directer": better}))
    means = {name: mean.value for name, mean in found.scores["none"].items()}
    assert means["list"] == pytest.approx((4 * 1.0 + 10 * 0.25) / 14)
    assert means["score"] == pytest.approx((4 * 1.0 + 10 * 0.25 + 14 * 0.2) / 28)
    assert means[multi] == 0.25
    assert means["fidelity"] == pytest.approx((10 * 1.0 + 0.5 + 0.2) / 13)  # a judge's, no score of LIFBench
    (versus,) = tables.versus(found.against_none, "score")
    assert versus.found.difference.value == pytest.approx((4 * -0.1 + 10 * 0.5) / 28)
    assert (versus.found.fixed, versus.found.broken) == (2, 1)
    rows = lines(tables.parts(found), "")
    assert rows[2][0].startswith("none, unweighted")
    assert rows[2][1].startswith(f"{100 * (1 + 0.25 + 0.2) / 3:.1f} [")
    assert [row[1] for row in rows[-2:]] == [f"{100 * (10 * 0.1 + 14 * 0.117) / 28:.1f}", f"{100 * 0.217 / 3:.1f}"]
    text = report.markdown([found])
    assert "### Over parts of the task" in text
    assert text.count("a refusal") == 2
    assert report.summary([found])["lifbench"]["none"]["score"] == means["score"]


def test_lifbench_intervals_draw_within_subtasks() -> None:
    """Where every subtask's rows scored alike, no draw can change a mean, though the subtasks differ."""
    plain = {"list-single_query_id": [1.0] * 10, "onedoc-qa": [0.0] * 10}
    found = only(lifbench_run({"none": plain})).scores["none"]["score"]
    assert (found.low, found.value, found.high) == pytest.approx((4 / 9, 4 / 9, 4 / 9))
    two = {"list-single_query_id": [1.0, 0.0] * 20, "list-offset_query_id": [1.0, 0.0] * 20}
    apart = only(lifbench_run({"none": two})).scores["none"]
    # Of two parts that are drawn apart the mean varies less, by 1 / sqrt(2).
    widths = [apart[name].high - apart[name].low for name in ("score", "list-single_query_id")]
    assert widths[0] / widths[1] == pytest.approx(2**-0.5, abs=0.05)


def test_what_a_refusal_scores_of_all_subtasks_is_told_by_the_rubric() -> None:
    one = {subtask: [0.5] for subtask in SUBTASKS}
    assert lines(tables.parts(only(lifbench_run({"none": one}))), "*a refusal*, weighted")[0][1] == "8.4"


def test_speed_of_shards_is_told_for_one_process_and_for_all() -> None:
    """400 tokens in 2 seconds and 200 in 2: 150 a process, 300 side by side; a method of one part has no sum."""
    found = only(made({"none": HALF}), made({"none": HALF[:20], "directer": HALF[:20]}, 40))
    text = tables.speed(found)
    assert lines(text, "method")[0][:4] == ["method", "tokens/s", "sum over shards", "tokens"]
    assert lines(text, "none") == [["none", "150.0", "300.0 over 2", "600", "4", "8", "cpu"]]
    assert lines(text, "directer") == [["directer", "100.0", "–", "200", "2", "8", "cpu"]]
    three = only(*(made({"none": HALF[:20]}, first) for first in (0, 20, 40)))
    assert lines(tables.speed(three), "none")[0][1:3] == ["100.0", "300.0 over 3"]
    bars = charts.speed(three)
    assert bars is not None
    assert "of one process" in bars.unit


def test_times_add_up_over_sessions_and_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(100))
    monkeypatch.setattr(times.time, "perf_counter", lambda: float(next(now)))
    path = tmp_path / times.FILE
    for session, hardware in ((1, "a"), (2, "a"), (3, "b")):
        clock = times.Stopwatch(path, "none", hardware)
        for _ in clock.timed("xyz"):
            next(now)  # what is done with an event is not waited for
        clock.keep()
        assert sum(spent.tokens for spent in times.read(path)["none"].values()) == 3 * session
    assert times.read(path) == {"none": {"a": times.Time(6.0, 6), "b": times.Time(3.0, 3)}}
    path.write_text("{")
    assert times.read(path) == {}


def test_holm_by_hand() -> None:
    assert paired.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert paired.holm([0.9, 0.6]) == [1.0, 1.0]
    assert paired.holm([]) == []


def fixing(count: int, broken: int = 0) -> list[float]:
    """Against 40 prompts of which none was right but the last 5: `count` fixed, `broken` broken."""
    return [1.0] * count + [0.0] * (35 - count) + [0.0] * broken + [1.0] * (5 - broken)


def test_nothing_inside_the_noise_is_bold() -> None:
    comparison = only(made({"none": fixing(0), "directer": fixing(3), "strong": fixing(12)}))
    weak, strong = tables.versus(comparison.against_none, "strict")
    assert weak.is_noise
    assert weak.p_value == pytest.approx(2 / 2**3)
    assert not strong.is_noise
    rows = {row[0]: row for row in lines(tables.differences(comparison.against_none, "strict"), "")}
    assert "**" not in "".join(rows["directer"])
    assert rows["directer"][-1] == "inside the noise"
    assert rows["strong"][1].startswith("**+30.0 [")
    assert rows["strong"][2:] == ["40", "12", "0", "0.001", "**better**"]
    (worse,) = lines(tables.differences([pair[::-1] for pair in comparison.against_none[1:]], "strict"), "none")
    assert worse[-1] == "**worse**"


def test_many_methods_raise_the_bar() -> None:
    """Six fixed and none broken: p = 1/32 alone, and noise among four methods."""
    alone = only(made({"none": fixing(0), "a": fixing(6)}))
    assert not tables.versus(alone.against_none, "strict")[0].is_noise
    beside = only(made({"none": fixing(0), **{name: fixing(6) for name in "abcd"}}))
    found = tables.versus(beside.against_none, "strict")
    assert [each.p_value for each in found] == pytest.approx([4 / 32] * 4)
    assert not any(each.found.is_noise for each in found)
    assert all(each.is_noise for each in found)
    text = report.markdown([beside])
    assert "corrected by Holm" in text
    assert "**better**" not in text


def test_shards_are_one_run() -> None:
    first, second = made({"none": HALF[:20]}), made({"none": HALF[20:]}, first=20, batch=4, commit="def")
    found = only(first, second)
    assert list(found.entries) == ["none"]
    assert len(found.entries["none"].records) == 40
    assert found.entries["none"].num_asked == 40
    assert found.runs[0].times == {"none": {"cpu": times.Time(4.0, 400)}}
    assert "commit abc; def" in report.markdown([found])
    assert "Not finished" not in report.markdown([found])


def test_other_methods_on_the_same_prompts_are_one_run_at_one_commit_only() -> None:
    assert list(only(made({"none": HALF}), made({"directer": MORE})).entries) == ["none", "directer"]
    apart = only(made({"none": HALF}), made({"directer": MORE}, commit="def"))
    assert list(apart.entries) == ["none · commit abc", "directer · commit def"]


def test_shards_and_methods_are_one_run_in_any_order() -> None:
    """Two methods on two shards, a third on the same shards later: one run, whichever folder is named first."""
    first = [made({"none": HALF[:20], "directer": MORE[:20]}), made({"none": HALF[20:], "directer": MORE[20:]}, 20)]
    later = [made({"spotlight": MORE[:20]}), made({"spotlight": MORE[20:]}, 20)]
    texts = set()
    for order in itertools.permutations([*first, *later]):
        found = only(*order)
        assert set(found.entries) == {"none", "directer", "spotlight"}
        assert all(len(entry.records) == 40 for entry in found.entries.values())
        assert {a.label for a, _ in found.against_none} == {"directer", "spotlight"}
        texts.add(report.markdown([found]))
    assert len(texts) == 1
    assert "Not compared" not in texts.pop()


def test_whole_run_takes_methods_whose_run_was_sharded() -> None:
    shards = [made({"none": HALF[:20]}), made({"none": HALF[20:]}, 20)]
    for order in itertools.permutations([*shards, made({"directer": MORE})]):
        assert list(only(*order).entries) == ["none", "directer"]


def test_shards_of_one_commit_belong_together() -> None:
    """A shard that was run at two commits joins the shard of its own."""
    old, new = made({"none": HALF[:20]}, commit="abc"), made({"none": MORE[:20]}, commit="def")
    for order in itertools.permutations([old, new, made({"none": MORE[20:]}, 20, commit="def")]):
        assert sorted(len(run.settings["keys"]) for run in only(*order).runs) == [20, 40]
        assert {run.header["commit"] for run in only(*order).runs} == {"abc", "def"}


def test_a_method_without_none_is_named() -> None:
    apart = only(made({"none": HALF, "directer": MORE}), made({"spotlight": MORE}, commit="def"))
    assert [entry.method for entry in apart.unpaired] == ["spotlight"]
    assert "**Not compared with `none`**: spotlight · commit def" in report.markdown([apart])
    run = made({"none": HALF, "directer": MORE})
    run.records["none"] = {key: run.records["none"][key] for key in ("0", "1")}
    run.records["directer"] = {key: run.records["directer"][key] for key in ("2", "3")}
    assert [entry.method for entry in only(run).unpaired] == ["directer"]


def test_different_runs_are_compared() -> None:
    large = {"name": "Large", "num_layers": 4, "num_heads": 2}
    found = only(
        made({"none": HALF, "directer": MORE}), made({"none": MORE, "directer": [1.0] * 40}, model=large, commit="def")
    )
    assert list(found.entries) == ["none · Tiny", "directer · Tiny", "none · Large", "directer · Large"]
    assert found.differences["commit"] == ["abc", "def"]
    assert "dtype" not in found.differences
    assert [(a.label, b.label) for a, b in found.against_none] == [
        ("directer · Tiny", "none · Tiny"),
        ("directer · Large", "none · Large"),
    ]
    assert [(a.label, b.label) for a, b in found.against_first] == [
        ("none · Large", "none · Tiny"),
        ("directer · Large", "directer · Tiny"),
    ]
    first, _ = tables.versus(found.against_first, "strict")
    assert (first.found.difference.value, first.found.fixed) == (0.25, 10)
    text = report.markdown([found])
    assert lines(text, "model") == [["model", "Tiny", "Large"]]
    assert "Against the same method of the first run" in text
    assert set(report.summary([found])["made-up"]) == set(found.entries)


def test_only_the_same_prompts_are_paired() -> None:
    other = {str(at): f"row {at}" if at < 10 else "another row" for at in range(20)}
    found = only(made({"none": HALF}), made({"none": MORE[:20]}, prompts=other))
    (each,) = tables.versus(found.against_first, "strict")
    assert each.found.difference.count == 10
    apart = only(made({"none": HALF}), made({"none": HALF}, prompts={}))
    assert tables.versus(apart.against_first, "strict") == []


def test_runs_that_nothing_tells_apart_are_numbered() -> None:
    assert list(only(made({"none": HALF}), made({"none": HALF})).entries) == ["none · run 1", "none · run 2"]


def test_seeds_are_paired_seed_by_seed_and_averaged() -> None:
    found = only(made({"none@1": HALF, "none@2": MORE, "directer@1": MORE, "directer@2": MORE, "x@y": HALF}))
    pairs = [(a.label, b.label) for a, b in found.against_none]
    assert pairs == [("directer@1", "none@1"), ("directer@2", "none@2")]
    assert lines(tables.seeds(found), "none") == [["none", "2", "62.5 ± 17.7", "50.0 ± 0.0"]]
    assert lines(tables.seeds(found), "x") == []


def test_unfinished_runs_say_so() -> None:
    text = report.markdown([only(made({"none": HALF, "directer": MORE[:7]}))])
    assert "**Not finished**: directer 7 of 40 prompts" in text
    row, *_ = lines(text.partition("### Against")[2], "directer")
    assert row[2] == "7"


def test_rows_that_failed_only(tmp_path: Path) -> None:
    run = made({"none": [0.0] * 3, "directer": [0.0] * 3})
    for name, records in run.records.items():
        failed = {"failed": "too long", "text": "", "points": {"strict": [0.0, 1.0]}}
        run.records[name] = {key: {"key": key, **failed} for key in records}
    found = only(Run(run.header, run.records))
    text = report.write(tmp_path, [found]).read_text()
    assert "**6 rows failed**" in text
    assert "No figure" not in text
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["made-up-accuracy.svg"]


def failing(run: Run, method: str, keys: Sequence[str]) -> Run:
    for key in keys:
        gone = {"key": key, "failed": "overflow", "text": "", "points": {"strict": [0.0, 1.0]}}
        run.records[method][key] = gone
    return run


def test_failures_are_neither_fixed_nor_broken() -> None:
    """Five of the baseline's right answers are failures of the method: told, in the mean, in no pair."""
    run = failing(made({"none": MORE, "directer": MORE}), "directer", [str(at) for at in range(5)])
    found = only(run)
    (each,) = tables.versus(found.against_none, "strict")
    assert (each.found.fixed, each.found.broken, each.num_failed) == (0, 0, 5)
    assert each.found.difference.count == 35
    assert found.scores["directer"]["strict"].value == pytest.approx(25 / 40)
    text = report.markdown([found])
    assert "**5 rows failed** (directer 5 of 40)" in text
    (score, versus, *_) = lines(text, "directer")
    assert score[-1] == "5"
    assert versus[2:] == ["35", "0", "0", "1.000", "5", "inside the noise"]
    assert "failed" not in lines(report.markdown([only(made({"none": MORE, "directer": MORE}))]), "method")[0]


def test_a_gain_that_failures_take_back_is_noise() -> None:
    """12 fixed and none broken among the answers, 20 failures where the baseline was right."""
    plain, ours = [0.0] * 12 + [1.0] * 28, [1.0] * 40
    gained = only(made({"none": plain, "directer": ours}))
    assert not tables.versus(gained.against_none, "strict")[0].is_noise
    lost = only(failing(made({"none": plain, "directer": ours}), "directer", [str(at) for at in range(12, 32)]))
    (each,) = tables.versus(lost.against_none, "strict")
    assert (each.found.fixed, each.found.broken) == (12, 0)
    assert not each.found.is_noise
    assert each.is_noise
    gone = failing(made({"none": plain, "directer": ours}), "directer", [str(at) for at in range(40)])
    assert [entry.method for entry in only(gone).unpaired] == ["directer"]


def test_figures_that_old_records_lack_are_gaps() -> None:
    run = made({"none": HALF, "directer": MORE})
    for each in run.records["directer"].values():
        each |= {"distinct_1": 0.5, "distinct_3": 0.75}
    head = lines(tables.texts(only(run)), "method")[0]
    rows = {row[0]: dict(zip(head, row, strict=True)) for row in lines(tables.texts(only(run)), "")}
    assert (rows["none"]["distinct_1"], rows["none"]["distinct_2"]) == ("–", "1")
    assert (rows["directer"]["distinct_1"], rows["directer"]["distinct_3"]) == ("0.5", "0.75")


def test_no_answers_at_all(tmp_path: Path) -> None:
    text = report.write(tmp_path, [only(made({"none": []}))]).read_text()
    assert "Prompts answered: none" in text
    assert not (tmp_path / "figures").exists()


NASTY = "<script>alert('a|b')</script> **x** [y](javascript:z) $\\frac{1}{0}$ __u__"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with every figure, of runs whose every text is hostile."""
    folder = tmp_path_factory.mktemp("report")
    model = {"name": NASTY, "num_layers": 4, "num_heads": 2}
    methods = {**METHODS, NASTY: {"name": NASTY, "multiplier": 2.0, "gate": GATE}}
    methods["instaboost"] = {"name": NASTY, "multiplier": 9.0, "gate": GATE}
    run = made(dict.fromkeys(methods, HALF), model=model, methods=methods, left_out={NASTY: NASTY})
    run.records[NASTY]["3"] = {"key": NASTY, "failed": NASTY, "text": NASTY, "points": {"strict": [0.0, 1.0]}}
    report.write(folder, [only(run)])
    return folder


def test_all_figures_are_files_and_in_the_page(written: Path) -> None:
    text, shown = (written / "report.md").read_text(), (written / "report.html").read_text()
    assert "No figure" not in text
    for name in figures.FIGURES:
        assert f"](figures/made-up-{name}.svg)" in text
        svg = (written / "figures" / f"made-up-{name}.svg").read_text()
        assert svg.startswith("<svg")
        assert figures.INK in svg
    assert shown.count("<svg") == len(figures.FIGURES)
    assert shown.count('role="img"') == len(figures.FIGURES)


def test_the_page_is_one_file_and_text_stays_text(written: Path) -> None:
    shown = (written / "report.html").read_text()
    assert "&lt;script&gt;alert('a|b')&lt;/script&gt; **x** [y](javascript:z) $\\frac{1}{0}$ __u__" in shown.replace(
        "&#x27;", "'"
    )
    assert not re.search(r"<script|<iframe|<link|@import|<img|<strong>x|<a ", shown)
    assert not re.search(r"""(?:src|href)=["'](?!#|data:)""", shown)
    assert figures.INK not in shown.partition("<body>")[2]
    assert "prefers-color-scheme: dark" in shown
    assert 'name="viewport"' in shown
    ids = re.findall(r'<g id="', shown)
    assert ids == []


def test_a_table_keeps_its_columns(written: Path) -> None:
    shown = (written / "report.html").read_text()
    for rows in re.findall(r"<table>(.*?)</table>", shown, flags=re.S):
        widths = {len(re.findall(r"<t[hd]", row)) for row in re.findall(r"<tr>(.*?)</tr>", rows, flags=re.S)}
        assert len(widths) == 1


def test_the_same_report_is_the_same_bytes(written: Path, tmp_path: Path) -> None:
    comparison = only(made({"none": HALF, "directer": MORE}))
    first, second = (figures.draw(comparison, tmp_path)["sensitivity"] for _ in range(2))
    assert first == second


def test_a_failed_figure_does_not_lose_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Any) -> None:
        raise ZeroDivisionError("no *room*")

    monkeypatch.setitem(figures.FIGURES, "accuracy", (charts.accuracy, broken, "scores"))
    report.write(tmp_path, [only(made({"none": HALF, "directer": MORE}))])
    text = (tmp_path / "report.md").read_text()
    assert r"*No figure of made-up: scores: no \*room\*.*" in text
    assert "](figures/made-up-decisions.svg)" in text
    assert "no *room*" in (tmp_path / "report.html").read_text()


def test_without_matplotlib_the_report_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    text = report.write(tmp_path, [only(made({"none": HALF}))]).read_text()
    assert "pip install 'heedful\\[eval\\]'" in text
    assert lines(text, "none")


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OptionError, match="cannot write"):
        report.write(tmp_path / "file", [only(made({"none": HALF}))])


def test_the_command_compares_and_draws_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for at, run in enumerate((made({"none": HALF}), made({"none": MORE}, commit="def"))):
        folder = tmp_path / str(at) / "made-up"
        journal.write(folder / "run.json", json.dumps(run.header))
        journal.rewrite(folder / file_name("none"), run.records["none"].values())
    command = ["eval", "report", str(tmp_path / "0"), str(tmp_path / "1"), str(tmp_path / "0" / ".." / "0")]
    app([*command, "--out", str(tmp_path / "new")], standalone_mode=False)
    assert "commit def" in capsys.readouterr().out
    text = (tmp_path / "new" / "report.md").read_text()
    assert lines(text, "none · commit def")
    assert "run 3" not in text
    assert (tmp_path / "new" / "figures" / "made-up-accuracy.svg").exists()
    assert "### Speed" not in text


def test_a_picture_that_is_not_ours_is_its_text() -> None:
    assert "<img" not in page.page("t", "![far](https://example.org/x.png)", {})


def test_a_page_obeys_no_html() -> None:
    assert "&lt;script&gt;" in page.page("<b>", "<script>x</script>", {})
    assert "<title>&lt;b&gt;</title>" in page.page("<b>", "", {})


def test_what_parts_were_made_with_is_named_once() -> None:
    assert both("a; b", "b; c") == both(both("a", "b"), both("b", "c")) == "a; b; c"
    assert both("a; b", "a; b") == "a; b"
    assert both(None, 32) == both(32, 32) == 32
