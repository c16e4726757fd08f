"""Measure the distance correlation of three subspaces, and what minimising it alone does.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_dependence.py --rows 56 512 --rounds 7

Speed, memory and precision are those of value and gradient beside the plain form: torch.cdist and
autograd for every pair. Times are CPU times of alternating rounds, a ratio is the median of the
rounds'. Memory is the peak above the start, of one run in a process of its own. `--draws` prints
estimates for independent normal codes, and for those of subjects that are drawn again, `--steps`
effective ranks after minimising the loss alone.
"""

import argparse
import multiprocessing
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from medvae.losses import (
    SubspaceDependenceLoss,
    distance_correlation,
    effective_rank,
    u_distance_correlation_sqr,
)

SIZES = (4, 12, 16)
PAIRS = ((0, 1), (0, 2), (1, 2))


def centred(codes: Tensor) -> Tensor:
    distances = torch.cdist(codes, codes)
    return distances - distances.mean(0) - distances.mean(1, keepdim=True) + distances.mean()


def plain(subspaces: Sequence[Tensor]) -> Tensor:
    """Mean distance correlation of the pairs as the equation reads, each pair on its own."""
    total = subspaces[0].new_zeros(())
    for s, t in PAIRS:
        a, b = centred(subspaces[s]), centred(subspaces[t])
        square = (a * b).mean() / ((a * a).mean() * (b * b).mean()).sqrt()
        total = total + square.sqrt()
    return total / len(PAIRS)


def ours(subspaces: Sequence[Tensor]) -> Tensor:
    return SubspaceDependenceLoss(SIZES, unbiased=False)(subspaces)["loss"]


FORMS: dict[str, Callable[[Sequence[Tensor]], Tensor]] = {"plain": plain, "medvae": ours}


def codes(rows: int, seed: int = 0) -> list[Tensor]:
    """Codes that share a direction."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(rows, 1, generator=generator)
    return [torch.randn(rows, size, generator=generator) + 0.5 * shared for size in SIZES]


def run(name: str, subspaces: Sequence[Tensor]) -> tuple[float, Tensor]:
    """Return value and gradient."""
    live = [part.clone().requires_grad_() for part in subspaces]
    value = FORMS[name](live)
    value.backward()
    return float(value.detach()), torch.cat([part.grad for part in live], 1)


def peak(name: str, rows: int, found: "multiprocessing.Queue[float]") -> None:
    torch.set_num_threads(1)
    run(name, codes(32))
    before = highest_kib()
    run(name, codes(rows))
    found.put((highest_kib() - before) / 1024)


def highest_kib() -> int:
    """Return the process's peak memory; getrusage would also tell of the one that started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def peak_mib(name: str, rows: int) -> float:
    context = multiprocessing.get_context("spawn")
    found: multiprocessing.Queue[float] = context.Queue()
    process = context.Process(target=peak, args=(name, rows, found))
    process.start()
    mib = found.get()
    process.join()
    return mib


def seconds(rows: int, rounds: int) -> dict[str, np.ndarray]:
    taken: dict[str, list[float]] = {name: [] for name in FORMS}
    subspaces = codes(rows)
    for turn in range(rounds + 1):
        for name in sorted(FORMS, reverse=turn % 2 == 0):
            start = time.process_time()
            run(name, subspaces)
            taken[name].append(time.process_time() - start)
    return {name: np.array(values[1:]) for name, values in taken.items()}


def errors(rows: int) -> dict[str, tuple[float, float]]:
    """Return the relative errors of value and gradient against float64 with exact distances."""
    subspaces = codes(rows)
    value, grad = run("medvae", [part.double() for part in subspaces])
    found = {name: run(name, subspaces) for name in FORMS}
    return {
        name: (abs(v / value - 1), float((g.double() - grad).norm() / grad.norm()))
        for name, (v, g) in found.items()
    }


def compare(rows: Sequence[int], rounds: int, memory: bool) -> None:
    print("| n | plain, ms | medvae, ms | speed | memory, MiB | value's error | gradient's |")
    print("|---|---|---|---|---|---|---|")
    for n in rows:
        taken, wrong = seconds(n, rounds), errors(n)
        speed = np.median(taken["plain"] / taken["medvae"])
        times = [f"{1e3 * np.median(taken[name]):.1f}" for name in FORMS]
        mib = " / ".join(f"{peak_mib(name, n):.0f}" for name in FORMS) if memory else ""
        both = [" / ".join(f"{wrong[name][k]:.0e}" for name in FORMS) for k in range(2)]
        print(f"| {n} | {times[0]} | {times[1]} | {speed:.2f} | {mib} | {both[0]} | {both[1]} |")


