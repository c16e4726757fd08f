"""Class predictions, judged on all cases at once and beside chance and a peer.

Every number is pooled over the cases, never averaged over batches (a batch with one class has no
area under the curve), and curves are drawn from probabilities, never from thresholded predictions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from .information import Array
from .intervals import bootstrap_rows, json_number, percentile_interval, rows_by_patient

__all__ = ["accuracy", "balanced_accuracy", "classification_report", "roc_auc"]

Labels = npt.NDArray[np.intp]


def classification_report(
    probabilities: npt.ArrayLike,
    labels: npt.ArrayLike,
    patients: npt.ArrayLike | None = None,
    reference_probabilities: npt.ArrayLike | None = None,
    n_resamples: int = 1000,
    n_permutations: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Any]:
    """Reports AUC, accuracy and balanced accuracy with chance levels and intervals by patients.

    Args:
        probabilities: Shape (N,) or (N, 1), of class 1, or (N, C), rows of class probabilities.
        labels: Shape (N,), whole numbers from 0; NaN = missing, the case is left out.
        patients: Patient of each case; None = one patient per case.
        reference_probabilities: A peer's predictions of the same cases, such as those of
            :func:`raw_attribute_classifier`: adds ``reference`` and ``auc_difference`` (these
            probabilities minus the peer's, paired: both see the same resamples).
        n_resamples: Bootstrap resamples of patients; 0 leaves the intervals out.
        n_permutations: Permutations of the labels for the AUC's chance interval; 0 leaves it out.
        level: Coverage of all intervals.
        seed: Seed of the draws.

    Returns:
        A dict that json can write: ``cases``, ``patients``, ``missing``, ``classes`` (cases of each
        class), ``auc`` (binary, or mean one-vs-rest), ``accuracy`` (threshold 0.5, or the most
        probable class), ``balanced_accuracy``, each with value, low, high and chance (0.5 with the
        permutations' chance_low and chance_high; the majority's share; 1 / number of classes).
        With one class only, AUC and balanced accuracy are undefined: None, never 0, and ``reason``
        says so.

    Raises:
        ValueError: If shapes disagree, a probability is outside [0, 1], a label is not a class
            number or no label is known.
    """
    own, known = _checked(probabilities, labels)
    y = np.asarray(labels, dtype=np.float64)[known].astype(np.intp)
    tables = {"": own[known]}
    if reference_probabilities is not None:
        tables["reference"] = _checked(reference_probabilities, labels)[0][known]
    names = None if patients is None else np.asarray(patients)[known]
    draws = list(bootstrap_rows(names, y.size, n_resamples, seed))
    scores = {who: _scores(table, y, draws) for who, table in tables.items()}
    reports = {who: _entries(values, y, level) for who, values in scores.items()}
    present = np.bincount(y, minlength=max(2, own.shape[1]))
    report: dict[str, Any] = {
        "cases": int(y.size),
        "patients": len(rows_by_patient(names, y.size)),
        "missing": int((~known).sum()),
        "classes": present.tolist(),
        "level": level,
        **reports[""],
        "reason": None,
    }
    report["auc"] |= _auc_chance(tables[""], y, n_permutations, level, seed)
    if np.count_nonzero(present) < 2:
        report["reason"] = (
            f"AUC and balanced accuracy are undefined: all {y.size} labels are class {y[0]}"
        )
    if reference_probabilities is not None:
        report["reference"] = reports["reference"]
        report["auc_difference"] = _entry(scores[""]["auc"] - scores["reference"]["auc"], level)
    return report


def roc_auc(probabilities: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Area under the ROC curve; for more than two classes the mean of each class against the rest.

    The probability that a case of the class ranks above one that is not (ties count half).

    Args:
        probabilities: Shape (N,) or (N, 1), of class 1, or (N, C).
        labels: Shape (N,), whole numbers from 0, NaN = missing.

    Returns:
        In [0, 1]; the mean is over the classes that occur; NaN where only one class occurs.
    """
    return _scored(_auc, probabilities, labels)


def accuracy(probabilities: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Share of right cases, at threshold 0.5 (>=) or by the most probable class."""
    return _scored(_accuracy, probabilities, labels)


def balanced_accuracy(probabilities: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Mean over the classes that occur of their share of right cases; NaN with one class only."""
    return _scored(_balanced, probabilities, labels)


def _scored(
    score: Callable[[Array, Labels], float], probabilities: npt.ArrayLike, labels: npt.ArrayLike
) -> float:
    table, known = _checked(probabilities, labels)
    return score(table[known], np.asarray(labels, dtype=np.float64)[known].astype(np.intp))


def _checked(
    probabilities: npt.ArrayLike, labels: npt.ArrayLike
) -> tuple[Array, npt.NDArray[np.bool_]]:
    """Returns probabilities as (N, 1), of class 1, or (N, C > 2), and which labels are known."""
    p, y = np.asarray(probabilities, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    p = p[:, None] if p.ndim == 1 else p
    if p.ndim != 2 or y.shape != (len(p),) or not p.shape[1]:
        raise ValueError(
            f"probabilities have shape {p.shape} and labels {y.shape}: expected (N,) or (N, C) "
            "and (N,)."
        )
    if not ((p > -1e-6) & (p < 1 + 1e-6)).all():  # float32 softmax may overshoot
        raise ValueError("probabilities: found values outside [0, 1] or NaN, not probabilities.")
    known = ~np.isnan(y)
    n_classes = max(2, p.shape[1])
    wrong = sorted(set(y[known].tolist()) - set(range(n_classes)))
    if wrong or not known.any():
        raise ValueError(f"labels: found {wrong}, expected class numbers 0 to {n_classes - 1}.")
    return (p[:, 1:] if p.shape[1] == 2 else p), known


def _auc(p: Array, y: Labels) -> float:
    classes = [1] if p.shape[1] == 1 else range(p.shape[1])
    ranks = rankdata(p, axis=0)
    areas = []
    for column, label in enumerate(classes):
        positive = y == label
        n = np.count_nonzero(positive)
        if 0 < n < y.size:
            above = ranks[positive, column].sum() - n * (n + 1) / 2
            areas.append(above / (n * (y.size - n)))
    return float(np.mean(areas)) if areas else float("nan")


def _right(p: Array, y: Labels) -> npt.NDArray[np.bool_]:
    predicted = p[:, 0] >= 0.5 if p.shape[1] == 1 else np.argmax(p, axis=1)
    right: npt.NDArray[np.bool_] = predicted == y
    return right


def _accuracy(p: Array, y: Labels) -> float:
    return float(_right(p, y).mean())


def _balanced(p: Array, y: Labels) -> float:
    counts = np.bincount(y)
    recall = np.bincount(y, weights=_right(p, y))[counts > 0] / counts[counts > 0]
    return float(recall.mean()) if recall.size > 1 else float("nan")


SCORES = {"auc": _auc, "accuracy": _accuracy, "balanced_accuracy": _balanced}


def _scores(p: Array, y: Labels, draws: list[npt.NDArray[np.intp]]) -> dict[str, Array]:
    """Returns each score on all cases, followed by those on the resamples."""
    tables = [(p, y), *((p[rows], y[rows]) for rows in draws)]
    return {name: np.array([score(*table) for table in tables]) for name, score in SCORES.items()}


def _entries(scores: dict[str, Array], y: Labels, level: float) -> dict[str, Any]:
    counts = np.bincount(y)
    chance = {
        "auc": 0.5,
        "accuracy": float(counts.max() / y.size),
        "balanced_accuracy": 1 / np.count_nonzero(counts),
    }
    return {name: _entry(scores[name], level) | {"chance": chance[name]} for name in scores}


def _entry(scores: Array, level: float) -> dict[str, float | None]:
    low, high = percentile_interval(scores[1:], level)
    return {"value": json_number(scores[0]), "low": json_number(low), "high": json_number(high)}


def _auc_chance(p: Array, y: Labels, n: int, level: float, seed: int) -> dict[str, float | None]:
    generator = np.random.default_rng(seed)
    low, high = percentile_interval([_auc(p, generator.permutation(y)) for _ in range(n)], level)
    return {"chance_low": json_number(low), "chance_high": json_number(high)}
