"""The oracle itself: against transformers' own greedy decoding, against score edits that never touch a cache, by hand.

`scored_logits` is the independent check: no cache at all, the whole sequence in one pass, and the pre-softmax scores of
its last row multiplied at the span. If stored keys were scaled at a wrong position or layer, or a trial left anything
behind, the two would part. `llama_logits` goes further down and uses nothing of transformers but the weights.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, PreTrainedModel
from transformers.masking_utils import eager_mask

import families
from heedful.bench import sequential
from heedful.bench.sequential import SequentialResult, directer, plain
from heedful.errors import OptionError, SpanError, UnsupportedModelError

NUM_NEW = 20
SCORED = "heedful_test_scored"
SIZES = {4: [4, 2, 1], 5: [5, 2, 1]}  # layers steered at each trial, by the number of layers
Edits = Mapping[int, Mapping[int, float]]  # layer -> position -> factor
EDITS: dict[int, Mapping[int, float]] = {}  # what `scored_attention` applies now


def scored_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """Attention with the last row's scores multiplied as EDITS says, before soft-cap, mask and sinks."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.mT * scaling  # (1, heads, rows, tokens)
    for position, factor in EDITS.get(module.layer_idx, {}).items():
        scores[:, :, -1, position] *= factor
    if softcap is not None:
        scores = (scores / softcap).tanh() * softcap
    scores = scores + attention_mask
    if s_aux is not None:
        scores = torch.cat([scores, s_aux.view(1, -1, 1, 1).expand(1, -1, scores.shape[2], 1)], -1)
    weights = scores.softmax(-1)[..., : key.shape[2]]
    return (weights @ value).transpose(1, 2).contiguous(), weights


AttentionInterface.register(SCORED, scored_attention)
AttentionMaskInterface.register(SCORED, eager_mask)


@contextmanager
def scored(model: PreTrainedModel, edits: Edits) -> Iterator[None]:
    former = model.config._attn_implementation
    model.set_attn_implementation(SCORED)
    EDITS.update(edits)
    try:
        yield
    finally:
        EDITS.clear()
        model.set_attn_implementation(former)


def scored_logits(model: PreTrainedModel, token_ids: Sequence[int], edits: Edits) -> Tensor:
    """The last token's logits, the whole sequence run at once without a cache."""
    with torch.no_grad(), scored(model, edits):
        logits: Tensor = model(torch.tensor([list(token_ids)]), use_cache=False).logits
    return logits[0, -1]


def edits_for(layers: Sequence[int], factors: Mapping[int, float], token_ids: Sequence[int]) -> Edits:
    """`factors` in each of `layers`, the last token's own position left out."""
    stored = {position: factor for position, factor in factors.items() if position < len(token_ids) - 1}
    return dict.fromkeys(layers, stored)


def assert_replays(
    model: PreTrainedModel,
    prompt: list[int],
    result: SequentialResult,
    factors: Mapping[int, float],
    *,
    threshold: float = 0.5,
    sizes: Sequence[int] | None = None,
) -> None:
    """Recompute every step from scratch with score edits and compare what was decided."""
    sizes = SIZES[len(result.ranking)] if sizes is None else sizes
    for step, token in enumerate(result.token_ids):
        seen = prompt + result.token_ids[:step]
        p = scored_logits(model, seen, {}).softmax(-1)
        expected = (int(p.argmax()), "rejected", 0, len(sizes))
        if p.sort().values[-2] < threshold * p.max():
            expected = (int(p.argmax()), "skipped", 0, 0)
        else:
            for trial, size in enumerate(sizes, start=1):
                edits = edits_for(result.ranking[:size], factors, seen)
                candidate = int(scored_logits(model, seen, edits).argmax())
                if p[candidate] >= threshold * p.max():
                    expected = (candidate, "accepted", size, trial)
                    break
        assert (token, result.decisions[step], result.layers[step], result.trials[step]) == expected, f"step {step}"


@cache
def model_of(name: str, seed: int = 0) -> PreTrainedModel:
    return families.build(name, seed)


