"""The transformers face: `model.generate(…, instruction_mask=mask, custom_generate=custom_generate(method))`.

Honours the generation config, logits processors and stopping criteria. It does not do beam search, return scores or
take a cache that already holds something: each is refused, never ignored.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from heedful.answer import Answer, Request, capacity_for, slots_for
from heedful.decode import Decoder
from heedful.engine import Engine
from heedful.engine.support import refuse_cache
from heedful.errors import OptionError, SpanError
from heedful.generate import room
from heedful.recipe import Method, recipe_of


def custom_generate(method: Method | None) -> Callable[..., Any]:
    """A callable for `generate(custom_generate=…)`.

    `generate` then takes `instruction_mask (batch, tokens)`, true (or a weight) at the instruction's tokens,
    and `token_streamer` in place of `streamer`, which transformers does not hand on. Returns token ids
    `(batch, tokens)`, or a `GenerateDecoderOnlyOutput` with `return_dict_in_generate`. Raises a `HeedfulError` for
    what is not supported.
    """
    engines: dict[int, Engine] = {}

    def run(
        model: Any,
        input_ids: torch.Tensor,
        logits_processor: Any = None,
        stopping_criteria: Any = None,
        generation_config: Any = None,
        instruction_mask: torch.Tensor | None = None,
        token_streamer: Any = None,
        **model_kwargs: Any,
    ) -> Any:
        if sys._getframe(1).f_locals.get("streamer") is not None:
            # transformers drops it before this call; a reader of that streamer would wait for ever.
            raise OptionError("transformers does not hand streamer= to a custom generate; pass it as token_streamer=")
        _refuse(generation_config, model_kwargs, input_ids, token_streamer)
        if id(model) not in engines:
            engines[id(model)] = Engine(model)
        call = _Call(engines[id(model)], method, generation_config, logits_processor, stopping_criteria)
        rows = call.rows(input_ids, model_kwargs.get("attention_mask"), instruction_mask)
        call.run(rows, token_streamer)
        return call.output(input_ids, rows)

    return run


@dataclass
class _Row:
    """One row of the batch: its padded prompt, the request without padding, and the new tokens."""

    padded: list[int]
    request: Request
    new: list[int] = field(default_factory=list)


@dataclass
class _Warpers:
    """transformers' sampling filters and global generator, in the place of `heedful.Sampling`."""

    warpers: tuple[Any, ...]
    is_greedy: bool

    def generator(self) -> torch.Generator:
        return torch.default_generator

    def filter(self, logits: torch.Tensor) -> torch.Tensor:
        scores = logits[None]
        for warper in self.warpers:
            scores = warper(torch.empty(1, 0, dtype=torch.long), scores)
        return scores[0]


