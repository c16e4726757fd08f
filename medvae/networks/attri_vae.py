"""The attribute-regularised variational autoencoder, for images and volumes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import prod
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from medvae.networks.blocks import ConvBlock, init_xavier_uniform
from medvae.networks.least_squares import LeastSquares
from medvae.networks.regions import RegionBranch, RegionStatistics


class AttriVAEOutput(NamedTuple):
    """What an `AttriVAE` computes from a batch of images.

    Attributes:
        reconstruction: in (0, 1), shape (B, C, *S).
        mean: posterior mean, shape (B, D).
        log_var: logarithm of the posterior variance, shape (B, D).
        z: the code that was decoded, shape (B, D): a sample in training, the mean in evaluation.
        logits: shape (B, 1) for a binary head, (B, C) for C classes, (B, 0) without a head.
        regions: logits of each structure, (B, R, *S); R is 0 without.
    """

    reconstruction: Tensor
    mean: Tensor
    log_var: Tensor
    z: Tensor
    logits: Tensor
    regions: Tensor | None = None


class AttriVAE(nn.Module):
    """Convolutional VAE whose first latent axes are tied to attributes, with an MLP head.

    The defaults are the published 3D network (Cetin et al. 2023): 340,674 parameters at 80^3.
    In training the decoder and the head read a sample of the posterior, in evaluation its mean, so
    that the same input gives the same output.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image and of its reconstruction.
        image_size: spatial size, divisible by the product of the strides along every axis.
        latent_dim: number D of latent axes; axis k belongs to attribute k.
        channels: channels of the encoder's convolutions; the decoder mirrors them.
        strides: their strides, one for each; a stride is a number or one number per axis.
        num_classes: 0 for no head, 1 for a binary head, C for C classes.
        attribute_names: names of the first K axes, at most `latent_dim`.
        hidden_channels: widths of the fully connected layers before the posterior.
        head_channels: widths of the head's hidden layers.
        head_axes: how many of the first axes the head reads, such as the attributes' alone where
            there are too few subjects for the others; None for all.
        decoder_channels: channels of the decoder's convolutions, one more than `channels`: one for
            each stride, in reverse, and one at full resolution; None mirrors `channels`.
        pooled_layer: index of the encoder's convolution whose mean over all positions joins the
            flattened output of the last; None for none. A mean of features adds up what belongs
            to a structure wherever it lies, as volumes do, with few weights; it needs "BATCH" or no
            normalisation, because normalising each image takes its mean away.
        regions: structures that a branch of the encoder finds, see `RegionBranch`; 0 for none. The
            axes of the attributes are then linear in the structures' moments alone (see
            `RegionStatistics`), at last by least squares (`medvae.engines.fit_tied_axes`), and the
            flattened output serves the free axes, by fully connected layers that are then
            batch-normalised.
        region_channels: channels of that branch.
        spacing: of the image's voxels, in which regions are measured: one number for each axis;
            a number or None: the axes are the same.
        dropout: probability, on what the encoder gives the fully connected layers.
        norm: MONAI's name or (name, arguments) of the convolutions' normalisation.
        act: MONAI's name of the activation.
        decoder_act: the same for the decoder's convolutions; None for that of `act`. With "RELU"
            the last convolution reads positive features alone: where these only darken, no voxel is
            brighter than 0.5, and nothing revives the others. "LEAKYRELU" keeps them learning.
        smooth: the decoder's transposed convolutions are averaged over windows of their stride, and
            draw no checkerboard, see `ConvBlock`.

    Raises:
        ValueError: for sizes, strides or names that do not fit each other.
    """

    def __init__(
        self,
        spatial_dims: int = 3,
        in_channels: int = 1,
        image_size: Sequence[int] | int = (80, 80, 80),
        latent_dim: int = 64,
        channels: Sequence[int] = (8, 16, 32, 64, 2),
        strides: Sequence[int | Sequence[int]] = (2, 2, 2, 2, 1),
        num_classes: int = 1,
        attribute_names: Sequence[str] | None = None,
        hidden_channels: Sequence[int] = (128, 96),
        head_channels: Sequence[int] = (32, 16),
        head_axes: int | None = None,
        decoder_channels: Sequence[int] | None = None,
        pooled_layer: int | None = None,
        regions: int = 0,
        region_channels: int = 16,
        spacing: Sequence[float] | float | None = None,
        dropout: float = 0.25,
        norm: str | tuple | None = "BATCH",
        act: str | tuple = "RELU",
        decoder_act: str | tuple | None = None,
        smooth: bool = False,
    ) -> None:
        super().__init__()
        steps = [_per_axis(stride, spatial_dims) for stride in strides]
        sizes = (image_size,) * spatial_dims if isinstance(image_size, int) else image_size
        self.image_size = tuple(int(n) for n in sizes)
        self.latent_dim = latent_dim
        self.in_channels = in_channels
        self.attribute_names = tuple(attribute_names or ())
        _check_arguments(self, spatial_dims, channels, steps, num_classes, pooled_layer, head_axes)

        grid = [n // prod(s[axis] for s in steps) for axis, n in enumerate(self.image_size)]
        self.bottleneck_shape = (channels[-1], *grid)
        flat = prod(self.bottleneck_shape)
        widths = [in_channels, *channels]
        self.encoder = nn.Sequential(
            *(
                ConvBlock(spatial_dims, i, o, s, norm=norm, act=act)
                for (i, o), s in zip(pairwise(widths), steps, strict=True)
            )
        )
        self.pooled_layer = -1 if pooled_layer is None else range(len(channels))[pooled_layer]
        joined = flat + (0 if pooled_layer is None else channels[pooled_layer])
        self.dropout = nn.Dropout(dropout)
        # normalised where only the free axes need it: without, it dies at high learning rates
        self.hidden = _mlp([joined, *hidden_channels], norm=regions > 0)
        width = hidden_channels[-1] if hidden_channels else joined
        tied = len(self.attribute_names) if regions else 0
        self.mean = nn.Linear(width, latent_dim - tied)
        self.log_var = nn.Linear(width, latent_dim)
        self.branch: RegionBranch | None = None
        if regions:
            self.branch = RegionBranch(
                spatial_dims, in_channels, channels, steps, regions, region_channels, norm, act
            )
            self.statistics = RegionStatistics(self.image_size, _per_axis_mm(spacing, spatial_dims))
            count = regions * self.statistics.count(in_channels, region_channels)
            self.tied_mean = LeastSquares(count, tied)

        self.head_axes = latent_dim if head_axes is None else head_axes
        head = _mlp([self.head_axes, *head_channels], norm=True)
        width = head_channels[-1] if head_channels else self.head_axes
        self.head = nn.Sequential(*head, nn.Linear(width, num_classes)) if num_classes else None

        decoder_channels = _mirrored(channels) if decoder_channels is None else decoder_channels
        if len(decoder_channels) != len(channels) + 1:
            raise ValueError(
                f"decoder_channels must have {len(channels) + 1} entries, one more than channels, "
                f"found {list(decoder_channels)}"
            )
        self.expand = nn.Sequential(nn.Linear(latent_dim, flat), nn.ReLU())
        widths = [channels[-1], *decoder_channels]
        ups = [*steps[::-1], _per_axis(1, spatial_dims)]
        up: Literal["up", "smooth"] = "smooth" if smooth else "up"
        self.decoder = nn.Sequential(
            *(
                ConvBlock(
                    spatial_dims,
                    i,
                    o,
                    s,
                    resample=up if max(s) > 1 else "down",
                    norm=norm,
                    act=act if decoder_act is None else decoder_act,
                )
                for (i, o), s in zip(pairwise(widths), ups, strict=True)
            ),
            ConvBlock(spatial_dims, widths[-1], in_channels, norm=None, act="SIGMOID"),
        )
        self.apply(init_xavier_uniform)

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log variance of the posterior, each (B, D), for images (B, C, *S)."""
        mean, log_var, _, _ = self._encode(image)
        return mean, log_var

    def find_regions(self, image: Tensor) -> Tensor:
        """Return each structure's share of every voxel, in [0, 1], (B, R, *S)."""
        return self._encode(image)[2].sigmoid()

    def region_statistics(self, image: Tensor) -> Tensor:
        """Return the structures' moments (B, P), which the attributes' axes are linear in."""
        return self._encode(image)[3]

    def _encode(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Mean, log variance, the regions' logits and their moments."""
        features, found = image, image.flatten(1)[:, :0]
        layers: list[Tensor] = []
        for index, block in enumerate(self.encoder):
            features = block(features)
            layers.append(features)
            if index == self.pooled_layer:
                found = features.flatten(2).mean(2)
        found = self.hidden(self.dropout(torch.cat([features.flatten(1), found], 1)))
        mean, log_var = self.mean(found), self.log_var(found)
        if self.branch is None:
            return mean, log_var, image[:, :0], mean[:, :0]
        logits, details = self.branch(image, layers)
        # the masks alone teach where a structure is: what serves an attribute may lie elsewhere
        found = logits.detach() if self.training else logits
        share = self.branch.occupancy(found.float())
        statistics = self.statistics(share, image, details)
        return torch.cat([self.tied_mean(statistics), mean], 1), log_var, logits, statistics

    def decode(self, z: Tensor) -> Tensor:
        """Return images in (0, 1), shape (B, C, *S), for codes (B, D)."""
        return self.decoder(self.expand(z).unflatten(1, self.bottleneck_shape))

    def classify(self, z: Tensor) -> Tensor:
        """Return logits (B, num_classes) for codes (B, D)."""
        return z[:, :0] if self.head is None else self.head(z[:, : self.head_axes])

    def forward(self, image: Tensor) -> AttriVAEOutput:
        """Encode, sample (in training), decode and classify images of shape (B, C, *S)."""
        mean, log_var, regions, _ = self._encode(image)
        z = mean
        if self.training:
            z = mean + torch.exp(0.5 * log_var) * torch.randn_like(mean)
        return AttriVAEOutput(self.decode(z), mean, log_var, z, self.classify(z), regions)


class AttriVAEReconstruction(AttriVAE):
    """An `AttriVAE` that returns its reconstruction alone: tensor in, tensor out.

    What MONAI's bundle commands and MONAI Label expect of a `network_def`; the weights have the
    same names as those of `AttriVAE`, and encode, decode and classify are there as well.
    """

    def forward(self, image: Tensor) -> Tensor:  # type: ignore[override]
        """Return the reconstruction from the posterior mean, shape (B, C, *S)."""
        return self.decode(self.encode(image)[0])


def _per_axis(stride: int | Sequence[int], spatial_dims: int) -> tuple[int, ...]:
    return (stride,) * spatial_dims if isinstance(stride, int) else tuple(stride)


def _per_axis_mm(spacing: Sequence[float] | float | None, spatial_dims: int) -> list[float] | None:
    if spacing is None or isinstance(spacing, float | int):
        return None
    if len(spacing) != spatial_dims:
        raise ValueError(f"spacing must have {spatial_dims} entries, found {list(spacing)}")
    return list(spacing)


def _mirrored(channels: Sequence[int]) -> list[int]:
    """Return the published decoder's channels: 64, 64, 32, 16, 8, 4 for 8, 16, 32, 64, 2."""
    return [channels[-2:][0], *channels[-2::-1], max(channels[0] // 2, 1)]


def _mlp(widths: Sequence[int], norm: bool) -> nn.Sequential:
    """Linear layers with ReLU between the given widths, batch-normalised where asked."""
    layers: list[nn.Module] = []
    for i, o in pairwise(widths):
        layers += [nn.Linear(i, o), *([nn.BatchNorm1d(o)] if norm else []), nn.ReLU()]
    return nn.Sequential(*layers)


def _check_arguments(
    network: AttriVAE,
    spatial_dims: int,
    channels: Sequence[int],
    steps: Sequence[tuple[int, ...]],
    num_classes: int,
    pooled_layer: int | None,
    head_axes: int | None,
) -> None:
    size = network.image_size
    if spatial_dims not in (2, 3):
        raise ValueError(f"spatial_dims must be 2 or 3, found {spatial_dims}")
    if len(size) != spatial_dims:
        raise ValueError(f"image_size must have {spatial_dims} entries, found {size}")
    if len(steps) != len(channels) or any(len(s) != spatial_dims for s in steps):
        raise ValueError(
            f"strides must have one entry for each of the {len(channels)} channels, a number or "
            f"{spatial_dims} numbers, found {list(steps)}"
        )
    for axis, n in enumerate(size):
        stride = prod(s[axis] for s in steps)
        if n % stride:
            raise ValueError(
                f"image_size {n} along axis {axis} is not divisible by the product of the "
                f"strides, {stride}"
            )
    if len(network.attribute_names) > network.latent_dim:
        raise ValueError(
            f"{len(network.attribute_names)} attributes need as many latent axes, found "
            f"latent_dim {network.latent_dim}"
        )
    if pooled_layer is not None and not -len(channels) <= pooled_layer < len(channels):
        raise ValueError(
            f"pooled_layer must name one of the {len(channels)} convolutions, found {pooled_layer}"
        )
    if head_axes is not None and not 1 <= head_axes <= network.latent_dim:
        raise ValueError(
            f"head_axes must lie between 1 and latent_dim {network.latent_dim}, found {head_axes}"
        )
    if num_classes < 0:
        raise ValueError(f"num_classes must be 0, 1 or more, found {num_classes}")
