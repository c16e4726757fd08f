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

__all__ = ["packed_below"]

MOST = 20  # times that volumes of bytes become smaller at most, as a guess
COARSEST = 64

Voxels = npt.NDArray[np.float32]


def packed_below(files: Mapping[str, Path], cap: int) -> tuple[dict[str, bytes], int]:
    """Return a subject's files as gzipped NIfTI, and how much coarser they had to become.

    Images, reconstruction and maps are bytes. A series `traversal_NAME` becomes `change_NAME`, its
    difference to the reconstruction in steps of the reconstruction's bytes: a third of the size,
    and the viewer adds them up again.

    Args:
        files: by kind, one of them `reconstruction`, all on one grid.
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
    loaded = {kind: nib.load(path) for kind, path in files.items()}
    voxels = {k: _coarse(np.asarray(i.dataobj, np.float32), coarser) for k, i in loaded.items()}
    affine = np.asarray(loaded["reconstruction"].affine)
    same_unit = [v for k, v in voxels.items() if not k.startswith("map_") and k != "original"]
    window = min(float(v.min()) for v in same_unit), max(float(v.max()) for v in same_unit)
    step = (window[1] - window[0]) / 255 or 1.0
    start = _levels(voxels["reconstruction"], window)
    packed = {}
    for kind, values in voxels.items():
        if kind.startswith("traversal_"):
            change = _levels(values, window).astype(np.int16) - start[..., None]
            kind = kind.replace("traversal_", "change_")
            packed[kind] = _nifti(change.astype(np.int16), step, 0.0, affine, coarser)
            continue
        low, high = window
        if kind.startswith("map_"):
            low, high = 0.0, float(values.max())
        elif kind == "original":
            low, high = (float(q) for q in np.quantile(values, [0.001, 0.999]))
        scale = (high - low) / 255 or 1.0
        packed[kind] = _nifti(_levels(values, (low, high)), scale, low, affine, coarser)
    return packed


def _coarse(values: Voxels, factor: int) -> Voxels:
    """Return the means of blocks of (X, Y, Z), or of each of the volumes of (X, Y, Z, V)."""
    values = np.nan_to_num(values)
    values = values.reshape(*values.shape, *[1] * (3 - values.ndim))
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
