"""Results as files that the clients read."""

from __future__ import annotations

import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from medvae.transforms.saving import GZIP

__all__ = ["write_volume"]

TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def write_volume(
    path: str | Path,
    channels: npt.NDArray[np.generic],
    affine: npt.NDArray[np.float64],
    compress: bool = True,
) -> None:
    """Write (C, *S) as NIfTI or NRRD; one channel as (*S), more as (*S, C).

    Args:
        path: ends with `.nii.gz`, `.nii` or `.nrrd`.
        channels: of the type that the file is to have.
        affine: (4, 4), voxel index to RAS millimetres.
        compress: NRRD, with which clients say whether they want it.
    """
    voxels = np.moveaxis(channels, 0, -1)
    if str(path).endswith(".nrrd"):
        sitk.WriteImage(_as_itk(voxels, affine), str(path), compress)
    else:
        image = nib.Nifti1Image(voxels[..., 0] if len(channels) == 1 else voxels, affine)
        plain = image.to_bytes()
        Path(path).write_bytes(_packed(plain) if str(path).endswith(".gz") else plain)


def _packed(content: bytes) -> bytes:
    """Return content as gzip of runs alone, see `medvae.transforms.SaveSubjectd`."""
    packer = zlib.compressobj(1, wbits=GZIP, strategy=zlib.Z_RLE)
    return packer.compress(content) + packer.flush()


def _as_itk(voxels: npt.NDArray[np.generic], affine: npt.NDArray[np.float64]) -> sitk.Image:
    if voxels.ndim == 3:  # 2D: a volume of one slice
        voxels = voxels[:, :, None]
    several = voxels.shape[-1] > 1
    ordered = np.ascontiguousarray(voxels.swapaxes(0, 2))
    image = sitk.GetImageFromArray(ordered if several else ordered[..., 0], isVector=several)
    affine = TO_LPS @ affine
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((affine[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    return image
