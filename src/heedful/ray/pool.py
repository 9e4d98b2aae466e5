"""Replicas of a model on a Ray cluster: each loads it once, takes pieces of work, and hands back what came of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from heedful.batch import Answerer, Asked, Item, Made, Source, answers, failed, reason
from heedful.errors import HeedfulError, OptionError
from heedful.provenance import Facts
from heedful.ray.cluster import Place

RETRIES = 3  # of a piece whose process died; then its rows are reported
BATCHES = 4  # in a piece: as many as keep the decoder full for most of the time
LONGEST_PIECE = 6 * 3600  # seconds; Ray Data gives up after half an hour without a word

Work = Callable[[Answerer, Any], Any]


@dataclass(frozen=True)
class Lost:
    """A piece of which nothing came back, and why."""

    why: str


class Worker:
    """One replica, as an actor of Ray Data: the model is loaded as it starts."""

    def __init__(self, source: Source, work: Work) -> None:
        self._model, self._work = source.open(), work

    def __call__(self, table: Any) -> Any:
        """Pickled pieces in, pickled results out; an error is a result too, so that it ends no other piece."""
        import pyarrow
        from ray import cloudpickle

        found = [self._result(cloudpickle.loads(piece)) for piece in table.column("piece").to_pylist()]
        results = pyarrow.array([cloudpickle.dumps(result) for result in found], pyarrow.large_binary())
        return pyarrow.table({"at": table.column("at"), "result": results})

    def _result(self, piece: Any) -> Any:
        try:
            return self._work(self._model, piece)
        except Exception as error:
            return Lost(reason(error))


@dataclass(frozen=True)
class Pool:
    """`replicas` of a model at `place` each. Needs a connection."""

    source: Source
    replicas: int
    place: Place

    @cached_property
    def facts(self) -> Facts:
        """What the model is, told by a worker that loads it once for that. Raises the error that loading it raises."""
        import ray

        # With one call to a process, its memory is free again once it has told.
        task = ray.remote(max_calls=1, num_cpus=self.place.cpus, num_gpus=self.place.gpus)(_facts)
        with told():
            found: Facts = ray.get(task.remote(self.source))
        return found

    def results(self, work: Work, pieces: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """Each piece's index and what `work` made of it, or `Lost`, as they come; every replica loads the model once.

        A piece whose process dies is given to another. Raises `OptionError` where Ray itself fails.
        """
        import ray
        from ray import cloudpickle

        if not pieces:
            return
        items = [{"at": at, "piece": cloudpickle.dumps(piece)} for at, piece in enumerate(pieces)]
        data = ray.data.from_items(items, override_num_blocks=len(items))
        data.context.enable_progress_bars = False
        data.context.max_errored_blocks = -1  # the pieces that are missing are found below
        data.context.max_consecutive_actor_init_deaths = RETRIES
        data.context.execution_no_progress_timeout_s = LONGEST_PIECE
        made = mapped(data, Worker, (self.source, work), 1, min(self.replicas, len(items)), self.place)
        missing = set(range(len(items)))
        with told():
            for table in made.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                for at, result in zip(*(table.column(name).to_pylist() for name in ("at", "result")), strict=True):
                    missing.discard(at)
                    yield at, cloudpickle.loads(result)
        for at in sorted(missing):
            yield at, Lost(f"no answer came back: its worker died {RETRIES + 1} times")


def mapped(data: Any, kind: type, arguments: Sequence[Any], batch_size: int, replicas: int, place: Place) -> Any:
    """`data` through a pool of `replicas` actors of that kind, each made of `arguments` once."""
    from ray.data import ActorPoolStrategy

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray 2.60 calls max_task_retries deprecated, and knows no other way yet
        return data.map_batches(
            kind,
            batch_size=batch_size,
            batch_format="pyarrow",
            fn_constructor_args=arguments,
            compute=ActorPoolStrategy(size=replicas, max_tasks_in_flight_per_actor=2),
            num_cpus=place.cpus,
            num_gpus=place.gpus,
            max_task_retries=RETRIES,  # else a row that kills its process would be tried for ever
        )


def answered(pool: Pool, asked: Asked, batch: int, items: Sequence[Item]) -> Iterator[tuple[int, Made]]:
    """Each item's index and what was made of it, as `heedful.batch.run` wants it."""
    size = max(1, min(BATCHES * batch, -(-len(items) // pool.replicas)))
    pieces = [items[begin : begin + size] for begin in range(0, len(items), size)]
    for at, found in pool.results(partial(_answers, asked, batch), pieces):
        if isinstance(found, Lost):
            found = list(enumerate([failed(found.why)] * len(pieces[at])))
        for index, made in found:
            yield at * size + index, made


@contextmanager
def told() -> Iterator[None]:
    """Turns what Ray raises into one line; an error of ours that a worker raised is raised again as it was."""
    from ray.data.exceptions import ExecutionTimeoutError, SystemException
    from ray.exceptions import RayError

    try:
        yield
    except (RayError, ExecutionTimeoutError, SystemException) as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, HeedfulError):
            raise cause from error
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
        raise OptionError(f"Ray failed: {type(error).__name__}: {lines[-1]}") from error


def _facts(source: Source) -> Facts:
    return source.open().facts()


def _answers(asked: Asked, batch: int, model: Answerer, items: Sequence[Item]) -> list[tuple[int, Made]]:
    return list(answers(model, asked, items, batch))
