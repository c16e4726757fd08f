"""From a trained encoder with subspaces to what each tells of every factor."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from tqdm import tqdm

from medvae.data import Factors, check_groups, check_overwrite, write_text
from medvae.engines import factor_scores, read_history
from medvae.metrics import Sample, leakage_report
from medvae.networks import Subspaces, load_weights
from medvae.report.leakage_plots import plot_embeddings, plot_leakage
from medvae.report.plots import plot_curves
from medvae.report.tables import markdown_table, number

__all__ = ["SubspaceEvaluation", "leakage_table"]

Array = npt.NDArray[np.float64]
Prepare = Callable[..., tuple[Tensor, Mapping[str, Tensor]]]


class SubspaceEvaluation:
    """What the subspaces tell of the factors, on test subjects, each number beside its chance.

    Writes `metrics.json`, `metrics.md`, `codes.csv`, `leakage.png`, `embeddings.png` and
    `curves.png` into the output folder.

    Args:
        network: with `encode` and `classify`, such as a `SubspaceEncoder`.
        factors: of its cohort. Probes are fitted on the codes of its training rows, balanced ones
            on those of its pool, whose rows the training may not have seen.
        data: batches of all subjects of `factors.pool`, in the order of its table.
        prepare_batch: as in training.
        output_dir: where results go.
        checkpoint: the weights to load; None evaluates the network as it is.
        device: where to compute.
        history: the CSV of the training's curves; None plots none.
        groups: columns of the table by whose values performance and leakage are reported, too.
        n_permutations: for chance levels.
        n_resamples: for intervals.
        seed: of permutations and resamples.
        overwrite: replace results of an earlier evaluation.
        progress: show progress bars.
    """

    def __init__(
        self,
        network: nn.Module,
        factors: Factors,
        data: Iterable[Mapping[str, Any]],
        prepare_batch: Prepare,
        output_dir: str | Path,
        checkpoint: str | Path | None = None,
        device: str | torch.device = "cpu",
        history: str | Path | None = None,
        groups: Sequence[str] = (),
        n_permutations: int = 100,
        n_resamples: int = 500,
        seed: int = 0,
        overwrite: bool = False,
        progress: bool = True,
    ) -> None:
        self.network: Any = getattr(network, "module", network)  # under DDP
        self.factors, self.data = factors, data
        self.prepare_batch, self.device = prepare_batch, device
        self.output_dir, self.checkpoint = Path(output_dir), checkpoint
        self.history, self.groups, self.seed = history, groups, seed
        self.resampling = {"n_permutations": n_permutations, "n_resamples": n_resamples}
        self.overwrite, self.progress = overwrite, progress

    def run(self) -> dict[str, Any]:
        """Evaluate, write everything and return what metrics.json holds.

        Raises:
            CohortError: if the folder holds results already and `overwrite` is false, or a group
                is no column.
        """
        check_overwrite([self.output_dir / "metrics.json"], self.overwrite)
        check_groups(self.factors.pool, self.groups)
        if self.checkpoint is not None:
            load_weights(self.network, self.checkpoint, self.device)
        codes, logits = self._predict()
        metrics = self._metrics(codes, logits)
        write_text(self.output_dir / "metrics.json", json.dumps(metrics, indent=1) + "\n")
        write_text(self.output_dir / "metrics.md", leakage_table(metrics))
        table = self.factors.pool.subjects[["id", "split"]].copy()
        table[[f"z{d}" for d in range(codes.shape[1])]] = codes
        write_text(self.output_dir / "codes.csv", table.to_csv(index=False))
        self._plot(codes, metrics)
        return metrics

    def _predict(self) -> tuple[Array, Array]:
        """Return codes and logits of all subjects of the pool."""
        self.network.eval()
        found: list[tuple[Array, Array]] = []
        with torch.no_grad():
            for batch in tqdm(self.data, "evaluating", unit="batch", disable=not self.progress):
                image, _ = self.prepare_batch(batch, self.device)
                codes = self.network.encode(image)
                logits = self.network.classify(codes)
                found.append((codes.double().cpu().numpy(), logits.double().cpu().numpy()))
        codes, logits = (np.concatenate(column) for column in zip(*found, strict=True))
        return codes, logits

    def _rows(self, split: str, whole: bool = False) -> npt.NDArray[np.bool_]:
        """Say which rows of the pool are in a split of the cohort, or of the whole pool."""
        pool, kept = self.factors.pool.subjects, self.factors.cohort.subjects
        rows = (pool["split"] == split).to_numpy()
        return rows if whole else rows & pool["id"].isin(kept["id"]).to_numpy()

    def _sample(self, codes: Array, rows: npt.NDArray[np.bool_]) -> Sample:
        cohort = self.factors.pool
        table = cohort.subjects[rows]
        patients = table[cohort.patient if cohort.patient in table else "id"].to_numpy()
        return Sample(codes[rows], self.factors.values(table), patients)

    def _metrics(self, codes: Array, logits: Array) -> dict[str, Any]:
        train, test = self._rows("train"), self._rows("test")
        table = self.factors.pool.subjects[test]
        scores = factor_scores(
            self.factors, torch.from_numpy(logits[test]), self.factors.values(table)
        )
        report = leakage_report(
            self._sample(codes, train),
            self._sample(codes, test),
            self._slices(),
            self.factors.kinds,
            pool=self._sample(codes, self._rows("train", whole=True)),
            groups={name: table[name].tolist() for name in self.groups},
            seed=self.seed,
            progress=self.progress,
            **self.resampling,
        )
        splits = {split: int(self._rows(split).sum()) for split in ("train", "val", "test")}
        heads = {
            name: {
                "score": None if np.isnan(score) else score,
                "chance": 0.0 if kind == "continuous" else 1 / len(self.factors.classes[name]),
            }
            for (name, kind), score in zip(self.factors.kinds.items(), scores.values(), strict=True)
        }
        return {"split": "test", "subjects": splits, "heads": heads, "leakage": report}

    def _slices(self) -> dict[str, slice]:
        subspaces = Subspaces(self.factors.sizes)
        return {name: subspaces.slice(name) for name in subspaces.names}

    def _plot(self, codes: Array, metrics: Mapping[str, Any]) -> None:
        plot_leakage(metrics["leakage"], self.output_dir / "leakage.png")
        test = self._sample(codes, self._rows("test"))
        plot_embeddings(
            test.codes,
            self._slices(),
            test.factors,
            self.factors.kinds,
            self.output_dir / "embeddings.png",
            {name: [str(c) for c in values] for name, values in self.factors.classes.items()},
            self.seed,
        )
        if self.history is not None and Path(self.history).exists():
            plot_curves(read_history(self.history), self.output_dir / "curves.png")


def leakage_table(metrics: Mapping[str, Any]) -> str:
    """Return what the heads say and what every subspace tells, as Markdown."""
    heads = [
        [name, number(entry["score"]), number(entry["chance"])]
        for name, entry in metrics["heads"].items()
    ]
    report = metrics["leakage"]
    factors = list(report["factors"])
    text = "Scores of the heads: balanced accuracy, of continuous factors R².\n\n"
    text += markdown_table(["factor", "test", "chance"], heads)
    for bank in ("natural", "balanced"):
        rows = [
            [name, *(_points(report["matrix"][bank][name][factor]["best"]) for factor in factors)]
            for name in report["subspaces"]
        ]
        text += f"\nPoints above chance of the best of three probes, {bank} bank.\n\n"
        text += markdown_table(["subspace", *factors], rows)
    ranks = report["dependence"]["effective_rank"]
    rows = [[n, number(e["value"]), number(e.get("demand"))] for n, e in ranks.items()]
    text += "\nEffective dimensions.\n\n" + markdown_table(["subspace", "found", "demanded"], rows)
    return text


def _points(best: Mapping[str, Any]) -> str:
    text = number(best["points"], 0)
    if best.get("low") is not None:
        text += f" ({number(best['low'], 0)} to {number(best['high'], 0)})"
    if best.get("chance_p95") is not None:
        text += f", luck {number(best['chance_p95'], 0)}"
    return text
