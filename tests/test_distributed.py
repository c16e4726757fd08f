"""Two processes on the CPU train as one with the doubled batch, and what a rank's death does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from ignite.engine import Engine, Events
from ranks import of_two_ranks, said_by_two_ranks
from test_bundles import CONFIGS, run, training
from torch import Tensor, nn
from torch.multiprocessing import ProcessExitedException
from torch.nn.parallel import DistributedDataParallel

from medvae.data import phantoms
from medvae.engines import PrepareAttributes, TrainingStep
from medvae.engines.checkpoint import Checkpoint
from medvae.engines.steps import average_gradients
from medvae.losses import (
    AdversarialLeakageLoss,
    AttributeRegularizationLoss,
    AttriVAELoss,
    ControlLoss,
    FactorLoss,
    SubspaceLoss,
)
from medvae.networks import AttriVAE, SubspaceEncoder

STEPS, BATCH = 3, 4


NORMS = {"group": ("GROUP", {"num_groups": 2}), "instance": "INSTANCE"}


def network(norm: str) -> AttriVAE:
    torch.manual_seed(0)
    vae = AttriVAE(
        2, image_size=8, latent_dim=5, channels=(4, 4), strides=(2, 1), hidden_channels=(8,),
        dropout=0.0, norm=NORMS[norm], head_channels=(), num_classes=1,
    )  # fmt: skip
    nn.init.zeros_(vae.log_var.weight)
    nn.init.constant_(vae.log_var.bias, -40.0)  # no noise, which two processes draw differently
    return vae


def data() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(STEPS, 2 * BATCH, 1, 8, 8, generator=generator)
    attributes = torch.randn(STEPS, 2 * BATCH, 2, generator=generator)
    attributes[:, ::3, 1] = float("nan")
    labels = torch.randint(-1, 2, (STEPS, 2 * BATCH), generator=generator)
    return images, attributes, labels


def train(
    model: nn.Module, mine: slice, mean: bool, rank: int = 0
) -> tuple[list[float], list[Tensor], list[Tensor]]:
    """Return the losses, the gradients of the first step and the weights after the last."""
    form = AttributeRegularizationLoss(published=1.0, ranking=1.0, correlation=1.0, regression=1.0)
    loss = AttriVAELoss(form, beta=0.1, gamma=3.0, alpha=2.0, leakage=4.0, regularize_mean=mean)
    control = ControlLoss(tied=2, weight=5.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    losses, gradients = [], []
    for images, attributes, labels in zip(*data(), strict=True):
        optimizer.zero_grad()
        output = model(images[mine])
        value = loss(output, images[mine], attributes[mine], labels[mine])["loss"]
        torch.manual_seed(2 + rank)  # of the draws below, of which the first rank's count
        value = value + control(getattr(model, "module", model), output.mean)
        value.backward()
        losses.append(float(value.detach()))
        if not gradients:
            gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        optimizer.step()
    return losses, gradients, [p.detach().clone() for p in model.parameters()]


CASES = [("group", True), ("instance", False)]  # normalisation, regularize_mean


def of_rank(rank: int) -> dict[str, Any]:
    mine = slice(rank * BATCH, (rank + 1) * BATCH)
    return {
        norm: train(DistributedDataParallel(network(norm)), mine, mean, rank)
        for norm, mean in CASES
    }


@pytest.fixture(scope="module")
def found_by_ranks(tmp_path_factory: Any) -> list[dict[str, Any]]:
    return of_two_ranks(of_rank, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize(("norm", "mean"), CASES)
def test_two_ranks_equal_one_with_the_doubled_batch(
    found_by_ranks: Any, norm: str, mean: bool
) -> None:
    losses, gradients, weights = train(network(norm), slice(None), mean)
    ranks = [found[norm] for found in found_by_ranks]
    means = [(a + b) / 2 for a, b in zip(ranks[0][0], ranks[1][0], strict=True)]
    assert means == pytest.approx(losses, rel=1e-5)
    for expected, *found in zip(gradients, ranks[0][1], ranks[1][1], strict=True):
        assert torch.equal(*found)
        torch.testing.assert_close(found[0], expected, rtol=1e-4, atol=1e-5)
    for expected, *found in zip(weights, ranks[0][2], ranks[1][2], strict=True):
        torch.testing.assert_close(found[0], expected, rtol=1e-4, atol=1e-6)
    start = list(network(norm).parameters())
    assert any((a - b).abs().max() > 1e-3 for a, b in zip(weights, start, strict=True))


def multi_gpu(configs: Path) -> list[Path]:
    return [configs / name for name in ("train.yaml", "multi_gpu_train.yaml")]


def torchrun(settings: dict[str, Any], *overlays: Path) -> subprocess.Popen[str]:
    names = {"meta_file": CONFIGS / "metadata.json", "logging_file": CONFIGS / "logging.conf"}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command += ["--standalone", "-m", "monai.bundle", "run", "training"]
    command += [f"--config_file={[str(path) for path in (*multi_gpu(CONFIGS), *overlays)]}"]
    command += [f"--{key}={value}" for key, value in (settings | names).items()]
    return subprocess.Popen(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, encoding="utf-8",
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: Any) -> Path:
    root = tmp_path_factory.mktemp("cohort")
    phantoms(root / "data", 40, spatial_dims=2)
    return root


def test_the_bundle_runs_on_two_processes(cohort: Path) -> None:
    first, second = said_by_two_ranks(lambda: run(multi_gpu(CONFIGS), training(cohort, 2)), cohort)
    history = pd.read_csv(cohort / "eval" / "history.csv")
    assert list(history["epoch"]) == [1, 2]
    assert history["val_interpretability"].notna().all()
    for name in ("models/model.pt", "models/run.json", "eval/metrics.json", "eval/codes.png"):
        assert (cohort / name).exists()
    assert (first.count("Done: open"), second.count("Done: open")) == (1, 0)
    weights = torch.load(cohort / "models" / "model.pt", weights_only=True)
    assert not any(name.startswith("module.") for name in weights)


FACTORS = {
    "disentangled_encoder": {"channels": [4, 4, 8, 8]},
    "disentangled_gan_2d": {
        "channels": [8, 6, 4],
        "mapping_layers": 2,
        "drawn": 16,
        "judge_steps": 3,
    },
    "stylex": {
        # what so small a classifier learns: with one class there is nothing to explain
        "factors": {"size": {"column": "lv_area_mm2", "kind": "ordinal", "bins": [600]}},
        "channels": [8, 6],
        "latent_dim": 4,
        "mapping_layers": 2,
        "classifier_channels": [4, 4, 8, 8],
        "classifier_steps": 100,
        "judge_steps": 3,
        "search_images": 4,
        "found": 2,
    },
}


def of_factors(cohort: Path, name: str) -> dict[str, Any]:
    return {
        "subjects": str(cohort / "data" / "subjects.csv"),
        "spacing_mm": 6.0,
        "image_size": [16, 16],
        "fractions": [0.5, 0.2, 0.3],
        "max_epochs": 1,
        "batch_size": 4,
        "n_permutations": 1,
        "n_resamples": 2,
        **FACTORS[name],
    }


@pytest.mark.parametrize("name", FACTORS)
def test_bundles_of_factors_run_on_two_processes(cohort: Path, tmp_path: Path, name: str) -> None:
    settings = of_factors(cohort, name) | {"bundle_root": str(tmp_path)}
    first, second = said_by_two_ranks(
        lambda: run(multi_gpu(CONFIGS.parents[1] / name / "configs"), settings), tmp_path
    )
    for written in ("models/model.pt", "models/factors.json", "eval/report.html"):
        assert (tmp_path / written).exists()
    assert first.count("Done: open") == 1
    assert "training" in first  # its bars
    assert "training" not in second  # neither the classifier to be explained nor a judge
    assert len(pd.read_csv(tmp_path / "eval" / "history.csv")) == 1
    weights = torch.load(tmp_path / "models" / "model.pt", weights_only=True)
    assert not any(part.startswith("module.") for part in weights)


def averaged(rank: int) -> list[Tensor]:
    parameters = [nn.Parameter(torch.zeros(2)) for _ in range(2)]
    parameters[0].grad = torch.full((2,), float(rank))
    if rank == 1:  # a term that was due there alone
        parameters[1].grad = torch.full((2,), 3.0)
    average_gradients(parameters)
    return [p.grad for p in parameters]


def test_the_gans_gradients_are_means_over_the_ranks(tmp_path: Path) -> None:
    for first, second in of_two_ranks(averaged, tmp_path):
        assert first.tolist() == [0.5, 0.5]
        assert second.tolist() == [1.5, 1.5]


def adversarial(rank: int) -> list[Tensor]:
    """The weights of adversaries after a step on each rank's own images."""
    torch.manual_seed(0)
    kinds, outputs = {"scanner": "categorical"}, {"scanner": 2}
    rival = AdversarialLeakageLoss([2, 3], kinds, outputs)
    sizes = {"scanner": 2, "free": 3}
    loss = SubspaceLoss(FactorLoss(kinds, outputs), rival, sizes, {"scanner": 2})
    encoder = SubspaceEncoder(nn.Sequential(nn.Flatten(), nn.Linear(4, 5)), sizes, outputs)
    network = DistributedDataParallel(encoder)
    engine = SimpleNamespace(
        prepare_batch=PrepareAttributes(label=False), network=network, loss_function=loss,
        optimizer=torch.optim.SGD([*network.parameters(), *loss.parameters()], 0.1),
        inferer=lambda image, network: network(image), non_blocking=False, to_kwargs={},
        state=SimpleNamespace(device="cpu", epoch=1, iteration=1),
    )  # fmt: skip
    start = [p.detach().clone() for p in rival.parameters()]
    torch.manual_seed(1 + rank)
    factors = torch.arange(6)[:, None] % 2
    TrainingStep()(engine, {"image": torch.randn(6, 1, 2, 2), "factors": factors})
    assert any(not torch.equal(a, b) for a, b in zip(start, rival.parameters(), strict=True))
    return [p.detach().clone() for p in loss.parameters()]


