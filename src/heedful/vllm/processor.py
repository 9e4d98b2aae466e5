"""vLLM's logits processor: where requests come and go, and where a step's logits pass by.

Loaded by vLLM through the `vllm.logits_processors` entry point in every process that validates or runs requests.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm import SamplingParams
from vllm.v1.sample.logits_processor.builtin import process_dict_updates
from vllm.v1.sample.logits_processor.interface import LogitsProcessor

from heedful.errors import HeedfulError
from heedful.sampling import Sampling, draw
from heedful.vllm.arguments import NAME, read
from heedful.vllm.decide import Decider, State, fits
from heedful.vllm.host import HOST
from heedful.vllm.registration import SWITCH, is_on
from heedful.vllm.support import refuse_architecture, refuse_config

NOTHING = {"presence_penalty": 0.0, "frequency_penalty": 0.0, "repetition_penalty": 1.0, "min_p": 0.0}


class Heedful(LogitsProcessor):
    """Steers the requests that ask for it, and touches no other."""

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Raises `ValueError`, which vLLM answers with HTTP 400, for a request that cannot be steered as it asks."""
        try:
            asked = read(sampling_params.extra_args)
        except HeedfulError as error:
            raise ValueError(str(error)) from error
        if asked is None:
            return
        if not is_on():
            raise ValueError(f"{NAME}: steering is off in this server ({SWITCH}=off)")
        for name, nothing in NOTHING.items():
            if getattr(sampling_params, name) != nothing:
                raise ValueError(f"{NAME}: {name} cannot be combined with steering; leave it at {nothing:g}")

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self.states: dict[int, State] = {}
        self.vocab = vllm_config.model_config.get_vocab_size()
        self.is_caching = bool(vllm_config.cache_config.enable_prefix_caching)
        if is_on():
            refuse_config(vllm_config)
            refuse_architecture(vllm_config.model_config.architectures)
        self.decider = Decider(HOST, self.states, counts=_is_first_rank())

    def is_argmax_invariant(self) -> bool:
        """No: greedy requests are steered too."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """Follows requests as they enter, move in and leave the batch."""
        process_dict_updates(self.states, batch_update, self._state)
        HOST.is_wanted = bool(self.states)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """A step's logits `(requests, vocab)`, changed in place for steered requests."""
        return self.decider.decide(logits) if self.states else logits

    def _state(self, params: SamplingParams, prompt: list[int] | None, output: list[int]) -> State | None:
        asked = read(params.extra_args)
        if asked is None:
            return None
        state = State(
            asked,
            prompt or (),
            output,
            Sampling(params.temperature, max(params.top_k, 0), params.top_p, params.seed),
            dict(params.logit_bias or {}),
            is_masked=_is_masked(params),
            ends=tuple(sorted(params.all_stop_token_ids)),
        )
        state.refused = fits(asked, len(state.prompt), HOST) or self._refused(state)
        if not state.sampling.is_greedy:
            state.random = self._random(state)
        return state

    def _refused(self, state: State) -> str:
        if not state.is_gated and self.is_caching:
            return "static steering stores steered keys, not to be read by others: set enable_prefix_caching=False"
        return ""

    def _random(self, state: State) -> torch.Generator:
        """The request's source of random numbers, as far on as what it has generated: after a preemption it goes on."""
        source = torch.Generator()
        # Every rank of a tensor-parallel group must draw the same; vLLM seeds their global generators alike.
        seed = state.sampling.seed
        source.manual_seed(int(torch.randint(2**62, ())) if seed is None else seed)
        even = torch.zeros(self.vocab)
        for _ in state.output:
            draw(even, None, source)
        return source


def _is_masked(params: SamplingParams) -> bool:
    """Whether vLLM may forbid tokens to this request before the processor sees its logits."""
    return bool(params.min_tokens or params.bad_words or params.allowed_token_ids or params.structured_outputs)


def _is_first_rank() -> bool:
    from vllm.distributed.parallel_state import get_tensor_model_parallel_rank, model_parallel_is_initialized

    return not model_parallel_is_initialized() or get_tensor_model_parallel_rank() == 0
