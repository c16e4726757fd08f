"""Do two trainings find the same attributes? What edits change, stored so that runs compare."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medvae.data import CohortError
from medvae.data.output import write_bytes
from medvae.explain import Edit, StyleEffects, apply_edits
from medvae.metrics import EditChanges, attribute_stability
from medvae.report.stylex_effects import RANDOM, random_edits
from medvae.report.stylex_images import Encoded

if TYPE_CHECKING:
    from medvae.report.stylex_search import StylexSearch

__all__ = ["changes_of", "compare_attributes", "remove_changes", "write_changes"]

FILE = "changes.npz"


def changes_of(
    run: StylexSearch, effects: StyleEffects, tested: Encoded, edits: Sequence[Edit]
) -> EditChanges:
    """Return what each of M edits, made alone, changes in the tested images."""
    maps, logits = [], []
    for edit in edits:
        images = run.images_of(apply_edits(effects, tested.styles, [edit]))
        maps.append((images - tested.again).mean(0).flatten().numpy())
        logits.append((run.logits_of(images) - tested.logits_again).flatten())
    return EditChanges(np.stack(maps), np.stack(logits))


def write_changes(
    run: StylexSearch, effects: StyleEffects, tested: Encoded, found: EditChanges, target: int
) -> None:
    """Write `changes.npz`: what the attributes change, and what random edits do."""
    edits = random_edits(effects, np.random.default_rng(run.seed), RANDOM, run.task, target)
    luck = changes_of(run, effects, tested, edits)
    content = io.BytesIO()
    np.savez_compressed(
        content,
        judged=json.dumps([run.network.heads, tested.ids, list(tested.images.shape[1:])]),
        maps=found.maps,
        logits=found.logits,
        random_maps=luck.maps,
        random_logits=luck.logits,
    )
    write_bytes(run.output_dir / FILE, content.getvalue())


def remove_changes(run: StylexSearch) -> None:
    """Remove what an earlier search left, where this one found nothing."""
    (run.output_dir / FILE).unlink(missing_ok=True)


def compare_attributes(first: str | Path, second: str | Path, **options: Any) -> dict[str, Any]:
    """Return how many attributes of two StylEx runs are the same, beside chance.

    Args:
        first: folder of a run's results, with `changes.npz`.
        second: of another run, judged on the same test subjects.
        **options: see `medvae.metrics.attribute_stability`, which says what is returned.

    Raises:
        CohortError: a file that cannot be read, or runs that were not judged on the same images.
    """
    one, other = (_read(Path(folder)) for folder in (first, second))
    if str(one["judged"]) != str(other["judged"]):
        raise CohortError(
            f"The runs '{first}' and '{second}' were not judged on the same test subjects, image "
            "size and heads; expected the same, as attributes are matched by what they change."
        )
    found = [EditChanges(part["maps"], part["logits"]) for part in (one, other)]
    luck = [EditChanges(part["random_maps"], part["random_logits"]) for part in (one, other)]
    return attribute_stability(found[0], found[1], luck[0], luck[1], **options)


def _read(folder: Path) -> Mapping[str, Any]:
    try:
        with np.load(folder / FILE, allow_pickle=False) as stored:
            return dict(stored)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise CohortError(
            f"The file '{folder / FILE}' cannot be read ({type(error).__name__}); expected what a "
            "search of bundles/stylex leaves."
        ) from error
