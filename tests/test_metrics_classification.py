"""Class predictions pooled over cases, chance levels, and the peer on raw attributes."""

import json

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, roc_auc_score

from medvae.metrics import (
    accuracy,
    balanced_accuracy,
    classification_report,
    raw_attribute_classifier,
    roc_auc,
)


def binary(n=60, seed=0, strength=1.0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    return np.round(1 / (1 + np.exp(-strength * (2 * labels - 1) - rng.normal(size=n))), 2), labels


def multiclass(n=90, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n)
    logits = rng.normal(size=(n, 3)) + 1.5 * np.eye(3)[labels]
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True), labels


def test_binary_scores_equal_scikit_learn():
    p, y = binary()  # rounded to two digits: ties
    assert roc_auc(p, y) == pytest.approx(roc_auc_score(y, p))
    assert accuracy(p, y) == pytest.approx(accuracy_score(y, p >= 0.5))
    assert balanced_accuracy(p, y) == pytest.approx(balanced_accuracy_score(y, p >= 0.5))
    both = np.stack((1 - p, p), axis=1)
    for score in (roc_auc, accuracy, balanced_accuracy):
        assert score(both, y) == pytest.approx(score(p, y))
        assert score(p[:, None], y) == pytest.approx(score(p, y))


def test_multiclass_scores_equal_scikit_learn():
    p, y = multiclass()
    assert roc_auc(p, y) == pytest.approx(roc_auc_score(y, p, multi_class="ovr", average="macro"))
    assert accuracy(p, y) == pytest.approx(accuracy_score(y, p.argmax(axis=1)))
    assert balanced_accuracy(p, y) == pytest.approx(balanced_accuracy_score(y, p.argmax(axis=1)))


def test_multiclass_auc_skips_a_class_that_does_not_occur():
    p, y = multiclass()
    rows = y != 2
    expected = [roc_auc_score(y[rows] == label, p[rows, label]) for label in (0, 1)]
    assert roc_auc(p[rows], y[rows]) == pytest.approx(np.mean(expected))


def test_order_and_batches_do_not_matter():
    # the published protocol scored batches of 16 of this list: perfect gave 0.60, constant 0.30
    labels = np.tile(np.repeat([1, 0], 20), 2)
    perfect = classification_report(0.8 * labels + 0.1, labels, n_resamples=20, n_permutations=20)
    assert perfect["auc"]["value"] == 1.0
    assert perfect["accuracy"]["value"] == 1.0
    constant = classification_report(np.full(80, 0.7), labels, n_resamples=0, n_permutations=0)
    assert constant["auc"]["value"] == 0.5
    assert constant["balanced_accuracy"]["value"] == 0.5
    p, y = binary()
    order = np.random.default_rng(1).permutation(y.size)
    assert roc_auc(p[order], y[order]) == pytest.approx(roc_auc(p, y))


def test_missing_labels_are_left_out():
    p, y = binary()
    labels = y.astype(float)
    labels[::4] = np.nan
    report = classification_report(p, labels, n_resamples=0, n_permutations=0)
    known = ~np.isnan(labels)
    assert report["auc"]["value"] == pytest.approx(roc_auc_score(y[known], p[known]))
    assert report["cases"] == known.sum()
    assert report["missing"] == 15


def test_one_class_is_undefined_and_never_zero():
    report = classification_report([0.9, 0.8, 0.4], [1, 1, 1], n_resamples=20, n_permutations=20)
    text = json.dumps(report, allow_nan=False)
    assert json.loads(text)["auc"]["value"] is None
    assert report["balanced_accuracy"]["value"] is None
    assert report["reason"] == "AUC and balanced accuracy are undefined: all 3 labels are class 1"
    assert report["accuracy"]["value"] == pytest.approx(2 / 3)
    assert np.isnan(roc_auc([0.9, 0.8], [1, 1]))


def test_report_has_chance_levels_and_intervals():
    p, y = binary(100, strength=0.8)
    report = classification_report(p, y, n_resamples=300, n_permutations=300)
    assert report["reason"] is None
    assert report["accuracy"]["chance"] == pytest.approx(max(y.mean(), 1 - y.mean()))
    assert report["balanced_accuracy"]["chance"] == 0.5
    auc = report["auc"]
    assert auc["low"] < auc["value"] < auc["high"]
    assert auc["chance_low"] < 0.5 < auc["chance_high"] < auc["low"]
    # Mann-Whitney's standard error of a random ranking
    n = np.bincount(y)
    error = np.sqrt((y.size + 1) / (12 * n[0] * n[1]))
    assert auc["chance_high"] - 0.5 == pytest.approx(1.96 * error, rel=0.2)
    assert report == classification_report(p, y, n_resamples=300, n_permutations=300)


def test_intervals_are_by_patients():
    p, y = binary(40, strength=0.6)
    copies = np.tile(np.arange(40), 4)

    def width(patients):
        report = classification_report(p[copies], y[copies], patients, n_resamples=200)
        return report["auc"]["high"] - report["auc"]["low"]

    assert width(copies) > 1.6 * width(None)


