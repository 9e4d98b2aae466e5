"""Prompts to click: each shows something else that steering does to the built-in model."""

from __future__ import annotations

from dataclasses import dataclass

from heedful.playground.state import Inputs


@dataclass(frozen=True)
class Example:
    """A name for the button, and what it fills in."""

    name: str
    inputs: Inputs


COOK = "What should I cook tonight? <heed>Write your answer as a bullet list.</heed>"
MOON = "Tell me about the Moon. <heed>Do not use any commas.</heed>"
BULLETS = "regex:(?m)^\\* "

EXAMPLES = (
    Example("Bullet list", Inputs(prompt=COOK, checks=(BULLETS,))),
    Example("No commas", Inputs(prompt=MOON, checks=("no_comma", "min_words:5"))),
    Example(
        "Too strong", Inputs(prompt=MOON, methods=("none", "static", "directer"), checks=("no_comma",), max_tokens=40)
    ),
    Example(
        "Four methods",
        Inputs(
            prompt=COOK,
            methods=("none", "spotlight:target=0.3", "spotlight-gated:target=0.3", "directer"),
            checks=(BULLETS, "max_words:60"),
            max_tokens=60,
        ),
    ),
    Example(
        "System message",
        Inputs(system="<heed>You are a pirate. Speak like a pirate.</heed>", prompt="How do I make a cup of tea?"),
    ),
)
