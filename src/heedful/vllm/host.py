"""What there is of the plug-in in one vLLM process: the model, its raw pass of the running step, and steered forwards.

vLLM builds model, attention layers and logits processor by itself and hands none of them to the others, so they meet
here. Does not decide anything; `decide` does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from heedful.errors import UnsupportedModelError
from heedful.vllm.layout import Layout, learn
from heedful.vllm.steered import Part, SteeredPass


@dataclass
class Raw:
    """What the raw pass of the running step left behind: lengths and block tables of each request of the batch."""

    tokens: torch.Tensor
    last: list[int]
    seq_lens: list[int]
    block_table: torch.Tensor

    def token(self, row: int) -> int:
        """The last token that request `row` of the batch computed."""
        return int(self.tokens[self.last[row]])


class Host:
    """One a process. `current`: the steered pass that runs now, None in vLLM's own passes."""

    def __init__(self) -> None:
        self.model: Any = None
        self.current: SteeredPass | None = None
        self.index: dict[str, int] = {}
        self.num_forwards = 0
        self.is_wanted = False
        self._raw: tuple[torch.Tensor, Any] | None = None
        self._is_checked = False

    def attach(self, model: Any, config: Any) -> None:
        """Takes over a model that vLLM has just built. Raises `UnsupportedModelError` where it cannot be steered."""
        from vllm.model_executor.models.utils import extract_layer_index

        from heedful.vllm.support import refuse_config, refuse_layers

        refuse_config(config)
        layers = refuse_layers(config)
        self.model, self.config = model, config
        self.layers = [layers[name] for name in sorted(layers, key=extract_layer_index)]
        self.index = {layer.layer_name: number for number, layer in enumerate(self.layers)}
        self.attentions = [module for name, module in model.named_modules() if name.endswith(".self_attn")]
        if len(self.attentions) != len(self.layers):
            raise UnsupportedModelError(
                f"{len(self.layers)} attention layers in {len(self.attentions)} attention blocks: "
                "Heedful does not know this model's build"
            )
        self._layout: Layout | None = None
        self._builder: Any = None
        self._raw, self._is_checked = None, False

    @property
    def num_layers(self) -> int:
        """Layers of the model."""
        return len(self.layers)

    @property
    def layout(self) -> Layout:
        """How the cache stores keys and values, learnt when it is first asked for."""
        if self._layout is None:
            layer = self.layers[0]

            def store(key: torch.Tensor, value: torch.Tensor, slots: torch.Tensor) -> None:
                layer.impl.do_kv_cache_update(layer, key, value, layer.kv_cache, slots)

            size, dims = self.config.cache_config.block_size, (layer.head_size, layer.head_size_v)
            self._layout = learn(layer.kv_cache, size, layer.num_kv_heads, dims, store)
        return self._layout

    def begin(self, tokens: torch.Tensor) -> None:
        """Notes the raw pass that begins. The first one of all is preceded by the self-check."""
        if self.current is not None:
            return
        self._raw = None
        from vllm.forward_context import get_forward_context, is_forward_context_available

        if not is_forward_context_available():
            return
        metadata = get_forward_context().attn_metadata
        name = self.layers[0].layer_name
        if not isinstance(metadata, dict) or name not in metadata:
            return
        if not self._is_checked:
            self._is_checked = True
            from heedful.vllm.selfcheck import check

            check(self)
        if self.is_wanted:
            self._raw = (tokens, metadata[name])

    def raw(self) -> Raw | None:
        """What the raw pass of this step left, None where there was none."""
        if self._raw is None:
            return None
        tokens, metadata = self._raw
        last = [stop - 1 for stop in metadata.query_start_loc.tolist()[1:]]
        return Raw(tokens, last, metadata.seq_lens.tolist(), metadata.block_table)

    def slot(self, block_table: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """The cache slots of a sequence's `positions`."""
        size = self.layout.block_size
        return block_table[positions // size].long() * size + positions % size

    def forward(
        self,
        parts: Sequence[Part],
        *,
        keeps: bool = False,
        watched: list[tuple[int, torch.Tensor, torch.Tensor]] | None = None,
    ) -> torch.Tensor:
        """Hidden states `(candidates, parts, hidden)` of one steered pass."""
        device = parts[0].block_table.device
        metadata = self._metadata(
            torch.tensor([part.position + 1 for part in parts], dtype=torch.int32, device=device),
            torch.stack([part.block_table for part in parts]),
            torch.tensor([part.slot for part in parts], device=device),
        )
        steered = SteeredPass(list(parts), self.num_layers, self.layout, metadata, keeps, watched)
        self.num_forwards += 1
        with self._running(steered, metadata):
            hidden: torch.Tensor = self.model(
                torch.tensor(steered.tokens, device=device), torch.tensor(steered.positions, device=device)
            )
        return hidden.view(steered.num_candidates, len(parts), -1)

    def prefill(self, tokens: torch.Tensor, block_table: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        """Hidden states `(tokens, hidden)` of one raw prompt, stored in `slots`; for the self-check alone."""
        from vllm.forward_context import create_forward_context, override_forward_context

        count = len(tokens)
        lengths = torch.tensor([count], dtype=torch.int32, device=tokens.device)
        metadata = self._metadata(lengths, block_table[None], slots, num_queries=count)
        names = list(self.index)
        context = create_forward_context(
            dict.fromkeys(names, metadata),
            self.config,
            slot_mapping=dict.fromkeys(names, slots),
            skip_compiled=True,
        )
        with override_forward_context(context):
            hidden: torch.Tensor = self.model(tokens, torch.arange(count, device=tokens.device))
        return hidden

    @contextmanager
    def _running(self, steered: SteeredPass, metadata: Any) -> Iterator[None]:
        from vllm.forward_context import create_forward_context, override_forward_context

        # Without a slot mapping vLLM stores nothing by itself.
        context = create_forward_context(dict.fromkeys(self.index, metadata), self.config, skip_compiled=True)
        self.current = steered
        try:
            with override_forward_context(context):
                yield
        finally:
            self.current = None

    def _metadata(
        self, seq_lens: torch.Tensor, block_table: torch.Tensor, slots: torch.Tensor, num_queries: int = 1
    ) -> Any:
        """The backend's metadata for `num_queries` last tokens of each sequence."""
        from vllm.v1.attention.backend import CommonAttentionMetadata

        if self._builder is None:
            layer = self.layers[0]
            spec = layer.get_kv_cache_spec(self.config)
            build = layer.attn_backend.get_builder_cls()
            self._builder = build(spec, list(self.index), self.config, block_table.device)
        count = len(seq_lens)
        starts = torch.arange(count + 1, dtype=torch.int32) * num_queries
        common = CommonAttentionMetadata(
            query_start_loc=starts.to(block_table.device),
            query_start_loc_cpu=starts,
            seq_lens=seq_lens,
            num_reqs=count,
            num_actual_tokens=count * num_queries,
            max_query_len=num_queries,
            max_seq_len=int(seq_lens.max()),
            block_table_tensor=block_table,
            slot_mapping=slots,
            causal=True,
        )
        return self._builder.build(0, common)

    @contextmanager
    def capturing(self) -> Iterator[list[tuple[torch.Tensor, torch.Tensor]]]:
        """Collects input and output `(rows, hidden)` of each attention block of the forward inside the `with`."""
        captured: list[tuple[torch.Tensor, torch.Tensor]] = []

        def note(module: Any, args: Any, kwargs: Any, output: Any) -> None:
            hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[1]
            captured.append((hidden.float(), (output[0] if isinstance(output, tuple) else output).float()))

        handles = [module.register_forward_hook(note, with_kwargs=True) for module in self.attentions]
        try:
            yield captured
        finally:
            for handle in handles:
                handle.remove()


HOST = Host()
