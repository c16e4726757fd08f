"""Attributes of what the network sees, measured as it sees it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from monai.config import KeysCollection
from monai.transforms import MapTransform
from monai.utils import ensure_tuple_rep

from medvae.attributes import measure_labels
from medvae.transforms.affines import spacing_of

__all__ = ["MeasureAttributesd"]


class MeasureAttributesd(MapTransform):
    """Measure attributes from an image and its mask and write them into the item as floats.

    After random spatial augmentation this keeps attributes true: a scaled object gets its new
    volume. MONAI's ``RandAffined`` writes its zoom into the affine, so that an enlarged object has
    smaller voxels and its old volume; give ``spacing_mm``, the spacing the network takes for
    granted, to measure the object as the network sees it. Without augmentation both agree.

    Intensity attributes are in the image's unit at this point of the pipeline, and a background
    written by ``MaskBackgroundd`` bleeds into the outermost voxels when the image is resampled
    afterwards: measure those attributes on the subject's own grid, in ``before_scaling`` of
    :func:`medvae.transforms.preprocessing`.

    Args:
        keys: the image ``(C, *S)``, one key. Of several channels the mean is measured.
        names: attributes of ``medvae.attributes.feature_names(spatial_dims, labels)`` to write,
            each under its name.
        mask_key: the mask ``(1, *S)`` on the image's grid.
        labels: name of each region and its value or values in the mask; None: all but 0 is one
            region, whose attributes have no prefix.
        spacing_mm: voxel spacing to measure with, one number or one per axis; None: the mask's
            affine tells.
        bin_count: grey levels of the texture attributes, see :func:`medvae.attributes.measure`.
        allow_missing_keys: whether items without an image or a mask pass, with NaN.

    Raises:
        ValueError: several keys; when called: a name that cannot be measured.
    """

    def __init__(
        self,
        keys: KeysCollection,
        names: Sequence[str],
        mask_key: str = "mask",
        labels: Mapping[str, int | Sequence[int]] | None = None,
        spacing_mm: Sequence[float] | float | None = None,
        bin_count: int | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if len(self.keys) != 1:
            raise ValueError(f"keys are {self.keys}; expected one image to measure.")
        self.names = tuple(names)
        self.mask_key = mask_key
        self.labels = labels
        self.spacing_mm = spacing_mm
        self.bin_count = bin_count

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Write every attribute; NaN for a region that is not in the mask."""
        item = dict(data) | dict.fromkeys(self.names, float("nan"))
        for key in self.key_iterator(item):
            if self.mask_key not in item and self.allow_missing_keys:
                continue
            mask = item[self.mask_key]
            labelmap = np.asarray(mask)[0]
            spacing = self.spacing_mm or spacing_of(mask)
            if labelmap.any():
                values = measure_labels(
                    np.asarray(item[key]).mean(axis=0),
                    labelmap,
                    ensure_tuple_rep(spacing, labelmap.ndim),
                    self.labels,
                    self.names,
                    bin_count=self.bin_count,
                )
                item.update(values)
        return item
