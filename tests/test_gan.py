"""The GAN's iteration: which loss moves what, what it averages, and what it refuses."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from monai.engines import Trainer

from medvae.engines import DifferentiableAugmentation, GanStep
from medvae.losses import FactorLoss, PathLength, SubspaceDependenceLoss, SubspaceLoss
from medvae.networks import DisentangledGAN

SIZES, OUTPUTS = {"side": 2, "fov": 3, "free": 4}, {"side": 2, "fov": 1}
KINDS = {"side": "categorical", "fov": "continuous"}
both = pytest.mark.parametrize("spatial_dims", [2, 3])


class PrepareFactors:
    def __call__(self, batchdata: Any, device: Any, *_: Any, **__: Any) -> Any:
        return batchdata["image"], {"factors": batchdata["factors"]}


def objective() -> SubspaceLoss:
    dependence = SubspaceDependenceLoss([2, 3, 4], memory=16, targets=[2, 1], target_weight=1.0)
    classes = {"side": 2, "fov": 1}
    return SubspaceLoss(FactorLoss(KINDS, OUTPUTS), dependence, SIZES, classes, weight=0.1)


def gan_step(spatial_dims: int = 2, network_settings: Any = None, **settings: Any) -> GanStep:
    torch.manual_seed(0)
    network = DisentangledGAN(
        spatial_dims, SIZES, OUTPUTS, 8, (8, 6), **(network_settings or {"mapping_layers": 2})
    )
    trained = copy.deepcopy(network)
    generator, judge = trained.generator, trained.discriminator
    settings = {
        "objective": objective(),
        "path_length": PathLength(),
        "r1_interval": 2,
        "mixing": 0.0,
        "voxel_weight": 1.0,
        **settings,
    }
    return GanStep(
        network,
        trained,
        torch.optim.Adam(judge.parameters(), 0.002, (0.0, 0.99)),
        torch.optim.Adam([*generator.parameters(), *judge.heads.parameters()], 0.002, (0.0, 0.99)),
        **settings,
    )


def batch(spatial_dims: int = 2, count: int = 8, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(count, 1, *[8] * spatial_dims, generator=generator)
    factors = torch.stack([torch.arange(count) % 2, torch.randn(count, generator=generator)], 1)
    factors[1:2, 0] = factors[2:3, 1] = float("nan")
    return {"image": image, "factors": factors}


def trainer(step: GanStep, batches: Any, epochs: int = 1) -> Trainer:
    return Trainer(
        device=torch.device("cpu"),
        max_epochs=epochs,
        data_loader=batches,
        prepare_batch=PrepareFactors(),
        iteration_update=step,
        decollate=False,
    )


def moved(term: torch.Tensor, step: GanStep) -> set[str]:
    """Return which groups of parameters a term has a gradient for."""
    judge = step.discriminator
    groups = {
        "trunk": [*judge.blocks.parameters(), *judge.last.parameters(), *judge.dense.parameters()],
        "score": list(judge.score.parameters()),
        "encoder": list(judge.encoder.parameters()),
        "heads": list(judge.heads.parameters()),
        "mapping": list(step.generator.mapping.parameters()),
        "synthesis": list(step.generator.convs.parameters()),
    }
    found = set()
    for name, parameters in groups.items():
        grads = torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True)
        if any(grad is not None and grad.any() for grad in grads):
            found.add(name)
    return found


@both
@pytest.mark.parametrize("faithful", [False, True])
def test_what_each_term_moves(spatial_dims, faithful):
    step = gan_step(spatial_dims, {"faithful": faithful}, faithful=faithful)
    items = batch(spatial_dims, count=12)
    image, factors = 2 * items["image"] - 1, items["factors"]
    drawn = step.draw(image)
    terms, _ = step.discriminator_terms(image, drawn, factors, penalised=True)
    assert {name: moved(term, step) for name, term in terms.items()} == {
        "adversarial": {"trunk", "score"},
        "codes": {"trunk", "encoder"},
        "features": {"trunk"},
        "voxels": {"trunk", "encoder", "synthesis"},  # the last is not of this optimizer
        "factors": {"trunk", "encoder", "heads"},
        "dependence": {"trunk", "encoder"},
        "r1": {"trunk", "score"},
    }
    terms = step.generator_terms(image, drawn, factors, smooth=True)
    passed = {"trunk", "score"}
    found = {name: moved(term, step) for name, term in terms.items()}
    assert found["factors"] == {"heads"}
    assert found["features"] - {"trunk"} == {"synthesis"}
    assert found["voxels"] == {"synthesis"}
    assert found["codes"] - passed - {"encoder"} == {"synthesis", "mapping"}
    assert found["adversarial"] - passed == {"synthesis", "mapping"}
    assert found["path"] == {"synthesis", "mapping"}


@both
def test_an_iteration_moves_every_parameter(spatial_dims):
    step = gan_step(spatial_dims)
    before = {name: p.clone() for name, p in step.network.named_parameters()}
    trained = {name: p.clone() for name, p in step.trained.named_parameters()}
    engine = trainer(step, [batch(spatial_dims), batch(spatial_dims, seed=1)])
    engine.run()
    still = {name for name, p in step.trained.named_parameters() if torch.equal(p, trained[name])}
    assert not still
    still = {name for name, p in step.network.named_parameters() if torch.equal(p, before[name])}
    assert not still
    (output,) = engine.state.output
    parts = [value for name, value in output.items() if name[:2] in ("d_", "g_")]
    torch.testing.assert_close(torch.stack(parts).sum(), output["loss"])
    assert len(parts) == 13
    assert output["d_r1"] > 0
    assert output["g_path"] > 0
    for name in ("side", "fov", "dependence", "target_dependence", "effective_rank_2"):
        assert torch.isfinite(output[name])
    assert step.objective.dependence.dependence.filled == 16


@both
def test_a_batch_of_one_and_no_labels(spatial_dims):
    step = gan_step(spatial_dims)
    items = batch(spatial_dims, 1)
    items["factors"][:] = float("nan")
    engine = trainer(step, [items, items])
    engine.run()
    assert engine.state.output[0]["d_factors"] == 0
    assert engine.state.output[0]["d_dependence"] == 0


def test_without_subspace_losses():
    step = gan_step(objective=None, path_length=None, r1_weight=0)
    trainer(step, [batch()] * 2).run()


def test_lazy_penalties_keep_their_mean():
    step = gan_step(r1_interval=8, r1_weight=3.0)
    image = 2 * batch()["image"] - 1
    drawn = step.draw(image)
    terms = [step.discriminator_terms(image, drawn, None, k % 8 == 0)[0] for k in range(8)]
    due = [found.get("r1", 0) for found in terms]
    every = gan_step(r1_interval=1, r1_weight=3.0)
    once = every.discriminator_terms(image, drawn, None, True)[0]["r1"]
    torch.testing.assert_close(sum(due) / 8, once)


def test_voxels_are_of_the_unchanged_image():
    """The encoder sees changed images and gives the codes of what they were."""
    step = gan_step(feature_weight=0.0, voxel_weight=3.0)
    step.augment = DifferentiableAugmentation(1.0, [0], translate=0.25, brightness=1.0)
    image = 2 * batch()["image"] - 1
    drawn = step.draw(image)
    for terms in (step.discriminator_terms, step.generator_terms):
        torch.manual_seed(1)
        found = terms(image, drawn)
        found = found[0] if isinstance(found, tuple) else found
        torch.manual_seed(1)
        changes = [step.augment.draw(image) for _ in range(2)]
        again = step.generator.synthesis(step.discriminator.encode(changes[0](image)))
        torch.testing.assert_close(found["voxels"], 3 * (image - again).abs().mean())
        assert "features" not in found


def test_mixed_codes():
    step, image = gan_step(mixing=1.0), torch.zeros(4, 1, 8, 8)
    for _ in range(5):
        drawn = step.draw(image)
        assert drawn.single is None
        rows = drawn.w[0].unique(dim=0)
        assert len(rows) == 2
    terms, _ = step.discriminator_terms(image, drawn)
    assert "codes" not in terms
    assert "features" in terms
    step.faithful = True
    assert "features" not in step.discriminator_terms(image, drawn)[0]
    step.mixing = 0.0
    drawn = step.draw(image)
    assert torch.equal(drawn.w[:, 3], drawn.single)


def test_codes_of_real_images_with_subspaces_of_different_ones():
    step, image = gan_step(swapping=1.0), 2 * batch()["image"] - 1
    with torch.no_grad():
        codes = step.discriminator(image).codes
    drawn = step.draw(image)
    assert not torch.equal(drawn.single, codes)
    rows = []
    for name, part in step.generator.subspaces.split(drawn.single).items():
        equal = (part[:, None] == codes[:, step.generator.subspaces.slice(name)]).all(-1)
        assert equal.sum(0).tolist() == equal.sum(1).tolist() == [1] * 8
        rows.append(equal.int().argmax(1).tolist())
    assert len({tuple(order) for order in rows}) == len(SIZES)  # each in an order of its own
    torch.testing.assert_close(drawn.image, step.generator.synthesis(drawn.w))
    assert not drawn.single.requires_grad
    assert "codes" in step.generator_terms(image, drawn)
    assert step.draw(image, exact=True).single.requires_grad  # the prior's, for the path length
    trainer(step, [batch()] * 3).run()


def test_running_average():
    step = gan_step(half_life=100)
    start = step.network.generator.constant.detach().clone()
    torch.nn.init.constant_(step.generator.constant, 5.0)
    bias = step.network.discriminator.encoder.bias.detach().clone()
    torch.nn.init.constant_(step.discriminator.encoder.bias, 3.0)
    step.generator.mean_code.fill_(3.0)
    step.average(100, iteration=1000)
    torch.testing.assert_close(step.network.generator.constant, (start + 5) / 2)
    assert (step.network.generator.mean_code == 3).all()
    torch.testing.assert_close(step.network.discriminator.encoder.bias, (bias + 3) / 2)
    step.half_life = 0
    step.average(1, iteration=1)
    for mean, value in zip(step.network.parameters(), step.trained.parameters(), strict=True):
        assert torch.equal(mean, value)


@pytest.mark.parametrize("dtype", [torch.bfloat16])
def test_half_precision(dtype):
    step = gan_step(autocast=dtype)
    engine = trainer(step, [batch()] * 4)
    engine.run()
    assert all(torch.isfinite(value) for value in engine.state.output[0].values())
    assert step.objective.dependence.dependence.past.dtype == torch.float32
    assert next(step.network.parameters()).dtype == torch.float32


def test_what_is_refused():
    step, items = gan_step(), batch()
    items["image"][3, 0, 1, 1] = float("nan")
    engine = trainer(step, [items | {"id": [f"s{k}" for k in range(8)]}])
    engine.logger.disabled = True
    with pytest.raises(ValueError, match="images of s3 have voxels that are not finite"):
        engine.run()
    torch.nn.init.constant_(step.generator.constant, float("nan"))
    engine = trainer(step, [batch()])
    engine.logger.disabled = True
    with pytest.raises(FloatingPointError, match="loss is not finite in epoch 1.*d_adversarial"):
        engine.run()


@both
def test_augmentation(spatial_dims):
    torch.manual_seed(0)
    image = torch.rand(5, 2, *[8] * spatial_dims).requires_grad_()
    still = DifferentiableAugmentation(probability=0.0, flip_axes=[0, 1])
    assert torch.equal(still.draw(image)(image), image)
    augment = DifferentiableAugmentation(1.0, flip_axes=[1], translate=0.25)
    change = augment.draw(image)
    changed = change(image)
    torch.testing.assert_close(changed, change(image))
    assert not torch.allclose(changed, image)
    (grad,) = torch.autograd.grad(changed.square().sum(), image, create_graph=True)
    torch.autograd.grad(grad.sum(), image)
    flip = DifferentiableAugmentation(1.0, [0], 0.0, 0.0).draw(image)
    assert torch.equal(flip(image), image.flip(2))
    brighter = DifferentiableAugmentation(1.0, (), 0.0, 0.5).draw(image)(image) - image
    assert brighter.flatten(1).std(1).max() < 1e-6
    assert brighter.abs().max() <= 0.5
    torch.manual_seed(1)
    moved = DifferentiableAugmentation(1.0, (), 0.25, 0.0).draw(image)(image)
    inner = moved[0, 0][(slice(2, 6),) * spatial_dims]
    whole = image[0, 0].detach()
    windows = whole.unfold(0, 4, 1).unfold(1, 4, 1)
    windows = windows.unfold(2, 4, 1) if spatial_dims == 3 else windows
    windows = windows.reshape(-1, *[4] * spatial_dims)
    assert any(torch.equal(window, inner) for window in windows)
    step = gan_step(spatial_dims, augment=augment)
    trainer(step, [batch(spatial_dims)] * 2).run()


def test_training_follows_from_the_seed():
    results = []
    for _ in range(2):
        step = gan_step(mixing=0.5)
        trainer(step, [batch(), batch(seed=1)], epochs=2).run()
        results.append(torch.cat([p.flatten() for p in step.network.parameters()]))
    assert torch.equal(*results)


def test_each_network_descends_its_own_loss():
    step, items = gan_step(r1_weight=0, path_length=None), batch()
    image = 2 * items["image"] - 1
    drawn = step.draw(image)

    def descend(loss, parameters):
        before = loss()
        grads = torch.autograd.grad(before, parameters)
        with torch.no_grad():
            for parameter, grad in zip(parameters, grads, strict=True):
                parameter -= 1e-4 * grad
        return loss() < before

    step.objective.eval()  # whose memory stays

    def judge():
        return sum(step.discriminator_terms(image, drawn, items["factors"])[0].values())

    def draw():
        again = drawn._replace(image=step.generator.synthesis(drawn.w.detach()))
        return sum(step.generator_terms(image, again, items["factors"]).values())

    assert descend(judge, list(step.discriminator.parameters()))
    synthesis = step.generator
    assert descend(draw, [synthesis.constant, *synthesis.convs[0].style.parameters()])
