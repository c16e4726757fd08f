"""Image quality against MONAI, scikit-image and brute force."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from medvae.metrics import active_axes, grain, psnr, rbf_mmd, rbf_mmd_chance, ssim


def images(spatial_dims, size=16, channels=1, seed=0):
    rng = np.random.default_rng(seed)
    shape = (3, channels, *(size,) * spatial_dims)
    image = rng.random(shape).astype(np.float32)
    noise = np.array([0.05, 0.1, 0.3]).reshape(3, *(1,) * (spatial_dims + 1))
    return np.clip(image + noise * rng.normal(size=shape), 0, 1).astype(np.float32), image


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_psnr_and_ssim_per_subject_equal_scikit_image(spatial_dims):
    noisy, image = images(spatial_dims)
    expected = [
        peak_signal_noise_ratio(a, b, data_range=1) for a, b in zip(image, noisy, strict=True)
    ]
    np.testing.assert_allclose(psnr(noisy, image), expected, rtol=1e-5)
    np.testing.assert_allclose(psnr(255 * noisy, 255 * image, data_range=255), expected, rtol=1e-5)
    values = ssim(noisy, image)
    assert values.shape == (3,)
    for value, a, b in zip(values, image[:, 0], noisy[:, 0], strict=True):
        options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
        inside = (slice(5, -5),) * spatial_dims  # MONAI keeps whole windows only
        _, full = structural_similarity(a, b, data_range=1, win_size=11, full=True, **options)
        assert value == pytest.approx(full[inside].mean(), abs=2e-3)
    assert values[0] > values[1] > values[2]


@pytest.mark.parametrize("size", [2, 5, 10])
def test_ssim_fits_its_window_to_small_volumes(size):
    noisy, image = images(3, size)
    assert np.isfinite(ssim(noisy, image)).all()
    np.testing.assert_allclose(ssim(image, image), 1, atol=1e-5)
    assert (ssim(noisy, image) < 1).all()


def test_image_quality_takes_tensors_metadata_and_channels():
    noisy, image = images(2, channels=3)
    plain = psnr(noisy, image), ssim(noisy, image)
    tensors = torch.from_numpy(noisy).requires_grad_(), MetaTensor(image)
    np.testing.assert_allclose((psnr(*tensors), ssim(*tensors)), plain, rtol=1e-6)
    assert np.isinf(psnr(image, image)).all()
    with pytest.raises(ValueError, match="expected the same shape"):
        psnr(noisy, image[:, :1])
    with pytest.raises(ValueError, match="expected the same shape"):
        ssim(noisy[0], image[0])


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_grain_of_ramps_noise_and_checkerboards(spatial_dims):
    axes = np.meshgrid(*[np.arange(24)] * spatial_dims)
    ramp, checkerboard = np.sum(axes, 0), 2.0 * (np.sum(axes, 0) % 2)
    noise = np.random.default_rng(0).random((20, 1, *ramp.shape))
    assert grain(ramp[None, None]) == 0
    assert grain(noise) == pytest.approx(3, rel=0.05)
    # one second difference fewer along each row than first ones
    assert grain(checkerboard[None, None]) == pytest.approx(4 * 22 / 23)
    assert grain(5 + 0.1 * noise) == pytest.approx(grain(noise))
    assert np.isnan(grain(np.ones((1, 1, 4, 4))))


def sets(shift=0.0, n=30, m=20, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 2, 3)), rng.normal(size=(m, 2, 3)) + shift


@pytest.mark.parametrize("unbiased", [False, True])
def test_mmd_equals_brute_force(unbiased):
    x, y = sets(0.3)

    def kernel(a, b):
        return np.mean([np.exp(-np.sum((a - b) ** 2) / (2 * w**2)) for w in (1.0, 4.0)])

    def mean(a, b, same):
        pairs = [
            kernel(u, v)
            for i, u in enumerate(a)
            for j, v in enumerate(b)
            if not (same and unbiased and i == j)
        ]
        return np.mean(pairs)

    expected = mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False)
    assert rbf_mmd(x, y, [1.0, 4.0], unbiased) == pytest.approx(expected, abs=1e-12)
    far = 1e7  # differences must not drown in the offset
    assert rbf_mmd(x + far, y + far, [1.0, 4.0], unbiased) == pytest.approx(expected, abs=1e-5)


def test_mmd_uses_the_median_distance_of_the_pooled_samples():
    x, y = sets(0.5)
    pooled = np.concatenate((x, y)).reshape(50, -1)
    distances = [np.linalg.norm(pooled[i] - pooled[j]) for i in range(50) for j in range(i)]
    assert rbf_mmd(x, y) == pytest.approx(rbf_mmd(x, y, [float(np.median(distances))]))


def test_mmd_of_equal_and_of_alike_sets_is_zero():
    x, _ = sets()
    assert rbf_mmd(x, x[::-1]) == pytest.approx(0, abs=1e-12)
    assert rbf_mmd(np.ones((4, 3)), np.ones((5, 3))) == pytest.approx(0, abs=1e-12)
    unbiased = [rbf_mmd(*sets(seed=seed), unbiased=True) for seed in range(60)]
    biased = [rbf_mmd(*sets(seed=seed)) for seed in range(60)]
    error = np.std(unbiased) / np.sqrt(60)
    assert abs(np.mean(unbiased)) < 3 * error
    assert np.mean(biased) > 10 * error


def test_mmd_grows_with_the_shift_and_leaves_its_chance_level():
    values = [rbf_mmd(*sets(shift)) for shift in (0.0, 0.5, 1.0, 2.0)]
    assert values == sorted(values)
    apart = rbf_mmd_chance(*sets(1.0), n_permutations=200)
    assert apart["value"] == pytest.approx(rbf_mmd(*sets(1.0)))
    assert apart["value"] > apart["chance_p95"] > apart["chance"] > 0
    assert apart["p_value"] == pytest.approx(1 / 201)
    alike = [rbf_mmd_chance(*sets(seed=s), n_permutations=99)["p_value"] for s in range(40)]
    assert 0.35 < np.mean(alike) < 0.65  # uniform under the null
    assert rbf_mmd_chance(*sets(), unbiased=True)["chance"] == pytest.approx(0, abs=0.01)


def test_mmd_names_bad_input():
    x, y = sets()
    with pytest.raises(ValueError, match="at least two samples"):
        rbf_mmd(x[:1], y)
    with pytest.raises(ValueError, match="of equal size"):
        rbf_mmd(x, y[:, :1])
    with pytest.raises(ValueError, match="positive widths"):
        rbf_mmd(x, y, [1.0, 0.0])
    with pytest.raises(ValueError, match="expected finite"):
        rbf_mmd(x, np.full_like(y, np.nan))


def test_active_axes_are_those_that_vary():
    rng = np.random.default_rng(0)
    codes = rng.normal([5.0, 0.0, 0.0], [1.0, 0.2, 0.05], size=(2000, 3))
    assert list(active_axes(codes)) == [True, True, False]
    assert not active_axes(np.full((4, 2), 3.0)).any()
