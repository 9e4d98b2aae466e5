"""Load and faults of `heedful serve`: a real server in a process of its own, real HTTP clients, figures at the end.

The server runs in float32, so that an answer can be held against the one that the same request gets alone.
"""

from __future__ import annotations

import asyncio
import os
import platform
import random
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import psutil
import torch

from heedful import __version__, journal
from heedful.bench import malformed
from heedful.bench.overhead import INSTRUCTION, TASKS, Figure, Report, machine
from heedful.checks import finite, whole
from heedful.errors import ModelError, OptionError
from heedful.provenance import header

CHAT = "/v1/chat/completions"
METHODS = ("directer", "none", "static:strength=2", "spotlight", "directer", "context-aware")
START_SECONDS = 180.0


@dataclass(frozen=True)
class Settings:
    """How much load. `seconds`: of the mixed load of `clients`; `leavers` disconnect, `bodies` are malformed."""

    model: str | None = None
    clients: int = 64
    seconds: float = 300.0
    rounds: int = 3
    batch: int = 16
    tokens: int = 64
    leavers: int = 1000
    bodies: int = 10_000
    max_context: int = 2048
    num_threads: int = 2
    dtype: str = "float32"


@dataclass
class Server:
    """A server process and a client of it."""

    process: subprocess.Popen[str]
    http: httpx.AsyncClient
    model: str

    async def ask(self, body: dict[str, Any]) -> httpx.Response:
        """One answer at once."""
        return await self.http.post(CHAT, json={"model": self.model, **body})

    async def tokens(self, body: dict[str, Any]) -> AsyncGenerator[float, None]:
        """The time of each chunk of a stream."""
        whole_body = {"model": self.model, "stream": True, **body}
        async with self.http.stream("POST", CHAT, json=whole_body) as reply:
            reply.raise_for_status()
            async for line in reply.aiter_lines():
                if line.startswith("data: {") and '"content": "' in line and '"role"' not in line:
                    yield time.perf_counter()

    async def busy(self) -> int:
        """Requests that run or wait."""
        health = (await self.http.get("/health")).json()
        return int(health["running"] + health["waiting"])


@dataclass
class Tally:
    """What a run found, by name."""

    speeds: dict[str, list[float]] = field(default_factory=dict)
    figures: dict[str, list[float]] = field(default_factory=dict)

    def speed(self, name: str, value: float) -> None:
        """Adds tokens a second."""
        self.speeds.setdefault(name, []).append(value)

    def figure(self, name: str, value: float) -> None:
        """Adds any other value."""
        self.figures.setdefault(name, []).append(value)


def run(settings: Settings) -> Report:
    """Measures. Raises `OptionError` for settings that make no sense, `ModelError` where the server does not start."""
    for name in ("clients", "rounds", "batch", "tokens", "num_threads"):
        whole(name, getattr(settings, name), low=1)
    finite("seconds", settings.seconds)
    if find_spec("openai") is None:
        raise OptionError("OpenAI's client is tried, too: pip install openai")
    tally = Tally()
    asyncio.run(_measure(settings, tally))
    return Report(
        settings=asdict(settings),
        machine=machine(settings.num_threads, settings.dtype, "cpu"),
        versions={"heedful": __version__, "torch": torch.__version__, "python": platform.python_version()},
        speeds=[Figure.of(name, values) for name, values in tally.speeds.items()],
        figures=[Figure.of(name, values) for name, values in tally.figures.items()],
    )


PHASES: tuple[tuple[str, Callable[[Server, Settings, Tally], Awaitable[None]]], ...]


async def _measure(settings: Settings, tally: Tally) -> None:
    async with started(settings) as server:
        for name, phase in PHASES:
            print(name, file=sys.stderr, flush=True)
            await phase(server, settings, tally)
    print("kill -9 and restart", file=sys.stderr, flush=True)
    await _kill(settings, tally)


