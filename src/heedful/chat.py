"""A conversation: what was read stays read, and marked instructions hold from turn to turn.

Between two turns nothing is prefilled again that the slot holds already, and layers are ranked again exactly when the
tokens of the held instructions change.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
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
from heedful.provenance import fingerprint
from heedful.recipe import Method
from heedful.sampling import Sampling
from heedful.spans import Span, excerpt, find_substring, outside, parse_tags

Policy = Literal["all", "latest", "system"]
VERSION = 3  # of the files that `Chat.save` writes
READ_VERSIONS = (2, VERSION)  # the second knows no texts of marks
POLICIES = ("all", "latest", "system")
WHEN_FULL = ("error", "drop")


@dataclass(frozen=True, slots=True)
class Mark(Span):
    """A marked passage and its text, which tells whether it still stands where it was marked."""

    text: str = ""


@dataclass(frozen=True)
class Message:
    """One message: its text without tags, and which of its passages are marked. A retired passage no longer holds.

    Spans without a text become marks of what stands there.
    """

    role: str
    content: str
    marks: tuple[Mark, ...] = ()
    retired: tuple[Mark, ...] = ()

    def __post_init__(self) -> None:
        for name in ("marks", "retired"):
            given: tuple[Span, ...] = getattr(self, name)
            marks = tuple(one if isinstance(one, Mark) else _mark(one, self.content) for one in given)
            object.__setattr__(self, name, marks)

    @property
    def live(self) -> tuple[Mark, ...]:
        """The marks that are not retired."""
        return tuple(mark for mark in self.marks if mark not in self.retired)

    def has(self, mark: Mark) -> bool:
        """Whether the marked text still stands there."""
        return self.content[mark.start : mark.end] == mark.text

    def heeding(self, passage: str) -> Message:
        """The same with `passage` marked wherever it stands; what a live mark gives another weight keeps that."""
        message = self
        for start, end in find_substring(self.content, passage):
            message = message._with(Mark(start, end, text=passage))
        return message

    def _with(self, new: Mark) -> Message:
        same = (one for one in self.retired if (one.start, one.end, one.text) == (new.start, new.end, new.text))
        known = next(same, new)
        others = [one for one in self.live if one.weight != known.weight]
        parts = [_mark(part, self.content) for part in outside(self.content, known, others)]
        retired = tuple(one for one in self.retired if one not in parts)
        return replace(self, marks=tuple(dict.fromkeys((*self.marks, *parts))), retired=retired)


def _mark(span: Span, content: str) -> Mark:
    """`span` with what stands there."""
    return Mark(span.start, span.end, span.weight, span.message, content[span.start : span.end])


NEXT = Message("user", "")
"""Stands for what the user will say."""


@dataclass
class Turn:
    """One turn on its way: the messages with it, and what taking it back must restore besides."""

    messages: list[Message]
    retired: list[Mark] = field(default_factory=list)
    dropped: list[tuple[int, list[Message]]] = field(default_factory=list)
    """Each run of messages that made room, and where it stood."""
    job: Job | None = None
    """What was asked for, with what was held then."""


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
        self._turns: list[Turn] = []
        self._open: Turn | None = None
        self._origin: Chat | None = None
        """Whose copy this is, until it has read for itself."""
        if system is not None:
            self.messages.append(_system(system))

    @property
    def held(self) -> list[str]:
        """The passages that the next answer will heed, in order, besides what the next message marks."""
        return [mark.text for mark in self._held([*self.messages, NEXT])]

    def _held(self, messages: Sequence[Message]) -> list[Mark]:
        """What an answer to the last of `messages` heeds."""
        latest = max((at for at, message in enumerate(messages) if message.role == "user"), default=None)
        found = []
        for at, message in enumerate(messages):
            holds = {"all": True, "latest": at == latest, "system": message.role == "system"}[self.policy]
            if holds:
                found += [replace(mark, message=at) for mark in message.live]
        return found

    def send(self, text: str, *, retire: Sequence[str] = ()) -> Result:
        """Says `text`, in which `<heed>` tags mark instructions, and returns the answer. See `stream`."""
        *_, last = self.stream(text, retire=retire)
        assert last.result is not None
        return last.result

    def stream(self, text: str, *, retire: Sequence[str] = ()) -> Generator[Event, None, None]:
        """The answer to `text` token by token; until it is complete, the conversation stays as it was.

        `retire`: held instructions, by their text, that no longer hold from this turn on. Raises at once `SpanError`
        for what is not held, for tags where the policy is "system" and for a held instruction that was edited out of
        its message, `ContextLengthError` where the turn does not fit, `OptionError` while another answer is streamed;
        and as it begins, `OptionError` where the conversation went on in between.
        """
        self._check_idle()
        content, marks = parse_tags(text)
        if marks and self.policy == "system" and self.method is not None:
            shown = excerpt(content[marks[0].start : marks[0].end])
            raise SpanError(
                f"the policy 'system' heeds the system message alone, but this message marks {shown!r}: "
                "leave the tags out, or choose the policy 'all' or 'latest'"
            )
        turn = Turn(list(self.messages))
        for passage in retire:
            turn.retired += self._retire(turn.messages, passage)
        turn.messages.append(Message("user", content, tuple(_mark(span, content) for span in marks)))
        return self._answered(turn, self._fitted(turn), list(self.messages))

    def retire(self, passage: str) -> None:
        """The instruction `passage`, or each one that it is part of, holds no longer. Raises `SpanError` if none is."""
        self._check_idle()
        self._retire(self.messages, passage)

    def _retire(self, messages: list[Message], passage: str) -> list[Mark]:
        if not passage.strip():
            raise SpanError("name the instruction to retire by its text")
        held = self._held([*messages, NEXT])
        hit = [mark for mark in held if passage in mark.text]
        if not hit:
            listed = "; ".join(excerpt(mark.text) for mark in held) or "none"
            raise SpanError(f"no held instruction contains {excerpt(passage)!r}; held: {listed}")
        for span in hit:
            at = span.message or 0
            retired = (*messages[at].retired, replace(span, message=None))
            messages[at] = replace(messages[at], retired=retired)
        return hit

    def heed(self, passage: str) -> bool:
        """Marks `passage` wherever you or the system message said it; whether it is held now, by the policy.

        What is held with a weight of its own keeps that. Raises `SpanError` where the passage does not stand.
        """
        self._check_idle()
        if not passage.strip():
            raise SpanError("name the passage to heed by its text")
        said = [at for at, message in enumerate(self.messages) if message.role != "assistant"]
        places = {at: find_substring(self.messages[at].content, passage) for at in said}
        if not any(places.values()):
            raise SpanError(f"{excerpt(passage)!r} stands in no message of yours; say it, marked by <heed>…</heed>")
        for at in said:
            self.messages[at] = self.messages[at].heeding(passage)
        held = self._held([*self.messages, NEXT])
        return any(mark.start < end and start < mark.end for mark in held for start, end in places[mark.message or 0])

    def undo(self) -> None:
        """Takes the latest turn back: yours, the answer, what it retired and what it dropped.

        Of a turn that was made before the conversation was saved, only the messages. Raises `OptionError` where there
        is no turn, or an answer is being streamed.
        """
        self._check_idle()
        if not any(message.role == "user" for message in self.messages):
            raise OptionError("there is no turn to take back")
        while self.messages.pop().role != "user":
            pass
        turn = self._turns.pop() if self._turns else Turn([])
        for at, dropped in reversed(turn.dropped):
            self.messages[at:at] = dropped
            self.num_dropped -= len(dropped)
        for span in turn.retired:
            message = self.messages[span.message or 0]
            kept = tuple(one for one in message.retired if one != replace(span, message=None))
            self.messages[span.message or 0] = replace(message, retired=kept)

    def again(self) -> tuple[Result, Result]:
        """The latest answer once more, plainly and steered, with what it heeded and the ranking it had; the
        conversation stays as it is.

        Of a turn that was made before the conversation was saved, or edited since, with what is held by now. Raises
        `OptionError` where no turn was made, or nothing was held in it.
        """
        job = self._latest_job()
        if job.method is None:
            raise OptionError("nothing was held in the latest turn: both answers would be plain")
        plain = Answering(self.lm, 0, replace(job, method=None, instructions=None))
        answers = [plain, self._with_ranking(Answering(self.lm, 1, job))]
        capacity = max(capacity_for(answer.request, self.lm.engine.num_layers) for answer in answers)
        slots = sum(answer.request.num_slots for answer in answers)
        found = [event for event in events(Decoder(self.lm.engine, slots, capacity), answers) if event.result]
        first, second = (event.result for event in sorted(found, key=lambda event: event.index))
        assert first is not None
        assert second is not None
        return first, second

    def _latest_job(self) -> Job:
        """What the latest turn asked for, while the messages still say what they said then."""
        asked = [at for at, message in enumerate(self.messages) if message.role == "user"]
        if not asked:
            raise OptionError("there is no turn to compare")
        now = self.messages[: asked[-1] + 1]
        if self._turns:
            turn = self._turns[-1]
            same = [(one.role, one.content) for one in turn.messages] == [(one.role, one.content) for one in now]
            if same and turn.job is not None:
                return turn.job
        return self._job(now)

    def fork(self) -> Chat:
        """The same conversation once more, to go on with independently.

        As it first answers, it copies what this one has read by then, and so reads nothing of it again.
        """
        twin = Chat(self.lm, method=self.method, policy=self.policy, when_full=self.when_full)
        twin.max_new_tokens, twin.sampling, twin.stop = self.max_new_tokens, self.sampling, self.stop
        twin.messages, twin.num_dropped = list(self.messages), self.num_dropped
        twin._rankings, twin._turns = dict(self._rankings), list(self._turns)
        twin._origin = self if self._decoder is not None else self._origin
        return twin

    # One turn

    def _check_idle(self) -> None:
        if self._open is not None:
            raise OptionError("an answer is still being streamed: read its stream to the end, or close it")

    def _job(self, messages: Sequence[Message]) -> Job:
        held = self._held(messages) if self.method is not None else []
        for mark in held:
            at = mark.message or 0
            if not messages[at].has(mark):
                raise SpanError(f"{_gone(at, messages[at], mark)}; retire it, or put it back")
        prompt = [{"role": message.role, "content": message.content} for message in messages]
        method = self.method if held else None
        return Job(prompt, held or None, method, self.max_new_tokens, self.sampling, self.stop, tags=False)

    def job(self) -> Job:
        """The conversation so far as one prompt: what `LM.generate_batch` would be asked for from scratch."""
        return self._job(self.messages)

    def _fitted(self, turn: Turn) -> Answering:
        """The request for the turn's answer, after dropping what must be dropped."""
        while True:
            try:
                turn.job = self._with_room(self._job(turn.messages))
                return self._with_ranking(Answering(self.lm, 0, turn.job))
            except ContextLengthError as error:
                if self.when_full == "error":
                    raise ContextLengthError(f"{error}; take turns back, or let old ones be dropped") from None
                if not self._drop(turn):
                    raise ContextLengthError(f"{error}; nothing is left to drop but held instructions") from None

    def _with_room(self, job: Job) -> Job:
        """A turn without a limit of its own asks for the usual number of tokens, so that a full context is noticed."""
        return job if job.max_new_tokens is not None else replace(job, max_new_tokens=DEFAULT_NEW_TOKENS)

    def _drop(self, turn: Turn) -> bool:
        """Drops the oldest turn without a held instruction; False where there is none."""
        held = {span.message for span in self._held(turn.messages)}
        starts = [at for at, message in enumerate(turn.messages) if message.role == "user"]
        for start, stop in pairwise(starts):
            if not held & set(range(start, stop)):
                turn.dropped.append((start, turn.messages[start:stop]))
                del turn.messages[start:stop]
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
        described = answering.job.method.describe() if answering.job.method is not None else {}
        return json.dumps([described, tokens, request.weights], default=str)

    def _answered(self, turn: Turn, answering: Answering, before: list[Message]) -> Generator[Event, None, None]:
        self._check_idle()
        if self.messages != before:
            raise OptionError("the conversation went on since this stream was asked for: ask for it again")
        self._open = turn
        try:
            with closing(events(self._decoder_for(answering), [answering])) as told:
                for event in told:
                    self._keep_ranking(answering)
                    if event.result is not None:
                        self._complete(turn, event.result)
                    yield event
        finally:
            self._keep_ranking(answering)
            if self._open is turn:  # whoever listened went away; what was read of the turn stays read
                self._open = None

    def _keep_ranking(self, answering: Answering) -> None:
        """Notes the ranking of these instruction tokens as soon as it is known."""
        answer = answering.answer
        if answer is not None and answer.ranking and answer.finish_reason != "error":
            self._rankings[self._key(answering)] = answer.ranking

    def _complete(self, turn: Turn, result: Result) -> None:
        self.messages = [*turn.messages, Message("assistant", result.text)]
        self.num_dropped += sum(len(dropped) for _, dropped in turn.dropped)
        self._turns.append(turn)
        self._open = None

    def _decoder_for(self, answering: Answering) -> Decoder:
        """The decoder that holds the conversation; a new one, into which it is copied, where it has outgrown it."""
        need, slots = capacity_for(answering.request, self.lm.engine.num_layers), answering.request.num_slots
        own = self._decoder
        if own is not None and own.slots.capacity >= need and own.is_idle and own.has_room(answering.request):
            return own
        capacity, old = 2 * need, self._reader()
        if old is not None:  # what it held longer, or in more slots, than this turn needs must find its place
            capacity, slots = max(capacity, old.slots.capacity), max(slots, old.slots.num_slots)
        grown = Decoder(self.lm.engine, slots, capacity, reuses_prefixes=True)
        if old is not None:
            grown.take_over(old)
        self._decoder, self._origin = grown, None
        return grown

    def _reader(self) -> Decoder | None:
        """Who has read the conversation so far: its own decoder, or that of the one whose copy it is."""
        if self._decoder is not None or self._origin is None:
            return self._decoder
        return self._origin._reader()

    # Files

    def save(self, path: str | Path) -> None:
        """Writes the conversation as JSON. Raises `OptionError` where that cannot be done."""
        found = {
            "version": VERSION,
            "model": asdict(self.lm.engine.shape),
            "weights": fingerprint(self.lm.model),
            "policy": self.policy,
            "num_dropped": self.num_dropped,
            "messages": [asdict(message) for message in self.messages],
            "rankings": self._rankings,
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
            _check_version(path, found["version"])
            messages = [_message(entry) for entry in found["messages"]]
            model, policy = dict(found["model"]), found["policy"]
            num_dropped = int(found["num_dropped"])
            rankings = {key: _ranking(order, lm.engine.num_layers) for key, order in found.get("rankings", {}).items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise OptionError(f"{path} is no saved conversation: {error!r}") from error
        for at, message in enumerate(messages):
            for mark in message.live:
                if not message.has(mark):
                    raise OptionError(f"{path}: {_gone(at, message, mark)}; put it back, or take its mark out")
        if model != asdict(lm.engine.shape):
            raise OptionError(
                f"{path} was saved with the model {model.get('name')!r}, this is {lm.engine.shape.name!r}"
            )
        if found.get("weights") != fingerprint(lm.model):
            raise OptionError(f"{path} was saved with other weights of {lm.engine.shape.name!r} than these")
        chat = cls(lm, **{"policy": policy, **options})
        chat.messages, chat.num_dropped, chat._rankings = messages, num_dropped, rankings
        return chat


def _gone(at: int, message: Message, mark: Mark) -> str:
    where = f"message {at} ({message.role})"
    return f"the instruction {excerpt(mark.text)!r} no longer stands where it was marked in {where}, which was edited"


def _check_version(path: str | Path, version: object) -> None:
    if version not in READ_VERSIONS:
        known = " and ".join(map(str, READ_VERSIONS))
        raise OptionError(f"{path} was saved in version {version} of the format, this Heedful reads {known}")


def _system(text: str) -> Message:
    content, marks = parse_tags(text)
    if not content.strip():
        raise OptionError("the system message is empty: leave it out")
    return Message("system", content, tuple(_mark(span, content) for span in marks or (Span(0, len(content)),)))


def _message(entry: dict[str, Any]) -> Message:
    content = entry["content"]
    if not (isinstance(content, str) and entry["role"] in ("system", "user", "assistant")):
        raise ValueError(f"no message: {excerpt(str(entry))}")
    marks, retired = (tuple(_read_mark(span, content) for span in entry[name]) for name in ("marks", "retired"))
    return Message(entry["role"], content, marks, retired)


def _read_mark(entry: dict[str, Any], content: str) -> Mark:
    """A saved mark; one of a file that knows no texts has that which stands there."""
    if "text" in entry:
        return Mark(**entry)
    span = Span(**entry)
    if span.end > len(content):
        raise ValueError("a mark lies outside its message")
    return _mark(span, content)


def _ranking(order: list[Any], num_layers: int) -> tuple[int, ...]:
    if not set(order) <= set(range(num_layers)) or len(set(order)) < len(order):
        raise ValueError(f"no ranking of {num_layers} layers: {excerpt(str(order))}")
    return tuple(order)
