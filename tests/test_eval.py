"""Evaluation: verdicts, statistics checked by hand, and runs that end in the same bytes however often killed."""

import json
import os
import random
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import heedful
from heedful import data, journal
from heedful.cli import app
from heedful.errors import HeedfulError, OptionError
from heedful.eval import ablation, gsm8k, ifeval, paired, report, run, runs, seen, sources, textstats
from heedful.eval.tasks import TASKS, Example, examples
from heedful.methods import parse_method, parse_methods

SHARED = Path(__file__).parents[2] / "shared" / "data"
needs_data = pytest.mark.skipif(not SHARED.exists(), reason="the development data is not beside the checkout")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"reasoning": "2 + 2", "answer": 4}', (1, 1)),
        ('{"reasoning": "2 + 2", "answer": 4.0}\n', (1, 1)),
        ('{"reasoning": "2 + 2", "answer": 5}', (1, 0)),
        ('{"reasoning": "2 + 2", "answer": 4', (0, 1)),
        ('```json\n{"reasoning": "2 + 2", "answer": 4}\n```', (0, 1)),
        ('{"reasoning": "2 + 2", "answer": "4"}', (0, 1)),
        ('{"reasoning": "x", "answer": 4, "more": 1}', (0, 1)),
        ('{"reasoning": "x", "reasoning": "y", "answer": 4}', (0, 1)),
        ('{"reasoning": 7, "answer": 4}', (0, 1)),
        ('{"reasoning": "x", "answer": true}', (0, 0)),
        ('{"reasoning": "x", "answer": NaN}', (0, 0)),
        ("It is 2 + 2 = 4", (0, 1)),
        ("It is $1,004.", (0, 0)),
        ("", (0, 0)),
        ("[" * 100_000, (0, 0)),
    ],
)
def test_gsm8k_format(text: str, expected: tuple[int, int]) -> None:
    found = gsm8k.judge(text, 4.0)
    assert (int(found.has_format), int(found.is_right)) == expected


def test_gsm8k_prompt_and_gold() -> None:
    text, (start, stop) = gsm8k.prompt("How many?")
    assert text[start:stop] == gsm8k.INSTRUCTION
    assert gsm8k.gold("because\n#### 1,234") == 1234.0


@needs_data
def test_ifeval_gives_the_stored_verdicts(monkeypatch: pytest.MonkeyPatch) -> None:
    """540 stored answers of GPT-4 and the official checker's verdicts; keys 1122 and 1129 are random everywhere."""
    nltk = pytest.importorskip("nltk")
    pytest.importorskip("lm_eval")
    monkeypatch.setattr(nltk.data, "path", [str(SHARED / "nltk_data")])
    ifeval.check()
    folder = SHARED / "ifeval"
    rows = {r.columns["prompt"]: r.columns for r in data.read(folder / "input_data.jsonl")}
    stored = {
        kind: {r.columns["prompt"]: r.columns for r in data.read(folder / f"gpt4_checked_{kind}.jsonl")}
        for kind in ("strict", "loose")
    }
    wrong = []
    for answer in data.read(folder / "gpt4_responses.jsonl"):
        prompt, text = answer.columns["prompt"], answer.columns["response"]
        row = rows[prompt]
        found = ifeval.followed(row, text)
        same = (
            found.strict == stored["strict"][prompt]["follow_instruction_list"]
            and found.loose == stored["loose"][prompt]["follow_instruction_list"]
        )
        if not same:
            wrong.append(row["key"])
    assert set(wrong) <= {1122, 1129}


def test_an_answer_in_no_language_is_not_written_out(capfd: pytest.CaptureFixture[str]) -> None:
    """The checker's message would stand in the progress bar; its verdict is that of the official one."""
    pytest.importorskip("lm_eval")
    row = {"prompt": "Hi", "instruction_id_list": ["language:response_language"], "kwargs": [{"language": "en"}]}
    assert ifeval.followed(row, "***\n***").strict == [True]
    assert capfd.readouterr().err == ""


def test_missing_punkt_is_told_first(monkeypatch: pytest.MonkeyPatch) -> None:
    nltk = pytest.importorskip("nltk")
    pytest.importorskip("lm_eval")
    monkeypatch.setattr(nltk.data, "path", [])
    with pytest.raises(OptionError, match=r"nltk.downloader punkt_tab"):
        ifeval.check()