@dataclass
class _Call:
    engine: Engine
    method: Method | None
    config: Any
    processors: Any
    criteria: Any

    def rows(self, ids: torch.Tensor, attention: torch.Tensor | None, mask: torch.Tensor | None) -> list[_Row]:
        mask = self._mask(ids, mask)
        return [
            self._row(ids[i].tolist(), None if attention is None else attention[i], None if mask is None else mask[i])
            for i in range(ids.shape[0])
        ]

    def _mask(self, ids: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor | None:
        if self.method is None:
            return None
        if mask is None:
            raise SpanError("instruction_mask is missing: mark the instruction's tokens, or choose no method")
        if mask.ndim != 2 or mask.shape[1] != ids.shape[1] or ids.shape[0] % mask.shape[0]:
            raise SpanError(f"instruction_mask is {tuple(mask.shape)}, but the input is {tuple(ids.shape)}")
        return mask.repeat_interleave(ids.shape[0] // mask.shape[0], dim=0)

    def _row(self, padded: list[int], attention: torch.Tensor | None, mask: torch.Tensor | None) -> _Row:
        first = 0 if attention is None else int(attention.bool().int().argmax())
        if attention is not None and not attention[first:].bool().all():
            raise OptionError("attention_mask must be padding on the left only; use tokenizer.padding_side = 'left'")
        weights = [] if mask is None else mask[first:].float().tolist()
        positions = tuple(i for i, weight in enumerate(weights) if weight > 0)
        if mask is not None and not positions:
            raise SpanError("instruction_mask marks no token of a row; mark some, or choose no method")
        warpers = tuple(p for p in self.processors or () if type(p).__name__.endswith("Warper"))
        left = self.config.max_length - len(padded)
        recipe, marked = recipe_of(self.method), tuple(weights[i] for i in positions)
        if recipe is not None:
            recipe.check(self.engine.shape)
            positions, marked = recipe.span(positions, marked, len(padded) - first)
        request = Request(
            token_ids=tuple(padded[first:]),
            max_new_tokens=room(len(padded) - first, left, self.engine.context_length),
            recipe=recipe,
            positions=positions,
            weights=marked,
            sampling=_Warpers(warpers, is_greedy=not self.config.do_sample),
            eos_ids=_ids(self.config.eos_token_id),
            process=self._process(padded[:first]),
        )
        return _Row(padded, request)

    def _process(self, padding: list[int]) -> Callable[[Sequence[int], torch.Tensor], torch.Tensor] | None:
        kept = [p for p in self.processors or () if not type(p).__name__.endswith("Warper")]
        if not kept:
            return None

        def process(token_ids: Sequence[int], logits: torch.Tensor) -> torch.Tensor:
            ids, scores = torch.tensor([padding + list(token_ids)], device=logits.device), logits[None]
            for processor in kept:
                scores = processor(ids, scores)
            return scores[0]

        return process

    def run(self, rows: list[_Row], streamer: Any) -> None:
        """Decodes all rows; a stopping criterion ends its row."""
        capacity = max(capacity_for(row.request, self.engine.num_layers) for row in rows)
        decoder = Decoder(self.engine, slots_for([row.request for row in rows], len(rows)), capacity)
        running = {decoder.submit(row.request): row for row in rows}
        if streamer is not None:
            streamer.put(torch.tensor([rows[0].padded]))
        stopped: set[Answer] = set()
        while not decoder.is_idle:
            for emitted in decoder.step():
                if emitted.answer in stopped:
                    continue
                row = running[emitted.answer]
                row.new.append(emitted.step.token_id)
                if streamer is not None:
                    streamer.put(torch.tensor([emitted.step.token_id]))
                if self._is_done(row):
                    stopped.add(emitted.answer)
                    decoder.finish(emitted.answer)
        if streamer is not None:
            streamer.end()

    def _is_done(self, row: _Row) -> bool:
        if not self.criteria:
            return False
        return bool(self.criteria(torch.tensor([row.padded + row.new], device=self.engine.device), None)[0])

    def output(self, ids: torch.Tensor, rows: list[_Row]) -> Any:
        """The batch as `generate` returns it: prompts, new tokens, padding on the right."""
        from transformers.generation.utils import GenerateDecoderOnlyOutput

        longest = max(len(row.new) for row in rows)
        pad = self.config.pad_token_id
        fill = pad if pad is not None else min(_ids(self.config.eos_token_id), default=0)
        new = [row.new + [fill] * (longest - len(row.new)) for row in rows]
        sequences = torch.cat([ids, torch.tensor(new, dtype=ids.dtype, device=ids.device)], dim=1)
        if not self.config.return_dict_in_generate:
            return sequences
        return GenerateDecoderOnlyOutput(sequences=sequences)  # type: ignore[arg-type]


def _ids(value: Any) -> frozenset[int]:
    if value is None:
        return frozenset()
    return frozenset([value] if isinstance(value, int) else value)


def _refuse(config: Any, model_kwargs: dict[str, Any], input_ids: torch.Tensor, streamer: Any) -> None:
    """Raises `OptionError` for what this decode loop would otherwise silently ignore."""
    refuse_cache(config.cache_implementation)
    cache = model_kwargs.get("past_key_values")
    if cache is not None and cache.get_seq_length() > 0:
        raise OptionError("past_key_values already holds tokens; Heedful prefills by itself: pass the whole prompt")
    wanted = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")
    asked = [name for name in wanted if getattr(config, name, None)]
    if asked:
        raise OptionError(f"{asked[0]} is not supported by heedful.hf.custom_generate")
    if config.num_beams not in (None, 1):
        raise OptionError(f"num_beams={config.num_beams} is not supported; Heedful decodes greedily or samples")
    if streamer is not None and input_ids.shape[0] > 1:
        raise OptionError("token_streamer takes a batch of one")
