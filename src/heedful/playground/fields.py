"""The fields that a user fills in, and the way between them and `Inputs`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from heedful.playground.state import HIGHEST_STRENGTH, LONGEST_SEED, MOST_COLUMNS, MOST_TOKENS, Inputs, inputs_of

WHOLE = ("max_tokens", "seed")  # which the browser may send as 80.0
CHECKS = "One a line: no_comma, json, lowercase, max_words:50, min_words:20, contains:TEXT, regex:PATTERN"


@dataclass(frozen=True)
class Fields:
    """One component for each of `Inputs`' fields, under its name."""

    system: Any
    prompt: Any
    methods: Any
    strength: Any
    threshold: Any
    max_tokens: Any
    temperature: Any
    seed: Any
    checks: Any

    @property
    def all(self) -> list[Any]:
        """In the order of `Inputs`."""
        return [getattr(self, name) for name in Inputs.model_fields]

    def read(self, values: dict[Any, Any]) -> Inputs:
        """What is filled in. Raises `OptionError` for the first value that cannot be."""
        found = {name: values[getattr(self, name)] for name in Inputs.model_fields}
        for name in WHOLE:
            if isinstance(found[name], float) and found[name].is_integer():
                found[name] = int(found[name])
        lines = str(found["checks"] or "").splitlines()
        found["checks"] = tuple(line.strip() for line in lines if line.strip())
        found["methods"] = tuple(dict.fromkeys(found["methods"] or ()))
        return inputs_of(**{name: value for name, value in found.items() if value is not None})

    @staticmethod
    def texts() -> tuple[Any, Any]:
        """The two texts."""
        system = gr.Textbox(label="System message (may stay empty)", lines=1, max_lines=6, elem_id="hp-system")
        info = "Select what matters and press Heed selection, or write <heed> and </heed> around it."
        prompt = gr.Textbox(label="Prompt", info=info, lines=3, max_lines=16, elem_id="hp-prompt", autofocus=True)
        return system, prompt

    @staticmethod
    def user_checks() -> Any:
        """The checks of each answer."""
        return gr.Textbox(label="Checks of each answer", info=CHECKS, lines=2, elem_id="hp-checks")

    @classmethod
    def of(cls, texts: tuple[Any, Any], checks: Any, names: Sequence[str], most_tokens: int) -> Fields:
        """All fields, those that are there among them."""
        start = Inputs()
        methods = gr.Dropdown(
            list(names),
            value=list(start.methods),
            label=f"Methods, side by side (up to {MOST_COLUMNS})",
            info="none is the model by itself. Options may be typed: spotlight:target=0.3",
            multiselect=True,
            max_choices=MOST_COLUMNS,
            allow_custom_value=True,
            elem_id="hp-methods",
        )
        sliders = _sliders(start, min(MOST_TOKENS, most_tokens))
        return cls(**dict(zip(Inputs.model_fields, [*texts, methods, *sliders, checks], strict=True)))


def _sliders(start: Inputs, most: int) -> list[Any]:
    strength = _slider(
        "Strength α",
        HIGHEST_STRENGTH,
        start.strength,
        1,
        "For directer and static: the marked tokens' keys times α. 1 does nothing.",
    )
    threshold = _slider(
        "Threshold β",
        1,
        start.threshold,
        0.05,
        "A steered token must be at least β times as likely as the model's own.",
    )
    tokens = _slider("Tokens", most, min(start.max_tokens, most), 1, "Of the longest answer.", low=1)
    temperature = _slider("Temperature", 2, start.temperature, 0.05, "0 takes the likeliest token; more draws freely.")
    info = "The same seed draws the same answer."
    seed = gr.Number(start.seed, label="Seed", precision=0, minimum=0, maximum=LONGEST_SEED, info=info)
    return [strength, threshold, tokens, temperature, seed]


def _slider(label: str, high: float, value: float, step: float, info: str, low: float = 0) -> Any:
    name = f"hp-{label.split()[0].lower()}"
    return gr.Slider(low, high, value, step=step, label=label, info=info, elem_id=name)


def put(inputs: Inputs) -> list[Any]:
    """The fields' values for `inputs`."""
    values = inputs.model_dump()
    values["methods"] = list(inputs.methods)
    values["checks"] = "\n".join(inputs.checks)
    return [values[name] for name in Inputs.model_fields]
