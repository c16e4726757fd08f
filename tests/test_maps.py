"""Attribute maps: equal to MONAI's GradCAM, to closed forms, and nothing left behind."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from monai.inferers import Inferer
from monai.visualize import GradCAM
from torch import Tensor, nn

from medvae.explain import AttributeMapInferer, attribute_maps
from medvae.explain.maps import METHODS
from medvae.explain.upsample import guided_filter, upsample_linear
from medvae.networks import AttriVAE

NAMES = ("volume", "thickness", "intensity")


def make_vae(spatial_dims: int = 3, **options: object) -> AttriVAE:
    torch.manual_seed(0)
    settings = {
        "spatial_dims": spatial_dims,
        "image_size": 16,
        "latent_dim": 6,
        "channels": (4, 8, 8),
        "strides": (2, 2, 1),
        "attribute_names": NAMES,
        "hidden_channels": (12,),
        "norm": ("GROUP", {"num_groups": 2}),
    }
    return AttriVAE(**(settings | options)).eval()


def make_images(spatial_dims: int = 3, count: int = 2) -> Tensor:
    return torch.rand(count, 1, *[16] * spatial_dims, generator=torch.Generator().manual_seed(1))


class Mean(nn.Module):
    """The oracle's view: image to posterior mean."""

    def __init__(self, vae: AttriVAE) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, image: Tensor) -> Tensor:
        return self.vae.encode(image)[0]


class Pooled(nn.Module):
    """Convolution, global mean, linear: its maps are known in closed form."""

    def __init__(self, spatial_dims: int) -> None:
        super().__init__()
        convolution = nn.Conv2d if spatial_dims == 2 else nn.Conv3d
        self.features = convolution(1, 3, 3, padding=1)
        self.linear = nn.Linear(3, 4)

    def forward(self, image: Tensor) -> Tensor:
        return self.linear(self.features(image).flatten(2).mean(2))


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("layer", [None, "encoder.2.conv", "encoder.1", "encoder.0.norm"])
def test_equals_monai_gradcam(spatial_dims, layer):
    vae, images = make_vae(spatial_dims), make_images(spatial_dims)
    maps = attribute_maps(vae, images, NAMES, layer)
    name = "vae." + (layer or "encoder.2.conv")
    oracle = GradCAM(Mean(vae), target_layers=name, postprocessing=lambda m: m)
    for k in range(3):
        expected = oracle(images, class_idx=k)[:, 0].detach()
        assert expected.max() > 0
        torch.testing.assert_close(maps[:, k], expected, rtol=1e-5, atol=1e-6 * expected.max())


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_closed_form(spatial_dims):
    network, images = Pooled(spatial_dims), make_images(spatial_dims)
    features = network.features(images).detach()
    weights = network.linear.weight.detach() / features[0, 0].numel()
    expected = torch.einsum("kc,bc...->bk...", weights, features)
    axes = range(4)
    for method in ("gradcam", "hirescam"):  # the same behind a global mean
        signed = attribute_maps(network, images, axes, method=method, signed=True)
        torch.testing.assert_close(signed, expected, rtol=1e-5, atol=1e-8)
        maps = attribute_maps(network, images, axes, method=method)
        torch.testing.assert_close(maps, expected.relu(), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("upsample", ["linear", "guided"])
def test_batch_equals_samples_and_leaves_nothing_behind(method, upsample):
    vae, images = make_vae(dropout=0.5), make_images(2 + 1, 3)
    vae.train()
    vae.encoder.eval()  # a mixture of modes must survive
    vae.head.requires_grad_(False)
    modes = [m.training for m in vae.modules()]
    flags = [p.requires_grad for p in vae.parameters()]
    options = {"method": method, "upsample": upsample, "steps": 3, "patch_size": 8}
    maps = attribute_maps(vae, images, ["thickness", 4], **options)
    assert maps.shape == (3, 2, 16, 16, 16)
    assert maps.min() >= 0
    assert maps.max() > 0
    assert not maps.requires_grad
    again = attribute_maps(vae, images, ["thickness", 4], **options)
    assert torch.equal(maps, again)
    single = torch.cat([attribute_maps(vae, i[None], ["thickness", 4], **options) for i in images])
    torch.testing.assert_close(maps, single, rtol=1e-5, atol=1e-6 * float(maps.max()))
    assert [m.training for m in vae.modules()] == modes
    assert [p.requires_grad for p in vae.parameters()] == flags
    assert all(p.grad is None for p in vae.parameters())
    assert not any(m._forward_hooks or m._backward_hooks for m in vae.modules())
    assert torch.is_grad_enabled()


def test_restores_the_network_when_a_target_raises():
    vae = make_vae().train()

    def broken(output: object) -> Tensor:
        raise RuntimeError("target")

    with pytest.raises(RuntimeError, match="target"):
        attribute_maps(vae, make_images(), [broken])
    assert vae.training
    assert torch.is_grad_enabled()
    assert not any(m._forward_hooks or m._backward_hooks for m in vae.modules())
    assert all(p.grad is None and p.requires_grad for p in vae.parameters())


def test_one_pass_over_the_encoder_for_all_attributes():
    vae, passes = make_vae(), []
    vae.encoder[0].register_forward_hook(lambda *_: passes.append(1))
    attribute_maps(vae, make_images(), [*NAMES, 3, 4])
    assert len(passes) == 1


def test_any_network_and_callable():
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(3, 2, 3, padding=1)]
    network, images = nn.Sequential(*layers), make_images(2)

    def target(output: Tensor) -> Tensor:
        return output[:, 1].flatten(1).sum(1)

    (name, _), *_ = network.named_children()
    maps = attribute_maps(network, images, [target, 0], layer=name, method="hirescam")
    assert maps.shape == (2, 2, 16, 16)
    features = network[0](images)
    weight = torch.autograd.grad(target(network[2](features.relu())).sum(), features)[0]
    torch.testing.assert_close(maps[:, 0], (features * weight).sum(1).relu().detach())


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_within_no_grad_and_of_a_frozen_network(context):
    vae, images = make_vae().requires_grad_(False), make_images()
    expected = attribute_maps(vae, images, NAMES)
    with context():
        maps = attribute_maps(vae, images * 1, NAMES)
    assert torch.equal(maps, expected)
    assert maps.max() > 0


