"""What a StylEx says of an image: the attributes that its classifier's answer hangs on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from medvae.data import Factors
from medvae.explain import StyleEdit, StyleEditInferer
from medvae.label.asked import clamped

__all__ = ["EditReading"]

SEARCHED = "of the way that was searched"


class EditReading:
    """Of a StylEx: what each found attribute changes, and what the classifier says.

    A value is a share of the way from the image to the end of what was searched.

    Args:
        classifier: images (B, C, *S) in [0, 1] to logits.
        edits: what the search found.
        factors: of the classifier.
    """

    def __init__(
        self, classifier: Callable[[Tensor], Tensor], edits: Sequence[StyleEdit], factors: Factors
    ) -> None:
        self.classifier, self.factors = classifier, factors
        self.edits = {edit.name: edit for edit in edits}
        self.names = tuple(self.edits)
        self.ranges = dict.fromkeys(self.names, (0.0, 1.0))

    def said(self, network: Any, image: Tensor) -> dict[str, Any]:
        """Return codes, without the classifier's part, and probabilities by head; no attributes."""
        shares = network.probabilities(self.classifier(image))
        codes = network.encode(image, shares)[0, : -shares.shape[1]]
        parts = shares[0].cpu().split([len(c) for c in self.factors.classes.values()])
        probabilities = {
            head: dict(zip(map(str, classes), part.tolist(), strict=True))
            for (head, classes), part in zip(self.factors.classes.items(), parts, strict=True)
        }
        return {"codes": codes.tolist(), "attributes": {}, "probabilities": probabilities}

    def at(self, name: str, shares: Sequence[float]) -> list[float]:
        """Return the shares, which are the values."""
        return list(shares)

    def series(
        self, network: Any, image: Tensor, name: str, values: Sequence[float]
    ) -> tuple[Tensor, dict[str, Any]]:
        """Return the image with an attribute moved by shares of the searched way."""
        used, warnings = clamped(values, 0.0, 1.0, name, SEARCHED)
        edits = [self.edits[name]._replace(shift=value) for value in used]
        images = self._edited(network, image, edits)[1:]
        return images.flatten(0, 1), {"values": used, "warnings": warnings}

    def maps(self, network: Any, image: Tensor, names: Sequence[str]) -> Tensor:
        """Return how much each attribute, by the whole edit, changes every voxel (K, *S).

        It is the mean over channels of the absolute difference from the reconstruction, in [0, 1].
        """
        base, *images = self._edited(network, image, [self.edits[name] for name in names])
        return torch.stack([(edited - base).abs().mean(0) for edited in images])

    def disagrees(self, read: dict[str, Any], measured: dict[str, float]) -> float:
        """Return NaN: what the search found is not measured in masks."""
        return float("nan")

    def _edited(self, network: Any, image: Tensor, edits: list[StyleEdit]) -> Tensor:
        """Return the reconstruction and the edits of an image (1, C, *S): (1 + K, C, *S)."""
        images = StyleEditInferer(self.classifier, edits)(image, network)
        return torch.stack(images[0].chunk(1 + len(edits), 0))
