"""Subspaces of a latent code, their heads, the losses of factors, and what maps read."""

import pytest
import torch
from monai.networks.nets import ResNet

from medvae.explain import attribute_maps
from medvae.losses import (
    AdversarialLeakageLoss,
    FactorLoss,
    HSICLoss,
    LabelledDependence,
    SubspaceDependenceLoss,
    SubspaceLoss,
    encode_factors,
    factor_predictions,
    reverse_gradient,
    u_distance_correlation_sqr,
)
from medvae.networks import SubspaceClassifier, SubspaceEncoder, SubspaceHeads, Subspaces

SIZES = {"age": 2, "scanner": 3, "free": 4}
OUTPUTS = {"age": 3, "scanner": 2}
KINDS = {"age": "ordinal", "scanner": "categorical"}


def encoder(spatial_dims=2, normalize=False, cls=SubspaceEncoder):
    torch.manual_seed(0)
    backbone = ResNet(
        "basic", [1, 1, 1, 1], [4, 4, 8, 8], spatial_dims=spatial_dims, n_input_channels=1,
        conv1_t_size=3, conv1_t_stride=1, no_max_pool=True, num_classes=9,
    )  # fmt: skip
    return cls(backbone, SIZES, OUTPUTS, normalize)


def test_subspaces_slice_split_and_join():
    subspaces = Subspaces(SIZES)
    codes = torch.randn(5, 9)
    parts = subspaces.split(codes)
    assert {name: part.shape[1] for name, part in parts.items()} == SIZES
    torch.testing.assert_close(subspaces.join(parts), codes, rtol=0, atol=0)
    torch.testing.assert_close(codes[:, subspaces.slice("scanner")], parts["scanner"])
    assert subspaces.labelled == ("age", "scanner")


def test_swapping_moves_the_named_part_alone():
    subspaces = Subspaces(SIZES)
    codes, donors = torch.randn(5, 9), torch.randn(5, 9)
    swapped = subspaces.swap(codes, donors, "scanner")
    assert torch.equal(subspaces.split(swapped)["scanner"], subspaces.split(donors)["scanner"])
    for name in ("age", "free"):
        assert torch.equal(subspaces.split(swapped)[name], subspaces.split(codes)[name])
    assert torch.equal(subspaces.swap(swapped, codes, "scanner"), codes)
    assert torch.equal(subspaces.swap(codes, donors, list(SIZES)), donors)
    assert torch.equal(subspaces.swap(codes, donors[0], "age")[:, :2], donors[:1, :2].expand(5, 2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Subspaces({}), "at least one"),
        (lambda: Subspaces({"age": 0}), "'age' has size 0"),
        (lambda: Subspaces(SIZES, latent_dim=8), "9 dimensions together; expected latent_dim 8"),
        (lambda: Subspaces(SIZES).slice("sex"), "no subspace 'sex'"),
        (lambda: Subspaces(SIZES).split(torch.zeros(2, 8)), "expected codes of 9 dimensions"),
        (lambda: Subspaces(SIZES).join({"age": torch.zeros(1, 2)}), r"\['scanner', 'free'\]"),
        (lambda: SubspaceHeads(Subspaces(SIZES), {"sex": 2}), "no subspace 'sex'"),
        (lambda: FactorLoss(KINDS, {"age": 2}), "and outputs of"),
        (lambda: FactorLoss({"age": "nominal"}, {"age": 2}), "'nominal'; expected one of"),
    ],
)
def test_what_does_not_fit_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_head_reads_its_own_part_alone():
    heads = SubspaceHeads(Subspaces(SIZES), OUTPUTS)
    codes = torch.randn(4, 9, requires_grad=True)
    parts = heads.outputs.split(heads(codes))
    (gradient,) = torch.autograd.grad(parts["scanner"].sum(), codes)
    assert (gradient[:, 2:5] != 0).all()
    assert (gradient[:, :2] == 0).all()
    assert (gradient[:, 5:] == 0).all()


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("normalize", [False, True])
def test_an_encoder_gives_codes_and_logits(spatial_dims, normalize):
    network = encoder(spatial_dims, normalize).eval()
    image = torch.rand(3, 1, *[16] * spatial_dims)
    codes, logits = network(image)
    assert codes.shape == (3, 9)
    assert logits.shape == (3, 5)
    alone = network(image[1:2])
    torch.testing.assert_close(alone.codes, codes[1:2], rtol=1e-4, atol=1e-5)
    classifier = encoder(spatial_dims, normalize, SubspaceClassifier).eval()
    classifier.load_state_dict(network.state_dict())
    torch.testing.assert_close(classifier(image), logits)


def test_a_backbone_of_another_width_is_named():
    network = SubspaceEncoder(torch.nn.Flatten(), SIZES, OUTPUTS)
    with pytest.raises(ValueError, match="gives .16,. numbers an image; expected 9"):
        network(torch.zeros(1, 1, 4, 4))


