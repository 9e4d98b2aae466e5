"""`LM`: a model and its tokenizer as text in, text out. `generate` folds `stream`; `stream` folds the decode loop."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch

from heedful.answer import Answer, Emitted, FinishReason, Request, capacity_for, slots_for
from heedful.checks import whole
from heedful.decode import Decoder
from heedful.detection import Detection
from heedful.directer import Directer
from heedful.engine import Engine
from heedful.errors import ContextLengthError, HeedfulError, ModelError, NumericError, OptionError, SpanError
from heedful.extraction import copied_out
from heedful.models import resolve
from heedful.prompt import EncodedPrompt, Instructions, Messages, encode, is_auto, way_of
from heedful.recipe import Method, ModelShape, recipe_of
from heedful.sampling import Sampling
from heedful.spans import TokenSpan
from heedful.text import TextStream
from heedful.trace import Stats, Step, Trace

if TYPE_CHECKING:
    from heedful.chat import Chat

DEFAULT_NEW_TOKENS = 256
DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Job:
    """One prompt and how to answer it.

    `method` None is plain decoding; with a method, something must be marked, or found: with instructions="auto", a
    prompt without any is decoded plainly and the result says so. `max_new_tokens` None: 256, or what the context
    leaves. `stop`: strings that end the answer and are not part of it. `raw`: no chat template. `tags=False`: `<heed>`
    in the prompt is text like any other.
    """

    prompt: Messages
    instructions: Instructions = None
    method: Method | None = field(default_factory=Directer)
    max_new_tokens: int | None = None
    sampling: Sampling = Sampling()
    stop: Sequence[str] = ()
    raw: bool = False
    tags: bool = True


@dataclass(frozen=True)
class Result:
    """An answer: its text, its tokens (an EOS included), why it ended, and what was decided on the way.

    `detection`: which instructions were found, where they were not given; its `note` says if nothing was steered.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    stats: Stats
    trace: Trace
    detection: Detection | None = None

    def to_dict(self) -> dict[str, Any]:
        """The answer as JSON values: what `heedful generate --json` prints."""
        stats = asdict(self.stats)
        return {
            "text": self.text,
            "token_ids": list(self.token_ids),
            "finish_reason": self.finish_reason,
            "prompt_tokens": stats.pop("prompt_tokens"),
            "method": self.trace.method,
            "stats": stats,
            "steps": [asdict(step) for step in self.trace.steps],
            **({} if self.detection is None else {"detection": self.detection.to_dict()}),
        }


@dataclass(frozen=True)
class Event:
    """One decoded token of a stream. `text`: what it adds to the answer, often empty. `result`: with the last event."""

    index: int
    text: str
    step: Step
    result: Result | None = None


