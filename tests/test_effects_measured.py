"""Effects on attributes: against disks and balls of a known size, and attributes that are none."""

import math

import numpy as np
import pytest
import torch

from medvae.data import CohortError
from medvae.engines import TreatmentData
from medvae.report import MeasuredEffects, effects_measured

SIZE, N = 20, 24


def balls(radii, spatial_dims):
    """Bright balls on a dark ground, (N, 1, *S)."""
    axes = [torch.arange(SIZE) - (SIZE - 1) / 2] * spatial_dims
    distance = sum(axis.square() for axis in torch.meshgrid(*axes, indexing="ij")).sqrt()
    shape = (-1, 1, *[1] * spatial_dims)
    return (distance < torch.as_tensor(radii).reshape(shape)).float() * 0.8 + 0.1


def cohort(spatial_dims, treatments=2):
    rng = np.random.default_rng(0)
    radii = rng.uniform(4, 6, N)
    arms = torch.arange(N) % treatments
    own = torch.as_tensor(radii) + 2 * arms
    data = TreatmentData(balls(own, spatial_dims), arms, torch.zeros(N, 1))
    return radii, data, (data.outcome > 0.5).float()


class Stub:
    def __init__(self, treatments):
        self.treatments = treatments


def report(monkeypatch, spatial_dims, name, drawn, treatments=2, truth=None):
    """Measure a network that draws, for subjects and arms, balls of `drawn(radius, arm)`."""
    radii, data, masks = cohort(spatial_dims, treatments)
    number = {image.numpy().tobytes(): n for n, image in enumerate(data.outcome)}

    def decoded(network, part, target, device):
        rows = [number[image.numpy().tobytes()] for image in part.outcome]
        return balls(drawn(torch.as_tensor(radii)[rows], target), spatial_dims)

    monkeypatch.setattr(effects_measured, "decoded", decoded)
    measuring = MeasuredEffects([name], [SIZE] * spatial_dims, 2.0, steps=150, n_resamples=20)
    train = np.arange(N) < 12
    columns = np.zeros((N, 1))
    others = None if truth is None else balls(truth(radii, data.treatment), spatial_dims)
    patients = np.arange(N)
    found = measuring.report(
        Stub(treatments), data, masks, columns, patients, train, ~train, others
    )
    return found, radii[~train]


@pytest.mark.parametrize(("spatial_dims", "name"), [(2, "pixel_area_mm2"), (3, "voxel_volume_ml")])
def test_a_known_growth_is_measured(monkeypatch, spatial_dims, name):
    def content(radius):
        if spatial_dims == 2:
            return math.pi * (2 * radius) ** 2
        return 4 / 3 * math.pi * (2 * radius) ** 3 / 1000

    found, radii = report(
        monkeypatch,
        spatial_dims,
        name,
        lambda radius, arm: radius + 2 * arm,
        truth=lambda radius, arm: torch.as_tensor(radius) + 2 * (1 - arm),
    )
    entry = found["arms"][1][name]
    expected = (content(radii + 2) - content(radii)).mean()
    assert entry["ate"] == pytest.approx(expected, rel=0.1)
    assert entry["low"] < entry["ate"] < entry["high"]
    assert entry["truth"] == pytest.approx(entry["ate"], rel=0.05)
    # of subjects that differ in nothing but the arm, means differ by the effect
    assert entry["difference of means"] == pytest.approx(expected, rel=0.3)
    assert found["instrument"][name]["r2"] > 0.95
    assert abs(found["instrument"][name]["bias"]) < 0.05 * expected


def test_what_is_not_drawn_has_no_effect_and_costs_the_instrument(monkeypatch):
    name = "pixel_area_mm2"
    found, _ = report(monkeypatch, 2, name, lambda radius, arm: 0 * radius + 5.0)
    assert found["arms"][1][name]["ate"] == 0
    assert found["instrument"][name]["r2"] < 0.2


def test_every_arm_is_measured_against_the_control(monkeypatch):
    name = "pixel_area_mm2"
    found, _ = report(monkeypatch, 2, name, lambda radius, arm: radius + arm, treatments=3)
    assert found["arms"].keys() == {1, 2}
    assert found["arms"][2][name]["ate"] > 1.5 * found["arms"][1][name]["ate"] > 0


def test_the_regression_is_averaged_over_the_test_subjects():
    measuring = MeasuredEffects(["pixel_area_mm2"], [16, 16], 1.0)
    rng = np.random.default_rng(0)
    x, arms = rng.normal(size=(60, 1)), np.arange(60) % 2
    values = arms[:, None] * (1 + x)
    values[0] = np.nan
    test = x[:, 0] > 0.5
    found = measuring._simple(values, arms, x, 1, test)
    expected = (1 + x[test & np.isfinite(values[:, 0])]).mean()
    assert found["linear regression"] == pytest.approx([expected])
    assert found["difference of means"] == pytest.approx(values[1::2].mean())


def test_a_name_that_is_not_measured_is_refused():
    with pytest.raises(CohortError, match="'voxel_volume' of measured.*voxel_volume_ml"):
        MeasuredEffects(["voxel_volume"], [8, 8, 8], 1.0)


def test_what_a_decoder_marks_and_does_not_draw_is_not_measured(monkeypatch):
    # arm 1 has larger balls; the network draws them all alike, and those of arm 0 darker
    radii, data, masks = cohort(2)

    def decoded(network, part, target, device):
        brightness = 0.7 + 0.3 * target[:, None, None, None]
        return balls(torch.full((len(part.outcome),), 6.0), 2) * brightness

    monkeypatch.setattr(effects_measured, "decoded", decoded)
    measuring = MeasuredEffects(["pixel_area_mm2"], [SIZE] * 2, 2.0, steps=150, n_resamples=20)
    train = np.arange(N) < 12
    found = measuring.report(Stub(2), data, masks, np.zeros((N, 1)), np.arange(N), train, ~train)
    spread = np.std(math.pi * (2 * (radii + 2 * data.treatment.numpy())) ** 2)
    assert abs(found["arms"][1]["pixel_area_mm2"]["ate"]) < 0.2 * spread
