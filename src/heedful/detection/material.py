"""Which characters of a text are material and not the writer's own words: what is quoted, pasted, or code.

Material is never an instruction, however it is phrased. It is told by form alone: fences, quotation marks, tags, block
quotes, e-mail headers and greetings, transcripts, code, and what follows a colon behind "the following text" and the
like. Nothing here looks at what the material says, but for the words that order earlier instructions to be ignored.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from heedful.detection import patterns
from heedful.detection.enclosed import Material, blocks, quotations

MASK = "¤"  # stands for every character of material and of a quotation

_LONGEST_ARGUMENT = 15  # words of a quotation that may be part of an instruction: "end with the phrase “…”"
_LONGEST_INTRODUCTION = 200  # characters
_MOST_ARGUMENTS = 1000  # quotations of a text that are looked at for being one: those behind them are material
_MOST_COLONS = 1000  # of a text that are looked at for an announcement: all that follows those is material

_BLANK = re.compile(r"\n[ \t]*\n\s*")
_LINE_ENDS = "\r\v\f\x85\u2028\u2029"
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_BREAK = re.compile(r"\n\s*")
_SPACE = re.compile(r"\s*")
_BEHIND = re.compile(r"[^\S\n]*(\S[\w'’]*)?")


@dataclass(frozen=True, slots=True)
class Layout:
    """A text taken apart: its material, sorted and disjoint, and the text with that and all quotations masked."""

    materials: tuple[Material, ...]
    masked: str


@dataclass(frozen=True, slots=True)
class _Line:
    start: int
    end: int
    text: str

    @property
    def is_blank(self) -> bool:
        return not self.text.strip()


class _Page:
    """A text and where its paragraphs end, listed once."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._tails: dict[int, int] = {}

    @cached_property
    def gaps(self) -> list[re.Match[str]]:
        """The blank lines between paragraphs, with the white space before the next one."""
        return [*_BLANK.finditer(self.text)]

    @cached_property
    def length(self) -> int:
        """The text's length without the white space at its end."""
        return len(self.text.rstrip())

    def gap(self, start: int) -> re.Match[str] | None:
        """The first blank line behind `start`."""
        at = bisect_left(self.gaps, start, key=re.Match.start)
        return self.gaps[at] if at < len(self.gaps) else None

    def gap_before(self, place: int) -> re.Match[str] | None:
        """The last blank line before `place`."""
        at = bisect_left(self.gaps, place, key=re.Match.start)
        return self.gaps[at - 1] if at else None

    def end_of_paragraph(self, start: int) -> int:
        gap = self.gap(start)
        return gap.start() if gap else len(self.text)

    def tail(self, start: int) -> int:
        """Where the writer speaks of the answer, in the sentences at the end of the paragraph of `start`; its end
        where he does not. Looks at each paragraph once."""
        end = self.end_of_paragraph(start)
        if end not in self._tails:
            tail = end
            starts = [match.end() for match in patterns.SENTENCE_START.finditer(self.text, start, end)]
            while starts and patterns.RESUMED.search(self.text, starts[-1], tail):
                tail = starts.pop()
            self._tails[end] = tail
        if start < self._tails[end]:
            return self._tails[end]
        following = patterns.SENTENCE_START.search(self.text, start, end)
        return following.end() if following else end


def layout(text: str, *, is_trusted: bool = False) -> Layout:
    """Takes `text` apart; offsets stay: `masked` is as long as `text`.

    `is_trusted`: it is a system or developer message. An order to ignore instructions then taints its line only, and
    no text is looked for above a sentence that speaks of one: it stands in another message.
    """
    text = text.replace("\r\n", " \n")
    for line_end in _LINE_ENDS:
        text = text.replace(line_end, "\n")
    found = _merged(blocks(text))
    bare = patterns.OWN_TAG.sub(lambda tag: " " * len(tag[0]), _masked(text, found))
    quoted = [*quotations(bare)]
    worked_on = [item for item in quoted[:_MOST_ARGUMENTS] if not _is_argument(bare, item)]
    found = _merged([*found, *worked_on, *quoted[_MOST_ARGUMENTS:]])
    bare = _masked(bare, quoted)
    lines = list(_lines(bare))
    found = _merged([*found, *_letters(lines), *_transcripts(lines), *_listings(lines)])
    bare = _masked(bare, found)
    closed = _closed(text, [*found, *quoted])
    told = [*patterns.OVERRIDE.finditer(text)] if patterns.OVERRIDING.search(text.lower()) else []
    orders = [match.start() for match in told]
    found = _merged([*found, *_overrides(bare, told, is_trusted)])
    found = _merged([*found, *_introduced(_Page(bare), closed, orders)])
    found = _merged([*found, *_announced(_Page(_masked(bare, found)), closed, orders)])
    bare = _masked(bare, found)
    above = None if is_trusted else _above(_Page(bare), found)
    if above is not None:
        found = _merged([*found, above])
        bare = _masked(bare, [above])
    return Layout(tuple(found), bare)


