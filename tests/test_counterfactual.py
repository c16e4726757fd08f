"""Counterfactuals: what they must be whatever the network, and truth of images and volumes."""

import inspect

import numpy as np
import pytest
import torch
from known_effects import balls, discs
from test_intact_vae import batch, small

from medvae.engines import TreatmentData, beta, choose_beta, train_intact
from medvae.engines.beta import BetaScore, apply_rule
from medvae.explain import CounterfactualInferer, counterfactual, from_covariates
from medvae.losses import IntactVAELoss
from medvae.networks import IntactVAE

DIMS = pytest.mark.parametrize("spatial_dims", [2, 3])


@DIMS
def test_the_own_treatment_gives_the_reconstruction_bit_for_bit(spatial_dims):
    network = small(spatial_dims).train()
    image, treatment, x, _ = batch(network)
    found = counterfactual(network, image, x, treatment, treatment)
    assert network.training
    assert torch.equal(found.outcome, network.eval()(image, treatment, x).reconstruction)
    assert not found.difference.any()
    assert not found.uncertainty.any()


@DIMS
def test_kept_noise_is_what_the_network_leaves_out_of_the_image(spatial_dims):
    network = small(spatial_dims).eval()
    image, treatment, x, _ = batch(network)
    own = counterfactual(network, image, x, treatment, treatment, keep_noise=True)
    assert torch.equal(own.outcome, image)
    plain, kept = (
        counterfactual(network, image, x, treatment, 1 - treatment, 0.5, keep_noise=keep)
        for keep in (False, True)
    )
    assert torch.equal(plain.difference, kept.difference)
    noise = image - network(image, treatment, x).reconstruction
    torch.testing.assert_close(kept.outcome, plain.outcome + noise)
    with pytest.raises(ValueError, match="keep_noise needs the image"):
        CounterfactualInferer(1, alone=True, keep_noise=True)


@DIMS
def test_the_code_is_made_with_the_treatment_that_was_given(spatial_dims):
    network = small(spatial_dims).eval()
    image, treatment, x, _ = batch(network)
    seen = []
    encode = network.encode

    def spy(outcome, arm, *others):
        seen.append(arm)
        return encode(outcome, arm, *others)

    network.encode = spy
    found = counterfactual(network, image, x, treatment, 1 - treatment)
    assert all(torch.equal(arm, treatment) for arm in seen)
    assert len(seen) == 1
    code = encode(image, treatment, x)[0]
    assert torch.equal(found.outcome, network.decode(code, 1 - treatment))
    assert "encode" not in " ".join(inspect.signature(counterfactual).parameters)


def test_a_strength_that_nobody_had_is_refused_unless_asked_for_and_then_marked():
    network = small()
    image, treatment, x, _ = batch(network)
    for strength in (-0.5, 1.5):
        with pytest.raises(ValueError, match="extrapolate=True"):
            counterfactual(network, image, x, treatment, 1, strength)
        assert counterfactual(network, image, x, treatment, 1, strength, True).extrapolated
    half = counterfactual(network, image, x, treatment, 1, 0.5)
    assert not half.extrapolated
    none = counterfactual(network, image, x, treatment, 1, 0.0)
    torch.testing.assert_close(none.difference, torch.zeros_like(none.difference))


def test_uncertainty_is_the_spread_over_codes_and_networks():
    networks = [small(), small()]
    with torch.no_grad():
        for parameter in networks[1].parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=_seeded(1)))
    image, treatment, x, _ = batch(networks[0])
    one, other, both = (
        counterfactual(which, image, x, treatment, 1 - treatment, samples=0)
        for which in (networks[0], networks[1], networks)
    )
    assert not one.uncertainty.any()
    torch.testing.assert_close(both.difference, (one.difference + other.difference) / 2)
    spread = (one.difference - other.difference).abs() / 2
    torch.testing.assert_close(both.uncertainty, spread)
    drawn = counterfactual(networks[0], image, x, treatment, 1 - treatment, samples=8)
    again = counterfactual(networks[0], image, x, treatment, 1 - treatment, samples=8)
    assert drawn.uncertainty.mean() > 0
    assert torch.equal(drawn.uncertainty, again.uncertainty)


def test_subjects_outside_the_overlap_are_named():
    network = small()
    image, treatment, x, _ = batch(network)
    rare = torch.tensor([0.5, 0.01, 0.06, 0.99, 0.5, 0.5])
    probabilities = torch.stack([1 - rare, rare], 1)
    found = counterfactual(network, image, x, treatment, 1, probabilities=probabilities)
    assert found.outside.tolist() == [False, True, False, True, False, False]
    assert from_covariates(network, x, 1, probabilities=probabilities).outside.sum() == 2


