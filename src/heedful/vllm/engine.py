"""vLLM behind the server's engine protocol: what `heedful serve --engine vllm` runs.

vLLM's engine lives in this process and is stepped by the engine's thread, so that a request's decisions can be told
with its tokens. Several GPUs or machines are for vLLM's own server, see docs/vllm.md.
"""

from __future__ import annotations

import math
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heedful.answer import Answer, Emitted, FinishReason, Request
from heedful.batch import reason
from heedful.directer import Directer
from heedful.errors import HeedfulError, ModelError, OptionError
from heedful.models import resolve
from heedful.prompt import EncodedPrompt, Instructions, Messages, encode
from heedful.recipe import Method, ModelShape, recipe_of
from heedful.serve.launch import Loaded
from heedful.serve.protocol import EngineError, Settings
from heedful.serve.worker import Limits, ThreadedEngine
from heedful.spans import TokenSpan
from heedful.trace import Step
from heedful.vllm.arguments import NAME, TRAIL, read, spelled
from heedful.vllm.decide import Note, Trail
from heedful.vllm.host import Host, host_of
from heedful.vllm.prompts import is_stored


@dataclass(frozen=True)
class VllmText:
    """A tokenizer and what is known of its model; see `heedful.serve.protocol.Text`."""

    tokenizer: Any
    shape: ModelShape

    def encode(self, prompt: Messages, instructions: Instructions = None, *, raw: bool = False) -> EncodedPrompt:
        """As `LM.encode`."""
        return encode(self.tokenizer, prompt, instructions, raw=raw)


@dataclass(frozen=True)
class VllmRequest(Request):
    """A request with what vLLM is told of its steering: None for plain decoding. `is_stored`: its keys stay steered."""

    asked: Mapping[str, Any] | None = None
    is_stored: bool = False


class VllmDecoder:
    """vLLM's engine, stepped like the core's decoder; see `heedful.serve.worker.Decoding`."""

    def __init__(self, engine: Any, host: Host, max_running: int) -> None:
        self._engine, self._host, self._max_running = engine, host, max_running
        self._running: dict[str, Answer] = {}
        self._refused: list[Emitted] = []
        self._count = 0

    def has_room(self, request: Request) -> bool:
        """Whether one more may run."""
        return len(self._running) < self._max_running

    def submit(self, request: Request) -> Answer:
        """Hands it to vLLM; what vLLM will not have is told by the next step."""
        answer = Answer(request, token_ids=list(request.token_ids))
        answer.stats.prompt_tokens = len(request.token_ids)
        self._count += 1
        name = f"heedful-{self._count}"
        from vllm.exceptions import VLLMClientError

        try:
            self._engine.add_request(name, self._prompt(request), self._params(request, name))
        except (ValueError, VLLMClientError) as error:
            self._forget(name)
            self._refused.append(Emitted(answer, None, "error", error=OptionError(f"vLLM refuses it: {error}")))
            return answer
        self._running[name] = answer
        return answer

    def finish(self, sequence: Answer) -> None:
        """Ends it in vLLM; does nothing if it has ended."""
        for name in [name for name, answer in self._running.items() if answer is sequence]:
            self._engine.abort_request([name])
            self._forget(name)

    def reset(self) -> None:
        """Ends all of them in vLLM."""
        for answer in list(self._running.values()):
            self.finish(answer)
        self._refused.clear()

    def step(self) -> Sequence[Emitted]:
        """One step of vLLM's, and the tokens that came of it."""
        emitted, self._refused = self._refused, []
        if self._running:
            for output in self._engine.step():
                emitted += self._told(output)
        return emitted

    def _forget(self, name: str) -> None:
        self._running.pop(name, None)
        self._host.trails.pop(name, None)

    def _prompt(self, request: Request) -> dict[str, Any]:
        """Keys that stay steered may be read by nobody else: such a prompt has a salt of its own."""
        is_stored = isinstance(request, VllmRequest) and request.is_stored
        salt = {"cache_salt": secrets.token_hex(16)} if is_stored else {}
        return {"prompt_token_ids": list(request.token_ids), **salt}

    def _params(self, request: Request, name: str) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        asked = request.asked if isinstance(request, VllmRequest) else None
        if asked is not None:
            self._host.trails[name] = Trail()
        sampling: Any = request.sampling
        return SamplingParams(
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            seed=sampling.seed,
            max_tokens=request.max_new_tokens,
            logprobs=max(1, request.num_top),
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
            extra_args=None if asked is None else {NAME: dict(asked), TRAIL: name},
        )

    def _told(self, output: Any) -> list[Emitted]:
        """The tokens that vLLM tells of one request."""
        answer, told = self._running.get(output.request_id), output.outputs[0]
        if answer is None:
            return []
        trail = self._host.trails.get(output.request_id, Trail())
        answer.stats.forward_passes += 1
        answer.num_reused = output.num_cached_tokens or 0
        emitted = []
        for at, (token, log_probs) in enumerate(zip(told.token_ids, told.logprobs or (), strict=True)):
            is_last = output.finished and at == len(told.token_ids) - 1
            step = _step(token, log_probs, trail.at(answer.num_generated, log_probs[token].rank))
            answer.token_ids.append(token)
            answer.stats.count(step)
            top = sorted(((other, one.logprob) for other, one in log_probs.items()), key=lambda pair: -pair[1])
            finish = _finish_reason(told) if is_last else None
            emitted.append(Emitted(answer, step, finish, tuple(top[: answer.request.num_top])))
        if output.finished:
            self._forget(output.request_id)
            if trail.refused or not told.token_ids or told.finish_reason not in ("stop", "length"):
                error = EngineError(trail.refused or f"vLLM ended the request ({told.finish_reason})")
                emitted = [*emitted[:-1], Emitted(answer, None, "error", error=error)]
        return emitted


