"""One sequence on its way from request to answer: what is asked, what there is so far, and its share of a forward.

Holds state only; `decode` moves it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from heedful.engine import Chunk, Edit, Result, Row
from heedful.errors import HeedfulError, NumericError
from heedful.recipe import Recipe
from heedful.sampling import Drawing, Sampling
from heedful.trace import Alternative, Stats, Step

FinishReason = Literal["eos", "stop", "length", "error"]
Process = Callable[[Sequence[int], torch.Tensor], torch.Tensor]

# Scratch columns above prompt and answer: steered rows and guesses of the very last steps.
SCRATCH = 16


@dataclass(frozen=True)
class Request:
    """One sequence to decode.

    `positions`, `weights`: the instruction span's token positions and a weight each. `recipe` None: plain decoding.
    `rank_at`: with which token the layers are ranked, counted from 1; None: with the prompt's last.
    `process(token_ids, logits (vocab,)) → logits`: logits processors that are no sampling filters; they act on raw and
    steered logits alike, before the gate. `num_top`: how many of the likeliest tokens each `Emitted` tells;
    `num_alternatives`: how many with their raw and their steered probability.
    """

    token_ids: tuple[int, ...]
    max_new_tokens: int
    recipe: Recipe | None = None
    positions: tuple[int, ...] = ()
    weights: tuple[float, ...] = ()
    sampling: Drawing = Sampling()
    eos_ids: frozenset[int] = frozenset()
    process: Process | None = None
    num_top: int = 0
    num_alternatives: int = 0
    rank_at: int | None = None

    @property
    def num_slots(self) -> int:
        """Slots that it takes: two where the prompt is read without its instruction as well."""
        return 1 if self.recipe is None or self.recipe.contrast is None else 2


@dataclass(frozen=True)
class Emitted:
    """One token of one sequence; `finish_reason` with its last.

    `top`: the likeliest tokens and their log-probabilities, as many as asked for, under the distribution of `step`.
    `error`: why the sequence ended without another token; `decided` is None then, and its `finish_reason` "error".
    """

    answer: Answer
    decided: Step | None
    finish_reason: FinishReason | None
    top: tuple[tuple[int, float], ...] = ()
    error: HeedfulError | None = None
    alternatives: tuple[Alternative, ...] = ()

    @property
    def step(self) -> Step:
        """What was decided. Raises the `error` where nothing was."""
        if self.decided is None:
            raise self.error or NumericError("no token was decided")
        return self.decided


@dataclass(eq=False)
class Answer:
    """A request on its way: its slot, its tokens so far, and what the next forward must compute for it."""

    request: Request
    slot: int = -1
    token_ids: list[int] = field(default_factory=list)
    stats: Stats = field(default_factory=Stats)
    ranking: tuple[int, ...] = ()
    sensitivity: tuple[float, ...] = ()
    """Each layer's score, where the layers were ranked by a measurement."""
    finish_reason: FinishReason | None = None
    stage: Literal["prefill", "raw", "trial", "ready"] = "prefill"
    edits: tuple[Edit, ...] = ()
    raw: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    log_total: float = 0.0
    top: list[tuple[int, float]] = field(default_factory=list)
    random: torch.Generator | None = None
    num_reused: int = 0
    """Prompt tokens whose keys its slot held already."""
    twin: Answer | None = None
    """The same answer after a prompt without its instruction, in a slot of its own, where logits are contrasted."""
    leader: Answer | None = None
    """The answer whose twin this is."""

    @property
    def num_generated(self) -> int:
        """Tokens generated so far."""
        return len(self.token_ids) - len(self.request.token_ids)

    @property
    def is_ungated(self) -> bool:
        """Whether every step is steered and nothing is checked."""
        return self.request.recipe is not None and self.request.recipe.gate is None

    @property
    def is_steered_always(self) -> bool:
        """Whether what is kept of every token is its steered row."""
        return self.is_ungated and self.twin is None

    @property
    def num_raw(self) -> int:
        """How many of its first tokens are stored raw, if they are stored at all."""
        if not self.is_steered_always:
            return len(self.token_ids)
        assert self.request.recipe is not None
        return 0 if self.request.recipe.steers_prefill else len(self.request.token_ids) - 1

    @property
    def is_settled(self) -> bool:
        """Whether its next token can be chosen: its logits are there, and its twin's."""
        return self.stage == "ready" and (self.twin is None or self.twin.stage == "ready")


def slots_for(requests: Sequence[Request], limit: int) -> int:
    """How many slots a decoder for these requests should have: enough for all, at most `limit` answers at a time."""
    return min(limit, len(requests)) * max(request.num_slots for request in requests)


def capacity_for(request: Request, num_layers: int) -> int:
    """Columns that a slot needs for `request`: the same for plain and steered decoding."""
    prompt = len(request.token_ids)
    need = max(prompt + request.max_new_tokens + SCRATCH, prompt + num_layers + 1)
    return -(-need // 64) * 64


@dataclass(eq=False)
class Work:
    """What one sequence has in a forward, and where to find it in the result."""

    sequence: Answer
    rows: list[Row]
    is_prefill: bool
    chunk_wants: bool
    captures: bool
    guesses: list[int]
    row_range: tuple[int, int] = (0, 0)
    logits_at: list[int] = field(default_factory=list)
    columns: list[int] = field(default_factory=list)

    @property
    def steered_at(self) -> list[int]:
        """Where the steered rows' logits are."""
        return self.logits_at[len(self.guesses) :]


@dataclass
class Plan:
    """One forward: every sequence's rows in one list."""

    rows: list[Row] = field(default_factory=list)
    chunks: list[Chunk] = field(default_factory=list)
    work: list[Work] = field(default_factory=list)

    @property
    def captures(self) -> bool:
        """Whether any sequence is to be ranked."""
        return any(item.captures for item in self.work)

    def add(
        self,
        sequence: Answer,
        rows: list[Row],
        *,
        is_prefill: bool = False,
        chunk_wants: bool = False,
        captures: bool = False,
        guesses: Sequence[int] = (),
    ) -> None:
        """Adds one sequence's rows."""
        item = Work(sequence, rows, is_prefill, chunk_wants, captures, list(guesses))
        item.row_range = (len(self.rows), len(self.rows) + len(rows))
        self.rows += rows
        self.work.append(item)

    def parts(self) -> dict[Answer, Plan]:
        """A forward for each answer by itself, its twin's rows with its own."""
        found: dict[Answer, Plan] = {}
        for item in self.work:
            part = found.setdefault(item.sequence.leader or item.sequence, Plan())
            part.chunks += [chunk for chunk in self.chunks if chunk.slot == item.sequence.slot]
            part.add(
                item.sequence,
                item.rows,
                is_prefill=item.is_prefill,
                chunk_wants=item.chunk_wants,
                captures=item.captures,
                guesses=item.guesses,
            )
        return found

    def index(self, result: Result) -> None:
        """Tells each sequence where its columns and logits are: those of rows first, then those of chunks."""
        at = 0
        for item in self.work:
            item.columns = result.columns[item.row_range[0] : item.row_range[1]]
            wanted = sum(row.wants_logits for row in item.rows)
            item.logits_at = list(range(at, at + wanted))
            at += wanted
        for item in self.work:
            if item.chunk_wants:
                item.logits_at = [at]
                at += 1
