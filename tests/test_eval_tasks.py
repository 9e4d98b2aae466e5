"""Tasks beyond the first: FollowBench's rules, Multi-IF's turns, several tasks at once, and where rows come from."""

import ast
import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import heedful
from heedful import data
from heedful.cli import app
from heedful.cli.evaluate import TASK_NAMES
from heedful.data import HubSet
from heedful.errors import DataError, OptionError
from heedful.eval import drift, followbench, run, runs, sources
from heedful.eval.tasks import TASKS, Example, examples
from heedful.methods import parse_method

FIXTURES = Path(__file__).parent / "fixtures"
SHARED = Path(__file__).parents[2] / "shared" / "data"
needs_data = pytest.mark.skipif(not SHARED.exists(), reason="the development data is not beside the checkout")


def read(task: str, *files: str) -> tuple[list[Example], dict[str, str]]:
    return examples(TASKS[task], [record for file in files for record in data.read(FIXTURES / file)])


def test_the_command_line_names_every_task() -> None:
    assert set(TASK_NAMES) == set(TASKS)


@pytest.mark.parametrize(
    ("task", "file", "count"),
    [
        ("ifeval", "ifeval.jsonl", 3),
        ("ifeval-split", "ifeval.jsonl", 3),
        ("ifbench", "ifbench.jsonl", 5),
        ("gsm8k-format", "gsm8k.jsonl", 2),
        ("lifbench", "list-single_query_id.jsonl", 1),
        ("followbench", "followbench.json", 4),
        ("multi-if", "multi_if.jsonl", 2),
        ("advfactuality", "advfactuality.json", 3),
    ],
)
def test_every_task_reads_its_rows(task: str, file: str, count: int) -> None:
    found, _ = read(task, file)
    assert len(found) == count
    for one in found:
        assert one.instructions
        if isinstance(one.prompt, str) and isinstance(one.instructions, list):
            assert all(one.prompt[start:stop].strip() for start, stop in one.instructions)


def test_advfactuality_marks_what_is_ours_and_keeps_what_its_judge_is_shown() -> None:
    found, left_out = read("advfactuality", "advfactuality.json")
    assert not left_out
    assert [marked(one) for one in found] == [["If the question rests on a false premise, say so and correct it."]] * 3
    verdict = TASKS["advfactuality"].judge(found[1], "The moon orbits the Earth.")
    assert verdict.points == {}
    assert verdict.why == {"knowledge": "The moon orbits the earth.", "modified knowledge": "the moon orbits the sun."}


# FollowBench


def marked(example: Example) -> list[str]:
    assert isinstance(example.prompt, str)
    assert isinstance(example.instructions, list)
    return [example.prompt[start:stop] for start, stop in example.instructions]


def test_followbench_spans_and_what_is_left_out() -> None:
    found, left_out = read("followbench", "followbench.json")
    by_key = {one.key: one for one in found}
    assert marked(by_key["gigaword:14:3"]) == [
        "Write a 8-word summary for the following text. Do not use any punctuation. Make sure all words are lowercase."
    ]
    assert marked(by_key["poem_sentiment:29:1"])[:2] == ["{'bot': 'neutral'}"] * 2
    assert set(left_out.values()) == {
        "level 0 holds no constraint",
        "no rule judges style constraints of quora; they need a judge",
    }


def test_followbench_verdicts() -> None:
    found, _ = read("followbench", "followbench.json")
    judge, by_key = TASKS["followbench"].judge, {one.key: one for one in found}
    summary = by_key["gigaword:14:3"]
    assert judge(summary, "two people die in a southern bomb attack\n").points["hard_3"] == (1.0, 1.0)
    some = judge(summary, "Two people die in a southern bomb attack.").points
    assert some["hard"] == (0.0, 1.0)
    assert some["soft"] == some["soft_3"] == (pytest.approx(1 / 3), 1.0)
    assert judge(summary, "").points["soft"] == (0.0, 1.0)
    assert judge(by_key["poem_sentiment:29:1"], "{'bot': 'negative'}").points["hard"] == (1.0, 1.0)
    assert judge(by_key["poem_sentiment:29:1"], "negative").points["hard"] == (0.0, 1.0)
    assert judge(by_key["gsm_8k:8:1"], "She got $10, and then $14.00.").points["hard"] == (1.0, 1.0)
    assert judge(by_key["gsm_8k:8:1"], "She got $14, and then $10.").points["hard"] == (0.0, 1.0)


