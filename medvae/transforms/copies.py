"""More subjects than the cohort has: deformed copies that keep their attributes true."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from copy import deepcopy
from typing import Any
from zlib import crc32

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import Compose, MapTransform
from monai.utils import ensure_tuple_rep

from medvae.attributes import feature_names
from medvae.attributes.labels import measure_labels
from medvae.transforms.affines import spacing_of

__all__ = ["DeformedCopyd"]


class DeformedCopyd(MapTransform):
    """Deform image and mask of copy k of a subject, and change its attributes as much as its mask.

    A cohort's list with ``copies`` (:meth:`medvae.data.Cohort.datalist`) names the copies; the
    first ones are the subject itself. Each attribute of shape is multiplied by what the deformation
    did to it: measured on this grid after, divided by before. So attributes measured on the
    subject's own grid, or read from a table, keep their instrument. Attributes of intensity stay.
    The class of a deformed subject is unknown: a shrunken dilated heart is no longer dilated.

    The result depends on the seed, the subject's id and the copy alone: random as the transforms
    are, ``CacheDataset`` keeps it, and an epoch costs no more than one without deformation.

    Args:
        keys: the image ``(C, *S)`` and the mask ``(1, *S)``, in this order.
        transforms: MONAI's random spatial transforms of both keys with linear interpolation, such
            as ``RandAffined``. Each of the mask's values is moved as a smooth image of its own and
            the largest wins, so that surfaces stay as smooth as they were.
        names: the item's attributes; those that are no attribute of shape stay as they are.
        labels: see :class:`MeasureAttributesd`.
        spacing_mm: voxel spacing of this grid, one number or one per axis; None: the mask's
            affine tells, before the deformation.
        originals: how many of the copies are the subject itself, at least 1.
        label_key: where the class number is; deformed copies have -1, "unknown". None keeps it.
        seed: of the deformations.
        attempts: how many deformations to draw until one neither pushes the mask out of the grid
            nor makes a region vanish; after that the copy is the subject itself.

    Raises:
        ValueError: other than two keys; an item without the key ``copy``.
    """

    def __init__(
        self,
        keys: KeysCollection,
        transforms: Sequence[Callable[..., Any]] | Callable[..., Any],
        names: Sequence[str] = (),
        labels: Mapping[str, int | Sequence[int]] | None = None,
        spacing_mm: Sequence[float] | float | None = None,
        originals: int = 1,
        label_key: str | None = "label",
        seed: int = 0,
        attempts: int = 5,
    ) -> None:
        super().__init__(keys)
        if len(self.keys) != 2:
            raise ValueError(f"keys are {self.keys}; expected the image and its mask.")
        self.transforms = Compose(transforms)
        self.names = tuple(names)
        self.labels = labels
        self.spacing_mm = spacing_mm
        self.originals = originals
        self.label_key = label_key
        self.seed = seed
        self.attempts = attempts

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the copy that ``data["copy"]`` names."""
        item = dict(data)
        if "copy" not in item:
            raise ValueError("the item has no key 'copy'; expected a datalist with copies.")
        if item["copy"] < self.originals:
            return item
        mask_key = self.keys[1]
        values = np.unique(np.append(0, item[mask_key]))
        if len(values) == 1:  # an empty mask: nothing to measure the change by
            return item
        layers = torch.cat([(item[mask_key] == value).float() for value in values[1:]])
        spacing = self.spacing_mm or spacing_of(item[mask_key])
        before = self._measure(item[mask_key], spacing)
        transforms = deepcopy(self.transforms)  # threads that fill a cache share this object
        for attempt in range(self.attempts):
            text = f"{self.seed} {item['id']} {item['copy']} {attempt}"
            transforms.set_random_state(seed=crc32(text.encode()))
            new = dict(transforms(item | {mask_key: layers}))
            new[mask_key] = _labelmap(new[mask_key], values)
            after = self._measure(new[mask_key], spacing)
            lost = _border(new[mask_key]) > _border(item[mask_key])
            if not lost and all(np.isfinite(after[n]) >= np.isfinite(before[n]) for n in before):
                changes = {n: after[n] / before[n] for n in before if np.isfinite(before[n])}
                new.update({n: item[n] * change for n, change in changes.items()})
                return new | ({} if self.label_key not in new else {self.label_key: -1})
        return item

    def _measure(self, mask: Any, spacing: Sequence[float] | float) -> dict[str, float]:
        labelmap = np.asarray(mask)[0]
        known = feature_names(labelmap.ndim, self.labels, shape_only=True)
        names = [name for name in self.names if name in known]
        if not names or not labelmap.any():  # measure_labels refuses what has vanished
            return dict.fromkeys(names, float("nan"))
        mm = ensure_tuple_rep(spacing, labelmap.ndim)
        return measure_labels(None, labelmap, mm, self.labels, names)


def _labelmap(layers: Any, values: np.ndarray) -> Any:
    """Return the label map (1, *S) of the values' layers, the first being what they leave over."""
    background = 1 - layers.sum(0, keepdim=True)
    winner = torch.cat([background, layers]).argmax(0, keepdim=True)
    return torch.take(torch.as_tensor(values, dtype=layers.dtype), winner.to(torch.int64))


def _border(mask: Any) -> int:
    """Count the mask's voxels on the faces of the grid."""
    foreground = torch.as_tensor(mask)[0] != 0
    return sum(
        int(foreground.select(axis, end).sum())
        for axis in range(foreground.ndim)
        for end in (0, -1)
    )