def _closed(text: str, found: Iterable[Material]) -> dict[int, int]:
    """Where what its own marks close ends, by where it starts. Marked-up pieces of a page are left out."""
    ends: dict[int, int] = {}
    for item in found:
        if item.kind != "markup":
            inner = text[item.start : item.end]
            start = item.end - len(inner.lstrip())
            ends[start] = max(item.start + len(inner.rstrip()), ends.get(start, 0))
    return ends


def _merged(found: Iterable[Material]) -> list[Material]:
    """Sorted and disjoint: what overlaps an earlier one is joined to it."""
    merged: list[Material] = []
    for item in sorted(found, key=lambda item: (item.start, -item.end)):
        if merged and item.start < merged[-1].end:
            last = merged[-1]
            merged[-1] = Material(last.start, max(last.end, item.end), last.kind)
        else:
            merged.append(item)
    return merged


def _masked(text: str, found: Sequence[Material]) -> str:
    """`text` with the found ranges masked, their outer whitespace left as it is."""
    pieces: list[str] = []
    read = 0
    for item in found:
        inner = text[item.start : item.end]
        start = item.end - len(inner.lstrip())
        end = item.start + len(inner.rstrip())
        pieces += [text[read:start], MASK * (end - start)]
        read = max(end, start)
    return "".join(pieces) + text[read:]


def _lines(text: str) -> Iterator[_Line]:
    start = 0
    for line in text.split("\n"):
        yield _Line(start, start + len(line), line)
        start += len(line) + 1


def _is_argument(text: str, found: Material) -> bool:
    """Whether a quotation is short and belongs to the sentence around it, rather than being what is worked on."""
    inner = text[found.start : found.end]
    if len(inner.split()) > _LONGEST_ARGUMENT:
        return False
    before = re.split(r"[.!?]\s+|\n", text[max(found.start - 80, 0) : found.start])[-1]
    if not before.strip() or patterns.ARGUMENT.search(before):
        return bool(before.strip())
    return not patterns.QUOTED_TEXT.search(before, max(len(before) - 40, 0))


# Letters, transcripts, code


def _letters(lines: Sequence[_Line]) -> Iterator[Material]:
    """E-mails and letters: from their headers or greeting to the name below their closing words."""
    signed: list[int] | None = None
    last = max((at for at, line in enumerate(lines) if not line.is_blank), default=-1)
    index = 0
    while index < len(lines):
        begin = index
        while index < len(lines) and patterns.HEADER.match(lines[index].text):
            index += 1
        has_headers = index - begin >= 2
        greeting = next((at for at in range(index, min(index + 3, len(lines))) if not lines[at].is_blank), index)
        is_greeted = greeting < len(lines) and patterns.GREETING.match(lines[greeting].text) is not None
        if not has_headers and not (is_greeted and (index > begin or greeting == begin)):
            index = max(index, begin + 1)
            continue
        if signed is None:
            signed = [at for at, line in enumerate(lines) if patterns.SIGN_OFF.match(line.text.strip())]
        end = _end_of_letter(lines, signed, greeting)
        if end is None and (has_headers or index > begin):
            end = len(lines)
        if end is not None and (begin > 0 or has_headers or end <= last):
            yield Material(lines[begin].start, lines[end - 1].end, "e-mail")
            index = end
        else:
            index = greeting + 1


