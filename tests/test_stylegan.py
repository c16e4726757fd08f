"""The style-based networks beside their equations, the published sizes and what they promise."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from medvae.networks import (
    DisentangledGAN,
    MappingNetworks,
    StyleDiscriminator,
    StyleGenerator,
    Subspaces,
)
from medvae.networks.style_layers import (
    EqualConv,
    EqualLinear,
    ModulatedConv,
    Noise,
    batch_deviation,
    leaky_relu,
    resample,
)

SIZES, OUTPUTS = {"age": 3, "camera": 4, "free": 5}, {"age": 2, "camera": 3}
IMAGE = {2: (16, 8), 3: (8, 8, 4)}
both = pytest.mark.parametrize("spatial_dims", [2, 3])
PUBLISHED = (512, 512, 512, 512, 256, 128, 64)


def normal(seed, *shape, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def gan(spatial_dims, **settings):
    torch.manual_seed(0)
    settings = {"channels": (12, 8, 6), "in_channels": 2, **settings}
    return DisentangledGAN(spatial_dims, SIZES, OUTPUTS, IMAGE[spatial_dims], **settings).eval()


def count(network):
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    ("sizes", "outputs", "generator", "discriminator"),
    [
        ({"age": 4, "camera": 12, "free": 16}, [3, 14], 19_106_274, 24_017_505),
        ({"ethnicity": 8, "camera": 12, "free": 16}, [7, 14], 19_136_386, 24_019_557),
        ({"age": 4, "ethnicity": 8, "camera": 12, "free": 16}, [3, 7, 14], 19_166_242, 24_021_609),
    ],
)
def test_published_sizes(sizes, outputs, generator, discriminator):
    outputs = dict(zip(sizes, outputs, strict=False))
    with torch.device("meta"):
        found = StyleGenerator(2, sizes, 256, PUBLISHED, 3, faithful=True)
        judge = StyleDiscriminator(2, sizes, outputs, 256, PUBLISHED, 3, faithful=True)
    assert count(found) == generator
    assert found.layers == 16
    assert count(judge) - count(judge.heads) == discriminator


def test_published_size_without_subspaces():
    with torch.device("meta"):
        sizes = {"age": 4, "camera": 12, "free": 16}
        assert count(StyleGenerator(2, sizes, 256, PUBLISHED, 3, separate=False)) == 19_111_138


@both
def test_images_and_codes_have_the_sizes_asked_for(spatial_dims):
    network = gan(spatial_dims)
    image = torch.rand(3, 2, *IMAGE[spatial_dims])
    assert network(image).shape == image.shape
    assert network.encode(image).shape == (3, 12)
    assert network.generator.constant.shape[1:] == tuple(n // 4 for n in IMAGE[spatial_dims])
    found = network.discriminator(image)
    assert [t.shape[1] for t in found] == [1, 12, 12, 5]
    torch.testing.assert_close(found.codes, network.discriminator.encode(image))
    assert network.attribute_names == ("age", "camera")
    assert network.classify(found.codes).shape == (3, 5)
    assert torch.equal(network(image), network(image))  # the noise is fixed in evaluation
    network.train()
    torch.nn.init.ones_(network.generator.convs[0].noise.strength)
    assert not torch.equal(network(image), network(image))


@both
@pytest.mark.parametrize("form", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("demodulate", [True, False])
def test_modulated_convolution(spatial_dims, form, dtype, tolerance, demodulate):
    """Beside each sample's own weights, sample by sample."""
    layer = ModulatedConv(spatial_dims, 5, 4, 3, demodulate, form).to(dtype)
    x, style = normal(0, 3, 5, *[6] * spatial_dims, dtype=dtype), normal(1, 3, 5, dtype=dtype)
    convolution = F.conv2d if spatial_dims == 2 else F.conv3d
    expected = []
    for sample, s in zip(x, style, strict=True):
        weight = layer.weight * s.view(1, -1, *[1] * spatial_dims)
        energy = weight.flatten(1).square().sum(1) + 1e-8
        norm = energy.sqrt() if demodulate else torch.full_like(energy, 5**0.5)
        weight = weight / norm.view(-1, *[1] * (spatial_dims + 1))
        expected.append(convolution(sample[None], weight, padding=1))
    found = layer(x, style)
    torch.testing.assert_close(found, torch.cat(expected), rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(found[1:2], layer(x[1:2], style[1:2]))


@both
def test_modulated_convolution_keeps_the_scale(spatial_dims):
    layer = ModulatedConv(spatial_dims, 64, 32)
    x = normal(0, 4, 64, *[12] * spatial_dims)
    inside = layer(x, normal(1, 4, 64))[(..., *[slice(1, -1)] * spatial_dims)]
    assert 0.9 < inside.std() < 1.1


def test_the_form_is_chosen_by_shape():
    few, many = torch.zeros(1, 64, 32, 32, 32), torch.zeros(1, 256, 4, 4, 4)
    assert not ModulatedConv(3, 64, 64)._scales_input(few)
    assert ModulatedConv(3, 256, 256)._scales_input(many)


@both
@pytest.mark.parametrize("direction", ["up", "down"])
@pytest.mark.parametrize("aligned", [True, False])
def test_resampling(spatial_dims, direction, aligned):
    shape = (6, 8, 10)[:spatial_dims]
    constant = resample(torch.full((1, 2, *shape), 3.7), direction, aligned)
    factor = 2 if direction == "up" else 0.5
    assert constant.shape[2:] == tuple(int(n * factor) for n in shape)
    torch.testing.assert_close(constant, torch.full_like(constant, 3.7))
    axis = spatial_dims - 1
    ramp = torch.arange(float(shape[axis])).expand(1, 1, *shape)
    found = resample(ramp, direction, aligned).movedim(axis + 2, -1)[0, 0].flatten(0, -2)
    steps = torch.arange(found.shape[-1])
    shift = {("up", True): -0.25, ("up", False): -0.5, ("down", True): 0.5, ("down", False): -0.5}
    expected = steps * (0.5 if direction == "up" else 2.0) + shift[direction, aligned]
    torch.testing.assert_close(found[:, 2:-2], expected[2:-2].expand_as(found[:, 2:-2]))


@both
def test_aligned_up_is_zero_insertion_and_the_filter(spatial_dims):
    x = normal(0, 2, 3, *(4, 6, 2)[:spatial_dims], dtype=torch.float64)
    sparse = torch.zeros(2, 3, *(2 * n for n in x.shape[2:]), dtype=torch.float64)
    sparse[(..., *[slice(None, None, 2)] * spatial_dims)] = x
    kernel = torch.tensor([1.0, 3, 3, 1], dtype=torch.float64) / 4
    padded = F.pad(sparse, (2, 1) * spatial_dims)
    for axis in range(2, x.ndim):
        shape = [1, 1, *[1] * spatial_dims]
        shape[axis] = 4
        convolution = F.conv2d if spatial_dims == 2 else F.conv3d
        weight = kernel.view(shape).expand(3, 1, *shape[2:])
        padded = convolution(padded, weight, groups=3)
    inside = (..., *[slice(1, -1)] * spatial_dims)  # at the border ours repeats, this one is dark
    torch.testing.assert_close(resample(x, "up")[inside], padded[inside])


def test_equalised_layers():
    layer = EqualLinear(200, 300, bias=2.0, rate=0.01)
    y = layer(normal(0, 50, 200))
    assert y.mean().item() == pytest.approx(2, abs=0.1)
    assert y.std().item() == pytest.approx(1, abs=0.05)
    assert layer.weight.std().item() == pytest.approx(100, rel=0.05)
    inside = EqualConv(3, 20, 30)(normal(0, 2, 20, 8, 8, 8))[..., 1:-1].detach()
    assert inside.std().item() == pytest.approx(1, abs=0.15)
    x = torch.tensor([-1.0, 1.0])
    torch.testing.assert_close(leaky_relu(x), torch.tensor([-0.2, 1.0]) * 2**0.5)
    assert leaky_relu((1000 * x).half()).max() == 256
    assert leaky_relu(1000 * x).max() > 1000


def test_mapping_networks_do_not_mix_subspaces():
    torch.manual_seed(0)
    subspaces, mapping = Subspaces(SIZES), MappingNetworks(list(SIZES.values()))
    z, other = normal(0, 6, 12), normal(1, 6, 12)
    w = mapping(z)
    for name in SIZES:
        changed = subspaces.split(mapping(subspaces.swap(z, other, name)))
        for part, value in subspaces.split(w).items():
            assert torch.equal(changed[part], value) == (part != name)
        scaled = subspaces.join({**subspaces.split(z), name: 7 * subspaces.split(z)[name]})
        torch.testing.assert_close(mapping(scaled), w, rtol=0, atol=1e-6)


@both
def test_every_copy_of_w_is_read(spatial_dims):
    for faithful in (False, True):
        generator = gan(spatial_dims, faithful=faithful).generator
        w = normal(0, 2, generator.layers, 12).requires_grad_()
        generator.synthesis(w).square().sum().backward()
        assert w.grad[:, :6].abs().sum((0, 2)).min() > 0
        assert len(w.grad[0]) == 6 + 2 * faithful
        assert not w.grad[:, 6:].any()  # the published last two


@both
def test_one_code_for_all_layers(spatial_dims):
    network = gan(spatial_dims)
    w = normal(0, 2, 12)
    single = network.generator.synthesis(w)
    many = network.generator.synthesis(w[:, None].repeat(1, network.generator.layers, 1))
    assert torch.equal(single, many)
    torch.testing.assert_close(network.decode(w), ((single + 1) / 2).clamp(0, 1))
    z = normal(1, 2, 12)
    torch.testing.assert_close(
        network.generator(z), network.generator.synthesis(network.map_codes(z))
    )
    network.generator.update_mean_code(w, decay=0.5)
    centre = network.generator(z, truncation=0.0)
    torch.testing.assert_close(centre[0], centre[1])
    torch.testing.assert_close(network.generator.mean_code, w.mean(0) / 2)


@both
def test_codes_do_not_depend_on_the_batch(spatial_dims):
    images = normal(0, 14, 2, *IMAGE[spatial_dims])
    order = torch.randperm(14, generator=torch.Generator().manual_seed(0))
    for faithful in (False, True):
        network = gan(spatial_dims, faithful=faithful).discriminator
        with torch.no_grad():
            together = network(images).codes
            alone = torch.cat([network(image[None]).codes for image in images])
            some = network(images[order][:5]).codes
        close = torch.allclose(together, alone, atol=1e-6)
        assert close == (not faithful)  # as published, codes change with the batch
        assert torch.allclose(some, together[order][:5], atol=1e-6) == (not faithful)
    network = gan(spatial_dims)
    images = images.clone().requires_grad_()
    (grad,) = torch.autograd.grad(network.discriminator(images).score[0].sum(), images)
    assert grad[1:].any()  # the score sees its companions


def test_batch_deviation():
    x = normal(0, 8, 3, 4, 4)
    found = batch_deviation(x, 4)
    pairs = x.unflatten(0, (4, 2))
    expected = pairs.std(0, correction=0).mean((1, 2, 3))
    torch.testing.assert_close(found[:, 0], expected.repeat(4))
    assert batch_deviation(x[:1], 4) == pytest.approx(1e-4)  # alone
    for size, group in ((6, 3), (7, 7), (5, 5), (8, 4)):
        some = x[:size]
        expected = some.unflatten(0, (group, -1)).std(0, correction=0).mean((1, 2, 3))
        torch.testing.assert_close(batch_deviation(some, 4)[: len(expected), 0], expected)


def test_noise_starts_at_nothing():
    layer, x = Noise((4, 4)), normal(0, 2, 3, 4, 4)
    assert torch.equal(layer(x), x)
    torch.nn.init.ones_(layer.strength)
    added = layer(x) - x
    torch.testing.assert_close(added[:, 0], added[:, 2])
    assert not torch.allclose(added[0], added[1])
    layer.eval()
    torch.testing.assert_close(layer(x) - x, layer.fixed.expand_as(x))


def test_what_is_refused():
    with pytest.raises(ValueError, match="spatial_dims must be 2 or 3, found 1"):
        StyleGenerator(1, SIZES, 8, (4, 4))
    with pytest.raises(ValueError, match="image_size must have 3 entries, found \\[8, 8\\]"):
        StyleGenerator(3, SIZES, (8, 8), (4, 4))
    with pytest.raises(ValueError, match="image_size \\[10, 8\\] is not divisible by 4, as 3"):
        StyleDiscriminator(2, SIZES, OUTPUTS, (10, 8), (4, 4, 4))
    with pytest.raises(ValueError, match="at least one entry, found none"):
        StyleGenerator(2, SIZES, 8, ())
    with pytest.raises(ValueError, match="no subspace 'sex'"):
        StyleDiscriminator(2, SIZES, {"sex": 2}, 8, (4, 4))
    with pytest.raises(ValueError, match="expected codes \\(B, 12\\) or \\(B, 4, 12\\), found"):
        StyleGenerator(2, SIZES, 8, (4, 4)).synthesis(torch.zeros(2, 3, 12))
