"""TorchIO's artefacts of acquisition beside MONAI's transforms."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
import torchio
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.data.utils import to_affine_nd
from monai.transforms import MapTransform, RandomizableTransform
from torch import Tensor

__all__ = ["RandArtefactd"]

ON_INTENSITIES = (torchio.IntensityTransform, torchio.RandomAnisotropy)


class RandArtefactd(RandomizableTransform, MapTransform):
    """Apply a TorchIO augmentation of intensities to images of a MONAI pipeline.

    TorchIO draws from torch's global generator. Here the draw is seeded from MONAI's own random
    state, and the global generator is left as found, so ``set_random_state`` and
    ``set_determinism`` reproduce it to the bit. All keys get the same draw. The image keeps its
    shape, affine and metadata. The result may leave [0, 1]; clip it if the network needs that.

    TorchIO works in 3D: a 2D image is passed as one slice, which suits transforms of pixels (bias
    field, noise, blur, gamma, spike, ghosting along an in-plane axis). Restrict ``axes`` to
    (0, 1) where the transform has that argument.

    In a bundle::

        _target_: medvae.transforms.RandArtefactd
        keys: image
        prob: 0.3
        transform: {_target_: torchio.RandomBiasField, coefficients: 0.4}

    Args:
        keys: images ``(C, *S)``; not masks, which artefacts do not move.
        transform: a TorchIO transform that changes intensities only, or a ``torchio.Compose`` or
            ``torchio.OneOf`` of such.
        prob: the chance that an item is transformed; TorchIO's own ``p`` multiplies it.
        allow_missing_keys: whether items without one of the keys pass.

    Raises:
        ValueError: a transform that is not of TorchIO, or that moves voxels: use MONAI's spatial
            transforms, which move the image and its mask together.
    """

    def __init__(
        self,
        keys: KeysCollection,
        transform: torchio.Transform,
        prob: float = 1.0,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)
        _check(transform)
        self.transform = transform

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Transform every key, or none."""
        item = dict(data)
        self.randomize(None)
        if not self._do_transform:
            return item
        seed = int(self.R.randint(2**31 - 1))
        for key in self.key_iterator(item):
            item[key] = self._apply(item[key], seed)
        return item

    def _apply(self, image: Tensor, seed: int) -> Tensor:
        affine = to_affine_nd(3, np.asarray(getattr(image, "affine", np.eye(4)), dtype=np.float64))
        plain = image.as_tensor() if isinstance(image, MetaTensor) else image
        volume = plain.reshape(*plain.shape, *(1,) * (4 - plain.ndim))
        subject = torchio.Subject(image=torchio.ScalarImage(tensor=volume, affine=affine))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            artefact = self.transform(subject)["image"].data
        artefact = artefact.reshape(plain.shape).to(plain.dtype)
        return MetaTensor(artefact).copy_meta_from(image) if plain is not image else artefact


def _check(transform: object) -> None:
    if isinstance(transform, torchio.Compose):
        parts = list(transform.transforms)
    elif isinstance(transform, torchio.OneOf):
        parts = list(transform.transforms_dict)
    elif isinstance(transform, ON_INTENSITIES):
        return
    else:
        raise ValueError(
            f"transform is {type(transform).__name__}; expected a TorchIO transform that changes "
            "intensities only, such as torchio.RandomBiasField."
        )
    for part in parts:
        _check(part)
