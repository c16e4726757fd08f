"""Attributes measured again in images without a mask, by a network that is trained for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

from medvae.attributes import feature_names
from medvae.data import CohortError
from medvae.data.errors import suggestion
from medvae.data.measured import MaskLabels
from medvae.engines import train_segmentation
from medvae.explain import Instrument
from medvae.metrics.intervals import json_number

__all__ = [
    "instrument_of",
    "known_mean",
    "measure_images",
    "measuring_quality",
    "train_instrument",
]

Array = npt.NDArray[np.float64]
BATCH = 16  # images that are measured at once


def instrument_of(
    names: Sequence[str],
    image_size: Sequence[int],
    spacing_mm: Sequence[float] | float,
    mask_labels: MaskLabels | None = None,
    window: Sequence[float] | None = None,
    in_channels: int = 1,
    device: str | torch.device = "cpu",
    seed: int = 0,
) -> Instrument:
    """Return an untrained instrument for the attributes of the key `measured`, see `Instrument`.

    Raises:
        CohortError: a name that is not measured.
    """
    known = feature_names(len(image_size), mask_labels)
    for name in names:
        if name not in known:
            raise CohortError(
                f"Attribute '{name}' of measured cannot be measured; {suggestion(name, known)}"
            )
    return Instrument(
        names, tuple(image_size), spacing_mm, mask_labels, in_channels, window, device, seed
    )


def train_instrument(
    instrument: Instrument,
    images: Tensor,
    classes: Tensor,
    steps: int,
    seed: int = 0,
    progress: bool = True,
) -> None:
    """Train an instrument's network on images and their `Instrument.classes` (N, *S).

    Real images alone: of reconstructions it would learn how the decoder marks what it does not
    draw, and measure what no image shows.

    Args:
        instrument: its weights are replaced.
        images: shape (N, C, *S), see `medvae.engines.train_segmentation`.
        classes: of their voxels.
        steps: batches to train on.
        seed: of the training.
        progress: show a bar.
    """
    train_segmentation(
        instrument.network, images, classes, steps, seed=seed, device=instrument.device,
        progress=progress,
    )  # fmt: skip


def measure_images(
    instrument: Instrument,
    images: Tensor,
    labelmaps: npt.NDArray[Any] | None = None,
    progress: bool = False,
) -> Array:
    """Return attributes (N, K) of images (N, C, *S), within label maps (N, *S) or as segmented."""
    parts = []
    starts = range(0, len(images), BATCH)
    for start in tqdm(starts, desc="measuring", unit="batch", disable=not progress):
        rows = slice(start, start + BATCH)
        found = instrument.segment(images[rows]) if labelmaps is None else labelmaps[rows]
        parts.append(instrument.measure_masks(images[rows], found))
    return np.concatenate(parts) if parts else np.empty((0, len(instrument.names)))


def measuring_quality(measured: Array, true: Array) -> dict[str, float | int | None]:
    """Return how well an attribute (N,) is measured, where it is, against what masks say (N,).

    Returns:
        ``r2``, and ``bias`` and ``error_sd`` in the attribute's unit; None of fewer than two
        images, and ``r2`` also where masks say the same of all. ``subjects``: how many.
    """
    errors = measured - true
    known = np.isfinite(errors)
    count = int(known.sum())
    if count < 2:
        return {"r2": None, "bias": None, "error_sd": None, "subjects": count}
    spread = float(np.var(true[known]))
    r2 = 1 - float(np.mean(errors[known] ** 2)) / spread if spread > 0 else float("nan")
    numbers = {"r2": r2, "bias": errors[known].mean(), "error_sd": errors[known].std()}
    return {name: json_number(value) for name, value in numbers.items()} | {"subjects": count}


def known_mean(values: Array) -> Array:
    """Return the mean over the first axis without NaN; NaN where nothing is known."""
    known = np.isfinite(values)
    total = np.where(known, values, 0.0).sum(0)
    result: Array = np.where(known.any(0), total / np.maximum(known.sum(0), 1), np.nan)
    return result
