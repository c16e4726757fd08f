"""Augmentation of whole batches."""

import math

import pytest
import torch

from medvae.engines import DifferentiableAugmentation


@pytest.mark.parametrize("size", [(8, 8), (8, 8, 5)])
def test_a_quarter_turn_is_torchs(size, monkeypatch):
    augment = DifferentiableAugmentation(1.0, translate=0.0, brightness=0.0, rotate=math.pi / 2)
    monkeypatch.setattr(augment, "_uniform", lambda count: torch.ones(count))
    image = torch.rand(2, 3, *size)
    torch.testing.assert_close(
        augment.draw(image)(image), image.rot90(-1, (2, 3)), rtol=1e-4, atol=1e-4
    )


def test_a_rotation_keeps_lengths_on_a_grid_that_is_not_square(monkeypatch):
    augment = DifferentiableAugmentation(1.0, translate=0.0, brightness=0.0, rotate=0.5)
    monkeypatch.setattr(augment, "_uniform", lambda count: torch.ones(count))
    image = torch.zeros(1, 1, 24, 40)
    image[..., 11:13, 28:30] = 1  # 9 voxels from the centre
    turned = augment.draw(image)(image)[0, 0]
    rows, columns = (turned.sum(1), turned.sum(0))
    row = (rows * torch.arange(24)).sum() / rows.sum() - 11.5
    column = (columns * torch.arange(40)).sum() / columns.sum() - 19.5
    assert math.hypot(row, column) == pytest.approx(9, abs=0.1)
    assert abs(math.atan2(row, column)) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("size", [(8, 6), (8, 6, 4)])
def test_what_is_switched_off_leaves_images_alone(size):
    image = torch.rand(4, 1, *size)
    nothing = DifferentiableAugmentation(1.0, translate=0.0, brightness=0.0)
    assert torch.equal(nothing.draw(image)(image), image)
    never = DifferentiableAugmentation(0.0, [0], 0.5, 0.5, rotate=1.0)
    torch.testing.assert_close(never.draw(image)(image), image, rtol=1e-4, atol=1e-5)
