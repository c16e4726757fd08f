"""Adversarial losses and penalties beside closed forms."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from medvae.losses import PathLength, discriminator_loss, generator_loss, r1_penalty
from medvae.losses.adversarial import path_lengths

GRIDS = [(6, 5), (4, 3, 5)]
grids = pytest.mark.parametrize("grid", GRIDS)


def test_logistic_losses():
    real, fake = torch.tensor([[2.0], [-300.0]]), torch.tensor([[-1.0], [200.0]])
    ones, zeros = torch.ones(2, 1), torch.zeros(2, 1)
    cross_entropy = F.binary_cross_entropy_with_logits
    expected = (cross_entropy(real, ones) + cross_entropy(fake, zeros)) / 2
    torch.testing.assert_close(discriminator_loss(real, fake), expected)
    torch.testing.assert_close(generator_loss(fake), cross_entropy(fake, ones))
    sure = torch.tensor([[-200.0]], requires_grad=True)
    generator_loss(sure).backward()
    assert sure.grad == -1  # where it is wrong, it learns
    assert generator_loss(fake.bfloat16()).dtype == torch.float32


@grids
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_r1_of_a_plane(grid, dtype):
    slope = torch.randn(1, *grid)
    for seed in range(2):
        image = torch.randn(3, 1, *grid, generator=torch.Generator().manual_seed(seed))
        image.requires_grad_()
        score = (image * slope).flatten(1).sum(1, keepdim=True) + 5
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            found = r1_penalty(score, image)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, slope.square().sum(), rtol=1e-5, atol=0)


@grids
def test_path_lengths_of_a_linear_generator(grid):
    torch.manual_seed(0)
    voxels = torch.Size(grid).numel()
    matrix = torch.randn(voxels, 4)
    w = torch.randn(4000, 3, 4, requires_grad=True)
    image = (w.sum(1) @ matrix.T).view(-1, 1, *grid)
    found = path_lengths(image, w).square().mean()
    assert found.item() == pytest.approx((matrix.square().sum() / voxels).item(), rel=0.03)


def test_path_length_vanishes_as_its_mean_converges():
    """An image whose length in w is 2 whatever the noise: one voxel, whose noise is +-1."""
    penalty = PathLength(decay=0.5)
    w = torch.ones(8, 1, 1, requires_grad=True)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randn_like", lambda x, **_: torch.sign(torch.randn(x.shape)))
        values = [penalty(2 * w.view(8, 1, 1, 1), w).item() for _ in range(12)]
    assert values[0] == pytest.approx(1)
    assert values[-1] < 1e-5
    assert penalty.mean.item() == pytest.approx(2, abs=1e-3)
    assert not penalty.mean.requires_grad
    restored = PathLength()
    restored.load_state_dict(penalty.state_dict())
    assert restored.mean == penalty.mean
    before = penalty.mean.clone()
    penalty.eval()(2 * w.view(8, 1, 1, 1), w)
    assert torch.equal(penalty.mean, before)


def test_path_length_has_a_gradient_and_survives_flat_generators():
    scale = torch.zeros((), requires_grad=True)
    w = torch.randn(5, 2, 3, requires_grad=True)
    value = PathLength()((scale * w.sum((1, 2))).view(5, 1, 1, 1).expand(5, 1, 4, 4), w)
    value.backward()
    assert torch.isfinite(scale.grad)
    scale = torch.ones((), requires_grad=True)
    PathLength()((scale * w.sum((1, 2))).view(5, 1, 1, 1).expand(5, 1, 4, 4), w).backward()
    assert scale.grad != 0
