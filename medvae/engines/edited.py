"""A classifier's subjects with found attributes, for inference."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents
from torch import Tensor, nn

from medvae.data.errors import or_exit
from medvae.data.output import check_overwrite, write_text
from medvae.engines.steps import EvaluationStep

__all__ = ["EditWriter", "StylexEvaluationStep"]

Classifier = Callable[[Tensor], Tensor]


class StylexEvaluationStep(EvaluationStep):
    """One batch through a `StylEx` in evaluation, for `SupervisedEvaluator`.

    Returns `pred` (the reconstruction), `logits` (of the image), `mean` (the codes, with class
    probabilities) and the targets of the batch.

    Args:
        classifier: images (B, C, *S) in [0, 1] to logits.
        inferers: see `EvaluationStep`, such as `edits` by a `medvae.explain.StyleEditInferer`.
    """

    def __init__(
        self,
        classifier: Classifier,
        inferers: Mapping[str, Callable[[Tensor, nn.Module], Tensor] | None] | None = None,
    ) -> None:
        super().__init__(inferers)
        self.classifier = classifier

    def _outputs(self, network: Any, image: Tensor) -> dict[str, Tensor]:
        logits = self.classifier(image)
        w = network.encode(image, network.probabilities(logits))
        return {"pred": network.decode(w), "logits": logits, "mean": w}


class EditWriter:
    """Handler that writes what a classifier says of each subject's image and of its edits as a CSV.

    A row for the image, for its reconstruction and for each edit. Columns: id, `image` (which of
    them) and `probability_HEAD_CLASS`.

    Args:
        path: the CSV.
        classifier: images (B, C, *S) in [0, 1] to logits.
        classes: names of the classes of every head, by its name.
        titles: of the images in the output's `edits`, the reconstruction first.
        overwrite: replace an existing file.
    """

    def __init__(
        self,
        path: str | Path,
        classifier: Classifier,
        classes: Mapping[str, Sequence[object]],
        titles: Sequence[str],
        overwrite: bool = False,
    ) -> None:
        self.path, self.classifier = Path(path), classifier
        self.columns = [f"probability_{h}_{c}" for h, names in classes.items() for c in names]
        self.titles, self.overwrite = list(titles), overwrite
        self._parts: list[pd.DataFrame] = []

    def attach(self, engine: Engine) -> None:
        """Register with the evaluator."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(IterationEvents.FORWARD_COMPLETED, self._add)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _start(self, engine: Engine) -> None:
        or_exit(check_overwrite, [self.path], self.overwrite)
        self._parts = []

    def _add(self, engine: Engine) -> None:
        # before the batch is decollated, and its images brought to the subjects' grids
        output = engine.state.output
        images = output["edits"].chunk(len(self.titles), 1)
        with torch.no_grad():
            logits = [output["logits"], *(self.classifier(image) for image in images)]
        for title, part in zip(["image", *self.titles], logits, strict=True):
            shares = engine.network.probabilities(part).float().cpu().numpy()
            rows = pd.DataFrame(shares, columns=self.columns)
            rows.insert(0, "image", title)
            rows.insert(0, "id", [str(name) for name in engine.state.batch["id"]])
            self._parts.append(rows)

    def _write(self, engine: Engine) -> None:
        table = pd.concat(self._parts) if self._parts else pd.DataFrame(columns=["id", "image"])
        order = table["id"].drop_duplicates().tolist()
        table = table.sort_values("id", key=lambda ids: ids.map(order.index), kind="stable")
        write_text(self.path, table.to_csv(index=False))
