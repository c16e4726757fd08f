"""Plots of a run: curves, codes against attributes, reconstructions."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from monai.config import KeysCollection
from monai.transforms import MapTransform
from monai.utils import ensure_tuple_rep

__all__ = [
    "MapMontaged",
    "plot_codes",
    "plot_curves",
    "plot_maps",
    "plot_reconstructions",
]

COLOURS = {"train": "0.75", "val": "tab:orange", "test": "tab:blue"}


def _grid(count: int, columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """Return a figure with at least `count` axes; those beyond are switched off."""
    columns = min(columns, count)
    rows = ceil(count / columns)
    figure = Figure(figsize=(columns * width, rows * height), layout="constrained")
    axes = list(np.ravel(figure.subplots(rows, columns, squeeze=False)))
    for axis in axes[count:]:
        axis.set_axis_off()
    return figure, axes[:count]


def _save(figure: Figure, path: str | Path) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return path


def plot_curves(history: Mapping[str, Sequence[float]], path: str | Path) -> Path:
    """Plot every term and metric of a run over its epochs, one panel each, and save it.

    Args:
        history: columns of numbers, one of them `epoch`; see `medvae.engines.read_history`.
        path: the PNG to write.
    """
    names = [name for name in history if name != "epoch"]
    figure, axes = _grid(len(names), 4, 3.0, 2.3)
    for axis, name in zip(axes, names, strict=True):
        values = np.asarray(history[name], dtype=float)
        axis.plot(history["epoch"], values, color="tab:blue", lw=1.2)
        if not name.startswith("val_") and np.nanmin(values) > 0:
            axis.set_yscale("log")
        if name.startswith("val_") and np.isfinite(values).any():
            best = int(np.nanargmax(values))
            axis.plot(history["epoch"][best], values[best], "o", color="tab:orange", ms=4)
        axis.set_title(name, fontsize=9)
        axis.set_xlabel("epoch", fontsize=8)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.3)
    return _save(figure, path)


def plot_codes(
    codes: np.ndarray,
    attributes: np.ndarray,
    names: Sequence[str],
    splits: Sequence[str],
    path: str | Path,
    scores: Sequence[float] | None = None,
    axes: Sequence[int] | None = None,
) -> Path:
    """Plot every attribute against its latent axis, coloured by split, and save it.

    Args:
        codes: posterior means on the K attributes' axes, shape (N, K).
        attributes: in their own units, shape (N, K), NaN where missing.
        names: of the K attributes.
        splits: of the N subjects.
        path: the PNG to write.
        scores: interpretability on the test split, for the titles.
        axes: numbers of the K latent axes; None counts from 0.
    """
    numbers = range(len(names)) if axes is None else axes
    figure, panels = _grid(len(names), 3, 3.3, 2.9)
    split_of = np.asarray(splits)
    for k, (axis, name) in enumerate(zip(panels, names, strict=True)):
        for split, colour in COLOURS.items():
            rows = split_of == split
            axis.scatter(
                codes[rows, k], attributes[rows, k], s=9, color=colour, label=split, linewidths=0
            )
        title = name if scores is None else f"{name}\ntest R² {scores[k]:.2f}"
        axis.set_title(title, fontsize=9)
        axis.set_xlabel(f"latent axis {numbers[k]}", fontsize=8)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.3)
    panels[0].legend(fontsize=7, frameon=False)
    return _save(figure, path)


def _plane(volume: np.ndarray) -> np.ndarray:
    """Return the first channel's central plane across the last axis, upright for the eye."""
    image = volume[0]
    if image.ndim == 3:
        image = image[..., image.shape[-1] // 2]
    return np.rot90(image)


def plot_reconstructions(
    images: np.ndarray,
    reconstructions: np.ndarray,
    titles: Sequence[str],
    path: str | Path,
) -> Path:
    """Plot central planes of images, their reconstructions and the difference, and save it.

    Args:
        images: in [0, 1], shape (N, C, *S); the first channel is shown.
        reconstructions: same shape.
        titles: one for each of the N columns.
        path: the PNG to write.
    """
    count = len(titles)
    figure = Figure(figsize=(1.7 * count + 0.6, 5.4), layout="constrained")
    axes = figure.subplots(3, count, squeeze=False)
    for column, title in enumerate(titles):
        image, reconstruction = _plane(images[column]), _plane(reconstructions[column])
        axes[0, column].imshow(image, cmap="gray", vmin=0, vmax=1)
        axes[1, column].imshow(reconstruction, cmap="gray", vmin=0, vmax=1)
        axes[2, column].imshow(reconstruction - image, cmap="RdBu_r", vmin=-0.5, vmax=0.5)
        axes[0, column].set_title(title, fontsize=8)
    for row, name in enumerate(("image", "reconstruction", "difference ±0.5")):
        axes[row, 0].set_ylabel(name, fontsize=8)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    return _save(figure, path)


def plot_maps(
    image: np.ndarray,
    maps: np.ndarray,
    names: Sequence[str],
    path: str | Path,
    spacing_mm: Sequence[float] | None = None,
) -> Path:
    """Plot where an image's attributes are read, over planes through each map's peak, and save it.

    Args:
        image: shape (C, *S), 2D or 3D; the first channel is shown.
        maps: shape (K, *S), larger is more; each is shown from 0 to its own peak.
        names: of the K maps.
        path: the PNG to write.
        spacing_mm: of the voxels, for the proportions; None: all the same.
    """
    volume = image[0]
    steps = np.ones(volume.ndim) if spacing_mm is None else np.asarray(spacing_mm, dtype=float)
    across = range(volume.ndim)[::-1] if volume.ndim == 3 else [None]
    figure = Figure(figsize=(2.1 * len(across) + 1.4, 2.1 * len(names)), layout="constrained")
    axes = figure.subplots(len(names), len(across), squeeze=False)
    grey = {"cmap": "gray", "vmin": float(volume.min()), "vmax": float(volume.max())}
    for row, name in enumerate(names):
        peak = np.unravel_index(int(maps[row].argmax()), volume.shape)
        top = float(maps[row].max())
        for panel, axis in zip(axes[row], across, strict=True):
            if axis is None:
                plane, shown, sizes = volume, maps[row], steps
            else:
                plane, shown = (v.take(int(peak[axis]), axis) for v in (volume, maps[row]))
                sizes = np.delete(steps, axis)
            aspect = float(sizes[1] / sizes[0])
            panel.imshow(np.rot90(plane), **grey, aspect=aspect)
            heat = np.rot90(shown)
            seen = 0.75 * np.clip(2 * heat / (top or 1.0), 0, 1)  # faint evidence does not veil
            drawn = panel.imshow(
                heat, cmap="inferno", vmin=0, vmax=top or 1.0, alpha=seen, aspect=aspect
            )
            panel.set_xticks([])
            panel.set_yticks([])
        figure.colorbar(drawn, ax=list(axes[row]), shrink=0.8)
        axes[row, 0].set_ylabel(name if top > 0 else f"{name}\n(nothing found)", fontsize=7)
    for panel, axis in zip(axes[0], across, strict=True):
        panel.set_title("" if axis is None else ("sagittal", "coronal", "axial")[axis], fontsize=8)
    return _save(figure, path)


class MapMontaged(MapTransform):
    """Write `plot_maps` of an item's image and maps to `ID_maps.png`; the item passes unchanged.

    Args:
        keys: the maps (K, *S), one key.
        names: of the K maps.
        output_dir: where the PNG goes, in a folder named by the item's id.
        image_key: the image (C, *S) on the maps' grid.
        spacing_mm: of that grid, one number or one per axis.
    """

    def __init__(
        self,
        keys: KeysCollection,
        names: Sequence[str],
        output_dir: str | Path,
        image_key: str = "image",
        spacing_mm: Sequence[float] | float = 1.0,
    ) -> None:
        super().__init__(keys)
        self.names = tuple(names)
        self.output_dir = Path(output_dir)
        self.image_key = image_key
        self.spacing_mm = spacing_mm

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Write the picture and return the item."""
        name = str(data["id"]).replace("/", "_")
        for key in self.keys:
            maps, image = (np.asarray(data[k]) for k in (key, self.image_key))
            spacing = ensure_tuple_rep(self.spacing_mm, image.ndim - 1)
            plot_maps(image, maps, self.names, self.output_dir / name / f"{name}_maps.png", spacing)
        return dict(data)
