"""Background, bias field, attributes and artefacts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torchio
from bodies import ball, dice, meta
from monai.data import MetaTensor
from monai.transforms import Compose, RandAffined

from medvae.attributes import measure
from medvae.transforms import (
    MaskBackgroundd,
    MeasureAttributesd,
    N4BiasFieldCorrectiond,
    RandArtefactd,
)

KEYS = ("image", "mask")


def test_mask_background_writes_the_value_and_records_itself() -> None:
    image = np.random.default_rng(7).normal(size=(2, 6, 5))
    mask = np.zeros((1, 6, 5))
    mask[0, 1:3], mask[0, 3:5] = 1, 2
    item = {"image": meta(image), "mask": meta(mask)}
    for foreground, kept in ((None, mask > 0), ([2], mask == 2)):
        step = MaskBackgroundd("image", value=-1000.0, foreground=foreground)
        new = step(item)["image"]
        expected = np.where(kept, image.astype(np.float32), -1000.0)
        assert np.array_equal(np.asarray(new), expected)
        assert [r["class"] for r in new.applied_operations] == ["MaskBackgroundd"]
        back = step.inverse({"image": new})["image"]
        assert torch.equal(back, new)
        assert not back.applied_operations
    assert not item["image"].applied_operations


@pytest.mark.parametrize(("spatial_dims", "with_mask"), [(2, False), (3, True)])
def test_n4_flattens_a_uniform_region_and_keeps_the_level(
    spatial_dims: int, with_mask: bool
) -> None:
    shape = (40, 36, 20)[:spatial_dims]
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))
    body = (grid**2).sum(0) < 0.8
    bias = np.exp(0.5 * grid[0] - 0.3 * grid[1] * grid[0])
    noise = np.random.default_rng(8).normal(1, 0.02, shape)
    image = (100 * body * bias * noise + 1)[None]
    item = {"image": meta(image), "mask": meta(body[None])}
    n4 = N4BiasFieldCorrectiond("image", "mask" if with_mask else None, shrink_factor=2)
    new = n4(item)["image"]
    before, after = image[0][body], np.asarray(new)[0][body]
    assert before.std() / before.mean() > 0.2
    assert after.std() / after.mean() < 0.06
    assert after.mean() == pytest.approx(before.mean(), rel=0.1)
    assert torch.equal(n4(item)["image"], new)
    assert [r["class"] for r in new.applied_operations] == ["N4BiasFieldCorrectiond"]
    assert torch.equal(n4.inverse({"image": new})["image"], new)
    item["image"] = meta(image - 50)
    with pytest.raises(ValueError, match="'image' holds -.*expected intensities of 0 and above"):
        n4(item)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_measured_attributes_are_those_of_measure(spatial_dims: int) -> None:
    affine = np.diag([1.5, 2.0, 3.0, 1.0][-spatial_dims - 1 :])
    shape = (20, 18, 14)[:spatial_dims]
    mask = (ball(affine, shape) > 0) * 2
    image = np.random.default_rng(9).normal(size=(1, *shape))
    item = {"image": meta(image, affine), "mask": meta(mask[None], affine)}
    names = ("max_diameter_mm", "intensity_mean", "glcm_correlation")
    new = MeasureAttributesd("image", names, bin_count=16)(item)
    truth = measure(
        image[0].astype(np.float32), mask > 0, np.diag(affine)[:-1], names, bin_count=16
    )
    assert {name: new[name] for name in names} == truth
    assert all(type(new[name]) is float for name in names)
    labelled = MeasureAttributesd(
        "image", ["lv_intensity_sd", "rv_intensity_sd"], labels={"lv": 2, "rv": [1, 3]}
    )(item)
    assert labelled["lv_intensity_sd"] > 0
    assert np.isnan(labelled["rv_intensity_sd"])
    missing = MeasureAttributesd("image", names, allow_missing_keys=True)({"image": item["image"]})
    assert all(np.isnan(missing[name]) for name in names)
    item["mask"] = meta(np.zeros((1, *shape)), affine)
    assert np.isnan(MeasureAttributesd("image", names)(item)["intensity_mean"])


def test_attributes_follow_spatial_augmentation() -> None:
    """RandAffined at scale 1 - 0.2 zooms in: on the network's grid the volume is 1 / 0.8^3."""
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    mask = ball(affine, (32, 32, 32), radius=18.0) > 0
    item = {"image": meta(mask[None] * 0.5, affine), "mask": meta(mask[None], affine)}
    zoom = RandAffined(
        KEYS,
        prob=1,
        scale_range=((-0.2, -0.2),) * 3,
        mode=("bilinear", "nearest"),
        padding_mode="zeros",
    )
    zoomed = zoom(item)
    names = ["voxel_volume_ml"]
    before = MeasureAttributesd("image", names)(item)["voxel_volume_ml"]
    seen = MeasureAttributesd("image", names, spacing_mm=2.0)(zoomed)["voxel_volume_ml"]
    body = MeasureAttributesd("image", names)(zoomed)["voxel_volume_ml"]
    assert seen / before == pytest.approx(0.8**-3, rel=0.02)
    assert body / before == pytest.approx(1, rel=0.02)
    turn = RandAffined(
        KEYS,
        prob=1,
        rotate_range=[0.5] * 3,
        scale_range=0.1,
        shear_range=[0.1] * 6,
        mode=("bilinear", "nearest"),
        padding_mode="zeros",
    )
    turn.set_random_state(0)
    moved = turn(item)
    assert dice(moved["image"] > 0.25, moved["mask"]) > 0.97  # jointly