def test_callables_see_the_output_and_agree_with_axes():
    vae, images = make_vae(), make_images()
    maps = attribute_maps(
        vae, images, ["thickness", lambda output: output.mean[:, 1], lambda o: o.logits[:, 0]]
    )
    torch.testing.assert_close(maps[:, 0], maps[:, 1], rtol=1e-5, atol=1e-9)
    assert maps[:, 2].max() > 0
    assert not torch.allclose(maps[:, 2], maps[:, 1])


def test_a_target_that_the_image_does_not_reach_has_a_zero_map():
    vae = make_vae()
    nn.init.zeros_(vae.mean.weight)
    assert attribute_maps(vae, make_images(), NAMES).abs().max() == 0
    constant = attribute_maps(vae, make_images(), [lambda output: torch.zeros(2)])
    assert constant.abs().max() == 0


def test_larger_means_more():
    """Volume read as the mean of the features: the map is high in the object, zero outside."""
    network = Pooled(3)
    nn.init.zeros_(network.features.bias)
    nn.init.constant_(network.features.weight, 0.1)
    nn.init.constant_(network.linear.weight, 1.0)
    image = torch.zeros(1, 1, 16, 16, 16)
    image[..., 4:9, 4:9, 4:9] = 1.0
    maps = attribute_maps(network, image, [0])
    assert maps[0, 0, 6, 6, 6] == maps.max() > 0
    assert maps[0, 0, 12:].abs().max() == 0


def test_integrated_gradients_are_complete():
    vae, images = make_vae(), make_images()
    maps = attribute_maps(
        vae, images, [0, 3], method="integrated_gradients", signed=True, steps=200, baseline=0.3
    )
    with torch.no_grad():
        change = (vae.encode(images)[0] - vae.encode(torch.full_like(images, 0.3))[0])[:, [0, 3]]
    torch.testing.assert_close(maps.flatten(2).sum(2), change, rtol=0.02, atol=0.01)


