"""The command line as a user types it: one line and exit code 2 for what is wrong, never a traceback."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import heedful
from heedful import cli

PROMPT = "Plan a trip to Japan. <heed>Do not use any commas.</heed>"


def heed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["heedful", *words])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    out = capsys.readouterr()
    return int(caught.value.code or 0), out.out, out.err


@pytest.fixture(autouse=True)
def same_model(lm: heedful.LM, monkeypatch: pytest.MonkeyPatch) -> None:
    """The session's model in place of a fresh one, where the default is asked for."""
    real = heedful.load
    monkeypatch.setattr(
        "heedful.generate.load", lambda model=None, **more: lm if model is None else real(model, **more)
    )


def test_generate_streams_text(capsys: Any, monkeypatch: Any, lm: heedful.LM) -> None:
    code, out, err = heed(capsys, monkeypatch, "generate", PROMPT, "-n", "12")
    assert (code, err) == (0, "")
    assert out == lm.generate(PROMPT, max_new_tokens=12).text + "\n"


def test_json_and_trace(capsys: Any, monkeypatch: Any, tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    code, out, _ = heed(capsys, monkeypatch, "generate", PROMPT, "-n", "12", "--json", "--trace", str(path))
    data = json.loads(out)
    assert code == 0
    assert data["method"]["name"] == "directer"
    trace = heedful.Trace.from_json(path.read_text())
    assert [step.token_id for step in trace.steps] == data["token_ids"]


def test_compare(capsys: Any, monkeypatch: Any) -> None:
    code, out, _ = heed(capsys, monkeypatch, "generate", PROMPT, "-n", "12", "--compare")
    assert code == 0
    assert "plain" in out
    assert "directer" in out


def test_file_and_stdin(capsys: Any, monkeypatch: Any, tmp_path: Path, lm: heedful.LM) -> None:
    path = tmp_path / "prompt.txt"
    path.write_text(PROMPT)
    _, from_file, _ = heed(capsys, monkeypatch, "generate", "-f", str(path), "-n", "6")
    with path.open() as stream:
        monkeypatch.setattr(sys, "stdin", stream)
        _, from_stdin, _ = heed(capsys, monkeypatch, "generate", "-", "-n", "6")
    assert from_file == from_stdin == lm.generate(PROMPT, max_new_tokens=6).text + "\n"


def test_spans(capsys: Any, monkeypatch: Any) -> None:
    code, out, _ = heed(capsys, monkeypatch, "spans", PROMPT, "--json")
    data = json.loads(out)
    start, end, _weight = data["char_spans"][0]
    assert code == 0
    assert data["text"][start:end] == "Do not use any commas."
    code, out, _ = heed(capsys, monkeypatch, "spans", PROMPT)
    assert "positions 30–35 (6 tokens)" in out


def test_models(capsys: Any, monkeypatch: Any) -> None:
    code, out, _ = heed(capsys, monkeypatch, "models")
    assert code == 0
    assert "SmolLM2" in out  # the path may be folded


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["generate", "Plan a trip."], "marked"),
        (["generate", "a <heed>b"], "never closed"),
        (["generate", ""], "empty"),
        (["generate", "Use no commas", "-i", "no comas"], "closest text"),
        (["generate", PROMPT, "--method", "magic"], "unknown method"),
        (["generate", PROMPT, "--strength", "nan"], "strength"),
        (["generate", PROMPT, "--strength", "-1"], "strength"),
        (["generate", PROMPT, "--threshold", "inf"], "threshold"),
        (["generate", PROMPT, "--method", "static", "--threshold", "1"], "takes no threshold"),
        (["generate", PROMPT, "-n", "0"], "max_new_tokens"),
        (["generate", PROMPT, "-n", "9000"], "8192"),
        (["generate", PROMPT, "--no-such-option"], "such option"),
        (["generate", PROMPT, "--model", "./nowhere"], "nowhere"),
        (["generate"], "prompt"),
        (["generate", "-f", "/no/file"], "cannot read"),
        (["spans", "nothing here"], "marked"),
        (["bench", "overhead", "--shape", "huge"], "unknown shape"),
    ],
)
def test_bad_input(capsys: Any, monkeypatch: Any, words: list[str], says: str) -> None:
    code, out, err = heed(capsys, monkeypatch, *words)
    assert (code, out) == (2, "")
    assert says in err.lower() or says in err
    assert err.startswith("heedful: error: ")
    assert err.count("\n") == 1


def test_interrupt() -> None:
    """Ctrl-C prints what there is and exits with 130."""
    code = "from heedful.cli import main; main()"
    command = [sys.executable, "-u", "-c", code, "generate", "Tell a long story.", "--method", "none", "-n", "4000"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background inherits "ignored"
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    finally:
        signal.signal(signal.SIGINT, before)
    with process:
        assert process.stdout is not None
        first = process.stdout.read(1)
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert first
    assert process.returncode == 130
    assert b"Traceback" not in err


def test_bench_runs(capsys: Any, monkeypatch: Any) -> None:
    words = ["--prompts", "1", "--batch", "2", "--tokens", "6", "--rounds", "1", "--threads", "1", "--json"]
    code, out, _ = heed(capsys, monkeypatch, "bench", "overhead", *words)
    data = json.loads(out)
    names = {row["name"] for row in data["figures"]}
    assert code == 0
    assert {"plain ÷ transformers", "directer ÷ sequential", "key/value bytes, directer ÷ plain"} <= names
