"""Correction of the slow intensity drift of MR coils."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import InvertibleTransform, MapTransform
from numpy.typing import NDArray

from medvae.transforms.masks import inside, name_of

__all__ = ["N4BiasFieldCorrectiond"]

LEAST_SIDE = 16  # voxels left along an axis after shrinking: the cubic spline needs them


class N4BiasFieldCorrectiond(MapTransform, InvertibleTransform):
    """Divide by the smooth bias field that N4 finds (Tustison et al. 2010, SimpleITK).

    The field is scaled to a geometric mean of 1 in the mask, so that the level of intensities
    stays. The step is recorded in ``applied_operations``; its inverse leaves the voxels as they
    are, since predictions have no bias field to put back.

    Takes seconds per volume: put it into ``before_scaling`` of a cached preprocessing.

    Args:
        keys: MR images ``(C, *S)`` with intensities of 0 and above; each channel has its field.
        mask_key: the mask ``(1, *S)`` of the tissue to fit the field in, all that is not 0; None:
            Otsu's threshold finds it.
        shrink_factor: fit on every n-th voxel; less along axes that would fall under 16 voxels.
        iterations: at most so many per resolution level; the spline's mesh doubles from level to
            level.
        allow_missing_keys: whether items without one of the keys pass.

    Raises:
        ValueError: when called: a negative intensity, or an empty mask.
    """

    def __init__(
        self,
        keys: KeysCollection,
        mask_key: str | None = None,
        shrink_factor: int = 4,
        iterations: Sequence[int] = (50, 50, 50, 50),
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.mask_key = mask_key
        self.shrink_factor = shrink_factor
        self.iterations = tuple(iterations)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Correct every key."""
        item = dict(data)
        tissue = None if self.mask_key is None else inside(item[self.mask_key])[0].numpy()
        for key in self.key_iterator(item):
            image = MetaTensor(item[key])
            channels = np.asarray(image, dtype=np.float32)
            if channels.min() < 0:
                raise ValueError(
                    f"The image '{name_of(item, key)}' holds {channels.min():g}; expected "
                    "intensities of 0 and above, as N4 takes their logarithm."
                )
            corrected = [self._correct(channel, tissue) for channel in channels]
            item[key] = MetaTensor(torch.from_numpy(np.stack(corrected))).copy_meta_from(image)
            self.push_transform(item[key])
        return item

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Drop the record; the voxels stay."""
        item = dict(data)
        for key in self.key_iterator(item):
            self.pop_transform(item[key])
        return item

    def _correct(
        self, channel: NDArray[np.float32], tissue: NDArray[np.bool_] | None
    ) -> NDArray[np.float32]:
        image = sitk.GetImageFromArray(channel)
        if tissue is None:
            mask = sitk.OtsuThreshold(image, 0, 1)
        else:
            mask = sitk.GetImageFromArray(tissue.astype(np.uint8))
        factors = [max(1, min(self.shrink_factor, n // LEAST_SIDE)) for n in image.GetSize()]
        n4 = sitk.N4BiasFieldCorrectionImageFilter()
        n4.SetMaximumNumberOfIterations(self.iterations)
        n4.Execute(sitk.Shrink(image, factors), sitk.Shrink(mask, factors))
        field = sitk.GetArrayFromImage(n4.GetLogBiasFieldAsImage(image))
        field -= field[sitk.GetArrayViewFromImage(mask) > 0].mean()
        return channel / np.exp(field).astype(np.float32)
