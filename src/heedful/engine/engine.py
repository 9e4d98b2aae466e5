"""`Engine`: a transformers model seen as one primitive, `forward(rows, chunks) → logits`.

Attaches itself to the model for the length of each forward and leaves it as it was. Knows no method, gate or schedule.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from heedful.engine.attention import ChunkGroup, Pass, RowGroup, attention, running
from heedful.engine.prepare import Preparation
from heedful.engine.rows import Chunk, Row
from heedful.engine.slots import Slots
from heedful.engine.support import Handover, Layout, Probe, context_length, layout, refuse_by_config
from heedful.errors import UnsupportedModelError
from heedful.recipe import ModelShape

IMPLEMENTATION = "heedful"


@dataclass
class Result:
    """What a forward gave: `logits (wanted, vocab)` for the rows that asked, then the chunks that asked, in order."""

    logits: torch.Tensor
    columns: list[int]
    """The scratch column of each row, for `Slots.commit`."""
    captured: list[tuple[torch.Tensor, torch.Tensor]]
    """With `capture`: input and output of each layer's attention block `(rows, hidden)`, rows in the order given."""


class Engine:
    """Row forwards on one transformers model.

    Raises `UnsupportedModelError` at construction where the model cannot be steered. `prepare`: keep a second copy of
    the weights in the layout that the CPU's kernels like best (see `prepare.py`); None decides by memory.
    """

    def __init__(self, model: Any, *, prepare: bool | None = None) -> None:
        from transformers import AttentionInterface  # takes seconds, which a command that loads no model has not

        refuse_by_config(model)
        AttentionInterface.register(IMPLEMENTATION, attention)
        self.model = model
        self.config = model.config.get_text_config()
        self._lock = threading.RLock()
        self._handover = Handover()
        self._preparation: Preparation | None = None
        self._configs = list({id(c): c for c in (model.config, self.config)}.values())
        self.device: torch.device = model.get_input_embeddings().weight.device
        found = self._probe()
        self.shapes, self._attentions = found.shapes, [module for module, _ in found.calls]
        self._configs = list({id(c): c for c in (*self._configs, *(m.config for m in self._attentions))}.values())
        self._preparation = Preparation.of(model, found.calls, prepare)

    @property
    def num_layers(self) -> int:
        """How many layers can be steered."""
        return len(self.shapes)

    @property
    def shape(self) -> ModelShape:
        """The model's name, layers and heads, as methods ask for them."""
        name = str(getattr(self.model.config, "_name_or_path", "")).rstrip("/").rpartition("/")[2]
        return ModelShape(name, self.num_layers, int(self.config.num_attention_heads))

    @property
    def neutral_id(self) -> int:
        """A token that means nothing: padding, else the first EOS, else 0."""
        for name in ("pad_token_id", "eos_token_id"):
            value = getattr(self.config, name, None)
            if value is not None:
                return int(value[0] if isinstance(value, list) else value)
        return 0

    @property
    def context_length(self) -> int | None:
        """How many tokens the model takes, or None where its configuration does not say."""
        return context_length(self.config)

    def slots(self, num_slots: int, capacity: int) -> Slots:
        """Storage for `num_slots` sequences of up to `capacity` tokens, scratch columns included."""
        return Slots(self.shapes, num_slots, capacity)

    @torch.inference_mode()
    def forward(
        self, slots: Slots, rows: Sequence[Row], chunks: Sequence[Chunk] = (), *, capture: bool = False
    ) -> Result:
        """Computes `rows` and stores `chunks`; a row's key is kept only if its column is committed afterwards.

        A forward that fails, or is interrupted, stores nothing.
        """
        try:
            return self._forward(slots, rows, chunks, capture)
        except BaseException:
            for chunk in chunks:
                slots.lengths[chunk.slot] = chunk.start
            raise

    def _forward(self, slots: Slots, rows: Sequence[Row], chunks: Sequence[Chunk], capture: bool) -> Result:
        for chunk in chunks:
            slots.lengths[chunk.slot] = chunk.start + len(chunk.tokens)
            slots.note(chunk.slot, slots.lengths[chunk.slot])
        chunk_groups, count = _chunk_groups(slots, chunks)
        row_groups, order, columns = _row_groups(slots, rows, count)
        for row, column in zip(rows, columns, strict=True):
            slots.note(row.slot, column + 1)
        tokens = [token for chunk in chunks for token in chunk.tokens] + [rows[i].token for i in order]
        positions = [chunk.start + i for chunk in chunks for i in range(len(chunk.tokens))]
        positions += [rows[i].position for i in order]
        place = {row: count + at for at, row in enumerate(order)}
        kept = [place[i] for i, row in enumerate(rows) if row.wants_logits]
        for group, chunk in zip(chunk_groups, chunks, strict=True):
            kept += range(group.last - chunk.num_logits, group.last)
        current = Pass([*chunk_groups, *row_groups])
        with self.attached(), running(current), self._capturing(capture) as captured:
            logits = self._run(tokens, positions, kept)
        at = torch.tensor([place[i] for i in range(len(rows))]) if capture else None
        pairs = [(pre[at.to(pre.device)], post[at.to(post.device)]) for pre, post in captured] if at is not None else []
        return Result(logits, columns, pairs)

    def _run(self, tokens: list[int], positions: list[int], kept: list[int]) -> torch.Tensor:
        output = self.model(
            input_ids=torch.tensor([tokens], device=self.device),
            position_ids=torch.tensor([positions], device=self.device),
            past_key_values=self._handover,
            use_cache=True,
            logits_to_keep=torch.tensor(kept, dtype=torch.long, device=self.device),
        )
        logits: torch.Tensor = output.logits[0]
        return logits

    @contextmanager
    def attached(self) -> Iterator[None]:
        """The model runs on this engine inside the `with`; other threads wait; afterwards it is as it was."""
        with self._lock:
            before = [config._attn_implementation_internal for config in self._configs]
            was_training = self.model.training
            try:
                for config in self._configs:
                    config._attn_implementation_internal = IMPLEMENTATION
                if was_training:
                    self.model.eval()
                if self._preparation is not None:
                    self._preparation.install()
                yield
            finally:
                if self._preparation is not None:
                    self._preparation.remove()
                if was_training:
                    self.model.train()
                for config, value in zip(self._configs, before, strict=True):
                    config._attn_implementation_internal = value

    @contextmanager
    def _capturing(self, wanted: bool) -> Iterator[list[tuple[torch.Tensor, torch.Tensor]]]:
        """Collects input and output `(tokens, hidden)` of each attention block of the forward inside the `with`."""
        captured: list[tuple[torch.Tensor, torch.Tensor]] = []

        def note(module: Any, args: Any, kwargs: Any, output: Any) -> None:
            hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
            captured.append((hidden[0].float(), output[0][0].float()))

        handles = []
        try:
            if wanted:
                handles = [m.register_forward_hook(note, with_kwargs=True) for m in self._attentions]
            yield captured
        finally:
            for handle in handles:
                handle.remove()

    @torch.inference_mode()
    def _probe(self) -> Layout:
        probe = Probe()
        with self.attached(), running(probe):
            try:
                self._run([0, 1], [0, 1], [1])
            except AttributeError as error:
                if "Handover" not in str(error):
                    raise
                name = type(self.model).__name__
                raise UnsupportedModelError(f"{name} needs a cache of its own kind: {error}") from None
        return layout(self.model, probe, self._handover.updated)