class LM:
    """A transformers model that heeds. Raises `UnsupportedModelError` where its attention cannot be steered."""

    def __init__(self, model: Any, tokenizer: Any, *, prepare: bool | None = None) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.engine = Engine(model, prepare=prepare)

    @property
    def shape(self) -> ModelShape:
        """The model's name, layers and heads, as methods ask for them."""
        return self.engine.shape

    def generate(
        self,
        prompt: Messages,
        *,
        instructions: Instructions = None,
        method: Method | None = Directer(),  # noqa: B008 (frozen)
        max_new_tokens: int | None = None,
        sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
        stop: Sequence[str] = (),
    ) -> Result:
        """Answers `prompt`; see `Job` for the options. Raises a `HeedfulError` for anything that cannot be done."""
        return self.generate_batch([Job(prompt, instructions, method, max_new_tokens, sampling, stop)])[0]

    def stream(
        self,
        prompt: Messages,
        *,
        instructions: Instructions = None,
        method: Method | None = Directer(),  # noqa: B008 (frozen)
        max_new_tokens: int | None = None,
        sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
        stop: Sequence[str] = (),
    ) -> Iterator[Event]:
        """The answer token by token; what is wrong with the prompt is raised here, not at the first event."""
        return self.stream_batch([Job(prompt, instructions, method, max_new_tokens, sampling, stop)])

    def generate_batch(self, jobs: Sequence[Job | Messages], *, num_slots: int = 16) -> list[Result]:
        """Answers all `jobs` (or prompts), at most `num_slots` at a time; each equals its answer alone."""
        results: dict[int, Result] = {}
        for event in self.stream_batch(jobs, num_slots=num_slots):
            if event.result is not None:
                results[event.index] = event.result
        return [results[index] for index in range(len(jobs))]

    def results(
        self,
        jobs: Sequence[Job],
        *,
        num_slots: int = 16,
        watch: Callable[[Iterator[Event]], Iterator[Event]] = lambda events: events,
    ) -> Iterator[tuple[int, Result | NumericError]]:
        """Each job's index and result as it comes, or the error for which it has none; such a one ends no other.

        `watch` is handed the events on their way.
        """
        waiting = dict(enumerate(jobs))
        while waiting:
            order = list(waiting)
            try:
                for event in watch(self.stream_batch([waiting[at] for at in order], num_slots=num_slots)):
                    if event.result is not None:
                        del waiting[order[event.index]]
                        yield order[event.index], event.result
            except NumericError as error:  # those that ran beside it are begun anew
                if error.index is None:
                    raise
                del waiting[order[error.index]]
                yield order[error.index], error

    def stream_batch(self, jobs: Sequence[Job | Messages], *, num_slots: int = 16) -> Iterator[Event]:
        """Events of all `jobs` as they come; `Event.index` tells whose."""
        whole("num_slots", num_slots, low=1)
        listed = [job if isinstance(job, Job) else Job(job) for job in jobs]
        answers = [Answering(self, index, job) for index, job in enumerate(listed)]
        return self._run(answers, num_slots)

    def encode(
        self, prompt: Messages, instructions: Instructions = None, *, raw: bool = False, tags: bool = True
    ) -> EncodedPrompt:
        """The prompt as the model reads it, and which tokens are marked."""
        return encode(self.tokenizer, prompt, self.found(prompt, instructions, tags=tags), raw=raw, tags=tags)

    def found(self, prompt: Messages, instructions: Instructions, *, tags: bool = True) -> Instructions:
        """`instructions`, or what the model copies out of the prompt if they are "auto:model": several forwards."""
        way = way_of(instructions)
        if way is None or not way.by_model:
            return instructions
        return copied_out(self.engine, self.tokenizer, prompt, self.eos_ids(), tags=tags, only_user=way.only_user)

    def request(self, job: Job) -> Request:
        """What the decoder is asked for a job. Raises the `HeedfulError` that generating it would."""
        return Answering(self, 0, job).request

    def request_for(
        self,
        token_ids: tuple[int, ...],
        span: TokenSpan,
        *,
        method: Method | None,
        max_new_tokens: int | None = None,
        sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
    ) -> Request:
        """What the decoder is asked for tokens of which `span` is to be heeded. Raises what `request` does."""
        recipe = recipe_of(method)
        steered = TokenSpan()
        if recipe is not None:
            recipe.check(self.engine.shape)
            steered = span.moved(*recipe.span(span.positions, span.weights, len(token_ids)))
        return Request(
            token_ids=token_ids,
            max_new_tokens=room(len(token_ids), max_new_tokens, self.engine.context_length),
            recipe=recipe,
            positions=steered.positions,
            weights=steered.weights,
            rank_at=steered.rank_at,
            sampling=sampling,
            eos_ids=self.eos_ids(),
        )

    def _run(self, answers: list[Answering], num_slots: int) -> Iterator[Event]:
        if not answers:
            return
        capacity = max(capacity_for(answer.request, self.engine.num_layers) for answer in answers)
        slots = slots_for([answer.request for answer in answers], num_slots)
        decoder = Decoder(self.engine, slots, capacity, max_running=num_slots)
        yield from events(decoder, answers)

    def chat(self, *, system: str | None = None, method: Method | None = Directer(), **options: Any) -> Chat:  # noqa: B008
        """A conversation that keeps what it has read; see `Chat` for the options."""
        from heedful.chat import Chat

        return Chat(self, system=system, method=method, **options)

    def eos_ids(self) -> frozenset[int]:
        """Every EOS id of the model's generation config, or of its config where that names none."""
        for config in (getattr(self.model, "generation_config", None), self.engine.config):
            ids = getattr(config, "eos_token_id", None)
            if ids is not None:
                return frozenset([ids] if isinstance(ids, int) else ids)
        return frozenset()


