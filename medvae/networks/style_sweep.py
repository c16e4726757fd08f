"""Images of one subject with single style coordinates changed, at a fraction of the synthesis."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from medvae.networks.style_layers import EPS, convolve, to_grid

__all__ = ["StyleSweep"]

_GAIN = 2**0.5  # of the activation, taken out of it: fewer passes over large grids


class StyleSweep:
    r"""Exact images of styles with one coordinate of a convolution changed at a time.

    What comes before the changed layer is computed once. In the layer itself the change is of rank
    one: with the scaled input, s_i x_i, summed over its channels,

    .. math:: \sum_j w_{oj} * (s_j x_j) + (s'_i - s_i)\, w_{oi} * x_i, \qquad
        d_o'^{-2} = d_o^{-2} + (s_i'^2 - s_i^2) |w_{oi}|^2

    so that one convolution of a single channel serves every new value, and the demodulation
    follows in closed form. Later layers have one style for all images: a plain convolution.

    Args:
        generator: a `StyleGenerator` in evaluation mode, whose noise is fixed.
        styles: of one image, shape (S,); see `StyleGenerator.styles`.

    Attributes:
        image: of the unchanged styles, shape (1, C, *S).
    """

    @torch.no_grad()
    def __init__(self, generator: Any, styles: Tensor) -> None:
        self.generator = generator
        self.styles, self.colours = generator.split_styles(styles[None])
        self.firsts = [0, *accumulate(generator.style_sizes)]
        # of every layer: its input, its output before demodulation, the image until then, and its
        # weights and what is added to its output, both times the gain of the activation
        self.inputs: list[Tensor] = []
        self.sums: list[Tensor] = []
        self.before: list[Tensor | None] = []
        self.weights: list[Tensor] = []
        self.added: list[Tensor] = []
        x = generator.constant[None]
        image: Tensor | None = None
        for layer, (conv, style) in enumerate(zip(generator.convs, self.styles, strict=True)):
            if layer % 2 and image is not None:
                image = generator.up(image)
            self.inputs.append(x[0])
            self.before.append(image)
            weight = conv.conv.weight * style[0][(None, slice(None)) + (None,) * (x.ndim - 2)]
            total = convolve(x, weight)
            self.sums.append(total[0])
            scale = _GAIN * self._demodulation(layer)
            self.weights.append(weight * scale[(...,) + (None,) * (weight.ndim - 1)])
            noise = conv.noise.strength * conv.noise.fixed
            self.added.append(_GAIN * (noise + conv.bias)[None])
            x = self._finish(layer, total * to_grid(scale[None], total))
            image = self._coloured(layer, x, image)
        assert image is not None
        self.image = image

    def layer_of(self, coordinate: int) -> int:
        """Return the number of the convolution that a coordinate belongs to."""
        return next(n for n, end in enumerate(self.firsts[1:]) if coordinate < end)

    @torch.no_grad()
    def edited(self, coordinates: Tensor, values: Tensor) -> Tensor:
        """Return images (n, V, C, *S) with one coordinate at one value each.

        Args:
            coordinates: of one convolution, shape (n,).
            values: to try for each of them, shape (n, V).

        Raises:
            ValueError: for coordinates of several convolutions.
        """
        layer = self.layer_of(int(coordinates.min()))
        if int(coordinates.max()) >= self.firsts[layer + 1]:
            raise ValueError(f"coordinates {coordinates.tolist()} belong to several convolutions")
        channels = coordinates - self.firsts[layer]
        changed = self._changed(layer, channels, values)
        x = self._finish(layer, changed.flatten(0, 1))
        image = self._coloured(layer, x, self.before[layer])
        for after in range(layer + 1, len(self.styles)):
            if after % 2:
                image = self.generator.up(image)
            x = self._finish(after, convolve(x, self.weights[after]))
            image = self._coloured(after, x, image)
        return image.unflatten(0, values.shape)

    def _changed(self, layer: int, channels: Tensor, values: Tensor) -> Tensor:
        """Return the layer's demodulated sums (n, V, O, *S)."""
        weight = self.generator.convs[layer].conv.weight
        single = _single_channels(self.inputs[layer][channels], weight[:, channels])
        old = self.styles[layer][0, channels]
        delta = to_grid(values - old[:, None], single)[:, :, None]
        total = self.sums[layer] + delta * single[:, None]
        energy = weight[:, channels].double().square().flatten(2).sum(2).T  # (n, O)
        squares = values.double().square() - old.double().square()[:, None]
        inverse = self._energy(layer) + squares[..., None] * energy[:, None]
        scale = _GAIN * torch.rsqrt(inverse.clamp_min(0) + EPS).to(total.dtype)
        return total * to_grid(scale, single)

    def _energy(self, layer: int) -> Tensor:
        """Return the sum of the squared modulated weights of every output channel, (O,)."""
        weight = self.generator.convs[layer].conv.weight.double().square().flatten(2).sum(2)
        return weight @ self.styles[layer][0].double().square()

    def _demodulation(self, layer: int) -> Tensor:
        """Return what every output channel is multiplied by, (O,)."""
        return torch.rsqrt(self._energy(layer) + EPS).to(self.styles[layer].dtype)

    def _finish(self, layer: int, x: Tensor) -> Tensor:
        """Resample, add noise and bias and activate what has the gain already; overwrites `x`."""
        x = self.generator.up(x) if layer % 2 else x
        return F.leaky_relu_(x.add_(self.added[layer]), 0.2)

    def _coloured(self, layer: int, x: Tensor, image: Tensor | None) -> Tensor:
        """Add what the layer shows, if it is the last of its grid."""
        if layer % 2:
            assert image is not None
            return image
        added = self.generator.outputs[layer // 2](x, self.colours[layer // 2])
        return added if image is None else image + added


def _single_channels(x: Tensor, weight: Tensor) -> Tensor:
    """Convolve single channels each with its own weights: (n, *S) and (O, n, *k) to (n, O, *S).

    A matrix product over shifted copies: a grouped convolution of one channel each is slow.
    """
    size, taps = x.shape[1:], weight.shape[2:]
    padded = F.pad(x, [k // 2 for k in reversed(taps) for _ in range(2)])
    for axis, k in enumerate(taps, start=1):
        padded = padded.unfold(axis, size[axis - 1], 1)[(slice(None),) * axis + (slice(k),)]
    shifted = padded.flatten(1, len(taps)).flatten(2)  # (n, taps, voxels)
    product = torch.bmm(weight.transpose(0, 1).flatten(2), shifted)
    return product.unflatten(2, size)
