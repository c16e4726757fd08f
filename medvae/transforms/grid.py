"""From a subject's own grid to the network's grid, and back."""

from __future__ import annotations

import logging
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import InvertibleTransform, MapTransform
from monai.utils import ensure_tuple, ensure_tuple_rep
from torch import Tensor

from medvae.transforms.affines import affine_of, spacing_of, with_affine
from medvae.transforms.masks import inside, name_of

__all__ = ["CenterOnMaskd", "ResampleToGridd"]

SAME_SPACING = 1e-4  # relative; closer spacings are shifted by whole voxels, not interpolated
TIE = 1e-6  # voxels: rounding must not decide between two voxels that are equally near
WORTH_A_WARNING = 0.01  # of a mask, cut off by the grid

logger = logging.getLogger(__name__)


class Axis(NamedTuple):
    """Where the voxels of a new axis lie on the old one: ``start + step * i`` for i < size."""

    start: float
    step: float
    size: int


class ResampleToGridd(MapTransform, InvertibleTransform):
    """Resample to a fixed spacing and a fixed size in one step; nothing is stretched.

    The grid keeps the direction of the subject's axes (``Orientationd`` before this gives RAS), so
    an oblique volume stays oblique and every axis is interpolated by itself: one small matrix
    product per axis, of the voxels that the grid can see and no others. Spacing, centring, padding
    and cropping are thus one exact interpolation.

    An axis whose spacing already fits is shifted by whole voxels and copied bit by bit. Along an
    axis that becomes coarser, the linear interpolant is averaged over the width of a new voxel, so
    that it does not alias (nearest neighbour does).

    The inverse interpolates back to the subject's shape and affine; where the grid did not reach
    it writes 0.

    Args:
        keys: arrays ``(C, *S)`` on one common grid.
        size: voxels per axis of the result; None: as many as the volume's extent takes.
        spacing_mm: millimetres per voxel and axis of the result; None: the spacing it has.
        mode: ``"bilinear"`` or ``"nearest"``, for all keys or one per key.
        value: what lies beyond the volume's edge, for all keys or one per key, in their unit.
        fade: how linear interpolation treats the volume's edge. False: voxels whose centre lies in
            the volume are made of the volume alone, the others are ``value``. True: beyond the
            edge there truly is ``value``, such as the background of a masked image, and mixes in.
        center_key: the mask ``(1, *S)`` whose centre of mass becomes the centre of the grid (to
            half a voxel along an axis that is only shifted); None: the volume's centre.
        foreground: mask labels that count for the centre; None: all but 0.
        anti_alias: average along axes that become coarser.
        allow_missing_keys: whether items without one of the keys pass.

    Raises:
        ValueError: a spacing or size that is not positive; when called: a mask without foreground.
    """

    def __init__(
        self,
        keys: KeysCollection,
        size: Sequence[int] | int | None = None,
        spacing_mm: Sequence[float] | float | None = None,
        mode: str | Sequence[str] = "bilinear",
        value: float | Sequence[float] = 0.0,
        fade: bool = False,
        center_key: str | None = None,
        foreground: Sequence[int] | None = None,
        anti_alias: bool = True,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        for name, numbers in (("size", size), ("spacing_mm", spacing_mm)):
            if numbers is not None and not all(number > 0 for number in ensure_tuple(numbers)):
                raise ValueError(f"{name} is {numbers}; expected positive numbers.")
        self.size = size
        self.spacing_mm = spacing_mm
        self.mode = ensure_tuple_rep(mode, len(self.keys))
        self.value = ensure_tuple_rep(value, len(self.keys))
        self.fade = fade
        self.center_key = center_key
        self.foreground = foreground
        self.anti_alias = anti_alias
        self._has_warned = False

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Move every key to the grid."""
        item = dict(data)
        axes = self._axes(item)
        for key, mode, value in self.key_iterator(item, self.mode, self.value):
            old = item[key]
            affine = affine_of(old)
            new = interpolate(old, axes, mode, value, self.fade, self.anti_alias)
            item[key] = with_affine(new, old, affine @ _voxel_map(axes))
            record = {
                "mode": mode,
                "start": [axis.start for axis in axes],
                "step": [axis.step for axis in axes],
                "src_affine": affine,
            }
            self.push_transform(item[key], orig_size=tuple(old.shape[1:]), extra_info=record)
        return item

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Interpolate every key back to the shape and the affine it came with."""
        item = dict(data)
        for key in self.key_iterator(item):
            applied = self.pop_transform(item[key])
            record = applied["extra_info"]
            axes = [
                Axis(-start / step, 1 / step, int(size))
                for start, step, size in zip(
                    record["start"], record["step"], applied["orig_size"], strict=True
                )
            ]
            old = interpolate(item[key], axes, record["mode"], anti_alias=self.anti_alias)
            item[key] = with_affine(old, item[key], record["src_affine"])
        return item

    def _axes(self, item: Mapping[Hashable, Any]) -> list[Axis]:
        reference = item[self.center_key or self.first_key(item)]
        shape = tuple(reference.shape[1:])
        spacing = spacing_of(reference)
        wanted = spacing if self.spacing_mm is None else self.spacing_mm
        steps = [new / old for new, old in zip(_each(wanted, shape), spacing, strict=True)]
        sizes = [max(1, round(n / step)) for n, step in zip(shape, steps, strict=True)]
        if self.size is not None:
            sizes = _each(self.size, shape)
        if self.center_key is None:
            return [_axis((n - 1) / 2, *each) for n, *each in zip(shape, steps, sizes, strict=True)]
        counts = self._counts(item)
        centres = [float((n * torch.arange(len(n))).sum() / n.sum()) for n in counts]
        axes = [_axis(*each) for each in zip(centres, steps, sizes, strict=True)]
        self._report_cut(name_of(item, self.center_key), counts, axes)
        return axes

    def _counts(self, item: Mapping[Hashable, Any]) -> list[Tensor]:
        """Foreground voxels in every slice along every axis."""
        present = inside(item[self.center_key], self.foreground)[0]
        if not present.any():
            wanted = "that is not 0"
            if self.foreground is not None:
                wanted = f"with a label of {list(self.foreground)}"
            raise ValueError(
                f"The mask '{name_of(item, self.center_key)}' is empty where the grid is to be "
                f"centred; expected at least one voxel {wanted}."
            )
        axes = range(present.ndim)
        return [present.sum(dim=[i for i in axes if i != axis]).double() for axis in axes]

    def _report_cut(self, name: str, counts: Sequence[Tensor], axes: Sequence[Axis]) -> None:
        """Say that a mask does not fit: what the grid cuts off is lost to the model."""
        share = _outside(counts, axes)
        if share > WORTH_A_WARNING:
            logger.log(
                logging.INFO if self._has_warned else logging.WARNING,
                "%.0f %% of the mask '%s' lies outside the grid of %s voxels; "
                "expected a grid that holds it (the next such masks are logged as INFO).",
                100 * share,
                name,
                " x ".join(str(axis.size) for axis in axes),
            )
            self._has_warned = True


class CenterOnMaskd(ResampleToGridd):
    """Shift by whole voxels so that the mask's centre of mass is the centre of the array.

    Voxels are copied, never interpolated, and the affine follows: the object stays where it was in
    the body. Its centre ends within half a voxel of the array's. The inverse shifts back and
    writes 0 where voxels had left the array.

    Args:
        keys: arrays ``(C, *S)`` to shift; name the mask too if it is to follow.
        mask_key: the mask ``(1, *S)``.
        size: voxels per axis of the result; None: the shape it has.
        value: what moves in from beyond the volume's edge, for all keys or one per key.
        foreground: mask labels that count for the centre; None: all but 0.
        allow_missing_keys: whether items without one of the keys pass.
    """

    def __init__(
        self,
        keys: KeysCollection,
        mask_key: str = "mask",
        size: Sequence[int] | int | None = None,
        value: float | Sequence[float] = 0.0,
        foreground: Sequence[int] | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(
            keys,
            size=size,
            value=value,
            center_key=mask_key,
            foreground=foreground,
            allow_missing_keys=allow_missing_keys,
        )


def interpolate(
    image: Tensor,
    axes: Sequence[Axis],
    mode: str = "bilinear",
    value: float = 0.0,
    fade: bool = False,
    anti_alias: bool = True,
) -> Tensor:
    """Read an image at the voxels of new axes.

    Args:
        image: ``(C, *S)``.
        axes: one per axis of S, in the image's voxel coordinates.
        mode: ``"bilinear"`` or ``"nearest"``.
        value: what the image is beyond its edge.
        fade: mix ``value`` into linear interpolation at the edge.
        anti_alias: average along axes with a step above 1.

    Returns:
        A plain tensor ``(C, *[axis.size for axis in axes])``, float32.
    """
    new = image.as_tensor() if isinstance(image, MetaTensor) else image
    new = new.to(torch.float32)
    matrices = []
    for dim, (axis, length) in enumerate(zip(axes, new.shape[1:], strict=True), start=1):
        if mode == "nearest":
            matrix = (_nearest(axis) == torch.arange(length)).double()
        else:
            matrix = _averages(axis, length, fade, anti_alias)
        seen = matrix.any(dim=0).nonzero()
        first, last = (int(seen[0]), int(seen[-1]) + 1) if len(seen) else (0, 0)
        new = new.narrow(dim, first, last - first)
        matrices.append(matrix[:, first:last])
    within = torch.ones((), dtype=torch.float64)
    for dim, matrix in enumerate(matrices, start=1):
        new = torch.matmul(new.movedim(dim, -1), matrix.T.float()).movedim(-1, dim)
        if value:
            within = within[..., None] * matrix.sum(dim=1)
    return (new + (value * (1 - within)).float() if value else new).contiguous()


def _averages(axis: Axis, length: int, fade: bool, anti_alias: bool) -> Tensor:
    """How much of each of ``length`` old voxels goes into each new one: ``(axis.size, length)``.

    The mean of the linear interpolant over a window around each new voxel's centre. An old voxel
    already is an average over its own edge, 1; for variances to add up to that of a new voxel's
    edge, ``step``, the window is ``sqrt(step^2 - 1)`` wide. Rows add up to 1, so any linear
    function is reproduced; at the ends they lose the part that lies beyond, or, without ``fade``,
    are 1 or (centre beyond the last old voxel) 0.
    """
    positions = axis.start + axis.step * torch.arange(axis.size, dtype=torch.float64)[:, None]
    offsets = positions - torch.arange(length, dtype=torch.float64)
    half = math.sqrt(max(axis.step**2 - 1, 0.0)) / 2 if anti_alias else 0.0
    if half > 0:
        weights = (_hat_integral(offsets + half) - _hat_integral(offsets - half)) / (2 * half)
    else:
        weights = (1 - offsets.abs()).clamp(min=0)
    if fade:
        return weights
    nearest = _nearest(axis)
    weights = weights * ((nearest >= 0) & (nearest < length))
    return weights / weights.sum(dim=1, keepdim=True).clamp(min=TIE)


def _hat_integral(end: Tensor) -> Tensor:
    """The integral of ``max(0, 1 - |x|)`` up to ``end``."""
    rising, falling = (end + 1).clamp(min=0) ** 2 / 2, (1 - end).clamp(min=0) ** 2 / 2
    return torch.where(end < 0, rising, 1 - falling)


def _nearest(axis: Axis) -> Tensor:
    """The old voxel nearest to each new one: ``(axis.size, 1)``."""
    positions = axis.start + axis.step * torch.arange(axis.size, dtype=torch.float64)[:, None]
    return torch.floor(positions + 0.5 + TIE)


def _axis(centre: float, step: float, size: int) -> Axis:
    start = centre - step * (size - 1) / 2
    if abs(step - 1) < SAME_SPACING:
        return Axis(float(math.floor(start + 0.5)), 1.0, size)
    return Axis(start, step, size)


def _outside(counts: Sequence[Tensor], axes: Sequence[Axis]) -> float:
    """The share of the mask that lies beyond the grid, along the worst axis."""
    shares = []
    for count, axis in zip(counts, axes, strict=True):
        position = (torch.arange(len(count)) - axis.start) / axis.step
        beyond = (position < -0.5) | (position > axis.size - 0.5)
        shares.append(float(count[beyond].sum() / count.sum()))
    return max(shares)


def _each(value: Any, shape: Sequence[int]) -> list[Any]:
    return list(ensure_tuple_rep(value, len(shape)))


def _voxel_map(axes: Sequence[Axis]) -> Tensor:
    """From new to old voxel coordinates, homogeneous."""
    matrix = torch.diag(torch.tensor([axis.step for axis in axes] + [1.0], dtype=torch.float64))
    matrix[:-1, -1] = torch.tensor([axis.start for axis in axes], dtype=torch.float64)
    return matrix
