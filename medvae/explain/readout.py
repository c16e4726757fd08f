"""Reading attributes off latent codes in their own units, and the way back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medvae.data import AttributeScaler, CohortError, write_text

Array = npt.NDArray[np.float64]


class Readout:
    """A straight line for each attribute between its latent axis and its scaled values.

    Args:
        scaler: of the attributes.
        axes: the latent axis of every attribute.
        slope: scaled attribute per unit of code, shape (K,).
        intercept: scaled attribute at code 0, shape (K,).
        span: scaled attributes that 5 and 95 % of the training subjects lie below, shape (2, K);
            None: 1.64 standard deviations around the mean, where they would be normal.
    """

    def __init__(
        self,
        scaler: AttributeScaler,
        axes: Sequence[int],
        slope: npt.ArrayLike,
        intercept: npt.ArrayLike,
        span: npt.ArrayLike | None = None,
    ) -> None:
        self.scaler = scaler
        self.axes = tuple(int(a) for a in axes)
        self.slope: Array = np.asarray(slope, dtype=np.float64)
        self.intercept: Array = np.asarray(intercept, dtype=np.float64)
        usual = np.array([[-1.64], [1.64]]).repeat(len(self.axes), 1)
        self.span: Array = usual if span is None else np.asarray(span, dtype=np.float64)

    @classmethod
    def fit(
        cls,
        scaler: AttributeScaler,
        codes: npt.ArrayLike,
        attributes: npt.ArrayLike,
        axes: Sequence[int] | None = None,
    ) -> Readout:
        """Fit by least squares; rows whose attribute is missing (NaN) are left out of its line.

        Args:
            scaler: of the attributes.
            codes: shape (N, D).
            attributes: in their own units, shape (N, K).
            axes: the latent axis of every attribute; None ties axis k to attribute k.

        Raises:
            ValueError: if an attribute has fewer than two known values.
        """
        codes = np.asarray(codes, dtype=np.float64)
        scaled = np.asarray(scaler.transform(np.asarray(attributes, dtype=np.float64)))
        axes = range(len(scaler.names)) if axes is None else axes
        lines = []
        for name, axis, column in zip(scaler.names, axes, scaled.T, strict=True):
            known = np.isfinite(column)
            if known.sum() < 2:
                raise ValueError(
                    f"attribute '{name}' has {known.sum()} known values to calibrate its axis on, "
                    "expected at least 2"
                )
            code = codes[known, axis]
            variance = code.var()
            slope = np.cov(code, column[known], bias=True)[0, 1] / variance if variance > 0 else 0.0
            lines.append((slope, column[known].mean() - slope * code.mean()))
        slopes, intercepts = zip(*lines, strict=True) if lines else ((), ())
        span = np.nanquantile(scaled, [0.05, 0.95], axis=0)
        return cls(scaler, list(axes), slopes, intercepts, span)

    def attributes(self, codes: npt.ArrayLike) -> Array:
        """Return attributes in their own units, shape (N, K), for codes of shape (N, D)."""
        tied = np.asarray(codes, dtype=np.float64)[:, list(self.axes)]
        return np.asarray(self.scaler.inverse(tied * self.slope + self.intercept))

    def codes(self, attributes: npt.ArrayLike) -> Array:
        """Return codes of the tied axes, shape (N, K), for attributes in their own units.

        NaN where an attribute is missing, or where the axis carries nothing of it (slope 0).
        """
        scaled = np.asarray(self.scaler.transform(np.asarray(attributes, dtype=np.float64)))
        slope = np.where(self.slope == 0, np.nan, self.slope)
        return np.asarray((scaled - self.intercept) / slope)

    def save(self, path: str | Path) -> None:
        """Write as JSON."""
        state = {
            "scaler": self.scaler.state_dict(),
            "axes": list(self.axes),
            "slope": self.slope.tolist(),
            "intercept": self.intercept.tolist(),
            "span": self.span.tolist(),
        }
        write_text(path, json.dumps(state, indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Readout:
        """Read what `save` wrote.

        Raises:
            CohortError: if there is no such file or it is not one that `save` wrote.
        """
        try:
            state = json.loads(Path(path).read_text())
            scaler = AttributeScaler.from_state_dict(state["scaler"])
            line = (state["slope"], state["intercept"])
            return cls(scaler, state["axes"], *line, state.get("span"))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CohortError(
                f"The readout '{path}' cannot be read ({type(error).__name__}); "
                "expected the file that training wrote beside its model."
            ) from error
