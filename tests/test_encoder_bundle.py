"""The encoder's bundle, end to end on a tiny phantom cohort, in 2D and 3D, as a user runs it."""

import json
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import test_bundles
import torch
import yaml
from monai.bundle import ConfigParser

from medvae.data import phantoms
from medvae.networks import SubspaceClassifier

REPOSITORY = Path(__file__).parents[1]
CONFIGS = REPOSITORY / "bundles" / "disentangled_encoder" / "configs"
SUBJECTS = 60
HSIC = {"_target_": "medvae.losses.HSICLoss"}
pytestmark = [
    # MONAI says so at every run of every bundle (GHSA-873f-pvrv-4x83)
    pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning"),
    # verify_metadata, of the schema that it cannot download here
    pytest.mark.filterwarnings("ignore:No hash value provided:UserWarning"),
]


def tiny(root, spatial_dims):
    """Overrides that make a run of seconds."""
    return {
        "bundle_root": str(root),
        "subjects": str(root / "data" / "subjects.csv"),
        "spatial_dims": spatial_dims,
        "spacing_mm": 6.0,
        "image_size": [16] * spatial_dims,
        "channels": [4, 4, 8, 8],
    }


def training(root, spatial_dims, **overrides):
    quick: dict = {"max_epochs": 2, "batch_size": 8, "n_permutations": 2, "n_resamples": 4}
    quick["fractions"] = [0.5, 0.2, 0.3]
    return tiny(root, spatial_dims) | quick | overrides


def run(configs, overrides, workflow_type="train"):
    return test_bundles.run([CONFIGS / name for name in configs], overrides, workflow_type)


@pytest.fixture(scope="module", params=[2, 3])
def trained(request, tmp_path_factory):
    """A trained bundle root and its number of spatial dimensions."""
    root = tmp_path_factory.mktemp(f"encoder{request.param}d")
    phantoms(root / "data", SUBJECTS, spatial_dims=request.param)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "parsing config_file", UserWarning)
        run(["train.yaml"], training(root, request.param, groups=["sex"]))
    return root, request.param


def test_training_leaves_leakage_and_plots(trained):
    root, _ = trained
    metrics = json.loads((root / "eval" / "metrics.json").read_text())
    assert sum(metrics["subjects"].values()) == SUBJECTS
    leakage = metrics["leakage"]
    for bank in ("natural", "balanced"):
        assert set(leakage["matrix"][bank]) == {"diagnosis", "scanner", "free", "whole"}
    assert set(leakage["dependence"]["pairs"]) == {
        "diagnosis|scanner",
        "diagnosis|free",
        "scanner|free",
    }
    assert set(leakage["groups"]["sex"]["levels"]) <= {"F", "M"}
    assert metrics["heads"]["scanner"]["chance"] == 0.5
    for plot in ("curves.png", "leakage.png", "embeddings.png"):
        assert (root / "eval" / plot).stat().st_size > 5000
    history = pd.read_csv(root / "eval" / "history.csv")
    np.testing.assert_allclose(history["factors"] + history["weighted"], history["loss"], rtol=1e-4)
    assert "Points above chance" in (root / "eval" / "metrics.md").read_text()


def test_evaluating_again_gives_the_same_numbers(trained, tmp_path):
    root, spatial_dims = trained
    overrides = training(root, spatial_dims, output_dir=str(tmp_path), groups=["sex"])
    run(["train.yaml", "evaluate.yaml"], overrides)
    first, again = (
        json.loads((folder / "metrics.json").read_text()) for folder in (root / "eval", tmp_path)
    )
    assert first["heads"] == again["heads"]
    assert first["leakage"]["matrix"] == again["leakage"]["matrix"]


def test_inference_writes_codes_predictions_and_maps(trained, tmp_path):
    root, spatial_dims = trained
    table = pd.read_csv(root / "data" / "subjects.csv").head(3)
    for column in ("image", "mask"):
        table[column] = [str(root / "data" / cell) for cell in table[column]]
    table.drop(columns=["diagnosis", "scanner"]).to_csv(tmp_path / "new.csv", index=False)
    overrides = tiny(root, spatial_dims) | {
        "subjects": str(tmp_path / "new.csv"),
        "output_dir": str(tmp_path / "out"),
    }
    flow = run(["inference.yaml"], overrides, "infer")
    rows = pd.read_csv(tmp_path / "out" / "predictions.csv")
    assert list(rows["id"]) == list(table["id"])
    for name, classes in (("diagnosis", (0, 1)), ("scanner", "AB")):
        columns = [f"probability_{name}_{c}" for c in classes]
        np.testing.assert_allclose(rows[columns].sum(axis=1), 1, rtol=1e-5)
    name = table["id"][0]
    image = nib.load(table["image"][0])
    for kind in ("map_diagnosis", "map_scanner", "image"):
        found = nib.load(tmp_path / "out" / name / f"{name}_{kind}.nii.gz")
        assert found.shape == image.shape
        np.testing.assert_allclose(found.affine, image.affine, atol=1e-4)
        assert found.get_fdata().min() >= 0
    assert (tmp_path / "out" / name / f"{name}_maps.png").stat().st_size > 1000
    weights = torch.load(root / "models" / "model.pt", weights_only=True)
    network = flow.parser.get_parsed_content("network_def")
    assert isinstance(network, SubspaceClassifier)
    network.load_state_dict(weights)


