"""medvae.transforms against analytic bodies, MONAI's own resampling and closed forms."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import torch
import torchio
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.bundle import ConfigParser
from monai.data import CacheDataset, DataLoader, MetaTensor, PersistentDataset, decollate_batch
from monai.transforms import (
    Compose,
    InvertibleTransform,
    Invertd,
    MapTransform,
    RandAffined,
    SpatialResample,
)
from monai.utils import set_determinism
from PIL import Image

from medvae.attributes import measure
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


def affine_of(spatial_dims: int, spacing: Any, angle: float = 0.3, flip: Any = ()) -> np.ndarray:
    """A rotated, anisotropic affine; 2D rotates in the plane, 3D about an oblique axis."""
    axis = np.array([0, 0, 1.0]) if spatial_dims == 2 else np.array([0.5, -0.4, 0.77])
    axis = axis / np.linalg.norm(axis)
    cross = np.cross(np.eye(3), axis)
    rotation = np.eye(3) - np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    sizes = np.array([*spacing, 1.0][:3])
    for i in flip:
        sizes[i] *= -1
    affine = np.eye(4)
    affine[:3, :3] = rotation * sizes
    affine[:3, 3] = (11.0, -7.0, 23.0)
    return affine


def world(affine: Any, shape: Any) -> np.ndarray:
    """RAS millimetres of every voxel, ``(*S, r)`` for a ``(r + 1, r + 1)`` affine."""
    affine = np.asarray(affine)
    index = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), axis=-1)
    if index.shape[-1] < len(affine) - 1:
        index = np.concatenate([index, np.zeros((*shape, 1))], axis=-1)
    return index @ affine[:-1, :-1].T + affine[:-1, -1]


def ball(affine: Any, shape: Any, offset: Any = 0.0, radius: float = 9.0) -> np.ndarray:
    """Signed millimetres inside a ball at the volume's centre plus ``offset`` (world axes)."""
    points = world(affine, shape)
    middle = points.reshape(-1, points.shape[-1])
    centre = (middle.min(0) + middle.max(0)) / 2 + offset
    return radius - np.linalg.norm(points - centre, axis=-1)


def write(folder: Path, name: str, voxels: np.ndarray, affine: np.ndarray) -> str:
    path = folder / f"{name}.nii.gz"
    nibabel.save(nibabel.Nifti1Image(voxels.astype(np.float32), affine), path)
    return str(path)


def subject(
    folder: Path,
    spatial_dims: int = 3,
    spacing: Any = (1.5, 2.0, 3.0),
    shape: Any = (26, 20, 14),
    flip: Any = (),
    name: str = "case",
    **kwargs: Any,
) -> dict[str, Any]:
    """A smooth ball in Hounsfield-like units, its mask, on disk."""
    affine = affine_of(spatial_dims, spacing[:spatial_dims], flip=flip)
    depth = ball(affine, shape[:spatial_dims], **kwargs)
    image = -200 + 400 * np.clip(depth / 8, -1, 1)
    return {
        "image": write(folder, f"{name}_image", image, affine),
        "mask": write(folder, f"{name}_mask", depth > 0, affine),
        "voxel_volume_ml": 1.0,
    }


def stored(path: str) -> tuple[np.ndarray, np.ndarray]:
    image = nibabel.load(path)
    return np.asarray(image.dataobj, dtype=np.float32), image.affine


def meta(values: Any, affine: Any = None) -> MetaTensor:
    tensor = torch.as_tensor(np.asarray(values, dtype=np.float32))
    affine = np.eye(tensor.ndim) if affine is None else affine
    return MetaTensor(tensor, affine=torch.as_tensor(np.asarray(affine)))


def dice(a: Any, b: Any) -> float:
    a, b = np.asarray(a) > 0.5, np.asarray(b) > 0.5
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def centre_of_mass(weights: Any) -> np.ndarray:
    weights = np.asarray(weights)
    grid = np.indices(weights.shape).reshape(weights.ndim, -1)
    return (grid * weights.reshape(-1)).sum(1) / weights.sum()


# ---------------------------------------------------------------- the grid


