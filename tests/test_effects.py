"""Metrics of effects against truth, closed forms and brute force."""

import json

import numpy as np
import pytest
from known_effects import infants, tabular
from scipy.optimize import linprog

from medvae.metrics import (
    ate,
    combat,
    difference_of_means,
    e_value,
    effect_report,
    estimate_ate,
    inverse_propensity,
    marginal_sensitivity,
    outside_overlap,
    overlap_report,
    pehe,
    propensity,
    region_means,
    regression,
    t_learner,
    treatment_predictability,
)

MAPS = np.random.default_rng(0).normal(size=(40, 1, 4, 4, 4))


def given(overlap=1.0, n=3000, seed=0):
    truth = tabular(n, overlap, seed)
    outcome, treatment, x, _ = truth.data
    effects = (truth.potential[:, 1] - truth.potential[:, 0]).numpy()
    return outcome.numpy(), treatment.numpy(), x.numpy(), effects, truth.propensity.numpy()


def test_pehe_is_zero_for_the_truth_and_the_spread_for_its_mean():
    *_, effects, _ = given()
    assert pehe(effects, effects) == 0
    assert pehe(np.full_like(effects, effects.mean()), effects) == pytest.approx(
        effects.std(), rel=1e-4
    )
    assert pehe(effects + 1, effects) == pytest.approx(1, rel=1e-5)
    with pytest.raises(ValueError, match="shape"):
        pehe(effects[1:], effects)


def test_the_mean_effect_of_maps_is_a_map_with_an_interval_that_holds_it():
    found = estimate_ate(MAPS, n_resamples=200)
    assert found.value.shape == found.low.shape == MAPS.shape[1:]
    np.testing.assert_allclose(found.value, ate(MAPS))
    assert ((found.low <= found.value) & (found.value <= found.high)).all()
    error = MAPS.std(0) / np.sqrt(len(MAPS))
    np.testing.assert_allclose((found.high - found.low).mean(), 2 * 1.96 * error.mean(), rtol=0.1)
    with pytest.raises(ValueError, match="empty"):
        ate(MAPS[:0])


def test_rows_of_one_patient_and_networks_that_differ_widen_the_interval():
    values = np.random.default_rng(1).normal(size=60)
    repeated, names = np.repeat(values, 5), np.repeat(np.arange(60), 5)

    def width(found):
        return float(found.high - found.low)

    rows, patients = estimate_ate(repeated), estimate_ate(repeated, names)
    assert width(patients) == pytest.approx(width(rows) * np.sqrt(5), rel=0.15)
    members = estimate_ate([values - 1, values, values + 1])
    assert members.value == pytest.approx(values.mean())
    assert width(members) > 1.9


def test_the_interval_covers_as_often_as_it_says():
    generator = np.random.default_rng(2)
    hits = 0
    for seed in range(200):
        found = estimate_ate(generator.normal(size=80), n_resamples=200, seed=seed)
        hits += bool(found.low <= 0 <= found.high)
    assert 0.90 <= hits / 200 <= 0.98


def test_means_in_a_region_leave_the_rest_out():
    region = np.zeros((4, 4, 4))
    region[:2] = 1
    expected = MAPS[:, :, :2].mean(axis=(2, 3, 4))
    np.testing.assert_allclose(region_means(MAPS, region), expected)
    each = np.repeat(region[None], len(MAPS), 0)
    each[0] = 0
    found = region_means(MAPS, each)
    assert np.isnan(found[0]).all()
    np.testing.assert_allclose(found[1:], expected[1:])
    with pytest.raises(ValueError, match="region"):
        region_means(MAPS, region[:3])


def test_simple_estimators_find_the_effect_that_confounding_hides():
    outcome, treatment, x, effects, _ = given()
    truth = effects.mean()
    naive = float(difference_of_means(outcome, treatment)[0])
    assert naive - truth > 1
    assert float(inverse_propensity(outcome, treatment, x)[0]) == pytest.approx(truth, abs=0.15)
    assert pehe(regression(outcome, treatment, x), effects) < 0.1  # the truth is linear
    assert abs(t_learner(outcome, treatment, x).mean() - truth) < 0.35


