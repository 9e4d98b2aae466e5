"""The search for settings: finds what is good, never tests on what it searched, keeps its budget, survives a kill."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer.testing

import heedful
from heedful import tuning
from heedful.cli import app
from heedful.errors import OptionError
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
    assert len(asked) == len(tuner.book.scores) <= expected == told[-1].total
    prompts = {str(job.prompt) for job in asked if job.method is not None and not is_thirty(job.method)}
    searched = {tuner.book.rows[row].columns["prompt"] for row in tuner.search_rows}
    of_default = {str(job.prompt) for job in asked if job.method == heedful.Directer()}
    assert prompts - of_default <= searched
    written = json.loads((tmp_path / "tuned.json").read_text())
    assert written["held_out"]["rows"] == 24
    assert "search_score" not in str(written)
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
    tuned = tuner.run(4)
    assert is_thirty(parse_method(tuned.method))
    assert len(asked) <= left
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


def test_too_few_rows(lm: heedful.LM, tmp_path: Path) -> None:
    path = tmp_path / "few.jsonl"
    path.write_text('{"prompt": "<heed>Sing.</heed>"}\n' * 8)
    with pytest.raises(OptionError, match="8 rows are too few"):
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
