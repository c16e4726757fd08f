"""Deformed copies: attributes change as much as the mask, reproducibly, and are cached."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from monai.data import CacheDataset, MetaTensor
from monai.transforms import Compose, RandAffined, RandFlipd

from medvae.attributes import measure
from medvae.data import CohortError
from medvae.transforms import DeformedCopyd

KEYS = ("image", "mask")


def ball(radius: float, spatial_dims: int, size: int = 32) -> np.ndarray:
    grid = np.stack(np.meshgrid(*[np.arange(size) - size / 2 + 0.5] * spatial_dims, indexing="ij"))
    return np.sqrt((grid**2).sum(0)) <= radius


def item(copy: int | None, spatial_dims: int = 3, radius: float = 7.0) -> dict[str, Any]:
    mask = ball(radius, spatial_dims).astype(np.float32)
    size = "voxel_volume_ml" if spatial_dims == 3 else "pixel_area_mm2"
    found = {
        "id": "a",
        "image": MetaTensor((mask + 0.5)[None]),
        "mask": MetaTensor(2 * mask[None]),
        size: 10.0,  # by some other instrument
        "sphericity": 0.9,
        "intensity_mean": 3.0,
        "age": 50.0,
        "label": 1,
    }
    return found if copy is None else found | {"copy": copy}


def deform(spatial_dims: int = 3, scale: float = 0.25, **options: Any) -> DeformedCopyd:
    affine = RandAffined(KEYS, prob=1.0, scale_range=[(scale, scale)] * spatial_dims)
    names = ("voxel_volume_ml", "pixel_area_mm2", "sphericity", "intensity_mean", "age")
    return DeformedCopyd(KEYS, [affine], names, **({"spacing_mm": 1.0} | options))


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_attributes_follow_a_known_scaling(spatial_dims: int) -> None:
    before = item(1, spatial_dims, radius=10.0)
    after = deform(spatial_dims)(dict(before))
    size = "voxel_volume_ml" if spatial_dims == 3 else "pixel_area_mm2"
    shrunken = 1.25**-spatial_dims  # MONAI scales the grid, so 1 + 0.25 makes things smaller
    assert after[size] == pytest.approx(10.0 * shrunken, rel=0.06)
    assert after["sphericity"] == pytest.approx(0.9, rel=0.03)
    assert (after["intensity_mean"], after["age"], after["label"]) == (3.0, 50.0, -1)
    truth = ball(10.0 / 1.25, spatial_dims)
    overlap = (np.asarray(after["mask"])[0] > 0) & truth
    assert 2 * overlap.sum() / (truth.sum() + (np.asarray(after["mask"]) > 0).sum()) > 0.95
    assert set(np.unique(after["mask"])) == {0.0, 2.0}
    assert before["label"] == 1


def test_the_change_is_measured_per_label() -> None:
    """The wall of two nested regions loses and gains what its own mask says."""
    wall = item(1) | {"lv_voxel_volume_ml": 5.0, "wall_voxel_volume_ml": 8.0}
    inner = torch.as_tensor(ball(4.0, 3)[None].astype(np.float32))
    wall["mask"] = MetaTensor(torch.as_tensor(wall["mask"]) + inner)  # 2 the wall, 3 the cavity
    labels = {"lv": 3, "wall": 2}
    names = ["lv_voxel_volume_ml", "wall_voxel_volume_ml"]
    affine = RandAffined(
        KEYS, prob=1.0, scale_range=[(-0.2, 0.2)] * 3, rotate_range=[1.0] * 3, shear_range=[0.2] * 6
    )
    after = DeformedCopyd(KEYS, [affine], names, labels, 1.0)(wall)
    for name, value, old in zip(names, (3, 2), (5.0, 8.0), strict=True):
        measured = [
            measure(None, np.asarray(m)[0] == value, (1, 1, 1))["voxel_volume_ml"]
            for m in (wall["mask"], after["mask"])
        ]
        assert after[name] == pytest.approx(old * measured[1] / measured[0])
        assert after[name] != old


def random_copies(**options: Any) -> DeformedCopyd:
    affine = RandAffined(KEYS, prob=1.0, scale_range=[0.2] * 3, rotate_range=[1.0] * 3)
    return DeformedCopyd(KEYS, [affine], ["voxel_volume_ml"], spacing_mm=1.0, **options)


def test_reproducible_by_seed_subject_and_copy() -> None:
    one, two = random_copies()(item(1)), random_copies()(item(2))
    again = random_copies()
    again(item(5))  # what was drawn before does not matter
    assert torch.equal(again(item(1))["image"], one["image"])
    assert again(item(1))["voxel_volume_ml"] == one["voxel_volume_ml"]
    assert not torch.equal(one["image"], two["image"])
    assert not torch.equal(random_copies(seed=1)(item(1))["image"], one["image"])
    assert not torch.equal(random_copies()(item(1) | {"id": "b"})["image"], one["image"])
    original = random_copies()(item(0))
    assert original["label"] == 1
    assert torch.equal(original["image"], item(0)["image"])
    assert torch.equal(random_copies(originals=3)(item(2))["image"], item(2)["image"])


def test_cached_although_random() -> None:
    flip = RandFlipd("image", prob=0.5)
    data = CacheDataset(
        [item(k) for k in range(3)], Compose([random_copies(), flip]), progress=False
    )
    assert [i["copy"] for i in data._cache] == [0, 1, 2]
    assert data._cache[1]["voxel_volume_ml"] != 10.0
    assert data[1]["voxel_volume_ml"] == data._cache[1]["voxel_volume_ml"]


def test_a_subject_that_would_leave_the_grid_stays() -> None:
    after = deform(scale=-0.6)(item(1))  # 2.5 times as large: radius 17.5 of 16
    assert after["voxel_volume_ml"] == 10.0
    assert after["label"] == 1


def test_missing_attributes_and_regions_stay_missing() -> None:
    empty = item(1) | {"voxel_volume_ml": float("nan")}
    assert np.isnan(deform()(empty)["voxel_volume_ml"])
    empty["mask"] = MetaTensor(torch.zeros(1, 32, 32, 32))
    assert deform()(empty)["sphericity"] == 0.9


def test_one_sentence_for_what_is_missing() -> None:
    with pytest.raises(ValueError, match="has no key 'copy'"):
        deform()(item(None))
    with pytest.raises(ValueError, match="expected the image and its mask"):
        DeformedCopyd("image", [])


def test_datalist_lists_copies(tmp_path: Any) -> None:
    from medvae.data import Cohort, phantoms

    table = phantoms(tmp_path, 12, spatial_dims=2)
    cohort = Cohort(table, ["lv_pixel_area_mm2"], mask_labels={"lv": 3}, spatial_dims=2)
    rows = cohort.datalist("train", copies=3)
    once = cohort.datalist("train")
    assert len(rows) == 3 * len(once)
    assert "copy" not in once[0]
    assert {(r["id"], r["copy"]) for r in rows} == {(r["id"], k) for r in once for k in range(3)}
    with pytest.raises(CohortError, match="copies is 0"):
        cohort.datalist("train", copies=0)
