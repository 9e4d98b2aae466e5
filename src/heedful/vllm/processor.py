"""vLLM's logits processor: where requests come and go, and where a step's logits pass by.

Loaded by vLLM through the `vllm.logits_processors` entry point in every process that validates or runs requests.
Its two model runners tell of requests differently: V1 of every move in the batch, V2 of the slot that a request takes.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch
from vllm import SamplingParams
from vllm.v1.sample.logits_processor.builtin import process_dict_updates
from vllm.v1.sample.logits_processor.interface import LogitsProcessor

from heedful.errors import HeedfulError
from heedful.recipe import ModelShape
from heedful.sampling import Sampling, draw
from heedful.vllm.arguments import NAME, TRAIL, Asked, read
from heedful.vllm.decide import Decider, State
from heedful.vllm.host import Batch, Host, host_of
from heedful.vllm.penalties import Penalties
from heedful.vllm.registration import SWITCH, is_on, warn
from heedful.vllm.support import why_not

try:
    from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsProcessor as SlotProcessor
except ImportError:  # a vLLM without its V2 runner
    SlotProcessor = object


class Heedful(LogitsProcessor, SlotProcessor):
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
        config, prompt = _asking()
        if config is None:
            raise ValueError(f"{NAME}: this vLLM admits requests in a way that Heedful does not know")
        if reason := why_not(config):
            raise ValueError(f"{NAME}: {reason}")
        reason = misfit(asked, config)
        if prompt is not None:
            reason = reason or asked.misfit(prompt["prompt_token_ids"]) or _unsalted(asked, config, prompt)
        if reason:
            raise ValueError(reason)

    def __init__(self, vllm_config: Any, *more: Any) -> None:
        """`more`: what V1 and V2 hand over; V2 its requests' tokens by their slots."""
        self.states: dict[int, State] = {}
        self.config = vllm_config
        self.vocab = vllm_config.model_config.get_vocab_size()
        self._decider: Decider | None = None
        self._tokens: Any = more[0] if len(more) == 1 else None
        self._slots: dict[int, State] = {}
        self._entering: dict[int, SamplingParams] = {}
        reason = why_not(vllm_config) if is_on() else ""
        if reason:
            warn(reason)

    def is_argmax_invariant(self) -> bool:
        """No: greedy requests are steered too."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """V1's: follows requests as they enter, move in and leave the batch."""
        process_dict_updates(self.states, batch_update, self._state)
        if self.states or self._decider is not None:
            self.decider.host.is_wanted = bool(self.states)

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        """V2's: a request takes a slot, whose tokens are not there yet; whether it is to be steered."""
        self._slots.pop(req_idx, None)
        self._entering.pop(req_idx, None)
        if is_steered := read(sampling_params.extra_args) is not None:
            self._entering[req_idx] = sampling_params
        return is_steered

    def apply_staged_writes(self) -> None:
        """V2's: before each step's raw pass, when the tokens of what has entered are there."""
        for slot, params in self._entering.items():
            tokens = self._tokens.all_token_ids.gpu[slot, : int(self._tokens.prefill_len.np[slot])].tolist()
            count = int(self._tokens.prompt_len.np[slot])
            state = self._state(params, tokens[:count], tokens[count:])
            if state is not None:
                state.is_penalised = True
                self._slots[slot] = state
        self._entering.clear()
        if self._slots or self._decider is not None:
            self.decider.host.is_wanted = bool(self._slots)

    def apply(self, logits: torch.Tensor, *context: Any) -> torch.Tensor:
        """A step's logits `(requests, vocab)`, changed in place for steered requests; `context`: V2's batch."""
        if context:
            self._place(context[0].idx_mapping_np.tolist())
        if not self.states:
            return logits
        batch = self.decider.host.batch(context[0].input_ids.tolist() if context else None)
        if context and batch is not None:
            self._go_on(batch)
        return self.decider.decide(logits, batch)

    def _place(self, slots: list[int]) -> None:
        """The rows that the requests have in V2's step."""
        self.states.clear()
        self.states.update({row: self._slots[slot] for row, slot in enumerate(slots) if slot in self._slots})

    def _go_on(self, batch: Batch) -> None:
        """Adds the token that each request has got since V2's last step."""
        for row, state in self.states.items():
            if batch.seq_lens[row] > len(state.prompt) + len(state.output):
                state.output.append(batch.tokens[row])

    @property
    def decider(self) -> Decider:
        """Made when it is first needed: vLLM builds its processors before its model."""
        if self._decider is None:
            host = host_of(self.config) or Host(None, self.config)
            self._decider = Decider(host, self.states, counts=_is_first_rank())
        return self._decider

    def _state(self, params: SamplingParams, prompt: list[int] | None, output: list[int]) -> State | None:
        asked = read(params.extra_args)
        if asked is None:
            return None
        penalties = Penalties(
            params.presence_penalty, params.frequency_penalty, params.repetition_penalty, prompt or (), output
        )
        state = State(
            asked,
            prompt or (),
            output,
            Sampling(params.temperature, max(params.top_k, 0), params.top_p),
            dict(params.logit_bias or {}),
            is_masked=_is_masked(params),
            ends=tuple(sorted(params.all_stop_token_ids)),
            penalties=None if penalties.is_idle else penalties,
            min_p=params.min_p,
        )
        host = self.decider.host
        state.trail = host.trails.get(str((params.extra_args or {}).get(TRAIL)))
        state.refused = host.refused or asked.misfit(state.prompt) or misfit(asked, self.config)
        if not state.refused and asked.is_stored and not asked.is_salted and _is_caching(self.config):
            state.refused = UNSALTED
        if not state.sampling.is_greedy:
            state.random = self._random(state, params.seed)
        return state

    def _random(self, state: State, seed: int | None) -> torch.Generator:
        """The request's source of random numbers, as far on as what it has generated: after a preemption it goes on.

        `seed` may be negative in vLLM.
        """
        source = torch.Generator()
        # Every rank of a tensor-parallel group must draw the same; vLLM seeds their global generators alike.
        source.manual_seed(int(torch.randint(2**62, ())) if seed is None else seed)
        even = torch.zeros(self.vocab)
        for _ in state.output:
            draw(even, None, source)
        return source


