"""Comparing methods on one prompt: each answer is the method's own, and what is said of it is true."""

import json
import math

import pytest
import torch

import heedful
from heedful.cli import app
from heedful.constraints import constraint
from heedful.errors import OptionError
from heedful.methods import NAMES, method_by_name, parse_method, parse_methods
from heedful.scoring import score

PROMPT = "Name three rivers. <heed>Do not use any commas.</heed>"
METHODS = {
    "none": None,
    "static": heedful.KeyScaling(2.0),
    "pasta": heedful.Pasta({3: [0, 1], 10: [2]}),
    "spotlight": heedful.SpotLight(0.3),
    "instaboost": heedful.InstABoost(3.0),
    "directer": heedful.Directer(),
    "context-aware": heedful.ContextAware(),
    "anchoring-gated": heedful.Anchoring(gate=heedful.Plausibility()),
}


@pytest.fixture(scope="module")
def rows(lm: heedful.LM) -> list[heedful.Compared]:
    return heedful.compare(PROMPT, METHODS, checks=["no_comma", "regex:^[A-Z]"], max_new_tokens=16, lm=lm)


def test_each_answer_is_the_methods_own(lm: heedful.LM, rows: list[heedful.Compared]) -> None:
    assert [row.name for row in rows] == list(METHODS)
    for row in rows:
        alone = lm.generate(PROMPT, method=METHODS[row.name], max_new_tokens=16)
        assert row.result.text == alone.text
        assert row.result.trace.method == alone.trace.method
    assert len({row.result.text for row in rows}) > 2


def test_figures_are_the_raw_models(lm: heedful.LM, rows: list[heedful.Compared]) -> None:
    prompt = list(lm.encode(PROMPT).token_ids)
    for row in rows:
        answer = list(row.result.token_ids)
        with torch.no_grad():
            logits = lm.model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].float()
        log_probs = logits.log_softmax(-1)[range(len(answer)), answer]
        assert row.perplexity == pytest.approx(math.exp(-float(log_probs.mean())), rel=1e-3)
        assert row.changed == int((logits.argmax(-1) != torch.tensor(answer)).sum())
        assert row.checks == {"no_comma": "," not in row.result.text, "regex:^[A-Z]": row.result.text[0].isupper()}
        stats = row.result.stats
        seconds = stats.prefill_seconds + stats.ranking_seconds + stats.decode_seconds
        assert stats.seconds == seconds
        assert row.tokens_per_second == pytest.approx(stats.generated_tokens / seconds)
    assert rows[0].changed == 0


def test_a_score_in_pieces_is_the_score(lm: heedful.LM, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt, answer = list(range(20, 60)), list(range(100, 117))
    whole = score(lm.engine, prompt, answer)
    monkeypatch.setattr("heedful.scoring.SCORED_TOKENS", 6)
    pieces = score(lm.engine, prompt, answer)
    assert pieces.log_probs == pytest.approx(whole.log_probs, abs=1e-4)
    assert pieces.likeliest == whole.likeliest
    assert len(whole.log_probs) == len(answer)


@pytest.mark.parametrize(
    ("spec", "yes", "no"),
    [
        ("no_comma", "a b", "a, b"),
        ("json", '{"a": [1]}', "{'a': 1}"),
        ("json", "1", "NaN"),
        ("lowercase", "ab c", "Ab"),
        ("uppercase", "AB", "Ab"),
        ("regex:^a+$", "aaa", "aab"),
        ("contains:Tea", "some tea", "coffee"),
        ("excludes:tea", "coffee", "Tea"),
        ("starts:Once", " Once upon", "There once"),
        ("ends:end.", "The end. ", "The end"),
        ("min_words:2", "a b", "a"),
        ("max_words:2", "a b", "a b c"),
    ],
)
def test_constraints(spec: str, yes: str, no: str) -> None:
    assert constraint(spec).holds(yes)
    assert not constraint(spec).holds(no)


@pytest.mark.parametrize(
    "spec", ["nothing", "regex:", "regex:(", "max_words:few", "max_words", "no_comma:1", "json:x", ""]
)
def test_unknown_constraints(spec: str) -> None:
    with pytest.raises(OptionError):
        constraint(spec)


def test_methods_by_name() -> None:
    assert method_by_name("none") is None
    for name in NAMES:
        options = {"heads": {0: [1]}} if name.startswith("pasta") else {}
        method = method_by_name(name, options)
        assert (method is None) == (name == "none")
        if method is not None:
            assert json.dumps(method.describe())
            assert (method.recipe().gate is not None) == (name.endswith("-gated") or name == "directer")
    assert parse_method("static:strength=7:level=2") == heedful.KeyScaling(7, level=2)
    assert parse_method("spotlight-gated:threshold=0.2") == heedful.SpotLight(gate=heedful.Plausibility(0.2))
    assert parse_method("directer:ranking=random:1") == heedful.Directer(ranking="random:1")
    assert parse_method('pasta:heads={"0": [1]}') == heedful.Pasta({0: [1]})
    assert list(parse_methods('none, static:layers=[0,1],pasta:heads={"0":[1,2]}'))[1] == "static:layers=[0,1]"
    for wrong in (
        *("nope", "static:speed=1", "static:strength", "none:strength=1", "none-gated", "directer-gated"),
        *("static:layers=3", "spotlight:layers=1", "pasta:heads=3", "pasta:heads=[1]", "directer:ranking=3"),
        *("pasta:profile=3", "pasta:profile=x:heads=1", "static:gate=1", 'static:strength="7"', "spotlight:pooled=no"),
    ):
        with pytest.raises(OptionError):
            parse_method(wrong)


def test_the_command(lm: heedful.LM, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("heedful.cli.options.load_quietly", lambda *_: lm)
    options = ["--methods", "none,directer, static:strength=2", "-n", "8", "--check", "no_comma"]
    app(["compare", PROMPT, *options], standalone_mode=False)
    table = capsys.readouterr().out
    assert all(word in table for word in ("directer", "static:strength=2", "perplexity", "no_comma"))
    app(["compare", PROMPT, *options, "--json"], standalone_mode=False)
    found = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in found] == ["none", "directer", "static:strength=2"]
    assert found[2]["result"]["method"]["strength"] == 2


@pytest.mark.parametrize(
    "options", [["--methods", "nope"], ["--methods", ","], ["--check", "nope"], ["--methods", "pasta"]]
)
def test_what_cannot_be_compared(lm: heedful.LM, monkeypatch: pytest.MonkeyPatch, options: list[str]) -> None:
    monkeypatch.setattr("heedful.cli.options.load_quietly", lambda *_: lm)
    with pytest.raises(OptionError):
        app(["compare", PROMPT, *options], standalone_mode=False)
