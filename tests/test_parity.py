"""Every family: plain decoding is transformers' own, Directer is the sequential oracle, a batch changes nothing."""

from functools import cache
from typing import Any

import pytest
import torch

import families
from heedful.bench import sequential
from heedful.engine import Chunk, Edit, Engine, Row
from heedful.steerers import KeyScaling
from helpers import directer, new_tokens, request, run, ungated

every_family = pytest.mark.parametrize("name", families.NAMES)
NEW = 20


@cache
def engine_of(name: str) -> Engine:
    return Engine(families.build(name))


def generate(model: Any, ids: list[int], new: int) -> list[int]:
    inputs = torch.tensor([ids])
    options = {"do_sample": False, "max_new_tokens": new, "pad_token_id": 0, "attention_mask": torch.ones_like(inputs)}
    return model.generate(inputs, **options)[0, len(ids) :].tolist()


@every_family
@pytest.mark.parametrize("length", [1, 2, families.PROMPT_LENGTH, 45])
def test_plain_is_generate(name: str, length: int) -> None:
    engine, ids = engine_of(name), families.prompt(3, length)
    (answer,) = run(engine, [request(ids, new=NEW)])
    assert new_tokens(answer) == generate(engine.model, ids, NEW)


@every_family
@pytest.mark.parametrize(
    ("strength", "options"),
    [
        (100.0, {}),
        (8.0, {"threshold": 0.2}),
        (100.0, {"compat": "released", "ranking": "released"}),
        (30.0, {"threshold": 0.0}),
    ],
)
def test_directer_is_the_oracle(name: str, strength: float, options: dict[str, Any]) -> None:
    engine, ids = engine_of(name), families.prompt(1)
    span = list(families.SPAN)
    wide = [*span, span[-1] + 1] if options.get("compat") else span
    oracle = sequential.directer(engine.model, ids, span, strength=strength, max_new_tokens=NEW, **options)
    (answer,) = run(engine, [request(ids, directer(strength, **options), wide, NEW)])
    assert list(answer.ranking) == list(oracle.ranking)
    assert new_tokens(answer) == oracle.token_ids
    assert [step.decision for step in answer.steps] == oracle.decisions
    assert [step.layers for step in answer.steps] == oracle.layers
    assert [step.trials for step in answer.steps] == oracle.trials
    assert answer.stats.forward_passes <= NEW + answer.stats.gated  # these models are flat: V_β outgrows the guesses


@every_family
def test_a_batch_changes_nothing(name: str) -> None:
    engine = engine_of(name)
    requests = [
        request(families.prompt(seed, 12 + 5 * seed), recipe, range(2, 8), new)
        for seed, (recipe, new) in enumerate(
            [(None, 9), (directer(), 17), (directer(5.0, 0.1), 12), (ungated(3.0), 14), (None, 3), (directer(), 11)]
        )
    ]
    alone = [new_tokens(run(engine, [r])[0]) for r in requests]
    for num_slots in (1, 2, 6):
        assert [new_tokens(a) for a in run(engine, requests, num_slots)] == alone


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "gpt_oss"])
def test_a_long_prompt_in_chunks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, ids = engine_of(name), families.prompt(5, 61)
    whole = [new_tokens(a) for a in run(engine, [request(ids), request(ids, directer(), range(40, 50))])]
    monkeypatch.setattr("heedful.decode.PREFILL_TOKENS", 7)
    monkeypatch.setattr("heedful.engine.attention.BLOCK", 5)
    chunked = [new_tokens(a) for a in run(engine, [request(ids), request(ids, directer(), range(40, 50))])]
    assert chunked == whole


def test_static_scales_the_stored_keys() -> None:
    """Static steering equals a DynamicCache whose span keys were scaled once, after the prefill."""
    from transformers import DynamicCache

    model, ids = families.build("llama"), families.prompt(2)
    cache, tokens = DynamicCache(), list(ids)
    with torch.no_grad():
        model(torch.tensor([ids[:-1]]), past_key_values=cache)
        for layer in cache.layers:
            layer.keys[:, :, list(families.SPAN)] *= 4.0
        for _ in range(12):
            tokens.append(int(model(torch.tensor([tokens[-1:]]), past_key_values=cache).logits[0, -1].argmax()))
    (answer,) = run(Engine(model), [request(ids, ungated(4.0), families.SPAN, 12)])
    assert answer.token_ids == tokens
    assert new_tokens(answer) != generate(model, ids, 12)


