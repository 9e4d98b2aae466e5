"""The instructions of a prompt as the model itself copies them out: it can only repeat the prompt's own clauses.

The model is asked to list them. At each step only those tokens may come that go on with a passage of the prompt, from
the beginning of a clause to the end of one and outside its material, in the prompt's order; so it can invent none.
Where that gives nothing to steer, the rules decide, and the detection's note says so.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from heedful.answer import Request, capacity_for
from heedful.decode import Decoder
from heedful.detection import Detection, Evidence, Found
from heedful.detection.chunks import chunks
from heedful.detection.material import layout
from heedful.engine import Engine
from heedful.errors import ContextLengthError, TokenizerError
from heedful.prompt import Messages, encode, search, turns
from heedful.spans import Span

QUESTION = (
    "Below is a request to an assistant. Which passages of it say how the answer must look: its length, format, "
    "language, style, or words that it must or must not contain? Copy them out word for word, one on each line, and "
    "nothing else. Do not answer the request.\n\nRequest:\n"
)
BULLET, NEWLINE = "-", "\n"
_MOST_COPIED = 0.9  # of a prompt; a model that copies all of it has not understood


@dataclass(frozen=True, slots=True)
class _State:
    """One reading of what was copied: closed items as (first, behind) token ranges, the open one's first token, the
    last token that was copied.

    `phase`: "start" (a bullet or the end may come), "bullet" (an item begins), "item" (one is open).
    """

    phase: str = "start"
    items: tuple[tuple[int, int], ...] = ()
    first: int = 0
    last: int = -1


class Copying:
    """Which tokens may come next, given those generated so far.

    `tokens`: those of the prompt's text; `clauses`: where a clause outside of material begins and ends, as token
    indices. What may come depends on a reading's phase and last token alone, so one reading is kept for each.
    """

    def __init__(self, tokens: Sequence[int], clauses: Sequence[tuple[int, int]], bullet: int, newline: int, eos: int):
        self.tokens, self.bullet, self.newline, self.eos = tokens, bullet, newline, eos
        self.opening = sorted({first for first, _ in clauses})
        self.closing = {behind - 1 for _, behind in clauses}
        self.inside = {at for first, behind in clauses for at in range(first, behind)}
        self._read: list[int] = []
        self._states = [_State()]

    def states(self, generated: Sequence[int]) -> list[_State]:
        """The ways to read the generated tokens as items; several where passages of the prompt begin alike."""
        known = len(self._read)
        if list(generated[:known]) != self._read:
            self._read, self._states, known = [], [_State()], 0
        for token in generated[known:]:
            self._states = _distinct(behind for state in self._states for behind in self._after(state, token))
            self._read.append(token)
        return self._states

    def allowed(self, generated: Sequence[int]) -> list[int]:
        """The tokens that may come next, sorted."""
        return sorted({token for state in self.states(generated) for token in self._next(state)})

    def items(self, generated: Sequence[int]) -> tuple[tuple[int, int], ...]:
        """The token ranges copied by finished output; of several readings the first."""
        for state in self.states([token for token in generated if token != self.eos]):
            if state.phase != "item":
                return state.items
            if state.last in self.closing:
                return _closed(state).items
        return ()

    def _starts(self, state: _State) -> list[int]:
        """Where the next item may begin."""
        return self.opening[bisect_right(self.opening, state.last) :]

    def _next(self, state: _State) -> Iterator[int]:
        """The tokens that may follow."""
        if state.phase == "bullet":
            yield from (self.tokens[at] for at in self._starts(state))
            return
        if state.phase == "item" and state.last + 1 in self.inside:
            yield self.tokens[state.last + 1]
        if state.phase == "item" and state.last in self.closing:
            yield from (self.newline, self.eos)
        if state.phase == "start":
            yield from (self.bullet, self.eos) if self._starts(state) else (self.eos,)

    def _after(self, state: _State, token: int) -> Iterator[_State]:
        """What `token`, where it may follow, makes of the reading; an item that goes on before one that ends."""
        if state.phase == "start":
            if token == self.eos:
                yield state
            if token == self.bullet and self._starts(state):
                yield replace(state, phase="bullet")
        elif state.phase == "bullet":
            fitting = (at for at in self._starts(state) if self.tokens[at] == token)
            yield from (replace(state, phase="item", first=at, last=at) for at in fitting)
        else:
            if state.last + 1 in self.inside and self.tokens[state.last + 1] == token:
                yield replace(state, last=state.last + 1)
            if state.last in self.closing and token in (self.newline, self.eos):
                yield _closed(state)

    def process(self, prompt_tokens: int) -> Callable[[Sequence[int], torch.Tensor], torch.Tensor]:
        """A logits processor for `Request.process`, for a request of `prompt_tokens` tokens."""

        def process(token_ids: Sequence[int], logits: torch.Tensor) -> torch.Tensor:
            kept = torch.full_like(logits, -torch.inf)
            allowed = self.allowed(token_ids[prompt_tokens:]) or [self.eos]
            kept[allowed] = logits[allowed]
            return kept

        return process


def _closed(state: _State) -> _State:
    return replace(state, phase="start", items=(*state.items, (state.first, state.last + 1)))


def _distinct(states: Iterable[_State]) -> list[_State]:
    """The first reading for each phase and last token; between items that with the smallest, which allows the most."""
    kept: dict[tuple[str, int], _State] = {}
    for state in states:
        known = kept.setdefault((state.phase, state.last if state.phase == "item" else -1), state)
        if state.last < known.last and state.phase != "item":
            kept[state.phase, -1] = state
    return list(kept.values())


def copied_out(
    engine: Engine,
    tokenizer: Any,
    prompt: Messages,
    eos_ids: frozenset[int],
    *,
    tags: bool = True,
    only_user: bool = False,
) -> Detection:
    """What the model copies out of each of the user's messages; system and developer messages as the rules have them,
    or, with `only_user`, not at all. `tags=False`: `<heed>` in the prompt is text like any other.

    `source` is "model", or "rules" where the model copied nothing or nearly all of a prompt, or could not be asked (a
    tokenizer without offsets or list signs, a model without an EOS token, a prompt that is too long); `note` tells
    which.
    """
    messages = turns(prompt, tags=tags)
    ruled = search(messages, only_user=only_user)
    copied: list[Found] = [item for item in ruled.found if messages[item.span.message or 0][0] != "user"]
    total = length = 0
    try:
        for index, (role, content) in enumerate(messages):
            if role == "user":
                found = _copied(engine, tokenizer, content, index, eos_ids)
                copied += found
                total += len(content.strip())
                length += sum(item.span.end - item.span.start for item in found)
    except (ContextLengthError, TokenizerError) as error:
        return _fallen_back(ruled, str(error))
    if not length:
        return _fallen_back(ruled, "the model copied nothing out")
    if length > _MOST_COPIED * total:
        return _fallen_back(ruled, "the model copied the whole prompt out")
    ordered = sorted(copied, key=lambda item: (item.span.message or 0, item.span.start))
    return Detection(tuple(ordered), "model")


def _fallen_back(ruled: Detection, why: str) -> Detection:
    behind = "" if ruled.found else f"; {ruled.note}"
    return replace(ruled, note=f"{why}, so rules looked for the instructions{behind}")


def _copied(engine: Engine, tokenizer: Any, content: str, message: int, eos_ids: frozenset[int]) -> list[Found]:
    """One message's instructions."""
    tokens, offsets = _tokens(tokenizer, content)
    clauses = _clauses(content, offsets)
    if not clauses:
        return []
    if not eos_ids:
        raise TokenizerError("the model names no EOS token to end a list with")
    copying = Copying(tokens, clauses, _sign(tokenizer, BULLET), _sign(tokenizer, NEWLINE), min(eos_ids))
    is_raw = not getattr(tokenizer, "chat_template", None)
    asked = encode(tokenizer, QUESTION + content, raw=is_raw, tags=False).token_ids
    room = len(tokens) + 2 * len(clauses) + 1
    if engine.context_length is not None and len(asked) + room > engine.context_length:
        raise ContextLengthError("the prompt is too long to be copied out within the model's context")
    request = Request(asked, room, eos_ids=eos_ids, process=copying.process(len(asked)))
    decoder = Decoder(engine, 1, capacity_for(request, engine.num_layers))
    answer = decoder.submit(request)
    sure: list[float] = []
    while not decoder.is_idle:
        sure += [emitted.step.p_raw for emitted in decoder.step()]
    items = copying.items(answer.token_ids[len(asked) :])
    score = sum(sure) / max(len(sure), 1)
    return [_found(content, offsets, item, message, score) for item in items]