def test_adversaries_stay_the_same_on_every_rank(tmp_path: Path) -> None:
    for first, second in zip(*of_two_ranks(adversarial, tmp_path), strict=True):
        assert torch.equal(first, second)


RESUMED = {"attri_vae": {"dropout": 0.2}, "disentangled_gan_2d": {"path_interval": 1}}


@pytest.mark.parametrize("name", RESUMED)
def test_two_ranks_resume_to_the_same_bits(
    cohort: Path, tmp_path: Path, monkeypatch: Any, name: str
) -> None:
    configs = multi_gpu(CONFIGS.parents[1] / name / "configs")
    every = training(cohort, 2) if name == "attri_vae" else of_factors(cohort, name)
    every |= RESUMED[name] | {"max_epochs": 3, "run": ["$@train::trainer.run()"]}

    def train(folder: Path) -> dict[str, Tensor]:
        folder.mkdir(exist_ok=True)
        folders = {"ckpt_dir": str(folder / "models"), "output_dir": str(folder / "eval")}
        said_by_two_ranks(lambda: run(configs, every | folders), folder)
        return torch.load(folder / "models" / "model.pt", weights_only=True)

    expected = train(tmp_path / "whole")
    seed = Checkpoint._seed

    def with_a_death(self: Checkpoint, engine: Engine) -> None:
        seed(self, engine)
        if engine.state.epoch == 2 and os.environ["RANK"] == "1":
            end = Events.ITERATION_COMPLETED(once=engine.state.iteration + 1)
            engine.add_event_handler(end, lambda: os.kill(os.getpid(), signal.SIGKILL))

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "_seed", with_a_death)
        with pytest.raises(ProcessExitedException, match="SIGKILL"):
            train(tmp_path / "killed")
    left = torch.load(tmp_path / "killed" / "models" / "checkpoint.pt", weights_only=True)
    assert left["epoch"] == 1
    found = train(tmp_path / "killed")
    assert all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_rank_that_dies_ends_the_others(cohort: Path, tmp_path: Path) -> None:
    folders = {"ckpt_dir": tmp_path / "models", "output_dir": tmp_path / "eval"}
    die = "$os.kill(os.getpid(), 9) if dist.get_rank() == 1 else None"
    settings = training(cohort, 2) | folders | {"max_epochs": 10_000}
    overlay = tmp_path / "die.yaml"
    overlay.write_text(yaml.safe_dump({"run": [die, "$@train::trainer.run()"]}))
    process = torchrun(settings, overlay)
    output, _ = process.communicate(timeout=300)  # far less than its epochs would take
    assert process.returncode != 0
    assert "Signal 9 (SIGKILL) received" in output
