"""The latent space of a run: attributes against axes, the map by label, and what leaks."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from medvae.report.colours import SPLITS
from medvae.report.page import figures
from medvae.report.page.blocks import Absent, Block, Heat, Picture, Section
from medvae.report.page.figures import Cloud
from medvae.report.page.latent import (
    Codes,
    codes_of,
    principal_axes,
    r2_chance_p95,
    shared,
    telling_axes,
)
from medvae.report.page.run import Run, label_of

__all__ = ["codes_section"]

TOLD = 2000  # points that are named; more are drawn by a sample


def codes_section(run: Run) -> Section | None:
    """Codes against attributes, the latent map and the leakage matrix."""
    if run.other_system:
        return None
    table, title = run.subjects, "Latent space"
    if table is None:
        why = "predictions.csv or subjects.csv is not there"
        return Section("codes", title, [Absent("Codes", why, run.commands.evaluate)])
    names = [n for n in run.state.get("attributes", []) if n in table]
    axes = _axes_of(run, names)
    codes = codes_of(table)
    drawn = _sampled(len(table))
    blocks: list[Block] = []
    if names:
        blocks.append(_against(table.iloc[drawn], codes.values[drawn], names, axes))
    blocks.append(_map(run, table, codes, drawn, names))
    scored = (table["split"] == (run.metrics or {}).get("split", "test")).to_numpy()
    if names and scored.sum() > 3:
        blocks += _leakage(table[scored], codes.values[scored], names, axes)
    lead = "Each point is an image; its name is shown under the pointer."
    if len(drawn) < len(table):
        lead += f" {len(drawn)} of {len(table)} are drawn, evenly over the table."
    return Section("codes", title, blocks, lead)


def _axes_of(run: Run, names: list[str]) -> list[int]:
    found = (run.metrics or {}).get("disentanglement", {}).get("attributes", {})
    return [int(found.get(name, {}).get("axis", k)) for k, name in enumerate(names)]


def _sampled(count: int) -> npt.NDArray[np.intp]:
    return np.unique(np.linspace(0, count - 1, min(count, TOLD)).astype(int))


def _against(
    table: pd.DataFrame, codes: npt.NDArray[np.float64], names: list[str], axes: list[int]
) -> Picture:
    clouds = [
        Cloud(
            codes[:, axis],
            table[name].to_numpy(dtype=float),
            list(table["split"]),
            tuple(SPLITS),
            "",
            f"latent axis {axis}",
            label_of(name),
            colours=tuple(SPLITS.values()),
        )
        for name, axis in zip(names, axes, strict=True)
    ]
    drawing = figures.scatters(clouds, list(table["id"]), "codes")
    alt = f"{', '.join(map(label_of, names))} against their latent axes, by split"
    return Picture(drawing, alt, "Attributes against their axes")


def _map(
    run: Run, table: pd.DataFrame, codes: Codes, drawn: npt.NDArray[np.intp], names: list[str]
) -> Picture:
    train = (table["split"] == "train").to_numpy()
    fitted = train if train.sum() > 2 else np.ones(len(table), dtype=bool)
    places, shares = principal_axes(codes.values, fitted)
    label = run.state.get("label")
    groups, order, scale = _colouring(table, label, names)
    about = [f"principal component {k + 1} ({100 * s:.0f} %)" for k, s in enumerate(shares)]
    panels = [(places, about, "All axes")]
    if order and label:
        best = telling_axes(codes.values[fitted], [groups[r] for r in np.flatnonzero(fitted)])
        about = [f"latent axis {codes.axes[c]}" for c in best]
        panels.append((codes.values[:, best], about, f"The two axes that tell {label} best"))
    kept = [groups[r] for r in drawn]
    clouds = [
        Cloud(xy[drawn, 0], xy[drawn, 1], kept, order, title, words[0], words[1], scale)
        for xy, words, title in panels
        if xy.shape[1] > 1
    ]
    drawing = figures.scatters(clouds, list(table["id"].iloc[drawn]), "map", 2)
    what = label or scale or "split"
    caption = "Components and axes are chosen on the training images; all splits are drawn."
    return Picture(drawing, f"Latent codes by {what}", f"Latent map by {what}", caption)


def _colouring(
    table: pd.DataFrame, label: str | None, names: list[str]
) -> tuple[list[Any], list[Any], str]:
    """Return the points' groups with their order, or numbers with their name."""
    if label and label in table:
        groups = [("no label" if pd.isna(v) else _plain(v)) for v in table[label]]
        known = sorted({g for g in groups if g != "no label"}, key=str)
        return groups, [*known, *(["no label"] if "no label" in groups else [])], ""
    if names:
        return list(table[names[0]].astype(float)), [], label_of(names[0])
    return list(table["split"]), list(SPLITS), ""


def _plain(value: Any) -> str:
    """Return 1 for the 1.0 that pandas makes of a column with a missing cell."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _leakage(
    table: pd.DataFrame, codes: npt.NDArray[np.float64], names: list[str], axes: list[int]
) -> list[Block]:
    """Return R² of attributes by axes, and of attributes by each other: leakage and its excuse."""
    values = table[names].to_numpy(dtype=float)
    matrix, natural = shared(values, codes), shared(values, np.nan_to_num(_filled(values)))
    free = [d for d in range(codes.shape[1]) if d not in axes]
    tied = matrix[:, axes]
    columns = [f"axis {axis}" for axis in axes]
    if free:
        best = np.nanmax(np.nan_to_num(matrix[:, free], nan=0.0), axis=1)
        tied, columns = np.column_stack([tied, best]), [*columns, f"best of {len(free)} others"]
    labels = [label_of(name) for name in names]
    diagonal = frozenset((k, k) for k in range(len(names)))
    chance = r2_chance_p95(len(table))
    return [
        Heat(
            labels, columns, tied.tolist(), "attribute", diagonal, chance, "What leaks",
            f"R² of every attribute on every axis, {len(table)} scored images. Framed: the "
            f"attribute's own axis. ▲: another axis tells it, too, above {chance:.2f}, the 95th "
            "percentile of unrelated numbers (for the best of many axes more is chance). What "
            "goes together in nature leaks without fault of the model: compare with the matrix "
            "below.",
        ),
        Heat(
            labels, labels, natural.tolist(), "attribute", diagonal, None,
            "What goes together in these images", "R² between the attributes themselves.",
        ),
    ]  # fmt: skip


def _filled(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the values with the attribute's mean where one is missing."""
    known = np.isfinite(values)
    means = np.where(known, values, 0.0).sum(0) / np.maximum(known.sum(0), 1)
    return np.where(known, values, means)
