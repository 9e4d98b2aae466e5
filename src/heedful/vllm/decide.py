"""Decides each steered request's next token from the raw logits of a step: gate, trials, sampling, as in the core.

All gated requests of a step, under all their candidate sets, are one steered forward; ranking, once a request, is
another.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from heedful import ranking
from heedful.sampling import Sampling, draw
from heedful.trace import Decision
from heedful.vllm.arguments import Asked
from heedful.vllm.host import Batch, Host
from heedful.vllm.metrics import counters
from heedful.vllm.penalties import Penalties
from heedful.vllm.steered import Part

ROWS = 512  # of one steered forward, or so: each has logits over the whole vocabulary, or its part in the ranking
HEAD = 1024  # likeliest tokens among which a nucleus is looked for first: sorting a whole vocabulary takes longer


@dataclass
class Note:
    """What was decided for one token, as in `heedful.trace.Step`."""

    decision: Decision
    layers: int
    trials: int
    changed: bool = False


@dataclass
class Trail:
    """What became of a request, for who runs vLLM in his own process: a note a token, and why it ended unanswered."""

    notes: list[Note] = field(default_factory=list)
    refused: str = ""

    def at(self, index: int, rank: int) -> Note:
        """What was decided for an answer's token; `rank`: of a plain one among the raw logits, 1 for the likeliest."""
        return self.notes[index] if index < len(self.notes) else Note("skipped", 0, 0, rank > 1)


@dataclass(eq=False)
class State:
    """One steered request in the batch. `output` is the list of what it has generated so far, kept by the processor.

    `is_penalised`: vLLM has applied the penalties to the raw logits already. `sets` None: not ranked yet. `refused`:
    why it ends at once; `is_told`: whether the log says so. `is_replayed`: steered statically, whether the tokens
    generated before a preemption are stored as steered again.
    """

    asked: Asked
    prompt: Sequence[int]
    output: list[int]
    sampling: Sampling
    bias: dict[int, float]
    is_masked: bool
    ends: tuple[int, ...]
    penalties: Penalties | None = None
    is_penalised: bool = False
    min_p: float = 0.0
    sets: tuple[frozenset[int], ...] | None = None
    refused: str = ""
    is_told: bool = False
    span: torch.Tensor | None = None
    factors: torch.Tensor | None = None
    random: torch.Generator | None = None
    is_replayed: bool = False
    trail: Trail | None = None

    @property
    def end(self) -> int:
        """A token that ends it, where there is any."""
        return self.ends[0] if self.ends else 0

    @property
    def rank_at(self) -> int:
        """How many tokens of the prompt are read where the layers are ranked."""
        return self.asked.span.rank_at or len(self.prompt)

    def note(self, decision: Decision, trial: int = -1) -> None:
        """Notes what came of a step; `trial`: the place of the candidate set that was taken."""
        if self.trail is None:
            return
        sets = self.sets or ()
        if decision == "accepted":
            self.trail.notes.append(Note(decision, len(sets[trial]), trial + 1))
        else:
            self.trail.notes.append(Note(decision, 0, len(sets) if decision == "rejected" else 0))

    def note_change(self) -> None:
        """Notes that the token of the step noted last is not the raw argmax."""
        if self.trail is not None and self.trail.notes:
            self.trail.notes[-1].changed = True

    def token(self, position: int) -> int:
        """The token at a position of prompt and answer."""
        length = len(self.prompt)
        return self.prompt[position] if position < length else self.output[position - length]

    @property
    def is_gated(self) -> bool:
        """Whether steered tokens are judged; if not, every one is taken."""
        return not self.asked.is_stored

    def draw(self, logits: torch.Tensor, plausible: torch.Tensor | None = None) -> int:
        """A token drawn from `logits (vocab,)`, of those that are `plausible (vocab,)` where that is given."""
        assert self.random is not None
        if self.min_p:
            lowest = logits.max() + self.sampling.temperature * math.log(self.min_p)
            logits = logits.masked_fill(logits < lowest, -torch.inf)
        return draw(filtered(self.sampling, logits), plausible, self.random)


@dataclass
class Ready:
    """A request whose next token is to be chosen: row `row` of the batch, `seq_len` tokens computed."""

    row: int
    state: State
    seq_len: int


