"""The one preprocessing of all systems."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.transforms import (
    Compose,
    EnsureTyped,
    Orientationd,
    ScaleIntensityRanged,
    ScaleIntensityRangePercentilesd,
)
from monai.utils import ensure_tuple

from medvae.data.errors import CohortError
from medvae.transforms.affines import PlanarAffined
from medvae.transforms.grid import ResampleToGridd
from medvae.transforms.loading import LoadSubjectd
from medvae.transforms.masks import MaskBackgroundd

__all__ = ["no_percentiles", "preprocessing"]


def preprocessing(
    spacing_mm: Sequence[float] | float | None,
    size: Sequence[int] | int | None,
    keys: Sequence[str] | str = ("image", "mask"),
    spatial_dims: int = 3,
    in_channels: int = 1,
    window: Sequence[float] | None = None,
    percentiles: Sequence[float] | None = None,
    center_on_mask: bool = False,
    background: float | None = None,
    foreground: Sequence[int] | None = None,
    padding: float | None = None,
    anti_alias: bool = True,
    before_scaling: Sequence[Callable[..., Any]] = (),
) -> Compose:
    """From files to tensors of one spacing and size, without losing physical scale.

    In this order: read (NIfTI, DICOM series, PNG, JPEG) and check; axes to RAS (2D: to the two
    body axes of the plane); ``before_scaling``; intensities to [0, 1]; overwrite the background;
    resample, centre, pad and crop by one interpolation. Nothing is stretched: an object twice as
    large in the body is twice as large in the grid.

    All steps are deterministic, so ``CacheDataset`` keeps their result. It takes a Compose within
    a Compose for random and then caches nothing: in a bundle, write the training transform as
    ``$monai.transforms.Compose([*@preprocessing.transforms, *@augmentation])``.
    ``Invertd`` with this Compose brings predictions back to the subject's grid; intensities stay
    as they are.

    Args:
        spacing_mm: millimetres per voxel, one number or one per RAS axis; None: the subject's own.
            A PNG or JPEG counts as 1 mm per pixel.
        size: voxels of the result, one number or one per axis; None: the subject's own.
        keys: the image's key, then optionally the mask's. Items may lack the mask unless
            ``center_on_mask`` or ``background`` needs it.
        spatial_dims: 2 or 3.
        in_channels: channels that an image must have.
        window: intensities that become 0 and 1, beyond which is clipped.
        percentiles: the percentiles of each volume that become 0 and 1, beyond which is clipped,
            for modalities without an absolute scale such as MR. Neither: intensities stay.
        center_on_mask: whether the mask's centre of mass, instead of the volume's centre, becomes
            the centre of the grid.
        background: what to write wherever the mask is background, such as -1000 for air or 0;
            None: keep the surroundings. In the image's unit; with ``percentiles``, in [0, 1].
        foreground: mask labels that are foreground for centring and background; None: all but 0.
        padding: what lies beyond the volume's edge, in the unit of ``background``; None: the
            background, else the lower end of the window, else 0.
        anti_alias: average along axes that become coarser, see :class:`ResampleToGridd`.
        before_scaling: transforms of the volume on its own grid and in its own unit, such as
            ``N4BiasFieldCorrectiond`` or ``MeasureAttributesd``.

    Returns:
        A Compose of items ``{image: path, mask: path, ...}`` to items with float32 MetaTensors
        ``(in_channels, *size)`` and ``(1, *size)``; other entries pass.

    Raises:
        ValueError: arguments that contradict each other; when the Compose is called: see
            :class:`LoadSubjectd`.

    Example:
        >>> nodules = preprocessing(
        ...     spacing_mm=1.0, size=32, window=(-1000, 400), center_on_mask=True, background=-1000
        ... )
    """
    names = ensure_tuple(keys)
    image, mask = names[0], names[1] if len(names) > 1 else None
    needs_mask = center_on_mask or background is not None
    _check(names, window, percentiles, needs_mask)
    for name, value in (("spacing_mm", spacing_mm), ("image_size", size)):
        if isinstance(value, Sequence) and len(value) != spatial_dims:
            raise ValueError(f"{name} is {list(value)}; expected {spatial_dims} numbers or one.")
    beyond = (padding, background, None if window is None else window[0], 0.0)
    outside = next(value for value in beyond if value is not None)
    steps: list[Callable[..., Any]] = [
        LoadSubjectd(image, mask, spatial_dims, in_channels, allow_missing_mask=not needs_mask)
    ]
    optional = {"allow_missing_keys": True}
    if spatial_dims == 2:
        steps.append(PlanarAffined(names, **optional))
    steps.append(Orientationd(names, axcodes="RAS"[:spatial_dims], labels=None, **optional))
    steps.extend(before_scaling)
    if window is not None:
        steps.append(ScaleIntensityRanged(image, *window, b_min=0.0, b_max=1.0, clip=True))
    if percentiles is not None:
        steps.append(ScaleIntensityRangePercentilesd(image, *percentiles, 0.0, 1.0, clip=True))
    if background is not None and mask is not None:
        steps.append(MaskBackgroundd(image, mask, _scaled(background, window), foreground))
    steps.append(
        ResampleToGridd(
            names,
            size=size,
            spacing_mm=spacing_mm,
            mode=("bilinear", "nearest")[: len(names)],
            value=(_scaled(outside, window), 0.0)[: len(names)],
            fade=background is not None,
            center_key=mask if center_on_mask else None,
            foreground=foreground,
            anti_alias=anti_alias,
            **optional,
        )
    )
    steps.append(EnsureTyped(names, dtype=torch.float32, **optional))
    return Compose(steps)


def no_percentiles(percentiles: Sequence[float] | None) -> None:
    """Return None, or refuse percentiles where intensities of images are compared.

    They scale every image on its own, and so take an effect on its brightness or contrast away.

    Raises:
        CohortError: percentiles are given.
    """
    if percentiles is not None:
        raise CohortError(
            f"percentiles is {percentiles}, which would scale every image on its own and hide "
            "effects on its intensities; expected null, and one window for all images."
        )


def _check(
    names: Sequence[str],
    window: Sequence[float] | None,
    percentiles: Sequence[float] | None,
    needs_mask: bool,
) -> None:
    if not 1 <= len(names) <= 2:
        raise ValueError(f"keys are {tuple(names)}; expected the image's key and the mask's.")
    if needs_mask and len(names) == 1:
        raise ValueError(
            f"keys are {tuple(names)} without a mask; expected one, "
            "for center_on_mask or background."
        )
    if window is not None and percentiles is not None:
        raise ValueError("window and percentiles are both given; expected at most one of them.")
    for name, pair in (("window", window), ("percentiles", percentiles)):
        if isinstance(pair, str):
            raise ValueError(f"{name} is '{pair}'; expected two numbers, or '$None' for none.")
        if pair is not None and not (len(pair) == 2 and pair[0] < pair[1]):
            raise ValueError(f"{name} is {tuple(pair)}; expected two rising numbers.")


def _scaled(intensity: float, window: Sequence[float] | None) -> float:
    """What the window makes of an intensity."""
    if window is None:
        return intensity
    low, high = window
    return min(max((intensity - low) / (high - low), 0.0), 1.0)
