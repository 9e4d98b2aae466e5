"""Range checks of numbers that users pass. Each returns the value or raises `OptionError` naming the option."""

from __future__ import annotations

import math
from typing import Any

from heedful.errors import OptionError


def finite(name: str, value: float, *, low: float = 0.0, low_open: bool = False, high: float = math.inf) -> float:
    """`value` as a float, if it is a finite number in [low, high] (or (low, high] with `low_open`)."""
    if isinstance(value, (bool, str)):
        raise OptionError(f"{name} must be a number, not {value!r}")
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise OptionError(f"{name} must be a number, not {value!r}") from None
    inside = low < number if low_open else low <= number
    if not math.isfinite(number) or not inside or number > high:
        top = "" if high == math.inf else f" and at most {high:g}"
        raise OptionError(f"{name} must be finite, {'above' if low_open else 'at least'} {low:g}{top}; got {value!r}")
    return number


def keep_finite(method: Any, name: str, **bounds: Any) -> None:
    """Keeps the field `name` of a frozen dataclass as a float: torch knows no whole number beyond 2^63.

    Raises what `finite` does, with its `bounds`.
    """
    object.__setattr__(method, name, finite(name, getattr(method, name), **bounds))


def whole(name: str, value: int, *, low: int, high: int = 2**63 - 1) -> int:
    """`value`, if it is an integer in [low, high]."""
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise OptionError(f"{name} must be a whole number of at least {low}; got {value!r}")
    if value > high:
        raise OptionError(f"{name} must be a whole number of at most {high}; got {str(value)[:40]}")
    return value


def choice(name: str, value: str, known: tuple[str, ...]) -> str:
    """`value`, if it is one of `known`."""
    if value not in known:
        raise OptionError(f"unknown {name} {value!r}; known: {', '.join(known)}")
    return value
