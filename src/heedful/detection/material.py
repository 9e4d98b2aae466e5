"""Which characters of a text are material and not the writer's own words: what is quoted, pasted, or code.

Material is never an instruction, however it is phrased. It is told by form alone: fences, quotation marks, tags, block
quotes, e-mail headers and greetings, transcripts, code, and what follows a colon behind "the following text" and the
like. Nothing here looks at what the material says, but for the words that order earlier instructions to be ignored.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from heedful.detection import patterns

MASK = "¤"  # stands for every character of material and of a quotation

_LONGEST_ARGUMENT = 15  # words of a quotation that may be part of an instruction: "end with the phrase “…”"
_LONGEST_INTRODUCTION = 200  # characters

_BLANK = re.compile(r"\n[ \t]*\n\s*")


@dataclass(frozen=True, slots=True)
class Material:
    """The characters `start` … `end - 1`, and what they are, in a word or two."""

    start: int
    end: int
    kind: str


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


def layout(text: str) -> Layout:
    """Takes `text` apart; offsets stay: `masked` is as long as `text`."""
    blocks = _merged(
        Material(*match.span(), kind) for kind, pattern in patterns.BLOCKS for match in pattern.finditer(text)
    )
    bare = patterns.OWN_TAG.sub(lambda tag: " " * len(tag[0]), _masked(text, blocks))
    quotations = [Material(*match.span(), "quotation") for match in patterns.QUOTATION.finditer(bare)]
    blocks = _merged([*blocks, *(found for found in quotations if not _is_argument(bare, found))])
    bare = _masked(bare, quotations)
    lines = list(_lines(bare))
    letters = list(_letters(lines))
    blocks = _merged([*blocks, *letters, *_transcripts(lines), *_listings(lines), *_overrides(bare)])
    bare = _masked(bare, blocks)
    blocks = _merged([*blocks, *_introduced(bare)])
    blocks = _merged([*blocks, *_announced(_masked(bare, blocks))])
    return Layout(tuple(blocks), _masked(bare, blocks))


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
    if patterns.ARGUMENT.search(before):
        return True
    return bool(before.strip()) and not patterns.QUOTED_TEXT.search(before)


# Letters, transcripts, code


def _letters(lines: Sequence[_Line]) -> Iterator[Material]:
    """E-mails and letters: from their headers or greeting to the name below their closing words."""
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
        end = _end_of_letter(lines, greeting)
        if end is None and (has_headers or index > begin):
            end = len(lines)
        if end is not None and (begin > 0 or has_headers or _any_text(lines[end:])):
            yield Material(lines[begin].start, lines[end - 1].end, "e-mail")
            index = end
        else:
            index = greeting + 1


def _end_of_letter(lines: Sequence[_Line], start: int) -> int | None:
    """The line behind the name that follows the last closing words before another letter; None without any."""
    for at in range(start + 1, len(lines)):
        if patterns.SIGN_OFF.match(lines[at].text.strip()):
            behind = at + 1
            while behind < len(lines) and behind <= at + 3 and len(lines[behind].text.split()) <= 4:
                if not lines[behind].is_blank and lines[behind].text.rstrip().endswith((".", "?", ":")):
                    break
                behind += 1
            return behind
    return None


def _any_text(lines: Sequence[_Line]) -> bool:
    return any(not line.is_blank for line in lines)


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


def _overrides(text: str) -> Iterator[Material]:
    for match in patterns.OVERRIDE.finditer(text):
        start = match.start() - len(_before(text, match.start()))
        yield Material(start, match.end(), "order to ignore instructions")


# What a colon introduces


def _introduced(text: str) -> Iterator[Material]:
    """What follows a colon behind words that announce a text: its paragraph, or from a new line on, all the rest."""
    read = 0
    for colon in patterns.COLON.finditer(text):
        if colon.start() < read or not _announces(_before(text, colon.start())):
            continue
        behind = re.compile(r"\s*").match(text, colon.end())
        start = behind.end() if behind else colon.end()
        if start >= len(text) or text[start] == MASK:
            continue
        is_own_paragraph = "\n" in text[colon.end() : start]
        end = _end_of_pasted(text, start) if is_own_paragraph else _end_of_inline(text, start)
        yield Material(start, end, "introduced text")
        read = end


def _announced(text: str) -> Iterator[Material]:
    """What follows a paragraph whose last sentence announces it without a colon."""
    for gap in _BLANK.finditer(text):
        if text[gap.start() - 1 : gap.start()] in (".", "!", "?") and text[gap.end() : gap.end() + 1] not in ("", MASK):
            paragraph = _paragraph_before(text, gap.start())
            sentences = re.split(r"(?<=[.!?])\s+", paragraph) if patterns.HINT.search(paragraph) else []
            if any(patterns.ANNOUNCEMENT.search(item) and "http" not in item for item in sentences):
                yield Material(gap.end(), _end_of_pasted(text, gap.end()), "announced text")
                return


def _paragraph_before(text: str, place: int) -> str:
    """The paragraph that ends at `place`, or its last few hundred characters."""
    window = text[max(place - 2 * _LONGEST_INTRODUCTION, 0) : place]
    return _BLANK.split(window)[-1]


def _before(text: str, place: int) -> str:
    """The sentence that ends at `place`."""
    window = text[max(place - _LONGEST_INTRODUCTION, 0) : place]
    starts = [match.end() for match in patterns.SENTENCE_START.finditer(window)]
    return window[starts[-1] :] if starts else window


def _announces(sentence: str) -> bool:
    if not patterns.INTRODUCTION.search(sentence):
        return False
    return patterns.OWN_INTRODUCTION.search(sentence) is None or patterns.REWORKING.search(sentence) is not None


def _end_of_paragraph(text: str, start: int) -> int:
    match = _BLANK.search(text, start)
    return match.start() if match else len(text)


def _end_of_inline(text: str, start: int) -> int:
    """The end of the paragraph, or of the sentence behind which the writer speaks of the answer."""
    end = _end_of_paragraph(text, start)
    starts = [match.end() for match in patterns.SENTENCE_START.finditer(text, start, end)]
    while starts and patterns.RESUMED.search(text[starts[-1] : end]):
        end = starts.pop()
    return end


def _end_of_pasted(text: str, start: int) -> int:
    """The end of the text, or of the paragraph behind which the writer speaks again."""
    end = _end_of_paragraph(text, start)
    while end < len(text):
        gap = _BLANK.match(text, end)
        following = _end_of_paragraph(text, gap.end() if gap else end + 1)
        if following >= len(text.rstrip()) and patterns.RESUMED.search(text[end:following]):
            return end
        end = following
    return len(text)