def test_subjects_without_an_image_are_decoded_from_the_prior():
    network = small().eval()
    *_, x, _ = batch(network)
    found = from_covariates(network, x, 1)
    code = network.prior(x)[0]
    ones = torch.ones(6, dtype=torch.long)
    assert torch.equal(found.outcome, network.decode(code, ones))
    torch.testing.assert_close(
        found.difference, network.decode(code, ones) - network.decode(code, 0 * ones)
    )
    assert found.uncertainty.mean() > 0


def test_a_strength_holds_for_subjects_without_an_image_as_well():
    network = small().eval()
    *_, x, _ = batch(network)
    none, half, whole = (from_covariates(network, x, 1, strength) for strength in (0.0, 0.5, 1.0))
    assert not none.difference.any()
    shares = torch.full((6, 2), 0.5)
    assert torch.equal(half.outcome, network.decode(network.prior(x)[0], shares))
    assert (half.outcome - whole.outcome).abs().max() > 1e-3
    with pytest.raises(ValueError, match="extrapolate=True"):
        from_covariates(network, x, 1, 1.5)
    assert from_covariates(network, x, 1, 1.5, True).extrapolated
    asked = CounterfactualInferer(1, 0.5, alone=True)(None, network, None, x)
    assert torch.equal(asked["counterfactual"], half.outcome)


def test_arms_that_do_not_exist_are_refused():
    network = small()
    image, treatment, x, _ = batch(network)
    with pytest.raises(ValueError, match="whole numbers from 0 to 1"):
        counterfactual(network, image, x, treatment, 2)
    with pytest.raises(ValueError, match="whole numbers from 0 to 1"):
        counterfactual(network, image, x, treatment[:3], 1)
    with pytest.raises(ValueError, match="see strength"):
        counterfactual(network, image, x, treatment.float(), 1)
    with pytest.raises(ValueError, match="at least one"):
        counterfactual([], image, x, treatment, 1)


TRUTH = {2: (16, 1000, 0.05), 3: (8, 700, 0.06)}  # size, subjects, error of a counterfactual


def trained(truth, spatial_dims, size, beta=10.0, steps=200):
    torch.manual_seed(0)
    network = IntactVAE(
        spatial_dims,
        1,
        size,
        3,
        latent_dim=4,
        channels=(8, 16),
        strides=(2, 2),
        prior_channels=(64, 64),
    )
    return train_intact(network, truth.data, IntactVAELoss(beta), steps, 64, 5e-3)


@DIMS
def test_the_effect_on_an_image_is_found_where_it_is_and_nowhere_else(spatial_dims):
    size, subjects, tolerance = TRUTH[spatial_dims]
    truth = discs(subjects, size, spatial_dims)
    network = trained(truth, spatial_dims, size)
    image, treatment, x, _ = truth.data
    found = counterfactual(network, image, x, treatment, 1 - treatment, samples=0)
    rows = torch.arange(len(image))
    exact = truth.potential[rows, 1 - treatment]
    assert (found.outcome - exact).abs().mean() <= tolerance
    sign = (1.0 - 2.0 * treatment).reshape(-1, *(1,) * (spatial_dims + 1))
    effect = (sign * found.difference).mean(0)[0].numpy()
    inside = balls(size, spatial_dims)[0]
    naive = (image[treatment == 1].mean(0) - image[treatment == 0].mean(0))[0].numpy()
    assert naive[inside].mean() > 2.8
    assert effect[inside].mean() == pytest.approx(2.0, abs=0.1)
    assert np.abs(effect[~inside]).mean() <= 0.05
    own = counterfactual(network, image, x, treatment, treatment, samples=0).outcome
    assert (own - image).square().mean() <= 1.1 * 0.3**2
    back = counterfactual(network, found.outcome, x, 1 - treatment, treatment, samples=0)
    assert (back.outcome - own).abs().mean() <= (own - image).abs().mean()


def test_where_there_is_no_effect_none_is_found():
    truth = discs(1000, effect=0.0)
    network = trained(truth, 2, 16)
    image, treatment, x, _ = truth.data
    found = counterfactual(network, image, x, treatment, 1 - treatment, samples=0)
    sign = (1.0 - 2.0 * treatment).reshape(-1, 1, 1, 1)
    effect = (sign * found.difference).mean(0)[0].numpy()
    assert abs(effect[balls(16, 2)[0]].mean()) <= 0.05


def test_the_rule_finds_a_beta_that_works():
    truth = discs(800)
    rows = torch.arange(800)

    def make():
        return IntactVAE(2, 1, 16, 3, latent_dim=4, channels=(8, 8), strides=(2, 2))

    parts = truth.data.rows(rows[:500]), truth.data.rows(rows[500:])
    choice = choose_beta(make, *parts, grid=(1.0, 4.0, 64.0), steps=120, learning_rate=5e-3)
    assert choice.balanced
    assert choice.beta == 4.0  # of [4, 20]
    errors = [score.reconstruction for score in choice.scores]
    assert errors[1] == pytest.approx(errors[0], rel=0.1)  # reconstruction does not tell


