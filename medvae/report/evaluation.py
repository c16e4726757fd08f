"""From a trained Attri-VAE and its cohort to numbers, a table and pictures."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from medvae.data import Cohort, check_overwrite, write_text
from medvae.engines import PrepareAttributes, class_probabilities, read_history
from medvae.explain import Readout
from medvae.metrics import (
    active_axes,
    classification_report,
    disentanglement_report,
    grain,
    prediction_r2,
    psnr,
    raw_attribute_classifier,
    rbf_mmd_chance,
    ssim,
)
from medvae.metrics.intervals import json_number
from medvae.networks import AttriVAE, load_weights
from medvae.report.examples import Examples, best_median_worst
from medvae.report.page import write_report
from medvae.report.plots import plot_codes, plot_curves, plot_ranked
from medvae.report.tables import metrics_table

__all__ = ["Evaluation", "Predictions", "predict"]

Array = npt.NDArray[np.float64]


class Predictions(NamedTuple):
    """What a model says about N subjects; rows in the order of the data.

    Attributes:
        codes: posterior means, shape (N, D).
        probabilities: of the classes, shape (N, C), two columns for a binary head; (N, 0) without.
        images: in [0, 1], shape (N, C, *S).
        reconstructions: same shape.
    """

    codes: Array
    probabilities: Array
    images: npt.NDArray[np.float32]
    reconstructions: npt.NDArray[np.float32]


def predict(
    network: AttriVAE,
    data: Iterable[Mapping[str, Any]],
    prepare_batch: PrepareAttributes,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> Predictions:
    """Encode, decode and classify every batch of `data` in evaluation mode, without gradients."""
    network.eval()
    rows: list[tuple[np.ndarray, ...]] = []
    with torch.no_grad():
        for batch in tqdm(data, desc="evaluating", unit="batch", disable=not progress):
            image, _ = prepare_batch(batch, device)
            mean, _ = network.encode(image)
            tensors = (mean, class_probabilities(network.classify(mean)), image)
            rows.append(tuple(t.float().cpu().numpy() for t in (*tensors, network.decode(mean))))
    codes, probabilities, images, reconstructions = (
        np.concatenate(c) for c in zip(*rows, strict=True)
    )
    return Predictions(codes.astype(float), probabilities.astype(float), images, reconstructions)


class Evaluation:
    """Metrics and plots of a trained model on the test split, each metric beside its chance level.

    Writes `metrics.json`, `metrics.md`, `predictions.csv`, `subjects.csv`, `curves.png`,
    `codes.png`, `reconstructions.png` and at last `report.html` into the output folder, and
    `readout.json` beside the model.

    Args:
        network: an `AttriVAE`.
        cohort: what it was trained on.
        data: batches of all of the cohort's subjects, in the order of its table.
        prepare_batch: as in training.
        checkpoint: the weights to load; None evaluates the network as it is.
        output_dir: where results go.
        readout: where the calibration of the axes goes.
        device: where to compute.
        tied: axis k belongs to attribute k; False takes the most informative axis of each, for
            models without attribute regularisation.
        history: the CSV of the training's curves; None plots none.
        n_permutations: for chance levels.
        n_resamples: for intervals.
        seed: of permutations and resamples.
        split: which subjects are scored.
        overwrite: replace results of an earlier evaluation.
        progress: show progress bars.
        examples: writes the best, the median and the worst reconstructed subject for the report;
            None writes none.
    """

    def __init__(
        self,
        network: AttriVAE,
        cohort: Cohort,
        data: Iterable[Mapping[str, Any]],
        prepare_batch: PrepareAttributes,
        output_dir: str | Path,
        checkpoint: str | Path | None = None,
        readout: str | Path | None = None,
        device: str | torch.device = "cpu",
        tied: bool = True,
        history: str | Path | None = None,
        n_permutations: int = 100,
        n_resamples: int = 500,
        seed: int = 0,
        split: str = "test",
        overwrite: bool = False,
        progress: bool = True,
        examples: Examples | None = None,
    ) -> None:
        self.examples = examples
        self.network = getattr(network, "module", network)  # under DDP
        self.cohort, self.data = cohort, data
        self.prepare_batch, self.device = prepare_batch, device
        self.output_dir, self.checkpoint = Path(output_dir), checkpoint
        self.readout, self.history = readout, history
        self.tied, self.split, self.seed = tied, split, seed
        self.n_permutations, self.n_resamples = n_permutations, n_resamples
        self.overwrite, self.progress = overwrite, progress

    def run(self) -> dict[str, Any]:
        """Evaluate, write everything and return what metrics.json holds.

        Raises:
            CohortError: if the folder holds results already and `overwrite` is false.
        """
        check_overwrite([self.output_dir / "metrics.json"], self.overwrite)
        if self.checkpoint is not None:
            load_weights(self.network, self.checkpoint, self.device)
        predictions = predict(
            self.network, self.data, self.prepare_batch, self.device, self.progress
        )
        readout = self._calibrate(predictions)
        metrics = self._metrics(predictions, readout)
        write_text(self.output_dir / "metrics.json", json.dumps(metrics, indent=1) + "\n")
        write_text(self.output_dir / "metrics.md", metrics_table(metrics))
        self._write_predictions(predictions, readout)
        self._write_subjects()
        self._plot(predictions, metrics)
        self._show_examples(predictions, readout)
        models = None if self.checkpoint is None else Path(self.checkpoint).parent
        write_report(self.output_dir, models)
        return metrics

    @property
    def _attributes(self) -> Array:
        names = list(self.cohort.attribute_names)
        return self.cohort.subjects[names].to_numpy(dtype=float)

    def _rows(self, *splits: str) -> npt.NDArray[np.bool_]:
        return self.cohort.subjects["split"].isin(splits).to_numpy()

    def _patients(self) -> np.ndarray:
        table, patient = self.cohort.subjects, self.cohort.patient
        return table[patient if patient in table else "id"].to_numpy()

    def _calibrate(self, predictions: Predictions) -> Readout:
        """Fit the axes' curves on the training rows; the test rows stay unseen."""
        rows = self._rows("train")
        if not rows.any():
            raise ValueError("no training rows in the cohort to calibrate the axes on")
        readout = Readout.fit(self.cohort.scaler, predictions.codes[rows], self._attributes[rows])
        if self.readout is not None and self.tied:
            readout.save(self.readout)
        return readout

    def _metrics(self, predictions: Predictions, readout: Readout) -> dict[str, Any]:
        rows = self._rows(self.split)
        scaled = self.cohort.scaler.transform(self._attributes)
        names = list(self.cohort.attribute_names)
        resampling = {"n_resamples": self.n_resamples, "seed": self.seed}
        patients = self._patients()[rows]
        metrics: dict[str, Any] = {
            "split": self.split,
            "subjects": {s: int(self._rows(s).sum()) for s in ("train", "val", "test")},
            "attributes": names,
            "log": list(self.cohort.scaler.log),
            "disentanglement": disentanglement_report(
                predictions.codes[rows],
                scaled[rows],
                names,
                axes=range(len(names)) if self.tied else None,
                patients=patients,
                n_permutations=self.n_permutations,
                progress=self.progress,
                **resampling,
            ),
            "latent_axes": _latent_axes(predictions.codes[rows], len(names) if self.tied else 0),
            "reconstruction": self._reconstruction(predictions, rows),
        }
        if self.tied:
            read = self.cohort.scaler.transform(readout.attributes(predictions.codes[rows]))
            metrics["prediction_r2"] = prediction_r2(
                read, scaled[rows], names, patients=patients, **resampling
            )
        if self.cohort.label is not None and predictions.probabilities.shape[1]:
            metrics["classification"] = self._classification(predictions, rows)
        return metrics

    def _reconstruction(self, predictions: Predictions, rows: np.ndarray) -> dict[str, Any]:
        images, reconstructions = predictions.images[rows], predictions.reconstructions[rows]
        result: dict[str, Any] = {}
        for name, values in (
            ("psnr_db", psnr(reconstructions, images)),
            ("ssim", ssim(reconstructions, images)),
        ):
            result[name] = {"mean": float(values.mean()), "sd": float(values.std())}
        train_mean = predictions.images[self._rows("train")].mean(0, keepdims=True)
        blank = np.broadcast_to(train_mean, images.shape)
        result["psnr_db"]["chance"] = float(psnr(np.ascontiguousarray(blank), images).mean())
        result["ssim"]["chance"] = float(ssim(np.ascontiguousarray(blank), images).mean())
        result["grain"] = {
            "value": json_number(grain(reconstructions)),
            "images": json_number(grain(images)),
            "chance": 3.0,  # of independent voxels
        }
        flat = images.reshape(len(images), -1)
        result["rbf_mmd"] = rbf_mmd_chance(
            reconstructions.reshape(len(images), -1),
            flat,
            n_permutations=self.n_permutations,
            seed=self.seed,
        )
        return result

    def _classification(self, predictions: Predictions, rows: np.ndarray) -> dict[str, Any]:
        items = self.cohort.datalist()
        label = np.array([item["label"] for item in items])
        scaled = self.cohort.scaler.transform(self._attributes)
        train, test = self._rows("train") & (label >= 0), rows & (label >= 0)
        reference = raw_attribute_classifier(
            scaled[train], label[train], scaled[test], self._patients()[train], self.seed
        )
        return classification_report(
            predictions.probabilities[test],
            label[test],
            patients=self._patients()[test],
            reference_probabilities=reference,
            n_resamples=self.n_resamples,
            seed=self.seed,
        )

    def _write_predictions(self, predictions: Predictions, readout: Readout) -> None:
        table = self.cohort.subjects[["id", "split"]].copy()
        table[[f"z{d}" for d in range(predictions.codes.shape[1])]] = predictions.codes
        if self.tied:
            read = readout.attributes(predictions.codes)
            for k, name in enumerate(self.cohort.attribute_names):
                table[f"read_{name}"] = read[:, k]
        for c, value in enumerate(self.cohort.classes):
            if predictions.probabilities.shape[1]:
                table[f"probability_{value}"] = predictions.probabilities[:, c]
        write_text(self.output_dir / "predictions.csv", table.to_csv(index=False))

    def _write_subjects(self) -> None:
        """Write what is true of each subject, beside which the report shows the predictions."""
        cohort = self.cohort
        wanted = ("id", "split", cohort.patient, cohort.label, "image", *cohort.attribute_names)
        names = [n for n in dict.fromkeys(wanted) if n is not None and n in cohort.subjects]
        write_text(self.output_dir / "subjects.csv", cohort.subjects[names].to_csv(index=False))

    def _show_examples(self, predictions: Predictions, readout: Readout) -> None:
        if self.examples is None:
            return
        rows, scores = self._by_reconstruction(predictions)
        ids = [str(name) for name in self.cohort.subjects["id"]]
        reasons = best_median_worst([ids[row] for row in rows], scores)
        images = {
            name: torch.from_numpy(predictions.images[ids.index(name)]).to(self.device)
            for name in reasons
        }
        folder = self.output_dir / "examples"
        tied = readout if self.tied else None
        self.examples.write(self.network, images, reasons, folder, tied)

    def _by_reconstruction(self, predictions: Predictions) -> tuple[np.ndarray, np.ndarray]:
        """Return the scored rows from the best reconstructed to the worst, and their PSNR in dB."""
        rows = np.flatnonzero(self._rows(self.split))
        scores = psnr(predictions.reconstructions[rows], predictions.images[rows])
        order = np.argsort(-scores, kind="stable")
        return rows[order], scores[order]

    def _plot(self, predictions: Predictions, metrics: Mapping[str, Any]) -> None:
        if self.history is not None and Path(self.history).exists():
            plot_curves(read_history(self.history), self.output_dir / "curves.png")
        report = metrics["disentanglement"]
        names: Sequence[str] = list(report["attributes"])
        columns = [self.cohort.attribute_names.index(name) for name in names]
        axes = [report["attributes"][name]["axis"] for name in names]
        scores = report["scores"]["interpretability"]["attributes"]
        plot_codes(
            predictions.codes[:, axes],
            self._attributes[:, columns],
            names,
            list(self.cohort.subjects["split"]),
            self.output_dir / "codes.png",
            [scores[name]["value"] for name in names],
            axes,
        )
        rows = self._rows(self.split)
        plot_ranked(
            predictions.images[rows],
            predictions.reconstructions[rows],
            self.cohort.subjects["id"][rows].tolist(),
            self.output_dir / "reconstructions.png",
        )


def _latent_axes(codes: Array, tied: int) -> dict[str, int]:
    """Count the axes, those that say something, and those of them that belong to no attribute."""
    active = active_axes(codes)
    counts = {"total": len(active), "active": active.sum(), "free": len(active) - tied}
    return {k: int(v) for k, v in (counts | {"active_free": active[tied:].sum()}).items()}
