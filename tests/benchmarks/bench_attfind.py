"""Measure AttFind beside one synthesis per coordinate, on the same network and images.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_attfind.py --rounds 3
    OMP_NUM_THREADS=1 python tests/benchmarks/bench_attfind.py --layers

Times are CPU times of alternating rounds; a ratio is the median of the rounds'. The peers are the
published way (one coordinate, one direction, one image a call) and a batch of edits a call, each
with weights of its own. Networks have random weights: what they cost does not depend on them.
`--layers` prints instead what a coordinate costs by depth and resolution.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from medvae.explain import StyleEffects, attfind, screened_attfind
from medvae.networks import FactorClassifier, FrozenClassifier, StyleGenerator

CASES = {  # spatial_dims, image size, channels
    "2D 64, S = 536": (2, 64, (96, 96, 48, 24, 8)),
    "3D 32, S = 200": (3, 32, (48, 32, 16, 8)),
}
GROWTH = {
    "2D 32": (2, 32, (64, 64, 32, 16)),
    "2D 64": (2, 64, (64, 64, 32, 16, 16)),
    "2D 128": (2, 128, (64, 64, 32, 16, 16, 16)),
    "3D 16": (3, 16, (32, 16, 8)),
    "3D 32": (3, 32, (32, 16, 8, 8)),
}
HEADS = {"dx": 2}


class Drawn(nn.Module):
    """What is classified: images brought to [0, 1]."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.network = FrozenClassifier(FactorClassifier(dims, 1, HEADS), HEADS, "logits")

    def forward(self, image: Tensor) -> Tensor:
        return self.network(((image + 1) / 2).clamp(0, 1))


def networks(case: tuple[int, int, tuple[int, ...]]) -> tuple[StyleGenerator, Drawn]:
    dims, size, channels = case
    torch.manual_seed(0)
    generator = StyleGenerator(dims, {"code": 32}, size, channels, joined=2).eval()
    for conv in generator.convs:
        nn.init.constant_(conv.noise.strength, 0.1)
    return generator, Drawn(dims)


def styles_of(generator: StyleGenerator, images: int) -> Tensor:
    draw = torch.randn(images, 34, generator=torch.Generator().manual_seed(1))
    return generator.styles(draw).detach()


@torch.no_grad()
def per_edit(
    generator: StyleGenerator, classifier: nn.Module, styles: Tensor, like: StyleEffects, batch: int
) -> np.ndarray:
    """Logits (N, 2, S, O), by a synthesis of every edit, `batch` edits a call."""
    found = np.empty_like(like.edited)
    ends = torch.tensor(np.stack([like.low, like.high]))
    searched = ends.shape[1]
    for n, own in enumerate(styles):
        every = [(d, k) for k in range(searched) for d in range(2)]
        for start in range(0, len(every), batch):
            part = every[start : start + batch]
            edited = own.repeat(len(part), 1)
            for row, (d, k) in enumerate(part):
                edited[row, k] = ends[d, k]
            logits = classifier(generator.synthesis_from_styles(edited)).numpy()
            for row, (d, k) in enumerate(part):
                found[n, d, k] = logits[row]
    return found


def clocked(function: Callable[[], object]) -> tuple[float, object]:
    start = time.process_time()
    result = function()
    return time.process_time() - start, result


def compare(rounds: int, images: int, spread: int) -> None:
    print("| network | method | seconds an image | speed | largest difference | missed |")
    print("|---|---|---|---|---|---|")
    for name, case in CASES.items():
        compared(name, case, rounds, images, spread)


def compared(
    name: str, case: tuple[int, int, tuple[int, ...]], rounds: int, images: int, spread: int
) -> None:
    generator, classifier = networks(case)
    # ranges over many images, as in use; few of them are searched
    cohort = styles_of(generator, spread)
    few = torch.cat([cohort[:images], cohort.min(0).values[None], cohort.max(0).values[None]])
    like = attfind(generator, classifier, few, HEADS, progress=False).rows(range(images))

    def ours(batch: int) -> np.ndarray:
        return attfind(generator, classifier, few, HEADS, batch_size=batch, progress=False).edited

    forms: dict[str, tuple[Callable[[], object], int]] = {
        "one edit a call": (lambda: per_edit(generator, classifier, few[:1], like, 1), 1),
        "16 edits a call": (lambda: per_edit(generator, classifier, few[:1], like, 16), 1),
        "medvae, batch 8": (lambda: ours(8), len(few)),
        "medvae, batch 16": (lambda: ours(16), len(few)),
        "medvae, batch 32": (lambda: ours(32), len(few)),
    }
    taken: dict[str, list[float]] = {form: [] for form in forms}
    results = {}
    for _ in range(rounds):
        for form, (function, count) in forms.items():
            seconds, results[form] = clocked(function)
            taken[form].append(seconds / count)
    base = np.array(taken["one edit a call"])
    for form in forms:
        own = np.asarray(results[form])[:1]
        error = np.abs(own - np.asarray(results["one edit a call"])).max()
        ratio = np.median(base / np.array(taken[form]))
        print(f"| {name} | {form} | {np.median(taken[form]):.2f} | {ratio:.2f} | {error:.0e} | |")
    screened(name, generator, classifier, cohort, float(np.median(base)))


def screened(
    name: str, generator: StyleGenerator, classifier: nn.Module, styles: Tensor, one: float
) -> None:
    """Screening, with its gradients and its audit in the time."""
    for keep in (0.05, 0.1, 0.2):
        seconds, found = clocked(
            lambda keep=keep: screened_attfind(
                generator, classifier, styles, HEADS, keep=keep, audit=2, progress=False
            )
        )
        effects, screening = found
        each = seconds / len(styles)
        print(
            f"| {name} | screened, {screening.kept} of {screening.searched} kept, "
            f"{len(effects.base)} images, 2 audited | {each:.2f} | {one / each:.1f} | | "
            f"{100 * screening.missed:.0f} % |"
        )


def layers(rounds: int) -> None:
    print("| network | layer | its grid | coordinates | ms a coordinate | one synthesis each, ms |")
    print("|---|---|---|---|---|---|")
    for name, case in GROWTH.items():
        by_layer(name, case, rounds)


@torch.no_grad()
def by_layer(name: str, case: tuple[int, int, tuple[int, ...]], rounds: int) -> None:
    generator, classifier = networks(case)
    styles = styles_of(generator, 3)
    low, high = styles.min(0).values, styles.max(0).values
    edited = styles[:1].repeat(2, 1)
    seconds = [
        clocked(lambda: classifier(generator.synthesis_from_styles(edited)))[0]
        for _ in range(8 * rounds)
    ]
    whole = 1000 * float(np.median(seconds))
    first = 0
    for layer, size in enumerate(generator.style_sizes):
        sweep = generator.sweep(styles[0])
        chosen = torch.arange(first, first + min(4, size))
        values = torch.stack([low[chosen], high[chosen]], 1)

        def edit(sweep=sweep, chosen=chosen, values=values) -> None:
            classifier(sweep.edited(chosen, values).flatten(0, 1))

        edit()
        each = np.median([clocked(edit)[0] for _ in range(rounds)]) / len(chosen) * 1000
        grid = "x".join(map(str, sweep.inputs[layer].shape[1:]))
        print(f"| {name} | {layer} | {grid} | {size} | {each:.2f} | {whole:.2f} |")
        first += size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--spread", type=int, default=24, help="images that set the ranges")
    parser.add_argument("--layers", action="store_true")
    options = parser.parse_args()
    if options.layers:
        layers(options.rounds)
    else:
        compare(options.rounds, options.images, options.spread)


if __name__ == "__main__":
    main()
