"""The measuring instrument: attributes of images without a mask, such as decoded ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.networks.nets import UNet
from monai.utils import ensure_tuple_rep
from scipy import ndimage
from torch import Tensor

from medvae.attributes import measure_labels
from medvae.data import CohortError
from medvae.data.errors import suggestion
from medvae.data.measured import MaskLabels
from medvae.data.output import replacing

__all__ = ["Instrument"]

Array = npt.NDArray[np.float64]
CHANNELS = (8, 16, 32)
SPECK = 0.1  # parts of a class smaller than this share of its largest part are taken for errors


class Instrument:
    """Segments images and measures the segmentation as `medvae.attributes` measures masks.

    Its network, a small U-Net over the mask's values, is to be trained first, see
    :func:`medvae.engines.train_segmentation`, or loaded.

    Args:
        names: what to measure, of `medvae.attributes.feature_names(spatial_dims, labels)`.
        image_size: spatial size of the images.
        spacing_mm: of their voxels, one number or one per axis.
        labels: name of each region and its value or values in the mask; regions may share values.
            None: one region, all but 0.
        in_channels: of the images. Intensities are those of the channels' mean.
        window: intensities that 0 and 1 in the images stand for; None: they are measured as they
            are.
        device: where the network computes.
        seed: of the network's initial weights.
    """

    def __init__(
        self,
        names: Sequence[str],
        image_size: Sequence[int],
        spacing_mm: Sequence[float] | float,
        labels: MaskLabels | None = None,
        in_channels: int = 1,
        window: Sequence[float] | None = None,
        device: str | torch.device = "cpu",
        seed: int = 0,
    ) -> None:
        self.names, self.labels = tuple(names), labels
        self.spacing_mm = ensure_tuple_rep(spacing_mm, len(image_size))
        self.window = (0.0, 1.0) if window is None else tuple(window)
        self.values = _values(labels)
        self.device = device
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = _network(image_size, in_channels, len(self.values))
        self.network = network.to(device, memory_format=_memory_format(image_size))

    def classes(self, masks: Tensor) -> Tensor:
        """Return the class (B, *S) of each voxel of masks (B, 1, *S): 0, or a value's number."""
        masks = masks[:, 0].round()
        if self.labels is None:
            return (masks != 0).long()
        found = torch.zeros_like(masks, dtype=torch.long)
        for number, value in enumerate(self.values):
            found[masks == value] = number
        return found

    def segment(self, images: Tensor) -> npt.NDArray[np.int64]:
        """Return label maps (B, *S) of the mask's values for images (B, C, *S) in [0, 1]."""
        self.network.eval()
        with torch.no_grad():
            numbers = self.network(images.to(self.device)).argmax(1).cpu().numpy()
        for labelmap in numbers:
            for number in range(1, len(self.values)):
                labelmap[_specks(labelmap == number)] = 0
        return np.array(self.values)[numbers]

    def measure(self, images: Tensor) -> Array:
        """Return attributes (B, K) of images (B, C, *S) in [0, 1]; NaN where nothing is found."""
        return self.measure_masks(images, self.segment(images))

    def measure_masks(self, images: Tensor, labelmaps: npt.NDArray[Any]) -> Array:
        """Return attributes (B, K) of images (B, C, *S) in [0, 1] within label maps (B, *S)."""
        low, high = self.window
        grey = low + (high - low) * images.detach().cpu().double().mean(1).numpy()
        return np.array(
            [self._row(image, mask) for image, mask in zip(grey, labelmaps, strict=True)]
        ).reshape(len(grey), len(self.names))

    def region(self, name: str, labelmaps: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Return where in label maps (B, *S) the structure is that an attribute is measured in."""
        if self.labels is None:
            return np.asarray(labelmaps != 0)
        label = max((key for key in self.labels if name.startswith(f"{key}_")), key=len)
        return np.isin(labelmaps, np.atleast_1d(self.labels[label]))

    def save(self, path: str | Path, fingerprint: str) -> None:
        """Write the network's weights, whole or not at all, with what they were trained on."""
        with replacing(path) as temporary:
            torch.save(
                {"fingerprint": fingerprint, "weights": self.network.state_dict()}, temporary
            )

    def load(self, path: str | Path, fingerprint: str) -> bool:
        """Load what `save` wrote, if it is there and was trained on the same; say whether.

        Raises:
            CohortError: a file that is not an instrument's.
        """
        if not Path(path).is_file():
            return False
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
            if state["fingerprint"] != fingerprint:
                return False
            self.network.load_state_dict(state["weights"])
        except Exception as error:  # torch raises half a dozen kinds, by the byte where a file ends
            raise CohortError(
                f"The instrument '{path}' cannot be read ({type(error).__name__}); expected the "
                "file of an earlier evaluation, or none."
            ) from error
        return True

    def _row(self, image: Array, labelmap: npt.NDArray[Any]) -> list[float]:
        if not labelmap.any():
            return [np.nan] * len(self.names)
        found: Mapping[str, float] = measure_labels(
            image, labelmap, self.spacing_mm, self.labels, self.names
        )
        return [found[name] for name in self.names]


def measurable(
    attributes: Sequence[str], measured_as: Mapping[str, str], known: Sequence[str]
) -> dict[str, str]:
    """Return under which name each attribute is measured, of those that can be.

    Args:
        attributes: of the table or of `medvae.attributes`.
        measured_as: other names of some of them; what is no attribute is ignored.
        known: of `medvae.attributes.feature_names`.

    Raises:
        CohortError: a name in `measured_as` that cannot be measured.
    """
    found = {name: measured_as.get(name, name) for name in attributes}
    for name, feature in found.items():
        if name in measured_as and feature not in known:
            raise CohortError(
                f"Attribute '{name}' is to be measured as '{feature}', which cannot be measured; "
                f"{suggestion(feature, known)}"
            )
    return {name: feature for name, feature in found.items() if feature in known}


def _values(labels: MaskLabels | None) -> tuple[int, ...]:
    """Return the mask's value of every class; with one region its number stands for all values."""
    if labels is None:
        return (0, 1)
    return (0, *sorted({int(v) for group in labels.values() for v in np.atleast_1d(group)}))


def _network(image_size: Sequence[int], in_channels: int, classes: int) -> UNet:
    """Return a U-Net of full resolution first, that halves what the size lets it halve."""
    halvings = 0
    while halvings < len(CHANNELS) - 1 and all(n % 2 ** (halvings + 1) == 0 for n in image_size):
        halvings += 1
    return UNet(
        spatial_dims=len(image_size),
        in_channels=in_channels,
        out_channels=classes,
        channels=(*CHANNELS[: halvings + 1], CHANNELS[halvings]),
        strides=(1,) + (2,) * halvings,
        norm=("GROUP", {"num_groups": 4}),
    )


def _memory_format(image_size: Sequence[int]) -> torch.memory_format:
    return torch.channels_last_3d if len(image_size) == 3 else torch.channels_last


def _specks(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Return the parts of a mask that are much smaller than its largest."""
    parts, count = ndimage.label(mask, np.ones((3,) * mask.ndim))
    if count < 2:
        return np.zeros_like(mask)
    sizes = np.bincount(parts.ravel())[1:]
    small = np.concatenate([[False], sizes < SPECK * sizes.max()])
    return np.asarray(small[parts])
