"""Tiny random models with a head size that vLLM's CPU kernels take, on disk, and what the core says of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GemmaConfig

import families
import heedful
from heedful.answer import Request
from heedful.engine import Engine
from heedful.recipe import Method
from heedful.spans import TokenSpan
from heedful.vllm.arguments import NAME, spelled
from heedful.vllm.host import Host, host_of
from helpers import new_tokens, run

SIZE = {"hidden_size": 128, "head_dim": 32, "max_position_embeddings": 512, "vocab_size": 128}

# What `tests/families.py` lacks; embeddings are narrower, because the model multiplies them.
GEMMA = {**families.COMMON, "head_dim": 32}


def build(name: str, seed: int = 0) -> Any:
    """The family of `tests/families.py`, with heads of 32."""
    config = GemmaConfig(**GEMMA) if name == "gemma" else families.CONFIGS[name]()
    for key, value in SIZE.items():
        setattr(config, key, value)
    if getattr(config, "sliding_window", None) and name == "mistral":
        config.sliding_window = None
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for path, parameter in model.named_parameters():
            families.redraw(path, parameter, families.EMBEDDING_STD.get(name, 0.125 if name == "gemma" else 1.0))
    return model.eval()


@dataclass(frozen=True)
class Case:
    """One request: its prompt, its method (None: plain) and span, and how many tokens to generate."""

    prompt: tuple[int, ...]
    method: Method | None = heedful.Directer()
    span: tuple[int, ...] = ()
    new: int = 24
    sampling: heedful.Sampling = heedful.Sampling()
    presence: float = 0.0
    frequency: float = 0.0
    repetition: float = 1.0
    rank_at: int | None = None

    def process(self, token_ids: Sequence[int], logits: torch.Tensor) -> torch.Tensor:
        """Penalties by their definitions, for the core."""
        logits = logits.clone()
        for token in set(token_ids):
            logits[token] *= 1 / self.repetition if logits[token] > 0 else self.repetition
        for token, count in Counter(token_ids[len(self.prompt) :]).items():
            logits[token] -= self.frequency * count + self.presence
        return logits

    def params(self, **more: Any) -> Any:
        """vLLM's parameters for it."""
        from vllm import SamplingParams

        extra = None
        if self.method is not None:
            span = TokenSpan(self.span, (1.0,) * len(self.span), self.rank_at)
            extra = {NAME: spelled(span, len(self.prompt), self.method)}
        named = {
            "temperature": self.sampling.temperature,
            "top_k": self.sampling.top_k,
            "top_p": self.sampling.top_p,
            "seed": self.sampling.seed,
            "ignore_eos": True,
            "presence_penalty": self.presence,
            "frequency_penalty": self.frequency,
            "repetition_penalty": self.repetition,
        }
        return SamplingParams(max_tokens=self.new, extra_args=extra, **{**named, **more})

    @property
    def vllm_prompt(self) -> dict[str, list[int]]:
        return {"prompt_token_ids": list(self.prompt)}


def case(seed: int, length: int = 40, **more: Any) -> Case:
    """A random prompt whose tokens 5 to 11 and 20 to 23 are heeded."""
    return Case(tuple(families.prompt(seed, length)), span=(*range(5, 12), *range(20, 24)), **more)


def plainly(cases: Sequence[Case]) -> list[Case]:
    return [replace(one, method=None) for one in cases]


def expected(model: Any, cases: Sequence[Case]) -> list[list[int]]:
    """What the core generates."""
    requests = []
    for one in cases:
        recipe = None if one.method is None else one.method.recipe()
        span = () if recipe is None else one.span
        weights = (1.0,) * len(span)
        if recipe is not None:
            span, weights = recipe.span(span, weights, len(one.prompt))
        is_penal = (one.presence, one.frequency, one.repetition) != (0.0, 0.0, 1.0)
        process = one.process if is_penal else None
        asked = Request(one.prompt, one.new, recipe, span, weights, one.sampling, process=process, rank_at=one.rank_at)
        requests.append(asked)
    return [new_tokens(answer) for answer in run(Engine(model), requests)]


def generated(llm: Any, cases: Sequence[Case]) -> list[list[int]]:
    """What vLLM generates."""
    outputs = llm.generate([one.vllm_prompt for one in cases], [one.params() for one in cases], use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in outputs]


def llm(path: Path, **more: Any) -> Any:
    """vLLM on a model without a tokenizer."""
    from vllm import LLM

    options = {"dtype": "float32", "enforce_eager": True, "max_model_len": 512, "enable_prefix_caching": False}
    options["disable_log_stats"] = False
    return LLM(str(path), skip_tokenizer_init=True, **{**options, **more})


def host(llm: Any) -> Host:
    """What the plug-in keeps of an engine that runs in this process."""
    found = host_of(llm.llm_engine.vllm_config)
    assert found is not None
    return found
