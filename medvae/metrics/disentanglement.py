"""Scores of how well single latent axes carry single attributes.

All take codes (N, D) and attributes (N, K) and return one number per attribute, larger is better.
NaN attributes are masked per attribute. An axis whose variance is at most 1e-12 and a constant
attribute score 0; an attribute with fewer than five observed rows scores NaN.

Discrete attributes enter the information scores as classes (Ross's estimator, Shannon's entropy).
The linear and rank scores read their numbers as an order: for a binary attribute R² is then the
squared point-biserial correlation, and Spearman's correlation of a continuous axis with perfectly
separated, equally frequent classes tops out at 0.87. Unordered classes belong in 0/1 columns.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata, t

from .information import (
    Array,
    checked,
    entropy,
    mutual_information,
    observed_groups,
    standardised_attributes,
    standardised_codes,
)

__all__ = [
    "interpretability",
    "mig",
    "modularity",
    "r_squared",
    "rank_correlation",
    "sap",
    "scc",
]


class AxisPair(NamedTuple):
    """For each attribute the axis that is scored and the axis it is compared with, (K,) each."""

    first: npt.NDArray[np.intp]
    second: npt.NDArray[np.intp]


def interpretability(
    codes: npt.ArrayLike,
    attributes: npt.ArrayLike,
    axes: npt.ArrayLike | None = None,
    discrete: npt.ArrayLike | None = None,
) -> Array:
    """In-sample R² of the linear fit of each attribute on its axis.

    The form used with AR-VAE (Pati and Lerch, 2021, after Adel et al., ICML 2018).

    Args:
        codes: Shape (N, D), finite.
        attributes: Shape (N, K); NaN = missing.
        axes: For each attribute the axis tied to it; None takes the axis of largest mutual
            information, as published for models without tied axes.
        discrete: One boolean per attribute; None decides by :func:`is_discrete`. Only the choice of
            the axis depends on it.

    Returns:
        Shape (K,), in [0, 1].
    """
    guide = axes if axes is not None else choose(mutual_information(codes, attributes, discrete))[0]
    scores = r_squared(codes, attributes)
    return at(scores, choose(scores, guide).first)


def scc(
    codes: npt.ArrayLike,
    attributes: npt.ArrayLike,
    axes: npt.ArrayLike | None = None,
    discrete: npt.ArrayLike | None = None,
) -> Array:
    """Spearman's correlation score: |rho| of each attribute with its axis, 0 where p > 0.05.

    Args:
        codes: Shape (N, D), finite.
        attributes: Shape (N, K); NaN = missing.
        axes: For each attribute the axis tied to it; None takes the largest |rho|.
        discrete: Without effect, accepted so that all scores are called alike.

    Returns:
        Shape (K,), in [0, 1]. With axes=None chance is high: 0.46 at N = 30 and 64 axes.
    """
    scores = rank_correlation(codes, attributes)
    return at(scores, choose(scores, axes).first)


def mig(
    codes: npt.ArrayLike,
    attributes: npt.ArrayLike,
    axes: npt.ArrayLike | None = None,
    discrete: npt.ArrayLike | None = None,
) -> Array:
    """Mutual information gap (Chen et al., NeurIPS 2018), divided by the attribute's entropy.

    Args:
        codes: Shape (N, D), finite.
        attributes: Shape (N, K); NaN = missing.
        axes: For each attribute the axis tied to it: its gap to the best other axis, negative where
            another axis knows more. None: the gap of the two most informative axes.
        discrete: One boolean per attribute; None decides by :func:`is_discrete`.

    Returns:
        Shape (K,). Values depend on N (see :func:`entropy`): compare at equal N only.
    """
    information = mutual_information(codes, attributes, discrete)
    return information_gap(information, entropy(attributes, discrete), choose(information, axes))


def sap(
    codes: npt.ArrayLike,
    attributes: npt.ArrayLike,
    axes: npt.ArrayLike | None = None,
    discrete: npt.ArrayLike | None = None,
) -> Array:
    """Separated attribute predictability (Kumar et al., ICLR 2018): a gap of linear R².

    Args:
        codes: Shape (N, D), finite.
        attributes: Shape (N, K); NaN = missing.
        axes: For each attribute the axis tied to it: its gap to the best other axis, may be
            negative. None: the gap of the two best axes.
        discrete: Without effect, accepted so that all scores are called alike.

    Returns:
        Shape (K,), in [-1, 1].
    """
    scores = r_squared(codes, attributes)
    return gap(scores, choose(scores, axes))


def modularity(
    codes: npt.ArrayLike, attributes: npt.ArrayLike, discrete: npt.ArrayLike | None = None
) -> float:
    """Modularity (Ridgeway and Mozer, NeurIPS 2018): does an axis inform on one attribute only?

    Mean over all D axes of 1 - (sum of the squared information with the other attributes) /
    (largest squared information * (K - 1)); an axis that informs on nothing counts 0. Noise axes
    score about 0.9, so that the number discriminates little: read it beside its chance level.

    Args:
        codes: Shape (N, D), finite.
        attributes: Shape (N, K); NaN = missing; attributes below five observed rows are left out.
        discrete: One boolean per attribute; None decides by :func:`is_discrete`.

    Returns:
        A number in [0, 1]; NaN for fewer than two usable attributes.
    """
    return modularity_of(mutual_information(codes, attributes, discrete))


def r_squared(codes: npt.ArrayLike, attributes: npt.ArrayLike) -> Array:
    """Squared Pearson correlation of every axis with every attribute, shape (D, K)."""
    z_all, y_all = checked(codes, attributes)
    result = np.full((z_all.shape[1], y_all.shape[1]), np.nan)
    for rows, columns in observed_groups(y_all):
        z = standardised_codes(z_all[rows])
        y = standardised_attributes(y_all[np.ix_(rows, columns)])
        result[:, columns] = np.minimum((z.T @ y / len(y)) ** 2, 1.0)
    return result


def rank_correlation(codes: npt.ArrayLike, attributes: npt.ArrayLike) -> Array:
    """|Spearman's rho| of every axis with every attribute, 0 where p > 0.05, shape (D, K)."""
    z_all, y_all = checked(codes, attributes)
    result = np.full((z_all.shape[1], y_all.shape[1]), np.nan)
    for rows, columns in observed_groups(y_all):
        z = standardised_codes(z_all[rows])
        y = standardised_attributes(y_all[np.ix_(rows, columns)])
        z, y = (standardised_attributes(rankdata(table, axis=0)) for table in (z, y))
        rho = np.minimum(np.abs(z.T @ y / len(y)), 1.0)
        with np.errstate(divide="ignore"):  # rho = 1 has an infinite t and p = 0
            statistic = rho * np.sqrt((len(y) - 2) / (1 - rho**2))
        p = 2 * t.sf(statistic, len(y) - 2)
        result[:, columns] = np.where(p > 0.05, 0.0, rho)
    return result


