"""Preprocessing from files to tensors and back, and what all transforms have in common."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
import torchio
from bodies import centre_of_mass, dice, stored, subject, world, write
from monai.bundle import ConfigParser
from monai.data import CacheDataset, DataLoader, MetaTensor, PersistentDataset, decollate_batch
from monai.transforms import Invertd, InvertibleTransform, MapTransform, SaveImaged
from monai.utils import set_determinism

from medvae.transforms import (
    CenterOnMaskd,
    LoadSubjectd,
    MaskBackgroundd,
    MeasureAttributesd,
    N4BiasFieldCorrectiond,
    PlanarAffined,
    RandArtefactd,
    ResampleToGridd,
    preprocessing,
)

KEYS = ("image", "mask")


@pytest.mark.parametrize("flip", [(), (0,), (0, 1)])
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_invertd_returns_to_the_subjects_grid(
    tmp_path: Path, spatial_dims: int, flip: tuple[int, ...]
) -> None:
    item = subject(tmp_path, spatial_dims, flip=flip)
    steps = preprocessing(
        1.5,
        (24, 28, 32)[:spatial_dims],
        spatial_dims=spatial_dims,
        window=(-600, 200),
        center_on_mask=True,
        background=-600,
    )
    new = steps(item)
    assert new["image"].shape == new["mask"].shape == (1, *(24, 28, 32)[:spatial_dims])
    assert new["image"].dtype == new["mask"].dtype == torch.float32
    names = [step["class"] for step in new["image"].applied_operations]
    assert names[-3:] == ["Orientation", "MaskBackgroundd", "ResampleToGridd"]
    assert new["voxel_volume_ml"] == 1.0
    axes = nibabel.aff2axcodes(np.asarray(new["image"].affine))
    assert "".join(axes) == "RAS"[:spatial_dims]

    # through the collation that training does
    (new,) = decollate_batch(next(iter(DataLoader([new], batch_size=1))))
    new["pred"] = new["image"].repeat(3, *[1] * spatial_dims)  # maps have K channels
    new = Invertd("pred", steps, orig_keys="image")(new)
    new = Invertd("mask", steps, orig_keys="mask", nearest_interp=True)(new)
    image, affine = stored(item["image"])
    mask, _ = stored(item["mask"])
    assert new["pred"].shape == (3, *image.shape)
    assert new["mask"].shape == (1, *mask.shape)
    for key in ("pred", "mask"):
        assert np.array_equal(np.asarray(new[key].affine), affine)
        assert not new[key].applied_operations
    assert dice(new["mask"][0], mask) >= 0.95
    assert set(new["mask"].unique().tolist()) == {0.0, 1.0}
    saver = SaveImaged("mask", output_dir=tmp_path, resample=False, print_log=False)
    saver(new)
    written, written_affine = stored(str(tmp_path / "case_mask" / "case_mask_trans.nii.gz"))
    assert written.shape == mask.shape
    assert np.array_equal(written_affine, affine)
    scaled = np.clip((image + 600) / 800, 0, 1) * mask
    assert np.abs(np.asarray(new["pred"][1]) - scaled).mean() < 0.05
    assert np.corrcoef(np.asarray(new["pred"][1]).ravel(), scaled.ravel())[0, 1] > 0.97


def test_invertd_returns_sagittal_2d_slices_to_their_plane(tmp_path: Path) -> None:
    """Of this affine MONAI's 2D transforms would see a singular 2 x 2 block."""
    affine = np.zeros((4, 4))
    affine[1, 0], affine[2, 1], affine[0, 2], affine[3, 3] = -0.8, 1.6, 5.0, 1
    affine[:3, 3] = (40, 10, -30)
    depth = 9 - np.hypot(0.8 * (np.arange(40) - 19)[:, None], 1.6 * (np.arange(20) - 9)[None])
    item = {
        "image": write(tmp_path, "i", depth[..., None], affine),
        "mask": write(tmp_path, "m", depth[..., None] > 0, affine),
    }
    steps = preprocessing(1.0, (30, 28), spatial_dims=2, window=(-9, 9), center_on_mask=True)
    new = steps(item)
    area = float((new["mask"]).sum())
    assert area == pytest.approx(np.pi * 81, rel=0.04)
    back = steps.inverse(new)
    assert back["image"].shape == (1, 40, 20)
    assert np.array_equal(np.asarray(back["image"].affine), stored(item["image"])[1])
    assert dice(back["mask"][0], depth > 0) >= 0.95


