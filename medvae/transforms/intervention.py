"""Known physical operations as a treatment's effect: real images with both potential outcomes."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from math import log, sqrt
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from monai.networks.layers import GaussianFilter
from monai.transforms import MapTransform
from torch import Tensor

from medvae.transforms.masks import inside

__all__ = ["KnownEffectd"]

Operation = Literal["slice_thickness", "intensity", "dilation"]
PER_SD = 2 * sqrt(2 * log(2))  # full width at half maximum of a Gaussian


class KnownEffectd(MapTransform):
    """Apply an operation to images of arm 1, and keep what the other arm would have looked like.

    After preprocessing: the image (C, *S) and the mask are on one grid. An operation that moves
    the mask's structures moves them in the mask, too, and keeps the mask of arm 0 beside it: a
    region in which effects are averaged must not depend on the arm. The operations, with
    `amount` in the unit that is given:

    - `slice_thickness`: millimetres. The last axis is blurred to slices of that thickness (a
      Gaussian of that full width at half maximum), sampled once per slice, and interpolated back:
      what a thick-slice protocol does to a thin-slice scan.
    - `intensity`: added to the image inside the mask, faded over about a voxel; negative darkens.
    - `dilation`: millimetres. The mask's structure grows into `into` (or any neighbour) by that
      much, by a tissue of the structure's own mean intensity: a thicker wall. In the mask, what
      is grown has the label of the structure's nearest voxel.

    Args:
        keys: of the image, overwritten.
        operation: which.
        amount: how much.
        spacing_mm: of the grid, one number or one for each axis.
        labels: the mask's values of the structure; None: all but 0.
        into: the mask's values that a dilation may take over; None: all.
        mask_key: key of the mask (1, *S), overwritten by a dilation.
        treatment_key: key of the arm, 0 or 1.
        counterfactual_key: receives the image of the other arm.
        control_mask_key: receives the mask of arm 0, by a dilation.

    Attributes:
        needs_mask: whether the operation reads the mask.

    Raises:
        ValueError: for an unknown operation.
    """

    def __init__(
        self,
        keys: str,
        operation: Operation,
        amount: float,
        spacing_mm: Sequence[float] | float,
        labels: Sequence[int] | None = None,
        into: Sequence[int] | None = None,
        mask_key: str = "mask",
        treatment_key: str = "treatment",
        counterfactual_key: str = "counterfactual",
        control_mask_key: str = "control_mask",
    ) -> None:
        super().__init__(keys)
        if operation not in get_args(Operation):
            raise ValueError(f"operation is '{operation}'; expected one of {get_args(Operation)}.")
        self.operation, self.amount, self.spacing_mm = operation, amount, spacing_mm
        self.labels, self.into = labels, into
        self.mask_key, self.treatment_key = mask_key, treatment_key
        self.counterfactual_key, self.control_mask_key = counterfactual_key, control_mask_key
        self.needs_mask = operation != "slice_thickness"

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with the image and the mask of its arm, and the image of the other.

        Raises:
            ValueError: if the arm is not 0 or 1.
        """
        item = dict(data)
        arm = int(item[self.treatment_key])
        if arm not in (0, 1):
            raise ValueError(f"The treatment is {arm}; expected 0 or 1.")
        image = item[self.keys[0]]
        plain = torch.as_tensor(image).as_subclass(Tensor)
        changed = self.changed(plain, item.get(self.mask_key))
        arms = [plain, changed]
        for key, voxels in ((self.keys[0], arms[arm]), (self.counterfactual_key, arms[1 - arm])):
            item[key] = _like(image, voxels)
        if self.operation == "dilation":
            mask = item[self.control_mask_key] = item[self.mask_key]
            item[self.mask_key] = _like(mask, self._dilated(mask) if arm else mask)
        return item

    def changed(self, image: Tensor, mask: Any = None) -> Tensor:
        """Return the image (C, *S) under arm 1."""
        if self.operation == "slice_thickness":
            return self._thick(image)
        if mask is None:
            raise ValueError(f"The operation '{self.operation}' needs a mask.")
        labels = torch.as_tensor(mask).as_subclass(Tensor)
        structure = inside(labels, self.labels)
        if self.operation == "intensity":
            return image + self.amount * _smooth(structure.float(), [0.5] * (image.dim() - 1))
        level = image[structure.expand_as(image)].mean() if structure.any() else image.new_zeros(())
        grown = self._dilated(labels) != labels
        share = _smooth(grown.float(), [0.5] * (image.dim() - 1))
        return torch.lerp(image, level.expand_as(image), share.expand_as(image))

    def _dilated(self, mask: Tensor) -> Tensor:
        """Return the mask (1, *S) with the structure grown."""
        labels = torch.as_tensor(mask).as_subclass(Tensor)
        structure = inside(labels, self.labels)
        free = ~structure if self.into is None else ~structure & inside(labels, self.into)
        grown = self._grown(labels * structure)
        return torch.where(free & (grown != 0), grown, labels)

    def _spacing(self, dims: int) -> list[float]:
        given = self.spacing_mm
        return [float(given)] * dims if isinstance(given, int | float) else [*map(float, given)]

    def _thick(self, image: Tensor) -> Tensor:
        dims = image.dim() - 1
        voxels = self.amount / self._spacing(dims)[-1]
        if voxels <= 1:
            return image
        blurred = _smooth(image, [0.0] * (dims - 1) + [voxels / PER_SD])
        lines = blurred.reshape(1, -1, image.shape[-1])
        slices = max(round(image.shape[-1] / voxels), 1)
        thick = F.interpolate(lines, size=slices, mode="linear", align_corners=False)
        back = F.interpolate(thick, size=image.shape[-1], mode="linear", align_corners=False)
        return back.reshape(image.shape)

    def _grown(self, structure: Tensor) -> Tensor:
        """Give voxels within the amount of a structure (1, *S) the nearest label, from 0."""
        dims = structure.dim() - 1
        spacing = self._spacing(dims)
        reach = [int(self.amount // step) for step in spacing]
        grown = structure.clone()
        offsets = torch.cartesian_prod(*(torch.arange(-r, r + 1) for r in reach))
        near = (offsets.reshape(-1, dims) * torch.tensor(spacing)).square().sum(1).sqrt()
        order = near.argsort(stable=True)
        for offset in offsets.reshape(-1, dims)[order[near[order] <= self.amount]].tolist():
            grown = torch.where(grown == 0, _shifted(structure, offset), grown)
        return grown


def _shifted(structure: Tensor, offset: Sequence[int]) -> Tensor:
    """Move labels (1, *S) by an offset; what enters from beyond the edge is 0."""
    pads = [pad for step in reversed(offset) for pad in (max(step, 0), max(-step, 0))]
    padded = F.pad(structure, pads)
    for axis, (step, size) in enumerate(zip(offset, structure.shape[1:], strict=True), 1):
        padded = padded.narrow(axis, max(-step, 0), size)
    return padded


def _like(given: Any, voxels: Tensor) -> Any:
    """Return a copy with other voxels, and what else it carries."""
    found = given.clone()
    found[...] = voxels
    return found


def _smooth(image: Tensor, sd: Sequence[float]) -> Tensor:
    """Blur (C, *S) by a Gaussian of standard deviations in voxels."""
    if not any(sd):
        return image
    pad = [p for s in reversed(sd) for p in (int(4 * s + 1),) * 2]
    padded = F.pad(image[None].float(), pad, mode="replicate")
    blurred = GaussianFilter(len(sd), [max(s, 1e-3) for s in sd])(padded)[0]
    for axis, (s, size) in enumerate(zip(sd, image.shape[1:], strict=True), 1):
        blurred = blurred.narrow(axis, int(4 * s + 1), size)
    return blurred.to(image.dtype)
