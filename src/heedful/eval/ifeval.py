"""IFEval's verdicts by lm-eval's own checkers, made reproducible: seeded, and refused where their data is missing."""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from heedful.errors import OptionError


def _checkers() -> Any:
    try:
        from langdetect import DetectorFactory
        from lm_eval.tasks.ifeval import utils
    except ImportError as error:
        raise OptionError(f"IFEval's checkers need the eval extra: pip install 'heedful[eval]' ({error})") from error
    DetectorFactory.seed = 0
    # It writes an answer whole, through the progress bar, where its language cannot be told; such a one passes.
    logging.getLogger("lm_eval.tasks.ifeval.instructions").setLevel(logging.CRITICAL)
    return utils


def check() -> None:
    """Raises `OptionError` unless the checkers and nltk's sentence splitter are there."""
    _checkers()
    import nltk

    try:
        nltk.data.find("tokenizers/punkt_tab/english")
    except LookupError:
        raise OptionError(
            "IFEval's checkers need nltk's punkt_tab: run `python -m nltk.downloader punkt_tab`, or set NLTK_DATA"
        ) from None


@dataclass(frozen=True)
class Followed:
    """Whether each instruction of a row is followed, by the strict and by the loose rule."""

    strict: list[bool]
    loose: list[bool]


def followed(columns: Mapping[str, Any], text: str) -> Followed:
    """The verdict on an answer to the row `columns`, always the same. Raises `OptionError` without the eval extra."""
    utils = _checkers()
    prompt = str(columns.get("original_prompt", columns.get("prompt", "")))
    random.seed(prompt)  # some checkers draw letters or keywords where a row names none
    kwargs = [arguments(one) for one in columns["kwargs"]]
    example = utils.InputExample(0, list(columns["instruction_id_list"]), prompt, kwargs)
    strict = utils.test_instruction_following_strict(example, text).follow_instruction_list
    loose = utils.test_instruction_following_loose(example, text).follow_instruction_list
    return Followed([bool(one) for one in strict], [bool(one) for one in loose])


def arguments(columns: Mapping[str, Any]) -> dict[str, Any]:
    """A constraint's own arguments; a set of the hub holds `None` for all others, and may hold floats for integers."""
    given = {name: value for name, value in columns.items() if value is not None}
    return {n: int(v) if isinstance(v, float) and v.is_integer() else v for n, v in given.items()}
