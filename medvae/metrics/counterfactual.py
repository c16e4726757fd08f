"""What edits of images do to a classifier, and what goes along with a coordinate, with chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment
from scipy.stats import rankdata

from .information import Array
from .intervals import bootstrap_rows, json_number, percentile_interval, permuted_rows

__all__ = [
    "EditChanges",
    "associations",
    "attribute_stability",
    "co_acting",
    "covariate_design",
    "mean_with_interval",
]

Design = npt.NDArray[np.float64]


class EditChanges(NamedTuple):
    """What each of M edits changes in the same images.

    Attributes:
        maps: Mean signed changes of the image, shape (M, V).
        logits: Changes of the logits of all images, shape (M, R).
    """

    maps: npt.ArrayLike
    logits: npt.ArrayLike


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
    patients: npt.ArrayLike | None = None,
    n_permutations: int = 200,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Any]:
    """Reports how coordinates go along with covariates over the images, beside chance.

    The rank correlation (Spearman), or for more than two classes the multiple correlation of the
    ranks with the classes, which has no sign. Chance is the family's: the given quantile of the
    largest absolute value of all pairs when patients swap their images' coordinates, as images of
    one patient are alike.

    Args:
        coordinates: Shape (N, M).
        covariates: Values of N images by name, see :func:`covariate_design`.
        given: Class of each image, (N,); what goes along with it alone is taken out of both sides,
            so that a sign of the class is not found in all that goes along with the class.
        patients: Patient of each image, (N,); None = one each. Those with as many images swap.
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
    largest = []
    for order in permuted_rows(patients, len(x), n_permutations if parts else 0, seed):
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
    alike = (np.abs(_rows_alike(maps, maps)) >= limit) & (
        np.abs(_rows_alike(changes, changes)) >= limit
    )
    groups = list(range(len(alike)))
    for first in range(len(alike)):
        for second in range(first):
            if alike[first, second]:
                old, new = groups[first], groups[second]
                groups = [new if group == old else group for group in groups]
    numbers: dict[int, int] = {}
    return [numbers.setdefault(group, len(numbers)) for group in groups]


def attribute_stability(
    first: EditChanges,
    second: EditChanges,
    random_first: EditChanges,
    random_second: EditChanges,
    counts: Sequence[int] = (1, 3, 5, 10),
    limit: float = 0.8,
    draws: int = 100,
    seed: int = 0,
) -> dict[str, Any]:
    """Reports how many attributes of two runs are the same, beside chance.

    Two attributes are the same whose mean signed image changes and whose changes of the logits both
    correlate by at least the limit, with the same sign: up to the direction of the edit. Each has
    one partner at most, by the matching of most pairs. Chance is the mean share where random edits
    take the place of one of the runs' attributes.

    Args:
        first: Of the attributes of a run, the best first.
        second: Of another run, on the same images.
        random_first: Of random edits of the first run.
        random_second: Of the second.
        counts: How many attributes of each are matched; beyond the shorter list, all of that.
        limit: Least correlation.
        draws: Sets of random edits for each of both.
        seed: Of the draws.

    Returns:
        ``top``: by count ``matched``, the share in [0, 1], and ``chance`` (None without random
        edits); ``pairs``: of the largest count ``first`` and ``second``, numbers from 1, and the
        correlations ``map`` and ``logits``. Both are empty where a run has no attributes.

    Raises:
        ValueError: If the changes are not of the same images.
    """
    parts = (first, second, random_first, random_second)
    widths = {(np.shape(part.maps)[1], np.shape(part.logits)[1]) for part in parts}
    if len(widths) > 1:
        raise ValueError(f"changes have widths {sorted(widths)}, expected those of one set images")
    longest = min(len(np.asarray(first.maps)), len(np.asarray(second.maps)))
    generator, alike = np.random.default_rng(seed), _alike(first, second)
    against = (_alike(first, random_second), _alike(random_first, second).T)
    found: dict[str, Any] = {"limit": limit, "top": {}, "pairs": []}
    for count in sorted({min(count, longest) for count in counts} - {0}):
        luck = [
            len(_matching(table[:count, generator.permutation(table.shape[1])[:count]], limit))
            for table in against
            for _ in range(draws if table.shape[1] else 0)
        ]
        matching = _matching(alike[:count, :count], limit)
        found["top"][str(count)] = {
            "matched": len(matching) / count,
            "chance": float(np.mean(luck)) / count if luck else None,
        }
        found["pairs"] = [
            {
                "first": a + 1,
                "second": b + 1,
                "map": float(_rows_alike(first.maps, second.maps)[a, b]),
                "logits": float(_rows_alike(first.logits, second.logits)[a, b]),
            }
            for a, b in matching
        ]
    return found


def _alike(first: EditChanges, second: EditChanges) -> Array:
    """Returns the smaller of both correlations of all edits, (M, M'); below 0 if signs differ."""
    maps = _rows_alike(first.maps, second.maps)
    logits = _rows_alike(first.logits, second.logits)
    return np.maximum(np.minimum(maps, logits), np.minimum(-maps, -logits))


def _matching(alike: Array, limit: float) -> list[tuple[int, int]]:
    """Returns the most pairs of row and column above the limit, of these the most alike."""
    worth = np.where(alike >= limit, 1 + alike / (1 + len(alike)), 0)
    rows, columns = linear_sum_assignment(worth, maximize=True)
    return [(int(a), int(b)) for a, b in zip(rows, columns, strict=True) if worth[a, b]]


def _rows_alike(first: npt.ArrayLike, second: npt.ArrayLike) -> Array:
    """Returns the correlations of the rows of two tables."""
    alike: Array = _unit_rows(first) @ _unit_rows(second).T
    return alike


def _unit_rows(table: npt.ArrayLike) -> Array:
    rows = np.asarray(table, dtype=np.float64)
    rows = rows - rows.mean(1, keepdims=True)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: Array = rows / np.where(length > 0, length, 1)
    return unit


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
