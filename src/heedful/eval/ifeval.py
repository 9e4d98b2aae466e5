"""IFEval's verdicts by lm-eval's own checkers, made reproducible: seeded, and refused where their data is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from heedful.errors import OptionError


def _checkers() -> Any:
    try:
        from langdetect import DetectorFactory
        from lm_eval.tasks.ifeval import utils
    except ImportError as error:
        raise OptionError(f"IFEval's checkers need the eval extra: pip install 'heedful[eval]' ({error})") from error
    DetectorFactory.seed = 0
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


def followed(
    instruction_ids: Sequence[str], kwargs: Sequence[Mapping[str, Any]], prompt: str, text: str
) -> tuple[list[bool], list[bool]]:
    """Whether each instruction is followed, strictly and loosely. Raises `OptionError` without the eval extra."""
    utils = _checkers()
    example = utils.InputExample(0, list(instruction_ids), prompt, [dict(one) for one in kwargs])
    strict = utils.test_instruction_following_strict(example, text).follow_instruction_list
    loose = utils.test_instruction_following_loose(example, text).follow_instruction_list
    return [bool(one) for one in strict], [bool(one) for one in loose]
