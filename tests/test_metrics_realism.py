"""Distances of features against MONAI and brute force, diversity, and swaps judged by hand."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.metrics import FIDMetric
from sklearn.metrics import accuracy_score, balanced_accuracy_score

from medvae.metrics import (
    degraded,
    diversity,
    fid,
    judge_swaps,
    kid,
    ms_ssim,
    precision_recall,
    realism_report,
    ssim,
)


def normal(rows, dims, shift=0.0, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, dims)) + shift


@pytest.mark.filterwarnings("ignore:The `disp` argument:DeprecationWarning")
@given(dims=st.integers(2, 12), scale=st.floats(0.1, 10), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_fid_equals_monai(dims, scale, seed):
    x, y = scale * normal(40, dims, 0.5, seed), normal(60, dims, 0.0, seed + 100)
    expected = float(FIDMetric()(torch.from_numpy(x), torch.from_numpy(y)))
    assert fid(x, y) == pytest.approx(expected, rel=1e-6, abs=1e-6)
    assert fid(x, y) == pytest.approx(fid(y, x), rel=1e-9)


def test_fid_of_the_same_set_is_zero_and_of_a_shift_its_square():
    few = normal(20, 64)  # fewer rows than features: the covariance is singular
    assert fid(few, few[::-1]) <= 1e-6
    assert fid(few + 3, few) == pytest.approx(64 * 9)
    assert fid(normal(500, 16, 1.0, 1), normal(500, 16, 0.0, 2)) == pytest.approx(16, abs=1.5)


def test_kid_equals_brute_force_and_is_unbiased():
    x, y = normal(8, 3, 0.5), normal(6, 3, seed=1)

    def mean(a, b, same):
        pairs = [
            (u @ v / 3 + 1) ** 3
            for i, u in enumerate(a)
            for j, v in enumerate(b)
            if not (same and i == j)
        ]
        return np.mean(pairs)

    expected = mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False)
    assert kid(x, y).value == pytest.approx(expected)
    draws = [kid(normal(60, 4, seed=s), normal(60, 4, seed=s + 1000)) for s in range(60)]
    values, errors = np.array(draws).T
    assert abs(values.mean()) < 3 * values.std() / np.sqrt(60)
    assert (np.abs(values) < 3 * errors).mean() >= 0.95
    far = kid(normal(60, 4, 1.0), normal(60, 4, seed=1))
    assert far.value > 3 * far.error
    assert np.isnan(kid(x[:2], y).error)


def test_precision_and_recall_of_the_same_far_and_partial_sets():
    x = normal(50, 3)
    assert precision_recall(x, x[::-1]) == (1, 1)
    assert precision_recall(x + 100, x) == (0, 0)
    # one of two modes: all look real, half is not covered
    both = np.concatenate([x, x + 100])
    part = precision_recall(normal(50, 3, seed=1), both)
    assert part.precision > 0.8
    assert part.recall == pytest.approx(0.5, abs=0.1)
    line = np.arange(5.0)[:, None]
    assert precision_recall([[4.5], [4.6], [6.1]], line, k=1).precision == pytest.approx(2 / 3)


def test_ms_ssim_has_as_many_scales_as_fit_and_one_of_them_is_ssim():
    rng = np.random.default_rng(0)
    for shape in ((7, 9), (14, 20), (28, 33), (63, 63), (112, 112), (8, 7, 9), (28, 28, 28)):
        image = rng.random((2, 1, *shape)).astype(np.float32)
        other = np.clip(image + 0.1 * rng.normal(size=image.shape), 0, 1).astype(np.float32)
        np.testing.assert_allclose(ms_ssim(image, image), 1, atol=1e-4)
        value = ms_ssim(image, other)
        assert ((value > 0) & (value < 1)).all()
        if min(shape) < 14:
            np.testing.assert_allclose(value, ssim(image, other, window=7), atol=1e-5)
    with pytest.raises(ValueError, match="axes of 7"):
        ms_ssim(image[..., :6], image[..., :6])


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_diversity_tells_a_collapsed_set(spatial_dims):
    images = torch.rand(12, 1, *[16] * spatial_dims, generator=torch.Generator().manual_seed(0))
    assert diversity(images, 20)["ms_ssim"] < 0.3
    collapsed = diversity(images[:1].expand(5, *images.shape[1:]), 20)
    assert collapsed == pytest.approx({"ms_ssim": 1.0, "error": 0.0}, abs=1e-4)
    assert diversity(images, 20) == diversity(images.numpy(), 20, batch_size=3)
    with pytest.raises(ValueError, match="at least two"):
        diversity(images[:1])


def test_degraded_images_are_smoother_and_noisy():
    images = torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    blurred = degraded(images, noise_sd=0.0)
    assert blurred.std() < 0.6 * images.std()
    noise = degraded(images) - blurred
    assert float(noise.std()) == pytest.approx(0.1 * float(images.std()), rel=0.1)
    assert torch.equal(degraded(images), degraded(images))


def test_report_puts_everything_beside_two_halves_of_the_real_images():
    real = normal(120, 5)
    report = realism_report(normal(90, 5, seed=1), real, "normal", normal(80, 5, 1.0, 2), splits=4)
    json.dumps(report, allow_nan=False)
    assert (report["network"], report["rows"], report["features"]) == ("normal", 60, 5)
    for metric in ("fid", "kid"):
        entry = report[metric]
        # from the same distribution: at the floor, far from the ceiling
        assert abs(entry["value"] - entry["floor"]) < 0.2 * (entry["ceiling"] - entry["floor"])
    for metric in ("precision", "recall"):
        assert report[metric]["value"] > report[metric]["ceiling"] + 0.05
    assert realism_report(real, real, "normal", splits=1)["fid"]["ceiling"] is None


def test_realism_names_bad_input():
    x = normal(10, 3)
    for metric in (fid, kid, precision_recall):
        with pytest.raises(ValueError, match="images each"):
            metric(x, x[:, :2])
        with pytest.raises(ValueError, match="expected finite"):
            metric(x, x * np.nan)
        with pytest.raises(ValueError, match="images each"):
            metric(x[:1], x)
    with pytest.raises(ValueError, match="leave 3 to compare"):
        realism_report(x, x[:7], "normal")


# swaps


def test_swaps_are_judged_against_donor_and_recipient():
    rng = np.random.default_rng(0)
    own, donor, kept, other = rng.integers(3, size=(4, 90)).astype(float)
    kept[:5], other[5:9] = np.nan, -1
    follow = np.where(np.arange(90) % 10 == 0, own, donor)
    said_kept = np.where(np.arange(90) % 4 == 0, 0, np.nan_to_num(kept))
    labels, donors = {"dx": own, "scanner": kept}, {"dx": donor, "scanner": other}
    plain = {"dx": own, "scanner": np.where(np.arange(90) % 3 == 0, 0, np.nan_to_num(kept))}
    report = judge_swaps(
        {"dx": follow, "scanner": said_kept}, "dx", labels, donors, {"plain": plain}, (own, follow)
    )
    json.dumps(report, allow_nan=False)
    changed = own != donor
    assert report["follows"]["rows"] == changed.sum()
    assert report["follows"]["value"] == accuracy_score(donor[changed], follow[changed])
    assert report["follows"]["value"] + report["stays"]["value"] == pytest.approx(1)
    assert report["agrees"]["rows"] == (own != follow).sum()
    assert report["agrees"]["value"] == 1
    asked = ~np.isnan(kept) & (other >= 0) & (kept != other)
    keeps = report["keeps"]["scanner"]
    assert keeps["rows"] == asked.sum()
    assert keeps["value"] == pytest.approx(accuracy_score(kept[asked], said_kept[asked]))
    balanced = balanced_accuracy_score(kept[asked], said_kept[asked])
    assert keeps["balanced"] == pytest.approx(balanced)
    assert keeps["low"] < keeps["value"] < keeps["high"]
    assert keeps["chance"] == np.unique(kept[asked], return_counts=True)[1].max() / asked.sum()
    unswapped = report["references"]["plain"]
    assert unswapped["dx"]["value"] == 1
    bound = accuracy_score(kept[asked], plain["scanner"][asked])
    assert unswapped["scanner"]["value"] == pytest.approx(bound)
    assert (unswapped["scanner"]["rows"], unswapped["dx"]["rows"]) == (asked.sum(), changed.sum())
    assert "dx" not in report["keeps"]


def test_what_comes_over_with_a_swap_shows_only_where_the_donor_has_another_label():
    """The donor's scanner comes over in 30 %: .85 of all keep theirs, .70 of who can fail."""
    rng = np.random.default_rng(1)
    own, donor = rng.integers(2, size=(2, 4000)).astype(float)
    said = np.where(rng.random(4000) < 0.3, donor, own)
    labels, donors = {"dx": own, "scanner": own}, {"dx": donor, "scanner": donor}
    report = judge_swaps({"dx": donor, "scanner": said}, "dx", labels, donors, {})
    assert report["keeps"]["scanner"]["value"] == pytest.approx(0.70, abs=0.03)