def _step(token: int, log_probs: Mapping[int, Any], note: Note) -> Step:
    """What is known of a token: vLLM tells log-probabilities before anything is done to them, the plug-in the rest."""
    p_raw, p_top = (math.exp(one) for one in (log_probs[token].logprob, max(o.logprob for o in log_probs.values())))
    return Step(token, "", note.decision, note.layers, note.trials, p_raw, p_top, note.changed)


def _finish_reason(told: Any) -> FinishReason:
    return "length" if told.finish_reason == "length" else "eos"


class VllmEngine(ThreadedEngine):
    """vLLM in a thread of its own; see `heedful.serve.protocol.Engine`."""

    def __init__(self, engine: Any, host: Host, shape: ModelShape, limits: Limits) -> None:
        """Raises `ModelError` where a made-up request cannot be steered: better here than at the first real one."""
        self._shape = shape
        decoder = VllmDecoder(engine, host, limits.max_running)
        super().__init__(decoder, int(engine.vllm_config.model_config.max_model_len), limits)
        decoder.submit(self._request((1, 1, 1), TokenSpan((1,), (1.0,)), Settings(1, Directer())))
        emitted: list[Emitted] = []
        while not emitted:
            emitted += decoder.step()
        if emitted[0].error is not None:
            raise ModelError(f"vLLM cannot steer this model: {emitted[0].error}")

    def check(self, method: Method) -> None:
        """Raises `OptionError` for a method that vLLM's kernels cannot carry out, or that does not fit the model."""
        self._asked(method, TokenSpan((0,), (1.0,)), 1)

    def _asked(self, method: Method, span: TokenSpan, num_tokens: int) -> Mapping[str, Any]:
        asked = spelled(span, num_tokens, method)
        read({NAME: asked})
        method.recipe().check(self._shape)
        return {**asked, "salted": True} if is_stored(method) else asked

    def _request(self, tokens: tuple[int, ...], span: TokenSpan, settings: Settings) -> Request:
        return VllmRequest(
            tokens,
            settings.max_new_tokens,
            recipe_of(settings.method),
            sampling=settings.sampling,
            num_top=settings.num_top,
            asked=None if settings.method is None else self._asked(settings.method, span, len(tokens)),
            is_stored=settings.method is not None and is_stored(settings.method),
        )


def loaded(
    model: str | None, dtype: str, limits: Limits, max_context: int | None, options: Mapping[str, Any]
) -> Loaded:
    """A model in vLLM, ready to be served. `options`: further ones of vLLM's `EngineArgs`.

    Sets `VLLM_ENABLE_V1_MULTIPROCESSING` for this process, without which vLLM on a CPU starts processes of its own.
    Raises `OptionError` where vLLM is missing or an option is unknown, `ModelError` where vLLM does not start.
    """
    try:
        import vllm  # noqa: F401
    except ImportError as error:
        raise OptionError(f"--engine vllm needs vLLM beside Heedful, see docs/vllm.md ({error})") from error
    ours = {
        "model": str(resolve(model)),
        "dtype": dtype,
        "max_num_seqs": limits.max_running,
        "max_model_len": max_context,
        "max_num_batched_tokens": limits.prefill_tokens,
        "enable_prefix_caching": limits.reuses_prefixes,
        "disable_log_stats": True,
        "distributed_executor_backend": "uni",  # in this process: the decisions are noted here
    }
    for name in (*ours, "logprobs_mode"):
        if name in options:
            raise OptionError(
                f"--engine-option: {name} is set by Heedful; `heedful serve --help` names its own options"
            )
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    engine, config = _started({**ours, **options})
    host = host_of(config)
    if host is None or host.refused:
        raise ModelError(f"vLLM cannot steer this model: {'not loaded by Heedful' if host is None else host.refused}")
    text = config.model_config.hf_text_config
    shape = ModelShape(Path(str(ours["model"])).name, int(text.num_hidden_layers), int(text.num_attention_heads))
    room = f"{limits.max_running} answers at a time, {config.model_config.max_model_len} tokens each, vLLM's cache"
    place = f"{str(config.model_config.dtype).removeprefix('torch.')}, vLLM"
    return Loaded(VllmText(engine.get_tokenizer(), shape), VllmEngine(engine, host, shape, limits), place, room)


def _started(options: Mapping[str, Any]) -> tuple[Any, Any]:
    """vLLM's engine in this process, and its configuration."""
    from vllm import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine
    from vllm.v1.executor import Executor

    try:
        arguments = EngineArgs(**options)
    except TypeError as error:
        raise OptionError(f"--engine-option: vLLM knows no such option ({error})") from error
    except ValueError as error:
        raise OptionError(f"--engine-option: {reason(error)}") from error
    if arguments.tensor_parallel_size * arguments.pipeline_parallel_size * arguments.data_parallel_size > 1:
        raise OptionError("--engine vllm runs in one process; for several GPUs take vLLM's own server: docs/vllm.md")
    try:
        config = arguments.create_engine_config()
        return LLMEngine(config, Executor.get_class(config), log_stats=False, multiprocess_mode=False), config
    except HeedfulError:
        raise
    except Exception as error:  # vLLM raises anything, and says more above
        raise ModelError(f"vLLM does not start with {options['model']}: {reason(error)}") from error