def test_textstats() -> None:
    found = textstats.describe("a b c d a b c d")
    assert found == {
        "words": 8.0,
        "distinct_1": 4 / 8,
        "distinct_2": 4 / 7,
        "distinct_3": 4 / 6,
        "repetition": pytest.approx(1 - 4 / 5),
    }
    empty = {"words": 0.0, "distinct_1": 1.0, "distinct_2": 1.0, "distinct_3": 1.0, "repetition": 0.0}
    assert textstats.describe("") == empty


def test_statistics() -> None:
    baseline = {str(i): (float(i < 10), 1.0) for i in range(40)}
    better = {str(i): (float(2 <= i < 20), 1.0) for i in range(40)}
    found = paired.paired(better, baseline)
    assert (found.fixed, found.broken) == (10, 2)
    assert found.difference.value == pytest.approx(0.2)
    assert found.p_value == pytest.approx(2 * (1 + 12 + 66) / 2**12)  # a fair coin: 12 throws, at most 2 of one side
    assert found.difference.low < 0.2 < found.difference.high
    assert not found.is_noise
    assert paired.paired(baseline, baseline).is_noise
    assert paired.paired(baseline, baseline).p_value == 1.0
    instructions = paired.mean({"a": (1.0, 3.0), "b": (2.0, 2.0)})
    assert instructions.value == pytest.approx(3 / 5)
    assert paired.mean({"a": (1.0, 2.0)}) == paired.Mean(0.5, 0.5, 0.5, 1)
    with pytest.raises(ValueError, match="no prompt in common"):
        paired.paired({"a": (1.0, 1.0)}, {"b": (1.0, 1.0)})


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "gsm.jsonl"
    rows = [{"question": f"What is {i} + {i}?", "answer": f"#### {2 * i}"} for i in range(1, 6)]
    rows.insert(2, {"question": "broken"})
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def plan(file: Path, out: Path, methods: str = "none,directer", **more: Any) -> run.Plan:
    task = TASKS["gsm8k-format"]
    found, _ = examples(task, data.read(file))
    named = {name: parse_method(name) for name in methods.split(",")}
    return run.Plan(task, found, named, out, **{"batch": 3, "max_new_tokens": 6} | more)


def answers(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((out / "gsm8k-format").glob("*.jsonl"))}


@pytest.fixture(scope="module")
def whole(lm: heedful.LM, file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    run.run(lm, plan(file, out))
    return out


def test_a_run_says_what_happened(whole: Path, lm: heedful.LM) -> None:
    (found,) = runs.read(whole)
    assert set(found.records) == {"none", "directer"}
    num_tokens = sum(record["generated_tokens"] for record in found.records["directer"].values())
    assert [spent.tokens for spent in found.times["directer"].values()] == [num_tokens]
    record = found.records["directer"]["1"]
    assert record["generated_tokens"] <= 6
    start, stop, _ = record["spans"][0]
    assert record["prompt"][start:stop] == gsm8k.INSTRUCTION
    assert record["points"].keys() == {"format", "task", "joint"}
    assert sum(record["steps"]["accepted_by_layers"].values()) == record["steps"]["accepted"]
    assert [r["key"] for r in map(json.loads, answers(whole)["none.jsonl"].decode().splitlines())] == list("12456")


def test_killed_and_resumed_is_the_same_bytes(lm: heedful.LM, file: Path, whole: Path, tmp_path: Path) -> None:
    dice, kills = random.Random(0), 0
    for attempt in range(40):
        fuse = iter(range(dice.randint(0, 2)))

        def stop(now: run.Progress, fuse: Any = fuse) -> None:
            if next(fuse, None) is None:
                raise KeyboardInterrupt

        try:
            run.run(lm, plan(file, tmp_path), resume=attempt > 0, report=stop)
            break
        except KeyboardInterrupt:
            kills += 1
            for journal in (tmp_path / "gsm8k-format").glob("*.part.jsonl"):
                with journal.open("a") as cut:
                    cut.write('{"key": "1", "text": "ha')
    assert kills > 2
    assert answers(tmp_path) == answers(whole)
    (one,), (other,) = runs.read(tmp_path), runs.read(whole)
    for name in ("none", "directer"):  # answers that a kill threw away took their time too
        assert sum(t.tokens for t in one.times[name].values()) > sum(t.tokens for t in other.times[name].values())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_twenty_real_kills(lm: heedful.LM, file: Path, whole: Path, tmp_path: Path) -> None:
    """A process killed by the system at a random moment, 20 times over, then left alone: nothing lost or repeated."""
    dice, kills = random.Random(0), 0
    while kills < 20:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                run.run(lm, plan(file, tmp_path), resume=True)
                code = 0
            finally:
                os._exit(code)
        time.sleep(dice.uniform(0, 0.4))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):  # it was through before the kill: begin again with other moments
            assert os.WEXITSTATUS(status) == 0
            assert answers(tmp_path) == answers(whole)
            shutil.rmtree(tmp_path / "gsm8k-format")
        else:
            kills += 1
    run.run(lm, plan(file, tmp_path), resume=True)
    assert answers(tmp_path) == answers(whole)


