"""Augmentation of whole batches, through which gradients pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["DifferentiableAugmentation"]


class DifferentiableAugmentation:
    """Flip, translate, rotate and brighten images, each in its own way.

    For few images, which a discriminator would learn by heart (Zhao et al. 2020, Karras et al.
    2020): what it cannot tell apart after the augmentation has the same distribution before. Real
    and generated images are changed alike. Leave out what would change a label, such as the flip
    that makes left of right. Voxels are copied, and interpolated only where images are rotated.

    Args:
        probability: of each change, for every image.
        flip_axes: spatial axes that may be flipped.
        translate: furthest translation, as a share of an axis; the border repeats.
        brightness: furthest change of all intensities.
        rotate: furthest rotation in the plane of the first two axes, in radians.
    """

    def __init__(
        self,
        probability: float = 0.5,
        flip_axes: Sequence[int] = (),
        translate: float = 0.125,
        brightness: float = 0.2,
        rotate: float = 0.0,
    ) -> None:
        self.probability, self.flip_axes = probability, tuple(flip_axes)
        self.translate, self.brightness, self.rotate = translate, brightness, rotate

    def draw(self, like: Tensor) -> Callable[[Tensor], Tensor]:
        """Return a function that changes images of the shape (B, C, *S) of `like`, always alike."""
        count, device = len(like), like.device
        grid = like.shape[2:]
        indices = [self._index(axis, n, count).to(device) for axis, n in enumerate(grid)]
        change = self._chosen(count) * self._uniform(count) * self.brightness
        brighter = change.to(like).view(-1, *[1] * (like.ndim - 1))
        turn = self._rotation(like) if self.rotate else None

        def apply(x: Tensor) -> Tensor:
            for axis, index in enumerate(indices, 2):
                shape = [count, *[1] * (x.ndim - 1)]
                shape[axis] = -1
                x = x.gather(axis, index.view(shape).expand(x.shape))
            if turn is not None:
                places = F.affine_grid(turn.to(x.dtype), list(x.shape), align_corners=False)
                x = F.grid_sample(x, places, padding_mode="border", align_corners=False)
            return x + brighter

        return apply

    def _index(self, axis: int, size: int, count: int) -> Tensor:
        """Return from where every voxel along an axis is taken, (B, size)."""
        shift = self._chosen(count) * self._uniform(count) * self.translate * size
        index = (torch.arange(size) - shift.round().long()[:, None]).clamp(0, size - 1)
        if axis in self.flip_axes:
            flipped = self._chosen(count)[:, None] > 0
            index = torch.where(flipped, size - 1 - index, index)
        return index

    def _rotation(self, like: Tensor) -> Tensor:
        """Return affine matrices (B, d, d + 1), whose axes are in torch's order, the last first."""
        angle = self._chosen(len(like)) * self._uniform(len(like)) * self.rotate
        dims = like.ndim - 2
        matrix = torch.eye(dims, dims + 1).repeat(len(like), 1, 1)
        first, second = dims - 1, dims - 2
        stretch = like.shape[3] / like.shape[2]  # coordinates run from -1 to 1 along every axis
        matrix[:, first, first] = matrix[:, second, second] = angle.cos()
        matrix[:, first, second] = -angle.sin() * stretch
        matrix[:, second, first] = angle.sin() / stretch
        return matrix.to(like.device)

    def _chosen(self, count: int) -> Tensor:
        return (torch.rand(count) < self.probability).float()

    @staticmethod
    def _uniform(count: int) -> Tensor:
        return 2 * torch.rand(count) - 1
