"""What the first edits do together: decisions that flip, and how good the images stay."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medvae.engines import image_features
from medvae.explain import Edit, StyleEffects, apply_edits, class_gains, explain_image
from medvae.metrics import degraded, mean_with_interval, realism_report
from medvae.networks.stylex import shown
from medvae.report.measuring import known_mean
from medvae.report.stylex import patients_of
from medvae.report.stylex_effects import CHANGED, COMPARED, random_edits
from medvae.report.stylex_images import Encoded, in_batches, some_rows
from medvae.report.stylex_judge import Judge

if TYPE_CHECKING:
    from medvae.report.stylex_search import StylexSearch

__all__ = ["flip_report"]

Flipped = tuple[npt.NDArray[np.bool_], npt.NDArray[np.intp], Tensor]
TOGETHER = (1, 3, 5, 10)
NEIGHBOURS = 3
PER_IMAGE = 20


def flip_report(
    run: StylexSearch,
    effects: StyleEffects,
    found: Encoded,
    tested: Encoded,
    judge: Judge,
    lists: Mapping[int, list[Edit]],
) -> dict[str, Any]:
    """Report what the first edits flip together, beside random ones and a direction of the code.

    The last of the numbers under ``top`` is that of the longest list: all edits together. Random
    edits are as many for each class as its own. ``identity`` is how far each attribute that is
    measured again moved, whichever way, in the mean over images.
    """
    patients = patients_of(run.factors, tested.ids)
    report: dict[str, Any] = {"images": len(tested.ids), "top": {}}
    longest = max(1, *map(len, lists.values()))
    largest = None
    for count in (*(n for n in TOGETHER if n < longest), longest):
        first = {target: edits[:count] for target, edits in lists.items()}
        flipped = _flipped_by_edits(run, effects, tested, first)
        if len(flipped[1]) == 0:
            break
        largest = flipped[1:]
        luck = _flipped_by_luck(run, effects, tested, first)
        report["top"][str(count)] = _together(run, patients, flipped, luck)
    flips, rows, _ = _flipped_by_direction(run, effects, found, tested, list(lists))
    report["latent_direction"] = mean_with_interval(flips, patients[rows], run.n_resamples)
    report["coverage"] = _coverage(run, effects, lists)
    report["per_image"] = _per_image(run, effects, found)
    if largest is not None:
        rows, images = largest
        report["together"] = _quality(run, tested, judge, rows, images)
    return report


def _together(
    run: StylexSearch,
    patients: npt.NDArray[np.object_],
    flipped: Flipped,
    luck: Iterable[Flipped],
) -> dict[str, Any]:
    """Report what edits together flip, and how far they move attributes, beside random edits."""
    flips, rows, images = flipped
    measuring = run.measuring
    some = some_rows(len(rows), COMPARED, run.seed)
    rates, far = [], []
    for by_luck, _, others in luck:  # of the same rows
        rates.append(float(by_luck.mean()))
        if measuring is not None:
            far.append(measuring.moves(others[torch.as_tensor(some)], rows[some]))
    entry: dict[str, Any] = {
        "flip_rate": mean_with_interval(flips, patients[rows], run.n_resamples),
        "random": _drawn(rates),
        "identity": {},
    }
    if measuring is not None:
        entry["identity"] = {
            name: mean_with_interval(np.abs(change), patients[rows], run.n_resamples)
            | {"random": _drawn([float(known_mean(np.abs(part[name]))) for part in far])}
            for name, change in measuring.moves(images, rows).items()
        }
    return entry


def _drawn(values: Sequence[float]) -> dict[str, float | None]:
    """Return the mean and the SD of what draws of random edits did, where it is known."""
    known = [value for value in values if np.isfinite(value)]
    return {
        "value": float(np.mean(known)) if known else None,
        "sd": float(np.std(known, ddof=1)) if len(known) > 1 else None,
    }


def _flipped_by_luck(
    run: StylexSearch, effects: StyleEffects, tested: Encoded, first: Mapping[int, Sequence[Edit]]
) -> Iterator[Flipped]:
    """Make as many random edits for each class as its own, five times."""
    generator = np.random.default_rng(run.seed)
    for _ in range(5):
        drawn = {
            target: random_edits(effects, generator, len(edits), run.task, target)
            for target, edits in first.items()
        }
        yield _flipped_by_edits(run, effects, tested, drawn)


def _flipped(
    run: StylexSearch,
    effects: StyleEffects,
    tested: Encoded,
    targets: Iterable[int],
    edit: Callable[[int, Tensor], Tensor | None],
) -> Flipped:
    """Return which images take the class that edits lead to, their rows and the edited images.

    Args:
        run: the search.
        effects: its effects.
        tested: the images.
        targets: classes; images of the class itself are left out.
        edit: the images of a class and rows after their edits; None where there is no way to it.
    """
    base = effects.head(tested.logits_again, run.task).argmax(1)
    flips, rows, images = [], [], []
    for target in targets:
        others = np.flatnonzero(base != target)
        if len(others) == 0:
            continue
        edited = edit(target, torch.as_tensor(others, device=tested.styles.device))
        if edited is None:
            continue
        flips.append(effects.head(run.logits_of(edited), run.task).argmax(1) == target)
        rows.append(others)
        images.append(edited)
    if not rows:
        return np.zeros(0, bool), np.zeros(0, np.intp), tested.images[:0]
    return np.concatenate(flips), np.concatenate(rows), torch.cat(images)


def _flipped_by_edits(
    run: StylexSearch, effects: StyleEffects, tested: Encoded, lists: Mapping[int, Sequence[Edit]]
) -> Flipped:
    """Make each class's edits in the images of the others."""

    def edit(target: int, rows: Tensor) -> Tensor:
        return run.images_of(apply_edits(effects, tested.styles[rows], lists[target]))

    return _flipped(run, effects, tested, lists, edit)