def choose(scores: Array, axes: npt.ArrayLike | None = None) -> AxisPair:
    """Picks for each attribute an axis (the tied or the best one) and the best other axis.

    Args:
        scores: Shape (D, K), non-negative.
        axes: The tied axes, shape (K,), or None for the best ones.

    Returns:
        Indices; with a single axis the second index is D, which scores 0.
    """
    n_axes, n_attributes = scores.shape
    first = np.argmax(scores, axis=0) if axes is None else np.asarray(axes)
    if first.shape != (n_attributes,) or not np.issubdtype(first.dtype, np.integer):
        raise ValueError(
            f"axes = {first.tolist()}: expected one axis for each of {n_attributes} attributes."
        )
    if first.min() < 0 or first.max() >= n_axes:
        raise ValueError(f"axes = {first.tolist()}: expected numbers from 0 to {n_axes - 1}.")
    others = np.vstack((scores, np.zeros(n_attributes)))
    others[first, np.arange(n_attributes)] = -1.0
    return AxisPair(first, np.argmax(others, axis=0))


def at(scores: Array, axis: npt.NDArray[np.intp]) -> Array:
    """Returns for each attribute the score (D, K) of its axis; axis D scores 0."""
    padded = np.vstack((scores, np.where(np.isnan(scores[:1]), np.nan, 0.0)))
    picked: Array = padded[axis, np.arange(scores.shape[1])]
    return picked


def gap(scores: Array, pair: AxisPair) -> Array:
    """Returns for each attribute the score of its axis minus that of the axis compared with."""
    return at(scores, pair.first) - at(scores, pair.second)


def information_gap(information: Array, entropies: Array, pair: AxisPair) -> Array:
    """Returns the gap of information (D, K) in units of the entropies (K,), 0 where those are 0."""
    scale = np.where(entropies == 0, 1.0, entropies)
    result: Array = np.where(entropies == 0, 0.0, gap(information, pair) / scale)
    return result


def modularity_of(information: Array) -> float:
    """Returns the modularity of an information matrix (D, K)."""
    squared = information[:, ~np.isnan(information).any(axis=0)] ** 2
    if squared.shape[1] < 2:
        return float("nan")
    largest = squared.max(axis=1)
    informs = largest > 0
    spread = (squared.sum(axis=1) - largest)[informs] / (largest[informs] * (squared.shape[1] - 1))
    return float(np.sum(1 - spread) / len(squared))