def test_auc_interval_covers_the_truth():
    hits = 0
    for seed in range(60):  # two normals one sd apart: AUC = Phi(1 / sqrt 2)
        rng = np.random.default_rng(seed)
        y = np.repeat([0, 1], 40)
        p = 1 / (1 + np.exp(-(y + rng.normal(size=80))))
        auc = classification_report(p, y, n_resamples=100, n_permutations=0)["auc"]
        hits += auc["low"] <= 0.7602 <= auc["high"]
    assert hits >= 51


def test_difference_to_a_reference_is_paired():
    p, y = binary(80, strength=1.0)
    worse, _ = binary(80, seed=5, strength=0.0)
    same = classification_report(p, y, reference_probabilities=p, n_resamples=100)
    assert same["auc_difference"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    report = classification_report(p, y, reference_probabilities=worse, n_resamples=200)
    difference = report["auc_difference"]
    assert difference["value"] == pytest.approx(roc_auc(p, y) - roc_auc(worse, y))
    assert 0 < difference["low"] < difference["value"] < difference["high"]
    assert report["reference"]["auc"]["value"] == pytest.approx(roc_auc(worse, y))
    noisy = classification_report(p, y, reference_probabilities=0.98 * p + 0.02 * worse)
    width = noisy["auc_difference"]["high"] - noisy["auc_difference"]["low"]
    assert width < 0.5 * (noisy["auc"]["high"] - noisy["auc"]["low"])


def test_bad_predictions_are_named():
    with pytest.raises(ValueError, match=r"outside \[0, 1\]"):
        roc_auc([0.2, 3.0], [0, 1])
    with pytest.raises(ValueError, match=r"found \[2.0\], expected class numbers 0 to 1"):
        roc_auc([0.2, 0.3], [0, 2])
    with pytest.raises(ValueError, match="expected"):
        roc_auc([0.2, 0.3], [0, 1, 1])
    with pytest.raises(ValueError, match="labels: found"):
        roc_auc([0.2], [np.nan])
    assert roc_auc([1.0000001, 0.0], [1, 0]) == 1  # a float32 softmax


def attribute_table(n, seed, kind):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 4)) * [1, 1000, 1, 0.001]
    signal = {"linear": x[:, 0] + x[:, 1] / 1000, "ring": 3 - x[:, 0] ** 2 - (x[:, 1] / 1000) ** 2}
    y = (signal[kind] + 0.3 * rng.normal(size=n) > np.median(signal[kind])).astype(int)
    return x, y


@pytest.mark.parametrize("kind", ["linear", "ring"])
def test_peer_finds_linear_and_curved_boundaries(kind):
    x, y = attribute_table(160, 0, kind)
    x_test, y_test = attribute_table(300, 1, kind)
    p = raw_attribute_classifier(x, y, x_test, patients=np.arange(160) // 2)
    assert p.shape == (300, 2)
    np.testing.assert_allclose(p.sum(axis=1), 1)
    assert roc_auc(p, y_test) > 0.9


def test_peer_handles_missing_cells_and_classes_and_leaves_the_table():
    x, y = attribute_table(60, 0, "linear")
    y[x[:, 2] > 1] = 2
    x[::5, 0] = np.nan
    x[:, 3] = np.nan  # never observed
    before, labels = x.copy(), y.astype(float)
    labels[:5] = np.nan
    p = raw_attribute_classifier(x, labels, np.full((3, 4), np.nan))
    np.testing.assert_array_equal(x, before)
    assert p.shape == (3, 3)
    np.testing.assert_allclose(p.sum(axis=1), 1)
    np.testing.assert_array_equal(p, raw_attribute_classifier(x, labels, np.full((3, 4), np.nan)))


def test_peer_uses_that_a_cell_is_missing():
    rng = np.random.default_rng(0)
    y = np.arange(100) % 2
    x = np.ones((100, 2))  # filled in, a missing cell looks like any other
    x[(y == 1) & (rng.random(100) < 0.8), 0] = np.nan
    assert roc_auc(raw_attribute_classifier(x[:60], y[:60], x[60:]), y[60:]) > 0.7


def test_peer_copes_with_a_class_of_one_patient_and_refuses_one_class():
    x, y = attribute_table(40, 0, "linear")
    y[:] = 0
    y[7:9] = 1
    p = raw_attribute_classifier(x, y, x, patients=np.where(y == 1, 999, np.arange(40)))
    assert np.isfinite(p).all()
    with pytest.raises(ValueError, match=r"found \[0.0\], expected at least two class numbers"):
        raw_attribute_classifier(x, np.zeros(40), x)
    with pytest.raises(ValueError, match="infinite"):
        raw_attribute_classifier(x, y, np.full_like(x, np.inf))
    with pytest.raises(ValueError, match="shape"):
        raw_attribute_classifier(x, y, x[:, :2])
