"""`heedful.ray.map`: the rows of any dataset of Ray Data, answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from heedful.batch import MADE, Answerer, Asked, Made, Source, answers
from heedful.checks import whole
from heedful.data import Record
from heedful.directer import Directer
from heedful.errors import DataError, OptionError
from heedful.methods import parse_method
from heedful.prompt import Instructions
from heedful.ray.cluster import Held, place
from heedful.ray.pool import BATCHES, mapped
from heedful.recipe import Method
from heedful.sampling import Sampling

NAME = "map"


def map(
    dataset: Any,
    method: Method | str | None = Directer(),  # noqa: B008 (frozen)
    *,
    model: str | None = None,
    device: str = "cpu",
    dtype: str = "auto",
    engine: str = "transformers",
    replicas: int = 1,
    cpus: float | None = None,
    batch: int = 16,
    max_new_tokens: int | None = None,
    instructions: Instructions = None,
    sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
    stop: Sequence[str] = (),
) -> Any:
    """The `ray.data.Dataset` with `text`, `stats` and `error` added to each row, all other columns kept.

    Rows are `messages`, or a `prompt`, and `instructions`; `method` is one, or its name with options. `replicas` load
    the model once each and answer `batch` rows at a time; `cpus`, if given, are what each reserves. A row that cannot
    be answered has an `error`, and ends no other. The order of rows is Ray Data's. Rows have no seeds of their own,
    so `sampling` takes none.

    Raises `OptionError` at once for what is wrong with an option, where the replicas do not fit, and where they could
    take every CPU, so that reading the dataset would wait for ever.
    """
    whole("batch", batch, low=1)
    if sampling.seed is not None:
        raise OptionError("a dataset's rows have no order to draw seeds by: leave the seed out, or use heedful batch")
    chosen = parse_method(method) if isinstance(method, str) else method
    asked = Asked({NAME: chosen}, max_new_tokens, sampling, tuple(stop), instructions)
    where = place(replicas, device, cpus)
    arguments = (Source(model, device, dtype, engine), asked, batch, Held(replicas, where.cpus))
    return mapped(dataset, Rows, arguments, BATCHES * batch, replicas, where)


class Rows:
    """One replica: a table of rows in, the same table with the answers out."""

    def __init__(self, source: Source, asked: Asked, batch: int, _: object = None) -> None:
        self._model: Answerer = source.open()
        self._asked, self._batch = asked, batch
        for method in asked.methods.values():
            self._model.facts().check(method)

    def __call__(self, table: Any) -> Any:
        """The table with three columns more. Raises `DataError` where it has one of them already."""
        taken = [name for name in MADE if name in table.column_names]
        if taken:
            raise DataError(f"the dataset has a column {taken[0]!r}, which answers add: rename it")
        items = [(NAME, Record("the dataset", at, plain(row))) for at, row in enumerate(table.to_pylist(), start=1)]
        found = dict(answers(self._model, self._asked, items, self._batch))
        return _with(table, [found[at] for at in range(len(items))])


def plain(value: Any) -> Any:
    """What Arrow made of a row as JSON would have it: no arrays, and no fields that only other rows have."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {key: plain(one) for key, one in value.items() if one is not None}
    return [plain(one) for one in value] if isinstance(value, list | tuple) else value


def _with(table: Any, made: Sequence[Made]) -> Any:
    import pyarrow

    counts = ("prompt_tokens", "generated_tokens", "gated", "accepted", "rejected", "changed")
    texts, found = pyarrow.string(), ("found", pyarrow.list_(pyarrow.string()))
    stats = [("finish_reason", texts), *((name, pyarrow.int64()) for name in counts), found, ("note", texts)]
    kinds = {"text": texts, "stats": pyarrow.struct(stats), "error": texts}
    for name, kind in kinds.items():
        table = table.append_column(name, pyarrow.array([one[name] for one in made], kind))
    return table
