"""The model `heedful` of lm-eval: its prompts in, steered answers out. lm-eval makes the prompts and judges.

A prompt that went through the chat template keeps the messages that it was made of: instructions are marked in those,
and the template is applied by Heedful itself, so that spans stay exact and no BOS is written twice.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lm_eval.api.model import LM as HarnessLM
from tqdm import tqdm

from heedful.checks import whole
from heedful.errors import HeedfulError, OptionError
from heedful.generate import DEFAULT_NEW_TOKENS, LM, Job
from heedful.harness.asking import Asking, Request, prepared, read_arguments
from heedful.harness.marks import marked_by
from heedful.prompt import Instructions
from heedful.sampling import Sampling

NEW_TOKENS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
KNOWN = ("until", *NEW_TOKENS, "do_sample", "temperature", "top_p", "top_k")


class Rendered(str):
    """A prompt after the chat template, which remembers its messages; lm-eval hands it through untouched."""

    messages: Sequence[Mapping[str, str]]


class HeedfulLM(HarnessLM):  # type: ignore[misc]
    """lm-eval's view of an `LM`. Answers are made `batch_size` at a time.

    What a task needs beyond generating (log-likelihoods, cached answers, unknown generation arguments) is an
    `OptionError`: nothing is ignored, and nothing is answered without its method.
    """

    def __init__(self, lm: LM, asking: Asking, batch_size: int = 16) -> None:
        super().__init__()
        self.lm, self.asking = lm, asking
        self.batch_size = whole("batch_size", batch_size, low=1)
        self.failed: list[str] = []
        """Which requests have no answer, and why."""

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> HeedfulLM:
        """From `model=…,method=static:layers=[0,1],…`: commas in brackets belong to the method."""
        arguments: dict[str, Any] = {}
        for pair in re.split(r",(?![^\[{]*[\]}])", arg_string):
            name, _, value = pair.partition("=")
            if name.strip():
                arguments[name.strip()] = value
        return cls.create_from_arg_obj(arguments, additional_config)

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None
    ) -> HeedfulLM:
        """From lm-eval's model arguments; those of its own (`batch_size`, `device`) are `additional_config`."""
        also = ("batch_size", "max_batch_size")
        more = {name: value for name, value in (additional_config or {}).items() if value is not None}
        given = read_arguments({**arg_dict, **more}, "lm-eval", also)
        if "max_batch_size" in given:
            raise OptionError("max_batch_size is for automatic batch sizes; say batch_size")
        size = given.get("batch_size", 16)
        if isinstance(size, str):
            if not size.isdecimal():
                raise OptionError(f"batch_size must be a whole number; got {size!r}")
            size = int(size)
        return cls(*prepared(given), size)

    # Prompts

    @property
    def tokenizer(self) -> Any:
        """The transformers tokenizer; lm-eval notes its special tokens."""
        return self.lm.tokenizer

    @property
    def tokenizer_name(self) -> str:
        """What lm-eval calls prompts by that it caches."""
        return str(self.lm.tokenizer.name_or_path).replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The tokenizer's template, for lm-eval's notes. Raises `OptionError` where one is chosen by name."""
        if isinstance(chat_template, str):
            raise OptionError(f"heedful uses the tokenizer's own chat template; {chat_template!r} cannot be chosen")
        return str(self.lm.tokenizer.chat_template or "") if chat_template else ""

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> Rendered:
        """The messages as the model reads them. A last message of the assistant is one to continue, as in lm-eval."""
        rendered = Rendered(self.lm.encode(chat_history).text)
        rendered.messages = chat_history
        return rendered

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval writes beside the results: the method with all its settings, and what failed."""
        method = self.asking.method
        described = method.describe() if method is not None else {"name": "none"}
        return {"heedful_method": described, "heedful_failed": self.failed}

    # Answers

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """An answer to each request. What is wrong with any of them is raised before the first is answered.

        One whose numbers overflow ends no other: lm-eval knows no failures, so its answer is empty; it is named on
        standard error, and under `heedful_failed` beside the results.
        """
        jobs = [self._job(instance) for instance in requests]
        answers: dict[int, str] = {}
        with tqdm(total=len(jobs), desc="heedful", disable=disable_tqdm) as bar:
            for index, result in self.lm.results(jobs, num_slots=self.batch_size):
                answers[index] = (
                    self._failed(requests[index], result) if isinstance(result, HeedfulError) else result.text
                )
                bar.update()
        return [answers[index] for index in range(len(jobs))]

    def _failed(self, instance: Any, error: HeedfulError) -> str:
        self.failed.append(f"{_named(instance)}: {error}")
        tqdm.write(f"heedful: failed, and counts as an empty answer: {self.failed[-1]}", file=sys.stderr)
        return ""

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Refused: a method steers what is generated, and defines no probability of a given text."""
        raise OptionError(f"{_named(requests[0])} asks for log-likelihoods: {NO_LIKELIHOOD}")

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Refused, as `loglikelihood` is."""
        raise OptionError(f"{_named(requests[0])} asks for log-likelihoods: {NO_LIKELIHOOD}")

    def set_cache_hook(self, cache_hook: Any) -> None:
        """Refused: lm-eval finds a cached answer by its prompt alone."""
        raise OptionError("lm-eval's answer cache knows neither method nor spans: leave out use_cache")

    def _job(self, instance: Any) -> Job:
        try:
            return self.asking.job(self.lm, self._request(instance))
        except HeedfulError as error:
            raise type(error)(f"{_named(instance)}: {error}") from error

    def _request(self, instance: Any) -> Request:
        prompt, options = instance.args[:2]
        messages = getattr(prompt, "messages", None)
        return Request(
            prompt if messages is None else messages,
            lambda: _marked(instance.doc, prompt, messages),
            *generation(options),
            raw=messages is None,
        )


