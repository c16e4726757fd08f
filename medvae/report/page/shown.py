"""The subjects that a page shows in 3D, and what each file that a run wrote of them is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from medvae.data.output import file_stem
from medvae.report.page.packing import DIFFERENCE, GREY, OVERLAYS, SERIES
from medvae.report.page.run import Run

__all__ = ["ENDING", "Shown", "found_subjects"]

ENDING = ".nii.gz"
# Where systems write folders ID of files ID_KIND.nii.gz. Of two with as much in them the first is
# shown: what inference wrote is on the subject's own grid, examples are on the model's.
FOLDERS = ("inference", "counterfactuals", "pairs/*", "examples")
FIRST = ("examples", *FOLDERS)  # whose subjects are shown where nobody was chosen
MOST = 3
KEPT = (*OVERLAYS, *SERIES, DIFFERENCE)


class Shown(NamedTuple):
    """A subject to be shown.

    Attributes:
        id: of the subject.
        folders: of its files, all on one grid.
        why: it was chosen.
    """

    id: str
    folders: tuple[Path, ...]
    why: str = ""

    def files(self) -> dict[str, Path]:
        """Return the files by kind.

        `image`, `reconstruction`, `map_NAME`, `uncertainty_NAME` and `difference_NAME` are volumes;
        `traversal_NAME` and `counterfactual_NAME` are one or more decoded volumes, and so is all
        else, which becomes `series_KIND`: a subject with an edit, or with other subspaces.
        """
        found: dict[str, Path] = {}
        for folder in self.folders:
            start = f"{folder.name}_"
            for path in sorted(folder.glob(f"*{ENDING}")):
                if path.name.startswith(start):
                    kind = path.name[len(start) : -len(ENDING)]
                    found.setdefault(_known(kind, folder.parent.name), path)
        return found

    def picture(self, kind: str) -> bytes | None:
        """Return the bytes of `ID_KIND.png`."""
        path = self._beside(f"{kind}.png")
        return path.read_bytes() if path.is_file() else None

    def values(self) -> dict[str, list[float]]:
        """Return the values of each traversal; empty where they were not written."""
        return self._read("traversals.json")

    def titles(self) -> dict[str, list[str]]:
        """Return the titles of each series' volumes; empty where they were not written."""
        return self._read("swaps.json")

    def _beside(self, name: str) -> Path:
        return self.folders[0] / f"{self.folders[0].name}_{name}"

    def _read(self, name: str) -> dict[str, Any]:
        path = self._beside(name)
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def found_subjects(run: Run) -> list[Shown]:
    """Return the subjects to show: those asked for, those that the evaluation chose, or the first.

    Of what several parts of a run wrote of a subject, what shows more is taken.
    """
    reasons = run.examples.get("subjects", {})
    sources = {name: _subjects_in(run.results, name) for name in FOLDERS}
    everybody = dict.fromkeys(subject for name in FIRST for subject in sources[name])
    asked = [file_stem(name) for name in run.shown]
    names = asked or [*reasons] or [*everybody][:MOST]
    found = {name: [s[name] for s in sources.values() if name in s] for name in names}
    return [
        max((Shown(name, folders, reasons.get(name, "")) for folders in parts), key=_how_much)
        for name, parts in found.items()
        if parts
    ]


def _how_much(subject: Shown) -> int:
    return len(subject.files().keys() - {*GREY})


def _subjects_in(results: Path, pattern: str) -> dict[str, tuple[Path, ...]]:
    """Return the folders of each subject of which something can be shown."""
    found: dict[str, tuple[Path, ...]] = {}
    for folder in sorted(p for p in results.glob(f"{pattern}/*") if p.is_dir()):
        found[folder.name] = (*found.get(folder.name, ()), folder)
    return {name: folders for name, folders in found.items() if _has_base(Shown(name, folders))}


def _has_base(subject: Shown) -> bool:
    files = subject.files()
    return any(kind in GREY or kind.startswith(DIFFERENCE) for kind in files)


def _known(kind: str, place: str) -> str:
    """Return a kind as :meth:`Shown.files` names it; of a pair `place` names the edit."""
    if kind == "before":
        return "reconstruction"
    if kind == "difference":
        return f"{DIFFERENCE}{place}"
    if kind in GREY or kind.startswith(KEPT):
        return kind
    return f"series_{place if kind == 'after' else kind}"
