"""Size and form of a region, from its boolean mask and voxel spacing alone.

Every function takes a non-empty boolean mask of shape (H, W) or (H, W, D), cropped or not, and the
spacing of its axes in millimetres, and returns named numbers with the unit in the name.

The surface is the marching-cubes mesh (Lewiner's variant, as in scikit-image) of the mask padded by
one voxel, at level 0.5: its vertices lie halfway between a voxel inside and a neighbour outside. In
2D it is the matching polygon. A voxel mask's mesh keeps the staircase, so its surface is too large
and its sphericity too small however fine the grid: a ball of radius 20 voxels has 0.919 instead of
1, and 0.80 is usual with 10 mm slices. Values are comparable only between grids of equal spacing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import ConvexHull, QhullError
from skimage.measure import marching_cubes

Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]
Indices = NDArray[np.intp]

# Marching squares, indexed by the bits of the corners (0,0), (0,1), (1,0), (1,1) inside the mask:
# area in eighths of a pixel, boundary along axis 0, along axis 1, and in half diagonals. The two
# saddles (6 and 9) separate their corners, as pyradiomics does.
_SQUARE_AREA = np.array([0, 1, 1, 4, 1, 4, 2, 7, 1, 2, 4, 7, 4, 7, 7, 8]) / 8
_SQUARE_ALONG_0 = np.array([0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0])
_SQUARE_ALONG_1 = np.array([0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0])
_SQUARE_OBLIQUE = np.array([0, 1, 1, 0, 1, 0, 2, 1, 1, 2, 0, 1, 0, 1, 1, 0]) / 2

# Directions over a half turn whose widths bracket a plane figure's diameter within 0.5 %.
_DIRECTIONS = np.array([np.cos(np.pi * np.arange(16) / 16), np.sin(np.pi * np.arange(16) / 16)])
_WIDTH_TO_DIAMETER = 1 / np.cos(np.pi / 32)


def checked_spacing(spacing_mm: Sequence[float] | Floats, spatial_dims: int) -> Floats:
    """Return the spacing as an array.

    Raises:
        ValueError: if it is not one positive number per axis, or the axes are not two or three.
    """
    if spatial_dims not in (2, 3):
        raise ValueError(f"The mask has {spatial_dims} axes, expected 2 or 3.")
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    if spacing.shape != (spatial_dims,) or not np.all(np.isfinite(spacing) & (spacing > 0)):
        raise ValueError(
            f"spacing_mm is {spacing.tolist()}, expected {spatial_dims} positive numbers."
        )
    return spacing


def size(mask: Mask, spacing_mm: Floats) -> dict[str, float]:
    """Count voxels: ``voxel_volume_ml`` in 3D, ``pixel_area_mm2`` in 2D."""
    content = float(np.count_nonzero(mask) * spacing_mm.prod())
    return {"pixel_area_mm2": content} if mask.ndim == 2 else {"voxel_volume_ml": content / 1000}


def mesh(mask: Mask, spacing_mm: Floats) -> dict[str, float]:
    r"""Measure the content and boundary of the mesh.

    3D: volume $V$, surface $A$, sphericity $(36 \pi V^2)^{1/3} / A$ and $A / V$.
    2D: area $A$, perimeter $P$, sphericity $2 \sqrt{\pi A} / P$ and $P / A$.
    Sphericity lies in (0, 1] and carries the bias described in the module's docstring.
    """
    if mask.ndim == 2:
        area, perimeter = _polygon(mask, spacing_mm)
        return {
            "mesh_area_mm2": area,
            "perimeter_mm": perimeter,
            "sphericity": 2 * np.sqrt(np.pi * area) / perimeter,
            "perimeter_to_area_per_mm": perimeter / area,
        }
    volume, surface = _surface(mask, spacing_mm)
    return {
        "mesh_volume_ml": volume / 1000,
        "surface_area_mm2": surface,
        "sphericity": np.cbrt(36 * np.pi * volume**2) / surface,
        "surface_to_volume_per_mm": surface / volume,
    }


def max_diameter(mask: Mask, spacing_mm: Floats) -> dict[str, float]:
    """Measure the largest distance between two vertices of the mesh, in 2D or 3D."""
    points = _hull_vertices(_line_ends(mask, range(mask.ndim)))
    return {"max_diameter_mm": _farthest(points * spacing_mm, spacing_mm)}


def plane_diameters(mask: Mask, spacing_mm: Floats) -> dict[str, float]:
    """Measure the largest distance between two mesh vertices within one plane of the grid (3D).

    Axial is across the third axis, coronal across the second and sagittal across the first, which
    is what the names say when the array is in RAS order (or any flip of it); they are pyradiomics'
    Maximum2DDiameter Slice, Column and Row. For a short-axis stack "axial" is the slice plane.
    """
    planes = {"axial": 2, "coronal": 1, "sagittal": 0}
    return {
        f"max_diameter_{name}_mm": _plane_diameter(mask, spacing_mm, axis)
        for name, axis in planes.items()
    }


def axes(mask: Mask, spacing_mm: Floats) -> dict[str, float]:
    r"""Measure the axes of the ellipsoid with the same second moments.

    Lengths are $4 \sqrt{\lambda}$ of the covariance (divided by N) of the voxel centres, elongation
    $\sqrt{\lambda_2 / \lambda_1}$ and flatness $\sqrt{\lambda_3 / \lambda_1}$, in [0, 1]. A single
    slice has least axis and flatness 0; of a single voxel both ratios are NaN.
    """
    points = np.argwhere(mask) * spacing_mm
    points -= points.mean(axis=0)
    variances = np.linalg.eigvalsh(points.T @ points / len(points))[::-1]
    lengths = 4 * np.sqrt(np.maximum(variances, 0))
    ratios = lengths[1:] / lengths[0] if lengths[0] > 0 else np.full(len(lengths) - 1, np.nan)
    names = ("major_axis_mm", "minor_axis_mm", "least_axis_mm")[: mask.ndim]
    named = dict(zip(names, lengths, strict=True))
    return named | dict(zip(("elongation", "flatness"), ratios, strict=False))


def _cells(mask: Mask) -> NDArray[np.uint8]:
    """Number every cell between 4 or 8 voxel centres by its corners inside the mask."""
    padded = np.pad(mask, 1).view(np.uint8)
    cells = np.zeros([n - 1 for n in padded.shape], np.uint8)
    for bit, corner in enumerate(product((0, 1), repeat=mask.ndim)):
        shifted = tuple(slice(c, c + n) for c, n in zip(corner, cells.shape, strict=True))
        cells |= padded[shifted] << bit
    return cells


def _polygon(mask: Mask, spacing_mm: Floats) -> tuple[float, float]:
    """Return the area (mm2) and perimeter (mm) of a 2D mask's marching-squares polygon."""
    counts = np.bincount(_cells(mask).ravel(), minlength=16)
    along_0, along_1 = spacing_mm
    lengths = (
        _SQUARE_ALONG_0 * along_0
        + _SQUARE_ALONG_1 * along_1
        + _SQUARE_OBLIQUE * np.hypot(along_0, along_1)
    )
    return float(counts @ _SQUARE_AREA * along_0 * along_1), float(counts @ lengths)


