"""`heedful serve --engine vllm`: vLLM behind the server's engine protocol, with the default model."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

import heedful
from heedful.errors import OptionError
from heedful.prompt import EncodedPrompt
from heedful.serve.launch import Loaded
from heedful.serve.protocol import Settings
from heedful.serve.worker import Limits
from heedful.vllm import engine as vllm_engine

PROMPT = "Tell me about the Moon. <heed>Do not use any commas.</heed>"
METHODS: list[Any] = [heedful.Directer(), None, heedful.KeyScaling(2.0), heedful.Directer(threshold=0.2)]


@pytest.fixture(scope="module")
def served() -> Iterator[Loaded]:
    found = vllm_engine.loaded(None, "float32", Limits(4, 8), 512, {"enforce_eager": True})
    found.engine.start()
    yield found
    found.engine.stop()


async def answered(served: Loaded, method: Any, encoded: EncodedPrompt) -> list[Any]:
    stream = served.engine.submit(encoded.token_ids, encoded.span, Settings(20, method, num_top=2))
    return [token async for token in stream]


def test_answers_and_decisions_are_the_cores(served: Loaded) -> None:
    lm = heedful.load(dtype="float32")
    encoded = served.text.encode(PROMPT)
    assert encoded.token_ids == lm.encode(PROMPT).token_ids

    async def all_at_once() -> list[list[Any]]:
        return list(await asyncio.gather(*(answered(served, method, encoded) for method in METHODS)))

    for method, tokens in zip(METHODS, asyncio.run(all_at_once()), strict=True):
        wanted = lm.generate(PROMPT, method=method, max_new_tokens=20)
        assert [token.step.token_id for token in tokens] == list(wanted.token_ids)
        told = [(token.step.decision, token.step.layers, token.step.trials) for token in tokens]
        assert told == [(step.decision, step.layers, step.trials) for step in wanted.trace.steps]
        assert tokens[-1].finish_reason == wanted.finish_reason
        assert all(len(token.top) == 2 for token in tokens)
        assert tokens[-1].stats.changed == wanted.stats.changed
        if method != heedful.KeyScaling(2.0):  # an ungated steerer's are of other distributions
            p_raw = [step.p_raw for step in wanted.trace.steps]
            assert [token.step.p_raw for token in tokens] == pytest.approx(p_raw, rel=1e-3)


def test_who_leaves_frees_his_place(served: Loaded) -> None:
    async def leaving() -> None:
        encoded = served.text.encode(PROMPT)
        stream = served.engine.submit(encoded.token_ids, encoded.span, Settings(400, None))
        await anext(aiter(stream))
        stream.cancel()
        while served.engine.status().num_running:
            await asyncio.sleep(0.05)

    asyncio.run(asyncio.wait_for(leaving(), 60))


def test_what_vllm_cannot_do_is_refused(served: Loaded) -> None:
    with pytest.raises(OptionError, match="take no bias"):
        served.engine.check(heedful.SpotLight())
    with pytest.raises(OptionError, match="no such option"):
        vllm_engine.loaded(None, "float32", Limits(4, 8), 512, {"nonsense": 1})
