"""lm-eval with Heedful inside: answers are those of `LM.generate`, and nothing is ignored silently."""

import json
import re
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import heedful
from heedful import cli
from heedful.errors import DataError, HeedfulError, OptionError, SpanError
from heedful.harness.asking import Asking
from heedful.harness.marks import marked_by
from heedful.methods import parse_method
from heedful.spans import Span

pytest.importorskip("lm_eval")

METHOD = "static:strength=3"  # ungated, so that the answers differ from plain ones
MARKED = "Do not use any commas."
PROMPTS = [f"Tell me about the Moon. {MARKED}", f"{MARKED} Name three fruits.", "Say hello."]
ROWS: list[dict[str, Any]] = [
    {"key": 1, "prompt": PROMPTS[0], "original_spans": [[24, 46]]},
    {"key": 2, "prompt": PROMPTS[1], "original_spans": [[0, 22]]},
    {"key": 3, "prompt": PROMPTS[2], "original_spans": []},
]
TASK = """
task: commas
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
test_split: test
output_type: {kind}
doc_to_text: "{{{{prompt}}}}"
doc_to_target: ""
generation_kwargs: {{until: ["!"], max_gen_toks: 6, do_sample: false, temperature: 0.0{more}}}
process_results: !function commas.judge
metric_list:
  - metric: no_comma
    aggregation: mean
    higher_is_better: true
"""
JUDGE = "def judge(doc, results):\n    return {'no_comma': float(',' not in results[0])}\n"


@pytest.fixture(autouse=True)
def offline(lm: heedful.LM, monkeypatch: pytest.MonkeyPatch) -> None:
    """No network, and the session's model in place of a fresh one."""

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("a test asked for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr("heedful.harness.asking.load", lambda **_: lm)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A task of lm-eval over a local file, whose last row marks nothing."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "commas.py").write_text(JUDGE)
    write(tmp_path)
    return tmp_path


def write(folder: Path, kind: str = "generate_until", more: str = "") -> None:
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (folder / "commas.yaml").write_text(TASK.format(data=data, kind=kind, more=more))


def run(capsys: Any, monkeypatch: Any, folder: Path, *words: str) -> tuple[int, str, str]:
    given = ["heedful", "eval", "lm-eval", "--tasks", "commas", "--include-path", str(folder), *words]
    monkeypatch.setattr(sys, "argv", given)
    with pytest.raises(SystemExit) as caught:
        cli.main()
    out = capsys.readouterr()
    return int(caught.value.code or 0), out.out, out.err


def expected(lm: heedful.LM, raw: bool = False) -> list[str]:
    """What `LM.generate_batch` answers to the rows, the last one plainly."""
    method = parse_method(METHOD)
    jobs = [
        heedful.Job(row["prompt"], row["original_spans"] or None, method if row["original_spans"] else None, 6, raw=raw)
        for row in ROWS
    ]
    return [result.text.partition("!")[0] for result in lm.generate_batch(jobs)]


@pytest.mark.parametrize("raw", [False, True])
def test_lm_eval_answers_as_generate_does(capsys: Any, monkeypatch: Any, folder: Path, lm: Any, raw: bool) -> None:
    words = ["--method", METHOD, "--unmarked", "plain", "--out", str(folder / "out")] + ["--raw"] * raw
    code, out, err = run(capsys, monkeypatch, folder, *words)
    assert code == 0, err
    lines = next(folder.glob("out/*/samples_*.jsonl")).read_text().splitlines()
    samples = map(json.loads, lines)
    texts = [sample["resps"][0][0] for sample in sorted(samples, key=lambda one: one["doc_id"])]
    assert texts == expected(lm, raw)
    mean = sum("," not in text for text in texts) / len(texts)
    assert re.search(rf"\|commas *\|.*\|no_comma *\|↑ *\| *{mean:.4g}\d*\|", out)
    results = json.loads(next(folder.glob("out/*/results_*.json")).read_text())
    assert results["config"]["heedful_method"]["strength"] == 3