def _found(
    content: str, offsets: Sequence[tuple[int, int]], item: tuple[int, int], message: int, score: float
) -> Found:
    start, end = offsets[item[0]][0], offsets[item[1] - 1][1]
    start = end - len(content[start:end].lstrip())
    return Found(Span(start, end, message=message), content[start:end], score, Evidence("copied by the model"))


def _tokens(tokenizer: Any, content: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Token ids of the bare content and their character ranges."""
    if not getattr(tokenizer, "is_fast", False):
        raise TokenizerError("the tokenizer cannot tell where its tokens stand")
    tokens = tokenizer(content, add_special_tokens=False, return_offsets_mapping=True)
    return list(tokens["input_ids"]), [(start, end) for start, end in tokens["offset_mapping"]]


def _clauses(content: str, offsets: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The clauses outside of material, as token ranges; a token on a border belongs to the clause that it begins in."""
    ranges = [(chunk.start, chunk.end) for chunk in chunks(layout(content)) if not chunk.is_material]
    found: list[tuple[int, int]] = []
    at = 0
    for start, end in ranges:
        while at < len(offsets) and offsets[at][1] <= start:
            at += 1
        first = at
        while at < len(offsets) and offsets[at][0] < end and offsets[at][1] <= end:
            at += 1
        if at > first:
            found.append((first, at))
    return found


def _sign(tokenizer: Any, text: str) -> int:
    """The one token of a list sign."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise TokenizerError(f"the tokenizer has no single token for {text!r}")
    return int(ids[0])
