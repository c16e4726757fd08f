"""Results on the subject's grid, as NIfTI."""

from __future__ import annotations

import zlib
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import torch
from monai.data import to_affine_nd
from monai.transforms import MapTransform
from torch import Tensor

from medvae.data.output import file_stem, write_bytes
from medvae.transforms.affines import affine_of

__all__ = ["SaveSubjectd"]

GZIP = 31  # zlib's number for the largest window and a gzip header


class SaveSubjectd(MapTransform):
    """Write images of an item as float32 NIfTI, `ID/ID_NAME.nii.gz`; the item passes unchanged.

    MONAI's ``SaveImaged`` drops the last axis of a volume of one slice, and names files by those
    that were read, which two subjects may share.

    Args:
        files: for each key of an image (C, *S) the name of its file, one channel as (*S) and more
            as (*S, C), or a list of names, one for each channel.
        output_dir: where the folders of the subjects go.

    Raises:
        medvae.data.CohortError: when called, if there is no space or no permission to write.
    """

    def __init__(self, files: Mapping[str, str | Sequence[str]], output_dir: str | Path) -> None:
        super().__init__(list(files))
        self.files = dict(files)
        self.output_dir = Path(output_dir)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Write the files and return the item."""
        subject = file_stem(data["id"])
        for key in self.key_iterator(dict(data)):
            names, image = self.files[str(key)], data[key]
            parts = [image] if isinstance(names, str) else [channel[None] for channel in image]
            for name, part in zip([names] if isinstance(names, str) else names, parts, strict=True):
                self._write(self.output_dir / subject / f"{subject}_{name}.nii.gz", part, image)
        return dict(data)

    @staticmethod
    def _write(path: Path, channels: Any, like: Any) -> None:
        voxels = torch.as_tensor(channels).as_subclass(Tensor).float().movedim(0, -1).cpu().numpy()
        voxels = voxels[..., 0] if voxels.shape[-1] == 1 else voxels
        affine = to_affine_nd(3, affine_of(like).numpy())
        # runs alone: of float voxels a search for matches finds no more, in three times the time
        packer = zlib.compressobj(1, wbits=GZIP, strategy=zlib.Z_RLE)
        plain = nib.Nifti1Image(voxels, affine).to_bytes()
        write_bytes(path, packer.compress(plain) + packer.flush())
