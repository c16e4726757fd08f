"""The network: published size, any shape, gradients everywhere, determinism, exports."""

import pytest
import torch

from medvae.networks import AttriVAE, AttriVAEReconstruction

SMALL = {"latent_dim": 6, "channels": (4, 8, 2), "strides": (2, 2, 1), "hidden_channels": (16,)}


def small(spatial_dims=3, **kwargs):
    torch.manual_seed(0)
    size = kwargs.pop("image_size", (16,) * spatial_dims)
    return AttriVAE(spatial_dims, image_size=size, **{**SMALL, **kwargs})


def test_published_configuration_has_the_published_parameters():
    assert sum(p.numel() for p in AttriVAE().parameters()) == 340_674


def test_published_configuration_shapes():
    network = AttriVAE().eval()
    with torch.no_grad():
        output = network(torch.rand(1, 1, 80, 80, 80))
    assert network.bottleneck_shape == (2, 5, 5, 5)
    assert output.reconstruction.shape == (1, 1, 80, 80, 80)
    assert output.mean.shape == output.log_var.shape == output.z.shape == (1, 64)
    assert output.logits.shape == (1, 1)
    assert ((output.reconstruction > 0) & (output.reconstruction < 1)).all()


@pytest.mark.parametrize(
    ("spatial_dims", "options", "logits"),
    [
        (2, {"image_size": (16, 24), "num_classes": 0}, 0),
        (3, {"image_size": (16, 24, 8), "num_classes": 5, "in_channels": 2}, 5),
        (3, {"image_size": (16, 16, 4), "strides": (2, (2, 2, 1), 1)}, 1),
        (3, {"norm": ("GROUP", {"num_groups": 2}), "hidden_channels": (), "head_channels": ()}, 1),
        (2, {"norm": None, "act": "PRELU", "decoder_channels": (8, 8, 4, 4)}, 1),
    ],
)
def test_shapes_gradients_and_state(spatial_dims, options, logits):
    network = small(spatial_dims, **options)
    image = torch.rand(3, network.in_channels, *network.image_size)
    output = network(image)
    assert output.reconstruction.shape == image.shape
    assert output.mean.shape == (3, 6)
    assert output.logits.shape == (3, logits)
    loss = output.reconstruction.square().sum() + output.z.square().sum() + output.log_var.sum()
    (loss + output.logits.square().sum()).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    other = small(spatial_dims, **options)
    other.load_state_dict(network.state_dict())
    network.eval(), other.eval()
    with torch.no_grad():
        assert torch.equal(network(image).reconstruction, other(image).reconstruction)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_evaluation_decodes_the_mean_and_training_a_sample(spatial_dims):
    network = small(spatial_dims, dropout=0.0)
    image = torch.rand(3, 1, *network.image_size)
    first, second = network(image), network(image)
    assert not torch.equal(first.z, second.z)
    network.eval()
    with torch.no_grad():
        first, second = network(image), network(image)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.equal(first.z, first.mean)


def test_sampling_has_the_posterior_variance():
    network = small(2, dropout=0.0)
    torch.nn.init.zeros_(network.log_var.weight)
    torch.nn.init.constant_(network.log_var.bias, -2.0)  # a standard deviation of exp(-1)
    image = torch.rand(1, 1, 16, 16).expand(4000, 1, 16, 16)
    with torch.no_grad():
        output = network(image)
    assert (output.z - output.mean).std().item() == pytest.approx(0.3679, rel=0.03)


def test_initialisation():
    network = AttriVAE()
    for module in network.modules():
        if isinstance(module, torch.nn.Conv3d | torch.nn.ConvTranspose3d):
            assert (module.bias == 0.01).all()
            fan = module.weight[0, 0].numel() * (module.in_channels + module.out_channels)
            assert module.weight.abs().max() <= (6 / fan) ** 0.5 * 1.001


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_reconstruction_wrapper_shares_weights_and_exports(spatial_dims, tmp_path):
    network = small(spatial_dims).eval()
    wrapper = AttriVAEReconstruction(spatial_dims, image_size=(16,) * spatial_dims, **SMALL).eval()
    wrapper.load_state_dict(network.state_dict())
    image = torch.rand(2, 1, *network.image_size)
    with torch.no_grad():
        expected = network(image).reconstruction
        assert torch.equal(wrapper(image), expected)
        batches = torch.export.Dim("batch", min=1, max=8)
        exported = torch.export.export(wrapper, (image,), dynamic_shapes=({0: batches},)).module()
        for n in (1, 2):
            torch.testing.assert_close(exported(image[:n]), expected[:n], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": (16, 16, 15)}, "axis 2 is not divisible"),
        ({"image_size": (16, 16)}, "must have 3 entries"),
        ({"strides": (2, 2)}, "one entry for each of the 3 channels"),
        ({"attribute_names": list("abcdefg")}, "7 attributes need as many latent axes"),
        ({"num_classes": -1}, "num_classes"),
        ({"decoder_channels": (8, 8)}, "decoder_channels must have 4 entries"),
        ({"head_axes": 7}, "head_axes must lie between 1 and latent_dim 6"),
        ({"regions": 1, "spacing": (1.0, 2.0)}, "spacing must have 3 entries"),
    ],
)
def test_arguments_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        small(3, **options)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_decoder_activation_revives_features_that_only_darken(spatial_dims):
    """With ReLU a decoder whose last features are all negative is grey for good."""
    image = torch.rand(3, 1, *[16] * spatial_dims)
    gradients = {}
    for act in (None, "LEAKYRELU"):
        network = small(spatial_dims, decoder_act=act)
        with torch.no_grad():
            network.decoder[-2].norm.bias.fill_(-10.0)
        network(image).reconstruction.sum().backward()
        gradients[act] = network.decoder[-2].norm.bias.grad.abs().max().item()
        assert isinstance(network.encoder[0].act, torch.nn.ReLU)
    dead, alive = gradients.values()
    assert dead == 0
    assert alive > 0


def test_head_reads_the_first_axes_alone():
    network = small(2, head_axes=2).eval()
    codes = torch.randn(3, 6)
    others = torch.cat([codes[:, :2], torch.randn(3, 4)], 1)
    assert torch.equal(network.classify(codes), network.classify(others))
    assert not torch.equal(network.classify(codes), network.classify(codes.flip(1)))


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_pooled_layer_joins_the_mean_of_a_layer(spatial_dims):
    """With weights on the means alone, the code is the mean of that layer's features."""
    vae = AttriVAE(spatial_dims, image_size=8, **SMALL | {"hidden_channels": ()}, pooled_layer=1)
    vae.eval()
    with torch.no_grad():
        vae.mean.weight.zero_()
        vae.mean.weight[:, -8:] = torch.eye(6, 8)
        images = torch.rand(2, 1, *[8] * spatial_dims)
        features = vae.encoder[1](vae.encoder[0](images))
        expected = features.flatten(2).mean(2)[:, :6]
        torch.testing.assert_close(vae.encode(images)[0], expected + vae.mean.bias)
        last = AttriVAE(spatial_dims, image_size=8, **SMALL, pooled_layer=-1)
    assert last.hidden[0].in_features == 2 * 2**spatial_dims + 2
    with pytest.raises(ValueError, match="pooled_layer must name one of the 3 convolutions"):
        AttriVAE(spatial_dims, image_size=8, **SMALL, pooled_layer=3)