@pytest.mark.parametrize("spacing", [1.0, 2.0])
def test_physical_scale_survives(tmp_path: Path, spacing: float) -> None:
    """Specification 8.11: in-plane scale 1.5 is a volume ratio of 2.25, not 1."""
    steps = preprocessing(spacing, 60, window=(-1, 1), center_on_mask=True, background=-1)
    counts, masses = [], []
    for scale in (1.0, 1.5):
        affine = np.diag([1.2, 1.2, 3.0, 1.0])
        points = world(affine, (48, 48, 16)) - [28, 28, 22]
        radius = np.hypot(points[..., 0], points[..., 1]) / scale
        shell = (radius < 16) & (radius > 9) & (np.abs(points[..., 2]) < 16)
        new = steps(
            {
                "image": write(tmp_path, f"i{scale}", shell * 2.0 - 1, affine),
                "mask": write(tmp_path, f"m{scale}", shell, affine),
            }
        )
        counts.append(float(new["mask"].sum()))
        masses.append(float(new["image"].sum()))
        truth = shell.sum() * 1.2 * 1.2 * 3.0
        assert masses[-1] * spacing**3 == pytest.approx(truth, rel=0.005)
    assert counts[1] / counts[0] == pytest.approx(2.25, abs=0.1)
    assert masses[1] / masses[0] == pytest.approx(2.25, abs=0.05)


def test_background_and_padding_are_the_scaled_air(tmp_path: Path) -> None:
    item = subject(tmp_path)
    window = (-1200.0, 800.0)
    new = preprocessing(2.0, 40, window=window, background=-1000, center_on_mask=True)(item)
    image = np.asarray(new["image"])
    assert image[0, 0, 0, 0] == pytest.approx(0.1)
    assert image[np.asarray(new["mask"]) == 0].min() == pytest.approx(0.1)
    kept = preprocessing(2.0, 40, window=window, center_on_mask=True)(item)
    assert np.asarray(kept["image"])[0, 0, 0, 0] == 0
    assert (np.asarray(kept["image"]) > 0).mean() > (image > 0.11).mean()
    chosen = preprocessing(2.0, 40, window=window, padding=-200)(item)
    assert np.asarray(chosen["image"])[0, 0, 0, 0] == pytest.approx(0.5)
    raw = preprocessing(2.0, 40, background=-1000)(item)
    assert np.asarray(raw["image"])[0, 0, 0, 0] == -1000


def test_an_object_cut_by_the_volumes_edge_keeps_its_mass(tmp_path: Path) -> None:
    """A stack of few thick slices, the object in all of them."""
    affine, ones = np.diag([1.5, 1.5, 7.3, 1.0]), np.ones((10, 12, 4))
    ones[:2] = 0
    item = {
        "image": write(tmp_path, "i", 100 * ones, affine),
        "mask": write(tmp_path, "m", ones, affine),
    }
    steps = preprocessing(3.0, 24, window=(0, 100), center_on_mask=True, background=0)
    truth = ones.sum() * 1.5 * 1.5 * 7.3
    assert float(steps(item)["image"].sum()) * 3.0**3 == pytest.approx(truth, rel=0.01)
    kept = preprocessing(3.0, 24, window=(0, 100), center_on_mask=True)(item)
    assert set(kept["image"][:, 12, 12].unique().tolist()) == {0.0, 1.0}  # a sharp volume's edge


def test_percentiles_follow_each_volume(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    noise = rng.normal(size=(20, 20, 20))
    ends = []
    for gain in (1.0, 40.0):
        path = write(tmp_path, f"p{gain}", 300 + gain * noise, np.eye(4))
        steps = preprocessing(None, None, keys="image", percentiles=(10, 90))
        image = np.asarray(steps({"image": path})["image"])
        assert image.min() == 0
        assert image.max() == 1
        assert (image == 0).mean() == pytest.approx(0.1, abs=0.005)
        ends.append(image)
    assert ends[0] == pytest.approx(ends[1], abs=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"window": (0, 1), "percentiles": (1, 99)}, "both given; expected at most one"),
        ({"window": (1, 0)}, r"window is \(1, 0\); expected two rising numbers"),
        ({"percentiles": (5,)}, r"percentiles is \(5,\); expected two rising numbers"),
        ({"keys": ("a", "b", "c")}, "expected the image's key and the mask's"),
    ],
)
def test_contradicting_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        preprocessing(1.0, 16, **arguments)


YAML = """
preprocessing:
  _target_: medvae.transforms.preprocessing
  spacing_mm: [2.0, 2.0, 2.5]
  size: [16, 16, 12]
  window: [-200, 200]
  center_on_mask: true
  background: -200
  before_scaling:
  - {_target_: medvae.transforms.MeasureAttributesd, keys: image, names: [voxel_volume_ml]}
augmentation:
- _target_: medvae.transforms.RandArtefactd
  keys: image
  prob: 0.5
  transform: {_target_: torchio.RandomNoise, std: [0.1, 0.2]}
train: "$monai.transforms.Compose([*@preprocessing.transforms, *@augmentation])"
"""


