"""Finds method and settings for a user's own prompts: successive halving over paired scores, then a test on held-out
prompts that the search never saw. What the search selected on is never reported as a result.

Source of the search: Jamieson and Talwalkar, "Non-stochastic best arm identification", AISTATS 2016.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from heedful import data, journal, scorebook
from heedful.checks import choice, whole
from heedful.data import Record
from heedful.errors import OptionError
from heedful.eval import seen
from heedful.eval.paired import Mean, Paired, holm, mean, paired
from heedful.generate import LM
from heedful.methods import parse_method, read_spec
from heedful.metrics import scored
from heedful.provenance import fingerprint
from heedful.recipe import ModelShape
from heedful.scorebook import Scorebook

NONE, DEFAULT = "none", "directer"
KEPT_SHARE = 3  # of three candidates one goes on
SMALLEST_RUNG = 6
THRESHOLDS = (0.5, 0.25, 0.1, 0.75)
# First in each list: the method's own default.
SPACE: dict[str, dict[str, Sequence[Any]]] = {
    "directer": {
        "strength": (100, 2, 5, 10, 30, 1000),
        "threshold": THRESHOLDS,
        "ranking": ("paper", "released"),
        "compat": (None, "released"),
    },
    "static": {"strength": (100, 1.2, 1.5, 2, 3, 5, 10), "level": (0, 1, 2, 3)},
    "spotlight": {"target": (0.2, 0.05, 0.1, 0.3, 0.5)},
    "spotlight-gated": {"target": (0.2, 0.05, 0.1, 0.3, 0.5), "threshold": THRESHOLDS},
    "instaboost": {"multiplier": (3, 2, 5, 10, 20)},
    "instaboost-gated": {"multiplier": (3, 2, 5, 10, 20), "threshold": THRESHOLDS},
    "pasta": {"strength": (0.01, 0.1, 0.3)},
    "pasta-gated": {"strength": (0.01, 0.1, 0.3), "threshold": THRESHOLDS},
    "context-aware": {"strength": (0.5, 0.25, 1.0)},
    "context-aware-gated": {"strength": (0.5, 0.25, 1.0, 2.0), "threshold": THRESHOLDS},
    "anchoring": {"strength": (1.5, 1.2, 2.0)},
    "anchoring-gated": {"strength": (1.5, 1.2, 2.0, 3.0), "threshold": THRESHOLDS},
}
DEFAULT_METHODS = ("directer", "spotlight-gated", "instaboost-gated", "static")


@dataclass(frozen=True)
class Settings:
    """What is searched, on what, and for how much.

    `metric`: as for profiles (`heedful.metrics`). `methods`: names of `SPACE`. `profile`: PASTA's heads. `budget`:
    answers to generate in all; None: as many as 27 candidates cost. `held_out`: share of the rows for the final test.
    `limit`, `shard`: only the first rows of the data, and of those part "i/n".
    """

    data_path: str
    metric: str
    methods: tuple[str, ...] = DEFAULT_METHODS
    profile: str | None = None
    budget: int | None = None
    held_out: float = 0.4
    max_new_tokens: int = 256
    seed: int = 0
    limit: int | None = None
    shard: str | None = None

    def __post_init__(self) -> None:
        whole("max_new_tokens", self.max_new_tokens, low=1)
        whole("seed", self.seed, low=0)
        for name in ("budget", "limit"):
            if getattr(self, name) is not None:
                whole(name, getattr(self, name), low=1)
        if not 0.1 <= self.held_out <= 0.9:
            raise OptionError(f"held_out must be a share from 0.1 to 0.9; got {self.held_out}")
        if not self.methods:
            raise OptionError("name at least one method to search")
        for name in self.methods:
            choice("method", name, tuple(SPACE))
            if name.startswith("pasta") and self.profile is None:
                raise OptionError(f"{name} needs its heads: make them by `heedful profile pasta`, then name the file")


@dataclass(frozen=True)
class Rung:
    """One round of the search: how many candidates are scored on the first `num_rows` of the search rows."""

    num_candidates: int
    num_rows: int


@dataclass(frozen=True)
class Progress:
    """How far a search is: answers scored, answers in all, and what they are for."""

    done: int
    total: int
    stage: str


@dataclass(frozen=True)
class Tuned:
    """What was found, and how it did on held-out rows, in means of the metric with intervals and paired by row."""

    method: str
    num_held_out: int
    scores: dict[str, Mean]
    against: dict[str, Paired]
    """The method found against `none`, and against Directer as it is by default."""
    failed: dict[str, int] = field(default_factory=dict)
    """How many of each one's answers failed; they are no point in all of these."""

    @property
    def p_values(self) -> dict[str, float]:
        """McNemar's p of each comparison in `against`, corrected by Holm over all of them."""
        return dict(zip(self.against, holm([found.p_value for found in self.against.values()]), strict=True))


