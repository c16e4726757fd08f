"""Reading one file, and the sentence that says why it cannot be used."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from itertools import product
from math import prod
from pathlib import Path
from typing import NamedTuple

import nibabel
import numpy as np
import SimpleITK as sitk
from monai.data import ITKReader, PILReader
from nibabel.openers import ImageOpener
from numpy.typing import NDArray

from medvae.data.errors import FileError
from medvae.data.memory import free_memory

__all__ = ["Volume", "check_grid", "read_image", "read_mask"]

NIFTI = (".nii", ".nii.gz")
PICTURES = (".png", ".jpg", ".jpeg", ".bmp")
WORKING_BYTES = 12  # for a voxel, beyond those in the file: as float32, resampled, checked
MOST_VOXEL_BYTES = 8  # of a channel in any format
MOST_HEADER_BYTES = 16_000_000  # extensions of a NIfTI header are text
GRID_TOLERANCE = 0.1  # of the smallest voxel edge; headers written by two tools differ by less


class _TooLargeError(Exception):
    """What was found, and what was expected."""


class Volume(NamedTuple):
    """Voxels with their place in the body.

    Attributes:
        voxels: ``(C, *S)`` of an image, ``(*S)`` of a mask; the file's own axis order and numbers.
        affine: ``(4, 4)``, voxel index to RAS millimetres; the identity for PNG and JPEG.
    """

    voxels: NDArray[np.generic]
    affine: NDArray[np.float64]

    def spacing_mm(self, spatial_dims: int) -> tuple[float, ...]:
        """Edge lengths of a voxel along the array's axes, in millimetres."""
        return tuple(float(edge) for edge in np.linalg.norm(self.affine[:3, :spatial_dims], axis=0))


def read_image(path: str | Path, spatial_dims: int = 3, in_channels: int = 1) -> Volume:
    """Read an image and check all that can be checked without its mask.

    Args:
        path: a NIfTI file, a folder with one DICOM series, a PNG or JPEG, or another file ITK
            reads.
        spatial_dims: 2 or 3. Axes of length 1 beyond these are dropped.
        in_channels: how many channels the image must have, in its last axis.

    Returns:
        Voxels ``(in_channels, *S)``.

    Raises:
        FileError: the file is unreadable, has other axes or channels, voxels of no size, or
            voxels that are NaN, infinite or all equal.
    """
    volume = _read("image", path, spatial_dims)
    voxels = volume.voxels
    if voxels.ndim == spatial_dims:
        voxels = voxels[..., None]
    channels = voxels.shape[-1]
    if channels != in_channels:
        found = f"has the shape {volume.voxels.shape}, that is {_count(channels)}"
        if volume.voxels.ndim > spatial_dims:
            found += " or slices" if spatial_dims == 2 else " or time points"
        expected = f"{_count(in_channels)} in {spatial_dims}D"
        raise FileError("channels", "image", path, found, expected)
    low, high = voxels.min(), voxels.max()
    if low == high:
        raise FileError(
            "constant", "image", path, f"is {low} in every voxel", "intensities that vary"
        )
    return Volume(np.moveaxis(voxels, -1, 0), volume.affine)


def read_mask(path: str | Path, spatial_dims: int = 3) -> Volume:
    """Read a mask: whole numbers, 0 outside.

    Returns:
        Voxels ``(*S)``, int64.

    Raises:
        FileError: as :func:`read_image`, or the mask is empty or holds fractions.
    """
    volume = _read("mask", path, spatial_dims)
    voxels = volume.voxels
    if voxels.ndim != spatial_dims:
        raise FileError(
            "mask channels",
            "mask",
            path,
            f"has the shape {voxels.shape}",
            f"one label per voxel, that is {spatial_dims} axes",
        )
    labels = np.rint(voxels.astype(np.float64))
    if not np.allclose(labels, voxels, rtol=0, atol=1e-3):
        fraction = voxels[np.abs(labels - voxels) > 1e-3][0]
        raise FileError("fractions", "mask", path, f"holds {fraction:g}", "whole numbers only")
    if not labels.any():
        raise FileError("empty", "mask", path, "is empty", "at least one voxel that is not 0")
    return Volume(labels.astype(np.int64), volume.affine)


def check_grid(image: Volume, mask: Volume, image_path: object, mask_path: object) -> None:
    """Refuse a mask that does not lie on its image's grid.

    Corners may differ by a tenth of the smallest voxel edge, which covers the rounding of
    headers.

    Raises:
        FileError: another shape, or another affine.
    """
    shape = image.voxels.shape[1:]
    if mask.voxels.shape != shape:
        raise FileError(
            "mask shape",
            "mask",
            mask_path,
            f"has the shape {mask.voxels.shape}",
            f"{shape}, as its image '{image_path}'",
        )
    corners = np.array([(*corner, 1) for corner in product(*((0, size - 1) for size in shape))])
    corners = np.insert(corners, [2] * (3 - len(shape)), 0, axis=1)
    offset = np.abs(corners @ (image.affine - mask.affine).T).max()
    allowed = GRID_TOLERANCE * min(image.spacing_mm(len(shape)))
    if offset > allowed:
        raise FileError(
            "mask affine",
            "mask",
            mask_path,
            f"lies up to {offset:.3g} mm away from its image '{image_path}'",
            f"the same affine within {allowed:.2g} mm",
        )


def _count(channels: int) -> str:
    return f"{channels} channel{'s' * (channels != 1)}"


