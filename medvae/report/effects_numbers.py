"""From a trained beta-Intact-VAE of numbers to their effects, beside simple estimators."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from medvae.data import Roles, check_overwrite, write_text
from medvae.engines import TreatmentData, known_columns, read_history
from medvae.engines.intact import Prepare
from medvae.explain import from_covariates
from medvae.metrics import (
    effect_report,
    estimate_ate,
    outside_overlap,
    overlap_report,
    pehe,
    prediction_r2,
    propensity,
)
from medvae.metrics.intervals import json_number
from medvae.networks import IntactVAE, load_weights
from medvae.report.balance import balance_report
from medvae.report.effects_checks import check_numbers, known_outcomes
from medvae.report.effects_simple import estimated_images, simple_effects
from medvae.report.effects_table import numbers_table
from medvae.report.overlap import covariate_columns, patients_of
from medvae.report.plots import plot_curves, plot_estimates, plot_predictions

__all__ = ["NumberEvaluation"]

Array = npt.NDArray[np.float64]
DRAWS, BATCH = 64, 64


class _Subjects(NamedTuple):
    """All rows of a cohort: arms, covariates' columns, patients, outside the overlap, test."""

    arms: npt.NDArray[np.int64]
    columns: Array
    patients: npt.NDArray[Any]
    outside: npt.NDArray[np.bool_]
    test: npt.NDArray[np.bool_]