@lru_cache(maxsize=1)
def _cube_triangles() -> tuple[Floats, Indices]:
    """List the triangles (T, 3, 3) that marching cubes puts in a cube, and their cube's number."""
    triangles, cubes = [], []
    for cube in range(1, 255):
        corners = (cube >> np.arange(8) & 1).reshape(2, 2, 2).astype(np.float32)
        vertices, faces, _, _ = marching_cubes(corners, 0.5)
        triangles.append(vertices[faces].astype(np.float64))
        cubes.append(np.full(len(faces), cube))
    return np.concatenate(triangles), np.concatenate(cubes)


def _surface(mask: Mask, spacing_mm: Floats) -> tuple[float, float]:
    """Return the volume (mm3) and surface (mm2) of a 3D mask's marching-cubes mesh.

    In a mask a cube's triangles depend on its 8 corners only, so counting the 256 kinds of cube
    gives exactly the sums over the whole mesh, several times faster than building it.
    """
    cells = _cells(mask)
    cut = np.flatnonzero((cells != 0) & (cells != 255))
    kinds = cells.ravel()[cut]
    counts = np.bincount(kinds, minlength=256)
    offsets = np.bincount(kinds, weights=cut // cells[0].size, minlength=256) * spacing_mm[0]

    triangles, cubes = _cube_triangles()
    corners = triangles * spacing_mm
    first, second = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    normals = np.cross(first, second) / 2
    surface = counts[cubes] @ np.sqrt((normals**2).sum(axis=1))
    # Divergence theorem with the field (x, 0, 0): only x, and the normal along x, enter.
    moments = counts[cubes] * corners[:, :, 0].mean(axis=1) + offsets[cubes]
    return abs(float(moments @ normals[:, 0])), float(surface)


def _indices(mask: Mask) -> Indices:
    """Return what ``np.argwhere`` does, several times faster on sparse masks."""
    return np.stack(np.unravel_index(np.flatnonzero(mask), mask.shape), axis=-1)


def _line_ends(mask: Mask, over: Iterable[int]) -> Indices:
    """Return the indices (N, ndim) of voxels not between two others on a line along ``over``.

    A voxel between its two neighbours is no vertex of the convex hull, so no diameter is lost.
    """
    ends = mask.copy()
    for axis in over:
        lines, remaining = np.moveaxis(mask, axis, 0), np.moveaxis(ends, axis, 0)
        remaining[1:-1] &= ~(lines[:-2] & lines[2:])
    return _indices(ends)


def _hull_vertices(points: Indices) -> Indices:
    if len(points) <= 500:  # all pairs are quicker than the hull
        return points
    try:
        return points[ConvexHull(points).vertices]
    except QhullError:  # all points in one plane
        return points


def _farthest(centres_mm: Floats, reach_mm: Floats) -> float:
    """Return the largest distance (mm) between mesh vertices that belong to voxel centres (N, d).

    A mesh vertex lies half a step from its voxel's centre along one axis, so two of them differ at
    most by the difference of the centres lengthened by a whole step ``reach_mm`` along one axis.
    """
    centres = centres_mm - centres_mm.mean(axis=0)
    ones, squares = np.ones((len(centres), 1)), (centres**2).sum(axis=1, keepdims=True)
    ends = np.hstack([centres, ones, squares]).T
    largest = 0.0
    for shift in np.diag(reach_mm):
        moved = centres + shift
        starts = np.hstack([-2 * moved, (moved**2).sum(axis=1, keepdims=True), ones])
        for first in range(0, len(starts), 1024):  # |start - end|^2 as one product, a block at once
            largest = max(largest, float((starts[first : first + 1024] @ ends).max()))
    return float(np.sqrt(largest))


def _plane_diameter(mask: Mask, spacing_mm: Floats, axis: int) -> float:
    """Return the largest distance (mm) between mesh vertices with equal coordinate on ``axis``."""
    plane = [other for other in range(3) if other != axis]
    spacing = spacing_mm[plane]
    points = _line_ends(mask, plane)
    diameter = _farthest_in_planes(points[:, axis], points[:, plane] * spacing, spacing, 0.0)
    # Halfway between two slices the mesh has a vertex wherever they differ, on the voxel's centre.
    steps = np.diff(mask, axis=axis)
    points = _line_ends(steps, plane)
    return _farthest_in_planes(points[:, axis], points[:, plane] * spacing, np.zeros(2), diameter)


def _farthest_in_planes(
    numbers: Indices, centres_mm: Floats, reach_mm: Floats, least: float
) -> float:
    """Return the largest distance (mm) within a plane, or ``least`` if that is larger.

    Args:
        numbers: the plane of each voxel, (N,).
        centres_mm: the voxel's centre in the plane, (N, 2).
        reach_mm: as in ``_farthest``.
        least: distance found elsewhere.
    """
    if len(numbers) == 0:
        return least
    order = np.argsort(numbers, kind="stable")
    centres = centres_mm[order]
    starts = np.flatnonzero(np.diff(numbers[order], prepend=-1))
    # A plane's width in any direction is at most its diameter, and in one of enough directions
    # nearly so: the pairs of most planes need no look.
    heights = centres @ _DIRECTIONS
    widths = np.maximum.reduceat(heights, starts) - np.minimum.reduceat(heights, starts)
    widths = (widths + (np.abs(_DIRECTIONS) * reach_mm[:, None]).max(axis=0)).max(axis=1)
    bounds = widths * _WIDTH_TO_DIAMETER
    least = max(least, float(widths.max()) * (1 - 1e-9))
    stops = np.append(starts[1:], len(centres))
    for plane in np.argsort(-bounds):
        if bounds[plane] <= least:
            break
        least = max(least, _farthest(centres[starts[plane] : stops[plane]], reach_mm))
    return least
