"""vLLM with the plug-in against vLLM without, and steered against plain, interleaved: `python -m heedful.bench.vllm`.

Two vLLMs run in processes of their own, one with `HEEDFUL_VLLM=off`; only one works at a time, and all figures are
ratios of the same rounds, of wall-clock and of processor time: on a machine that is shared, only the latter tells. The
gate's threshold is set so that it opens at the asked share of the steps.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

from heedful.bench.overhead import INSTRUCTION, TASKS, machine, prompts
from heedful.directer import Directer
from heedful.errors import OptionError
from heedful.models import default_model_path
from heedful.prompt import Instructions, Messages

MARK = "heedful-bench:"  # before each answer of a worker: vLLM writes to the same stream
COUNTED = ("skipped", "accepted", "rejected")
INSTRUCTIONS = (
    INSTRUCTION,
    "Answer in capital letters only. End with the words: That is all.",
    "Write exactly three paragraphs, separated by ***. Mention the word 'garden' twice.",
    "Use no word of more than eight letters. Give your answer a title in double angular brackets.",
)


class Worker:
    """One vLLM in a process of its own, asked by lines of JSON."""

    def __init__(self, options: argparse.Namespace, plugin: str) -> None:
        command = [sys.executable, "-m", "heedful.bench.vllm", "--worker", json.dumps(vars(options))]
        environment = {**os.environ, "HEEDFUL_VLLM": plugin, "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def ask(self, **what: Any) -> Any:
        """What the worker measured."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(what), file=self._process.stdin, flush=True)
        for line in self._process.stdout:
            if line.startswith(MARK):
                return json.loads(line.removeprefix(MARK))
        raise SystemExit("a vLLM has ended before its time; its messages stand above")

    def end(self) -> None:
        """Ends the process."""
        self._process.communicate()


def work(options: dict[str, Any]) -> None:
    """A worker's side: loads the model, then answers until its input ends."""
    from vllm import LLM

    llm = LLM(
        options["model"],
        dtype=options["dtype"],
        enforce_eager=True,
        max_model_len=1024,
        enable_prefix_caching=False,
        seed=0,
    )
    for line in sys.stdin:
        asked = json.loads(line)
        asked["prompts"] = distinct(options["data"], asked.pop("count"))
        print(MARK + json.dumps(_ratios(llm, asked) if asked["kind"] == "ratios" else _timed(llm, asked)), flush=True)


def distinct(path: str | None, count: int) -> list[tuple[Messages, Instructions]]:
    """The first `count` prompts of a data file, or as many built-in ones: copies would gate in lockstep."""
    found: list[tuple[Messages, Instructions]] = [
        (f"{task}\n\n<heed>{instruction}</heed>", None) for instruction in INSTRUCTIONS for task in TASKS
    ]
    found = found[:count] if path is None else prompts(path, count)
    if len({str(one) for one in found}) < count:
        raise OptionError(f"there are fewer than {count} distinct prompts; name more with --data, or ask for fewer")
    return found


def _requests(
    llm: Any, listed: list[tuple[Messages, Instructions]], tokens: int, threshold: float | None, **more: Any
) -> tuple[list[Any], list[Any]]:
    """Prompts and parameters; `threshold` None: plain."""
    from heedful.vllm import sampling_params, tokens_prompt

    tokenizer = llm.get_tokenizer()
    method = None if threshold is None else Directer(threshold=threshold)
    options = {"temperature": 0.0, "max_tokens": tokens, "ignore_eos": True, **more}
    return (
        [tokens_prompt(tokenizer, *one) for one in listed],
        [sampling_params(tokenizer, one[0], instructions=one[1], method=method, **options) for one in listed],
    )


def _timed(llm: Any, asked: dict[str, Any]) -> dict[str, float]:
    """Seconds of one batch, and the share of its steps at which the gate was open."""
    requests = _requests(llm, asked["prompts"], asked["tokens"], asked["threshold"])
    before = _counted()
    begun, begun_cpu = time.perf_counter(), time.process_time()
    llm.generate(*requests, use_tqdm=False)
    seconds, cpu_seconds = time.perf_counter() - begun, time.process_time() - begun_cpu
    counts = [after - earlier for after, earlier in zip(_counted(), before, strict=True)]
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "open": 1 - counts[0] / sum(counts) if sum(counts) else 0.0}


def _counted() -> list[float]:
    from prometheus_client import REGISTRY

    return [REGISTRY.get_sample_value("heedful_tokens_total", {"decision": name}) or 0.0 for name in COUNTED]


def _ratios(llm: Any, asked: dict[str, Any]) -> list[float]:
    """`p_second / p_top` of every step of a plain batch: the gate opens where it is at least β."""
    from math import exp

    outputs = llm.generate(*_requests(llm, asked["prompts"], asked["tokens"], None, logprobs=2), use_tqdm=False)
    found = []
    for output in outputs:
        for step in output.outputs[0].logprobs:
            top, second = sorted((entry.logprob for entry in step.values()), reverse=True)[:2]
            found.append(exp(second - top))
    return found


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All rounds, and what they come to."""
    stock, plugin = Worker(options, "off"), Worker(options, "on")
    try:
        ratios = sorted(plugin.ask(kind="ratios", count=max(options.counts), tokens=options.tokens))
        threshold = ratios[int(len(ratios) * (1 - options.rate))]
        figures: dict[str, Any] = {
            "machine": machine(options.threads, options.dtype, "cpu"),
            "data": options.data,
            "prompts": "distinct",
            "threshold": threshold,
        }
        for count in options.counts:
            rounds: list[list[dict[str, float]]] = []
            for number in range(options.rounds + 1):  # the first is for warming up
                same = {"kind": "timed", "count": count, "tokens": options.tokens}
                asked = ((stock, None), (plugin, None), (plugin, threshold))
                found = [worker.ask(**same, threshold=beta) for worker, beta in asked]
                rounds += [found] if number else []
            figures[f"{count} requests"] = summary(rounds)
        return figures
    finally:
        stock.end()
        plugin.end()


def summary(rounds: list[list[dict[str, float]]]) -> dict[str, Any]:
    """Ratios of speed, each the median of the rounds', from what stock, unsteered and steered batches took."""

    def speed(fast: int, slow: int, clock: str) -> float:
        return round(statistics.median(one[fast][clock] / one[slow][clock] for one in rounds), 3)

    return {
        clock: {
            "plug-in installed ÷ stock": speed(0, 1, clock),
            "steered ÷ plain": speed(1, 2, clock),
            "rounds": [[round(each[clock], 3) for each in one] for one in rounds],
        }
        for clock in ("seconds", "cpu_seconds")
    } | {"gate open": round(statistics.median(one[2]["open"] for one in rounds), 3)}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="What the vLLM plug-in costs")
    parser.add_argument("--model", help="a folder or hub id; default: the built-in model")
    parser.add_argument("--data", help="a file of prompts that mark instructions; default: built-in ones")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--rate", type=float, default=0.12, help="share of steps at which the gate is to open")
    parser.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", "1")))
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(json.loads(options.worker))
        return
    options.model = options.model or str(default_model_path(progress=False))
    print(json.dumps(measure(options), indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
