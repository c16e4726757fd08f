"""Measure the two forms of modulated convolution, and what R1 costs; count networks' memory.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_stylegan.py --rounds 5

Times are CPU times of alternating rounds, forward and backward; a ratio is the median of the
rounds'. `--networks` prints parameters, operations and memory of a training instead,
counted without running it.
"""

import argparse
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from medvae.engines import GanStep
from medvae.engines.gan import Draw
from medvae.losses import PathLength, discriminator_loss, r1_penalty
from medvae.networks import DisentangledGAN, StyleDiscriminator
from medvae.networks.style_layers import ModulatedConv

CASES = (  # spatial_dims, channels, size, batch
    (3, 32, 32, 4),
    (3, 64, 16, 8),
    (3, 64, 32, 4),
    (3, 128, 8, 8),
    (3, 256, 4, 8),
    (2, 64, 64, 8),
    (2, 64, 128, 8),
    (2, 256, 16, 16),
    (2, 512, 8, 8),
)
SIZES, OUTPUTS = {"a": 4, "b": 12, "free": 16}, {"a": 3, "b": 14}
NETWORKS = (  # spatial_dims, image size, channels
    (2, 64, (128, 128, 64, 32, 16)),
    (2, 256, (512, 512, 512, 512, 256, 128, 64)),
    (3, 32, (128, 128, 64, 32)),
    (3, 64, (128, 128, 128, 64, 32)),
    (3, 128, (128, 128, 128, 128, 64, 32)),
)


def timed(forms: dict[str, Callable[[], None]], rounds: int) -> dict[str, np.ndarray]:
    taken: dict[str, list[float]] = {name: [] for name in forms}
    for turn in range(rounds + 1):
        for name in sorted(forms, reverse=turn % 2 == 0):
            start = time.process_time()
            forms[name]()
            taken[name].append(time.process_time() - start)
    return {name: np.array(values[1:]) for name, values in taken.items()}


class Published(ModulatedConv):
    """Every sample's weights, modulated and demodulated, as StyleGAN2's code has it."""

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        dims = x.ndim - 2
        weight = self.weight * style.view(len(x), 1, -1, *[1] * dims)
        weight = weight * (weight.flatten(2).square().sum(2) + 1e-8).rsqrt().view(
            len(x), -1, *[1] * (dims + 1)
        )
        convolution = F.conv2d if dims == 2 else F.conv3d
        y = convolution(x.flatten(0, 1)[None], weight.flatten(0, 1), padding=1, groups=len(x))
        return y.view(len(x), -1, *x.shape[2:])


def convolutions(rounds: int) -> None:
    print("| case | published, ms | grouped | scaled input | chosen | its speed |")
    print("|---|---|---|---|---|---|")
    for dims, channels, size, batch in CASES:
        x = torch.randn(batch, channels, *[size] * dims, requires_grad=True)
        style = torch.randn(batch, channels, requires_grad=True)
        layers = {
            "published": Published(dims, channels, channels),
            "grouped": ModulatedConv(dims, channels, channels, scales_input=False),
            "scaled": ModulatedConv(dims, channels, channels, scales_input=True),
        }
        chosen = "scaled" if ModulatedConv(dims, channels, channels)._scales_input(x) else "grouped"

        def step(layer: nn.Module, x: Tensor = x, style: Tensor = style) -> None:
            layer(x, style).sum().backward()

        taken = timed(
            {name: lambda layer=layer: step(layer) for name, layer in layers.items()}, rounds
        )
        speed = np.median(taken["published"] / taken[chosen])
        ms = " | ".join(f"{1e3 * np.median(taken[name]):.1f}" for name in layers)
        case = f"{dims}D, {channels} channels, {size}^{dims}, batch {batch}"
        print(f"| {case} | {ms} | {chosen} | {speed:.2f} |")


