"""What both harnesses need: their arguments read into a model and a method, and a request turned into a job."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from heedful.checks import choice
from heedful.errors import OptionError
from heedful.generate import LM, Job, load
from heedful.methods import parse_method
from heedful.prompt import Instructions, Messages
from heedful.recipe import Method
from heedful.sampling import Sampling

UNMARKED = ("error", "plain")
ARGUMENTS = ("model", "device", "dtype", "method", "instructions", "unmarked")


@dataclass(frozen=True)
class Asking:
    """How every request of a harness is answered.

    `instructions`: a role or exact texts to heed in every prompt, whatever its data marks. `unmarked`: whether a prompt
    in which nothing is marked is an "error", or decoded "plain". Raises `OptionError` for any other word.
    """

    method: Method | None
    instructions: Instructions = None
    unmarked: str = "error"

    def __post_init__(self) -> None:
        choice("unmarked", self.unmarked, UNMARKED)

    def job(self, lm: LM, request: Request) -> Job:
        """The request as a job, with no more new tokens than the context leaves.

        Raises a `HeedfulError`: nothing is marked, what is marked is not there, the prompt does not fit.
        """
        instructions = None if self.method is None else self.instructions or request.marked()
        encoded = lm.encode(request.prompt, instructions, raw=request.raw)
        is_plain = self.unmarked == "plain" and not encoded.span
        job = Job(
            request.prompt,
            instructions,
            None if is_plain else self.method,
            _fitting(request.max_new_tokens, len(encoded.token_ids), lm.engine.context_length),
            request.sampling,
            tuple(request.stop),
            request.raw,
        )
        lm.request(job)
        return job


@dataclass(frozen=True)
class Request:
    """One request of a harness; `marked` looks up what its data marks."""

    prompt: Messages
    marked: Callable[[], Instructions]
    max_new_tokens: int
    sampling: Sampling = Sampling()
    stop: Sequence[str] = ()
    raw: bool = False


def _fitting(wanted: int, prompt_tokens: int, context: int | None) -> int:
    return wanted if context is None else max(1, min(wanted, context - prompt_tokens))


def read_arguments(given: Mapping[str, Any], harness: str, also: Sequence[str] = ()) -> dict[str, Any]:
    """The arguments that are not None. Raises `OptionError` for a name that is none of `ARGUMENTS` or `also`."""
    known = (*ARGUMENTS, *also)
    unknown = [name for name in given if name not in known]
    if unknown:
        raise OptionError(f"heedful in {harness} takes no argument {unknown[0]!r}; it takes {', '.join(known)}")
    return {name: value for name, value in given.items() if value is not None}


def prepared(arguments: Mapping[str, Any]) -> tuple[LM, Asking]:
    """The model and the way of asking that `arguments` describe; what is wrong is raised before the model is loaded."""
    method = arguments.get("method", "directer")
    if isinstance(method, list):  # Inspect's command line splits values at commas
        method = ",".join(map(str, method))
    chosen = {name: arguments[name] for name in ("instructions", "unmarked") if name in arguments}
    asking = Asking(parse_method(str(method)), **chosen)
    return load(**{name: arguments[name] for name in ("model", "device", "dtype") if name in arguments}), asking
