"""NIfTI files made small: 8 bits a voxel, changes instead of series, coarser where too large."""

from __future__ import annotations

import gzip
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from skimage.transform import downscale_local_mean

__all__ = ["DIFFERENCE", "GREY", "OVERLAYS", "SERIES", "on_one_grid", "packed_below"]

MOST = 20  # times that volumes of bytes become smaller at most, as a guess
COARSEST = 64
GREY = ("image", "reconstruction")  # in one unit with every series, so that they compare
OVERLAYS = ("map_", "uncertainty_")  # amounts above 0
SERIES = ("traversal_", "counterfactual_", "series_")
DIFFERENCE = "difference_"

Voxels = npt.NDArray[np.float32]


def on_one_grid(files: Mapping[str, Path]) -> tuple[dict[str, Path], list[str]]:
    """Return the files on the grid of the reconstruction, or of what takes its place, and others.

    Args:
        files: by kind.

    Returns:
        The files to show, and the names of those on another grid.
    """
    headers = {kind: nib.load(path) for kind, path in files.items()}
    order = ("reconstruction", *(k for k in files if k.startswith(DIFFERENCE)), "image")
    like = headers[next(kind for kind in order if kind in files)]
    dims = min(like.ndim, 3)

    def fits(image: Any) -> bool:
        near = np.allclose(image.affine, like.affine, atol=1e-3)
        return image.shape[:dims] == like.shape[:dims] and near

    kept = {kind: path for kind, path in files.items() if fits(headers[kind])}
    return kept, sorted(path.name for kind, path in files.items() if kind not in kept)


def packed_below(files: Mapping[str, Path], cap: int) -> tuple[dict[str, bytes], int]:
    """Return a subject's files as gzipped NIfTI, and how much coarser they had to become.

    Images, reconstruction and maps are bytes. A series, such as `traversal_NAME`, becomes
    `change_NAME`, its difference to the reconstruction in steps of the reconstruction's bytes: a
    third of the size, and the viewer adds them up again. Where no reconstruction was written but a
    counterfactual and its `difference_NAME`, it is what lies between them; without either, series
    are left out.

    Args:
        files: by kind, at least an image, a reconstruction or a difference, all on one grid.
        cap: bytes of all together.
    """
    size = sum(math.prod(nib.load(path).shape) for path in files.values())
    coarser = 1
    while size / coarser**3 > cap * MOST and coarser < COARSEST:  # far too large: not even tried
        coarser *= 2
    volumes = _pack_all(files, coarser)
    while sum(map(len, volumes.values())) > cap and coarser < COARSEST:
        coarser *= 2
        volumes = _pack_all(files, coarser)
    return volumes, coarser


def _pack_all(files: Mapping[str, Path], coarser: int) -> dict[str, bytes]:
    """Pack every file; the image and what is decoded share one window, so that they compare."""
    voxels, affine = _loaded(files, coarser)
    same_unit = [v for k, v in voxels.items() if k in GREY or k.startswith(SERIES)]
    window = min(float(v.min()) for v in same_unit), max(float(v.max()) for v in same_unit)
    step = (window[1] - window[0]) / 255 or 1.0
    packed = {}
    for kind, values in voxels.items():
        if kind.startswith(SERIES):
            change = _levels(values, window).astype(np.int16)
            change -= _levels(voxels["reconstruction"], window)[..., None]
            packed[f"change_{kind.partition('_')[2]}"] = _nifti(change, step, 0.0, affine, coarser)
            continue
        low, high = window
        if kind.startswith(OVERLAYS):
            low, high = 0.0, float(values.max())
        elif kind == "original":
            low, high = (float(q) for q in np.quantile(values, [0.001, 0.999]))
        scale = (high - low) / 255 or 1.0
        packed[kind] = _nifti(_levels(values, (low, high)), scale, low, affine, coarser)
    return packed


def _loaded(files: Mapping[str, Path], coarser: int) -> tuple[dict[str, Voxels], Any]:
    """Return voxels by kind, (X, Y, Z) or of series (X, Y, Z, V), and the affine of the files."""
    loaded = {kind: nib.load(path) for kind, path in files.items()}
    dims = min(3, *(image.ndim for image in loaded.values()))
    voxels = {}
    for kind, image in loaded.items():
        values = np.asarray(image.dataobj, np.float32)
        shape = *values.shape[:dims], *[1] * (3 - dims), *values.shape[dims:]
        voxels[kind] = _coarse(values.reshape(shape), coarser)
    for kind in [k for k in voxels if k.startswith(DIFFERENCE)]:
        difference = voxels.pop(kind)
        under = voxels.get(kind.replace(DIFFERENCE, "counterfactual_"))
        if under is not None and "reconstruction" not in voxels:
            voxels["reconstruction"] = under - difference
    for kind in [k for k in voxels if k.startswith(SERIES)]:
        values = voxels.pop(kind)
        if "reconstruction" in voxels:
            voxels[kind] = values if values.ndim == 4 else values[..., None]
    return voxels, np.asarray(next(iter(loaded.values())).affine)


def _coarse(values: Voxels, factor: int) -> Voxels:
    """Return the means of blocks of (X, Y, Z), or of each of the volumes of (X, Y, Z, V)."""
    values = np.nan_to_num(values)
    if factor == 1:
        return values
    blocks = [min(factor, n) for n in values.shape[:3]] + [1] * (values.ndim - 3)
    whole = tuple(slice(n // b * b) for n, b in zip(values.shape, blocks, strict=True))
    return np.asarray(downscale_local_mean(values[whole], tuple(blocks)), dtype=np.float32)


def _levels(values: Voxels, window: tuple[float, float]) -> npt.NDArray[np.uint8]:
    step = (window[1] - window[0]) / 255 or 1.0
    return np.clip(np.rint((values - window[0]) / step), 0, 255).astype(np.uint8)


def _nifti(levels: npt.NDArray[Any], step: float, start: float, affine: Any, factor: int) -> bytes:
    """Return a gzipped NIfTI of whole numbers, which `start + step * level` takes to values."""
    placed = affine @ np.diag([factor] * 3 + [1])
    placed[:3, 3] = affine[:3, 3] + affine[:3, :3] @ np.full(3, (factor - 1) / 2)
    header = nib.Nifti1Header()
    header.set_data_dtype(levels.dtype)
    header.set_data_shape(levels.shape)
    header.set_sform(placed, 1)
    header.set_qform(placed, 1, strip_shears=True)
    header.set_slope_inter(step, start)
    header.set_xyzt_units("mm")
    header["magic"], header["vox_offset"] = b"n+1", 352
    little = levels.astype(levels.dtype.newbyteorder("<"))
    return gzip.compress(header.binaryblock + bytes(4) + little.tobytes("F"), 6, mtime=0)
