"""Resampling by patients, the disentanglement report and out-of-sample R²."""

import json

import numpy as np
import pytest
from sklearn.metrics import r2_score

from medvae.metrics import (
    bootstrap_rows,
    dci,
    disentanglement_report,
    half_sample_interval,
    half_sample_rows,
    interpretability,
    mig,
    modularity,
    mutual_information,
    percentile_interval,
    prediction_r2,
    sap,
    scc,
)
from medvae.metrics.intervals import folds_by_patient

PATIENTS = np.array(["c", "a", "a", "b", "d", "d", "d", "e"])


def test_patients_are_drawn_whole():
    draws = list(bootstrap_rows(PATIENTS, 8, 50))
    sizes = dict(zip(*np.unique(PATIENTS, return_counts=True), strict=True))
    for rows in draws:
        names, counts = np.unique(PATIENTS[rows], return_counts=True)
        assert all(count % sizes[name] == 0 for name, count in zip(names, counts, strict=True))
        assert sum(count // sizes[name] for name, count in zip(names, counts, strict=True)) == 5
    for rows in half_sample_rows(PATIENTS, 8, 50):
        names, counts = np.unique(PATIENTS[rows], return_counts=True)
        assert len(names) == 2
        assert all(count == sizes[name] for name, count in zip(names, counts, strict=True))
    again = list(bootstrap_rows(PATIENTS, 8, 50))
    assert all(np.array_equal(a, b) for a, b in zip(draws, again, strict=True))


def test_without_patients_every_row_is_one_and_too_few_are_not_drawn():
    assert all(len(rows) == 8 for rows in bootstrap_rows(None, 8, 5))
    assert all(len(set(rows)) == 4 for rows in half_sample_rows(None, 8, 5))
    assert not list(bootstrap_rows(["a", "a"], 2, 5))
    assert not list(half_sample_rows(["a", "b", "c"], 3, 5))
    with pytest.raises(ValueError, match="one per row"):
        list(bootstrap_rows(["a"], 2, 5))


def test_folds_keep_patients_together_and_spread_classes():
    patients = np.repeat(np.arange(20), 3)
    labels = np.repeat((np.arange(20) < 4).astype(int), 3)
    fold = folds_by_patient(patients, 60, 4, seed=1, labels=labels)
    assert all(np.unique(fold[patients == p]).size == 1 for p in range(20))
    assert all(np.count_nonzero(labels[fold == f]) == 3 for f in range(4))


def test_percentile_interval_ignores_a_minority_of_undefined_draws():
    draws = np.arange(101.0)
    low, high = percentile_interval(draws, level=0.9)
    assert (float(low), float(high)) == pytest.approx((5, 95))
    draws[:40] = np.nan
    assert percentile_interval(draws, level=0.9).low == pytest.approx(43)
    draws[:60] = np.nan
    assert np.isnan(percentile_interval(draws).low)
    assert np.isnan(percentile_interval([]).high)


def test_half_samples_estimate_the_standard_error_of_a_mean():
    values = np.random.default_rng(0).normal(size=61)  # odd: halves are of 30
    draws = [values[rows].mean() for rows in half_sample_rows(None, 61, 4000)]
    low, high = half_sample_interval(values.mean(), draws, n_patients=61)
    error = values.std(ddof=1) / np.sqrt(61)
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.05)


def test_bootstrap_by_patients_covers_the_truth_and_by_rows_does_not():
    rng, patients = np.random.default_rng(0), np.repeat(np.arange(30), 4)
    hits = {"patients": 0, "rows": 0}
    for seed in range(200):
        values = rng.normal(size=30)[patients] + 0.3 * rng.normal(size=120)
        for by, names in (("patients", patients), ("rows", None)):
            drawn = bootstrap_rows(names, 120, 100, seed)
            low, high = percentile_interval([values[rows].mean() for rows in drawn])
            hits[by] += bool(low <= 0 <= high)
    assert hits["patients"] >= 176  # 88 %: nominal 95, less what 30 patients and 100 draws cost
    assert hits["rows"] < 150


def test_halves_that_all_score_the_same_have_no_interval():
    interval = half_sample_interval([0.3, 0.3], [[0.0, 0.1], [0.0, 0.2], [0.0, 0.3]], 28)
    assert np.isnan([interval.low[0], interval.high[0]]).all()
    assert interval.low[1] < 0.3 < interval.high[1]


