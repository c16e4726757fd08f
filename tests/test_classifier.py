"""The external judge: trained here on known images, frozen, and independent of the batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from medvae.engines import classify, image_features, train_classifier
from medvae.networks import FactorClassifier

FAST = {"steps": 60, "batch_size": 16, "channels": (4, 8, 8, 16), "progress": False}


def shapes(count: int, spatial_dims: int, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Balls of two sizes, on one of two backgrounds."""
    generator = torch.Generator().manual_seed(seed)
    size, ground = torch.randint(2, (2, count), generator=generator)
    axis = torch.linspace(-1, 1, 16)
    radius = torch.stack(torch.meshgrid(*[axis] * spatial_dims, indexing="ij")).norm(dim=0)
    ones = [1] * spatial_dims
    ball = radius < (0.35 + 0.4 * size).view(-1, *ones)
    images = 0.6 * ball + 0.3 * ground.view(-1, *ones)
    images = images + 0.05 * torch.randn(images.shape, generator=generator)
    return images[:, None], {"size": size, "ground": ground}


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_factors_are_learned_with_missing_labels(spatial_dims: int) -> None:
    images, labels = shapes(80, spatial_dims, 0)
    partly = {name: label.double() for name, label in labels.items()}
    partly["size"][:10] = torch.nan
    partly["ground"][10:20] = -1
    network = train_classifier(images, partly, **FAST)
    test, truth = shapes(60, spatial_dims, 1)
    for name, said in classify(network, test, batch_size=7).items():
        assert np.mean(said == truth[name].numpy()) > 0.9
    assert not network.training
    assert not any(p.requires_grad for p in network.parameters())
    features = image_features(network, test)
    assert features.shape == (60, 16)
    np.testing.assert_allclose(image_features(network, test, 7), features, rtol=1e-4, atol=1e-5)
    assert network.name == f"ResNet 4-8-8-16 in {spatial_dims}D trained on size, ground"


def test_same_seed_same_weights_whatever_the_global_generator_holds() -> None:
    images, labels = shapes(20, 2, 0)
    options = {**FAST, "steps": 3}
    before = torch.get_rng_state()
    first = train_classifier(images, labels, **options).state_dict()
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(5)
    again = train_classifier(images, labels, **options).state_dict()
    other = train_classifier(images, labels, **options, seed=1).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_bad_input_is_named() -> None:
    images, labels = shapes(8, 2, 0)
    with pytest.raises(ValueError, match="'size' has the labels"):
        train_classifier(images, {"size": torch.ones(8)}, **FAST)
    with pytest.raises(ValueError, match="whole numbers"):
        train_classifier(images, {"size": labels["size"] + 0.5}, **FAST)
    for wrong in (images[:4], images[..., :4], images[0]):
        with pytest.raises(ValueError, match="expected \\(N, C"):
            train_classifier(wrong, labels, **FAST)
    with pytest.raises(ValueError, match="expected \\(N, C"):
        train_classifier(images, {"size": labels["size"][:4]}, **FAST)
    with pytest.raises(ValueError, match="expected \\(N, C"):
        train_classifier(images, {}, **FAST)
    with pytest.raises(ValueError, match="two or more of each"):
        FactorClassifier(2, 1, {"size": 1})
