"""The files of a run, as far as they are there and can be read."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from medvae.data import CohortError
from medvae.engines import read_history
from medvae.report.page.commands import Commands, bundle_of

__all__ = ["Run", "label_of", "unit_of"]

Content = TypeVar("Content")

UNITS = {  # the end of an attribute's name says its unit; longest first
    "_per_mm": "1/mm",
    "_per_s": "1/s",
    "_mm3": "mm³",
    "_mm2": "mm²",
    "_ms": "ms",
    "_mm": "mm",
    "_ml": "ml",
    "_kg": "kg",
    "_cm": "cm",
    "_hu": "HU",
    "_years": "years",
    "_percent": "%",
}


def unit_of(name: str) -> str:
    """Return the unit that an attribute's name ends in; empty where it names none."""
    return next((unit for end, unit in UNITS.items() if name.endswith(end)), "")


def label_of(name: str) -> str:
    """Return an attribute's name for people, with its unit: `lv volume (ml)`."""
    end = next((end for end in UNITS if name.endswith(end)), "")
    words = name.removesuffix(end).replace("_", " ")
    return f"{words} ({UNITS[end]})" if end else words


class Run:
    """What a run's folder holds. A file that is not there is None; one that is broken, too.

    Args:
        folder: the bundle's root, with `models` and `eval` in it, or the folder of results.
        models: the folder of the model; None: `models` in the root, or beside the results.
        subjects: ids to be shown in 3D; None: those that the evaluation chose.

    Attributes:
        problems: a sentence for each file that was there and could not be read; filled as
            properties are used.
        pictures: names of the PNGs that a section has asked for.

    Raises:
        CohortError: no folder, or one without any result of a run.
    """

    def __init__(
        self,
        folder: str | Path,
        models: str | Path | None = None,
        subjects: tuple[str, ...] = (),
    ) -> None:
        root = Path(folder)
        self.results = root / "eval" if (root / "eval").is_dir() else root
        self.models = Path(models) if models is not None else self.results.parent / "models"
        self.name = self.results.resolve().parent.name if self.results.name == "eval" else root.name
        self.shown = tuple(subjects)
        self.problems: list[str] = []
        self.pictures: set[str] = set()
        known = ("metrics.json", "history.csv", "predictions.csv", "attributes.json")
        if not any((self.results / name).is_file() for name in known):
            raise CohortError(
                f"The folder '{folder}' holds none of {', '.join(known)}, in itself or in 'eval'; "
                "expected the folder of a run."
            )

    @cached_property
    def metrics(self) -> dict[str, Any] | None:
        """What evaluation measured."""
        return self._read(self.results / "metrics.json", _json)

    @cached_property
    def manipulation(self) -> dict[str, Any] | None:
        """What asking for other attributes does."""
        return self._read(self.results / "manipulation.json", _json)

    @cached_property
    def images(self) -> dict[str, Any] | None:
        """How a GAN draws, reconstructs and swaps."""
        return self._read(self.results / "images.json", _json)

    @cached_property
    def history(self) -> dict[str, list[float]] | None:
        """Terms and metrics by epoch."""
        return self._read(self.results / "history.csv", read_history)

    @cached_property
    def record(self) -> dict[str, Any]:
        """Settings, versions, data, seed; empty where there is no record."""
        return self._read(self.models / "run.json", _json) or {}

    @cached_property
    def state(self) -> dict[str, Any]:
        """Attributes, classes and splits that travel with the model; empty without."""
        return self._read(self.models / "cohort.json", _json) or {}

    @cached_property
    def readout(self) -> dict[str, Any] | None:
        """The calibration of the axes."""
        return self._read(self.models / "readout.json", _json)

    @cached_property
    def examples(self) -> dict[str, Any]:
        """Who is shown and why, and what was skipped; empty where nobody was written."""
        return self._read(self.results / "examples" / "examples.json", _json) or {}

    @cached_property
    def subjects(self) -> pd.DataFrame | None:
        """Predictions beside what is true: a row per subject, with split, codes and attributes."""
        predictions = self._read(self.results / "predictions.csv", _table)
        truth = self._read(self.results / "subjects.csv", _table)
        if predictions is None or truth is None:
            return None
        extra = truth.drop(columns=[c for c in ("split",) if c in truth])
        return predictions.merge(extra, on="id", how="left", validate="one_to_one")

    @property
    def settings(self) -> dict[str, Any]:
        """The configuration after all overrides."""
        return dict(self.record.get("settings", {}))

    @cached_property
    def commands(self) -> Commands:
        """What makes parts that are not there."""
        return Commands(bundle_of(self.settings))

    @property
    def unfinished(self) -> str:
        """How far a training came that did not reach its last epoch; empty where it did."""
        done, planned = (self.history or {}).get("epoch"), self.settings.get("max_epochs")
        if not done or not isinstance(planned, int) or done[-1] >= planned:
            return ""
        return f"{done[-1]:g} of {planned} epochs are there"

    @property
    def other_system(self) -> bool:
        """Whether the run is not of axes tied to attributes, but of another system."""
        if self.metrics is not None:
            return "disentanglement" not in self.metrics
        return bundle_of(self.settings) != "attri_vae"

    def picture(self, name: str) -> bytes | None:
        """Return the bytes of a PNG of the results, which then counts as shown."""
        path = self.results / name
        self.pictures.add(name)
        return path.read_bytes() if path.is_file() else None

    def _read(self, path: Path, reader: Callable[[Path], Content]) -> Content | None:
        if not path.is_file():
            return None
        try:
            return reader(path)
        except (OSError, ValueError, KeyError, TypeError) as error:
            self.problems.append(
                f"{path.name} could not be read ({type(error).__name__}); expected the file that "
                "the run wrote."
            )
            return None


def _json(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError("not an object")
    return content


def _table(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, dtype={"id": str})
