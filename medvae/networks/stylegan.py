"""A style-based generator of named subspaces.

The generator of the disentangled GAN of Müller et al. 2025 on StyleGAN2 (Karras et al. 2020), for
images and volumes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from medvae.networks.style_layers import (
    EqualLinear,
    ModulatedConv,
    Noise,
    grids_of,
    leaky_relu,
    resample,
)
from medvae.networks.style_sweep import StyleSweep
from medvae.networks.subspaces import Subspaces

__all__ = [
    "MappingNetworks",
    "StyleGenerator",
]


class MappingNetworks(nn.Module):
    """Normal codes z to intermediate codes w, each (B, D): one small network for every part.

    Parts stay independent: a part of w follows from the same part of z alone. Each part of z is
    first scaled to a mean square of 1.

    Args:
        sizes: dimensions of the parts, D together; the layers of a part are as wide as it.
        layers: fully connected layers of each.
        rate: of learning, relative to other layers.
    """

    def __init__(self, sizes: Sequence[int], layers: int = 8, rate: float = 0.01) -> None:
        super().__init__()
        self.sizes = list(sizes)
        self.networks = nn.ModuleList(
            nn.Sequential(*(_MappingLayer(size, size, rate=rate) for _ in range(layers)))
            for size in sizes
        )

    def forward(self, z: Tensor) -> Tensor:
        """Return w (B, D) for z (B, D)."""
        parts = []
        for part, network in zip(z.split(self.sizes, 1), self.networks, strict=True):
            parts.append(network(part * torch.rsqrt(part.square().mean(1, keepdim=True) + 1e-8)))
        return torch.cat(parts, 1)


class StyleGenerator(nn.Module):
    """Codes of named subspaces to images (B, C, *S): mapping networks and a StyleGAN2 synthesis.

    A learned constant on the coarsest grid is convolved, doubled and convolved again, each
    convolution modulated by w; the image is the sum of what every grid adds to it.

    Args:
        spatial_dims: 2 or 3.
        sizes: dimensions of the subspaces of z and of w, in order; see `Subspaces`.
        image_size: S, one number or one for each axis, divisible by 2^(R - 1).
        channels: of the R grids, from the coarsest, which is image_size / 2^(R - 1), to the image.
        out_channels: C.
        mapping_layers: fully connected layers of each mapping network.
        separate: a mapping network for every subspace; else one for all, without disentanglement.
        faithful: as published (Müller et al. 2025): resampling that shifts, and two further copies
            of w that no layer reads.
        joined: further entries of w that are given as they are, after the mapped ones, such as the
            probabilities of classes; z has none of them.

    Attributes:
        subspaces: `Subspaces` of z and of the mapped part of w.
        latent_dim: D, of w with what is joined.
        style_sizes: style coordinates of every convolution, its input channels, in order.
        colour_sizes: of every layer that only colours the image.
        layers: how many copies of w, one for each index of layers, the synthesis takes.
        mean_code: running mean of the mapped part of w, towards which `forward` truncates.

    Raises:
        ValueError: for sizes that do not fit each other.
    """

    mean_code: Tensor
    convs: Any  # of their class, which ModuleList forgets
    outputs: Any

    def __init__(
        self,
        spatial_dims: int,
        sizes: Mapping[str, int],
        image_size: Sequence[int] | int,
        channels: Sequence[int],
        out_channels: int = 1,
        mapping_layers: int = 8,
        separate: bool = True,
        faithful: bool = False,
        joined: int = 0,
    ) -> None:
        super().__init__()
        self.subspaces = Subspaces(sizes)
        mapped = self.subspaces.latent_dim
        self.latent_dim = dim = mapped + joined
        grids = grids_of(spatial_dims, image_size, len(channels))
        self.layers = 2 * len(channels) + 2 * faithful
        self.aligned = not faithful
        parts = list(self.subspaces.sizes.values()) if separate else [mapped]
        self.mapping = MappingNetworks(parts, mapping_layers)
        self.register_buffer("mean_code", torch.zeros(mapped))
        self.constant = nn.Parameter(torch.randn(channels[0], *grids[0]))
        widths = [width for width in channels for _ in range(2)]
        self.style_sizes, self.colour_sizes = tuple(widths[:-1]), tuple(channels)
        sizes_of_layers = [grids[0], *(grid for grid in grids[1:] for _ in range(2))]
        self.convs = nn.ModuleList(
            _StyledConv(spatial_dims, dim, i, o, grid)
            for (i, o), grid in zip(pairwise(widths), sizes_of_layers, strict=True)
        )
        self.outputs = nn.ModuleList(
            _ToImage(spatial_dims, dim, width, out_channels) for width in channels
        )

    def forward(self, z: Tensor, truncation: float = 1.0) -> Tensor:
        """Return images (B, C, *S), about in [-1, 1], for normal codes z (B, D).

        Args:
            z: shape (B, D).
            truncation: share of the distance to the mean code that is kept.
        """
        w = self.mapping(z)
        return self.synthesis(w if truncation == 1.0 else self.mean_code.lerp(w, truncation))

    def synthesis(self, w: Tensor) -> Tensor:
        """Return images (B, C, *S) for w, (B, D), or (B, `layers`, D) for one per layer."""
        return self.synthesis_from_styles(self.styles(w))

    def styles(self, w: Tensor) -> Tensor:
        """Return the style coordinates (B, S) of w, see `synthesis` (Wu et al. 2021).

        Those of the convolutions come first, `style_sizes`; those of the layers that only
        colour the image follow.
        """
        if w.ndim == 2:
            w = w[:, None].expand(-1, self.layers, -1)
        if w.shape[1:] != (self.layers, self.latent_dim):
            raise ValueError(
                f"expected codes (B, {self.latent_dim}) or "
                f"(B, {self.layers}, {self.latent_dim}), found {tuple(w.shape)}"
            )
        parts = [conv.style(w[:, n]) for n, conv in enumerate(self.convs)]
        parts += [to_image.style(w[:, 2 * n + 1]) for n, to_image in enumerate(self.outputs)]
        return torch.cat(parts, 1)

    def split_styles(self, styles: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return the styles (B, S) of every convolution and of every layer that colours."""
        parts = list(styles.split([*self.style_sizes, *self.colour_sizes], 1))
        return parts[: len(self.convs)], parts[len(self.convs) :]

    def synthesis_from_styles(self, styles: Tensor) -> Tensor:
        """Return images (B, C, *S) for style coordinates (B, S), see `styles`."""
        style, colour = self.split_styles(styles)
        x = self.constant.expand(len(styles), *self.constant.shape)
        x = self.convs[0](x, style[0])
        image = self.outputs[0](x, colour[0])
        for n, to_image in enumerate(self.outputs[1:]):
            x = self.convs[2 * n + 1](x, style[2 * n + 1], self.up)
            x = self.convs[2 * n + 2](x, style[2 * n + 2])
            image = self.up(image) + to_image(x, colour[n + 1])
        return image

    def sweep(self, styles: Tensor) -> StyleSweep:
        """Return what makes images of styles (S,) with single coordinates changed, fast."""
        return StyleSweep(self, styles)

    @torch.no_grad()
    def update_mean_code(self, w: Tensor, decay: float = 0.995) -> None:
        """Move the running mean of w towards that of a batch (B, D)."""
        self.mean_code.lerp_(w.float().mean(0), 1 - decay)

    def up(self, x: Tensor) -> Tensor:
        """Return `x` on the next finer grid."""
        return resample(x, "up", self.aligned)


