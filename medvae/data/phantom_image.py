"""Images of the phantom hearts as two scanners would store them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from medvae.data.phantom_shape import (
    Array,
    Field,
    PhantomFactors,
    middle,
    shape_of,
    signed_distances,
)

__all__ = ["FIELD_OF_VIEW_MM", "SCANNERS", "heart_axes", "render"]

FIELD_OF_VIEW_MM = 96.0
RIGHT_VENTRICLE, MYOCARDIUM, LEFT_VENTRICLE = 1, 2, 3  # mask labels, as in ACDC
LUNG, TISSUE, ORGAN, VESSEL, FAT = 0.05, 0.45, 0.50, 0.75, 1.0  # signals
WALL, RV_BLOOD = 0.22, 0.70
TEXTURE, BIAS = 0.03, 0.025  # standard deviations
UNEVENNESS_MM = 2.5
# Columns: directions to the right ventricle, to the apex, normal to both, in the voxel grid
NOMINAL_POSE = {2: np.eye(2), 3: np.array([[-1.0, 0, 0], [0, 0, -1.0], [0, -1.0, 0]])}


class Scanner(NamedTuple):
    """How an image is acquired; stored values are ``1000 * signal ** gamma``."""

    spacing_mm: dict[int, tuple[float, ...]]
    flips: tuple[int, ...]
    blur_mm: float
    noise: float
    gamma: float


SCANNERS = {
    "A": Scanner({2: (1.0, 1.5), 3: (2.0, 2.0, 2.5)}, (1, 1, 1), 0.8, 0.02, 1.0),
    "B": Scanner({2: (1.5, 2.0), 3: (2.0, 2.0, 4.0)}, (-1, -1, 1), 1.4, 0.03, 0.9),
}


def render(factors: PhantomFactors) -> tuple[NDArray[np.int16], NDArray[np.uint8], Array]:
    """Draw one subject; the same factors give the same bits.

    Stored intensities are ``1000 * signal ** gamma`` with the gamma of the scanner (A 1, B 0.9).
    The signal has soft edges for partial volume, texture, blur, a bias field that is 1 at the
    centre of the field of view, and Rician noise. So the mean over the left ventricle is below
    ``1000 * lv_intensity ** gamma`` by what blur takes from the rim. A mask voxel has the label of
    its centre.

    Args:
        factors: The subject.

    Returns:
        Image and mask (1 right ventricle, 2 myocardium, 3 left ventricle), both (H, W) or
        (H, W, D), and the affine (4, 4) from voxels to RAS millimetres, oblique and anisotropic.

    Raises:
        ValueError: If the factors contradict each other, see `phantom_shape.shape_of`.
    """
    dims, scanner = factors.spatial_dims, SCANNERS[factors.scanner]
    spacing = np.array(scanner.spacing_mm[dims])
    size = np.rint(FIELD_OF_VIEW_MM / spacing).astype(int)
    step = spacing * scanner.flips[:dims]
    axes = _axes(size, step)
    scan, heart, shape = (
        _rotation(factors.scan_rotation, dims),
        heart_axes(factors),
        shape_of(factors),
    )
    origin = middle(shape) - heart.T @ np.array(factors.offset_mm)
    distances = signed_distances(shape, _transform(heart.T, axes, origin))

    rng = np.random.default_rng(factors.texture_seed)
    width = float(spacing.mean())
    signal = _body(rng, axes, _transform(scan, axes, np.zeros(dims)), width)
    texture = np.float32(TEXTURE) * _waves(rng, axes, 10)
    signal = _with_heart(signal + texture, WALL + texture, factors.lv_intensity, distances, width)
    signal = gaussian_filter(signal, scanner.blur_mm / spacing, truncate=3)
    signal *= 1 + np.float32(BIAS) * _waves(rng, axes, 2)

    noise = np.random.default_rng(factors.noise_seed).standard_normal((2, *size), np.float32)
    noise *= np.float32(scanner.noise)
    stored = 1000 * np.hypot(signal + noise[0], noise[1]) ** np.float32(scanner.gamma)
    affine = np.eye(4)
    affine[:dims, :dims] = scan * step
    affine[:dims, 3] = -affine[:dims, :dims] @ ((size - 1) / 2)
    return np.rint(stored).astype(np.int16), _labels(*distances), affine


def heart_axes(factors: PhantomFactors) -> Array:
    """Return the directions of the heart's axes in the voxel grid, as columns (d, d)."""
    dims = factors.spatial_dims
    return _rotation(factors.heart_rotation, dims) @ NOMINAL_POSE[dims]


