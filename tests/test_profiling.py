"""PASTA's profile: the right heads win, a killed run goes on, and nothing else can be mistaken for it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import heedful
from heedful import data, profiling
from heedful.cli import app
from heedful.errors import DataError, HeedfulError, OptionError
from heedful.metrics import metric, scored
from heedful.profiling import Profiler, Settings
from heedful.scorebook import Scorebook

ROWS = [
    {"prompt": "Say hello. <heed>Do not use commas.</heed>", "expected": "Hello!", "regex": "Hel+o"},
    {"prompt": "Count to three. <heed>Use no commas.</heed>", "expected": "1 2 3", "regex": "3"},
]


@pytest.fixture
def lm(lm: heedful.LM, monkeypatch: pytest.MonkeyPatch) -> heedful.LM:
    """The default model, of which only the first layer's heads are profiled."""
    shape = replace(lm.engine.shape, num_layers=1)
    monkeypatch.setattr(profiling, "_all_heads", lambda _: [(0, head) for head in range(shape.num_heads)])
    return lm


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)) + "\n\n")
    return path


def settings(file: Path, **more: Any) -> Settings:
    return Settings(str(file), "regex:[a-z]", **{"top_k": 2, "screen_rows": 1, "keep": 3, "max_new_tokens": 3} | more)


def scripted(monkeypatch: pytest.MonkeyPatch, good: set[int], stop_after: int | None = None) -> list[Any]:
    """Answers that please the metric exactly where a good head is steered; counts them."""
    asked: list[Any] = []

    def answers(self: Scorebook[Any], jobs: list[Any], batch: int) -> Any:
        for index, job in enumerate(jobs):
            if stop_after is not None and len(asked) == stop_after:
                raise KeyboardInterrupt
            asked.append(job)
            heads = set() if job.method is None else set(dict(job.method.heads)[0])
            yield index, "yes" if heads & good else "NO"

    monkeypatch.setattr(Scorebook, "_answers", answers)
    return asked