async def _kill(settings: Settings, tally: Tally) -> None:
    """A server that is killed while it answers, and another on its port; the clients only ask again until it is up."""
    stopped = asyncio.Event()
    found: Counter[str] = Counter()
    vain: Counter[int] = Counter()

    async def client(server: Server, number: int) -> None:
        while not stopped.is_set():
            try:
                reply = await server.ask(request(number, settings.tokens))
            except httpx.TransportError:
                vain[number] += 1
                await asyncio.sleep(0.2)
            else:
                found["answer" if reply.status_code == 200 else "error"] += 1

    async with started(settings) as first:
        asking = [asyncio.create_task(client(first, number)) for number in range(settings.batch)]
        await asyncio.sleep(2.0)
        port = first.http.base_url.port
        first.process.send_signal(signal.SIGKILL)
        first.process.wait()
        found.clear()
        vain.clear()
        official = asyncio.create_task(_by_the_official_client(first))
        begun = time.perf_counter()
        async with started(settings, port or 0):
            tally.figure("after kill -9: seconds until it answers again", time.perf_counter() - begun)
            while found["answer"] < 2 * settings.batch and not all(task.done() for task in asking):
                await asyncio.sleep(0.1)
            stopped.set()
            await asyncio.gather(*asking)
            tally.figure("after kill -9: answers to OpenAI's own client, by its own retries", await official)
    for name, what in (("answer", "answers"), ("error", "errors")):
        tally.figure(f"after kill -9: {what} to {settings.batch} clients that ask again", found[name])
    attempts = [vain[number] for number in range(settings.batch)]
    for name, value in (("fewest", min(attempts)), ("most", max(attempts))):
        tally.figure(f"after kill -9: attempts in vain of a client, {name}", value)


async def _by_the_official_client(server: Server) -> int:
    """1 where OpenAI's client, asked while the server is down, has its answer by trying again by itself."""
    import openai

    url = str(server.http.base_url).rstrip("/")
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=12) as client:
        try:
            messages: Any = request(0, 8)["messages"]
            await client.chat.completions.create(model=server.model, messages=messages, max_tokens=8)
        except openai.OpenAIError:
            return 0
    return 1