def _rotation(vector: tuple[float, ...], dims: int) -> Array:
    used = vector if dims == 3 else (0.0, 0.0, vector[-1])
    return Rotation.from_rotvec(used).as_matrix()[:dims, :dims]


def _axes(size: NDArray[np.int_], step: Array) -> list[Field]:
    """Return an open grid of millimetres from the centre."""
    pairs = zip(size, step, strict=True)
    axes = [((np.arange(n) - (n - 1) / 2) * d).astype(np.float32) for n, d in pairs]
    return list(np.meshgrid(*axes, indexing="ij", sparse=True))


def _transform(matrix: Array, axes: list[Field], shift: Array) -> list[Field]:
    """Return `matrix @ x + shift` at every grid point x, one array per component."""
    rows = zip(matrix.astype(np.float32), shift.astype(np.float32), strict=True)
    return [sum((m * x for m, x in zip(row, axes, strict=True)), start=b) for row, b in rows]


def _inside(distance: Field, width: float) -> Field:
    """Return the part of a voxel within a surface at a signed distance, negative inside."""
    return np.clip(0.5 - distance / np.float32(width), 0, 1)


def _labels(cavity: Field, wall: Field, crescent: Field) -> NDArray[np.uint8]:
    mask = np.zeros(cavity.shape, np.uint8)
    mask[crescent < 0] = RIGHT_VENTRICLE
    mask[wall < 0] = MYOCARDIUM
    mask[cavity < 0] = LEFT_VENTRICLE
    return mask


def _with_heart(
    signal: Field,
    wall_signal: Field,
    lv_intensity: float,
    distances: tuple[Field, Field, Field],
    width: float,
) -> Field:
    in_cavity, in_wall, in_heart = (_inside(distance, width) for distance in distances)
    in_rv = (in_heart - in_wall) / np.maximum(1 - in_wall, np.float32(1e-3))  # of what is not wall
    signal = signal + in_rv * (np.float32(RV_BLOOD) - signal)
    signal += in_wall * (wall_signal - signal)
    signal += in_cavity * (np.float32(lv_intensity) - signal)
    return signal


def _waves(rng: np.random.Generator, axes: list[Field], order: int) -> Field:
    """Return a random cosine series of unit variance without a constant term."""
    field = rng.standard_normal((order,) * len(axes)).astype(np.float32)
    field.flat[0] = 0
    field /= np.linalg.norm(field)
    for axis in axes:
        phase = np.pi * (axis.reshape(-1, 1) / FIELD_OF_VIEW_MM + 0.5)
        basis = np.cos(phase * np.arange(order)) * np.where(np.arange(order) > 0, np.sqrt(2), 1)
        field = np.tensordot(field, basis.astype(np.float32), axes=(0, 1))
    return field


def _body(rng: np.random.Generator, axes: list[Field], at: list[Field], width: float) -> Field:
    """Return lung, tissue behind it, an organ below, a vessel and the fat of the chest wall."""
    shift = rng.uniform(-4, 4, 5).astype(np.float32)
    across, front, below = at[0], at[1], at[2] if len(at) == 3 else at[0]
    parts = (
        (front + 30 + shift[0], TISSUE),
        (below + 32 + shift[1], ORGAN),
        (np.hypot(across + 14 + shift[2], front + 38 + shift[3]) - 7, VESSEL),
        (36 + shift[4] - front, FAT),
    )
    signal = np.full(np.broadcast_shapes(*(a.shape for a in at)), LUNG, np.float32)
    for distance, value in parts:
        uneven = distance + np.float32(UNEVENNESS_MM) * _waves(rng, axes, 5)
        signal += _inside(uneven, width) * (np.float32(value) - signal)
    return signal
