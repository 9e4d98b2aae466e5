"""Ray on two simulated nodes: what comes back is what one process gives, also where a worker is killed on purpose."""

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

import heedful
from heedful import batch, data
from heedful.errors import HeedfulError, ModelError, OptionError
from heedful.eval import run
from heedful.eval.tasks import TASKS, Example, examples
from heedful.methods import parse_methods
from test_batch import contents, good, write

ray = pytest.importorskip("ray")

from heedful.ray import cluster, evaluation, pool, rows  # noqa: E402

HANGS = 300  # seconds after which it is for ever
# Ray 2.60 calls what it has itself deprecated, and leaves pipes of its services to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.mark.parametrize(
    ("nodes", "replicas", "cpus", "room"),
    [
        ([2], 2, 1.0, False),  # all CPUs taken: Ray Data's own tasks would wait for ever
        ([2], 1, 1.0, True),
        ([2], 2, 0.5, True),
        ([2], 3, 0.5, False),  # half a CPU is left, which fits no task
        ([1, 1], 2, 0.5, False),  # one on each node
        ([1, 1], 2, 0.0, True),
        ([1, 1], 1, 1.0, True),
        ([8, 0.5], 8, 1.0, False),
        ([8, 0.5], 7, 1.0, True),
        ([3, 3], 2, 2.0, True),  # a replica leaves one CPU over
        ([4], 1, 5.0, True),  # it does not fit, and takes nothing
        ([], 1, 1.0, False),
    ],
)
def test_some_node_keeps_a_cpu(nodes: Sequence[float], replicas: int, cpus: float, room: bool) -> None:
    assert cluster.leaves_room([{"CPU": total} for total in nodes], replicas, cpus) is room


@pytest.mark.parametrize(
    ("nodes", "replicas", "cpus", "held", "room"),
    [
        ([2], 1, 1.0, [(1, 1.0)], False),  # two pools, one after the other, take both CPUs
        ([2], 1, 0.5, [(1, 0.5)], True),
        ([2], 2, 0.5, [(1, 0.5)], False),
        ([2], 1, 0.0, [(1, 1.0)], True),
        ([4], 1, 1.0, [(1, 1.0)], True),
        ([4], 2, 1.0, [(1, 0.25), (1, 0.5)], False),
        ([2], 1, 1.0, [(3, 0.0)], True),  # these take nothing
    ],
)
def test_pools_of_one_pipeline_leave_a_cpu_together(
    nodes: Sequence[float], replicas: int, cpus: float, held: Sequence[tuple[int, float]], room: bool
) -> None:
    assert cluster.leaves_room([{"CPU": total} for total in nodes], replicas, cpus, held) is room


def test_what_a_dataset_holds_is_freed_with_it() -> None:
    import gc

    from ray import cloudpickle

    held = cluster.Held(1, 1.0)
    assert held in cluster.HELD
    assert cloudpickle.loads(cloudpickle.dumps(held)) == ()
    del held
    gc.collect()
    assert not cluster.HELD


def test_rows_as_json_would_have_them() -> None:
    numpy = pytest.importorskip("numpy")
    row = {"messages": [{"role": "user", "name": None}], "instructions": numpy.array([[0, 4]]), "n": 0}
    assert rows.plain(row) == {"messages": [{"role": "user"}], "instructions": [[0, 4]], "n": 0}