@pytest.mark.parametrize("layer", ["encoder.0.norm", "encoder.1", None])
def test_layer_integrated_gradients_are_complete(layer):
    """Before upsampling they add up to the target less that of the empty image."""
    vae, images = make_vae(), make_images()
    options = {"method": "layer_integrated_gradients", "signed": True, "baseline": 0.2}
    maps = attribute_maps(vae, images, [0, 3], layer, steps=200, **options)
    with torch.no_grad():
        change = (vae.encode(images)[0] - vae.encode(torch.full_like(images, 0.2))[0])[:, [0, 3]]
    size = dict(zip(("encoder.0.norm", "encoder.1", None), (8, 4, 4), strict=True))[layer]
    voxels = (16 // size) ** 3  # that one position was upsampled to; interpolation keeps the sum
    torch.testing.assert_close(maps.flatten(2).sum(2) / voxels, change, rtol=0.05, atol=0.02)


def test_an_empty_image_has_an_empty_map():
    vae, images = make_vae(), torch.full((1, 1, 16, 16, 16), 0.5)
    options = {"method": "layer_integrated_gradients", "baseline": 0.5, "signed": True}
    assert attribute_maps(vae, images, NAMES, **options).abs().max() == 0
    assert attribute_maps(vae, images, NAMES, method="hirescam", signed=True).abs().max() > 0


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_occlusion_of_a_linear_network_is_known(spatial_dims):
    """For a network that adds up the image, a patch takes away the sum within it."""
    network, image = Pooled(spatial_dims), make_images(spatial_dims, 1)
    nn.init.zeros_(network.features.weight)
    network.features.weight.data[:, 0].view(3, -1)[:, 3**spatial_dims // 2] = 1.0
    maps = attribute_maps(network, image, [2], method="occlusion", signed=True, patch_size=8)
    slope = network.linear.weight[2].sum().item() / 16**spatial_dims
    pooled = F.avg_pool2d if spatial_dims == 2 else F.avg_pool3d
    sums = pooled(image, 8, 4) * 8**spatial_dims * slope  # patches start at 0, 4 and 8
    corner, centre = (
        sums.flatten()[0],
        sums[..., :2, :2] if spatial_dims == 2 else sums[..., :2, :2, :2],
    )
    torch.testing.assert_close(maps.flatten()[0], corner, rtol=1e-4, atol=1e-5)
    index = (0, 0) + (6,) * spatial_dims
    torch.testing.assert_close(maps[index], centre.mean(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(5, 7), (4, 3, 6)])
def test_upsampling_is_torch_s(size):
    maps = torch.rand(2, 3, *size)
    target = [2 * n + 3 for n in size]
    expected = F.interpolate(maps, target, mode="bilinear" if len(size) == 2 else "trilinear")
    torch.testing.assert_close(upsample_linear(maps, target), expected, rtol=1e-5, atol=1e-6)


def test_guided_filter_follows_an_edge_that_linear_blurs():
    image = torch.zeros(1, 1, 32, 32)
    image[..., 13:] = 1.0
    coarse = torch.zeros(1, 1, 4, 4)
    coarse[..., 2:] = 1.0  # the edge, as far as the coarse grid can tell
    linear = upsample_linear(coarse, (32, 32))
    guided = guided_filter(linear, image, (8, 8))
    jump = [float(m[0, 0, 16, 13] - m[0, 0, 16, 12]) for m in (guided, linear)]
    assert jump[0] > 3 * jump[1] > 0


def test_inferer_takes_the_names_of_the_network():
    assert issubclass(AttributeMapInferer, Inferer)
    vae, images = make_vae(), make_images()
    maps = AttributeMapInferer(method="hirescam")(images, vae)
    assert torch.equal(maps, attribute_maps(vae, images, NAMES, method="hirescam"))
    wrapped = SimpleNamespace()  # DDP's attribute
    wrapped.module = vae
    assert torch.equal(
        AttributeMapInferer(["volume"])(images, wrapped), attribute_maps(vae, images, [0])
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"attributes": ["thicknes"]}, "did you mean 'thickness'"),
        ({"attributes": [9]}, "latent axis 9 does not exist, found 6 axes"),
        ({"attributes": []}, "list of one or more"),
        ({"attributes": "volume"}, "list of one or more"),
        ({"layer": "encoder.2.cnv"}, "unknown layer 'encoder.2.cnv'"),
        ({"layer": "hidden.0"}, "must give 3 spatial axes"),
        ({"layer": "decoder.0"}, "does not take part"),
        ({"method": "magic"}, "method must be one of gradcam"),
        ({"upsample": "cubic"}, "upsample must be"),
        ({"image": torch.zeros(16, 16, 16)}, "shape (B, C"),
        ({"attributes": [lambda output: output.mean]}, "one number for each image"),
    ],
)
def test_one_sentence_for_bad_arguments(arguments, message):
    given = {"image": make_images(), "attributes": NAMES} | arguments
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        attribute_maps(make_vae(), **given)
