"""What a GAN draws and what its subspaces hold, as pictures and numbers."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from torch import Tensor

from medvae.data import Cohort, Factors, write_text
from medvae.data.output import file_stem
from medvae.data.split import patient_of
from medvae.engines import classify, image_features, train_classifier
from medvae.explain import StyleEditInferer, SwapInferer, reconstruct, sample, swap_subspaces
from medvae.metrics import degraded, diversity, judge_swaps, psnr, realism_report, ssim
from medvae.networks import DisentangledGAN, FactorClassifier
from medvae.report.examples import best_median_worst, write_examples
from medvae.report.plots import plot_ranked, plot_series

__all__ = ["GanEvaluation", "SwapsMontaged"]

Array = npt.NDArray[np.float32]
Numbers = npt.NDArray[np.float64]
Rows = npt.NDArray[np.intp]
SHOWN = 8  # images in a row of the pictures
BATCH = 16
NEIGHBOURS = 3  # of precision and recall


class SwapsMontaged(MapTransform):
    """Write `plot_series` of an item to `ID_KEY.png`, its titles to `ID_swaps.json`.

    The item passes unchanged.

    Args:
        keys: what an inferer with `titles` and `split` gave, (M, *S), such as `swaps` of a
            `medvae.explain.SwapInferer` or `edits` of a `medvae.explain.StyleEditInferer`.
        inferer: that inferer.
        output_dir: where the PNG goes, in a folder named by the item's id.
        spacing_mm: of the grid, one number or one per axis.
    """

    def __init__(
        self,
        keys: KeysCollection,
        inferer: SwapInferer | StyleEditInferer,
        output_dir: str | Path,
        spacing_mm: Sequence[float] | float = 1.0,
    ) -> None:
        super().__init__(keys)
        self.inferer, self.output_dir = inferer, Path(output_dir)
        self.spacing_mm = spacing_mm

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Write the picture and return the item."""
        name = file_stem(data["id"])
        for key in self.keys:
            titles = self.inferer.titles
            series = {
                part: np.asarray(images).reshape(len(titles[part]), -1, *images.shape[1:])[:, 0]
                for part, images in self.inferer.split(data[key]).items()
            }
            path = self.output_dir / name / f"{name}_{key}.png"
            plot_series(series, titles, path, self.spacing_mm)
            write_titles(self.output_dir, name, titles)
        return dict(data)


