"""What is on the screen as plain values: what was asked, and what was answered. Everything has a bound."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from heedful.directer import Directer
from heedful.errors import OptionError

MOST_COLUMNS = 4
MOST_TOKENS = 512  # of one answer: what a person reads, and what fits a file that can be read back
MOST_OTHERS = 16
MOST_LAYERS = 256
HIGHEST_STRENGTH = 200.0  # of the slider; a method's own text may say more
LONGEST_TEXT = 200_000
LONGEST_SEED = 2**31 - 1

Text = Annotated[str, Field(max_length=LONGEST_TEXT)]
Short = Annotated[str, Field(min_length=1, max_length=300)]
Chance = Annotated[float, Field(ge=0, le=1.0001)]
Count = Annotated[int, Field(ge=0, le=10_000)]
Layer = Annotated[int, Field(ge=0, le=MOST_LAYERS)]
Decision = Literal["skipped", "accepted", "rejected"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Inputs(_Strict):
    """What is asked: the texts with their `<heed>` tags, one to four methods, their settings, and the user's checks.

    `strength` and `threshold` are for methods that scale keys and for gates; what a method's own text says wins.
    """

    system: Text = ""
    prompt: Text = ""
    methods: Annotated[tuple[Short, ...], Field(min_length=1, max_length=MOST_COLUMNS)] = ("none", "directer")
    strength: Annotated[float, Field(ge=0, le=HIGHEST_STRENGTH)] = Directer.strength
    threshold: Annotated[float, Field(ge=0, le=1)] = Directer.threshold
    max_tokens: Annotated[int, Field(ge=1, le=MOST_TOKENS)] = 80
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    seed: Annotated[int, Field(ge=0, le=LONGEST_SEED)] = 0
    checks: Annotated[tuple[Short, ...], Field(max_length=8)] = ()

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation, tags and all; a blank system message is none."""
        system = [{"role": "system", "content": self.system}] if self.system.strip() else []
        return [*system, {"role": "user", "content": self.prompt}]


class Told(_Strict):
    """One token of an answer: the text that it added (empty within a character), and how it came to be.

    `others`: the likeliest tokens as (text, raw probability, steered probability), the token itself at `taken`.
    """

    text: Text
    decision: Decision
    layers: Layer
    trials: Count
    changed: bool
    others: Annotated[tuple[tuple[Text, Chance | None, Chance | None], ...], Field(max_length=MOST_OTHERS)] = ()
    taken: Annotated[int, Field(ge=0, le=MOST_OTHERS)] = 0

    @model_validator(mode="after")
    def _agree(self) -> Told:
        if self.others and self.taken >= len(self.others):
            raise ValueError(f"taken is {self.taken}, but there are {len(self.others)} others")
        return self


class Column(_Strict):
    """One method's answer. `is_checked`: a gate looked at each steered token.

    `order`: the layers that may be steered, most sensitive first; a step's `layers` are the first so many of them.
    `sensitivity`: each layer's score, empty where none was measured. `seconds`: of the forwards that it took part in.
    `finish_reason` None: it goes on, or was stopped.
    """

    method: Short
    is_checked: bool = False
    num_layers: Layer = 0
    order: Annotated[tuple[Layer, ...], Field(max_length=MOST_LAYERS)] = ()
    sensitivity: Annotated[tuple[float, ...], Field(max_length=MOST_LAYERS)] = ()
    tokens: Annotated[tuple[Told, ...], Field(max_length=MOST_TOKENS)] = ()
    seconds: Annotated[float, Field(ge=0)] = 0.0
    finish_reason: Literal["eos", "stop", "length"] | None = None

    @model_validator(mode="after")
    def _agree(self) -> Column:
        if any(layer >= self.num_layers for layer in self.order):
            raise ValueError(f"order names a layer that {self.num_layers} layers do not have")
        if self.sensitivity and len(self.sensitivity) != self.num_layers:
            raise ValueError(f"sensitivity has {len(self.sensitivity)} values for {self.num_layers} layers")
        return self

    @property
    def text(self) -> str:
        """The answer."""
        return "".join(token.text for token in self.tokens)

    @property
    def tokens_per_second(self) -> float:
        """Speed, while other columns shared the forwards; 0 where nothing was measured."""
        return len(self.tokens) / self.seconds if self.seconds else 0.0

    def steered_layers(self, token: Told) -> tuple[int, ...]:
        """Which layers were steered for `token`."""
        return self.order[: token.layers]


class Screen(_Strict):
    """All of it; `model` is the name of the model that answered."""

    heedful: Literal["playground"] = "playground"
    version: Literal[1] = 1
    model: Annotated[str, Field(max_length=1000)] = ""
    inputs: Inputs = Inputs()
    answers: Annotated[tuple[Column, ...], Field(max_length=MOST_COLUMNS)] = ()


def inputs_of(**values: object) -> Inputs:
    """Checked inputs. Raises `OptionError`, one line, for the first value that cannot be."""
    try:
        return Inputs.model_validate(values)
    except ValidationError as error:
        raise OptionError(in_a_line(error)) from error


def in_a_line(error: ValidationError) -> str:
    """Where the first fault is, and what it is."""
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(map(str, first["loc"]))
    return f"{where}: {first['msg']}" if where else str(first["msg"])