def penalties(rounds: int) -> None:
    print("\n| network | without R1, ms | shared forward | of its own | speed of shared |", end="")
    print(" every 8th, shared, against every one |")
    print("|---|---|---|---|---|---|")
    for dims, size, channels in ((2, 64, (128, 128, 64, 32, 16)), (3, 32, (64, 64, 32, 16))):
        network = StyleDiscriminator(dims, SIZES, OUTPUTS, size, channels)
        real, fake = (torch.randn(8, 1, *[size] * dims) for _ in range(2))

        def step(
            penalty: str = "none",
            network: nn.Module = network,
            real: Tensor = real,
            fake: Tensor = fake,
        ) -> None:
            image = real.clone().requires_grad_(penalty == "shared")
            score = network(image).score
            loss = discriminator_loss(score, network(fake).score)
            if penalty == "separate":
                image.requires_grad_()
                score = network(image).score
            if penalty != "none":
                loss = loss + r1_penalty(score, image)
            loss.backward()

        names = ("none", "shared", "separate")
        taken = timed({name: lambda name=name: step(name) for name in names}, rounds)
        none, shared, separate = (taken[name] for name in names)
        lazy = np.median(shared / (none + (shared - none) / 8))
        ms = [f"{1e3 * np.median(values):.0f}" for values in (none, shared, separate)]
        speed = np.median(separate / shared)
        print(f"| {dims}D, {size}^{dims} | {' | '.join(ms)} | {speed:.2f} | {lazy:.2f} |")


class Operations(TorchDispatchMode):
    """Counts floating point operations of convolutions and matrix products."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            known = flop_registry[func._overloadpacket]
            self.total += known(*args, **(kwargs or {}), out_val=result)
        return result


class Counted(GanStep):
    """Without what a count cannot decide, whether codes are mixed."""

    def draw(self, like: Tensor, exact: bool = False) -> Draw:
        single = self.generator.mapping(torch.randn(len(like), 32))
        w = single[:, None].expand(-1, self.generator.layers, -1)
        return Draw(w, single, self.generator.synthesis(w))


def iteration(dims: int, size: int, channels: tuple[int, ...], r1: bool, path: bool) -> list[float]:
    """Return GFLOP of an iteration, and GB kept for each step's backward pass, of one image."""
    network = DisentangledGAN(dims, SIZES, OUTPUTS, size, channels)
    both = (network.discriminator, network.generator)
    trained = [list(part.parameters()) for part in both]
    optimizers = [torch.optim.Adam(parameters) for parameters in trained]
    step = Counted(network, network, *optimizers, path_length=PathLength(), voxel_weight=10.0)
    step.network.train()
    image = torch.empty(2, 1, *[size] * dims)
    kept: list[dict[int, int]] = [{}, {}]
    alive = []  # so that no address is given twice

    def keep(tensor: Tensor, where: dict[int, int]) -> Tensor:
        storage = tensor.untyped_storage()
        alive.append(storage)
        where[storage._cdata] = storage.nbytes()
        return tensor

    with Operations() as operations:
        with saved_tensors_hooks(lambda x: keep(x, kept[1]), lambda x: x):
            drawn = step.draw(image)
        with saved_tensors_hooks(lambda x: keep(x, kept[0]), lambda x: x):
            terms = step.discriminator_terms(image, drawn, None, r1)[0]
        sum(terms.values()).backward(inputs=trained[0])
        with saved_tensors_hooks(lambda x: keep(x, kept[1]), lambda x: x):
            terms = step.generator_terms(image, drawn, None, path)
        sum(terms.values()).backward(inputs=trained[1])
    gigabytes = [sum(where.values()) / 1e9 / len(image) for where in kept]
    return [operations.total / 1e9 / len(image), *gigabytes]


def networks() -> None:
    print("| network | million parameters of G, D | GFLOP an image: plain | with R1 | ", end="")
    print("path length | mean | GB kept an image: D's step | G's | with R1 | path length |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for dims, size, channels in NETWORKS:
        with FakeTensorMode():  # shapes alone, no numbers
            plain, penalised, smooth = (
                iteration(dims, size, channels, r1, path)
                for r1, path in ((False, False), (True, False), (False, True))
            )
            network = DisentangledGAN(dims, SIZES, OUTPUTS, size, channels)
        mean = plain[0] + (penalised[0] + smooth[0] - 2 * plain[0]) / 8
        parts = (network.generator, network.discriminator)
        millions = ", ".join(f"{sum(p.numel() for p in m.parameters()) / 1e6:.2f}" for m in parts)
        flops = " | ".join(f"{value:.1f}" for value in (plain[0], penalised[0], smooth[0], mean))
        memory = (plain[1], plain[2], penalised[1], smooth[2])
        gigabytes = " | ".join(f"{value:.3f}" for value in memory)
        name = f"{dims}D, {size}^{dims}, channels {', '.join(map(str, channels))}"
        print(f"| {name} | {millions} | {flops} | {gigabytes} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--networks", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if arguments.networks:
        networks()
        return
    print(f"python {sys.version.split()[0]}, torch {torch.__version__}, 1 thread\n")
    convolutions(arguments.rounds)
    penalties(arguments.rounds)


if __name__ == "__main__":
    main()
