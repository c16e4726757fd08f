"""What edits of images do to a classifier, and what goes along with a coordinate, with chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from .information import Array
from .intervals import bootstrap_rows, json_number, percentile_interval

__all__ = ["associations", "co_acting", "covariate_design", "mean_with_interval"]

Design = npt.NDArray[np.float64]


def mean_with_interval(
    values: npt.ArrayLike,
    patients: npt.ArrayLike | None = None,
    n_resamples: int = 500,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, float | int | None]:
    """Reports a mean over images with its bootstrap interval by patients.

    Args:
        values: Shape (N,), of every image; NaN = unknown, left out.
        patients: Patient of each image; None = one each.
        n_resamples: Resamples; 0 leaves the interval out.
        level: Coverage.
        seed: Seed of the draws.

    Returns:
        ``value``, ``low``, ``high`` (None where not defined) and ``images`` (N).
    """
    x = np.asarray(values, dtype=np.float64)
    known = ~np.isnan(x)
    names = None if patients is None else np.asarray(patients)[known]
    x = x[known]
    if x.size == 0:
        return {"value": None, "low": None, "high": None, "images": 0}
    draws = [x[rows].mean() for rows in bootstrap_rows(names, x.size, n_resamples, seed)]
    low, high = percentile_interval(draws, level) if draws else (np.nan, np.nan)
    return {
        "value": json_number(x.mean()),
        "low": json_number(low),
        "high": json_number(high),
        "images": int(x.size),
    }


def covariate_design(values: Sequence[Any]) -> tuple[Design, npt.NDArray[np.bool_]]:
    """Returns a covariate as columns to regress on, and which rows are known.

    Numbers and two classes become one column of ranks; more classes one column each but the first.

    Args:
        values: Shape (N,), numbers or text; None or NaN = missing.
    """
    known = np.array([value is not None and value == value for value in values])
    kept = [value for value, ok in zip(values, known, strict=True) if ok]
    try:
        numbers = np.asarray(kept, dtype=np.float64)
    except (TypeError, ValueError):
        names = sorted({str(value) for value in kept})
        codes = np.array([names.index(str(value)) for value in kept])
        if len(names) > 2:
            return np.eye(len(names))[codes][:, 1:], known
        numbers = codes.astype(np.float64)
    return rankdata(numbers)[:, None], known


def associations(
    coordinates: npt.ArrayLike,
    covariates: Mapping[str, Sequence[Any]],
    given: npt.ArrayLike | None = None,
    n_permutations: int = 200,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Any]:
    """Reports how coordinates go along with covariates over the images, beside chance.

    The rank correlation (Spearman), or for more than two classes the multiple correlation of the
    ranks with the classes, which has no sign. Chance is the family's: the given quantile of the
    largest absolute value of all pairs when the images' coordinates are permuted.

    Args:
        coordinates: Shape (N, M).
        covariates: Values of N images by name, see :func:`covariate_design`.
        given: Class of each image, (N,); what goes along with it alone is taken out of both sides,
            so that a sign of the class is not found in all that goes along with the class.
        n_permutations: Permutations for chance; 0 leaves it out.
        level: Quantile.
        seed: Seed of the permutations.

    Returns:
        ``values``: by covariate, M numbers (None where it is constant or nearly unknown),
        ``chance``: the quantile, or None.
    """
    x = np.asarray(coordinates, dtype=np.float64)
    parts = {}
    for name, values in covariates.items():
        design, known = covariate_design(values)
        fixed = np.ones((int(known.sum()), 1))
        if given is not None:
            classes = np.asarray(given)[known]
            fixed = (classes[:, None] == np.unique(classes)).astype(np.float64)
        basis = _basis(design, fixed)
        if basis is not None and len(basis) > fixed.shape[1] + basis.shape[1] + 2:
            parts[name] = (basis, fixed, known)
    found = {
        name: _correlations(x[known], basis, fixed) for name, (basis, fixed, known) in parts.items()
    }
    generator, largest = np.random.default_rng(seed), []
    for _ in range(n_permutations if parts else 0):
        order = generator.permutation(len(x))
        draws = [
            np.abs(_correlations(x[order][known], basis, fixed)).max()
            for basis, fixed, known in parts.values()
        ]
        largest.append(max(draws))
    return {
        "values": {
            name: [json_number(v) for v in found[name]] if name in found else [None] * x.shape[1]
            for name in covariates
        },
        "chance": json_number(np.quantile(largest, level)) if largest else None,
    }


def co_acting(maps: npt.ArrayLike, changes: npt.ArrayLike, limit: float = 0.8) -> list[int]:
    """Returns a group number of every coordinate; those of a group do the same.

    Single linkage of coordinates whose mean signed image changes, up to sign, and whose changes of
    the logits both correlate by at least the limit.

    Args:
        maps: Mean signed changes of the image, shape (M, V).
        changes: Changes of the logits of all images, shape (M, R).
        limit: Least absolute correlation.
    """
    alike = (np.abs(_rows_alike(maps)) >= limit) & (np.abs(_rows_alike(changes)) >= limit)
    groups = list(range(len(alike)))
    for first in range(len(alike)):
        for second in range(first):
            if alike[first, second]:
                old, new = groups[first], groups[second]
                groups = [new if group == old else group for group in groups]
    numbers: dict[int, int] = {}
    return [numbers.setdefault(group, len(numbers)) for group in groups]


def _rows_alike(table: npt.ArrayLike) -> Array:
    rows = np.asarray(table, dtype=np.float64)
    rows = rows - rows.mean(1, keepdims=True)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    rows = rows / np.where(length > 0, length, 1)
    alike: Array = rows @ rows.T
    return alike


def _basis(design: Design, fixed: Design) -> Design | None:
    """Returns an orthonormal basis of the design without what is fixed; None where it is empty."""
    rest = design - fixed @ np.linalg.lstsq(fixed, design, rcond=None)[0]
    left, size, _ = np.linalg.svd(rest, full_matrices=False)
    strong = size > 1e-8 * max(1.0, float(np.linalg.norm(design)))
    if not strong.any():
        return None
    basis: Design = left[:, strong]
    if basis.shape[1] == 1:  # the sign is that of the covariate
        basis = basis * np.sign((basis * rest[:, :1]).sum() or 1)
    return basis


def _correlations(x: Array, basis: Design, fixed: Design) -> Array:
    ranks = rankdata(x, axis=0)
    rest = ranks - fixed @ np.linalg.lstsq(fixed, ranks, rcond=None)[0]
    length = np.linalg.norm(rest, axis=0)
    shares = basis.T @ rest / np.where(length > 1e-8 * len(x), length, np.inf)
    found: Array = shares[0] if basis.shape[1] == 1 else np.linalg.norm(shares, axis=0)
    return found
