"""What lies where in the latent space: the map, and how much of each attribute on each axis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import beta

__all__ = ["Codes", "codes_of", "principal_axes", "r2_chance_p95", "shared", "telling_axes"]

Array = npt.NDArray[np.float64]


class Codes(NamedTuple):
    """The latent codes (N, D), and their numbers D: columns `z0`, `z1`, ... of a table."""

    values: Array
    axes: tuple[int, ...]


def codes_of(subjects: pd.DataFrame) -> Codes:
    """Return the codes in a table of predictions."""
    names = [c for c in subjects if str(c).startswith("z") and str(c)[1:].isdigit()]
    numbers = tuple(int(str(name)[1:]) for name in names)
    return Codes(subjects[names].to_numpy(dtype=float), numbers)


def principal_axes(codes: Array, fitted: npt.NDArray[np.bool_]) -> tuple[Array, Array]:
    """Return the two first principal components (N, 2), of the fitted rows, and their shares."""
    centre = codes[fitted].mean(axis=0)
    _, spread, directions = np.linalg.svd(codes[fitted] - centre, full_matrices=False)
    shares = spread**2 / max(float((spread**2).sum()), 1e-30)
    return (codes - centre) @ directions[:2].T, shares[:2]


def shared(left: npt.ArrayLike, right: npt.ArrayLike) -> Array:
    """Return the squared correlation of every column of (N, K) with every one of (N, D).

    NaN in `left` is left out; a constant column shares nothing that could be measured: NaN.
    """
    x, y = np.asarray(left, dtype=float), np.asarray(right, dtype=float)
    found = np.full((x.shape[1], y.shape[1]), np.nan)
    for k, column in enumerate(x.T):
        known = np.isfinite(column)
        if known.sum() < 3 or column[known].std() == 0:
            continue
        a, b = column[known] - column[known].mean(), y[known] - y[known].mean(axis=0)
        power = (b**2).sum(axis=0)
        varies = power > 0
        found[k, varies] = (a @ b[:, varies]) ** 2 / ((a**2).sum() * power[varies])
    return found


def telling_axes(codes: Array, groups: Sequence[Any], count: int = 2) -> list[int]:
    """Return the columns of codes (N, D) whose variance lies most between groups (eta²)."""
    total = codes.var(axis=0)
    labels = np.asarray(groups, dtype=object)
    known = [g for g in dict.fromkeys(labels.tolist())]
    within = sum((labels == g).mean() * codes[labels == g].var(axis=0) for g in known)
    share = 1 - np.asarray(within) / np.where(total > 0, total, np.inf)
    share[total <= 0] = -1.0
    return [int(c) for c in np.argsort(-share, kind="stable")[:count]]


def r2_chance_p95(rows: int) -> float:
    """Return the squared correlation that two unrelated normal variables stay below in 95 %."""
    return float(beta.ppf(0.95, 0.5, (rows - 2) / 2)) if rows > 2 else 1.0
