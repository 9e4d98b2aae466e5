"""Batches in one process: nothing lost, nothing twice, the same bytes however often killed; bad rows told by number."""

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import heedful
from heedful import batch, cli, journal
from heedful.errors import DataError, HeedfulError, OptionError
from heedful.methods import parse_methods

TAGGED = "Plan a trip to {}. <heed>Do not use any commas.</heed>"
PLACES = ("Japan", "Peru", "Wales", "Chad", "Oman")
BAD = [
    '{"prompt": "cut sho',
    '["no", "object"]',
    '{"task": "no prompt"}',
    '{"prompt": "Nothing is marked."}',
    '{"prompt": "Say <heed>this</heed>", "instructions": 7}',
    json.dumps({"prompt": "word " * 5000, "instructions": ["word"]}),
    '{"prompt": "half \\ud800 a pair <heed>x</heed>"}',
]


def write(path: Path, lines: list[str | bytes]) -> Path:
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines) + b"\n")
    return path


def good(at: int) -> str:
    """A row of one of three forms, with a column of its own."""
    place = PLACES[at % len(PLACES)]
    said = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"What of {place}?"}]
    row: dict[str, Any] = [
        {"prompt": TAGGED.format(place)},
        {"messages": said, "instructions": "system"},
        {"prompt": f"Tell of {place} in short.", "instructions": ["in short", [0, 4]]},
    ][at % 3]
    return json.dumps({"id": f"row {at}", **row, "more": {"é": at}}, ensure_ascii=False)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path / "in.jsonl", ["", *map(good, range(7))])


def plan(file: Path, out: Path, methods: str = "directer,none", **more: Any) -> batch.Plan:
    asked = batch.Asked(parse_methods(methods), **{"max_new_tokens": 5} | more)
    return batch.Plan(batch.rows(file), asked, out)


def run(lm: heedful.LM, made: batch.Plan, report: Any = lambda *_: None) -> batch.Summary:
    model = batch.Local(lm)
    return batch.run(made, model.facts(), partial(batch.answers, model, made.asked, batch=3), report)


def entries(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.glob("*.jsonl"))}


def test_rows_and_answers(tiny: heedful.LM, file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(tiny, plan(file, out)) == batch.Summary(14, [])
    found = entries(out / "directer.jsonl")
    assert [row["line"] for row in found] == list(range(2, 9))
    for at, row in enumerate(found):
        columns = json.loads(good(at))
        assert {name: row[name] for name in columns} == columns
        prompt, instructions = columns.get("prompt", columns.get("messages")), columns.get("instructions")
        alone = tiny.generate(prompt, instructions=instructions, max_new_tokens=5)
        assert (row["text"], row["error"]) == (alone.text, None)
        assert row["stats"]["gated"] == alone.stats.gated
    assert {row["stats"]["gated"] for row in entries(out / "none.jsonl")} == {0}
    assert contents(out).keys() == {"directer.jsonl", "none.jsonl"}


def test_bad_rows_are_told_and_the_others_go_on(tiny: heedful.LM, tmp_path: Path) -> None:
    lines: list[str | bytes] = [good(0), *BAD, b'{"prompt": "\xff"}', "[" * 100_000, good(1)]
    file, out = write(tmp_path / "in.jsonl", lines), tmp_path / "out"
    summary = run(tiny, plan(file, out, "directer"))
    assert summary.num_answered == 2
    failed = {line: why for _, line, why in summary.failed}
    said = [
        "is not JSON",
        "must be a JSON object",
        "needs the column 'prompt'",
        "marked",
        "instructions are",
        "context",
    ]
    for line, text in enumerate([*said, "surrogate", "is not UTF-8", "is not JSON"], start=2):
        assert text in failed[line], failed[line]
    found = entries(out / "directer.jsonl")
    assert [row["line"] for row in found] == list(range(1, 12))
    assert all((row["stats"] is None) == (row["error"] is not None) for row in found)
    alone = write(tmp_path / "bad.jsonl", BAD[:2])
    with pytest.raises(DataError, match=r"not one row could be answered; line 1 of .* is not JSON"):
        run(tiny, plan(alone, tmp_path / "none"))
    assert len(entries(tmp_path / "none" / "directer.jsonl")) == 2


def test_a_mended_row_is_done_and_no_other(tiny: heedful.LM, tmp_path: Path) -> None:
    out, lines = tmp_path / "out", [good(0), BAD[0], BAD[3], good(1)]
    run(tiny, plan(write(tmp_path / "in.jsonl", lines), out, "directer"))
    before = (out / "directer.jsonl").read_bytes().splitlines()
    mended = write(tmp_path / "in.jsonl", [good(0), good(2), BAD[3], good(1), good(4)])
    told: list[int] = []
    assert run(tiny, plan(mended, out, "directer"), lambda _, done: told.append(done)).num_answered == 4
    assert told == [2, 3, 4, 5]  # two were done, three were asked
    after = (out / "directer.jsonl").read_bytes().splitlines()
    assert (after[0], after[3]) == (before[0], before[3])
    assert json.loads(after[1])["id"] == "row 2"


class Stopped(Exception):
    pass


def test_stopped_and_resumed_is_the_same_bytes(tiny: heedful.LM, file: Path, tmp_path: Path) -> None:
    whole, out, dice = tmp_path / "whole", tmp_path / "out", random.Random(0)
    sampled: dict[str, Any] = {"sampling": heedful.Sampling(0.8, seed=3)}
    run(tiny, plan(file, whole, **sampled))
    stops = 0
    while True:
        fuse = iter(range(dice.randint(2, 4)))

        def stop(*_: Any, fuse: Iterator[int] = fuse) -> None:
            if next(fuse, None) is None:
                raise Stopped

        try:
            run(tiny, plan(file, out, **sampled), stop)
            break
        except Stopped:
            stops += 1
            with (out / "none.part.jsonl").open("a") as part:
                part.write('{"id": "row 1", "li')
    assert stops > 3
    assert contents(out) == contents(whole)
    run(tiny, plan(file, out, **sampled), lambda _, done: done == 7 or pytest.fail("a row was done again"))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_real_kills(tiny: heedful.LM, file: Path, tmp_path: Path) -> None:
    """Killed by the system at random moments, then left alone."""
    whole, out, dice = tmp_path / "whole", tmp_path / "out", random.Random(0)
    run(tiny, plan(file, whole))
    begun = time.monotonic()
    run(tiny, plan(file, tmp_path / "again"))
    lasts, kills = time.monotonic() - begun, 0
    while kills < 6:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                run(tiny, plan(file, out))
                code = 0
            finally:
                os._exit(code)
        time.sleep(dice.uniform(0, 0.8 * lasts))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):  # it was through before the kill: begin again with other moments
            assert os.WEXITSTATUS(status) == 0
            assert contents(out) == contents(whole)
            shutil.rmtree(out)
        else:
            kills += 1
    run(tiny, plan(file, out))
    assert contents(out) == contents(whole)