class NumberEvaluation:
    """Effects of every arm on numbers, and how well new subjects' numbers are predicted.

    All is of the prior: what covariates and, where it is one, the image tell. The observed outcome,
    which its encoder would repeat, is only compared with. Writes `metrics.json`, `metrics.md`,
    `effects.csv` (every subject of all splits: the outcome, and its mean, sd and effect in each
    arm; the sd is of the code and of the noise), `effects.png`, `predictions.png` and `curves.png`,
    all in the outcomes' own units. Propensity, overlap and simple estimators see the columns of the
    covariates, and no image. Intervals are over patients, with the network as it is.

    Args:
        network: an `IntactVAE` with `outcome_dim`.
        roles: of its cohort.
        data: batches of all subjects, in the order of the cohort's table.
        prepare_batch: as in training.
        output_dir: where results go.
        checkpoint: the weights to load; None evaluates the network as it is.
        device: where to compute.
        history: the CSV of the training's curves; None plots none.
        beta: that the network was trained with, for the record.
        groups: columns of the table for each of whose values the mean effect is given, too.
        true_outcomes: columns of the outcomes under every arm, by the arm, in the outcomes' order,
            where they are known, as in semi-synthetic tables; None: they are not.
        n_resamples: for intervals.
        seed: of resamples and draws.
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
        beta: float | None = None,
        groups: Sequence[str] = (),
        true_outcomes: Mapping[Any, Sequence[str]] | None = None,
        n_resamples: int = 500,
        seed: int = 0,
        overwrite: bool = False,
    ) -> None:
        self.network: IntactVAE = getattr(network, "module", network)  # under DDP
        self.roles, self.data, self.prepare_batch = roles, data, prepare_batch
        self.output_dir, self.checkpoint, self.device = Path(output_dir), checkpoint, device
        self.history, self.beta, self.groups = history, beta, groups
        self.true_outcomes, self.n_resamples = true_outcomes, n_resamples
        self.seed, self.overwrite = seed, overwrite

    def run(self) -> dict[str, Any]:
        """Evaluate, write everything and return what metrics.json holds.

        Raises:
            CohortError: if the folder holds results already and `overwrite` is false, and see
                `check_numbers`.
        """
        check_overwrite([self.output_dir / "metrics.json"], self.overwrite)
        check_numbers(self.roles, self.groups, self.true_outcomes)
        if self.checkpoint is not None:
            load_weights(self.network, self.checkpoint, self.device)
        data = TreatmentData.gathered(self.data, self.prepare_batch)
        mean, sd = self._predicted(data)
        subjects = self._subjects()
        metrics = self._metrics(data, mean, subjects)
        write_text(self.output_dir / "metrics.json", json.dumps(metrics, indent=1) + "\n")
        write_text(self.output_dir / "metrics.md", numbers_table(metrics))
        self._write_subjects(mean, sd, subjects)
        plot_estimates(_estimates(metrics), self.output_dir / "effects.png")
        own, test = mean[subjects.arms, np.arange(len(subjects.arms))], subjects.test
        names = np.array([str(arm) for arm in self.roles.arms])[subjects.arms]
        plot_predictions(
            self.roles.numbers()[test],
            own[test],
            self.roles.outcomes,
            names[test].tolist(),
            self.output_dir / "predictions.png",
        )
        if self.history is not None and Path(self.history).exists():
            plot_curves(read_history(self.history), self.output_dir / "curves.png")
        return metrics

    def _predicted(self, data: TreatmentData) -> tuple[Array, Array]:
        """Return mean and sd of every subject's outcomes in every arm, own units, (T, N, Q)."""
        scaler, noise = self.roles.outcome, self.network.noise_log_var.detach().exp().cpu()
        assert scaler is not None
        means, sds = [], []
        for arm in range(len(self.roles.arms)):
            parts = [
                from_covariates(
                    self.network, part.covariates, arm, samples=DRAWS, context=part.image
                )
                for rows in torch.arange(len(data.outcome)).split(BATCH)
                for part in [data.rows(rows).to(self.device)]
            ]
            variance = torch.cat([found.uncertainty.cpu() for found in parts]).square() + noise
            mean = torch.cat([found.outcome.cpu() for found in parts]).double().numpy()
            means.append(scaler.inverse(mean))
            sds.append(variance.double().sqrt().numpy() * scaler.sd)
        return np.stack(means), np.stack(sds)

    def _subjects(self) -> _Subjects:
        table = self.roles.cohort.subjects
        arms, covariates = self.roles.values(table)
        columns, patients = covariate_columns(self.roles, covariates), patients_of(self.roles)
        outside = outside_overlap(propensity(columns, arms, patients))
        return _Subjects(arms, columns, patients, outside, (table["split"] == "test").to_numpy())

    def _metrics(self, data: TreatmentData, mean: Array, subjects: _Subjects) -> dict[str, Any]:
        table, arms = self.roles.cohort.subjects, [str(arm) for arm in self.roles.arms]
        scored = subjects.test & np.isfinite(self.roles.numbers()).all(1)
        held_out = data.rows(torch.from_numpy(scored))
        known, people = known_columns(self.network, held_out, self.device), subjects.patients
        return {
            "split": "test",
            "subjects": {s: int((table["split"] == s).sum()) for s in ("train", "val", "test")},
            "treatment": {"column": self.roles.treatment, "arms": arms},
            "covariates": [*self.roles.names, *(["image"] if data.image is not None else [])],
            "beta": self.beta,
            "overlap": overlap_report(subjects.columns, subjects.arms, arms, people),
            "balance": balance_report(
                self.network, held_out, known, people[scored], arms, self.seed, self.device
            ),
            "outcomes": {
                name: {
                    "factual": self._factual(k, mean, subjects),
                    "effects": {
                        arm: self._effects(k, number, mean, subjects)
                        for number, arm in enumerate(arms[1:], 1)
                    },
                }
                for k, name in enumerate(self.roles.outcomes)
            },
        }

    def _factual(self, k: int, mean: Array, subjects: _Subjects) -> dict[str, Any]:
        """How well the outcome is told in the arm that each test subject was in."""
        assert self.roles.outcome is not None
        values, name = self.roles.numbers()[:, k], self.roles.outcomes[k]
        rows = subjects.test & np.isfinite(values)
        y, patients = values[rows, None], subjects.patients[rows]
        found = mean[subjects.arms, np.arange(len(values)), k][rows, None]
        constant = np.full_like(found, self.roles.outcome.mean[k])
        r2, chance = (
            prediction_r2(guess, y, [name], patients, count, seed=self.seed)["attributes"][name]
            for guess, count in ((found, self.n_resamples), (constant, 0))
        )
        squares, worst = ((guess - y)[:, 0] ** 2 for guess in (found, constant))
        errors = estimate_ate(squares, patients, self.n_resamples, seed=self.seed)
        rmse = dict(zip(("value", "low", "high"), map(json_number, np.sqrt(errors)), strict=True))
        return {
            "r2": r2 | {"chance": chance["value"]},
            "rmse": rmse | {"chance": json_number(np.sqrt(worst.mean()))},
        }

    def _effects(self, k: int, arm: int, mean: Array, subjects: _Subjects) -> dict[str, Any]:
        """The effect of an arm on one outcome, by network, groups and simple estimators."""
        arms, columns, patients, outside, test = subjects
        values, effects = self.roles.numbers()[:, k], mean[arm, :, k] - mean[0, :, k]
        truth = known_outcomes(self.roles, self.true_outcomes)
        exact = None if truth is None else truth[arm, :, k] - truth[0, :, k]
        spread = float(np.nanstd(values[(arms == 0) | (arms == arm)]))

        def report(rows: npt.NDArray[np.bool_], sd: float | None = None) -> dict[str, Any]:
            known = None if exact is None else exact[rows]
            given = effects[rows], known, outside[rows], patients[rows]
            return effect_report(*given, sd, self.n_resamples, self.seed)

        table = self.roles.cohort.subjects
        groups = {
            column: {
                str(level): report(test & (table[column] == level).to_numpy())["all"]
                for level in sorted(table[column][test].dropna().unique(), key=str)
            }
            for column in self.groups
        }
        found = {"network": report(test, spread), "groups": groups}
        found |= simple_effects(values, arms, columns, patients, arm, test)
        if exact is not None:
            found["truth"] = self._against_truth(values, effects, exact, arm, subjects)
        return found

    def _against_truth(
        self, values: Array, effects: Array, exact: Array, arm: int, subjects: _Subjects
    ) -> dict[str, Any]:
        """Errors of all methods, on the test subjects who were in either of the two arms."""
        arms, columns, patients, _, test = subjects
        pair = ((arms == 0) | (arms == arm)) & np.isfinite(values)
        asked, treated = test[pair], (arms[pair] == arm).astype(int)
        wanted, y = exact[pair][asked], values[pair, None]

        def entry(found: Array) -> dict[str, float]:
            error = abs(float(found.mean() - wanted.mean()))
            return {"ate": float(found.mean()), "error": error, "pehe": pehe(found, wanted)}

        report: dict[str, Any] = {"true_ate": float(wanted.mean())}
        report["network"] = entry(effects[pair][asked])
        sign = 1 - 2.0 * treated[asked]
        for name, other in estimated_images(y, treated, columns[pair], patients[pair], asked):
            report[name] = entry(sign * (other - y[asked])[:, 0])
        return report

    def _write_subjects(self, mean: Array, sd: Array, subjects: _Subjects) -> None:
        table = self.roles.cohort.subjects
        cells = table[["id", "split", self.roles.treatment]].assign(
            outside_overlap=subjects.outside
        )
        found: dict[str, Array] = {}
        for k, name in enumerate(self.roles.outcomes):
            found[name] = self.roles.numbers()[:, k]
            for number, arm in enumerate(self.roles.arms):
                found[f"{name}_mean_{arm}"] = mean[number, :, k]
                found[f"{name}_sd_{arm}"] = sd[number, :, k]
            for number, arm in enumerate(self.roles.arms[1:], 1):
                found[f"{name}_effect_{arm}"] = mean[number, :, k] - mean[0, :, k]
        cells = pd.concat([cells, pd.DataFrame(found, cells.index)], axis=1)
        write_text(self.output_dir / "effects.csv", cells.to_csv(index=False))


def _estimates(metrics: Mapping[str, Any]) -> dict[str, dict[str, tuple[float | None, ...]]]:
    """Return value and bounds of every estimate, by outcome and arm, and by method."""
    panels = {}
    for name, outcome in metrics["outcomes"].items():
        for arm, effect in outcome["effects"].items():
            parts = {f"network, {key}": effect["network"][key] for key in ("all", "inside")}
            rows = {
                key: tuple(e.get(k) for k in ("ate", "low", "high")) for key, e in parts.items()
            }
            rows |= {key: (e["effect"], None, None) for key, e in effect["simple"].items()}
            if "truth" in effect:
                rows["truth"] = (effect["truth"]["true_ate"], None, None)
            panels[f"{name}\n{arm} instead of {metrics['treatment']['arms'][0]}"] = rows
    return panels