def test_another_run_is_refused(lm: heedful.LM, file: Path, whole: Path) -> None:
    with pytest.raises(OptionError, match="holds a run already"):
        run.run(lm, plan(file, whole))
    with pytest.raises(OptionError, match="another max_new_tokens"):
        run.run(lm, plan(file, whole, max_new_tokens=7), resume=True)
    with pytest.raises(OptionError, match="another directer"):
        run.run(lm, replace(plan(file, whole), methods={"directer": heedful.Directer(3.0)}), resume=True)
    changed = [replace(each, prompt=f"{each.prompt} Now.") for each in plan(file, whole).examples]
    with pytest.raises(OptionError, match="another prompts"):
        run.run(lm, replace(plan(file, whole), examples=changed), resume=True)
    before = answers(whole)
    run.run(lm, plan(file, whole), resume=True)
    assert answers(whole) == before


def test_a_method_that_does_not_fit_is_refused_before_anything_is_written(
    lm: heedful.LM, file: Path, tmp_path: Path
) -> None:
    for wrong in ("static:level=9", 'pasta:heads={"99":[0]}'):
        with pytest.raises(OptionError, match=r"level 9 is too deep|layer 99 is not in the model"):
            run.run(lm, plan(file, tmp_path, f"none,{wrong}"))
    assert not list(tmp_path.iterdir())


class Poison(heedful.KeyScaling):
    """Overflows, as too strong a steerer may."""

    def edit(self, scores: Any, span: Any, layer: int) -> None:
        scores[span.active.expand_as(scores)] = torch.nan


def test_an_overflow_fails_its_row_alone(lm: heedful.LM, file: Path, tmp_path: Path) -> None:
    made = plan(file, tmp_path, "none", max_new_tokens=3)
    run.run(lm, replace(made, methods={"poison": Poison(), "none": None}))
    (found,) = runs.read(tmp_path)
    assert all("not finite" in record["failed"] for record in found.records["poison"].values())
    assert not any("failed" in record for record in found.records["none"].values())
    jobs = [heedful.Job("A <heed>b</heed> c", None, method, 3) for method in (None, Poison(), None)]
    told = dict(lm.results(jobs))
    assert isinstance(told[1], heedful.NumericError)
    assert told[0] == told[2] or told[0].text == told[2].text


