"""From a prompt and its instructions to tokens and the positions of the marked ones.

Characters are marked in the messages, but tokens stand in the text that the chat template makes of them, and a template
may strip, lower-case, move or repeat what it is given. So the messages are rendered twice, once as they are and once
with private characters around every marked passage: where those come out is where the passage went. Only the plain
rendering is tokenised. What cannot be located this way is refused, never guessed.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any, TypeAlias

from heedful.detection import DEFAULT_THRESHOLD, Detection, Found, find
from heedful.errors import OptionError, PromptError, SpanError, TokenizerError
from heedful.spans import Span, TokenSpan, excerpt, find_substring, nearest, outside, parse_tags, tokens_in

Messages: TypeAlias = str | Sequence[Mapping[str, Any]]
Instructions: TypeAlias = str | Sequence[str | tuple[int, int] | Span] | Detection | None

ROLES = ("system", "user", "assistant", "developer", "tool")
AUTO = "auto"
_WAYS = "auto, auto:0.8 (another threshold), auto:model; and auto:user, auto:user:0.8, auto:user:model"

_PRIVATE_USE = (range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE), range(0xE000, 0xF900))
_ONE_PRIVATE = re.compile("([\ue000-\uf8ff\U000f0000-\U000ffffd\U00100000-\U0010fffd])")

_Render: TypeAlias = Callable[[Sequence[str]], str]


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """A prompt as the model reads it; ranges are half-open, in characters of `text`.

    `offsets` has one range for each of `token_ids`, or is empty if nothing is marked. `char_spans` are the marked
    passages, sorted, as (start, end, weight); `span` are their tokens. `detection`: what was found, where the
    instructions were to be found and not given.
    """

    text: str
    token_ids: tuple[int, ...]
    span: TokenSpan
    offsets: tuple[tuple[int, int], ...]
    char_spans: tuple[tuple[int, int, float], ...]
    detection: Detection | None = None


@dataclass(frozen=True, slots=True)
class _Message:
    """A checked message: `content` without its tags, `tagged` what they enclosed, `fields` as they were given."""

    fields: Mapping[str, Any]
    role: str
    content: str
    tagged: tuple[Span, ...]


@dataclass(frozen=True, slots=True, order=True)
class _Mark:
    """The passage `start:end` of the content of messages[`message`]."""

    message: int
    start: int
    end: int
    weight: float


def encode(
    tokenizer: Any, prompt: Messages, instructions: Instructions = None, *, raw: bool = False, tags: bool = True
) -> EncodedPrompt:
    """Tokens of `prompt`, and which of them its `<heed>` tags and `instructions` mark.

    A string is one turn of the user; `raw`, or a tokenizer without a chat template, takes it as plain text. A last
    message of the assistant is continued. `tags=False`: `<heed>` is text like any other.
    `instructions` is a role, whose messages are marked whole; or exact text; or a list of exact texts (each marked
    wherever it stands), of (start, end) ranges and of `Span`s, both over a message's content. "auto" finds them (see
    `detect`), "auto:0.8" with another threshold, "auto:user" in the user's messages only; a `Detection` marks what was
    found before. What a tag marks keeps its weight beside a role and what is found. Raises PromptError; SpanError, also
    where the same characters are marked with two weights; TokenizerError if tokens cannot be located.
    """
    plain = raw or not getattr(tokenizer, "chat_template", None)
    messages = _read(prompt, plain=plain, tags=tags)
    detection = _detection(messages, instructions)
    marks = _marks(messages, instructions if detection is None else detection)
    render = _plain_text if plain else _through_template(tokenizer, messages)
    text = render([message.content for message in messages])
    spans = _locate(render, text, messages, marks) if marks else []
    tokens = _tokenise(tokenizer, text, plain=plain, has_offsets=bool(spans))
    offsets = tuple((start, end) for start, end in tokens["offset_mapping"]) if spans else ()
    span = tokens_in(spans, offsets, text)
    return EncodedPrompt(
        text=text,
        token_ids=tuple(tokens["input_ids"]),
        span=replace(span, rank_at=_rank_at(tokenizer, messages, marks, text, offsets, span)),
        offsets=offsets,
        char_spans=tuple((span.start, span.end, span.weight) for span in spans),
        detection=detection,
    )


def detect(prompt: Messages, *, threshold: float = DEFAULT_THRESHOLD, system: bool = True) -> tuple[Found, ...]:
    """The instructions of `prompt`, found by rules and a small linear model, in order; empty where there are none.

    A span counts in the characters of its message without `<heed>` tags. `threshold`: the least score, above 0 and at
    most 1. `system`: whether system and developer messages are instructions throughout; if not, none is found in them,
    as with instructions="auto:user". Raises PromptError for a prompt that is none, OptionError for a threshold out of
    range.
    """
    return search(turns(prompt), threshold=threshold, only_user=not system).found


def search(
    messages: Sequence[tuple[str, str]], *, threshold: float = DEFAULT_THRESHOLD, only_user: bool = False
) -> Detection:
    """What rules find in messages given as (role, content), or only in those of the user."""
    detection = find(messages, threshold=threshold, system=not only_user)
    if not only_user:
        return detection
    found = tuple(item for item in detection.found if messages[item.span.message or 0][0] == "user")
    return replace(detection, found=found, note="" if found else "no instruction was found in what the user says")


def turns(prompt: Messages, *, tags: bool = True) -> list[tuple[str, str]]:
    """The (role, content) of each message, tags removed where they are markup. Raises PromptError for no prompt."""
    return _turns(_read(prompt, plain=False, tags=tags))


@dataclass(frozen=True, slots=True)
class Way:
    """How instructions are to be found: `only_user`: in the user's messages alone; `by_model`, or by rules."""

    only_user: bool
    by_model: bool
    threshold: float = DEFAULT_THRESHOLD


