"""Subspaces exchanged, drawn and moved: codes change where they should, and nowhere else."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from medvae.explain import (
    SwapInferer,
    attribute_maps,
    interpolate_subspaces,
    reconstruct,
    sample,
    sample_subspace,
    swap_subspaces,
)
from medvae.networks import DisentangledGAN

SIZES = {"side": 2, "fov": 3, "free": 4}


class Recording(DisentangledGAN):
    """Keeps the codes that were decoded."""

    decoded: torch.Tensor

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        self.decoded = codes
        return super().decode(codes)


@pytest.fixture(params=[2, 3])
def setting(request: Any) -> tuple[Recording, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    network = Recording(request.param, SIZES, {"side": 2, "fov": 1}, 8, (8, 6)).train()
    image, donor = torch.rand(2, 3, 1, *[8] * request.param)
    return network, image, donor


def test_swapping(setting):
    network, image, donor = setting
    own, other = reconstruct(network, image), reconstruct(network, donor)
    parts = network.subspaces.split(network.encode(image))
    for name in SIZES:
        swapped = swap_subspaces(network, image, donor, name)
        assert swapped.shape == image.shape
        found = network.subspaces.split(network.decoded)
        assert {n for n in SIZES if not torch.equal(found[n], parts[n])} == {name}
        back = network.subspaces.swap(network.decoded, network.encode(image), name)
        assert torch.equal(network.eval().decode(back), own)
        network.train()
    assert torch.equal(swap_subspaces(network, image, donor, list(SIZES)), other)
    assert torch.equal(swap_subspaces(network, image, donor, []), own)
    one = swap_subspaces(network, image, donor[:1], "fov")
    torch.testing.assert_close(one[0], swap_subspaces(network, image, donor, "fov")[0])
    assert network.training
    with pytest.raises(ValueError, match="no subspace 'sex'"):
        swap_subspaces(network, image, donor, "sex")


def test_drawing_and_moving(setting):
    network, image, donor = setting
    drawn = sample_subspace(network, image, "free", 4, seed=1)
    assert drawn.shape == (3, 4, *image.shape[1:])
    assert torch.equal(drawn, sample_subspace(network, image, "free", 4, seed=1))
    parts = network.subspaces.split(network.encode(image))
    found = network.subspaces.split(network.decoded)
    assert torch.equal(found["side"], parts["side"])
    assert (found["free"] == found["free"][0]).all()  # one draw for all images
    moved = interpolate_subspaces(network, image, donor, steps=3)
    assert torch.equal(moved[:, 0], reconstruct(network, image))
    torch.testing.assert_close(moved[:, -1], reconstruct(network, donor))
    part = interpolate_subspaces(network, image, donor, "side", steps=2)
    torch.testing.assert_close(part[:, -1], swap_subspaces(network, image, donor, "side"))
    with pytest.raises(ValueError, match="steps must be at least 2, found 1"):
        interpolate_subspaces(network, image, donor, steps=1)
    assert sample(network, 5).shape == (5, *image.shape[1:])


def test_inferer(setting):
    network, image, donor = setting
    with pytest.raises(ValueError, match="'s1' cannot be looked up"):
        SwapInferer(SIZES, "s1")
    inferer = SwapInferer(SIZES, "s1", interpolate=True, samples=2, find=lambda _: donor[0])
    series = [inferer.split(channels) for channels in inferer(image, network)]
    assert {name: len(part) for name, part in series[0].items()} == {
        "from_s1": 5,
        "to_s1": 5,
        "sampled_side": 2,
        "sampled_fov": 2,
        "sampled_free": 2,
    }
    assert inferer.titles["from_s1"] == ["reconstruction", "side", "fov", "free", "all"]
    fov = swap_subspaces(network, image, donor[:1], "fov")
    assert torch.equal(series[1]["from_s1"][2], fov[1, 0])


def test_maps_of_what_the_heads_read(setting):
    network, image, _ = setting
    found = attribute_maps(network, image, ["side", "fov"], "discriminator.blocks.0")
    assert found.shape == (3, 2, *image.shape[2:])
    assert found.any()