class _MappingLayer(EqualLinear):
    """Fully connected layer with its activation."""

    def forward(self, x: Tensor) -> Tensor:
        return leaky_relu(super().forward(x))


class _StyledConv(nn.Module):
    """Modulated convolution, optionally resampled, with noise, bias and activation."""

    def __init__(
        self,
        spatial_dims: int,
        latent_dim: int,
        in_channels: int,
        out_channels: int,
        size: torch.Size,
    ) -> None:
        super().__init__()
        self.style = EqualLinear(latent_dim, in_channels, bias=1.0)
        self.conv = ModulatedConv(spatial_dims, in_channels, out_channels)
        self.noise = Noise(size)
        self.bias = nn.Parameter(torch.zeros(out_channels, *[1] * spatial_dims))

    def forward(
        self, x: Tensor, style: Tensor, up: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        x = self.conv(x, style)
        x = x if up is None else up(x)  # after: the convolution is on the coarser grid
        return leaky_relu(self.noise(x) + self.bias)


class _ToImage(nn.Module):
    """What one grid adds to the image."""

    def __init__(
        self, spatial_dims: int, latent_dim: int, in_channels: int, out_channels: int
    ) -> None:
        super().__init__()
        self.style = EqualLinear(latent_dim, in_channels, bias=1.0)
        self.conv = ModulatedConv(spatial_dims, in_channels, out_channels, 1, demodulate=False)
        self.bias = nn.Parameter(torch.zeros(out_channels, *[1] * spatial_dims))

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        return self.conv(x, style) + self.bias
