"""Measure the Attri-VAE of this package against the published one, rebuilt plainly.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_training_step.py --rounds 5

One process, one thread, both under the same allocator; every round runs all variants in random
order. Times are CPU times, since other programs move wall times far more; a ratio is the median of
the rounds' ratios, with its quartiles.
"""

import argparse
import contextlib
import copy
import os
import random
import time
from collections.abc import Callable, Iterator
from unittest import mock

import numpy as np
import torch
from published_attri_vae import (
    NUM_ATTRIBUTES,
    PublishedAttriVAE,
    published_attribute_loss,
    published_loss,
    published_optimizer,
)
from torch import Tensor, nn

from medvae.losses import AttributeRegularizationLoss, AttriVAELoss, attribute_regularization
from medvae.networks import AttriVAE
from medvae.networks.blocks import BatchNorm

Batch = tuple[Tensor, Tensor, Tensor]
Objective = Callable[[nn.Module, Batch], Tensor]
DELTA, BETA, GAMMA, L1 = 100.0, 2.0, 10.0, 5e-5


def cpu_seconds(variants: dict[str, Callable[[], object]], rounds: int) -> dict[str, np.ndarray]:
    """Time every variant once a round, in random order, after one round that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds + 1):
        for name in random.sample(list(variants), len(variants)):
            start = time.process_time()
            variants[name]()
            seconds[name].append(time.process_time() - start)
    return {name: np.array(values[1:]) for name, values in seconds.items()}


def print_ratios(title: str, seconds: dict[str, np.ndarray], bars: dict[str, float]) -> None:
    """Print each variant's time and its speed relative to the first one's."""
    peer = next(iter(seconds.values()))
    print(f"\n{title}\n{'':34}{'ms, median':>12}{'speed':>8}  {'quartiles':14}goal")
    for name, values in seconds.items():
        low, middle, high = np.quantile(peer / values, [0.25, 0.5, 0.75])
        goal = f">= {bars[name]}" if name in bars else ""
        spread = f"{low:.2f} - {high:.2f}"
        print(f"{name:34}{1e3 * np.median(values):12.1f}{middle:8.2f}  {spread:14}{goal}")


def make_batch(size: int) -> Batch:
    """Smooth random volumes in [0, 1], classes and attributes."""
    coarse = torch.rand(size, 1, 10, 10, 10)
    image = nn.functional.interpolate(coarse, size=(80, 80, 80), mode="trilinear")
    image = (image + 0.1 * torch.rand_like(image)).clamp(0, 1)
    return image, torch.randint(0, 2, (size,)), torch.rand(size, NUM_ATTRIBUTES)


def our_network(dropout: float = 0.25) -> nn.Module:
    """The published configuration in the memory format that is fast on CPU."""
    network = AttriVAE(dropout=dropout).to(memory_format=torch.channels_last_3d)
    if not any(isinstance(module, BatchNorm) for module in network.modules()):
        raise SystemExit("AttriVAE does not use medvae.networks.blocks: nothing to measure")
    return network


def our_objective(dtype: torch.dtype | None = None) -> Objective:
    """The published objective by this package's losses; `dtype` is that of the autocast."""
    attribute = AttributeRegularizationLoss(published=1.0, delta=DELTA)
    loss = AttriVAELoss(attribute, beta=BETA, gamma=GAMMA)

    def objective(network: nn.Module, batch: Batch) -> Tensor:
        image, label, attributes = batch
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            output = network(image)
        penalty = sum(parameter.abs().sum() for parameter in network.parameters())
        return loss(output, image, attributes, label)["loss"] + L1 * penalty

    return objective


def published_objective(network: nn.Module, batch: Batch) -> Tensor:
    """The published objective as the authors computed it."""
    image, label, attributes = batch
    label = label.to(image.dtype).unsqueeze(1)
    output = network(image)
    return published_loss(network, output, image, label, attributes, BETA, GAMMA, DELTA, L1)


def training_step(network: nn.Module, objective: Objective, batch: Batch) -> Callable[[], None]:
    optimizer = published_optimizer(network)

    def step() -> None:
        optimizer.zero_grad()
        loss = objective(network, batch)
        loss.backward()
        optimizer.step()
        parameters = [p for p in network.parameters() if p.grad is not None]
        if not all(torch.isfinite(p.grad).all() for p in parameters):
            raise SystemExit(f"a gradient is not finite, the loss is {loss.item()}")

    return step


def bench_step(batch_size: int, rounds: int) -> None:
    batch = make_batch(batch_size)
    published = PublishedAttriVAE()
    ours, ours_bf16 = our_network(), our_network()
    counts = [sum(p.numel() for p in n.parameters()) for n in (published, ours)]
    if counts != [340_676, 340_674]:
        raise SystemExit(f"expected 340,676 and 340,674 parameters, found {counts}")
    variants = {
        "published": training_step(published, published_objective, batch),
        "medvae": training_step(ours, our_objective(), batch),
        "medvae, bf16 autocast": training_step(ours_bf16, our_objective(torch.bfloat16), batch),
    }
    bars = {"medvae": 1.5, "medvae, bf16 autocast": 1.6}
    title = f"training step, batch {batch_size}, 1x80^3"
    print_ratios(title, cpu_seconds(variants, rounds), bars)


@contextlib.contextmanager
def fixed_noise(noise: Tensor) -> Iterator[None]:
    with mock.patch.object(torch, "randn_like", lambda like: noise.to(like)):
        yield


