"""Analytic bodies in 2D and 3D, in memory and on disk, that tests of images share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from monai.data import MetaTensor


def affine_of(spatial_dims: int, spacing: Any, angle: float = 0.3, flip: Any = ()) -> np.ndarray:
    """A rotated, anisotropic affine; 2D rotates in the plane, 3D about an oblique axis."""
    axis = np.array([0, 0, 1.0]) if spatial_dims == 2 else np.array([0.5, -0.4, 0.77])
    axis = axis / np.linalg.norm(axis)
    cross = np.cross(np.eye(3), axis)
    rotation = np.eye(3) - np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    sizes = np.array([*spacing, 1.0][:3])
    for i in flip:
        sizes[i] *= -1
    affine = np.eye(4)
    affine[:3, :3] = rotation * sizes
    affine[:3, 3] = (11.0, -7.0, 23.0)
    return affine


def world(affine: Any, shape: Any) -> np.ndarray:
    """RAS millimetres of every voxel, ``(*S, r)`` for a ``(r + 1, r + 1)`` affine."""
    affine = np.asarray(affine)
    index = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), axis=-1)
    if index.shape[-1] < len(affine) - 1:
        index = np.concatenate([index, np.zeros((*shape, 1))], axis=-1)
    return index @ affine[:-1, :-1].T + affine[:-1, -1]


def ball(affine: Any, shape: Any, offset: Any = 0.0, radius: float = 9.0) -> np.ndarray:
    """Signed millimetres inside a ball at the volume's centre plus ``offset`` (world axes)."""
    points = world(affine, shape)
    middle = points.reshape(-1, points.shape[-1])
    centre = (middle.min(0) + middle.max(0)) / 2 + offset
    return radius - np.linalg.norm(points - centre, axis=-1)


def write(folder: Path, name: str, voxels: np.ndarray, affine: np.ndarray) -> str:
    path = folder / f"{name}.nii.gz"
    nibabel.save(nibabel.Nifti1Image(voxels.astype(np.float32), affine), path)
    return str(path)


def subject(
    folder: Path,
    spatial_dims: int = 3,
    spacing: Any = (1.5, 2.0, 3.0),
    shape: Any = (26, 20, 14),
    flip: Any = (),
    name: str = "case",
    **kwargs: Any,
) -> dict[str, Any]:
    """A smooth ball in Hounsfield-like units, its mask, on disk."""
    affine = affine_of(spatial_dims, spacing[:spatial_dims], flip=flip)
    depth = ball(affine, shape[:spatial_dims], **kwargs)
    image = -200 + 400 * np.clip(depth / 8, -1, 1)
    return {
        "image": write(folder, f"{name}_image", image, affine),
        "mask": write(folder, f"{name}_mask", depth > 0, affine),
        "voxel_volume_ml": 1.0,
    }


def stored(path: str) -> tuple[np.ndarray, np.ndarray]:
    image = nibabel.load(path)
    return np.asarray(image.dataobj, dtype=np.float32), image.affine


def meta(values: Any, affine: Any = None) -> MetaTensor:
    tensor = torch.as_tensor(np.asarray(values, dtype=np.float32))
    affine = np.eye(tensor.ndim) if affine is None else affine
    return MetaTensor(tensor, affine=torch.as_tensor(np.asarray(affine)))


def dice(a: Any, b: Any) -> float:
    a, b = np.asarray(a) > 0.5, np.asarray(b) > 0.5
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def centre_of_mass(weights: Any) -> np.ndarray:
    weights = np.asarray(weights)
    grid = np.indices(weights.shape).reshape(weights.ndim, -1)
    return (grid * weights.reshape(-1)).sum(1) / weights.sum()