def is_auto(instructions: Instructions) -> bool:
    """Whether the instructions are to be found, by whatever means."""
    return isinstance(instructions, str) and (instructions == AUTO or instructions.startswith(f"{AUTO}:"))


def way_of(instructions: Instructions) -> Way | None:
    """How "auto", "auto:0.8", "auto:user:model" … finds instructions; None where they are given.

    Raises OptionError for a way that is none.
    """
    if not isinstance(instructions, str) or not is_auto(instructions):
        return None
    rest = instructions.removeprefix(AUTO)
    only_user = rest == ":user" or rest.startswith(":user:")
    rest = rest.removeprefix(":user") if only_user else rest
    if rest in ("", ":model"):
        return Way(only_user, by_model=rest != "")
    try:
        return Way(only_user, by_model=False, threshold=float(rest.removeprefix(":")))
    except ValueError:
        raise OptionError(f"unknown way to find instructions: {excerpt(instructions)!r}; known: {_WAYS}") from None


def _turns(messages: Sequence[_Message]) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in messages]


def _detection(messages: Sequence[_Message], instructions: Instructions) -> Detection | None:
    """What "auto" finds, or what was found before; None where the instructions are given."""
    if isinstance(instructions, Detection):
        return instructions
    way = way_of(instructions)
    if way is None:
        return None
    if way.by_model:
        raise OptionError(f"{instructions!r} needs the model: ask an LM, or use {AUTO!r}")
    return search(_turns(messages), threshold=way.threshold, only_user=way.only_user)


# Messages


def _read(prompt: Messages, *, plain: bool, tags: bool = True) -> list[_Message]:
    """The checked messages of a prompt, at least one of them not blank."""
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    elif plain:
        raise PromptError("chat messages need a chat template, and none is used here; pass the prompt as one string")
    elif isinstance(prompt, bytes) or not isinstance(prompt, Sequence):
        raise PromptError(f"a prompt is a string or a list of messages, not {type(prompt).__name__}")
    messages = [_message(index, fields, tags) for index, fields in enumerate(prompt)]
    if not any(message.content.strip() for message in messages):
        raise PromptError("the prompt is empty")
    return messages


def _message(index: int, fields: object, tags: bool) -> _Message:
    """One message checked, its tags read where they are markup."""
    if not isinstance(fields, Mapping):
        raise PromptError(f"message {index} is a {type(fields).__name__}, not a mapping with a role and a content")
    role = fields.get("role")
    if not isinstance(role, str) or not role:
        raise PromptError(f"message {index} needs a role such as 'user', not {role!r}")
    content = _content(index, fields.get("content"))
    try:
        content.encode()
    except UnicodeEncodeError as error:
        raise PromptError(f"message {index} holds half a surrogate pair at character {error.start}") from None
    clean, tagged = parse_tags(content) if tags else (content, ())
    return _Message(fields, role, clean, tagged)


