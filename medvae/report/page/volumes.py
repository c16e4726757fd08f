"""Which subjects a page shows in 3D, and what its viewer reads of them."""

from __future__ import annotations

import json
import math
import re
from base64 import b64encode
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import numpy.typing as npt
from matplotlib import colormaps

from medvae.report.page.packing import packed_below
from medvae.report.page.run import Run, label_of, unit_of

__all__ = ["Shown", "found_subjects", "packed_subjects", "subject_folders"]

CAP = 4 * 2**20  # bytes of all packed volumes together, before base64
ENDING = ".nii.gz"


class Shown(NamedTuple):
    """A subject to be shown.

    Attributes:
        id: of the subject.
        folder: of its files, `ID_image.nii.gz`, `ID_reconstruction.nii.gz`, `ID_map_NAME.nii.gz`,
            `ID_traversal_NAME.nii.gz`.
        why: it was chosen.
    """

    id: str
    folder: Path
    why: str = ""

    def files(self) -> dict[str, Path]:
        """Return the files by kind, such as `reconstruction` or `map_NAME`."""
        start = f"{self.folder.name}_"
        paths = sorted(self.folder.glob(f"*{ENDING}"))
        return {p.name[len(start) : -len(ENDING)]: p for p in paths if p.name.startswith(start)}

    def picture(self, kind: str) -> bytes | None:
        """Return the bytes of `ID_KIND.png`."""
        path = self.folder / f"{self.folder.name}_{kind}.png"
        return path.read_bytes() if path.is_file() else None

    def values(self) -> dict[str, list[float]]:
        """Return the values of each traversal; empty where they were not written."""
        path = self.folder / f"{self.folder.name}_traversals.json"
        return dict(json.loads(path.read_text())) if path.is_file() else {}


def subject_folders(root: Path) -> dict[str, Path]:
    """Return the folders that inference, or evaluation, wrote for each subject."""
    folders = sorted(p for p in root.glob("*") if p.is_dir()) if root.is_dir() else []
    return {p.name: p for p in folders if (p / f"{p.name}_reconstruction{ENDING}").is_file()}


def found_subjects(run: Run) -> list[Shown]:
    """Return the subjects to show: those asked for, or those that the evaluation chose.

    What inference wrote on a subject's own grid goes before what evaluation wrote on the model's.
    """
    chosen, inferred = (subject_folders(run.results / n) for n in ("examples", "inference"))
    reasons = run.examples.get("subjects", {})
    names = [re.sub("/", "_", name) for name in run.shown] or [*reasons] or [*chosen, *inferred][:3]
    both = chosen | {k: v for k, v in inferred.items() if k not in chosen or _complete(v)}
    return [Shown(n, both[n], reasons.get(n, "")) for n in names if n in both]


def _complete(folder: Path) -> bool:
    """Whether inference was asked for maps and traversals."""
    names = [p.name for p in folder.glob(f"*{ENDING}")]
    return all(any(f"_{kind}_" in n for n in names) for kind in ("map", "traversal"))


def packed_subjects(run: Run, subjects: list[Shown], cap: int = CAP) -> dict[str, Any]:
    """Return what the page's viewer reads: packed volumes, values, names and colours."""
    rows: dict[str, dict[str, Any]] = {}
    if run.subjects is not None:
        rows = {str(row["id"]): dict(row) for _, row in run.subjects.iterrows()}
    share, known = cap // max(len(subjects), 1), list(run.state.get("attributes", []))
    return {
        "subjects": [_packed(s, rows.get(s.id, {}), share, known) for s in subjects],
        "colours": {
            "evidence": _colours("inferno", np.linspace(0, 1, 64), 2),
            "more": _colours("berlin", np.linspace(0.7, 1, 64), 1),
            "less": _colours("berlin", np.linspace(0.3, 0, 64), 1),
        },
    }


def _colours(name: str, at: npt.NDArray[np.float64], rise: int) -> dict[str, list[int]]:
    """Return a scale as NiiVue takes it, fading in so that what is faint does not veil."""
    table = colormaps[name](at, bytes=True)
    alpha = np.clip(rise * np.linspace(0, 255, len(at)), 0, 255).astype(int)
    marks = np.linspace(0, 255, len(at)).astype(int)
    channels = {k: table[:, c].astype(int).tolist() for c, k in enumerate("RGB")}
    return channels | {"A": alpha.tolist(), "I": marks.tolist()}


def _packed(subject: Shown, row: Mapping[str, Any], cap: int, known: list[str]) -> dict[str, Any]:
    """Pack a subject; its attributes come in the order of the axes, as far as that is known."""
    files, image = subject.files(), str(row.get("image", ""))
    if "image" not in files and image.endswith((".nii", ENDING)) and Path(image).is_file():
        files["original"] = Path(image)
    volumes, coarser = packed_below(files, cap)
    spacing = nib.load(files["reconstruction"]).header.get_zooms()[:3]
    values = subject.values()
    names = {k.split("_", 1)[1] for k in files if k.startswith(("map_", "traversal_"))}
    order = [n for n in known if n in names] + sorted(names - set(known))
    return {
        "id": subject.id,
        "why": subject.why,
        "grid_mm": [round(float(s) * coarser, 2) for s in spacing],
        "coarser": coarser,
        "attributes": [
            {
                "name": name,
                "label": label_of(name),
                "unit": unit_of(name),
                "values": values.get(name, []),
                "measured": _known(row.get(name)),
                "read": _known(row.get(f"read_{name}")),
            }
            for name in order
        ],
        "volumes": {kind: b64encode(data).decode() for kind, data in volumes.items()},
    }


def _known(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