def _read(role: str, path: str | Path, spatial_dims: int) -> Volume:
    """Voxels ``(*S)`` or ``(*S, C)`` of finite numbers and a usable affine."""
    try:
        voxels, affine = _read_nifti(path) if _is_nifti(path) else _read_other(path)
    except _TooLargeError as error:
        raise FileError("memory", role, path, *error.args) from error
    except MemoryError as error:
        found, expected = "needs more memory than there is", "an image of the size it promises"
        raise FileError("memory", role, path, found, expected) from error
    except Exception as error:  # three libraries, each with its own kinds
        raise _unreadable(role, Path(path), error) from error
    if voxels.dtype.kind not in "buif":
        raise FileError("type", role, path, f"has voxels of type {voxels.dtype}", "plain numbers")
    single = tuple(i for i in range(spatial_dims, voxels.ndim) if voxels.shape[i] == 1)
    squeezed = voxels.squeeze(single)
    if not spatial_dims <= squeezed.ndim <= spatial_dims + 1:
        found = f"has the shape {voxels.shape}"
        raise FileError("axes", role, path, found, f"a {spatial_dims}D image")
    volume = Volume(squeezed, affine)
    _check_spacing(role, path, volume, spatial_dims)
    bad = squeezed.size - int(np.isfinite(squeezed).sum())
    if bad:
        found = f"holds {bad} NaN or infinite voxels of {squeezed.size}"
        raise FileError("not finite", role, path, found, "finite numbers only")
    return volume


def _unreadable(role: str, path: Path, error: Exception) -> FileError:
    text = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    reason = text.splitlines()[-1].strip(" .-")
    why = "" if str(path) in reason else f" ({reason})"
    if path.is_dir():
        expected = "a folder with one complete DICOM series"
        return FileError("unreadable", role, path, f"cannot be read{why}", expected)
    found = f"of {path.stat().st_size} bytes cannot be read{why}" if path.exists() else "is gone"
    return FileError("unreadable", role, path, found, "a complete image file")


def _check_spacing(role: str, path: str | Path, volume: Volume, spatial_dims: int) -> None:
    spacing = np.array(volume.spacing_mm(spatial_dims))
    if not np.isfinite(volume.affine).all() or (spacing < 1e-6).any():
        edges = " x ".join(f"{edge:.4g}" for edge in spacing)
        raise FileError(
            "spacing", role, path, f"has voxels of {edges} mm", "edges above 0 mm in its header"
        )
    directions = volume.affine[:3, :spatial_dims] / spacing
    if np.linalg.svd(directions, compute_uv=False).min() < 1e-3:
        found = "has axes that point the same way in its header's affine"
        raise FileError("axes", role, path, found, "axes that span the image")


def _is_nifti(path: str | Path) -> bool:
    return str(path).lower().endswith(NIFTI)


def _read_nifti(path: str | Path) -> tuple[NDArray[np.generic], NDArray[np.float64]]:
    _check_extensions(path)
    image = nibabel.load(path)
    _check_memory(path, image.shape, image.get_data_dtype().itemsize)
    with np.errstate(invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a NaN affine: reported by the caller
        voxels, affine = np.asanyarray(image.dataobj), np.array(image.affine, dtype=np.float64)
    if not int(image.header["sform_code"]):
        # nibabel replaces a voxel edge of 0 by 1 mm; without an sform only pixdim gives the edges
        with ImageOpener(path) as stream:
            pixdim = image.header_class.from_fileobj(stream, check=False)["pixdim"]
        axes = min(voxels.ndim, 3)
        affine[:3, :axes] *= pixdim[1 : axes + 1] != 0
    return voxels, affine


def _check_extensions(path: str | Path) -> None:
    """Refuse a header that is followed by more than text: nibabel reads it before the shape."""
    with ImageOpener(path) as stream:
        head = stream.read(540)
    second = 540 in (int.from_bytes(head[:4], order) for order in ("little", "big"))
    kind, length = (nibabel.Nifti2Header, 540) if second else (nibabel.Nifti1Header, 348)
    if len(head) < length:
        return
    offset = kind(head[:length], check=False)["vox_offset"]
    if offset > MOST_HEADER_BYTES:
        found = f"says that its voxels begin after {float(offset):.3g} bytes"
        raise _TooLargeError(found, f"at most {MOST_HEADER_BYTES} bytes of header")


def _check_memory(path: str | Path, shape: Sequence[int], voxel_bytes: int) -> None:
    """Refuse what cannot be held: zeros compress a thousandfold, and a header may say anything."""
    needed = prod(map(int, shape)) * (voxel_bytes + WORKING_BYTES)
    free = free_memory()
    if free is not None and needed > free:
        size = " x ".join(map(str, shape))
        raise _TooLargeError(
            f"of {Path(path).stat().st_size} bytes promises {size} voxels in its header, which "
            f"need {needed / 1e9:.2g} GB of memory",
            f"at most the {free / 1e9:.2g} GB that are free",
        )


def _read_other(path: str | Path) -> tuple[NDArray[np.generic], NDArray[np.float64]]:
    picture = str(path).lower().endswith(PICTURES)
    reader = PILReader() if picture else ITKReader()
    if not picture and Path(path).is_file():
        header = sitk.ImageFileReader()
        header.SetFileName(str(path))
        header.ReadImageInformation()
        voxel_bytes = MOST_VOXEL_BYTES * header.GetNumberOfComponents()
        _check_memory(path, header.GetSize(), voxel_bytes)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*more than one DICOM series")
        voxels, meta = reader.get_data(reader.read(path))
    small = np.asarray(meta.get("affine", np.eye(3)), dtype=np.float64)  # pictures have none
    affine = np.eye(4)
    axes = len(small) - 1
    affine[:axes, :axes] = small[:axes, :axes]
    affine[:axes, 3] = small[:axes, -1]
    return voxels, affine
