"""Does a decoded image have the attribute that was asked for, and what else has changed?

Attributes are asked for in V steps of a sweep from the 5th to the 95th percentile of the training
subjects, decoded for each of N subjects, and measured again on the decoded images. All in numpy;
a value that could not be measured is NaN and is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from .information import Array
from .intervals import bootstrap_rows, json_number, percentile_interval

__all__ = [
    "Agreement",
    "agreement",
    "change_outside",
    "control",
    "manipulation_report",
    "natural_effects",
    "real_range",
    "return_error",
    "sweep_effects",
]

LEAST_POINTS = 3  # of a rank correlation


def control(measured: npt.ArrayLike) -> Array:
    r"""Spearman's correlation between asked and re-measured value over each subject's sweep.

    Only the order of what was asked counts, and the sweep rises. An attribute that does not
    change, or cannot be measured at three steps, is not controlled: 0. Chance is 0 by
    construction, since under a random order of the steps the correlation's mean is 0.

    Args:
        measured: shape (N, V), in the order of the asked values.

    Returns:
        Shape (N,), in [-1, 1].
    """
    table = np.asarray(measured, dtype=np.float64)
    found = np.zeros(len(table))
    for row, values in enumerate(table):
        known = np.flatnonzero(np.isfinite(values))
        if len(known) >= LEAST_POINTS and np.ptp(values[known]) > 0:
            found[row] = np.corrcoef(rankdata(known), rankdata(values[known]))[0, 1]
    return found


def real_range(attributes: npt.ArrayLike) -> Array:
    """The 5th and 95th percentile of the training subjects, shape (2, K), for (N, K) with NaN."""
    return np.asarray(np.nanquantile(np.asarray(attributes, float), [0.05, 0.95], axis=0))


def sweep_effects(measured: npt.ArrayLike, ranges: npt.ArrayLike) -> Array:
    r"""What a full sweep changes: :math:`(y_\mathrm{top} - y_\mathrm{bottom}) / (q_{95} - q_5)`.

    Of the attribute that is moved this is the *span*: 1 is the whole real range, negative a
    reversed sweep. Of every other attribute it is the side effect.

    Args:
        measured: shape (N, V, K).
        ranges: of `real_range`, shape (2, K).

    Returns:
        Shape (N, K); NaN where an end could not be measured.
    """
    table, bounds = np.asarray(measured, dtype=np.float64), np.asarray(ranges, dtype=np.float64)
    return np.asarray((table[:, -1] - table[:, 0]) / (bounds[1] - bounds[0]))


def natural_effects(
    attributes: npt.ArrayLike, ranges: npt.ArrayLike, log: Sequence[bool] | None = None
) -> Array:
    r"""The side effects of a full sweep that the attributes' natural correlation predicts.

    With :math:`b_{kj}` the slope of the regression of attribute j on attribute k over the training
    subjects and r the real range, :math:`e_{kj} = b_{kj} r_k / r_j`. Of an attribute with a long
    tail the few largest would set the slope, so it is regressed on by its logarithm.

    Args:
        attributes: of the training subjects, shape (N, K), NaN where missing.
        ranges: of `real_range`, shape (2, K).
        log: of each attribute, whether its logarithm is regressed on; None: of none.

    Returns:
        Shape (K, K): of moving attribute k (row) on attribute j (column); the diagonal is 1. NaN
        where fewer than three subjects have both.
    """
    table, bounds = np.asarray(attributes, dtype=np.float64), np.asarray(ranges, dtype=np.float64)
    units = table / (bounds[1] - bounds[0])
    count = table.shape[1]
    found = np.full((count, count), np.nan)
    for k in range(count):
        moved = units[:, k]
        if log is not None and log[k]:
            logarithm = np.log(np.where(table[:, k] > 0, table[:, k], np.nan))
            moved = logarithm / np.ptp(real_range(logarithm))
        for j in range(count):
            both = np.isfinite(moved) & np.isfinite(units[:, j])
            if both.sum() >= LEAST_POINTS and moved[both].std() > 0:
                moments = np.cov(moved[both], units[both, j])
                found[k, j] = 1.0 if j == k else moments[0, 1] / moments[0, 0]
    return found


class Agreement(NamedTuple):
    """How well K attributes were measured.

    Attributes:
        r2: 1 - squared error / variance of the truth, shape (K,).
        error_sd: mean absolute error in standard deviations of the truth, shape (K,).
        bias_sd: mean error, likewise.
        found: share of the subjects that have the attribute and where it could be measured.
    """

    r2: Array
    error_sd: Array
    bias_sd: Array
    found: Array


def agreement(measured: npt.ArrayLike, truth: npt.ArrayLike) -> Agreement:
    """Compare what an instrument measured with what the subjects' own masks say.

    Args:
        measured: shape (N, K).
        truth: same shape.

    Returns:
        NaN where fewer than three subjects have both, or the truth is constant.
    """
    table, known = np.asarray(measured, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    found = np.full((4, known.shape[1]), np.nan)
    for k, (value, true) in enumerate(zip(table.T, known.T, strict=True)):
        both = np.isfinite(value) & np.isfinite(true)
        if np.isfinite(true).any():
            found[3, k] = both.sum() / np.isfinite(true).sum()
        if both.sum() >= LEAST_POINTS and true[both].std() > 0:
            error, sd = value[both] - true[both], true[both].std()
            found[:3, k] = 1 - np.mean((error / sd) ** 2), np.abs(error).mean(), error.mean()
            found[1:3, k] /= sd
    return Agreement(*found)


def return_error(start: npt.ArrayLike, there: npt.ArrayLike, back: npt.ArrayLike) -> Array:
    r"""Reversibility: :math:`\overline{|b - a|} / \overline{|m - a|}`, 0 for a perfect return.

    Args:
        start: reconstructions a, shape (N, C, *S).
        there: m, the same with an axis moved.
        back: b, decoded after m was encoded and the axis was set back.

    Returns:
        Shape (N,); NaN where the move changed nothing.
    """
    a, m, b = (
        (rows := np.asarray(v, dtype=np.float64)).reshape(len(rows), -1)
        for v in (start, there, back)
    )
    moved = np.abs(m - a).mean(axis=1)
    return np.abs(b - a).mean(axis=1) / np.where(moved > 0, moved, np.nan)


def change_outside(
    before: npt.ArrayLike, after: npt.ArrayLike, structures: npt.ArrayLike
) -> tuple[Array, Array]:
    """Minimality: the share of the images' absolute change that lies outside a structure.

    Args:
        before: shape (N, C, *S).
        after: same shape.
        structures: where the attribute is, boolean, shape (N, *S).

    Returns:
        The share, NaN where nothing changed, and its chance, the share of an even change; (N,)
        each, 0 is best.
    """
    images = [np.asarray(v, dtype=np.float64) for v in (before, after)]
    change = np.abs(images[1] - images[0]).mean(axis=1).reshape(len(images[0]), -1)
    outside = ~np.asarray(structures, dtype=bool).reshape(change.shape)
    total = change.sum(axis=1)
    share = (change * outside).sum(axis=1) / np.where(total > 0, total, np.nan)
    return share, outside.mean(axis=1)


def manipulation_report(
    measured: npt.ArrayLike,
    training: npt.ArrayLike,
    names: Sequence[str],
    patients: npt.ArrayLike | None = None,
    n_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    log: Sequence[bool] | None = None,
) -> dict[str, Any]:
    """Control, span and side effects of every attribute, and their means over the attributes.

    Args:
        measured: shape (K, N, V, K): attribute k is moved in `measured[k]`, and all are measured.
            NaN throughout for an attribute that cannot be moved: its control and span are 0.
        training: the training subjects' own attributes, shape (M, K).
        names: of the K attributes.
        patients: of the N subjects, for the intervals; None: every row is a patient.
        n_resamples: of the patients; 0 leaves the intervals out.
        level: coverage of the intervals.
        seed: of the draws.
        log: of `natural_effects`.

    Returns:
        `attributes[name]` and `mean`, each with `control` and `span` (value, low, high), the
        `side_effect` (mean absolute change of the other attributes as a share of their real
        range), what their natural correlation `predicted` for the full sweep and for the span that
        was reached (`predicted_of_span`). Of each attribute also its `real_range`, the share of
        images in which it could be measured (`found`), and of every other attribute under
        `effects` the mean change, the mean absolute change and the prediction. In `mean`,
        `span_clipped` counts every attribute's span as 1 at most.
    """
    table = np.asarray(measured, dtype=np.float64)
    ranges = real_range(training)
    natural = natural_effects(training, ranges, log)
    draws = list(bootstrap_rows(patients, table.shape[1], n_resamples, seed))
    count = len(names)
    controls = np.array([control(table[k, :, :, k]) for k in range(count)]).T  # (N, K)
    effects = np.array([sweep_effects(rows, ranges) for rows in table])  # (K, N, K)
    spans = np.array([effects[k, :, k] for k in range(count)]).T
    spans[:, np.isnan(table).all(axis=(1, 2, 3))] = 0.0
    report: dict[str, Any] = {"attributes": {}}
    sides = np.full((count, 3), np.nan)
    for k, name in enumerate(names):
        others = [j for j in range(count) if j != k]
        size = np.abs(_mean(spans[:, k]))
        each = {
            names[j]: {
                "effect": json_number(_mean(effects[k, :, j])),
                "absolute": json_number(_mean(np.abs(effects[k, :, j]))),
                "predicted": json_number(natural[k, j]),
            }
            for j in others
        }
        absolute = np.array([_mean(np.abs(effects[k, :, j])) for j in others])
        predicted = np.abs(natural[k, others])
        sides[k] = _mean(absolute), _mean(predicted), _mean(predicted) * size
        report["attributes"][name] = {
            "real_range": [json_number(v) for v in ranges[:, k]],
            "found": float(np.isfinite(table[k, :, :, k]).mean()),
            "control": _with_interval(controls[:, k], draws, level),
            "span": _with_interval(spans[:, k], draws, level),
            **_side(sides[k]),
            "effects": each,
        }
    clipped = [min(_mean(spans[:, k]), 1.0) for k in range(count)]
    report["mean"] = {
        "control": _with_interval(controls, draws, level),
        "span": _with_interval(spans, draws, level),
        "span_clipped": json_number(_mean(np.array(clipped))),
        **_side(np.array([_mean(column) for column in sides.T])),
    }
    return report


def _side(values: Array) -> dict[str, float | None]:
    keys = ("side_effect", "predicted", "predicted_of_span")
    return {key: json_number(value) for key, value in zip(keys, values, strict=True)}


def _mean(values: Array) -> float:
    """The mean of what is known; NaN, without a warning, where nothing is."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")


def _with_interval(rows: Array, draws: Sequence[Any], level: float) -> dict[str, Any]:
    """The mean over subjects, then over attributes, and its interval over resampled rows."""
    columns = rows.reshape(len(rows), -1).T

    def score(chosen: Any) -> float:
        return _mean(np.array([_mean(column[chosen]) for column in columns]))

    found = percentile_interval(np.array([score(d) for d in draws]), level)
    low, high = (json_number(v) if len(draws) else None for v in found)
    return {"value": json_number(score(slice(None))), "low": low, "high": high}