def test_the_right_heads_win(lm: heedful.LM, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = scripted(monkeypatch, {2, 7})
    out, reports = tmp_path / "heads.json", []
    profiler = Profiler(lm, settings(file), out)
    assert profiler.num_answers == 2 + 9 + 3
    profile = profiler.run(4, reports.append)
    assert json.loads(out.read_text()) == {"0": [2, 7]}
    assert profile.heads == {0: [2, 7]}
    assert profile.plain == 0.0
    assert profile.num_tied == 0
    assert len(asked) == 14
    assert (reports[-1].done, reports[-1].total, reports[-1].is_screen) == (14, 14, False)
    lines = [json.loads(line) for line in (tmp_path / "heads.scores.jsonl").read_text().splitlines()]
    assert lines[0]["model"] == {"name": lm.engine.shape.name, "num_layers": 30, "num_heads": 9}
    assert lines[0]["settings"]["metric"] == "regex:[a-z]"
    assert lines[0]["rows"] == [sorted(data.hashes(row, row["prompt"])) for row in ROWS]
    assert {"layer": 0, "head": 7, "row": 1, "score": 1.0} in lines


def test_a_killed_run_goes_on(lm: heedful.LM, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "heads.json"
    scripted(monkeypatch, {2, 7}, stop_after=6)
    with pytest.raises(KeyboardInterrupt):
        Profiler(lm, settings(file), out).run(4)
    assert not out.exists()
    with (tmp_path / "heads.scores.jsonl").open("a") as scores:
        scores.write('{"layer": 0, "head": 8, "ro')  # killed in the middle of a line
    asked = scripted(monkeypatch, {2, 7})
    again = Profiler(lm, settings(file), out)
    assert again.num_answers == 8
    again.run(4)
    assert len(asked) == 8
    assert json.loads(out.read_text()) == {"0": [2, 7]}
    other = replace(lm.engine.shape, name="other")
    with monkeypatch.context() as patch:
        patch.setattr(type(lm.engine), "shape", other)
        with pytest.raises(OptionError, match=r"begun with name = .* now it is 'other'"):
            Profiler(lm, settings(file), out)
    with pytest.raises(OptionError, match=r"begun with strength = 0.01, now it is 0.5"):
        Profiler(lm, settings(file, strength=0.5), out)
    file.write_text(file.read_text() + "\n" + json.dumps(ROWS[0]))
    with pytest.raises(OptionError, match=r"data_sha256"):
        Profiler(lm, settings(file), out)


def test_real_answers_are_scored(lm: heedful.LM, file: Path, tmp_path: Path) -> None:
    out = tmp_path / "heads.json"
    profiler = Profiler(lm, settings(file), out)
    assert profiler.seconds_each(2) > 0
    profile = profiler.run(8)
    assert set(profile.scores.values()) <= {0.0, 0.5, 1.0}
    method = heedful.Pasta.from_file(out)
    assert method.profiled == lm.engine.shape
    method.recipe().check(lm.engine.shape)
    with pytest.raises(OptionError, match=r"was made for .* this is other"):
        method.recipe().check(replace(lm.engine.shape, name="other"))
    with pytest.raises(OptionError, match=r"12 of 9"):
        method.recipe().check(replace(lm.engine.shape, num_layers=12))


def test_profiles_intersect(tmp_path: Path) -> None:
    for name, heads in (("a", {"0": [1, 2], "3": [4]}), ("b", {"0": [2, 5], "4": [4]}), ("c", {"7": [1]})):
        (tmp_path / f"{name}.json").write_text(json.dumps(heads))
    assert heedful.Pasta.from_file(tmp_path / "a.json", tmp_path / "b.json").heads == ((0, (2,)),)
    with pytest.raises(OptionError, match=r"no head is in every one"):
        heedful.Pasta.from_file(tmp_path / "a.json", tmp_path / "c.json")
    for text in ("[1]", '{"a": [1]}', '{"0": 1}', '{"0": ["x"]}', "{", '{"0": [-1]}'):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(OptionError):
            heedful.Pasta.from_file(tmp_path / "bad.json")
    with pytest.raises(OptionError, match=r"cannot read"):
        heedful.Pasta.from_file(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("name", "text", "scores"),
    [
        ("json", '{"a": 1}', [1, 1]),
        ("json", "no", [0, 0]),
        ("exact", " Hello! ", [1, 0]),
        ("regex", "Helllo 3", [1, 1]),
        ("regex", "Hello", [1, 0]),
        ("regex:^x", "x", [1, 1]),
    ],
)
def test_metrics(file: Path, name: str, text: str, scores: list[float]) -> None:
    rows = data.read(file)
    assert [metric(name, rows)(row, text) for row in rows] == scores


def test_ifeval_is_lm_evals_own_checkers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lm_eval")
    monkeypatch.setattr("heedful.eval.ifeval.check", lambda: None)  # these two need no sentence splitter
    path = tmp_path / "rows.jsonl"
    row = {
        "prompt": "x <heed>y</heed>",
        "instruction_id_list": ["punctuation:no_comma", "detectable_format:number_highlighted_sections"],
        "kwargs": [{}, {"num_highlights": 2, "relation": None}],
    }
    path.write_text(json.dumps(row) + "\n")
    rows = data.read(path)
    score = metric("ifeval", rows)
    answers = ["*one* and *two*", "*one*, *two*", "*one*", "none, at all", "  "]
    assert [score(rows[0], text) for text in answers] == [1.0, 0.5, 0.5, 0.0, 0.0]


def test_what_data_lacks(lm: heedful.LM, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(ROWS[0]) + "\n" + json.dumps({"prompt": "x <heed>y</heed>"}) + "\n")
    with pytest.raises(DataError, match=r"'expected', which line 2 of .*rows.jsonl lacks"):
        metric("exact", data.read(path))
    with pytest.raises(OptionError, match=r"unknown metric 'speed'"):
        metric("speed", data.read(path))
    path.write_text(json.dumps(ROWS[0]) + "\n\n{oops\n")
    with pytest.raises(DataError, match=r"line 3 of .* is not JSON"):
        data.read(path)
    path.write_text("[1]\n")
    with pytest.raises(DataError, match=r"line 1 .* must be a JSON object, not list"):
        data.read(path)
    path.write_text("\n")
    with pytest.raises(DataError, match=r"no line"):
        data.read(path)
    path.write_text(json.dumps({"prompt": "nothing marked"}) + "\n")
    with pytest.raises(HeedfulError, match=r"line 1 of .* marks no instruction"):
        Profiler(lm, settings(path), tmp_path / "heads.json")
    path.write_text(json.dumps(ROWS[0]) + "\n")
    with pytest.raises(OptionError, match=r"9 heads"):
        Profiler(lm, settings(path, top_k=10, keep=None), tmp_path / "heads.json")


def test_split_rows_mark_what_follows_the_task(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    split = {"task": "Write.", "split_prompt": "Write.\n\n- In English.", "original_prompt": "In English, write."}
    original = {"original_prompt": "In English, write.", "original_spans": [[0, 10]]}
    path.write_text(json.dumps(split) + "\n" + json.dumps(original) + "\n")
    first, second = data.read(path)
    assert first.prompt == ("Write.\n\n- In English.", [(6, 21)])
    assert second.prompt == ("In English, write.", [(0, 10)])


def test_a_choice_by_number_is_told(
    lm: heedful.LM, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of nine heads one is good; who stands beside it among the two best, nothing but its number says."""
    scripted(monkeypatch, {7})
    monkeypatch.setattr("heedful.cli.options.load_quietly", lambda *_: lm)
    words = ["--data", str(file), "--metric", "regex:[a-z]", "--top-k", "2", "--keep", "3", "--screen-rows", "1"]
    app(["profile", "pasta", *words, "--out", str(tmp_path / "heads.json")], standalone_mode=False)
    assert json.loads((tmp_path / "heads.json").read_text()) == {"0": [0, 7]}
    assert "7 heads that were left out score just as well" in " ".join(capsys.readouterr().err.split())


def test_the_command(
    lm: heedful.LM, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("heedful.cli.options.load_quietly", lambda *_: lm)
    out = tmp_path / "deep" / "heads.json"
    options = ["--data", str(file), "--metric", "json", "--top-k", "2", "--keep", "2", "-n", "2", "--out", str(out)]
    options += ["--strength", "0.2", "--rows", "1", "--screen-rows", "1"]
    app(["profile", "pasta", *options], standalone_mode=False)
    shown = capsys.readouterr()
    assert shown.out.strip() == str(out)
    assert "answers of at most 2 tokens" in shown.err
    assert sum(map(len, json.loads(out.read_text()).values())) == 2
    made = json.loads((out.parent / "heads.scores.jsonl").read_text().splitlines()[0])["settings"]
    assert (made["strength"], made["num_rows"], made["screen_rows"]) == (0.2, 1, 1)


@pytest.mark.parametrize("text", ["", "[1]\n", '{"model": null}\n', "\xff\xfe"])
def test_scores_that_are_none(lm: heedful.LM, file: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "heads.scores.jsonl").write_bytes(text.encode("latin-1"))
    with pytest.raises(OptionError, match="holds no scores"):
        Profiler(lm, settings(file), tmp_path / "heads.json")
    with pytest.raises(OptionError, match=r"a file of its own"):
        Profiler(lm, settings(file), tmp_path)
    with pytest.raises(OptionError, match=r"a file of its own"):
        Profiler(lm, settings(file), file)


def test_rows_that_cannot_be_scored_are_told_of_first(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(ROWS[0]) + "\n" + json.dumps({**ROWS[1], "regex": "("}) + "\n")
    with pytest.raises(DataError, match=r"cannot score line 2 of"):
        metric("regex", data.read(path))
    path.write_text(json.dumps({"prompt": "a\u2028b <heed>c</heed>"}, ensure_ascii=False) + "\n", encoding="utf-8-sig")
    assert data.read(path)[0].columns["prompt"].startswith("a\u2028b")
    path.write_text(json.dumps({"task": "B", "split_prompt": "A. B"}) + "\n")
    with pytest.raises(DataError, match=r"line 1 of .* task and more"):
        data.read(path)[0].prompt  # noqa: B018
    for spans in ([[0]], "abc", [[0, None]], 5):
        path.write_text(json.dumps({"original_prompt": "abc", "original_spans": spans}) + "\n")
        with pytest.raises(DataError, match=r"must be pairs"):
            data.read(path)[0].prompt  # noqa: B018


def test_metrics_of_ifeval_by_prompt_and_of_ifbench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lm_eval")
    for module in ("ifeval", "ifbench"):  # these need no sentence splitter
        monkeypatch.setattr(f"heedful.eval.{module}.check", lambda: None)
    two = {
        "prompt": "x <heed>y</heed>",
        "instruction_id_list": ["punctuation:no_comma", "detectable_format:number_highlighted_sections"],
        "kwargs": [{}, {"num_highlights": 2, "relation": None}],
    }
    row = data.Record("x", 1, two)
    answers = ["*one* and *two*", "*one*, *two*", "*one*", "none, at all", "  "]
    assert [metric("ifeval-prompt", [row])(row, text) for text in answers] == [1.0, 0.0, 0.0, 0.0, 0.0]
    numbers = {"prompt": "x", "instruction_id_list": ["count:numbers"] * 2, "kwargs": [{"N": 2}, {"N": 1}]}
    row = data.Record("x", 1, numbers)
    assert [metric("ifbench", [row])(row, text) for text in ("1 and 2", "1", "none")] == [0.5, 0.5, 0.0]
    with pytest.raises(DataError, match="'kwargs', which line 1 of x lacks"):
        metric("ifbench", [data.Record("x", 1, {"instruction_id_list": []})])


def test_rows_marks_and_score_of_a_task(tmp_path: Path) -> None:
    path = tmp_path / "gsm.jsonl"
    rows = [{"question": f"What is {i} + {i}?", "answer": f"#### {2 * i}"} for i in range(1, 6)]
    lines = [*map(json.dumps, rows[:2]), "{oops", json.dumps({"question": "?"}), *map(json.dumps, rows[2:])]
    path.write_text("\n".join(lines))
    found = scored(str(path), "task:gsm8k-format")
    assert [row.number for row in found.rows] == [1, 2, 5, 6, 7]
    assert set(found.left_out) == {"line 3", "line 4"}
    prompt, instructions = found.rows[0].prompt
    assert isinstance(instructions, list)
    start, stop = instructions[0]  # type: ignore[misc]
    assert str(prompt)[start:stop].startswith("Respond with exactly one JSON object")
    scores = [found.metric(row, '{"reasoning": "", "answer": 4}') for row in found.rows]
    assert scores == [0.0, 1.0, 0.0, 0.0, 0.0]
    assert [row.number for row in scored(str(path), "task:gsm8k-format", most=3).rows] == [1, 2, 5]
    for name in ("multi-if", "drift", "advfactuality"):
        with pytest.raises(OptionError, match="not scored one by one"):
            scored(str(path), f"task:{name}")
    with pytest.raises(OptionError, match="unknown task 'speed'"):
        scored(str(path), "task:speed")


def test_a_profile_by_task(
    lm: heedful.LM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("heedful.cli.options.load_quietly", lambda *_: lm)
    scripted(monkeypatch, {2, 7})
    path, out = tmp_path / "gsm.jsonl", tmp_path / "heads.json"
    path.write_text("".join(json.dumps({"question": f"{i}?", "answer": f"#### {i}"}) + "\n" for i in range(8)))
    options = ["--data", str(path), "--top-k", "2", "--keep", "2", "-n", "2", "--out", str(out)]
    app(
        ["profile", "pasta", *options, "--task", "gsm8k-format", "--shard", "1/2", "--limit", "6"],
        standalone_mode=False,
    )
    lines = [json.loads(line) for line in (tmp_path / "heads.scores.jsonl").read_text().splitlines()]
    assert lines[0]["settings"]["metric"] == "task:gsm8k-format"
    assert len(lines[0]["rows"]) == 3
    said = capsys.readouterr().err
    assert said.index("30 answers of at most 2 tokens to generate: at most 60 tokens") < said.index("about ")
    for wrong in ([], ["--task", "gsm8k-format", "--metric", "json"]):
        with pytest.raises(OptionError, match="--metric, or --task"):
            app(["profile", "pasta", *options, *wrong], standalone_mode=False)


def test_shards_of_rows(file: Path) -> None:
    assert data.shard(range(5), "1/2") == [1, 3]
    assert data.shard(range(5), None) == [0, 1, 2, 3, 4]
    assert [row.number for row in scored(str(file), "regex:x", part="1/2").rows] == [2]
    assert [row.number for row in scored(str(file), "regex:x", limit=1).rows] == [1]
    for wrong in ("2/2", "1", "x/2", "-1/2"):
        with pytest.raises(OptionError, match="--shard must be i/n"):
            data.shard(range(5), wrong)
