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
from medvae.label.served import said

__all__ = ["TrainingOptions", "finish_training", "studies_table", "train_again"]

PARTS = ("eval", "models")  # what a training makes; the model last, as servers look at it
TABLE = "subjects.csv"
COMPLETE = "complete"  # a file of a training that has ended and only waits to be put in its place


class TrainingOptions:
    """What a client may choose of a training.

    Args:
        request: of the client, whose other entries are left alone.

    Attributes:
        max_epochs: None: as the model was trained.
        pretrained: whether it starts from the weights that are served.

    Raises:
        CohortError: a value of another kind.
    """

    def __init__(self, request: Mapping[str, Any]) -> None:
        epochs = request.get("max_epochs")
        whole = isinstance(epochs, int) and not isinstance(epochs, bool)
        if epochs is not None and not (whole and 0 < epochs <= 100_000):
            raise CohortError(f"max_epochs is {epochs!r}; expected a whole number above 0.")
        self.max_epochs: int | None = epochs
        self.pretrained = request.get("pretrained", True)
        if not isinstance(self.pretrained, bool):
            raise CohortError(f"pretrained is {self.pretrained!r}; expected true or false.")


def studies_table(items: Mapping[str, tuple[str, str]], folder: str | Path | None) -> pd.DataFrame:
    """Return the table of a cohort: studies with a mask, and what a table beside them says.

    Args:
        items: image and mask of every study that has both, by its name.
        folder: with `subjects.csv`, whose column `id` names studies and whose other columns
            (classes, covariates, measured attributes) join them; None or no such file: none do.

    Raises:
        CohortError: no studies, or a table that cannot be read or has no column `id`.
    """
    if not items:
        raise CohortError("No study has a mask; expected some to be submitted before training.")
    rows = [{"id": name, "image": image, "mask": mask} for name, (image, mask) in items.items()]
    table = pd.DataFrame(rows)
    path = None if folder is None else Path(folder) / TABLE
    if path is None or not path.is_file():
        return table
    try:
        known = pd.read_csv(path, dtype={"id": str})
    except (ValueError, OSError) as error:
        raise CohortError(f"The table '{TABLE}' of the studies cannot be read: {error}") from error
    if "id" not in known:
        found = ", ".join(map(str, known.columns[:8]))
        raise CohortError(
            f"'{TABLE}' has no column 'id', but {found}; expected the studies' names."
        )
    known = known.drop(columns=["image", "mask"], errors="ignore").drop_duplicates("id")
    return table.merge(known, on="id", how="left")


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
