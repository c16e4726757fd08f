"""The list of features and ``measure``, which computes those asked for in one region."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medvae.attributes import cardiac, intensity, shape
from medvae.attributes.shape import Floats, Mask


@dataclass
class _Region:
    """What a group of features is computed from: arrays cropped to the mask."""

    mask: Mask
    spacing_mm: Floats
    image: NDArray[np.generic] | None
    bin_width: float
    bin_count: int | None

    @cached_property
    def values(self) -> Floats:
        assert self.image is not None  # requested() saw to it
        values = self.image[self.mask].astype(np.float64)
        bad = np.count_nonzero(~np.isfinite(values))
        if bad:
            raise ValueError(
                f"The image has {bad} NaN or infinite voxels inside the mask, "
                "expected finite intensities."
            )
        return values

    @cached_property
    def levels(self) -> NDArray[np.int64]:
        return intensity.discretize(self.values, self.bin_width, self.bin_count)

    @cached_property
    def level_image(self) -> NDArray[np.int64]:
        levels = np.zeros(self.mask.shape, np.int64)
        levels[self.mask] = self.levels
        return levels


class _Group(NamedTuple):
    """Features computed together: their names in 2D and in 3D."""

    compute: Callable[[_Region], dict[str, float]]
    names_2d: tuple[str, ...]
    names_3d: tuple[str, ...]
    kind: str = "shape"


def _same(*names: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return names, names


_GROUPS = (
    _Group(
        lambda region: shape.size(region.mask, region.spacing_mm),
        ("pixel_area_mm2",),
        ("voxel_volume_ml",),
    ),
    _Group(
        lambda region: shape.mesh(region.mask, region.spacing_mm),
        ("mesh_area_mm2", "perimeter_mm", "sphericity", "perimeter_to_area_per_mm"),
        ("mesh_volume_ml", "surface_area_mm2", "sphericity", "surface_to_volume_per_mm"),
    ),
    _Group(
        lambda region: shape.max_diameter(region.mask, region.spacing_mm),
        *_same("max_diameter_mm"),
    ),
    _Group(
        lambda region: shape.plane_diameters(region.mask, region.spacing_mm),
        (),
        ("max_diameter_axial_mm", "max_diameter_coronal_mm", "max_diameter_sagittal_mm"),
    ),
    _Group(
        lambda region: shape.axes(region.mask, region.spacing_mm),
        ("major_axis_mm", "minor_axis_mm", "elongation"),
        ("major_axis_mm", "minor_axis_mm", "least_axis_mm", "elongation", "flatness"),
    ),
    _Group(
        lambda region: intensity.first_order(region.values),
        *_same(
            *("intensity_mean", "intensity_sd", "intensity_min", "intensity_max"),
            *("intensity_median", "intensity_p10", "intensity_p90", "intensity_iqr"),
            *("intensity_skewness", "intensity_kurtosis"),
        ),
        kind="intensity",
    ),
    _Group(
        lambda region: intensity.histogram(region.levels),
        *_same("intensity_entropy", "intensity_uniformity"),
        kind="intensity",
    ),
    _Group(
        lambda region: intensity.glcm(region.level_image),
        *_same("glcm_correlation", "glcm_difference_entropy", "glcm_inverse_variance"),
        kind="intensity",
    ),
    _Group(
        lambda region: {
            "wall_thickness_mm": cardiac.wall_thickness_mm(region.mask, region.spacing_mm)
        },
        *_same("wall_thickness_mm"),
        kind="shell",
    ),
)


def feature_names(
    spatial_dims: int = 3, labels: Iterable[str] | None = None, *, shape_only: bool = False
) -> tuple[str, ...]:
    """List every feature that can be asked for by name, in the order of measurement.

    Args:
        spatial_dims: 2 or 3.
        labels: names of mask labels; the features are then listed for each, as
            ``f"{label}_{feature}"``. None: features of one region, without prefix.
        shape_only: leave out the features that need an image.

    Raises:
        ValueError: if ``spatial_dims`` is neither 2 nor 3.
    """
    if spatial_dims not in (2, 3):
        raise ValueError(f"spatial_dims is {spatial_dims}, expected 2 or 3.")
    groups = [group for group in _GROUPS if not shape_only or group.kind != "intensity"]
    names = tuple(name for group in groups for name in _names(group, spatial_dims))
    if labels is None:
        return names
    return tuple(f"{label}_{name}" for label in labels for name in names)


def requested(
    features: Sequence[str] | None, spatial_dims: int, *, has_image: bool
) -> tuple[str, ...]:
    """Check the names of features of one region, or list the default ones.

    Returns:
        ``features``, or for None everything measurable except ``wall_thickness_mm``, which makes
        sense for shells only; without an image, shape features only.

    Raises:
        ValueError: if a name is unknown, or needs an image and there is none.
    """
    known = feature_names(spatial_dims)
    need_image = _of_kind("intensity", spatial_dims)
    if features is None:
        left_out = _of_kind("shell", spatial_dims) | (set() if has_image else need_image)
        return tuple(name for name in known if name not in left_out)
    for name in features:
        if name not in known:
            raise ValueError(f"Unknown feature {name!r}, expected one of {', '.join(known)}.")
        if name in need_image and not has_image:
            raise ValueError(f"The feature {name!r} needs an image, found a mask only.")
    return tuple(features)


def measure(
    image: ArrayLike | None,
    mask: ArrayLike,
    spacing_mm: Sequence[float] | Floats,
    features: Sequence[str] | None = None,
    *,
    bin_width: float = 25.0,
    bin_count: int | None = None,
) -> dict[str, float]:
    """Measure a region: size, form, intensities and texture as named numbers.

    ``feature_names`` lists the names; the functions of ``medvae.attributes.shape``, ``intensity``
    and ``cardiac`` define them. Units are in the names; intensities keep the image's unit. Only
    what the wanted features need is computed. Values do not depend on the margin around the mask.

    Args:
        image: intensities, (H, W) or (H, W, D) without a channel axis, or None for shape only.
        mask: the region, of the image's shape; nonzero is inside.
        spacing_mm: voxel spacing per axis, in millimetres.
        features: names wanted, in the order wanted; None for all but ``wall_thickness_mm``.
        bin_width: width of the grey-level bins of entropy, uniformity and GLCM features, in the
            image's unit.
        bin_count: number of bins instead of a width, as images scaled to [0, 1] need.

    Returns:
        One float per feature. NaN where a feature does not exist: elongation, flatness and GLCM
        features of a single voxel, the wall thickness of what encloses nothing.

    Raises:
        ValueError: if the mask is empty or not of the image's shape, the spacing is not positive,
            a name is unknown, or an intensity inside the mask is not finite.
    """
    region = np.asarray(mask, dtype=bool)
    spacing = shape.checked_spacing(spacing_mm, region.ndim)
    names = requested(features, region.ndim, has_image=image is not None)
    pixels = None if image is None else np.asarray(image)
    if pixels is not None and pixels.shape != region.shape:
        raise ValueError(f"The image has shape {pixels.shape}, expected the mask's {region.shape}.")
    box = _bounding_box(region)

    cropped = _Region(
        region[box], spacing, None if pixels is None else pixels[box], bin_width, bin_count
    )
    found: dict[str, float] = {}
    for group in _GROUPS:
        if not set(names).isdisjoint(_names(group, region.ndim)):
            found |= group.compute(cropped)
    return {name: float(found[name]) for name in names}


def _names(group: _Group, spatial_dims: int) -> tuple[str, ...]:
    return group.names_2d if spatial_dims == 2 else group.names_3d


def _of_kind(kind: str, spatial_dims: int) -> set[str]:
    return {name for group in _GROUPS if group.kind == kind for name in _names(group, spatial_dims)}


def _bounding_box(mask: Mask) -> tuple[slice, ...]:
    box = []
    for axis in range(mask.ndim):
        others = tuple(other for other in range(mask.ndim) if other != axis)
        occupied = np.flatnonzero(mask.any(axis=others))
        if len(occupied) == 0:
            raise ValueError("The mask is empty, expected at least one voxel inside.")
        box.append(slice(int(occupied[0]), int(occupied[-1]) + 1))
    return tuple(box)
