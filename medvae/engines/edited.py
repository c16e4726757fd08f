"""A classifier's subjects with found attributes, for inference."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine
from torch import Tensor, nn

from medvae.engines.steps import EvaluationStep
from medvae.engines.writer import Row, TableWriter

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


class EditWriter(TableWriter):
    """Handler that writes what a classifier says of each subject's image and of its edits as a CSV.

    A row for the image, for its reconstruction and for each edit. Columns: id, `image` (which of
    them) and `probability_HEAD_CLASS`; classes without a name are numbers.

    Args:
        path: the CSV.
        classifier: images (B, C, *S) in [0, 1] to logits.
        heads: outputs of every head of the classifier by its name; 1 is a binary head.
        classes: names of the classes by head, of those that are known.
        titles: of the images in the output's `edits`, the reconstruction first.
        overwrite: replace an existing file.
    """

    def __init__(
        self,
        path: str | Path,
        classifier: Classifier,
        heads: Mapping[str, int],
        classes: Mapping[str, Sequence[object]],
        titles: Sequence[str],
        overwrite: bool = False,
    ) -> None:
        super().__init__(path, overwrite)
        self.classifier, self.titles = classifier, list(titles)
        self.columns = [
            f"probability_{head}_{name}"
            for head, outputs in heads.items()
            for name in _names(max(2, outputs), classes.get(head, ()))
        ]

    def rows(self, engine: Engine) -> list[Row]:
        """Return the rows of every subject, one after the other."""
        output = engine.state.output
        images = output["edits"].chunk(len(self.titles), 1)
        with torch.no_grad():
            logits = [output["logits"], *(self.classifier(image) for image in images)]
        shares = [engine.network.probabilities(part).float().tolist() for part in logits]
        return [
            {"id": name, "image": title} | dict(zip(self.columns, part[n], strict=True))
            for n, name in enumerate(engine.state.batch["id"])
            for title, part in zip(["image", *self.titles], shares, strict=True)
        ]


def _names(count: int, known: Sequence[object]) -> Sequence[object]:
    return known if len(known) == count else range(count)
