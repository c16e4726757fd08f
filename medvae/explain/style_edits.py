"""Found attributes, made in images that took no part in the search."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from monai.inferers import Inferer
from torch import Tensor

from medvae.data.errors import CohortError
from medvae.explain.maps import evaluating
from medvae.explain.style_effects import moved
from medvae.networks import StylEx

__all__ = ["StyleEdit", "StyleEditInferer", "load_edits"]


class StyleEdit(NamedTuple):
    """One style coordinate, and where it is moved.

    Attributes:
        name: of files and columns, such as `attribute01_up`.
        coordinate: its number.
        end: what it is moved towards.
        shift: share of the way that is gone.
    """

    name: str
    coordinate: int
    end: float
    shift: float


def load_edits(
    path: str | Path, numbers: Sequence[int] | int | None = None, shift: float | None = None
) -> list[StyleEdit]:
    """Read the attributes that a search found.

    Args:
        path: the `attributes.json` of the search.
        numbers: of the attributes, from 1 as in the report; one number is the first so many; None
            is all.
        shift: share of the way to the end of the searched range; None is the search's, and more
            than that leaves what was searched.

    Raises:
        CohortError: no such file, not one of a search, nothing was found, or a number that is not
            there.
    """
    try:
        entries = json.loads(Path(path).read_text(encoding="utf-8"))["attributes"]
        found = [
            StyleEdit(
                f"attribute{n:02d}_{entry['direction']}",
                int(entry["coordinate"]),
                float(entry["max"] if entry["direction"] == "up" else entry["min"]),
                float(entry["shift"] if shift is None else shift),
            )
            for n, entry in enumerate(entries, start=1)
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CohortError(
            f"The attributes '{path}' cannot be read ({type(error).__name__}); expected the file "
            "that the search of bundles/stylex wrote."
        ) from error
    chosen = range(1, len(found) + 1) if numbers is None else numbers
    chosen = range(1, min(chosen, len(found)) + 1) if isinstance(chosen, int) else chosen
    unknown = [n for n in chosen if not 1 <= n <= len(found)]
    if unknown or not chosen:
        raise CohortError(
            f"Attribute {unknown[0] if unknown else 1} is not in '{path}', which has {len(found)}."
        )
    return [found[n - 1] for n in chosen]


class StyleEditInferer(Inferer):
    """Each subject with one attribute more, as a MONAI inferer: `inferer(image, network)`.

    The base is the reconstruction: what an edit changes is to be seen against it.

    Args:
        classifier: images (B, C, *S) in [0, 1] to logits (B, O).
        edits: see `load_edits`.

    Attributes:
        titles: `{"edits": ["reconstruction", NAME, ...]}`, as `medvae.report.SwapsMontaged` reads.
    """

    def __init__(self, classifier: Callable[[Tensor], Tensor], edits: Sequence[StyleEdit]) -> None:
        self.classifier, self.edits = classifier, list(edits)
        self.titles = {"edits": ["reconstruction", *(edit.name for edit in edits)]}

    def __call__(self, inputs: Tensor, network: StylEx, *_: Any, **__: Any) -> Tensor:
        """Return the reconstruction and every edit, channels side by side: (B, (1 + K) C, *S)."""
        with torch.no_grad(), evaluating(network):
            w = network.encode(inputs, network.probabilities(self.classifier(inputs)))
            styles = network.generator.styles(w)
            self._check(styles.shape[1])
            images = [network.decode(w)]
            for edit in self.edits:
                changed = styles.clone()
                start = styles[:, edit.coordinate].cpu().numpy()
                end = torch.as_tensor(moved(start, edit.end, edit.shift))
                changed[:, edit.coordinate] = end.to(styles)
                images.append(network.images(changed))
        return torch.cat(images, 1)

    def split(self, images: Tensor) -> dict[str, Tensor]:
        """Return a subject's images ((1 + K) C, *S) as the series of `titles`."""
        return {"edits": images}

    def by_name(self, images: Tensor) -> dict[str, Tensor]:
        """Return a subject's edits by their names, (C, *S) each, without the reconstruction."""
        names = self.titles["edits"]
        parts = images.chunk(len(names), 0)
        return dict(zip(names[1:], parts[1:], strict=True))

    def _check(self, count: int) -> None:
        for edit in self.edits:
            if not 0 <= edit.coordinate < count:
                raise CohortError(
                    f"The attribute '{edit.name}' is coordinate {edit.coordinate}, of {count} that "
                    "the network has; expected the search of this very network."
                )
