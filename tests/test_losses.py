"""Losses against closed forms, torch.distributions and the numbers of the specification."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from medvae.losses import (
    AttributeRegularizationLoss,
    AttriVAELoss,
    attribute_correlation,
    attribute_leakage,
    attribute_ranking,
    attribute_regression,
    attribute_regularization,
    bernoulli_reconstruction,
    classification_loss,
    gaussian_reconstruction,
    kl_normal,
)
from medvae.losses import kl_divergence as kl_term
from medvae.networks import AttriVAEOutput

N = 16
ORDERED = torch.arange(N, dtype=torch.float64).unsqueeze(1)
FORMS = {
    "published": attribute_regularization,
    "ranking": attribute_ranking,
    "correlation": attribute_correlation,
    "regression": attribute_regression,
}


@pytest.mark.parametrize(("log_var", "expected"), [(-1.0, 0.183940), (-2.0, 0.567668), (0.0, 0.0)])
def test_kl_numbers(log_var, expected):
    # log_var = -2 is the log-sd = -1 of the specification
    kl = kl_normal(torch.zeros(3, 64), torch.full((3, 64), log_var))
    torch.testing.assert_close(kl, torch.full((3,), 64 * expected), rtol=0, atol=1e-4)


def test_kl_equals_torch_distributions():
    g = torch.Generator().manual_seed(0)
    m, s, n, t = (torch.randn(5, 7, generator=g, dtype=torch.float64) for _ in range(4))
    expected = kl_divergence(Normal(m, (s / 2).exp()), Normal(n, (t / 2).exp())).sum(1)
    torch.testing.assert_close(kl_normal(m, s, n, t), expected, rtol=1e-10, atol=1e-10)
    standard = kl_divergence(Normal(m, (s / 2).exp()), Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(kl_normal(m, s), standard, rtol=1e-10, atol=1e-10)


def test_kl_capacity_and_free_bits():
    mean, log_var = torch.zeros(4, 3), torch.tensor([0.0, -1.0, -2.0]).expand(4, 3)
    per_axis = [0.0, 0.183940, 0.567668]
    assert kl_term(mean, log_var).item() == pytest.approx(sum(per_axis), abs=1e-5)
    assert kl_term(mean, log_var, capacity=2.0).item() == pytest.approx(2 - sum(per_axis), abs=1e-5)
    free = kl_term(mean, log_var, free_bits=0.3).item()
    assert free == pytest.approx(0.3 + 0.3 + 0.567668, abs=1e-5)


@pytest.mark.parametrize(
    ("z", "delta", "expected", "tolerance"),
    [
        (ORDERED, 10.0, 0.0, 1e-6),
        (torch.zeros_like(ORDERED), 10.0, 0.9375, 1e-12),
        (-ORDERED, 10.0, 1.875, 1e-4),
        (0.1 * ORDERED, 10.0, 0.0324, 1e-4),
        (ORDERED, 1.0, 0.0324, 1e-4),
        (0.1 * ORDERED, 1.0, 0.5001, 1e-4),
    ],
)
def test_published_form_numbers(z, delta, expected, tolerance):
    loss = attribute_regularization(z, ORDERED, delta)
    assert loss.item() == pytest.approx(expected, abs=tolerance)


def test_published_form_equals_a_loop_over_pairs():
    g = torch.Generator().manual_seed(1)
    z, a = torch.randn(9, 3, generator=g), torch.randn(9, 3, generator=g)
    a[2, 1] = a[4, 1]
    expected = 0.0
    for k in range(3):
        pairs = [
            abs(math.tanh(2.0 * (z[i, k] - z[j, k])) - float(torch.sign(a[i, k] - a[j, k])))
            for i in range(9)
            for j in range(9)
        ]
        expected += sum(pairs) / len(pairs)
    assert attribute_regularization(z, a, 2.0).item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("form", ["published", "ranking"])
def test_order_forms_do_not_see_monotone_maps(form):
    g = torch.Generator().manual_seed(2)
    z, a = torch.randn(8, 2, generator=g), torch.randn(8, 2, generator=g)
    assert torch.equal(FORMS[form](z, a), FORMS[form](z, a.exp() * 3 - 1))
    torch.testing.assert_close(FORMS[form](-z, a), FORMS[form](z, -a))


@pytest.mark.parametrize("form", FORMS)
def test_joint_permutation_changes_nothing(form):
    g = torch.Generator().manual_seed(3)
    z, a = torch.randn(8, 2, generator=g), torch.randn(8, 2, generator=g)
    order = torch.randperm(8, generator=g)
    torch.testing.assert_close(FORMS[form](z[order], a[order]), FORMS[form](z, a))


@pytest.mark.parametrize("form", FORMS)
def test_missing_values_equal_absent_rows(form):
    g = torch.Generator().manual_seed(4)
    z = torch.randn(8, 2, generator=g, requires_grad=True)
    a = torch.randn(8, 2, generator=g)
    a[:3, 1] = torch.nan
    loss = FORMS[form](z, a)
    expected = FORMS[form](z[:, :1], a[:, :1]) + FORMS[form](z[3:, 1:], a[3:, 1:])
    torch.testing.assert_close(loss, expected)
    (gradient,) = torch.autograd.grad(loss, z)
    assert gradient.isfinite().all()
    assert (gradient[:3, 1] == 0).all()
    assert (gradient[:, 0] != 0).any()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rows", [1, 2])
def test_tiny_batches_and_all_missing_are_finite(form, rows):
    z = torch.zeros(rows, 2, requires_grad=True)
    for a in (torch.zeros(rows, 2), torch.full((rows, 2), torch.nan)):
        loss = FORMS[form](z, a)
        assert loss.item() == 0.0
        (gradient,) = torch.autograd.grad(loss, z, allow_unused=True)
        assert gradient is None or gradient.isfinite().all()


def _misordered_gradient(form):
    z = torch.tensor([[1.0], [0.0]], requires_grad=True)
    loss = form(z, torch.tensor([[-1.0], [0.0]]))
    return torch.autograd.grad(loss, z)[0].abs().max().item()


def test_only_the_published_form_forgets_badly_ordered_pairs():
    assert _misordered_gradient(lambda z, a: attribute_regularization(z, a, 10.0)) < 1e-6
    assert _misordered_gradient(attribute_ranking) >= 1e-2
    assert _misordered_gradient(attribute_regression) >= 1e-2


def test_ranking_leaves_ties_alone_where_the_published_form_collapses_them():
    g = torch.Generator().manual_seed(5)
    a = (torch.arange(64) % 2).double().unsqueeze(1)
    z = 4 * a + 0.5 * torch.randn(64, 1, generator=g, dtype=torch.float64)
    assert attribute_regularization(z, a, 10.0).item() > 0.35
    assert attribute_ranking(z, a, 10.0).item() < 1e-3


def test_binary_attributes_are_not_pulled_to_a_point():
    g = torch.Generator().manual_seed(6)
    a = (torch.arange(32) % 2).double().unsqueeze(1)
    spread = (8 * a - 4 + torch.randn(32, 1, generator=g, dtype=torch.float64)).requires_grad_()
    loss = AttributeRegularizationLoss(regression=1.0, delta=5.0, binary=[True])
    (gradient,) = torch.autograd.grad(loss(spread, a), spread)
    assert gradient.abs().max() < 1e-3
    plain = AttributeRegularizationLoss(regression=1.0)
    assert torch.autograd.grad(plain(spread, a), spread)[0].abs().max() > 0.05


def test_linear_forms_prefer_a_straight_line_to_a_monotone_curve():
    a = torch.linspace(-2, 2, 20).unsqueeze(1)
    for form in (attribute_correlation, attribute_regression):
        assert form(a, a).item() == pytest.approx(0, abs=1e-6)
        assert form(a.exp() - a.exp().mean(), a) > 0.05


def test_weighted_sum_of_forms():
    g = torch.Generator().manual_seed(7)
    z, a = torch.randn(8, 2, generator=g), torch.randn(8, 2, generator=g)
    loss = AttributeRegularizationLoss(
        published=1.0, ranking=2.0, correlation=3.0, regression=4.0, delta=2.0
    )
    expected = (
        attribute_regularization(z, a, 2.0)
        + 2 * attribute_ranking(z, a, 2.0)
        + 3 * attribute_correlation(z, a)
        + 4 * attribute_regression(z, a)
    )
    torch.testing.assert_close(loss(z, a), expected)
    with pytest.raises(ValueError, match="needs a weight"):
        AttributeRegularizationLoss()
    with pytest.raises(ValueError, match="shape"):
        loss(z, a[:, :1])


def test_leakage_is_the_excess_squared_correlation():
    g = torch.Generator().manual_seed(8)
    a = torch.randn(4000, 2, generator=g)
    free = torch.stack([a[:, 0], torch.randn(4000, generator=g)], 1)
    a[:1000, 0] = torch.nan
    # one axis is the first attribute, the other nothing; the attributes are independent
    assert attribute_leakage(free, a).item() == pytest.approx(1.0, abs=0.02)
    constant = torch.zeros(8, 3, requires_grad=True)
    loss = attribute_leakage(constant, a[-8:])
    assert loss.item() == 0
    assert torch.autograd.grad(loss, constant)[0].isfinite().all()


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_reconstructions_sum_over_voxels_and_average_over_the_batch(spatial_dims):
    g = torch.Generator().manual_seed(9)
    x, y = torch.rand(2, 4, 1, *(5,) * spatial_dims, generator=g).unbind(0)
    assert gaussian_reconstruction(x, y).item() == pytest.approx(((x - y) ** 2).sum().item() / 4)
    bce = -(y * x.log() + (1 - y) * (1 - x).log()).sum().item() / 4
    assert bernoulli_reconstruction(x, y).item() == pytest.approx(bce, rel=1e-5)


def test_classification_masks_unknown_labels():
    logits = torch.tensor([[2.0], [-1.0], [5.0]], requires_grad=True)
    expected = (math.log1p(math.exp(-2)) + math.log1p(math.exp(-1))) / 2
    loss = classification_loss(logits, torch.tensor([1, 0, -1]))
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient[2] == 0
    unknown = classification_loss(logits, torch.tensor([-1, -1, -1]))
    assert unknown.item() == 0
    assert (torch.autograd.grad(unknown, logits)[0] == 0).all()
    many = torch.randn(3, 4)
    torch.testing.assert_close(
        classification_loss(many, torch.tensor([3, 0, 1])),
        torch.nn.functional.cross_entropy(many, torch.tensor([3, 0, 1])),
    )


def _output(batch=6, latent=4):
    g = torch.Generator().manual_seed(10)
    image = torch.rand(batch, 1, 4, 4, generator=g)
    mean, log_var, z = torch.randn(3, batch, latent, generator=g).unbind(0)
    return image, AttriVAEOutput(
        torch.rand(batch, 1, 4, 4, generator=g), mean, log_var, z, torch.randn(batch, 1)
    )


def test_objective_adds_its_weighted_terms():
    image, output = _output()
    attributes, label = torch.randn(6, 2), torch.tensor([0, 1, 0, 1, -1, 1])
    regulariser = AttributeRegularizationLoss(ranking=1.0)
    loss = AttriVAELoss(regulariser, beta=2, gamma=3, alpha=4, leakage=5)
    terms = loss(output, image, attributes, label)
    expected = {
        "reconstruction": gaussian_reconstruction(output.reconstruction, image),
        "kl": 2 * kl_normal(output.mean, output.log_var).mean(),
        "attribute": 3 * regulariser(output.z[:, :2], attributes),
        "leakage": 5 * attribute_leakage(output.mean[:, 2:], attributes),
        "classification": 4 * classification_loss(output.logits, label),
    }
    assert terms.keys() == {"loss", *expected}
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value)
    torch.testing.assert_close(terms["loss"], sum(expected.values()))


def test_objective_regularises_sample_or_mean():
    image, output = _output()
    attributes = torch.randn(6, 2)
    regulariser = AttributeRegularizationLoss(regression=1.0)
    for mean, codes in ((False, output.z), (True, output.mean)):
        terms = AttriVAELoss(regulariser, regularize_mean=mean)(output, image, attributes)
        torch.testing.assert_close(terms["attribute"], regulariser(codes[:, :2], attributes))


def test_objective_without_attributes_or_head_is_a_vae():
    image, output = _output()
    terms = AttriVAELoss(beta=1.0)(output._replace(logits=torch.zeros(6, 0)), image)
    assert terms.keys() == {"loss", "reconstruction", "kl"}
