"""What the tests of the label app share."""

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from bodies_of_label import MODEL, inferred, intact_bundle, trained_bundle
from serving import STUDIES, Server

from medvae.data import phantoms


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A trained bundle with its data; tests that change it take a copy."""
    return trained_bundle(tmp_path_factory.mktemp("bundles"))


@pytest.fixture(scope="module")
def own(trained, tmp_path_factory):
    """The oblique phantom, and the folder of what the bundle's own inference says of it."""
    return inferred(trained, tmp_path_factory.mktemp("own"))


@pytest.fixture(scope="module")
def server(trained, own, tmp_path_factory):
    root = tmp_path_factory.mktemp("served")
    studies = root / "studies"
    (studies / "labels" / "final").mkdir(parents=True)
    for name in STUDIES:
        shutil.copy(trained / "data" / "images" / f"{name}.nii.gz", studies)
    masks = trained / "data" / "masks"
    shutil.copy(masks / f"{STUDIES[0]}.nii.gz", studies / "labels" / "final")
    shutil.copy(own[0], studies / "oblique.nii.gz")
    rng = np.random.default_rng(0)
    for name, shape in (("flat", (12, 12)), ("colours", (12, 12, 9, 3))):
        image = nib.Nifti1Image(rng.random(shape).astype(np.float32), np.eye(4))
        image.to_filename(studies / f"{name}.nii.gz")
    (root / "secret.nii.gz").write_bytes((studies / "oblique.nii.gz").read_bytes())
    broken = root / "bundles" / "broken"
    for part in ("configs", "models"):
        shutil.copytree(trained / part, broken / part)
    (broken / "models" / "run.json").write_text('{"settings": {"latent_dim": 7}}')
    (root / "bundles" / MODEL).symlink_to(trained)
    intact_bundle(root / "bundles")
    with Server(root, studies, root / "bundles") as running:
        yield running


@pytest.fixture(scope="module")
def teaching(trained, tmp_path_factory):
    """A server whose studies have masks and a table, and whose model may be replaced."""
    root = tmp_path_factory.mktemp("teaching")
    studies = root / "studies"
    table = phantoms(root / "data", 30, seed=5)
    (studies / "labels" / "final").mkdir(parents=True)
    for row in table.itertuples():
        shutil.copy(row.image, studies)
        if not pd.isna(row.mask):
            shutil.copy(row.mask, studies / "labels" / "final" / Path(row.image).name)
    table[["id", "diagnosis", "patient"]].to_csv(studies / "subjects.csv", index=False)
    ignored = shutil.ignore_patterns("data")
    shutil.copytree(trained, root / "bundles" / MODEL, ignore=ignored)
    with Server(root, studies, root / "bundles") as running:
        yield running
