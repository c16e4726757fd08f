"""From a trained Attri-VAE to what asking it for other attributes does, re-measured."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medvae.attributes import feature_names
from medvae.data import Cohort, CohortError, check_overwrite, write_text
from medvae.data.measured import MaskLabels
from medvae.engines import PrepareAttributes
from medvae.explain import Instrument, Readout
from medvae.explain.instrument import measurable
from medvae.explain.manipulation import decode_along
from medvae.explain.readout import best_axis
from medvae.metrics import Agreement, agreement, manipulation_report, real_range
from medvae.metrics.intervals import json_number
from medvae.networks import AttriVAE
from medvae.report.evaluation import predict
from medvae.report.remeasured import Remeasured, Sweep, ready_instrument, rendered_readout
from medvae.report.sweeps import manipulation_table, plot_sweeps
from medvae.report.traversals import plot_traversals, write_gif

__all__ = ["ManipulationEvaluation"]

Array = npt.NDArray[np.float64]

logger = logging.getLogger("medvae")


class ManipulationEvaluation:
    """Moves every attribute's axis over its real range, decodes, and measures what was decoded.

    Decoded images have no mask, so a small network is trained to segment them
    (`medvae.explain.Instrument`) on the training subjects' real images and masks. Writes
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
        instrument_steps: batches to train it on.
        calibrated: ask by what the decoder renders of training subjects, as the instrument measures
            it, and not by what the encoder reads; written as `traversal.json` beside the
            instrument, for inference.
        reach: how far axes are moved at most when calibrated, in standard deviations of the
            training subjects' codes.
        follow: share of what goes together in the training subjects by which the other attributes'
            axes move along; see `medvae.explain.traverse`.
        follow_of: of single attributes another share; names that are no attributes are ignored.
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
        instrument_steps: int = 1000,
        calibrated: bool = False,
        reach: float = 3.0,
        follow: float = 0.0,
        follow_of: Mapping[str, float] | None = None,
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
        self.output_dir, self.instrument_path = Path(output_dir), Path(instrument)
        self.instrument_steps = instrument_steps
        self.tied, self.sweep_steps, self.subjects_scored = tied, sweep_steps, subjects_scored
        self.shown, self.gif = shown, gif
        self.n_resamples, self.seed, self.split = n_resamples, seed, split
        self.overwrite, self.progress = overwrite, progress
        dims = len(network.image_size)
        self.measured = measurable(
            cohort.attribute_names, measured_as or {}, feature_names(dims, mask_labels)
        )
        self._check()
        self.calibrated, self.reach = calibrated, reach
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
        self.remeasured = Remeasured(network, self.instrument, progress)
        self.follow = {name: float(follow) for name in cohort.attribute_names}
        self.follow |= {k: float(v) for k, v in (follow_of or {}).items() if k in self.follow}

    def run(self) -> dict[str, Any]:
        """Evaluate, write everything and return what manipulation.json holds."""
        check_overwrite([self.output_dir / "manipulation.json"], self.overwrite)
        masks: list[Tensor] = []
        predictions = predict(
            self.network, _keeping(self.data, masks), self.prepare_batch, self.device, self.progress
        )
        images, decoded = map(torch.from_numpy, (predictions.images, predictions.reconstructions))
        classes = self.instrument.classes(torch.cat(masks))
        labelmaps = np.array(self.instrument.values)[classes.numpy()]
        train, scored = self._rows()
        ready_instrument(
            self.instrument, self.instrument_path, images[train], classes[train],
            self.instrument_steps, self.seed, self.progress,
        )  # fmt: skip
        training = self.remeasured.measure(images[train], labelmaps[train])
        readout = self._readout(predictions.codes[train], train)
        asked = np.asarray(
            readout.scaler.inverse(np.linspace(readout.span[0], readout.span[1], self.sweep_steps))
        )
        if self.calibrated:
            ranges = dict(zip(self.measured.values(), real_range(training).T, strict=True))
            readout = rendered_readout(
                self.remeasured, readout, self.measured, predictions.codes[train], images[train],
                ranges, self.reach,
            )  # fmt: skip
            readout.save(self.instrument_path.with_name("traversal.json"))
        codes = self._codes(readout, asked)
        sweeps = [
            self._sweep(readout, codes[:, column], images[scored], labelmaps[scored], k)
            for k, column in enumerate(self._columns)
        ]
        result = self._report(np.array([sweep.measured for sweep in sweeps]), training, scored)
        own = self.remeasured.measure(images[scored], labelmaps[scored])
        kinds = {"image": images[scored], "reconstruction": decoded[scored]}
        found = {key: agreement(self.remeasured.measure(v), own) for key, v in kinds.items()}
        _add_images(result, sweeps, found)
        for name, column in zip(self.measured, self._columns, strict=True):
            entry = result["attributes"][name]
            entry["measured_as"], entry["follow"] = self.measured[name], self.follow[name]
            entry["asked"] = [float(v) for v in asked[:, column]]
            entry["codes"] = [json_number(v) for v in codes[:, column]]
        self._write(result, sweeps)
        self._show(result, readout, images)
        logger.info("Done: look at manipulation.md in %s", self.output_dir.resolve())
        return result

    @property
    def _columns(self) -> list[int]:
        """Where the measured attributes are among all."""
        return [self.cohort.attribute_names.index(name) for name in self.measured]

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

    def _readout(self, codes: Array, train: npt.NDArray[np.intp]) -> Readout:
        """Fit codes to attributes on the training rows, on tied axes or the best correlated."""
        names = list(self.cohort.attribute_names)
        attributes = self.cohort.subjects[names].to_numpy(dtype=float)[train]
        axes: list[int] | None = None
        if not self.tied:
            scaled = self.cohort.scaler.transform(attributes)
            axes = [best_axis(codes, column) for column in scaled.T]
        found = Readout.fit(self.cohort.scaler, codes, attributes, axes)
        found.follow = tuple(self.follow.values())
        return found

    def _codes(self, readout: Readout, asked: Array) -> Array:
        """Return the codes (V, K) of what is asked for, none beyond what was calibrated."""
        codes = readout.codes(asked)
        if self.calibrated:
            ends = np.array([[curve.codes[0], curve.codes[-1]] for curve in readout.curves])
            codes = codes.clip(ends[:, 0], ends[:, 1])
        return codes

    def _sweep(
        self, readout: Readout, codes: Array, images: Tensor, labelmaps: npt.NDArray[Any], k: int
    ) -> Sweep:
        """Move the k-th measured attribute; NaN throughout where its axis reads nothing."""
        if np.isfinite(codes).all():
            name, axis = self.instrument.names[k], readout.axes[self._columns[k]]
            return self.remeasured.sweep(readout, axis, codes, images, name, labelmaps)
        shape = (len(images), len(codes), len(self.measured))
        return Sweep(np.full(shape, np.nan), *np.full((3, len(images)), np.nan))

    def _report(self, measured: Array, training: Array, scored: npt.NDArray[np.intp]) -> dict:
        table, patient = self.cohort.subjects, self.cohort.patient
        patients = table[patient if patient in table else "id"].to_numpy()[scored]
        names, scaler = list(self.measured), self.cohort.scaler
        return {
            "split": self.split,
            "subjects": len(scored),
            "sweep_steps": self.sweep_steps,
            "calibrated": self.calibrated,
            "not_measurable": [n for n in self.cohort.attribute_names if n not in names],
            **manipulation_report(
                measured,
                training,
                names,
                patients,
                self.n_resamples,
                seed=self.seed,
                log=[name in scaler.log for name in names],
            ),
        }

    def _write(self, result: Mapping[str, Any], sweeps: Sequence[Sweep]) -> None:
        write_text(self.output_dir / "manipulation.json", json.dumps(result, indent=1) + "\n")
        write_text(self.output_dir / "manipulation.md", manipulation_table(result))
        entries = result["attributes"]
        plot_sweeps(
            {name: sweeps[k].measured[:, :, k] for k, name in enumerate(self.measured)},
            {name: entries[name]["asked"] for name in self.measured},
            {name: entries[name]["real_range"] for name in self.measured},
            self.output_dir / "sweeps.png",
        )

    def _show(self, result: Mapping[str, Any], readout: Readout, images: Tensor) -> None:
        """Write one subject's traversals."""
        ids = list(self.cohort.subjects["id"])
        row = self._rows()[1][0] if self.shown is None else ids.index(self.shown)
        values, volumes = {}, {}
        for name, column in zip(self.measured, self._columns, strict=True):
            entry, axis = result["attributes"][name], readout.axes[column]
            if None not in entry["codes"]:
                values[name], one = entry["asked"], images[[row]].to(self.device)
                along = readout.direction(axis, self.network.latent_dim)
                decoded = decode_along(self.network, one, axis, entry["codes"], along)
                volumes[name] = decoded[0, :, 0].cpu().numpy()
        if volumes:
            spacing = self.instrument.spacing_mm
            plot_traversals(volumes, values, self.output_dir / "traversals.png", spacing)
        if volumes and self.gif:
            write_gif(volumes, self.output_dir / "traversals.gif")


def _add_images(
    result: dict[str, Any], sweeps: Sequence[Sweep], found: Mapping[str, Agreement]
) -> None:
    """Add, by attribute and on average, what the images say and how well they are measured."""
    table = {key: [_mean(getattr(sweep, key)) for sweep in sweeps] for key in Sweep._fields[1:]}
    rows = [*result["attributes"].values(), result["mean"]]
    for key, values in table.items():
        for row, value in zip(rows, [*values, _mean(np.array(values))], strict=True):
            row[key] = json_number(value)
    for row, k in zip(rows, [*range(len(sweeps)), None], strict=True):
        row["instrument"] = {
            kind: {
                key: json_number(_mean(values) if k is None else values[k])
                for key, values in agreed._asdict().items()
            }
            for kind, agreed in found.items()
        }


def _mean(values: Array) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")


def _keeping(data: Iterable[Mapping[str, Any]], masks: list[Tensor]) -> Iterator[Mapping[str, Any]]:
    """Pass batches on and keep their masks (B, 1, *S)."""
    for batch in data:
        masks.append(torch.as_tensor(batch["mask"]).as_subclass(Tensor).cpu())
        yield batch