@cache
def result_of(name: str, strength: float = 100.0, threshold: float = 0.5, seed: int = 0) -> SequentialResult:
    model, prompt = model_of(name, seed), families.prompt(seed)
    return directer(model, prompt, families.SPAN, strength=strength, threshold=threshold, max_new_tokens=NUM_NEW)


@cache
def plain_of(name: str, seed: int = 0) -> SequentialResult:
    return plain(model_of(name, seed), families.prompt(seed), NUM_NEW)


every_family = pytest.mark.parametrize("name", families.NAMES)


# -- against transformers


@every_family
def test_plain_is_generate(name: str) -> None:
    """Also where windows are shorter than the prompt: generate() drops old keys there, the oracle only masks them."""
    prompt = torch.tensor([families.prompt()])
    ids = model_of(name).generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=NUM_NEW, do_sample=False
    )
    assert plain_of(name).token_ids == ids[0, families.PROMPT_LENGTH :].tolist()


def test_plain_stops_after_any_eos() -> None:
    tokens = plain_of("llama").token_ids
    eos_ids = [tokens[6], tokens[4]]
    prompt = torch.tensor([families.prompt()])
    mask = torch.ones_like(prompt)
    ids = model_of("llama").generate(
        prompt, attention_mask=mask, max_new_tokens=NUM_NEW, do_sample=False, eos_token_id=eos_ids, pad_token_id=0
    )
    stopped = plain(model_of("llama"), families.prompt(), NUM_NEW, eos_ids).token_ids
    assert stopped == ids[0, families.PROMPT_LENGTH :].tolist()
    assert stopped[-1] in eos_ids
    assert len(stopped) <= 5


# -- against score edits without a cache


@pytest.mark.parametrize("strength", [3.0, 100.0])
@every_family
def test_key_scaling_is_score_scaling(name: str, strength: float) -> None:
    factors = dict.fromkeys(families.SPAN, strength)
    assert_replays(model_of(name), families.prompt(), result_of(name, strength), factors)


@every_family
def test_a_family_is_worth_testing_on(name: str) -> None:
    """Else the tests above would pass on models that no edit reaches."""
    results = [result_of(name, strength) for strength in (3.0, 100.0)]
    assert {decision for result in results for decision in result.decisions} == {"skipped", "accepted", "rejected"}
    assert any(result.token_ids != plain_of(name).token_ids for result in results)
    assert len({size for result in results for size in result.layers}) > 2
    assert len(set(plain_of(name).token_ids)) > NUM_NEW // 4


def test_weights_are_exponents() -> None:
    model, prompt, weights = model_of("qwen3"), families.prompt(), [0.0, 0.5, 1.0, -1.0, 1.5, 0.25]
    result = directer(model, prompt, families.SPAN, strength=9.0, weights=weights, max_new_tokens=NUM_NEW)
    factors = {12: 1.0, 13: 3.0, 14: 9.0, 15: 1 / 9, 16: 27.0, 17: 3**0.5}
    assert_replays(model, prompt, result, factors)
    assert result.token_ids != result_of("qwen3", 9.0).token_ids


def test_current_token_is_never_scaled() -> None:
    """The span holds the last prompt token: the row's own key at the first step, a stored one from the second on."""
    model, prompt, span = model_of("llama"), families.prompt(), range(15, 20)
    result = directer(model, prompt, span, strength=30.0, threshold=0.2, max_new_tokens=NUM_NEW)
    assert_replays(model, prompt, result, dict.fromkeys(span, 30.0), threshold=0.2)
    without_last = directer(model, prompt, span[:-1], strength=30.0, threshold=0.2, max_new_tokens=NUM_NEW)
    assert result.token_ids[0] == without_last.token_ids[0]
    assert result.token_ids != without_last.token_ids


