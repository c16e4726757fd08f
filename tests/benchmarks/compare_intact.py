"""Effects of known truth: beta-Intact-VAE, what it is without its prior, and simple estimators.

    OMP_NUM_THREADS=1 python -W ignore tests/benchmarks/compare_intact.py table --seeds 10
    OMP_NUM_THREADS=1 python -W ignore tests/benchmarks/compare_intact.py images --size 16 --dims 2
    OMP_NUM_THREADS=1 python -W ignore tests/benchmarks/compare_intact.py infants --seeds 10

Generators: tests/known_effects.py. Beta is chosen by `medvae.engines.choose_beta` for every
overlap, on the first seed, from 2/3 of the subjects and by the rest. Prints a Markdown table: means
over seeds, and half the range. `error` is |mean effect - truth|, of images within the treated
region (a true effect of 2.0; `other voxels` are those without effect), `PEHE` over subjects,
`MAE` that of the counterfactual images in the region's unit, `MSE` of the reconstruction.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from known_effects import Truth, balls, discs, infants, tabular

from medvae.engines import choose_beta, train_intact
from medvae.losses import IntactVAELoss, PublicCodeLoss
from medvae.metrics import (
    combat,
    difference_of_means,
    inverse_propensity,
    outside_overlap,
    pehe,
    propensity,
    regression,
    t_learner,
)
from medvae.networks import IntactVAE
from medvae.report.tables import markdown_table

Row = dict[str, float]


def network(options: argparse.Namespace, **changes: object) -> IntactVAE:
    """Make the network of a benchmark."""
    if options.truth != "images":
        table = {"in_channels": 0, "outcome_dim": 1, "latent_dim": 1}
        widths = {"hidden_channels": (100, 100), "prior_channels": (100, 100)}
        covariates = 25 if options.truth == "infants" else 3
        return IntactVAE(covariates=covariates, **table | widths | changes)
    halvings = int(np.log2(options.size)) - 2  # to a grid of 4
    image = {
        "spatial_dims": options.dims,
        "in_channels": 1,
        "image_size": options.size,
        "latent_dim": 4,
        "channels": (8, *[16] * (halvings - 1)),
        "strides": (2,) * halvings,
    }
    return IntactVAE(covariates=3, **image | changes)


def make(options: argparse.Namespace, overlap: float, seed: int, effect: float = 2.0) -> Truth:
    """Draw the subjects."""
    if options.truth == "infants":
        return infants(seed)
    if options.truth == "table":
        return tabular(options.subjects, overlap, seed)
    return discs(options.subjects, options.size, options.dims, overlap, effect, seed)


def fit(options: argparse.Namespace, truth: Truth, seed: int, loss: object, **changes) -> IntactVAE:
    """Train one network."""
    torch.manual_seed(seed)
    batch, rate = (100, 3e-3) if options.truth != "images" else (64, 5e-3)
    return train_intact(
        network(options, **changes), truth.data, loss, options.steps, batch, rate, seed=seed
    )


def both_arms(model: IntactVAE, truth: Truth, target: bool = False) -> tuple[np.ndarray, ...]:
    """Decode all subjects in both arms; `target`: encode with the arm that is asked for."""
    outcome, treatment, x, _ = truth.data
    with torch.no_grad():
        arms = []
        for number in (0, 1):
            arm = torch.full_like(treatment, number)
            code = model.encode(outcome, arm if target else treatment, x)[0]
            arms.append(model.decode(code, arm).numpy())
    return tuple(arms)


def judged(options: argparse.Namespace, truth: Truth, arms: tuple[np.ndarray, ...]) -> Row:
    """Compare the outcomes under both arms with the truth."""
    effects, exact = arms[1] - arms[0], (truth.potential[:, 1] - truth.potential[:, 0]).numpy()
    if options.truth != "images":
        effects, exact = truth.scale * effects, truth.scale * exact
        given = truth.data.covariates.numpy(), truth.data.treatment.numpy()
        outside = outside_overlap(propensity(*given))
        found = {"error": abs(float(effects.mean() - exact.mean())), "PEHE": pehe(effects, exact)}
        if outside.mean() > 0.1:
            found["PEHE outside"] = pehe(effects[outside], exact[outside])
        return found
    region = balls(options.size, options.dims)[0]
    mean, other = effects.mean(0)[0], truth.data.treatment.numpy() == 0
    rows = np.arange(len(effects))
    counterfactual = np.where(other.reshape(-1, *(1,) * (effects.ndim - 1)), arms[1], arms[0])
    factual = np.where(other.reshape(-1, *(1,) * (effects.ndim - 1)), arms[0], arms[1])
    wanted = truth.potential.numpy()[rows, other.astype(int)]
    return {
        "error": abs(float((mean - exact.mean(0)[0])[region].mean())),
        "other voxels": float(np.abs(mean[~region]).mean()),
        "MAE": float(np.abs(counterfactual - wanted).mean()),
        "MSE": float(((factual - truth.data.outcome.numpy()) ** 2).mean()),
    }


def shifted(truth: Truth, effects: np.ndarray) -> tuple[np.ndarray, ...]:
    """Outcomes under both arms of an estimator that knows effects alone."""
    outcome = truth.data.outcome.numpy()
    treated = truth.data.treatment.numpy().reshape(-1, *(1,) * (outcome.ndim - 1))
    control = outcome - treated * effects
    return control, control + effects


def estimators(options: argparse.Namespace, beta: float) -> dict[str, Callable[[Truth, int], Row]]:
    """Every method by name: from subjects and a seed to its row."""

    def simple(estimate: Callable[..., np.ndarray], covariates: bool = True):
        def row(truth: Truth, seed: int) -> Row:
            outcome, treatment, x, _ = (
                None if part is None else part.numpy() for part in truth.data
            )
            found = estimate(outcome, treatment, x) if covariates else estimate(outcome, treatment)
            return judged(options, truth, shifted(truth, np.broadcast_to(found, outcome.shape)))

        return row

    def harmonised(truth: Truth, seed: int) -> Row:
        outcome, treatment, x, _ = (None if p is None else p.numpy() for p in truth.data)
        return judged(options, truth, combat(outcome, treatment, x))

    def model(make_loss: Callable[[], object], target: bool = False, **changes: object):
        def row(truth: Truth, seed: int) -> Row:
            fitted = fit(options, truth, seed, make_loss(), **changes)
            return judged(options, truth, both_arms(fitted, truth, target))

        return row

    def ours() -> object:
        return IntactVAELoss(beta)

    return {
        "difference of means": simple(difference_of_means, False),
        "inverse propensity": simple(inverse_propensity),
        "linear regression": simple(regression),
        "T-learner (20 neighbours)": simple(t_learner),
        "ComBat": harmonised,
        "beta-Intact-VAE": model(ours),
        "public code's loss": model(PublicCodeLoss, learned_prior=False),
        "conditional VAE, N(0, I)": model(ours, learned_prior=False),
        "encoded with the other arm": model(ours, target=True),
        "beta = 1": model(lambda: IntactVAELoss(1.0)),
    }


def chosen(options: argparse.Namespace, overlap: float) -> float:
    """Choose beta by the rule."""
    if options.beta is not None:
        return float(options.beta)
    data = make(options, overlap, 0).data
    count = len(data.outcome)
    rows, train = torch.randperm(count, generator=torch.Generator().manual_seed(0)), 2 * count // 3
    batch, rate = (100, 3e-3) if options.truth != "images" else (64, 5e-3)
    choice = choose_beta(
        lambda: network(options),
        data.rows(rows[:train]),
        data.rows(rows[train:]),
        steps=options.steps,
        batch_size=batch,
        learning_rate=rate,
    )
    for score in choice.scores:
        print(
            f"beta {score.beta:g}: {score.log_likelihood:.2f} nats ({score.deficit:.2f} below), "
            f"predictability {score.predictability:.4f}, MSE {score.reconstruction:.4f}"
        )
    print(f"overlap {overlap:g}: beta {choice.beta:g}, balanced {choice.balanced}", flush=True)
    return choice.beta


def null_row(options: argparse.Namespace, beta: float) -> str:
    """Effect found where there is none."""
    found = []
    for seed in range(options.seeds):
        truth = make(options, 1.0, seed, effect=0.0)
        arms = both_arms(fit(options, truth, seed, IntactVAELoss(beta)), truth)
        region = balls(options.size, options.dims)[0]
        found.append(abs(float((arms[1] - arms[0]).mean(0)[0][region].mean())))
    return f"Null effect, |found| in the region: {spread(found)}"


def spread(values: list[float]) -> str:
    """Mean and half the range."""
    return f"{np.mean(values):.3f} ± {np.ptp(values) / 2:.3f}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("truth", choices=["table", "images", "infants"])
    parser.add_argument("--size", type=int, default=16)
    parser.add_argument("--dims", type=int, default=2, choices=[2, 3])
    parser.add_argument("--subjects", type=int, default=1500)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--overlaps", type=float, nargs="+", default=[1.0, 4.0])
    parser.add_argument("--beta", type=float, help="instead of the rule")
    options = parser.parse_args()
    for overlap in options.overlaps if options.truth != "infants" else [1.0]:
        start, beta = time.time(), chosen(options, overlap)
        rows: dict[str, list[Row]] = {}
        for name, estimate in estimators(options, beta).items():
            rows[name] = [
                estimate(make(options, overlap, seed), seed) for seed in range(options.seeds)
            ]
            print(
                name, [{k: round(v, 3) for k, v in row.items()} for row in rows[name]], flush=True
            )
        columns = list(rows["difference of means"][0])
        cells = [
            [name, *(spread([row[column] for row in found]) for column in columns)]
            for name, found in rows.items()
        ]
        print(f"\nOverlap parameter {overlap:g}, beta {beta:g}, {options}\n")
        print(markdown_table(["method", *columns], cells))
        print(f"{time.time() - start:.0f} s", flush=True)
    if options.truth == "images":
        print(null_row(options, beta))


if __name__ == "__main__":
    main()
