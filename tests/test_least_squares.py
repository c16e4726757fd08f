"""Axes that are linear in moments, beside the normal equations."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.utils.data import DataLoader

from medvae.engines import (
    PrepareAttributes,
    class_probabilities,
    fit_decoder,
    fit_tied_axes,
    fit_trained_model,
)
from medvae.losses import AttriVAELoss, gaussian_reconstruction
from medvae.networks import AttriVAE
from medvae.networks.least_squares import LeastSquares


def rows(count: int = 60) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs that go together and differ in scale, and targets, some unknown."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(count, 5)) @ rng.normal(size=(5, 5)) * [1, 100, 1e-4, 1, 1]
    x += [0, 9, 0.05, 0, 0]
    x[:, 4] = 3 + 1e-8 * rng.normal(size=count)  # varies as single precision rounds
    y = x[:, :3] @ rng.normal(size=(3, 2)) + rng.normal(size=(count, 2))
    y[::7, 1] = np.nan
    return torch.as_tensor(x), torch.as_tensor(y)


@pytest.mark.parametrize("ridge", [1e-6, 1e-3, 0.5])
def test_equal_to_the_normal_equations(ridge: float) -> None:
    x, y = rows()
    reading = LeastSquares(5, 2).eval()
    reading.fit(x, y, ridge)
    mean, sd = x.mean(0), x.std(0, correction=0)
    z = torch.where(sd > 1e-6, (x - mean) / sd, 0.0)
    z = torch.cat([z, torch.ones(len(z), 1)], 1)
    penalty = ridge * torch.eye(6).double()
    penalty[-1, -1] = 0  # not of the intercept
    penalty[4, 4] = 1
    for k in range(2):
        known = ~y[:, k].isnan()
        part, n = z[known], known.sum()
        slopes = torch.linalg.solve(part.T @ part / n + penalty, part.T @ y[known, k] / n)
        torch.testing.assert_close(
            reading(x.float())[:, k].double(), z @ slopes, rtol=1e-3, atol=2e-3
        )
    assert not reading.line.weight[:, 4].any()


def test_beyond_the_range_it_was_fitted_in_a_reading_hardly_grows() -> None:
    torch.manual_seed(0)
    x = torch.rand(50, 1)
    y = 2 * x
    reading = LeastSquares(1, 1).eval()
    reading.fit(x, y, 1e-9)
    asked = torch.tensor([[-100.0], [-1.0], [0.4], [1.2], [100.0]], requires_grad=True)
    found = reading(asked)
    low, high = y.min().item(), y.max().item()
    scale = 0.1 * (high - low)
    for row, line in ((0, -200.0), (1, -2.0), (3, 2.4), (4, 200.0)):
        end = low if row < 2 else high
        bent = end + np.sign(line - end) * scale * np.log1p(abs(line - end) / scale)
        assert found[row].item() == pytest.approx(bent, rel=1e-3)
    assert found[2].item() == pytest.approx(0.8, rel=1e-3)
    assert (found.diff(dim=0) > 0).all()  # in order still
    found.sum().backward()
    assert (asked.grad > 1e-3).all()  # and a map of it is not empty


def test_what_nothing_is_known_of_is_0() -> None:
    x, y = rows()
    y[1:, 0] = torch.nan
    reading = LeastSquares(5, 2).eval()
    reading.fit(x, y)
    found = reading(x.float())
    assert not found[:, 0].any()
    assert found[:, 1].std() > 0.1


def test_single_precision_under_autocast() -> None:
    x, y = rows()
    reading = LeastSquares(5, 2).eval()
    reading.fit(x, y)
    with torch.autocast("cpu", torch.bfloat16):
        half = reading(x.float())
    assert torch.equal(half, reading(x.float()))


class _Scaler:
    names = ("area",)

    def transform(self, values: torch.Tensor) -> torch.Tensor:
        return (values - 25) / 15


def _small(**options: Any) -> AttriVAE:
    return AttriVAE(
        2,
        image_size=16,
        latent_dim=3,
        channels=(4, 8),
        strides=(2, 2),
        attribute_names=("area",),
        regions=1,
        region_channels=4,
        dropout=0.5,
        **options,
    )


def test_a_network_is_fitted_as_it_evaluates_and_left_in_its_mode() -> None:
    torch.manual_seed(0)
    vae = _small()
    vae(torch.rand(8, 1, 16, 16))  # running statistics that are not those of a batch
    images = torch.rand(24, 1, 16, 16) * torch.rand(24, 1, 1, 1)
    batches = [
        {"image": images[i : i + 8], "area": 50 * images[i : i + 8].mean((1, 2, 3))}
        for i in (0, 8, 16)
    ]
    vae.eval()
    known = vae.encode(images)[0][:, 0].detach()  # to the decoder
    vae.train()
    fit_tied_axes(vae, batches, PrepareAttributes(_Scaler(), label=False))
    assert vae.training
    vae.eval()
    statistics = vae.region_statistics(images)
    area = 50 * images.mean((1, 2, 3))
    area = known.mean() + (area - area.mean()) / area.std() * known.std()
    alone = LeastSquares(statistics.shape[1], 1).eval()
    alone.fit(statistics, area[:, None])
    torch.testing.assert_close(vae.encode(images)[0][:, :1], alone(statistics))
    assert torch.corrcoef(torch.stack([vae.encode(images)[0][:, 0], area]))[0, 1] > 0.9
    plain = AttriVAE(2, image_size=16, latent_dim=3, channels=(4,), strides=(2,))
    before = {name: value.clone() for name, value in plain.state_dict().items()}
    fit_tied_axes(plain, batches, PrepareAttributes(_Scaler(), label=False))
    assert all(torch.equal(before[name], value) for name, value in plain.state_dict().items())


def test_the_decoder_meets_axes_of_the_mean_and_spread_that_it_knows() -> None:
    """Also where an attribute is missing; an axis that said nothing takes the attribute's own."""
    torch.manual_seed(0)
    vae, images = _small(), torch.rand(40, 1, 16, 16) * torch.rand(40, 1, 1, 1)
    vae.tied_mean.line.weight.data.mul_(3)
    vae.tied_mean.line.bias.data.fill_(-1.5)
    area = 50 * images.mean((1, 2, 3))
    area[::4] = torch.nan
    batches, rows = [{"image": images, "area": area}], ~area.isnan()
    before = vae.eval().encode(images)[0][rows, 0]
    fit_tied_axes(vae, batches, PrepareAttributes(_Scaler(), label=False))
    after = vae.encode(images)[0][rows, 0]
    assert before.mean() < -3
    assert before.std() < 0.5
    torch.testing.assert_close(after.mean(), before.mean(), rtol=0, atol=0.02)
    torch.testing.assert_close(after.std(), before.std(), rtol=0.03, atol=0)
    silent = _small().eval()
    for parameter in silent.tied_mean.parameters():
        parameter.data.zero_()
    fit_tied_axes(silent, batches, PrepareAttributes(_Scaler(), label=False))
    found = silent.encode(images)[0][rows, 0]
    torch.testing.assert_close(found.std(), ((area[rows] - 25) / 15).std(), rtol=0.05, atol=0)


