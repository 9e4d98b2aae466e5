"""IFBench (Pyatkin et al., 2025, arXiv 2507.02833): constraints of kinds that no model was trained on, judged by rule.

Own checkers, written from what the prompts ask for: no well-kept library brings the official ones, so scores are
IFBench-style and not to be set beside published ones. A row of a kind that has no checker here is not read at all.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from heedful.errors import OptionError
from heedful.eval import ifeval
from heedful.eval.ifbench import counts, custom, formats, ratios, repeats, sentences, words
from heedful.eval.ifbench.reading import Asked, Kind

KINDS: dict[str, Kind] = {
    **counts.KINDS,
    **custom.KINDS,
    **formats.KINDS,
    **ratios.KINDS,
    **repeats.KINDS,
    **sentences.KINDS,
    **words.KINDS,
}
UNCHECKED = {"words:start_verb": "whether a word is a verb takes a trained tagger"}


def check() -> None:
    """Raises `OptionError` unless the libraries and the data that the checkers read with are there."""
    ifeval.check()
    try:
        import regex  # noqa: F401
        import syllapy  # noqa: F401
    except ImportError as error:
        raise OptionError(f"IFBench's checkers need the eval extra: pip install 'heedful[eval]' ({error})") from error


def kinds(columns: Mapping[str, Any]) -> list[Kind]:
    """The kinds that a row asks for. Raises `ValueError` where one of them cannot be checked."""
    names = list(columns["instruction_id_list"])
    for name in names:
        if name not in KINDS:
            raise ValueError(f"{name} cannot be checked: {UNCHECKED.get(name, 'the kind is unknown')}")
    if len(columns["kwargs"]) != len(names):
        raise ValueError(f"{len(names)} kinds, but {len(columns['kwargs'])} sets of arguments")
    return [KINDS[name] for name in names]


def spans(prompt: str, asked: Sequence[Kind]) -> list[tuple[int, int]]:
    """Where each constraint is worded in the prompt. Raises `ValueError` where one is not found."""
    found = [re.search(kind.wording, prompt, re.DOTALL) for kind in asked]
    missing = [kind.wording for kind, match in zip(asked, found, strict=True) if match is None]
    if missing:
        raise ValueError(f"the prompt does not word a constraint as /{missing[0]}/")
    return [match.span() for match in found if match is not None]


def followed(columns: Mapping[str, Any], text: str) -> ifeval.Followed:
    """The verdict on an answer: as it is (strict), or less its first or last line or its asterisks (loose)."""
    prompt = str(columns["prompt"])
    asked = [Asked(ifeval.arguments(one), prompt) for one in columns["kwargs"]]
    pairs = list(zip(kinds(columns), asked, strict=True))
    strict = [_is_kept(kind, one, text) for kind, one in pairs]
    loose = [any(_is_kept(kind, one, variant) for variant in variants(text)) for kind, one in pairs]
    return ifeval.Followed(strict, loose)


def _is_kept(kind: Kind, asked: Asked, text: str) -> bool:
    """An answer without a letter or digit keeps nothing, whatever could be said of its words in general."""
    return any(letter.isalnum() for letter in text) and kind.check(text, asked)


def variants(text: str) -> list[str]:
    """The answer whole, and without its first line, its last, and both; each also without asterisks."""
    parts = text.split("\n")
    cut = [text, *("\n".join(part).strip() for part in (parts[1:], parts[:-1], parts[1:-1]))]
    return [*cut, *(one.replace("*", "") for one in cut)]
