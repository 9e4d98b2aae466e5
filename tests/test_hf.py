"""`generate(custom_generate=…)`: transformers' own contract, and the model left as it was."""

from typing import Any

import pytest
import torch
from transformers import LogitsProcessor, StoppingCriteria, TextIteratorStreamer

import families
import heedful
from heedful.engine import Engine
from helpers import directer, new_tokens, request, run

IDS = torch.tensor([families.prompt(1)])
MASK = torch.zeros_like(IDS).index_fill_(1, torch.tensor(families.SPAN), 1)


class Streamer:
    def put(self, ids: torch.Tensor) -> None:
        pass

    def end(self) -> None:
        pass


@pytest.fixture(scope="module")
def model() -> Any:
    return families.build("llama")


def generate(model: Any, method: Any, **more: Any) -> Any:
    options = {"max_new_tokens": 16, "do_sample": False, "pad_token_id": 0, "attention_mask": torch.ones_like(IDS)}
    return model.generate(IDS, custom_generate=heedful.hf.custom_generate(method), **{**options, **more})


def test_plain_is_generate(model: Any) -> None:
    ours = generate(model, None)
    theirs = model.generate(
        IDS, max_new_tokens=16, do_sample=False, pad_token_id=0, attention_mask=torch.ones_like(IDS)
    )
    assert torch.equal(ours, theirs)


def test_directer_is_the_library(model: Any) -> None:
    (answer,) = run(Engine(model), [request(IDS[0].tolist(), directer(), families.SPAN, 16)])
    ours = generate(model, heedful.Directer(), instruction_mask=MASK, return_dict_in_generate=True)
    assert ours.sequences[0, IDS.shape[1] :].tolist() == new_tokens(answer)
    assert model.config._attn_implementation != "heedful"


def test_left_padding_changes_nothing(model: Any) -> None:
    short, pad = IDS[:, 5:], torch.zeros(1, 5, dtype=torch.long)
    batch = torch.cat([IDS, torch.cat([pad, short], 1)])
    attention = torch.ones_like(batch)
    attention[1, :5] = 0
    both = model.generate(
        batch,
        attention_mask=attention,
        instruction_mask=MASK.repeat(2, 1),
        custom_generate=heedful.hf.custom_generate(heedful.Directer()),
        max_new_tokens=12,
        do_sample=False,
        pad_token_id=0,
    )
    span = [p - 5 for p in families.SPAN]
    (alone,) = run(Engine(model), [request(short[0].tolist(), directer(), span, 12)])
    assert both[1, batch.shape[1] :].tolist() == new_tokens(alone)


def test_sampling_draws_as_transformers_does(model: Any) -> None:
    more = {"do_sample": True, "temperature": 1.3, "top_k": 20, "top_p": 0.9}
    torch.manual_seed(3)
    ours = generate(model, None, **more)
    torch.manual_seed(3)
    theirs = model.generate(IDS, max_new_tokens=16, pad_token_id=0, attention_mask=torch.ones_like(IDS), **more)
    assert torch.equal(ours, theirs)


def test_processors_and_criteria_are_honoured(model: Any) -> None:
    class Ban(LogitsProcessor):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            return scores.index_fill(1, torch.arange(64), -torch.inf)

    class Five(StoppingCriteria):
        def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
            return torch.tensor([input_ids.shape[1] >= IDS.shape[1] + 5])

    for method, mask in ((None, None), (heedful.Directer(), MASK)):
        out = generate(model, method, instruction_mask=mask, logits_processor=[Ban()], stopping_criteria=[Five()])
        new = out[0, IDS.shape[1] :].tolist()
        assert len(new) == 5
        assert min(new) >= 64


def test_repetition_penalty_reaches_the_gate(model: Any) -> None:
    plain = model.generate(
        IDS, max_new_tokens=16, do_sample=False, repetition_penalty=1.5, attention_mask=torch.ones_like(IDS)
    )
    assert torch.equal(generate(model, None, repetition_penalty=1.5), plain)


def test_token_streamer(model: Any, lm: heedful.LM) -> None:
    inputs = lm.tokenizer("The sea is", return_tensors="pt")
    streamer = TextIteratorStreamer(lm.tokenizer, skip_prompt=True, timeout=5)
    out = lm.model.generate(
        **inputs,
        custom_generate=heedful.hf.custom_generate(None),
        token_streamer=streamer,
        max_new_tokens=8,
        do_sample=False,
    )
    assert "".join(streamer) == lm.tokenizer.decode(out[0, inputs["input_ids"].shape[1] :])


@pytest.mark.parametrize(
    ("more", "error"),
    [
        ({"streamer": Streamer()}, "token_streamer"),
        ({"num_beams": 2}, "num_beams"),
        ({"output_scores": True, "return_dict_in_generate": True}, "output_scores"),
        ({"cache_implementation": "static"}, "cache_implementation"),
        ({"instruction_mask": None}, "instruction_mask"),
        ({"instruction_mask": torch.zeros_like(MASK)}, "marks no token"),
        ({"instruction_mask": MASK[:, :3]}, "instruction_mask is"),
    ],
)
def test_what_cannot_be_honoured_is_refused(model: Any, more: dict[str, Any], error: str) -> None:
    with pytest.raises(heedful.HeedfulError, match=error):
        generate(model, heedful.Directer(), **{"instruction_mask": MASK, **more})
    assert model.config._attn_implementation != "heedful"


@pytest.mark.parametrize(
    "method",
    [
        heedful.Directer(compat="released"),
        heedful.KeyScaling(3.0, level=1),
        heedful.SpotLight(0.4),
        heedful.SpotLight(0.4, gate=heedful.Plausibility(0.3)),
        heedful.InstABoost(4.0),
        heedful.Pasta({2: [1, 3], 9: [0]}),
        heedful.ContextAware(1.0),
        heedful.Anchoring(2.0, gate=heedful.Plausibility(0.3)),
    ],
)
def test_every_method_is_the_librarys(lm: heedful.LM, method: Any) -> None:
    encoded = lm.encode("Name a river. <heed>Use no commas.</heed> Now.")
    mask = torch.zeros(1, len(encoded.token_ids))
    mask[0, list(encoded.span.positions)] = 1.0
    out = lm.model.generate(
        torch.tensor([encoded.token_ids]),
        instruction_mask=mask,
        custom_generate=heedful.hf.custom_generate(method),
        max_new_tokens=8,
        do_sample=False,
    )
    ours = lm.generate("Name a river. <heed>Use no commas.</heed> Now.", method=method, max_new_tokens=8)
    assert out[0, len(encoded.token_ids) :].tolist()[: len(ours.token_ids)] == list(ours.token_ids)


@pytest.mark.parametrize("method", ["directer", heedful.Directer])
def test_what_is_no_method(lm: heedful.LM, method: Any) -> None:
    with pytest.raises(heedful.OptionError, match="method must be"):
        lm.generate("Name a river. <heed>Use no commas.</heed>", method=method, max_new_tokens=2)
