"""Layers of style-based networks (Karras et al. 2020), for images and volumes.

Weights are drawn from N(0, 1) and scaled when they are used ("equalised"), so that all of them
learn at one rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import prod
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "EqualConv",
    "EqualLinear",
    "ModulatedConv",
    "Noise",
    "batch_deviation",
    "grids_of",
    "leaky_relu",
    "resample",
]

_LIMIT = 256.0  # beyond, half precision is about to overflow
EPS = 1e-8


def leaky_relu(x: Tensor, gain: float = 1.0) -> Tensor:
    """Return max(x, 0.2 x) times the square root of 2, which keeps its scale, and times `gain`.

    Of half precision the result is limited to 256 times `gain`.
    """
    y = F.leaky_relu(x, 0.2) * (2**0.5 * gain)
    return y.clamp(-_LIMIT * gain, _LIMIT * gain) if x.dtype == torch.float16 else y


def resample(x: Tensor, direction: Literal["up", "down"], aligned: bool = True) -> Tensor:
    """Double or halve a grid along every axis, low-pass filtered: (B, C, *S).

    The filter along an axis is (1, 3, 3, 1) / 8, and the border repeats, so that constants stay as
    they are. Up, it is linear interpolation between the centres of the cells.

    Args:
        x: halved only along axes of even size.
        direction: "up" or "down".
        aligned: contents stay where they are. False, as published (Müller et al. 2025): every
            resampling moves them by half a cell of the finer grid, up, or a whole one, down.
    """
    for axis in range(2, x.ndim):
        # a matrix product needs less memory traffic than adding up shifted copies
        matrix = _weights(x.shape[axis], direction, aligned)
        weights = torch.tensor(matrix, dtype=x.dtype, device=x.device)
        after = x.shape[axis + 1 :]
        if not after:
            x = torch.matmul(x, weights.T)
            continue
        rows = torch.matmul(weights, x.reshape(-1, x.shape[axis], prod(after)))
        x = rows.reshape(*x.shape[:axis], len(weights), *after)
    return x


@lru_cache(maxsize=64)
def _weights(size: int, direction: str, aligned: bool) -> npt.NDArray[np.float32]:
    """Return the resampling of an axis as a matrix, (size of the result, size)."""
    up = direction == "up"
    matrix = np.zeros((2 * size if up else size // 2, size), dtype=np.float32)
    taps: tuple[float, ...]
    for row in range(len(matrix)):
        if not up:
            first, taps = 2 * row - (1 if aligned else 2), (0.125, 0.375, 0.375, 0.125)
        elif aligned:
            first, taps = (row + 1) // 2 - 1, (0.75, 0.25) if row % 2 else (0.25, 0.75)
        else:  # the filter on cells that were repeated
            first, taps = row // 2 - 1, (0.125, 0.75, 0.125) if row % 2 else (0.5, 0.5, 0.0)
        for column, tap in enumerate(taps, first):
            matrix[row, min(max(column, 0), size - 1)] += tap
    return matrix


class EqualLinear(nn.Module):
    """Linear layer with equalised weights: (..., I) to (..., O).

    Args:
        in_features: I.
        out_features: O.
        bias: its first value; None: no bias.
        rate: of learning, relative to other layers.
    """

    def __init__(
        self, in_features: int, out_features: int, bias: float | None = 0.0, rate: float = 1.0
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, in_features) / rate)
        self.gain, self.rate = rate * in_features**-0.5, rate
        self.bias: nn.Parameter | None = None
        if bias is not None:
            self.bias = nn.Parameter(torch.full((out_features,), bias / rate))

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., O) for `x` of shape (..., I)."""
        bias = None if self.bias is None else self.bias * self.rate
        return F.linear(x, self.weight * self.gain, bias)


class EqualConv(nn.Module):
    """Convolution with equalised weights that keeps the grid: (B, I, *S) to (B, O, *S).

    Args:
        spatial_dims: 2 or 3.
        in_channels: I.
        out_channels: O.
        kernel_size: an odd number.
        bias: whether there is one; it starts at 0.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        bias: bool = True,
    ) -> None:
        super().__init__()
        kernel = (kernel_size,) * spatial_dims
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, *kernel))
        self.gain = (in_channels * kernel_size**spatial_dims) ** -0.5
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, O, *S) for `x` of shape (B, I, *S)."""
        return convolve(x, self.weight * self.gain, self.bias)