class Tuner:
    """One search in the making. Raises `DataError` or `OptionError` before anything is generated."""

    def __init__(self, lm: LM, settings: Settings, out: Path) -> None:
        self.settings, self.out = settings, out
        if out.is_dir() or not out.name or out.resolve() == Path(settings.data_path).resolve():
            raise OptionError(f"--out must name a file of its own for the settings; got {str(out)!r}")
        everything = fitting(candidates(settings), lm.engine.shape)
        found = scored(settings.data_path, settings.metric, settings.limit, settings.shard)
        rows, self.left_out = found.rows, found.left_out
        made_with = {**asdict(settings), **scorebook.provenance(lm, settings.data_path)}
        profiles = profile_paths(settings.profile)
        chosen = {path: seen.rows(path, [settings.data_path]) for path in profiles}
        self.unknown = [path for path, listed in chosen.items() if listed is None]
        """Profiles of which nothing tells on which rows they were made."""
        known = {one for listed in chosen.values() for row in listed or () for one in row}
        taken = [at for at, row in enumerate(rows) if not known.isdisjoint(data.hashes(row.columns, row.prompt[0]))]
        self.search_rows, self.test_rows = split(rows, settings.held_out, settings.seed, taken)
        self.rungs = rungs(len(everything), len(self.search_rows), self._for_search(len(everything)))
        self.candidates = everything[: self.rungs[0].num_candidates]
        made_with["profile_sha256"] = [hashlib.sha256(path.read_bytes()).hexdigest() for path in profiles] or None
        self.book: Scorebook[str] = Scorebook(
            lm=lm,
            rows=rows,
            metric=found.metric,
            max_new_tokens=settings.max_new_tokens,
            path=out.with_suffix(".scores.jsonl"),
            header={
                "settings": json.loads(json.dumps(made_with)),
                "model": {**asdict(lm.engine.shape), "weights": fingerprint(lm.model)},
            },
            candidates=list(dict.fromkeys([NONE, DEFAULT, *self.candidates])),
            method_of=parse_method,
            columns_of=lambda name: {"method": name},
            chosen_on=self.search_rows,
        )

    def _for_search(self, num_candidates: int) -> int:
        """Answers that the search may take: what the budget leaves beside the final test."""
        if self.settings.budget is None:
            return cost(ladder(min(27, num_candidates), len(self.search_rows)))
        left = self.settings.budget - 3 * len(self.test_rows)
        least = cost(ladder(min(2, num_candidates), len(self.search_rows)))
        if left < least:
            need = self.settings.budget - left + least
            raise OptionError(f"{self.settings.budget} answers are too small a budget for these rows; at least {need}")
        return left

    @property
    def num_answers(self) -> int:
        """Answers still to generate, at most."""
        return max(0, self._total() - len(self.book.scores))

    def _total(self) -> int:
        return cost(self.rungs) + 3 * len(self.test_rows)

    def seconds_each(self, batch: int) -> float:
        """Seconds an answer takes, measured on the first answers that the search needs anyway (they are kept)."""
        return self.book.seconds_each([(name, self.search_rows[0]) for name in self.candidates[:batch]], batch)

    def run(self, batch: int, report: Callable[[Progress], None] = lambda _: None) -> Tuned:
        """Searches, tests what was found on the held-out rows, and writes the settings file."""
        total = self._total()
        alive = self.candidates
        for rung in self.rungs:
            alive, rows = alive[: rung.num_candidates], self.search_rows[: rung.num_rows]
            tasks = [(name, row) for row in rows for name in alive]
            self.book.score(tasks, batch, lambda n: report(Progress(n, total, "searching")))
            alive = self._ordered(alive, rows)
        finalists = list(dict.fromkeys([NONE, DEFAULT, alive[0]]))
        tasks = [(name, row) for row in self.test_rows for name in finalists]
        self.book.score(tasks, batch, lambda n: report(Progress(n, total, "testing")))
        tuned = self._tuned(alive[0], finalists)
        self._write(tuned)
        return tuned

    def _ordered(self, names: Sequence[str], rows: Sequence[int]) -> list[str]:
        """Best first by mean score; all are on the same rows, so this is also by paired gain. Ties: as given."""
        return sorted(names, key=lambda name: -self.book.mean(name, rows))

    def _tuned(self, best: str, finalists: Sequence[str]) -> Tuned:
        points = {name: {str(row): (self.book.scores[name, row], 1.0) for row in self.test_rows} for name in finalists}
        return Tuned(
            method=best,
            num_held_out=len(self.test_rows),
            scores={name: mean(found) for name, found in points.items()},
            against={name: paired(points[best], points[name]) for name in (NONE, DEFAULT) if name != best},
            failed={name: sum((name, row) in self.book.failed for row in self.test_rows) for name in finalists},
        )

    def _write(self, tuned: Tuned) -> None:
        found = {
            "method": tuned.method,
            "model": asdict(self.book.lm.engine.shape),
            "search": asdict(self.settings),
            "held_out": {
                "rows": tuned.num_held_out,
                "scores": {name: asdict(score) for name, score in tuned.scores.items()},
                "failed": tuned.failed,
                "against": {
                    name: {**asdict(found), "p_holm": tuned.p_values[name]} for name, found in tuned.against.items()
                },
            },
        }
        with journal.kept(self.out):
            journal.write(self.out, json.dumps(found, indent=1) + "\n")


