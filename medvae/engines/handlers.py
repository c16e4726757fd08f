"""Handlers and a metric for MONAI's engines: model selection, curves, progress, predictions."""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from ignite.metrics import EpochMetric
from torch import Tensor
from tqdm import tqdm

from medvae.data import Factors, write_text
from medvae.data.output import explained
from medvae.engines.steps import class_probabilities
from medvae.engines.writer import Row, TableWriter
from medvae.explain import Readout
from medvae.losses import factor_predictions
from medvae.metrics import interpretability
from medvae.networks import Subspaces

__all__ = ["History", "InterpretabilityMetric", "PredictionWriter", "ProgressBar", "read_history"]


class EpochScore(EpochMetric):
    """A score of two outputs over an epoch, for model selection.

    Args:
        first: key of the one in the evaluator's output, rows of numbers.
        second: key of the other.
    """

    def __init__(self, first: str, second: str) -> None:
        super().__init__(
            self._compute,
            output_transform=lambda output: (output[first], output[second]),
            check_compute_fn=False,
        )

    def compute(self) -> float:
        """Return the score of the rows of this process, which sees the whole validation split."""
        return self._compute(torch.cat(self._predictions), torch.cat(self._targets))

    def _compute(self, first: Tensor, second: Tensor) -> float:
        # ignite drops an axis of one
        scores = self.scores(*(t.reshape(len(t), -1).cpu() for t in (first, second)))
        if np.isnan(scores).all():
            raise ValueError(
                f"nothing is known often enough among the {len(first)} validation rows to select a "
                "model by; enlarge the validation share in `fractions`"
            )
        return float(np.nanmean(scores))

    def scores(self, first: Tensor, second: Tensor) -> np.ndarray:
        """Return what is averaged, NaN where it is not defined, of (N, P) and (N, Q)."""
        raise NotImplementedError


class InterpretabilityMetric(EpochScore):
    """Mean interpretability (R2 of attribute k on its axis) over an epoch, for model selection.

    Args:
        tied: axis k belongs to attribute k; False takes the most informative axis of each, for
            models that tie none.
    """

    def __init__(self, tied: bool = True) -> None:
        self.tied = tied
        super().__init__("mean", "attributes")

    def scores(self, first: Tensor, second: Tensor) -> np.ndarray:
        """Return the interpretability of every attribute."""
        axes = list(range(second.shape[1])) if self.tied else None
        return interpretability(first.numpy(), second.numpy(), axes)


class PredictionWriter(TableWriter):
    """Handler that writes what a model says about each subject as one row of a CSV.

    Columns: id, `z0`..., the attributes read off the codes in their own units (`read_NAME`), and
    `probability_CLASS`. Needs `decollate: true`; the file appears when the last subject is done.

    Args:
        path: the CSV.
        readout: of the trained model; None leaves the attributes out.
        classes: names of the classes in the order of their numbers; None leaves them out.
        factors: of a model with subspaces, whose heads say `probability_FACTOR_CLASS`, or
            `read_FACTOR` of a continuous one; None leaves them out.
        overwrite: replace an existing file.
    """

    made_at = Events.ITERATION_COMPLETED

    def __init__(
        self,
        path: str | Path,
        readout: Readout | None = None,
        classes: Sequence[object] = (),
        factors: Factors | None = None,
        overwrite: bool = False,
    ) -> None:
        super().__init__(path, overwrite)
        self.readout, self.classes, self.factors = readout, tuple(classes), factors

    def rows(self, engine: Engine) -> list[Row]:
        """Return a row for each subject."""
        pairs = zip(engine.state.batch, engine.state.output, strict=True)
        return [self._row(item, output) for item, output in pairs]

    def _row(self, item: Mapping[str, Any], output: Mapping[str, Any]) -> Row:
        codes = output["mean"].cpu().numpy()
        row: Row = {"id": item["id"]}
        row |= {f"z{d}": float(z) for d, z in enumerate(codes)}
        if self.readout is not None:
            values = self.readout.attributes(codes[None])[0]
            names = self.readout.scaler.names
            row |= {f"read_{n}": float(v) for n, v in zip(names, values, strict=True)}
        if self.classes:
            shares = class_probabilities(output["logits"][None])[0]
            row |= {f"probability_{c}": float(p) for c, p in zip(self.classes, shares, strict=True)}
        if self.factors is not None:
            row |= _factor_cells(self.factors, output["logits"][None])
        return row


