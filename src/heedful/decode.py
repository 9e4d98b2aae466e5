"""The decode loop: many sequences in slots, each step one forward for all of them, no pass spent on steering alone.

A gated step's forward carries the steered rows of the current token and raw rows of the likeliest next tokens, so that
the next step begins where this one ends (design §3). Works on token ids; text is `text.py`'s business.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from heedful import ranking
from heedful.alternatives import alternatives
from heedful.answer import Answer, Emitted, FinishReason, Plan, Request, Work, capacity_for
from heedful.engine import Chunk, Edit, Engine, Result, Row, Slots
from heedful.errors import ContextLengthError, NumericError, OptionError
from heedful.held import Held
from heedful.recipe import Contrast, Recipe
from heedful.sampling import draw
from heedful.trace import Alternative, Decision, Step

NUM_GUESSES = 3
PREFILL_TOKENS = 2048


class Decoder:
    """Continuous batching over slots: `submit` requests at any time, call `step` until `is_idle`."""

    def __init__(
        self,
        engine: Engine,
        num_slots: int,
        capacity: int,
        max_running: int | None = None,
        prefill_tokens: int = PREFILL_TOKENS,
        reuses_prefixes: bool = False,
        fails_alone: bool = False,
    ) -> None:
        """`max_running`: answers at a time, where that is less than what the slots would hold.

        `prefill_tokens`: prompt tokens, and rows that rank layers, of a step at most; whoever is decoding waits for no
        more than that and one ranking. (An ungated pooled SpotLight reads 2,048 all the same: its pieces may not depend
        on the decoder.) `reuses_prefixes`: a prompt that begins as what a free slot still holds is not read again so
        far. `fails_alone`: an error that one answer brings about ends that answer with a `NumericError`, and is raised
        only where none can go on.
        """
        self.engine = engine
        self.prefill_tokens, self.fails_alone = prefill_tokens, fails_alone
        self._held = Held(num_slots) if reuses_prefixes else None
        self.max_running = num_slots if max_running is None else max_running
        self.slots: Slots = engine.slots(num_slots, capacity)
        self._free = list(range(num_slots))
        self._waiting: deque[Answer] = deque()
        self._running: list[Answer] = []

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits and nothing runs."""
        return not self._waiting and not self._running

    def has_room(self, request: Request) -> bool:
        """Whether the next step would start `request`, were it submitted now."""
        ahead = sum(sequence.request.num_slots for sequence in self._waiting)
        running = self.num_running + len(self._waiting)
        return running < self.max_running and len(self._free) >= ahead + request.num_slots

    def take_over(self, other: Decoder) -> None:
        """Holds what `other` holds, so that it is not read again; both must reuse prefixes.

        Of a slot in which `other` is answering, only what that answer found there.
        """
        assert self._held is not None
        assert other._held is not None
        self.slots.take_over(other.slots)
        self._held.take_over(other._held)

    @property
    def num_running(self) -> int:
        """Answers in slots."""
        return sum(sequence.leader is None for sequence in self._running)

    def reset(self) -> None:
        """Forgets all that runs and waits; every slot is free. For a decoder whose `step` has raised."""
        self._waiting.clear()
        self._running.clear()
        self._free = list(range(self.slots.num_slots))
        if self._held is not None:
            self._held = Held(self.slots.num_slots)

    def check(self, request: Request) -> None:
        """Raises `ContextLengthError` where no slot could hold the request, `OptionError` where it needs too many, or
        its `rank_at` is none.
        """
        first = max(request.positions, default=0) + 1
        if request.rank_at is not None and not first <= request.rank_at <= len(request.token_ids):
            raise OptionError(f"rank_at must lie behind the marked tokens and in the prompt; got {request.rank_at}")
        need = capacity_for(request, self.engine.num_layers)
        if need > self.slots.capacity:
            raise ContextLengthError(f"the request needs {need} cached tokens, a slot holds {self.slots.capacity}")
        if request.num_slots > self.slots.num_slots:
            raise OptionError(f"the method needs {request.num_slots} slots, the decoder has {self.slots.num_slots}")

    def submit(self, request: Request) -> Answer:
        """Queues a request. Raises what `check` does."""
        self.check(request)
        sequence = Answer(request, token_ids=list(request.token_ids))
        sequence.stats.prompt_tokens = len(request.token_ids)
        if request.recipe is not None and request.recipe.contrast is not None:
            sequence.twin = self._twin(sequence, request.recipe.contrast)
        self._waiting.append(sequence)
        return sequence

    def _twin(self, leader: Answer, contrast: Contrast) -> Answer:
        request = leader.request
        hidden = contrast.hide(request.token_ids, request.positions, self.engine.neutral_id)
        return Answer(Request(hidden, request.max_new_tokens), token_ids=list(hidden), leader=leader)

    def finish(self, sequence: Answer, reason: FinishReason = "stop") -> None:
        """Ends a sequence early and frees its slot; does nothing if it has ended."""
        if sequence.finish_reason is None:
            sequence.finish_reason = reason
            self._release(sequence)

    def _release(self, sequence: Answer) -> None:
        if sequence in self._running:
            for member in (sequence, sequence.twin):
                if member is not None:
                    self._running.remove(member)
                    self._free.append(member.slot)
                    if self._held is not None:
                        is_sound = sequence.finish_reason != "error"
                        sound = member.num_raw if is_sound else member.num_reused
                        stored = min(sound, self.slots.lengths[member.slot])
                        self._held.keep(member.slot, member.token_ids[:stored])
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
        try:
            result = self.engine.forward(self.slots, plan.rows, plan.chunks, capture=plan.captures)
        except Exception as error:
            if not self.fails_alone:
                raise
            return self._run_apart(plan, error)
        return self._conclude(plan, result, time.perf_counter() - begun)

    def _conclude(self, plan: Plan, result: Result, elapsed: float) -> list[Emitted]:
        """Notes what the forward took, and settles its tokens."""
        counted: set[Answer] = set()
        for item in plan.work:
            leader = item.sequence.leader or item.sequence
            stats = leader.stats
            stats.rows += len(item.rows)
            if leader in counted:
                continue
            counted.add(leader)
            stats.forward_passes += 1
            if item.is_prefill:
                stats.prefill_seconds += elapsed
            else:
                stats.decode_seconds += elapsed
        return self._settle(plan, result)

    def _run_apart(self, plan: Plan, error: Exception) -> list[Emitted]:
        """Each answer in a forward of its own, after one of all has raised `error`: who raises alone ends alone.

        Raises where no answer can be had: then it is nothing that one of them asked for.
        """
        emitted: list[Emitted] = []
        parts = plan.parts()
        ended: dict[Answer, Exception] = {}
        for leader, part in parts.items():
            begun = time.perf_counter()
            try:
                result = self.engine.forward(self.slots, part.rows, part.chunks, capture=part.captures)
            except Exception as own:
                ended[leader] = own
            else:
                emitted += self._conclude(part, result, time.perf_counter() - begun)
        if len(ended) == len(parts):
            raise error
        for leader, cause in ended.items():
            self._fail(leader, emitted, cause)
        return emitted

    def _admit(self) -> None:
        while self._waiting and len(self._free) >= self._waiting[0].request.num_slots:
            if self.num_running >= self.max_running:
                return
            sequence = self._waiting.popleft()
            for member in (sequence, sequence.twin):
                if member is not None:
                    self._open(member)

    def _open(self, sequence: Answer) -> None:
        request = sequence.request
        sequence.slot = self._free[0]
        if self._held is not None:
            wanted = request.token_ids[: min(sequence.num_raw, len(request.token_ids) - 1)]
            sequence.slot, sequence.num_reused = self._held.best(self._free, wanted)
            self._held.keep(sequence.slot, wanted[: sequence.num_reused])  # whatever becomes of the rest
        self._free.remove(sequence.slot)
        prompt, kept = len(request.token_ids), sequence.num_reused
        self.slots.open(sequence.slot, prompt, request.positions, request.weights, kept)
        if not request.sampling.is_greedy:
            sequence.random = request.sampling.generator()
        self._running.append(sequence)

    def _plan(self) -> Plan:
        plan = Plan()
        budget = self.prefill_tokens
        for sequence in self._running:
            if sequence.stage == "prefill":
                budget -= self._plan_prefill(plan, sequence, budget)
            elif sequence.stage == "raw":
                edit = sequence.edits[0] if sequence.is_steered_always else None
                plan.add(sequence, [self._row(sequence, sequence.token_ids[-1], 0, edit)])
            elif sequence.stage == "trial":
                self._plan_trial(plan, sequence)
        return plan

    def _plan_prefill(self, plan: Plan, sequence: Answer, budget: int) -> int:
        """Adds the next chunk of the prompt, and with the last chunk the rows that follow it; returns how many tokens
        and rows that is.
        """
        if budget <= 0:
            return 0
        recipe, prompt = sequence.request.recipe, sequence.request.token_ids
        steerer = None if recipe is None else recipe.steerer
        start = self.slots.lengths[sequence.slot]
        # The last prompt token is a row where it must be probed or steered, else simply the chunk's last.
        stop = len(prompt) if steerer is None else len(prompt) - 1
        take = min(stop - start, budget)
        if recipe is not None and steerer is not None and steerer.is_pooled and sequence.is_steered_always:
            # What is pooled over must not depend on who else is prefilled: cut by the prompt's own length only.
            take = min(stop - start, PREFILL_TOKENS)
            if take > budget and budget < self.prefill_tokens:
                return 0
        is_last = start + take == stop
        if recipe is not None and steerer is not None and not sequence.edits:
            self._prepare(sequence, recipe)
        steered = sequence.edits[0] if sequence.is_steered_always and sequence.edits else None
        rows: list[Row] = []
        if recipe is not None and steerer is not None and is_last:
            rows = [Row(prompt[-1], len(prompt) - 1, sequence.slot, steered)]
            if not sequence.edits:
                rows = self._with_probes(sequence, recipe, rows[0])
            if len(rows) > max(1, budget - take) and budget < self.prefill_tokens:
                rows = []  # they wait for a step that has room; the first prompt of a step finds it
                if not take:
                    return 0
        wants = is_last and steerer is None
        if take:
            edit = steered if recipe is not None and recipe.steers_prefill else None
            plan.chunks.append(Chunk(sequence.slot, prompt[start : start + take], start, int(wants), edit))
        plan.add(sequence, rows, is_prefill=True, chunk_wants=wants, captures=len(rows) > 1)
        return take + len(rows)

    def _with_probes(self, sequence: Answer, recipe: Recipe, last: Row) -> list[Row]:
        """The prompt's last row, and behind it what ranks the layers: it may be one of that.

        A row sees what is stored before its position, so that layers can be ranked further back, where the
        conversation stood as the marks came to be.
        """
        rank_at, layers = sequence.request.rank_at, self.engine.num_layers
        if rank_at is None or rank_at == len(sequence.request.token_ids):
            return ranking.probe_rows(recipe, last, layers)
        then = Row(sequence.request.token_ids[rank_at - 1], rank_at - 1, sequence.slot, wants_logits=False)
        return [last, *ranking.probe_rows(recipe, then, layers)]

    def _prepare(self, sequence: Answer, recipe: Recipe) -> None:
        """Settles what is steered as far as it can be known before the prompt is read."""
        layers = self.engine.num_layers
        if not recipe.needs_ranking:
            self._rank(sequence, tuple(range(layers)))
        elif not recipe.needs_probe:
            self._rank(sequence, ranking.given(recipe.ranking, layers))

    def _rank(self, sequence: Answer, order: tuple[int, ...]) -> None:
        recipe = sequence.request.recipe
        assert recipe is not None
        assert recipe.steerer is not None
        sets = recipe.candidate_sets(order)
        if recipe.gate is None:
            sets = sets[recipe.level : recipe.level + 1]
        sequence.ranking = order
        sequence.edits = tuple(Edit(recipe.steerer, layers) for layers in sets)

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
                high = item.row_range[1]
                low = high - self.engine.num_layers - 1
                captured = [(pre[low:high], post[low:high]) for pre, post in result.captured]
                recipe = sequence.request.recipe
                assert recipe is not None
                measured = ranking.measured(recipe.ranking, captured)
                sequence.sensitivity = measured.scores
                self._rank(sequence, measured.order)
                sequence.stats.ranking_seconds += time.perf_counter() - begun
                if sequence.is_ungated:
                    return  # the last prompt token is computed once more, steered
            self.slots.commit(sequence.slot, item.columns[0])
        if item.logits_at:
            ready.append((sequence, item.logits_at[0]))

    def _begin_steps(self, ready: list[tuple[Answer, int]], result: Result, emitted: list[Emitted]) -> None:
        """With each sequence's raw logits at hand: takes the token where the gate is shut, else asks for trials."""
        logits = result.logits[[at for _, at in ready]].float()
        steered: dict[Answer, torch.Tensor] = {}
        for row, (sequence, _) in enumerate(ready):
            sequence.raw, sequence.stage = logits[row], "ready"
        leaders = list(dict.fromkeys(sequence.leader or sequence for sequence, _ in ready))
        begun = [sequence for sequence in leaders if sequence.is_settled]
        if not begun:
            return
        for sequence in begun:
            with self._alone(sequence, emitted):
                self._combine(sequence, steered)
        begun = [sequence for sequence in begun if sequence.finish_reason is None]
        if not begun:
            return
        self._measure(begun)
        for sequence in begun:
            if not math.isfinite(sequence.log_total) or not _is_finite(steered.get(sequence)):
                self._fail(sequence, emitted)
                continue
            with self._alone(sequence, emitted):
                if sequence in steered:
                    self._begin_contrast(sequence, steered[sequence], emitted)
                else:
                    self._begin_step(sequence, emitted)

    def _combine(self, sequence: Answer, steered: dict[Answer, torch.Tensor]) -> None:
        """Its logits as they are judged: contrasted with its twin's, and processed."""
        if sequence.twin is not None:
            contrast = sequence.request.recipe.contrast  # type: ignore[union-attr]
            steered[sequence] = contrast.combine(sequence.raw, sequence.twin.raw)  # type: ignore[union-attr]
        if sequence.request.process is not None:
            sequence.raw = sequence.request.process(sequence.token_ids, sequence.raw)
            if sequence in steered:
                steered[sequence] = sequence.request.process(sequence.token_ids, steered[sequence])

    @contextmanager
    def _alone(self, sequence: Answer, emitted: list[Emitted]) -> Iterator[None]:
        """What goes wrong inside ends this answer and no other, where that is wanted."""
        try:
            yield
        except Exception as error:
            if not self.fails_alone or sequence.finish_reason is not None:
                raise
            self._fail(sequence, emitted, error)

    def _measure(self, sequences: list[Answer]) -> None:
        """Notes the likeliest tokens and their probabilities."""
        logits = torch.stack([sequence.raw for sequence in sequences])
        values, indices = logits.topk(min(NUM_GUESSES + 1, logits.shape[-1]))
        totals = logits.logsumexp(-1)
        probabilities = (values - totals[:, None]).exp().tolist()
        for sequence, tokens, chances, total in zip(
            sequences, indices.tolist(), probabilities, totals.tolist(), strict=True
        ):
            sequence.log_total = total
            sequence.top = list(zip(tokens, chances, strict=True))

    def _begin_contrast(self, sequence: Answer, steered: torch.Tensor, emitted: list[Emitted]) -> None:
        """The steered logits are there with the raw ones, so a gated step is settled at once."""
        gate = sequence.request.recipe.gate  # type: ignore[union-attr]
        (_, p_top), (_, p_second) = sequence.top[0], sequence.top[min(1, len(sequence.top) - 1)]
        sequence.stage = "raw"
        decision: Decision = "accepted"
        if gate is None:
            token = self._pick(sequence, steered, int(steered.argmax()))
        elif not gate.is_open(p_second, p_top):
            token, decision = self._pick_raw(sequence), "skipped"
        else:
            token = int(steered.argmax())
            if gate.accepts(float((sequence.raw[token] - sequence.log_total).exp()), p_top):
                token = self._pick_steered(sequence, token, steered)
            else:
                token, decision = self._pick_raw(sequence), "rejected"
        self._emit(sequence, token, decision, 0, int(decision != "skipped"), emitted, steered)
        twin = sequence.twin
        assert twin is not None
        twin.token_ids.append(token)
        twin.stage = "raw"

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
        return self._pick(sequence, sequence.raw, sequence.top[0][0])

    def _pick(self, sequence: Answer, logits: torch.Tensor, likeliest: int) -> int:
        if sequence.random is None:
            return likeliest
        return draw(sequence.request.sampling.filter(logits), None, sequence.random)

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
        are_finite = steered.gather(1, tokens[:, None])[:, 0].isfinite().tolist()  # NaN counts as the largest
        log_p = torch.stack([s.raw[t] for s, t in zip(owners, tokens, strict=True)])
        chosen, log_ps = tokens.tolist(), log_p.tolist()
        at = 0
        for item in trials:
            rows = range(at, at + len(item.steered_at))
            at = rows.stop
            if not all(are_finite[row] for row in rows):
                self._fail(item.sequence, emitted)
                continue
            p = torch.tensor([log_ps[r] for r in rows]).sub(item.sequence.log_total).exp().tolist()
            with self._alone(item.sequence, emitted):
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
            self._emit(sequence, token, "accepted", layers, accepted[0] + 1, emitted, steered[accepted[0]])
        else:
            token = self._pick_raw(sequence)
            self._emit(sequence, token, "rejected", 0, len(tokens), emitted, steered[0])
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
        filtered = sequence.request.sampling.filter(steered)
        if not bool((filtered[plausible] > -torch.inf).any()):
            return token  # a filter of transformers' (typical_p) may drop all that is plausible
        return draw(filtered, plausible, sequence.random)

    def _emit(
        self,
        sequence: Answer,
        token: int,
        decision: Decision,
        layers: int,
        trials: int,
        emitted: list[Emitted],
        steered: torch.Tensor | None = None,
    ) -> None:
        """Adds the token to its answer; `steered`: the logits of the trial that settled it, where there was one."""
        top_token, p_top = sequence.top[0]
        p_raw = p_top if token == top_token else float((sequence.raw[token] - sequence.log_total).exp())
        changed = token != top_token and not sequence.is_steered_always
        step = Step(token, "", decision, layers, trials, p_raw, p_top, changed)
        sequence.token_ids.append(token)
        sequence.stats.count(step)
        if token in sequence.request.eos_ids:
            sequence.finish_reason = "eos"
        elif sequence.num_generated >= sequence.request.max_new_tokens:
            sequence.finish_reason = "length"
        if sequence.finish_reason is not None:
            self._release(sequence)
        told = _alternatives(sequence, token, steered)
        emitted.append(Emitted(sequence, step, sequence.finish_reason, self._likeliest(sequence), alternatives=told))

    def _fail(self, sequence: Answer, emitted: list[Emitted], cause: Exception | None = None) -> None:
        """Ends a sequence whose logits are not finite, or cannot be had for that `cause`; the others go on."""
        method = "" if sequence.request.recipe is None else "; steer it less strongly"
        what = "are not finite" if cause is None else f"cannot be computed ({type(cause).__name__})"
        error = NumericError(f"the logits of token {sequence.num_generated + 1} of the answer {what}{method}")
        error.__cause__ = cause
        sequence.finish_reason = "error"
        self._release(sequence)
        emitted.append(Emitted(sequence, None, "error", error=error))

    def _likeliest(self, sequence: Answer) -> tuple[tuple[int, float], ...]:
        count = min(sequence.request.num_top, sequence.raw.shape[-1])
        if not count:
            return ()
        values, tokens = sequence.raw.topk(count)
        return tuple(zip(tokens.tolist(), (values - sequence.log_total).tolist(), strict=True))


def _alternatives(sequence: Answer, token: int, steered: torch.Tensor | None) -> tuple[Alternative, ...]:
    """As many as asked for; an ungated steerer's logits are the steered ones."""
    count = sequence.request.num_alternatives
    if not count:
        return ()
    if sequence.is_steered_always:
        return alternatives(None, sequence.raw, token, count)
    return alternatives(sequence.raw, steered, token, count)


def _is_finite(logits: torch.Tensor | None) -> bool:
    """Whether a token can be chosen by `logits (vocab,)`: the largest, which any NaN would be, is finite."""
    return logits is None or math.isfinite(float(logits.max()))
