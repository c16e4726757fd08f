"""Simple estimators of a treatment's effect, to stand beside a model's: (N, ...) in, maps out.

Arms are 0 (control) and 1; outcomes are numbers or images, each voxel for itself.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LinearRegression
from sklearn.neighbors import NearestNeighbors

from .information import Array
from .overlap import propensity

__all__ = ["combat", "difference_of_means", "inverse_propensity", "regression", "t_learner"]

CLIP = 0.01  # smallest propensity that is divided by
EMPIRICAL_BAYES_STEPS = 30


def difference_of_means(outcome: npt.ArrayLike, treatment: npt.ArrayLike) -> Array:
    """Mean of the treated minus mean of the controls, shape (...): confounded as the data are."""
    y, t = _checked(outcome, treatment)
    difference: Array = y[t == 1].mean(axis=0) - y[t == 0].mean(axis=0)
    return difference


def inverse_propensity(
    outcome: npt.ArrayLike,
    treatment: npt.ArrayLike,
    columns: npt.ArrayLike,
    patients: npt.ArrayLike | None = None,
) -> Array:
    """Difference of means weighted by the inverse propensity, normalised (Hájek), shape (...).

    Args:
        outcome: shape (N, ...).
        treatment: 0 or 1, shape (N,).
        columns: covariates, shape (N, P); the propensity is cross-fitted, and clipped to
            [0.01, 0.99].
        patients: patient of each row.
    """
    y, t = _checked(outcome, treatment)
    e = propensity(columns, t, patients)[:, 1].clip(CLIP, 1 - CLIP)
    weights = np.where(t == 1, 1 / e, 1 / (1 - e))
    treated, control = (
        np.average(y[t == arm], axis=0, weights=weights[t == arm]) for arm in (1, 0)
    )
    effect: Array = treated - control
    return effect


def regression(
    outcome: npt.ArrayLike,
    treatment: npt.ArrayLike,
    columns: npt.ArrayLike,
    at: npt.ArrayLike | None = None,
) -> Array:
    """Each subject's effect by least squares on covariates, treatment and their products.

    Args:
        outcome: shape (N, ...), every voxel a regression of its own.
        treatment: 0 or 1, shape (N,).
        columns: covariates, shape (N, P).
        at: covariates of the subjects whose effect is asked for, (M, P); None: the same N.

    Returns:
        Shape (M, ...).
    """
    y, t = _checked(outcome, treatment)
    x = np.asarray(columns, dtype=np.float64)
    asked = x if at is None else np.asarray(at, dtype=np.float64)
    design = np.concatenate([x, t[:, None], x * t[:, None]], axis=1)
    model = LinearRegression().fit(design, y.reshape(len(y), -1))
    slopes = model.coef_[:, x.shape[1] :]  # of the treatment and of its products
    effects: Array = (slopes[:, 0] + asked @ slopes[:, 1:].T).reshape(len(asked), *y.shape[1:])
    return effects


def t_learner(
    outcome: npt.ArrayLike,
    treatment: npt.ArrayLike,
    columns: npt.ArrayLike,
    k: int = 20,
    at: npt.ArrayLike | None = None,
) -> Array:
    """Each subject's effect by one nearest-neighbour regression in each arm.

    Args:
        outcome: shape (N, ...).
        treatment: 0 or 1, shape (N,).
        columns: covariates on one scale, shape (N, P).
        k: neighbours, or all of an arm that has fewer.
        at: covariates of the subjects whose effect is asked for, (M, P); None: the same N.

    Returns:
        Shape (M, ...).
    """
    y, t = _checked(outcome, treatment)
    x = np.asarray(columns, dtype=np.float64)
    asked = x if at is None else np.asarray(at, dtype=np.float64)
    treated, control = (_of_neighbours(y[t == arm], x[t == arm], asked, k) for arm in (1, 0))
    effects: Array = treated - control
    return effects


def _of_neighbours(outcome: Array, columns: Array, asked: Array, k: int) -> Array:
    """Mean outcome (M, ...) of the k subjects whose columns are nearest to those asked for."""
    k = min(k, len(outcome))
    near = NearestNeighbors(n_neighbors=k).fit(columns).kneighbors(asked, return_distance=False)
    total = np.zeros((len(asked), *outcome.shape[1:]))
    for neighbour in near.T:  # one at a time: all at once would be k images of every subject
        total += outcome[neighbour]
    return total / k


def combat(
    outcome: npt.ArrayLike, treatment: npt.ArrayLike, columns: npt.ArrayLike
) -> tuple[Array, Array]:
    """Each subject's outcome under either arm by location and scale (Johnson et al. 2007).

    For a treatment that is a scanner or a site. Features (voxels) are standardised by a regression
    on covariates, each arm's mean and variance of what remains are shrunk over the features by
    empirical Bayes, and a subject's remainder is moved from its arm to the other's.

    Args:
        outcome: shape (N, ...).
        treatment: 0 or 1, shape (N,).
        columns: covariates to be kept, shape (N, P).

    Returns:
        Outcomes under arm 0 and under arm 1, each (N, ...); that of the own arm is the outcome.
    """
    y, t = _checked(outcome, treatment)
    flat, x = y.reshape(len(y), -1), np.asarray(columns, dtype=np.float64)
    design = np.concatenate([x, t[:, None]], axis=1)
    model = LinearRegression().fit(design, flat)
    # the grand mean of both arms; the arms' shifts are what is to be found
    shift = model.coef_[:, -1]
    kept = model.intercept_ + shift * t.mean() + x @ model.coef_[:, :-1].T
    sd = (flat - model.predict(design)).std(axis=0)
    varies = sd > 1e-6 * max(float(sd.max()), 1e-12)  # others, such as air, tell nothing of arms
    if not varies.any():
        return y.copy(), y.copy()
    sd = sd[varies]
    rest = (flat[:, varies] - kept[:, varies]) / sd
    moments = [_shrunk(rest[t == arm]) for arm in (0, 1)]
    own = [np.stack([moments[arm][part] for arm in t]) for part in (0, 1)]
    plain = (rest - own[0]) / own[1]
    exact = [flat.copy(), flat.copy()]
    for arm, (location, scale) in enumerate(moments):
        moved = (plain * scale + location) * sd + kept[:, varies]
        exact[arm][:, varies] = np.where(t[:, None] == arm, flat[:, varies], moved)
    return exact[0].reshape(y.shape), exact[1].reshape(y.shape)


def _shrunk(rest: Array) -> tuple[Array, Array]:
    """Mean and standard deviation of each feature within an arm, pulled to those of all features.

    Normal prior on the mean, inverse gamma on the variance, with moments of the features; solved
    by the alternating updates of Johnson et al. (2007), equation 3.
    """
    n, mean, variance = len(rest), rest.mean(axis=0), rest.var(axis=0, ddof=1)
    prior_mean, prior_variance = mean.mean(), mean.var() + 1e-12
    level, spread = variance.mean(), variance.var() + 1e-12
    shape, rate = level**2 / spread + 2, level * (level**2 / spread + 1)
    location, scale = mean, variance
    for _ in range(EMPIRICAL_BAYES_STEPS):
        location = (n * prior_variance * mean + scale * prior_mean) / (n * prior_variance + scale)
        squares = ((rest - location) ** 2).sum(axis=0)
        scale = (rate + squares / 2) / (n / 2 + shape - 1)
    return location, np.sqrt(scale)


def _checked(
    outcome: npt.ArrayLike, treatment: npt.ArrayLike
) -> tuple[Array, npt.NDArray[np.intp]]:
    y, t = np.asarray(outcome, dtype=np.float64), np.asarray(treatment)
    if t.shape != y.shape[:1] or set(np.unique(t).tolist()) != {0, 1}:
        raise ValueError(
            f"treatment must be 0 or 1 for each of the {len(y)} outcomes, both occurring, found "
            f"shape {t.shape} and values {np.unique(t).tolist()[:5]}."
        )
    return y, t.astype(np.intp)