class ModulatedConv(nn.Module):
    r"""Convolution whose input channels every sample scales by its own style.

    .. math:: w'_{boik} = \frac{s_{bi} w_{oik}}{\sqrt{\sum_{ik} s_{bi}^2 w_{oik}^2 + 10^{-8}}}

    Weights of every sample, in one grouped convolution, are exactly the same as shared weights on
    a scaled input whose output is scaled. The latter is up to eleven times as fast where channels
    are many and the grid is small, the former needs less memory elsewhere
    (tests/benchmarks/bench_stylegan.py), so the shape decides.

    Args:
        spatial_dims: 2 or 3.
        in_channels: I.
        out_channels: O.
        kernel_size: an odd number.
        demodulate: divide by the root above; else by that of I alone.
        scales_input: True or False choose one of the two forms; None by the shape.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        demodulate: bool = True,
        scales_input: bool | None = None,
    ) -> None:
        super().__init__()
        kernel = (kernel_size,) * spatial_dims
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, *kernel))
        self.demodulate, self.scales_input = demodulate, scales_input

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """Return (B, O, *S) for `x` of shape (B, I, *S) and styles (B, I), or (1, I) for all."""
        scale = self._demodulation(style)
        if not self.demodulate:
            style = style * self.weight.shape[1] ** -0.5
        if self._scales_input(x):
            y = convolve(x * to_grid(style, x), self.weight)
            return y * to_grid(scale, y) if self.demodulate else y
        weight = style[:, None] * scale[..., None]
        weight = (self.weight * weight[(...,) + (None,) * (x.ndim - 2)]).to(x.dtype)
        if len(style) < len(x):
            return convolve(x, weight[0])
        y = convolve(x.flatten(0, 1)[None], weight.flatten(0, 1), groups=len(x))
        return y.unflatten(1, (len(x), -1))[0]

    def _demodulation(self, style: Tensor) -> Tensor:
        """Return what every output channel is multiplied by, (B, O), or (1, 1) where it is 1."""
        if not self.demodulate:
            return style.new_ones(1, 1)
        energy = self.weight.square().flatten(2).sum(2)
        with torch.autocast(style.device.type, enabled=False):
            squares = style.to(energy.dtype).square()
            return torch.rsqrt(squares @ energy.T + EPS)

    def _scales_input(self, x: Tensor) -> bool:
        if self.scales_input is not None:
            return self.scales_input
        voxels, taps = x[0, 0].numel(), self.weight[0, 0].numel()
        # one output channel's weights for every sample cost more than they save
        return taps == 1 or voxels < len(self.weight) * taps / 2


class Noise(nn.Module):
    """Add normal noise of a learned strength, 0 at first, the same in all channels: (B, C, *S).

    In training it is drawn every time. In evaluation it is one fixed field, so that the same code
    gives the same image.

    Args:
        size: S.
    """

    fixed: Tensor

    def __init__(self, size: Sequence[int]) -> None:
        super().__init__()
        self.strength = nn.Parameter(torch.zeros(()))
        self.register_buffer("fixed", torch.randn(*size))

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` of shape (B, C, *S) with noise."""
        noise = self.fixed.to(x.dtype)
        if self.training:
            noise = torch.randn(len(x), 1, *x.shape[2:], dtype=x.dtype, device=x.device)
        return x + self.strength.to(x.dtype) * noise


def batch_deviation(x: Tensor, group: int | None = 4) -> Tensor:
    """Return how much samples differ, as one number for each: (B, C, *S) to (B, 1).

    The standard deviation over the samples of a group, averaged over channels and grid (Karras et
    al. 2018). A generator whose images are all alike is caught by it.

    Args:
        x: shape (B, C, *S).
        group: samples in one group; where it does not divide B, the largest number above 1 below
            it that does, or else B. None: B.
    """
    count = len(x)
    sizes = [] if group is None else [n for n in range(min(group, count), 1, -1) if count % n == 0]
    size = sizes[0] if sizes else count
    groups = x.float().unflatten(0, (size, -1))  # neighbours are in different groups
    deviation = (groups.var(0, correction=0) + EPS).sqrt()
    return deviation.flatten(1).mean(1)[:, None].repeat(size, 1).to(x.dtype)


def grids_of(spatial_dims: int, image_size: Sequence[int] | int, count: int) -> list[torch.Size]:
    """Return the sizes of all grids, from the coarsest to the image's."""
    if spatial_dims not in (2, 3):
        raise ValueError(f"spatial_dims must be 2 or 3, found {spatial_dims}")
    size = [image_size] * spatial_dims if isinstance(image_size, int) else list(image_size)
    if len(size) != spatial_dims:
        raise ValueError(f"image_size must have {spatial_dims} entries, found {size}")
    if count < 1:
        raise ValueError("channels must have at least one entry, found none")
    factor = 2 ** (count - 1)
    if any(n < factor or n % factor for n in size):
        raise ValueError(
            f"image_size {size} is not divisible by {factor}, as {count} entries of channels "
            "demand, which double the grid from one to the next"
        )
    return [torch.Size(n // 2**k for n in size) for k in reversed(range(count))]


def to_grid(values: Tensor, x: Tensor) -> Tensor:
    """Give numbers per sample and channel (B, C) the axes and the type of `x`."""
    return values.to(x.dtype)[(...,) + (None,) * (x.ndim - 2)]


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None = None, groups: int = 1) -> Tensor:
    """Convolve (B, I, *S) with zeros around it, so that the grid stays."""
    convolution = F.conv2d if x.ndim == 4 else F.conv3d
    return convolution(x, weight, bias, padding=weight.shape[-1] // 2, groups=groups)