def test_a_forward_leaves_what_is_stored() -> None:
    """Discarded rows change no stored key, value or length, bit for bit."""
    engine = engine_of("llama")
    slots = engine.slots(2, 64)
    slots.open(0, 8, [3, 4], [1.0, 1.0])
    engine.forward(slots, [], [Chunk(0, families.prompt(0, 12), 0)])
    before = [(k[0, :, :12].clone(), v[0, :, :12].clone()) for k, v in zip(slots.keys, slots.values, strict=True)]
    edit = Edit(KeyScaling(100.0), frozenset(range(engine.num_layers)))
    engine.forward(slots, [Row(5, 12, 0, edit), Row(6, 12, 0), Row(7, 9, 0, edit)])
    assert slots.lengths == [12, 0]
    for (k, v), keys, values in zip(before, slots.keys, slots.values, strict=True):
        assert torch.equal(k, keys[0, :, :12])
        assert torch.equal(v, values[0, :, :12])


def test_rows_do_not_see_each_other() -> None:
    engine = engine_of("qwen3")
    slots = engine.slots(1, 64)
    engine.forward(slots, [], [Chunk(0, families.prompt(0, 12), 0)])
    alone = engine.forward(slots, [Row(5, 12, 0)]).logits[0]
    together = engine.forward(slots, [Row(9, 12, 0), Row(5, 12, 0), Row(5, 8, 0)]).logits
    torch.testing.assert_close(together[1], alone)
    assert not torch.allclose(together[2], alone)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_huge_strength_stays_finite(dtype: torch.dtype) -> None:
    engine = Engine(families.build("llama").to(dtype))
    slots = engine.slots(1, 64)
    slots.open(0, 8, [3, 4, 5], [1.0] * 3)
    engine.forward(slots, [], [Chunk(0, families.prompt(0, 12), 0)])
    edit = Edit(KeyScaling(1e5), frozenset(range(engine.num_layers)))
    assert engine.forward(slots, [Row(5, 12, 0, edit)]).logits.isfinite().all()


def test_prepared_weights_agree() -> None:
    """Packed weights and fused kernels change nothing but rounding, in bfloat16."""
    from heedful.engine.prepare import can_pack

    for name in ("llama", "qwen2", "qwen3", "gemma2", "phi3", "mixtral"):
        model = families.build(name).to(torch.bfloat16)
        if not can_pack(model.lm_head.weight):
            pytest.skip("this CPU has no bfloat16 kernels")
        plain, prepared = Engine(model, prepare=False), Engine(model, prepare=True)
        assert prepared._preparation is not None
        logits = []
        for engine in (plain, prepared):
            slots = engine.slots(1, 64)
            engine.forward(slots, [], [Chunk(0, families.prompt(0, 30), 0)])
            logits.append(engine.forward(slots, [Row(5, 30, 0), Row(7, 30, 0)]).logits.float())
        error = torch.linalg.norm(logits[0] - logits[1]) / torch.linalg.norm(logits[0])
        assert error < 0.05, name
        model.lm_head.weight.data.mul_(2)  # a changed weight is packed again
        with torch.no_grad():
            model.lm_head.weight.mul_(1.0)
        again = prepared.forward(slots, [Row(5, 30, 0), Row(7, 30, 0)]).logits.float()
        if name != "gemma2":  # its logits are soft-capped
            torch.testing.assert_close(again, 2 * logits[1], rtol=0.05, atol=0.1)


def test_the_model_is_left_as_it_was() -> None:
    model = families.build("llama").to(torch.bfloat16).train()
    before = (dict(model.state_dict()), model.config._attn_implementation, model.training)
    engine = Engine(model)
    run(engine, [request(families.prompt(), directer(), families.SPAN)])
    with pytest.raises(RuntimeError, match="on purpose"), engine.attached():
        raise RuntimeError("on purpose")
    assert model.config._attn_implementation == before[1]
    assert model.training
    assert all("forward" not in module.__dict__ for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(value, before[0][key]) for key, value in model.state_dict().items())


def test_a_quantised_model() -> None:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    model = families.build("llama").to(torch.bfloat16)
    quantize_(model, Int8WeightOnlyConfig())
    engine = Engine(model)
    (answer,) = run(engine, [request(families.prompt(), directer(), families.SPAN, 8)])
    assert len(new_tokens(answer)) == 8


def test_a_model_spread_by_a_device_map() -> None:
    from accelerate import dispatch_model

    model = families.build("llama")
    ids = families.prompt(4)
    whole = new_tokens(run(Engine(model), [request(ids, directer(), families.SPAN)])[0])
    names = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "disk"}
    layers = {f"model.layers.{i}": "cpu" for i in range(model.config.num_hidden_layers)}
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        spread = dispatch_model(model, {**names, **layers}, offload_dir=folder, force_hooks=True)
        assert new_tokens(run(Engine(spread), [request(ids, directer(), families.SPAN)])[0]) == whole
