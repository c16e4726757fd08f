"""The beta-Intact-VAE: its objective, its balance, and effects of known truth."""

import math

import numpy as np
import pytest
import torch
from known_effects import discs, tabular

from medvae.engines import log_likelihood, train_intact
from medvae.losses import (
    IntactVAELoss,
    PublicCodeLoss,
    SubspaceDependenceLoss,
    gaussian_nll,
    kl_normal,
)
from medvae.metrics import (
    difference_of_means,
    outside_overlap,
    pehe,
    propensity,
    t_learner,
    treatment_predictability,
)
from medvae.networks import CovariateEncoder, IntactVAE, IntactVAEOutput, IntactVAEReconstruction

COVARIATES = (0, 2, 3)  # continuous, two classes, three classes


def small(spatial_dims=2, **changes):
    torch.manual_seed(0)
    options = {
        "spatial_dims": spatial_dims,
        "image_size": 8,
        "covariates": COVARIATES,
        "latent_dim": 3,
        "channels": (4, 4),
        "strides": (2, 2),
        "hidden_channels": (8,),
        "prior_channels": (8,),
    }
    return IntactVAE(**options | changes)


def batch(network, n=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    if network.outcome_dim is None:
        shape = (n, network.in_channels, *network.image_size)
    else:
        shape = (n, network.outcome_dim)
    outcome = torch.randn(shape, generator=generator)
    treatment = torch.arange(n) % network.treatments
    x = torch.stack([torch.randn(n, generator=generator), torch.arange(n) % 2, torch.arange(n) % 3])
    image = None
    if network.outcome_dim is not None and network.in_channels:
        image = torch.randn(n, network.in_channels, *network.image_size, generator=generator)
    return outcome, treatment, x.T.contiguous(), image


NETWORKS = {
    "2D": {},
    "3D": {"spatial_dims": 3, "in_channels": 2, "norm": ("GROUP", {"num_groups": 2})},
    "three arms": {"treatments": 3},
    "table": {"outcome_dim": 2, "in_channels": 0},
    "image as covariate": {"outcome_dim": 2},
}


@pytest.mark.parametrize("changes", NETWORKS.values(), ids=NETWORKS)
def test_every_parameter_of_every_part_learns(changes):
    network = small(**changes)
    given = batch(network)
    IntactVAELoss()(network(*given), given[0])["loss"].backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("changes", NETWORKS.values(), ids=NETWORKS)
def test_output_has_the_shapes_that_it_says_and_evaluation_repeats(changes):
    network = small(**changes).eval()
    given = batch(network)
    first, second = network(*given), network(*given)
    assert first.reconstruction.shape == given[0].shape
    for field in ("mean", "log_var", "z", "prior_mean", "prior_log_var"):
        assert getattr(first, field).shape == (6, 3)
    assert torch.equal(first.z, first.mean)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    network.train()
    assert not torch.equal(network(*given).z, network(*given).z)


def test_the_prior_is_the_same_whatever_the_treatment_and_the_outcome():
    network = small().eval()
    outcome, treatment, x, _ = batch(network)
    one = network(outcome, treatment, x)
    other = network(outcome + 1, 1 - treatment, x)
    assert torch.equal(one.prior_mean, other.prior_mean)
    assert torch.equal(one.prior_log_var, other.prior_log_var)
    assert not torch.equal(one.mean, other.mean)


@pytest.mark.parametrize("changes", NETWORKS.values(), ids=NETWORKS)
def test_the_posterior_is_relative_to_the_prior_which_the_likelihood_teaches(changes):
    network = small(**changes).eval()
    outcome, treatment, covariates, image = batch(network)
    last = [m for m in network.posterior_net.modules() if isinstance(m, torch.nn.Linear)][-1]
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.zeros_(last.bias)
    found = network.encode(outcome, treatment, covariates, image)
    for own, prior in zip(found, network.prior(covariates, image), strict=True):
        torch.testing.assert_close(own, prior)
    output = network(outcome, treatment, covariates, image)
    gaussian_nll(outcome, output.reconstruction, output.noise_log_var).sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in network.prior_net.parameters() if p.ndim == 1)


