"""``measure_labels``: the features of several labels of one mask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medvae.attributes.features import feature_names, measure, requested

Values = int | Sequence[int]


def measure_labels(
    image: ArrayLike | None,
    labelmap: ArrayLike,
    spacing_mm: Sequence[float] | NDArray[np.float64],
    labels: Mapping[str, Values] | None,
    features: Sequence[str] | None = None,
    *,
    bin_width: float = 25.0,
    bin_count: int | None = None,
) -> dict[str, float]:
    """Measure each label of a mask.

    Args:
        image: intensities, (H, W) or (H, W, D) without a channel axis, or None for shape only.
        labelmap: whole-number labels, of the image's shape; 0 is background.
        spacing_mm: voxel spacing per axis, in millimetres.
        labels: name of each region and its value in the mask, or several values that together make
            the region: ``{"cavity": 3, "myocardium": [2, 4]}``. None: one region, every nonzero
            voxel, whose features have no prefix.
        features: full names wanted, in the order wanted, as ``myocardium_voxel_volume_ml``, also
            ``myocardium_wall_thickness_mm``; None for all of every label but the wall thickness.
        bin_width: width of the grey-level bins, in the image's unit (see ``measure``).
        bin_count: number of grey-level bins instead of a width.

    Returns:
        One float per full name ``f"{label}_{feature}"``; NaN for every feature of a label that is
        absent from the mask.

    Raises:
        ValueError: as ``measure``; also if a value in ``labels`` is not a whole number.
    """
    binned = partial(measure, bin_width=bin_width, bin_count=bin_count)
    mask = np.asarray(labelmap)
    if labels is None:
        return binned(image, mask != 0, spacing_mm, features)
    wanted = _wanted(features, mask.ndim, labels, has_image=image is not None)
    found: dict[str, float] = {}
    for label, names in wanted.items():
        region = _region(mask, label, labels[label])
        if region.any():
            values = binned(image, region, spacing_mm, names)
        else:
            values = dict.fromkeys(names, float("nan"))
        found |= {f"{label}_{name}": value for name, value in values.items()}
    return found if features is None else {name: found[name] for name in features}


def _wanted(
    features: Sequence[str] | None,
    spatial_dims: int,
    labels: Mapping[str, Values],
    *,
    has_image: bool,
) -> dict[str, list[str]]:
    """Sort full names by label: the features of each label that has any."""
    if features is None:
        names = requested(None, spatial_dims, has_image=has_image)
        return {label: list(names) for label in labels}
    full = {
        f"{label}_{name}": (label, name) for label in labels for name in feature_names(spatial_dims)
    }
    wanted: dict[str, list[str]] = {}
    for feature in features:
        if feature not in full:
            raise ValueError(
                f"Unknown feature {feature!r}, expected LABEL_FEATURE with a label of "
                f"{', '.join(labels)} and a feature of {', '.join(feature_names(spatial_dims))}."
            )
        label, name = full[feature]
        requested([name], spatial_dims, has_image=has_image)
        wanted.setdefault(label, []).append(name)
    return wanted


def _region(labelmap: NDArray[np.generic], label: str, values: Values) -> NDArray[np.bool_]:
    wanted = np.atleast_1d(np.asarray(values))
    if wanted.dtype.kind not in "iu":
        raise ValueError(
            f"The label {label!r} has the value {values!r}, expected a whole number or several."
        )
    return np.logical_or.reduce([labelmap == value for value in wanted])