def test_intervals_of_swaps_are_by_patients():
    rng = np.random.default_rng(2)
    right = rng.random(100) < 0.7
    own, said = np.zeros(200), np.repeat(right, 2).astype(float)  # both eyes of 100 patients
    labels, donors = {"dx": own}, {"dx": own + 1}
    rows = [
        judge_swaps({"dx": said}, "dx", labels, donors, {}, patients=patients)["follows"]
        for patients in (None, np.repeat(np.arange(100), 2))
    ]
    narrow, wide = (row["high"] - row["low"] for row in rows)
    assert wide == pytest.approx(2**0.5 * narrow, rel=0.25)


def test_swaps_name_bad_input_and_tell_what_is_undefined():
    said = {"dx": np.zeros(4)}
    report = judge_swaps(said, "dx", said, said, {}, n_resamples=0)
    assert (report["follows"]["rows"], report["follows"]["value"]) == (0, None)
    assert "agrees" not in report
    both = {**said, "scanner": np.zeros(4)}
    with pytest.raises(ValueError, match="not judged {'swapped': \\['scanner'\\]"):
        judge_swaps(said, "dx", both, both, {})
    with pytest.raises(ValueError, match="'donor': \\['scanner'\\]"):
        judge_swaps(both, "dx", both, said, {})
    with pytest.raises(ValueError, match="expected 'age' among the labels"):
        judge_swaps(said, "age", said, said, {})
    with pytest.raises(ValueError, match="of one shape"):
        judge_swaps(said, "dx", said, {"dx": np.zeros(3)}, {})
