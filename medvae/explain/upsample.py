"""From a layer's coarse grid to the image's: linear, and along the image's edges."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor


def upsample_linear(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Interpolate (B, K, *S) linearly to (B, K, *size).

    Equal to `torch.nn.functional.interpolate` with align_corners=False, as one small matrix
    product along each axis: some eight times as fast on a CPU in 3D.
    """
    for axis in range(maps.ndim - 1, 1, -1):  # the last product writes whole planes
        n_in, n_out = maps.shape[axis], size[axis - 2]
        if n_in == n_out:
            continue
        weights, after = _weights(n_in, n_out, maps), maps.shape[axis + 1 :]
        if after:
            rows = maps.reshape(-1, n_in, prod(after))
            maps = torch.matmul(weights, rows).reshape(*maps.shape[:axis], n_out, *after)
        else:
            maps = torch.matmul(maps, weights.T)
    return maps


def _weights(n_in: int, n_out: int, like: Tensor) -> Tensor:
    """Return the matrix (n_out, n_in) of linear interpolation between cell centres."""
    identity = torch.eye(n_in, dtype=like.dtype, device=like.device)[None]
    return F.interpolate(identity, size=n_out, mode="linear", align_corners=False)[0].T


def guided_filter(
    maps: Tensor, guide: Tensor, radius: Sequence[int], epsilon: float = 1e-3
) -> Tensor:
    """Make maps follow the edges of an image (guided filter, He et al. 2013).

    Args:
        maps: shape (B, K, *S).
        guide: shape (B, C, *S); its channels' mean guides, in units of its range.
        radius: of the windows, in voxels, for each axis.
        epsilon: contrasts whose square is below this are smoothed over.
    """
    guide = guide.mean(1, keepdim=True)
    span = guide.flatten(2).amax(2) - guide.flatten(2).amin(2)
    guide = guide / span.clamp_min(torch.finfo(guide.dtype).tiny).view(-1, *[1] * (guide.ndim - 1))

    def mean(x: Tensor) -> Tensor:
        for axis, r in enumerate(radius):
            if r:
                x = _box_mean(x, axis + 2, r)
        return x

    guide_mean = mean(guide)
    variance = (mean(guide * guide) - guide_mean**2).clamp_min(0)
    slope = (mean(maps * guide) - mean(maps) * guide_mean) / (variance + epsilon)
    intercept = mean(maps) - slope * guide_mean
    return mean(slope) * guide + mean(intercept)


def _box_mean(x: Tensor, axis: int, radius: int) -> Tensor:
    """Average over 2 radius + 1 neighbours along an axis; fewer at the border."""
    last = x.movedim(axis, -1)
    flat = last.reshape(-1, 1, last.shape[-1])
    width = 2 * radius + 1
    averaged = F.avg_pool1d(flat, width, 1, radius, count_include_pad=False)
    return averaged.reshape(last.shape).movedim(-1, axis)