def split(
    rows: Sequence[Record], held_out: float, seed: int, taken: Collection[int] = ()
) -> tuple[list[int], list[int]]:
    """Rows to search on and rows held out, drawn by chance; rows of one prompt are not torn apart.

    The rows `taken` are not held out. Raises `OptionError` where either part would have too few rows.
    """
    by_prompt: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        by_prompt.setdefault(json.dumps(row.prompt[0]), []).append(index)
    groups = list(by_prompt.values())
    search: list[int] = []
    test: list[int] = []
    for group in random.Random(seed).sample(groups, len(groups)):
        is_held_out = not set(group) & set(taken) and len(test) + len(group) <= round(len(rows) * held_out)
        (test if is_held_out else search).extend(group)
    if min(len(search), len(test)) < SMALLEST_RUNG:
        told = f", the {len(taken)} that the profile was made on not held out" if taken else ""
        raise OptionError(
            f"{len(rows)} rows are too few to search on some and test on others: {len(groups)} different prompts"
            f"{told} leave {len(search)} and {len(test)} rows, at least {SMALLEST_RUNG} each are needed"
        )
    return search, sorted(test)


def profile_paths(profile: str | None) -> list[Path]:
    """The files that `profile` names, as the option of a method: one, or a JSON list."""
    if profile is None:
        return []
    named = read_spec(f"pasta:profile={profile}")[1]["profile"]
    return [Path(str(path)) for path in (named if isinstance(named, list) else [named])]


def fitting(names: Sequence[str], model: ModelShape) -> list[str]:
    """Those of `names` that the model has layers and heads for. Raises `OptionError` where none of a method is left."""
    fit: list[str] = []
    refused: dict[str, OptionError] = {}
    for name in names:
        method = parse_method(name)
        assert method is not None
        try:
            method.recipe().check(model)
            fit.append(name)
        except OptionError as error:
            refused[read_spec(name)[0]] = error
    for kind in refused.keys() - {read_spec(name)[0] for name in fit}:
        raise refused[kind]
    return fit


def candidates(settings: Settings) -> list[str]:
    """Every setting of every method, in turns, each method's default first and the rest in a random order."""
    chance = random.Random(settings.seed)
    columns = []
    for name in settings.methods:
        options = SPACE[name]
        grid = [dict(zip(options, values, strict=True)) for values in itertools.product(*options.values())]
        order = [grid[0], *chance.sample(grid[1:], len(grid) - 1)]
        columns.append([_spelled(name, one, settings.profile) for one in order])
    turns = itertools.chain.from_iterable(itertools.zip_longest(*columns))
    return [name for name in turns if name is not None]


def _spelled(name: str, options: dict[str, Any], profile: str | None) -> str:
    """As `parse_method` reads it; what is the default goes without saying."""
    said = {key: value for key, value in options.items() if value != SPACE[name][key][0]}
    more = {"profile": profile} if name.startswith("pasta") else {}
    return ":".join([name, *(f"{key}={value}" for key, value in {**said, **more}.items())])


def ladder(num_candidates: int, num_rows: int) -> list[Rung]:
    """Rounds with a third of the candidates and three times the rows each, the last one on all rows."""
    sizes = [num_rows]
    while sizes[-1] // KEPT_SHARE >= SMALLEST_RUNG and KEPT_SHARE ** len(sizes) < num_candidates:
        sizes.append(sizes[-1] // KEPT_SHARE)
    counts = [-(-num_candidates // KEPT_SHARE**step) for step in range(len(sizes))]
    return [Rung(count, size) for count, size in zip(counts, reversed(sizes), strict=True)]


def cost(steps: Sequence[Rung]) -> int:
    """Answers that the rounds take; what was answered in an earlier round is not asked again."""
    before = [0, *(rung.num_rows for rung in steps)]
    return sum(rung.num_candidates * (rung.num_rows - rows) for rung, rows in zip(steps, before, strict=False))


def rungs(num_candidates: int, num_rows: int, answers: int) -> list[Rung]:
    """The ladder with the most candidates that `answers` pay for."""
    affordable = [n for n in range(1, num_candidates + 1) if cost(ladder(n, num_rows)) <= answers]
    return ladder(affordable[-1], num_rows)
