"""A small model and a few studies of phantoms, to see the app at work before one has either."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
from monai.bundle import ConfigWorkflow

from medvae.data import CohortState, phantoms

__all__ = ["first_look"]

SUBJECTS, STUDIES, WITH_MASK = 80, 12, 4
QUICK = {"max_epochs": 10, "n_permutations": 2, "n_resamples": 10}


def first_look(folder: str | Path, bundle: str | Path) -> tuple[str, str]:
    """Train a bundle on phantoms, a few minutes on two cores, unless that was done.

    Args:
        folder: where everything goes.
        bundle: the folder with its `configs`.

    Returns:
        The folder of studies, phantoms of the test split of which four have a mask, and that of
        the bundle.
    """
    root, studies = Path(folder) / "bundles" / "hearts", Path(folder) / "studies"
    if not (root / "models" / "model.pt").is_file():
        _train(root, Path(bundle) / "configs")
    table = phantoms(root / "data", SUBJECTS)
    splits = CohortState.load(root / "models" / "cohort.json").splits or {}
    chosen = table[[splits.get(name) == "test" for name in table["id"]]].head(STUDIES)
    _copy(chosen, studies)
    return str(studies), str(root)


def _train(root: Path, configs: Path) -> None:
    shutil.copytree(configs, root / "configs", dirs_exist_ok=True)
    phantoms(root / "data", SUBJECTS, progress=True)
    flow = ConfigWorkflow(
        config_file=str(root / "configs" / "train.yaml"),
        meta_file=str(root / "configs" / "metadata.json"),
        logging_file=str(root / "configs" / "logging.conf"),
        workflow_type="train",
        bundle_root=str(root),
        subjects=str(root / "data" / "subjects.csv"),
        **QUICK,
    )
    flow.initialize()
    flow.run()
    flow.finalize()


def _copy(table: pd.DataFrame, studies: Path) -> None:
    labels = studies / "labels" / "final"
    labels.mkdir(parents=True, exist_ok=True)
    for number, row in enumerate(table.to_dict("records")):
        shutil.copy(row["image"], studies)
        if number < WITH_MASK and not pd.isna(row["mask"]):
            shutil.copy(row["mask"], labels / Path(row["image"]).name)
