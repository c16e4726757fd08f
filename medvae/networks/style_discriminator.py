"""Discriminators of style-based generators, and their trunk, which also encodes.

That of the disentangled GAN (Müller et al. 2025) has its encoder in it: one trunk with a score,
codes and heads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from medvae.networks.style_layers import (
    EqualConv,
    EqualLinear,
    batch_deviation,
    grids_of,
    leaky_relu,
    resample,
)
from medvae.networks.subspaces import SubspaceHeads, Subspaces

__all__ = ["DiscriminatorOutput", "StyleDiscriminator", "StyleTrunk"]

_RESIDUAL = 0.5**0.5  # of both branches, whose sum then keeps the scale


class DiscriminatorOutput(NamedTuple):
    """What a `StyleDiscriminator` computes from a batch of images.

    Attributes:
        score: logit of being real, shape (B, 1).
        features: from which the others are read, shape (B, F).
        codes: the estimated w, shape (B, D).
        logits: of all heads side by side, shape (B, O).
    """

    score: Tensor
    features: Tensor
    codes: Tensor
    logits: Tensor


class StyleTrunk(nn.Module):
    """Residual network of StyleGAN2's discriminator, images (B, C, *S) to features (B, F).

    Args:
        spatial_dims: 2 or 3.
        image_size: S, one number or one for each axis, divisible by 2^(R - 1).
        channels: of the R grids, from the coarsest to the image; F is channels[0].
        in_channels: C.
        faithful: resampling that shifts, and features that depend on which images share the batch.

    Raises:
        ValueError: for sizes that do not fit each other.
    """

    def __init__(
        self,
        spatial_dims: int,
        image_size: Sequence[int] | int,
        channels: Sequence[int],
        in_channels: int = 1,
        faithful: bool = False,
    ) -> None:
        super().__init__()
        base = grids_of(spatial_dims, image_size, len(channels))[0]
        self.faithful = faithful
        self.from_image = EqualConv(spatial_dims, in_channels, channels[-1], 1)
        self.blocks = nn.ModuleList(
            _ResidualDown(spatial_dims, i, o, not faithful) for i, o in pairwise(channels[::-1])
        )
        width = channels[0]
        self.last = EqualConv(spatial_dims, width + faithful, width)
        self.dense = EqualLinear(width * base.numel(), width)

    def features(self, image: Tensor) -> Tensor:
        """Return the features (B, F) of images (B, C, *S)."""
        return self.read(self.maps(image))

    def maps(self, image: Tensor) -> Tensor:
        """Return the maps (B, F, *S') on the coarsest grid of images (B, C, *S)."""
        x = leaky_relu(self.from_image(image))
        for block in self.blocks:
            x = block(x)
        return x

    def read(self, x: Tensor) -> Tensor:
        """Return features (B, F) of maps (B, F, *S')."""
        if self.faithful:
            deviation = batch_deviation(x, None)[(...,) + (None,) * (x.ndim - 2)]
            x = torch.cat([x, deviation.expand(-1, -1, *x.shape[2:])], 1)
        return leaky_relu(self.dense(leaky_relu(self.last(x)).flatten(1)))


class StyleDiscriminator(StyleTrunk):
    """Residual discriminator of images (B, C, *S) that encodes them, with a head per factor.

    Only the score reads how much the images of a batch differ: codes of an image are its own.

    Args:
        spatial_dims: 2 or 3.
        sizes: dimensions of the subspaces of the codes, in order.
        outputs: logits of every labelled subspace; see `SubspaceHeads`.
        image_size: S, one number or one for each axis, divisible by 2^(R - 1).
        channels: of the R grids, from the coarsest to the image; there are channels[0] features.
        in_channels: C.
        faithful: as published (Müller et al. 2025): resampling that shifts, and features, hence
            codes, that depend on which images share the batch.

    Attributes:
        subspaces: `Subspaces` of the codes.
        heads: `SubspaceHeads` on the codes.

    Raises:
        ValueError: for sizes that do not fit each other.
    """

    def __init__(
        self,
        spatial_dims: int,
        sizes: Mapping[str, int],
        outputs: Mapping[str, int],
        image_size: Sequence[int] | int,
        channels: Sequence[int],
        in_channels: int = 1,
        faithful: bool = False,
    ) -> None:
        super().__init__(spatial_dims, image_size, channels, in_channels, faithful)
        self.subspaces = Subspaces(sizes)
        width = channels[0]
        self.score_hidden = None if faithful else EqualLinear(width + 1, width)
        self.score = EqualLinear(width, 1)
        self.encoder = EqualLinear(width, self.subspaces.latent_dim)
        self.heads = SubspaceHeads(self.subspaces, outputs)

    def forward(self, image: Tensor) -> DiscriminatorOutput:
        """Return score, features, codes and logits of images (B, C, *S)."""
        x = self.maps(image)
        features = self.read(x)
        codes = self.encoder(features)
        judged = features
        if self.score_hidden is not None:
            judged = torch.cat([features, batch_deviation(x)], 1)
            judged = leaky_relu(self.score_hidden(judged))
        return DiscriminatorOutput(self.score(judged), features, codes, self.heads(codes))

    def encode(self, image: Tensor) -> Tensor:
        """Return codes (B, D) of images (B, C, *S)."""
        return self.encoder(self.features(image))


class _ResidualDown(nn.Module):
    """Two convolutions, with the grid halved between them, and a shortcut."""

    def __init__(
        self, spatial_dims: int, in_channels: int, out_channels: int, aligned: bool
    ) -> None:
        super().__init__()
        self.first = EqualConv(spatial_dims, in_channels, in_channels)
        self.second = EqualConv(spatial_dims, in_channels, out_channels)
        self.shortcut = EqualConv(spatial_dims, in_channels, out_channels, 1, bias=False)
        self.aligned = aligned

    def forward(self, x: Tensor) -> Tensor:
        y = resample(leaky_relu(self.first(x)), "down", self.aligned)
        y = leaky_relu(self.second(y), _RESIDUAL)
        return y + self.shortcut(resample(x, "down", self.aligned)) * _RESIDUAL