def floor(draws: int) -> None:
    print("\n| n | dimensions | distance correlation | bias-corrected square, mean (sd) |")
    print("|---|---|---|---|")
    for n in (14, 70, 1000):
        for p, q in ((1, 1), (4, 12), (12, 16)):
            pairs = [(torch.randn(n, p), torch.randn(n, q)) for _ in range(draws)]
            biased = np.mean([float(distance_correlation(x, y)) for x, y in pairs])
            square = [float(u_distance_correlation_sqr(x, y)) for x, y in pairs]
            print(
                f"| {n} | {p} x {q} | {biased:.3f} | {np.mean(square):.4f} ({np.std(square):.3f}) |"
            )


def repeats(draws: int) -> None:
    """A batch of 64 and 256 past codes, drawn with replacement; every draw has codes of its own."""
    print("\n| subjects | rare ones, drawn as often as all others | not told whose | told |")
    print("|---|---|---|---|")
    for subjects, rare in ((60, 0), (634, 0), (634, 32), (1269, 0), (1269, 63)):
        chances = torch.ones(subjects)
        if rare > 0:  # the two cells of a balanced sampler that few subjects are in
            chances[:rare] = (subjects - rare) / rare
        found: list[list[float]] = [[], []]
        for _ in range(draws):
            codes = [torch.randn(subjects, size) for size in (4, 12)]
            rows = torch.multinomial(chances, 320, True)
            moved = [part[rows] + 0.05 * torch.randn(320, part.shape[1]) for part in codes]
            for values, whose in zip(found, (None, rows), strict=True):
                terms = SubspaceDependenceLoss((4, 12))(moved, subject=whose)
                values.append(float(terms["dependence"]))
        means = " | ".join(f"{np.mean(v):.3f} ({np.std(v):.3f})" for v in found)
        print(f"| {subjects} | {rare} | {means} |")


def collapse(steps: int, seeds: int) -> None:
    """Linear maps of codes that are independent from the start: nothing is to be gained."""
    print("\n| loss, alone | effective rank of 4 | of 12 | bias-corrected square, new codes |")
    print("|---|---|---|---|")
    for unbiased in (False, True):
        for spread in (0.0, 1.0):
            ends = [fit(steps, seed, unbiased, spread) for seed in range(seeds)]
            low, high, left = (
                " ".join(f"{x:.2f}" for x in column) for column in zip(*ends, strict=True)
            )
            name = "bias-corrected" if unbiased else "biased"
            print(f"| {name}, spread {spread:g} | {low} | {high} | {left} |")


def fit(steps: int, seed: int, unbiased: bool, spread: float) -> list[float]:
    torch.manual_seed(seed)
    maps = [nn.Linear(size, size, bias=False) for size in (4, 12)]
    for layer in maps:
        nn.init.eye_(layer.weight)
    loss = SubspaceDependenceLoss((4, 12), unbiased=unbiased, spread=spread, rank=3.0)
    optimizer = torch.optim.Adam([p for layer in maps for p in layer.parameters()], lr=0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        loss([layer(torch.randn(70, layer.in_features)) for layer in maps])["loss"].backward()
        optimizer.step()
    with torch.no_grad():
        found = [layer(torch.randn(1000, layer.in_features)) for layer in maps]
        return [float(effective_rank(z)) for z in found] + [
            float(u_distance_correlation_sqr(*found))
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, nargs="*", default=[56, 280, 512, 2048, 8192])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", action="store_true", help="measure peak memory, too")
    parser.add_argument("--draws", type=int, default=0)
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"python {sys.version.split()[0]}, torch {torch.__version__}, 1 thread\n")
    compare(arguments.rows, arguments.rounds, arguments.memory)
    if arguments.draws > 0:
        floor(arguments.draws)
        repeats(arguments.draws)
    if arguments.steps > 0:
        collapse(arguments.steps, arguments.seeds)


if __name__ == "__main__":
    main()
