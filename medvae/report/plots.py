"""Plots of a run: curves, codes against attributes, reconstructions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from math import ceil
from pathlib import Path
from textwrap import fill

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from monai.utils import ensure_tuple_rep

from medvae.data.output import write_bytes
from medvae.metrics import psnr
from medvae.report.colours import CATEGORIES, GREY, SIGNED, SPLITS

__all__ = [
    "plot_codes",
    "plot_curves",
    "plot_estimates",
    "plot_predictions",
    "plot_ranked",
    "plot_reconstructions",
    "plot_series",
]

RANKED = 8  # columns of reconstructions


def panel_grid(count: int, columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """Return a figure with at least `count` axes; those beyond are switched off."""
    columns = min(columns, count)
    rows = ceil(count / columns)
    figure = Figure(figsize=(columns * width, rows * height), layout="constrained")
    axes = list(np.ravel(figure.subplots(rows, columns, squeeze=False)))
    for axis in axes[count:]:
        axis.set_axis_off()
    return figure, axes[:count]


def save_figure(figure: Figure, path: str | Path) -> Path:
    picture = BytesIO()
    figure.savefig(picture, dpi=110)
    write_bytes(path, picture.getvalue())
    return Path(path)


def plot_curves(history: Mapping[str, Sequence[float]], path: str | Path) -> Path:
    """Plot every term and metric of a run over its epochs, one panel each, and save it.

    Args:
        history: columns of numbers, one of them `epoch`; see `medvae.engines.read_history`.
        path: the PNG to write.
    """
    names = [name for name in history if name != "epoch"]
    figure, axes = panel_grid(len(names), 4, 3.0, 2.3)
    for axis, name in zip(axes, names, strict=True):
        values = np.asarray(history[name], dtype=float)
        axis.plot(history["epoch"], values, color=CATEGORIES[0], lw=1.2)
        if not name.startswith("val_") and np.nanmin(values) > 0:
            axis.set_yscale("log")
        if name.startswith("val_") and np.isfinite(values).any():
            best = int(np.nanargmax(values))
            axis.plot(history["epoch"][best], values[best], "o", color=CATEGORIES[1], ms=4)
        axis.set_title(name, fontsize=9)
        axis.set_xlabel("epoch", fontsize=8)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.3)
    return save_figure(figure, path)


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
    figure, panels = panel_grid(len(names), 3, 3.3, 2.9)
    split_of = np.asarray(splits)
    for k, (axis, name) in enumerate(zip(panels, names, strict=True)):
        for split, colour in SPLITS.items():
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
    return save_figure(figure, path)


def central_plane(volume: np.ndarray) -> np.ndarray:
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
        image, reconstruction = (
            central_plane(images[column]),
            central_plane(reconstructions[column]),
        )
        axes[0, column].imshow(image, cmap=GREY, vmin=0, vmax=1)
        axes[1, column].imshow(reconstruction, cmap=GREY, vmin=0, vmax=1)
        axes[2, column].imshow(reconstruction - image, cmap=SIGNED, vmin=-0.5, vmax=0.5)
        axes[0, column].set_title(title, fontsize=8)
    for row, name in enumerate(("image", "reconstruction", "difference ±0.5")):
        axes[row, 0].set_ylabel(name, fontsize=8)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    return save_figure(figure, path)


def plot_ranked(
    images: np.ndarray, reconstructions: np.ndarray, names: Sequence[str], path: str | Path
) -> Path:
    """Plot reconstructions from the best to the worst, evenly over all, with their PSNR in dB.

    Args:
        images: in [0, 1], shape (N, C, *S).
        reconstructions: same shape.
        names: of the N subjects.
        path: the PNG to write.
    """
    scores = psnr(reconstructions, images)
    order = np.argsort(-scores, kind="stable")
    rows = order[np.linspace(0, len(order) - 1, min(RANKED, len(order))).astype(int)]
    titles = [f"{names[row]}\n{scores[row]:.1f} dB" for row in rows]
    return plot_reconstructions(images[rows], reconstructions[rows], titles, path)


def broken(name: str, width: int = 18) -> str:
    """Return a name in lines, broken behind its underscores."""
    return fill(name.replace("_", "_ "), width).replace("_ ", "_")


def plot_series(
    images: Mapping[str, np.ndarray],
    titles: Mapping[str, Sequence[str]],
    path: str | Path,
    spacing_mm: Sequence[float] | float = 1.0,
) -> Path:
    """Plot central planes of named rows of images, each with its title, and save them.

    Args:
        images: by the rows' names, in [0, 1], shape (V, *S), 2D or 3D.
        titles: of the V images of every row.
        path: the PNG to write.
        spacing_mm: of the voxels, for the proportions.
    """
    columns = max(map(len, images.values()))
    figure = Figure(figsize=(1.4 * columns + 1.2, 1.6 * len(images)), layout="constrained")
    axes = figure.subplots(len(images), columns, squeeze=False)
    for panel in axes.flat:
        panel.set_xticks([])
        panel.set_yticks([])
        panel.set_frame_on(False)
    for row, (name, series) in zip(axes, images.items(), strict=True):
        row[0].set_ylabel(broken(name), fontsize=8)
        for panel, image, title in zip(row, series, titles[name], strict=False):
            steps = ensure_tuple_rep(spacing_mm, image.ndim)
            plane, aspect = central_plane(image[None]), float(steps[1] / steps[0])
            panel.imshow(plane, cmap=GREY, vmin=0, vmax=1, aspect=aspect)
            panel.set_title(title, fontsize=8)
    return save_figure(figure, path)


def plot_estimates(
    panels: Mapping[str, Mapping[str, Sequence[float | None]]], path: str | Path
) -> Path:
    """Plot estimates of effects below each other, with intervals where there are any, and save it.

    Args:
        panels: for every title value, low and high of each method by its name; None: not known.
        path: the PNG to write.
    """
    longest = max(map(len, panels.values()))
    figure, axes = panel_grid(len(panels), 2, 4.6, 0.9 + 0.26 * longest)
    for axis, (title, rows) in zip(axes, panels.items(), strict=True):
        axis.axvline(0, color="0.6", lw=1)
        for y, (value, low, high) in enumerate(rows.values()):
            if value is not None:
                axis.plot(value, y, "o", color=CATEGORIES[0], ms=5)
            if low is not None and high is not None:
                axis.plot([low, high], [y, y], color=CATEGORIES[0], lw=1.5)
        axis.set_yticks(range(len(rows)), list(rows), fontsize=8)
        axis.invert_yaxis()
        axis.set_title(title, fontsize=9)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.3)
    return save_figure(figure, path)


def plot_predictions(
    observed: np.ndarray,
    predicted: np.ndarray,
    names: Sequence[str],
    groups: Sequence[str],
    path: str | Path,
) -> Path:
    """Plot predicted against observed numbers, one panel each, coloured by group, and save it.

    Args:
        observed: in their own units, shape (N, Q), NaN where missing.
        predicted: same shape.
        names: of the Q numbers.
        groups: of the N subjects.
        path: the PNG to write.
    """
    figure, axes = panel_grid(len(names), 3, 3.3, 3.1)
    group_of = np.asarray(groups)
    for k, (axis, name) in enumerate(zip(axes, names, strict=True)):
        for n, group in enumerate(dict.fromkeys(sorted(groups))):
            rows = group_of == group
            colour = CATEGORIES[n % len(CATEGORIES)]
            axis.scatter(
                observed[rows, k], predicted[rows, k], s=9, color=colour, label=group, linewidths=0
            )
        middle = float(np.nanmean(observed[:, k]))
        axis.axline((middle, middle), slope=1, color="0.6", lw=1)
        axis.set_title(name, fontsize=9)
        axis.set_xlabel("observed", fontsize=8)
        axis.set_ylabel("predicted", fontsize=8)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=7, frameon=False)
    return save_figure(figure, path)
