"""Reaches a Ray cluster, and says what a replica may take of it so that Ray Data can always go on."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import floor
from weakref import WeakSet

from heedful.checks import finite, whole
from heedful.errors import OptionError

SHARES = (1.0, 0.5, 0.25, 0.0)  # CPUs of a replica, where nobody says: the first that leaves room
PATIENCE = 10.0  # seconds for a connection
LEVELS = {"ray": logging.ERROR, "ray.data": logging.CRITICAL}  # what is lost is told by row


@dataclass(frozen=True)
class Place:
    """What one replica takes of the node that it is on."""

    cpus: float
    gpus: float


@dataclass(frozen=True, eq=False)
class Held:
    """CPUs of a dataset's replicas, which may run beside those of any later one: counted for as long as it is kept.

    It goes into the dataset as an argument of its workers, so that it lives as long as any dataset made from that one.
    """

    replicas: int
    cpus: float

    def __post_init__(self) -> None:
        HELD.add(self)

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return tuple, ()  # a worker holds nothing


HELD: WeakSet[Held] = WeakSet()


@contextmanager
def connected(address: str) -> Iterator[None]:
    """A connection to the cluster at `address`: host:port, "auto", or "local" for one on this machine.

    One that is there already is used, and left open. Raises `OptionError` without the extra, and where none is reached.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise OptionError(f"Ray needs its extra: pip install 'heedful[ray]' ({error})") from error
    if ray.is_initialized():
        yield
        return
    _reach(address)
    try:
        ray.init(address=address, logging_level=logging.WARNING, log_to_driver=False)
    except Exception as error:  # Ray raises half a dozen kinds
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise OptionError(f"cannot reach a Ray cluster at {address!r}: {first}") from error
    levels = {name: logging.getLogger(name).level for name in LEVELS}
    for name, level in LEVELS.items():
        logging.getLogger(name).setLevel(level)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        ray.shutdown()


def _reach(address: str) -> None:
    """Raises `OptionError` where nothing listens at host:port: Ray itself tries for minutes."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if not (colon and port.isdecimal()):
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE).close()
    except (OSError, OverflowError) as error:
        raise OptionError(f"cannot reach a Ray cluster at {address!r}: {error}") from error


def place(replicas: int, device: str, cpus: float | None = None) -> Place:
    """Where each of `replicas` is put on the cluster that is connected: a GPU each for device "cuda".

    Raises `OptionError` where they do not fit, or where they could take every CPU: Ray Data's other work would then
    wait for ever.
    """
    import ray

    if not ray.is_initialized():
        raise OptionError("there is no connection to a Ray cluster: call ray.init() first")
    whole("replicas", replicas, low=1)
    if device not in ("cpu", "cuda"):
        raise OptionError(f"with Ray the device is cpu or cuda, and Ray chooses which one; got {device!r}")
    gpus = 1.0 if device == "cuda" else 0.0
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    free = nodes if cpus is not None else _free(nodes)
    shares = SHARES if cpus is None else (finite("cpus", cpus),)
    fitting = [share for share in shares if _room_for(nodes, share, gpus) >= replicas]
    if not fitting:
        room = _room_for(nodes, shares[-1], gpus)
        raise OptionError(
            f"the cluster has room for {room} replicas of {shares[-1]:g} CPUs and {gpus:g} GPUs each, not {replicas}"
        )
    held = [(one.replicas, one.cpus) for one in HELD]
    for share in fitting:
        if leaves_room(free, replicas, share, held):
            return Place(share, gpus)
    beside = ", beside those of datasets that are there already," if held else ""
    raise OptionError(
        f"{replicas} replicas of {fitting[-1]:g} CPUs each{beside} can take every CPU of the cluster, and Ray Data "
        "would wait for one for ever: choose fewer replicas, or fewer CPUs for each"
    )


def _free(nodes: Sequence[Mapping[str, float]]) -> Sequence[Mapping[str, float]]:
    """What others have left of each node at the moment; the nodes as they are where Ray does not tell."""
    try:
        from ray._private.state import available_resources_per_node  # there is no public way
    except ImportError:
        return nodes
    return list(available_resources_per_node().values())


def _room_for(nodes: Sequence[Mapping[str, float]], cpus: float, gpus: float) -> int:
    """How many replicas the nodes hold."""
    return sum(
        min([floor(node.get(kind, 0.0) / need) for kind, need in (("CPU", cpus), ("GPU", gpus)) if need] or [2**31])
        for node in nodes
    )


def leaves_room(
    nodes: Sequence[Mapping[str, float]], replicas: int, cpus: float, held: Sequence[tuple[int, float]] = ()
) -> bool:
    """Whether some node keeps a whole CPU free, however badly the replicas are placed.

    Ray Data reads, splits and writes in tasks of one CPU, which must fit on one node. `held`: replicas of other pools
    and the CPUs of each, as if all were as large as the largest.
    """
    pools = [(count, share) for count, share in (*held, (replicas, cpus)) if share]
    if not cpus or not pools:
        return True
    most, count = max(share for _, share in pools), sum(count for count, _ in pools)
    needed = 0  # replicas that it takes to leave no node a CPU
    for total in (node.get("CPU", 0.0) for node in nodes):
        if total < 1:
            continue
        filling = floor((total - 1) / most) + 1
        if len(pools) == 1 and filling * most > total:
            return True
        needed += filling
    return count < needed
