"""Disentanglement, completeness, informativeness (Eastwood and Williams, ICLR 2018)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

from .information import (
    MIN_ROWS,
    Array,
    checked,
    discrete_columns,
    standardised_attributes,
    standardised_codes,
)
from .intervals import Rows, folds_by_patient

__all__ = ["DCI", "dci"]


class DCI(NamedTuple):
    """The three scores, in [0, 1], and what they are made of."""

    disentanglement: float
    completeness: float
    informativeness: float
    completeness_of: Array  # (K,), per attribute
    informativeness_of: Array  # (K,), per attribute
    importance: Array  # (D, K), columns sum to 1, or to 0 where nothing predicts the attribute


def dci(
    codes: npt.ArrayLike,
    attributes: npt.ArrayLike,
    discrete: npt.ArrayLike | None = None,
    patients: npt.ArrayLike | None = None,
    folds: int = 3,
    trees: int = 20,
    seed: int = 0,
) -> DCI:
    """Scores the importance of every axis for predicting every attribute.

    A small random forest per attribute (at least five rows per leaf) is fitted in each training
    fold. Importance is the forests' mean impurity decrease, averaged over the folds;
    informativeness is measured on the held-out folds.

    - disentanglement: 1 - entropy (base K) of each axis's importance over attributes, averaged in
      proportion to the axes' total importance; 1 = every used axis serves one attribute;
    - completeness: 1 - entropy (base D) of each attribute's importance over axes; 1 = one axis is
      enough;
    - informativeness: 1 - held-out error / error of the best constant, floored at 0: squared error
      for continuous attributes (that is R²), misclassification for discrete ones.

    Args:
        codes: Shape (N, D), finite.
        attributes: Shape (N, K); NaN = missing, masked per attribute.
        discrete: One boolean per attribute; None decides by :func:`is_discrete`.
        patients: Patient of each row: rows of one patient stay in one fold. None = no patients.
        folds: Number of folds; fewer where there are fewer patients.
        trees: Trees per forest.
        seed: Seed of folds and forests.

    Returns:
        The scores. Attributes with fewer than five observed rows or fewer than two patients are NaN
        and left out of the means; all three are 0 where nothing predicts anything, disentanglement
        is NaN for a single attribute and completeness for a single axis.
    """
    z_all, y_all = checked(codes, attributes)
    flags = discrete_columns(y_all, discrete)
    fold = folds_by_patient(patients, len(z_all), folds, seed)
    importance = np.full((z_all.shape[1], y_all.shape[1]), np.nan)
    informativeness = np.full(y_all.shape[1], np.nan)
    for k, y in enumerate(y_all.T):
        rows = ~np.isnan(y)
        if rows.sum() >= MIN_ROWS and np.unique(fold[rows]).size >= 2:
            fitted = _held_out(z_all[rows], y[rows], fold[rows], bool(flags[k]), trees, seed)
            importance[:, k], informativeness[k] = fitted
    return _summary(importance, informativeness)


def _held_out(
    codes: Array, attribute: Array, fold: Rows, discrete: bool, trees: int, seed: int
) -> tuple[Array, float]:
    """Returns the importance of each axis for one attribute and the held-out informativeness."""
    z, y = standardised_codes(codes), standardised_attributes(attribute)
    if not y.any():
        return np.zeros(z.shape[1]), 0.0
    forest = RandomForestClassifier if discrete else RandomForestRegressor
    if discrete:
        y = np.unique(y, return_inverse=True)[1].astype(np.float64)
    predicted, importance = np.empty_like(y), np.zeros(z.shape[1])
    for held_out in np.unique(fold):
        train, test = fold != held_out, fold == held_out
        # the classifier's default of sqrt(D) candidates per split would credit noise axes
        model = forest(trees, min_samples_leaf=5, max_features=None, random_state=seed)
        predicted[test] = model.fit(z[train], y[train]).predict(z[test])
        importance += model.feature_importances_
    if discrete:
        error, constant = np.mean(predicted != y), 1 - np.bincount(y.astype(int)).max() / y.size
    else:
        error, constant = np.mean((predicted - y) ** 2), np.var(y)
    return _shares(importance, axis=0), max(0.0, float(1 - error / constant))


def _summary(importance: Array, informativeness: Array) -> DCI:
    kept = importance[:, ~np.isnan(importance).any(axis=0)]
    n_axes, n_attributes = kept.shape
    weight = _shares(kept.sum(axis=1), axis=0)
    if n_attributes > 1:
        per_axis = 1 - _entropy(kept, axis=1) / np.log(n_attributes)
        disentanglement = float(np.sum(weight * per_axis))
    else:
        disentanglement = float("nan")
    if n_axes > 1:
        used = np.where(importance.any(axis=0), 1.0, 0.0)
        completeness = used * (1 - _entropy(importance, axis=0) / np.log(n_axes))
    else:
        completeness = np.full(informativeness.shape, np.nan)
    return DCI(
        disentanglement,
        _mean(completeness),
        _mean(informativeness),
        completeness,
        informativeness,
        importance,
    )


def _shares(values: Array, axis: int) -> Array:
    total = values.sum(axis=axis, keepdims=True)
    shares: Array = values / np.where(total == 0, 1.0, total)
    return shares


def _entropy(values: Array, axis: int) -> Array:
    share = _shares(values, axis)
    result: Array = -np.sum(share * np.log(np.where(share == 0, 1.0, share)), axis=axis)
    return result


def _mean(values: Array) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
