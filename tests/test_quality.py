"""The five axes of counterfactuals against networks whose drawings are known."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from medvae.engines import TreatmentData
from medvae.report import quality
from medvae.report.quality import quality_report

SIZE = 8
IN, OUT = 0.4, 0.1  # what an arm adds to the first quarter of an image, and to the second
ERROR = 0.01  # of every pass


class Stub:
    def __init__(self, treatments):
        self.treatments = treatments


def judged(monkeypatch, drawn, train, test, treatments, **options):
    """Report on a network that draws `drawn(data, arms)`."""
    monkeypatch.setattr(quality, "decoded", lambda _, data, arms, *__: drawn(data, arms))
    return quality_report(Stub(treatments), train, test, n_resamples=10, **options)


def effect(spatial_dims):
    added = torch.zeros([SIZE] * spatial_dims)
    added[: SIZE // 4], added[SIZE // 4 : SIZE // 2] = IN, OUT
    return added


def subjects(spatial_dims, treatments=3, n=48):
    generator = torch.Generator().manual_seed(spatial_dims)
    arms = torch.arange(n) % treatments
    axes = (...,) + (None,) * (spatial_dims + 1)
    noise = 0.05 * torch.rand(n, 1, *[SIZE] * spatial_dims, generator=generator)
    return TreatmentData(noise + arms[axes] * effect(spatial_dims), arms, torch.zeros(n, 1))


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_each_axis_is_the_number_that_a_known_network_earns(monkeypatch, spatial_dims):
    train, test = subjects(spatial_dims, n=60), subjects(spatial_dims)

    def drawn(data, arms):
        moved = (arms - data.treatment)[(...,) + (None,) * (spatial_dims + 1)]
        return data.outcome + moved * effect(spatial_dims) + ERROR

    region = np.repeat((effect(spatial_dims) == IN).numpy()[None], len(test.outcome), 0)
    found = judged(monkeypatch, drawn, train, test, 3, region=region, judge_steps=60)
    assert found["composition"]["one_pass"]["value"] == pytest.approx(ERROR, rel=1e-4)
    assert found["composition"]["3_passes"]["value"] == pytest.approx(3 * ERROR, rel=1e-4)
    assert found["reversibility"]["value"] == pytest.approx(2 * ERROR, rel=1e-4)
    # the next arm is one away for the first two, and two away for the last
    change = 4 / 3 * (IN + OUT) / 4
    assert found["minimality"]["change"]["value"] == pytest.approx(change, rel=1e-4)
    outside = OUT / (IN + OUT)
    assert found["minimality"]["share_outside_region"] == pytest.approx(outside, rel=1e-4)
    effectiveness = found["effectiveness"]
    assert effectiveness.pop("chance") == pytest.approx(1 / 3)
    assert effectiveness.keys() == {"real", "reconstruction", "counterfactual"}
    assert min(effectiveness.values()) > 0.9
    assert found["realism"]["counterfactual"]["kid"]["value"] is not None


def test_a_network_that_changes_nothing_is_perfect_in_all_but_effectiveness(monkeypatch):
    train, test = subjects(2, n=60), subjects(2)
    found = judged(monkeypatch, lambda data, _: data.outcome, train, test, 3, judge_steps=60)
    assert found["composition"]["3_passes"]["value"] == 0
    assert found["reversibility"]["value"] == 0
    assert found["minimality"] == {"change": {"value": 0, "low": 0, "high": 0}}
    assert found["effectiveness"]["reconstruction"] == found["effectiveness"]["real"] > 0.9
    assert found["effectiveness"]["counterfactual"] < 0.1  # all still show their own arm


def test_a_mark_that_no_real_image_has_does_not_count_as_the_arm(monkeypatch):
    """Arms differ in texture; the network draws smooth images with a faint stripe in one arm."""

    def textured(seed, n=64, size=16):
        noise = np.random.default_rng(seed).normal(size=(n, 1, size, size))
        arms = torch.arange(n) % 2
        smooth = gaussian_filter(noise, (0, 0, 1, 1))
        smooth *= noise.std() / smooth.std()
        images = np.where(arms.numpy()[:, None, None, None] == 1, smooth, noise)
        data = torch.from_numpy(0.5 + 0.1 * images).float()
        return TreatmentData(data, arms, torch.zeros(n, 1))

    def drawn(data, arms):
        images = torch.full_like(data.outcome, 0.5)
        images[:, :, :, 7] += 0.02 * arms[:, None, None]
        return images

    train, test = textured(0), textured(1)
    found = judged(monkeypatch, drawn, train, test, 2, judge_steps=100)["effectiveness"]
    assert found["real"] > 0.9
    assert found["reconstruction"] == pytest.approx(0.5, abs=0.1)
    assert found["counterfactual"] == pytest.approx(0.5, abs=0.1)
