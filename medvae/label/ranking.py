"""Which study is to be looked at next? Scores of studies, larger first."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from medvae.data import AttributeScaler

__all__ = ["disagreement", "distances", "training_codes"]

Array = npt.NDArray[np.float64]


def disagreement(scaler: AttributeScaler, read: npt.ArrayLike, measured: npt.ArrayLike) -> float:
    """Return how far the attributes read off a code lie from those measured in the mask.

    Args:
        scaler: of the trained model.
        read: shape (K,), in their own units.
        measured: shape (K,), NaN where missing.

    Returns:
        The root mean square difference in standard deviations of the training subjects; NaN where
        nothing was measured.
    """
    parts = [np.asarray(values, dtype=np.float64) for values in (read, measured)]
    # a logarithm needs numbers above 0, which a reading need not be
    for column in map(scaler.names.index, scaler.log):
        parts = [np.where(np.arange(len(p)) == column, np.maximum(p, 1e-12), p) for p in parts]
    difference = scaler.transform(parts[0]) - scaler.transform(parts[1])
    known = np.isfinite(difference)
    return float(np.sqrt(np.mean(difference[known] ** 2))) if known.any() else float("nan")


def distances(codes: npt.ArrayLike, training: npt.ArrayLike | None = None) -> Array:
    """Return the Mahalanobis distance of codes (N, D) from the training subjects' (M, D).

    The covariance is shrunk by a tenth towards its diagonal, so that axes that are collinear, or
    more axes than subjects, do not make every study far.

    Args:
        codes: posterior means.
        training: those of the training subjects; None, or fewer than two: the prior's, the
            standard normal, stand for them.

    Returns:
        Shape (N,), divided by the square root of D: 1 is usual.
    """
    codes = np.atleast_2d(np.asarray(codes, dtype=np.float64))
    dimensions = codes.shape[1]
    mean, covariance = np.zeros(dimensions), np.eye(dimensions)
    known = None if training is None else np.asarray(training, dtype=np.float64)
    if known is not None and len(known) >= 2:
        mean = known.mean(axis=0)
        spread = np.cov(known, rowvar=False).reshape(dimensions, dimensions)
        covariance = 0.9 * spread + 0.1 * np.diag(np.diag(spread)) + 1e-9 * np.eye(dimensions)
    apart = codes - mean
    squared = np.einsum("nd,nd->n", apart, np.linalg.solve(covariance, apart.T).T)
    return np.asarray(np.sqrt(np.maximum(squared, 0.0) / dimensions))


def training_codes(path: str | Path) -> Array | None:
    """Return the training subjects' codes (M, D) in a bundle's `eval/predictions.csv`.

    None where there is no such file, or not one with codes and a split.
    """
    try:
        table = pd.read_csv(path)
    except (OSError, ValueError):
        return None
    axes = [name for name in map(str, table) if name[:1] == "z" and name[1:].isdigit()]
    if not axes or "split" not in table:
        return None
    rows = table.loc[table["split"] == "train", axes].to_numpy(dtype=np.float64)
    return rows[np.isfinite(rows).all(axis=1)]