def test_a_span_that_has_left_every_window_steers_nothing() -> None:
    model, prompt, n = model_of("mistral"), families.prompt(), families.PROMPT_LENGTH
    unseen = range(n - 1 - 16 + 1)  # the probe at n - 1 sees 16 positions, its own included
    assert directer(model, prompt, unseen, max_new_tokens=NUM_NEW).token_ids == plain_of("mistral").token_ids
    cache = sequential.prefill(sequential.Passes(model), prompt)
    for position, is_seen in ((unseen[-1], False), (unseen[-1] + 1, True)):
        steered = logits_after(model, sequential.steered_copy(cache, range(4), {position: 100.0}), prompt[-1])
        assert torch.equal(steered, logits_after(model, cache, prompt[-1])) is not is_seen


def logits_after(model: PreTrainedModel, cache: DynamicCache, token: int) -> Tensor:
    with sequential.eager_attention(model):
        return sequential.Passes(model)([token], sequential.deepcopy(cache))


# -- by hand


def llama_logits(model: Any, token_ids: Sequence[int], edits: Edits) -> Tensor:
    """The last row's logits from a Llama's weights alone, each formula spelled out."""
    config, weights = model.config, dict(model.named_parameters())
    num_tokens, num_heads, width = len(token_ids), config.num_attention_heads, config.head_dim
    x = weights["model.embed_tokens.weight"][list(token_ids)]
    for layer in range(config.num_hidden_layers):
        w = {key[len(f"model.layers.{layer}.") :]: v for key, v in weights.items() if f".layers.{layer}." in key}
        h = rms_norm(x, w["input_layernorm.weight"], config.rms_norm_eps)
        q, k, v = (h @ w[f"self_attn.{kind}_proj.weight"].T for kind in "qkv")
        heads = []
        for head in range(num_heads):
            shared = head * config.num_key_value_heads // num_heads
            mine, theirs = slice(head * width, (head + 1) * width), slice(shared * width, (shared + 1) * width)
            scores = rope(q[:, mine]) @ rope(k[:, theirs]).T / width**0.5
            for position, factor in edits.get(layer, {}).items():
                scores[-1, position] = scores[-1, position] * factor
            scores = scores.masked_fill(torch.ones(num_tokens, num_tokens).triu(1).bool(), float("-inf"))
            heads.append(scores.softmax(-1) @ v[:, theirs])
        x = x + torch.cat(heads, -1) @ w["self_attn.o_proj.weight"].T
        h = rms_norm(x, w["post_attention_layernorm.weight"], config.rms_norm_eps)
        gate, up = h @ w["mlp.gate_proj.weight"].T, h @ w["mlp.up_proj.weight"].T
        x = x + (nn.functional.silu(gate) * up) @ w["mlp.down_proj.weight"].T
    x = rms_norm(x, weights["model.norm.weight"], config.rms_norm_eps)
    return x[-1] @ weights["lm_head.weight"].T


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def rope(x: Tensor, base: float = 10000.0) -> Tensor:
    """Rotate (tokens, width) by position: pairs are (i, i + width / 2)."""
    half = x.shape[-1] // 2
    angles = torch.arange(len(x))[:, None] * base ** (-torch.arange(half) / half)
    left, right = x[:, :half], x[:, half:]
    return torch.cat([left * angles.cos() - right * angles.sin(), right * angles.cos() + left * angles.sin()], -1)


@pytest.mark.parametrize("layers", [[], [0], [3], [1, 4], [0, 1, 2, 3, 4]])
def test_llama_by_hand(layers: list[int]) -> None:
    model, prompt, factors = model_of("llama"), families.prompt(), dict.fromkeys(families.SPAN, 5.0)
    cache = sequential.prefill(sequential.Passes(model), prompt)
    steered = logits_after(model, sequential.steered_copy(cache, layers, factors), prompt[-1])
    with torch.no_grad():
        expected = llama_logits(model, prompt, edits_for(layers, factors, prompt))
    torch.testing.assert_close(steered, expected, atol=2e-4, rtol=2e-4)