def test_from_yaml_cached_and_reproducible(tmp_path: Path) -> None:
    parser = ConfigParser(ConfigParser.load_config_file(_yaml(tmp_path)))
    items = [subject(tmp_path, name=f"c{k}", radius=7.0 + k) for k in range(3)]
    train = parser.get_parsed_content("train")
    cached = CacheDataset(items, train, progress=False)
    assert [type(t).__name__ for t in train.transforms][-1] == "RandArtefactd"
    runs = []
    for _ in range(2):
        set_determinism(7)
        loader = DataLoader(cached, batch_size=3, num_workers=0)
        runs.append([next(iter(loader))["image"] for _ in range(2)])
    set_determinism(None)
    assert torch.equal(runs[0][0], runs[1][0])
    assert torch.equal(runs[0][1], runs[1][1])
    assert not torch.equal(runs[0][0], runs[0][1])
    assert isinstance(runs[0][0], MetaTensor)
    volumes = [cached[k]["voxel_volume_ml"] for k in range(3)]
    assert volumes == sorted(volumes)
    assert volumes[0] == pytest.approx(4 / 3 * np.pi * 0.7**3, rel=0.05)
    assert type(cached._cache[0]["image"]) is MetaTensor  # everything before the noise is cached
    assert cached._cache[0]["image"].shape == (1, 16, 16, 12)


def _yaml(folder: Path) -> str:
    path = folder / "config.yaml"
    path.write_text(YAML)
    return str(path)


def test_persistent_dataset_keeps_geometry_and_its_inverse(tmp_path: Path) -> None:
    item = subject(tmp_path, flip=(1,))
    steps = preprocessing(1.5, 24, window=(-200, 200), center_on_mask=True, background=-200)
    dataset = PersistentDataset(
        [item], steps, cache_dir=tmp_path / "cache", track_meta=True, weights_only=False
    )
    first, again = dataset[0]["mask"], dataset[0]["mask"]
    assert len(list((tmp_path / "cache").glob("*.pt"))) == 1
    assert torch.equal(first.affine, again.affine)
    mask, affine = stored(item["mask"])
    for new in (first, again):
        back = Invertd("mask", steps, orig_keys="mask", nearest_interp=True)({"mask": new})["mask"]
        assert np.array_equal(np.asarray(back.affine), affine)
        assert dice(back[0], mask) >= 0.95


def test_preprocessing_puts_the_centre_of_mass_at_the_centre_of_the_grid(tmp_path: Path) -> None:
    item = subject(tmp_path, offset=(4.0, -3.0, 2.0))
    mask, affine = stored(item["mask"])
    item["image"] = write(tmp_path, "flat", 400 * mask - 200, affine)
    steps = preprocessing(1.2, 24, window=(-200, 200), center_on_mask=True, background=-200)
    new = steps(item)
    assert centre_of_mass(new["image"][0]) == pytest.approx([11.5] * 3, abs=0.05)
    assert centre_of_mass(new["mask"][0]) == pytest.approx([11.5] * 3, abs=0.25)
    off = preprocessing(1.2, 24, window=(-200, 200), background=-200)(item)
    assert np.abs(centre_of_mass(off["image"][0]) - 11.5).max() > 1


def test_an_empty_or_cut_mask_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    item = subject(tmp_path)
    steps = preprocessing(1.0, 32, center_on_mask=True, foreground=[2])
    with pytest.raises(RuntimeError) as error:
        steps(item)
    message = str(error.value.__cause__)
    assert "case_mask.nii.gz' is empty" in message
    assert "expected at least one voxel with a label of [2]" in message
    small = preprocessing(1.0, (12, 32, 32), center_on_mask=True)
    with caplog.at_level(logging.INFO):
        small(item)
        small(item)
    levels = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert [level for level, _ in levels] == ["WARNING", "INFO"]
    assert "of the mask '" in levels[0][1]
    assert "outside the grid of 12 x 32 x 32 voxels" in levels[0][1]


TRANSFORMS: list[MapTransform] = [
    CenterOnMaskd(KEYS),
    LoadSubjectd(),
    MaskBackgroundd("image"),
    MeasureAttributesd("image", ["voxel_volume_ml"]),
    N4BiasFieldCorrectiond("image"),
    PlanarAffined(KEYS),
    RandArtefactd("image", torchio.RandomNoise()),
    ResampleToGridd(KEYS, 8, 1.0),
]


@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda t: type(t).__name__)
def test_transforms_are_picklable(transform: MapTransform) -> None:
    copy = pickle.loads(pickle.dumps(transform))
    assert type(copy) is type(transform)
    assert copy.keys == transform.keys
    invertible = isinstance(transform, InvertibleTransform)
    assert invertible == hasattr(transform, "inverse")


def test_the_pickled_pipeline_gives_the_same_bits(tmp_path: Path) -> None:
    item = subject(tmp_path)
    steps = preprocessing(1.5, 16, window=(-200, 200), center_on_mask=True, background=-200)
    copy = pickle.loads(pickle.dumps(steps))
    assert torch.equal(steps(item)["image"], copy(item)["image"])
    loader = DataLoader(CacheDataset([item] * 2, copy, progress=False), num_workers=1)
    assert torch.equal(next(iter(loader))["image"][0], steps(item)["image"])
