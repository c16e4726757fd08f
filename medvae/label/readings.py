"""What a model says of a code: attributes in their own units, or classes of factors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from medvae.data import CohortError, CohortState, Factors
from medvae.engines import class_probabilities
from medvae.explain import Readout, traverse
from medvae.label.asked import clamped
from medvae.label.ranking import disagreement
from medvae.losses import factor_predictions
from medvae.networks import Subspaces

__all__ = ["AttributeReading", "FactorReading", "Reading"]


class Reading(Protocol):
    """What is read off a model's codes, by the bundle's kind.

    Attributes:
        names: that have a map each.
        ranges: of attributes that can be moved, the values that 5 and 95 % of the training subjects
            lie below.
    """

    names: tuple[str, ...]
    ranges: dict[str, tuple[float, float]]

    def said(self, network: Any, image: Tensor) -> dict[str, Any]:
        """Return `codes`, `attributes` and `probabilities` of an image (1, C, *S), as JSON."""

    def at(self, name: str, shares: Sequence[float]) -> list[float]:
        """Return the values at shares of an attribute's range, 0 to 1; empty where it has none."""

    def series(
        self, network: Any, image: Tensor, name: str, values: Sequence[float]
    ) -> tuple[Tensor, dict[str, Any]]:
        """Return the image at other values (V C, *S), and `values` and `warnings`, as JSON.

        Raises:
            CohortError: the model cannot do so.
        """

    def disagrees(self, read: dict[str, Any], measured: dict[str, float]) -> float:
        """Return `medvae.label.disagreement` of what was said and what was measured."""


class AttributeReading:
    """Of an Attri-VAE: attributes of the tied axes, probabilities of the classes.

    Args:
        readout: that of the encoder.
        folder: of the model's weights, where the decoder's readout may lie.
        state: of the cohort.
        classes: whether the network has a head.
        follow: of `medvae.explain.traverse`.
    """

    def __init__(
        self,
        readout: Readout,
        folder: Path,
        state: CohortState,
        classes: bool,
        follow: float | None,
    ) -> None:
        self.readout = readout
        self.decoded = Readout.of_model(folder)
        self.names = readout.scaler.names
        self.classes = state.classes if classes else ()
        self.follow = follow
        bounds = self.decoded.scaler.inverse(self.decoded.span)
        self.ranges = {
            name: (float(low), float(high))
            for name, low, high in zip(self.names, *bounds, strict=True)
        }

    def said(self, network: Any, image: Tensor) -> dict[str, Any]:
        """Return codes, attributes in their own units and probabilities by class."""
        codes = network.encode(image)[0]
        shares = class_probabilities(network.classify(codes).cpu())[0] if self.classes else ()
        values = self.readout.attributes(codes.cpu().numpy())[0]
        return {
            "codes": codes[0].tolist(),
            "attributes": {n: float(v) for n, v in zip(self.names, values, strict=True)},
            "probabilities": {str(c): float(p) for c, p in zip(self.classes, shares, strict=True)},
        }

    def at(self, name: str, shares: Sequence[float]) -> list[float]:
        """Return the values at shares of the range, even in what the model learned, as a log."""
        low, high = self.decoded.span
        steps = np.array([(1 - share) * low + share * high for share in shares])
        return [float(v) for v in self.decoded.scaler.inverse(steps)[:, self.names.index(name)]]

    def series(
        self, network: Any, image: Tensor, name: str, values: Sequence[float]
    ) -> tuple[Tensor, dict[str, Any]]:
        """Return the image at values within the range."""
        used, warnings = clamped(values, *self.ranges[name], name)
        try:
            images = traverse(network, image, name, used, self.decoded, self.follow)
        except ValueError as error:  # an axis that reads nothing
            raise CohortError(str(error)) from error
        return images[0].flatten(0, 1), {"values": used, "warnings": warnings}

    def disagrees(self, read: dict[str, Any], measured: dict[str, float]) -> float:
        """Return the disagreement of all attributes that were measured."""
        pairs = [(read[name], measured.get(name, np.nan)) for name in self.names]
        return disagreement(self.readout.scaler, *zip(*pairs, strict=True))


class FactorReading:
    """Of a model with subspaces: what the head of each factor says.

    Args:
        factors: of the trained model.
    """

    def __init__(self, factors: Factors) -> None:
        self.factors = factors
        self.names = factors.names
        self.ranges: dict[str, tuple[float, float]] = {}

    def said(self, network: Any, image: Tensor) -> dict[str, Any]:
        """Return codes, continuous factors in their own units and probabilities by factor."""
        codes = network.encode(image)
        logits = network.classify(codes).cpu()
        attributes: dict[str, float] = {}
        probabilities: dict[str, dict[str, float]] = {}
        for name, part in Subspaces(self.factors.outputs).split(logits).items():
            kind, classes = self.factors.kinds[name], self.factors.classes[name]
            values = factor_predictions(kind, torch.as_tensor(part))[0].tolist()
            if kind == "continuous":
                attributes[name] = self.factors.own_unit(name, values[0])
            else:
                probabilities[name] = dict(zip(map(str, classes), values, strict=True))
        said = {"attributes": attributes, "probabilities": probabilities}
        return {"codes": codes[0].tolist()} | said

    def at(self, name: str, shares: Sequence[float]) -> list[float]:
        """Return nothing: a factor has no range."""
        return []

    def series(
        self, network: Any, image: Tensor, name: str, values: Sequence[float]
    ) -> tuple[Tensor, dict[str, Any]]:
        """Refuse: subspaces have no values to be moved to.

        Raises:
            CohortError: always.
        """
        raise CohortError("A model with subspaces has no traversal; expected output bins or map.")

    def disagrees(self, read: dict[str, Any], measured: dict[str, float]) -> float:
        """Return NaN: factors are not measured in masks."""
        return float("nan")
