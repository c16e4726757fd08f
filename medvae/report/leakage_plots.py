"""Pictures of leakage: the matrix of subspaces and factors, and the codes of every subspace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from medvae.report.colours import CATEGORIES, SHARE
from medvae.report.plots import save_figure

__all__ = ["plot_embeddings", "plot_leakage"]

TITLES = {"natural": "bank as it is", "balanced": "bank balanced"}
LEAST_ROWS = 5
CENTRED: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 9}


def plot_leakage(report: Mapping[str, Any], path: str | Path) -> Path:
    """Plot what every subspace tells of every factor, on the natural and the balanced bank.

    Cells show the best probe's points above chance; a frame marks a subspace's own factor, where
    many points are wanted. Numbers within chance (not above the 95th percentile of permuted
    labels) are in brackets; a dash is what could not be measured.

    Args:
        report: of `medvae.metrics.leakage_matrix` or `leakage_report`.
        path: the PNG to write.
    """
    subspaces, factors = list(report["subspaces"]), list(report["factors"])
    width, height = 2.2 + 1.0 * len(factors), 1.5 + 0.52 * len(subspaces)
    figure = Figure(figsize=(2 * width, height), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axis, (bank, title) in zip(panels, TITLES.items(), strict=True):
        table = report["matrix"][bank]
        cells = [[table[s][f]["best"] for f in factors] for s in subspaces]
        shown = np.array(
            [[np.nan if c["points"] is None else c["points"] for c in row] for row in cells]
        )
        picture = axis.imshow(shown, cmap=SHARE, vmin=0, vmax=_top(report), aspect="auto")
        for (row, column), value in np.ndenumerate(shown):
            luck = cells[row][column]["chance_p95"]
            colour = "white" if value < 0.55 * _top(report) else "black"
            axis.text(column, row, _points(value, luck), color=colour, **CENTRED)
            if subspaces[row] == factors[column]:
                axis.add_patch(_frame(row, column))
        axis.set_title(title, fontsize=9)
        axis.set_xticks(range(len(factors)), factors, fontsize=8)
        axis.set_yticks(range(len(subspaces)), subspaces, fontsize=8)
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
    panels[0].set_ylabel("subspace", fontsize=8)
    figure.supxlabel("factor (framed: the subspace's own; in brackets: within chance)", fontsize=8)
    bar = figure.colorbar(picture, ax=panels, fraction=0.04, pad=0.01)
    bar.set_label("points above chance", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    bar.outline.set_visible(False)
    return save_figure(figure, path)


def plot_embeddings(
    codes: npt.ArrayLike,
    subspaces: Mapping[str, slice],
    factors: npt.ArrayLike,
    kinds: Mapping[str, str],
    path: str | Path,
    names: Mapping[str, Sequence[str]] | None = None,
    seed: int = 0,
) -> Path:
    """Plot every subspace in two dimensions, a row, coloured by each factor, a column.

    Subspaces of one or two dimensions are shown as they are, larger ones by t-SNE (van der Maaten
    and Hinton 2008) from their principal components, with a perplexity of 30 or, of fewer than 150
    rows, a fifth of their number. A picture, no measurement: distances between clusters, and their
    sizes, mean little.

    Args:
        codes: shape (N, D), finite.
        subspaces: where each lies in the codes.
        factors: class numbers or continuous values, shape (N, K), NaN or negative classes where
            missing (grey).
        kinds: of the K factors by name: categorical, ordinal or continuous.
        path: the PNG to write.
        names: of a factor's classes, for the legend.
        seed: of t-SNE.

    Raises:
        ValueError: fewer than five rows, or shapes that do not fit each other.
    """
    z, labels = np.asarray(codes, dtype=np.float64), np.array(factors, dtype=np.float64)
    if len(z) < LEAST_ROWS or labels.shape != (len(z), len(kinds)):
        raise ValueError(
            f"codes have shape {z.shape} and factors {labels.shape}, expected (N, D) and "
            f"(N, {len(kinds)}), N >= {LEAST_ROWS}"
        )
    shape = (len(subspaces), len(kinds))
    figure = Figure(figsize=(2.6 * shape[1] + 0.3, 2.3 * shape[0] + 0.6), layout="constrained")
    panels = figure.subplots(*shape, squeeze=False)
    for row, (subspace, part) in enumerate(subspaces.items()):
        plane = embedded(z[:, part], seed)
        panels[row, 0].set_ylabel(subspace, fontsize=9)
        for column, (factor, kind) in enumerate(kinds.items()):
            axis = panels[row, column]
            values = labels[:, column]
            if kind == "continuous":
                _scatter_values(figure, axis, plane, values)
            else:
                _scatter_classes(axis, plane, values, (names or {}).get(factor), row == 0)
            axis.set_xticks([])
            axis.set_yticks([])
            if row == 0:
                axis.set_title(f"coloured by {factor}", fontsize=9)
    return save_figure(figure, path)


def embedded(codes: npt.NDArray[np.float64], seed: int = 0) -> npt.NDArray[np.float64]:
    """Return codes (N, D) in two dimensions, (N, 2); see `plot_embeddings`."""
    rows, dimensions = codes.shape
    if dimensions < 3:
        return np.pad(codes, ((0, 0), (0, 2 - dimensions)))
    spread = codes.std(axis=0).max()
    if spread == 0:
        return np.zeros((rows, 2))
    start = PCA(2, svd_solver="full").fit_transform(codes)
    start *= 1e-4 / max(float(start[:, 0].std()), 1e-12)  # as scikit-learn scales its own
    model = TSNE(2, perplexity=min(30.0, rows / 5), init=start, random_state=seed)
    return np.asarray(model.fit_transform(codes / spread), dtype=np.float64)


def _top(report: Mapping[str, Any]) -> float:
    """Return the upper end of the colours: what can be reached, in points."""
    chances = [
        100 * (1 - chance.get("balanced_accuracy", 0.0))
        for bank in report["chance"].values()
        for chance in bank.values()
        if chance is not None
    ]
    return max(chances, default=100.0)


def _points(value: float, luck: float | None) -> str:
    """Return whole points, in brackets where luck reaches them, and a dash where undefined."""
    if np.isnan(value):
        return "–"
    text = f"{round(value)}".replace("-", "\N{MINUS SIGN}")
    return f"({text})" if luck is not None and value <= luck else text


def _frame(row: int, column: int) -> Rectangle:
    return Rectangle(
        (column - 0.47, row - 0.46), 0.94, 0.92, fill=False, edgecolor="white", linewidth=1.8
    )


def _scatter_values(
    figure: Figure, axis: Axes, plane: npt.NDArray[np.float64], values: npt.NDArray[np.float64]
) -> None:
    known = ~np.isnan(values)
    axis.scatter(plane[~known, 0], plane[~known, 1], s=6, color="0.85", linewidths=0)
    points = axis.scatter(
        plane[known, 0], plane[known, 1], s=8, c=values[known], cmap=SHARE, linewidths=0
    )
    if known.any():
        bar = figure.colorbar(points, ax=axis, fraction=0.05, pad=0.02)
        bar.ax.tick_params(labelsize=6)
        bar.outline.set_visible(False)


def _scatter_classes(
    axis: Axes,
    plane: npt.NDArray[np.float64],
    values: npt.NDArray[np.float64],
    names: Sequence[str] | None,
    legend: bool,
) -> None:
    known = values >= 0
    axis.scatter(plane[~known, 0], plane[~known, 1], s=6, color="0.85", linewidths=0)
    order = np.flatnonzero(known)[np.random.default_rng(0).permutation(known.sum())]
    colours = np.array(CATEGORIES)[values[order].astype(int) % len(CATEGORIES)]
    # in random order: drawn class by class, the last would cover the others
    axis.scatter(plane[order, 0], plane[order, 1], s=8, c=colours, linewidths=0)
    if legend:
        for number in np.unique(values[known]).astype(int):
            label = names[number] if names is not None else str(number)
            axis.scatter([], [], s=12, color=CATEGORIES[number % len(CATEGORIES)], label=label)
        axis.legend(fontsize=6, frameon=False, loc="best", handletextpad=0.1, borderpad=0.1)