@pytest.mark.parametrize("shape", [(4, 5), (3, 4, 2)], ids=["2D", "3D"])
def test_estimators_treat_every_voxel_as_a_number(shape):
    outcome, treatment, x, *_ = given(n=200)
    scale = np.random.default_rng(3).normal(size=shape)
    maps = outcome.reshape(-1, 1, *(1,) * len(shape)) * scale
    np.testing.assert_allclose(
        difference_of_means(maps, treatment)[0],
        difference_of_means(outcome, treatment)[0] * scale,
    )
    for estimate in (regression, t_learner):
        expected = estimate(outcome, treatment, x).reshape(-1, 1, *(1,) * len(shape)) * scale
        np.testing.assert_allclose(estimate(maps, treatment, x), expected, atol=1e-6)


def test_combat_removes_a_scanner_and_keeps_what_covariates_tell():
    generator = np.random.default_rng(4)
    x, treatment = generator.normal(size=(600, 2)), generator.integers(0, 2, 600)
    plain = x @ generator.normal(size=(2, 30)) + generator.normal(size=(600, 30))
    scanned = np.where(treatment[:, None] == 1, 3 + plain + 0.5 * (plain - plain.mean(0)), plain)
    under_a, under_b = combat(scanned, treatment, x)
    np.testing.assert_array_equal(under_a[treatment == 0], scanned[treatment == 0])
    np.testing.assert_array_equal(under_b[treatment == 1], scanned[treatment == 1])
    before, after = (
        np.abs(maps[treatment == 1] - plain[treatment == 1]).mean() for maps in (scanned, under_a)
    )
    assert after < 0.15 * before


def test_estimators_refuse_other_codes_than_two_arms():
    outcome, treatment, x, *_ = given(n=50)
    for codes in (treatment + 1, np.zeros(50), treatment[1:]):
        with pytest.raises(ValueError, match="0 or 1"):
            regression(outcome, codes, x)


def test_the_propensity_is_found_and_the_share_outside_grows_with_confounding():
    for overlap, low, high in ((0.0, 0.0, 0.01), (1.0, 0.0, 0.05), (4.0, 0.4, 0.6)):
        _, treatment, x, _, truth = given(overlap)
        found = propensity(x, treatment)
        np.testing.assert_allclose(found.sum(1), 1)
        assert np.abs(found[:, 1] - truth).mean() < 0.03
        assert low <= outside_overlap(found).mean() <= high
    report = overlap_report(x, treatment, ["A", "B"])
    assert report["arms"] == {"A": int((treatment == 0).sum()), "B": int((treatment == 1).sum())}
    assert report["outside"] == pytest.approx(outside_overlap(found).mean())
    assert report["auc"] > 0.9


def test_without_covariates_the_propensity_is_the_share_of_the_arms():
    treatment = np.array([0, 1, 1, 1] * 10)
    np.testing.assert_allclose(propensity(np.zeros((40, 0)), treatment), [[0.25, 0.75]] * 40)
    with pytest.raises(ValueError, match="one arm only"):
        propensity(np.zeros((40, 1)), np.zeros(40))
    with pytest.raises(ValueError, match="whole numbers"):
        propensity(np.zeros((4, 1)), np.array([0, 0.5, 1, 1]))


def test_codes_that_carry_the_treatment_are_told_from_those_that_do_not():
    _, treatment, x, *_ = given(n=800)
    generator = np.random.default_rng(5)
    noise = generator.normal(size=(800, 4))
    assert abs(treatment_predictability(noise, x, treatment)) < 0.01
    assert abs(treatment_predictability(x @ np.ones((3, 1)), x, treatment)) < 0.01
    carrying = noise + treatment[:, None] * np.array([1.0, 0, 0, 0])
    assert treatment_predictability(carrying, x, treatment) > 0.05


def test_an_effect_is_reported_apart_inside_and_outside_the_overlap():
    effects = np.array([1.0] * 30 + [5.0] * 10)
    report = effect_report(effects, effects + 1, effects > 2, spread=1.0, n_resamples=50)
    assert report["all"]["ate"] == pytest.approx(2)
    assert report["inside"] == {
        "subjects": 30,
        "ate": 1.0,
        "low": 1.0,
        "high": 1.0,
        "true_ate": 2.0,
        "pehe": 1.0,
    }
    assert report["outside"]["ate"] == 5
    assert report["e_value"] == e_value(2.0, 1.0)
    assert effect_report(effects, n_resamples=2)["outside"] == {"subjects": 0}


