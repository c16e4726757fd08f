"""Control, span, side effects, agreement, reversibility and minimality against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from medvae.metrics import (
    agreement,
    change_outside,
    control,
    manipulation_report,
    natural_effects,
    real_range,
    return_error,
    sweep_effects,
)

RNG = np.random.default_rng(0)


def test_control_is_spearman_s_correlation() -> None:
    table = RNG.normal(size=(20, 7))
    table[3, 2] = table[3, 5] = np.nan
    table[4, 1] = table[4, 2]  # a tie
    expected = [spearmanr(np.arange(7), row, nan_policy="omit").statistic for row in table]
    np.testing.assert_allclose(control(table), expected)


def test_control_of_what_does_not_move_is_zero() -> None:
    rising = np.arange(7.0)
    table = np.array([rising**3, -rising, np.full(7, 2.0), np.full(7, np.nan), rising])
    table[4, 2:] = np.nan  # two points are no order
    np.testing.assert_array_equal(control(table), [1, -1, 0, 0, 0])


def test_chance_of_control_is_zero() -> None:
    assert abs(control(RNG.normal(size=(4000, 7))).mean()) < 4 / np.sqrt(6 * 4000)


def test_span_of_a_sweep_over_the_real_range_is_one() -> None:
    attributes = RNG.uniform(10, 20, size=(5000, 2))
    ranges = real_range(attributes)
    np.testing.assert_allclose(ranges, [[10.5, 10.5], [19.5, 19.5]], atol=0.1)
    low, high = ranges
    sweep = np.array([low, (low + high) / 2, high])
    half = low + (sweep - low) / 2
    found = sweep_effects([sweep, sweep[::-1], half, np.full((3, 2), 3.0)], ranges)
    np.testing.assert_allclose(found, [[1, 1], [-1, -1], [0.5, 0.5], [0, 0]])


def test_natural_effects_are_the_regression_s() -> None:
    size = RNG.normal(size=4000)
    table = np.stack([size, 3 * size + 7, -size + RNG.normal(size=4000), RNG.normal(size=4000)], 1)
    table[:1000, 1] = np.nan
    found = natural_effects(table, real_range(table))
    np.testing.assert_allclose(np.diag(found), 1)
    assert found[0, 1] == pytest.approx(1, abs=0.05)
    root = np.sqrt(0.5)  # both slopes of a correlation of -0.71, in units of the spread
    assert found[0, 2] == pytest.approx(-root, abs=0.04)
    assert found[2, 0] == pytest.approx(-root, abs=0.04)
    np.testing.assert_allclose(found[[0, 1, 2], 3], 0, atol=0.06)


def test_natural_effects_do_not_depend_on_units() -> None:
    table = RNG.normal(size=(200, 3)) @ RNG.normal(size=(3, 3))
    other = table * [1.0, 1000.0, 0.01] + [5.0, 0.0, -3.0]
    np.testing.assert_allclose(
        natural_effects(table, real_range(table)), natural_effects(other, real_range(other))
    )


def test_a_long_tail_does_not_set_the_natural_effects() -> None:
    """From the 5th to the 95th percentile of a volume a diameter goes all its way."""
    diameter = RNG.lognormal(2.0, 0.5, 3000)
    volume = diameter**3
    volume[:5] = 0.0  # no logarithm
    table = np.stack([volume, np.log(diameter), RNG.normal(size=3000)], 1)
    raw = natural_effects(table, real_range(table))
    found = natural_effects(table, real_range(table), [True, False, False])
    assert raw[0, 1] < 0.8
    assert found[0] == pytest.approx([1, 1, 0], abs=0.05)
    np.testing.assert_array_equal(found[1:], raw[1:])
    sweep = np.linspace(*real_range(table), 5)[None, None].repeat(3, 0)
    report = manipulation_report(sweep, table, ["a", "b", "c"], log=[True, False, False])
    assert report["attributes"]["a"]["effects"]["b"]["predicted"] == pytest.approx(found[0, 1])


def test_agreement() -> None:
    truth = RNG.normal(size=(500, 4)) * 3 + 10
    measured = truth + [0.0, 3.0, 0.0, 0.0]
    measured[:, 2] = truth[:, 2].mean()
    measured[:250, 3] = np.nan
    found = agreement(measured, truth)
    sd = truth.std(axis=0)
    np.testing.assert_allclose(found.r2, [1, 1 - 9 / sd[1] ** 2, 0, 1], atol=1e-9)
    np.testing.assert_allclose(found.bias_sd[:2], [0, 3 / sd[1]], atol=1e-9)
    np.testing.assert_allclose(found.error_sd[:2], [0, 3 / sd[1]], atol=1e-9)
    np.testing.assert_allclose(found.found, [1, 1, 1, 0.5])


def test_return_error() -> None:
    start = RNG.random((4, 1, 5, 5))
    there = start + 0.2
    np.testing.assert_allclose(return_error(start, there, start), 0)
    np.testing.assert_allclose(return_error(start, there, there), 1)
    np.testing.assert_allclose(return_error(start, there, start - 0.05), 0.25)
    assert np.isnan(return_error(start, start, there)).all()


def test_change_outside() -> None:
    before = RNG.random((3, 2, 4, 4))
    inside = np.zeros((3, 4, 4), bool)
    inside[:, :2, :2] = True
    within, even = before.copy(), before - 0.3
    within[:, :, 0, 0] += 0.5
    share, chance = change_outside(before, within, inside)
    np.testing.assert_allclose(share, 0, atol=1e-12)
    np.testing.assert_allclose(chance, 0.75)
    np.testing.assert_allclose(change_outside(before, even, inside)[0], chance)
    np.testing.assert_allclose(change_outside(before, within, ~inside)[0], 1)
    assert np.isnan(change_outside(before, before, inside)[0]).all()


def report(**options: object) -> dict:
    """Three attributes: the first drags the second half-way along, the third cannot be moved."""
    training = RNG.normal(size=(2000, 3))
    low, high = real_range(training)
    shares = np.linspace(0, 1, 5)[:, None]
    own = low[:2] + shares * (high - low)[:2]
    still = np.zeros((5, 1))
    first = np.hstack([own[:, :1], 0.5 * own[:, 1:2], still])
    second = np.hstack([still, own[::-1, 1:2] * 2, still])
    moved = np.stack([first, second, np.full((5, 3), np.nan)])[:, None].repeat(6, axis=1)
    return manipulation_report(moved, training, ["a", "b", "c"], **options)


def test_report() -> None:
    found = report(n_resamples=20)
    a, b, c = (found["attributes"][name] for name in "abc")
    assert a["control"]["value"] == pytest.approx(1)
    assert a["span"]["value"] == pytest.approx(1)
    assert a["span"]["low"] == pytest.approx(1)  # all subjects are alike
    assert a["effects"]["b"]["effect"] == pytest.approx(0.5)
    assert a["effects"]["c"]["effect"] == 0
    assert a["side_effect"] == pytest.approx(0.25)
    assert abs(a["predicted"]) < 0.06  # independent attributes
    assert b["control"]["value"] == pytest.approx(-1)
    assert b["span"]["value"] == pytest.approx(-2)
    assert b["predicted_of_span"] == pytest.approx(2 * b["predicted"])
    assert c["control"]["value"] == c["span"]["value"] == 0
    assert c["found"] == 0
    assert c["side_effect"] is None
    assert found["mean"]["span"]["value"] == pytest.approx(-1 / 3)
    assert found["mean"]["control"]["value"] == pytest.approx(0, abs=1e-9)
    assert found["mean"]["side_effect"] == pytest.approx(0.125)


def test_intervals_are_by_patient() -> None:
    """Two patients of many rows: the interval spans both; with a patient for each row it does not.

    Patients who differ must widen it.
    """
    training = np.linspace(-1, 1, 100)[:, None]
    low, high = real_range(training)[:, 0]
    sweep = low + np.linspace(0, 1, 5) * (high - low)
    rows = np.stack([sweep] * 20 + [0.5 * sweep] * 20)[None, :, :, None]
    patients = ["p"] * 20 + ["q"] * 20
    by_patient = manipulation_report(rows, training, ["a"], patients)["mean"]["span"]
    by_row = manipulation_report(rows, training, ["a"])["mean"]["span"]
    assert by_patient["value"] == by_row["value"] == pytest.approx(0.75)
    assert (by_patient["low"], by_patient["high"]) == pytest.approx((0.5, 1.0))
    assert by_row["low"] > 0.6
    assert report(n_resamples=0)["mean"]["span"]["low"] is None
