"""From a trained Attri-VAE to what asking it for other attributes does, re-measured."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import Tensor
from tqdm import tqdm

from medvae.attributes import feature_names
from medvae.data import Cohort, CohortError, check_overwrite, write_text
from medvae.data.errors import suggestion
from medvae.data.measured import MaskLabels
from medvae.engines import PrepareAttributes, train_segmentation
from medvae.explain import Instrument, Readout, there_and_back, traverse
from medvae.metrics import agreement, change_outside, manipulation_report, return_error
from medvae.metrics.intervals import json_number
from medvae.networks import AttriVAE
from medvae.report.evaluation import Predictions, predict
from medvae.report.plots import plot_traversals
from medvae.report.sweeps import manipulation_table, plot_sweeps, write_gif

__all__ = ["ManipulationEvaluation"]

Array = npt.NDArray[np.float64]
BATCH = 16  # subjects that are swept at once

logger = logging.getLogger("medvae")


class ManipulationEvaluation:
    """Moves every attribute's axis over its real range, decodes, and measures what was decoded.

    Decoded images have no mask, so a small network is trained to segment them
    (`medvae.explain.Instrument`) on the training subjects, whose own masks say what is true. Writes
    `manipulation.json`, `manipulation.md`, `sweeps.png` and one subject's `traversals.png` into the
    output folder.

    Args:
        network: a trained `AttriVAE`.
        cohort: what it was trained on; every subject needs a mask.
        data: batches of all of the cohort's subjects, with the key `mask`, in its table's order.
        prepare_batch: as in training.
        output_dir: where results go.
        instrument: the file of the instrument's weights; used again if it was trained on the same.
        mask_labels: name of each region and its value or values in the mask; None: one region.
        spacing_mm: of the model's grid, one number or one per axis.
        window: intensities that 0 and 1 stand for; None: intensities are measured as they are.
        measured_as: what is measured for an attribute of the table that has another name, such as
            `{wall_thickness_mm: myocardium_wall_thickness_mm}`; names that are no attributes are
            ignored.
        on_reconstructions: train the instrument on the model's reconstructions as well, so that it
            copes with their blur.
        instrument_steps: batches to train it on.
        tied: axis k belongs to attribute k; False takes the best correlated axis of each.
        sweep_steps: values asked for, over the range of nine in ten training subjects.
        subjects_scored: how many subjects of the split; None: all.
        shown: id of the subject in the montage; None: the first that is scored.
        gif: write the same subject's traversals as `traversals.gif`, too.
        device: where to compute.
        n_resamples: for intervals.
        seed: of the instrument and of resamples.
        split: which subjects are scored.
        overwrite: replace results of an earlier evaluation.
        progress: show progress bars.

    Raises:
        CohortError: a subject without a mask, no attribute that can be measured, or results that
            are already there.
    """

    def __init__(
        self,
        network: AttriVAE,
        cohort: Cohort,
        data: Iterable[Mapping[str, Any]],
        prepare_batch: PrepareAttributes,
        output_dir: str | Path,
        instrument: str | Path,
        mask_labels: MaskLabels | None,
        spacing_mm: Sequence[float] | float,
        window: Sequence[float] | None = None,
        measured_as: Mapping[str, str] | None = None,
        on_reconstructions: bool = True,
        instrument_steps: int = 500,
        tied: bool = True,
        sweep_steps: int = 7,
        subjects_scored: int | None = None,
        shown: str | None = None,
        gif: bool = False,
        device: str | torch.device = "cpu",
        n_resamples: int = 500,
        seed: int = 0,
        split: str = "test",
        overwrite: bool = False,
        progress: bool = True,
    ) -> None:
        self.network, self.cohort, self.data = network, cohort, data
        self.prepare_batch, self.device = prepare_batch, device
        self.output_dir, self.instrument_path = Path(output_dir), instrument
        self.on_reconstructions, self.instrument_steps = on_reconstructions, instrument_steps
        self.tied, self.sweep_steps, self.subjects_scored = tied, sweep_steps, subjects_scored
        self.shown, self.gif = shown, gif
        self.n_resamples, self.seed, self.split = n_resamples, seed, split
        self.overwrite, self.progress = overwrite, progress
        dims = len(network.image_size)
        self.measured = _measurable(
            cohort.attribute_names, measured_as or {}, feature_names(dims, mask_labels)
        )
        self._check()
        self.spacing_mm = spacing_mm
        self.instrument = Instrument(
            list(self.measured.values()),
            network.image_size,
            spacing_mm,
            mask_labels,
            network.in_channels,
            window,
            device,
            seed,
        )

    def run(self) -> dict[str, Any]:
        """Evaluate, write everything and return what manipulation.json holds."""
        check_overwrite([self.output_dir / "manipulation.json"], self.overwrite)
        masks: list[Tensor] = []
        predictions = predict(
            self.network, _keeping(self.data, masks), self.prepare_batch, self.device, self.progress
        )
        classes = self.instrument.classes(torch.cat(masks))
        train, scored = self._rows()
        self._prepare_instrument(predictions, classes, train)
        labelmaps = np.array(self.instrument.values)[classes.numpy()]
        images = torch.from_numpy(predictions.images)
        training = self._in_batches(images[train], labelmaps[train])
        own = self._in_batches(images[scored], labelmaps[scored])
        readout = self._readout(predictions, train)
        names = list(self.measured)
        asked = readout.scaler.inverse(
            np.linspace(readout.span[0], readout.span[1], self.sweep_steps)
        )
        moved = [
            self._sweep(name, readout, asked, images[scored], labelmaps[scored]) for name in names
        ]
        measured = np.array([sweep for sweep, _ in moved])
        result = {
            "split": self.split,
            "subjects": len(scored),
            "sweep_steps": self.sweep_steps,
            "not_measurable": [n for n in self.cohort.attribute_names if n not in names],
            **manipulation_report(
                measured,
                training,
                names,
                self._patients()[scored],
                self.n_resamples,
                seed=self.seed,
            ),
        }
        columns = [self.cohort.attribute_names.index(name) for name in names]
        for k, name in enumerate(names):
            entry = result["attributes"][name]
            entry["measured_as"] = self.measured[name]
            entry["asked"] = [float(v) for v in asked[:, columns[k]]]
            entry |= moved[k][1]
        self._compare_instrument(result, predictions, scored, own)
        keys = ("outside", "outside_chance", "return_error")
        for key in keys:
            values = [result["attributes"][n][key] for n in names]
            known = [v for v in values if v is not None]
            result["mean"][key] = float(np.mean(known)) if known else None
        self._write(result, measured, readout, asked, images, scored)
        return result

    def _check(self) -> None:
        table = self.cohort.subjects
        if not self.measured:
            raise CohortError(
                f"None of the attributes {list(self.cohort.attribute_names)} can be measured on an "
                "image and its segmentation; expected one that can, or its name in measured_as."
            )
        without = table if "mask" not in table else table[table["mask"].isna()]
        if len(without):
            raise CohortError(
                f"Subject '{without['id'].iloc[0]}' has no mask; expected one for every subject, "
                "as the instrument that measures decoded images learns from them."
            )
        if self.sweep_steps < 3:
            raise CohortError(f"sweep_steps is {self.sweep_steps}; expected 3 or more.")
        if self.shown is not None and self.shown not in set(table["id"]):
            raise CohortError(f"Subject '{self.shown}' to be shown is not in the table.")

    def _rows(self) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
        """Return the rows of the training subjects and of those that are scored."""
        splits = self.cohort.subjects["split"].to_numpy()
        train, scored = (np.flatnonzero(splits == split) for split in ("train", self.split))
        count = min(self.subjects_scored or len(scored), len(scored))
        return train, scored[np.linspace(0, len(scored) - 1, count).astype(int)]

    def _patients(self) -> np.ndarray:
        table, patient = self.cohort.subjects, self.cohort.patient
        return table[patient if patient in table else "id"].to_numpy()

    def _prepare_instrument(
        self, predictions: Predictions, classes: Tensor, train: npt.NDArray[np.intp]
    ) -> None:
        images = [torch.from_numpy(predictions.images[train])]
        if self.on_reconstructions:
            images.append(torch.from_numpy(predictions.reconstructions[train]))
        print_of = hashlib.sha256(repr((self.instrument_steps, self.seed)).encode())
        for part in (images[0], classes[train], *self.network.state_dict().values()):
            print_of.update(part.cpu().contiguous().numpy().tobytes())
        print_of.update(repr(self.on_reconstructions).encode())
        if self.instrument.load(self.instrument_path, print_of.hexdigest()):
            return
        train_segmentation(
            self.instrument.network,
            images,
            classes[train],
            self.instrument_steps,
            seed=self.seed,
            device=self.device,
            progress=self.progress,
        )
        self.instrument.save(self.instrument_path, print_of.hexdigest())

    def _in_batches(self, images: Tensor, labelmaps: np.ndarray | None = None) -> Array:
        """Measure images (N, C, *S), within label maps or as the instrument segments them."""
        parts = []
        starts = range(0, len(images), BATCH)
        for start in tqdm(starts, desc="measuring", unit="batch", disable=not self.progress):
            batch = images[start : start + BATCH]
            if labelmaps is None:
                parts.append(self.instrument.measure(batch))
            else:
                within = labelmaps[start : start + BATCH]
                parts.append(self.instrument.measure_masks(batch, within))
        return np.concatenate(parts)

    def _readout(self, predictions: Predictions, train: npt.NDArray[np.intp]) -> Readout:
        """Fit codes to attributes on the training rows, on tied axes or the best correlated."""
        names = list(self.cohort.attribute_names)
        attributes = self.cohort.subjects[names].to_numpy(dtype=float)[train]
        codes = predictions.codes[train]
        axes: list[int] | None = None
        if not self.tied:
            scaled = self.cohort.scaler.transform(attributes)
            axes = [_best_axis(codes, column) for column in scaled.T]
        return Readout.fit(self.cohort.scaler, codes, attributes, axes)

    def _sweep(
        self, name: str, readout: Readout, asked: Array, images: Tensor, labelmaps: np.ndarray
    ) -> tuple[Array, dict[str, Any]]:
        """Move one attribute; return what is measured (N, V, K), and what the images say."""
        column = self.cohort.attribute_names.index(name)
        axis, codes = readout.axes[column], readout.codes(asked)[:, column]
        shape = (len(images), self.sweep_steps, len(self.measured))
        if not np.isfinite(codes).all():
            nothing = dict.fromkeys(("outside", "outside_chance", "return_error"))
            return np.full(shape, np.nan), nothing
        measured, changes = [], []
        starts = range(0, len(images), BATCH)
        for start in tqdm(starts, desc=f"moving {name}", unit="batch", disable=not self.progress):
            batch = images[start : start + BATCH].to(self.device)
            decoded = traverse(self.network, batch, axis, [float(c) for c in codes])
            flat = self.instrument.measure(decoded.flatten(0, 1))
            measured.append(flat.reshape(len(batch), *shape[1:]))
            region = self.instrument.region(self.measured[name], labelmaps[start : start + BATCH])
            around = ndimage.binary_dilation(region, np.ones((1, *(3,) * (region.ndim - 1))))
            ends = (decoded[:, 0].cpu(), decoded[:, -1].cpu())
            trip = there_and_back(self.network, batch, axis, self._farther(batch, axis, codes))
            changes.append(
                np.array(
                    [*change_outside(*ends, around), return_error(*(part.cpu() for part in trip))]
                )
            )
        keys = ("outside", "outside_chance", "return_error")
        means = np.nanmean(np.concatenate(changes, 1), axis=1)
        return np.concatenate(measured), {
            key: json_number(value) for key, value in zip(keys, means, strict=True)
        }

    def _farther(self, images: Tensor, axis: int, codes: Array) -> Tensor:
        """Return for each image the end of the sweep that is farther from its own code."""
        self.network.eval()
        with torch.no_grad():
            own = self.network.encode(images)[0][:, axis]
        low, high = (own.new_tensor(float(code)) for code in (codes[0], codes[-1]))
        return torch.where((own - low).abs() > (own - high).abs(), low, high)

    def _compare_instrument(
        self, result: dict[str, Any], predictions: Predictions, scored: np.ndarray, own: Array
    ) -> None:
        """Add what the instrument says of real images and of reconstructions, against own masks."""
        result["mean"]["instrument"] = {}
        for kind, images in (
            ("image", predictions.images),
            ("reconstruction", predictions.reconstructions),
        ):
            measured = self._in_batches(torch.from_numpy(images[scored]))
            found = agreement(measured, own)._asdict()
            for k, name in enumerate(self.measured):
                entry = result["attributes"][name].setdefault("instrument", {})
                entry[kind] = {key: json_number(value[k]) for key, value in found.items()}
            means = {
                key: json_number(np.nanmean(v)) if np.isfinite(v).any() else None
                for key, v in found.items()
            }
            result["mean"]["instrument"][kind] = means

    def _write(
        self,
        result: Mapping[str, Any],
        measured: Array,
        readout: Readout,
        asked: Array,
        images: Tensor,
        scored: np.ndarray,
    ) -> None:
        write_text(self.output_dir / "manipulation.json", json.dumps(result, indent=1) + "\n")
        write_text(self.output_dir / "manipulation.md", manipulation_table(result))
        entries = result["attributes"]
        plot_sweeps(
            {name: measured[k, :, :, k] for k, name in enumerate(self.measured)},
            {name: entries[name]["asked"] for name in self.measured},
            {name: entries[name]["real_range"] for name in self.measured},
            self.output_dir / "sweeps.png",
        )
        ids = list(self.cohort.subjects["id"])
        row = scored[0] if self.shown is None else ids.index(self.shown)
        values, volumes = {}, {}
        for name in self.measured:
            column = self.cohort.attribute_names.index(name)
            codes = readout.codes(asked)[:, column]
            if np.isfinite(codes).all():
                values[name] = entries[name]["asked"]
                one = images[[row]].to(self.device)
                decoded = traverse(self.network, one, readout.axes[column], list(map(float, codes)))
                volumes[name] = decoded[0, :, 0].cpu().numpy()
        if volumes:
            spacing = self.instrument.spacing_mm
            plot_traversals(volumes, values, self.output_dir / "traversals.png", spacing)
            if self.gif:
                write_gif(volumes, self.output_dir / "traversals.gif")
        logger.info("Done: look at manipulation.md in %s", self.output_dir.resolve())


def _measurable(
    attributes: Sequence[str], measured_as: Mapping[str, str], known: Sequence[str]
) -> dict[str, str]:
    """Return the measured name of every attribute that has one."""
    found = {name: measured_as.get(name, name) for name in attributes}
    for name, feature in found.items():
        if name in measured_as and feature not in known:
            raise CohortError(
                f"Attribute '{name}' is to be measured as '{feature}', which cannot be measured; "
                f"{suggestion(feature, known)}"
            )
    return {name: feature for name, feature in found.items() if feature in known}


def _keeping(data: Iterable[Mapping[str, Any]], masks: list[Tensor]) -> Iterator[Mapping[str, Any]]:
    """Pass batches on and keep their masks (B, 1, *S)."""
    for batch in data:
        masks.append(torch.as_tensor(batch["mask"]).as_subclass(Tensor).cpu())
        yield batch


def _best_axis(codes: Array, values: Array) -> int:
    known = np.isfinite(values)
    spread = codes[known].std(axis=0)
    covariance = (codes[known] - codes[known].mean(0)).T @ (values[known] - values[known].mean())
    return int(np.argmax(np.abs(covariance) / np.where(spread > 0, spread, np.inf)))