def _content(index: int, content: object) -> str:
    """A message's text, given whole or in parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list | tuple):
        raise PromptError(f"message {index} needs a content that is text, not {type(content).__name__}")
    return "".join(_part(index, part) for part in content)


def _part(index: int, part: object) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    text = part.get("text") if isinstance(part, Mapping) else None
    if kind != "text" or not isinstance(text, str):
        raise PromptError(f"message {index} has a part of type {kind!r} without text; only text parts can be read")
    return text


# Instructions to marks


def _marks(messages: Sequence[_Message], instructions: Instructions) -> list[_Mark]:
    """Every marked passage, trimmed of outer whitespace, sorted, each once."""
    tagged = [
        _Mark(index, span.start, span.end, span.weight)
        for index, message in enumerate(messages)
        for span in message.tagged
    ]
    marks = sorted({_trimmed(messages, mark) for mark in chain(tagged, _asked(messages, instructions))})
    _check_weights(messages, marks)
    return marks


def _check_weights(messages: Sequence[_Message], marks: Sequence[_Mark]) -> None:
    """Raises SpanError where the same characters are marked with two weights; `marks` are sorted."""
    behind, weight = (-1, 0), 0.0  # of what the marks so far cover: message and end; they agree there
    for mark in marks:
        if (mark.message, mark.start) < behind and mark.weight != weight:
            both = replace(mark, end=min(mark.end, behind[1]))
            raise SpanError(
                f"{_named(messages, both)} is marked with weight {weight:g} and with weight {mark.weight:g}; "
                "give it one weight"
            )
        behind, weight = max(behind, (mark.message, mark.end)), mark.weight


def _asked(messages: Sequence[_Message], instructions: Instructions) -> Iterable[_Mark]:
    """The marks that `instructions` asks for."""
    if instructions is None:
        return []
    if isinstance(instructions, Detection):
        return _of_detection(messages, instructions)
    if isinstance(instructions, str):
        return (_of_role if instructions in ROLES else _of_text)(messages, instructions)
    if isinstance(instructions, bytes) or not isinstance(instructions, Sequence):
        raise SpanError(f"instructions are text, a role or a list, not {type(instructions).__name__}")
    if not instructions:
        raise SpanError("the list of instructions is empty; leave it out if tags mark them")
    return chain.from_iterable(_of_item(messages, item) for item in instructions)


def _of_item(messages: Sequence[_Message], item: object) -> list[_Mark]:
    if isinstance(item, str):
        return _of_text(messages, item)
    if isinstance(item, Span):
        return _of_range(messages, item)
    if isinstance(item, tuple | list) and len(item) == 2:
        return _of_range(messages, Span(item[0], item[1]))
    raise SpanError(f"an instruction in a list is text, a (start, end) range or a Span, not {excerpt(repr(item))}")


def _of_detection(messages: Sequence[_Message], detection: Detection) -> Iterator[_Mark]:
    """What was found, but for what tags mark already."""
    for item in detection.found:
        index = _meant_message(messages, item.span)
        message = messages[index]
        for part in outside(message.content, item.span, message.tagged):
            yield _Mark(index, part.start, part.end, part.weight)


def _of_role(messages: Sequence[_Message], role: str) -> list[_Mark]:
    """Every message of the role, whole, but for what tags in it mark with a weight of their own."""
    if all(message.role != role for message in messages):
        present = ", ".join(sorted({message.role for message in messages}))
        raise SpanError(f"no message has the role {role!r}; the roles present are: {present}")
    whole = [index for index, message in enumerate(messages) if message.role == role and message.content.strip()]
    if not whole:
        raise SpanError(f"every message of the role {role!r} is blank: there is nothing to heed")
    return [
        _Mark(index, part.start, part.end, part.weight)
        for index in whole
        for part in _beside(messages[index].content, messages[index].tagged)
    ]


def _beside(content: str, tagged: Sequence[Span]) -> list[Span]:
    return outside(content, Span(0, len(content)), [tag for tag in tagged if tag.weight != 1.0])


def _of_text(messages: Sequence[_Message], text: str) -> list[_Mark]:
    """The text wherever it stands, in any message."""
    if not text.strip():
        raise SpanError("an instruction is empty; give its exact text")
    marks = [
        _Mark(index, start, end, 1.0)
        for index, message in enumerate(messages)
        for start, end in find_substring(message.content, text)
    ]
    if not marks:
        closest = nearest("\n".join(message.content for message in messages), text)
        role = f" (a role is not put in a list: instructions={text!r})" if text in ROLES else ""
        raise SpanError(f"instruction not found: {excerpt(text)!r}; the closest text is {excerpt(closest)!r}{role}")
    return marks


def _of_range(messages: Sequence[_Message], span: Span) -> list[_Mark]:
    """The range in the message that it means."""
    index = _meant_message(messages, span)
    message = messages[index]
    if message.tagged:
        raise SpanError(f"message {index} has <heed> tags and a range {span.start}:{span.end}; use one of them")
    if span.end > len(message.content):
        size = len(message.content)
        raise SpanError(f"range {span.start}:{span.end} is out of bounds: message {index} has {size} characters")
    return [_Mark(index, span.start, span.end, span.weight)]


def _meant_message(messages: Sequence[_Message], span: Span) -> int:
    if span.message is None:
        by_user = [index for index, message in enumerate(messages) if message.role == "user" or len(messages) == 1]
        if not by_user:
            raise SpanError(f"range {span.start}:{span.end} means the last user message, and there is none")
        return by_user[-1]
    if span.message >= len(messages):
        raise SpanError(f"a span lies in message {span.message}, but there are {len(messages)} messages, from 0")
    return span.message


def _trimmed(messages: Sequence[_Message], mark: _Mark) -> _Mark:
    """The mark without outer whitespace, which a template may strip."""
    passage = messages[mark.message].content[mark.start : mark.end]
    if not passage.strip():
        raise SpanError(f"only whitespace stands at {mark.start}:{mark.end} of message {mark.message}")
    start = mark.end - len(passage.lstrip())
    return _Mark(mark.message, start, start + len(passage.strip()), mark.weight)


# Marks through the template


def _plain_text(contents: Sequence[str]) -> str:
    return contents[0]


def _through_template(tokenizer: Any, messages: Sequence[_Message]) -> _Render:
    """A function that renders the messages with other contents."""
    is_continued = messages[-1].role == "assistant"

    def render(contents: Sequence[str]) -> str:
        chat = [{**message.fields, "content": content} for message, content in zip(messages, contents, strict=True)]
        try:
            return str(
                tokenizer.apply_chat_template(
                    chat,
                    tokenize=False,
                    add_generation_prompt=not is_continued,
                    continue_final_message=is_continued,
                )
            )
        except ImportError:
            raise
        except Exception as error:  # a template may raise anything
            raise PromptError(f"the chat template refused the messages: {excerpt(str(error), 200)}") from error

    return render


def _locate(render: _Render, text: str, messages: Sequence[_Message], marks: Sequence[_Mark]) -> list[Span]:
    """Where the marked passages stand in `text`, the plain rendering; sorted, each once."""
    contents = [message.content for message in messages]
    sentinels = _sentinels("".join((text, *contents)), len(marks))
    marked = render(_enclosed(contents, marks, sentinels))
    stripped, found = _without(marked, chain.from_iterable(sentinels))
    if stripped != text:
        place = _num_shared(stripped, text)
        raise SpanError(
            "a marked instruction cannot be located: the chat template shortens, escapes or rewrites what it is given, "
            f"at {excerpt(text[max(place - 20, 0) : place + 40])!r}"
        )
    spans: set[Span] = set()
    for mark, (opening, closing) in zip(marks, sentinels, strict=True):
        copies = _copies(found[opening], found[closing], _named(messages, mark))
        spans.update(Span(start, end, mark.weight) for start, end in copies)
    return sorted(spans, key=lambda span: (span.start, span.end, span.weight))


def _num_shared(left: str, right: str) -> int:
    """How many characters both begin with."""
    pairs = enumerate(zip(left, right, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(left), len(right)))


def _sentinels(taken: str, count: int) -> list[tuple[str, str]]:
    """Pairs of private characters, all different, that do not occur in `taken`."""
    used = set(taken)
    free = (char for char in map(chr, chain(*_PRIVATE_USE)) if char not in used)
    pairs = list(islice(zip(free, free, strict=False), count))
    if len(pairs) < count:
        raise SpanError(f"{count} marked passages are more than can be told apart; mark fewer, longer ones")
    return pairs


def _enclosed(contents: Sequence[str], marks: Sequence[_Mark], sentinels: Sequence[tuple[str, str]]) -> list[str]:
    """The contents with each mark's own two characters around it."""
    inserts: list[list[tuple[int, str]]] = [[] for _ in contents]
    for mark, (opening, closing) in zip(marks, sentinels, strict=True):
        inserts[mark.message] += [(mark.start, opening), (mark.end, closing)]
    return ["".join(_inserted(content, sorted(inserts[index]))) for index, content in enumerate(contents)]


