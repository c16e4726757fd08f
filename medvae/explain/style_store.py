"""A search of hours in a folder, so that it can go on where it was killed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from medvae.data.errors import CohortError
from medvae.data.output import explained, replacing, write_text
from medvae.explain.style_effects import Array

__all__ = ["EffectStore"]


class EffectStore:
    """Logits of every image in a folder, each written whole.

    Args:
        folder: made where it does not exist.
        fingerprint: of all that the logits depend on.

    Raises:
        CohortError: the folder holds those of another search.
    """

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self.folder = folder
        path = folder / "search.json"
        if path.exists():
            if json.loads(path.read_text(encoding="utf-8")).get("search") != fingerprint:
                raise CohortError(
                    f"The folder '{folder}' holds the effects of another search; expected the same "
                    "images, networks and settings, or an empty folder."
                )
        else:
            write_text(path, json.dumps({"search": fingerprint}) + "\n")

    def read(self, number: int) -> Array | None:
        """Return the logits of an image, None where it was not searched yet."""
        path = self._path(number)
        return np.load(path, allow_pickle=False) if path.exists() else None

    def write(self, number: int, found: Array) -> None:
        """Keep the logits of an image."""
        path = self._path(number)
        with explained(path), replacing(path) as temporary:
            np.save(temporary, found)

    def _path(self, number: int) -> Path:
        return self.folder / f"image{number:05d}.npy"
