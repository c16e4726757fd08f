"""Attributes, such as areas and volumes, that are measured again in edited images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medvae.data.measured import MaskLabels
from medvae.report.measuring import (
    instrument_of,
    measure_images,
    measuring_quality,
    train_instrument,
)
from medvae.report.stylex_images import Encoded

if TYPE_CHECKING:
    from medvae.report.stylex_search import StylexSearch

__all__ = ["MeasuredEdits"]

Array = npt.NDArray[np.float64]


class MeasuredEdits:
    """Measures what an edit moves, by a small U-Net that finds the structures.

    The U-Net learns from the training subjects' images and masks alone: of reconstructions it would
    learn how the generator marks a class. So `quality` says how well it measures those, too.

    Args:
        names: of `medvae.attributes.feature_names(spatial_dims, mask_labels)`.
        image_size: of the network's images.
        spacing_mm: of their voxels.
        mask_labels: names of the mask's integers; None is one region.
        window: intensities that become 0 and 1; None measures those of the network's images.
        in_channels: of the images.
        steps: batches that the U-Net is trained for.
        seed: of training.
        device: where to compute.

    Attributes:
        quality: once it has learned, by name: ``sd`` of the attribute over the test subjects, as
            their masks say, and how what is measured on their `images` and their `reconstructions`
            differs from that: ``r2``, ``bias`` and ``error_sd`` of so many ``subjects``.

    Raises:
        CohortError: a name that is not measured.
    """

    def __init__(
        self,
        names: Sequence[str],
        image_size: Sequence[int],
        spacing_mm: Sequence[float] | float,
        mask_labels: MaskLabels | None = None,
        window: Sequence[float] | None = None,
        in_channels: int = 1,
        steps: int = 1000,
        seed: int = 0,
        device: str | torch.device = "cpu",
    ) -> None:
        self.names, self.steps, self.seed = tuple(names), steps, seed
        self.instrument = instrument_of(
            names, image_size, spacing_mm, mask_labels, window, in_channels, device, seed
        )
        self.quality: dict[str, dict[str, Any]] = {}

    def learn(self, run: StylexSearch, tested: Encoded) -> None:
        """Train the U-Net on the training subjects and measure the tested, as they are.

        Args:
            run: the search, whose batches have the key `mask`.
            tested: its test subjects, in their order.
        """
        images = torch.cat([run.prepare_batch(batch, "cpu")[0] for batch in run.train])
        classes = torch.cat([self.instrument.classes(_mask(batch)) for batch in run.train])
        train_instrument(self.instrument, images, classes, self.steps, self.seed)
        masks = torch.cat([_mask(batch) for batch in run.test])
        labelmaps = masks[:, 0].round().numpy().astype(np.int64)
        true = measure_images(self.instrument, tested.images, labelmaps)
        own = measure_images(self.instrument, tested.images)
        self.before = measure_images(self.instrument, tested.again)
        self.sd = np.array([_spread(column) for column in true.T])
        self.quality = {
            name: {
                "sd": None if np.isnan(self.sd[k]) else float(self.sd[k]),
                "images": measuring_quality(own[:, k], true[:, k]),
                "reconstructions": measuring_quality(self.before[:, k], true[:, k]),
            }
            for k, name in enumerate(self.names)
        }

    def moves(self, images: Tensor, rows: npt.NDArray[np.intp]) -> dict[str, Array]:
        """Return by attribute how far edited images of some rows moved, in SD, (N',).

        NaN where an attribute cannot be measured before or after, or is the same in all masks.
        """
        change = (measure_images(self.instrument, images) - self.before[rows]) / self.sd
        return {name: change[:, k] for k, name in enumerate(self.names)}


def _mask(batch: Mapping[str, Any]) -> Tensor:
    return torch.as_tensor(batch["mask"]).as_subclass(Tensor)


def _spread(values: Array) -> float:
    """Return the SD of what is known; NaN where it is 0."""
    known = values[np.isfinite(values)]
    return float(np.std(known)) if len(np.unique(known)) > 1 else float("nan")
