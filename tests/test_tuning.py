"""The search for settings: finds what is good, never tests on what it searched, keeps its budget, survives a kill."""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer.testing

import heedful
from heedful import data, tuning
from heedful.cli import app
from heedful.cli.tune import verdict
from heedful.errors import DataError, OptionError
from heedful.eval.paired import paired
from heedful.methods import parse_method
from heedful.scorebook import Scorebook
from heedful.tuning import Progress, Rung, Settings, Tuner

NUM_ROWS = 60


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    rows = [{"prompt": f"Name {i} rivers. <heed>Use capital letters.</heed>"} for i in range(NUM_ROWS)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def settings(file: Path, **more: Any) -> Settings:
    return Settings(str(file), "regex:[a-z]", **{"methods": ("directer", "static"), "max_new_tokens": 3} | more)


def scripted(
    monkeypatch: pytest.MonkeyPatch, good: Callable[[Any], bool], stop_after: int | None = None
) -> list[heedful.Job]:
    """Answers that please the metric where `good(method)`; returns what was asked."""
    asked: list[heedful.Job] = []

    def answers(self: Scorebook[Any], jobs: list[heedful.Job], batch: int) -> Any:
        for index, job in enumerate(jobs):
            if stop_after is not None and len(asked) == stop_after:
                raise KeyboardInterrupt
            asked.append(job)
            yield index, "yes" if good(job.method) else "NO"

    monkeypatch.setattr(Scorebook, "_answers", answers)
    return asked


def is_thirty(method: Any) -> bool:
    return isinstance(method, heedful.Directer) and method.strength == 30


def test_the_best_setting_wins_on_rows_it_never_saw(
    lm: heedful.LM, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = scripted(monkeypatch, is_thirty)
    tuner = Tuner(lm, settings(file), tmp_path / "tuned.json")
    told: list[Progress] = []
    expected = tuner.num_answers
    tuned = tuner.run(4, told.append)
    assert is_thirty(parse_method(tuned.method))
    assert tuned.scores[tuned.method].value == 1.0
    assert tuned.against["none"].fixed == tuned.num_held_out == len(tuner.test_rows) == 24
    assert not set(tuner.search_rows) & set(tuner.test_rows)
    assert len(asked) == len(tuner.book.scores) == expected == told[-1].total
    tested = {tuner.book.rows[row].columns["prompt"] for row in tuner.test_rows}
    assert {str(job.prompt) for job in asked if job.method is None} == tested  # the search does not need it
    prompts = {str(job.prompt) for job in asked if job.method is not None and not is_thirty(job.method)}
    searched = {tuner.book.rows[row].columns["prompt"] for row in tuner.search_rows}
    of_default = {str(job.prompt) for job in asked if job.method == heedful.Directer()}
    assert prompts - of_default <= searched
    written = json.loads((tmp_path / "tuned.json").read_text())
    assert set(written) == {"method", "model", "search", "held_out"}
    assert set(written["search"]) == {field.name for field in dataclasses.fields(Settings)}
    assert set(written["held_out"]) == {"rows", "scores", "failed", "against"}
    assert set(written["held_out"]["scores"]) == {"none", "directer", tuned.method}
    assert set(written["held_out"]["against"]) == {"none", "directer"}
    assert set(written["held_out"]["against"]["none"]) == {"difference", "fixed", "broken", "p_value", "p_holm"}
    assert written["held_out"]["rows"] == 24
    header = json.loads((tmp_path / "tuned.scores.jsonl").read_text().splitlines()[0])
    chosen = [tuner.book.rows[at] for at in tuner.search_rows]
    assert header["rows"] == [sorted(data.hashes(row.columns, row.prompt[0])) for row in chosen]
    assert parse_method(f"@{tmp_path / 'tuned.json'}") == parse_method(tuned.method)


def test_what_is_no_better_is_said_to_be_no_better(
    lm: heedful.LM, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scripted(monkeypatch, lambda method: False)
    monkeypatch.setattr("heedful.cli.options.load_quietly", lambda *_: lm)
    out = tmp_path / "tuned.json"
    command = ["tune", "--data", str(file), "--metric", "regex:[a-z]", "--out", str(out), "--budget", "200"]
    app(command, standalone_mode=False)
    said = capsys.readouterr()
    assert "not distinguishable from plain decoding" in said.out
    assert "answers of at most 256 tokens to generate" in said.err
    assert "on 24 held-out rows" in said.out


def test_a_killed_search_goes_on(lm: heedful.LM, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "tuned.json"
    scripted(monkeypatch, is_thirty, stop_after=50)
    with pytest.raises(KeyboardInterrupt):
        Tuner(lm, settings(file), out).run(4)
    asked = scripted(monkeypatch, is_thirty)
    tuner = Tuner(lm, settings(file), out)
    left = tuner.num_answers
    assert left == Tuner(lm, settings(file), tmp_path / "other.json").num_answers - 50
    tuned = tuner.run(4)
    assert is_thirty(parse_method(tuned.method))
    assert len(asked) == left
    with pytest.raises(OptionError, match="begun with seed"):
        Tuner(lm, settings(file, seed=1), out)


def test_the_budget_is_kept(lm: heedful.LM, file: Path, tmp_path: Path) -> None:
    for budget in (200, 300, 1000):
        assert Tuner(lm, settings(file, budget=budget), tmp_path / "t.json").num_answers <= budget
    with pytest.raises(OptionError, match="10 answers are too small a budget for these rows; at least"):
        Tuner(lm, settings(file, budget=10), tmp_path / "t.json")


def test_ladders() -> None:
    assert tuning.ladder(27, 180) == [Rung(27, 20), Rung(9, 60), Rung(3, 180)]
    assert tuning.ladder(2, 180) == [Rung(2, 180)]
    assert tuning.ladder(9, 10) == [Rung(9, 10)]
    assert tuning.cost(tuning.ladder(27, 180)) == 27 * 20 + 9 * 40 + 3 * 120


def test_candidates_are_all_different_and_all_methods() -> None:
    named = Settings("x", "json", methods=tuple(tuning.SPACE), profile="heads.json")
    spelled = tuning.candidates(named)
    assert len(set(spelled)) == len(spelled)
    assert spelled[: len(tuning.SPACE)] == [
        name if not name.startswith("pasta") else f"{name}:profile=heads.json" for name in tuning.SPACE
    ]
    methods = [parse_method(name) for name in spelled if not name.startswith("pasta")]
    assert len({json.dumps(method.describe(), sort_keys=True) for method in methods if method}) == len(methods)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"methods": ("nope",)}, "unknown method"),
        ({"methods": ("pasta",)}, "needs its heads"),
        ({"methods": ()}, "at least one"),
        ({"held_out": 0.0}, "held_out must be"),
        ({"budget": 0}, "budget"),
    ],
)
def test_bad_settings(file: Path, more: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        settings(file, **more)


def test_better_takes_the_corrected_p_too() -> None:
    def said(fixed: int) -> str:
        good = {"won": fixed, "none": 0, "directer": fixed}
        scores = {name: {str(row): (float(row < count), 1.0) for row in range(24)} for name, count in good.items()}
        against = {name: paired(scores["won"], scores[name]) for name in ("none", "directer")}
        assert not against["none"].is_noise
        return verdict(tuning.Tuned("won", 24, {}, against))

    assert "not distinguishable" in said(4)  # p = 0.125
    assert "not distinguishable" in said(6)  # p = 0.031, twice that of two tests
    assert "better than plain decoding" in said(7)  # p = 0.016


def test_rows_of_one_prompt_stay_together(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": f"<heed>{i % 20}</heed>", "expected": i}) for i in range(60)))
    search, test = tuning.split(data.read(path), 0.4, 0)
    assert sorted(search + test) == list(range(60))
    assert len(test) == 24
    assert not {row % 20 for row in search} & {row % 20 for row in test}


def test_rows_that_a_profile_was_made_on_are_not_held_out(lm: heedful.LM, file: Path, tmp_path: Path) -> None:
    profile, scores = tmp_path / "heads.json", tmp_path / "heads.scores.jsonl"
    profile.write_text('{"0": [1]}')
    more = {"methods": ("pasta",), "profile": str(profile)}

    def tested() -> list[int]:
        return Tuner(lm, settings(file, **more), tmp_path / "tuned.json").test_rows

    def made_on(data_sha256: str, num_rows: int) -> None:
        header = {"data_sha256": data_sha256, "num_rows": num_rows}
        scores.write_text(json.dumps({"settings": header, "model": dataclasses.asdict(lm.engine.shape)}) + "\n")

    anyhow = tested()
    assert min(anyhow) < 30
    same = hashlib.sha256(file.read_bytes()).hexdigest()
    made_on(same, 30)
    assert len(tested()) == 24
    assert min(tested()) >= 30
    made_on("other", 30)
    assert tested() == anyhow
    rows = [[*data.hashes(row.columns, row.prompt[0])] for row in data.read(file)[:30]]
    model = dataclasses.asdict(lm.engine.shape)
    scores.write_text(json.dumps({"settings": {"data_sha256": "an extract"}, "model": model, "rows": rows}) + "\n")
    assert min(tested()) >= 30  # by what the rows ask, whatever file they came from
    made_on(same, 58)
    with pytest.raises(OptionError, match="the 58 that the profile was made on not held out leave 58 and 2 rows"):
        tested()


def test_another_profile_is_another_search(
    lm: heedful.LM, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, lambda method: False, stop_after=4)
    profile = tmp_path / "heads.json"
    profile.write_text('{"0": [1]}')
    chosen = settings(file, methods=("pasta",), profile=str(profile))
    with pytest.raises(KeyboardInterrupt):
        Tuner(lm, chosen, tmp_path / "tuned.json").run(4)
    assert len(Tuner(lm, chosen, tmp_path / "tuned.json").book.scores) == 4
    profile.write_text('{"0": [2]}')
    with pytest.raises(OptionError, match="begun with profile_sha256"):
        Tuner(lm, chosen, tmp_path / "tuned.json")


def test_settings_that_do_not_fit_the_model_are_left_out(
    lm: heedful.LM, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = dataclasses.replace(lm.engine.shape, num_layers=4)
    monkeypatch.setattr(type(lm.engine), "shape", small)
    tuner = Tuner(lm, settings(file, methods=("static",), budget=10_000), tmp_path / "tuned.json")
    assert len(tuner.candidates) == 7 * 3
    assert not any("level=3" in name for name in tuner.candidates)
    profile = tmp_path / "heads.json"
    profile.write_text('{"7": [1]}')
    with pytest.raises(OptionError, match="layer 7 is not in the model"):
        Tuner(lm, settings(file, methods=("static", "pasta"), profile=str(profile)), tmp_path / "tuned.json")


def test_a_prompt_that_is_too_long_is_told_of_first(lm: heedful.LM, file: Path, tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    path.write_text(file.read_text() + "\n" + json.dumps({"prompt": "word " * 9000 + "<heed>Sing.</heed>"}))
    with pytest.raises(DataError, match=r"line 61 of .*long.jsonl cannot be asked: the prompt has \d+ tokens"):
        Tuner(lm, settings(path), tmp_path / "tuned.json")
    with pytest.raises(DataError, match=r"line 1 of .* cannot be asked: prompt and answer need"):
        Tuner(lm, settings(file, max_new_tokens=9000), tmp_path / "tuned.json")


def test_an_answer_that_fails_is_told_and_ends_no_search(
    lm: heedful.LM, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The metric trips over one row's answers, and one answer overflows: 0, named, the same after a resume."""
    monkeypatch.setattr("heedful.cli.options.load_quietly", lambda *_: lm)
    scripted(monkeypatch, is_thirty)
    out = tmp_path / "tuned.json"
    tuner = Tuner(lm, settings(file), out)
    strange, held_out = 1 + tuner.search_rows[0], 1 + tuner.test_rows[0]

    def fails(row: data.Record, text: str) -> float:
        if row.number in (strange, held_out):
            raise ZeroDivisionError("no words")
        return float(text == "yes")

    tuner.book.metric = fails
    tuned = tuner.run(4)
    assert is_thirty(parse_method(tuned.method))
    assert tuned.failed == {"none": 1, "directer": 1, tuned.method: 1}
    assert tuned.scores[tuned.method].value == pytest.approx(23 / 24)
    told = tuner.book.told_failed
    assert f"the metric fails on an answer to line {strange} of {file}: ZeroDivisionError('no words')" in told
    assert json.loads(out.read_text())["held_out"]["failed"] == tuned.failed
    again = Tuner(lm, settings(file), out)
    assert again.num_answers == 0
    assert again.book.failed == tuner.book.failed
    assert again.run(4) == tuned
    monkeypatch.undo()
    books = Tuner(lm, settings(file), tmp_path / "other.json").book
    books._judge(("none", 0), heedful.NumericError("not finite"))
    assert books.scores["none", 0] == 0.0
    assert books.failed["none", 0] == f"line 1 of {file}: not finite"


def test_only_some_rows_are_taken(
    lm: heedful.LM, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scripted(monkeypatch, lambda method: False)
    monkeypatch.setattr("heedful.cli.options.load_quietly", lambda *_: lm)
    command = ["tune", "--data", str(file), "--metric", "regex:[a-z]", "--out", str(tmp_path / "tuned.json")]
    app([*command, "--methods", "static", "--shard", "0/3", "-n", "3"], standalone_mode=False)
    assert json.loads((tmp_path / "tuned.json").read_text())["held_out"]["rows"] == 8
    said = capsys.readouterr().err
    assert said.index("tokens to generate: at most") < said.index("about ")
    some = Tuner(lm, settings(file, shard="0/3"), tmp_path / "t.json").book.rows
    assert [row.number for row in some] == list(range(1, NUM_ROWS, 3))
    assert len(Tuner(lm, settings(file, limit=30), tmp_path / "t.json").book.rows) == 30


def test_too_few_rows(lm: heedful.LM, tmp_path: Path) -> None:
    path = tmp_path / "few.jsonl"
    path.write_text('{"prompt": "<heed>Sing.</heed>"}\n' * 8)
    with pytest.raises(OptionError, match=r"8 rows are too few .* 1 different prompts leave 8 and 0 rows"):
        Tuner(lm, settings(path), tmp_path / "t.json")


def test_a_settings_file_is_taken_by_other_commands(
    lm: heedful.LM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("heedful.cli.options.load_quietly", lambda *_: lm)
    path = tmp_path / "tuned.json"
    path.write_text('{"method": "static:strength=3"}')
    runner = typer.testing.CliRunner()
    prompt = ["Name a river. <heed>Shout.</heed>", "-n", "3", "--settings", str(path), "--json"]
    found = json.loads(runner.invoke(app, ["generate", *prompt]).stdout)
    assert found["method"]["strength"] == 3
    rows = json.loads(runner.invoke(app, ["compare", "--methods", "none", *prompt]).stdout)
    assert [row["name"] for row in rows] == ["none", f"@{path}"]
    path.write_text("{}")
    with pytest.raises(OptionError, match="is no settings file"):
        app(["generate", *prompt], standalone_mode=False)


@pytest.mark.parametrize(
    "command",
    [
        ["chat"],
        ["eval", "lm-eval", "--tasks", "t"],
        ["eval", "ablation", "gate", "--task", "far", "--out", "x"],
        ["serve"],
        ["playground"],
    ],
)
def test_every_command_with_a_method_takes_a_settings_file(command: list[str], tmp_path: Path) -> None:
    """A file that is none is refused by name before a model is loaded: so it was read."""
    path = tmp_path / "tuned.json"
    path.write_text("{}")
    if command[0] in ("serve", "playground"):
        pytest.importorskip("fastapi")
    with pytest.raises(OptionError, match="is no settings file"):
        app([*command, "--settings", str(path)], standalone_mode=False)
