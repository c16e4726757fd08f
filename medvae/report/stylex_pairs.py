"""Subjects before and after an edit, for people to look at."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from monai.data import MetaTensor
from monai.transforms import Invertd
from torch import Tensor

from medvae.data.output import write_bytes
from medvae.explain import Edit, StyleEffects, apply_edits
from medvae.report.colours import EVIDENCE, GREY, SIGNED
from medvae.report.plots import central_plane, panel_grid, save_figure
from medvae.report.stylex_images import Encoded, probabilities_of
from medvae.transforms import SaveSubjectd

if TYPE_CHECKING:
    from medvae.report.stylex_search import StylexSearch

__all__ = ["write_pairs"]

LEAST_PAIRS = 3
SHOWN = 6


def write_pairs(
    run: StylexSearch,
    effects: StyleEffects,
    tested: Encoded,
    edit: Edit,
    target: int,
    place: Path,
) -> dict[str, Any]:
    """Write where an edit acts, and pairs of the subjects that are farthest from where it leads.

    Of test images that are not of the class, pairs are those whose probability of it rises by
    `shown_change`, if there are three. `PLACE.npz` has them as bytes (``before`` and ``after``,
    (N, C, *S)) and the mean absolute difference over all these images (``difference``, *S), which
    `PLACE_where.png` shows; `PLACE.png` shows the pairs, and in 3D they and their differences are
    also NIfTI on the subjects' own grids.

    Returns:
        ``of``: how many images are not of the class, ``least_change``: of the probability,
        ``qualifying``: how many images reach it, ``shown``: id, probabilities of the class and the
        style's value before, ``files``: names.
    """
    end = (effects.low, effects.high)[edit.direction][edit.coordinate]
    own = tested.styles[:, edit.coordinate].cpu().numpy()
    base = effects.head(tested.logits_again, run.task).argmax(1)
    order = [int(n) for n in np.argsort(-np.abs(own - end), kind="stable") if base[n] != target]
    rows = order or [*range(len(base))]  # all are of the class: there is no pair to show
    after = run.images_of(
        apply_edits(effects, tested.styles[torch.as_tensor(rows).to(tested.styles.device)], [edit])
    )
    shares = [
        probabilities_of(logits, run.network.heads, run.task)[:, target]
        for logits in (tested.logits_again[rows], run.logits_of(after))
    ]
    rises = [n for n in range(len(order)) if shares[1][n] - shares[0][n] >= run.shown_change]
    kept = rises[:SHOWN] if len(rises) >= LEAST_PAIRS else []
    difference = (after - tested.again[rows]).abs().mean((0, 1)).numpy()
    before = tested.again[[rows[n] for n in kept]]
    shown = [
        {
            "id": tested.ids[rows[n]],
            "before": float(shares[0][n]),
            "after": float(shares[1][n]),
            "style": float(own[rows[n]]),
        }
        for n in kept
    ]
    content = io.BytesIO()
    np.savez_compressed(
        content, before=_bytes(before), after=_bytes(after[kept]), difference=difference
    )
    names = [f"{place.name}{ending}" for ending in (".npz", "_where.png")]
    write_bytes(place.with_name(names[0]), content.getvalue())
    _map(tested.again[rows].mean(0), difference, place.with_name(names[1]))
    if kept:
        names.append(f"{place.name}.png")
        _picture(before, after[kept], shown, place.with_name(names[-1]))
    if before.ndim == 5:
        for n, row in enumerate(kept):
            names += _volumes(run, tested.ids[rows[row]], before[n], after[row], place)
    return {
        "of": len(order),
        "least_change": run.shown_change,
        "qualifying": len(rises),
        "shown": shown,
        "files": names,
    }


def _map(mean: Tensor, difference: npt.NDArray[np.float32], path: Path) -> None:
    figure, (left, right) = panel_grid(2, 2, 1.7, 1.9)
    left.imshow(_plane(mean.numpy()), cmap=GREY, vmin=0, vmax=1)
    left.set_title("mean image", fontsize=7)
    right.imshow(central_plane(difference[None]), cmap=EVIDENCE, vmin=0)
    right.set_title(f"mean difference, up to {difference.max():.3f}", fontsize=7)
    for axis in (left, right):
        axis.set_axis_off()
    save_figure(figure, path)


def _picture(before: Tensor, after: Tensor, shown: list[dict[str, Any]], path: Path) -> None:
    figure, axes = panel_grid(3 * len(shown), len(shown), 1.7, 1.9)
    rows = (before.numpy(), after.numpy(), (after - before).numpy())
    for n, images in enumerate(rows):
        for axis, image, entry in zip(axes[n * len(shown) :], images, shown, strict=False):
            axis.set_axis_off()
            if n == 2:
                axis.imshow(central_plane(image), cmap=SIGNED, vmin=-0.5, vmax=0.5)
                continue
            axis.imshow(_plane(image), cmap=GREY, vmin=0, vmax=1)
            name = f"{entry['id']}\n" if n == 0 else ""
            axis.set_title(f"{name}p = {entry[('before', 'after')[n]]:.2f}", fontsize=7)
    save_figure(figure, path)


def _plane(image: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the central plane, in colour where there are three channels."""
    if len(image) != 3:
        return central_plane(image)
    return np.stack([central_plane(image[c : c + 1]) for c in range(3)], -1)


def _bytes(images: Tensor) -> npt.NDArray[np.uint8]:
    return (images * 255).round().clamp(0, 255).to(torch.uint8).numpy()


def _volumes(run: StylexSearch, name: str, before: Tensor, after: Tensor, place: Path) -> list[str]:
    """Write a pair and its difference as NIfTI on the grid of the subject's own image."""
    dataset, kinds = run.test.dataset, ("before", "after", "difference")
    number = [str(item["id"]) for item in dataset.data].index(name)
    item = dict(dataset[number])
    item |= {
        "before": MetaTensor(before),
        "after": MetaTensor(after),
        "difference": MetaTensor(after - before),
    }
    back = Invertd(kinds, dataset.transform, "image", nearest_interp=False)(item)
    low, high = run.window or (0.0, 1.0)
    starts = {"before": low, "after": low, "difference": 0.0}
    back |= {kind: back[kind] * (high - low) + start for kind, start in starts.items()}
    SaveSubjectd({kind: kind for kind in kinds}, place)(back)
    folder = f"{place.name}/{name.replace('/', '_')}"
    return [f"{folder}/{name.replace('/', '_')}_{kind}.nii.gz" for kind in kinds]
