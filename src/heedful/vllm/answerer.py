"""Answers batches by vLLM's offline interface: what `heedful batch --engine vllm` runs."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heedful.batch import Source, reason
from heedful.detection import Detection
from heedful.errors import ContextLengthError, ModelError, OptionError
from heedful.generate import Job
from heedful.models import resolve
from heedful.prompt import EncodedPrompt, encode, is_auto
from heedful.provenance import Facts
from heedful.recipe import ModelShape
from heedful.trace import Stats
from heedful.vllm.arguments import TRAIL
from heedful.vllm.decide import Trail
from heedful.vllm.host import host_of
from heedful.vllm.prompts import extra_args

HEAD = 1 << 16  # bytes of each file of weights that go into their fingerprint


@dataclass(frozen=True)
class Answered:
    """An answer of vLLM's, as far as a batch needs one."""

    text: str
    finish_reason: str
    stats: Stats
    detection: Detection | None


class VllmAnswerer:
    """A model in vLLM, in this process; see `heedful.batch.Answerer`."""

    def __init__(self, source: Source) -> None:
        """Sets `VLLM_ENABLE_V1_MULTIPROCESSING` for this process, without which vLLM on a CPU starts others.

        Raises `OptionError` for a device, which is vLLM's to choose, `ModelError` where vLLM does not start.
        """
        if source.device != "cpu":
            raise OptionError(f"vLLM chooses its device by itself; leave --device {source.device} out")
        from vllm import LLM

        path = str(resolve(source.model))
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # in this process: the decisions are noted here
        try:
            self._llm = LLM(
                path,
                dtype=source.dtype,
                enable_prefix_caching=False,  # static steering stores steered keys, which no other request may read
                distributed_executor_backend="uni",
            )
        except Exception as error:  # vLLM raises anything, and says more above
            raise ModelError(f"vLLM does not start with {path}: {reason(error)}") from error
        self._tokenizer = self._llm.get_tokenizer()
        host = host_of(self._llm.llm_engine.vllm_config)
        self._refused = "vLLM has built its model without Heedful's registration" if host is None else host.refused
        self._trails: dict[str, Any] = {} if host is None else host.trails
        self._count = 0
        config = self._llm.llm_engine.vllm_config.model_config
        self._context_length = int(config.max_model_len)
        text = config.hf_text_config
        shape = ModelShape(Path(path).name, int(text.num_hidden_layers), int(text.num_attention_heads))
        self._facts = Facts(shape, _fingerprint(Path(path)), str(config.dtype), f"{platform.machine()}, vLLM")

    def facts(self) -> Facts:
        """What a run notes of it."""
        return self._facts

    def ready(self, job: Job) -> Job:
        """The job itself. Raises where it cannot be answered; vLLM would end the whole batch for it."""
        encoded = self._encoded(job)
        if len(encoded.token_ids) >= self._context_length:
            raise ContextLengthError(
                f"the prompt has {len(encoded.token_ids)} tokens, but vLLM holds {self._context_length} for this model"
            )
        if self._params(job, encoded).extra_args and self._refused:
            raise ModelError(f"vLLM cannot steer this model: {self._refused}")
        return job

    def results(self, jobs: Sequence[Job], *, num_slots: int) -> Iterator[tuple[int, Any]]:
        """Each job's index and answer as it comes; vLLM chooses by itself how many run at a time."""
        encoded = [self._encoded(job) for job in jobs]
        params = [self._params(*pair) for pair in zip(jobs, encoded, strict=True)]
        prompts = [{"prompt_token_ids": list(one.token_ids)} for one in encoded]
        trails = [self._trail(one) for one in params]
        asked: list[str] = []
        places: dict[str, int] = {}
        try:
            asked = self._llm.enqueue(prompts, params, use_tqdm=False) if jobs else []
            places = {_number(request): at for at, request in enumerate(asked)}
            while places:
                for output in self._llm.llm_engine.step():
                    if output.finished:
                        at = places.pop(_number(output.request_id))
                        yield at, _answered(output, encoded[at], trails[at])
        finally:
            for one in params:
                self._trails.pop((one.extra_args or {}).get(TRAIL, ""), None)
            if places:  # whoever asked has gone: the next batch must not get these
                self._llm.llm_engine.abort_request([each for each in asked if _number(each) in places], internal=True)

    def _trail(self, params: Any) -> Trail:
        """Where the decisions of a request with these parameters will be noted; stays empty for a plain one."""
        trail = Trail()
        if params.extra_args:
            self._count += 1
            name = params.extra_args[TRAIL] = f"heedful-{self._count}"
            self._trails[name] = trail
        return trail

    def _encoded(self, job: Job) -> EncodedPrompt:
        return encode(self._tokenizer, job.prompt, job.instructions, raw=job.raw)

    def _params(self, job: Job, encoded: EncodedPrompt) -> Any:
        from vllm import SamplingParams

        is_idle = job.method is None or (is_auto(job.instructions) and not encoded.span)
        left = self._context_length - len(encoded.token_ids)
        return SamplingParams(
            temperature=job.sampling.temperature,
            top_k=job.sampling.top_k,
            top_p=job.sampling.top_p,
            seed=job.sampling.seed,
            max_tokens=left if job.max_new_tokens is None else min(job.max_new_tokens, left),
            stop=list(job.stop),
            logprobs=0 if is_idle and not job.sampling.is_greedy else None,  # whose rank tells what was changed
            extra_args=None if is_idle else extra_args(encoded, job.method),  # type: ignore[arg-type]
        )


def answerer(source: Source) -> VllmAnswerer:
    """The model of `source` in vLLM. Raises `OptionError` where vLLM is missing, `ModelError` without the model."""
    try:
        import vllm  # noqa: F401
    except ImportError as error:
        raise OptionError(f"--engine vllm needs vLLM beside Heedful, see docs/vllm.md ({error})") from error
    return VllmAnswerer(source)


def _answered(output: Any, encoded: EncodedPrompt, trail: Trail) -> Answered | ModelError:
    """What came of a request: its answer with the counts of its decisions, or why it was not steered."""
    if trail.refused:
        return ModelError(trail.refused)
    answer = output.outputs[0]
    stats = Stats(len(encoded.token_ids))
    for at, token in enumerate(answer.token_ids):
        stats.count(trail.at(at, answer.logprobs[at][token].rank if answer.logprobs else 1))
    return Answered(answer.text, _reason(answer), stats, encoded.detection)


def _fingerprint(path: Path) -> str:
    """Tells two folders of one name apart; a model by its id is told by that."""
    digest = hashlib.sha256(str(path.name).encode())
    for file in sorted(path.glob("*.safetensors")) if path.is_dir() else ():
        with file.open("rb") as opened:
            digest.update(file.name.encode() + opened.read(HEAD))
    return digest.hexdigest()[:12]


def _number(request: str) -> str:
    """A request's own part of its id, to which the engine adds for its own use."""
    return request.partition("-")[0]


def _reason(answer: Any) -> str:
    """Why an answer ended, in the core's words."""
    if answer.finish_reason == "stop":
        return "stop" if isinstance(answer.stop_reason, str) else "eos"
    return str(answer.finish_reason)
