"""Disentanglement scores against scipy and scikit-learn, calibration and laws."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import digamma
from scipy.stats import spearmanr
from sklearn.feature_selection import mutual_info_classif, mutual_info_regression
from sklearn.linear_model import LinearRegression

from medvae.metrics import (
    dci,
    entropy,
    interpretability,
    is_discrete,
    mig,
    modularity,
    mutual_information,
    sap,
    scc,
)
from medvae.metrics.disentanglement import r_squared, rank_correlation

SCORES = (interpretability, scc, mig, sap)


def cohort(n, n_axes=64, n_attributes=7, seed=0, noise=None):
    """Independent normal attributes; with a noise sd, axis k is attribute k plus that noise."""
    rng = np.random.default_rng(seed)
    attributes, codes = rng.normal(size=(n, n_attributes)), rng.normal(size=(n, n_axes))
    if noise is not None:
        codes[:, :n_attributes] = attributes + noise * rng.normal(size=attributes.shape)
    return codes, attributes


def averaged(score, n, transform=None, seeds=10):
    values = []
    for seed in range(seeds):
        codes, attributes = cohort(n, seed=seed)
        if transform is not None:
            codes[:, : attributes.shape[1]] = transform(attributes)
        values.append(np.mean(score(codes, attributes)))
    return np.mean(values)


@pytest.mark.parametrize(
    ("score", "transform", "expected", "tolerance"),
    [
        (scc, None, 0.46, 0.06),
        (sap, None, 0.06, 0.03),
        (mig, None, 0.025, 0.02),
        (interpretability, None, 0.067, 0.03),
        (interpretability, lambda y: 3 - 2 * y, 1, 1e-9),
        (scc, lambda y: 3 - 2 * y, 1, 1e-9),
        (mig, lambda y: 3 - 2 * y, 0.87, 0.04),
        (sap, lambda y: 3 - 2 * y, 0.77, 0.06),
        (scc, np.exp, 1, 1e-9),
        (interpretability, np.exp, 0.75, 0.06),
        (mig, np.exp, 0.55, 0.06),
        (sap, np.exp, 0.52, 0.08),
        (modularity, None, 0.89, 0.03),
        (modularity, lambda y: 3 - 2 * y, 0.90, 0.03),
    ],
)
def test_calibration_at_30_rows(score, transform, expected, tolerance):
    assert averaged(score, 30, transform) == pytest.approx(expected, abs=tolerance)


def test_ideal_codes_reach_one_at_1000_rows():
    codes, attributes = cohort(1000, n_attributes=4, n_axes=16, noise=0)
    for score in SCORES:
        assert score(codes, attributes).mean() >= 0.98
    assert modularity(codes[:, :4], attributes) >= 0.98


@pytest.mark.parametrize("n", [30, 80, 1000])
def test_entropy_without_ties_depends_on_n_alone(n):
    attributes = np.exp(cohort(n)[1])
    np.testing.assert_allclose(entropy(attributes), digamma(n) - digamma(4), atol=1e-3)


def test_information_equals_scikit_learn():
    codes, attributes = cohort(120, n_axes=8, n_attributes=4, noise=1.0)
    attributes[:, 2] = attributes[:, 2] > 0.5
    attributes[:, 3] = np.digitize(attributes[:, 3], [-1, 0, 1])
    information = mutual_information(codes, attributes)
    for k, oracle in enumerate([mutual_info_regression] * 2 + [mutual_info_classif] * 2):
        expected = oracle(codes, attributes[:, k], random_state=0)
        np.testing.assert_allclose(information[:, k], expected, atol=1e-9)


def test_information_of_a_class_that_occurs_once_is_that_of_the_others():
    codes, attributes = cohort(60, n_axes=3, n_attributes=1)
    classes = (attributes > 0).astype(float)
    classes[0] = 2
    expected = mutual_info_classif(codes, classes[:, 0], random_state=0)
    np.testing.assert_allclose(
        mutual_information(codes, classes, [True])[:, 0], expected, atol=1e-9
    )


def test_linear_and_rank_matrices_equal_scipy_and_scikit_learn():
    codes, attributes = cohort(40, n_axes=6, n_attributes=3, noise=1.5)
    attributes[:, 1] = np.round(attributes[:, 1])  # ties
    linear, rank = r_squared(codes, attributes), rank_correlation(codes, attributes)
    for d in range(6):
        for k in range(3):
            axis, target = codes[:, [d]], attributes[:, k]
            fit = LinearRegression().fit(axis, target)
            assert linear[d, k] == pytest.approx(fit.score(axis, target), abs=1e-9)
            rho, p = spearmanr(codes[:, d], target)
            assert rank[d, k] == pytest.approx(abs(rho) if p <= 0.05 else 0.0, abs=1e-9)


def test_rank_correlation_is_cut_at_scipys_p_value():
    codes, attributes = cohort(15, n_axes=300, n_attributes=1)
    rho, p = (np.asarray(part)[0, 1:] for part in spearmanr(np.hstack((attributes, codes))))
    assert ((p > 0.03) & (p < 0.07)).sum() > 5
    expected = np.where(p > 0.05, 0.0, np.abs(rho))
    np.testing.assert_allclose(rank_correlation(codes, attributes)[:, 0], expected, atol=1e-9)


@pytest.mark.parametrize("score", SCORES)
def test_constant_and_duplicated_codes(score):
    codes, attributes = cohort(100, n_axes=8, n_attributes=4, noise=0)
    assert np.array_equal(score(np.ones_like(codes), attributes), np.zeros(4))
    assert np.array_equal(score(codes, np.full_like(attributes, 7.3)), np.zeros(4))
    collapsed = score(1e-7 * codes, attributes)  # variance below 1e-12
    assert np.array_equal(collapsed, np.zeros(4))
    twice = score(np.hstack((codes, codes)), attributes)
    expected = {interpretability: 1, scc: 1, mig: 0, sap: 0}[score]
    np.testing.assert_allclose(twice, expected, atol=1e-6)


@pytest.mark.parametrize("score", SCORES)
def test_scores_ignore_row_order_axis_order_and_units(score):
    codes, attributes = cohort(50, n_axes=9, n_attributes=3, noise=0.8)
    expected = score(codes, attributes)
    rng = np.random.default_rng(3)
    rows, axes = rng.permutation(50), rng.permutation(9)
    np.testing.assert_allclose(score(codes[rows], attributes[rows]), expected, atol=1e-12)
    np.testing.assert_allclose(score(codes[:, axes], attributes), expected, atol=1e-12)
    np.testing.assert_allclose(
        score(100 * codes - 5, 1e-9 * attributes + 1e-9), expected, atol=1e-6
    )


@pytest.mark.parametrize("score", SCORES)
def test_tied_axes(score):
    codes, attributes = cohort(80, n_axes=8, n_attributes=3, noise=0.3)
    free = score(codes, attributes)
    np.testing.assert_allclose(score(codes, attributes, axes=[0, 1, 2]), free, atol=1e-12)
    wrong = score(codes, attributes, axes=[1, 2, 0])
    assert (wrong < 0.3).all()
    if score in (mig, sap):  # another axis knows more: the gap has the opposite sign
        assert (wrong < 0).all()
    else:
        assert (wrong >= 0).all()


def test_gap_with_tied_axes_by_hand():
    codes, attributes = cohort(60, n_axes=5, n_attributes=2, noise=0.5)
    matrix = r_squared(codes, attributes)
    expected = [matrix[3, k] - np.delete(matrix[:, k], 3).max() for k in range(2)]
    np.testing.assert_allclose(sap(codes, attributes, axes=[3, 3]), expected)


def test_a_single_axis_is_compared_with_nothing():
    codes, attributes = cohort(60, n_axes=1, n_attributes=1, noise=0.1)
    np.testing.assert_allclose(sap(codes, attributes), interpretability(codes, attributes))
    assert np.isnan(modularity(codes, attributes))


@pytest.mark.parametrize("score", SCORES)
def test_missing_rows_are_masked_per_attribute(score):
    codes, attributes = cohort(70, n_axes=6, n_attributes=3, noise=0.7)
    missing = np.random.default_rng(1).random(attributes.shape) < 0.3
    attributes[missing] = np.nan
    attributes[4:, 2] = np.nan  # too few rows are left
    masked = score(codes, attributes)
    for k in range(2):
        rows = ~missing[:, k]
        alone = score(codes[rows], attributes[rows][:, [k]])
        np.testing.assert_allclose(masked[k], alone[0], atol=1e-12)
    assert np.isnan(masked[2])


def test_modularity_by_hand():
    codes, attributes = cohort(60, n_axes=5, n_attributes=3, noise=0.6)
    codes[:, 4] = 0  # an axis without information counts 0
    squared = mutual_information(codes, attributes) ** 2
    by_axis = [
        1 - (np.sort(row)[:-1].sum()) / (row.max() * 2) if row.max() > 0 else 0 for row in squared
    ]
    assert modularity(codes, attributes) == pytest.approx(np.mean(by_axis))
    assert modularity(np.zeros_like(codes), attributes) == 0
    assert modularity(np.hstack((codes[:, :1], codes[:, :1])), attributes) == pytest.approx(
        by_axis[0]
    )


def test_which_attributes_are_discrete():
    rng = np.random.default_rng(0)
    assert is_discrete([0.0, 1.0, np.nan, 1.0])
    assert is_discrete([0.2, 0.7, 0.7])
    ratings = rng.integers(1, 6, 100)
    assert is_discrete(ratings)
    assert is_discrete((np.log(ratings) - 1.3) / 0.7)  # as a scaler leaves it
    assert not is_discrete(rng.integers(20, 80, 100))  # an age in years
    assert not is_discrete(np.arange(8.0))  # each once
    assert not is_discrete(rng.normal(size=100))


def test_discrete_attributes_are_scored_against_their_true_entropy():
    codes, _ = cohort(400, n_axes=4)
    binary = (np.arange(400) < 100).astype(float)[:, None]
    shannon = -0.25 * np.log(0.25) - 0.75 * np.log(0.75)
    assert entropy(binary)[0] == pytest.approx(shannon)
    codes[:, 0] = 2 * binary[:, 0] + 0.5 * codes[:, 0]
    best = np.sort(mutual_info_classif(codes, binary[:, 0], random_state=0))
    assert mig(codes, binary)[0] == pytest.approx((best[-1] - best[-2]) / shannon, abs=1e-9)
    assert abs(mig(codes, binary, discrete=[False])[0] - mig(codes, binary)[0]) > 0.01
    codes[:, 0] = 10 * binary[:, 0] + 0.1 * codes[:, 0]
    assert mig(codes[:, :1], binary)[0] > 0.95  # separated classes determine the attribute


def test_dci_of_perfect_duplicated_mixed_and_constant_codes():
    codes, attributes = cohort(150, n_axes=8, n_attributes=3, noise=0)
    perfect = dci(codes, attributes)
    assert min(perfect[:3]) > 0.9
    assert np.argmax(perfect.importance, axis=0).tolist() == [0, 1, 2]
    duplicated = dci(np.hstack((codes[:, :3], codes[:, :3])), attributes)
    assert duplicated.disentanglement > 0.95
    share = np.where(duplicated.importance > 0, duplicated.importance, 1)
    expected = 1 + np.sum(share * np.log(share), axis=0) / np.log(6)
    np.testing.assert_allclose(duplicated.completeness_of, expected)
    assert duplicated.completeness == pytest.approx(1 - np.log(2) / np.log(6), abs=0.1)
    mixed = codes.copy()
    mixed[:, :3] = attributes @ np.array([[1, 1, 1], [1, -1, 0], [1, 1, -2.0]])
    assert dci(mixed, attributes).disentanglement < 0.8
    assert dci(np.ones_like(codes), attributes)[:3] == (0, 0, 0)
    assert dci(codes, np.ones_like(attributes))[:3] == (0, 0, 0)


def test_dci_treats_discrete_attributes_as_classes_and_masks_missing_ones():
    codes, attributes = cohort(150, n_axes=12, n_attributes=3, noise=0)
    attributes[:, :2] = attributes[:, :2] > 0.3
    attributes[::3, 1] = np.nan
    attributes[:, 2] = np.nan
    result = dci(codes, attributes)
    assert result.informativeness_of[:2].min() > 0.8
    assert result.completeness_of[:2].min() > 0.8
    assert np.isnan(result.informativeness_of[2])
    assert np.isnan(result.completeness_of[2])
    assert result.informativeness == pytest.approx(result.informativeness_of[:2].mean())
    rows = np.arange(150) % 3 != 0
    alone = dci(codes[rows], attributes[rows][:, [1]], patients=np.arange(150)[rows])
    assert alone.informativeness == pytest.approx(result.informativeness_of[1], abs=0.1)


def test_dci_holds_whole_patients_out():
    # ten rows per patient share code and attribute: only leakage between folds could predict it
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(20), 10)
    codes = rng.normal(size=(20, 3))[patients] + 0.001 * rng.normal(size=(200, 3))
    attributes = rng.normal(size=(20, 2))[patients]
    assert dci(codes, attributes).informativeness > 0.8
    assert dci(codes, attributes, patients=patients).informativeness < 0.2


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 1000), st.integers(6, 40), st.integers(1, 5), st.integers(1, 4))
def test_scores_stay_in_their_range(seed, n, n_axes, n_attributes):
    codes, attributes = cohort(n, n_axes, n_attributes, seed)
    attributes[:, 0] = np.random.default_rng(seed).integers(0, 3, n)
    codes[:, 0] = np.round(codes[:, 0])  # ties
    for score in (interpretability, scc, sap):
        values = score(codes, attributes)
        assert ((values >= 0) & (values <= 1)).all()
    assert (mig(codes, attributes) >= 0).all()


def test_bad_input_is_named():
    codes, attributes = cohort(10, 3, 2)
    broken = codes.copy()
    broken[3, 1] = np.nan
    with pytest.raises(ValueError, match="codes: axis 1 holds NaN"):
        scc(broken, attributes)
    infinite = attributes.copy()
    infinite[0, 1] = np.inf
    with pytest.raises(ValueError, match="attributes: column 1 holds infinite"):
        mig(codes, infinite)
    with pytest.raises(ValueError, match="shape"):
        sap(codes[:5], attributes)
    with pytest.raises(ValueError, match="expected numbers from 0 to 2"):
        sap(codes, attributes, axes=[0, 3])
    with pytest.raises(ValueError, match="one axis for each of 2"):
        sap(codes, attributes, axes=[0])
    with pytest.raises(ValueError, match="one flag for each"):
        mig(codes, attributes, discrete=[True])
