"""A conversation: what was read stays read, and marked instructions hold from turn to turn.

Between two turns nothing is prefilled again that the slot holds already, and layers are ranked again exactly when the
tokens of the held instructions change.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from heedful import journal
from heedful.answer import capacity_for
from heedful.checks import choice
from heedful.decode import Decoder
from heedful.directer import Directer
from heedful.errors import ContextLengthError, OptionError, SpanError
from heedful.generate import DEFAULT_NEW_TOKENS, LM, Answering, Event, Job, Result, events
from heedful.recipe import Method
from heedful.sampling import Sampling
from heedful.spans import Span, excerpt, find_substring, parse_tags

Policy = Literal["all", "latest", "system"]
VERSION = 1  # of the files that `Chat.save` writes
POLICIES = ("all", "latest", "system")
WHEN_FULL = ("error", "drop")


@dataclass(frozen=True)
class Message:
    """One message: its text without tags, and which of its passages are marked. A retired passage no longer holds."""

    role: str
    content: str
    marks: tuple[Span, ...] = ()
    retired: tuple[Span, ...] = ()

    def passage(self, span: Span) -> str:
        """The marked text."""
        return self.content[span.start : span.end]


class Chat:
    """A conversation with `lm`.

    `system`: a system message; its tags mark what holds, without any all of it does. `method` None: plain decoding.
    `policy`: which marked passages are heeded: "all" so far, those of the "latest" message of the user, or those of
    the "system" message. `max_new_tokens`: for each answer. `when_full`: "error", or "drop" the oldest turns that mark
    nothing held, so that a held instruction is never lost. A turn in which nothing is held is decoded plainly.
    Raises `OptionError` or `SpanError` for what cannot be.
    """

    def __init__(
        self,
        lm: LM,
        *,
        system: str | None = None,
        method: Method | None = Directer(),  # noqa: B008 (frozen)
        policy: Policy = "all",
        max_new_tokens: int | None = None,
        sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
        stop: Sequence[str] = (),
        when_full: Literal["error", "drop"] = "error",
    ) -> None:
        choice("policy", policy, POLICIES)
        choice("when_full", when_full, WHEN_FULL)
        self.lm, self.method, self.policy, self.when_full = lm, method, policy, when_full
        self.max_new_tokens, self.sampling, self.stop = max_new_tokens, sampling, tuple(stop)
        self.messages: list[Message] = []
        self.num_dropped = 0
        """Messages that no longer fitted into the context."""
        self._rankings: dict[str, tuple[int, ...]] = {}
        self._decoder: Decoder | None = None
        if system is not None:
            self.messages.append(_system(system))

    @property
    def held(self) -> list[str]:
        """The passages that the next answer will heed, in order."""
        return [self.messages[span.message or 0].passage(span) for span in self._held()]

    def _held(self) -> list[Span]:
        latest = max((at for at, message in enumerate(self.messages) if message.role == "user"), default=None)
        found = []
        for at, message in enumerate(self.messages):
            holds = {"all": True, "latest": at == latest, "system": message.role == "system"}[self.policy]
            if holds:
                found += [replace(mark, message=at) for mark in message.marks if mark not in message.retired]
        return found

    def send(self, text: str, *, retire: Sequence[str] = ()) -> Result:
        """Says `text`, in which `<heed>` tags mark instructions, and returns the answer. See `stream`."""
        *_, last = self.stream(text, retire=retire)
        assert last.result is not None
        return last.result

    def stream(self, text: str, *, retire: Sequence[str] = ()) -> Iterator[Event]:
        """The answer to `text` token by token; the turn counts once it is complete.

        `retire`: held instructions, by their text, that no longer hold from this turn on. Raises, at once and with the
        conversation as it was, `SpanError` for what is not held, `ContextLengthError` where the turn does not fit.
        """
        before, dropped_before = list(self.messages), self.num_dropped
        try:
            for passage in retire:
                self.retire(passage)
            content, marks = parse_tags(text)
            self.messages.append(Message("user", content, marks))
            answering = self._fitted()
        except Exception:
            self.messages, self.num_dropped = before, dropped_before
            raise
        return self._answered(answering, before, dropped_before)

    def retire(self, passage: str) -> None:
        """The instruction `passage`, or each one that it is part of, holds no longer. Raises `SpanError` if none is."""
        if not passage.strip():
            raise SpanError("name the instruction to retire by its text")
        hit = [span for span in self._held() if passage in self.messages[span.message or 0].passage(span)]
        if not hit:
            held = "; ".join(excerpt(one) for one in self.held) or "none"
            raise SpanError(f"no held instruction contains {excerpt(passage)!r}; held: {held}")
        for span in hit:
            at = span.message or 0
            retired = (*self.messages[at].retired, replace(span, message=None))
            self.messages[at] = replace(self.messages[at], retired=retired)

    def heed(self, passage: str) -> None:
        """Marks `passage` wherever you or the system message said it. Raises `SpanError` where it does not stand."""
        hits = 0
        for at, message in enumerate(self.messages):
            places = find_substring(message.content, passage) if message.role != "assistant" else []
            marks = tuple(dict.fromkeys([*message.marks, *(Span(start, end) for start, end in places)]))
            retired = tuple(mark for mark in message.retired if (mark.start, mark.end) not in places)
            self.messages[at] = replace(message, marks=marks, retired=retired)
            hits += len(places)
        if not hits:
            raise SpanError(f"{excerpt(passage)!r} stands in no message of yours; say it, marked by <heed>…</heed>")

    def undo(self) -> None:
        """Takes the latest turn back, yours and the answer. Raises `OptionError` where there is none."""
        if not any(message.role == "user" for message in self.messages):
            raise OptionError("there is no turn to take back")
        while self.messages.pop().role != "user":
            pass

    def again(self) -> tuple[Result, Result]:
        """The latest answer once more, plainly and steered; the conversation stays as it is.

        Raises `OptionError` where no turn was made, or nothing was held in it.
        """
        asked = [at for at, message in enumerate(self.messages) if message.role == "user"]
        if not asked:
            raise OptionError("there is no turn to compare")
        twin = self.fork()
        del twin.messages[asked[-1] + 1 :]
        job = twin.job()
        if job.method is None:
            raise OptionError("nothing was held in the latest turn: both answers would be plain")
        plain, steered = self.lm.generate_batch([replace(job, method=None, instructions=None), job])
        return plain, steered

    def fork(self) -> Chat:
        """The same conversation once more, to go on with independently; it reads what was read anew, once."""
        twin = Chat(self.lm, method=self.method, policy=self.policy, when_full=self.when_full)
        twin.max_new_tokens, twin.sampling, twin.stop = self.max_new_tokens, self.sampling, self.stop
        twin.messages, twin.num_dropped = list(self.messages), self.num_dropped
        twin._rankings = dict(self._rankings)
        return twin

    # One turn

    def _job(self, messages: Sequence[Message]) -> Job:
        held = self._held()
        prompt = [{"role": message.role, "content": message.content} for message in messages]
        method = self.method if held else None
        marks = held if method is not None else None
        return Job(prompt, marks, method, self.max_new_tokens, self.sampling, self.stop, tags=False)

    def job(self) -> Job:
        """The conversation so far as one prompt: what `LM.generate_batch` would be asked for from scratch."""
        return self._job(self.messages)

    def _fitted(self) -> Answering:
        """The next answer's request, after dropping what must be dropped."""
        while True:
            try:
                return self._with_ranking(Answering(self.lm, 0, self._with_room(self.job())))
            except ContextLengthError as error:
                if self.when_full == "error":
                    raise ContextLengthError(f"{error}; take turns back, or let old ones be dropped") from None
                if not self._drop():
                    raise ContextLengthError(f"{error}; nothing is left to drop but held instructions") from None

    def _with_room(self, job: Job) -> Job:
        """A turn without a limit of its own asks for the usual number of tokens, so that a full context is noticed."""
        return job if job.max_new_tokens is not None else replace(job, max_new_tokens=DEFAULT_NEW_TOKENS)

    def _drop(self) -> bool:
        """Drops the oldest turn without a held instruction; False where there is none."""
        held = {span.message for span in self._held()}
        starts = [at for at, message in enumerate(self.messages) if message.role == "user"]
        for start, stop in pairwise(starts):
            if not held & set(range(start, stop)):
                del self.messages[start:stop]
                self.num_dropped += stop - start
                return True
        return False

    def _with_ranking(self, answering: Answering) -> Answering:
        """The request with the ranking that these instruction tokens already have."""
        request = answering.request
        known = self._rankings.get(self._key(answering))
        if known is not None and request.recipe is not None:
            answering.request = replace(request, recipe=replace(request.recipe, ranking=known))
        return answering

    def _key(self, answering: Answering) -> str:
        request = answering.request
        tokens = [request.token_ids[position] for position in request.positions]
        described = self.method.describe() if self.method is not None else {}
        return json.dumps([described, tokens, request.weights], default=str)

    def _answered(self, answering: Answering, before: list[Message], dropped_before: int) -> Iterator[Event]:
        decoder = self._with_capacity(answering)
        key, is_complete = self._key(answering), False
        try:
            for event in events(decoder, [answering]):
                if event.result is not None:
                    is_complete = True
                    self.messages.append(Message("assistant", event.result.text))
                    if event.result.trace.ranking:
                        self._rankings[key] = event.result.trace.ranking
                yield event
        finally:
            if not is_complete:  # whoever listened went away
                self.messages, self.num_dropped = before, dropped_before
                self._decoder = None

    def _with_capacity(self, answering: Answering) -> Decoder:
        """The decoder that holds the conversation; a larger one, into which it is copied, where it has outgrown it."""
        request = answering.request
        need = capacity_for(request, self.lm.engine.num_layers)
        decoder = self._decoder
        if decoder is None or decoder.slots.capacity < need or decoder.slots.num_slots < request.num_slots:
            grown = Decoder(self.lm.engine, request.num_slots, 2 * need, reuses_prefixes=True)
            if decoder is not None:
                grown.take_over(decoder)
            self._decoder = grown
            return grown
        return decoder

    # Files

    def save(self, path: str | Path) -> None:
        """Writes the conversation as JSON. Raises `OptionError` where that cannot be done."""
        found = {
            "version": VERSION,
            "model": asdict(self.lm.engine.shape),
            "policy": self.policy,
            "num_dropped": self.num_dropped,
            "messages": [asdict(message) for message in self.messages],
        }
        with journal.kept(Path(path)):
            journal.write(Path(path), json.dumps(found, ensure_ascii=False, indent=1) + "\n")

    @classmethod
    def load(cls, lm: LM, path: str | Path, **options: Any) -> Chat:
        """A saved conversation, to go on with; `options` as for `Chat`.

        Raises `OptionError` where the file is none, or was made with another model or another version.
        """
        try:
            found = json.loads(Path(path).read_text(encoding="utf-8"))
            messages = [_message(entry) for entry in found["messages"]]
            model, version, policy = dict(found["model"]), found["version"], found["policy"]
            num_dropped = int(found["num_dropped"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise OptionError(f"{path} is no saved conversation: {error!r}") from error
        if version != VERSION:
            raise OptionError(f"{path} was saved in version {version} of the format, this Heedful reads {VERSION}")
        if model != asdict(lm.engine.shape):
            raise OptionError(
                f"{path} was saved with the model {model.get('name')!r}, this is {lm.engine.shape.name!r}"
            )
        chat = cls(lm, **{"policy": policy, **options})
        chat.messages, chat.num_dropped = messages, num_dropped
        return chat


def _system(text: str) -> Message:
    content, marks = parse_tags(text)
    if not content.strip():
        raise OptionError("the system message is empty: leave it out")
    return Message("system", content, marks or (Span(0, len(content)),))


def _message(entry: dict[str, Any]) -> Message:
    content = entry["content"]
    if not (isinstance(content, str) and entry["role"] in ("system", "user", "assistant")):
        raise ValueError(f"no message: {excerpt(str(entry))}")
    spans = {name: tuple(Span(**span) for span in entry[name]) for name in ("marks", "retired")}
    if any(span.end > len(content) for span in (*spans["marks"], *spans["retired"])):
        raise ValueError("a mark lies outside its message")
    return Message(entry["role"], content, **spans)
