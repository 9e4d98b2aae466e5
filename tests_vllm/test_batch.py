"""`heedful batch --engine vllm` gives the answers that the transformers engine gives."""

import json
from pathlib import Path
from typing import Any

import pytest

import heedful
import tiny
from heedful import batch, cli
from heedful.batch import Source
from heedful.errors import ContextLengthError, ModelError, OptionError, SpanError
from heedful.vllm.answerer import VllmAnswerer, answerer
from heedful.vllm.host import host_of

pytestmark = pytest.mark.one_runner

MARKED = "Name three fruits. <heed>Write your answer as a bullet list.</heed>"
ROWS = [
    {"id": "a", "prompt": MARKED},
    {
        "id": "b",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why is the sky blue?"}],
        "instructions": "system",
    },
    {"id": "c", "prompt": "Nothing is marked here."},
    {"id": "d", "prompt": "word " * 9000 + MARKED},
]


@pytest.fixture(scope="module")
def vllm() -> VllmAnswerer:
    return answerer(Source(dtype="float32", engine="vllm"))


def test_a_batch_is_that_of_the_transformers_engine(vllm: VllmAnswerer, tmp_path: Path, monkeypatch: Any) -> None:
    lines = tmp_path / "in.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    monkeypatch.setattr(batch.Source, "open", lambda source: vllm if source.engine == "vllm" else local)
    local = batch.Local(heedful.load(dtype="float32"))
    found = {}
    for engine in batch.ENGINES:
        out = tmp_path / engine
        command = ["batch", str(lines), str(out), "--engine", engine, "--dtype", "float32", "-n", "24"]
        cli.app([*command, "--methods", "directer,none"], standalone_mode=False)
        found[engine] = {path.stem: [json.loads(line) for line in path.open()] for path in out.glob("*.jsonl")}
        run = json.loads((out / "run.json").read_text())
        assert (run["settings"]["engine"], run["settings"]["model"]["num_layers"]) == (engine, 30)
    assert found["vllm"].keys() == found["transformers"].keys() == {"directer", "none"}
    for method, rows in found["vllm"].items():
        for ours, core in zip(rows, found["transformers"][method], strict=True):
            assert (ours["id"], ours["text"], ours["error"] is None) == (
                core["id"],
                core["text"],
                core["error"] is None,
            )
            if ours["error"] is None:
                assert ours["stats"] == core["stats"]
    assert found["vllm"]["directer"][0]["stats"]["gated"] > found["vllm"]["directer"][0]["stats"]["changed"] > 0
    assert found["vllm"]["directer"][0]["text"] != found["vllm"]["none"][0]["text"]
    errors = [row["error"] for row in found["vllm"]["directer"]]
    assert errors[:2] == [None, None]
    assert "marked" in errors[2]
    assert "vLLM holds" in errors[3]


def test_answers_come_as_they_end(vllm: VllmAnswerer) -> None:
    """So that a crash costs no more than what was under way; what is left is taken back when nobody wants it."""
    jobs = [heedful.Job(MARKED, max_new_tokens=new) for new in (40, 2, 3)]
    answers = vllm.results(jobs, num_slots=3)
    at, answer = next(answers)
    assert (at, answer.stats.generated_tokens) == (1, 2)
    answers.close()
    assert not vllm._llm.llm_engine.has_unfinished_requests()
    assert [at for at, _ in vllm.results(jobs[1:], num_slots=3)] == [0, 1]


def test_decisions_are_counted_by_any_method_with_a_temperature_too(vllm: VllmAnswerer) -> None:
    """As the transformers engine counts them; whose random numbers are others where nothing is steered."""
    sampling = heedful.Sampling(temperature=0.8, seed=3)
    methods = (heedful.Directer(threshold=0.6), heedful.KeyScaling(1.3))
    jobs = [heedful.Job(MARKED, method=method, max_new_tokens=24, sampling=sampling) for method in methods]
    core = dict(heedful.load(dtype="float32").results(jobs, num_slots=2))
    for at, ours in vllm.results(jobs, num_slots=2):
        assert batch.made(ours) == batch.made(core[at]), methods[at]  # type: ignore[arg-type]
    plain = heedful.Job(MARKED, method=None, max_new_tokens=24, sampling=sampling)
    [(_, answer)] = vllm.results([plain], num_slots=1)
    assert (answer.stats.gated, answer.stats.accepted, answer.stats.rejected) == (0, 0, 0)
    assert 0 < answer.stats.changed < answer.stats.generated_tokens
    assert not vllm._trails


def test_what_the_worker_refuses_is_no_answer(vllm: VllmAnswerer, monkeypatch: Any) -> None:
    host = host_of(vllm._llm.llm_engine.vllm_config)
    monkeypatch.setattr(host, "refused", "the self-check failed")
    jobs = [heedful.Job(MARKED, max_new_tokens=2), heedful.Job(MARKED, method=None, max_new_tokens=2)]
    found = dict(vllm.results(jobs, num_slots=2))
    assert isinstance(found[0], ModelError)
    assert "self-check" in str(found[0])
    assert found[1].stats.generated_tokens == 2
    monkeypatch.setattr(vllm, "_refused", "a sliding window")
    with pytest.raises(ModelError, match="cannot steer this model: a sliding window"):
        vllm.ready(jobs[0])
    assert vllm.ready(jobs[1]) is jobs[1]


def test_a_vllm_that_does_not_start_is_one_line(tmp_path: Path) -> None:
    tiny.build("llama").save_pretrained(tmp_path)
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(config.replace('"num_key_value_heads": 2', '"num_key_value_heads": 3'))
    with pytest.raises(ModelError, match=r"^vLLM does not start with [^\n]*$"):
        answerer(Source(str(tmp_path), dtype="float32", engine="vllm"))


def test_what_cannot_be_answered_is_said_before_the_batch_begins(vllm: VllmAnswerer) -> None:
    with pytest.raises(SpanError):
        vllm.ready(heedful.Job("Nothing is marked."))
    with pytest.raises(ContextLengthError):
        vllm.ready(heedful.Job("word " * 9000, method=None))
    with pytest.raises(OptionError, match="take no bias"):
        vllm.ready(heedful.Job(MARKED, method=heedful.InstABoost()))
    assert vllm.ready(heedful.Job("Say hello to Ann.", "auto")).instructions == "auto"
    with pytest.raises(OptionError, match="chooses its device"):
        answerer(Source(device="cuda", engine="vllm"))
