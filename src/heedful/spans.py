"""Where instructions stand: character ranges, the `<heed>` tags that mark them, and the tokens they cover.

Ranges are half-open everywhere. Nothing here knows of chat messages, templates or tokenizers (`prompt` does): it works
on one text, and on the character offsets of tokens over one text.
"""

import heapq
import math
import re
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher

from heedful.errors import OptionError, SpanError

_TAG = re.compile(r"<(?P<slash>/?)heed(?=[\s/>]|\Z)(?P<attributes>[^<>]*)(?P<end>>?)", re.IGNORECASE)
_WEIGHT = re.compile(r"""weight\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s"'=/]+))""", re.IGNORECASE)
_LONGEST_COMPARED = 120  # characters of a needle that `nearest` looks at
MAX_WEIGHT = 1e6  # beyond, what it multiplies could overflow float32
_MOST_PLACES = 50_000  # in a text where it looks first: a refusal must not take long


@dataclass(frozen=True, slots=True)
class Span:
    """The characters `start` … `end - 1` of one message's content, to be heeded with `weight`.

    `message` is that message's index; None means the only message or, of several, the last one of the user.
    Raises SpanError for a range that is no range, OptionError for a weight that is no number from 0 to 1e6.
    """

    start: int
    end: int
    weight: float = 1.0
    message: int | None = None

    def __post_init__(self) -> None:
        if not (_is_whole(self.start) and _is_whole(self.end)):
            raise SpanError(f"a span runs between two whole numbers, not {self.start!r} and {self.end!r}")
        if self.start < 0:
            raise SpanError(f"a span cannot start before the text: {self.start}:{self.end}; count from the front")
        if self.start >= self.end:
            raise SpanError(f"empty span {self.start}:{self.end}: the end must lie behind the start")
        if self.message is not None and not (_is_whole(self.message) and self.message >= 0):
            raise SpanError(f"a span's message is an index from 0, not {self.message!r}")
        if not _is_weight(self.weight):
            raise OptionError(f"a span's weight is a number from 0 to {MAX_WEIGHT:g}, not {self.weight!r}")


@dataclass(frozen=True, slots=True)
class TokenSpan:
    """The marked tokens of a prompt: `positions` rising, one weight for each. Empty and so false if none is.

    `rank_at`: how many tokens the prompt had when these came to be marked, where a conversation has gone on since: the
    layers are ranked with the last of those, so that they keep their order until other tokens are marked. None: with
    the prompt's last.
    """

    positions: tuple[int, ...] = ()
    weights: tuple[float, ...] = ()
    rank_at: int | None = None

    def __post_init__(self) -> None:
        if len(self.positions) != len(self.weights):
            raise SpanError(f"{len(self.positions)} token positions, but {len(self.weights)} weights")
        if any(a >= b for a, b in zip((-1, *self.positions), self.positions, strict=False)):
            raise SpanError(f"token positions must rise from 0 or more: {excerpt(str(self.positions))}")
        if not all(map(_is_weight, self.weights)):
            raise OptionError(f"token weights are numbers from 0 to {MAX_WEIGHT:g}: {excerpt(str(self.weights))}")
        if self.rank_at is not None and (not self.positions or self.rank_at <= self.positions[-1]):
            raise SpanError(f"layers cannot be ranked at token {self.rank_at}: the marked tokens must lie before it")

    def __len__(self) -> int:
        return len(self.positions)

    def moved(self, positions: tuple[int, ...], weights: tuple[float, ...]) -> "TokenSpan":
        """A span of other tokens, ranked at the same place where they lie before that too."""
        is_before = self.rank_at is not None and bool(positions) and positions[-1] < self.rank_at
        return TokenSpan(positions, weights, self.rank_at if is_before else None)


def parse_tags(text: str) -> tuple[str, tuple[Span, ...]]:
    """`text` without its `<heed>` tags, and the spans they enclosed in it, in order.

    Raises SpanError for a tag that is malformed, nested, unclosed or stray, or that encloses only whitespace.
    """
    kept: list[str] = []
    spans: list[Span] = []
    opened: re.Match[str] | None = None
    start, length, read = 0, 0, 0  # of the open tag's contents, and of what was kept; how far `text` was read
    for tag in _TAG.finditer(text):
        kept.append(text[read : tag.start()])
        length += len(kept[-1])
        read = tag.end()
        _check_tag(text, tag, opened)
        if opened is None:
            opened, start = tag, length
            continue
        if not text[opened.end() : tag.start()].strip():
            raise SpanError(f"<heed> marks nothing: {_around(text, opened.start())}")
        spans.append(Span(start, length, _tag_weight(text, opened)))
        opened = None
    if opened is not None:
        raise SpanError(f"<heed> is never closed with </heed>: {_around(text, opened.start())}")
    return "".join(kept) + text[read:], tuple(spans)


def find_substring(text: str, needle: str) -> list[tuple[int, int]]:
    """Every place where `needle` stands in `text`, from the left and without overlaps, as (start, end).

    Raises SpanError if `needle` is empty.
    """
    if not needle:
        raise SpanError("an empty instruction cannot be looked for; give its exact text")
    return [match.span() for match in re.finditer(re.escape(needle), text)]