def test_a_trial_leaves_the_cache_as_it_was() -> None:
    model, prompt = model_of("llama"), families.prompt()
    cache = sequential.prefill(sequential.Passes(model), prompt)
    kept = [(layer.keys.clone(), layer.values.clone()) for layer in cache.layers]
    copy = sequential.steered_copy(cache, [1, 3], {2: 100.0, 5: 10.0})
    logits_after(model, copy, prompt[-1])
    assert all(
        torch.equal(layer.keys, keys) and torch.equal(layer.values, values)
        for layer, (keys, values) in zip(cache.layers, kept, strict=True)
    )
    for j, (layer, (keys, values)) in enumerate(zip(copy.layers, kept, strict=True)):
        keys = keys.clone()
        if j in (1, 3):
            keys[0, :, 2] *= 100.0
            keys[0, :, 5] *= 10.0
        assert torch.equal(layer.keys, keys)
        assert torch.equal(layer.values, values)


# -- the ranking


def blocks_read_and_wrote(model: PreTrainedModel, token_ids: list[int], edits: Edits) -> list[tuple[Tensor, Tensor]]:
    """Each attention block's input and output at the last row of a pass without a cache."""
    seen: list[tuple[Tensor, Tensor]] = []
    blocks = [module for path, module in model.named_modules() if path.endswith("self_attn")]
    hooks = [
        block.register_forward_hook(
            lambda _, __, kwargs, output: seen.append((kwargs["hidden_states"][0, -1], output[0][0, -1])),
            with_kwargs=True,
        )
        for block in blocks
    ]
    scored_logits(model, token_ids, edits)
    for hook in hooks:
        hook.remove()
    return seen


def dist(a: Tensor, b: Tensor) -> float:
    return 1 - float(a @ b / (a.norm() * b.norm()))


def paper_sensitivities(raw: list[tuple[Tensor, Tensor]], rows: list[list[tuple[Tensor, Tensor]]]) -> list[float]:
    """Section 2, symbol by symbol."""
    sensitivities = []
    for row in rows:
        d = [
            (dist(pre, post_l) - dist(pre, post)) + (dist(pre_l, post) - dist(pre, post))
            for (pre, post), (pre_l, post_l) in zip(raw, row, strict=True)
        ]
        sensitivities.append(sum(d) / len(d))
    return sensitivities


def released_sensitivities(raw: list[tuple[Tensor, Tensor]], rows: list[list[tuple[Tensor, Tensor]]]) -> list[float]:
    """Section 7, first line of the table: the score is of layer j, the mean over the probed l."""
    sensitivities = []
    for j, (pre, post) in enumerate(raw):
        d = [max(0.0, dist(pre, row[j][1]) + dist(post, row[j][0])) for row in rows]
        sensitivities.append(sum(d) / len(d))
    return sensitivities


@pytest.mark.parametrize(("ranking", "formula"), [("paper", paper_sensitivities), ("released", released_sensitivities)])
@every_family
def test_ranking(name: str, ranking: str, formula: Callable[..., list[float]]) -> None:
    model, prompt, factors = model_of(name), families.prompt(), dict.fromkeys(families.SPAN, 100.0)
    result = directer(model, prompt, families.SPAN, ranking=ranking, max_new_tokens=0)
    raw = blocks_read_and_wrote(model, prompt, {})
    rows = [blocks_read_and_wrote(model, prompt, {layer: factors}) for layer in range(len(raw))]
    scores = formula(raw, rows)
    assert result.ranking == sorted(range(len(raw)), key=lambda layer: -scores[layer])


def spearman(a: list[int], b: list[int]) -> float:
    n = len(a)
    return 1 - 6 * sum((a.index(layer) - b.index(layer)) ** 2 for layer in range(n)) / (n * (n**2 - 1))


def test_the_released_ranking_hardly_depends_on_steering() -> None:
    def agreement(ranking: str) -> float:
        """Mean rank correlation between next to no steering and full steering."""

        def ranked(seed: int, strength: float) -> list[int]:
            model, prompt = model_of("llama", seed), families.prompt(seed)
            options: dict[str, Any] = {"strength": strength, "ranking": ranking, "max_new_tokens": 0}
            return directer(model, prompt, families.SPAN, **options).ranking

        return sum(spearman(ranked(seed, 1.0001), ranked(seed, 100.0)) for seed in range(6)) / 6

    assert agreement("released") > 0.9 > 0.7 > agreement("paper")


