"""Training a served bundle again, as the app does it, without MONAI Label."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from bodies_of_label import SMALL

from medvae.data import CohortError, phantoms
from medvae.label import (
    ServedBundle,
    TrainingOptions,
    finish_training,
    needs_mask,
    studies_table,
    train_again,
    training,
)

pytestmark = pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning")


@pytest.fixture
def bundle(trained, tmp_path):
    root = tmp_path / "hearts"
    shutil.copytree(trained, root, ignore=shutil.ignore_patterns("data"))
    return root


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    """Thirty studies with masks, and the table beside them: a class, no measured attribute."""
    root = tmp_path_factory.mktemp("studies")
    table = phantoms(root / "data", 30, seed=5)
    table[["id", "diagnosis", "patient"]].to_csv(root / "subjects.csv", index=False)
    measured = [not pd.isna(mask) for mask in table["mask"]]
    rows = table[measured].itertuples()
    return studies_table({row.id: (row.image, row.mask) for row in rows}, root)


def weights(root):
    return torch.load(root / "models" / "model.pt", weights_only=True)


def test_a_new_model_takes_the_place_of_the_one_it_started_from(bundle, studies):
    """At a learning rate of almost nothing: what was served comes out, but for statistics."""
    record = bundle / "models" / "run.json"
    run = json.loads(record.read_text())
    run["settings"]["learning_rate"] = 1e-12
    record.write_text(json.dumps(run))
    served, before = ServedBundle(bundle, "cpu"), weights(bundle)
    assert not served.is_replaced()
    metrics = train_again(bundle, studies, TrainingOptions({"max_epochs": 1}))
    assert sum(metrics["subjects"].values()) == len(studies)
    assert served.is_replaced()
    after = weights(bundle)
    for name in before:
        same = torch.allclose(after[name].float(), before[name].float(), atol=1e-7)
        assert same == ("running" not in name and "num_batches" not in name), name
    kept = torch.load(bundle / "previous" / "models" / "model.pt", weights_only=True)
    assert all(torch.equal(kept[name], before[name]) for name in before)
    assert not (bundle / "training").exists()
    image = {"image": studies["image"][0], "mask": studies["mask"][0]}
    assert set(ServedBundle(bundle, "cpu").read(image)["attributes"]) == set(served.attributes)
    settings = json.loads((bundle / "models" / "run.json").read_text())["settings"]
    assert settings["max_epochs"] == 1
    assert settings["latent_dim"] == 6  # as it was trained before


def test_from_nothing_where_it_is_asked_for(bundle, studies):
    before = weights(bundle)
    train_again(bundle, studies, TrainingOptions({"max_epochs": 1, "pretrained": False}))
    after = weights(bundle)
    learned = [n for n in before if before[n].ndim > 1]
    assert not any(torch.allclose(after[n], before[n], atol=1e-5) for n in learned)


def test_what_fails_leaves_the_model_as_it_was(bundle, studies):
    before = weights(bundle)
    with pytest.raises(CohortError, match="diagnosis"):
        train_again(bundle, studies.drop(columns="diagnosis"), TrainingOptions({}))
    with pytest.raises(CohortError, match="expected"):
        train_again(bundle, studies.head(3), TrainingOptions({}))
    assert all(torch.equal(weights(bundle)[n], before[n]) for n in before)
    (bundle / "models" / "run.json").write_text("{}")
    with pytest.raises(CohortError, match="no record of its training"):
        train_again(bundle, studies, TrainingOptions({}))


@pytest.mark.parametrize("renamed", range(5))
def test_a_kill_while_models_are_exchanged_is_mended(bundle, monkeypatch, renamed):
    work = bundle / "training"
    for part in ("models", "eval"):
        shutil.copytree(bundle / part, work / part)
        (work / part / "new").touch()
    (work / "complete").touch()
    rename, count = Path.rename, []

    def killed(self, target):
        if len(count) == renamed:
            raise KeyboardInterrupt
        count.append(self)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", killed)
    if renamed < 4:  # two parts are taken away, and two put in their places
        with pytest.raises(KeyboardInterrupt):
            finish_training(bundle)
    monkeypatch.setattr(Path, "rename", rename)
    finish_training(bundle)
    for part in ("models", "eval"):
        assert (bundle / part / "new").exists()
        assert (bundle / "previous" / part).is_dir()
        assert not (bundle / "previous" / part / "new").exists()
    assert not work.exists()
    finish_training(bundle)  # nothing to do
    assert (bundle / "models" / "model.pt").is_file()


def test_a_training_that_has_not_ended_takes_nothing_away(bundle):
    shutil.copytree(bundle / "models", bundle / "training" / "models")
    finish_training(bundle)
    assert (bundle / "training" / "models").is_dir()
    assert not (bundle / "previous").exists()


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        ({"max_epochs": 0}, "max_epochs is 0; expected a whole number"),
        ({"max_epochs": "many"}, "max_epochs is 'many'"),
        ({"max_epochs": True}, "max_epochs is True"),
        ({"pretrained": "no"}, "pretrained is 'no'; expected true or false"),
        ({"device": "abacus"}, "The device 'abacus' is unknown"),
        ({"device": "meta"}, "This machine has no device 'meta'"),
    ],
)
def test_options_that_are_none(request_, sentence):
    with pytest.raises(CohortError, match=sentence):
        TrainingOptions(request_)


@pytest.mark.parametrize(
    ("asked", "served", "used"),
    [
        ({"device": "cpu:0"}, "cpu", "$torch.device('cpu:0')"),
        ({}, "cpu", "$torch.device('cpu')"),
        ({"device": ""}, None, None),
    ],
)
def test_the_device_of_client_or_server_reaches_the_training(
    bundle, studies, monkeypatch, asked, served, used
):
    found = {}

    class Workflow:
        def __init__(self, **settings):
            found.update(settings)
            raise SystemExit("Error: enough.")

    monkeypatch.setattr(training, "ConfigWorkflow", Workflow)
    with pytest.raises(CohortError, match="enough"):
        train_again(bundle, studies, TrainingOptions(asked, served))
    assert found.get("device") == used


def test_studies_without_masks_are_trained_on_if_the_table_has_their_attributes(bundle, tmp_path):
    """A model that is told its attributes needs nobody to draw."""
    table = phantoms(tmp_path / "data", 30, seed=5)
    columns = ["id", "diagnosis", "patient", "lv_volume_ml", "wall_thickness_mm"]
    names = dict(zip(columns[3:], SMALL["attributes"], strict=True))
    table[columns].rename(columns=names).to_csv(tmp_path / "subjects.csv", index=False)
    assert not needs_mask(bundle)
    items = {row.id: (row.image, "") for row in table.itertuples()}
    with pytest.raises(CohortError, match="No study has a mask; expected some before training"):
        studies_table(items, tmp_path)
    known = studies_table(items | {"other": ("o.nii.gz", "")}, tmp_path, needs_mask=False)
    assert len(known) == 30
    metrics = train_again(bundle, known, TrainingOptions({"max_epochs": 1}))
    assert sum(metrics["subjects"].values()) == 30
    without = known.drop(columns=SMALL["attributes"])
    with pytest.raises(CohortError, match="Column 'mask' is not in the table; expected one to mea"):
        train_again(bundle, without, TrainingOptions({"max_epochs": 1}))
    with pytest.raises(CohortError, match="No study has a mask, nor is one listed in 'subjects"):
        studies_table({"other": ("o.nii.gz", "")}, tmp_path, needs_mask=False)


@pytest.mark.parametrize("key", ["center_on_mask", "regions", "background"])
def test_a_model_that_reads_masks_needs_them(bundle, key):
    record = bundle / "models" / "run.json"
    run = json.loads(record.read_text())
    run["settings"][key] = 0 if key == "background" else True
    record.write_text(json.dumps(run))
    assert needs_mask(bundle)


def test_the_table_beside_the_studies_joins_by_id(tmp_path):
    items = {"a": ("a.nii.gz", "m.nii.gz"), "b": ("b.nii.gz", "n.nii.gz")}
    assert list(studies_table(items, tmp_path).columns) == ["id", "image", "mask"]
    (tmp_path / "subjects.csv").write_text("id,image,age\nb,elsewhere,7\nc,x,8\n")
    table = studies_table(items, tmp_path)
    assert list(table["image"]) == ["a.nii.gz", "b.nii.gz"]
    assert table["age"].isna().tolist() == [True, False]
    (tmp_path / "subjects.csv").write_text("name,age\nb,7\n")
    with pytest.raises(CohortError, match="no column 'id', but name, age"):
        studies_table(items, tmp_path)
    with pytest.raises(CohortError, match="No study has a mask"):
        studies_table({}, None)
