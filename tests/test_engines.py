"""What the bundles hand to MONAI's engines, without a bundle."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from ignite.engine import Engine

from medvae.data import AttributeScaler, CohortError
from medvae.engines import (
    EvaluationStep,
    InterpretabilityMetric,
    PrepareAttributes,
    TrainingStep,
    class_probabilities,
)
from medvae.explain import Readout
from medvae.losses import AttributeRegularizationLoss, AttriVAELoss
from medvae.networks import AttriVAE

NAMES = ["volume_ml", "thickness_mm"]


@pytest.fixture
def scaler():
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {"volume_ml": rng.lognormal(3, 1, 50), "thickness_mm": rng.normal(9, 2, 50)}
    )
    return AttributeScaler(NAMES, log=["volume_ml"]).fit(table)


def batch(size=6):
    g = torch.Generator().manual_seed(1)
    return {
        "image": torch.rand(size, 1, 16, 16, generator=g),
        "volume_ml": torch.rand(size, generator=g) + 1,
        "thickness_mm": torch.tensor([9.0, torch.nan, 7.0, 8.0, 10.0, 11.0][:size]),
        "label": torch.tensor([0, 1, -1, 0, 1, 1][:size]),
    }


def engine(scaler, **options):
    torch.manual_seed(0)
    network = AttriVAE(
        2, image_size=(16, 16), latent_dim=4, channels=(4, 4), strides=(2, 2), hidden_channels=(8,)
    )
    return SimpleNamespace(
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=options.get("lr", 1e-3)),
        loss_function=AttriVAELoss(AttributeRegularizationLoss(regression=1.0), beta=1.0),
        inferer=lambda image, network: network(image),
        prepare_batch=PrepareAttributes(scaler),
        non_blocking=False,
        to_kwargs={},
        fire_event=lambda event: None,
        state=SimpleNamespace(device=torch.device("cpu"), epoch=3, iteration=7, output=None),
    )


def test_batches_are_scaled_and_keep_what_is_missing(scaler):
    image, targets = PrepareAttributes(scaler)(batch(), "cpu")
    assert type(image) is torch.Tensor
    assert targets["attributes"].shape == (6, 2)
    assert targets["attributes"][1].isnan().tolist() == [False, True]
    expected = (np.log(batch()["volume_ml"].numpy()) - scaler.mean[0]) / scaler.sd[0]
    np.testing.assert_allclose(targets["attributes"][:, 0], expected, rtol=1e-5)
    assert torch.equal(targets["label"], batch()["label"])
    assert PrepareAttributes(label=False)(batch())[1] == {}
    told = batch() | {"factors": np.zeros((6, 2)), "subject": np.arange(6)}
    assert PrepareAttributes(label=False)(told)[1]["subject"].tolist() == [0, 1, 2, 3, 4, 5]


def test_training_step_updates_and_reports_its_terms(scaler):
    trainer = engine(scaler)
    before = [p.detach().clone() for p in trainer.network.parameters()]
    (terms,) = TrainingStep()(trainer, batch())
    parts = [v for k, v in terms.items() if k != "loss"]
    torch.testing.assert_close(terms["loss"], torch.stack(parts).sum())
    assert not terms["loss"].requires_grad
    assert any(
        not torch.equal(a, b) for a, b in zip(before, trainer.network.parameters(), strict=True)
    )


def test_gradients_are_clipped(scaler):
    trainer = engine(scaler)
    TrainingStep(max_grad_norm=0.5)(trainer, batch())
    norm = torch.stack([p.grad.norm() for p in trainer.network.parameters() if p.grad is not None])
    assert norm.norm().item() <= 0.5 + 1e-4


def test_half_precision_keeps_a_float32_loss(scaler):
    trainer = engine(scaler)
    (terms,) = TrainingStep(autocast=torch.bfloat16)(trainer, batch())
    assert all(value.dtype == torch.float32 for value in terms.values())
    assert all(p.grad.isfinite().all() for p in trainer.network.parameters())


def test_a_loss_that_is_not_finite_stops_before_it_spoils_the_weights(scaler):
    trainer = engine(scaler)
    bad = batch()
    bad["image"][0] = torch.nan
    before = [p.detach().clone() for p in trainer.network.parameters()]
    with pytest.raises(FloatingPointError, match="epoch 3, iteration 7"):
        TrainingStep()(trainer, bad)
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.network.parameters(), strict=True))


def test_evaluation_step_is_deterministic(scaler):
    evaluator = engine(scaler)
    evaluator.network.train()
    first = EvaluationStep()(evaluator, batch())
    second = EvaluationStep()(evaluator, batch())
    assert first.keys() == {"pred", "logits", "mean", "log_var", "attributes", "label"}
    for name in ("pred", "logits", "mean", "log_var"):
        assert torch.equal(first[name], second[name])


@pytest.mark.parametrize("tied", [True, False])
def test_interpretability_metric(tied):
    g = torch.Generator().manual_seed(2)
    attributes = torch.randn(40, 2, generator=g)
    codes = torch.cat([torch.randn(40, 2, generator=g), attributes], 1)  # on the wrong axes
    runner = Engine(lambda engine, item: item)
    InterpretabilityMetric(tied).attach(runner, "r2")
    data = [
        {"mean": c, "attributes": a}
        for c, a in zip(codes.split(10), attributes.split(10), strict=True)
    ]
    value = runner.run(data).metrics["r2"]
    assert value < 0.3 if tied else value == pytest.approx(1.0)


def test_too_few_validation_rows_are_named():
    runner = Engine(lambda engine, item: item)
    InterpretabilityMetric().attach(runner, "r2")
    with pytest.raises(ValueError, match="3 validation rows"):
        runner.run([{"mean": torch.randn(3, 2), "attributes": torch.randn(3, 2)}])


def test_class_probabilities():
    binary = class_probabilities(torch.tensor([[0.0], [2.0]]))
    torch.testing.assert_close(binary.sum(1), torch.ones(2))
    assert binary[1, 1].item() == pytest.approx(1 / (1 + np.exp(-2)))
    assert class_probabilities(torch.randn(3, 5)).shape == (3, 5)
    assert class_probabilities(torch.zeros(3, 0)).shape == (3, 0)


def test_readout_recovers_attributes_in_their_units_and_inverts(scaler, tmp_path):
    rng = np.random.default_rng(3)
    attributes = np.c_[rng.lognormal(3, 1, 60), rng.normal(9, 2, 60)]
    codes = np.c_[rng.normal(size=(60, 1)), scaler.transform(attributes)[:, ::-1] * [2.0, -0.5] + 1]
    known = attributes.copy()
    known[:5, 1] = np.nan
    readout = Readout.fit(scaler, codes, known, axes=[2, 1])
    np.testing.assert_allclose(readout.attributes(codes), attributes, rtol=1e-9)
    np.testing.assert_allclose(readout.codes(attributes), codes[:, [2, 1]], rtol=1e-9)
    readout.save(tmp_path / "readout.json")
    again = Readout.load(tmp_path / "readout.json")
    np.testing.assert_array_equal(again.attributes(codes), readout.attributes(codes))
    with pytest.raises(CohortError, match="cannot be read"):
        Readout.load(tmp_path / "nothing.json")


def test_readout_of_an_axis_that_carries_nothing(scaler):
    attributes = np.c_[np.exp(np.linspace(0, 3, 20)), np.linspace(5, 12, 20)]
    codes = np.zeros((20, 2))
    readout = Readout.fit(scaler, codes, attributes)
    geometric = np.exp(np.log(attributes[:, 0]).mean())
    np.testing.assert_allclose(readout.attributes(codes)[:, 0], geometric)
    assert np.isnan(readout.codes(attributes)).all()
    with pytest.raises(ValueError, match="thickness_mm"):
        Readout.fit(scaler, codes, np.where([False, True], np.nan, attributes))