UNSALTED = (
    f"{NAME}: static steering stores steered keys, which no other request may read: give its prompt a cache_salt of "
    f"its own and say {NAME}.salted, or start vLLM without prefix caching"
)


def misfit(asked: Asked, config: Any) -> str:
    """Why the method does not fit the model; empty where it does."""
    text = config.model_config.hf_text_config
    try:
        asked.recipe.check(ModelShape("", int(text.num_hidden_layers), int(text.num_attention_heads)))
    except HeedfulError as error:
        return f"{NAME}.method: {error}"
    return ""


def _unsalted(asked: Asked, config: Any, prompt: Any) -> str:
    is_apart = asked.is_salted and prompt.get("cache_salt")
    return UNSALTED if asked.is_stored and _is_caching(config) and not is_apart else ""


def _is_caching(config: Any) -> bool:
    return bool(config.cache_config.enable_prefix_caching)


def _asking() -> tuple[Any, Any]:
    """The configuration and the prompt of the request that is being validated, each None where it is not found.

    vLLM hands over the parameters alone, and once a request runs it cannot be refused any more. So its caller's
    variables are read; where they are others, the worker ends the request instead.
    """
    frame, config, prompt = sys._getframe(1), None, None
    while frame is not None:
        found = frame.f_locals.get("self")
        if type(found).__name__ == "InputProcessor":
            config = getattr(found, "vllm_config", config)
            given = frame.f_locals.get("prompt")
            prompt = given if isinstance(given, Mapping) and "prompt_token_ids" in given else prompt
        frame = frame.f_back  # type: ignore[assignment]
    return config, prompt


def _is_masked(params: SamplingParams) -> bool:
    """Whether vLLM may forbid tokens to this request before the processor sees its logits."""
    return bool(params.min_tokens or params.bad_words or params.allowed_token_ids or params.structured_outputs)


def _is_first_rank() -> bool:
    from vllm.distributed.parallel_state import get_tensor_model_parallel_rank, model_parallel_is_initialized

    return not model_parallel_is_initialized() or get_tensor_model_parallel_rank() == 0