def test_scores_by_hand() -> None:
    """Two layers, two directions at a right angle: a distance is 0 or 1."""
    right, up = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    raw = sequential.Probe(torch.stack([right, right]), torch.stack([up, right]))
    rows = [
        sequential.Probe(torch.stack([right, right]), torch.stack([right, up])),  # D = (0-1) + (1-1), (1-0) + (0-0)
        sequential.Probe(torch.stack([right, up]), torch.stack([up, up])),  # D = (1-1) + (1-1), (1-0) + (1-0)
    ]
    assert sequential.paper_scores(raw, rows) == [0.0, 1.0]
    assert sequential.released_scores(raw, rows) == [1.5, 1.5]  # layer 0: 0+1, 1+1; layer 1: 1+0, 1+1


def test_ties_go_by_layer_index() -> None:
    """Steering of strength 1 moves nothing: every layer scores exactly 0."""
    assert result_of("llama", strength=1.0).ranking == [0, 1, 2, 3, 4]


def test_a_given_ranking_costs_no_passes() -> None:
    model, prompt = model_of("llama"), families.prompt()
    result = directer(model, prompt, families.SPAN, ranking=[3, 1, 0, 2, 4], threshold=1.1, max_new_tokens=3)
    assert result.ranking == [3, 1, 0, 2, 4]
    assert result.num_forward_passes == 1 + 3


# -- identities


@every_family
def test_strength_one_is_plain(name: str) -> None:
    result = result_of(name, strength=1.0)
    assert result.token_ids == plain_of(name).token_ids
    assert set(result.decisions) == {"skipped", "accepted"}
    assert set(result.trials) == {0, 1}


@every_family
def test_threshold_above_one_is_plain(name: str) -> None:
    result = result_of(name, threshold=1.01)
    assert result.token_ids == plain_of(name).token_ids
    assert set(result.decisions) == {"skipped"}
    assert not any(result.layers)
    assert not any(result.trials)


@every_family
def test_threshold_zero_takes_the_first_trial(name: str) -> None:
    result = result_of(name, threshold=0.0)
    num_layers = model_of(name).config.num_hidden_layers
    assert result.decisions == ["accepted"] * NUM_NEW
    assert result.layers == [num_layers] * NUM_NEW
    assert result.trials == [1] * NUM_NEW
    assert result.token_ids != plain_of(name).token_ids


def test_no_positions_is_plain() -> None:
    result = directer(model_of("gemma3"), families.prompt(), [], max_new_tokens=NUM_NEW)
    assert result.token_ids == plain_of("gemma3").token_ids


@every_family
def test_passes_are_counted(name: str) -> None:
    """Prefill, the raw probe and one a layer, one raw pass a step, the trials."""
    result = result_of(name)
    assert result.num_forward_passes == 1 + 1 + len(result.ranking) + NUM_NEW + sum(result.trials)
    assert plain_of(name).num_forward_passes == 1 + NUM_NEW


def test_directer_stops_after_eos() -> None:
    whole = result_of("llama")
    eos = whole.token_ids[7]
    length = whole.token_ids.index(eos) + 1
    result = directer(model_of("llama"), families.prompt(), families.SPAN, max_new_tokens=NUM_NEW, eos_ids={eos})
    assert result.token_ids == whole.token_ids[:length]
    assert len(result.decisions) == length


def test_one_token_prompt() -> None:
    """Nothing is stored before the first step; from the second on the one prompt token can be steered."""
    model = model_of("llama")
    result = directer(model, [7], [0], threshold=0.1, max_new_tokens=NUM_NEW)
    assert_replays(model, [7], result, {0: 100.0}, threshold=0.1)
    assert result.ranking == [0, 1, 2, 3, 4]
    assert result.token_ids[0] == plain(model, [7], 1).token_ids[0]


# -- the schedule, the gate and what the released code does otherwise


@pytest.mark.parametrize(
    ("num_layers", "sizes"),
    [(1, [1]), (2, [2, 1]), (5, [5, 2, 1]), (30, [30, 15, 7, 3, 1]), (32, [32, 16, 8, 4, 2, 1])],
)
def test_halving(num_layers: int, sizes: list[int]) -> None:
    ranking = list(range(num_layers))[::-1]
    assert sequential.halving(ranking) == [ranking[:size] for size in sizes]
    assert sequential.halving(ranking, has_single=False) == [ranking[:size] for size in sizes if size > 1]