def outside(text: str, span: Span, taken: Sequence[Span]) -> list[Span]:
    """The parts of `span` over `text` that none of `taken` covers, without outer blanks and signs that stand alone.

    A span that none of them touches comes back as it is.
    """
    crossing = sorted((one.start, one.end) for one in taken if one.start < span.end and span.start < one.end)
    if not crossing:
        return [span]
    parts: list[Span] = []
    start = span.start
    for stop, behind in (*crossing, (span.end, span.end)):
        part = text[start : max(start, stop)]
        if any(char.isalnum() for char in part):
            first = start + len(part) - len(part.lstrip())
            parts.append(replace(span, start=first, end=first + len(part.strip())))
        start = max(start, behind)
    return parts


def nearest(text: str, needle: str) -> str:
    """The passage of `text` that is most like `needle`: about as long, in whole words; empty only if `text` is blank.

    Case is ignored. A long needle is compared by its beginning, so the time is linear in the length of `text`.
    """
    needle = needle.strip()[:_LONGEST_COMPARED].rstrip()
    size = max(len(needle), 1)
    last = max(len(text) - size, 0)
    matcher = SequenceMatcher(autojunk=False)
    matcher.set_seq2(needle.lower())

    def likeness(start: int, quick: bool = False) -> float:
        matcher.set_seq1(text[start : start + size].lower())
        return matcher.quick_ratio() if quick else matcher.ratio()

    stride = max(size // 4, len(text) // _MOST_PLACES, 1)
    rough = heapq.nlargest(3, (*range(0, last, stride), last), key=lambda start: likeness(start, quick=True))
    close = {min(max(start + step, 0), last) for start in rough for step in range(-stride, stride + 1)}
    best = max(sorted(close), key=likeness)
    return _whole_words(text, best, best + size).strip() or text.strip()[:size]


def tokens_in(spans: Iterable[Span], offsets: Sequence[tuple[int, int]], text: str = "") -> TokenSpan:
    """The tokens whose characters `spans` touch; a token that several touch has the largest of their weights.

    `offsets` are the tokens' character ranges over the same text as the spans'. A token belongs if it shares at least
    one character with a span: byte tokens of one character all do, tokens of no width never. `text` is only shown in
    the error: SpanError for a span without any token.
    """
    tokens = sorted((start, end, position) for position, (start, end) in enumerate(offsets) if start < end)
    longest = max((end - start for start, end, _ in tokens), default=0)
    weights: dict[int, float] = {}
    for span in spans:
        first = bisect_left(tokens, (span.start - longest,))
        behind = bisect_left(tokens, (span.end,))
        inside = [position for _, end, position in tokens[first:behind] if end > span.start]
        if not inside:
            shown = f": {excerpt(text[span.start : span.end])!r}" if text else ""
            raise SpanError(f"no token stands for characters {span.start}:{span.end}{shown}")
        weights.update((position, max(weights.get(position, 0.0), span.weight)) for position in inside)
    positions = tuple(sorted(weights))
    return TokenSpan(positions, tuple(weights[position] for position in positions))


def excerpt(text: str, width: int = 60) -> str:
    """`text` on one line and at most `width` characters long, for error messages."""
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1].rstrip() + "…"


def _check_tag(text: str, tag: re.Match[str], opened: re.Match[str] | None) -> None:
    """Refuses a tag that cannot stand here; `opened` is the tag that awaits its end."""
    where = _around(text, tag.start())
    if not tag["end"]:
        raise SpanError(f"a heed tag lacks its '>': {where}")
    if tag["slash"]:
        if opened is None:
            raise SpanError(f"</heed> without a <heed> before it: {where}")
        if tag["attributes"].strip():
            raise SpanError(f"</heed> takes no attributes: {where}")
    elif opened is not None:
        raise SpanError(f"<heed> within <heed>; close the first before the next: {where}")


def _tag_weight(text: str, tag: re.Match[str]) -> float:
    """The weight that an opening tag asks for, 1 if it does not."""
    attributes = tag["attributes"].strip()
    if not attributes:
        return 1.0
    match = _WEIGHT.fullmatch(attributes)
    if match is None:
        raise SpanError(f"<heed> knows one attribute, as in <heed weight=0.5>: {_around(text, tag.start())}")
    try:
        weight = float(next(group for group in match.groups() if group is not None))
    except ValueError:
        weight = math.nan
    if not _is_weight(weight):
        raise SpanError(f"a weight is a number from 0 to {MAX_WEIGHT:g}: {_around(text, tag.start())}")
    return weight


def _around(text: str, position: int) -> str:
    """What stands at and around `position`, quoted, with dots where it was cut."""
    start, end = max(position - 20, 0), position + 50
    line = " ".join(text[start:end].split())
    return repr(("…" if start else "") + line + ("…" if end < len(text) else ""))


def _whole_words(text: str, start: int, end: int) -> str:
    """The passage, with up to eight more letters at either side so that it does not cut a word."""
    before, after = re.compile(r"\w{0,8}\Z"), re.compile(r"\w{0,8}")
    if re.match(r"\w", text[start : start + 1]):
        start -= len(_found(before.search(text[max(start - 8, 0) : start])))
    if re.match(r"\w", text[end - 1 : end]):
        end += len(_found(after.match(text[end : end + 8])))
    return text[start:end]


def _found(match: re.Match[str] | None) -> str:
    return match[0] if match else ""


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_weight(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= MAX_WEIGHT
