"""Is the classifier worth explaining, and does the generator show what it sees?"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from medvae.data import CohortError, Factors, write_text
from medvae.data.split import patient_of
from medvae.metrics import classification_report, mean_with_interval, psnr, ssim
from medvae.networks import FrozenClassifier, StylEx
from medvae.networks.checkpoint import load_weights
from medvae.report.plots import plot_ranked
from medvae.report.stylex_images import Encoded, encode_images, in_batches, probabilities_of

__all__ = ["LEAST_AUC", "ClassifierEvaluation", "StylexEvaluation"]

LEAST_AUC = 0.8  # our own: below, there is little to explain
SHOWN = 8
CHECKED = 32  # test images from all of the table, which may be sorted by class
Prepare = Callable[..., tuple[Tensor, Mapping[str, Tensor]]]

logger = logging.getLogger("medvae")


class ClassifierEvaluation:
    """Whether a classifier fits the cohort and is good enough to be explained: `classifier.json`.

    Args:
        classifier: frozen.
        factors: with the labels of its heads, by the heads' names.
        data: batches of the test subjects, in the order of the table.
        prepare_batch: gives images (B, C, *S) in [0, 1].
        output_dir: where the result goes.
        device: where to compute.
        n_resamples: for intervals.
        n_permutations: for chance.
        task: head to explain; None: the first.
    """

    def __init__(
        self,
        classifier: FrozenClassifier,
        factors: Factors,
        data: Iterable[Mapping[str, Any]],
        prepare_batch: Prepare,
        output_dir: str | Path,
        device: str | torch.device = "cpu",
        n_resamples: int = 500,
        n_permutations: int = 100,
        task: str | None = None,
    ) -> None:
        self.classifier, self.factors = classifier, factors
        self.task = task or next(iter(classifier.heads))
        self.data, self.prepare_batch = data, prepare_batch
        self.output_dir, self.device = Path(output_dir), device
        self.n_resamples, self.n_permutations = n_resamples, n_permutations

    def run(self) -> dict[str, Any]:
        """Check the classifier, judge it on the test subjects and return what is written.

        Raises:
            CohortError: the classifier does not fit (see `FrozenClassifier.check`), or the head to
                explain predicts one class alone.
        """
        images = torch.cat([self.prepare_batch(batch, "cpu")[0] for batch in self.data])
        rows = np.linspace(0, len(images) - 1, min(CHECKED, len(images))).astype(int)
        self.classifier.check(images[rows].to(self.device))
        logits = in_batches(lambda part: self.classifier(part.to(self.device)), images)
        report: dict[str, Any] = {"images": len(images), "least_auc": LEAST_AUC, "heads": {}}
        for name in self.classifier.heads:
            shares = probabilities_of(logits.numpy(), self.classifier.heads, name)
            entry = judged(self.factors, name, shares, None, self.n_resamples, self.n_permutations)
            found = np.bincount(shares.argmax(1), minlength=shares.shape[1])
            entry["predicted"] = found.tolist()
            entry["verdict"] = _verdict(name, entry)
            report["heads"][name] = entry
            logger.log(
                logging.INFO if entry["worth_explaining"] else logging.WARNING, entry["verdict"]
            )
            if name == self.task and np.count_nonzero(found) < 2:
                raise CohortError(
                    f"The classifier predicts class {int(found.argmax())} of '{name}' for all "
                    f"{len(images)} test images; expected images of at least two classes, as "
                    "counterfactuals lead from one to the other."
                )
        write_text(self.output_dir / "classifier.json", json.dumps(report, indent=1) + "\n")
        return report


class StylexEvaluation:
    """How well a trained StylEx shows images to the classifier again: `stylex.json`.

    Args:
        network: a `StylEx`.
        classifier: that it was trained with.
        factors: with the labels of its heads.
        data: batches of the test subjects, in the order of the table.
        prepare_batch: as in training.
        output_dir: where `stylex.json` and `reconstructions.png` go.
        checkpoint: weights to load first; None: those that it has.
        device: where to compute.
        n_resamples: for intervals.
        n_permutations: for chance.
    """

    def __init__(
        self,
        network: StylEx,
        classifier: nn.Module,
        factors: Factors,
        data: Iterable[Mapping[str, Any]],
        prepare_batch: Prepare,
        output_dir: str | Path,
        checkpoint: str | Path | None = None,
        device: str | torch.device = "cpu",
        n_resamples: int = 500,
        n_permutations: int = 100,
    ) -> None:
        self.network, self.classifier, self.factors = network, classifier, factors
        self.data, self.prepare_batch = data, prepare_batch
        self.output_dir, self.checkpoint = Path(output_dir), checkpoint
        self.device = device
        self.n_resamples, self.n_permutations = n_resamples, n_permutations

    def run(self) -> dict[str, Any]:
        """Evaluate, write everything and return what `stylex.json` holds."""
        if self.checkpoint is not None:
            load_weights(self.network, self.checkpoint, self.device)
        found = encode_images(
            self.network, self.classifier, self.data, self.prepare_batch, self.device
        )
        patients = patients_of(self.factors, found.ids)
        images, again = found.images.numpy(), found.again.numpy()
        distance = np.abs(images - again).reshape(len(images), -1).mean(1)
        report: dict[str, Any] = {
            "images": len(images),
            "reconstruction": {
                "psnr_db": float(psnr(again, images).mean()),
                "ssim": float(ssim(again, images).mean()),
                "l1": mean_with_interval(distance, patients, self.n_resamples),
            },
            "heads": {name: self._head(found, name, patients) for name in self.network.heads},
        }
        write_text(self.output_dir / "stylex.json", json.dumps(report, indent=1) + "\n")
        plot_ranked(images, again, found.ids, self.output_dir / "reconstructions.png")
        return report

    def _head(self, found: Encoded, name: str, patients: npt.NDArray[np.object_]) -> dict[str, Any]:
        real = probabilities_of(found.logits, self.network.heads, name)
        again = probabilities_of(found.logits_again, self.network.heads, name)
        same = real.argmax(1) == again.argmax(1)
        shares = [np.bincount(p.argmax(1), minlength=p.shape[1]) / len(p) for p in (real, again)]
        moved = np.abs(real - again).max(1)
        return {
            "agreement": mean_with_interval(same, patients, self.n_resamples)
            | {"chance": float(shares[0] @ shares[1])},
            "probability_difference": mean_with_interval(moved, patients, self.n_resamples),
            "on_reconstructions": judged(
                self.factors, name, again, real, self.n_resamples, self.n_permutations
            ),
        }


def judged(
    factors: Factors,
    name: str,
    shares: npt.NDArray[np.float32],
    reference: npt.NDArray[np.float32] | None,
    n_resamples: int,
    n_permutations: int,
) -> dict[str, Any]:
    """Report class probabilities of the test subjects against their labels."""
    table = factors.cohort.subjects
    test = table[table["split"] == "test"]
    if name not in factors.names:
        return {"auc": {"value": None, "low": None, "high": None}, "reason": "no labels"}
    labels = factors.values(test)[:, factors.names.index(name)]
    return classification_report(
        shares,
        labels,
        np.asarray(patient_of(test, factors.cohort.patient)),
        reference,
        n_resamples,
        n_permutations,
    )


def patients_of(factors: Factors, ids: list[str]) -> npt.NDArray[np.object_]:
    """Return the patients of subjects by their ids."""
    table = factors.cohort.subjects
    names = dict(zip(map(str, table["id"]), patient_of(table, factors.cohort.patient), strict=True))
    return np.array([names[name] for name in ids], dtype=object)


def _verdict(name: str, entry: dict[str, Any]) -> str:
    auc = entry["auc"]
    value, low = auc["value"], auc["low"]
    entry["worth_explaining"] = value is not None and value >= LEAST_AUC
    if value is None:
        return f"The head '{name}' cannot be judged on this cohort ({entry['reason']})."
    interval = "" if low is None else f" ({low:.2f} to {auc['high']:.2f})"
    if value < LEAST_AUC:
        return (
            f"The head '{name}' has an AUC of {value:.2f}{interval}, below {LEAST_AUC}: it is too "
            "weak to be worth explaining, and what is found may be its noise; a classifier_scale "
            "other than that of its training would also do that."
        )
    return f"The head '{name}' has an AUC of {value:.2f}{interval} on the test subjects."
