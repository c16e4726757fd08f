"""Whether treatment arms can be compared at all, and whether codes tell the arm.

The propensity is the probability of an arm given the covariates. Where it is close to 0 or 1 the
other arm has nobody alike, and what is said about it rests on the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression

from .classification import roc_auc
from .information import Array
from .intervals import folds_by_patient

__all__ = [
    "Propensity",
    "outside_overlap",
    "overlap_report",
    "propensity",
    "treatment_predictability",
]

LIMIT = 0.05  # an arm that is less probable is out of the overlap


def propensity(
    columns: npt.ArrayLike,
    treatment: npt.ArrayLike,
    patients: npt.ArrayLike | None = None,
    folds: int = 5,
    seed: int = 0,
) -> Array:
    """Probabilities of every arm from the covariates, each row's by a model that did not see it.

    Multinomial logistic regression on standardised columns, cross-fitted by patients.

    Args:
        columns: covariates without missing cells, such as by
            `medvae.networks.CovariateEncoder`, shape (N, P).
        treatment: arms, whole numbers from 0, shape (N,).
        patients: patient of each row; None = one per row.
        folds: of the cross-fit.
        seed: of the folds.

    Returns:
        Shape (N, T), rows that add up to 1.

    Raises:
        ValueError: If fewer than two arms occur, also in a fold.
    """
    x, t = np.asarray(columns, dtype=np.float64), _arms(treatment)
    found = np.zeros((len(t), int(t.max()) + 1))
    fold = folds_by_patient(patients, len(t), folds, seed, t)
    for number in np.unique(fold):
        train, held_out = fold != number, fold == number
        classes, arms = np.unique(t[train], return_inverse=True)
        fitted = Propensity.fitted(x[train], arms)
        found[np.ix_(held_out, classes)] = fitted.probabilities(x[held_out])
    return found


@dataclass(frozen=True)
class Propensity:
    """The probability of every arm given covariates, as JSON can keep it.

    Attributes:
        mean: of the columns, shape (P,).
        scale: of the columns, shape (P,).
        weights: of the standardised columns for every arm, shape (T, P).
        bias: of every arm, shape (T,).
    """

    mean: tuple[float, ...]
    scale: tuple[float, ...]
    weights: tuple[tuple[float, ...], ...]
    bias: tuple[float, ...]

    @classmethod
    def fitted(cls, columns: npt.ArrayLike, treatment: npt.ArrayLike) -> Propensity:
        """Fit a multinomial logistic regression.

        Args:
            columns: see `propensity`, shape (N, P).
            treatment: every arm from 0 to T - 1 occurs, shape (N,).

        Raises:
            ValueError: If fewer than two arms occur.
        """
        x, t = np.asarray(columns, dtype=np.float64), _arms(treatment)
        mean, scale = x.mean(axis=0), x.std(axis=0)
        scale = np.where(scale > 0, scale, 1.0)
        if not x.shape[1]:
            bias = np.log(np.bincount(t) / len(t))
            return cls((), (), ((),) * len(bias), tuple(bias.tolist()))
        model = LogisticRegression(max_iter=5000).fit((x - mean) / scale, t)
        weights, bias = model.coef_, model.intercept_
        if len(weights) == 1:  # scikit-learn gives the odds of the second arm alone
            weights, bias = np.concatenate([0 * weights, weights]), np.array([0.0, bias[0]])
        rows = tuple(tuple(row) for row in weights.tolist())
        return cls(tuple(mean.tolist()), tuple(scale.tolist()), rows, tuple(bias.tolist()))

    def probabilities(self, columns: npt.ArrayLike) -> Array:
        """Return the probability of every arm, (N, T), for columns (N, P)."""
        x = (np.asarray(columns, dtype=np.float64) - self.mean) / self.scale
        weights = np.array(self.weights).reshape(len(self.bias), -1)
        found: Array = softmax(x @ weights.T + self.bias, axis=1)
        return found


def outside_overlap(probabilities: npt.ArrayLike, limit: float = LIMIT) -> npt.NDArray[np.bool_]:
    """Whether each row has an arm that is less probable than the limit.

    Args:
        probabilities: of the arms, shape (N, T).
        limit: in (0, 1 / T).
    """
    return np.asarray(probabilities, dtype=np.float64).min(axis=1) < limit


def overlap_report(
    columns: npt.ArrayLike,
    treatment: npt.ArrayLike,
    names: Sequence[str],
    patients: npt.ArrayLike | None = None,
    limit: float = LIMIT,
) -> dict[str, Any]:
    """Counts of the arms, how well covariates tell them, and the share outside the overlap.

    Args:
        columns: see `propensity`.
        treatment: shape (N,).
        names: of the arms.
        patients: see `propensity`.
        limit: see `outside_overlap`.

    Returns:
        A dict that json can write: ``arms`` (rows by name), ``auc`` (of the cross-fitted
        propensity; chance 0.5), ``limit``, ``outside`` (share of rows) and ``outside_by_arm``.
    """
    t = _arms(treatment)
    probabilities = propensity(columns, t, patients)
    outside = outside_overlap(probabilities, limit)
    return {
        "arms": {str(name): int((t == arm).sum()) for arm, name in enumerate(names)},
        "auc": roc_auc(_scores(probabilities), t),
        "chance": 0.5,
        "limit": limit,
        "outside": float(outside.mean()),
        "outside_by_arm": {
            str(name): float(outside[t == arm].mean()) for arm, name in enumerate(names)
        },
    }


def treatment_predictability(
    codes: npt.ArrayLike,
    columns: npt.ArrayLike,
    treatment: npt.ArrayLike,
    patients: npt.ArrayLike | None = None,
    seed: int = 0,
) -> float:
    """How much better codes and covariates tell the treatment than covariates alone.

    A code that is balanced given x tells nothing new: the difference of the two areas under the
    curve is then about 0, or a little less, as its columns are noise to the model.

    Args:
        codes: shape (N, D).
        columns: covariates, see `propensity`, shape (N, P).
        treatment: shape (N,).
        patients: see `propensity`.
        seed: of the folds, which both models share.

    Returns:
        AUC(t from z and x) - AUC(t from x), each cross-fitted.
    """
    x, t = np.asarray(columns, dtype=np.float64), _arms(treatment)
    both = np.concatenate([np.asarray(codes, dtype=np.float64), x], axis=1)
    with_codes, without = (
        roc_auc(_scores(propensity(part, t, patients, seed=seed)), t) for part in (both, x)
    )
    return float(with_codes - without)


def _scores(probabilities: Array) -> Array:
    return probabilities[:, 1] if probabilities.shape[1] == 2 else probabilities


def _arms(treatment: npt.ArrayLike) -> npt.NDArray[np.intp]:
    values = np.asarray(treatment, dtype=np.float64)
    if values.ndim != 1 or not np.array_equal(values, np.round(values)) or (values < 0).any():
        raise ValueError("treatment must hold whole numbers from 0, shape (N,).")
    if len(np.unique(values)) < 2:
        raise ValueError("treatment holds one arm only, expected at least two.")
    return values.astype(np.intp)
