"""What a beta-Intact-VAE costs beside a plain conditional VAE of the same size.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_intact.py --rounds 7

CPU time, medians over alternating rounds: a training step (the plain one has a standard normal
prior, which is not computed, and the mean squared error), and a counterfactual with its signed
difference beside one reconstruction.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import nn

from medvae.explain import counterfactual
from medvae.losses import IntactVAELoss, PublicCodeLoss
from medvae.networks import IntactVAE


def network(dims: int, size: int, learned: bool) -> IntactVAE:
    """Make a network of the bundle's size."""
    made = IntactVAE(
        dims,
        image_size=size,
        covariates=8,
        channels=(16, 32, 32),
        strides=(2, 2, 2),
        learned_prior=learned,
    )
    return made.to(memory_format=torch.channels_last if dims == 2 else torch.channels_last_3d)


def step(made: IntactVAE, loss: nn.Module, given: tuple[torch.Tensor, ...]) -> Callable[[], None]:
    """Return one iteration of training."""
    optimizer = torch.optim.Adam([p for p in made.parameters() if p.requires_grad], 1e-4)

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss(made.train()(*given), given[0])["loss"].backward()
        nn.utils.clip_grad_norm_(made.parameters(), 10.0)
        optimizer.step()

    return run


def times(functions: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the median CPU seconds of each, alternating."""
    found: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds + 1):
        for name, function in functions.items():
            start = time.process_time()
            function()
            found[name].append(time.process_time() - start)
    return {name: median(values[1:]) for name, values in found.items()}


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    for dims, size, batch in ((2, 48, 64), (2, 64, 32), (3, 32, 8)):
        image = torch.randn(batch, 1, *[size] * dims)
        given = image, torch.arange(batch) % 2, torch.randn(batch, 8)
        found = times(
            {
                "ours": step(network(dims, size, True), IntactVAELoss(), given),
                "plain": step(network(dims, size, False), PublicCodeLoss(), given),
            },
            rounds,
        )
        ratio = found["ours"] / found["plain"]
        print(f"step {size}^{dims}, batch {batch}: {found['ours']:.3f} s, {ratio:.2f} x plain")
    made = network(3, 64, True).eval()
    image, own, x = (
        torch.randn(1, 1, 64, 64, 64),
        torch.zeros(1, dtype=torch.long),
        torch.randn(1, 8),
    )
    with torch.no_grad():
        found = times(
            {
                "counterfactual": lambda: counterfactual(made, image, x, own, 1, samples=0),
                "reconstruction": lambda: made(image, own, x),
            },
            rounds,
        )
    ratio = found["counterfactual"] / found["reconstruction"]
    print(f"counterfactual of 64^3: {found['counterfactual']:.3f} s, {ratio:.2f} x reconstruction")


if __name__ == "__main__":
    main()
