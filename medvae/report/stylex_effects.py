"""What the edit of a single coordinate does to images, classifier, covariates and attributes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from medvae.explain import Edit, StyleEffects, apply_edits, class_gains
from medvae.metrics import mean_with_interval
from medvae.report.measuring import known_mean
from medvae.report.stylex import patients_of
from medvae.report.stylex_images import Encoded, some_rows
from medvae.report.stylex_judge import Judge

if TYPE_CHECKING:
    from medvae.report.stylex_search import StylexSearch

__all__ = ["edit_report", "random_edits"]

RANDOM = 20  # edits of random coordinates, for chance
COMPARED = 48  # images that random edits are made of
CHANGED = 0.02  # of the range of intensities: a voxel that changed
Array = npt.NDArray[np.float64]


class Reader(Protocol):
    """What reads how far an edit moved images."""

    def moves(self, images: Tensor, rows: npt.NDArray[np.intp]) -> dict[str, Array]:
        """Return by name how far edited images of some rows moved, in SD, NaN where unknown."""


def _readers(run: StylexSearch, judge: Judge) -> dict[str, Reader]:
    """Return what reads an edit, by the key of an attribute's entry."""
    return {"moves": judge} | ({} if run.measuring is None else {"measured": run.measuring})


def edit_report(
    run: StylexSearch,
    effects: StyleEffects,
    tested: Encoded,
    judge: Judge,
    edit: Edit,
    target: int,
) -> dict[str, Any]:
    """Report what one attribute is and what its edit does to the tested images."""
    if target not in judge.chance:
        judge.chance[target] = _random_moves(run, effects, tested, judge, target)
    chance = judge.chance[target]
    patients = patients_of(run.factors, tested.ids)
    images = run.images_of(apply_edits(effects, tested.styles, [edit]))
    logits = run.logits_of(images)
    every = np.arange(len(tested.ids))
    moved: dict[str, dict[str, Any]] = {"measured": {}}
    for kind, reader in _readers(run, judge).items():
        moved[kind] = {
            name: mean_with_interval(change, patients, run.n_resamples)
            | {"chance": chance.get(f"{kind} {name}")}
            for name, change in reader.moves(images, every).items()
        }
        for entry in moved[kind].values():
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
            name: _head(run, effects, tested, logits, name, target, patients, chance)
            for name in run.network.heads
        },
        **moved,
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
    chances: Mapping[str, float],
) -> dict[str, Any]:
    before, after = effects.head(tested.logits_again, name), effects.head(logits, name)
    task = name == run.task
    which, rows = _reached(before, after, target if task else None)
    change = (after - before)[rows, which]
    shares = [0.5 * (1 + np.tanh(odds[rows, which] / 2)) for odds in (before, after)]
    was, now = before.argmax(1), after.argmax(1)
    flips = np.where(was == target, np.nan, now == target) if task else now != was
    means = {
        "probability_change": shares[1] - shares[0],
        "log_odds_change": change,
        "shift_sd": change / _spread(before, which),
        "flip_rate": flips[rows],
    }
    found: dict[str, Any] = {
        key: mean_with_interval(values, patients[rows], run.n_resamples)
        for key, values in means.items()
    }
    chance = chances.get(f"head {name}")
    beyond = _beyond(found["shift_sd"], chance)
    return {"task": task, "class": which, **found, "chance_sd": chance, "beyond_random": beyond}


def _reached(
    before: npt.NDArray[np.float32], after: npt.NDArray[np.float32], target: int | None
) -> tuple[int, npt.NDArray[np.bool_]]:
    """Return the class that an edit is judged by, and the images that are not of it yet.

    Without a target: the class that moves most, over all images.
    """
    if target is None:
        return int(np.abs((after - before).mean(0)).argmax()), np.ones(len(before), dtype=bool)
    rows = before.argmax(1) != target
    return target, rows if rows.any() else ~rows


def _spread(before: npt.NDArray[np.float32], which: int) -> float:
    return max(float(before[:, which].std()), 1e-6)


def _beyond(entry: Mapping[str, Any], chance: float | None) -> bool:
    """Whether a mean is not 0 and larger than what random edits do."""
    value, low, high = entry["value"], entry["low"], entry["high"]
    if value is None or chance is None or low is None:
        return False
    return bool((low > 0 or high < 0) and abs(value) > max(chance, 0.1))


def random_edits(
    effects: StyleEffects, generator: np.random.Generator, count: int, head: str, target: int
) -> list[Edit]:
    """Return edits of as many different coordinates, drawn among those that were searched.

    Each goes the way that the target gains more by over the searched images, as found edits do.
    """
    gains = class_gains(effects, head, target)
    if len(gains) == 0:  # all are of the class: what they would gain
        gains = effects.change(head)[..., target]
    ways = gains.mean(0).argmax(0)
    chosen = generator.permutation(np.flatnonzero(effects.evaluated))[:count]
    return [Edit(int(ways[k]), int(k), 0.0, 0) for k in chosen]


def _random_moves(
    run: StylexSearch, effects: StyleEffects, tested: Encoded, judge: Judge, target: int
) -> dict[str, float]:
    """Return the 95th percentile of absolute mean moves by edits of random coordinates."""
    generator = np.random.default_rng(run.seed)
    rows = some_rows(len(tested.ids), COMPARED, run.seed)
    found: dict[str, list[float]] = {}
    for edit in random_edits(effects, generator, RANDOM, run.task, target):
        images = run.images_of(apply_edits(effects, tested.styles[rows], [edit]))
        for kind, reader in _readers(run, judge).items():
            for name, change in reader.moves(images, rows).items():
                found.setdefault(f"{kind} {name}", []).append(abs(float(known_mean(change))))
        logits = run.logits_of(images)
        for name in run.network.heads:
            every = effects.head(tested.logits_again, name)
            before, after = every[rows], effects.head(logits, name)
            which, own = _reached(before, after, target if name == run.task else None)
            shift = (after - before)[own, which].mean() / _spread(every, which)
            found.setdefault(f"head {name}", []).append(abs(float(shift)))
    known = {name: [v for v in values if np.isfinite(v)] for name, values in found.items()}
    return {name: float(np.quantile(values, 0.95)) for name, values in known.items() if values}
