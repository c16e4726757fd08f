"""Resampling by patients: whole patients are drawn, with all their rows.

Two schemes. The cluster bootstrap draws patients with replacement; its percentiles are the interval
of correlations, errors and areas under the curve. Nearest-neighbour estimators take a repeated row
for a very close neighbour and are biased upwards by it; for them patients are drawn without
replacement, m = half of the n patients. The spread of a score over such halves estimates
Var(m) - Var(n), so that times sqrt(m / (n - m)), which is 1 for even n, it is the standard error at
n patients (the delete-half jackknife; Politis, Romano and Wolf, Subsampling, 1999). Only the spread
is used, never the halves' level: estimates of information at n / 2 rows are not those at n.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.stats import norm

from .information import Array

__all__ = [
    "Interval",
    "bootstrap_rows",
    "folds_by_patient",
    "half_sample_interval",
    "half_sample_rows",
    "json_number",
    "percentile_interval",
    "permuted_rows",
]

Rows = npt.NDArray[np.intp]


class Interval(NamedTuple):
    """Lower and upper bounds, shape of the score."""

    low: Array
    high: Array


def rows_by_patient(patients: npt.ArrayLike | None, n_rows: int) -> list[Rows]:
    """Returns the row numbers of each patient; None = every row is a patient of its own.

    Raises:
        ValueError: If there is not one patient per row.
    """
    if patients is None:
        return [np.array([row]) for row in range(n_rows)]
    names = np.asarray(patients)
    if names.shape != (n_rows,):
        raise ValueError(f"patients has shape {names.shape}, expected ({n_rows},), one per row.")
    number = np.unique(names, return_inverse=True)[1].ravel()
    return np.split(np.argsort(number, kind="stable"), np.cumsum(np.bincount(number))[:-1])


def bootstrap_rows(
    patients: npt.ArrayLike | None, n_rows: int, n_resamples: int, seed: int = 0
) -> Iterator[Rows]:
    """Yields row numbers of resamples of the patients, with replacement.

    Args:
        patients: Patient of each row, any sortable names; None = one patient per row.
        n_rows: Number of rows.
        n_resamples: How many resamples; none are yielded for fewer than two patients.
        seed: Seed of the draws.
    """
    clusters = rows_by_patient(patients, n_rows)
    generator = np.random.default_rng(seed)
    for _ in range(n_resamples if len(clusters) > 1 else 0):
        drawn = generator.integers(len(clusters), size=len(clusters))
        yield np.concatenate([clusters[i] for i in drawn])


def half_sample_rows(
    patients: npt.ArrayLike | None, n_rows: int, n_resamples: int, seed: int = 0
) -> Iterator[Rows]:
    """Yields row numbers of random halves of the patients, without replacement.

    Args:
        patients: Patient of each row, any sortable names; None = one patient per row.
        n_rows: Number of rows.
        n_resamples: How many halves; none are yielded for fewer than four patients.
        seed: Seed of the draws.
    """
    clusters = rows_by_patient(patients, n_rows)
    generator = np.random.default_rng(seed)
    for _ in range(n_resamples if len(clusters) > 3 else 0):
        drawn = generator.permutation(len(clusters))[: len(clusters) // 2]
        yield np.concatenate([clusters[i] for i in np.sort(drawn)])


def permuted_rows(
    patients: npt.ArrayLike | None, n_rows: int, n_permutations: int, seed: int = 0
) -> Iterator[Rows]:
    """Yields orders of the rows in which patients with as many rows have swapped them.

    Rows of a patient stay together, as they are alike, and lose their order: what differs within
    a patient, such as the side, is permuted, too. A patient whose number of rows no other has
    keeps them.

    Args:
        patients: Patient of each row, any sortable names; None = one patient per row.
        n_rows: Number of rows.
        n_permutations: How many orders.
        seed: Seed of the draws.
    """
    clusters = rows_by_patient(patients, n_rows)
    sizes = sorted({len(rows) for rows in clusters})
    alike = [np.stack([rows for rows in clusters if len(rows) == size]) for size in sizes]
    generator = np.random.default_rng(seed)
    for _ in range(n_permutations):
        order = np.empty(n_rows, dtype=np.intp)
        for rows in alike:
            order[rows] = generator.permuted(generator.permutation(rows), axis=1)
        yield order


def folds_by_patient(
    patients: npt.ArrayLike | None,
    n_rows: int,
    folds: int,
    seed: int = 0,
    labels: npt.ArrayLike | None = None,
) -> Rows:
    """Returns a fold number per row; rows of one patient share it.

    Args:
        patients: Patient of each row; None = one patient per row.
        n_rows: Number of rows.
        folds: Number of folds; with fewer patients, fewer are used.
        seed: Seed of the assignment.
        labels: Class of each row: patients are dealt out class by class (that of their first row),
            so that every class is spread over the folds.
    """
    clusters = rows_by_patient(patients, n_rows)
    order = np.random.default_rng(seed).permutation(len(clusters))
    if labels is not None:
        first = np.asarray(labels)[[cluster[0] for cluster in clusters]]
        order = order[np.argsort(first[order], kind="stable")]
    fold = np.empty(n_rows, dtype=np.intp)
    for place, index in enumerate(order):
        fold[clusters[index]] = place % folds
    return fold


def percentile_interval(draws: npt.ArrayLike, level: float = 0.95) -> Interval:
    """Percentile interval of bootstrap draws.

    Args:
        draws: Shape (R, ...), one entry per resample; NaN draws are ignored while they are fewer
            than half, else the bounds are NaN.
        level: Coverage, in (0, 1).

    Returns:
        Bounds of shape (...).
    """
    table = np.asarray(draws, dtype=np.float64)
    low, high = np.full(table.shape[1:], np.nan), np.full(table.shape[1:], np.nan)
    for place in np.ndindex(table.shape[1:]):
        column = table[(slice(None), *place)]
        finite = column[~np.isnan(column)]
        if column.size and 2 * finite.size > column.size:
            low[place], high[place] = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
    return Interval(low, high)


def half_sample_interval(
    estimate: npt.ArrayLike, draws: npt.ArrayLike, n_patients: int, level: float = 0.95
) -> Interval:
    """Normal interval around the estimate from the spread of the scores of half samples.

    Args:
        estimate: The score on all patients, shape (...).
        draws: The scores on the halves, shape (R, ...).
        n_patients: Number of patients.
        level: Coverage, in (0, 1).

    Returns:
        Bounds of shape (...); NaN for fewer than two draws, a draw that is NaN, or draws that are
        all the same: halves too small to score anything tell nothing of the spread.
    """
    centre, table = np.asarray(estimate, dtype=np.float64), np.asarray(draws, dtype=np.float64)
    if len(table) < 2:
        return Interval(np.full(centre.shape, np.nan), np.full(centre.shape, np.nan))
    half = n_patients // 2
    spread = np.where(np.ptp(table, axis=0) > 0, table.std(axis=0, ddof=1), np.nan)
    error = spread * np.sqrt(half / (n_patients - half))
    reach = norm.ppf((1 + level) / 2) * error
    # every score is at most 1 by definition
    return Interval(centre - reach, np.minimum(centre + reach, np.maximum(centre, 1.0)))


def json_number(value: npt.ArrayLike) -> float | None:
    """Returns a number as JSON can hold it: None where it is undefined (NaN or infinite)."""
    number = float(np.asarray(value))
    return number if np.isfinite(number) else None
