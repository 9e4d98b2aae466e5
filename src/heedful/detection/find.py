"""The instructions of a prompt by rules and a small linear model: where they stand, how sure that is, and why.

What lies in material is never found. A system or developer message is an instruction throughout, but for its material.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

from heedful.detection.chunks import Chunk, chunks
from heedful.detection.features import Row, features_at
from heedful.detection.material import layout
from heedful.detection.model import probabilities, weights
from heedful.errors import OptionError
from heedful.spans import Span

DEFAULT_THRESHOLD = 0.87
STANDING_ROLES = ("system", "developer")
READ_ROLES = ("user",)

_LEAST_SHOWN = 0.1  # log odds
_MARKS = "-*•–·,;: \t\n"


@dataclass(frozen=True, slots=True)
class Evidence:
    """What an instruction was taken for one by: a `reason`, or the chunks `places` among those of its message."""

    reason: str = ""
    chunks: Sequence[Chunk] = ()
    places: Sequence[int] = ()

    def words(self) -> tuple[str, ...]:
        """The reason, or the words and classes of words that spoke most strongly for it."""
        if self.reason:
            return (self.reason,)
        return _why(features_at(self.chunks, self.places))


@dataclass(frozen=True, slots=True)
class Found:
    """One instruction: its `span` (with its message), its `text`, and a `score` from 0 to 1."""

    span: Span
    text: str
    score: float
    evidence: Evidence = field(compare=False, repr=False)

    @property
    def why(self) -> tuple[str, ...]:
        """What spoke for it, in a few words; made out when asked for, which takes longer than the finding."""
        return self.evidence.words()

    def to_dict(self) -> dict[str, Any]:
        """As JSON values: `message, start, end, text, score, why`."""
        place = {"message": self.span.message, "start": self.span.start, "end": self.span.end}
        return {**place, "text": self.text, "score": round(self.score, 3), "why": list(self.why)}


@dataclass(frozen=True, slots=True)
class Detection:
    """All instructions found in a prompt, sorted; who found them; and `note`, what the user should know about it."""

    found: tuple[Found, ...]
    source: Literal["rules", "model"] = "rules"
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {"source": self.source, "found": [item.to_dict() for item in self.found], "note": self.note}


def find(
    messages: Sequence[tuple[str, str]], *, threshold: float = DEFAULT_THRESHOLD, system: bool = True
) -> Detection:
    """The instructions in messages given as (role, content).

    `threshold`: the least score, above 0 and at most 1; higher finds less and errs less. `system`: whether all that
    system and developer messages say is an instruction; if not, they are read like the user's. What assistants and
    tools say never is one. Raises `OptionError` for a threshold out of range.
    """
    if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0 < threshold <= 1:
        raise OptionError(f"the threshold of a score lies above 0 and is at most 1, not {threshold!r}")
    found: list[Found] = []
    for index, (role, content) in enumerate(messages):
        if role in STANDING_ROLES and system:
            found += _standing(content, index, role)
        elif role in (*READ_ROLES, *STANDING_ROLES):
            found += _read(content, index, threshold)
    return Detection(tuple(found), note="" if found else "no instruction was found in the prompt")


def _standing(content: str, message: int, role: str) -> Iterator[Found]:
    """All of a message but its material, paragraph by paragraph."""
    run: list[Chunk] = []
    for chunk in (*chunks(layout(content, is_trusted=True)), None):
        if run and (chunk is None or chunk.is_material or chunk.boundary == "paragraph"):
            yield from _found(content, message, run, 1.0, Evidence(f"{role} message"))
            run = []
        if chunk is not None and not chunk.is_material:
            run.append(chunk)


def _read(content: str, message: int, threshold: float) -> Iterator[Found]:
    """What the model takes for an instruction: chunks in a row of one paragraph."""
    listed = chunks(layout(content))
    likely = probabilities(listed, weights())
    taken = [at for at, score in enumerate(likely) if score >= threshold]
    run: list[int] = []
    for at in (*taken, None):
        if run and (at != run[-1] + 1 or listed[at].boundary == "paragraph"):
            size = sum(listed[it].end - listed[it].start for it in run)
            score = sum(likely[it] * (listed[it].end - listed[it].start) for it in run) / size
            evidence = Evidence(chunks=listed, places=tuple(run))
            yield from _found(content, message, [listed[it] for it in run], score, evidence)
            run = []
        if at is not None:
            run.append(at)


def _found(content: str, message: int, run: Sequence[Chunk], score: float, evidence: Evidence) -> Iterator[Found]:
    """One finding, without the bullet or comma before it; none where nothing but signs is left."""
    start, end = run[0].start, run[-1].end
    text = content[start:end]
    start = end - len(text.lstrip(_MARKS))
    if any(char.isalnum() for char in content[start:end]):
        yield Found(Span(start, end, message=message), content[start:end], min(score, 1.0), evidence)


def _why(rows: Sequence[Row], most: int = 3) -> tuple[str, ...]:
    """The words and classes of words that spoke most strongly for it."""
    speaking = _speaking()
    total: Counter[str] = Counter()
    for names in {*(own for own, _ in rows), *(shared for _, shared in rows)}:
        for name in names:
            if name in speaking:
                shown, weight = speaking[name]
                total[shown] += weight
    return tuple(name for name, _ in total.most_common(most))


@cache
def _speaking() -> dict[str, tuple[str, int]]:
    """The features that speak for an instruction, as they are shown, and their weights in thousandths."""
    pairs = ((name, _shown(name), weight) for name, weight in weights().features.items() if weight > _LEAST_SHOWN)
    return {name: (shown, round(1000 * weight)) for name, shown, weight in pairs if shown}


def _shown(name: str) -> str | None:
    """A feature as the user reads it; None for one that says nothing by itself."""
    bare = name.removeprefix("in: ").removeprefix("first ").removeprefix("opening ")
    if bare.startswith("class "):
        return bare.removeprefix("class ")
    if bare.startswith(_NEIGHBOURS) or name in _SIGNS or not any(char.isalnum() for char in bare):
        return None
    return f"“{bare}”"


_NEIGHBOURS = ("before ", "behind ", "asks ", "then ", "new ", "prev: ", "next: ", "length ")
_SIGNS = (
    *("opens", "goes on", "a question", "a bullet", "behind a colon", "behind material", "with a quotation"),
    *("sentence 1", "sentence 2", "later sentence", "last sentence", "last but one"),
)
