"""Every method by its name, for the command line and for settings that come as text. Knows no method's inside."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

from heedful.checks import choice
from heedful.contrast import Anchoring, ContextAware
from heedful.directer import Directer
from heedful.displacement import Displaced
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

    A gated method takes `threshold` too. Any method takes `span`, which moves it to other tokens (see `Displaced`).
    Raises `OptionError` for an unknown name or option.
    """
    choice("method", name, NAMES)
    given = {key: value for key, value in (options or {}).items() if value is not None}
    if "span" in given and METHODS.get(name.removesuffix(GATED)) is not None:
        method = method_by_name(name, {key: value for key, value in given.items() if key != "span"})
        assert method is not None
        return Displaced(method, given["span"])
    kind = METHODS[name.removesuffix(GATED)]
    if "gate" in given:
        raise OptionError(f"a gate is asked for by name: {name.removesuffix(GATED)}{GATED}")
    if name.endswith(GATED):
        given["gate"] = Plausibility(given.pop("threshold", Plausibility.threshold))
    profiles = given.pop("profile", None) if kind is Pasta else None
    if profiles is not None:
        paths = [profiles] if isinstance(profiles, (str, Path)) else profiles
        if "heads" in given or not isinstance(paths, list) or not all(isinstance(p, (str, Path)) for p in paths):
            raise OptionError("pasta takes either heads or profile, and profile is a file or a list of files")
    known = () if kind is None else tuple(f.name for f in dataclasses.fields(kind) if f.name != "profiled")
    unused = [key for key in given if key not in known]
    if unused:
        takes = ", ".join(key for key in known if key not in ("gate", "profiled")) or "nothing"
        takes += ", profile" if kind is Pasta else ""
        raise OptionError(f"method {name!r} takes no {unused[0]}; it takes {takes}")
    if profiles is not None:
        return Pasta.from_file(*paths, **given)
    found: Method | None = None if kind is None else kind(**given)
    return found


def parse_method(text: str, more: dict[str, Any] | None = None) -> Method | None:
    """The method that `text` names, with options: `static:strength=10`, `pasta-gated:profile=heads.json`.

    Values are JSON, or plain text; `more` are options besides. `@FILE` is the method of a settings file, as
    `heedful tune` writes it. Raises `OptionError` for an unknown name or option, or a file that is none.
    """
    name, options = read_spec(from_settings(text))
    return method_by_name(name, {**(more or {}), **options})


def read_spec(text: str) -> tuple[str, dict[str, Any]]:
    """Name and options that `text` spells, unchecked; nothing is opened or built."""
    name, *pairs = re.split(r":(?=[a-z_]+=)", text)  # a value may hold a colon: ranking=random:1
    options = {}
    for pair in pairs:
        key, _, value = pair.partition("=")
        options[key] = _value(value)
    return name, options


def parse_methods(text: str) -> dict[str, Method | None]:
    """The methods of a list such as `none,static:layers=[0,1],directer`, each under its own text."""
    names = [name.strip() for name in re.split(r",(?![^\[{]*[\]}])", text)]
    named = {name: parse_method(name) for name in names if name}
    if not named:
        raise OptionError("name at least one method")
    return named


def from_settings(text: str) -> str:
    """What the settings file spells where `text` is `@FILE`, else `text`. Raises `OptionError` where that is none."""
    if not text.startswith("@"):
        return text
    path = Path(text[1:])
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["method"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OptionError(f"{path} is no settings file: {error!r}; `heedful tune` makes one") from error
    if not isinstance(found, str) or found.startswith("@"):
        raise OptionError(f"{path} is no settings file: its method must be text such as 'directer:strength=30'")
    return found


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
