"""Effects of a treatment: their means, errors, intervals, and how robust they are.

An effect is the outcome under one treatment minus that under another: a number, or a map of the
image's shape in its unit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .information import Array
from .intervals import Interval, bootstrap_rows, json_number, percentile_interval

__all__ = [
    "EffectEstimate",
    "ate",
    "e_value",
    "effect_report",
    "estimate_ate",
    "marginal_sensitivity",
    "pehe",
    "region_means",
]


class EffectEstimate(NamedTuple):
    """A mean effect and its interval, each of the effect's shape (...)."""

    value: Array
    low: Array
    high: Array


def ate(effects: npt.ArrayLike) -> Array:
    """Average treatment effect: the mean over subjects.

    Args:
        effects: of each subject, shape (N, ...), a map where the outcome is an image.

    Returns:
        Shape (...).

    Raises:
        ValueError: If there is no subject.
    """
    values = np.asarray(effects, dtype=np.float64)
    if values.ndim < 1 or not len(values):
        raise ValueError("effects is empty, expected at least one subject.")
    mean: Array = values.mean(axis=0)
    return mean


def pehe(effects: npt.ArrayLike, truth: npt.ArrayLike) -> float:
    r"""Root of the precision in estimating heterogeneous effects (Hill 2011).

    .. math:: \sqrt{\tfrac1N \sum_i (\hat\tau_i - \tau_i)^2}

    Args:
        effects: estimated, shape (N, ...).
        truth: same shape; both potential outcomes must be known, as in simulations.

    Returns:
        In the outcome's unit, 0 for a perfect estimate; also the mean over a map's voxels. An
        estimate that is the same for all subjects scores at least the standard deviation of truth.

    Raises:
        ValueError: If the shapes differ.
    """
    estimate, exact = (np.asarray(values, dtype=np.float64) for values in (effects, truth))
    if estimate.shape != exact.shape:
        raise ValueError(f"effects have shape {estimate.shape} and truth {exact.shape}.")
    return float(np.sqrt(np.mean((estimate - exact) ** 2)))