@pytest.mark.parametrize("spatial_dims", [2, 3])
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_a_linear_intensity_is_resampled_exactly(spatial_dims: int, data: Any) -> None:
    """The oracle is the affine itself: a linear function of the body's coordinates stays one."""
    spacing = [data.draw(st.floats(0.4, 3.0)) for _ in range(spatial_dims)]
    wanted = [data.draw(st.floats(0.4, 3.0)) for _ in range(spatial_dims)]
    shape = [data.draw(st.integers(9, 17)) for _ in range(spatial_dims)]
    size = [data.draw(st.integers(1, 20)) for _ in range(spatial_dims)]
    flip = [i for i in range(spatial_dims) if data.draw(st.booleans())]
    affine = affine_of(spatial_dims, spacing, data.draw(st.floats(0, 3)), flip)
    slope = np.array([0.7, -1.3, 0.4])
    image = (world(affine, shape) @ slope)[None]
    affine = np.delete(np.delete(affine, 2, 0), 2, 1) if spatial_dims == 2 else affine
    grid = ResampleToGridd("image", size=size, spacing_mm=wanted, value=-5.0)
    new = grid({"image": meta(image, affine)})["image"]

    assert tuple(new.shape) == (1, *size)
    edges = np.linalg.norm(np.asarray(new.affine)[:-1, :-1], axis=0)
    assert edges == pytest.approx(wanted, rel=2e-4)
    points = world(new.affine, size)
    old = (points - np.asarray(affine)[:-1, -1]) @ np.linalg.inv(np.asarray(affine)[:-1, :-1]).T
    reach = 1 + np.divide(wanted, spacing) / 2
    core = ((old >= reach - 1) & (old <= np.array(shape) - reach)).all(-1)
    beyond = ((old < -0.51) | (old > np.array(shape) - 0.49)).any(-1)
    truth = points @ slope[:spatial_dims]
    if spatial_dims == 2:
        truth = truth + slope[2] * 23.0
    assert np.asarray(new)[0][core] == pytest.approx(truth[core], abs=2e-3)
    assert (np.asarray(new)[0][beyond] == -5.0).all()


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_equals_monais_resampling_where_that_does_not_alias(mode: str) -> None:
    affine = affine_of(3, (1.5, 2.0, 3.0), flip=(0,))
    image = meta(np.random.default_rng(0).normal(size=(2, 9, 8, 7)), affine)
    grid = ResampleToGridd("image", size=(14, 13, 12), spacing_mm=1.3, mode=mode, value=0)
    ours = grid({"image": image})["image"]
    theirs = SpatialResample(mode=mode, padding_mode="border", dtype=torch.float64)(
        image, dst_affine=ours.affine, spatial_size=(14, 13, 12)
    )
    inside = ours != 0  # MONAI repeats the border where ours is padding
    assert inside.float().mean() > 0.5
    assert torch.allclose(ours[inside], theirs[inside], atol=1e-4)
    assert torch.allclose(ours.affine, theirs.affine)


def test_an_axis_of_equal_spacing_is_copied_bit_by_bit() -> None:
    image = meta(np.random.default_rng(1).normal(size=(1, 9, 8, 7)), np.diag([2, 2, 2, 1.0]))
    new = ResampleToGridd("image", size=(12, 5, 7), spacing_mm=2.0, value=-1000.0)({"image": image})
    new = new["image"].as_tensor()
    old = image.as_tensor()
    assert torch.equal(new[:, 1:10], old[:, :, 2:7])
    assert (new[:, :1] == -1000).all()
    assert (new[:, 10:] == -1000).all()


def test_coarser_axes_are_averaged_not_aliased() -> None:
    stripes = np.tile([1.0, 0.0], 17)[None, :33, None] * np.ones((1, 33, 32))
    item = {"image": meta(stripes)}
    sharp = ResampleToGridd("image", spacing_mm=3.0, anti_alias=False)(item)["image"]
    smooth = ResampleToGridd("image", spacing_mm=3.0)(item)["image"]
    assert tuple(smooth.shape) == (1, 11, 11)
    assert float((sharp - 0.5).abs().max()) == pytest.approx(0.5)
    assert float((smooth - 0.5).abs().max()) < 0.11


