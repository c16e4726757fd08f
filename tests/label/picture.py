"""What the server answers of a study, as a picture for the docs."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
from matplotlib import colormaps
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure

from medvae.label import Asked, ServedBundle
from medvae.report.page.run import label_of


def draw_answers(served: ServedBundle, study: str, name: str, path: Path) -> None:
    """Ask for map, bins and both ends of a traversal, and draw the plane of the map's peak."""
    image = np.asarray(nib.load(study).dataobj)
    heat = served.answer({"image": study}, Asked(name, "map")).channels[0]
    bins = served.answer({"image": study}, Asked(name)).channels[0]
    ends = served.ranges[name]
    decoded = served.answer({"image": study}, Asked(name, "traversal", tuple(ends))).channels
    depth = int(np.unravel_index(heat.argmax(), heat.shape)[2])
    figure = Figure(figsize=(11, 3.1), layout="tight")
    axes = figure.subplots(1, 4)
    grey = {"cmap": "gray", "vmin": image.min(), "vmax": image.max()}
    titles = ("float map", "bins")
    titles += tuple(f"{label_of(name)}: {value:.3g}" for value in ends)
    backs = (image, image, *decoded)
    for axis, back, title in zip(axes, backs, titles, strict=True):
        axis.imshow(np.rot90(back[..., depth]), **grey)
        axis.set_title(title, fontsize=9)
        axis.set_axis_off()
    for axis, layer, colours, norm in (
        (axes[0], np.ma.masked_less(heat, 0.05 * heat.max()), "inferno", None),
        (axes[1], np.ma.masked_equal(bins, 0), steps(4), BoundaryNorm(np.arange(0.5, 5), 4)),
    ):
        shown = axis.imshow(np.rot90(layer[..., depth]), cmap=colours, norm=norm, alpha=0.7)
        figure.colorbar(shown, ax=axis, shrink=0.8, ticks=None if norm is None else range(1, 5))
    figure.savefig(path, dpi=80)


def steps(count: int) -> ListedColormap:
    """Return as many colours from dark to bright."""
    return ListedColormap(colormaps["inferno"](np.linspace(0.2, 0.95, count)))