def test_dci_of_few_patients_has_no_interval_where_half_of_them_grow_no_forest():
    rng = np.random.default_rng(0)
    codes = rng.normal(size=(28, 4))
    attributes = codes[:, :2] + 0.1 * rng.normal(size=(28, 2))
    report = disentanglement_report(codes, attributes, ["a", "b"], n_permutations=0, n_resamples=9)
    entry = report["scores"]["dci_informativeness"]["mean"]
    assert entry["value"] > 0.3
    assert entry["low"] is None
    assert report["scores"]["mig"]["mean"]["low"] is not None


def test_half_sample_interval_covers_the_expected_mig():
    rng = np.random.default_rng(1)
    attributes = rng.normal(size=(60, 60, 1))
    codes = np.concatenate((attributes, 0 * attributes), axis=2) + rng.normal(size=(60, 60, 2))
    values = np.array([mig(*cohort, axes=[0])[0] for cohort in zip(codes, attributes, strict=True)])
    hits = 0
    for z, y, value in zip(codes, attributes, values, strict=True):
        halves = [mig(z[rows], y[rows], axes=[0])[0] for rows in half_sample_rows(None, 60, 40)]
        low, high = half_sample_interval(value, halves, n_patients=60)
        hits += bool(low <= values.mean() <= high)
    assert hits >= 51  # 95 % of 60 is 57; below 51 has probability 0.2 %


def test_repeated_rows_bias_the_information_upwards():
    # why MIG, modularity and DCI are not bootstrapped
    rng = np.random.default_rng(0)
    codes, attributes = rng.normal(size=(100, 20)), rng.normal(size=(100, 1))
    rows = next(bootstrap_rows(None, 100, 1))
    half = next(half_sample_rows(None, 100, 1))
    honest = mutual_information(codes, attributes).mean()
    assert mutual_information(codes[rows], attributes[rows]).mean() > honest + 0.2
    assert mutual_information(codes[half], attributes[half]).mean() < honest + 0.1


@pytest.fixture(scope="module")
def cohort():
    rng = np.random.default_rng(0)
    attributes = rng.normal(size=(60, 4))
    codes = rng.normal(size=(60, 6))
    codes[:, :3] = attributes[:, :3] + 0.3 * codes[:, :3]
    attributes[:, 2] = attributes[:, 2] > 0
    attributes[:20, 1] = np.nan
    attributes[3:, 3] = np.nan
    return codes, attributes, np.arange(60) // 2


NAMES = ["volume_ml", "sphericity", "sex", "rare"]


@pytest.fixture(scope="module")
def report(cohort):
    codes, attributes, patients = cohort
    return disentanglement_report(
        codes,
        attributes,
        NAMES,
        axes=[0, 1, 2, 3],
        patients=patients,
        n_permutations=8,
        n_resamples=10,
    )


def test_report_is_json_and_agrees_with_the_functions(report, cohort):
    codes, attributes, patients = cohort
    kept = attributes[:, :3]
    report = json.loads(json.dumps(report, allow_nan=False))
    assert report["rows"] == 60
    assert report["patients"] == 30
    assert report["excluded"] == {"rare": "3 rows observed, expected at least 5"}
    assert [report["attributes"][name]["axis"] for name in NAMES[:3]] == [0, 1, 2]
    assert [report["attributes"][name]["discrete"] for name in NAMES[:3]] == [False, False, True]
    assert report["attributes"]["sphericity"]["observed"] == 40
    for name, score in {
        "interpretability": interpretability,
        "scc": scc,
        "sap": sap,
        "mig": mig,
    }.items():
        values = score(codes, kept, axes=[0, 1, 2])
        entry = report["scores"][name]
        assert entry["mean"]["value"] == pytest.approx(values.mean())
        each = [entry["attributes"][attribute]["value"] for attribute in NAMES[:3]]
        assert each == pytest.approx(values.tolist())
    assert report["scores"]["modularity"]["mean"]["value"] == pytest.approx(modularity(codes, kept))
    importance = dci(codes, kept, patients=patients)
    for name in ("disentanglement", "completeness", "informativeness"):
        value = report["scores"][f"dci_{name}"]["mean"]["value"]
        assert value == pytest.approx(getattr(importance, name))


def test_report_puts_values_between_chance_and_ceiling(report):
    for name, score in report["scores"].items():
        numbers = score["mean"]
        assert numbers["low"] <= numbers["value"] <= numbers["high"] <= 1
        assert numbers["low"] < numbers["high"]
        assert numbers["chance"] <= numbers["chance_p95"]
        if name != "modularity":
            assert numbers["chance_p95"] < numbers["value"] <= numbers["ceiling"] + 0.05
    assert report["scores"]["scc"]["mean"]["ceiling"] == pytest.approx(1)
    assert report["scores"]["interpretability"]["mean"]["ceiling"] == pytest.approx(1)