def test_made_confounding_leaves_rows_out_and_a_balanced_test(tmp_path):
    phantoms(tmp_path / "data", 160, spatial_dims=2)
    made = {"between": ["diagnosis", "scanner"], "strength": 0.8}
    run(
        ["train.yaml"],
        training(tmp_path, 2, made_confounding=made, max_epochs=1, n_permutations=1),
    )
    metrics = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    rows = metrics["leakage"]["rows"]
    assert rows["bank"] == metrics["subjects"]["train"] < rows["pool"]
    counts = metrics["leakage"]["factors"]["diagnosis"]["test"]
    assert len(set(counts.values())) == 1


@pytest.mark.parametrize("trained", [2], indirect=True)
@pytest.mark.parametrize(
    "dependence",
    [
        {"_target_": "medvae.losses.HSICLoss"},
        {
            "_target_": "medvae.losses.AdversarialLeakageLoss",
            "sizes": "$list(@labels.sizes.values())",
            "kinds": "$@labels.kinds",
            "outputs": "$@labels.outputs",
        },
        None,
    ],
    ids=["hsic", "adversary", "none"],
)
def test_other_losses_train_by_configuration(trained, tmp_path, dependence):
    root, spatial_dims = trained
    overrides = training(root, 2, max_epochs=1, batch_size=12, balance=None)
    overrides |= {"ckpt_dir": str(tmp_path / "models"), "output_dir": str(tmp_path / "eval")}
    parser = ConfigParser(yaml.safe_load((CONFIGS / "train.yaml").read_text()))
    parser.update(overrides)
    parser["dependence"] = dependence
    parser.get_parsed_content("initialize")
    parser.get_parsed_content("train::trainer").run()
    assert (tmp_path / "models" / "model.pt").exists()


@pytest.mark.parametrize("trained", [2], indirect=True)
def test_metadata_and_the_networks_shapes(trained, tmp_path):
    root, spatial_dims = trained
    overrides = {
        "bundle_root": str(root),
        "subjects": str(root / "data" / "subjects.csv"),
        "channels": [4, 4, 8, 8],
    }
    test_bundles.check_definition(CONFIGS, overrides)


@pytest.mark.parametrize("trained", [2], indirect=True)
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"factors": {"diagnosys": None}}, "Column 'diagnosys' of the factor"),
        ({"factors": {}}, "factors is empty"),
        ({"free_size": -1}, "'free' has size -1"),
        ({"balance": ["sex"]}, "There is no factor 'sex'"),
        ({"groups": ["sexx"]}, "groups has 'sexx', which is not a column"),
        ({"given": ["sexx"]}, "given has 'sexx'; expected factors among"),
        ({"given": ["diagnosis"], "dependence": HSIC}, "found HSICLoss"),
        ({"factors": {"whole": {"column": "sex"}}}, "'whole', which means something else"),
        ({"factors": {"scanner": None}, "free_size": 0}, "expected sizes of two subspaces or more"),
        ({"made_confounding": {"between": ["diagnosis"]}}, "made_confounding is .* two factors"),
        ({"batch_size": 1000}, "batch_size is 1000"),
        ({"batch_size": 1}, "batch_size is 1"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(trained, tmp_path, overrides, message):
    root, spatial_dims = trained
    places = {"ckpt_dir": str(tmp_path / "models"), "output_dir": str(tmp_path / "eval")}
    with pytest.raises(SystemExit, match=message):
        run(["train.yaml"], training(root, 2) | places | overrides)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("trained", [2], indirect=True)
def test_a_wrong_group_is_named_when_a_model_is_evaluated_again(trained, tmp_path):
    overrides = training(trained[0], 2, output_dir=str(tmp_path / "eval"), groups=["sexx"])
    with pytest.raises(SystemExit, match="groups has 'sexx'"):
        run(["train.yaml", "evaluate.yaml"], overrides)


@pytest.mark.parametrize("trained", [2], indirect=True)
def test_a_continuous_factor_can_be_given(trained, tmp_path):
    factors = {"scanner": {"size": 2}, "age": {"kind": "continuous", "size": 2}}
    overrides = training(trained[0], 2, factors=factors, given=["age"], max_epochs=1)
    overrides |= {"ckpt_dir": str(tmp_path / "models"), "output_dir": str(tmp_path / "eval")}
    flow = run(["train.yaml"], overrides | {"run": ["$@train::trainer.run()"]})
    dependence = flow.parser.get_parsed_content("objective").dependence.dependence
    assert dependence.covariates == 1
    assert (dependence.past[:, -1] >= 0).any()  # whose codes they are


ABLATIONS = sorted((REPOSITORY / "configs" / "ablations").glob("encoder_*.yaml"))


@pytest.mark.parametrize("path", ABLATIONS, ids=lambda p: p.stem)
def test_ablations_only_set_keys_that_exist(path):
    train = yaml.safe_load((CONFIGS / "train.yaml").read_text())
    assert yaml.safe_load(path.read_text()).keys() <= train.keys()


def test_the_page_says_what_leaks(trained):
    root, _ = trained
    page = (root / "eval" / "report.html").read_text()
    assert "What leaks" in page
    assert "Balanced bank" in page
    assert "Subspaces in two dimensions" in page


def test_the_traced_export_gives_the_same_logits(trained, tmp_path):
    root, spatial_dims = trained
    shape = [1, 1, *[16] * spatial_dims]
    test_bundles.check_traced_export(CONFIGS, tiny(root, spatial_dims), shape, tmp_path)
