"""Training a served bundle again, on the studies that its users have labelled."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from monai.bundle import ConfigWorkflow

from medvae.data import check_writable, write_text
from medvae.data.errors import CohortError
from medvae.label.configuration import device_of, said

__all__ = ["TrainingOptions", "finish_training", "needs_mask", "studies_table", "train_again"]

PARTS = ("eval", "models")  # what a training makes; the model last, as servers look at it
TABLE = "subjects.csv"
COMPLETE = "complete"  # a file of a training that has ended and only waits to be put in its place


class TrainingOptions:
    """What a client may choose of a training.

    Args:
        request: of the client, whose other entries are left alone.
        device: where the client names none; None: as the bundle says.

    Attributes:
        max_epochs: None: as the model was trained.
        pretrained: whether it starts from the weights that are served.
        device: as a configuration's expression; None: as the bundle says.

    Raises:
        CohortError: a value of another kind.
    """

    def __init__(self, request: Mapping[str, Any], device: str | None = None) -> None:
        epochs = request.get("max_epochs")
        whole = isinstance(epochs, int) and not isinstance(epochs, bool)
        if epochs is not None and not (whole and 0 < epochs <= 100_000):
            raise CohortError(f"max_epochs is {epochs!r}; expected a whole number above 0.")
        self.max_epochs: int | None = epochs
        self.pretrained = request.get("pretrained", True)
        if not isinstance(self.pretrained, bool):
            raise CohortError(f"pretrained is {self.pretrained!r}; expected true or false.")
        asked = request.get("device") or device
        self.device = device_of(asked) if asked else None


def studies_table(
    items: Mapping[str, tuple[str, str]], folder: str | Path | None, needs_mask: bool = True
) -> pd.DataFrame:
    """Return the table of a cohort: studies, and what a table beside them says.

    Args:
        items: image and mask of every study by its name; an empty mask is none.
        folder: with `subjects.csv`, whose column `id` names studies and whose other columns
            (classes, covariates, measured attributes) join them; None or no such file: none do.
        needs_mask: whether every study must have a mask; else those in `subjects.csv` need none.

    Raises:
        CohortError: no studies, or a table that cannot be read or has no column `id`.
    """
    beside = _beside(folder)
    listed = set() if beside is None or needs_mask else set(beside["id"])
    rows = [
        {"id": name, "image": image, "mask": mask or None}
        for name, (image, mask) in items.items()
        if mask or name in listed
    ]
    if not rows:
        where = "" if needs_mask else f", nor is one listed in '{TABLE}'"
        raise CohortError(f"No study has a mask{where}; expected some before training.")
    table = pd.DataFrame(rows)
    if not table["mask"].notna().any():
        table = table.drop(columns="mask")  # then what can only be measured is missed by its name
    return table if beside is None else table.merge(beside, on="id", how="left")


def needs_mask(folder: str | Path) -> bool:
    """Whether a bundle is trained on masks themselves, not only on what is measured in them.

    Raises:
        CohortError: the bundle keeps no record of its training.
    """
    settings = _settings(Path(folder))
    uses = bool(settings.get("center_on_mask")) or bool(settings.get("regions"))
    return uses or settings.get("background") is not None


def _beside(folder: str | Path | None) -> pd.DataFrame | None:
    """Return the table beside the studies, without their files."""
    path = None if folder is None else Path(folder) / TABLE
    if path is None or not path.is_file():
        return None
    try:
        known = pd.read_csv(path, dtype={"id": str})
    except (ValueError, OSError) as error:
        raise CohortError(f"The table '{TABLE}' of the studies cannot be read: {error}") from error
    if "id" not in known:
        found = ", ".join(map(str, known.columns[:8]))
        raise CohortError(
            f"'{TABLE}' has no column 'id', but {found}; expected the studies' names."
        )
    return known.drop(columns=["image", "mask"], errors="ignore").drop_duplicates("id")


def train_again(
    folder: str | Path, table: pd.DataFrame, options: TrainingOptions
) -> dict[str, Any]:
    """Train a bundle as its model was, on other subjects, and put the new model in its place.

    The model that was there is kept in `previous`, with its evaluation. An end before the end, by
    an error or a kill, leaves the served model as it was.

    Args:
        folder: the bundle; `models/run.json` has the settings of its training.
        table: the subjects, see `studies_table`.
        options: see `TrainingOptions`.

    Returns:
        The metrics of the new model on the test split of `table`.

    Raises:
        CohortError: the bundle keeps no record of its training, cannot be written to, or the
            subjects cannot be used.
    """
    root = Path(folder)
    work = root / "training"
    settings = _settings(root)
    check_writable(root)
    shutil.rmtree(work, ignore_errors=True)
    write_text(work / "train.json", json.dumps(settings))
    write_text(work / TABLE, table.to_csv(index=False))
    said(lambda: _run(root, work, options))
    metrics = json.loads((work / "eval" / "metrics.json").read_text("utf-8"))
    write_text(work / COMPLETE, "")
    _swap(root, work)
    return dict(metrics)


def finish_training(folder: str | Path) -> None:
    """Go on where a kill came between the first and the last file of a finished training's swap."""
    root = Path(folder)
    if (root / "training" / COMPLETE).is_file():
        _swap(root, root / "training")


def _settings(root: Path) -> dict[str, Any]:
    record = root / "models" / "run.json"
    try:
        settings = json.loads(record.read_text("utf-8"))["settings"]
    except (OSError, ValueError, KeyError) as error:
        raise CohortError(
            f"The bundle '{root.name}' has no record of its training that can be read; expected "
            "the models/run.json that training writes."
        ) from error
    if "training" not in settings:
        raise CohortError(f"The record of the bundle '{root.name}' is not that of a training.")
    return dict(settings)


def _run(root: Path, work: Path, options: TrainingOptions) -> None:
    config = work / "train.json"
    metadata = root / "configs" / "metadata.json"
    settings: dict[str, Any] = {
        "bundle_root": str(work),
        "ckpt_dir": str(work / "models"),
        "output_dir": str(work / "eval"),
        "subjects": str(work / TABLE),
        "overwrite": False,
        "resume": False,
    }
    if options.device is not None:
        settings["device"] = options.device
    if options.max_epochs is not None:
        settings["max_epochs"] = options.max_epochs
    if options.pretrained:
        initialize = json.loads(config.read_text("utf-8"))["initialize"]
        load = "medvae.data.or_exit(medvae.networks.load_weights, @network, {!r}, @device)"
        settings["initialize"] = [*initialize, "$" + load.format(str(root / "models" / "model.pt"))]
    flow = ConfigWorkflow(
        config_file=str(config),
        meta_file=str(metadata),
        logging_file=False,
        workflow_type="train",
        **settings,
    )
    flow.initialize()
    flow.run()
    flow.finalize()


def _swap(root: Path, work: Path) -> None:
    """Put what a training made in its place, part by part; steps that are done are left out."""
    previous = root / "previous"
    previous.mkdir(exist_ok=True)
    for part in PARTS:
        if not (work / part).exists():
            continue
        if (root / part).exists():
            shutil.rmtree(previous / part, ignore_errors=True)
            (root / part).rename(previous / part)
        (work / part).rename(root / part)
    (work / COMPLETE).unlink()
    shutil.rmtree(work)
