"""`heedful serve --engine vllm`: vLLM behind the server's engine protocol, with the default model."""

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch

import heedful
from heedful.errors import ModelError, OptionError, UnsupportedModelError
from heedful.prompt import EncodedPrompt
from heedful.serve.launch import Loaded
from heedful.serve.protocol import Settings
from heedful.serve.worker import Limits
from heedful.vllm import engine as vllm_engine
from heedful.vllm.decide import Decider, State

PROMPT = "Tell me about the Moon. <heed>Do not use any commas.</heed>"
METHODS: list[Any] = [heedful.Directer(), None, heedful.KeyScaling(2.0), heedful.Directer(threshold=0.2)]


@pytest.fixture(scope="module")
def served() -> Iterator[Loaded]:
    found = vllm_engine.loaded(None, "float32", Limits(4, 8), 512, {"enforce_eager": True, "max_logprobs": 4})
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
    for given, message in (
        ({"nonsense": 1}, "no such option"),
        ({"logprobs_mode": "processed_logprobs"}, "is set by Heedful"),
        ({"max_num_seqs": 99}, "is set by Heedful"),
        ({"tensor_parallel_size": 2}, "one process"),
    ):
        with pytest.raises(OptionError, match=message):
            vllm_engine.loaded(None, "float32", Limits(4, 8), 512, given)


@pytest.mark.parametrize(
    ("method", "num_top", "message"), [(None, 9, "vLLM refuses it"), (heedful.KeyScaling(3.0), 0, "not finite")]
)
def test_who_cannot_be_answered_ends_alone_and_with_the_reason(
    served: Loaded, method: Any, num_top: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overflows(decider: Decider, steered: torch.Tensor, states: Sequence[State], own: torch.Tensor) -> None:
        for at, state in enumerate(states):
            if not state.is_gated:
                steered[:, at, 5] = torch.nan

    monkeypatch.setattr(Decider, "_alike", overflows)
    encoded = served.text.encode(PROMPT)

    async def both() -> list[Any]:
        bad = served.engine.submit(encoded.token_ids, encoded.span, Settings(8, method, num_top=num_top))

        async def read() -> None:
            async for _ in bad:
                pass

        return await asyncio.gather(read(), answered(served, heedful.Directer(), encoded), return_exceptions=True)

    error, tokens = asyncio.run(both())
    assert message in str(error)
    assert tokens[-1].finish_reason == "eos"
    status = served.engine.status()
    assert (status.state, status.num_running, status.num_failures) == ("ok", 0, 0)
    assert not served.engine._decoder._host.trails  # type: ignore[attr-defined]


def test_what_was_read_before_is_told(served: Loaded) -> None:
    encoded = served.text.encode("word " * 200 + PROMPT)
    first, second = (asyncio.run(answered(served, heedful.Directer(), encoded))[-1] for _ in range(2))
    assert first.num_reused < second.num_reused < len(encoded.token_ids)


def test_a_model_that_is_not_steered_is_not_served(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(host: Any) -> None:
        raise UnsupportedModelError("the sums are odd")

    monkeypatch.setattr("heedful.vllm.selfcheck.check", fails)
    with pytest.raises(ModelError, match=r"cannot steer this model: .*the sums are odd"):
        vllm_engine.loaded(None, "float32", Limits(4, 8), 256, {"enforce_eager": True})
