"""Attributes in their own units, and the standardised form a network is trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch

from medvae.data.errors import CohortError

__all__ = ["AttributeScaler"]

Values = TypeVar("Values", np.ndarray, torch.Tensor)


class AttributeScaler:
    """Zero mean and unit standard deviation over the training subjects, optionally of logarithms.

    Missing values (NaN) do not count in the fit and stay NaN in both directions.

    Args:
        names: attributes, in the order of the last axis of what is transformed.
        log: those of them whose natural logarithm is standardised, such as volumes.
    """

    def __init__(self, names: Sequence[str], log: Sequence[str] = ()) -> None:
        self.names = tuple(names)
        self.log = tuple(log)
        unknown = [name for name in self.log if name not in self.names]
        if unknown:
            raise CohortError(
                f"The logarithm of '{unknown[0]}' is asked for; "
                f"expected one of the attributes {list(self.names)}."
            )
        self.mean = np.full(len(self.names), np.nan)
        self.sd = np.full(len(self.names), np.nan)
        self._logged = [self.names.index(name) for name in self.log]

    def fit(self, table: pd.DataFrame) -> AttributeScaler:
        """Take mean and standard deviation (divisor N) from ``table``: training rows only.

        Args:
            table: one column of floats per attribute.

        Raises:
            CohortError: a column without a number or with one only, or a logarithm of what is not
                above 0.
        """
        values = self._take_log(table[list(self.names)].to_numpy(dtype=float, copy=True))
        for name, column in zip(self.names, values.T, strict=True):
            known = column[~np.isnan(column)]
            if not len(known):
                raise CohortError(
                    f"Attribute '{name}' is missing in all {len(column)} training rows; "
                    "expected numbers in some of them."
                )
            if np.ptp(known) <= 1e-9 * np.abs(known).max():
                raise CohortError(
                    f"Attribute '{name}' is {known[0]:g} in all {len(known)} training rows that "
                    "have it; expected at least two different values."
                )
        self.mean = np.nanmean(values, axis=0) if values.size else self.mean
        self.sd = np.nanstd(values, axis=0) if values.size else self.sd
        return self

    def transform(self, values: Values) -> Values:
        """Standardise.

        Args:
            values: ``(..., K)`` in the attributes' own units, array or tensor.

        Returns:
            The same shape, kind, floating type and device.

        Raises:
            CohortError: a logarithm of what is not above 0.
        """
        values = self._take_log(_floating_copy(values))
        mean, sd = self._moments(values)
        return (values - mean) / sd

    def inverse(self, values: Values) -> Values:
        """Back to the attributes' own units; differentiable for tensors.

        Args:
            values: ``(..., K)``, standardised.
        """
        values = _floating_copy(values)
        mean, sd = self._moments(values)
        values = values * sd + mean
        if self._logged:
            exp = torch.exp if isinstance(values, torch.Tensor) else np.exp
            values[..., self._logged] = exp(values[..., self._logged])
        return values

    def state_dict(self) -> dict[str, list[Any]]:
        """All that :meth:`from_state_dict` needs, as JSON knows it."""
        return {
            "names": list(self.names),
            "log": list(self.log),
            "mean": self.mean.tolist(),
            "sd": self.sd.tolist(),
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Sequence[Any]]) -> AttributeScaler:
        """The scaler whose :meth:`state_dict` this is."""
        scaler = cls(state["names"], state["log"])
        scaler.mean = np.asarray(state["mean"], dtype=float)
        scaler.sd = np.asarray(state["sd"], dtype=float)
        return scaler

    def _take_log(self, values: Values) -> Values:
        """Logarithms in place, of the columns that ask for them."""
        for name, k in zip(self.log, self._logged, strict=True):
            bad = values[..., k] <= 0
            if bad.any():
                raise CohortError(
                    f"Attribute '{name}' holds {float(values[..., k][bad][0]):g}; "
                    "expected numbers above 0, as its logarithm is used."
                )
            log = torch.log if isinstance(values, torch.Tensor) else np.log
            values[..., k] = log(values[..., k])
        return values

    def _moments(self, values: Values) -> tuple[Values, Values]:
        if np.isnan(self.mean).any():
            raise RuntimeError(f"The scaler of {list(self.names)} was not fitted; call fit first.")
        if isinstance(values, torch.Tensor):
            mean = torch.as_tensor(self.mean, dtype=values.dtype, device=values.device)
            return mean, torch.as_tensor(self.sd, dtype=values.dtype, device=values.device)
        return self.mean.astype(values.dtype), self.sd.astype(values.dtype)


def _floating_copy(values: Values) -> Values:
    if isinstance(values, torch.Tensor):
        return values.clone() if values.is_floating_point() else values.to(torch.float32)
    return np.array(values, dtype=np.result_type(values, np.float32))