def test_fading_keeps_the_mass_of_an_object_at_the_edge() -> None:
    """A slab over the whole volume, background 0 beyond: its mass is its mass at any spacing."""
    item = {"image": meta(np.ones((1, 12, 10, 7)), np.diag([1, 1, 4, 1.0]))}
    for spacing in (0.8, 1.7, 3.0):
        new = ResampleToGridd("image", size=44, spacing_mm=spacing, fade=True)(item)["image"]
        assert float(new.sum()) * spacing**3 == pytest.approx(12 * 10 * 28, rel=0.01)


def test_a_grid_beside_the_volume_is_padding() -> None:
    mask = np.zeros((1, 8, 8))
    mask[0, 0, 0] = 1
    item = {"image": meta(np.ones((1, 8, 8))), "mask": meta(mask)}
    grid = ResampleToGridd("image", size=4, spacing_mm=9.0, value=-3.0, center_key="mask")
    values = grid(item)["image"].unique().tolist()
    assert values[0] == -3.0
    with pytest.raises(ValueError, match=r"spacing_mm is \(1, 0\); expected positive"):
        ResampleToGridd("image", spacing_mm=(1, 0))
    with pytest.raises(ValueError, match="size is 0; expected positive"):
        ResampleToGridd("image", size=0)


# ---------------------------------------------------------------- centring


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_center_on_mask_moves_whole_voxels_and_keeps_the_body_in_place(spatial_dims: int) -> None:
    shape = (15, 14, 13)[:spatial_dims]
    affine = np.eye(spatial_dims + 1) * 2.0
    affine[-1, -1] = 1
    mask = np.zeros((1, *shape))
    mask[(0, *(slice(2, 6) for _ in shape))] = 3
    image = np.random.default_rng(2).normal(size=(2, *shape))
    item = {"image": meta(image, affine), "mask": meta(mask, affine)}
    shift = CenterOnMaskd(KEYS, foreground=[3], value=(-9.0, 0.0))
    new = shift(item)
    assert np.abs(centre_of_mass(new["mask"][0]) - (np.array(shape) - 1) / 2).max() <= 0.5
    before = world(affine, shape)[mask[0] > 0]
    after = world(new["mask"].affine, shape)[np.asarray(new["mask"][0]) > 0]
    assert np.allclose(before, after)
    kept = np.asarray(new["image"]) != -9
    assert 0.3 < kept.mean() < 1
    back = shift.inverse(new)
    assert torch.equal(back["mask"], item["mask"])
    assert torch.equal(back["image"].affine, item["image"].affine)
    lost = np.asarray(back["image"]) == 0
    assert (np.asarray(back["image"])[~lost] == np.asarray(item["image"])[~lost]).all()
    assert lost.mean() == pytest.approx(1 - kept.mean())
    assert not back["image"].applied_operations


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


# ---------------------------------------------------------------- the whole preprocessing


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


@settings(max_examples=25, deadline=None)
@given(st.floats(0, 3), st.tuples(*[st.floats(-1, 1)] * 3), st.floats(0.3, 3), st.floats(0.3, 3))
def test_planar_affine_keeps_lengths_and_angles(
    angle: float, axis: tuple[float, ...], first: float, second: float
) -> None:
    direction = np.array(axis) + [0, 0, 1.5]
    direction = direction / np.linalg.norm(direction)
    cross = np.cross(np.eye(3), direction)
    rotation = np.eye(3) - np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    affine = np.eye(4)
    affine[:3, :3] = rotation * [first, second, 1.0]
    item = {"image": meta(np.zeros((1, 4, 5)), affine)}
    planar = PlanarAffined("image")
    new = planar(item)["image"]
    columns = np.asarray(new.affine)[:2, :2]
    assert new.affine.shape == (3, 3)
    assert np.linalg.norm(columns, axis=0) == pytest.approx([first, second])
    assert columns[:, 0] @ columns[:, 1] == pytest.approx(0, abs=1e-9)
    assert torch.equal(planar.inverse({"image": new})["image"].affine, item["image"].affine)


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


