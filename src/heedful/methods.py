"""Every method by its name, for the command line and for settings that come as text. Knows no method's inside."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from heedful.checks import choice
from heedful.contrast import Anchoring, ContextAware
from heedful.directer import Directer
from heedful.errors import OptionError
from heedful.gate import Plausibility
from heedful.recipe import Method
from heedful.steerers import InstABoost, KeyScaling, Pasta, SpotLight

METHODS: dict[str, type[Any] | None] = {
    "directer": Directer,
    "none": None,
    "static": KeyScaling,
    "pasta": Pasta,
    "spotlight": SpotLight,
    "instaboost": InstABoost,
    "context-aware": ContextAware,
    "anchoring": Anchoring,
}
GATED = "-gated"
NAMES = (*METHODS, *(name + GATED for name, kind in METHODS.items() if kind not in (None, Directer)))


def method_by_name(name: str, options: dict[str, Any] | None = None) -> Method | None:
    """The method called `name` with those `options` that are not None; "-gated" behind a name puts it under a gate.

    A gated method takes `threshold` too. Raises `OptionError` for an unknown name or option.
    """
    choice("method", name, NAMES)
    kind = METHODS[name.removesuffix(GATED)]
    given = {key: value for key, value in (options or {}).items() if value is not None}
    if name.endswith(GATED):
        given["gate"] = Plausibility(given.pop("threshold", Plausibility.threshold))
    profiles = given.pop("profile", None) if kind is Pasta else None
    known = () if kind is None else tuple(field.name for field in dataclasses.fields(kind))
    unused = [key for key in given if key not in known]
    if unused:
        takes = ", ".join(key for key in known if key != "gate") or "nothing"
        raise OptionError(f"method {name!r} takes no {unused[0]}; it takes {takes}")
    if profiles is not None:
        return Pasta.from_file(*([profiles] if isinstance(profiles, str) else profiles), **given)
    method: Method | None = None if kind is None else kind(**given)
    return method


def parse_method(text: str) -> Method | None:
    """The method that `text` names, with options: `static:strength=10`, `pasta-gated:profile=heads.json`.

    Values are JSON, or plain text. Raises `OptionError` for an unknown name or option.
    """
    name, *pairs = text.split(":")
    options: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise OptionError(f"{pair!r} in {text!r} must be an option and its value, as in static:strength=10")
        options[key] = _value(value)
    return method_by_name(name, options)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
