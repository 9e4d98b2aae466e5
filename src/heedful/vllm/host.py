"""What there is of the plug-in beside one of vLLM's models: the batch of the running step, and steered forwards.

vLLM builds model, attention layers and logits processor by itself and hands none of them to the others. They meet here:
the host hangs on the layers, which vLLM lists in the configuration that it hands to all. Does not decide anything;
`decide` does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from heedful.errors import UnsupportedModelError
from heedful.vllm.layout import Layout, learn
from heedful.vllm.registration import warn
from heedful.vllm.steered import Part, SteeredPass
from heedful.vllm.support import refuse_layers, why_not


@dataclass
class Batch:
    """Each request of the running step: its last token, how many are computed, and its blocks `(requests, blocks)`."""

    tokens: list[int]
    seq_lens: list[int]
    block_table: torch.Tensor


class Host:
    """One a model. `current`: the steered pass that runs now, None in vLLM's own passes.

    `refused`: why nothing is steered; then vLLM's passes are its own. `is_wanted`: whether a request of the batch is to
    be steered.
    """

    def __init__(self, model: Any, config: Any) -> None:
        """Takes over a model that vLLM has just built; None where it built one that is none of the plug-in's."""
        self.model, self.config = model, config
        self.current: SteeredPass | None = None
        self.layers: list[Any] = []
        self.index: dict[str, int] = {}
        self.num_forwards = 0
        self.trails: dict[str, Any] = {}  # by a request's name: where `decide` notes what becomes of it
        self.is_wanted = False
        self._noted: Any = None
        self._tokens: torch.Tensor | None = None
        self._is_checked = False
        self._layout: tuple[Any, Layout] | None = None
        self._builder: Any = None
        self.refused = why_not(config)
        try:
            if model is None:
                self.refused = self.refused or "vLLM has built its model without Heedful's registration"
            if not self.refused:
                self._find_layers()
        except UnsupportedModelError as error:
            self.refuse(str(error))
        for layer in config.compilation_config.static_forward_context.values():
            layer.heedful = self

    def refuse(self, reason: str) -> None:
        """Steers nothing from now on, and says why once."""
        self.refused = reason
        warn(reason)

    def _find_layers(self) -> None:
        from vllm.model_executor.models.utils import extract_layer_index

        layers = refuse_layers(self.config)
        self.layers = [layers[name] for name in sorted(layers, key=extract_layer_index)]
        self.index = {layer.layer_name: number for number, layer in enumerate(self.layers)}
        named = dict(self.model.named_modules())
        self.attentions = [module for name, module in named.items() if name.endswith(".self_attn")]
        self.blocks = [named[name.rpartition(".")[0]] for name in named if name.endswith(".self_attn")]
        if len(self.attentions) != len(self.layers):
            raise UnsupportedModelError(
                f"{len(self.layers)} attention layers in {len(self.attentions)} attention blocks: "
                "Heedful does not know this model's build"
            )

    @property
    def num_layers(self) -> int:
        """Layers of the model."""
        return len(self.layers)

    @property
    def layout(self) -> Layout:
        """How the cache stores keys and values, learnt when it is first asked for; vLLM may exchange its cache."""
        layer = self.layers[0]
        shape = (layer.kv_cache.shape, layer.kv_cache.stride())
        if self._layout is None or self._layout[0] != shape:

            def store(key: torch.Tensor, value: torch.Tensor, slots: torch.Tensor) -> None:
                layer.impl.do_kv_cache_update(layer, key, value, layer.kv_cache, slots)

            size, dims = self.config.cache_config.block_size, (layer.head_size, layer.head_size_v)
            self._layout = (shape, learn(layer.kv_cache, size, layer.num_kv_heads, dims, store))
        return self._layout[1]

    def note(self, metadata: Any) -> None:
        """vLLM's word of the batch that it is about to compute, in the terms that all its attention backends share."""
        if self.is_wanted:
            self._noted, self._tokens = metadata, None

    def note_tokens(self, tokens: torch.Tensor) -> None:
        """What goes into vLLM's own forward, for its V1 runner, which tells no one else; graphs may replay without."""
        if self.is_wanted:
            self._tokens = tokens

    def batch(self, last: Sequence[int] | None = None) -> Batch | None:
        """The running step's, once: vLLM's tensors are filled anew for the next. None where it is not known.

        `last`: the requests' last tokens, where the runner has told them.
        """
        noted, tokens = self._noted, self._tokens
        self._noted = self._tokens = None
        if noted is None or (last is None and tokens is None):
            return None
        if last is None:
            assert tokens is not None
            last = tokens[noted.query_start_loc[1:].long() - 1].tolist()
        return Batch(list(last), noted.seq_lens.tolist(), noted.block_table_tensor)

    def prove(self) -> None:
        """The self-check, before the first steered step of all; where it fails on any rank, none steers anything."""
        if self._is_checked:
            return
        self._is_checked = True
        from heedful.vllm.selfcheck import check, is_so_anywhere

        is_refused = is_so_anywhere(bool(self.refused))  # a rank that went on alone would wait for the others for ever
        if not is_refused:
            try:
                check(self)
            except Exception as error:  # whatever it is, vLLM's own answers are none the worse
                is_told = isinstance(error, UnsupportedModelError)
                self.refuse(str(error) if is_told else f"Heedful's self-check failed: {error!r}")
            is_refused = is_so_anywhere(bool(self.refused))
        if is_refused and not self.refused:
            self.refuse("another tensor-parallel rank cannot steer; its log says why")

    def slot(self, block_table: torch.Tensor, position: int) -> int:
        """The cache slot of one position of a sequence."""
        size = self.layout.block_size
        return int(block_table[position // size]) * size + position % size

    def forward(
        self,
        parts: Sequence[Part],
        *,
        keeps: bool = False,
        watched: list[tuple[int, torch.Tensor, torch.Tensor]] | None = None,
    ) -> torch.Tensor:
        """Hidden states `(candidates, parts, hidden)` of one steered pass."""
        steered = SteeredPass(list(parts), self.num_layers, self.layout, keeps, watched)
        self.num_forwards += 1
        with self._running(steered):
            hidden: torch.Tensor = self.model(steered.tokens, steered.positions[: len(parts)])
        hidden = hidden.view(steered.num_candidates, len(parts), -1)
        return hidden if steered.is_in_order else hidden[torch.tensor(steered.order).argsort()]

    def prefill(self, tokens: torch.Tensor, block_table: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        """Hidden states `(tokens, hidden)` of one raw prompt, stored in `slots`; for the self-check alone."""
        from vllm.forward_context import create_forward_context, override_forward_context

        count = len(tokens)
        lengths = torch.tensor([count], dtype=torch.int32, device=tokens.device)
        metadata = self._metadata(lengths, block_table[None], slots, count)
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
    def _running(self, steered: SteeredPass) -> Iterator[None]:
        from vllm.forward_context import create_forward_context, override_forward_context

        # Without a slot mapping vLLM stores nothing by itself; its metadata are for kernels that are not called.
        context = create_forward_context(dict.fromkeys(self.index), self.config, skip_compiled=True)
        self.current = steered
        handles = [
            block.register_forward_pre_hook(partial(_enter, steered, index), with_kwargs=True)
            for index, block in enumerate(self.blocks)
        ]
        try:
            with override_forward_context(context):
                yield
        finally:
            self.current = None
            for handle in handles:
                handle.remove()

    def _metadata(
        self, seq_lens: torch.Tensor, block_table: torch.Tensor, slots: torch.Tensor, num_queries: int
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
        """Input and output `(candidates, parts, hidden)` of each attention block of the forward inside the `with`."""
        captured: list[tuple[torch.Tensor, torch.Tensor]] = []

        def note(module: Any, args: Any, kwargs: Any, output: Any) -> None:
            hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[1]
            assert self.current is not None
            output = output[0] if isinstance(output, tuple) else output
            captured.append((self.current.all_rows(hidden.float()), self.current.all_rows(output.float())))

        handles = [module.register_forward_hook(note, with_kwargs=True) for module in self.attentions]
        try:
            yield captured
        finally:
            for handle in handles:
                handle.remove()


def _enter(steered: SteeredPass, index: int, module: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Brings the rows into a layer that begin there; vLLM's models hand all layers the first one's positions."""

    def entered(value: Any) -> Any:
        return steered.enter(index, value) if isinstance(value, torch.Tensor) else value

    return tuple(map(entered, args)), {name: entered(value) for name, value in kwargs.items()}


def host_of(config: Any) -> Host | None:
    """The host of the model that vLLM has built under `config`, None where it is none of the plug-in's."""
    layers = config.compilation_config.static_forward_context.values()
    return next((layer.heedful for layer in layers if hasattr(layer, "heedful")), None)