def test_the_public_code_leaves_prior_and_noise_as_they_are_and_nothing_without_a_gradient():
    network = small(learned_prior=False)  # as configs/ablations/intact_public_code.yaml
    given = batch(network)
    PublicCodeLoss()(network(*given), given[0])["loss"].backward()
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    assert not any(name.startswith("prior_net") for name in trained)
    assert [name for name, p in trained.items() if p.grad is None] == []
    assert [name for name, p in trained.items() if not p.grad.any()] == ["raw_noise"]


def test_the_public_loss_is_that_of_its_formula():
    output = small()(*batch(small()))
    outcome = torch.zeros_like(output.reconstruction)
    terms = PublicCodeLoss(0.5)(output, outcome)
    axes = -0.5 * (1 + output.log_var - output.mean**2 - output.log_var.exp())
    expected = (output.reconstruction**2).mean() + 0.5 * axes.mean()
    torch.testing.assert_close(terms["loss"], expected)


def test_the_divergence_is_that_of_the_sampler():
    mean, log_var = torch.tensor([[0.3, -1.0]]), torch.tensor([[-1.2, 0.7]])
    prior_mean, prior_log_var = torch.tensor([[0.0, 0.5]]), torch.tensor([[0.4, -0.3]])
    exact = kl_normal(mean, log_var, prior_mean, prior_log_var)
    assert kl_normal(mean, log_var, mean, log_var) == 0
    rows = 200_000
    generator = torch.Generator().manual_seed(0)
    z = IntactVAE.sample(mean.expand(rows, -1), log_var.expand(rows, -1), generator)
    q, p = (
        torch.distributions.Normal(m, (0.5 * s).exp()).log_prob(z).sum(1)
        for m, s in ((mean, log_var), (prior_mean, prior_log_var))
    )
    assert (q - p).mean().item() == pytest.approx(exact.item(), rel=0.02)


def test_the_bound_of_a_linear_gaussian_model_is_tight_at_beta_one_and_for_no_other_posterior():
    weights, noise, prior_mean, prior_var = torch.tensor([1.5, -0.7, 0.4]), 0.3, 0.2, 1.7
    y = torch.tensor([[0.9, -0.1, 1.1]])
    covariance = noise * torch.eye(3) + prior_var * torch.outer(weights, weights)
    evidence = torch.distributions.MultivariateNormal(prior_mean * weights, covariance).log_prob(y)
    exact_var = 1 / (1 / prior_var + weights @ weights / noise)
    exact_mean = exact_var * (prior_mean / prior_var + (y @ weights) / noise)

    def bound(mean, var):
        # two points at one sd are exact for a quadratic
        points = [mean + sign * math.sqrt(var) for sign in (-1, 1)]
        log_noise = torch.full((3,), math.log(noise))
        nll = sum(gaussian_nll(y, z[:, None] * weights, log_noise) for z in points) / 2
        log_var = torch.tensor([[math.log(var)]])
        prior = torch.tensor([[prior_mean]]), torch.tensor([[math.log(prior_var)]])
        return -(nll + kl_normal(mean[:, None], log_var, *prior))

    exact = bound(exact_mean, float(exact_var))
    torch.testing.assert_close(exact, evidence, atol=1e-4, rtol=0)
    for shift, scale in ((0.1, 1.0), (0.0, 1.5), (-0.3, 0.6)):
        assert bound(exact_mean + shift, float(exact_var) * scale) < evidence - 1e-3


def test_beta_weighs_the_divergence_alone_and_voxels_are_summed():
    network = small().eval()
    given = batch(network)
    output = network(*given)
    one, ten = (IntactVAELoss(beta)(output, given[0]) for beta in (1.0, 10.0))
    torch.testing.assert_close(ten["nll"], one["nll"])
    torch.testing.assert_close(ten["kl"], 10 * one["kl"])
    voxel = gaussian_nll(given[0][..., :1], output.reconstruction[..., :1], output.noise_log_var)
    rest = gaussian_nll(given[0][..., 1:], output.reconstruction[..., 1:], output.noise_log_var)
    torch.testing.assert_close((voxel + rest).mean(), one["nll"])


def leaking(amount, n=400):
    """What a network would return whose codes tell the treatment by `amount`, and treatments."""
    generator = torch.Generator().manual_seed(0)
    treatment = torch.arange(n) % 2
    prior = torch.randn(n, 3, generator=generator)
    added = 0.5 * torch.randn(n, 3, generator=generator)
    added[:, 1] = 0.01 * added[:, 1] + amount * treatment  # along a narrow axis
    log_var = torch.zeros(n, 3)
    image = torch.randn(n, 1, 4, 4, generator=generator)
    deviation = torch.linspace(0.1, 4, n)[torch.randperm(n, generator=generator)][:, None]
    wide = (2 * deviation.log()).expand(-1, 3)
    codes = (prior + deviation * added, log_var, prior, prior, wide)
    return IntactVAEOutput(image, *codes, torch.zeros(1)), image, treatment