@pytest.fixture(scope="module")
def folder(tiny: heedful.LM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model where workers can load it."""
    path = tmp_path_factory.mktemp("model")
    tiny.model.save_pretrained(path)
    tiny.tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def here(folder: Path) -> heedful.LM:
    """The same model in this process."""
    return heedful.load(str(folder), dtype="float32")


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[str]:
    """The address of a cluster of two nodes with a CPU each."""
    from ray.cluster_utils import Cluster

    patch = pytest.MonkeyPatch()
    patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    patch.setenv("RAY_worker_niceness", "0")  # else 15: whatever else runs, other tests too, goes first
    small = {"num_cpus": 1, "object_store_memory": 80_000_000}
    nodes = Cluster(initialize_head=True, head_node_args={**small, "include_dashboard": False})
    try:
        nodes.add_node(**small)
        with cluster.connected(nodes.address):
            yield nodes.address
    finally:
        nodes.shutdown()
        patch.undo()


@pytest.fixture(scope="module")
def replicas(two_nodes: str, folder: Path) -> pool.Pool:
    """Two replicas, which together could hold every CPU: their share is chosen so that they do not."""
    return pool.Pool(batch.Source(str(folder), dtype="float32"), 2, cluster.place(2, "cpu"))


def workers() -> list[psutil.Process]:
    """The processes of this test's replicas, and of nobody else's."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "MapWorker" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.mark.slow
def test_forty_rows_and_a_worker_killed(here: heedful.LM, replicas: pool.Pool, tmp_path: Path) -> None:
    """Begun in one process, stopped, gone on with on the cluster: the same bytes as without all that."""
    lines: list[str | bytes] = [*map(good, range(40)), '{"prompt": "cut', '{"prompt": "Nothing is marked."}']
    file = write(tmp_path / "in.jsonl", lines)
    asked = batch.Asked(parse_methods("directer"), 24, heedful.Sampling(0.7, seed=1))
    alone = partial(batch.answers, batch.Local(here), asked, batch=2)
    facts = replicas.facts
    assert facts == replace(batch.Local(here).facts(), hardware=facts.hardware)
    plans = {name: batch.Plan(batch.rows(file), asked, tmp_path / name) for name in ("whole", "out")}
    batch.run(plans["whole"], facts, alone)

    def stop(_: str, done: int) -> None:
        if done == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        batch.run(plans["out"], facts, alone, stop)
    killed: list[int] = []

    def kill(_: str, done: int) -> None:
        if done > 8 and not killed:
            victim = workers()[0]
            victim.kill()
            killed.append(victim.pid)

    summary = batch.run(plans["out"], facts, partial(pool.answered, replicas, asked, 2), kill)
    assert killed
    assert (summary.num_answered, len(summary.failed)) == (40, 2)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.slow
def test_a_run_of_conversations(here: heedful.LM, replicas: pool.Pool, tmp_path: Path) -> None:
    """Records and times of two turns; a run that was stopped between them goes on."""

    def follow(example: Example, answer: str) -> Example | None:
        is_first = ":" not in example.key
        return replace(example, key=f"{example.key}:2", prompt=f"{example.prompt} {answer}") if is_first else None

    file = write(tmp_path / "gsm.jsonl", [json.dumps({"question": f"{i}?", "answer": "#### 1"}) for i in range(5)])
    task = replace(TASKS["gsm8k-format"], follow=follow, num_turns=2)
    found, _ = examples(task, data.read(file))
    whole = run.Plan(task, found, parse_methods("none,directer"), tmp_path / "whole", 2, 6)
    out = replace(whole, out=tmp_path / "out")
    run.run(here, whole)

    def stop(now: run.Progress) -> None:
        if now.done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.run(here, out, report=stop)
    told: list[run.Progress] = []
    evaluation.answer(replicas, out, resume=True, report=told.append)
    assert told[-1].done == told[-1].total == 10
    for name in ("none.jsonl", "directer.jsonl"):
        assert (out.folder / name).read_bytes() == (whole.folder / name).read_bytes()
    assert not list(out.folder.glob("*.part.jsonl"))
    times = json.loads((out.folder / "times.json").read_text())
    tokens = sum(record["generated_tokens"] for record in run.read_records(out.folder / "directer.jsonl").values())
    assert times["directer"][replicas.facts.hardware]["tokens"] == tokens
    with pytest.raises(OptionError, match="holds a run already"):
        evaluation.answer(replicas, out)


@pytest.mark.slow
def test_a_dataset_on_every_cpu(here: heedful.LM, two_nodes: str, folder: Path) -> None:
    """As many replicas as CPUs, behind a repartition: it would hang if they took them all."""
    listed = [{**json.loads(good(3 * at)), "at": at} for at in range(6)] + [{"prompt": "Nothing.", "at": 6}]
    dataset = ray.data.from_items(listed).repartition(3)
    options: Mapping[str, Any] = {"model": str(folder), "dtype": "float32", "max_new_tokens": 5, "replicas": 2}
    with pytest.raises(OptionError, match="can take every CPU of the cluster"):
        heedful.ray.map(dataset, cpus=1, **options)
    found: dict[int, Any] = {}
    answered = heedful.ray.map(dataset, **options)
    reader = threading.Thread(
        target=lambda: found.update((row["at"], row) for row in answered.iter_rows()), daemon=True
    )
    reader.start()
    reader.join(timeout=HANGS)
    assert not reader.is_alive()
    assert len(found) == 7
    for at, row in enumerate(listed[:6]):
        assert found[at]["text"] == here.generate(row["prompt"], max_new_tokens=5).text
        assert (found[at]["id"], found[at]["more"], found[at]["error"]) == (row["id"], row["more"], None)
        assert found[at]["stats"]["generated_tokens"] == 5
    assert "nothing in the prompt is marked" in found[6]["error"]


@pytest.mark.slow
def test_two_maps_of_one_pipeline(two_nodes: str, folder: Path) -> None:
    """Each alone leaves a CPU; together they would take both, and the second would wait for the first for ever."""
    options: Mapping[str, Any] = {"model": str(folder), "dtype": "float32", "max_new_tokens": 3}
    dataset = ray.data.from_items([{**json.loads(good(3)), "at": at} for at in range(4)]).repartition(2)
    first = heedful.ray.map(dataset, None, cpus=1, **options)
    renamed = first.drop_columns(["stats", "error"]).rename_columns({"text": "before"})
    del first
    with pytest.raises(OptionError, match="beside those of datasets that are there already"):
        heedful.ray.map(renamed, cpus=1, **options)
    answered = heedful.ray.map(renamed, **options)
    found: list[Any] = []
    reader = threading.Thread(target=lambda: found.extend(answered.iter_rows()), daemon=True)
    reader.start()
    reader.join(timeout=HANGS)
    assert not reader.is_alive()
    assert [row["error"] for row in found] == [None] * 4


def test_what_cannot_be_had_is_one_line(two_nodes: str) -> None:
    for wrong, said in (
        ({"replicas": 0, "device": "cpu"}, "replicas"),
        ({"replicas": 1, "device": "cuda"}, "room for 0 replicas of 0 CPUs and 1 GPUs"),
        ({"replicas": 1, "device": "cuda:1"}, "cpu or cuda"),
        ({"replicas": 1, "device": "cpu", "cpus": 2}, "room for 0 replicas of 2 CPUs"),
        ({"replicas": 1, "device": "cpu", "cpus": -1}, "cpus"),
    ):
        with pytest.raises(OptionError, match=said):
            cluster.place(**wrong)
    failed = ray.exceptions.RayTaskError("_facts", "Traceback\n  many lines", ModelError("nowhere"))
    with pytest.raises(ModelError, match=r"^nowhere$"), pool.told():
        raise failed
    with pytest.raises(OptionError, match=r"^Ray failed: ActorDiedError"), pool.told():
        raise ray.exceptions.ActorDiedError
    dataset = ray.data.range(1)
    for options in ({"method": "magic"}, {"engine": "magic"}, {"batch": 0}, {"sampling": heedful.Sampling(1, seed=1)}):
        with pytest.raises(HeedfulError):
            heedful.ray.map(dataset, **options)