def _end_of_letter(lines: Sequence[_Line], signed: Sequence[int], start: int) -> int | None:
    """The line behind the name that follows the next closing words; None without any. `signed`: the lines of such."""
    next_signed = bisect_left(signed, start + 1)
    if next_signed == len(signed):
        return None
    at = signed[next_signed]
    behind = at + 1
    while behind < len(lines) and behind <= at + 3 and len(lines[behind].text.split()) <= 4:
        if not lines[behind].is_blank and lines[behind].text.rstrip().endswith((".", "?", ":")):
            break
        behind += 1
    return behind


def _transcripts(lines: Sequence[_Line]) -> Iterator[Material]:
    """Two or more turns of named speakers in a row; what wraps onto further lines belongs to its turn."""
    run: list[_Line] = []
    turns = 0
    for line in (*lines, _Line(0, 0, "")):
        match = patterns.SPEAKER.match(line.text)
        if match and not patterns.FIELDS.match(match["who"]):
            run.append(line)
            turns += 1
            continue
        if turns >= 2 and not line.is_blank and run and line.start == run[-1].end + 1:
            run.append(line)
            continue
        if not line.is_blank or line.end == 0:
            if turns >= 2:
                yield Material(run[0].start, run[-1].end, "transcript")
            run, turns = [], 0


def _listings(lines: Sequence[_Line]) -> Iterator[Material]:
    """Runs of code, of logs and of table rows, with the remarks and blank lines among them."""
    run: list[_Line] = []
    strong = 0
    for line in (*lines, _Line(0, 0, "The end.")):
        is_strong = patterns.CODE.search(line.text) is not None or patterns.ROWS.match(line.text) is not None
        if is_strong or (patterns.REMARK.match(line.text) and (strong or line.text.lstrip().startswith("#"))):
            run.append(line)
            strong += is_strong
        elif run and line.is_blank:
            run.append(line)
        else:
            if strong >= 2 or (strong and len(run) > 1 and any("#" in item.text[:4] for item in run)):
                yield Material(run[0].start, run[-1].end, "code")
            run, strong = [], 0


def _overrides(text: str, told: Iterable[re.Match[str]], is_trusted: bool) -> Iterator[Material]:
    """From an order to ignore instructions on, all: whoever gives it may go on. Where it is only told of, its line."""
    for match in (match for match in told if text[match.start()] != MASK):
        before = _before(text, match.start())
        start = match.start() - len(before)
        verb = patterns.ORDER.search(before + match[0].split(None, 1)[0])
        end = len(text) if verb and not is_trusted else _end_of_line(text, match.end())
        yield Material(start, end, "order to ignore instructions")
        if end == len(text):
            return


def _end_of_line(text: str, start: int) -> int:
    end = text.find("\n", start)
    return len(text) if end < 0 else end


# What is announced


def _introduced(page: _Page, closed: Mapping[int, int], orders: Sequence[int]) -> Iterator[Material]:
    """What follows a colon behind words that announce a text: its paragraph, or from a new line on, all the rest."""
    read = 0
    text = page.text
    for index, colon in enumerate(patterns.COLON.finditer(text)):
        if index == _MOST_COLONS:
            yield Material(colon.end(), len(text), "text behind too many colons")
            return
        if colon.start() < read or not _announces(_before(text, colon.start())):
            continue
        start = _behind_space(text, colon.end())
        has_own_line = "\n" in text[colon.end() : start]
        if start >= len(text) or _is_whole(text, start, closed, has_own_line):
            continue
        end = _end_of_pasted(page, start, orders) if has_own_line else page.tail(start)
        yield Material(start, end, "introduced text")
        read = end


def _behind_space(text: str, place: int) -> int:
    space = _SPACE.match(text, place)
    return space.end() if space else place


def _is_whole(text: str, start: int, closed: Mapping[int, int], has_own_line: bool) -> bool:
    """Whether the announced text is what marks of its own enclose, rather than a text that begins with a quotation."""
    if start not in closed:
        return False
    behind = _BEHIND.match(text, closed[start])
    word = (behind[1] or "") if behind else ""
    goes_on = word[:1].islower() and (has_own_line or word.lower() not in patterns.LINKING)
    return not goes_on and word[:1] not in tuple(",;:(–—-")