def test_released_skips_the_single_layer_trial_and_steers_past_each_run() -> None:
    model, prompt, span = model_of("llama"), families.prompt(), [3, 4, 8, 9, 10, 12, 19]
    result = directer(model, prompt, span, compat="released", max_new_tokens=NUM_NEW)
    steered = [3, 4, 5, 8, 9, 10, 11, 12, 13, 19]
    assert_replays(model, prompt, result, dict.fromkeys(steered, 100.0), sizes=[5, 2])
    assert result.token_ids != directer(model, prompt, span, max_new_tokens=NUM_NEW).token_ids


def test_the_position_past_a_run_takes_the_weight_before_it() -> None:
    factors = {3: 2.0, 4: 5.0, 8: 7.0, 9: 1.0}
    assert sequential.one_past_each_run(factors, 10) == factors | {5: 5.0}


def test_released_accepts_strictly_above_the_threshold() -> None:
    """Two tokens equally likely, threshold 1: the gate opens in both, only the paper's takes the steered one."""

    def decide(accepts: Callable[[float, float], bool]) -> sequential.Choice:
        steered: Any = lambda token_ids, cache: torch.tensor([0.0, 0.0, 9.0])  # noqa: E731
        raw = torch.tensor([0.0, 1.0, 1.0])
        return sequential.choose(steered, DynamicCache(), 0, raw, [[0, 1], [0]], {}, 1.0, accepts)

    assert decide(sequential.accepts_from) == sequential.Choice(2, "accepted", 2, 1)
    assert decide(sequential.accepts_above) == sequential.Choice(1, "rejected", 0, 2)


# -- leaving the model as it was, and refusing


@pytest.mark.parametrize("name", ["llama", "gpt_oss"])
def test_the_model_is_left_as_it_was(name: str) -> None:
    model = families.build(name)
    former, state = model.config._attn_implementation, {key: v.clone() for key, v in model.state_dict().items()}
    directer(model, families.prompt(), families.SPAN, max_new_tokens=2)
    with pytest.raises(OptionError):
        directer(model, families.prompt(), families.SPAN, ranking="papers", max_new_tokens=2)
    assert model.config._attn_implementation == former
    assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(state[key], v) for key, v in model.state_dict().items())


def test_eager_is_what_runs() -> None:
    model, seen = families.build("llama"), []
    model.register_forward_hook(lambda *_: seen.append(model.config._attn_implementation))
    plain(model, families.prompt(), 1)
    assert model.config._attn_implementation == "sdpa"
    assert set(seen) == {"eager"}


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"compat": "paper"}, OptionError),
        ({"ranking": "random"}, OptionError),
        ({"ranking": [0, 1, 2, 3]}, OptionError),
        ({"ranking": [0, 1, 2, 3, 3]}, OptionError),
        ({"weights": [1.0]}, OptionError),
        ({"positions": [20]}, SpanError),
        ({"positions": [-1]}, SpanError),
    ],
)
def test_refusals(options: dict[str, Any], error: type[Exception]) -> None:
    settings: dict[str, Any] = {"positions": families.SPAN, "max_new_tokens": 1} | options
    with pytest.raises(error):
        directer(model_of("llama"), families.prompt(), settings.pop("positions"), **settings)


def test_a_model_without_one_attention_a_layer_is_refused() -> None:
    model = families.build("llama")
    model.config.num_hidden_layers = 6
    with pytest.raises(UnsupportedModelError):
        sequential.attention_blocks(model)


# -- the families


def test_families_are_reproducible_and_leave_the_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, again, other = (families.build("gpt_oss", seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


@every_family
def test_families_are_as_described(name: str) -> None:
    model = model_of(name)
    assert not model.training
    assert model.dtype == torch.float32
    assert name in type(model).__module__
    assert model.config.num_hidden_layers in SIZES