def test_a_mask_is_needed_only_where_it_is_used(tmp_path: Path) -> None:
    item = {"image": subject(tmp_path)["image"]}
    assert "mask" not in preprocessing(2.0, 16)(item)
    for arguments in ({"center_on_mask": True}, {"background": 0.0}):
        with pytest.raises(RuntimeError) as error:
            preprocessing(2.0, 16, **arguments)(item)
        assert "case_image.nii.gz' has no mask; expected one" in str(error.value.__cause__)
        with pytest.raises(ValueError, match="without a mask; expected one"):
            preprocessing(2.0, 16, keys="image", **arguments)


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


@pytest.mark.parametrize(
    ("spatial_dims", "shape", "expected"),
    [
        (3, (6, 7, 8, 5), "1 channel in 3D"),
        (2, (6, 7, 8), "1 channel in 2D"),
        (3, (6, 7), "a 3D image"),
        (2, (6, 7, 1, 3), "1 channel in 2D"),
    ],
)
def test_other_axes_or_channels_than_configured_are_refused(
    tmp_path: Path, spatial_dims: int, shape: tuple[int, ...], expected: str
) -> None:
    path = write(tmp_path, "cine", np.random.default_rng(4).normal(size=shape), np.eye(4))
    with pytest.raises(RuntimeError) as error:
        preprocessing(1.0, 16, spatial_dims=spatial_dims)({"image": path})
    message = str(error.value.__cause__)
    assert "cine.nii.gz" in message
    assert str(shape[0]) in message
    assert f"expected {expected}" in message
    assert "\n" not in message


def test_rgb_photographs(tmp_path: Path) -> None:
    pixels = np.random.default_rng(5).integers(0, 255, (40, 60, 3)).astype(np.uint8)
    pixels[10:30] = [255, 0, 0]
    Image.fromarray(pixels).save(tmp_path / "eye.png")
    item = {"image": str(tmp_path / "eye.png")}
    steps = preprocessing(2.0, (32, 24), "image", spatial_dims=2, in_channels=3, window=(0, 255))
    image = np.asarray(steps(item)["image"])
    assert image.shape == (3, 32, 24)
    assert image[:, 16, 12] == pytest.approx([1, 0, 0], abs=1e-6)
    assert (image[:, 0] == 0).all()  # 60 pixels are 30 of 2 mm, padded by one on each side
    assert steps.inverse(steps(item))["image"].shape == (3, 60, 40)
    with pytest.raises(RuntimeError) as error:
        preprocessing(2.0, 32, "image", spatial_dims=2)(item)
    assert "eye.png" in str(error.value.__cause__)
    assert "3 channels" in str(error.value.__cause__)


def test_dicom_series(tmp_path: Path) -> None:
    """Slices named in reverse order, written by SimpleITK; HU by the rescale tags."""
    folder = tmp_path / "series"
    folder.mkdir()
    stack = np.random.default_rng(6).integers(-900, 900, (6, 9, 8)).astype(np.int16)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for k, pixels in enumerate(stack):
        image = sitk.GetImageFromArray(pixels[None])
        image.SetSpacing((1.5, 1.5, 4.0))
        tags = {
            "0008|0060": "CT",
            "0008|0018": f"1.2.3.4.{k + 1}",
            "0008|0021": "20200101",
            "0020|000d": "1.2.3",
            "0020|000e": "1.2.3.4",
            "0020|0013": str(k),
            "0020|0032": f"10\\20\\{30 + 4 * k}",
            "0020|0037": "1\\0\\0\\0\\1\\0",
        }
        for tag, value in tags.items():
            image.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{9 - k}.dcm"))
        writer.Execute(image)
    steps = preprocessing(None, None, keys="image")
    new = steps({"image": str(folder)})["image"]
    expected = stack.transpose(2, 1, 0)[::-1, ::-1]  # LPS to RAS
    assert np.array_equal(np.asarray(new)[0], expected)
    assert np.diag(np.asarray(new.affine)) == pytest.approx([1.5, 1.5, 4.0, 1.0])
    assert np.asarray(new.affine)[:3, 3] == pytest.approx([-10 - 7 * 1.5, -20 - 8 * 1.5, 30])
    back = steps.inverse({"image": new})["image"]
    assert np.array_equal(np.asarray(back)[0], stack.transpose(2, 1, 0))


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


# ---------------------------------------------------------------- background, bias, attributes


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


# ---------------------------------------------------------------- artefacts

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


# ---------------------------------------------------------------- all of them


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
