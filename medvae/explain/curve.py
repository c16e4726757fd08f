"""A monotone curve between a latent axis and an attribute, and its inverse."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.optimize import isotonic_regression, lsq_linear

__all__ = ["MonotoneCurve"]

Array = npt.NDArray[np.float64]

ROWS_PER_KNOT = 30  # so that no segment rests on a handful of subjects
MOST_KNOTS = 4
STIFFNESS = 0.3  # weight of the pull to a straight line, in units of the attribute's variance
LEAST_SLOPE = 0.1  # of a segment, in slopes of the straight line: no segment lies flat


class MonotoneCurve(NamedTuple):
    """Straight segments between points, all rising or all falling; the end segments go on for ever.

    Segments are their own inverse's, so that there and back is exact; and beyond the points, where
    no subject was seen, the curve does nothing that it did not do within.

    Attributes:
        codes: of the points, rising, at least two.
        values: of the points, strictly monotone; all the same where the axis carries nothing.
    """

    codes: Array
    values: Array

    @classmethod
    def line(cls, slope: float, intercept: float) -> MonotoneCurve:
        """The straight line `slope * code + intercept`."""
        return cls(np.array([0.0, 1.0]), np.array([intercept, intercept + slope]))

    @classmethod
    def fit(cls, codes: npt.ArrayLike, values: npt.ArrayLike) -> MonotoneCurve:
        r"""Fit by least squares, monotone by constraint and pulled to the straight line.

        With knots :math:`t_j` at quantiles of the codes and the share :math:`h_j(x)` of the way to
        x that lies within segment j, :math:`a + \sum_j s_j h_j(x)` minimises the squared error and
        :math:`\lambda \sum_j (s_{j+1} - s_j)^2`, subject to slopes of the straight line's sign.
        One knot for every 30 rows, four at most: few rows give the line itself.

        Args:
            codes: shape (N,), finite.
            values: shape (N,), finite, of about unit variance.
        """
        x, y = np.asarray(codes, dtype=np.float64), np.asarray(values, dtype=np.float64)
        spread = x.std()
        covariance = np.mean((x - x.mean()) * (y - y.mean()))
        if spread == 0 or covariance == 0:
            return cls.line(0.0, float(y.mean()))
        count = min(MOST_KNOTS, len(x) // ROWS_PER_KNOT)
        knots = np.unique(np.quantile(x, np.linspace(0, 1, count + 2)[1:-1]))
        knots = knots[(knots > x.min()) & (knots < x.max())]
        points = np.array([x.min(), *knots, x.max()])
        sign, line = np.sign(covariance), abs(covariance) / spread**2
        segments = _segments(x, points)
        centred = np.vstack(
            [
                (segments - segments.mean(0)) / spread,
                np.sqrt(STIFFNESS * len(x)) * np.diff(np.eye(len(points) - 1), axis=0),
            ]
        )
        target = np.concatenate([sign * (y - y.mean()), np.zeros(len(points) - 2)])
        least = LEAST_SLOPE * line * spread
        slopes = sign * lsq_linear(centred, target, bounds=(least, np.inf)).x / spread
        start = y.mean() - segments.mean(0) @ slopes
        return cls(points, start + np.concatenate([[0.0], np.cumsum(slopes * np.diff(points))]))

    @classmethod
    def through(cls, codes: npt.ArrayLike, values: npt.ArrayLike) -> MonotoneCurve:
        """The monotone curve closest to values (V,) at rising codes (V,), with a point at each.

        Rising or falling as the values do from one end to the other (isotonic regression; where
        it is flat it rises by a thousandth of the whole over the whole way, so that every value
        between the ends has one code).
        """
        x, y = np.asarray(codes, dtype=np.float64), np.asarray(values, dtype=np.float64)
        rising = bool(np.cov(x, y)[0, 1] > 0)
        fitted = np.asarray(isotonic_regression(y, increasing=rising).x)
        slightly = 1e-3 * (fitted[-1] - fitted[0]) * (x - x.mean()) / (x[-1] - x[0])
        return cls(x, fitted + slightly)

    @property
    def informative(self) -> bool:
        """Whether the axis carries anything of the attribute."""
        return bool(self.values[0] != self.values[-1])

    def __call__(self, codes: npt.ArrayLike) -> Array:
        """Return the values at codes of any shape; NaN stays NaN."""
        return _along(np.asarray(codes, dtype=np.float64), self.codes, self.values)

    def inverse(self, values: npt.ArrayLike) -> Array:
        """Return the codes of values of any shape; NaN stays NaN, and all are NaN for a flat curve.

        Whatever the curve's direction.
        """
        asked = np.asarray(values, dtype=np.float64)
        if not self.informative:
            return np.full_like(asked, np.nan)
        rising = slice(None) if self.values[-1] > self.values[0] else slice(None, None, -1)
        return _along(asked, self.values[rising], self.codes[rising])


def _segments(x: Array, points: Array) -> Array:
    """Return how far each x has come in each segment, (N, S); the ends' segments are unbounded."""
    low = np.concatenate([[-np.inf], points[1:-1]])
    high = np.concatenate([points[1:-1], [np.inf]])
    return np.clip(x[:, None], low, high) - points[:-1]


def _along(x: Array, points: Array, values: Array) -> Array:
    """Interpolate between rising points, and go on with the end segments' slopes."""
    index = np.clip(np.searchsorted(points, x, side="right") - 1, 0, len(points) - 2)
    slopes = np.diff(values) / np.diff(points)
    return np.asarray(values[index] + slopes[index] * (x - points[index]))