@torch.no_grad()
def _flipped_by_direction(
    run: StylexSearch,
    effects: StyleEffects,
    found: Encoded,
    tested: Encoded,
    targets: Sequence[int],
) -> Flipped:
    """Move codes along the difference of the classes' mean codes, to its end among the searched.

    The encoder's code alone: the classifier's probabilities beside it are left as they are.
    """
    size = run.network.latent_dim
    classes = effects.head(found.logits_again, run.task).argmax(1)
    code = found.w[:, :size]

    def edit(target: int, rows: Tensor) -> Tensor | None:
        of_class = torch.as_tensor(classes == target, device=found.w.device)
        if not of_class.any() or of_class.all():
            return None
        direction = code[of_class].mean(0) - code[~of_class].mean(0)
        direction = direction / direction.norm().clamp_min(1e-12)
        w = tested.w[rows].clone()
        step = (code @ direction).max() - w[:, :size] @ direction
        w[:, :size] += step[:, None] * direction
        return in_batches(lambda part: shown(run.network.generator.synthesis(part)), w)

    return _flipped(run, effects, tested, targets, edit)


def _coverage(
    run: StylexSearch, effects: StyleEffects, lists: Mapping[int, Sequence[Edit]]
) -> float | None:
    """Return the share of searched images that the edits explain: enough gain, or a flip alone."""
    explained = []
    after = effects.head(effects.edited, run.task).argmax(-1)
    for target, edits in lists.items():
        rows = effects.predicted(run.task) != target
        gains = np.maximum(class_gains(effects, run.task, target), 0)
        total = sum((gains[:, e.direction, e.coordinate] for e in edits), np.zeros(len(gains)))
        alone = [after[rows, e.direction, e.coordinate] == target for e in edits]
        done = (total >= run.enough(effects, target)) | np.any(
            [np.zeros(len(gains), bool), *alone], axis=0
        )
        explained.append(done)
    every = np.concatenate(explained)
    return float(every.mean()) if len(every) else None


def _per_image(run: StylexSearch, effects: StyleEffects, found: Encoded) -> dict[str, Any]:
    """Report how many images are flipped by edits of their own, alone and as a set."""

    def logits_of(styles: Tensor) -> Tensor:
        return in_batches(
            lambda part: run.drawn(run.network.generator.synthesis_from_styles(part)),
            styles,
            run.batch_size,
        )

    rows = [int(row) for row in some_rows(len(found.ids), PER_IMAGE, run.seed)]
    entries: list[dict[str, Any]] = []
    for row in rows:
        base = effects.head(effects.base[row], run.task)
        target = int(np.argsort(-base, kind="stable")[1])
        alone, one = explain_image(effects, row, run.task, target)
        together, flipped = explain_image(effects, row, run.task, target, logits_of, found.styles)
        entries.append(
            {
                "id": found.ids[row],
                "from": int(base.argmax()),
                "to": target,
                "independent": [edit._asdict() for edit in alone],
                "flipped_by_one": one,
                "subset": [edit._asdict() for edit in together],
                "flipped_by_subset": flipped,
            }
        )
    return {
        "images": len(entries),
        "flipped_by_one": float(np.mean([e["flipped_by_one"] for e in entries])),
        "flipped_by_subset": float(np.mean([e["flipped_by_subset"] for e in entries])),
        "explanations": entries,
    }


def _quality(
    run: StylexSearch, tested: Encoded, judge: Judge, rows: npt.NDArray[np.intp], images: Tensor
) -> dict[str, Any]:
    """Report how close to their images, and how real, those with all edits are."""
    patients = patients_of(run.factors, tested.ids)[rows]
    difference = (images - tested.again[torch.as_tensor(rows)]).abs().flatten(1)
    report: dict[str, Any] = {
        "l1": mean_with_interval(difference.mean(1).numpy(), patients, run.n_resamples),
        "changed_share": mean_with_interval(
            (difference > CHANGED).float().mean(1).numpy(), patients, run.n_resamples
        ),
        "discriminator": _scores(run, tested, rows, images, patients),
        "moves": {
            name: mean_with_interval(np.abs(change), patients, run.n_resamples)
            for name, change in judge.moves(images, rows).items()
        },
    }
    if judge.network is not None and min(len(tested.images) // 2, len(images)) > NEIGHBOURS:
        real = image_features(judge.network, tested.images)
        worse = image_features(judge.network, degraded(tested.images))
        for name, part in (("edited", images), ("reconstructed", tested.again)):
            report[f"realism_{name}"] = realism_report(
                image_features(judge.network, part),
                real,
                judge.network.name,
                worse,
                NEIGHBOURS,
                seed=run.seed,
            )
    return report


@torch.no_grad()
def _scores(
    run: StylexSearch,
    tested: Encoded,
    rows: npt.NDArray[np.intp],
    images: Tensor,
    patients: npt.NDArray[np.object_],
) -> dict[str, Any]:
    """Report the discriminator's change of mind from the reconstruction to the edited image."""

    def score(part: Tensor) -> Tensor:
        part = part.to(run.device)
        shares = run.network.probabilities(run.classifier(part))
        return run.network.discriminator(2 * part - 1, shares)[:, 0]

    before = in_batches(score, tested.again[torch.as_tensor(rows)])
    return mean_with_interval(
        (in_batches(score, images) - before).numpy(), patients, run.n_resamples
    )
