"""A small network that is trained on the factors: an external judge, and the source of features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from monai.networks.nets import ResNet
from torch import Tensor, nn

__all__ = ["FactorClassifier"]


class FactorClassifier(nn.Module):
    """Images (B, C, *S) to class logits of every factor, through features (B, d).

    The body is MONAI's ResNet with one basic block at each of four resolutions, the first half of
    the image's. Batches are normalised, not images: brightness and contrast may tell of a factor.
    In evaluation mode what it says of an image does not depend on its batch.

    Args:
        spatial_dims: 2 or 3.
        in_channels: of the images.
        classes: number of classes of every factor by its name.
        channels: of the four resolutions; the last is d.
        seed: of the initial weights; the global generator is left alone.

    Attributes:
        name: what to call its features, such as ``ResNet 8-16-32-64 in 3D trained on side, dx``.

    Raises:
        ValueError: for no factor, or one with fewer than two classes.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        classes: Mapping[str, int],
        channels: Sequence[int] = (8, 16, 32, 64),
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not classes or min(classes.values()) < 2:
            raise ValueError(f"classes: found {dict(classes)}, expected two or more of each factor")
        self.classes = dict(classes)
        self.name = (
            f"ResNet {'-'.join(map(str, channels))} in {spatial_dims}D trained on "
            f"{', '.join(classes)}"
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.body = ResNet(
                block="basic",
                layers=[1, 1, 1, 1],
                block_inplanes=list(channels),
                spatial_dims=spatial_dims,
                n_input_channels=in_channels,
                conv1_t_size=3,
                conv1_t_stride=2,
                no_max_pool=True,
                feed_forward=False,
            )
            self.head = nn.Linear(channels[-1], sum(classes.values()))

    def features(self, image: Tensor) -> Tensor:
        """Return features (B, d)."""
        found: Tensor = self.body(image)
        return found

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Return logits (B, classes) by the factor's name."""
        parts = self.head(self.features(image)).split(list(self.classes.values()), 1)
        return dict(zip(self.classes, parts, strict=True))