def _inserted(content: str, inserts: Sequence[tuple[int, str]]) -> Iterator[str]:
    """Pieces of `content` with a character before each of the given places."""
    read = 0
    for place, char in inserts:
        yield content[read:place]
        yield char
        read = place
    yield content[read:]


def _without(marked: str, sentinels: Iterable[str]) -> tuple[str, dict[str, list[int]]]:
    """`marked` without the sentinels, and the places in it where each of them stood."""
    found: dict[str, list[int]] = {sentinel: [] for sentinel in sentinels}
    pieces: list[str] = []
    length = 0
    for piece in _ONE_PRIVATE.split(marked):
        if piece in found:
            found[piece].append(length)
        else:
            pieces.append(piece)
            length += len(piece)
    return "".join(pieces), found


def _copies(starts: Sequence[int], ends: Sequence[int], name: str) -> list[tuple[int, int]]:
    """The ranges between a mark's two characters, which must alternate: one range for each copy of the passage."""
    if not starts and not ends:
        raise SpanError(f"the chat template dropped the marked instruction {name}")
    if len(starts) != len(ends):
        raise SpanError(f"the chat template dropped a part of the marked instruction {name}")
    copies = list(zip(starts, ends, strict=True))
    bounds = list(chain.from_iterable(copies))
    if bounds != sorted(bounds):
        raise SpanError(f"the chat template broke the marked instruction apart: {name}")
    if any(start == end for start, end in copies):
        raise SpanError(f"the chat template emptied the marked instruction {name}")
    return copies