def test_two_processes_do_not_share_a_folder(
    lm: heedful.LM, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("heedful.cli.options.load_quietly", lambda *_: lm)
    made = plan(file, tmp_path, "none", max_new_tokens=2)
    run.run(lm, made)
    before = answers(tmp_path)
    command = ["eval", "gsm8k-format", "--data", str(file), "-n", "2", "--methods", "none", "--out", str(tmp_path)]
    with journal.alone(tmp_path / "gsm8k-format"):
        with pytest.raises(OptionError, match=r"another process writes to .*gsm8k-format: wait for it"):
            run.run(lm, made, resume=True)
        (tmp_path / "gsm8k-format" / "run.json").unlink()
        with pytest.raises(OptionError, match=r"another process writes to .*gsm8k-format: wait for it"):
            app(command, standalone_mode=False)
        assert not (tmp_path / "gsm8k-format" / "run.json").exists()
    assert answers(tmp_path) == before


def test_going_on_elsewhere_names_both(lm: heedful.LM, file: Path, tmp_path: Path) -> None:
    run.run(lm, plan(file, tmp_path, "none", max_new_tokens=2))
    path = tmp_path / "gsm8k-format" / "run.json"
    found = json.loads(path.read_text())
    here = found["hardware"]
    found |= {"commit": "elsewhere", "hardware": "an abacus"}
    found["versions"]["torch"] = "0.1"
    path.write_text(json.dumps(found))
    (path.parent / "none.part.jsonl").write_text("left by a kill")
    run.run(lm, plan(file, tmp_path, "none,static", max_new_tokens=2), resume=True)
    joined = run.read_header(path)
    assert joined["hardware"] == f"an abacus; {here}"
    assert joined["commit"].startswith("elsewhere")
    assert joined["versions"]["torch"].startswith("0.1; ")
    assert not list(path.parent.glob("*.part.jsonl"))
    with torch.no_grad():
        lm.model.get_input_embeddings().weight[0, 0] += 1
    try:
        with pytest.raises(OptionError, match="another weights"):
            run.run(lm, plan(file, tmp_path, "none", max_new_tokens=2), resume=True)
    finally:
        with torch.no_grad():
            lm.model.get_input_embeddings().weight[0, 0] -= 1


def test_a_line_that_is_not_json_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    row = json.dumps({"question": "?", "answer": "#### 1"})
    path.write_text(f"{row}\n{{oops\n\n[1]\n{row}\n")
    found, failed = examples(TASKS["gsm8k-format"], sources.records(TASKS["gsm8k-format"], [str(path)]))
    assert [example.key for example in found] == ["1", "5"]
    assert set(failed) == {"line 2", "line 4"}
    assert failed["line 2"].startswith("it is not JSON")
    assert failed["line 4"] == "it must be a JSON object, not list"
    assert len(sources.records(TASKS["gsm8k-format"], [str(path)], limit=2)) == 2
    path.write_text("{oops")
    with pytest.raises(HeedfulError, match="no line can be used for gsm8k-format: it is not JSON"):
        examples(TASKS["gsm8k-format"], sources.records(TASKS["gsm8k-format"], [str(path)]))


def test_rows_that_cannot_count(tmp_path: Path) -> None:
    empty = data.Record("x.jsonl", 1, {"key": 1, "instruction_id_list": [], "kwargs": [], "prompt": "a"})
    with pytest.raises(HeedfulError, match="names no instruction to follow"):
        examples(TASKS["ifbench"], [empty])
    with pytest.raises(HeedfulError, match="shard of the data is empty"):
        examples(TASKS["gsm8k-format"], [])
    rows = {"question": "?", "answer": "#### 1"}
    found, failed = examples(TASKS["gsm8k-format"], [data.Record(path, 1, rows) for path in ("a.jsonl", "d/b.jsonl")])
    assert [example.key for example in found] == ["1", "b.jsonl:1"]
    assert not failed
    long = "pasta:heads=" + "9" * 400
    assert len(run.file_name(long)) < 255
    assert run.file_name(long) != run.file_name(long + "0")


def test_a_difference_that_most_prompts_contradict_is_noise() -> None:
    baseline = {str(i): (0.5, 1.0) for i in range(200)}
    torn = {str(i): (0.55 if i < 60 else 0.0 if i < 80 else 0.5, 1.0) for i in range(200)}
    found = paired.paired(torn, baseline)
    assert found.difference.high < 0
    assert found.fixed > found.broken
    assert found.is_noise


def test_one_bad_row_never_stops_a_run(
    lm: heedful.LM, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = plan(file, tmp_path, "directer")
    long = Example("long", "word " * 9000, [(0, 4)], 5, made.examples[0].columns)
    unmarked = Example("unmarked", "x", None, 5, made.examples[0].columns)
    made = run.Plan(made.task, [long, *made.examples[:1], unmarked], made.methods, tmp_path, 3, 4)
    run.run(lm, made)
    (found,) = runs.read(tmp_path)
    records = found.records["directer"]
    assert "context" in records["long"]["failed"]
    assert "failed" in records["unmarked"]
    assert "failed" not in records["1"]
    assert "**2 rows failed**" in report.markdown(runs.gather([found]))
    assert all(found.points("directer", metric)["long"] == (0.0, 1.0) for metric in ("joint", "format", "task"))


def test_failed_rows_are_asked_again_where_that_is_wanted(
    lm: heedful.LM, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("heedful.cli.options.load_quietly", lambda *_: lm)
    command = ["eval", "gsm8k-format", "--data", str(file), "-n", "3", "--methods", "none", "--out", str(tmp_path)]
    app(command, standalone_mode=False)
    whole = answers(tmp_path)
    path = tmp_path / "gsm8k-format" / "none.jsonl"
    records = run.read_records(path)
    records["4"] = {"key": "4", "failed": "the disk was odd", "text": "", "points": {"joint": [0.0, 1.0]}}
    journal.rewrite(path, records.values())
    app([*command, "--resume"], standalone_mode=False)
    assert run.read_records(path) == records
    app([*command, "--retry-failed"], standalone_mode=False)
    assert answers(tmp_path) == whole


SHAPE = {"name": "SmolLM2-135M-Instruct", "num_layers": 30, "num_heads": 9}


def test_a_profile_is_not_tested_on_its_own_rows_silently(
    lm: heedful.LM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Profiled on tagged rows of one file, run on an extract of another: told by what is asked."""
    monkeypatch.setattr("heedful.cli.options.load_quietly", lambda *_: lm)
    monkeypatch.setattr("nltk.data.find", lambda name: name)  # whose sentences no checker here asks for
    kind = {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    split = [{"key": at, "task": f"Name {at}.", "split_prompt": f"Name {at}. No commas.", **kind} for at in range(4)]
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in split[1:]))
    made_on = [{"prompt": f"Name {at}. <heed>No commas.</heed>"} for at in (0, 2)]
    heads = tmp_path / "heads.json"
    heads.write_text('{"0": [1]}')
    hashes = [sorted(data.hashes(row, row["prompt"])) for row in made_on]
    (tmp_path / "heads.scores.jsonl").write_text(json.dumps({"settings": {}, "model": SHAPE, "rows": hashes}) + "\n")
    lone = tmp_path / "lone.json"
    lone.write_text('{"0": [2]}')
    methods = f"none,pasta:profile={heads},pasta:profile={lone}"
    command = ["eval", "ifeval-split", "--data", str(rows), "-n", "2", "--methods", methods]
    app([*command, "--out", str(tmp_path / "out")], standalone_mode=False)
    said = "".join(capsys.readouterr().err.split())  # lines are broken anywhere
    assert f"pasta:profile={heads}waschosenon1oftheseprompts({heads}):whatitscoresonthemisnotest" in said
    assert f"nothingtellsonwhichprompts{lone}waschosen" in said
    (found,) = runs.read(tmp_path / "out")
    assert found.header["chosen_on"][f"pasta:profile={heads}"]["prompts"] == ["2"]
    text = report.markdown(runs.gather([found])).replace("\\", "")
    assert f"**pasta:profile={heads} was chosen on 1 of these prompts" in text
    path = tmp_path / "out" / "ifeval-split" / "run.json"  # begun by a version that did not look: may be gone on with
    header = json.loads(path.read_text())
    del header["chosen_on"]
    path.write_text(json.dumps(header))
    (old,) = runs.read(tmp_path / "out")
    assert f"nothing tells on which prompts {heads}" in report.markdown(runs.gather([old])).replace("\\", "")
    app([*command, "--out", str(tmp_path / "out"), "--resume"], standalone_mode=False)
    assert json.loads(path.read_text())["chosen_on"] == found.header["chosen_on"]


def test_what_old_scores_tell_of_their_rows(tmp_path: Path) -> None:
    rows = [{"prompt": f"Name {at}."} for at in range(4)]
    source = tmp_path / "data.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    profile, scores = tmp_path / "heads.json", tmp_path / "heads.scores.jsonl"
    made = {"num_rows": 2, "data_sha256": seen.digest(source)}
    asked = [Example(str(at), row["prompt"], None, 5, row) for at, row in enumerate(rows)][1:]

    def found(**settings: Any) -> dict[str, Any]:
        scores.write_text(json.dumps({"settings": {**made, **settings}}) + "\n")
        return seen.chosen_on(["none", f"pasta:profile={profile}"], asked, [str(source)])[f"pasta:profile={profile}"]

    assert found()["prompts"] == ["1"]
    assert found(data_path=str(source))["prompts"] == ["1"]
    other = found(data_sha256="another")
    assert (other["prompts"], other["unknown"]) == ([], [str(profile)])
    tuned = tmp_path / "tuned.json"
    tuned.write_text(json.dumps({"method": "static:strength=3"}))
    hashes = [sorted(data.hashes({}, [{"role": "user", "content": "Name <heed>3</heed>."}]))]
    (tmp_path / "tuned.scores.jsonl").write_text(json.dumps({"settings": {}, "rows": hashes}) + "\n")
    assert seen.chosen_on([f"@{tuned}"], asked, [])[f"@{tuned}"]["prompts"] == ["3"]


def test_seeds(lm: heedful.LM, file: Path, tmp_path: Path) -> None:
    for out in (tmp_path / "one", tmp_path / "other"):
        run.run(lm, plan(file, out, "none,static", max_new_tokens=4, sampling=heedful.Sampling(0.9), num_seeds=2))
    (found,), (other,) = runs.read(tmp_path / "one"), runs.read(tmp_path / "other")
    assert list(found.records) == ["none@0", "none@1", "static@0", "static@1"]
    texts = {name: [record["text"] for record in records.values()] for name, records in found.records.items()}
    assert texts["none@0"] != texts["none@1"]
    assert texts == {name: [record["text"] for record in records.values()] for name, records in other.records.items()}
    text = report.markdown(runs.gather([found]))
    assert "### Over seeds" in text
    assert "static@1" in text


def test_spans_that_are_found(lm: heedful.LM, file: Path, tmp_path: Path) -> None:
    run.run(lm, plan(file, tmp_path, max_new_tokens=3, spans="auto"))
    (found,) = runs.read(tmp_path)
    assert found.settings["spans"] == "auto"
    record = found.records["directer"]["1"]
    expected = lm.encode(gsm8k.prompt("What is 1 + 1?")[0], "auto")
    assert record["spans"] == [list(span) for span in expected.char_spans]
    with pytest.raises(OptionError, match="begun with another spans"):
        run.run(lm, plan(file, tmp_path, max_new_tokens=3), resume=True)


def test_random_controls_are_summed_up_over_their_seeds(lm: heedful.LM, file: Path, tmp_path: Path) -> None:
    named = "directer:ranking=random:0,directer:ranking=random:1"
    run.run(lm, plan(file, tmp_path, named))
    text = report.markdown(runs.gather(runs.read(tmp_path)))
    assert "| directer:ranking=random | 2 |" in text


def test_a_full_disk_is_one_line(lm: heedful.LM, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(journal, "rewrite", full)
    with pytest.raises(HeedfulError, match=r"No space left on device; what was written is kept"):
        run.run(lm, plan(file, tmp_path))


def test_the_commands(
    lm: heedful.LM, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("heedful.cli.options.load_quietly", lambda *_: lm)
    base = ["eval", "gsm8k-format", "--data", str(file), "-n", "3"]
    for part in ("0/2", "1/2"):
        folder = tmp_path / part.replace("/", "of")
        app([*base, "--out", str(folder), "--shard", part], standalone_mode=False)
        assert ("left out: line 3" in capsys.readouterr().err) == (part == "0/2")
    app(
        ["eval", "report", str(tmp_path / "0of2"), str(tmp_path / "1of2"), "--out", str(tmp_path)],
        standalone_mode=False,
    )
    text = (tmp_path / "report.md").read_text()
    assert "none 5, directer 5" in text
    assert "**1 lines of the data were left out**; the first, line 3" in text
    assert "inside the noise" in text
    assert json.loads((tmp_path / "summary.json").read_text())["gsm8k-format"]["none"]["joint"] == 0.0
    for wrong in (["--shard", "2/2"], ["--limit", "0"], ["--methods", "nope"], ["--methods", ","]):
        with pytest.raises(OptionError):
            app([*base, "--out", str(tmp_path / "new"), *wrong], standalone_mode=False)
    with pytest.raises(OptionError, match="unknown task"):
        app(["eval", "speed", "--data", str(file), "--out", str(tmp_path)], standalone_mode=False)
    with pytest.raises(OptionError, match="holds no run"):
        app(["eval", "report", str(file.parent)], standalone_mode=False)


def test_ablations_can_all_be_read() -> None:
    for name in ablation.ABLATIONS:
        found = ablation.spelled(name, seeds=2)
        methods = parse_methods(",".join(found))
        assert list(methods) == found
        assert found[:2] == ["none", "directer"]
        assert len(found) > 3
        assert len(set(methods.values())) == len(found), "something runs twice"
    assert "pasta-gated:profile=h.json" in ablation.spelled("gate", profile="h.json")
    for wrong in ({"name": "nope"}, {"name": "ranking", "seeds": 0}, {"name": "ladder", "profile": "h.json"}):
        with pytest.raises(OptionError):
            ablation.spelled(**wrong)


def test_an_ablation_is_one_command(
    lm: heedful.LM, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("heedful.cli.options.load_quietly", lambda *_: lm)
    command = ["eval", "ablation", "tokens", "--task", "gsm8k-format", "--data", str(file), "--out", str(tmp_path)]
    app([*command, "--seeds", "2", "--limit", "2", "-n", "3"], standalone_mode=False)
    (found,) = runs.read(tmp_path)
    assert list(found.records) == ["none", "directer", "directer:span=random:0", "directer:span=random:1"]
    assert found.header["settings"]["methods"]["directer:span=random:1"]["span"] == "random:1"
