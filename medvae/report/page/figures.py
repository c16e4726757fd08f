"""Drawings of a page as SVG: text in the page's colour, and a tooltip on every point."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from io import StringIO
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from medvae.report.colours import CATEGORIES, SHARE
from medvae.report.plots import panel_grid

__all__ = ["Interval", "curves", "forest", "scatters"]

Array = npt.NDArray[np.float64]

MARKERS = "osD^vPX*"
INK = "#010203"  # no drawing uses it, so that it can become the page's own colour
NAMESPACE = "http://www.w3.org/2000/svg"
STYLE: Any = {  # names of settings, as in matplotlibrc
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9.0,
    "text.parse_math": False,  # a name may hold a dollar sign
    "savefig.transparent": True,
    **{k: INK for k in ("text.color", "axes.labelcolor", "axes.edgecolor")},
    **{k: INK for k in ("xtick.color", "ytick.color", "grid.color")},
    "grid.alpha": 0.15,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


class Interval(NamedTuple):
    """A number with its interval, and the level that chance stays below in 95 of 100 cases."""

    name: str
    value: float | None
    low: float | None = None
    high: float | None = None
    chance: float | None = None
    chance_p95: float | None = None


def _svg(figure: Figure, salt: str, tips: Mapping[str, Sequence[str]] | None = None) -> str:
    """Return a figure as an SVG element; `tips` are the texts of a group's points."""
    text = StringIO()
    with rc_context({"svg.hashsalt": salt}):  # the same bits again, and ids that no other has
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    ElementTree.register_namespace("", NAMESPACE)
    ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")  # HTML knows this name
    root = ElementTree.fromstring(text.getvalue())
    for name, texts in (tips or {}).items():
        points = root.findall(f".//{{{NAMESPACE}}}g[@id='{name}']//{{{NAMESPACE}}}use")
        for point, tip in zip(points, texts, strict=True):
            ElementTree.SubElement(point, f"{{{NAMESPACE}}}title").text = tip
    for node in root.findall(f"{{{NAMESPACE}}}metadata"):
        root.remove(node)
    _own_ids(root, salt)
    found = ElementTree.tostring(root, encoding="unicode").replace(INK, "currentColor")
    return re.sub(r'\s(width|height)="[\d.]+pt"', "", found, count=2)  # as wide as its column


def _own_ids(root: ElementTree.Element, salt: str) -> None:
    """Make the ids of matplotlib's groups, such as `axes_1`, the page's only ones."""
    for node in root.iter():
        if "id" in node.attrib and node.tag == f"{{{NAMESPACE}}}g":
            node.set("id", f"{salt}-{node.attrib['id']}")


