"""The published measure of leakage: a vote of nearest neighbours, beside chance."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.metrics import cohen_kappa_score

from .banks import Sample, checked
from .information import Array
from .probes import knn, mean_recall

__all__ = ["KnnLeakage", "knn_leakage", "majority"]


class KnnLeakage(NamedTuple):
    """What a vote of neighbours tells of a factor, beside chance; all in [0, 1] but kappa.

    Attributes:
        accuracy: share of right rows.
        balanced_accuracy: mean over classes of their share of right rows; NaN with one class.
        kappa: Cohen's, in [-1, 1], chance 0; NaN with one class.
        chance: accuracy of the bank's most frequent class on the test rows.
        balanced_chance: 1 / number of classes among the test rows.
        permuted: mean accuracy of the votes against permuted test labels.
        permuted_p95: the 95th percentile of the same: what luck reaches.
        neighbours: how many voted.
    """

    accuracy: float
    balanced_accuracy: float
    kappa: float
    chance: float
    balanced_chance: float
    permuted: float
    permuted_p95: float
    neighbours: int


def knn_leakage(
    bank_codes: npt.ArrayLike,
    bank_labels: npt.ArrayLike,
    codes: npt.ArrayLike,
    labels: npt.ArrayLike,
    k: int = 30,
    n_permutations: int = 200,
    seed: int = 0,
) -> KnnLeakage:
    """Reads a factor off codes by a vote of the k nearest rows of a bank (Müller et al. 2025).

    Distances are Euclidean and exact; of classes with equally many votes the lowest wins. Rows
    whose label is missing neither vote nor count. A class of the test rows that the bank lacks
    counts as wrong.

    Args:
        bank_codes: Shape (M, D), finite.
        bank_labels: Class numbers, shape (M,); NaN or negative = missing.
        codes: Of the test rows, shape (N, D).
        labels: Their classes, shape (N,).
        k: Neighbours; all labelled rows of the bank where there are fewer.
        n_permutations: Permutations of the test labels; 0 leaves ``permuted`` NaN.
        seed: Seed of the permutations.

    Raises:
        ValueError: If shapes disagree, codes are not finite, classes are not whole numbers, k < 1,
            or no row of the bank or of the test has a label.
    """
    bank, test = (
        checked(Sample(z, np.asarray(y)[..., None]), {"label": "categorical"})
        for z, y in ((bank_codes, bank_labels), (codes, labels))
    )
    if bank.codes.shape[1] != test.codes.shape[1] or k < 1:
        raise ValueError(
            f"the bank's codes have {bank.codes.shape[1]} dimensions, the others "
            f"{test.codes.shape[1]}, and k = {k}: expected equally many, and k of 1 or more."
        )
    voters, rows = (np.flatnonzero(~np.isnan(s.factors[:, 0])) for s in (bank, test))
    if not voters.size or not rows.size:
        raise ValueError(
            f"labels: {voters.size} of the bank's and {rows.size} of the test rows are labelled, "
            "expected at least one each."
        )
    votes, y = bank.factors[voters, 0], test.factors[rows, 0]
    predicted = knn(bank.codes[voters], votes, test.codes[rows], False, k)
    one = np.ones((1, rows.size))
    generator = np.random.default_rng(seed)
    luck = [np.mean(predicted == generator.permutation(y)) for _ in range(n_permutations)]
    several = np.unique(y).size > 1
    return KnnLeakage(
        float(np.mean(predicted == y)),
        float(mean_recall(y, predicted[None], one)[0]),
        float(cohen_kappa_score(y, predicted)) if several else float("nan"),
        float(np.mean(y == majority(votes))),
        1 / np.unique(y).size,
        float(np.mean(luck)) if luck else float("nan"),
        float(np.quantile(luck, 0.95)) if luck else float("nan"),
        min(k, voters.size),
    )


def majority(labels: Array) -> float:
    """Return the most frequent label, the lowest of equally frequent ones."""
    values, counts = np.unique(labels, return_counts=True)
    return float(values[np.argmax(counts)])
