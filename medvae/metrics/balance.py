"""Banks and test sets in which one factor says nothing of the others.

A *cell* is a class of the target factor within one combination of the other factors' classes, its
*stratum*. Where all cells are equally frequent the target is independent of the others, and what a
probe finds is not owed to their going together. A stratum that lacks a class of the target, or has
too few rows of it, cannot be balanced and is left out with all its rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from medvae.data import joint_classes

from .information import Array
from .intervals import Rows

__all__ = ["Cells", "balanced_draws", "balanced_weights", "cells", "levels"]

LARGE_CELL = 100  # rows; draws from larger cells hardly differ


class Cells(NamedTuple):
    """The cells that can be balanced.

    Attributes:
        rows: of every cell.
        strata: how many were kept.
        left_out: how many lack a class of the target, or have too few rows of it.
    """

    rows: list[Rows]
    strata: int
    left_out: int


def levels(values: npt.ArrayLike, reference: npt.ArrayLike) -> Array:
    """Return the third, of the reference's known values, that each value lies in; NaN stays NaN.

    Args:
        values: of a continuous factor, shape (N,).
        reference: those of the bank, shape (M,).

    Returns:
        0, 1 or 2 in shape (N,); all NaN where the reference is.
    """
    column, known = np.asarray(values, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    known = known[~np.isnan(known)]
    if not known.size:
        return np.full(column.shape, np.nan)
    third = np.searchsorted(np.quantile(known, [1 / 3, 2 / 3]), column, side="right")
    return np.where(np.isnan(column), np.nan, third)


def cells(target: npt.ArrayLike, others: npt.ArrayLike, least: int = 1) -> Cells:
    """Return the rows of all cells of the strata that have every class of the target.

    Args:
        target: class numbers of the target, shape (N,), NaN where missing.
        others: those of the factors to balance against, shape (N, K); a constant column for none.
        least: rows that a cell needs.
    """
    y, z = np.asarray(target, dtype=np.float64), np.asarray(others, dtype=np.float64)
    stratum = joint_classes(z, range(z.shape[1]))
    stratum[np.isnan(y)] = -1
    classes = np.unique(y[~np.isnan(y)])
    kept: list[Rows] = []
    left_out = 0
    names = np.unique(stratum[stratum >= 0])
    for name in names:
        found = [np.flatnonzero((stratum == name) & (y == label)) for label in classes]
        if min(rows.size for rows in found) < least:
            left_out += 1
        else:
            kept.extend(found)
    return Cells(kept, len(names) - left_out, left_out)


def balanced_draws(found: Cells, draws: int, seed: int = 0) -> Iterator[Rows]:
    """Yield the rows of balanced banks: of every cell as many as the smallest has, no row twice.

    Args:
        found: of :func:`cells`; nothing is yielded where no stratum was kept.
        draws: how many; one where all cells are equal or the smallest has 100 rows.
        seed: of the draws.
    """
    sizes = [rows.size for rows in found.rows]
    if not sizes:
        return
    generator = np.random.default_rng(seed)
    for _ in range(1 if max(sizes) == min(sizes) or min(sizes) >= LARGE_CELL else draws):
        drawn = [generator.choice(rows, min(sizes), replace=False) for rows in found.rows]
        yield np.sort(np.concatenate(drawn))


def balanced_weights(found: Cells, n_rows: int) -> Array:
    """Return weights (N,) under which all cells weigh the same: a balanced test set, no row lost.

    They give the expectation over all balanced draws; rows outside the cells weigh 0.
    """
    weights = np.zeros(n_rows)
    for rows in found.rows:
        weights[rows] = 1 / rows.size
    return weights