def curves(runs: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """Draw every term and metric of one or more runs over their epochs, a panel each."""
    names = list(dict.fromkeys(n for history in runs.values() for n in history if n != "epoch"))
    with rc_context(STYLE):
        figure, panels = panel_grid(len(names), 3, 3.1, 2.1)
        for panel, name in zip(panels, names, strict=True):
            drawn: list[Array] = []
            for colour, (run, history) in zip(CATEGORIES, runs.items(), strict=False):
                values = np.asarray(history.get(name, []), dtype=float)
                if len(values):
                    mark = "o" if len(values) == 1 else ""  # one epoch makes no line
                    panel.plot(history["epoch"], values, marker=mark, color=colour, label=run)
                    drawn.append(values)
            if not name.startswith("val_") and _spans_decades(drawn):
                panel.set_yscale("log")
                panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                panel.yaxis.set_minor_formatter(NullFormatter())
            panel.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            panel.xaxis.set_major_locator(MaxNLocator(nbins="auto", integer=True))
            panel.set_title(name.replace("val_", "validation: ").replace("_", " "), fontsize=9)
            panel.set_xlabel("epoch", fontsize=8)
            panel.tick_params(labelsize=8)
        if len(runs) > 1:
            panels[0].legend(fontsize=7, frameon=False)
        return _svg(figure, "curves")


def _spans_decades(drawn: Sequence[Array]) -> bool:
    """Whether values are positive and differ tenfold: on less, a logarithm has few numbers."""
    finite = [v[np.isfinite(v)] for v in drawn]
    values = np.concatenate([*finite, np.empty(0)])
    return bool(len(values) and values.min() > 0 and values.max() > 10 * values.min())


def forest(rows: Sequence[Interval], xlabel: str, salt: str) -> str:
    """Draw numbers with their intervals, beside chance as a grey bar up to its 95th percentile."""
    with rc_context(STYLE):
        figure = Figure(figsize=(6.4, 0.55 + 0.3 * len(rows)), layout="constrained")
        axis = figure.subplots()
        for y, row in enumerate(reversed(rows)):
            if row.chance is not None:
                top = row.chance if row.chance_p95 is None else row.chance_p95
                low = min(row.chance, top, 0.0) if row.chance_p95 is not None else row.chance
                axis.fill_betweenx([y - 0.32, y + 0.32], low, top, color="#8C8C8C", alpha=0.45)
                axis.plot([row.chance] * 2, [y - 0.32, y + 0.32], color="#8C8C8C", lw=1.5)
            if row.low is not None and row.high is not None:
                axis.plot([row.low, row.high], [y, y], color=CATEGORIES[0], lw=2)
            if row.value is not None:
                axis.plot([row.value], [y], "o", color=CATEGORIES[0], ms=5)
        axis.set_yticks(range(len(rows)), [row.name for row in reversed(rows)])
        axis.set_ylim(-0.6, len(rows) - 0.4)
        axis.set_xlabel(xlabel)
        return _svg(figure, salt)


class Cloud(NamedTuple):
    """Points of one panel.

    Attributes:
        groups: one for each point, or a number each, which gets a colour of a scale.
        order: of the groups, which fixes their colours; the last is drawn on top.
    """

    x: Array
    y: Array
    groups: Sequence[object]
    order: Sequence[object]
    title: str
    xlabel: str
    ylabel: str
    scale: str = ""  # name of what the numbers are, if groups are numbers
    colours: Sequence[str] = CATEGORIES


def scatters(clouds: Sequence[Cloud], tips: Sequence[str], salt: str, columns: int = 3) -> str:
    """Draw panels of points; `tips` are the points' names, shown under the pointer."""
    texts: dict[str, Sequence[str]] = {}
    with rc_context(STYLE):
        figure, panels = panel_grid(len(clouds), columns, 9.6 / columns, 8.1 / columns)
        for number, (panel, cloud) in enumerate(zip(panels, clouds, strict=True)):
            texts |= _scatter(panel, cloud, tips, f"points{number}")
            panel.set_title(cloud.title, fontsize=9)
            panel.set_xlabel(cloud.xlabel, fontsize=8)
            panel.set_ylabel(cloud.ylabel, fontsize=8)
            panel.tick_params(labelsize=8)
            if cloud.order:
                _legend(panel, cloud, number)
        return _svg(figure, salt, texts)


def _legend(panel: Axes, cloud: Cloud, number: int) -> None:
    if number == 0:
        panel.legend(fontsize=7, frameon=True, framealpha=0.0, handletextpad=0.1)


def _scatter(panel: Axes, cloud: Cloud, tips: Sequence[str], gid: str) -> dict[str, Sequence[str]]:
    known = np.isfinite(cloud.x) & np.isfinite(cloud.y)
    if cloud.scale:
        values = np.asarray(cloud.groups, dtype=float)
        known &= np.isfinite(values)
        drawn = panel.scatter(
            cloud.x[known], cloud.y[known], c=values[known], s=14, cmap=SHARE, gid=gid
        )
        panel.figure.colorbar(drawn, ax=panel, label=cloud.scale)
        return {gid: [tips[i] for i in np.flatnonzero(known).tolist()]}
    found: dict[str, Sequence[str]] = {}
    groups = np.asarray(cloud.groups, dtype=object)
    for k, group in enumerate(cloud.order):
        rows = known & (groups == group)
        if not rows.any():
            continue
        colour, marker = cloud.colours[k % len(cloud.colours)], MARKERS[k % len(MARKERS)]
        name = f"{gid}-{k}"
        panel.scatter(
            cloud.x[rows], cloud.y[rows], s=12, color=colour, marker=marker, label=str(group),
            gid=name, alpha=0.8, linewidths=0,
        )  # fmt: skip
        found[name] = [tips[i] for i in np.flatnonzero(rows).tolist()]
    return found