class Decider:
    """`states`: the steered requests by their row in the batch, kept by the processor."""

    def __init__(self, host: Host, states: dict[int, State], counts: bool) -> None:
        self.host, self.states, self._counts = host, states, counts

    @torch.inference_mode()
    def decide(self, logits: torch.Tensor, batch: Batch | None) -> torch.Tensor:
        """`logits (requests, vocab)`, float32, changed in place so that vLLM takes the token decided.

        Raises `RuntimeError` where the plug-in does not know the step's batch: no token passes for a steered one.
        """
        self.host.prove()
        for row, state in self.states.items():
            state.refused = state.refused or self.host.refused  # the self-check may have failed just now
            if state.refused and row < len(logits):
                self._end(logits, row, state)
        if all(state.refused for state in self.states.values()):
            return logits
        if batch is None:
            raise RuntimeError("Heedful was not told of vLLM's batch: nothing of this step could be steered")
        forwards = self.host.num_forwards
        ready = self._ready(batch, len(logits))
        self._rank([item for item in ready if item.state.sets is None], batch)
        done: Counter[str] = Counter()
        if ready:
            self._steps(logits, ready, batch, done)
        self._count(done, self.host.num_forwards - forwards)
        return logits

    def _ready(self, batch: Batch, num_rows: int) -> list[Ready]:
        """Those that have read their prompt, and after a preemption all that they had generated."""
        return [
            Ready(row, state, batch.seq_lens[row])
            for row, state in sorted(self.states.items())
            if row < num_rows and not state.refused and batch.seq_lens[row] >= len(state.prompt) + len(state.output)
        ]

    # What a forward needs

    def _part(self, item: Ready, batch: Batch, sets: tuple[frozenset[int], ...], at: int | None = None) -> Part:
        """A request's share of a forward for its current token, or for that at position `at`."""
        state, table = item.state, batch.block_table[item.row]
        if state.span is None:
            span = state.asked.span
            steerer = state.asked.recipe.steerer
            state.span = torch.tensor(span.positions, device=table.device)
            state.factors = steerer.factors(torch.tensor(span.weights, device=table.device))  # type: ignore[union-attr]
        assert state.factors is not None
        position = item.seq_len - 1 if at is None else at
        token = batch.tokens[item.row] if at is None else state.token(at)
        past = len(state.span) - (state.asked.span.positions[-1] >= position)  # a row's own key is not scaled
        slot = self.host.slot(table, position)
        return Part(token, position, table, slot, state.span[:past], state.factors[:past], sets)

    # Ranking

    def _rank(self, items: Sequence[Ready], batch: Batch) -> None:
        """Settles what the requests' candidate sets are, once each."""
        layers = self.host.num_layers
        probed = []
        for item in items:
            recipe = item.state.asked.recipe
            if not recipe.needs_ranking:
                self._settle_sets(item.state, tuple(range(layers)))
            elif not recipe.needs_probe:
                self._settle_sets(item.state, ranking.given(recipe.ranking, layers))
            else:
                probed.append(item)
        sets = (frozenset[int](), *(frozenset([layer]) for layer in range(layers)))
        parts = [self._part(item, batch, sets, item.state.rank_at - 1) for item in probed]
        most = max(1, ROWS // len(sets))
        for begin in range(0, len(parts), most):
            self._probe(probed[begin : begin + most], parts[begin : begin + most])

    def _probe(self, items: Sequence[Ready], parts: Sequence[Part]) -> None:
        with self.host.capturing() as captured:
            self.host.forward(parts)
        for at, item in enumerate(items):
            own = [(pre[:, at], post[:, at]) for pre, post in captured]
            self._settle_sets(item.state, ranking.measured(item.state.asked.recipe.ranking, own).order)

    def _settle_sets(self, state: State, order: tuple[int, ...]) -> None:
        recipe = state.asked.recipe
        sets = recipe.candidate_sets(order)
        state.sets = sets if state.is_gated else sets[recipe.level : recipe.level + 1]

    # A step

    def _steps(self, logits: torch.Tensor, ready: Sequence[Ready], batch: Batch, done: Counter[str]) -> None:
        for item in ready:
            if item.state.penalties is not None and not item.state.is_penalised:
                item.state.penalties.apply(logits[item.row])
        rows = [item.row for item in ready]
        is_all = rows == list(range(len(logits)))
        tops, ratios = _two_best(logits if is_all else logits[rows])
        tokens: dict[int, int] = {}
        tried = []
        for at, item in enumerate(ready):
            gate = item.state.asked.recipe.gate
            if gate is None or gate.is_open(ratios[at], 1.0):
                tried.append(at)
            else:
                done["skipped"] += 1
                item.state.note("skipped")
        if tried:
            self._trials(ready, tried, batch, logits[[rows[at] for at in tried]], tokens, done)
            rejected = [at for at in tried if at not in tokens]
            done["rejected"] += len(rejected)
            for at in rejected:
                ready[at].state.note("rejected")
        for at, item in enumerate(ready):
            if at not in tokens:
                tokens[at] = tops[at] if item.state.random is None else item.state.draw(logits[item.row])
        for at, token in tokens.items():
            if token != tops[at] and ready[at].state.is_gated:
                done["changed"] += 1
                ready[at].state.note_change()
        self._put(
            logits, {item.row: tokens[at] for at, item in enumerate(ready) if _is_put(item, tokens[at], tops[at])}
        )

    def _put(self, logits: torch.Tensor, tokens: dict[int, int]) -> None:
        """Leaves each of these rows its token alone."""
        if tokens:
            logits[list(tokens)] = -torch.inf
            logits[list(tokens), list(tokens.values())] = 0.0

    def _trials(
        self,
        ready: Sequence[Ready],
        tried: Sequence[int],
        batch: Batch,
        own: torch.Tensor,
        tokens: dict[int, int],
        done: Counter[str],
    ) -> None:
        """Adds the tokens that a trial yields; `tried` are places in `ready`, of which `own` are the raw logits."""
        for keeps in (False, True):
            items = [at for at, place in enumerate(tried) if ready[place].state.is_gated != keeps]
            most = max((len(ready[tried[at]].state.sets or ()) for at in items), default=1)
            for begin in range(0, len(items), step := max(1, ROWS // most)):
                some = items[begin : begin + step]
                self._try(ready, [tried[at] for at in some], batch, own[some], tokens, done, keeps=keeps)

    def _try(
        self,
        ready: Sequence[Ready],
        places: Sequence[int],
        batch: Batch,
        own: torch.Tensor,
        tokens: dict[int, int],
        done: Counter[str],
        *,
        keeps: bool,
    ) -> None:
        """As `_trials`, of those in `places`, in one forward."""
        states = [ready[place].state for place in places]
        if keeps:
            for place in places:
                self._replay(ready[place], batch)
        most = max(len(state.sets or ()) for state in states)
        parts = [self._part(ready[place], batch, _padded(ready[place].state.sets or (), most)) for place in places]
        hidden = self.host.forward(parts, keeps=keeps)
        steered = self.host.model.compute_logits(hidden.flatten(0, 1)).float().view(*hidden.shape[:2], -1)
        self._alike(steered, states, own)
        self._judge(ready, places, steered, own, own.logsumexp(-1), tokens, done)

    def _replay(self, item: Ready, batch: Batch) -> None:
        """After a preemption vLLM has read the answer so far as if it were prompt: stores it steered, as it was."""
        state = item.state
        if state.output and not state.is_replayed:
            for position in range(len(state.prompt) - 1, item.seq_len - 1):
                self.host.forward([self._part(item, batch, state.sets or (), position)], keeps=True)
        state.is_replayed = True

    def _alike(self, steered: torch.Tensor, states: Sequence[State], own: torch.Tensor) -> None:
        """Does to the steered logits `(candidates, requests, vocab)` what vLLM has done to the raw ones."""
        for at, state in enumerate(states):
            for token, bias in state.bias.items():
                steered[:, at, token] += bias
            if state.is_masked:
                steered[:, at].masked_fill_(own[at] == -torch.inf, -torch.inf)
            if state.penalties is not None:
                state.penalties.apply(steered[:, at])

    def _judge(
        self,
        ready: Sequence[Ready],
        members: Sequence[int],
        steered: torch.Tensor,
        own: torch.Tensor,
        totals: torch.Tensor,
        tokens: dict[int, int],
        done: Counter[str],
    ) -> None:
        best = steered.argmax(-1)  # (candidates, requests)
        chances = (own.gather(1, best.T) - totals[:, None]).exp().tolist()
        p_tops = (own.max(-1).values - totals).exp().tolist()
        wanted = best.T.tolist()
        is_sound = steered.amax(-1).isfinite().all(0).tolist()  # a NaN is the largest
        for at, place in enumerate(members):
            item, gate = ready[place], ready[place].state.asked.recipe.gate
            if not is_sound[at]:
                self._refuse(item.state, "the steered logits are not finite; steer it less strongly")
                tokens[place] = item.state.end
                continue
            taken = [c for c, p in enumerate(chances[at]) if gate is None or gate.accepts(p, p_tops[at])]
            if not taken:
                continue
            done["accepted"] += 1
            item.state.note("accepted", taken[0])
            token = wanted[at][taken[0]]
            if item.state.random is not None:
                plausible = None
                if gate is not None:
                    p, bound = (own[at] - totals[at]).exp(), gate.threshold * p_tops[at]
                    plausible = p > bound if gate.strict else p >= bound
                token = item.state.draw(steered[taken[0], at], plausible)
            tokens[place] = token

    # Ends and counts

    def _end(self, logits: torch.Tensor, row: int, state: State) -> None:
        """Ends a request that cannot be steered as it asks: vLLM lets no one refuse it any more at this point."""
        self._refuse(state, state.refused)
        logits[row] = -torch.inf
        logits[row, state.end] = 0.0

    def _refuse(self, state: State, reason: str) -> None:
        """Says once why a request is not answered, or no further."""
        state.refused = reason
        if state.trail is not None:
            state.trail.refused = reason
        if not state.is_told:
            state.is_told = True
            logging.getLogger("vllm.heedful").error("a steered request was ended unanswered: %s", state.refused)
            if self._counts:
                counters()["refused"].inc()

    def _count(self, done: Counter[str], forwards: int) -> None:
        if not self._counts:
            return
        for decision in ("skipped", "accepted", "rejected"):
            if done[decision]:
                counters()["tokens"].labels(decision).inc(done[decision])
        if done["changed"]:
            counters()["changed"].inc(done["changed"])
        if forwards:
            counters()["forwards"].inc(forwards)


def filtered(sampling: Sampling, logits: torch.Tensor) -> torch.Tensor:
    """As `sampling.filter(logits)`, but for tokens that are exactly as likely as the nucleus' last one."""
    if sampling.top_p == 1.0 or sampling.top_k:
        return sampling.filter(logits)
    scaled = (logits - logits.max()) / sampling.temperature
    head = scaled.topk(min(HEAD, len(scaled))).values
    chances = (head - scaled.logsumexp(-1)).exp()
    before = chances.cumsum(-1) - chances
    if before[-1] < sampling.top_p:  # the nucleus may be larger
        return sampling.filter(logits)
    return scaled.masked_fill(scaled < head[before < sampling.top_p][-1], -torch.inf)


def _two_best(logits: torch.Tensor) -> tuple[list[int], list[float]]:
    """Each row's likeliest token, and how likely the second one is beside it; `logits (rows, vocab)` stay as they are.

    Two maxima, because a `topk` sorts.
    """
    best, at = logits.max(-1, keepdim=True)
    logits.scatter_(1, at, -torch.inf)
    second = logits.amax(-1, keepdim=True)
    logits.scatter_(1, at, best)
    return at[:, 0].tolist(), (second - best).exp()[:, 0].tolist()


def _is_put(item: Ready, token: int, top: int) -> bool:
    """Whether vLLM must be left no choice: it would take another token, draw, or apply penalties once more."""
    return token != top or item.state.random is not None or item.state.penalties is not None


def _padded(sets: tuple[frozenset[int], ...], length: int) -> tuple[frozenset[int], ...]:
    """`length` sets, the last one again and again: what was rejected once is rejected again."""
    return (*sets, *[sets[-1]] * (length - len(sets)))
