"""Heedful: language models that heed their instructions."""

from heedful import hf
from heedful.directer import Directer
from heedful.errors import (
    ContextLengthError,
    HeedfulError,
    ModelError,
    OptionError,
    PromptError,
    SpanError,
    TokenizerError,
    UnsupportedModelError,
)
from heedful.gate import Plausibility
from heedful.generate import LM, Event, Job, Result, load, wrap
from heedful.sampling import Sampling
from heedful.schedule import Halving
from heedful.spans import Span
from heedful.steerers import KeyScaling
from heedful.trace import Stats, Step, Trace

__version__ = "0.1.0"

__all__ = [
    "LM",
    "ContextLengthError",
    "Directer",
    "Event",
    "Halving",
    "HeedfulError",
    "Job",
    "KeyScaling",
    "ModelError",
    "OptionError",
    "Plausibility",
    "PromptError",
    "Result",
    "Sampling",
    "Span",
    "SpanError",
    "Stats",
    "Step",
    "TokenizerError",
    "Trace",
    "UnsupportedModelError",
    "hf",
    "load",
    "wrap",
]
