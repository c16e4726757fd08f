"""The panel's report on paper: a page for each attribute, without the form's controls."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure
from matplotlib.image import imread

from medvae.data.output import write_bytes
from medvae.report.page.panel import chosen_pairs
from medvae.report.tables import number

__all__ = ["write_panel_pdf"]

WIDTH = 95  # letters of a line


def write_panel_pdf(output_dir: str | Path) -> Path:
    """Write `panel.pdf` from what a search left in a folder, and return its path.

    Raises:
        CohortError: it cannot be written.
    """
    folder = Path(output_dir)
    found = json.loads((folder / "attributes.json").read_text(encoding="utf-8"))
    content = BytesIO()
    with PdfPages(content, metadata={"CreationDate": None}) as pages:
        pages.savefig(_page([f"What did the classifier of {found['task']} learn?", *_first(found)]))
        for number, entry in enumerate(found["attributes"], start=1):
            picture = folder / "pairs" / f"attribute{number:02d}.png"
            ours = picture.name in entry["pairs"]["files"]  # not of an earlier search
            lines = [f"Attribute {number}", *_lines(entry)]
            pages.savefig(_page(lines, picture if ours and picture.is_file() else None))
    write_bytes(folder / "panel.pdf", content.getvalue())
    return folder / "panel.pdf"


def _page(lines: list[str], picture: Path | None = None) -> Figure:
    figure = Figure(figsize=(8.27, 11.69))
    text = "\n".join(part for line in lines[1:] for part in textwrap.wrap(line, WIDTH) or [""])
    figure.text(0.08, 0.95, lines[0], fontsize=15, va="top")
    figure.text(0.08, 0.91, text, fontsize=8.5, va="top", family="DejaVu Sans")
    if picture is not None:
        axes = figure.add_axes((0.06, 0.04, 0.88, 0.42))
        axes.imshow(imread(picture))
        axes.set_axis_off()
    return figure


def _first(found: Mapping[str, Any]) -> list[str]:
    searched = found["searched"]
    return [
        f"{searched['coordinates']} of {searched['of']} style coordinates were searched on "
        f"{searched['images']} images; the numbers are of test subjects, which were not searched.",
        "Rows of every picture: before, after, difference (red: brighter).",
        "Judge each attribute on your own: known sign, confounder, artefact or possibly new; your "
        "hypothesis; how sure you are; social and structural causes.",
    ]


def _lines(entry: Mapping[str, Any]) -> list[str]:
    lines = [
        f"Coordinate {entry['coordinate']} of layer {entry['layer']}, {entry['direction']}, to "
        f"class {entry['target']}; group {entry.get('group', '')}.",
        "",
    ]
    for name, head in entry["heads"].items():
        lines.append(
            f"{name}, class {head['class']}: probability {_said(head['probability_change'])}, log "
            f"odds {_said(head['log_odds_change'])}, flips {_said(head['flip_rate'])}"
        )
    lines.append("")
    for name, moved in entry["moves"].items():
        value = entry["associations"].get(name, {"value": None, "given_class": None})
        lines.append(
            f"{name}: a judge reads a move of {_said(moved)} SD; r = {_plain(value['value'])}, in "
            f"a class {_plain(value['given_class'])}"
        )
    for name, moved in entry.get("measured", {}).items():
        lines.append(
            f"{name}: measured again in {moved['images']} images, a move of {_said(moved)} SD; "
            f"random edits {number(moved['chance'], 2)}"
        )
    lines += ["", chosen_pairs(entry)]
    for flag in entry["confounder_candidates"]:
        lines += ["", f"May stand for {flag['name']}: {'; '.join(flag['evidence'])}."]
    return lines


def _said(entry: Mapping[str, Any]) -> str:
    interval = "" if entry["low"] is None else f" ({entry['low']:+.2f} to {entry['high']:+.2f})"
    return f"{_plain(entry['value'])}{interval}"


def _plain(value: float | None) -> str:
    return "unknown" if value is None else f"{value:+.2f}"