class GanEvaluation:
    """How a trained GAN draws, reconstructs and swaps, as numbers and pictures.

    What its subspaces tell of the factors is for `SubspaceEvaluation`. A classifier that shares
    nothing with the model learns from the training subjects' images, judges swapped ones, and gives
    the features in which sets of images are compared. Without a factor that has classes there is
    nothing to train it on: `images.json` then says so in place of its numbers. Writes
    `images.json`, `samples.png`, `reconstructions.png` and `swaps.png` (subjects with each subspace
    of their donor, see `donor_rows`) into the output folder, and in 3D `examples/` with the same of
    three subjects as NIfTI.

    Args:
        network: a `DisentangledGAN`.
        factors: of its cohort.
        train: batches of the pool's training subjects, in the order of its table. Factors that go
            together there are taken for each other by the judge.
        test: batches of the cohort's test subjects, in the order of its table.
        prepare_batch: as in training.
        output_dir: where results go.
        device: where to compute.
        spacing_mm: of the grid.
        window: intensities that 0 and 1 stand for, for the files; None leaves them so.
        samples: images drawn, to be compared with the real ones.
        judge_steps: batches that the judge is trained on.
        n_resamples: for intervals.
        seed: of samples, judge and resamples.
    """

    def __init__(
        self,
        network: DisentangledGAN,
        factors: Factors,
        train: Iterable[Mapping[str, Any]],
        test: Iterable[Mapping[str, Any]],
        prepare_batch: Callable[..., tuple[Tensor, Mapping[str, Tensor]]],
        output_dir: str | Path,
        device: str | torch.device = "cpu",
        spacing_mm: Sequence[float] | float = 1.0,
        window: Sequence[float] | None = None,
        samples: int = 256,
        judge_steps: int = 600,
        n_resamples: int = 500,
        seed: int = 0,
    ) -> None:
        self.network, self.factors = network, factors
        self.train, self.test = train, test
        self.prepare_batch, self.device = prepare_batch, device
        self.output_dir, self.spacing_mm, self.window = Path(output_dir), spacing_mm, window
        self.samples, self.judge_steps = samples, judge_steps
        self.n_resamples, self.seed = n_resamples, seed

    def run(self) -> dict[str, Any]:
        """Evaluate, write everything and return what images.json holds."""
        images, again = self._reconstructed()
        drawn = sample(self.network, self.samples, self.seed, self.device).cpu()
        found, wanted = again.numpy(), images.numpy()
        metrics: dict[str, Any] = {
            "subjects": len(images),
            "reconstruction": {
                "psnr_db": float(psnr(found, wanted).mean()),
                "ssim": float(ssim(found, wanted).mean()),
            },
        }
        if min(len(drawn), len(images)) > 1:
            metrics["diversity"] = {
                "drawn": diversity(drawn, seed=self.seed),
                "real": diversity(images, seed=self.seed),
            }
        table = self._table(self.factors.cohort, "test")
        patients = np.array(patient_of(table, self.factors.cohort.patient))
        donors = donor_rows(patients)
        metrics |= self._judged_by_another(images, again, drawn, donors, patients)
        write_text(self.output_dir / "images.json", json.dumps(metrics, indent=1) + "\n")
        self._plot(images, again, drawn, donors)
        return metrics

    def _judged_by_another(
        self, images: Tensor, again: Tensor, drawn: Tensor, donors: Rows, patients: npt.ArrayLike
    ) -> dict[str, Any]:
        """Return what needs the classifier: its name, swaps and realism; else the reason."""
        if set(self.factors.kinds.values()) == {"continuous"}:
            reason = "no factor has classes, which a judge could be trained on"
            return {"judge": None, "reason": reason, "swaps": {}}
        judge = self._judge()
        found = {"judge": judge.name, "swaps": self._judged(judge, images, again, donors, patients)}
        if min(len(images) // 2, len(drawn)) > NEIGHBOURS:
            found["realism"] = realism_report(
                image_features(judge, drawn),
                image_features(judge, images),
                judge.name,
                image_features(judge, degraded(images)),
                NEIGHBOURS,
                seed=self.seed,
            )
        return found

    def _reconstructed(self) -> tuple[Tensor, Tensor]:
        """Return test images and reconstructions, on the CPU."""
        pairs = []
        for batch in self.test:
            image, _ = self.prepare_batch(batch, self.device)
            pairs.append((image.cpu(), reconstruct(self.network, image).cpu()))
        images, again = (torch.cat(column) for column in zip(*pairs, strict=True))
        return images, again

    @staticmethod
    def _table(cohort: Cohort, split: str) -> pd.DataFrame:
        return cohort.subjects[cohort.subjects["split"] == split]

    def _labels(self, cohort: Cohort, split: str) -> dict[str, Numbers]:
        """Return class numbers of the factors that have classes, NaN where missing."""
        values = self.factors.values(self._table(cohort, split))
        columns = zip(self.factors.kinds.items(), values.T, strict=True)
        return {name: column for (name, kind), column in columns if kind != "continuous"}

    def _judge(self) -> FactorClassifier:
        batches = (self.prepare_batch(batch, "cpu")[0] for batch in self.train)
        images = torch.cat(list(batches))
        labels = self._labels(self.factors.pool, "train")
        targets = {name: torch.from_numpy(values) for name, values in labels.items()}
        return train_classifier(
            images, targets, steps=self.judge_steps, seed=self.seed, device=self.device
        )

    def _judged(
        self,
        judge: FactorClassifier,
        images: Tensor,
        again: Tensor,
        donors: Rows,
        patients: npt.ArrayLike,
    ) -> dict[str, Any]:
        labels = self._labels(self.factors.cohort, "test")
        said = classify(judge, again)
        references = {"real": classify(judge, images), "reconstruction": said}
        return {
            name: judge_swaps(
                classify(judge, self._swapped(images, images[donors], name)),
                name,
                labels,
                {other: values[donors] for other, values in labels.items()},
                references,
                (said[name], said[name][donors]),
                patients,
                self.n_resamples,
                seed=self.seed,
            )
            for name in labels
        }

    def _swapped(self, images: Tensor, donors: Tensor, name: str) -> Tensor:
        """Return every image with a subspace of its donor, (N, C, *S) like both."""
        pairs = zip(images.split(BATCH), donors.split(BATCH), strict=True)
        parts = (
            swap_subspaces(self.network, image.to(self.device), donor.to(self.device), name).cpu()
            for image, donor in pairs
        )
        return torch.cat(list(parts))

    def _plot(self, images: Tensor, again: Tensor, drawn: Tensor, donors: Rows) -> None:
        rows = [part[:, 0].numpy() for part in drawn[: 3 * SHOWN].split(SHOWN)]
        plot_series(
            {f"samples {k + 1}": row for k, row in enumerate(rows)},
            {f"samples {k + 1}": [""] * SHOWN for k in range(len(rows))},
            self.output_dir / "samples.png",
            self.spacing_mm,
        )
        ids = [str(name) for name in self._table(self.factors.cohort, "test")["id"]]
        plot_ranked(images.numpy(), again.numpy(), ids, self.output_dir / "reconstructions.png")
        if images.ndim == 5:
            self._show_examples(images, again, ids, donors)
        shown, theirs = images[:SHOWN], images[donors[:SHOWN]]
        series = {"image": shown, "donor": theirs, "reconstruction": again[:SHOWN]}
        for name in self.network.subspaces.names:
            series[f"{name} of the donor"] = self._swapped(shown, theirs, name)
        titles = dict.fromkeys(series, [""] * len(shown))
        titles |= {"image": ids[:SHOWN], "donor": [ids[row] for row in donors[:SHOWN]]}
        firsts = {key: part[:, 0].numpy() for key, part in series.items()}
        plot_series(firsts, titles, self.output_dir / "swaps.png", self.spacing_mm)

    def _show_examples(
        self, images: Tensor, again: Tensor, ids: Sequence[str], donors: Rows
    ) -> None:
        """Write the best, the median and the worst reconstructed subject, and their swaps."""
        reasons = best_median_worst(ids, psnr(again.numpy(), images.numpy()))
        folder, names = self.output_dir / "examples", list(self.network.subspaces.names)
        subjects: dict[str, dict[str, Array]] = {}
        for subject in reasons:
            row = list(ids).index(subject)
            image, donor = images[[row]], images[[int(donors[row])]]
            swapped = [self._swapped(image, donor, name) for name in names]
            kind = f"from_{file_stem(ids[donors[row]])}"
            subjects[subject] = {
                "image": images[row, :1].numpy(),
                "reconstruction": again[row, :1].numpy(),
                kind: torch.cat(swapped)[:, 0].numpy(),
            }
            write_titles(folder, subject, {kind: [f"its {name}" for name in names]})
        write_examples(folder, subjects, reasons, self.spacing_mm, self.window)


def donor_rows(patients: npt.ArrayLike) -> Rows:
    """Return for each row the nearest one before it, in a circle, that is another patient's.

    A patient's own images, such as of both eyes, share more than a factor: what a swap between
    them leaves as it was, it could not have changed.

    Args:
        patients: of every row, (N,).

    Returns:
        Shape (N,); the row itself where all are one patient's.
    """
    number = np.unique(np.asarray(patients), return_inverse=True)[1].reshape(-1)
    rows = np.arange(len(number))
    donors = rows
    for back in rows[1:]:
        own = number[donors] == number
        if not own.any():
            break
        donors = np.where(own, np.roll(rows, back), donors)
    return np.where(number[donors] == number, rows, donors)


def write_titles(folder: Path, subject: str, titles: Mapping[str, Sequence[str]]) -> None:
    """Write the titles of the volumes of each of a subject's series, `ID_swaps.json`."""
    name = file_stem(subject)
    content = {series: list(words) for series, words in titles.items()}
    write_text(folder / name / f"{name}_swaps.json", json.dumps(content, indent=1) + "\n")
