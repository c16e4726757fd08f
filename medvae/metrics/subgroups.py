"""Performance and leakage within subgroups, the worst ones named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from .information import Array, Bools
from .intervals import json_number
from .outcomes import WHOLE, Outcome, best_probe, points

__all__ = ["leakage_by_group"]


def leakage_by_group(
    outcomes: Sequence[Outcome],
    groups: Mapping[str, Sequence[Any]],
    n_rows: int,
    least_group: int = 20,
) -> dict[str, Any]:
    """Reports points above chance within the levels of columns, by the best probe of all rows.

    Args:
        outcomes: Predictions of the N test rows, of one bank.
        groups: Columns of shape (N,) of any values; None or NaN = missing.
        n_rows: N.
        least_group: Rows that a level needs; a smaller one is ``too_small`` and has no number.

    Returns:
        For every column ``levels[level]``: rows, too_small, ``own[subspace]`` and
        ``cross[subspace][factor]`` in points (None where the level has a single class), and
        ``worst``: the level, subspace, factor and points of the weakest own factor and of the
        strongest leakage, of labelled subspaces and those without factor.

    Raises:
        ValueError: If a column does not have one value per row.
    """
    known = [(o, p) for o in outcomes if o.predictions and (p := best_probe(o)) is not None]
    report = {}
    for column, values in groups.items():
        names = pd.Series(list(values), dtype=object)
        if len(names) != n_rows:
            raise ValueError(f"group '{column}' has {len(names)} values, expected {n_rows}.")
        levels = {
            str(level): _level(known, (names == level).to_numpy(dtype=bool), least_group)
            for level in sorted(names.dropna().unique(), key=str)
        }
        report[column] = {
            "missing": int(names.isna().sum()),
            "levels": levels,
            "worst": {"own": _worst(levels, "own"), "cross": _worst(levels, "cross")},
        }
    return report


def _level(known: Sequence[tuple[Outcome, str]], member: Bools, least: int) -> dict[str, Any]:
    rows = int(member.sum())
    level: dict[str, Any] = {"rows": rows, "too_small": rows < least}
    if rows < least:
        return level
    level |= {"own": {}, "cross": {}}
    for outcome, probe in known:
        if outcome.subspace == WHOLE:
            continue
        weights: Array = (outcome.weights * member[outcome.rows])[None]
        value = json_number(points(outcome, probe, weights)[0])
        part = "own" if outcome.subspace == outcome.factor else "cross"
        level[part].setdefault(outcome.subspace, {})[outcome.factor] = value
    return level


def _worst(levels: Mapping[str, Mapping[str, Any]], part: str) -> dict[str, Any] | None:
    """Return the least own or the largest cross points of all levels; None without any."""
    found = [
        {"level": level, "subspace": subspace, "factor": factor, "points": value}
        for level, entry in levels.items()
        for subspace, factors in entry.get(part, {}).items()
        for factor, value in factors.items()
        if value is not None
    ]
    pick = min if part == "own" else max
    return pick(found, key=lambda item: float(str(item["points"]))) if found else None
