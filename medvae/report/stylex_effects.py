"""What the edit of a single coordinate does to images, classifier and covariates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from medvae.explain import Edit, StyleEffects, apply_edits
from medvae.metrics import mean_with_interval
from medvae.report.stylex import patients_of
from medvae.report.stylex_images import Encoded
from medvae.report.stylex_judge import Judge

if TYPE_CHECKING:
    from medvae.report.stylex_search import StylexSearch

__all__ = ["edit_report", "random_edits"]

RANDOM = 20  # edits of random coordinates, for chance
COMPARED = 48  # images that random edits are made of
CHANGED = 0.02  # of the range of intensities: a voxel that changed


def edit_report(
    run: StylexSearch,
    effects: StyleEffects,
    tested: Encoded,
    judge: Judge,
    edit: Edit,
    target: int,
) -> dict[str, Any]:
    """Report what one attribute is and what its edit does to the tested images."""
    if not judge.chance:
        judge.chance = _random_moves(run, effects, tested, judge)
    patients = patients_of(run.factors, tested.ids)
    images = run.images_of(apply_edits(effects, tested.styles, [edit]))
    logits = run.logits_of(images)
    every = np.arange(len(tested.ids))
    moves = {
        name: mean_with_interval(change, patients, run.n_resamples)
        | {"chance": judge.chance.get(name)}
        for name, change in judge.moves(images, every).items()
    }
    for entry in moves.values():
        entry["beyond_random"] = _beyond(entry, entry["chance"])
    difference = (images - tested.again).abs().flatten(1)
    ends = np.cumsum(run.network.generator.style_sizes)
    layer = int(np.searchsorted(ends, edit.coordinate, side="right"))
    return {
        "coordinate": edit.coordinate,
        "layer": layer,
        "direction": ("down", "up")[edit.direction],
        "target": target,
        "score": edit.score,
        "n_images": edit.images,
        "shift": effects.shift,
        "min": float(effects.low[edit.coordinate]),
        "max": float(effects.high[edit.coordinate]),
        "heads": {
            name: _head(run, effects, tested, logits, name, target, patients, judge)
            for name in run.network.heads
        },
        "moves": moves,
        "change": {
            "l1": float(difference.mean()),
            "changed_share": float((difference > CHANGED).float().mean()),
        },
    }


def _head(
    run: StylexSearch,
    effects: StyleEffects,
    tested: Encoded,
    logits: npt.NDArray[np.float32],
    name: str,
    target: int,
    patients: npt.NDArray[np.object_],
    judge: Judge,
) -> dict[str, Any]:
    before, after = effects.head(tested.logits_again, name), effects.head(logits, name)
    task = name == run.task
    change = after - before
    which = target if task else int(np.abs(change.mean(0)).argmax())
    rows = before.argmax(1) != which if task else np.ones(len(before), dtype=bool)
    if not rows.any():
        rows[:] = True
    shares = [0.5 * (1 + np.tanh(odds[rows, which] / 2)) for odds in (before, after)]
    spread = max(float(before[:, which].std()), 1e-6)
    means = {
        "probability_change": shares[1] - shares[0],
        "log_odds_change": change[rows, which],
        "shift_sd": change[rows, which] / spread,
        "flip_rate": (after.argmax(1) != before.argmax(1))[rows],
    }
    found: dict[str, Any] = {
        key: mean_with_interval(values, patients[rows], run.n_resamples)
        for key, values in means.items()
    }
    chance = judge.chance.get(f"head {name}")
    beyond = _beyond(found["shift_sd"], chance)
    return {"task": task, "class": which, **found, "chance_sd": chance, "beyond_random": beyond}


def _beyond(entry: Mapping[str, Any], chance: float | None) -> bool:
    """Whether a mean is not 0 and larger than what random edits do."""
    value, low, high = entry["value"], entry["low"], entry["high"]
    if value is None or chance is None or low is None:
        return False
    return bool((low > 0 or high < 0) and abs(value) > max(chance, 0.1))


def random_edits(effects: StyleEffects, generator: np.random.Generator, count: int) -> list[Edit]:
    """Return edits of as many different coordinates, drawn among those that have a range."""
    known = np.flatnonzero(effects.high > effects.low)
    chosen = generator.permutation(known)[:count]
    sides = generator.integers(2, size=len(chosen))
    return [Edit(int(side), int(k), 0.0, 0) for k, side in zip(chosen, sides, strict=True)]


def _random_moves(
    run: StylexSearch, effects: StyleEffects, tested: Encoded, judge: Judge
) -> dict[str, float]:
    """Return the 95th percentile of absolute mean moves by edits of random coordinates."""
    generator = np.random.default_rng(run.seed)
    rows = np.arange(min(COMPARED, len(tested.ids)))
    found: dict[str, list[float]] = {}
    for _ in range(RANDOM):
        edits = random_edits(effects, generator, 1)
        images = run.images_of(apply_edits(effects, tested.styles[: len(rows)], edits))
        for name, change in judge.moves(images, rows).items():
            found.setdefault(name, []).append(abs(float(change.mean())))
        logits = run.logits_of(images)
        for name in run.network.heads:
            before = effects.head(tested.logits_again, name)
            change = (effects.head(logits, name) - before[rows]) / np.maximum(before.std(0), 1e-6)
            found.setdefault(f"head {name}", []).append(float(np.abs(change.mean(0)).max()))
    return {name: float(np.quantile(values, 0.95)) for name, values in found.items()}
