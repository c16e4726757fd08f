"""What a mask says about an image: where the foreground is, and what to do with the rest."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import InvertibleTransform, MapTransform
from torch import Tensor

__all__ = ["MaskBackgroundd", "inside", "name_of"]


def inside(mask: Tensor, foreground: Sequence[int] | None = None) -> Tensor:
    """Where the mask is foreground.

    Args:
        mask: labels ``(1, *S)``.
        foreground: the labels that are foreground; None: all but 0.

    Returns:
        A plain boolean tensor ``(1, *S)``.
    """
    plain = mask.as_tensor() if isinstance(mask, MetaTensor) else torch.as_tensor(mask)
    if foreground is None:
        return plain != 0
    return torch.isin(plain, torch.tensor(list(foreground), dtype=plain.dtype))


def name_of(item: Mapping[Hashable, Any], key: Hashable) -> str:
    """The file behind ``item[key]``, else the key: what a message calls it."""
    meta = getattr(item[key], "meta", {})
    return str(meta.get("filename_or_obj", key))


class MaskBackgroundd(MapTransform, InvertibleTransform):
    """Write one value wherever the mask is background.

    Unlike :class:`monai.transforms.MaskIntensityd`, which multiplies by the mask and so can only
    write 0, this writes any value: -1000 for air in Hounsfield units.

    The step is recorded in ``applied_operations``. Its inverse leaves the voxels as they are: what
    was overwritten is not kept, and the geometry was not touched.

    Args:
        keys: images ``(C, *S)`` to write into.
        mask_key: the mask ``(1, *S)`` on the same grid.
        value: the intensity written, in the image's unit at this point of the pipeline.
        foreground: mask labels that are foreground; None: all but 0.
        allow_missing_keys: whether items without one of the keys pass.
    """

    def __init__(
        self,
        keys: KeysCollection,
        mask_key: str = "mask",
        value: float = 0.0,
        foreground: Sequence[int] | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.mask_key = mask_key
        self.value = value
        self.foreground = foreground

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Overwrite the background of every key."""
        item = dict(data)
        background = ~inside(item[self.mask_key], self.foreground)
        for key in self.key_iterator(item):
            item[key] = item[key].masked_fill(background, self.value)
            self.push_transform(item[key])
        return item

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Drop the record; the voxels stay."""
        item = dict(data)
        for key in self.key_iterator(item):
            self.pop_transform(item[key])
        return item
