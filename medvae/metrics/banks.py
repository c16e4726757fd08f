"""What probes of leakage are fitted on: codes with their factors, as they are or balanced."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .balance import Cells, balanced_draws, balanced_weights, cells, levels
from .information import Array
from .intervals import Rows

__all__ = ["Bank", "Checked", "Plan", "Sample", "balanced_bank", "checked", "natural_bank"]


class Sample(NamedTuple):
    """Codes with the factors of their subjects.

    Attributes:
        codes: shape (N, D), finite.
        factors: class numbers (from 0) or continuous values, shape (N, K); NaN, and of a class
            a negative number, where missing.
        patients: of every row; None: each is a patient of its own.
    """

    codes: npt.ArrayLike
    factors: npt.ArrayLike
    patients: npt.ArrayLike | None = None


class Checked(NamedTuple):
    """A sample as arrays, missing classes NaN."""

    codes: Array
    factors: Array
    patients: Any


def checked(sample: Sample, kinds: Mapping[str, str]) -> Checked:
    """Return the sample as float64 with missing classes as NaN.

    Raises:
        ValueError: shapes that disagree, codes that are not finite, classes that are not whole.
    """
    z, y = (np.array(part, dtype=np.float64) for part in (sample.codes, sample.factors))
    if z.ndim != 2 or y.shape != (len(z), len(kinds)) or not z.size:
        raise ValueError(
            f"codes have shape {z.shape} and factors {y.shape}: expected (N, D) and (N, K) with "
            f"the {len(kinds)} factors {list(kinds)}."
        )
    if not np.isfinite(z).all():
        rows = np.flatnonzero(~np.isfinite(z).all(axis=1))
        raise ValueError(f"codes: row {rows[0]} is NaN or infinite, expected finite numbers.")
    for column, (name, kind) in enumerate(kinds.items()):
        _check_factor(y[:, column], name, kind)
    return Checked(z, y, sample.patients)


def _check_factor(values: Array, name: str, kind: str) -> None:
    """Mark a class's negative numbers as missing, in place, and check the rest."""
    if kind not in ("categorical", "ordinal", "continuous"):
        raise ValueError(
            f"factor '{name}' is {kind!r}, expected categorical, ordinal or continuous."
        )
    if np.isinf(values).any():
        raise ValueError(f"factor '{name}' has infinite values, expected numbers or NaN.")
    if kind != "continuous":
        values[values < 0] = np.nan
        wrong = values[~np.isnan(values) & (values != np.round(values))]
        if wrong.size:
            raise ValueError(f"factor '{name}' has the class {wrong[0]}, expected whole numbers.")


class Plan(NamedTuple):
    """How leakage is measured; see :func:`leakage_matrix`."""

    k: int
    draws: int
    least_cell: int
    balance_test: bool
    seed: int


class Bank(NamedTuple):
    """What probes of one factor are fitted on, and how the test rows weigh.

    Attributes:
        name: natural or balanced.
        source: the sample that rows are drawn from.
        draws: the rows of every draw.
        cells: those of the balance, None for the natural bank.
        weights: of the test rows, (N,).
        k: neighbours.
        reason: why nothing can be fitted, else None.
    """

    name: str
    source: Checked
    draws: list[Rows]
    cells: Cells | None
    weights: Array
    k: int
    reason: str | None


def natural_bank(source: Checked, test: Checked, factor: int, kind: str, plan: Plan) -> Bank:
    """Return the bank as it is, without the rows whose label is missing."""
    rows = np.flatnonzero(~np.isnan(source.factors[:, factor]))
    reason = _unfit(source.factors[rows, factor], "bank", kind)
    reason = reason or _unfit(test.factors[:, factor], "test", kind)
    weights = np.ones(len(test.codes))
    return Bank("natural", source, [rows], None, weights, min(plan.k, rows.size), reason)


def balanced_bank(
    source: Checked,
    test: Checked,
    factor: int,
    others: Sequence[int],
    kinds: Sequence[str],
    plan: Plan,
) -> Bank:
    """Return draws of a bank in which the factor is independent of the others.

    Another factor whose label is missing for everybody is no reason to have no bank.
    """
    kind = kinds[factor]
    columns = [factor, *(c for c in others if _labelled(source, c) and _labelled(test, c))]
    found = cells(*_classes(source, source, columns, kinds), plan.least_cell)
    draws = list(balanced_draws(found, plan.draws, plan.seed))
    weights = np.ones(len(test.codes))
    if plan.balance_test:
        weights = balanced_weights(cells(*_classes(test, source, columns, kinds)), weights.size)
    reason = _unfit(test.factors[:, factor], "test", kind)
    reason = reason or _unfit(source.factors[:, factor], "bank", kind)
    for where, least, lacks in (
        ("bank", plan.least_cell, not draws),
        ("test", 1, not weights.any()),
    ):
        if lacks:
            reason = reason or (
                f"no combination of the other factors has {least} row(s) of every class in the "
                f"{where}"
            )
    # more neighbours than a class has rows would ask the other classes
    smallest = min((rows.size for rows in found.rows), default=0) * found.strata
    return Bank("balanced", source, draws, found, weights, min(plan.k, smallest), reason)


def _labelled(sample: Checked, column: int) -> bool:
    return not bool(np.isnan(sample.factors[:, column]).all())


def _classes(
    sample: Checked, source: Checked, columns: Sequence[int], kinds: Sequence[str]
) -> tuple[Array, Array]:
    """Return the first column and the others, continuous ones as thirds of the source's values."""
    table = [
        levels(sample.factors[:, c], source.factors[:, c])
        if kinds[c] == "continuous"
        else sample.factors[:, c]
        for c in columns
    ]
    return table[0], np.column_stack([*table[1:], np.zeros(len(sample.codes))])


def _unfit(labels: Array, where: str, kind: str) -> str | None:
    """Say why labels of the bank or test cannot be predicted, or None."""
    known = np.unique(labels[~np.isnan(labels)])
    if known.size > 1:
        return None
    if not known.size:
        return f"the {where} has no label"
    return f"all labels of the {where} are {'' if kind == 'continuous' else 'class '}{known[0]:g}"
