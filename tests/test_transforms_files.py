"""Which files preprocessing takes and which it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from bodies import stored, subject, write
from PIL import Image

from medvae.transforms import preprocessing


def test_a_mask_that_lies_elsewhere_is_refused(tmp_path: Path) -> None:
    item = subject(tmp_path)
    mask, affine = stored(item["mask"])
    affine[0, 3] += 1.0
    item["mask"] = write(tmp_path, "moved", mask, affine)
    with pytest.raises(RuntimeError) as error:
        preprocessing(2.0, 16)(item)
    assert "moved.nii.gz' lies up to 1 mm away" in str(error.value.__cause__)


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
