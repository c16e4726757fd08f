"""Reading attributes off latent codes in their own units, and the way back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from medvae.data import AttributeScaler, CohortError, write_text
from medvae.explain.curve import MonotoneCurve
from medvae.losses.control import companions

Array = npt.NDArray[np.float64]
FOLLOW = 0.6  # share that reached most of the asked range with the least side effects, docs/maps.md


class Readout:
    """A monotone curve for each attribute between its latent axis and its scaled values.

    Args:
        scaler: of the attributes.
        axes: the latent axis of every attribute.
        curves: from codes to the scaled attribute, one for each.
        span: scaled attributes that 5 and 95 % of the training subjects lie below, shape (2, K);
            None: 1.64 standard deviations around the mean, where they would be normal.
        companions: by how much the tied axis of each attribute (column) changes in the training
            subjects per unit of another's (row), shape (K, K); None: nothing follows.
        nonnegative: of each attribute, whether it is read as 0 where the curve falls below, as of a
            volume; None: none is.
        follow: share of the companions' change by which a traversal of each attribute moves them
            along, one for all or for each; where the curves were calibrated on what a decoder
            renders, that of the calibration.
    """

    def __init__(
        self,
        scaler: AttributeScaler,
        axes: Sequence[int],
        curves: Sequence[MonotoneCurve],
        span: npt.ArrayLike | None = None,
        companions: npt.ArrayLike | None = None,
        nonnegative: Sequence[bool] | None = None,
        follow: float | Sequence[float] | None = None,
    ) -> None:
        self.scaler = scaler
        self.axes = tuple(int(a) for a in axes)
        self.curves = list(curves)
        usual = np.array([[-1.64], [1.64]]).repeat(len(self.axes), 1)
        self.span: Array = usual if span is None else np.asarray(span, dtype=np.float64)
        alone = np.eye(len(self.axes)) if companions is None else companions
        self.companions: Array = np.asarray(alone, dtype=np.float64)
        self.nonnegative = tuple(nonnegative or [False] * len(self.axes))
        shares = np.broadcast_to(FOLLOW if follow is None else follow, len(self.axes))
        self.follow = tuple(map(float, shares))

    @classmethod
    def fit(
        cls,
        scaler: AttributeScaler,
        codes: npt.ArrayLike,
        attributes: npt.ArrayLike,
        axes: Sequence[int] | None = None,
    ) -> Readout:
        """Fit by least squares; rows whose attribute is missing (NaN) are left out of its curve.

        What is never negative here is not read as negative later.

        Args:
            scaler: of the attributes.
            codes: shape (N, D).
            attributes: in their own units, shape (N, K).
            axes: the latent axis of every attribute; None ties axis k to attribute k.

        Raises:
            ValueError: if an attribute has fewer than two known values.
        """
        codes = np.asarray(codes, dtype=np.float64)
        attributes = np.asarray(attributes, dtype=np.float64)
        scaled = np.asarray(scaler.transform(attributes))
        axes = range(len(scaler.names)) if axes is None else axes
        curves = []
        for name, axis, column in zip(scaler.names, axes, scaled.T, strict=True):
            known = np.isfinite(column)
            if known.sum() < 2:
                raise ValueError(
                    f"attribute '{name}' has {known.sum()} known values to calibrate its axis on, "
                    "expected at least 2"
                )
            curves.append(MonotoneCurve.fit(codes[known, axis], column[known]))
        span = np.nanquantile(scaled, [0.05, 0.95], axis=0)
        follows = companions(torch.from_numpy(codes[:, list(axes)])).numpy()
        nonnegative = [bool(lowest >= 0) for lowest in np.nanmin(attributes, axis=0)]
        return cls(scaler, list(axes), curves, span, follows, nonnegative)

    def direction(self, axis: int, dimensions: int, follow: float | None = None) -> Array:
        """Return how codes (D,) change per unit of a tied axis.

        Args:
            axis: the latent axis that is moved.
            dimensions: D.
            follow: the share of what goes together in the training subjects by which the other
                tied axes move along; 0: none does; None: the attribute's own.
        """
        found = np.zeros(dimensions)
        if follow != 0:
            column = self.axes.index(axis)
            share = self.follow[column] if follow is None else follow
            found[list(self.axes)] = share * self.companions[column]
        found[axis] = 1.0
        return found

    def attributes(self, codes: npt.ArrayLike) -> Array:
        """Return attributes in their own units, shape (N, K), for codes of shape (N, D)."""
        tied = np.asarray(codes, dtype=np.float64)[:, list(self.axes)]
        scaled = [curve(column) for curve, column in zip(self.curves, tied.T, strict=True)]
        found = np.asarray(self.scaler.inverse(np.array(scaled).T.reshape(tied.shape)))
        return np.where(self.nonnegative, np.maximum(found, 0.0), found)

    def codes(self, attributes: npt.ArrayLike) -> Array:
        """Return codes of the tied axes, shape (N, K), for attributes in their own units.

        NaN where an attribute is missing, or where the axis carries nothing of it.
        """
        scaled = np.asarray(self.scaler.transform(np.asarray(attributes, dtype=np.float64)))
        codes = [curve.inverse(column) for curve, column in zip(self.curves, scaled.T, strict=True)]
        return np.array(codes).T.reshape(scaled.shape)

    def save(self, path: str | Path) -> None:
        """Write as JSON."""
        state = {
            "scaler": self.scaler.state_dict(),
            "axes": list(self.axes),
            "curves": [{k: v.tolist() for k, v in c._asdict().items()} for c in self.curves],
            "span": self.span.tolist(),
            "companions": self.companions.tolist(),
            "nonnegative": list(self.nonnegative),
            "follow": list(self.follow),
        }
        write_text(path, json.dumps(state, indent=1) + "\n")

    @classmethod
    def of_model(cls, folder: str | Path) -> Readout:
        """Read `traversal.json`, of what the decoder renders, or where it is not, `readout.json`.

        Args:
            folder: of the model's weights.

        Raises:
            CohortError: as `load`.
        """
        rendered = Path(folder) / "traversal.json"
        return cls.load(rendered if rendered.exists() else Path(folder) / "readout.json")

    @classmethod
    def load(cls, path: str | Path) -> Readout:
        """Read what `save` wrote; a file with straight lines, as written before, loads as well.

        Raises:
            CohortError: if there is no such file or it is not one that `save` wrote.
        """
        try:
            state = json.loads(Path(path).read_text())
            scaler = AttributeScaler.from_state_dict(state["scaler"])
            later = (state.get(key) for key in ("span", "companions", "nonnegative", "follow"))
            return cls(scaler, state["axes"], _curves(state), *later)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CohortError(
                f"The readout '{path}' cannot be read ({type(error).__name__}); "
                "expected the file that training wrote beside its model."
            ) from error


def _curves(state: dict[str, Any]) -> list[MonotoneCurve]:
    if "curves" not in state:
        return list(map(MonotoneCurve.line, state["slope"], state["intercept"]))
    points = [(np.array(c["codes"], float), np.array(c["values"], float)) for c in state["curves"]]
    return [MonotoneCurve(*point) for point in points]


def best_axis(codes: Array, values: Array) -> int:
    """Return the axis of codes (N, D) that correlates best with values (N,), NaN where missing."""
    known = np.isfinite(values)
    spread = codes[known].std(axis=0)
    covariance = (codes[known] - codes[known].mean(0)).T @ (values[known] - values[known].mean())
    return int(np.argmax(np.abs(covariance) / np.where(spread > 0, spread, np.inf)))
