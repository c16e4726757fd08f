"""Localisation and deletion of maps, against what is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from medvae.metrics import deletion_area, localisation


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_localisation_of_known_maps(spatial_dims: int) -> None:
    shape = (2, 1, *[8] * spatial_dims)
    structure = torch.zeros(shape, dtype=torch.bool)
    structure[..., :2] = True  # a quarter of the grid
    assert localisation(torch.ones(shape), structure).tolist() == [[1.0], [1.0]]
    assert localisation(structure.float(), structure).tolist() == [[4.0], [4.0]]
    assert localisation((~structure).float(), structure).tolist() == [[0.0], [0.0]]
    half = structure.float() * 3 + (~structure).float()  # half of the mass on a quarter
    torch.testing.assert_close(localisation(half, structure), torch.full((2, 1), 2.0).double())
    assert localisation(torch.zeros(shape), structure).isnan().all()
    assert localisation(torch.ones(shape), torch.zeros_like(structure)).isnan().all()


def test_localisation_does_not_depend_on_the_maps_scale() -> None:
    maps = torch.rand(3, 2, 6, 6, 6)
    structures = torch.rand(3, 2, 6, 6, 6) > 0.7
    torch.testing.assert_close(
        localisation(maps, structures), localisation(1e-6 * maps, structures), rtol=1e-5, atol=0
    )


def test_localisation_refuses_what_it_cannot_mean() -> None:
    with pytest.raises(ValueError, match="must both have shape"):
        localisation(torch.ones(2, 8, 8), torch.ones(2, 1, 8, 8, dtype=torch.bool))
    with pytest.raises(ValueError, match="must not be negative"):
        localisation(-torch.ones(1, 1, 4, 4), torch.ones(1, 1, 4, 4, dtype=torch.bool))


def total(image: Tensor) -> Tensor:
    return image.flatten(1).sum(1)


@pytest.mark.parametrize("insertion", [False, True])
def test_deletion_of_a_sum_of_few_voxels(insertion: bool) -> None:
    """A tenth of the voxels carries everything: the true map takes it away at once."""
    image = torch.zeros(2, 1, 10, 10)
    image[..., :1] = 1.0
    truth = image[:, 0]
    area, chance = deletion_area(total, image, truth, insertion=insertion, steps=10)
    sign = -1 if insertion else 1
    # 0 at the start, 1 at the other ten points
    torch.testing.assert_close(area * sign, torch.full((2,), 10 / 11).double())
    assert (chance * sign - 0.5).abs().max() < 0.15
    worst, _ = deletion_area(total, image, 1 - truth, insertion=insertion, steps=10)
    torch.testing.assert_close(worst * sign, torch.full((2,), 1 / 11).double())


def test_a_zero_map_is_random() -> None:
    image = torch.rand(1, 1, 16, 16, 16)
    area, chance = deletion_area(total, image, torch.zeros(1, 16, 16, 16))
    assert abs(area - chance) < 0.03
    assert abs(area - 0.5) < 0.03
