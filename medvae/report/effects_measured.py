"""Effects on attributes, such as volumes, that are measured again on decoded images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medvae.data.measured import MaskLabels
from medvae.engines import TreatmentData
from medvae.metrics import difference_of_means, estimate_ate, regression
from medvae.metrics.intervals import json_number
from medvae.networks import IntactVAE
from medvae.report.measuring import (
    instrument_of,
    known_mean,
    measure_images,
    measuring_quality,
    train_instrument,
)
from medvae.report.quality import decoded

__all__ = ["MeasuredEffects"]

Array = npt.NDArray[np.float64]


class MeasuredEffects:
    """Measures what a treatment does to attributes, by a small U-Net that finds the structures.

    The U-Net learns from the training subjects' real images and masks alone, sharp and blurred. One
    that also sees reconstructions learns how the decoder marks a subject's structures or arm, and
    measures what no image shows; what blur still costs, the error on reconstructions says.

    Args:
        names: of `medvae.attributes.feature_names(spatial_dims, mask_labels)`.
        image_size: of the network's images.
        spacing_mm: of their voxels.
        mask_labels: names of the mask's integers; None is one region.
        window: intensities that become 0 and 1; None measures those of the network's images.
        in_channels: of the images.
        steps: batches that the U-Net is trained for.
        n_resamples: for intervals.
        seed: of training and intervals.
        device: where to compute.

    Raises:
        CohortError: a name that is not measured.
    """

    def __init__(
        self,
        names: Sequence[str],
        image_size: Sequence[int],
        spacing_mm: Sequence[float] | float,
        mask_labels: MaskLabels | None = None,
        window: Sequence[float] | None = None,
        in_channels: int = 1,
        steps: int = 1000,
        n_resamples: int = 500,
        seed: int = 0,
        device: str | torch.device = "cpu",
    ) -> None:
        self.names, self.steps = tuple(names), steps
        self.n_resamples, self.seed, self.device = n_resamples, seed, device
        self.instrument = instrument_of(
            names, image_size, spacing_mm, mask_labels, window, in_channels, device, seed
        )

    def report(
        self,
        network: IntactVAE,
        subjects: TreatmentData,
        masks: Tensor,
        columns: Array,
        patients: npt.NDArray[Any],
        train: npt.NDArray[np.bool_],
        test: npt.NDArray[np.bool_],
        truth: Tensor | None = None,
    ) -> dict[str, Any]:
        """Train the U-Net, measure all test subjects under every arm, and return the effects.

        Args:
            network: trained.
            subjects: all N.
            masks: theirs, (N, 1, *S).
            columns: their covariates, (N, P), without NaN.
            patients: theirs, (N,).
            train: the rows that the U-Net learns from.
            test: the rows that are measured.
            truth: the subjects' outcomes under the other arm of two, (N, C, *S), if known.

        Returns:
            A dict that json can write. ``instrument[name]``: R², bias and sd of the error of what
            is measured on test reconstructions, against the mask on the image, and of how many.
            ``arms[t][name]``: the network's mean effect of arm t against the control with an
            interval by patients, difference of means (of all splits) and linear regression (fitted
            on all splits, mean of the test subjects) of what masks say, and ``truth``, the effect
            between the known outcomes as the U-Net measures them. The intervals leave out what
            another training of the network would have found.
        """
        held_out = subjects.rows(torch.tensor(test))
        rows = torch.tensor(train)
        classes = self.instrument.classes(masks[rows])
        train_instrument(self.instrument, subjects.outcome[rows], classes, self.steps, self.seed)
        labelmaps = masks[:, 0].round().numpy().astype(np.int64)
        on_masks = self.instrument.measure_masks(subjects.outcome, labelmaps)
        factual = self._measured(network, held_out, held_out.treatment)
        control = self._measured(network, held_out, torch.zeros_like(held_out.treatment))
        arms = {}
        for arm in range(1, network.treatments):
            target = torch.full_like(held_out.treatment, arm)
            effects = self._measured(network, held_out, target) - control
            simple = self._simple(on_masks, subjects.treatment.numpy(), columns, arm, test)
            arms[arm] = {
                name: self._entry(effects[:, k], patients[test])
                | {method: json_number(values[k]) for method, values in simple.items()}
                for k, name in enumerate(self.names)
            }
        if truth is not None:
            known = self._true(subjects, truth, test)
            for k, name in enumerate(self.names):
                arms[1][name]["truth"] = json_number(known[k])
        quality = {
            name: measuring_quality(factual[:, k], on_masks[test][:, k])
            for k, name in enumerate(self.names)
        }
        return {"instrument": quality, "arms": arms}

    def _measured(self, network: IntactVAE, data: TreatmentData, target: Tensor) -> Array:
        return self._measure(decoded(network, data, target, self.device))

    def _measure(self, images: Tensor) -> Array:
        return measure_images(self.instrument, images.clamp(0, 1))

    def _simple(
        self,
        values: Array,
        treatment: npt.NDArray[Any],
        columns: Array,
        arm: int,
        test: npt.NDArray[np.bool_],
    ) -> dict[str, Array]:
        """Return each attribute's effect (K,) by two estimators, of rows where it is measured."""
        means, fitted = np.full(values.shape[1], np.nan), np.full(values.shape[1], np.nan)
        for k, y in enumerate(values.T):
            rows = ((treatment == 0) | (treatment == arm)) & np.isfinite(y)
            t = (treatment[rows] == arm).astype(int)
            if len(np.unique(t)) == 2:
                means[k] = difference_of_means(y[rows], t)
                asked = columns[test & np.isfinite(y)]
                fitted[k] = known_mean(regression(y[rows], t, columns[rows], asked))
        return {"difference of means": means, "linear regression": fitted}

    def _true(self, subjects: TreatmentData, truth: Tensor, test: npt.NDArray[np.bool_]) -> Array:
        rows = torch.tensor(test)
        sign = 1 - 2.0 * subjects.treatment.numpy()[test]
        own, other = (self._measure(images[rows]) for images in (subjects.outcome, truth))
        return known_mean(sign[:, None] * (other - own))

    def _entry(self, effects: Array, patients: npt.NDArray[Any]) -> dict[str, float | int | None]:
        known = np.isfinite(effects)
        if not known.any():
            return {"subjects": 0, "ate": None, "low": None, "high": None}
        found = estimate_ate(effects[known], patients[known], self.n_resamples, seed=self.seed)
        numbers = zip(("ate", "low", "high"), found, strict=True)
        return {"subjects": int(known.sum())} | {k: json_number(v) for k, v in numbers}