def _named(messages: Sequence[_Message], mark: _Mark) -> str:
    message = messages[mark.message]
    return f"{excerpt(message.content[mark.start : mark.end])!r} ({message.role} message)"


# Tokens


def _rank_at(
    tokenizer: Any,
    messages: Sequence[_Message],
    marks: Sequence[_Mark],
    text: str,
    offsets: Sequence[tuple[int, int]],
    span: TokenSpan,
) -> int | None:
    """How many tokens the prompt had before the first answer to what is marked; see `TokenSpan`.

    What template and tokenizer write otherwise now that there is an answer does not count. None where there is no
    answer yet, or nothing is left behind the marks.
    """
    last = max((mark.message for mark in marks), default=len(messages))
    roles = [message.role for message in messages]
    answer = next((at for at in range(last + 1, len(roles)) if roles[at] == "assistant" and "user" in roles[:at]), None)
    if answer is None or roles[answer - 1] == "assistant":
        return None
    before = messages[:answer]
    try:
        then = _through_template(tokenizer, before)([message.content for message in before])
    except PromptError:
        return None
    shared = _num_shared(then, text)
    count = next((at for at, (_, end) in enumerate(offsets) if end > shared), 0)
    return count if span.positions[-1] < count else None


def _tokenise(tokenizer: Any, text: str, *, plain: bool, has_offsets: bool) -> Any:
    """The tokenizer's own encoding: `input_ids`, and if asked for `offset_mapping`. Plain text gets special tokens."""
    if has_offsets and not getattr(tokenizer, "is_fast", True):
        raise _no_offsets(tokenizer)
    try:
        options = {"return_offsets_mapping": True} if has_offsets else {}
        tokens = tokenizer(text, add_special_tokens=plain, **options)
    except NotImplementedError as error:
        raise _no_offsets(tokenizer) from error
    if not tokens["input_ids"]:
        raise PromptError(f"the tokenizer makes no token of the prompt {excerpt(text)!r}")
    return tokens


def _no_offsets(tokenizer: Any) -> TokenizerError:
    name = type(tokenizer).__name__
    return TokenizerError(f"{name} cannot tell where its tokens stand in the text; load the model's fast tokenizer")