def gradient(network: nn.Module, objective: Objective, batch: Batch, noise: Tensor) -> Tensor:
    network.zero_grad()
    with fixed_noise(noise):
        objective(network, batch).backward()
    grads = [p.grad for p in network.parameters() if p.grad is not None]
    return torch.cat([grad.double().flatten() for grad in grads])


def distance_from_float64(
    network: nn.Module, objective: Objective, batch: Batch, noise: Tensor
) -> float:
    """Return the relative distance of the gradient from the same network's in float64."""
    exact_network = copy.deepcopy(network).to(memory_format=torch.contiguous_format).double()
    image, label, attributes = batch
    exact = gradient(exact_network, objective, (image.double(), label, attributes.double()), noise)
    found = gradient(network, objective, batch, noise)
    return float((found - exact).norm() / exact.norm())


def bench_gradient(batch_size: int, seeds: int) -> None:
    """Print how far the gradients are from float64, without dropout and with fixed noise."""
    print(f"\ndistance of the gradient from float64, batch {batch_size}, the same weights in both")
    distances = []
    for seed in range(seeds):
        torch.manual_seed(seed)
        batch, noise = make_batch(batch_size), torch.randn(batch_size, 64)
        published, ours = PublishedAttriVAE(dropout=0.0), our_network(dropout=0.0)
        with torch.no_grad():
            for mine, theirs in zip(ours.parameters(), published.parameters(), strict=False):
                mine.copy_(theirs)
        theirs = distance_from_float64(published, published_objective, batch, noise)
        mine = distance_from_float64(ours, our_objective(), batch, noise)
        half = gradient(ours, our_objective(torch.bfloat16), batch, noise)
        single = gradient(ours, our_objective(), batch, noise)
        cosine = float(nn.functional.cosine_similarity(half, single, dim=0))
        distances.append((theirs, mine))
        print(
            f"seed {seed}: published {theirs:.1e}, medvae {mine:.1e}; "
            f"cosine of the bf16 gradient with float32's {cosine:.4f}"
        )
    theirs, mine = np.median(distances, 0)
    print(f"median: published {theirs:.1e}, medvae {mine:.1e}, ratio {mine / theirs:.2f}")
    print("goal: ratio <= 1.2; single seeds vary, by units that change sides of a ReLU's kink")


def bench_batch_norm(batch_size: int) -> None:
    """Print the error of the statistics of a channels-last tensor, in standard deviations."""
    print(f"\nbatch statistics of {batch_size}x8x80^3, channels last: error of the mean / variance")
    shape = (batch_size, 8, 80, 80, 80)
    x = (0.5 * torch.randn(shape) + 1.0).contiguous(memory_format=torch.channels_last_3d)
    planes = [x[:, channel].double() for channel in range(8)]
    var, mean = torch.stack([torch.stack(torch.var_mean(plane)) for plane in planes], 1)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for name, layer in {
            "torch": nn.BatchNorm3d(8, momentum=1.0),
            "medvae": BatchNorm(8, momentum=1.0),
        }.items():
            with torch.no_grad():
                layer(x)
            error = ((layer.running_mean - mean) / var.sqrt()).abs().max()
            relative = (layer.running_var / var - 1).abs().max()
            goal = "   goal <= 1e-5" if name == "medvae" else ""
            print(f"{name:8}{threads} thread(s): {error:.1e} / {relative:.1e}{goal}")
    torch.set_num_threads(1)


def bench_inference(rounds: int) -> None:
    published, ours = PublishedAttriVAE().eval(), our_network().eval()
    one, eight = make_batch(1)[0], make_batch(8)[0]
    cases = {
        "codes of one volume": (lambda network: network.encode(one), 2.0),
        "whole network on one volume": (lambda network: network(one), 1.0),
        "whole network on eight volumes": (lambda network: network(eight), 1.5),
    }
    for title, (run, bar) in cases.items():
        variants = {
            "published": lambda run=run: run(published),
            "medvae": lambda run=run: run(ours),
        }
        with torch.no_grad():
            print_ratios(f"inference: {title}", cpu_seconds(variants, rounds), {"medvae": bar})


def bench_attribute_loss(batch_size: int, rounds: int) -> None:
    z = torch.randn(batch_size, NUM_ATTRIBUTES, requires_grad=True)
    attributes = torch.rand(batch_size, NUM_ATTRIBUTES)
    losses = {"published": published_attribute_loss, "medvae": attribute_regularization}

    def repeat(loss: Callable[[Tensor, Tensor, float], Tensor]) -> None:
        for _ in range(20):
            loss(z, attributes, DELTA).backward()

    variants = {name: lambda loss=loss: repeat(loss) for name, loss in losses.items()}
    values = [float(loss(z, attributes, DELTA).detach()) for loss in losses.values()]
    title = f"attribute loss x20, {batch_size}x{NUM_ATTRIBUTES}: {values[0]:.6f}, {values[1]:.6f}"
    print_ratios(title, cpu_seconds(variants, rounds), {"medvae": 4.0})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--gradient-batch-size", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=5, help="of the gradients; 0 skips them")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    random.seed(0)
    allocator = {k: v for k, v in os.environ.items() if "MALLOC" in k or k.startswith("THP_")}
    print(f"torch {torch.__version__}, 1 thread, allocator settings: {allocator or 'default'}")
    bench_step(arguments.batch_size, arguments.rounds)
    if arguments.seeds > 0:
        bench_gradient(arguments.gradient_batch_size, arguments.seeds)
    bench_batch_norm(arguments.batch_size)
    bench_inference(arguments.rounds)
    bench_attribute_loss(16, 4 * arguments.rounds)


if __name__ == "__main__":
    main()