def test_report_repeats_and_follows_its_seed(cohort):
    codes, attributes, patients = cohort
    rows = np.arange(60)

    def run(seed):
        table = codes[rows, :3], attributes[rows, :1], ["volume_ml"]
        return disentanglement_report(
            *table, [2], patients=patients[rows], n_permutations=3, n_resamples=3, seed=seed
        )

    first, other = run(0), run(1)
    assert first == run(0)
    assert first["attributes"]["volume_ml"]["axis"] == 2  # as asked, though axis 0 knows more
    assert first["scores"]["sap"]["mean"]["value"] < 0
    for score in ("sap", "mig", "dci_completeness"):
        numbers, others = (r["scores"][score]["mean"] for r in (first, other))
        assert numbers["low"] != others["low"]
        assert numbers["chance"] != others["chance"]
        assert (numbers["value"] == others["value"]) is (score != "dci_completeness")


def test_report_of_noise_is_at_chance():
    rng = np.random.default_rng(2)
    report = disentanglement_report(
        rng.normal(size=(60, 12)), rng.normal(size=(60, 3)), "abc", n_permutations=30, n_resamples=0
    )
    for score in report["scores"].values():
        numbers = score["mean"]
        assert numbers["value"] < numbers["chance_p95"] + 0.05
        assert numbers["low"] is None
    assert report["scores"]["scc"]["mean"]["chance"] > 0.1  # the best of 12 axes
    assert report["axes"] == "most informative"


def test_report_intervals_are_by_patients():
    rng = np.random.default_rng(3)
    patients = np.tile(np.arange(30), 3)
    attributes = rng.normal(size=(90, 1))
    codes = attributes + 0.5 * rng.normal(size=(90, 2))  # two axes: the other one is never in doubt
    report = disentanglement_report(
        codes, attributes, ["a"], [0], patients=patients, n_permutations=0, n_resamples=12, seed=5
    )
    boots = bootstrap_rows(patients, 90, 12, seed=5)
    halves = half_sample_rows(patients, 90, 12, seed=5)
    expected = {
        "sap": percentile_interval([sap(codes[r], attributes[r], axes=[0]) for r in boots]),
        "mig": half_sample_interval(
            mig(codes, attributes, axes=[0]),
            [mig(codes[r], attributes[r], axes=[0]) for r in halves],
            n_patients=30,
        ),
    }
    for score, (low, high) in expected.items():
        numbers = report["scores"][score]["attributes"]["a"]
        assert (numbers["low"], numbers["high"]) == pytest.approx((low[0], high[0]))


def test_report_names_bad_input():
    codes = np.zeros((10, 2))
    with pytest.raises(ValueError, match="names has 1 entries"):
        disentanglement_report(codes, np.zeros((10, 2)), ["a"])
    with pytest.raises(ValueError, match="axes has 1 entries"):
        disentanglement_report(codes, np.zeros((10, 2)), ["a", "b"], axes=[0])
    with pytest.raises(ValueError, match="'a': '0 rows observed"):
        disentanglement_report(codes, np.full((10, 1), np.nan), ["a"])


def test_prediction_r2_equals_scikit_learn_and_masks():
    rng = np.random.default_rng(0)
    attributes = rng.normal(size=(80, 4)) * [1, 100, 1, 1] + [0, 50, 0, 0]
    predicted = attributes + rng.normal(size=(80, 4)) * [0.3, 30, 2, 1]
    attributes[:, 3] = 4.2
    observed = rng.random(80) > 0.3
    attributes[~observed, 1] = np.nan
    report = json.loads(
        json.dumps(prediction_r2(predicted, attributes, list("abcd")), allow_nan=False)
    )
    expected = [
        r2_score(attributes[rows, k], predicted[rows, k])
        for k, rows in enumerate((observed | True, observed, observed | True))
    ]
    each = [report["attributes"][name]["value"] for name in "abc"]
    assert each == pytest.approx(expected)
    assert expected[2] < 0  # worse than the constant, and said so
    assert report["attributes"]["d"]["value"] is None
    assert report["attributes"]["b"]["rows"] == observed.sum()
    assert report["mean"]["value"] == pytest.approx(np.mean(expected))
    for name in "abc":
        numbers = report["attributes"][name]
        assert numbers["low"] < numbers["value"] < numbers["high"]
    assert report["mean"]["low"] < report["mean"]["value"] < report["mean"]["high"]


def test_prediction_r2_names_bad_input():
    with pytest.raises(ValueError, match="expected finite predictions"):
        prediction_r2([[np.nan]], [[1.0]])
    with pytest.raises(ValueError, match="names 2 entries"):
        prediction_r2([[1.0]], [[1.0]], ["a", "b"])
