"""First-order and texture features of a region's intensities, with pyradiomics' conventions.

Intensities keep the image's own unit (Hounsfield units, scanner units), so the names carry none.
Texture works on grey levels: bins of ``bin_width`` (pyradiomics' default 25 suits CT) or
``bin_count`` equal bins between the region's extremes. An image scaled to [0, 1] falls into one bin
of width 25, where texture is constant: give such images a ``bin_count``.
"""

from __future__ import annotations

from itertools import product

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Levels = NDArray[np.int64]


def first_order(values: Floats) -> dict[str, float]:
    """Summarise the intensities (N,) of a region.

    ``intensity_sd`` is the population's (divided by N). Kurtosis is not in excess: 3 for a normal
    distribution. Skewness and kurtosis of constant values are 0. Percentiles interpolate linearly.
    """
    low, high = float(values.min()), float(values.max())
    # A constant's mean may be off by one rounding, which would make its moments noise.
    centred = values - values.mean() if high > low else np.zeros_like(values)
    squares = centred * centred
    variance = float(squares.mean())
    scale = variance or 1.0
    p10, p25, median, p75, p90 = np.percentile(values, [10, 25, 50, 75, 90])
    return {
        "intensity_mean": values.mean(),
        "intensity_sd": np.sqrt(variance),
        "intensity_min": low,
        "intensity_max": high,
        "intensity_median": median,
        "intensity_p10": p10,
        "intensity_p90": p90,
        "intensity_iqr": p75 - p25,
        "intensity_skewness": np.mean(squares * centred) / scale**1.5,
        "intensity_kurtosis": np.mean(squares * squares) / scale**2,
    }


def discretize(values: Floats, bin_width: float = 25.0, bin_count: int | None = None) -> Levels:
    """Turn intensities (N,) into grey levels from 1.

    Args:
        values: finite intensities of the region only.
        bin_width: width of a bin; edges are multiples of it.
        bin_count: number of equal bins between the extremes of the values; replaces ``bin_width``.

    Raises:
        ValueError: if ``bin_width`` or ``bin_count`` is not positive.
    """
    if bin_count is not None:
        if bin_count < 1:
            raise ValueError(f"bin_count is {bin_count}, expected a whole number from 1.")
        edges = np.histogram_bin_edges(values, bin_count)
        edges[-1] += 1  # the largest value belongs to the last bin
        return np.digitize(values, edges)
    if not bin_width > 0:
        raise ValueError(f"bin_width is {bin_width}, expected a positive number.")
    low, high = float(values.min()), float(values.max())
    return np.digitize(values, np.arange(low - low % bin_width, high + 2 * bin_width, bin_width))


def histogram(levels: Levels) -> dict[str, float]:
    """Summarise the distribution of the grey levels (N,): entropy in bits, and uniformity."""
    shares = np.unique(levels, return_counts=True)[1] / len(levels)
    return {
        "intensity_entropy": _entropy(shares),
        "intensity_uniformity": float(np.sum(shares**2)),
    }


def glcm(levels: Levels) -> dict[str, float]:
    r"""Summarise the grey-level co-occurrence of neighbours at distance 1.

    Pairs inside the region are counted in both orders for each of the 4 (2D) or 13 (3D) directions
    of the grid, whatever the spacing; each feature is computed per direction, then averaged over
    the directions that have pairs. With $p$ the symmetric matrix, $\mu$ and $\sigma^2$ the mean and
    variance of its margin and $p_{x-y}(k)$ the share of pairs that differ by $k$ levels:
    correlation $(\sum p_{ij} i j - \mu^2) / \sigma^2$ (1 if $\sigma = 0$), difference entropy
    $-\sum p_{x-y} \log_2 p_{x-y}$, inverse variance $\sum_{k \ge 1} p_{x-y}(k) / k^2$.

    Args:
        levels: grey levels, (H, W) or (H, W, D), from 1; 0 is outside the region.

    Returns:
        The three features; NaN where no two voxels of the region are neighbours.
    """
    padded = np.pad(levels, 1)
    strides = np.array(padded.strides) // padded.itemsize
    flat = padded.ravel()
    inside = np.flatnonzero(flat)
    origin = (0,) * levels.ndim
    steps = [step for step in product((-1, 0, 1), repeat=levels.ndim) if step > origin]
    found = []
    for step in steps:
        neighbours = flat[inside + strides @ step]
        paired = neighbours > 0
        if paired.any():
            found.append(_cooccurrence(flat[inside[paired]], neighbours[paired]))
    names = ("glcm_correlation", "glcm_difference_entropy", "glcm_inverse_variance")
    means = np.mean(found, axis=0) if found else np.full(len(names), np.nan)
    return dict(zip(names, means, strict=True))


def _cooccurrence(left: Levels, right: Levels) -> tuple[float, float, float]:
    """Return correlation, difference entropy and inverse variance of paired levels (N,), (N,)."""
    # Sums over the symmetric matrix, times its total squared, in exact integers.
    count = 2 * len(left)
    total = int(left.sum()) + int(right.sum())
    variance = count * (int(left @ left) + int(right @ right)) - total**2
    covariance = count * 2 * int(left @ right) - total**2
    shares = np.bincount(np.abs(left - right)) / len(left)
    gaps = np.arange(1, len(shares))
    return (
        covariance / variance if variance else 1.0,
        _entropy(shares),
        float(np.sum(shares[1:] / gaps**2)),
    )


def _entropy(shares: Floats) -> float:
    shares = shares[shares > 0]
    return float(-np.sum(shares * np.log2(shares))) + 0.0  # no negative zero
