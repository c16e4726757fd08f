"""A classifier of the covariates, which reads what an edit of an image moved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from medvae.engines import train_classifier
from medvae.metrics import roc_auc
from medvae.report.stylex_images import Encoded, in_batches

if TYPE_CHECKING:
    from medvae.report.stylex_search import StylexSearch

__all__ = ["Judge", "covariate_classes"]

Array = npt.NDArray[np.float64]
BINS = 5  # classes that numbers become for the judge


class Judge:
    """A classifier of the covariates that shares nothing with the one that is explained.

    It reads what an edit did to an image in units of the standard deviation over unedited images,
    and knows how much edits of random coordinates do. Numbers are read as quantile classes.

    Args:
        run: the search.
        tested: subjects that edits are judged on.

    Attributes:
        quality: area under the curve of every covariate on the test subjects' `images` and on
            their `reconstructions`, which it has not learned from.
        chance: what edits of random coordinates move, by the class that they lead to, as all
            readers of the edits say and the classifier itself.
    """

    def __init__(self, run: StylexSearch, tested: Encoded) -> None:
        self.run, self.tested = run, tested
        self.network: Any = None
        self.quality: dict[str, dict[str, float | None]] = {}
        labels = covariate_classes(run)
        if labels:
            batches = [(run.prepare_batch(batch, "cpu")[0], batch["id"]) for batch in run.train]
            ids = [str(name) for _, names in batches for name in names]
            self.network = train_classifier(
                torch.cat([images for images, _ in batches]),
                {name: torch.tensor(_rows(column, ids)) for name, column in labels.items()},
                steps=run.judge_steps,
                seed=run.seed,
                device=run.device,
            )
            self.quality = {name: {} for name in labels}
            for kind, images in (("images", tested.images), ("reconstructions", tested.again)):
                found = self._probabilities(images)
                for name, column in labels.items():
                    value = roc_auc(found[name], _rows(column, tested.ids))
                    self.quality[name][kind] = None if np.isnan(value) else value
        self.before = self.read(tested.again)
        self.chance: dict[int, dict[str, float]] = {}

    def read(self, images: Tensor) -> dict[str, Array]:
        """Return what is read in images (N, C, *S): the expected class (N,), or (N, K) shares."""
        if self.network is None:
            return {}
        found = self._probabilities(images)
        return {name: _expected(shares, self.ordered[name]) for name, shares in found.items()}

    @property
    def ordered(self) -> dict[str, bool]:
        """Whether the classes of a covariate have an order."""
        table = self.run.factors.pool.subjects
        return {
            name: pd.api.types.is_numeric_dtype(table[name]) or table[name].nunique() == 2
            for name in self.network.classes
        }

    def moves(self, images: Tensor, rows: npt.NDArray[np.intp]) -> dict[str, Array]:
        """Return by covariate how far edited images of some rows moved, in SD, (N',)."""
        found = {}
        for name, after in self.read(images).items():
            before = self.before[name]
            spread = np.maximum(before.std(0), 1e-6)
            change = (after - before[rows]) / spread
            if change.ndim == 2:  # the class that moved most
                change = change[:, np.abs(change.mean(0)).argmax()]
            found[name] = change
        return found

    def _probabilities(self, images: Tensor) -> dict[str, npt.NDArray[np.float32]]:
        device = self.run.device
        names = list(self.network.classes)
        sizes = list(self.network.classes.values())

        def shares(part: Tensor) -> Tensor:
            found = self.network(part.to(device))
            return torch.cat([found[name].softmax(1) for name in names], 1)

        parts = in_batches(shares, images).split(sizes, 1)
        return {name: part.numpy() for name, part in zip(names, parts, strict=True)}


def covariate_classes(run: StylexSearch) -> dict[str, pd.Series]:
    """Return class numbers of all covariates by id, NaN where missing."""
    table = run.factors.pool.subjects
    table = table.set_index(table["id"].astype(str))
    train = table[table["split"] == "train"]
    found = {}
    for name in run.covariates:
        column, known = table[name], train[name].dropna()
        if pd.api.types.is_numeric_dtype(column) and known.nunique() > BINS:
            limits = np.unique(np.quantile(known, np.arange(1, BINS) / BINS))
            codes = np.where(column.isna(), np.nan, np.digitize(column, limits))
        else:
            numbers = {value: number for number, value in enumerate(sorted(known.unique()))}
            codes = column.map(numbers).to_numpy(dtype=float)
        values = pd.Series(codes, index=table.index)
        if values[train.index].dropna().nunique() > 1:
            found[name] = values
    return found


def _rows(column: pd.Series, ids: Sequence[str]) -> Array:
    values: Array = column.loc[list(ids)].to_numpy(dtype=np.float64)
    return values


def _expected(shares: npt.NDArray[np.float32], ordered: bool) -> Array:
    values = shares.astype(np.float64)
    expected: Array = values @ np.arange(values.shape[1]) if ordered else values
    return expected