class Answering:
    """One job on its way to a result: checks it, then turns emitted tokens into events."""

    def __init__(self, lm: LM, index: int, job: Job) -> None:
        self.index, self.job = index, job
        self.result: Result | None = None
        self.answer: Answer | None = None
        """What the decoder makes of it, once it is submitted."""
        is_idle = job.method is None and is_auto(job.instructions)
        self.encoded = lm.encode(job.prompt, None if is_idle else job.instructions, raw=job.raw, tags=job.tags)
        self.detection = self.encoded.detection
        if job.method is not None and not self.encoded.span and self.detection is not None:
            self.job = job = replace(job, method=None)
            note = "; ".join(filter(None, (self.detection.note, "decoded plainly")))
            self.detection = replace(self.detection, note=note)
        if job.method is not None and not self.encoded.span:
            raise SpanError(
                "nothing in the prompt is marked to be heeded: wrap it in <heed>…</heed>, name it in instructions, "
                "or choose no method"
            )
        if any(not isinstance(stop, str) or not stop for stop in job.stop) or isinstance(job.stop, str):
            raise OptionError(f"stop must be a list of non-empty strings; got {job.stop!r}")
        self.request = lm.request_for(
            self.encoded.token_ids,
            self.encoded.span,
            method=job.method,
            max_new_tokens=job.max_new_tokens,
            sampling=job.sampling,
        )
        self._tokenizer = lm.tokenizer
        self._text = TextStream(lm.tokenizer, job.stop)
        self._steps: list[Step] = []

    def take(self, emitted: Emitted, decoder: Decoder) -> Event:
        """The event of one emitted token; ends the answer where a stop string is complete."""
        text = self._text.push(emitted.step.token_id)
        step = replace(emitted.step, text=self._tokenizer.decode([emitted.step.token_id]))
        self._steps.append(step)
        reason = emitted.finish_reason
        if self._text.is_stopped:
            reason = "stop"
            decoder.finish(emitted.answer)
        if reason is None:
            return Event(self.index, text, step)
        text += self._text.close()
        method = self.job.method.describe() if self.job.method is not None else {"name": "none"}
        trace = Trace(tuple(self._steps), emitted.answer.ranking, method)
        ids = tuple(step.token_id for step in self._steps)
        stats = emitted.answer.stats.over(self._steps)  # less what was settled behind a stop string
        self.result = Result(self._text.text, ids, reason, stats, trace, self.detection)
        return Event(self.index, text, step, self.result)


def events(decoder: Decoder, answers: Sequence[Answering]) -> Generator[Event, None, None]:
    """Submits all `answers` and runs `decoder` until it is idle; where it is left before, ends what still runs."""
    waiting: dict[Answer, Answering] = {}
    try:
        for answer in answers:
            answer.answer = decoder.submit(answer.request)
            waiting[answer.answer] = answer
        while not decoder.is_idle:
            for emitted in decoder.step():
                answer = waiting[emitted.answer]
                if emitted.error is not None:
                    error = cast(NumericError, emitted.error)  # the core's decoder has no other
                    error.index = answer.index
                    raise error
                if answer.result is None:
                    yield answer.take(emitted, decoder)
    finally:
        for submitted in waiting:
            decoder.finish(submitted)


def room(prompt_tokens: int, wanted: int | None, context: int | None) -> int:
    """How many tokens to generate. Raises `ContextLengthError` where prompt or answer do not fit into `context`."""
    if wanted is not None:
        whole("max_new_tokens", wanted, low=1)
    if context is not None and prompt_tokens >= context:
        raise ContextLengthError(f"the prompt has {prompt_tokens} tokens, but the model's context is {context}")
    left = DEFAULT_NEW_TOKENS if context is None else context - prompt_tokens
    if wanted is not None and context is not None and wanted > left:
        raise ContextLengthError(
            f"prompt and answer need {prompt_tokens} + {wanted} = {prompt_tokens + wanted} tokens, "
            f"but the model's context is {context}; ask for at most {left} new tokens"
        )
    return min(DEFAULT_NEW_TOKENS, left) if wanted is None else wanted


def load(
    model: str | None = None,
    *,
    device: str = "cpu",
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    prepare: bool | None = None,
) -> LM:
    """The built-in default model, or that of a hub id or folder, ready to generate.

    `dtype` "auto" is the checkpoint's, or float32 on a CPU without bfloat16 instructions. `prepare`: keep a packed
    copy of the weights for a faster CPU; None decides by memory. Raises `ModelError` where the model cannot be had.
    """
    if dtype not in DTYPES:
        raise OptionError(f"unknown dtype {dtype!r}; known: {', '.join(DTYPES)}")
    try:
        place = torch.device(device)
    except RuntimeError:
        raise OptionError(f"unknown device {device!r}; for example cpu, cuda or cuda:1") from None
    if place.type == "cuda" and not torch.cuda.is_available():
        raise OptionError(f"device {device!r} was asked for, but no CUDA device is there")
    source = resolve(model)
    loaded, tokenizer = _from_pretrained(source, dtype if dtype != "auto" else _auto_dtype(place))
    return LM(loaded.to(place).eval(), tokenizer, prepare=prepare)


def _auto_dtype(device: torch.device) -> str:
    has_bfloat16 = device.type != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return "auto" if has_bfloat16 else "float32"


def _from_pretrained(source: str | Path, dtype: str) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, use_safetensors=True)
        return model, AutoTokenizer.from_pretrained(source)
    except HeedfulError:
        raise
    except (OSError, ValueError, RuntimeError, ImportError, KeyError) as error:
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ModelError(f"cannot load the model {str(source)!r}: {first}") from error
    finally:
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def wrap(model: Any, tokenizer: Any, *, prepare: bool | None = None) -> LM:
    """An `LM` around a transformers model that is already there; the model is left as it is."""
    return LM(model, tokenizer, prepare=prepare)
