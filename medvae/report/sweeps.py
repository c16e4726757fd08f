"""What asking for other attributes does, as a table and a plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medvae.report.colours import CATEGORIES
from medvae.report.plots import panel_grid, save_figure
from medvae.report.tables import _with_interval, markdown_table, number

__all__ = ["manipulation_table", "plot_sweeps"]


def manipulation_table(result: Mapping[str, Any]) -> str:
    """Return manipulation.json as Markdown."""
    entries = result["attributes"] | {"mean": result["mean"]}
    sweep = [
        [
            name,
            _with_interval(entry["control"]),
            _with_interval(entry["span"]),
            *(number(entry[k]) for k in ("side_effect", "predicted", "predicted_of_span")),
            *(number(entry[k]) for k in ("outside", "outside_chance", "return_error")),
            number(entry.get("follow")),
        ]
        for name, entry in entries.items()
    ]
    instrument = []
    for name, entry in entries.items():
        real, decoded = (entry["instrument"][k] for k in ("image", "reconstruction"))
        cost = None if real["r2"] is None or decoded["r2"] is None else real["r2"] - decoded["r2"]
        cells = [number(part[key]) for key in ("r2", "error_sd") for part in (real, decoded)]
        instrument.append([name, *cells, number(cost)])
    unmeasured = result["not_measurable"]
    parts = [
        f"# Manipulation, {result['subjects']} images of the {result['split']} split\n\n"
        f"Each attribute is asked for in {result['sweep_steps']} steps from the 5th to the 95th "
        "percentile of the training subjects, decoded and measured again. Control: Spearman's "
        "correlation of asked and measured (chance 0). Span: share of the real range that the "
        "sweep covers. Side effect: mean absolute change of the other attributes as a share of "
        "their real ranges, beside what natural correlation predicts for the whole sweep, and for "
        "the span that was reached. Outside: share of the change more than one voxel away from "
        "the structure, beside that of an even change. Return error: what is left of a move "
        "after it is undone. Follow: share of what goes together by which other axes moved "
        "along.\n",
        markdown_table(
            [
                *("attribute", "control (95 %)", "span (95 %)", "side effect", "predicted"),
                *("of the span", "outside", "even", "return error", "follow"),
            ],
            sweep,
        ),
        "Composition, and what the decoder's blur costs the instrument: attributes measured by the "
        "instrument on images and on their plain reconstructions, against the images' own masks. "
        "Error: mean absolute, in standard deviations.\n",
        markdown_table(
            [
                *("attribute", "R², images", "R², reconstructions"),
                *("error, images", "error, reconstructions", "R² lost"),
            ],
            instrument,
        ),
    ]
    if unmeasured:
        parts.append(f"Not measurable on an image: {', '.join(unmeasured)}.\n")
    return "\n".join(parts)


def plot_sweeps(
    measured: Mapping[str, np.ndarray],
    asked: Mapping[str, Sequence[float]],
    ranges: Mapping[str, Sequence[float]],
    path: str | Path,
) -> Path:
    """Plot asked against re-measured values, a line for each subject, and save it.

    Args:
        measured: by attribute, shape (N, V), NaN where nothing could be measured.
        asked: the V values of each.
        ranges: the real range of each, 5th and 95th percentile, as measured; shaded. The dashed
            line is what was asked for.
        path: the PNG to write.
    """
    figure, panels = panel_grid(len(measured), 3, 3.3, 2.9)
    for panel, (name, rows) in zip(panels, measured.items(), strict=True):
        low, high = ranges[name]
        panel.axhspan(low, high, color="0.92")
        panel.plot(asked[name], rows.T, color=CATEGORIES[0], lw=0.5, alpha=0.35)
        middle = [np.median(c[np.isfinite(c)]) if np.isfinite(c).any() else np.nan for c in rows.T]
        panel.plot(asked[name], middle, color=CATEGORIES[1], lw=2)
        panel.plot([asked[name][0], asked[name][-1]], [low, high], "k--", lw=1)
        panel.set_title(name, fontsize=9)
        panel.set_xlabel("asked", fontsize=8)
        panel.set_ylabel("measured", fontsize=8)
        panel.tick_params(labelsize=7)
    return save_figure(figure, path)
