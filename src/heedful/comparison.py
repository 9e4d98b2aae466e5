"""Several methods on one prompt, in one batch: their answers, what they cost, and what the raw model thinks of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from heedful.constraints import constraint
from heedful.errors import OptionError
from heedful.generate import LM, Job, Result, load
from heedful.methods import parse_method
from heedful.prompt import Instructions, Messages
from heedful.recipe import Method
from heedful.scoring import score

DEFAULT_METHODS = ("none", "static", "spotlight", "instaboost", "directer")


@dataclass(frozen=True)
class Compared:
    """One method's answer. `tokens_per_second` while sharing the batch; the rest under the raw model's eyes.

    `changed`: tokens that differ from the raw model's argmax at that place. `checks`: whether each constraint holds.
    """

    name: str
    result: Result
    tokens_per_second: float
    changed: int
    rejected: int
    perplexity: float
    checks: dict[str, bool]

    def to_dict(self) -> dict[str, Any]:
        """The row as JSON values."""
        return {
            "name": self.name,
            "tokens_per_second": self.tokens_per_second,
            "changed": self.changed,
            "rejected": self.rejected,
            "perplexity": self.perplexity,
            "checks": self.checks,
            "result": self.result.to_dict(),
        }


def compare(
    prompt: Messages,
    methods: Sequence[str] | Mapping[str, Method | None] = DEFAULT_METHODS,
    *,
    instructions: Instructions = None,
    checks: Sequence[str] = (),
    max_new_tokens: int | None = None,
    lm: LM | None = None,
) -> list[Compared]:
    """Answers `prompt` by each of `methods` at once: names as the command line takes them, or `{label: method}`.

    `checks` are constraints such as "no_comma" (see `heedful.constraints`). `lm` None loads the default model. Raises
    a `HeedfulError` for anything that cannot be done, before the first token.
    """
    named = methods if isinstance(methods, Mapping) else {name: parse_method(name) for name in methods}
    if not named:
        raise OptionError("name at least one method to compare")
    constraints = [constraint(spec) for spec in checks]
    lm = lm or load()
    instructions = lm.found(prompt, instructions)
    jobs = [Job(prompt, instructions, method, max_new_tokens) for method in named.values()]
    results = lm.generate_batch(jobs, num_slots=len(jobs))
    prompt_ids = lm.encode(prompt, instructions).token_ids
    rows = []
    for name, result in zip(named, results, strict=True):
        raw = score(lm.engine, prompt_ids, result.token_ids)
        pairs = zip(result.token_ids, raw.likeliest, strict=True)
        stats = result.stats
        rows.append(
            Compared(
                name=name,
                result=result,
                tokens_per_second=stats.generated_tokens / stats.seconds,
                changed=sum(token != top for token, top in pairs),
                rejected=stats.rejected,
                perplexity=raw.perplexity,
                checks={c.name: c.holds(result.text) for c in constraints},
            )
        )
    return rows
