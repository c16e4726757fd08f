"""The peer of a classifier head: what the raw attributes alone predict."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from sklearn.base import ClassifierMixin
from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from .classification import roc_auc
from .information import Array
from .intervals import folds_by_patient

__all__ = ["raw_attribute_classifier"]

FOLDS = 5
TREES = 200
STAGES = 100


def raw_attribute_classifier(
    train_attributes: npt.ArrayLike,
    train_labels: npt.ArrayLike,
    test_attributes: npt.ArrayLike,
    patients: npt.ArrayLike | None = None,
    seed: int = 0,
) -> Array:
    """Predicts the class from the attributes alone, as a peer for a network's classifier head.

    Logistic regression (three strengths of penalty), a random forest and gradient boosting compete;
    the one with the best area under the curve over five inner folds of the training rows, pooled,
    is refitted on all of them. The test rows take no part. Missing attributes are filled with the
    training rows' median *inside the model*, each beside an indicator that it was missing, so that
    being missing can itself be informative; the table is left as it is.

    Args:
        train_attributes: Shape (N, K); NaN = missing.
        train_labels: Shape (N,), whole numbers from 0; NaN = missing, the row is left out.
        test_attributes: Shape (M, K).
        patients: Patient of each training row, kept in one inner fold; None = one patient per row.
        seed: Seed of folds and models.

    Returns:
        Class probabilities, shape (M, C) with C the largest training label + 1, at least 2.

    Raises:
        ValueError: If shapes disagree, an attribute is infinite, a label is not a class number, or
            fewer than two classes occur.
    """
    x, x_test = (np.asarray(a, dtype=np.float64) for a in (train_attributes, test_attributes))
    labels = np.asarray(train_labels, dtype=np.float64)
    _check(x, labels, x_test)
    known = ~np.isnan(labels)
    names = np.arange(labels.size) if patients is None else np.asarray(patients)
    x, y, names = x[known], labels[known].astype(np.intp), names[known]
    n_classes = max(2, int(y.max()) + 1)
    fold = folds_by_patient(names, y.size, FOLDS, seed, labels=y)
    candidates = _candidates(seed)
    best = candidates[0]
    # a class in a single fold would be absent from training there: keep the simplest model
    if all(np.unique(fold[y == label]).size > 1 for label in np.unique(y)):
        best = max(candidates, key=lambda model: _inner_auc(model, x, y, fold, n_classes))
    return _predict(best.fit(x, y), x_test, n_classes)


def _candidates(seed: int) -> list[Pipeline]:
    classifiers: list[ClassifierMixin] = [
        *(LogisticRegression(C=strength, max_iter=5000) for strength in (1.0, 0.1, 10.0)),
        RandomForestClassifier(TREES, min_samples_leaf=3, random_state=seed),
        GradientBoostingClassifier(n_estimators=STAGES, max_depth=2, random_state=seed),
    ]
    return [
        make_pipeline(
            SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True),
            StandardScaler(),
            classifier,
        )
        for classifier in classifiers
    ]


def _inner_auc(
    model: Pipeline, x: Array, y: npt.NDArray[np.intp], fold: npt.NDArray[np.intp], n_classes: int
) -> float:
    probabilities = np.empty((y.size, n_classes))
    for held_out in np.unique(fold):
        train, test = fold != held_out, fold == held_out
        probabilities[test] = _predict(model.fit(x[train], y[train]), x[test], n_classes)
    return roc_auc(probabilities, y)


def _predict(model: Pipeline, x: Array, n_classes: int) -> Array:
    probabilities = np.zeros((len(x), n_classes))
    probabilities[:, model.classes_] = model.predict_proba(x)
    return np.clip(probabilities, 0.0, 1.0)


def _check(x: Array, labels: Array, x_test: Array) -> None:
    if (
        x.ndim != 2
        or x_test.ndim != 2
        or labels.shape != x.shape[:1]
        or x.shape[1] != x_test.shape[1]
    ):
        raise ValueError(
            f"train_attributes have shape {x.shape}, train_labels {labels.shape} and "
            f"test_attributes {x_test.shape}: expected (N, K), (N,) and (M, K)."
        )
    if np.isinf(x).any() or np.isinf(x_test).any():
        raise ValueError("attributes: found infinite values, expected numbers or NaN (missing).")
    found = np.unique(labels[~np.isnan(labels)])
    if found.size < 2 or found.min() < 0 or (found != np.round(found)).any():
        raise ValueError(
            f"train_labels: found {found.tolist()}, expected at least two class numbers from 0."
        )