@pytest.mark.parametrize("name", ["age", "scanner"])
def test_maps_of_a_factor_are_those_of_its_head(name):
    network = encoder().eval()
    image = torch.rand(2, 1, 16, 16)
    found = attribute_maps(network, image, [name], layer="backbone.layer2")
    by_hand = attribute_maps(
        network,
        image,
        [lambda output: network.evidence(output.codes, name)],
        layer="backbone.layer2",
    )
    torch.testing.assert_close(found, by_hand)
    logits = network.heads.outputs.split(network(image).logits)[name]
    odds = network.evidence(network.encode(image), name)
    torch.testing.assert_close(odds.sigmoid(), logits.softmax(1).max(1).values)
    with pytest.raises(ValueError, match="two calls"):
        attribute_maps(network, image, [name, lambda output: output.codes[:, 0]])


def test_the_factor_loss_is_torchs_on_known_labels():
    torch.manual_seed(0)
    kinds = {"scanner": "categorical", "size": "continuous"}
    loss = FactorLoss(kinds, {"scanner": 3, "size": 1})
    logits = torch.randn(6, 4, requires_grad=True)
    factors = torch.tensor(
        [[0, 0.5], [2, torch.nan], [torch.nan, 1.0], [1, -1.0], [1, 0.0], [2, 2.0]]
    )
    terms = loss(logits, factors)
    known = [0, 1, 3, 4, 5]
    entropy = torch.nn.functional.cross_entropy(logits[known, :3], factors[known, 0].long())
    squares = (logits[[0, 2, 3, 4, 5], 3] - factors[[0, 2, 3, 4, 5], 1]).square().mean()
    torch.testing.assert_close(terms["loss"], (entropy + squares) / 2)
    torch.testing.assert_close(terms["scanner"], entropy.detach())
    terms["loss"].backward()
    assert (logits.grad[2, :3] == 0).all()
    assert logits.grad[1, 3] == 0
    nothing = loss(logits, torch.full((6, 2), torch.nan))["loss"]
    assert nothing == 0
    assert torch.autograd.grad(nothing, logits)[0].abs().max() == 0


def test_the_ordinal_loss_is_the_cross_entropy_of_its_questions():
    torch.manual_seed(0)
    loss = FactorLoss({"age": "ordinal"}, {"age": 4})
    logits = torch.randn(8, 4, dtype=torch.float64)
    truth = torch.arange(8) % 4
    above = 1 - logits.softmax(1).cumsum(1)[:, :-1]
    asked = (truth[:, None] > torch.arange(3)).double()
    expected = torch.nn.functional.binary_cross_entropy(above, asked)
    found = loss(logits, truth[:, None].double())["loss"]
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    far, near = torch.tensor([[9.0, 0, 0, 0]]), torch.tensor([[0, 0, 9.0, 0]])
    top = torch.tensor([[3.0]])
    assert loss(far, top)["loss"] > 2 * loss(near, top)["loss"]
    assert torch.isfinite(loss(torch.tensor([[1e4, 0, 0, 0]]), top)["loss"])
    torch.testing.assert_close(factor_predictions("ordinal", logits).sum(1), torch.ones(8).double())


def test_factors_become_sets_of_columns():
    factors = torch.tensor([[1.0, 0.5], [torch.nan, 2.0]])
    found = encode_factors(factors, [3, 1])
    torch.testing.assert_close(found[0], torch.tensor([0.0, 1.0, 0.0, 0.5]))
    assert found[1, :3].isnan().all()
    assert found[1, 3] == 2


def test_targets_are_held_against_the_other_subspaces():
    torch.manual_seed(0)
    codes = torch.randn(60, 9, dtype=torch.float64)
    parts = list(codes.split([2, 3, 4], 1))
    targets = torch.randn(60, 3, dtype=torch.float64)
    loss = SubspaceDependenceLoss([2, 3, 4], weight=0.0, target_weight=2.0, targets=[2, 1]).double()
    found = loss(parts, targets=targets)
    first, second = targets[:, :2], targets[:, 2:]
    pairs = [(parts[0], second), (parts[1], first), (parts[2], first), (parts[2], second)]
    expected = torch.stack([u_distance_correlation_sqr(z, y) for z, y in pairs]).mean()
    torch.testing.assert_close(found["loss"], 2 * expected)
    torch.testing.assert_close(found["target_dependence"], expected)
    targets[:30] = torch.nan  # rows without a label are left out
    fewer = loss(parts, targets=targets)["target_dependence"]
    half = [part[30:] for part in parts]
    torch.testing.assert_close(fewer, loss(half, targets=targets[30:])["target_dependence"])


def test_targets_leave_the_subspace_that_tells_of_them_alone():
    torch.manual_seed(0)
    label = (torch.arange(64) % 2).double()
    codes = (torch.randn(64, 4, dtype=torch.float64) + label[:, None]).requires_grad_()
    loss = SubspaceDependenceLoss([2, 2], weight=0.0, target_weight=1.0, targets=[1])
    loss(list(codes.split(2, 1)), targets=label[:, None])["loss"].backward()
    assert (codes.grad[:, :2] == 0).all()
    assert codes.grad[:, 2:].abs().max() > 0