def _factor_cells(factors: Factors, logits: Tensor) -> dict[str, float]:
    """Return what the heads say of one subject, by columns."""
    cells: dict[str, float] = {}
    for name, part in Subspaces(factors.outputs).split(logits).items():
        values = factor_predictions(factors.kinds[name], part)[0].tolist()
        if factors.kinds[name] == "continuous":
            cells[f"read_{name}"] = factors.own_unit(name, values[0])
        else:
            classes = factors.classes[name]
            cells |= {f"probability_{name}_{c}": p for c, p in zip(classes, values, strict=True)}
    return cells


class History:
    """Handler that keeps one row an epoch: the mean of every loss term and every metric.

    Rows are appended to a CSV as they come, so that nothing is lost when a run ends early.

    Args:
        path: the CSV.
        evaluator: whose metrics belong to the row; None has none.
    """

    def __init__(self, path: str | Path, evaluator: Engine | None = None) -> None:
        self.path = Path(path)
        self.evaluator = evaluator
        self._sums: dict[str, float] = {}
        self._count = 0

    def attach(self, engine: Engine) -> None:
        """Register with the trainer."""
        engine.add_event_handler(Events.STARTED, self._keep_until_here)
        engine.add_event_handler(Events.EPOCH_STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._add)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._write)

    def _keep_until_here(self, engine: Engine) -> None:
        """Drop the rows of an epoch that a killed run did not complete, or of an earlier run."""
        if self.path.exists():
            head, *lines = self.path.read_text().splitlines()
            kept = [row for row in lines if row and float(row.split(",")[0]) <= engine.state.epoch]
            write_text(self.path, "\n".join([head, *kept, ""]) if kept else "")

    def _start(self, engine: Engine) -> None:
        self._sums, self._count = {}, 0

    def _add(self, engine: Engine) -> None:
        self._count += 1
        for name, value in engine.state.output[0].items():
            self._sums[name] = self._sums.get(name, 0.0) + float(value)

    def _write(self, engine: Engine) -> None:
        row = {"epoch": float(engine.state.epoch)}
        row |= {name: total / self._count for name, total in self._sums.items()}
        if self.evaluator is not None:
            row |= {f"val_{k}": float(v) for k, v in self.evaluator.state.metrics.items()}
        first = not self.path.exists() or self.path.stat().st_size == 0
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with explained(self.path), self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, row, lineterminator="\n")
            if first:
                writer.writeheader()
            writer.writerow(row)


class ProgressBar:
    """Handler that shows one bar for the whole training, with the loss and the best metric.

    Args:
        evaluator: whose best key metric is shown; None shows none.
    """

    def __init__(self, evaluator: Any = None) -> None:
        self.evaluator = evaluator
        self._bar: tqdm | None = None

    def attach(self, engine: Engine) -> None:
        """Register with the trainer."""
        engine.add_event_handler(Events.STARTED, self._open)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._update)
        engine.add_event_handler(Events.COMPLETED, self._close)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._fail)

    def _open(self, engine: Engine) -> None:
        self._bar = tqdm(
            total=engine.state.max_epochs,
            initial=engine.state.epoch,
            desc="training",
            unit="epoch",
            file=sys.stderr,
            disable=int(os.environ.get("RANK", "0")) > 0,
        )

    def _update(self, engine: Engine) -> None:
        if self._bar is None:
            return
        shown: dict[str, str] = {"loss": f"{float(engine.state.output[0]['loss']):.4g}"}
        if self.evaluator is not None and self.evaluator.state.best_metric_epoch > 0:
            name = self.evaluator.state.key_metric_name
            shown[f"best {name}"] = f"{self.evaluator.state.best_metric:.3f}"
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update()

    def _close(self, engine: Engine) -> None:
        if self._bar is not None:
            self._bar.close()

    def _fail(self, engine: Engine, error: Exception) -> None:
        self._close(engine)
        raise error


def read_history(path: str | Path) -> dict[str, list[float]]:
    """Read the columns that `History` wrote."""
    with Path(path).open(newline="") as file:
        rows: Sequence[dict[str, str]] = list(csv.DictReader(file))
    return {name: [float(row[name]) for row in rows] for name in (rows[0] if rows else {})}
