"""The term that makes the decoder obey: who learns from it, and that it works."""

import numpy as np
import pytest
import torch
from torch import nn

from medvae.losses import ControlLoss
from medvae.losses.control import companions
from medvae.networks import AttriVAE


class Linear(nn.Module):
    """A decoder and an encoder of which every number is known."""

    def __init__(self, decoder, encoder):
        super().__init__()
        self.decoder, self.encoder = nn.Parameter(decoder), nn.Parameter(encoder)

    def decode(self, z):
        return z @ self.decoder

    def encode(self, image):
        return image @ self.encoder, image


def test_a_perfect_pair_costs_nothing_and_a_deaf_decoder_what_was_moved():
    mean = 2 * torch.randn(8, 3)
    exact = torch.eye(3)
    assert ControlLoss(tied=2)(Linear(exact, exact), mean) == 0
    deaf = torch.diag(torch.tensor([0.0, 1.0, 1.0]))  # draws nothing of axis 0
    loss = ControlLoss(tied=1, weight=3.0, share=1.0)
    torch.manual_seed(0)
    moved = loss.move(mean)
    torch.manual_seed(0)
    found = loss(Linear(deaf, exact), mean)
    error = moved[:, 0].abs()
    assert error.min() < 1 < error.max()
    expected = torch.where(error < 1, error**2, 2 * error - 1).mean()
    torch.testing.assert_close(found, 3 * expected)


def test_without_a_weight_nothing_is_decoded():
    blank = Linear(torch.eye(3), torch.eye(3))
    blank.decode = None
    assert ControlLoss(tied=2, weight=0.0)(blank, torch.randn(8, 3)) == 0


def test_one_tied_axis_of_each_code_is_another_samples_and_the_others_follow():
    torch.manual_seed(0)
    codes = torch.randn(200, 5)
    codes[:, 1] = 0.8 * codes[:, 0] + 0.6 * codes[:, 1]
    moved = ControlLoss(tied=3).move(codes)
    step = moved - codes
    assert torch.equal(moved[:, 3:], codes[:, 3:])
    taken = torch.stack([torch.isin(moved[:, k], codes[:, k]) for k in range(3)], 1)
    taken &= step[:, :3] != 0
    assert taken.any(1).all()
    first = taken[:, 0] & ~taken[:, 1]
    share = step[first, 1] / step[first, 0]
    slope = np.polyfit(codes[:, 0], codes[:, 1], 1)[0]
    assert 0 <= share.min() < 0.1 * slope
    assert 0.9 * slope < share.max() <= slope * (1 + 1e-5)


def test_companions_are_the_slopes_of_regressions():
    values = torch.randn(30, 3, dtype=torch.float64) @ torch.randn(3, 3, dtype=torch.float64)
    values[:, 2] = 4.0
    found = companions(values)
    expected = np.polyfit(values[:, 1], values[:, 0], 1)[0]
    assert found[1, 0].item() == pytest.approx(expected)
    torch.testing.assert_close(found.diagonal(), torch.tensor([1.0, 1.0, 0.0]).double())
    assert not found[2].any()


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_only_the_decoder_learns_and_nothing_is_left_behind(spatial_dims, half):
    vae = AttriVAE(
        spatial_dims,
        image_size=8,
        latent_dim=4,
        channels=(4, 8),
        strides=(2, 2),
        attribute_names=("a", "b"),
        regions=1,
        region_channels=4,
        num_classes=0,
    )
    mean = vae.encode(torch.rand(6, 1, *[8] * spatial_dims))[0]
    judged = ("encoder", "branch", "hidden", "mean", "log_var", "tied_mean")
    with torch.autocast("cpu", torch.bfloat16, enabled=half):  # which keeps copies of weights
        vae.encode(torch.rand(6, 1, *[8] * spatial_dims))
        before = {n: b.clone() for n, b in vae.named_buffers() if n.startswith(judged)}
        loss = ControlLoss(tied=2)(vae, mean)
    loss.backward()
    for name, parameter in vae.named_parameters():
        assert parameter.requires_grad
        assert (parameter.grad is None) == name.startswith(judged), name
    assert all(module.training for module in vae.modules())
    after = dict(vae.named_buffers())
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_a_weight_that_a_schedule_has_changed_is_part_of_the_state():
    control, other = ControlLoss(tied=1), ControlLoss(tied=1)
    control.weight = 7.0
    other.load_state_dict(control.state_dict())
    assert other.weight == 7.0


def test_a_batch_of_one_has_nobody_to_take_an_axis_from():
    vae = Linear(torch.eye(2), torch.eye(2))
    assert ControlLoss(tied=1)(vae, torch.randn(1, 2)) == 0


def test_the_decoder_turns_to_the_tied_axis():
    """Axes 0 (tied) and 1 know the same; reconstruction leaves open which of them is drawn."""
    torch.manual_seed(0)
    judge = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    vae = Linear(torch.tensor([[0.0, 0.0], [1.0, 1.0]]), judge)  # draws axis 1 in place of axis 0
    optimizer = torch.optim.Adam([vae.decoder], lr=0.05)
    control = ControlLoss(tied=1, share=1.0)
    for _ in range(200):
        factor = torch.randn(32, 1)
        mean = factor.expand(32, 2)
        optimizer.zero_grad()
        loss = (vae.decode(mean) - mean).square().mean() + control(vae, mean)
        loss.backward()
        optimizer.step()
    assert abs(vae.decoder[0, 0] - 1) < 0.05
    assert abs(vae.decoder[1, 0]) < 0.05
