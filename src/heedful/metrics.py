"""Rules that score an answer to a line of a data file from 0 to 1, by name: what heads and settings are chosen by."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from heedful.constraints import is_json, pattern
from heedful.data import Record
from heedful.errors import DataError, OptionError

Metric = Callable[[Record, str], float]
NAMES = "json, regex, regex:PATTERN, exact, ifeval, ifeval-prompt, ifbench"
KINDS = ("instruction_id_list", "kwargs")
COLUMNS = {"exact": ("expected",), "regex": ("regex",), **dict.fromkeys(("ifeval", "ifeval-prompt", "ifbench"), KINDS)}


def metric(name: str, rows: Sequence[Record]) -> Metric:
    """The metric called `name`, from 0 to 1. Raises `OptionError` or, where a column is missing, `DataError`."""
    kind, colon, argument = name.partition(":")
    if name == "json":
        return lambda row, text: float(is_json(text.strip()))
    if kind == "regex" and colon and argument:
        matches = pattern(argument)
        return lambda row, text: float(matches(text))
    if name not in COLUMNS:
        raise OptionError(f"unknown metric {name!r}; known: {NAMES}")
    chosen = _by_column(name) if name in ("exact", "regex") else _by_checkers(name)
    for row in rows:
        row.need(COLUMNS[name], f"metric {name!r}")
        try:
            chosen(row, "A first answer, to see that the row can be scored.")
        except Exception as error:  # checkers raise anything; a row that cannot be scored must be told of now
            raise DataError(f"metric {name!r} cannot score line {row.number} of {row.path}: {error!r}") from error
    return chosen


def _by_column(name: str) -> Metric:
    if name == "regex":
        return lambda row, text: float(pattern(str(row.columns["regex"]))(text))
    return lambda row, text: float(text.strip() == str(row.columns["expected"]).strip())


def _by_checkers(name: str) -> Metric:
    """The share of a row's instructions that the checkers find followed (strict); ifeval-prompt: 1 if all are."""
    from heedful.eval import ifbench, ifeval

    checkers = ifbench if name == "ifbench" else ifeval
    checkers.check()
    summed = all if name == "ifeval-prompt" else statistics.fmean
    return lambda row, text: float(summed(checkers.followed(row.columns, text).strict))
