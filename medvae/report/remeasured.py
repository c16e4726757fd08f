"""Decoding sweeps of a latent axis and measuring what was decoded."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import Tensor
from tqdm import tqdm

from medvae.engines.segmentation import AUGMENTATION
from medvae.explain import Instrument, MonotoneCurve, Readout, there_and_back
from medvae.explain.manipulation import decode_along
from medvae.metrics import change_outside, return_error
from medvae.networks import AttriVAE
from medvae.report.measuring import measure_images, train_instrument

__all__ = ["Remeasured", "Sweep", "ready_instrument", "rendered_readout"]

Array = npt.NDArray[np.float64]
BATCH = 16  # subjects that are decoded at once
CALIBRATED_ON = 32  # training subjects
CALIBRATION_STEPS = 13


class Sweep(NamedTuple):
    """What moving one axis of N subjects through V codes did.

    Attributes:
        measured: attributes of the decoded images, shape (N, V, K).
        outside: share of the change between the ends outside the structure, shape (N,).
        outside_chance: that of an even change.
        return_error: see :func:`medvae.metrics.return_error`.
    """

    measured: Array
    outside: Array
    outside_chance: Array
    return_error: Array


def ready_instrument(
    instrument: Instrument,
    path: str | Path,
    images: Tensor,
    classes: Tensor,
    steps: int,
    seed: int,
    progress: bool = True,
) -> None:
    """Load the instrument that was trained on the same, or train it and save it.

    Args:
        instrument: its weights are replaced.
        path: of its file.
        images: real ones of the training subjects, (N, C, *S).
        classes: of their voxels, (N, *S), see `Instrument.classes`.
        steps: batches to train on.
        seed: of the training.
        progress: show a bar.
    """
    recipe = (steps, seed, instrument.values, AUGMENTATION)
    digest = hashlib.sha256(repr(recipe).encode())
    for part in (images, classes):
        digest.update(part.cpu().contiguous().numpy().tobytes())
    if instrument.load(path, digest.hexdigest()):
        return
    train_instrument(instrument, images, classes, steps, seed, progress)
    instrument.save(path, digest.hexdigest())


class Remeasured:
    """Measures images, batch by batch, and what a network decodes.

    Args:
        network: an `AttriVAE`.
        instrument: trained.
        progress: show bars.
    """

    def __init__(self, network: AttriVAE, instrument: Instrument, progress: bool = True) -> None:
        self.network, self.instrument, self.progress = network, instrument, progress

    def measure(self, images: Tensor, labelmaps: npt.NDArray[Any] | None = None) -> Array:
        """Return attributes (N, K) of images (N, C, *S), within label maps or as segmented."""
        return measure_images(self.instrument, images, labelmaps, self.progress)

    def sweep(
        self,
        readout: Readout,
        axis: int,
        codes: Array,
        images: Tensor,
        name: str,
        labelmaps: npt.NDArray[Any],
    ) -> Sweep:
        """Move an axis of images (N, C, *S) through V codes.

        Args:
            readout: says which axes go together.
            axis: the latent axis.
            codes: shape (V,), from one end to the other.
            images: shape (N, C, *S).
            name: the measured attribute whose structure the change should lie in.
            labelmaps: the images' own, (N, *S); a voxel around the structure counts as inside.
        """
        parts, along = [], readout.direction(axis, self.network.latent_dim)
        for rows in self._batches(len(images), f"moving {name}"):
            batch = images[rows].to(self.instrument.device)
            decoded = decode_along(self.network, batch, axis, list(codes), along).cpu()
            region = self.instrument.region(name, labelmaps[rows])
            around = ndimage.binary_dilation(region, np.ones((1, *(3,) * (region.ndim - 1))))
            end = self._farther(batch, axis, codes)
            trip = there_and_back(self.network, batch, axis, end, along)
            parts.append(
                (
                    self.instrument.measure(decoded.flatten(0, 1)).reshape(*decoded.shape[:2], -1),
                    *change_outside(decoded[:, 0], decoded[:, -1], around),
                    return_error(*(image.cpu() for image in trip)),
                )
            )
        return Sweep(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    def rendered(
        self, readout: Readout, axis: int, reach: Sequence[float], images: Tensor, name: str
    ) -> tuple[Array, Array]:
        """Return codes (V,) and the mean of what the decoder renders at them, without unmeasured.

        Args:
            readout: says which axes go together.
            axis: the latent axis.
            reach: its lowest and highest code.
            images: training subjects, shape (N, C, *S).
            name: the measured attribute.
        """
        codes = np.linspace(reach[0], reach[1], CALIBRATION_STEPS)
        along = readout.direction(axis, self.network.latent_dim)
        column, parts = self.instrument.names.index(name), []
        for rows in self._batches(len(images), f"calibrating {name}"):
            batch = images[rows].to(self.instrument.device)
            decoded = decode_along(self.network, batch, axis, list(codes), along)
            values = self.instrument.measure(decoded.flatten(0, 1))[:, column]
            parts.append(values.reshape(len(batch), -1))
        table = np.concatenate(parts)
        known = np.isfinite(table)
        some = known.any(axis=0)
        means = np.where(known, table, 0.0).sum(0)[some] / known.sum(0)[some]
        return codes[some], means

    def _farther(self, images: Tensor, axis: int, codes: Array) -> Tensor:
        """Return for each image the end of the sweep that is farther from its own code."""
        self.network.eval()
        with torch.no_grad():
            own = self.network.encode(images)[0][:, axis]
        low, high = (own.new_tensor(float(code)) for code in (codes[0], codes[-1]))
        return torch.where((own - low).abs() > (own - high).abs(), low, high)

    def _batches(self, count: int, title: str) -> Iterator[slice]:
        starts = range(0, count, BATCH)
        for start in tqdm(starts, desc=title, unit="batch", disable=not self.progress):
            yield slice(start, start + BATCH)


def rendered_readout(
    remeasured: Remeasured,
    readout: Readout,
    measured: Mapping[str, str],
    codes: Array,
    images: Tensor,
    ranges: Mapping[str, npt.NDArray[Any]],
    reach: float,
) -> Readout:
    """Return a readout by what the decoder renders of training subjects at a code.

    The table's attribute may have been measured elsewhere and in another unit than the instrument's
    (on the subject's own grid, in native intensities), so the real range of the one is laid upon
    that of the other. A curve says what is rendered on average over subjects, so that sweeps of
    single subjects scatter around what was asked for.

    Args:
        remeasured: measures what is decoded.
        readout: by what the encoder reads; kept for attributes that are not measured.
        measured: the measured name of every attribute that has one.
        codes: of the training subjects, shape (N, D).
        images: of the training subjects, shape (N, C, *S).
        ranges: 5th and 95th percentile of the training subjects by measured name.
        reach: how far an axis is moved to either side, in standard deviations of the codes.

    Returns:
        Its curves end where the axes were moved to, and its span is what is rendered within.
    """
    scaler, span, curves = readout.scaler, readout.span.copy(), list(readout.curves)
    some = np.linspace(0, len(images) - 1, min(CALIBRATED_ON, len(images))).astype(int)
    for name, feature in measured.items():
        column = scaler.names.index(name)
        axis = readout.axes[column]
        centre, sd = codes[:, axis].mean(), codes[:, axis].std()
        ends = (centre - reach * sd, centre + reach * sd)
        if sd == 0:
            continue
        points, means = remeasured.rendered(readout, axis, ends, images[some], feature)
        if len(points) < 2 or np.ptp(means) == 0:
            continue
        log = np.log if name in scaler.log else np.asarray
        low, high = log(ranges[feature])
        shares = (log(means) - low) / (high - low)
        scaled = span[0, column] + shares * (span[1, column] - span[0, column])
        curve = MonotoneCurve.through(points, scaled)
        curves[column] = curve
        span[:, column] = span[:, column].clip(curve.values.min(), curve.values.max())
    kept = readout.companions, readout.nonnegative, readout.follow
    return Readout(scaler, readout.axes, curves, span, *kept)
