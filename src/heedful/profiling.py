"""Finds PASTA's heads: steers one head at a time over a scored set, ranks the heads, keeps the best.

Every score is appended to a JSONL file beside the profile as it comes, so that a run that was killed goes on where it
stopped. A coarse screen of all heads on a few rows comes first; only the better ones are scored on all rows. Heads are
batched: each answer is a slot with a steerer of its own. Source of the procedure: PASTA, ICLR 2024, arXiv 2311.02262.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from heedful import journal, scorebook
from heedful.checks import finite, whole
from heedful.errors import OptionError
from heedful.generate import LM
from heedful.metrics import scored
from heedful.recipe import ModelShape
from heedful.scorebook import Scorebook
from heedful.steerers import Pasta, scores_path

Head = tuple[int, int]
Task = tuple[Head | None, int]
"""One answer to score: a head (None: plain decoding) and the index of a row."""


@dataclass(frozen=True)
class Settings:
    """What a profile is made with.

    `metric`: "json", "exact" (column `expected`), "regex" (column `regex`), "regex:PATTERN", "ifeval" (columns
    `instruction_id_list` and `kwargs`; see `heedful.metrics`), or "task:NAME": rows and score of a task of
    `heedful eval`. `num_rows`: rows of `data_path` to use. `screen_rows`: rows of the coarse
    screen. `keep`: heads that go on to all rows; None: twice `top_k`, but at least 16. `limit`, `shard`: only the first
    rows of the data, and of those part "i/n".
    """

    data_path: str
    metric: str
    top_k: int = 25
    strength: float = 0.01
    num_rows: int = 20
    screen_rows: int = 3
    keep: int | None = None
    max_new_tokens: int = 64
    limit: int | None = None
    shard: str | None = None

    def __post_init__(self) -> None:
        finite("strength", self.strength, low_open=True)
        for name in ("top_k", "num_rows", "screen_rows", "max_new_tokens"):
            whole(name, getattr(self, name), low=1)
        if self.limit is not None:
            whole("limit", self.limit, low=1)
        if self.keep is not None and self.keep < self.top_k:
            raise OptionError(f"keep must be at least top_k = {self.top_k}; got {self.keep}")

    @property
    def num_kept(self) -> int:
        """How many heads go on to all rows."""
        return max(16, 2 * self.top_k) if self.keep is None else self.keep


@dataclass(frozen=True)
class Progress:
    """How far a profile is: answers scored, answers in all, and whether this is the screen."""

    done: int
    total: int
    is_screen: bool


@dataclass(frozen=True)
class Profile:
    """The heads found, and the mean score of each head that was scored on all rows; `plain` without steering."""

    heads: dict[int, list[int]]
    scores: dict[Head, float]
    plain: float
    num_tied: int = 0
    """Heads left out that score just as the last one kept: between them their number decided, not the metric."""


class Profiler:
    """One profile in the making. Raises `DataError` or `OptionError` before anything is generated."""

    def __init__(self, lm: LM, settings: Settings, out: Path) -> None:
        self.lm, self.settings, self.out = lm, settings, out
        if out.is_dir() or not out.name or out.resolve() == Path(settings.data_path).resolve():
            raise OptionError(f"--out must name a file of its own for the profile; got {str(out)!r}")
        found = scored(settings.data_path, settings.metric, settings.limit, settings.shard, settings.num_rows)
        self.rows, self.left_out = found.rows, found.left_out
        self.heads = _all_heads(lm.engine.shape)
        if settings.top_k > len(self.heads):
            raise OptionError(f"top_k is {settings.top_k}, but the model has {len(self.heads)} heads")
        settings_now = {**asdict(settings), **scorebook.provenance(lm, settings.data_path)}
        self.book: Scorebook[Head | None] = Scorebook(
            lm=lm,
            rows=self.rows,
            metric=found.metric,
            max_new_tokens=settings.max_new_tokens,
            path=scores_path(out),
            header={"settings": settings_now, "model": asdict(lm.engine.shape)},
            candidates=[None, *self.heads],
            method_of=self._method,
            columns_of=_columns,
            chosen_on=range(len(self.rows)),
        )

    @property
    def num_answers(self) -> int:
        """Answers still to generate."""
        return self._total() - len(self.book.scores)

    def _total(self) -> int:
        screened = min(self.settings.screen_rows, len(self.rows))
        kept = min(self.settings.num_kept, len(self.heads))
        return len(self.rows) + len(self.heads) * screened + kept * (len(self.rows) - screened)

    def run(self, batch: int, report: Callable[[Progress], None] = lambda _: None) -> Profile:
        """Scores what is missing, `batch` answers at a time, and writes the profile to `out`."""
        screened = min(self.settings.screen_rows, len(self.rows))
        plain: list[Task] = [(None, row) for row in range(len(self.rows))]
        screen: list[Task] = [(head, row) for row in range(screened) for head in self.heads]
        self.book.score([*plain, *screen], batch, lambda done: report(Progress(done, self._total(), True)))
        kept = self._best(self.heads, range(screened), self.settings.num_kept)
        rest: list[Task] = [(head, row) for row in range(screened, len(self.rows)) for head in kept]
        self.book.score(rest, batch, lambda done: report(Progress(done, self._total(), False)))
        best = self._best(kept, range(len(self.rows)), self.settings.top_k)
        every = range(len(self.rows))
        profile = Profile(
            heads=_by_layer(best),
            scores={head: self.book.mean(head, every) for head in kept},
            plain=self.book.mean(None, every),
            num_tied=self._num_tied(kept, best),
        )
        self._write(profile)
        return profile

    def _best(self, heads: Sequence[Head], rows: range, count: int) -> list[Head]:
        """The best by mean score; ties by layer and head."""
        return sorted(heads, key=lambda head: (-self.book.mean(head, rows), head))[:count]

    def _num_tied(self, kept: Sequence[Head], best: Sequence[Head]) -> int:
        """Heads left out that score as the last of the `best`: on all rows, or in the screen if it cut them off."""
        screened, every = range(min(self.settings.screen_rows, len(self.rows))), range(len(self.rows))
        last, mean = best[-1], self.book.mean
        tied = sum(mean(head, every) == mean(last, every) for head in set(kept) - set(best))
        return tied + sum(mean(head, screened) == mean(last, screened) for head in set(self.heads) - set(kept))

    def _method(self, head: Head | None) -> Pasta | None:
        return None if head is None else Pasta({head[0]: [head[1]]}, self.settings.strength)

    def _write(self, profile: Profile) -> None:
        with journal.kept(self.out):
            journal.write(self.out, json.dumps({str(layer): heads for layer, heads in profile.heads.items()}) + "\n")

    def seconds_each(self, batch: int) -> float:
        """Seconds an answer takes, measured on one batch of the screen (whose scores are kept)."""
        return self.book.seconds_each([(head, 0) for head in self.heads[:batch]], batch)


def _all_heads(model: ModelShape) -> list[Head]:
    return [(layer, head) for layer in range(model.num_layers) for head in range(model.num_heads)]


def _columns(head: Head | None) -> dict[str, Any]:
    return dict(zip(("layer", "head"), (None, None) if head is None else head, strict=True))


def _by_layer(heads: Sequence[Head]) -> dict[int, list[int]]:
    layers = sorted({layer for layer, _ in heads})
    return {layer: sorted(head for at, head in heads if at == layer) for layer in layers}
