"""The branch that finds structures, and the attributes' axes that are read off their moments."""

import numpy as np
import pytest
import torch

from medvae.engines import PrepareAttributes
from medvae.explain import attribute_maps
from medvae.losses.objective import region_loss
from medvae.networks import AttriVAE, AttriVAEReconstruction
from medvae.networks.regions import RegionStatistics

SIZES = {2: (8, 12), 3: (8, 6, 4)}


def network(spatial_dims, **options):
    settings = {
        "image_size": tuple(4 * n for n in SIZES[spatial_dims]),
        "latent_dim": 5,
        "channels": (4, 8),
        "strides": (2, 2),
        "attribute_names": ("a", "b"),
        "regions": 3,
        "region_channels": 4,
        "hidden_channels": (8,),
        "dropout": 0.0,
    }
    return AttriVAE(spatial_dims, **settings | options)


def image_of(vae, batch=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, vae.in_channels, *vae.image_size, generator=generator)


@pytest.mark.parametrize("spacing", [None, (3.0, 3.0, 7.5)])
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_statistics_are_numpys_moments_of_a_region(spatial_dims, spacing):
    size = SIZES[spatial_dims]
    rng = np.random.default_rng(0)
    mask = rng.random(size) < 0.4
    image = rng.random(size)
    feature = rng.random([n // 2 for n in size])
    step = np.ones(spatial_dims) if spacing is None else np.array(spacing[:spatial_dims])
    found = RegionStatistics(size, None if spacing is None else step.tolist())(
        torch.as_tensor(mask, dtype=torch.float32)[None, None],
        torch.as_tensor(image, dtype=torch.float32)[None, None],
        torch.as_tensor(feature, dtype=torch.float32)[None, None],
    )[0].double()
    n = mask.sum()
    weight = n / (n + 0.1)  # rows of a region without voxels are 0
    step = 2 * step / (step * size).max()
    axes = [s * (np.arange(k) - (k - 1) / 2) for k, s in zip(size, step, strict=True)]
    position = np.stack([a[mask] for a in np.meshgrid(*axes, indexing="ij")])
    second = weight * np.cov(position, bias=True)
    blocks = mask.reshape([k for m in size for k in (m // 2, 2)])
    share = blocks.mean(tuple(range(1, 2 * spatial_dims, 2)))
    mean = weight * image[mask].mean()
    expected = [n / mask.size, np.log1p(n), mean, weight * (image[mask] ** 2).mean() - mean**2]
    expected += [(share * feature).sum() / (share.sum() + 0.1)]
    expected += [*second[np.triu_indices(spatial_dims)]]
    expected += [*np.log(np.linalg.eigvalsh(second + np.diag(step**2 / 12))[::-1])]
    slopes = np.gradient(mask.astype(float), *(step / step.min()))
    area = np.sqrt(np.square(slopes).sum(0) + 1e-10).sum() * np.prod(step / step.min())
    expected += [np.log1p(area)]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-5)


def test_surface_of_a_ball_is_that_of_geometry():
    x = torch.stack(torch.meshgrid(*[torch.arange(32.0) - 15.5] * 3, indexing="ij"))
    for radius in (6.0, 10.0):
        ball = (4 / 3 * (radius - x.square().sum(0).sqrt()))[None, None]
        found = RegionStatistics((32, 32, 32))(ball.sigmoid(), ball, x[None])
        assert found[0, -1].expm1().item() == pytest.approx(4 * np.pi * radius**2, rel=0.03)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_statistics_do_not_tell_where_a_structure_lies(spatial_dims):
    size = [16] * spatial_dims
    generator = torch.Generator().manual_seed(0)
    share, image, features = (torch.zeros(2, 1, *size) for _ in range(3))
    for values in (share, image, features):
        inside = values[(slice(None), slice(None), *[slice(4, 9)] * spatial_dims)]
        inside.copy_(torch.rand(inside.shape, generator=generator))
    share[1] *= 0.6  # next to nothing, once sharpened
    statistics = RegionStatistics(size)
    here = statistics(share, image, features)
    axes = list(range(2, 2 + spatial_dims))
    there = statistics(*(x.roll([5] * spatial_dims, axes) for x in (share, image, features)))
    torch.testing.assert_close(there, here, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_eigenvalues_stay_the_same_when_a_structure_turns(spatial_dims):
    generator = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(20, spatial_dims, spatial_dims, generator=generator))[0]
    # a rod, a disc, a ball, a point
    of = torch.tensor([[0.3, 0.1, 0.1], [0.3, 0.3, 0.05], [0.2, 0.2, 0.2], [0.0, 0.0, 0.0]])
    statistics = RegionStatistics((16,) * spatial_dims)
    pairs = torch.triu_indices(spatial_dims, spatial_dims)
    for values in of[:, :spatial_dims]:
        spread = (turn * values) @ turn.mT
        spread = spread[:, pairs[0], pairs[1]].requires_grad_()
        found = statistics.eigenvalues(spread)
        expected = (values + statistics.voxel).expand_as(found)
        torch.testing.assert_close(found, expected, rtol=6e-3, atol=1e-6)
        found.log().sum().backward()
        assert spread.grad.isfinite().all()


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_a_region_that_is_not_there_gives_finite_numbers_and_gradients(spatial_dims):
    size = [8] * spatial_dims
    logits = torch.full((1, 2, *size), -200.0, requires_grad=True)
    image = torch.rand(1, 1, *size)
    found = RegionStatistics(size)(logits.sigmoid(), image, image)
    found.sum().backward()
    assert not found.view(2, -1)[:, : -spatial_dims - 1].any()
    assert found.isfinite().all()
    assert logits.grad.isfinite().all()


def test_a_faint_background_counts_as_volume_but_does_not_bend_the_shape():
    """A probability of 0.002 at 16384 voxels is 33 voxels, and would round off a small rod."""
    logits = torch.full((1, 1, 32, 32, 16), -6.2)
    logits[:, :, 12:20, 15:17, 7:9] = 6.2
    found = RegionStatistics((32, 32, 16))(logits.sigmoid(), logits, logits)[0]
    assert found[1].expm1().item() == pytest.approx(32 + 33, rel=0.03)
    voxel = (2 / 32) ** 2 / 12
    ratio = (found[-4] - found[-2]).exp()
    assert ratio.item() == pytest.approx(8**2 * voxel / (2**2 * voxel), rel=0.05)


def test_statistics_keep_single_precision_under_autocast():
    share, image = torch.rand(2, 1, 16, 16), torch.rand(2, 1, 16, 16)
    statistics = RegionStatistics((16, 16))
    with torch.autocast("cpu", torch.bfloat16):
        half = statistics(share, image, image)
    assert torch.equal(half, statistics(share, image, image))


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_maps_at_the_occupancies_lie_on_the_voxels_that_regions_take(spatial_dims):
    """By the gradient of what comes after: the map of a linear reading is what each voxel adds."""
    vae = network(spatial_dims).eval()
    image = image_of(vae)
    maps = attribute_maps(vae, image, [0], "branch.occupancy", "hirescam", signed=True)
    assert maps.shape == (len(image), 1, *image.shape[2:])
    share = vae.find_regions(image).detach().requires_grad_()
    with torch.no_grad():
        features = image
        layers = [features := block(features) for block in vae.encoder]
        details = vae.branch(image, layers)[1]
    read = vae.tied_mean(vae.statistics(share, image, details))[:, 0]
    torch.testing.assert_close(read, vae.encode(image)[0][:, 0])
    (gradient,) = torch.autograd.grad(read.sum(), share)
    torch.testing.assert_close(maps[:, 0], (gradient * share).sum(1))


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_attributes_are_read_off_the_regions_alone(spatial_dims):
    vae = network(spatial_dims).eval()
    image = image_of(vae)
    before, _ = vae.encode(image)
    with torch.no_grad():
        vae.branch.logits.bias += 1.0
    after, _ = vae.encode(image)
    assert not torch.isclose(before[:, :2], after[:, :2]).any()
    assert torch.equal(before[:, 2:], after[:, 2:])
    found = vae.find_regions(image)
    assert found.shape == (3, 3, *vae.image_size)
    assert found.min() >= 0
    assert found.max() <= 1


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_the_masks_alone_teach_where_structures_are(spatial_dims):
    """In training no gradient of an attribute's axis reaches the occupancies; maps need them."""
    vae = network(spatial_dims)
    image = image_of(vae)
    gradients = {}
    for training in (True, False):
        vae.train(training).zero_grad()
        vae.encode(image)[0][:, :2].square().sum().backward()
        gradients[training] = vae.branch.logits.weight.grad
    assert gradients[True] is None
    assert gradients[False].abs().max() > 0


@pytest.mark.parametrize("strides", [((2, 2, 1), 2, 1), (1, (1, 2, 2), 2)])
def test_every_parameter_is_trained_and_grids_fit_whatever_the_strides(strides):
    vae = network(3, image_size=(8, 8, 4), channels=(4, 8, 8), strides=strides)
    output = vae(image_of(vae))
    assert output.regions.shape == (3, 3, *vae.image_size)
    terms = (*output, output.mean.square())
    sum(t.square().sum() for t in terms).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in vae.parameters())


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_exports_give_the_same_codes(spatial_dims):
    vae = network(spatial_dims)
    image = image_of(vae)
    export = AttriVAEReconstruction(
        spatial_dims,
        image_size=vae.image_size,
        latent_dim=5,
        channels=(4, 8),
        strides=(2, 2),
        attribute_names=("a", "b"),
        regions=3,
        region_channels=4,
        hidden_channels=(8,),
    ).eval()
    export.load_state_dict(vae.state_dict())
    expected = vae.eval()(image).reconstruction
    torch.testing.assert_close(torch.jit.script(export)(image), expected)
    torch.testing.assert_close(torch.export.export(export, (image,)).module()(image), expected)


def test_without_regions_nothing_is_there():
    vae = network(2, regions=0)
    assert vae(image_of(vae)).regions.shape[1] == 0
    assert not any(name.startswith(("branch", "tied_mean")) for name in vae.state_dict())


def test_region_loss_is_minus_the_masks_log_likelihood():
    logits, mask = torch.randn(4, 2, 5, 5), (torch.rand(4, 2, 5, 5) < 0.5).float()
    expected = -torch.distributions.Bernoulli(logits=logits).log_prob(mask).sum((1, 2, 3)).mean()
    torch.testing.assert_close(region_loss(logits, mask), expected)
    # on a coarser grid a voxel's target is the share of it that the mask fills
    fine = torch.zeros(1, 1, 4, 4)
    fine[..., 0, :2] = 1.0
    share = torch.tensor([[0.5, 0.0], [0.0, 0.0]])
    coarse = torch.randn(1, 1, 2, 2)
    expected = (-share * coarse[0, 0] + torch.nn.functional.softplus(coarse[0, 0])).sum()
    torch.testing.assert_close(region_loss(coarse, fine), expected)


def test_a_batch_has_the_masks_regions_in_their_order():
    mask = torch.tensor([[0.0, 1.0], [2.0, 3.0]])[None, None]
    batch = {"image": torch.rand(1, 1, 2, 2), "mask": mask}
    labels = {"heart": [1, 3], "lv": 3, "any": None}
    regions = PrepareAttributes(label=False, mask_labels=labels)(batch)[1]["regions"]
    expected = torch.tensor([[[0, 1], [0, 1]], [[0, 0], [0, 1]], [[0, 1], [1, 1]]])[None]
    assert torch.equal(regions, expected.float())
    assert "regions" not in PrepareAttributes(label=False)(batch)[1]


def test_the_branch_finds_a_region_and_reads_an_attribute_off_it():
    """128 discs of random place and size teach the area of others, fitted at last."""
    torch.manual_seed(0)
    grid = torch.stack(torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij"))

    def discs(count):
        centre = 4 + 7 * torch.rand(count, 2, 1, 1)
        radius = 1.5 + 2.5 * torch.rand(count, 1, 1)
        inside = ((grid - centre).square().sum(1) < radius**2).float().unsqueeze(1)
        return inside, (inside.sum((1, 2, 3)) - 25) / 15

    norm = ("GROUP", {"num_groups": 2})
    options = {"attribute_names": ("area",), "regions": 1, "region_channels": 16, "norm": norm}
    vae = network(2, image_size=(16, 16), **options)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=1e-2)
    image, area = discs(128)
    for _ in range(100):
        optimizer.zero_grad()
        output = vae(image)
        loss = region_loss(output.regions, image) + 10 * (output.mean[:, 0] - area).square().mean()
        loss.backward()
        optimizer.step()
    vae.eval()
    steps = vae.encode(image)[0][:, 0].detach()
    vae.tied_mean.fit(vae.region_statistics(image), area[:, None])
    with torch.no_grad():
        fitted = vae.encode(image)[0][:, 0]
    assert (fitted - area).square().mean() < (steps - area).square().mean()
    others, area = discs(64)
    with torch.no_grad():
        read, found = vae.encode(others)[0][:, 0], vae.find_regions(others)
    assert torch.corrcoef(torch.stack([read, area]))[0, 1] > 0.95
    assert torch.corrcoef(torch.stack([found.sum((1, 2, 3)), area]))[0, 1] > 0.99