GOOD_TABLE = "\n\n".join(f"{n}. {'Wipe ' * 20}it. {'Oil ' * 20}it." for n in (1, 2, 3)) + "\n\nThose are suggestions."
GOOD_SPEECH = "\n".join(f"{n}. **Growth**: new ideas let our firms sell more goods abroad." for n in range(1, 6))


@pytest.mark.parametrize(
    ("rule", "text", "expected"),
    [
        (followbench.CNN, "Potter is rich. The actor waits. The films have ended.", [1, 1, 1, 1, 1]),
        (followbench.CNN, "Potter is rich. A lavish star waits. The films end.", [1, 1, 0, 0, 0]),
        (followbench.XSUM, "The operation is slowly restoring the roads.", [1, 1, 1, 1, 1]),
        (followbench.XSUM, "Newton Stewart counts its losses. It is wet.", [0, 1, 0, 0, 0]),
        (followbench.SAMSUM, "Kim has stuff to do.", [1, 1, 1, 1, 1]),
        (followbench.SAMSUM, "Kim, procrastinating, has things to do.", [1, 1, 0, 0, 0]),
        (followbench.ARXIV, "We find activations that matter.", [1, 1, 1, 1, 1]),
        (followbench.ARXIV, "Well, the transformer has them.", [1, 1, 0, 0, 0]),
        (followbench.TABLE, GOOD_TABLE, [1, 1, 1, 1, 1]),
        (followbench.TABLE, "Wipe it.\n\nOil it. Wax it. Dry it.", [0, 0, 0, 0, 0]),
        (followbench.BENEFITS, GOOD_SPEECH, [1, 1, 1, 1, 1]),
        (followbench.BENEFITS, "**Growth** quickly comes. It lasts.", [0, 0, 0, 0, 0]),
    ],
)
def test_followbench_rules_level_by_level(rule: Any, text: str, expected: list[int]) -> None:
    assert [int(one) for one in rule(text, "", 5)] == expected
    assert rule(text, "", 2) == [bool(one) for one in expected[:2]]


@needs_data
def test_followbench_keeps_its_own_answers() -> None:
    """Where the data hold an answer, the rule accepts it; nothing that has a rule lacks a span but one template."""
    files = sorted((SHARED / "followbench" / "data").glob("*.json"))
    found, left_out = examples(TASKS["followbench"], [record for file in files for record in data.read(file)])
    assert len(found) + len(left_out) == 944
    assert Counter("bare answer" in why for why in left_out.values())[True] == 5
    assert not any("no instruction is found" in why for why in left_out.values())
    assert len(found) == 195 + 5 * (5 + 2 + 5) + 5 * (3 + 5) + 5 * (5 + 1 + 1 + 1) + 5 * 2
    wrong = [one.key for one in found if not all(followbench.kept(one.columns, _gold(one)))]
    assert not wrong


def _gold(example: Example) -> str:
    columns = example.columns
    target = str(columns["target"])
    if columns["category"] == "example":
        return target.removeprefix("{instruction}\n").replace("{{", "{").replace("}}", "}").replace("{answer}", "x")
    if columns["source"] == "CONLL2003":
        return str(ast.literal_eval(target)[0])
    written = {
        "cnn_dailymail": "Potter is rich. The actor waits. The films have ended.",
        "xsum": "The operation is slowly restoring the roads.",
        "samsum": "Kim has stuff to do.",
        "gigaword": "two people die in a southern bomb attack",
        "arxiv": "We find activations that matter.",
        "helpful_base": GOOD_TABLE,
        "koala": GOOD_SPEECH,
    }
    return written.get(str(columns["source"]), target)


# Multi-IF


