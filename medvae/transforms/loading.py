"""Files into tensors that know where they lie in the body."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform

from medvae.data.files import Volume, check_grid, read_image, read_mask

__all__ = ["LoadSubjectd"]


class LoadSubjectd(MapTransform):
    """Read an image, and a mask on the same grid, as channel-first tensors with their affine.

    Unlike :class:`monai.transforms.LoadImaged` it says in one sentence why a file cannot be used,
    and it keeps of the header what is needed later: the affine and the file's name.

    Args:
        image_key: a NIfTI file, a folder with a DICOM series, or a PNG or JPEG.
        mask_key: whole numbers on the image's grid, 0 outside; None: there are no masks.
        spatial_dims: 2 or 3; a file may have further axes of length 1.
        in_channels: channels of the image, the last axis of its file.
        allow_missing_mask: whether items without a mask pass.

    Raises:
        medvae.data.errors.FileError: when called, for a file that contradicts this.
    """

    def __init__(
        self,
        image_key: str = "image",
        mask_key: str | None = "mask",
        spatial_dims: int = 3,
        in_channels: int = 1,
        allow_missing_mask: bool = False,
    ) -> None:
        keys = (image_key,) if mask_key is None else (image_key, mask_key)
        super().__init__(keys)
        self.image_key = image_key
        self.mask_key = mask_key
        self.spatial_dims = spatial_dims
        self.in_channels = in_channels
        self.allow_missing_mask = allow_missing_mask

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace the paths: image ``(C, *S)`` and mask ``(1, *S)``, float32 MetaTensors."""
        item = dict(data)
        path = item[self.image_key]
        image = read_image(path, self.spatial_dims, self.in_channels)
        item[self.image_key] = _tensor(image, path)
        if self.mask_key is None or (self.allow_missing_mask and self.mask_key not in item):
            return item
        if self.mask_key not in item:
            raise ValueError(f"The image '{path}' has no {self.mask_key}; expected one.")
        mask_path = item[self.mask_key]
        mask = read_mask(mask_path, self.spatial_dims)
        check_grid(image, mask, path, mask_path)
        # within the tolerance of check_grid two headers may differ: the image's counts
        mask = Volume(mask.voxels[None], image.affine)
        item[self.mask_key] = _tensor(mask, mask_path)
        return item


def _tensor(volume: Volume, path: object) -> MetaTensor:
    voxels = torch.from_numpy(np.ascontiguousarray(volume.voxels, dtype=np.float32))
    affine = torch.from_numpy(volume.affine)
    meta = {
        "filename_or_obj": str(path),
        "original_affine": affine.clone(),
        "spatial_shape": np.array(voxels.shape[1:]),
        "space": "RAS",
        "original_channel_dim": float("nan") if len(voxels) == 1 else -1,  # for SaveImaged
    }
    return MetaTensor(voxels, affine=affine, meta=meta)
