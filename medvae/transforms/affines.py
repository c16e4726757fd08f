"""Where voxels lie in the body."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.data.utils import to_affine_nd
from monai.transforms import InvertibleTransform, MapTransform
from torch import Tensor

__all__ = ["PlanarAffined", "affine_of", "spacing_of", "with_affine"]


class PlanarAffined(MapTransform, InvertibleTransform):
    """Describe a 2D image by an affine of its own plane.

    A 2D image read from NIfTI or DICOM has a 4 x 4 affine, of which MONAI's 2D transforms take the
    upper left 2 x 2 block: a sagittal, coronal or tilted slice then has the wrong pixel size, or
    none. Here the affine becomes 3 x 3: millimetres along the two body axes that the plane follows
    best (right and anterior for an axial slice), projected into the plane, so that lengths and
    angles in the image are true.

    The inverse restores the 4 x 4 affine.

    Args:
        keys: images ``(C, H, W)``.
        allow_missing_keys: whether items without one of the keys pass.
    """

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace the affine of every key."""
        item = dict(data)
        for key in self.key_iterator(item):
            affine = to_affine_nd(3, torch.as_tensor(item[key].affine).double())
            item[key] = with_affine(item[key], item[key], _in_plane(affine))
            self.push_transform(item[key], extra_info={"src_affine": affine})
        return item

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Restore the affine of every key."""
        item = dict(data)
        for key in self.key_iterator(item):
            record = self.pop_transform(item[key])["extra_info"]
            item[key] = with_affine(item[key], item[key], record["src_affine"])
        return item


def spacing_of(image: Any) -> tuple[float, ...]:
    """Millimetres per voxel along every axis of ``(C, *S)``, from its affine; 1 without one."""
    rank = image.ndim - 1
    return tuple(float(edge) for edge in affine_of(image)[:rank, :rank].norm(dim=0))


def affine_of(image: Any) -> Tensor:
    """The affine ``(r + 1, r + 1)`` of ``(C, *S)`` with r axes, float64."""
    affine = getattr(image, "affine", torch.eye(image.ndim))
    return to_affine_nd(image.ndim - 1, torch.as_tensor(affine).double())


def with_affine(new: Tensor, old: Tensor, affine: Tensor) -> MetaTensor:
    """``new`` with the metadata of ``old`` and another affine."""
    image = MetaTensor(new.as_tensor() if isinstance(new, MetaTensor) else new)
    if isinstance(old, MetaTensor):
        image.copy_meta_from(old)
    image.affine = affine
    return image


def _in_plane(affine: Tensor) -> Tensor:
    """The ``(3, 3)`` affine of a 2D image with the ``(4, 4)`` affine given."""
    columns = affine[:3, :2]
    normal = torch.linalg.cross(columns[:, 0], columns[:, 1])
    normal = normal / normal.norm()
    across = int(normal.abs().argmax())
    first, second = (torch.eye(3, dtype=torch.float64)[i] for i in range(3) if i != across)
    u = first - (first @ normal) * normal
    u = u / u.norm()
    v = torch.linalg.cross(normal, u)
    v = v if v @ second > 0 else -v
    plane = torch.eye(3, dtype=torch.float64)
    plane[:2] = torch.stack([u, v]) @ affine[:3, [0, 1, 3]]
    return plane