@asynccontextmanager
async def started(settings: Settings, port: int = 0) -> AsyncIterator[Server]:
    """A server of the settings, on a free port if none is named; killed without warning at the end."""
    command = [sys.executable, "-c", "from heedful.cli import main; main()", "serve", "--port", str(port)]
    command += ["--max-batch", str(settings.batch), "--max-queue", str(settings.clients)]
    command += ["--max-context", str(settings.max_context), "--dtype", settings.dtype]
    command += ["--model", settings.model] if settings.model is not None else []
    environment = {**os.environ, "OMP_NUM_THREADS": str(settings.num_threads)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as process:
        try:
            assert process.stdout is not None
            line = await asyncio.wait_for(asyncio.to_thread(process.stdout.readline), START_SECONDS)
            if not line:
                raise ModelError("the server did not start; its own message stands above")
            url = line.split(" at ")[1].split("/v1")[0]
            limits = httpx.Limits(max_connections=None)
            async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as http:
                model = await _ready(http)
                yield Server(process, http, model)
        finally:
            process.send_signal(signal.SIGKILL)


async def _ready(http: httpx.AsyncClient) -> str:
    """The model's name, as soon as the server answers."""
    for _ in range(200):
        try:
            return str((await http.get("/v1/models")).json()["data"][0]["id"])
        except httpx.TransportError:
            await asyncio.sleep(0.05)
    raise ModelError("the server started, but does not answer")


def request(number: int, tokens: int) -> dict[str, Any]:
    """Request `number` of a fixed set: short and long prompts, every method, greedy and drawn."""
    filler = "Here is some background that does not matter. " * (0, 0, 12, 0, 40)[number % 5]
    method = METHODS[number % len(METHODS)]
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": f"{filler}{TASKS[number % len(TASKS)]}\n<heed>{INSTRUCTION}</heed>"}],
        "max_tokens": max(1, tokens // (1, 2, 4)[number % 3]),
        "heedful": {"method": method},
    }
    return body | ({"temperature": 0.8, "seed": number} if number // len(METHODS) % 2 else {})


async def throughput(server: Server, settings: Settings, tally: Tally) -> None:
    """One client against as many as there are slots, round by round; and the time to the first token."""

    async def client(number: int, firsts: list[float]) -> int:
        begun, count = time.perf_counter(), 0
        body = {**request(number, settings.tokens), "max_tokens": settings.tokens, "temperature": 0}
        body["heedful"] = {"method": "directer"}
        async for at in server.tokens(body | {"logprobs": True}):
            count += 1
            if count == 1:
                firsts.append(at - begun)
        return count

    await client(0, [])
    for _ in range(settings.rounds):
        rates = []
        for clients in (1, settings.batch):
            firsts: list[float] = []
            begun = time.perf_counter()
            counts = await asyncio.gather(*(client(number, firsts) for number in range(clients)))
            rates.append(sum(counts) / (time.perf_counter() - begun))
            tally.speed(f"tokens/s, {clients} clients", rates[-1])
            tally.figure(f"seconds to first token, {clients} clients, median", statistics.median(firsts))
            tally.figure(f"seconds to first token, {clients} clients, p95", percentile(firsts, 0.95))
        tally.figure(f"throughput, {settings.batch} clients ÷ 1", rates[1] / rates[0])


async def stall(server: Server, settings: Settings, tally: Tally) -> None:
    """How long a running stream waits for its next token while the longest prompt is read, plain and marked."""
    words = "one two " * (settings.max_context // 3)
    for kind, text in (("plain", words), ("marked", f"{words}\n<heed>{INSTRUCTION}</heed>")):
        quiet, beside = await _pauses(server, {"messages": [{"role": "user", "content": text}], "max_tokens": 1})
        tally.figure("seconds between tokens, alone, longest", max(quiet))
        tally.figure(f"seconds between tokens, beside a long {kind} prompt, longest", max(beside))


async def _pauses(server: Server, long_prompt: dict[str, Any]) -> tuple[list[float], list[float]]:
    """Seconds between a stream's tokens, before `long_prompt` is asked for and while it is read."""
    body = {**request(1, 0), "max_tokens": 400, "logprobs": True}
    reading: asyncio.Task[httpx.Response] | None = None
    times: list[float] = []
    async with aclosing(server.tokens(body)) as stream:
        async for at in stream:
            times.append(at)
            if reading is not None and reading.done():
                break
            if len(times) == 20:
                reading = asyncio.create_task(server.ask(long_prompt))
                begun = at
    assert reading is not None
    assert (await reading).status_code == 200
    return [b - a for a, b in pairwise(times) if b <= begun], [b - a for a, b in pairwise(times) if b > begun]


async def mixed(server: Server, settings: Settings, tally: Tally) -> None:
    """Many clients with requests of every kind, each answer held against the one that it gets alone."""
    kinds = [request(number, settings.tokens) for number in range(min(24, settings.clients))]
    alone = [text_of(await server.ask(kind)) for kind in kinds]
    found: Counter[str] = Counter()
    memory = [resident(server)]
    until = time.monotonic() + settings.seconds

    async def client(seed: int) -> None:
        choose = random.Random(seed)
        while time.monotonic() < until:
            kind = choose.randrange(len(kinds))
            reply = await server.ask(kinds[kind])
            if reply.status_code == 429:
                found["429"] += 1
                await asyncio.sleep(float(reply.headers["retry-after"]))
            elif reply.status_code != 200:
                found["error"] += 1
            else:
                found["answer"] += 1
                found["other text"] += text_of(reply) != alone[kind]

    async def watch() -> None:
        while time.monotonic() < until:
            await asyncio.sleep(min(1.0, settings.seconds / 20))
            memory.append(resident(server))

    await asyncio.gather(watch(), *(client(seed) for seed in range(settings.clients)))
    half = memory[len(memory) // 2 :]
    for name in ("answer", "429", "error", "other text"):
        tally.figure(f"mixed load: {name}s", found[name])
    tally.figure("mixed load: resident memory over the second half, largest ÷ smallest", max(half) / min(half))


async def leave(server: Server, settings: Settings, tally: Tally) -> None:
    """Clients that disconnect at random: while they wait, while the prompt is read, in mid-answer."""
    choose, before = random.Random(0), resident(server)

    async def leaver(number: int) -> None:
        patience = choose.random() * 2
        try:
            body = {**request(number, 200), "stream": bool(number % 2)}
            await asyncio.wait_for(server.ask(body), patience)
        except asyncio.TimeoutError:
            pass

    for first in range(0, settings.leavers, settings.clients):
        await asyncio.gather(*(leaver(n) for n in range(first, min(first + settings.clients, settings.leavers))))
    begun = time.perf_counter()
    while await server.busy():
        await asyncio.sleep(0.01)
    tally.figure(f"seconds until all is free after {settings.leavers} clients left", time.perf_counter() - begun)
    tally.figure("leavers: resident memory after ÷ before", resident(server) / before)


async def malform(server: Server, settings: Settings, tally: Tally) -> None:
    """Requests of every kind that is wrong: each answered, where it happens to be right, or refused in one line."""
    choose, found, faults = random.Random(0), Counter[int](), Counter[str]()

    async def send(count: int) -> None:
        for _ in range(count):
            asked = malformed.body(choose, server.model)
            headers = {"content-type": "application/json"}
            reply = await server.http.post(asked.path, content=asked.data, headers=headers)
            found[reply.status_code // 100] += 1
            faults[malformed.fault(asked, reply)] += 1

    await asyncio.gather(*(send(settings.bodies // 8) for _ in range(8)))
    for kind in (2, 4, 5):
        tally.figure(f"malformed bodies answered {kind}xx", found[kind])
    for what in filter(None, faults):
        print(f"malformed bodies: {what}", file=sys.stderr)
    tally.figure("malformed bodies without one clear message", faults.total() - faults[""])


PHASES = (
    ("throughput", throughput),
    ("stall", stall),
    ("mixed load", mixed),
    ("clients that leave", leave),
    ("malformed bodies", malform),
)


MUST = {
    "mixed load: errors": "0",
    "mixed load: other texts": "0: in float32 each answer is the one that it gets alone",
    "mixed load: resident memory over the second half, largest ÷ smallest": "≤ 1.06 (± 3 %)",
    "throughput": "≥ 3",
    "seconds between tokens, beside": "one chunk of a prompt, and one ranking",
    "seconds until all is free": "≤ 1",
    "leavers: resident memory": "about 1",
    "malformed bodies answered 5xx": "0",
    "malformed bodies without one clear message": "0",
    "after kill -9: errors": "0",
    "after kill -9: answers to OpenAI's own client": "1",
}


def page(report: Report, begun: Mapping[str, Any]) -> str:
    """The figures as a page of Markdown, with all that is needed to read them; `begun`: the head of the run."""
    settings = " ".join(f"{name}={value}" for name, value in report.settings.items() if value is not None)
    versions = ", ".join(f"{name} {value}" for name, value in begun["versions"].items())
    lines = [
        "# The server under load",
        "",
        "Written by `make bench-serve`. The server and its clients share one machine; prompts of 40 to 500 tokens,",
        f"marked; the methods {', '.join(f'`{name}`' for name in METHODS)} in turn, greedy and drawn.",
        "",
        f"- {report.machine}; {begun['started']}; commit {begun['commit']}",
        f"- {settings}",
        f"- {versions}",
        "",
        "| what | must | median | lowest | highest |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    for figure in (*report.speeds, *report.figures):
        must = next((must for name, must in MUST.items() if figure.name.startswith(name)), "")
        values = " | ".join(f"{value:.4g}" for value in (figure.median, figure.low, figure.high))
        lines.append(f"| {figure.name} | {must} | {values} |")
    return "\n".join(lines) + "\n"


def write(report: Report, path: Path) -> None:
    """Puts the `page` there, whole or not at all. Raises `OptionError` where that cannot be done."""
    text = page(report, header(report.settings, report.machine))
    with journal.kept(path):
        journal.write(path, text)


def text_of(reply: httpx.Response) -> str:
    """The answer's text."""
    text: str = reply.json()["choices"][0]["message"]["content"]
    return text


def resident(server: Server) -> int:
    """Bytes of memory that the server has."""
    return int(psutil.Process(server.process.pid).memory_info().rss)


def percentile(values: list[float], share: float) -> float:
    """The smallest value that at least `share` of `values` do not pass."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -int(-share * len(ordered) // 1) - 1))]