def test_the_balance_sees_the_treatment_in_what_the_image_adds_alone():
    loss = IntactVAELoss(2.0, balance_weight=50.0, latent_dim=3, treatments=2, memory=0)
    terms = {}
    for amount in (0.0, 0.02):
        output, image, treatment = leaking(amount)
        terms[amount] = loss(output, image, treatment=treatment)
        plain = IntactVAELoss(2.0)(output, image)
        assert "balance" not in plain
        total = plain["loss"] + terms[amount]["balance"]
        torch.testing.assert_close(terms[amount]["loss"], total)
    assert abs(terms[0.0]["balance"]) < 0.5
    assert terms[0.02]["balance"] > 10
    added = (output.mean - output.prior_mean) / torch.exp(output.prior_log_var / 2)
    arms = torch.nn.functional.one_hot(treatment, 2)
    wanted = SubspaceDependenceLoss([3, 2], whiten=True)([added, arms])["loss"]
    torch.testing.assert_close(terms[0.02]["balance"], 50 * wanted)


def test_the_balance_teaches_the_posterior_and_leaves_the_prior_alone():
    network = small()
    given = batch(network, 32)
    loss = IntactVAELoss(balance_weight=10.0, latent_dim=3, treatments=2)
    loss(network(*given), given[0], treatment=given[1])["balance"].backward()
    assert all(p.grad.abs().max() > 0 for p in network.posterior_net.parameters())
    assert all(p.grad is None or p.grad.abs().max() < 1e-6 for p in network.prior_net.parameters())
    assert int(loss.balance.filled) == 32  # remembered for the next batch


def balance_of_repeats(known, seed, n=60, batches=20):
    """R of codes that tell nothing of the treatment, of few subjects in a memory of many rows."""
    generator = torch.Generator().manual_seed(seed)
    codes, treatment = torch.randn(n, 3, generator=generator), torch.arange(n) % 2
    zero, image, found = torch.zeros(32, 3), torch.zeros(32, 1, 4, 4), []
    loss = IntactVAELoss(balance_weight=1.0, latent_dim=3, treatments=2)
    loss.balance.register_forward_hook(lambda *call: found.append(float(call[2]["dependence"])))
    for _ in range(batches):
        rows = torch.randperm(n, generator=generator)[:32]
        output = IntactVAEOutput(image, codes[rows], zero, codes[rows], zero, zero, zero[0, :1])
        subject = {"subject": rows} if known else {}
        loss(output, image, treatment=treatment[rows], **subject)
    return found[-1]


def test_the_balance_of_subjects_that_the_memory_holds_several_times_is_not_of_their_repeats():
    known, unknown = (
        np.mean([balance_of_repeats(known, seed) for seed in range(8)]) for known in (True, False)
    )
    assert abs(known) < 0.02
    assert unknown > 0.03


def test_subjects_in_memory_are_known_again_in_training():
    seen = []

    class Spy(IntactVAELoss):
        def forward(self, output, outcome, **targets):
            seen.append((targets["subject"], outcome))
            return super().forward(output, outcome, **targets)

    data = tabular(24).data
    train_intact(small(outcome_dim=1, in_channels=0, covariates=3), data, Spy(), 6, 8)
    assert len({int(row) for rows, _ in seen for row in rows}) == 24
    assert all(torch.equal(data.outcome[rows], outcome) for rows, outcome in seen)


def test_codes_trained_for_balance_tell_the_treatment_less():
    truth = discs(400, 16, 2, seed=0)
    told = []
    for weight in (0.0, 1000.0):
        torch.manual_seed(0)
        network = small(image_size=16, covariates=3, latent_dim=8)
        loss = IntactVAELoss(0.1, weight, latent_dim=8, treatments=2)
        train_intact(network, truth.data, loss, 150, 64, 5e-3)
        outcome, treatment, x, _ = truth.data
        with torch.no_grad():
            codes = network.encode(outcome, treatment, x)[0]
        told.append(treatment_predictability(codes.numpy(), x.numpy(), treatment.numpy()))
    assert told[0] > 0.1
    assert told[1] < told[0] / 2


