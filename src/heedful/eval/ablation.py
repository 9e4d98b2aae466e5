"""The paper's ablations, each a list of methods to run on one task; `spelled` as `parse_method` reads them."""

from __future__ import annotations

from heedful.checks import choice, whole
from heedful.directer import Directer
from heedful.errors import OptionError

STRENGTHS = (10, 100, 1000, 10_000, 100_000)
THRESHOLDS = (0, 0.1, 0.25, 0.5, 0.75, 0.9, 1)
WEAK_STRENGTHS = (1.5, 2, 3, 5)
"""Static steering oversteers long before 10: without these its curve would have no left half."""

ABLATIONS = {
    "ranking": "the paper's order of layers, the released code's, reversed, and random ones",
    "tokens": "the instruction's tokens, and as many others of the prompt, drawn by chance",
    "ladder": "static steering of fixed intensities ST0, ST1 … (all layers, half of them, …), and Directer",
    "strength": "α from 10 to 100,000 under the gate, and from 1.5 on without it",
    "threshold": "β from 0 (the first trial is always taken) to 1 (only ties with the raw argmax)",
    "gate": "PASTA, SpotLight and InstABoost as published and under the gate",
    "offset": "the span one token too early, one too late, and the released code's quirks, its overhang among them",
}


def spelled(name: str, *, seeds: int = 3, profile: str | None = None, levels: int = 5) -> list[str]:
    """The methods of an ablation, `none` and default Directer first; nothing runs twice under two names.

    `seeds`: how many random draws. `profile`: PASTA's heads; without it PASTA is left out of "gate". `levels`: steps
    of the ladder, at most 1 + log2 of the model's layers. Raises `OptionError` for an unknown name.
    """
    choice("ablation", name, tuple(ABLATIONS))
    whole("seeds", seeds, low=1)
    whole("levels", levels, low=1)
    if profile is not None and name != "gate":
        raise OptionError(f"only the ablation 'gate' takes a profile; got one for {name!r}")
    pasta = [] if profile is None else [f"pasta:profile={profile}", f"pasta-gated:profile={profile}"]
    more = {
        "ranking": [f"directer:ranking={one}" for one in ("released", "reversed", *_random(seeds))],
        "tokens": [f"directer:span={one}" for one in _random(seeds)],
        "ladder": [f"static:level={level}" for level in range(levels)],
        "strength": [
            *(f"directer:strength={strength}" for strength in STRENGTHS if strength != Directer.strength),
            *(f"static:strength={strength}" for strength in (*WEAK_STRENGTHS, *STRENGTHS)),
        ],
        "threshold": [f"directer:threshold={one}" for one in THRESHOLDS if one != Directer.threshold],
        "gate": [*pasta, "spotlight", "spotlight-gated", "instaboost", "instaboost-gated"],
        "offset": ["directer:span=shift:-1", "directer:span=shift:1", "directer:compat=released"],
    }[name]
    return ["none", "directer", *more]


def _random(seeds: int) -> list[str]:
    return [f"random:{seed}" for seed in range(seeds)]