ARTEFACTS = {
    "bias field": torchio.RandomBiasField(),
    "motion": torchio.RandomMotion(),
    "ghosting": torchio.RandomGhosting(),
    "spike": torchio.RandomSpike(),
    "anisotropy": torchio.RandomAnisotropy(axes=(0, 1)),
    "noise": torchio.RandomNoise(),
    "blur": torchio.RandomBlur(std=(0.5, 2)),
    "one of": torchio.OneOf([torchio.RandomGamma(), torchio.RandomNoise()]),
    "compose": torchio.Compose([torchio.RandomBlur(std=(0.5, 2)), torchio.RandomNoise()]),
}


@pytest.mark.parametrize("name", ARTEFACTS)
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_artefacts_are_reproducible_and_leave_no_trace(name: str, spatial_dims: int) -> None:
    if spatial_dims == 2 and name == "motion":
        pytest.skip("TorchIO's motion turns the slice out of its plane")
    affine = np.diag([1.5, 2.0, 3.0, 1.0][-spatial_dims - 1 :])
    depth = ball(affine, (20, 18, 14)[:spatial_dims])
    image = meta(np.clip(depth / 5, 0.1, 1)[None], affine)
    image.meta["filename_or_obj"] = "case.nii.gz"
    item = {"image": image, "mask": meta(depth[None] > 0, affine), "age": 50.0}
    untouched = image.clone()
    artefact = RandArtefactd("image", ARTEFACTS[name])
    generator = torch.get_rng_state()
    runs = []
    for seed in (3, 3, 4):
        artefact.set_random_state(seed)
        runs.append([artefact(item) for _ in range(2)])
    assert torch.equal(torch.get_rng_state(), generator)
    assert torch.equal(image, untouched)
    images = [[new["image"] for new in run] for run in runs]
    assert torch.equal(images[0][0], images[1][0])
    assert torch.equal(images[0][1], images[1][1])
    assert not torch.equal(images[0][0], images[0][1])
    assert not torch.equal(images[0][0], images[2][0])
    new = runs[0][0]
    assert type(new["image"]) is MetaTensor
    assert new["image"].shape == image.shape
    assert new["image"].dtype == image.dtype
    assert torch.equal(new["image"].affine, image.affine)
    assert new["image"].meta["filename_or_obj"] == "case.nii.gz"
    assert not torch.equal(new["image"], image)
    assert new["mask"] is item["mask"]
    assert torch.isfinite(new["image"]).all()


def test_artefact_probability_and_the_seed_of_a_compose() -> None:
    item = {"image": meta(np.random.default_rng(10).normal(size=(2, 8, 8, 8)))}
    noise = torchio.RandomNoise(std=(1, 2))
    never = Compose([RandArtefactd("image", noise, prob=0.0)])
    assert torch.equal(never(item)["image"], item["image"])
    often = Compose([RandArtefactd("image", noise, prob=0.25)]).set_random_state(11)
    changed = [not torch.equal(often(item)["image"], item["image"]) for _ in range(200)]
    assert 0.15 < np.mean(changed) < 0.35
    often.set_random_state(11)
    assert changed == [not torch.equal(often(item)["image"], item["image"]) for _ in range(200)]
    plain = RandArtefactd("image", noise)({"image": item["image"].as_tensor()})["image"]
    assert type(plain) is torch.Tensor


def test_artefacts_use_millimetres() -> None:
    """TorchIO's blur is given in mm: finer voxels are blurred over more of them."""
    image = np.zeros((1, 16, 16, 16))
    image[0, 8, 8, 8] = 1
    blur = RandArtefactd("image", torchio.RandomBlur(std=(2, 2)))
    peaks = [
        float(blur({"image": meta(image, np.diag([mm, mm, mm, 1]))})["image"].max())
        for mm in (1.0, 2.0)
    ]
    assert peaks[0] < peaks[1] / 4


@pytest.mark.parametrize(
    "transform",
    [
        torchio.RandomAffine(),
        torchio.Compose([torchio.RandomNoise(), torchio.RandomFlip()]),
        torchio.OneOf([torchio.RandomElasticDeformation()]),
        torchio.OneHot(),
        "RandomNoise",
    ],
)
def test_artefacts_that_move_voxels_are_refused(transform: Any) -> None:
    with pytest.raises(ValueError, match="expected a TorchIO transform that changes intensities"):
        RandArtefactd("image", transform)