def _announced(page: _Page, closed: Mapping[int, int], orders: Sequence[int]) -> Iterator[Material]:
    """What follows a paragraph whose last sentence announces it without a colon, or a line that points at it."""
    text = page.text
    for gap in _BREAK.finditer(text):
        if gap.end() == len(text) or _is_whole(text, gap.end(), closed, True):
            continue
        before = text[max(gap.start() - 2 * _LONGEST_INTRODUCTION, 0) : gap.start()].rstrip()
        is_paragraph = gap[0].count("\n") > 1
        if _points(before, is_paragraph):
            yield Material(gap.end(), _end_of_pasted(page, gap.end(), orders), "announced text")
            return


def _points(before: str, is_paragraph: bool) -> bool:
    """Whether the last paragraph, or line, of `before` announces what comes next."""
    if before.endswith(":"):
        return False
    passage = _BLANK.split(before)[-1] if is_paragraph else before[before.rfind("\n") + 1 :]
    sentences = _SENTENCE_END.split(passage)
    if not before.endswith((".", "!", "?")):
        sentences = sentences[-1:] if MASK not in sentences[-1] else []  # a quotation may be the text itself
    sentences = [item if _may_point(item) else "" for item in sentences]
    if sentences and patterns.POINTING.search(sentences[-1]):
        return True
    return is_paragraph and any(item and patterns.ANNOUNCEMENT.search(item) for item in sentences)


def _may_point(sentence: str) -> bool:
    """A cheap look: whether it has a word that every announcement has, and neither gives its text nor an address."""
    lowered = sentence.lower()
    if not any(word in lowered for word in patterns.POINTERS) and not patterns.REQUEST.match(sentence):
        return False
    return not patterns.ELSEWHERE.search(sentence) and f": {MASK}" not in sentence


def _above(page: _Page, found: Sequence[Material]) -> Material | None:
    """What stands before a sentence that speaks of "the text above", or before a last line like "Summarize this."."""
    text, place = page.text, None
    for hint in patterns.UPWARDS.finditer(text) if patterns.UPWARD.search(text.lower()) else ():
        start = hint.start() - len(_before(text, hint.start()))
        sentence = re.split(r"(?<=[.!?])\s|\n", text[start : hint.end() + _LONGEST_INTRODUCTION])[0]
        if patterns.ABOVE.search(sentence) and not patterns.OWN_ABOVE.search(sentence):
            place = start
    last = text.rfind("\n", 0, page.length) + 1
    if page.length - last <= _LONGEST_INTRODUCTION and patterns.LAST_LINE.match(text[last : page.length]):
        place = last
    if place is None or _stands_above(text, found, place):
        return None
    start = _behind_space(text, 0)
    return Material(start, place, "text spoken of below") if start < place else None


def _stands_above(text: str, found: Sequence[Material], place: int) -> bool:
    """Whether the text spoken of at `place` is a block of its own right above."""
    block = next((item for item in reversed(found) if item.end <= place), None)
    if (
        block is None
        or text[block.end : place].strip()
        or text[text.rfind("\n", 0, block.start) + 1 : block.start].strip()
    ):
        return False
    speaks_of_code = patterns.CODE_NOUN.search(text, place, _end_of_line(text, place)) is not None
    return (block.kind == "code") == speaks_of_code


def _before(text: str, place: int) -> str:
    """The sentence that ends at `place`."""
    window = text[max(place - _LONGEST_INTRODUCTION, 0) : place]
    starts = [match.end() for match in patterns.SENTENCE_START.finditer(window)]
    return window[starts[-1] :] if starts else window


def _announces(sentence: str) -> bool:
    if not patterns.INTRODUCTION.search(sentence):
        return False
    return patterns.OWN_INTRODUCTION.search(sentence) is None or patterns.REWORKING.search(sentence) is not None


def _end_of_pasted(page: _Page, start: int, orders: Sequence[int]) -> int:
    """The end of the text, or of the paragraph behind which the writer speaks again: the last one, if it speaks of the
    answer and no order to ignore instructions stands in between."""
    last = page.gap_before(page.length)
    if last is None or last.start() <= start or not patterns.RESUMED.search(page.text, last.end()):
        return len(page.text)
    is_tainted = bisect_left(orders, start) < bisect_left(orders, len(page.text))
    return len(page.text) if is_tainted else last.start()
