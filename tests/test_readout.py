"""The monotone way between codes and attributes: fit, inverse, files."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medvae.data import AttributeScaler
from medvae.explain import MonotoneCurve, Readout, TraversalInferer


def r2(predicted: np.ndarray, truth: np.ndarray) -> float:
    return float(1 - np.mean((predicted - truth) ** 2) / truth.var())


def line_r2(x: np.ndarray, y: np.ndarray, new: np.ndarray, truth: np.ndarray) -> float:
    return r2(np.polyval(np.polyfit(x, y, 1), new), truth)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_bent_relation_is_recovered_better_than_by_a_line(sign: int) -> None:
    rng = np.random.default_rng(0)
    x, new = rng.normal(size=300), rng.normal(size=3000)

    def bent(code: np.ndarray) -> np.ndarray:
        return sign * np.exp(0.8 * code) / 1.5

    y = bent(x) + 0.2 * rng.normal(size=300)
    curve = MonotoneCurve.fit(x, y)
    assert r2(curve(new), bent(new)) > line_r2(x, y, new, bent(new)) + 0.08
    assert (np.sign(np.diff(curve(np.linspace(-5, 5, 200)))) == sign).all()


@pytest.mark.parametrize("rows", [40, 60, 200])
@pytest.mark.parametrize("noise", [0.3, 1.0, 3.0])
def test_of_a_straight_relation_hardly_anything_is_lost(rows: int, noise: float) -> None:
    """Knots cost: on new subjects, on average over cohorts, less than 0.5 % of the variance."""
    rng = np.random.default_rng(1)
    losses = []
    for _ in range(60):
        x, new = rng.normal(size=rows), rng.normal(size=2000)
        y = x + noise * rng.normal(size=rows)
        scale = np.hypot(1, noise)
        found = r2(MonotoneCurve.fit(x, y / scale)(new), new / scale)
        losses.append((line_r2(x, y / scale, new, new / scale) - found) / scale**2)
    assert np.mean(losses) < 0.005


def test_few_rows_give_the_least_squares_line() -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(size=15)
    y = x**3 + rng.normal(size=15)
    new = np.linspace(-4, 4, 9)
    np.testing.assert_allclose(MonotoneCurve.fit(x, y)(new), np.polyval(np.polyfit(x, y, 1), new))


@given(st.integers(0, 10_000), st.integers(2, 200), st.sampled_from([-1.0, 1.0]))
def test_there_and_back(seed: int, rows: int, sign: float) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=rows)
    y = sign * np.tanh(2 * x) + 0.3 * rng.normal(size=rows)
    curve = MonotoneCurve.fit(x, y)
    asked = np.array([*np.linspace(y.min() - 1, y.max() + 1, 50), np.nan])
    np.testing.assert_allclose(curve(curve.inverse(asked)), asked, atol=1e-6)
    codes = np.linspace(x.min() - 1, x.max() + 1, 50)
    np.testing.assert_allclose(curve.inverse(curve(codes)), codes, atol=1e-6)


def test_beyond_the_points_the_end_segments_go_on() -> None:
    curve = MonotoneCurve(np.array([0.0, 1.0, 2.0]), np.array([0.0, -1.0, -4.0]))
    np.testing.assert_allclose(curve([-2.0, 0.5, 1.5, 3.0]), [2.0, -0.5, -2.5, -7.0])
    np.testing.assert_allclose(curve.inverse([2.0, -0.5, -2.5, -7.0]), [-2.0, 0.5, 1.5, 3.0])


@pytest.mark.parametrize("codes", [np.zeros(50), np.array([-1.0, 0.0, 1.0] * 20)])
def test_an_axis_without_information_has_no_codes(codes: np.ndarray) -> None:
    values = np.abs(codes) + 1.0  # even in the code: no direction
    curve = MonotoneCurve.fit(codes, values)
    assert not curve.informative
    np.testing.assert_allclose(curve([-3.0, 7.0]), values.mean())
    assert np.isnan(curve.inverse([1.0, 2.0])).all()


def test_readout_in_its_file_and_as_it_was_written_before(tmp_path) -> None:
    rng = np.random.default_rng(3)
    codes = rng.normal(size=(200, 3))
    table = pd.DataFrame({"volume": np.exp(codes[:, 2]), "age": 50 - 9 * np.tanh(codes[:, 0])})
    table.loc[:20, "age"] = np.nan
    scaler = AttributeScaler(["volume", "age"], log=["volume"]).fit(table)
    fitted = Readout.fit(scaler, codes, table.to_numpy(), axes=[2, 0])
    asked = table.to_numpy()
    back = fitted.codes(asked)
    assert np.isnan(back[:21, 1]).all()
    full = np.zeros((200, 3))
    full[:, [2, 0]] = back
    np.testing.assert_allclose(fitted.attributes(full), asked, rtol=1e-6)
    fitted.save(tmp_path / "readout.json")
    again = Readout.load(tmp_path / "readout.json")
    np.testing.assert_array_equal(again.attributes(codes), fitted.attributes(codes))
    np.testing.assert_array_equal(again.codes(asked), back)
    np.testing.assert_array_equal(again.companions, fitted.companions)
    slope = np.polyfit(codes[:, 2], codes[:, 0], 1)[0]  # of age's axis on volume's
    np.testing.assert_allclose(
        fitted.companions, [[1, slope], [np.polyfit(codes[:, 0], codes[:, 2], 1)[0], 1]]
    )

    state = json.loads((tmp_path / "readout.json").read_text())
    for key in ("curves", "span", "companions", "nonnegative"):
        del state[key]
    state |= {"slope": [2.0, 0.0], "intercept": [0.5, 1.0]}
    (tmp_path / "old.json").write_text(json.dumps(state))
    old = Readout.load(tmp_path / "old.json")
    scaled = scaler.transform(old.attributes(codes))
    np.testing.assert_allclose(scaled[:, 0], 2.0 * codes[:, 2] + 0.5)
    np.testing.assert_allclose(scaled[:, 1], 1.0)
    assert np.isnan(old.codes(asked)[:, 1]).all()
    np.testing.assert_array_equal(old.companions, np.eye(2))


@pytest.mark.parametrize("sign", [1, -1])
def test_a_curve_through_points_is_monotone_and_keeps_what_is(sign: int) -> None:
    codes = np.linspace(-3, 3, 7)
    values = sign * np.array([-1.0, -0.9, -0.2, 0.1, 0.05, 0.9, 1.0])
    curve = MonotoneCurve.through(codes, values)
    assert (sign * np.diff(curve.values) > 0).all()
    pooled = sign * np.array([-1.0, -0.9, -0.2, 0.075, 0.075, 0.9, 1.0])
    np.testing.assert_allclose(curve(codes), pooled, atol=2e-3)  # of scikit-learn's isotonic, too
    asked = np.linspace(-0.95, 0.95, 20)
    np.testing.assert_allclose(curve(curve.inverse(asked)), asked, atol=1e-9)


def test_what_is_never_negative_is_not_read_as_negative() -> None:
    rng = np.random.default_rng(4)
    codes = rng.normal(size=(100, 2))
    table = pd.DataFrame({"volume": 3 + codes[:, 0], "shift": codes[:, 1]})
    table["volume"] = table["volume"].clip(lower=0.1)
    fitted = Readout.fit(AttributeScaler(list(table)).fit(table), codes, table.to_numpy())
    read = fitted.attributes([[-9.0, -9.0], [1.0, 1.0]])
    assert read[0, 0] == 0.0
    assert read[0, 1] < -5
    np.testing.assert_allclose(read[1], [4.0, 1.0], atol=0.1)


def test_a_traversal_takes_the_calibrated_readout_where_there_is_one(tmp_path):
    scaler = AttributeScaler(("size",))
    scaler.mean, scaler.sd = np.array([10.0]), np.array([2.0])
    codes = np.linspace(-2, 2, 20)[:, None]
    readout = Readout.fit(scaler, codes, 10 + 2 * codes)
    readout.save(tmp_path / "readout.json")
    assert Readout.of_model(tmp_path).follow == (0.6,)
    readout.follow = (0.25,)
    readout.save(tmp_path / "traversal.json")
    assert Readout.of_model(tmp_path).follow == (0.25,)
    assert TraversalInferer(Readout.of_model(tmp_path)).follow is None  # the readout's own
    assert TraversalInferer(Readout.of_model(tmp_path), follow=0.0).follow == 0.0