NO_LIKELIHOOD = "steering defines none; take a task that generates, or lm-eval's model hf"


def _named(instance: Any) -> str:
    return f"document {instance.doc_id} of {instance.task_name}"


def _marked(doc: Mapping[str, Any], prompt: str, messages: Sequence[Mapping[str, str]] | None) -> Instructions:
    """What the document marks: in the plain prompt, or in the last message of the user."""
    if messages is None:
        return marked_by(doc, prompt)
    index = max(index for index, message in enumerate(messages) if message["role"] == "user")
    return marked_by(doc, messages[index]["content"], index)


def generation(options: Mapping[str, Any]) -> tuple[int, Sampling, tuple[str, ...]]:
    """New tokens, sampling and stop strings of lm-eval's generation arguments.

    Seeds are drawn from torch's generator, which lm-eval seeds. Raises `OptionError` for an argument that is not known.
    """
    unknown = [name for name in options if name not in KNOWN]
    if unknown:
        raise OptionError(f"heedful has no generation argument {unknown[0]!r}; it has {', '.join(KNOWN)}")
    lengths = [options[name] for name in NEW_TOKENS if options.get(name) is not None]
    if len(lengths) > 1:
        raise OptionError(f"say one of {', '.join(NEW_TOKENS)}; the task and --gen-kwargs say several")
    until = options.get("until") or ()
    stop = (until,) if isinstance(until, str) else tuple(text for text in until if text is not None)
    limit = whole("max_gen_toks", lengths[0], low=1) if lengths else DEFAULT_NEW_TOKENS
    return limit, _sampling(options), stop


def _sampling(options: Mapping[str, Any]) -> Sampling:
    """Greedy unless `do_sample` is true, or left out with a temperature above 0."""
    temperature = options.get("temperature")
    draws = options.get("do_sample")
    if draws is None:
        draws = bool(temperature)
    filters = {name: options[name] for name in ("top_k", "top_p") if options.get(name) is not None}
    if not draws:
        return Sampling(**filters)
    seed = int(torch.randint(2**62, ()))
    return Sampling(1.0 if temperature is None else temperature, seed=seed, **filters)
