"""Inspect with Heedful inside: answers are those of `LM.generate`, and nothing is ignored silently."""

import asyncio
import re
import socket
import warnings
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch

import heedful
from heedful.errors import DataError, HeedfulError, OptionError, SpanError
from heedful.methods import parse_method

pytestmark = pytest.mark.filterwarnings("ignore:The 'initial' parameter:DeprecationWarning")  # Inspect's own retries

METHOD = "static:strength=3"  # ungated, so that the answers differ from plain ones
MARKED = "Do not use any commas."
PROMPT = f"{MARKED} Name three fruits."


@pytest.fixture(autouse=True)
def offline(lm: heedful.LM, monkeypatch: pytest.MonkeyPatch) -> None:
    """No network, and the session's model in place of a fresh one."""

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("a test asked for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr("heedful.harness.asking.load", lambda **_: lm)


@pytest.fixture
def inspect(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`inspect_ai.model`, with the provider as its entry point names it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Inspect's own dependencies, at their import
        pytest.importorskip("inspect_ai", minversion="0.3.285")
        module = pytest.importorskip("inspect_ai.model")
    text = (Path(__file__).parent.parent / "pyproject.toml").read_text()
    found = re.search(r'entry-points\.inspect_ai\]\nheedful = "(.+)"', text)
    assert found is not None
    EntryPoint("heedful", found[1], "inspect_ai").load()
    return module


def asked(inspect: Any, *messages: Any, more: Any = None, **config: Any) -> Any:
    """The output for the messages."""
    made = inspect.get_model("heedful/default", memoize=False, method=METHOD, **(more or {}))
    options = inspect.GenerateConfig(**{"max_tokens": 4, **config})
    return asyncio.run(made.generate(list(messages), config=options))


def user(inspect: Any, text: str, *marks: Any) -> Any:
    metadata = {"heedful": {"instructions": list(marks)}} if marks else None
    return inspect.ChatMessageUser(content=text, metadata=metadata)


def test_inspect_answers_as_generate_does_and_together(inspect: Any, lm: heedful.LM, monkeypatch: Any) -> None:
    """Texts, ranges and tags mark the same; what comes together is answered together, as many at a time as fit."""
    wanted = lm.generate(PROMPT, instructions=[MARKED], method=parse_method(METHOD), max_new_tokens=4)
    messages = [
        user(inspect, PROMPT, MARKED),
        user(inspect, PROMPT, [0, len(MARKED)]),
        user(inspect, PROMPT.replace(MARKED, f"<heed>{MARKED}</heed>")),
    ]
    sizes: list[int] = []
    real = lm.results
    monkeypatch.setattr(lm, "results", lambda jobs, **kw: sizes.append(len(jobs)) or real(jobs, **kw))
    made = inspect.get_model("heedful/default", memoize=False, method=METHOD, batch_size=2)

    async def all_at_once() -> list[Any]:
        options = inspect.GenerateConfig(max_tokens=4, max_connections=3)
        return await asyncio.gather(*(made.generate([message], config=options) for message in messages))

    for output in asyncio.run(all_at_once()):
        assert output.completion == wanted.text
        assert output.stop_reason == "max_tokens"
        assert output.usage.input_tokens == wanted.stats.prompt_tokens
        assert output.usage.output_tokens == wanted.stats.generated_tokens == 4
        assert output.metadata["heedful"]["accepted"] == wanted.stats.accepted
    assert sizes == [2, 1]


class Poison(heedful.KeyScaling):
    """Overflows, as too strong a steerer may."""

    def edit(self, scores: Any, span: Any, layer: int) -> None:
        scores[span.active.expand_as(scores)] = torch.nan


def test_inspect_an_overflow_is_the_error_of_its_request_alone(inspect: Any, lm: heedful.LM) -> None:
    made = inspect.get_model("heedful/default", memoize=False, method=METHOD, unmarked="plain")
    made.api.asking = replace(made.api.asking, method=Poison())
    wanted = lm.generate("Say hello.", method=None, max_new_tokens=4)

    async def both() -> list[Any]:
        options = inspect.GenerateConfig(max_tokens=4, max_connections=2, max_retries=0)
        asked = [user(inspect, PROMPT, MARKED), user(inspect, "Say hello.")]
        calls = (made.generate([message], config=options) for message in asked)
        return await asyncio.gather(*calls, return_exceptions=True)

    steered, plain = asyncio.run(both())
    assert isinstance(steered, heedful.NumericError)
    assert plain.completion == wanted.text


def test_inspect_heeds_a_role(inspect: Any, lm: heedful.LM) -> None:
    system = inspect.ChatMessageSystem(content=MARKED)
    output = asked(inspect, system, user(inspect, "Name fruits."), more={"instructions": "system"}, stop_seqs=["s"])
    chat = [{"role": "system", "content": MARKED}, {"role": "user", "content": "Name fruits."}]
    wanted = lm.generate(chat, instructions="system", method=parse_method(METHOD), max_new_tokens=4, stop=["s"])
    assert output.completion == wanted.text


def test_inspect_samples_with_a_seed(inspect: Any, lm: heedful.LM) -> None:
    sampling = heedful.Sampling(temperature=1.5, top_k=50, top_p=0.9, seed=4)
    wanted = lm.generate("Say hello.", method=None, max_new_tokens=4, sampling=sampling)
    options = {"temperature": 1.5, "top_k": 50, "top_p": 0.9, "seed": 4}
    output = asked(inspect, user(inspect, "Say hello."), more={"unmarked": "plain"}, **options)
    assert output.completion == wanted.text


@pytest.mark.parametrize(
    ("marks", "more", "config", "kind", "line"),
    [
        ((), {}, {}, SpanError, "nothing in the prompt is marked"),
        (("No commas",), {}, {}, SpanError, "message 0 lacks 'No commas'; the closest is"),
        ((7,), {}, {}, DataError, "is text or [start, stop], not 7"),
        ((MARKED,), {}, {"frequency_penalty": 0.5}, OptionError, "no generation option 'frequency_penalty'"),
        ((MARKED,), {}, {"cache": True}, OptionError, "Inspect's cache of answers does not know the method"),
        ((MARKED,), {"pretrained": "x"}, {}, OptionError, "takes no argument 'pretrained'"),
        ((MARKED,), {"base_url": "http://x"}, {}, OptionError, "neither a base URL"),
    ],
)
def test_inspect_refuses(
    inspect: Any, marks: Any, more: dict[str, Any], config: dict[str, Any], kind: type[HeedfulError], line: str
) -> None:
    with pytest.raises(kind, match=re.escape(line)):
        asked(inspect, user(inspect, PROMPT, *marks), more=more, **config)


def test_inspect_evaluates_a_task(inspect: Any, lm: heedful.LM, tmp_path: Path) -> None:
    """A whole evaluation, from a data set to a score and the usage in the log."""
    from inspect_ai import Task, eval
    from inspect_ai.dataset import Sample
    from inspect_ai.scorer import includes

    wanted = lm.generate(PROMPT, instructions=[MARKED], method=parse_method(METHOD), max_new_tokens=4)
    sample = Sample(input=[user(inspect, PROMPT, MARKED)], target=wanted.text)
    made = inspect.get_model("heedful/default", memoize=False, method=METHOD)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (log,) = eval(
            Task(dataset=[sample], scorer=includes()),
            model=made,
            max_tokens=4,
            display="none",
            log_dir=str(tmp_path),
        )
    assert log.status == "success", log.error
    assert log.samples[0].output.completion == wanted.text
    assert log.results.scores[0].metrics["accuracy"].value == 1.0
    assert log.stats.model_usage["heedful/default"].output_tokens == 4