def estimate_ate(
    effects: Array | Sequence[Array],
    patients: npt.ArrayLike | None = None,
    n_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> EffectEstimate:
    """Average effect with a percentile interval over patients and, if given, networks.

    Each resample draws patients and one network. With one network the interval leaves out what
    another training would have found, which is often the larger part.

    Args:
        effects: shape (N, ...), or a list of such arrays, one of each network.
        patients: patient of each subject; None = one per row.
        n_resamples: resamples.
        level: coverage.
        seed: of the draws.
    """
    given = [effects] if isinstance(effects, np.ndarray) else effects
    members = [np.asarray(member, dtype=np.float64) for member in given]
    generator = np.random.default_rng(seed)
    draws = [
        members[int(generator.integers(len(members)))][rows].mean(axis=0)
        for rows in bootstrap_rows(patients, len(members[0]), n_resamples, seed)
    ]
    value = np.mean([member.mean(axis=0) for member in members], axis=0)
    unknown = np.full(np.shape(value), np.nan)
    low, high = percentile_interval(draws, level) if draws else Interval(unknown, unknown)
    return EffectEstimate(value, low, high)


def region_means(maps: npt.ArrayLike, region: npt.ArrayLike) -> Array:
    """Mean of maps within a region.

    Args:
        maps: shape (N, C, *S).
        region: booleans or shares in [0, 1], shape (*S) for all subjects, or (N, *S).

    Returns:
        Shape (N, C); NaN for a subject without region.

    Raises:
        ValueError: If the shapes do not fit.
    """
    values, inside = np.asarray(maps, dtype=np.float64), np.asarray(region, dtype=np.float64)
    if inside.ndim == values.ndim - 2:
        inside = inside[None]
    if inside.shape[1:] != values.shape[2:] or len(inside) not in (1, len(values)):
        raise ValueError(f"maps have shape {values.shape} and the region {inside.shape}.")
    axes = tuple(range(2, values.ndim))
    weight = inside[:, None]
    total = weight.sum(axis=axes)
    means: Array = (values * weight).sum(axis=axes) / np.where(total > 0, total, np.nan)
    return means


def effect_report(
    effects: npt.ArrayLike,
    truth: npt.ArrayLike | None = None,
    outside: npt.ArrayLike | None = None,
    patients: npt.ArrayLike | None = None,
    spread: float | None = None,
    n_resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Reports a scalar effect in all subjects, and apart inside and outside the overlap.

    Args:
        effects: of each subject, shape (N,); NaN where it is not defined, as without a region.
            These subjects are counted and left out.
        truth: the same where it is known.
        outside: whether each subject lies outside the overlap; None: nobody does.
        patients: patient of each subject.
        spread: standard deviation of the outcome, for the E-value; None leaves it out.
        n_resamples: for intervals.
        seed: of the resamples.

    Returns:
        A dict that json can write: for ``all``, ``inside`` and ``outside`` the ``subjects``,
        ``ate``, ``low``, ``high`` and, with truth, ``true_ate`` and ``pehe``; ``undefined``, the
        number of subjects left out; and, with spread, ``e_value``. The intervals are of
        `estimate_ate` with one network: they leave out what another training would have found.
    """
    values = np.asarray(effects, dtype=np.float64)
    out = np.zeros(len(values), dtype=bool) if outside is None else np.asarray(outside, dtype=bool)
    names = np.arange(len(values)) if patients is None else np.asarray(patients)
    exact = np.zeros_like(values) if truth is None else np.asarray(truth, dtype=np.float64)
    known = np.isfinite(values) & np.isfinite(exact)
    report: dict[str, Any] = {"undefined": int((~known).sum())}
    for name, rows in (("all", known), ("inside", known & ~out), ("outside", known & out)):
        report[name] = {"subjects": int(rows.sum())}
        if not rows.any():
            continue
        found = estimate_ate(values[rows], names[rows], n_resamples, seed=seed)
        report[name] |= {
            "ate": json_number(found.value),
            "low": json_number(found.low),
            "high": json_number(found.high),
        }
        if truth is not None:
            report[name] |= {
                "true_ate": float(exact[rows].mean()),
                "pehe": pehe(values[rows], exact[rows]),
            }
    if spread and known.any():
        report["e_value"] = json_number(e_value(float(values[known].mean()), spread))
    return report


def e_value(difference: float, sd: float) -> float:
    """How strong an unmeasured confounder would have to be to explain an effect away.

    The smallest risk ratio that it needs with both treatment and outcome (VanderWeele and Ding
    2017), for a difference of means by the approximation RR = exp(0.91 d).

    Args:
        difference: of means.
        sd: of the outcome, above 0.

    Returns:
        At least 1; 1 for no effect, which needs no explanation.

    Raises:
        ValueError: If sd is not above 0.
    """
    if not sd > 0:
        raise ValueError(f"sd is {sd}, expected a number above 0.")
    ratio = float(np.exp(0.91 * abs(difference) / sd))
    return float(ratio + np.sqrt(ratio * (ratio - 1)))


def marginal_sensitivity(
    outcome: npt.ArrayLike,
    treatment: npt.ArrayLike,
    probability: npt.ArrayLike,
    strength: float,
) -> Interval:
    r"""Bounds of the weighted mean effect if a hidden confounder changes the odds of treatment.

    Tan's (2006) model: the true odds of each subject's treatment differ from the modelled ones by
    a factor between 1 / strength and strength, so that its weight lies between
    1 + (1/e - 1) / strength and 1 + strength (1/e - 1). The extreme of a normalised weighted mean
    gives the largest outcomes one bound and the others the other (Zhao, Small and Bhattacharya
    2019), so every threshold is tried.

    Args:
        outcome: shape (N,).
        treatment: 0 or 1, shape (N,).
        probability: of treatment 1, in (0, 1), shape (N,).
        strength: at least 1; 1 gives the estimate itself twice.

    Returns:
        Bounds of the effect of 1 against 0; not of its sampling error.

    Raises:
        ValueError: If strength is below 1, or a probability not inside (0, 1).
    """
    y, t, e = (np.asarray(values, float) for values in (outcome, treatment, probability))
    if strength < 1 or (e <= 0).any() or (e >= 1).any():
        raise ValueError("expected strength of at least 1 and probabilities inside (0, 1).")
    treated = _extremes(y[t == 1], 1 / e[t == 1] - 1, strength)
    control = _extremes(y[t == 0], 1 / (1 - e[t == 0]) - 1, strength)
    return Interval(np.asarray(treated[0] - control[1]), np.asarray(treated[1] - control[0]))


def _extremes(y: Array, odds: Array, strength: float) -> tuple[float, float]:
    """Smallest and largest weighted mean of y with weights 1 + odds times 1/strength..strength."""
    order = np.argsort(y)
    y, odds = y[order], odds[order]
    light, heavy = 1 + odds / strength, 1 + odds * strength

    def means(first: Array, second: Array) -> Array:
        # the first k subjects have their weight of `first`, the others that of `second`
        mass = np.concatenate([[0], np.cumsum(first)]) + _from_end(second)
        total = np.concatenate([[0], np.cumsum(first * y)]) + _from_end(second * y)
        ratio: Array = total / mass
        return ratio

    return float(means(heavy, light).min()), float(means(light, heavy).max())


def _from_end(values: Array) -> Array:
    found: Array = np.concatenate([np.cumsum(values[::-1])[::-1], [0]])
    return found