def test_the_objective_adds_up_and_conditions():
    torch.manual_seed(0)
    network = encoder()
    output = network(torch.rand(40, 1, 16, 16))
    factors = torch.stack([torch.arange(40) % 3, torch.arange(40) % 2], 1).float()
    factors[3, 0] = torch.nan
    dependence = SubspaceDependenceLoss([2, 3, 4], target_weight=1.0, targets=[3, 2])
    loss = SubspaceLoss(
        FactorLoss(KINDS, OUTPUTS), dependence, SIZES, {"age": 3, "scanner": 2}, weight=0.5
    )
    terms = loss(output, None, factors)
    torch.testing.assert_close(terms["loss"], terms["factors"] + terms["weighted"])
    loss.weight = 0.25
    torch.testing.assert_close(loss(output, None, factors)["weighted"], terms["weighted"] / 2)
    other = SubspaceLoss(FactorLoss(KINDS, OUTPUTS), dependence, SIZES, {"age": 3, "scanner": 2})
    other.load_state_dict(loss.state_dict())
    assert other.weight == 0.25
    given = SubspaceLoss(
        FactorLoss(KINDS, OUTPUTS),
        SubspaceDependenceLoss([2, 3, 4]),
        SIZES,
        {"age": 3, "scanner": 2},
        given=["scanner"],
    )
    cells = factors[:, 1].clone()
    expected = SubspaceDependenceLoss([2, 3, 4])(list(output.codes.split([2, 3, 4], 1)), cells)
    torch.testing.assert_close(given(output, None, factors)["dependence"], expected["dependence"])
    with pytest.raises(ValueError, match=r"given has 'agee'; expected factors among \['age'\]"):
        LabelledDependence(dependence, {"age": 3}, given=["agee"])
    with pytest.raises(ValueError, match="of which 1 continuous; .* SubspaceDependenceLoss with 0"):
        LabelledDependence(dependence, {"age": 1}, given=["age"])
    with pytest.raises(ValueError, match="found HSICLoss with None"):
        LabelledDependence(HSICLoss(), {"age": 3}, given=["age"])


def test_a_continuous_condition_is_a_covariate():
    torch.manual_seed(0)
    factors = torch.stack([torch.arange(60) % 2, torch.randn(60)], 1)
    codes = [factors[:, 1:] + 0.3 * torch.randn(60, size) for size in (2, 3)]
    dependence = SubspaceDependenceLoss([2, 3], covariates=1)
    classes = {"scanner": 2, "age": 1}
    found = LabelledDependence(dependence, classes, given=["age"])(codes, factors)["loss"]
    torch.testing.assert_close(found, dependence(codes, covariates=factors[:, 1:])["loss"])
    assert found < 0.2 < SubspaceDependenceLoss([2, 3])(codes)["loss"]
    both = LabelledDependence(dependence, classes, given=["age", "scanner"])(codes, factors)["loss"]
    expected = dependence(codes, factors[:, 0], factors[:, 1:])["loss"]
    torch.testing.assert_close(both, expected)


def test_hsic_sees_dependence_and_not_scale():
    torch.manual_seed(0)
    x = torch.randn(100, 2)
    loss = HSICLoss()
    assert float(loss([x, x])["loss"]) == pytest.approx(1.0, abs=1e-4)
    independent = float(loss([x, torch.randn(100, 2)])["loss"])
    assert independent < 0.15 < float(loss([x, x.square()])["loss"])
    torch.testing.assert_close(loss([x, 7 * x + 1])["loss"], loss([x, x])["loss"])


def test_the_adversary_learns_while_the_encoder_unlearns():
    torch.manual_seed(0)
    x = torch.randn(8, requires_grad=True)
    reverse_gradient(2 * x).sum().backward()
    assert (x.grad == -2).all()
    loss = AdversarialLeakageLoss([2, 3, 4], KINDS, OUTPUTS)
    codes = torch.randn(30, 9, requires_grad=True)
    factors = torch.stack([torch.arange(30) % 3, torch.arange(30) % 2], 1).float()
    terms = loss(list(codes.split([2, 3, 4], 1)), factors)
    parameters = list(loss.parameters())
    gradients = torch.autograd.grad(terms["loss"], [codes, *parameters])
    step = 1e-2
    moved = codes - step * gradients[0] / gradients[0].norm()
    assert loss(list(moved.split([2, 3, 4], 1)), factors)["loss"] > terms["loss"]
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients[1:], strict=True):
            parameter -= step * gradient
    assert loss(list(codes.split([2, 3, 4], 1)), factors)["loss"] < terms["loss"]


def test_conditions_are_combinations_of_classes():
    class Told(torch.nn.Module):
        covariates = 0

        def forward(self, subspaces, label):
            return {"loss": label}

    factors = torch.tensor([[0, 1, 0.5], [2, 0, 0.5], [2, 1, torch.nan], [torch.nan, 1, 0.5]])
    classes = {"age": 3, "scanner": 2, "size": 1}
    both = LabelledDependence(Told(), classes, given=["age", "scanner"])
    assert both([], factors)["loss"].tolist() == [1, 4, 5, -1]
    one = LabelledDependence(Told(), classes, given=["scanner"])
    assert one([], factors)["loss"].tolist() == [1, 0, 1, 1]