def test_subjects_whose_effect_is_not_defined_are_counted_and_left_out():
    report = effect_report([1, 2, 3, np.nan], spread=1, n_resamples=20)
    assert report["undefined"] == 1
    assert report["all"] == effect_report([1, 2, 3], n_resamples=20)["all"]
    assert report["e_value"] == e_value(2.0, 1.0)
    json.dumps(report, allow_nan=False)
    outside = [False, True, False, True]
    report = effect_report([1, 2, 3, np.nan], [0, 2, np.nan, 1], outside, n_resamples=20)
    assert report["undefined"] == 2
    assert report["outside"]["pehe"] == 0
    assert (report["all"]["subjects"], report["all"]["true_ate"]) == (2, 1)
    nobody = effect_report([np.nan], spread=1.0)
    assert nobody["undefined"] == 1
    assert nobody["all"] == {"subjects": 0}
    assert "e_value" not in nobody


@pytest.mark.parametrize("estimate", [regression, t_learner])
def test_effects_of_some_subjects_are_theirs_among_all(estimate):
    outcome, treatment, x, *_ = given(n=200)
    every = estimate(outcome, treatment, x)
    np.testing.assert_allclose(estimate(outcome, treatment, x, at=x[50:60]), every[50:60])
    assert estimate(outcome[:, 0], treatment, x, at=x[:1]).shape == (1,)


def test_the_t_learner_is_the_difference_of_its_neighbours_means():
    outcome, treatment, x, *_ = given(n=60)
    distance = np.linalg.norm(x[7] - x, axis=1)
    means = [
        outcome[np.flatnonzero(treatment == arm)[np.argsort(distance[treatment == arm])[:5]]].mean(
            0
        )
        for arm in (1, 0)
    ]
    found = t_learner(outcome, treatment, x, k=5, at=x[7:8])
    np.testing.assert_allclose(found[0], means[0] - means[1])


def test_the_e_value_is_that_of_its_formula():
    ratio = np.exp(0.91 * 0.5)
    assert e_value(-1.0, 2.0) == pytest.approx(ratio + np.sqrt(ratio * (ratio - 1)))
    assert e_value(0.0, 1.0) == 1
    with pytest.raises(ValueError, match="above 0"):
        e_value(1.0, 0.0)


def test_sensitivity_bounds_are_those_of_a_linear_program_and_close_for_strength_one():
    outcome, treatment, _, _, probability = given(n=60)
    y, e = outcome[:, 0], np.clip(probability, 0.05, 0.95)
    weights = np.where(treatment == 1, 1 / e, 1 / (1 - e))
    arms = [treatment == 1, treatment == 0]
    treated, control = (np.average(y[rows], weights=weights[rows]) for rows in arms)
    assert marginal_sensitivity(y, treatment, e, 1.0) == pytest.approx((treated - control,) * 2)

    def extreme(rows, sign, strength):
        # Charnes and Cooper: minimise sign y w with sum w = 1 and lower k <= w <= upper k
        odds, n = weights[rows] - 1, rows.sum()
        lower, upper = 1 + odds / strength, 1 + odds * strength
        bounds = np.concatenate(
            [np.hstack([-np.eye(n), lower[:, None]]), np.hstack([np.eye(n), -upper[:, None]])]
        )
        found = linprog(np.append(sign * y[rows], 0), bounds, np.zeros(2 * n), [[1] * n + [0]], [1])
        return sign * found.fun

    low, high = marginal_sensitivity(y, treatment, e, 2.0)
    assert low == pytest.approx(extreme(arms[0], 1, 2) - extreme(arms[1], -1, 2), abs=1e-5)
    assert high == pytest.approx(extreme(arms[0], -1, 2) - extreme(arms[1], 1, 2), abs=1e-5)
    wider = marginal_sensitivity(y, treatment, e, 3.0)
    assert wider.low < low
    assert wider.high > high
    with pytest.raises(ValueError, match="strength of at least 1"):
        marginal_sensitivity(y, treatment, e, 0.5)


def test_infants_are_as_the_trial_was():
    truth = infants(seed=1)
    treated = truth.data.treatment == 1
    effects = truth.scale * (truth.potential[:, 1] - truth.potential[:, 0])[:, 0]
    assert 700 < len(treated) < 800
    assert 100 < treated.sum() < 180
    assert effects[treated].mean().item() == pytest.approx(4, abs=1e-3)
    assert truth.data.covariates.shape[1] == 25
    # one kind of child is in the control arm alone
    assert (truth.data.covariates[treated, 6] == 1).all()
    assert (truth.data.covariates[~treated, 6] == 0).any()
    noise = truth.data.outcome[:, 0] - truth.potential[range(len(treated)), treated.long(), 0]
    assert (truth.scale * noise).std().item() == pytest.approx(1, abs=0.1)
