"""The decode loop: many sequences in slots, each step one forward for all of them, no pass spent on steering alone.

A gated step's forward carries the steered rows of the current token and raw rows of the likeliest next tokens, so that
the next step begins where this one ends (design §3). Works on token ids; text is `text.py`'s business.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from heedful import ranking
from heedful.engine import Chunk, Edit, Engine, Result, Row, Slots
from heedful.errors import ContextLengthError
from heedful.recipe import Recipe
from heedful.sampling import Drawing, Sampling, draw
from heedful.trace import Decision, Stats, Step

FinishReason = Literal["eos", "stop", "length"]
Process = Callable[[Sequence[int], torch.Tensor], torch.Tensor]

NUM_GUESSES = 3
# Scratch columns above prompt and answer: steered rows and guesses of the very last steps.
SCRATCH = 16
PREFILL_TOKENS = 2048


@dataclass(frozen=True)
class Request:
    """One sequence to decode.

    `positions`, `weights`: the instruction span's token positions and a weight each. `recipe` None: plain decoding.
    `process(token_ids, logits (vocab,)) → logits`: logits processors that are no sampling filters; they act on raw and
    steered logits alike, before the gate.
    """

    token_ids: tuple[int, ...]
    max_new_tokens: int
    recipe: Recipe | None = None
    positions: tuple[int, ...] = ()
    weights: tuple[float, ...] = ()
    sampling: Drawing = Sampling()
    eos_ids: frozenset[int] = frozenset()
    process: Process | None = None


@dataclass(frozen=True)
class Emitted:
    """One token of one sequence; `finish_reason` with its last."""

    answer: Answer
    step: Step
    finish_reason: FinishReason | None


@dataclass(eq=False)
class Answer:
    """A request on its way: its slot, its tokens so far, and what the next forward must compute for it."""

    request: Request
    slot: int = -1
    token_ids: list[int] = field(default_factory=list)
    stats: Stats = field(default_factory=Stats)
    ranking: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None
    stage: Literal["prefill", "raw", "trial"] = "prefill"
    edits: tuple[Edit, ...] = ()
    raw: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    log_total: float = 0.0
    top: list[tuple[int, float]] = field(default_factory=list)
    random: torch.Generator | None = None

    @property
    def num_generated(self) -> int:
        """Tokens generated so far."""
        return len(self.token_ids) - len(self.request.token_ids)

    @property
    def is_ungated(self) -> bool:
        """Whether every step is steered and nothing is checked."""
        return self.request.recipe is not None and self.request.recipe.gate is None


def capacity_for(request: Request, num_layers: int) -> int:
    """Columns that a slot needs for `request`: the same for plain and steered decoding."""
    prompt = len(request.token_ids)
    need = max(prompt + request.max_new_tokens + SCRATCH, prompt + num_layers + 1)
    return -(-need // 64) * 64


class Decoder:
    """Continuous batching over slots: `submit` requests at any time, call `step` until `is_idle`."""

    def __init__(self, engine: Engine, num_slots: int, capacity: int) -> None:
        self.engine = engine
        self.slots: Slots = engine.slots(num_slots, capacity)
        self._free = list(range(num_slots))
        self._waiting: deque[Answer] = deque()
        self._running: list[Answer] = []

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits and nothing runs."""
        return not self._waiting and not self._running

    def submit(self, request: Request) -> Answer:
        """Queues a request. Raises `ContextLengthError` where no slot could hold it."""
        need = capacity_for(request, self.engine.num_layers)
        if need > self.slots.capacity:
            raise ContextLengthError(f"the request needs {need} cached tokens, a slot holds {self.slots.capacity}")
        sequence = Answer(request, token_ids=list(request.token_ids))
        sequence.stats.prompt_tokens = len(request.token_ids)
        self._waiting.append(sequence)
        return sequence

    def finish(self, sequence: Answer, reason: FinishReason = "stop") -> None:
        """Ends a sequence early and frees its slot; does nothing if it has ended."""
        if sequence.finish_reason is None:
            sequence.finish_reason = reason
            self._release(sequence)

    def _release(self, sequence: Answer) -> None:
        if sequence in self._running:
            self._running.remove(sequence)
            self._free.append(sequence.slot)
            self._free.sort()
        elif sequence in self._waiting:
            self._waiting.remove(sequence)

    @torch.inference_mode()
    def step(self) -> list[Emitted]:
        """One forward for every running sequence; returns the tokens that it settled, often more than one each."""
        self._admit()
        plan = self._plan()
        if not plan.work:
            return []
        begun = time.perf_counter()
        result = self.engine.forward(self.slots, plan.rows, plan.chunks, capture=plan.captures)
        elapsed = time.perf_counter() - begun
        for item in plan.work:
            stats = item.sequence.stats
            stats.forward_passes += 1
            stats.rows += len(item.rows)
            if item.is_prefill:
                stats.prefill_seconds += elapsed
            else:
                stats.decode_seconds += elapsed
        return self._settle(plan, result)

    def _admit(self) -> None:
        while self._waiting and self._free:
            sequence = self._waiting.popleft()
            sequence.slot = self._free.pop(0)
            request = sequence.request
            self.slots.open(sequence.slot, request.positions, request.weights)
            if not request.sampling.is_greedy:
                sequence.random = request.sampling.generator()
            self._running.append(sequence)

    def _plan(self) -> Plan:
        plan = Plan()
        budget = PREFILL_TOKENS
        for sequence in self._running:
            if sequence.stage == "prefill":
                budget -= self._plan_prefill(plan, sequence, budget)
            elif sequence.stage == "raw":
                edit = sequence.edits[0] if sequence.is_ungated else None
                plan.add(sequence, [self._row(sequence, sequence.token_ids[-1], 0, edit)])
            else:
                self._plan_trial(plan, sequence)
        return plan

    def _plan_prefill(self, plan: Plan, sequence: Answer, budget: int) -> int:
        """Adds the next chunk of the prompt, and with the last chunk the rows that follow it. Returns tokens used."""
        if budget <= 0:
            return 0
        recipe, prompt = sequence.request.recipe, sequence.request.token_ids
        start = self.slots.lengths[sequence.slot]
        # The last prompt token is a row where it must be probed or steered, else simply the chunk's last.
        stop = len(prompt) if recipe is None else len(prompt) - 1
        take = min(stop - start, budget)
        is_last = start + take == stop
        if recipe is not None and is_last and not sequence.edits and not ranking.needs_probe(recipe.ranking):
            self._rank(sequence, ranking.given(recipe.ranking, self.engine.num_layers))
        if recipe is not None and recipe.gate is None and not sequence.edits:
            self._set_static(sequence, recipe)
        rows: list[Row] = []
        if recipe is not None and is_last:
            last = Row(prompt[-1], len(prompt) - 1, sequence.slot, sequence.edits[0] if sequence.is_ungated else None)
            probed = not sequence.edits
            layers = self.engine.num_layers
            rows = ranking.probe_rows(recipe, prompt[-1], len(prompt) - 1, sequence.slot, layers) if probed else [last]
        if take:
            wants = recipe is None and is_last
            plan.chunks.append(Chunk(sequence.slot, prompt[start : start + take], start, wants_logits=wants))
        plan.add(sequence, rows, is_prefill=True, chunk_wants=recipe is None and is_last, captures=len(rows) > 1)
        return take

    def _set_static(self, sequence: Answer, recipe: Recipe) -> None:
        layers = tuple(range(self.engine.num_layers)) if recipe.layers is None else recipe.layers
        ranking.check_layers(layers, self.engine.num_layers)
        sequence.ranking, sequence.edits = layers, (Edit(recipe.steerer, frozenset(layers)),)

    def _rank(self, sequence: Answer, order: tuple[int, ...]) -> None:
        recipe = sequence.request.recipe
        assert recipe is not None
        sequence.ranking = order
        sequence.edits = tuple(Edit(recipe.steerer, layers) for layers in recipe.schedule.candidate_sets(order))

    def _row(self, sequence: Answer, token: int, ahead: int, edit: Edit | None = None) -> Row:
        return Row(token, len(sequence.token_ids) - 1 + ahead, sequence.slot, edit)

    def _plan_trial(self, plan: Plan, sequence: Answer) -> None:
        """Guesses first, so that the likeliest one's scratch column is already its place; then steered rows."""
        gate = sequence.request.recipe.gate  # type: ignore[union-attr]
        guesses = [token for token, p in sequence.top[:NUM_GUESSES] if gate.accepts(p, sequence.top[0][1])]  # type: ignore[union-attr]
        if sequence.num_generated + 1 >= sequence.request.max_new_tokens:
            guesses = []
        current = sequence.token_ids[-1]
        rows = [self._row(sequence, token, 1) for token in guesses]
        rows += [self._row(sequence, current, 0, edit) for edit in sequence.edits]
        plan.add(sequence, rows, guesses=guesses)

    def _settle(self, plan: Plan, result: Result) -> list[Emitted]:
        emitted: list[Emitted] = []
        ready: list[tuple[Answer, int]] = []
        plan.index(result)
        trials = [item for item in plan.work if item.sequence.stage == "trial"]
        for item in plan.work:
            if item.sequence.stage == "prefill":
                self._settle_prefill(item, result, ready)
            elif item.sequence.stage == "raw":
                self.slots.commit(item.sequence.slot, item.columns[0])
                ready.append((item.sequence, item.logits_at[0]))
        if trials:
            self._settle_trials(trials, result, emitted, ready)
        if ready:
            self._begin_steps(ready, result, emitted)
        return emitted

    def _settle_prefill(self, item: Work, result: Result, ready: list[tuple[Answer, int]]) -> None:
        sequence = item.sequence
        if item.rows:
            if item.captures:
                begun = time.perf_counter()
                low, high = item.row_range
                captured = [(pre[low:high], post[low:high]) for pre, post in result.captured]
                recipe = sequence.request.recipe
                assert recipe is not None
                self._rank(sequence, ranking.measured(recipe.ranking, captured))
                sequence.stats.ranking_seconds += time.perf_counter() - begun
            self.slots.commit(sequence.slot, item.columns[0])
        if item.logits_at:
            ready.append((sequence, item.logits_at[0]))

    def _begin_steps(self, ready: list[tuple[Answer, int]], result: Result, emitted: list[Emitted]) -> None:
        """With each sequence's raw logits at hand: takes the token where the gate is shut, else asks for trials."""
        logits = result.logits[[at for _, at in ready]].float()
        for row, (sequence, _) in enumerate(ready):
            if sequence.request.process is not None:
                logits[row] = sequence.request.process(sequence.token_ids, logits[row])
        values, indices = logits.topk(min(NUM_GUESSES + 1, logits.shape[-1]))
        totals = logits.logsumexp(-1)
        probabilities = (values - totals[:, None]).exp().tolist()
        tokens = indices.tolist()
        log_totals = totals.tolist()
        for row, (sequence, _) in enumerate(ready):
            sequence.raw, sequence.log_total = logits[row], log_totals[row]
            sequence.top = list(zip(tokens[row], probabilities[row], strict=True))
            self._begin_step(sequence, emitted)

    def _begin_step(self, sequence: Answer, emitted: list[Emitted]) -> None:
        gate = sequence.request.recipe.gate if sequence.request.recipe is not None else None
        if gate is not None and len(sequence.top) > 1 and gate.is_open(sequence.top[1][1], sequence.top[0][1]):
            sequence.stage = "trial"
            return
        sequence.stage = "raw"
        steered = len(sequence.edits[0].layers) if sequence.is_ungated else 0
        decision: Decision = "accepted" if sequence.is_ungated else "skipped"
        self._emit(sequence, self._pick_raw(sequence), decision, steered, int(steered > 0), emitted)

    def _pick_raw(self, sequence: Answer) -> int:
        if sequence.random is None:
            return sequence.top[0][0]
        return draw(sequence.request.sampling.filter(sequence.raw), None, sequence.random)

    def _settle_trials(
        self, trials: list[Work], result: Result, emitted: list[Emitted], ready: list[tuple[Answer, int]]
    ) -> None:
        steered_at = [at for item in trials for at in item.steered_at]
        steered = result.logits[steered_at].float()
        owners = [item.sequence for item in trials for _ in item.steered_at]
        for row, sequence in enumerate(owners):
            if sequence.request.process is not None:
                steered[row] = sequence.request.process(sequence.token_ids, steered[row])
        tokens = steered.argmax(-1)
        log_p = torch.stack([s.raw[t] for s, t in zip(owners, tokens, strict=True)])
        chosen, log_ps = tokens.tolist(), log_p.tolist()
        at = 0
        for item in trials:
            rows = range(at, at + len(item.steered_at))
            at = rows.stop
            p = torch.tensor([log_ps[r] for r in rows]).sub(item.sequence.log_total).exp().tolist()
            self._settle_trial(item, [chosen[r] for r in rows], p, steered[rows.start : rows.stop], emitted, ready)

    def _settle_trial(
        self,
        item: Work,
        tokens: list[int],
        probabilities: list[float],
        steered: torch.Tensor,
        emitted: list[Emitted],
        ready: list[tuple[Answer, int]],
    ) -> None:
        sequence = item.sequence
        gate = sequence.request.recipe.gate  # type: ignore[union-attr]
        accepted = [i for i, p in enumerate(probabilities) if gate.accepts(p, sequence.top[0][1])]  # type: ignore[union-attr]
        if accepted:
            token = self._pick_steered(sequence, tokens[accepted[0]], steered[accepted[0]])
            layers = len(sequence.edits[accepted[0]].layers)
            self._emit(sequence, token, "accepted", layers, accepted[0] + 1, emitted)
        else:
            token = self._pick_raw(sequence)
            self._emit(sequence, token, "rejected", 0, len(tokens), emitted)
        sequence.stage = "raw"
        if token in item.guesses and sequence.finish_reason is None:
            self.slots.commit(sequence.slot, item.columns[item.guesses.index(token)])
            ready.append((sequence, item.logits_at[item.guesses.index(token)]))

    def _pick_steered(self, sequence: Answer, token: int, steered: torch.Tensor) -> int:
        if sequence.random is None:
            return token
        gate = sequence.request.recipe.gate  # type: ignore[union-attr]
        p = (sequence.raw - sequence.log_total).exp()
        bound = gate.threshold * sequence.top[0][1]  # type: ignore[union-attr]
        plausible = p > bound if gate.strict else p >= bound  # type: ignore[union-attr]
        return draw(sequence.request.sampling.filter(steered), plausible, sequence.random)

    def _emit(
        self,
        sequence: Answer,
        token: int,
        decision: Decision,
        layers: int,
        trials: int,
        emitted: list[Emitted],
    ) -> None:
        top_token, p_top = sequence.top[0]
        p_raw = p_top if token == top_token else float((sequence.raw[token] - sequence.log_total).exp())
        changed = token != top_token and not sequence.is_ungated
        step = Step(token, "", decision, layers, trials, p_raw, p_top, changed)
        sequence.token_ids.append(token)
        sequence.stats.count(step)
        if token in sequence.request.eos_ids:
            sequence.finish_reason = "eos"
        elif sequence.num_generated >= sequence.request.max_new_tokens:
            sequence.finish_reason = "length"
        if sequence.finish_reason is not None:
            self._release(sequence)
        emitted.append(Emitted(sequence, step, sequence.finish_reason))


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