def test_missing_covariates_are_masked_within_the_network():
    encoder = CovariateEncoder(COVARIATES)
    missing = float("nan")
    columns = encoder(torch.tensor([[0.5, 1.0, 2.0], [missing] * 3, [1e9, 0.0, 0.0]]))
    expected = [
        [0.5, 0, 0, 1, 0, 0, 0, 1, 0],
        [0, 1, 0, 0, 1, 0, 0, 0, 1],
        [8, 0, 1, 0, 0, 1, 0, 0, 0],  # a value on a wild scale counts as 8 sd
    ]
    assert torch.equal(columns, torch.tensor(expected, dtype=columns.dtype))
    assert encoder.columns == 9
    network = small().eval()
    outcome, treatment, x, _ = batch(network)
    x[0] = missing
    assert torch.isfinite(network(outcome, treatment, x).reconstruction).all()


def test_an_ordinal_covariate_counts_the_steps_that_it_has_reached():
    encoder = CovariateEncoder((-3, 0))
    columns = encoder(torch.tensor([[0, 0.5], [1, 0.5], [2, 0.5], [float("nan"), 0.5]]))
    expected = [[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 0, 1]]
    assert torch.equal(columns[:, :3], torch.tensor(expected, dtype=columns.dtype))
    assert torch.equal(columns[:, 3], torch.full((4,), 0.5))
    assert encoder.columns == 5


@pytest.mark.parametrize("wrong", [2.0, -1.0, 0.7, float("inf")])
@pytest.mark.parametrize("classes", [2, -2], ids=["categorical", "ordinal"])
def test_a_covariate_that_is_no_class_is_refused(classes, wrong):
    network = small(covariates=(0, classes))
    outcome, treatment, *_ = batch(network)
    x = torch.zeros(6, 2)
    x[1:3, 1] = torch.tensor([float("nan"), wrong])
    with pytest.raises(ValueError, match="covariate 1 must hold class numbers, 0 to 1, or NaN"):
        network(outcome, treatment, x)


@pytest.mark.parametrize("wrong", [2, -1])
def test_a_treatment_that_is_no_arm_is_refused(wrong):
    network = small()
    outcome, treatment, x, _ = batch(network)
    treatment[3] = wrong
    with pytest.raises(ValueError, match="numbers of arms, 0 to 1"):
        network.encode(outcome, treatment, x)
    with pytest.raises(ValueError, match="numbers of arms, 0 to 1"):
        network.decode(torch.zeros(6, 3), treatment)


def test_arms_are_mixed_by_shares_in_the_decoder_and_never_in_the_encoder():
    network = small().eval()
    outcome, treatment, x, _ = batch(network)
    z = network.encode(outcome, treatment, x)[0]
    shares = torch.nn.functional.one_hot(treatment, 2).float()
    assert torch.equal(network.decode(z, treatment), network.decode(z, shares))
    with pytest.raises(ValueError, match="whole numbers"):
        network.encode(outcome, shares, x)
    before = network.decode(z, treatment)
    with torch.no_grad():
        network.arm_scales[0].weight[:, 1] += 0.5  # of arm 1 alone
    changed = (network.decode(z, treatment) - before).flatten(1).abs().amax(1) > 0
    assert torch.equal(changed, treatment == 1)