def _score(beta, likelihood, predictability):
    return BetaScore(beta, likelihood, (likelihood,) * 2, predictability, 0.1)


def test_the_rule_takes_the_most_balanced_of_what_data_do_not_tell_apart():
    arms = np.arange(100) % 2
    noise = np.random.default_rng(0).normal(size=100)
    scores = [_score(1, 5, 0.1), _score(2, 4, 0.02), _score(4, 3.5, 0.0), _score(8, 2, 0.0)]
    likelihoods = [np.full(100, 5.0), np.full(100, 4.0), 3.5 + 0.1 * noise, np.full(100, 2.0)]
    choice = apply_rule(scores, likelihoods, arms)
    assert (choice.beta, choice.balanced) == (4, True)
    assert choice.scores[3].deficit == 2
    leaking = [_score(1, 5, 0.3), _score(2, 4, 0.1)]
    choice = apply_rule(leaking, likelihoods[:2], arms)
    assert (choice.beta, choice.balanced) == (2, False)


def test_rows_of_one_patient_count_as_one_in_the_standard_error():
    generator = np.random.default_rng(0)
    arms, likelihood = np.arange(100) % 2, generator.normal(size=100)
    scores, likelihoods = [_score(1, 5, 0.0), _score(2, 4, 0.0)], [likelihood, np.full(100, -1.0)]

    def error(copies, patients=None):
        rows = [np.repeat(column, copies) for column in likelihoods]
        return apply_rule(scores, rows, np.repeat(arms, copies), patients).scores[1].standard_error

    single = error(1)
    by_hand = np.sqrt(sum(likelihood[arms == arm].var() / 50 for arm in (0, 1)) / 4)
    assert single == pytest.approx(by_hand)
    assert error(4, np.repeat(np.arange(100), 4)) == pytest.approx(single)
    assert error(4) == pytest.approx(single / 2)
    # one patient in both arms: what it adds to both is one draw
    assert error(1, np.arange(100) // 2) == pytest.approx(
        np.sqrt(((likelihood - _of_arm(likelihood, arms)).reshape(50, 2).sum(1) ** 2).sum()) / 100
    )


def _of_arm(values, arms):
    return np.array([values[arms == arm].mean() for arm in arms])


def test_codes_of_two_rows_of_a_patient_do_not_tell_its_treatment(monkeypatch):
    monkeypatch.setattr(beta, "train_intact", lambda network, *_, **__: network)
    monkeypatch.setattr(beta, "log_likelihood", lambda _, data, **__: torch.zeros(len(data[0])))

    def make():
        network = small(latent_dim=40, hidden_channels=(64,))
        first = next(m for m in network.posterior_net.modules() if isinstance(m, torch.nn.Linear))
        with torch.no_grad():
            first.weight[:, -2:] = 0  # codes of an image, whatever its arm
        return network

    patients = torch.arange(60).repeat_interleave(2)
    outcome, _, x, _ = batch(small(), 60)
    told: dict[bool, list] = {False: [], True: []}
    for seed in range(4):
        treatment = torch.randperm(60, generator=_seeded(seed)) % 2
        data = TreatmentData(outcome, treatment, x).rows(patients)
        for known, gains in told.items():
            given = patients.numpy() if known else None
            choice = choose_beta(make, data, data, (1.0,), patients=given)
            gains.append(choice.scores[0].predictability)
    assert np.mean(told[False]) > 0.08
    assert abs(np.mean(told[True])) < 0.06
    with pytest.raises(ValueError, match="one per row"):
        choose_beta(make, data, data, (1.0,), patients=patients.numpy()[:5])


def test_every_beta_is_tried_with_the_balance_of_the_training(monkeypatch):
    seen = []

    def trained(network, data, loss, *others, **options):
        seen.append((loss.beta, loss.balance_weight, loss.balance.sizes))
        return network

    monkeypatch.setattr(beta, "train_intact", trained)
    network = small()
    outcome, treatment, x, _ = batch(network, 60)
    data = TreatmentData(outcome, treatment, x)
    choose_beta(small, data, data, grid=(1.0, 4.0), balance_weight=7.0)
    assert seen == [(1.0, 7.0, [3, 2]), (4.0, 7.0, [3, 2])]


def test_an_empty_grid_is_refused():
    with pytest.raises(ValueError, match="grid is empty"):
        choose_beta(small, TreatmentData(*batch(small())), TreatmentData(*batch(small())), ())


def _seeded(seed):
    return torch.Generator().manual_seed(seed)