def test_multi_if_turns_hold_the_answers_before_them() -> None:
    found, left_out = read("multi-if", "multi_if.jsonl")
    assert [one.key for one in found] == ["own-1:1:en", "own-3:1:en"]
    assert left_out == {"line 2": "the checkers are for English, and this row is French"}
    task = TASKS["multi-if"]
    second = task.follow(found[0], "The sea.")
    assert second is not None
    assert second.key == "own-1:1:en:turn2"
    assert second.instructions == "user"
    assert [(one["role"], one["content"]) for one in second.prompt if isinstance(one, dict)] == [
        ("user", "Describe a walk by the sea. Do not use any commas."),
        ("assistant", "The sea."),
        ("user", "Your answer must have at most 40 words."),
    ]
    third = task.follow(second, "Waves.")
    assert third is not None
    assert [one["content"] for one in third.prompt if isinstance(one, dict)][1::2] == ["The sea.", "Waves."]
    assert task.follow(third, "Tide.") is None
    last = task.follow(found[1], "* a")
    assert last is not None
    assert task.follow(last, "x") is None


def test_multi_if_verdicts_are_cumulative() -> None:
    pytest.importorskip("lm_eval")
    found, _ = read("multi-if", "multi_if.jsonl")
    task = TASKS["multi-if"]
    first = task.judge(found[0], "Sand and sun.")
    assert first.points["turn_1"] == (1.0, 1.0)
    assert "last_turn" not in first.points
    second = task.follow(found[0], "Sand and sun.")
    assert second is not None
    third = task.follow(second, "Sand, sun.")
    assert third is not None
    verdict = task.judge(third, "The tide, and a gull.")
    assert verdict.points["instruction_strict"] == (2.0, 3.0)
    assert verdict.points["turn_3"] == verdict.points["last_turn"] == (0.0, 1.0)
    assert verdict.why["followed"][0] == ["punctuation:no_comma", False]


def multi_if_plan(out: Path) -> run.Plan:
    found, left_out = read("multi-if", "multi_if.jsonl")
    task = replace(TASKS["multi-if"], check=lambda: None)
    methods = {"none": parse_method("none")}
    return run.Plan(task, found, methods, out, batch=2, max_new_tokens=3, left_out=left_out)


