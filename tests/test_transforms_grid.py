"""The grid transforms against affines, MONAI's own resampling and closed forms."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from bodies import affine_of, centre_of_mass, meta, world
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.transforms import SpatialResample

from medvae.transforms import CenterOnMaskd, PlanarAffined, ResampleToGridd

KEYS = ("image", "mask")


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


@pytest.mark.parametrize("flip", [(), (0,), (1,), (0, 1)])
def test_planar_affine_of_an_axial_slice_is_its_own(flip: tuple[int, ...]) -> None:
    affine = affine_of(2, (1.5, 2.0), flip=flip)
    new = PlanarAffined("image")({"image": meta(np.zeros((1, 4, 5)), affine)})["image"]
    assert np.asarray(new.affine)[:2] == pytest.approx(affine[:2, [0, 1, 3]])