@pytest.mark.parametrize(
    ("words", "more", "kind", "line"),
    [
        ((), "", "generate_until", "document 2 of commas: nothing in the prompt is marked"),
        (("--unmarked", "plain"), ", num_beams: 4", "generate_until", "no generation argument 'num_beams'"),
        ((), "", "loglikelihood", "task commas asks for loglikelihood, which steering does not define"),
        (("--method", "directer:strong=1"), "", "generate_until", "takes no strong"),
        (("--unmarked", "maybe"), "", "generate_until", "unknown unmarked 'maybe'"),
        (("--limit", "0"), "", "generate_until", "limit must be a whole number"),
    ],
)
def test_lm_eval_refuses_in_one_line(
    capsys: Any, monkeypatch: Any, folder: Path, words: Any, more: str, kind: str, line: str
) -> None:
    write(folder, kind, more)
    code, out, err = run(capsys, monkeypatch, folder, *words)
    assert (code, out) == (2, "")
    last = err.strip().splitlines()[-1]
    assert last.startswith("heedful: error: ")
    assert line in last


def test_lm_eval_names_an_unknown_task(monkeypatch: Any, folder: Path) -> None:
    import lm_eval.tasks as tasks

    from heedful.harness.lm_eval_run import Plan, run

    real = tasks.TaskManager  # its own thousands of tasks take long to read
    monkeypatch.setattr(tasks, "TaskManager", lambda **kw: real(**{**kw, "include_defaults": False}))
    with pytest.raises(OptionError, match="knows no task 'comma'; close names: commas"):
        run(Plan(["comma"], {}, include_path=folder))
    with pytest.raises(OptionError, match="no folder of tasks"):
        run(Plan(["commas"], {}, include_path=folder / "absent"))


def model(method: str = METHOD, **more: Any) -> Any:
    from heedful.harness.lm_eval_model import HeedfulLM

    return HeedfulLM.create_from_arg_obj({"method": method, **more})


def test_lm_eval_model_arguments() -> None:
    from heedful.harness.lm_eval_model import HeedfulLM

    made = HeedfulLM.create_from_arg_string("method=static:layers=[0,1],model=default", {"batch_size": "8"})
    assert made.asking.method == heedful.KeyScaling(layers=(0, 1))
    assert made.batch_size == 8
    with pytest.raises(OptionError, match="takes no argument 'pretrained'; it takes model, "):
        model(pretrained="x")
    with pytest.raises(OptionError, match="batch_size must be a whole number; got 'auto'"):
        model(batch_size="auto")


def test_lm_eval_model_refuses_what_it_cannot_do() -> None:
    from lm_eval.api.instance import Instance

    made = model()
    asked = [Instance("loglikelihood", {}, ("a", "b"), 0, ("t", 3, 1))]
    for call in (made.loglikelihood, made.loglikelihood_rolling):
        with pytest.raises(OptionError, match="document 3 of t asks for log-likelihoods"):
            call(asked)
    with pytest.raises(OptionError, match="use_cache"):
        made.set_cache_hook(None)
    with pytest.raises(OptionError, match="cannot be chosen"):
        made.chat_template("fancy")


def test_lm_eval_finds_the_model_by_name() -> None:
    from lm_eval.api.registry import get_model

    from heedful import harness
    from heedful.harness.lm_eval_model import HeedfulLM

    harness.register()
    harness.register()
    assert get_model("heedful") is HeedfulLM


def test_lm_eval_chat_keeps_spans_with_examples_before(lm: heedful.LM) -> None:
    """Few-shot examples in one message with the document, a system message, tags: the same tokens are marked."""
    from lm_eval.api.instance import Instance

    made = model(unmarked="plain")
    user = f"Q: Say hi.\nA: hi\n\nQ: {PROMPTS[1]}"
    chat = [{"role": "system", "content": "Be short."}, {"role": "user", "content": user}]
    tagged = [chat[0], {"role": "user", "content": user.replace(MARKED, f"<heed>{MARKED}</heed>")}]
    options = {"max_gen_toks": 4, "until": []}
    requests = [
        Instance("generate_until", doc, (made.apply_chat_template(messages), options), 0, ("t", 0, 1))
        for messages, doc in ((chat, ROWS[1]), (tagged, ROWS[0]))
    ]
    assert requests[0].args[0] == requests[1].args[0] == lm.encode(chat).text
    wanted = lm.generate(chat, instructions=[MARKED], method=parse_method(METHOD), max_new_tokens=4).text
    assert made.generate_until(requests, disable_tqdm=True) == [wanted, wanted]


class Poison(heedful.KeyScaling):
    """Overflows, as too strong a steerer may."""

    def edit(self, scores: Any, span: Any, layer: int) -> None:
        scores[span.active.expand_as(scores)] = torch.nan


