"""Agreement of several raters beyond chance, of categories and of ordered scales."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from .information import Array
from .intervals import json_number, percentile_interval

__all__ = ["agreement_report", "fleiss_kappa", "krippendorff_alpha"]

Level = Literal["nominal", "ordinal", "interval"]


def fleiss_kappa(counts: npt.ArrayLike) -> float:
    r"""Agreement of raters on categories (Fleiss 1971).

    .. math:: \kappa = \frac{\bar P - \bar P_e}{1 - \bar P_e}

    with the mean share of pairs of raters that agree on an item, and the share that would by the
    categories' frequencies alone.

    Args:
        counts: Shape (N, K), how many raters put each item into each category; the same number of
            raters, 2 or more, for every item.

    Returns:
        1 for full agreement, about 0 for chance; NaN where all ratings are of one category.

    Raises:
        ValueError: If items have different numbers of ratings, or fewer than two.
    """
    table = np.asarray(counts, dtype=np.float64)
    if table.ndim != 2 or not table.size:
        raise ValueError(f"counts have shape {table.shape}, expected (N, K) of items by category.")
    raters = table.sum(1)
    if raters.min() != raters.max() or raters[0] < 2:
        raise ValueError(
            f"items have from {raters.min():g} to {raters.max():g} ratings, expected the same "
            "number, 2 or more; krippendorff_alpha takes items that some have not rated."
        )
    n = raters[0]
    agreed = ((table**2).sum(1) - n) / (n * (n - 1))
    expected = float(((table.sum(0) / table.sum()) ** 2).sum())
    return float("nan") if expected == 1 else float((agreed.mean() - expected) / (1 - expected))


def krippendorff_alpha(ratings: npt.ArrayLike, level: Level = "nominal") -> float:
    r"""Agreement of raters who need not have rated every item (Krippendorff 2011).

    .. math:: \alpha = 1 - D_o / D_e

    with the observed and the expected mean difference of two ratings of one item and of any two.

    Args:
        ratings: Shape (raters, items), numbers, NaN = not rated.
        level: How far two ratings are apart: "nominal" (different or not), "ordinal" (how many
            ratings lie between) or "interval" (their squared difference).

    Returns:
        1 for full agreement, about 0 for chance, below for systematic disagreement; NaN where
        fewer than two ratings can be compared or all are the same.

    Raises:
        ValueError: For another level or shape.
    """
    table = np.asarray(ratings, dtype=np.float64)
    if table.ndim != 2 or level not in ("nominal", "ordinal", "interval"):
        raise ValueError(
            f"ratings of shape {table.shape} at level {level!r}, expected (raters, items) and "
            "nominal, ordinal or interval."
        )
    table = table[:, (~np.isnan(table)).sum(0) >= 2]
    values = np.unique(table[~np.isnan(table)])
    pairs = np.zeros((len(values), len(values)))
    for item in table.T:
        counts = np.array([(item == value).sum() for value in values], dtype=np.float64)
        pairs += (np.outer(counts, counts) - np.diag(counts)) / (counts.sum() - 1)
    totals = pairs.sum(0)
    apart = _apart(values, totals, level)
    expected = (np.outer(totals, totals) * apart).sum() / max(totals.sum() - 1, 1)
    return float("nan") if expected == 0 else float(1 - (pairs * apart).sum() / expected)


def agreement_report(
    ratings: npt.ArrayLike,
    level: Level = "nominal",
    n_resamples: int = 1000,
    n_permutations: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Reports alpha and, where all have rated all, Fleiss' kappa, with intervals and chance.

    Args:
        ratings: Shape (raters, items), NaN = not rated.
        level: See :func:`krippendorff_alpha`; kappa is of nominal ratings alone.
        n_resamples: Bootstrap resamples of items, for intervals.
        n_permutations: Permutations of each rater's answers over the items, for chance.
        seed: Seed of the draws.

    Returns:
        ``raters``, ``items``, ``alpha`` and ``kappa``, each None or value, low, high and
        chance_high, the 95th percentile of what permuted answers give.
    """
    table = np.asarray(ratings, dtype=np.float64)
    scores: dict[str, Callable[[Array], float]] = {
        "alpha": lambda part: krippendorff_alpha(part, level)
    }
    whole = table[:, ~np.isnan(table).any(0)]
    complete = level == "nominal" and whole.shape[1] == table.shape[1] and len(table) > 1
    if complete:
        scores["kappa"] = _kappa
    report: dict[str, Any] = {"raters": len(table), "items": table.shape[1], "kappa": None}
    for name, score in scores.items():
        generator = np.random.default_rng(seed)
        items = table.shape[1]
        draws = [score(table[:, generator.integers(items, size=items)]) for _ in range(n_resamples)]
        low, high = percentile_interval(draws)
        permuted = [
            score(np.stack([generator.permutation(row) for row in table]))
            for _ in range(n_permutations)
        ]
        known = [value for value in permuted if not np.isnan(value)]
        report[name] = {
            "value": json_number(score(table)),
            "low": json_number(low),
            "high": json_number(high),
            "chance_high": json_number(np.quantile(known, 0.95)) if known else None,
        }
    return report


def _kappa(table: Array) -> float:
    values: Sequence[float] = np.unique(table).tolist()
    return fleiss_kappa(np.stack([(table == value).sum(0) for value in values], 1))


def _apart(values: Array, totals: Array, level: Level) -> Array:
    """Returns the squared distances of all pairs of values."""
    if level == "nominal":
        return 1 - np.eye(len(values))
    if level == "interval":
        return np.square(values[:, None] - values)
    ranks = np.cumsum(totals) - totals / 2
    return np.square(ranks[:, None] - ranks)
