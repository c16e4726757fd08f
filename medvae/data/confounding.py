"""Confounding made on a cohort by leaving rows out, so that its truth is known."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from medvae.data.errors import CohortError

__all__ = ["confounded_rows", "joint_classes"]

Array = npt.NDArray[np.float64]


def confounded_rows(
    values: Array, splits: Sequence[str], strength: float, seed: int = 0
) -> npt.NDArray[np.bool_]:
    """Choose rows in which two factors go together, but not in the test split.

    In train and val class i of the first factor comes with class i of the second (modulo its
    number of classes) with probability ``strength``, and otherwise with a class as frequent as it
    is in the split; for two balanced classes they agree with probability ``(1 + strength) / 2``.
    As many rows are kept as that allows. In the test split every combination keeps as many rows as
    the rarest has, so that the one factor says nothing of the other.

    Args:
        values: class numbers of both factors, shape (N, 2), NaN where missing; such rows are left
            out.
        splits: train, val or test of every row.
        strength: in [0, 1].
        seed: of the choice among equals.

    Returns:
        Whether to keep each row, shape (N,).

    Raises:
        CohortError: a strength out of its range, or a combination that is needed and has no row.
    """
    if not 0 <= strength <= 1:
        raise CohortError(f"The confounding's strength is {strength}; expected 0 to 1.")
    cells, where = joint_classes(values, [0, 1]), np.asarray(splits)
    rng = np.random.default_rng(seed)
    keep = np.zeros(len(values), dtype=bool)
    for split in ("train", "val", "test"):
        rows = np.flatnonzero((where == split) & (cells >= 0))
        if not len(rows):
            continue
        counts = _counts(values[rows])
        share = _shares(counts, strength) if split != "test" else np.ones(counts.shape)
        if ((share > 0) & (counts == 0)).any():
            first, second = np.argwhere((share > 0) & (counts == 0))[0]
            raise CohortError(
                f"No row of the split {split} has class {first} of the first factor and class "
                f"{second} of the second; expected at least one to make their confounding."
            )
        total = (counts[share > 0] / share[share > 0]).min()
        for (first, second), wanted in np.ndenumerate(np.rint(share * total).astype(int)):
            found = rows[(values[rows, 0] == first) & (values[rows, 1] == second)]
            keep[rng.permutation(found)[:wanted]] = True
    return keep


def joint_classes(values: Array, columns: Sequence[int]) -> npt.NDArray[np.int64]:
    """Number the combinations of the columns' classes, -1 where one is missing.

    Args:
        values: class numbers, shape (N, K), NaN where missing.
        columns: at least one.
    """
    chosen = values[:, list(columns)]
    missing = np.isnan(chosen).any(1)
    _, cell = np.unique(np.nan_to_num(chosen), axis=0, return_inverse=True)
    return np.where(missing, -1, cell.reshape(-1)).astype(np.int64)


def _counts(values: Array) -> npt.NDArray[np.int64]:
    """Return the contingency table of two columns of class numbers."""
    pairs = values.astype(int)
    counts = np.zeros(pairs.max(0) + 1, dtype=np.int64)
    np.add.at(counts, (pairs[:, 0], pairs[:, 1]), 1)
    return counts


def _shares(counts: npt.NDArray[np.int64], strength: float) -> Array:
    """Return the joint distribution to be made, which keeps the first factor's own."""
    first, second = counts.sum(1) / counts.sum(), counts.sum(0) / counts.sum()
    partner = np.arange(len(first)) % len(second)
    agreeing = np.eye(len(second))[partner]
    return first[:, None] * (strength * agreeing + (1 - strength) * second)
