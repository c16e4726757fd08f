"""StylEx: an autoencoder whose generator knows what a classifier says (Lang et al. 2021)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from medvae.networks.style_discriminator import StyleTrunk
from medvae.networks.style_layers import EqualLinear, batch_deviation, leaky_relu
from medvae.networks.stylegan import StyleGenerator

__all__ = ["ConditionalDiscriminator", "StylEx", "StyleEncoder"]


class StyleEncoder(StyleTrunk):
    """Images (B, C, *S) in [-1, 1] to codes (B, D): a discriminator's trunk with D outputs.

    Args:
        spatial_dims: 2 or 3.
        latent_dim: D.
        image_size: see `StyleTrunk`.
        channels: see `StyleTrunk`.
        in_channels: C.
    """

    def __init__(
        self,
        spatial_dims: int,
        latent_dim: int,
        image_size: Sequence[int] | int,
        channels: Sequence[int],
        in_channels: int = 1,
    ) -> None:
        super().__init__(spatial_dims, image_size, channels, in_channels)
        self.code = EqualLinear(channels[0], latent_dim)

    def forward(self, image: Tensor) -> Tensor:
        """Return codes (B, D) of images (B, C, *S)."""
        return self.code(self.features(image))


class ConditionalDiscriminator(StyleTrunk):
    r"""Scores images (B, C, *S) in [-1, 1] as those of a class.

    .. math:: D(x, p) = \sum_k p_k D_k(x)

    with one output for every class of every head of the classifier.

    Args:
        spatial_dims: 2 or 3.
        classes: K, of all heads together.
        image_size: see `StyleTrunk`.
        channels: see `StyleTrunk`.
        in_channels: C.
    """

    def __init__(
        self,
        spatial_dims: int,
        classes: int,
        image_size: Sequence[int] | int,
        channels: Sequence[int],
        in_channels: int = 1,
    ) -> None:
        super().__init__(spatial_dims, image_size, channels, in_channels)
        self.hidden = EqualLinear(channels[0] + 1, channels[0])
        self.scores = EqualLinear(channels[0], classes)

    def forward(self, image: Tensor, probabilities: Tensor) -> Tensor:
        """Return scores (B, 1) of images with class probabilities (B, K)."""
        return (probabilities * self.class_scores(image)).sum(1, keepdim=True)

    def class_scores(self, image: Tensor) -> Tensor:
        """Return D_k, (B, K)."""
        x = self.maps(image)
        judged = torch.cat([self.read(x), batch_deviation(x)], 1)
        return self.scores(leaky_relu(self.hidden(judged)))


class StylEx(nn.Module):
    """Encoder, generator and discriminator around a classifier that is not part of them.

    An image x with the classifier's probabilities p is encoded to w = E(x), and generated again
    from w and p side by side. Images are in [0, 1] outside, in [-1, 1] inside.

    Args:
        spatial_dims: 2 or 3.
        heads: outputs of every head of the classifier by its name; 1 is a binary head.
        image_size: S, one number or one for each axis, divisible by 2^(R - 1).
        channels: of the R grids, from the coarsest to the image.
        in_channels: C.
        latent_dim: D, of w without the probabilities.
        mapping_layers: fully connected layers of the mapping network.

    Attributes:
        classes: K, of all heads together; a binary head has two.

    Raises:
        ValueError: for no head, or sizes that do not fit each other.
    """

    def __init__(
        self,
        spatial_dims: int,
        heads: Mapping[str, int],
        image_size: Sequence[int] | int,
        channels: Sequence[int],
        in_channels: int = 1,
        latent_dim: int = 64,
        mapping_layers: int = 8,
    ) -> None:
        super().__init__()
        if not heads or min(heads.values()) < 1:
            raise ValueError(f"heads: found {dict(heads)}, expected one or more outputs of each")
        self.heads = dict(heads)
        self.classes = sum(max(2, count) for count in heads.values())
        self.latent_dim = latent_dim
        self.generator = StyleGenerator(
            spatial_dims,
            {"code": latent_dim},
            image_size,
            channels,
            in_channels,
            mapping_layers,
            joined=self.classes,
        )
        self.encoder = StyleEncoder(spatial_dims, latent_dim, image_size, channels, in_channels)
        self.discriminator = ConditionalDiscriminator(
            spatial_dims, self.classes, image_size, channels, in_channels
        )

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return all heads' class probabilities (B, K) for logits (B, O), heads side by side."""
        parts = logits.split(list(self.heads.values()), 1)
        return torch.cat([log_probabilities(part).exp() for part in parts], 1)

    def encode(self, image: Tensor, probabilities: Tensor) -> Tensor:
        """Return w (B, D + K) of images (B, C, *S) in [0, 1] with their probabilities (B, K)."""
        return torch.cat([self.encoder(2 * image - 1), probabilities], 1)

    def decode(self, w: Tensor) -> Tensor:
        """Return images (B, C, *S), limited to [0, 1], for w (B, D + K)."""
        return shown(self.generator.synthesis(w))

    def images(self, styles: Tensor) -> Tensor:
        """Return images (B, C, *S), limited to [0, 1], for styles (B, S')."""
        return shown(self.generator.synthesis_from_styles(styles))

    def forward(self, image: Tensor, probabilities: Tensor) -> Tensor:
        """Return reconstructions (B, C, *S) of images in [0, 1] with probabilities (B, K)."""
        return self.decode(self.encode(image, probabilities))


class Shown(nn.Module):
    """A classifier of what a generator draws: its images are brought to [0, 1] first.

    Args:
        classifier: images (B, C, *S) in [0, 1] to logits (B, O).
    """

    def __init__(self, classifier: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, drawn: Tensor) -> Tensor:
        """Return logits (B, O) of images (B, C, *S) about in [-1, 1]."""
        logits: Tensor = self.classifier(shown(drawn))
        return logits


def shown(drawn: Tensor) -> Tensor:
    """Return images in [0, 1] for a generator's, which are about in [-1, 1]."""
    return ((drawn + 1) / 2).clamp(0, 1)


def log_probabilities(logits: Tensor) -> Tensor:
    """Return log probabilities (..., K) of a head's logits (..., K), (..., 2) for a binary one."""
    if logits.shape[-1] == 1:
        logits = torch.cat([torch.zeros_like(logits), logits], -1)
    return logits.float().log_softmax(-1)
