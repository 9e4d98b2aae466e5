"""What was decided at each step, and the counts over a whole answer. Plain data: no tensors, no model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, Protocol

from heedful.errors import OptionError

Decision = Literal["skipped", "accepted", "rejected"]


class Decided(Protocol):
    """What is counted of a step; see `Step`."""

    @property
    def decision(self) -> Decision:
        """What became of it."""

    @property
    def changed(self) -> bool:
        """Whether its token is not the raw argmax."""


@dataclass(frozen=True, slots=True)
class Step:
    """One generated token and how it came to be.

    `decision`: "skipped" (the gate could only have taken the raw token, or there is no method), "accepted" (a steered
    trial was taken) or "rejected" (every trial was implausible; the token is raw). `layers`: how many layers the
    accepted trial steered, else 0. `trials`: candidate sets looked at, the accepted one included. `p_raw`: the token's
    probability under the raw distribution. `p_top`: that of the raw argmax. `changed`: the token is not the raw argmax.
    An ungated steerer makes no raw pass: its steps count as "accepted", their probabilities are of the steered
    distribution, and what was changed is not known (False). Contrasts always have the raw distribution at hand.
    """

    token_id: int
    text: str
    decision: Decision
    layers: int
    trials: int
    p_raw: float
    p_top: float
    changed: bool


@dataclass(frozen=True, slots=True)
class Alternative:
    """A token that might have come at a step: its raw and its steered probability, both before temperature.

    `p_raw` None: no raw pass was made (an ungated steerer). `p_steered` None: nothing was steered at that step. Where
    a trial was accepted the steered probability is that trial's, where all were rejected the strongest one's.
    """

    token_id: int
    p_raw: float | None
    p_steered: float | None


@dataclass(slots=True)
class Stats:
    """Counts and times of one answer.

    `forward_passes` counts the model forwards that this answer took part in, the prefill's included; `rows` the rows
    it had in them, prompt tokens not included. The prefill's and the decoding's seconds are those of the forwards;
    ranking rides on the last prefill forward, and `ranking_seconds` is what its arithmetic adds.
    """

    prompt_tokens: int = 0
    generated_tokens: int = 0
    forward_passes: int = 0
    rows: int = 0
    gated: int = 0
    accepted: int = 0
    rejected: int = 0
    changed: int = 0
    prefill_seconds: float = 0.0
    ranking_seconds: float = 0.0
    decode_seconds: float = 0.0

    @property
    def seconds(self) -> float:
        """Seconds of all its forwards, and of ranking."""
        return self.prefill_seconds + self.ranking_seconds + self.decode_seconds

    def over(self, steps: Sequence[Step]) -> Stats:
        """These times and passes with the counts of `steps` alone, where more were settled than are shown."""
        counted = replace(self, generated_tokens=0, gated=0, accepted=0, rejected=0, changed=0)
        for step in steps:
            counted.count(step)
        return counted

    def count(self, step: Decided) -> None:
        """Adds one step."""
        self.generated_tokens += 1
        self.gated += step.decision != "skipped"
        self.accepted += step.decision == "accepted"
        self.rejected += step.decision == "rejected"
        self.changed += step.changed


@dataclass(frozen=True, slots=True)
class Trace:
    """All steps of one answer, and the layers ranked by sensitivity (empty where nothing was ranked)."""

    steps: tuple[Step, ...] = ()
    ranking: tuple[int, ...] = ()
    method: dict[str, Any] = field(default_factory=dict)

    def to_json(self, indent: int | None = None) -> str:
        """The trace as one JSON object; `from_json` gives it back unchanged."""
        return json.dumps(asdict(self), ensure_ascii=False, indent=indent)

    @classmethod
    def from_json(cls, text: str) -> Trace:
        """Reads what `to_json` wrote. Raises `OptionError` where the text is no trace."""
        try:
            data = json.loads(text)
            steps = tuple(Step(**{f.name: row[f.name] for f in fields(Step)}) for row in data["steps"])
            return cls(steps=steps, ranking=tuple(data["ranking"]), method=dict(data["method"]))
        except (ValueError, KeyError, TypeError) as error:
            raise OptionError(f"not a Heedful trace: {error!r}; expected what Trace.to_json writes") from error
