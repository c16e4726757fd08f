"""How well attributes are read off the codes of new subjects, in the attributes' own units."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .information import MIN_ROWS, Array
from .intervals import bootstrap_rows, json_number, percentile_interval

__all__ = ["prediction_r2"]


def prediction_r2(
    predicted: npt.ArrayLike,
    attributes: npt.ArrayLike,
    names: Sequence[str] | None = None,
    patients: npt.ArrayLike | None = None,
    n_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Any]:
    """Out-of-sample R² of attributes read off the codes: 1 - squared error / variance.

    Nothing is fitted here: the calibration from codes to attributes must come from the training
    rows, else the score is the in-sample one of :func:`interpretability`. Chance is 0, the best
    constant; a worse prediction is negative.

    Args:
        predicted: Shape (N, K), in the attributes' units, finite.
        attributes: Shape (N, K); NaN = missing, masked per attribute.
        names: Names of the attributes; None = their numbers.
        patients: Patient of each row; None = one patient per row.
        n_resamples: Bootstrap resamples of patients for the interval; 0 leaves it out.
        level: Coverage of the interval.
        seed: Seed of the draws.

    Returns:
        ``mean`` and ``attributes[name]``, each with value, low and high; the attributes also with
        ``rows``, the observed ones. None where fewer than five rows are observed or the attribute
        is constant.

    Raises:
        ValueError: If shapes disagree or a prediction is not finite.
    """
    p, y = np.asarray(predicted, dtype=np.float64), np.asarray(attributes, dtype=np.float64)
    labels = [str(k) for k in range(y.shape[-1])] if names is None else list(names)
    if p.ndim != 2 or p.shape != y.shape or len(labels) != p.shape[1]:
        raise ValueError(
            f"predicted has shape {p.shape}, attributes {y.shape} and names {len(labels)} entries: "
            "expected (N, K) twice and K names."
        )
    if not np.isfinite(p).all():
        raise ValueError("predicted: found NaN or infinite values, expected finite predictions.")
    values = _r2(p, y)
    draws = np.array([_r2(p[i], y[i]) for i in bootstrap_rows(patients, len(p), n_resamples, seed)])
    draws = draws.reshape(-1, y.shape[1])
    defined = ~np.isnan(values)
    each = percentile_interval(draws, level)
    overall = percentile_interval(draws[:, defined].mean(axis=1), level) if defined.any() else each
    return {
        "mean": {
            "value": float(values[defined].mean()) if defined.any() else None,
            "low": json_number(overall.low) if defined.any() else None,
            "high": json_number(overall.high) if defined.any() else None,
        },
        "attributes": {
            name: {
                "value": json_number(values[k]),
                "low": json_number(each.low[k]),
                "high": json_number(each.high[k]),
                "rows": int(np.isfinite(y[:, k]).sum()),
            }
            for k, name in enumerate(labels)
        },
    }


def _r2(predicted: Array, attributes: Array) -> Array:
    observed = ~np.isnan(attributes)
    rows = np.maximum(observed.sum(axis=0), 1)
    y = np.where(observed, attributes, 0.0)
    centred = np.where(observed, y - y.sum(axis=0) / rows, 0.0)
    error = np.where(observed, y - predicted, 0.0)
    spread = np.sqrt(np.sum(centred**2, axis=0) / rows)
    defined = (rows >= MIN_ROWS) & (spread > 1e-12 * np.abs(y).max(axis=0))
    ratio = np.sum(error**2, axis=0) / rows / np.where(defined, spread, 1.0) ** 2
    result: Array = np.where(defined, 1 - ratio, np.nan)
    return result
