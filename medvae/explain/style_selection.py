"""Which of the coordinates that AttFind searched explain a class, and which explain one image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medvae.explain.style_effects import LEAST_GAIN, Array, StyleEffects, moved

__all__ = [
    "Edit",
    "apply_edits",
    "artefacts",
    "class_deficits",
    "class_gains",
    "explain_image",
    "merge_classes",
    "select",
    "stable_images",
]


class Edit(NamedTuple):
    """One coordinate, moved one way.

    Attributes:
        direction: 0 down, 1 up.
        coordinate: its number.
        score: mean gain in the log odds of the class, over the images that voted for it.
        images: how many voted.
    """

    direction: int
    coordinate: int
    score: float
    images: int


def select(
    gains: npt.ArrayLike,
    count: int = 10,
    explained_at: npt.ArrayLike = 1.0,
    excluded: Sequence[tuple[int, int]] = (),
    least_images: int = 1,
) -> list[Edit]:
    """Choose edits greedily, each by the images that those before it do not explain yet.

    The subset selection of Lang et al. (2021): an image that has gained `explained_at` together no
    longer votes, so that what explains few images, but strongly, also gets its turn. The list is
    short where nothing is left to explain or gains are below 0.001; it is never filled up.

    Args:
        gains: in the log odds of a class, of images that are not of that class, shape (N, 2, S).
        count: the most edits to choose.
        explained_at: the sum of gains from which on an image is explained, one number (1 logit, as
            published) or one for each image, such as `class_deficits`; infinity: all vote always.
        excluded: pairs (direction, coordinate) that are not to be chosen, such as artefacts.
        least_images: images that must still vote.

    Returns:
        Edits in the order of choice, each pair at most once.

    Raises:
        ValueError: gains that are not finite or not of that shape.
    """
    table = np.array(gains, dtype=np.float64)
    if table.ndim != 3 or table.shape[1] != 2 or not np.isfinite(table).all():
        raise ValueError(
            f"gains have shape {table.shape}, expected finite numbers of shape (N, 2, S)"
        )
    table = np.maximum(table, 0)
    for direction, coordinate in excluded:
        table[:, direction, coordinate] = 0
    flat = table.reshape(len(table), 2 * table.shape[2])
    enough = np.asarray(explained_at, dtype=np.float64)
    gained = np.zeros(len(flat))
    chosen: list[Edit] = []
    while len(chosen) < count:
        voting = gained < enough
        if voting.sum() < max(1, least_images):
            break
        means = flat[voting].mean(0)
        best = int(means.argmax())
        if means[best] <= LEAST_GAIN:
            break
        direction, coordinate = divmod(best, table.shape[2])
        chosen.append(Edit(direction, coordinate, float(means[best]), int(voting.sum())))
        gained += flat[:, best]
        flat[:, best] = 0
    return chosen


def class_gains(effects: StyleEffects, head: str, target: int) -> Array:
    """Return what `select` takes: gains of a class on the images that are not of it, (N', 2, S)."""
    rows = effects.predicted(head) != target
    return effects.change(head)[rows][..., target]


def class_deficits(effects: StyleEffects, head: str, target: int) -> Array:
    """Return the gain that each image which is not of a class lacks to be of it, (N',)."""
    odds = effects.head(effects.base, head)[effects.predicted(head) != target]
    return np.maximum(-odds[:, target], LEAST_GAIN)


def merge_classes(
    effects: StyleEffects, head: str, edits: Sequence[Edit], target: int, reverse: Sequence[Edit]
) -> list[Edit]:
    """Return one list for a binary head, of edits for a class and of those for the other one.

    Edits of the other class are turned around, a coordinate comes once, and the order is by the
    mean gain of the class one way plus the mean gain of the other class the other way, over all
    images.
    """
    change = effects.change(head)
    turned = [edit._replace(direction=1 - edit.direction) for edit in reverse]
    merged: dict[int, Edit] = {}
    for edit in [*edits, *turned]:
        there = change[:, edit.direction, edit.coordinate, target].mean()
        back = change[:, 1 - edit.direction, edit.coordinate, 1 - target].mean()
        known = merged.get(edit.coordinate)
        if known is None or there + back > known.score:
            merged[edit.coordinate] = edit._replace(score=float(there + back))
    return sorted(merged.values(), key=lambda edit: -edit.score)


def apply_edits(effects: StyleEffects, styles: Tensor, edits: Sequence[Edit]) -> Tensor:
    """Return styles (N, S') of any images with several edits at once.

    Args:
        effects: the search, which says what a coordinate is moved towards, and how far.
        styles: of the images, shape (N, S').
        edits: of one coordinate each.
    """
    changed = styles.clone()
    for edit in edits:
        end = (effects.low, effects.high)[edit.direction][edit.coordinate]
        start = styles[:, edit.coordinate].detach().cpu().numpy()
        changed[:, edit.coordinate] = torch.as_tensor(moved(start, end, effects.shift)).to(styles)
    return changed


@torch.no_grad()
def explain_image(
    effects: StyleEffects,
    image: int,
    head: str,
    target: int,
    logits_of: Callable[[Tensor], Tensor] | None = None,
    styles: Tensor | None = None,
    count: int = 5,
    candidates: int = 20,
) -> tuple[list[Edit], bool]:
    """Explain one image by its own edits, alone or as a set (Lang et al. 2021, section 3.4).

    Independent, without `logits_of`: the edits with the largest gains of this image. Subset: edits
    are added one at a time, each the best together with those before, until the class is predicted.

    Args:
        effects: the search.
        image: its number.
        head: of the classifier.
        target: class to move to.
        logits_of: styles (B, S') to logits (B, O), by generator and classifier; None: independent.
        styles: of all images, shape (N, S'), for the subset.
        count: the most edits.
        candidates: edits with the largest gains, among which a subset is looked for.

    Returns:
        The edits, scored by what they gain alone (independent) or in their turn (subset), and
        whether the class is predicted with them: for independent ones with any alone.
    """
    gains = effects.change(head)[image, ..., target]
    order = np.argsort(-gains, axis=None, kind="stable")
    pairs = [divmod(int(n), gains.shape[1]) for n in order[:candidates]]
    pool = [Edit(d, k, float(gains[d, k]), 1) for d, k in pairs if gains[d, k] > LEAST_GAIN]
    if logits_of is None or styles is None:
        flips = [
            effects.head(effects.edited[image, e.direction, e.coordinate], head).argmax() == target
            for e in pool[:count]
        ]
        return pool[:count], any(flips)
    chosen: list[Edit] = []
    before = effects.head(effects.base[image], head)
    own = styles[image : image + 1]
    while pool and len(chosen) < count and before.argmax() != target:
        tried = torch.cat([apply_edits(effects, own, [*chosen, e]) for e in pool])
        odds = effects.head(logits_of(tried).float().cpu().numpy(), head)
        best = int(odds[:, target].argmax())
        gain = float(odds[best, target] - before[target])
        if gain <= LEAST_GAIN:
            break
        chosen.append(pool[best]._replace(score=gain))
        before = odds[best]
        pool = [e for e in pool if e.coordinate != chosen[-1].coordinate]
    return chosen, bool(before.argmax() == target)


def stable_images(
    effects: StyleEffects, threshold: float = 2.0, share: float = 0.065
) -> npt.NDArray[np.bool_]:
    """Return which images (N,) few edits change strongly; the others may be out of distribution.

    Args:
        effects: the search, which is left as it is.
        threshold: a change of log odds that is strong.
        share: of the edits, beyond which an image is not stable.
    """
    strong = [np.abs(effects.change(head)) > threshold for head in effects.heads]
    shares = np.concatenate([part.reshape(len(part), -1) for part in strong], 1).mean(1)
    stable: npt.NDArray[np.bool_] = shares <= share
    return stable


@torch.no_grad()
def artefacts(
    effects: StyleEffects,
    styles: Tensor,
    edits: Sequence[Edit],
    score_of: Callable[[Tensor, Any], Tensor],
    limit: float = 0.2,
    count: int = 10,
    head: str | None = None,
    target: int = 1,
) -> list[Edit]:
    """Return the edits whose images a discriminator finds less real, or more, than before.

    Each is judged both ways, as it is shown and counted both ways.

    Args:
        effects: the search.
        styles: that were searched, shape (N, S').
        edits: to judge.
        score_of: styles (B, S') and the numbers of their images to the discriminator's score (B,).
        limit: of the score's change, either way.
        count: images for each way: those that it gains most on, or loses.
        head: whose gains say on which images to judge; None: the first head.
        target: class of that head.
    """
    found = []
    change = effects.change(head or next(iter(effects.heads)))
    for edit in edits:
        back = edit._replace(direction=1 - edit.direction)
        for way, sign in ((edit, 1), (back, -1)):
            gains = sign * change[:, way.direction, way.coordinate, target]
            rows = np.argsort(-gains, kind="stable")[:count]
            own = styles[torch.as_tensor(rows, device=styles.device)]
            before = score_of(own, rows)
            after = score_of(apply_edits(effects, own, [way]), rows)
            if bool(((after - before).abs() > limit).any()):
                found.append(edit)
                break
    return found
