"""From a trained beta-Intact-VAE to effects beside simple estimators, and the images' quality."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.data import MetaTensor
from monai.utils import ensure_tuple_rep
from torch import Tensor

from medvae.data import CohortError, Roles, check_overwrite, write_text
from medvae.data.output import file_stem
from medvae.engines import TreatmentData, read_history
from medvae.metrics import (
    ate,
    effect_report,
    estimate_ate,
    outside_overlap,
    overlap_report,
    pehe,
    propensity,
    psnr,
    region_means,
)
from medvae.networks import IntactVAE, load_weights
from medvae.report.balance import balance_report
from medvae.report.effects_checks import check_evaluation, check_regions
from medvae.report.effects_measured import MeasuredEffects
from medvae.report.effects_simple import estimated_images, simple_effects
from medvae.report.effects_table import effects_table
from medvae.report.examples import best_median_worst, write_examples
from medvae.report.overlap import covariate_columns, patients_of
from medvae.report.plots import plot_curves, plot_series
from medvae.report.quality import decoded, quality_report
from medvae.transforms import SaveSubjectd
from medvae.transforms.masks import inside

__all__ = ["EffectEvaluation"]

Array = npt.NDArray[np.float64]
Prepare = Callable[..., tuple[Tensor, Mapping[str, Tensor]]]
SHOWN = 6


class EffectEvaluation:
    """Effects of every arm against the control on test subjects, and how good the images are.

    Writes `metrics.json`, `metrics.md`, `effects.csv` (each subject), `counterfactuals.png`,
    `curves.png` and, for every arm, maps of the mean effect with the bounds of its interval as
    NIfTI on the network's grid, in the unit of the network's images. Where items have the key
    `counterfactual` (see `medvae.transforms.KnownEffectd`), all is compared with the truth; where
    they have `control_mask`, the region is of that mask, as it must not depend on the arm. In 3D
    the best, the median and the worst reconstructed subject go to `examples/` as NIfTI, under every
    arm. Intervals are over patients, with the network as it is: they leave out what another
    training would have found.

    Args:
        network: an `IntactVAE`.
        roles: of its cohort.
        data: batches of all subjects, in the order of the cohort's table.
        prepare_batch: as in training.
        output_dir: where results go.
        checkpoint: the weights to load; None evaluates the network as it is.
        device: where to compute.
        history: the CSV of the training's curves; None plots none.
        region: the mask's values of the region that effects are averaged in; None: all but 0.
            Where nobody has a mask it is the whole image. Test subjects without the region are
            counted and left out.
        beta: that the network was trained with, for the record.
        spacing_mm: of the network's grid.
        window: intensities that 0 and 1 stand for, in `examples/`; None leaves them so.
        groups: columns of the table for each of whose values the mean effect map is written, too,
            with the effect in the region.
        measuring: measures attributes on decoded images, too; None: none. It needs masks.
        judge_steps: see `quality_report`.
        n_resamples: for intervals.
        seed: of resamples and classifier.
        overwrite: replace results of an earlier evaluation.
    """

    def __init__(
        self,
        network: Any,
        roles: Roles,
        data: Iterable[Mapping[str, Any]],
        prepare_batch: Prepare,
        output_dir: str | Path,
        checkpoint: str | Path | None = None,
        device: str | torch.device = "cpu",
        history: str | Path | None = None,
        region: Sequence[int] | None = None,
        beta: float | None = None,
        spacing_mm: Sequence[float] | float | None = None,
        window: Sequence[float] | None = None,
        groups: Sequence[str] = (),
        measuring: MeasuredEffects | None = None,
        judge_steps: int = 400,
        n_resamples: int = 500,
        seed: int = 0,
        overwrite: bool = False,
    ) -> None:
        self.network: IntactVAE = getattr(network, "module", network)  # under DDP
        self.roles, self.data, self.prepare_batch = roles, data, prepare_batch
        self.output_dir, self.checkpoint, self.device = Path(output_dir), checkpoint, device
        self.history, self.region, self.beta = history, region, beta
        self.spacing_mm = 1.0 if spacing_mm is None else spacing_mm
        self.window, self.groups = window, groups
        self.measuring = measuring
        self.judge_steps, self.n_resamples = judge_steps, n_resamples
        self.seed, self.overwrite = seed, overwrite

    def run(self) -> dict[str, Any]:
        """Evaluate, write everything and return what metrics.json holds.

        Raises:
            CohortError: if the folder holds results already and `overwrite` is false; if masks are
                missing, see `check_evaluation`, or no mask of an arm or of the test split has the
                region.
        """
        check_overwrite([self.output_dir / "metrics.json"], self.overwrite)
        check_evaluation(self.roles.cohort.subjects, self.region, self.groups)
        if self.checkpoint is not None:
            load_weights(self.network, self.checkpoint, self.device)
        subjects, regions, masks, truth = self._gather()
        table = self.roles.cohort.subjects
        test = torch.tensor((table["split"] == "test").tolist())
        arms = subjects.treatment.numpy()
        parts = {f"of the arm {arm!r}": arms == n for n, arm in enumerate(self.roles.arms)}
        parts["of the test split"] = test.numpy()
        check_regions(regions, parts, self.region)
        metrics = self._metrics(subjects, regions, truth, test)
        if self.measuring is not None:
            metrics["measured"] = self._measure(self.measuring, subjects, masks, truth, test)
        write_text(self.output_dir / "metrics.json", json.dumps(metrics, indent=1) + "\n")
        write_text(self.output_dir / "metrics.md", effects_table(metrics))
        self._plot(subjects.rows(test), test)
        if subjects.outcome.ndim == 5:
            self._show_examples(subjects.rows(test), test)
        return metrics

    def _gather(self) -> tuple[TreatmentData, Array, Tensor | None, Tensor | None]:
        """Return all subjects, their regions (N, *S), masks, and other outcomes where known."""
        parts: list[tuple[Tensor, ...]] = []
        regions, masks, others = [], [], []
        for batch in self.data:
            image, targets = self.prepare_batch(batch, "cpu")
            parts.append((image, targets["treatment"], targets["covariates"]))
            if "mask" in batch:
                masks.append(torch.as_tensor(batch["mask"]).as_subclass(Tensor))
                given = batch.get("control_mask", batch["mask"])
                regions.append(inside(given, self.region)[:, 0].double().numpy())
            else:
                regions.append(np.ones((len(image), *image.shape[2:])))
            if "counterfactual" in batch:
                others.append(torch.as_tensor(batch["counterfactual"]).as_subclass(Tensor))
        data = TreatmentData(*(torch.cat(column) for column in zip(*parts, strict=True)))
        every_mask = torch.cat(masks) if masks else None
        return data, np.concatenate(regions), every_mask, torch.cat(others) if others else None

    def _masked(self) -> bool:
        table = self.roles.cohort.subjects
        return "mask" in table and bool(table["mask"].notna().all())

    def _where(self) -> str:
        if not self._masked():
            return "the whole image"
        if self.region is None:
            return "the mask"
        return f"the values {', '.join(map(str, self.region))} of the mask"

    def _metrics(
        self, subjects: TreatmentData, regions: Array, truth: Tensor | None, test: Tensor
    ) -> dict[str, Any]:
        rows = test.numpy()
        arms, covariates = self.roles.values(self.roles.cohort.subjects)
        columns, patients = covariate_columns(self.roles, covariates), patients_of(self.roles)
        probabilities = propensity(columns, arms, patients)
        outside = outside_overlap(probabilities)
        names = [str(arm) for arm in self.roles.arms]
        held_out = subjects.rows(test)
        table = self.roles.cohort.subjects
        cells = table[["id", "split", self.roles.treatment]].assign(outside_overlap=outside)
        cells = cells[rows].reset_index(drop=True)
        metrics: dict[str, Any] = {
            "split": "test",
            "subjects": {s: int((table["split"] == s).sum()) for s in ("train", "val", "test")},
            "treatment": {"column": self.roles.treatment, "arms": names},
            "covariates": list(self.roles.names),
            "beta": self.beta,
            "unit": "intensity of the network's images",
            "region": self._where(),
            "overlap": overlap_report(columns, arms, names, patients),
            "balance": balance_report(
                self.network,
                held_out,
                columns[rows],
                patients[rows],
                self.roles.arms,
                self.seed,
                self.device,
            ),
            "effects": {},
        }
        values = region_means(subjects.outcome.numpy(), regions).mean(1)
        exact = None
        if truth is not None:
            exact = self._exact(held_out, regions[rows], truth[test])
        control = decoded(self.network, held_out, torch.zeros_like(held_out.treatment), self.device)
        for number_, name in enumerate(names[1:], 1):
            target = torch.full_like(held_out.treatment, number_)
            effects = (
                (decoded(self.network, held_out, target, self.device) - control).double().numpy()
            )
            measured = region_means(effects, regions[rows]).mean(1)
            cells[f"effect_{name}"] = measured
            metrics["effects"][name] = {
                "region": effect_report(
                    measured,
                    None if exact is None else exact.mean(1),
                    outside[rows],
                    patients[rows],
                    float(np.nanstd(values[(arms == 0) | (arms == number_)])),
                    self.n_resamples,
                    self.seed,
                ),
                "groups": self._groups(name, effects, measured, rows),
            } | simple_effects(values, arms, columns, patients, number_, rows)
            found = estimate_ate(
                effects, patients[rows], min(self.n_resamples, 200), seed=self.seed
            )
            self._write_maps(name, dict(zip(("mean", "low", "high"), found, strict=True)))
        metrics["quality"] = quality_report(
            self.network,
            subjects.rows(torch.tensor((table["split"] == "train").tolist())),
            held_out,
            regions[rows] if self._masked() else None,
            patients[rows].tolist(),
            self.judge_steps,
            self.n_resamples,
            self.seed,
            self.device,
        )
        if truth is not None and exact is not None:
            metrics["truth"] = self._against_truth(subjects, regions, truth, exact, test)
        write_text(self.output_dir / "effects.csv", cells.to_csv(index=False))
        return metrics

    def _measure(
        self,
        measuring: MeasuredEffects,
        subjects: TreatmentData,
        masks: Tensor | None,
        truth: Tensor | None,
        test: Tensor,
    ) -> dict[str, Any]:
        """Effects on attributes, by the arms' names."""
        table, patients = self.roles.cohort.subjects, patients_of(self.roles)
        if masks is None or len(masks) < len(table):
            raise CohortError(
                "Column 'mask' is not in the table, or empty for some subjects; the attributes of "
                "measured need a mask of everybody."
            )
        columns = covariate_columns(self.roles, self.roles.values(table)[1])
        train = (table["split"] == "train").to_numpy()
        found = measuring.report(
            self.network, subjects, masks, columns, patients, train, test.numpy(), truth
        )
        found["arms"] = {str(self.roles.arms[arm]): v for arm, v in found["arms"].items()}
        return found

    def _exact(self, held_out: TreatmentData, regions: Array, truth: Tensor) -> Array:
        """Return the known effect of arm 1 on the region's mean of every channel, (N, C)."""
        sign = (1 - 2.0 * held_out.treatment.numpy()).reshape(-1, 1)
        changes = truth.double().numpy() - held_out.outcome.double().numpy()
        exact: Array = sign * region_means(changes, regions)
        return exact

    def _against_truth(
        self, subjects: TreatmentData, regions: Array, truth: Tensor, exact: Array, test: Tensor
    ) -> dict[str, Any]:
        """Counterfactual images and effects beside the known ones, of all methods."""
        rows, held_out = test.numpy(), subjects.rows(test)
        own = held_out.treatment
        sign = (1 - 2.0 * own.numpy()).reshape(-1, 1)
        wanted, image = truth[test].double().numpy(), held_out.outcome.double().numpy()
        known = np.isfinite(exact).all(1)

        def entry(images: Array, base: Array) -> dict[str, float]:
            effects = sign * region_means(images - base, regions[rows])
            errors = np.abs(images - wanted)
            return {
                "ate": float(ate(effects[known]).mean()),
                "pehe": pehe(effects[known], exact[known]),
                "counterfactual_mae": float(errors.mean()),
                "region_mae": float(region_means(errors, regions[rows])[known].mean()),
            }

        factual, drawn = (
            decoded(self.network, held_out, arm, self.device).double().numpy()
            for arm in (own, 1 - own)
        )
        report: dict[str, Any] = {
            "true_ate": float(exact[known].mean()),
            "network": entry(drawn, factual),
            "image + network's difference": entry(image + drawn - factual, image),
            "no change": entry(image, image),
        }
        columns = covariate_columns(self.roles, self.roles.values(self.roles.cohort.subjects)[1])
        outcome, arms = subjects.outcome.numpy(), subjects.treatment.numpy()
        patients = patients_of(self.roles)
        for name, images in estimated_images(outcome, arms, columns, patients, rows):
            report[name] = entry(images, image)
        return report

    def _groups(self, arm: str, effects: Array, measured: Array, rows: Any) -> dict[str, Any]:
        """Write the mean map of every level of the groups, and return its effect in the region."""
        table = self.roles.cohort.subjects[rows]
        patients = patients_of(self.roles)[rows]
        report: dict[str, Any] = {}
        for column in self.groups:
            report[column] = {}
            for level in sorted(table[column].dropna().unique(), key=str):
                member = (table[column] == level).to_numpy()
                self._write_maps(arm, {f"mean_{column}_{level}": ate(effects[member])})
                found = effect_report(
                    measured[member],
                    patients=patients[member],
                    n_resamples=self.n_resamples,
                    seed=self.seed,
                )
                report[column][str(level)] = found["all"]
        return report

    def _write_maps(self, name: str, maps: Mapping[str, Array]) -> None:
        """Write maps (C, *S) of an arm by their names."""
        dims = len(self.network.image_size)
        steps = ensure_tuple_rep(self.spacing_mm, dims)
        affine = torch.diag(torch.tensor([*steps, *[1.0] * (4 - dims)], dtype=torch.float64))
        item: dict[Any, Any] = {"id": f"effect_{name}"}
        for key, values in maps.items():
            item[key] = MetaTensor(torch.from_numpy(values).float(), affine=affine)
        SaveSubjectd({key: file_stem(key) for key in maps}, self.output_dir)(item)

    def _plot(self, held_out: TreatmentData, test: Tensor) -> None:
        chosen = held_out.rows(torch.arange(min(SHOWN, len(held_out.outcome))))
        own, target = chosen.treatment, (chosen.treatment + 1) % len(self.roles.arms)
        rows = {
            "image": chosen.outcome,
            "own arm": decoded(self.network, chosen, own, self.device),
            "other arm": decoded(self.network, chosen, target, self.device),
        }
        rows["difference + 0.5"] = rows["other arm"] - rows["own arm"] + 0.5
        names = [str(arm) for arm in self.roles.arms]
        titles = {
            "image": self.roles.cohort.subjects["id"][test.numpy()].astype(str).tolist()[:SHOWN],
            "own arm": [names[arm] for arm in own.tolist()],
            "other arm": [names[arm] for arm in target.tolist()],
            "difference + 0.5": [""] * len(own),
        }
        images = {name: batch[:, 0].numpy() for name, batch in rows.items()}
        path = self.output_dir / "counterfactuals.png"
        plot_series(images, titles, path, self.spacing_mm)
        if self.history is not None and Path(self.history).exists():
            plot_curves(read_history(self.history), self.output_dir / "curves.png")

    def _show_examples(self, held_out: TreatmentData, test: Tensor) -> None:
        """Write three subjects, reconstructed under their own arm and decoded under every other."""
        ids = self.roles.cohort.subjects["id"][test.numpy()].astype(str).tolist()
        images, own = held_out.outcome.numpy(), held_out.treatment
        again = decoded(self.network, held_out, own, self.device).numpy()
        reasons = best_median_worst(ids, psnr(again, images))
        subjects: dict[str, dict[str, npt.NDArray[np.float32]]] = {}
        for subject in reasons:
            row = ids.index(subject)
            one = held_out.rows(torch.tensor([row]))
            found = {"image": images[row, :1], "reconstruction": again[row, :1]}
            for arm, name in enumerate(self.roles.arms):
                if arm != int(own[row]):
                    asked = torch.full_like(one.treatment, arm)
                    under = decoded(self.network, one, asked, self.device)
                    found[f"counterfactual_{file_stem(str(name))}"] = under[0, :1].numpy()
            subjects[subject] = found
        folder = self.output_dir / "examples"
        write_examples(folder, subjects, reasons, self.spacing_mm, self.window)