def test_the_network_of_the_bundle_has_the_same_weights_and_takes_an_image_alone():
    network = small().eval()
    alone = IntactVAEReconstruction(2, 1, 8, COVARIATES, 2, 3, (4, 4), (2, 2), (8,), (8,)).eval()
    alone.load_state_dict(network.state_dict())
    outcome, treatment, x, _ = batch(network)
    expected = network(outcome, treatment, x).reconstruction
    assert torch.equal(alone(outcome, treatment, x), expected)
    assert alone(outcome).shape == outcome.shape


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spatial_dims": 4}, "spatial_dims must be 2 or 3"),
        ({"image_size": 9}, "divisible by the product of the strides, 4"),
        ({"image_size": (8, 8, 8)}, "must have 2 entries"),
        ({"strides": (2,)}, "one entry for each of the 2 channels"),
        ({"treatments": 1}, "treatments must be at least 2"),
        ({"covariates": (0, 1)}, "0 \\(continuous\\) or at least 2 classes"),
        ({"in_channels": 0}, "there is no outcome"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        small(**changes)


def test_the_likelihood_bound_rises_with_the_draws_to_the_exact_one():
    network = small(outcome_dim=1, in_channels=0, covariates=1, latent_dim=1)
    with torch.no_grad():  # decoder linear in z, posterior wide: log p(y|x,t) is known
        for parameter in network.parameters():
            parameter.zero_()
    data = tabular(50).data
    data = data._replace(covariates=data.covariates[:, :1])
    exact = torch.distributions.Normal(0.0, 1.0).log_prob(data.outcome[:, 0])
    torch.testing.assert_close(log_likelihood(network, data, 4), exact)
    with torch.no_grad():
        network.prior_net.output.bias[0] = 1.0  # prior N(1, 1), posterior N(0, 1)
        network.posterior_net.output.bias[0] = -1.0
    few, many = (log_likelihood(network, data, draws).mean() for draws in (1, 500))
    assert few < many - 0.3
    torch.testing.assert_close(many, exact.mean(), atol=0.1, rtol=0)


def fitted(overlap, seed, n=1500, beta=1.0, steps=250, **changes):
    truth = tabular(n, overlap, seed)
    torch.manual_seed(seed)
    network = IntactVAE(
        in_channels=0,
        covariates=3,
        latent_dim=1,
        outcome_dim=1,
        hidden_channels=(64, 64),
        prior_channels=(64, 64),
        **changes,
    )
    train_intact(network, truth.data, IntactVAELoss(beta), steps, 150, 1e-2, seed=seed)
    with torch.no_grad():
        z, _ = network.encode(*truth.data[:3])
        arms = [network.decode(z, torch.full((n,), arm)) for arm in (0, 1)]
        prior = network.prior(truth.data.covariates)[0]
    effects = (arms[1] - arms[0])[:, 0].numpy()
    exact = (truth.potential[:, 1] - truth.potential[:, 0])[:, 0].numpy()
    score = 0.0
    if network.learned_prior:
        score = abs(np.corrcoef(prior[:, 0], truth.score)[0, 1])
    return truth, effects, exact, score


def errors(overlap, seeds=2, **changes):
    found = [fitted(overlap, seed, **changes) for seed in range(seeds)]
    means = [abs(effects.mean() - exact.mean()) for _, effects, exact, _ in found]
    roots = [pehe(effects, exact) for _, effects, exact, _ in found]
    naive = [
        abs(float(difference_of_means(t.data.outcome, t.data.treatment)[0]) - exact.mean())
        for t, _, exact, _ in found
    ]
    return np.mean(means), np.mean(roots), np.mean(naive), min(score for *_, score in found)


def test_effects_of_a_table_are_found_where_arms_overlap():
    mean, root, naive, score = errors(1.0)
    assert mean <= 0.15
    assert root <= 0.30
    assert naive >= 1.0
    assert score >= 0.98


def test_effects_of_a_table_are_found_with_little_overlap():
    mean, root, naive, _ = errors(4.0)
    assert mean <= 0.35
    assert root <= 0.7
    assert 3 * mean <= naive


def test_outside_the_overlap_the_error_is_below_that_of_neighbours():
    truth, effects, exact, _ = fitted(4.0, 0)
    outside = outside_overlap(propensity(truth.data.covariates, truth.data.treatment))
    assert 0.35 < outside.mean() < 0.65
    given = (part.numpy() for part in truth.data[:3])
    neighbours = t_learner(*given)[:, 0]
    ours, theirs = (pehe(found[outside], exact[outside]) for found in (effects, neighbours))
    assert ours < theirs
    assert ours > pehe(effects[~outside], exact[~outside])  # and still larger than inside


def test_without_the_learned_prior_the_effect_is_lost():
    mean, *_ = errors(1.0, seeds=1, learned_prior=False)
    assert mean >= 1.0


def test_training_repeats_and_leaves_the_random_state_alone():
    states = []
    for _ in range(2):
        torch.manual_seed(1)
        network = small(outcome_dim=1, in_channels=0, covariates=3)
        before = torch.get_rng_state()
        train_intact(network, tabular(60).data, steps=12, batch_size=20)
        assert torch.equal(before, torch.get_rng_state())
        states.append(network.state_dict())
    for name, one in states[0].items():
        assert torch.equal(one, states[1][name])
    assert not network.training
