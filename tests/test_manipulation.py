"""Traversal, interpolation, sampling and exchange of axes: what changes and what does not."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from medvae.data import AttributeScaler
from medvae.explain import (
    MonotoneCurve,
    Readout,
    TraversalInferer,
    interpolate,
    replace_axes,
    sample,
    there_and_back,
    traverse,
)
from medvae.networks import AttriVAE

NAMES = ("volume", "thickness")


def make(spatial_dims: int = 3) -> tuple[AttriVAE, Tensor]:
    torch.manual_seed(0)
    vae = AttriVAE(
        spatial_dims, image_size=8, latent_dim=4, channels=(4, 4), strides=(2, 2),
        attribute_names=NAMES, hidden_channels=(8,),
    )  # fmt: skip
    return vae.train(), torch.rand(3, 1, *[8] * spatial_dims)


def readout() -> Readout:
    scaler = AttributeScaler(NAMES, log=["volume"])
    scaler.fit(pd.DataFrame({"volume": [1.0, 10.0, 100.0], "thickness": [4.0, 6.0, 8.0]}))
    return Readout(scaler, [0, 1], [MonotoneCurve.line(2.0, 0.5), MonotoneCurve.line(-1.0, 0.0)])


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_traverse_moves_one_axis(spatial_dims: int) -> None:
    vae, images = make(spatial_dims)
    found = traverse(vae, images, "thickness", [-1.0, 0.0, 2.5])
    assert found.shape == (3, 3, 1, *[8] * spatial_dims)
    assert vae.training
    vae.eval()
    codes = vae.encode(images)[0].detach()
    for column, value in enumerate((-1.0, 0.0, 2.5)):
        codes[:, 1] = value
        assert torch.equal(found[:, column], vae.decode(codes).detach())
    assert not found.requires_grad


def test_traverse_in_the_attribute_s_own_units() -> None:
    vae, images = make()
    to = readout()
    values = [1.0, 10.0, 50.0]
    found = traverse(vae, images, "volume", values, to)
    codes = [float(to.codes([[v, 4.0]])[0, 0]) for v in values]
    torch.testing.assert_close(found, traverse(vae, images, 0, codes))
    read = to.attributes([[c, 0.0] for c in codes])[:, 0]
    np.testing.assert_allclose(read, values, rtol=1e-6)  # what is asked is what would be read


def test_interpolation_has_the_reconstructions_at_its_ends() -> None:
    vae, images = make()
    others = images.flip(0)
    found = interpolate(vae, images, others, 5)
    vae.eval()
    with torch.no_grad():
        start, end = vae.encode(images)[0], vae.encode(others)[0]
        torch.testing.assert_close(found[:, 0], vae.decode(start))
        torch.testing.assert_close(found[:, -1], vae.decode(end))
        torch.testing.assert_close(found[:, 2], vae.decode((start + end) / 2))
    with pytest.raises(ValueError, match="at least 2"):
        interpolate(vae, images, others, 1)


def test_replacing_axes() -> None:
    vae, images = make()
    donor = images.flip(0)
    vae.eval()
    with torch.no_grad():
        own, given = vae.encode(images)[0], vae.encode(donor)[0]
        torch.testing.assert_close(replace_axes(vae, images, donor, []), vae.decode(own))
        everything = replace_axes(vae, images, donor, range(4))
        torch.testing.assert_close(everything, vae.decode(given))
        mixed = torch.cat([own[:, :1], given[:, 1:2], own[:, 2:]], 1)
        found = replace_axes(vae, images, donor, ["thickness"])
        torch.testing.assert_close(found, vae.decode(mixed))


def test_samples_are_reproducible_and_differ() -> None:
    vae, _ = make()
    one = sample(vae, 4, seed=3)
    assert one.shape == (4, 1, 8, 8, 8)
    assert torch.equal(one, sample(vae, 4, seed=3))
    assert not torch.equal(one, sample(vae, 4, seed=4))
    assert (one.min() > 0) & (one.max() < 1)


def test_inferer_lists_every_attribute_and_splits_again() -> None:
    vae, images = make()
    inferer = TraversalInferer(readout(), {"thickness": [5.0, 7.0]})
    assert inferer.values["thickness"] == [5.0, 7.0]
    assert inferer.values["volume"][2] == pytest.approx(10.0)  # the mean of the logarithms
    assert inferer.values["volume"] == sorted(inferer.values["volume"])
    channels = inferer(images, vae)
    assert channels.shape == (3, 5 + 2, 8, 8, 8)
    parts = inferer.split(channels[1])
    assert [len(part) for part in parts.values()] == [5, 2]
    expected = traverse(vae, images, "thickness", [5.0, 7.0], readout())[1, :, 0]
    assert torch.equal(parts["thickness"], expected)


def test_inferer_goes_to_another_subject_and_takes_axes_of_a_donor() -> None:
    vae, images = make()
    options = {"interpolate_to": "b/1", "replace": {"attributes": ["thickness"], "donor": "b/1"}}
    find = {"b/1": images[2]}.__getitem__
    inferer = TraversalInferer(readout(), traversals=False, find=find, **options)
    assert inferer.values == {"to_b_1": [0, 0.25, 0.5, 0.75, 1], "from_b_1": [1]}
    parts = inferer.split(inferer(images, vae)[0])
    way = interpolate(vae, images[:1], images[2:], 5)[0, :, 0]
    torch.testing.assert_close(parts["to_b_1"], way)
    taken = replace_axes(vae, images[:1], images[2:], ["thickness"])[0]
    torch.testing.assert_close(parts["from_b_1"], taken)
    with pytest.raises(ValueError, match="expected attributes and donor"):
        TraversalInferer(readout(), replace={"attributes": ["volume"]}, find=find)
    with pytest.raises(ValueError, match="'b' cannot be looked up"):
        TraversalInferer(readout(), interpolate_to="b")


def test_there_and_back_is_what_its_parts_are() -> None:
    vae, images = make()
    codes = torch.tensor([1.0, -2.0, 0.5])
    start, there, back = there_and_back(vae, images, 1, codes)
    assert vae.training
    vae.eval()
    with torch.no_grad():
        own = vae.encode(images)[0]
        torch.testing.assert_close(start, vae.decode(own))
        moved = torch.cat([own[:, :1], codes[:, None], own[:, 2:]], 1)
        torch.testing.assert_close(there, vae.decode(moved))
        again = vae.encode(there)[0]
        again[:, 1] = own[:, 1]
        torch.testing.assert_close(back, vae.decode(again))


def test_one_sentence_for_what_cannot_be_asked() -> None:
    vae, images = make()
    with pytest.raises(ValueError, match="did you mean 'volume'"):
        traverse(vae, images, "volum", [0.0])
    with pytest.raises(ValueError, match="latent axis 7 does not exist"):
        traverse(vae, images, 7, [0.0])
    with pytest.raises(ValueError, match="no attribute on latent axis 3"):
        traverse(vae, images, 3, [0.0], readout())
    nothing = readout()
    nothing.curves[0] = MonotoneCurve.line(0.0, 0.5)
    with pytest.raises(ValueError, match="its axis reads nothing"):
        traverse(vae, images, "volume", [2.0], nothing)
    with pytest.raises(ValueError, match="did you mean 'thickness'"):
        TraversalInferer(readout(), {"thicknes": [1.0]})


def test_traversals_stay_within_what_was_seen(tmp_path) -> None:
    """Of a skewed attribute, mean - 2 sd would be a value that no subject has."""
    values = np.random.default_rng(0).exponential(10.0, (500, 1)) + 12.0
    scaler = AttributeScaler(["volume"]).fit(pd.DataFrame(values, columns=["volume"]))
    fitted = Readout.fit(scaler, scaler.transform(values), values)
    fitted.save(tmp_path / "readout.json")
    for found in (fitted, Readout.load(tmp_path / "readout.json")):
        asked = TraversalInferer(found).values["volume"]
        assert asked[0] == pytest.approx(np.quantile(values, 0.05))
        assert asked[-1] == pytest.approx(np.quantile(values, 0.95))
        assert len(asked) == 5


def follower() -> Readout:
    plain = readout()
    return Readout(plain.scaler, [0, 1], plain.curves, companions=[[1.0, 0.5], [-3.0, 1.0]])


def test_other_axes_follow_by_their_share_and_free_axes_do_not() -> None:
    vae, images = make()
    found = traverse(vae, images, "volume", [10.0], follower(), follow=0.4)[:, 0]
    vae.eval()
    codes = vae.encode(images)[0].detach()
    target = torch.tensor(follower().codes([[10.0, 4.0]])[0, 0], dtype=torch.float32)
    codes[:, 1] += 0.4 * 0.5 * (target - codes[:, 0])
    codes[:, 0] = target
    torch.testing.assert_close(found, vae.decode(codes).detach())
    alone = traverse(vae, images, "volume", [10.0], follower())
    assert torch.equal(alone, traverse(vae, images, "volume", [10.0], readout()))
    inferer = TraversalInferer(follower(), {"volume": [10.0]}, follow=0.4)
    parts = inferer.split(inferer(images, vae)[0])
    torch.testing.assert_close(parts["volume"][0], found[0, 0])
    for follow in (0.5, None):
        with pytest.raises(ValueError, match="no readout says"):
            traverse(vae, images, 0, [1.0], follow=follow)


def test_each_attribute_has_a_share_of_its_own_which_another_replaces() -> None:
    plain = follower()
    own = Readout(
        plain.scaler, [0, 1], plain.curves, companions=plain.companions, follow=[0.4, 0.0]
    )
    np.testing.assert_allclose(own.direction(0, 4), [1.0, 0.2, 0.0, 0.0])
    np.testing.assert_allclose(own.direction(1, 4), [0.0, 1.0, 0.0, 0.0])
    np.testing.assert_allclose(own.direction(1, 4, 0.5), [-1.5, 1.0, 0.0, 0.0])
    np.testing.assert_allclose(own.direction(0, 4, 0.0), [1.0, 0.0, 0.0, 0.0])
    vae, images = make()
    found = traverse(vae, images, "volume", [10.0], own, follow=None)
    assert torch.equal(found, traverse(vae, images, "volume", [10.0], plain, follow=0.4))
    parts = TraversalInferer(own, {"volume": [10.0]})(images, vae)
    torch.testing.assert_close(parts[:, :1], found[:, 0])


def test_there_and_back_along_a_direction() -> None:
    vae, images = make()
    codes, along = torch.tensor([1.0, -2.0, 0.5]), follower().direction(1, 4, 1.0)
    np.testing.assert_array_equal(along, [-3.0, 1.0, 0.0, 0.0])
    _, there, back = there_and_back(vae, images, 1, codes, along)
    vae.eval()
    with torch.no_grad():
        own = vae.encode(images)[0]
        step = (codes - own[:, 1])[:, None] * torch.tensor(along, dtype=torch.float32)
        torch.testing.assert_close(there, vae.decode(own + step))
        again = vae.encode(there)[0]
        step = (own[:, 1] - again[:, 1])[:, None] * torch.tensor(along, dtype=torch.float32)
        torch.testing.assert_close(back, vae.decode(again + step))