def test_a_full_disk_stops_and_is_gone_on_with(
    tiny: heedful.LM, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    run(tiny, plan(file, whole))
    real, written = journal.append, []

    def append(path: Path, listed: Any) -> None:
        if len(written) == 4:
            with path.open("a") as file:
                file.write('{"id": "what still fit')
            raise OSError(28, "No space left on device")
        written.append(path)
        real(path, listed)

    with monkeypatch.context() as patched:
        patched.setattr(journal, "append", append)
        with pytest.raises(OptionError, match=r"No space left on device; what was written is kept"):
            run(tiny, plan(file, out))
    told: list[tuple[str, int]] = []
    run(tiny, plan(file, out), lambda *now: told.append(now))
    assert sum(dict(reversed(told)).values()) == 4  # what each method began with
    assert contents(out) == contents(whole)


def test_another_run_is_refused(tiny: heedful.LM, file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(tiny, plan(file, out, "directer"))
    before = contents(out)
    for wrong, said in (
        ({"max_new_tokens": 6}, "another max_new_tokens"),
        ({"stop": ("x",)}, "another stop"),
        ({"instructions": "auto"}, "another instructions"),
    ):
        with pytest.raises(OptionError, match=said):
            run(tiny, plan(file, out, "directer", **wrong))
    with journal.alone(out), pytest.raises(OptionError, match="another process writes"):
        run(tiny, plan(file, out, "directer"))
    assert contents(out) == before
    run(tiny, plan(file, out, "static,none"))  # methods may be added
    assert contents(out).keys() == {"directer.jsonl", "none.jsonl", "static.jsonl"}
    (out / "run.json").write_text("[]")
    with pytest.raises(OptionError, match="not the head of a batch"):
        run(tiny, plan(file, out, "directer"))
    (out / "run.json").unlink()
    for lines in ([good(1), *map(good, range(1, 7))], ["", *map(good, range(6))], ["", "", *map(good, range(7))]):
        with pytest.raises(OptionError, match="holds the answer to another row than line"):
            run(tiny, plan(write(tmp_path / "other.jsonl", lines), out, "directer"))
    assert (out / "directer.jsonl").read_bytes() == before["directer.jsonl"]
    taken = write(tmp_path / "taken.jsonl", ['{"prompt": "x", "text": "mine"}'])
    with pytest.raises(DataError, match="has a column 'text', which answers add"):
        batch.rows(taken)


def test_found_instructions_are_told(tiny: heedful.LM, tmp_path: Path) -> None:
    file = write(tmp_path / "in.jsonl", ['{"prompt": "Name a fruit. Do not use any commas."}', '{"prompt": "Hi"}'])
    run(tiny, plan(file, tmp_path / "out", "directer", instructions="auto"))
    first, second = entries(tmp_path / "out" / "directer.jsonl")
    assert "Do not use any commas." in first["stats"]["found"]
    assert (second["stats"]["found"], second["stats"]["gated"]) == ([], 0)
    assert "decoded plainly" in second["stats"]["note"]


def test_the_command(
    tiny: heedful.LM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("heedful.generate.load", lambda *_, **__: tiny)
    file, out = write(tmp_path / "in.jsonl", [good(0), BAD[0], good(1)]), tmp_path / "out"
    command = ["batch", str(file), str(out), "-n", "3"]
    cli.app([*command, "--method", "none", "--settings", str(settings(tmp_path))], standalone_mode=False)
    told = capsys.readouterr()
    assert f"4 answers, 2 failures: {out}" in told.out.replace("\n", " ")
    assert "none: line 2: line 2 of" in told.err
    assert contents(out).keys() == {"none.jsonl", journal.file_name(f"@{tmp_path / 'tuned.json'}")}
    for wrong, said in (
        (["--engine", "magic"], "unknown engine"),
        (["--engine", "vllm"], "needs vLLM beside Heedful"),
        (["--replicas", "2"], "name it with --ray"),
        (["--ray", "127.0.0.1:1"], "cannot reach a Ray cluster|needs its extra"),
        (["--method", "magic"], "unknown method"),
        (["-n", "0"], "max_new_tokens"),
        (["--batch", "0"], "batch"),
        (["--temperature", "-1"], "temperature"),
    ):
        with pytest.raises(HeedfulError, match=said):
            cli.app([*command, *wrong], standalone_mode=False)


def settings(folder: Path) -> Path:
    path = folder / "tuned.json"
    path.write_text(json.dumps({"method": "directer:strength=10"}))
    return path