def test_lm_eval_an_overflow_is_an_empty_answer_and_named(lm: heedful.LM, capsys: Any) -> None:
    from lm_eval.api.instance import Instance

    made = model(unmarked="plain")
    made.asking = Asking(Poison(), None, "plain")
    options = {"max_gen_toks": 4, "until": []}
    requests = [
        Instance("generate_until", row, (row["prompt"], options), 0, ("t", at, 1)) for at, row in enumerate(ROWS)
    ]
    plain = lm.generate_batch([heedful.Job(PROMPTS[2], None, None, 4, raw=True)])[0].text
    assert made.generate_until(requests, disable_tqdm=True) == ["", "", plain]
    told = made.get_model_info()["heedful_failed"]
    assert [line.split(":")[0] for line in told] == ["document 0 of t", "document 1 of t"]
    assert "heedful: failed, and counts as an empty answer: document 0 of t: " in capsys.readouterr().err


ROW = {"prompt": " A b. B c. ", "original_spans": [[1, 5]]}


@pytest.mark.parametrize(
    ("row", "prompt", "found"),
    [
        (ROW, "x <heed>B c.</heed>", None),
        ({}, "nothing", None),
        (ROW, "Q:  A b. B c. \nA:", [Span(4, 8)]),
        (ROW, "Q: A b. B c.\nA:", [Span(3, 7)]),
        ({**ROW, "heedful_spans": [[6, 10]]}, "A b. B c.", [Span(5, 9)]),
        ({**ROW, "original_prompt": "A b. X"}, "A b. X", [Span(1, 5)]),
        ({**ROW, "task": "T.", "split_prompt": "T. Be so."}, "T. Be so.", [Span(2, 9)]),
        ({**ROW, "instructions": ["Be so."]}, "T. Be so.", ["Be so."]),
        ({"instructions": "Be so."}, "T. Be so.", ["Be so."]),
        (ROW, "anew: A b. and more", [Span(6, 10)]),
    ],
)
def test_marks_of_a_row(row: dict[str, Any], prompt: str, found: Any) -> None:
    assert marked_by(row, prompt) == found


@pytest.mark.parametrize(
    ("row", "prompt", "kind", "line"),
    [
        (ROW, "another", SpanError, "'A b.' is not in it"),
        (ROW, "A b. then A b. again", SpanError, "is in it 2 times"),
        ({**ROW, "original_spans": [[3, 99]]}, "A b.", DataError, "names 3:99"),
        ({**ROW, "original_spans": [3]}, "A b.", DataError, "must be pairs"),
        ({"original_spans": [[0, 1]]}, "A b.", DataError, "which the row lacks"),
        ({"instructions": [1]}, "A b.", DataError, "must be exact texts"),
    ],
)
def test_marks_that_cannot_be_found(row: dict[str, Any], prompt: str, kind: type[HeedfulError], line: str) -> None:
    with pytest.raises(kind, match=re.escape(line)):
        marked_by(row, prompt)


def test_generation_arguments_of_lm_eval() -> None:
    from heedful.harness.lm_eval_model import generation

    assert generation({}) == (256, heedful.Sampling(), ())
    assert generation({"until": "a", "do_sample": False, "temperature": 0.7})[1:] == (heedful.Sampling(), ("a",))
    torch.manual_seed(3)
    limit, drawn, stop = generation({"until": ["a", None], "do_sample": True, "top_p": 0.9, "max_new_tokens": 7})
    torch.manual_seed(3)
    assert generation({"temperature": 1.0, "top_p": 0.9})[1] == drawn
    assert (limit, drawn.temperature, drawn.top_p, stop) == (7, 1.0, 0.9, ("a",))
    assert drawn.seed is not None
    with pytest.raises(OptionError, match="say one of"):
        generation({"max_gen_toks": 3, "max_tokens": 4})


def test_a_role_is_heeded_in_every_prompt(lm: heedful.LM) -> None:
    from heedful.harness.asking import Request

    chat = [{"role": "system", "content": MARKED}, {"role": "user", "content": "Name fruits."}]
    job = Asking(heedful.Directer(), "system").job(lm, Request(chat, lambda: ["absent"], 4))
    assert job.instructions == "system"
    plain = Asking(None).job(lm, Request(chat, lambda: ["absent"], 10**6))
    assert plain.instructions is None
    assert plain.max_new_tokens == lm.engine.context_length - len(lm.encode(chat).token_ids)
