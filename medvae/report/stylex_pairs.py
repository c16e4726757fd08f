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
from medvae.report.colours import GREY, SIGNED
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
    """Write pairs of the subjects that are farthest from where an edit leads, if there are three.

    Of images that are not of the class, those whose probability of it rises by `shown_change`.
    Writes `PLACE.png`, `PLACE.npz` (images before and after as bytes, and the mean absolute
    difference) and, in 3D, NIfTI on the subjects' own grids.

    Returns:
        ``qualifying``: how many images there are, ``shown``: id, probabilities of the class and
        the styles' values before and after, ``files``: names, none with fewer than three.
    """
    end = (effects.low, effects.high)[edit.direction][edit.coordinate]
    own = tested.styles[:, edit.coordinate].cpu().numpy()
    base = effects.head(tested.logits_again, run.task).argmax(1)
    order = [int(n) for n in np.argsort(-np.abs(own - end), kind="stable") if base[n] != target]
    found: dict[str, Any] = {"qualifying": 0, "shown": [], "files": []}
    if not order:
        return found
    rows = torch.as_tensor(order, device=tested.styles.device)
    after = run.images_of(apply_edits(effects, tested.styles[rows], [edit]))
    shares = [
        probabilities_of(logits, run.network.heads, run.task)[:, target]
        for logits in (tested.logits_again[order], run.logits_of(after))
    ]
    kept = [n for n in range(len(order)) if shares[1][n] - shares[0][n] >= run.shown_change]
    found["qualifying"] = len(kept)
    if len(kept) < LEAST_PAIRS:
        return found
    difference = (after - tested.again[order]).abs().mean((0, 1)).numpy()
    kept = kept[:SHOWN]
    before = tested.again[[order[n] for n in kept]]
    found["shown"] = [
        {
            "id": tested.ids[order[n]],
            "before": float(shares[0][n]),
            "after": float(shares[1][n]),
            "style": float(own[order[n]]),
        }
        for n in kept
    ]
    _picture(before, after[kept], found["shown"], place.with_suffix(".png"))
    content = io.BytesIO()
    np.savez_compressed(
        content, before=_bytes(before), after=_bytes(after[kept]), difference=difference
    )
    write_bytes(place.with_suffix(".npz"), content.getvalue())
    found["files"] = [place.with_suffix(".png").name, place.with_suffix(".npz").name]
    if before.ndim == 5:
        for n, row in enumerate(kept):
            found["files"] += _volumes(run, tested.ids[order[row]], before[n], after[row], place)
    return found


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
    """Write a pair as NIfTI on the grid of the subject's own image."""
    dataset, kinds = run.test.dataset, ("before", "after")
    number = [str(item["id"]) for item in dataset.data].index(name)
    item = dict(dataset[number])
    item |= {"before": MetaTensor(before), "after": MetaTensor(after)}
    back = Invertd(kinds, dataset.transform, "image", nearest_interp=False)(item)
    low, high = run.window or (0.0, 1.0)
    back |= {kind: back[kind] * (high - low) + low for kind in kinds}
    SaveSubjectd({kind: kind for kind in kinds}, place)(back)
    folder = f"{place.name}/{name.replace('/', '_')}"
    return [f"{folder}/{name.replace('/', '_')}_{kind}.nii.gz" for kind in kinds]