def _chunk_groups(slots: Slots, chunks: Sequence[Chunk]) -> tuple[list[ChunkGroup], int]:
    groups, count = [], 0
    for chunk in chunks:
        groups.append(ChunkGroup(slots, count, count + len(chunk.tokens), chunk.slot, chunk.start, chunk.edit))
        count += len(chunk.tokens)
    return groups, count


def _row_groups(slots: Slots, rows: Sequence[Row], first: int) -> tuple[list[RowGroup], list[int], list[int]]:
    """Groups rows for attention: slots with equally many rows together, those that steer apart from those that do not.

    Returns the groups, the order in which the rows are computed, and the scratch column of each row.
    """
    by_slot: dict[int, list[int]] = {}
    for index, row in enumerate(rows):
        by_slot.setdefault(row.slot, []).append(index)
    bundles: dict[tuple[int, bool], list[int]] = {}
    for slot, members in by_slot.items():
        key = (len(members), any(rows[i].edit is not None for i in members))
        bundles.setdefault(key, []).append(slot)
    groups: list[RowGroup] = []
    order: list[int] = []
    columns = [0] * len(rows)
    for together in bundles.values():
        for part in _close(sorted(together), len(by_slot[together[0]])):
            groups.append(_group(slots, rows, by_slot, part, first + len(order)))
            for slot in part:
                for at, index in enumerate(by_slot[slot]):
                    columns[index] = slots.lengths[slot] + at
                    order.append(index)
    return groups, order, columns


def _close(slots: list[int], num_rows: int) -> list[list[int]]:
    """All together; but single rows one by one where the gaps between them would cost more than they do."""
    if num_rows > 1 or len(slots) * 2 >= slots[-1] + 1 - slots[0]:
        return [slots]
    return [[slot] for slot in slots]


def _group(slots: Slots, rows: Sequence[Row], by_slot: dict[int, list[int]], part: list[int], first: int) -> RowGroup:
    members = [[rows[i] for i in by_slot[slot]] for slot in part]
    return RowGroup(
        store=slots,
        first=first,
        last=first + sum(map(len, members)),
        low=part[0],
        slots=part,
        num_rows=len(members[0]),
        positions=[[row.position for row in per_slot] for per_slot in members],
        edits=[[row.edit for row in per_slot] for per_slot in members],
    )
