"""What a page's viewer reads of the subjects that it shows."""

from __future__ import annotations

import math
from base64 import b64encode
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from matplotlib import colormaps

from medvae.data.output import file_stem
from medvae.report.colours import EVIDENCE, SIGNED
from medvae.report.page.packing import OVERLAYS, SERIES, on_one_grid, packed_below
from medvae.report.page.run import Run, label_of, unit_of
from medvae.report.page.shown import ENDING, Shown

__all__ = ["packed_subjects", "volume_colours"]

NOTHING = "reconstruction"  # what the viewer offers where there is neither map nor change
CAP = 4 * 2**20  # bytes of all packed volumes together, before base64


def packed_subjects(run: Run, subjects: list[Shown], cap: int = CAP) -> dict[str, Any]:
    """Return what the page's viewer reads: packed volumes, values, names and colours."""
    rows: dict[str, dict[str, Any]] = {}
    if run.subjects is not None:
        rows = {file_stem(row["id"]): dict(row) for _, row in run.subjects.iterrows()}
    share, known = cap // max(len(subjects), 1), list(run.state.get("attributes", []))
    return {
        "map_unit": "" if run.other_system else ", in units of the axis",
        "subjects": [_packed(s, rows.get(s.id, {}), share, known, run) for s in subjects],
        "colours": volume_colours(),
    }


def volume_colours() -> dict[str, dict[str, list[int]]]:
    """Return the scales of overlays by the names that the viewer has for them."""
    return {
        "evidence": _colours(EVIDENCE, np.linspace(0, 1, 64), 2),
        "more": _colours(SIGNED, np.linspace(0.7, 1, 64), 1),
        "less": _colours(SIGNED, np.linspace(0.3, 0, 64), 1),
    }


def _colours(name: str, at: npt.NDArray[np.float64], rise: int) -> dict[str, list[int]]:
    """Return a scale as NiiVue takes it, fading in so that what is faint does not veil."""
    table = colormaps[name](at, bytes=True)
    alpha = np.clip(rise * np.linspace(0, 255, len(at)), 0, 255).astype(int)
    marks = np.linspace(0, 255, len(at)).astype(int)
    channels = {k: table[:, c].astype(int).tolist() for c, k in enumerate("RGB")}
    return channels | {"A": alpha.tolist(), "I": marks.tolist()}


def _packed(
    subject: Shown, row: Mapping[str, Any], cap: int, known: list[str], run: Run
) -> dict[str, Any]:
    """Pack a subject; its attributes come in the order of the axes, as far as that is known."""
    files, image = subject.files(), str(row.get("image", ""))
    if "image" not in files and image.endswith((".nii", ENDING)) and Path(image).is_file():
        files["original"] = Path(image)
    files, others = on_one_grid(files)
    run.problems += [f"{name} lies on another grid than {subject.id}, not shown" for name in others]
    volumes, coarser = packed_below(files, cap)
    spacing = nib.load(next(iter(files.values()))).header.get_zooms()[:3]
    kinds = [kind for kind in files if kind.startswith((*OVERLAYS, *SERIES))]
    names = {kind.partition("_")[2] for kind in kinds}
    order = [n for n in known if n in names] + sorted(names - set(known))
    return {
        "id": subject.id,
        "why": subject.why,
        "grid_mm": [round(float(s) * coarser, 2) for s in spacing],
        "coarser": coarser,
        "attributes": [_attribute(name, subject, row, kinds) for name in order or [NOTHING]],
        "volumes": {kind: b64encode(data).decode() for kind, data in volumes.items()},
    }


def _attribute(
    name: str, subject: Shown, row: Mapping[str, Any], kinds: list[str]
) -> dict[str, Any]:
    """Return what is said of an attribute, a factor, an arm or an edit, beside its volumes."""
    return {
        "name": name,
        "label": label_of(name),
        "unit": unit_of(name),
        "kinds": [kind.partition("_")[0] for kind in kinds if kind.partition("_")[2] == name],
        "values": subject.values().get(name, []),
        "titles": subject.titles().get(name, []),
        "measured": _known(row.get(name)),
        "read": _known(row.get(f"read_{name}")),
    }


def _known(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
