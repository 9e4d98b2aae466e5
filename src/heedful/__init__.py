"""Heedful: language models that heed their instructions."""

from heedful import hf
from heedful.chat import Chat
from heedful.comparison import Compared, compare
from heedful.contrast import Anchoring, ContextAware
from heedful.detection import Detection, Found
from heedful.directer import Directer
from heedful.errors import (
    ContextLengthError,
    DataError,
    HeedfulError,
    JudgeError,
    ModelError,
    NumericError,
    OptionError,
    PromptError,
    SpanError,
    TokenizerError,
    UnsupportedModelError,
)
from heedful.gate import Plausibility
from heedful.generate import LM, Event, Job, Result, load, wrap
from heedful.prompt import detect
from heedful.sampling import Sampling
from heedful.schedule import Halving
from heedful.spans import Span
from heedful.steerers import InstABoost, KeyScaling, Pasta, SpotLight
from heedful.trace import Stats, Step, Trace

__version__ = "0.1.0"

__all__ = [
    "LM",
    "Anchoring",
    "Chat",
    "Compared",
    "ContextAware",
    "ContextLengthError",
    "DataError",
    "Detection",
    "Directer",
    "Event",
    "Found",
    "Halving",
    "HeedfulError",
    "InstABoost",
    "Job",
    "JudgeError",
    "KeyScaling",
    "ModelError",
    "NumericError",
    "OptionError",
    "Pasta",
    "Plausibility",
    "PromptError",
    "Result",
    "Sampling",
    "Span",
    "SpanError",
    "SpotLight",
    "Stats",
    "Step",
    "TokenizerError",
    "Trace",
    "UnsupportedModelError",
    "compare",
    "detect",
    "hf",
    "load",
    "wrap",
]