@pytest.fixture(scope="module")
def whole(lm: heedful.LM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("lm_eval")
    out = tmp_path_factory.mktemp("whole")
    seen: list[run.Progress] = []
    run.run(lm, multi_if_plan(out), report=seen.append)
    assert [(now.done, now.total) for now in seen] == [(done, 6) for done in range(1, 6)]
    return out


def answers(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((out / "multi-if").glob("*.jsonl"))}


def test_each_turn_is_a_record_in_the_order_of_the_data(whole: Path) -> None:
    (found,) = runs.read(whole)
    for records in found.records.values():
        assert list(records) == [
            "own-1:1:en",
            "own-1:1:en:turn2",
            "own-1:1:en:turn3",
            "own-3:1:en",
            "own-3:1:en:turn2",
        ]
        assert records["own-1:1:en"]["text"].strip() in records["own-1:1:en:turn2"]["prompt"]
        assert len(records["own-1:1:en:turn3"]["spans"]) == 3
    assert len(found.points("none", "last_turn")) == 2


def test_turns_killed_and_resumed_are_the_same_bytes(lm: heedful.LM, whole: Path, tmp_path: Path) -> None:
    dice, kills = random.Random(1), 0
    for attempt in range(30):
        fuse = iter(range(dice.randint(0, 1)))

        def stop(now: run.Progress, fuse: Any = fuse) -> None:
            if next(fuse, None) is None:
                raise KeyboardInterrupt

        try:
            run.run(lm, multi_if_plan(tmp_path), resume=attempt > 0, report=stop)
            break
        except KeyboardInterrupt:
            kills += 1
    assert kills > 2
    assert answers(tmp_path) == answers(whole)


def test_a_failed_turn_fails_those_behind_it(lm: heedful.LM, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    made = multi_if_plan(tmp_path)
    broken = replace(made.examples[0], prompt="word " * 9000)
    run.run(lm, replace(made, examples=[broken, made.examples[1]]))
    (found,) = runs.read(tmp_path)
    records = found.records["none"]
    assert "context" in records["own-1:1:en"]["failed"]
    for turn in ("turn2", "turn3"):
        assert "the turn before it failed" in records[f"own-1:1:en:{turn}"]["failed"]
    assert found.points("none", "last_turn")["own-1:1:en:turn3"] == (0.0, 1.0)
    assert "failed" not in records["own-3:1:en:turn2"]


# Where rows come from


def test_a_json_array_is_read_as_lines_are(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text('[{"prompt": "a"},\n {"prompt": "b"}]')
    assert [(row.number, row.columns["prompt"]) for row in data.read(path)] == [(1, "a"), (2, "b")]
    assert len(data.read(path, 1)) == 1
    path.write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    assert len(data.read(path)) == 2
    path.write_text('[{"prompt": "a"}')
    with pytest.raises(DataError, match="is not JSON"):
        data.read(path)
    path.write_text('[{"prompt": "a"}, 3]')
    with pytest.raises(DataError, match=r"line 2 .* must be a JSON object"):
        data.read(path)


def test_rows_of_a_set_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    asked = []

    def load_dataset(name: str, config: str | None, split: str) -> Any:
        asked.append((name, config, split))
        return datasets.Dataset.from_list(
            [{"key": 1, "kwargs": [{"N": 2, "sep": None}]}, {"key": 2, "kwargs": [{"N": None, "sep": "-"}]}]
        )

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    rows = sources.records(TASKS["gsm8k-format"], [])
    assert asked == [("openai/gsm8k", "main", "test")]
    assert [(row.path, row.number) for row in rows] == [("openai/gsm8k:test", 1), ("openai/gsm8k:test", 2)]
    assert rows[0].columns["kwargs"] == [{"N": 2, "sep": None}]
    assert len(sources.records(TASKS["ifbench"], ["me/mine:dev"], limit=1)) == 1
    assert len(sources.records(TASKS["gsm8k-format"], ["openai/gsm8k:train", "me/other"])) == 4
    assert asked[1:] == [("me/mine", None, "dev"), ("openai/gsm8k", "main", "train"), ("me/other", None, "train")]


def test_without_the_network_the_remedy_is_named() -> None:
    pytest.importorskip("datasets")
    with pytest.raises(DataError, match=r"cannot have openai/gsm8k .*--data FILE") as caught:
        data.fetch(HubSet("openai/gsm8k", "test", "main"))
    assert "\n" not in str(caught.value)
    with pytest.raises(OptionError, match="lifbench has no set on the hub"):
        sources.records(TASKS["lifbench"], [])


def test_whose_data_is_told() -> None:
    both = ["ifeval", "gsm8k-format"]
    assert sources.by_task(["ifeval"], ["a.jsonl", "ifeval=b.jsonl"]) == {"ifeval": ["a.jsonl", "b.jsonl"]}
    assert sources.by_task(both, ["gsm8k-format=a=b.jsonl"]) == {"ifeval": [], "gsm8k-format": ["a=b.jsonl"]}
    for tasks, named, what in (
        (both, ["a.jsonl"], r"--data TASK=a.jsonl"),
        (["ifeval"], ["lifbench=a.jsonl"], "known: ifeval"),
        (["ifeval", "ifeval"], [], "named twice"),
        (["speed"], [], "unknown task"),
    ):
        with pytest.raises(OptionError, match=what):
            sources.by_task(tasks, named)
    for wrong in ("nonsense", "a/b/c", "/b", "a/:train"):
        with pytest.raises(OptionError, match="OWNER/NAME"):
            sources.hub_set(wrong)


def test_rows_as_the_hub_has_split_ifeval(tmp_path: Path) -> None:
    """There the prompt is the split one, its instructions are exact texts of it, and arguments are padded."""
    pytest.importorskip("lm_eval")
    row = {
        "key": 1,
        "prompt": "Name a bird.\n\nYour response should follow the instructions below:\n- Use no commas.",
        "instructions": ["- Use no commas."],
        "instruction_id_list": ["length_constraints:number_words"],
        "kwargs": [{"relation": "less than", "num_words": 3.0, "keywords": None}],
    }
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row))
    (one,), _ = examples(TASKS["ifeval-split"], data.read(path))
    assert one.instructions == ["- Use no commas."]
    assert TASKS["ifeval-split"].judge(one, "A gull").points["prompt_strict"] == (1.0, 1.0)


def test_a_key_that_comes_twice_is_left_out() -> None:
    _, left_out = read("gsm8k-format", "gsm8k.jsonl", "gsm8k.jsonl")
    assert len(left_out) == 2
    assert left_out["line 1"] == "its key '1' is that of a line before"


def test_several_tasks_at_once(
    lm: heedful.LM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("heedful.cli.options.load_quietly", lambda *_: lm)
    named = [f"followbench={FIXTURES / 'followbench.json'}", f"gsm8k-format={FIXTURES / 'gsm8k.jsonl'}"]
    rest = ["--methods", "none", "-n", "2", "--limit", "3", "--out", str(tmp_path)]
    command = ["eval", "followbench", "gsm8k-format", "--data", named[0], "--data", named[1], *rest]
    app(command, standalone_mode=False)
    assert "followbench: left out: line 1: level 0" in " ".join(capsys.readouterr().err.split())
    text = (tmp_path / "report.md").read_text()
    assert "## followbench" in text
    assert "## gsm8k-format" in text
    assert len((tmp_path / "followbench" / "none.jsonl").read_text().splitlines()) == 2
    with pytest.raises(OptionError, match="holds a run already"):
        app(command, standalone_mode=False)
    app([*command, "--resume"], standalone_mode=False)


# Constraints of a system prompt over a long conversation

KEPT = {
    "change_case:english_lowercase": "bread rises because yeast makes gas in the dough.",
    "change_case:english_capital": "BREAD RISES BECAUSE YEAST MAKES GAS IN THE DOUGH.",
    "punctuation:no_comma": "Yeast makes gas.",
    "startend:quotation": '"Yeast makes gas, and bread rises."',
    "startend:end_checker": "Yeast makes gas, and so on. Ask me more.",
    "length_constraints:number_words": "Yeast makes gas, which makes bread rise.",
    "length_constraints:number_sentences": "Yeast makes gas, which makes bread rise.",
    "keywords:existence": "Yeast, indeed, makes gas. It is warm.",
    "keywords:forbidden_words": "Yeast makes gas, which makes bread rise.",
    "detectable_format:title": "<<Bread>>\nYeast, which is alive, makes gas.",
    "detectable_format:number_bullet_lists": "* Yeast, which is alive\n* Gas",
    "detectable_content:postscript": "Yeast makes gas, and bread rises.\nP.S. It is warm.",
}
BROKEN = (
    "Yeast is alive, and makes gas. Also, many a baker knows that " + "it needs to be warm and that it needs time. " * 3
)


def own(task: str) -> list[Example]:
    found, failed = examples(TASKS[task], sources.records(TASKS[task], []))
    assert not failed
    return found


@needs_data
def test_every_constraint_can_be_kept_and_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("NLTK_DATA", str(SHARED / "nltk_data"))
    import nltk

    monkeypatch.setattr(nltk.data, "path", [str(SHARED / "nltk_data")])
    assert {one.columns["instruction_id_list"][0] for one in own("far")} == set(KEPT)
    for task, name in (("drift", "kept"), ("far", "prompt_strict")):
        for one in own(task):
            kind = one.columns["instruction_id_list"][0]
            points = [TASKS[task].judge(one, text).points[name] for text in (KEPT[kind], BROKEN)]
            assert points == [(1.0, 1.0), (0.0, 1.0)], kind


def test_a_drift_conversation_is_summed_up_with_its_last_turn() -> None:
    pytest.importorskip("lm_eval")
    example: Example | None = next(one for one in own("drift") if "no_comma" in one.key)
    told: list[dict[str, tuple[float, float]]] = []
    for turn in range(drift.NUM_TURNS):
        assert example is not None
        assert len(example.prompt) == 2 + 2 * turn
        text = "one, two" if turn % 4 == 3 else "one"
        told.append(TASKS["drift"].judge(example, text).points)
        example = TASKS["drift"].follow(example, text)
    assert example is None
    assert [points["kept"][0] for points in told] == [1.0, 1.0, 1.0, 0.0] * 5
    assert ["conversation" in points for points in told] == [False] * 19 + [True]
    assert told[-1]["conversation"] == (0.75, 1.0)
    blocks = [name for points in told for name in points if name.startswith("turns_")]
    assert Counter(blocks) == {"turns_1_5": 5, "turns_6_10": 5, "turns_11_15": 5, "turns_16_20": 5}


def test_far_prompts_are_some_six_thousand_tokens_and_end_in_the_question(lm: heedful.LM) -> None:
    found = own("far")
    encoded = lm.encode(found[0].prompt, found[0].instructions)
    assert 5800 < len(encoded.token_ids) < 6600
    assert max(encoded.span.positions) < 60
    assert len({str(one.prompt) for one in found}) == len(found) == 24
    assert [one.number for one in sources.records(TASKS["far"], [], 3)] == [1, 2, 3]