@pytest.mark.parametrize("classes", [1, 3])
def test_a_linear_head_on_these_axes_is_fitted_too(classes: int) -> None:
    """Its probabilities are a logistic regression's; one with hidden layers stays as it is."""
    torch.manual_seed(0)
    images = torch.rand(60, 1, 16, 16) * torch.rand(60, 1, 1, 1)
    area = 50 * images.mean((1, 2, 3))
    label = (area > 8).long() + (area > 16).long() * (classes > 1)
    label[::5] = -1
    batches = [{"image": images, "area": area, "label": label}]
    for hidden in ((), (4,)):
        vae = _small(num_classes=classes, head_axes=1, head_channels=hidden)
        before = [p.clone() for p in vae.head.parameters()]
        fit_tied_axes(vae, batches, PrepareAttributes(_Scaler()))
        after = list(vae.head.parameters())
        changed = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
        assert not any(changed) if hidden else all(changed)
    vae = _small(num_classes=classes, head_axes=1, head_channels=())
    fit_tied_axes(vae, batches, PrepareAttributes(_Scaler()))
    vae.eval()
    codes = vae.encode(images)[0]
    known = label >= 0
    model = LogisticRegression(C=1e3 / int(known.sum()), max_iter=5000)
    model.fit(codes[known, :1].detach().numpy(), label[known].numpy())
    expected = model.predict_proba(codes[:, :1].detach().numpy())
    found = class_probabilities(vae.classify(codes)).detach()
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert (found.argmax(1) == label)[known].float().mean() > 0.8


def test_the_decoder_is_fitted_to_the_codes_as_they_are_and_nothing_else_moves(tmp_path) -> None:
    torch.manual_seed(0)
    vae, images = _small(), torch.rand(24, 1, 16, 16) * torch.rand(24, 1, 1, 1)
    items = [{"image": image, "area": 50 * image.mean()} for image in images]
    data = DataLoader(items, batch_size=8, shuffle=True)
    prepare, loss = PrepareAttributes(_Scaler(), label=False), AttriVAELoss()
    fit_tied_axes(vae, data, prepare)
    before = {name: value.clone() for name, value in vae.state_dict().items()}

    def error() -> float:
        vae.eval()
        with torch.no_grad():
            again = vae.decode(vae.encode(images)[0])
        return float(gaussian_reconstruction(again, images))

    first = error()
    vae.train()
    options = {"loss": loss, "learning_rate": 0.01}
    fit_decoder(vae, data, prepare, epochs=20, **options)
    assert vae.training
    assert error() < 0.9 * first
    moved = {n for n, value in vae.state_dict().items() if not torch.equal(value, before[n])}
    assert {name.split(".")[0] for name in moved} == {"decoder", "expand"}
    assert all(parameter.grad is None for parameter in vae.parameters())

    # the last step of a training: once, whatever is called again, and by the seed
    path, weights = tmp_path / "model.pt", []
    for _ in range(2):
        torch.manual_seed(1)
        torch.save(_small().state_dict(), path)
        for _ in range(2):
            fit_trained_model(
                _small(), data, prepare, path, passes=1, decoder=partial(fit_decoder, **options)
            )
            weights.append(torch.load(path, weights_only=True))
    assert all(torch.equal(w[name], v) for w in weights for name, v in weights[0].items())
