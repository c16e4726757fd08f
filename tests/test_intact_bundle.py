"""The beta-Intact-VAE's bundle, end to end on a tiny phantom cohort, in 2D and 3D."""

import json
import warnings
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import test_bundles
import torch
import yaml
from intact_runs import CONFIGS, REPOSITORY, SUBJECTS, inference, run, tiny, training
from monai.bundle import ConfigParser
from ranks import said_by_two_ranks
from test_distributed import multi_gpu

from medvae.data import phantoms
from medvae.networks import IntactVAEReconstruction

pytestmark = [
    # MONAI says so at every run of every bundle (GHSA-873f-pvrv-4x83)
    pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning"),
    # verify_metadata, of the schema that it cannot download here
    pytest.mark.filterwarnings("ignore:No hash value provided:UserWarning"),
]


@pytest.fixture(scope="module", params=[2, 3])
def trained(request, tmp_path_factory):
    """A trained bundle root and its number of spatial dimensions."""
    root = tmp_path_factory.mktemp(f"intact{request.param}d")
    phantoms(root / "data", SUBJECTS, spatial_dims=request.param, confounding=0.5)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "parsing config_file", UserWarning)
        run(["train.yaml"], training(root, request.param))
    return root, request.param


def test_training_leaves_effects_overlap_and_quality(trained):
    root, spatial_dims = trained
    metrics = json.loads((root / "eval" / "metrics.json").read_text())
    assert sum(metrics["subjects"].values()) == SUBJECTS
    assert metrics["treatment"] == {"column": "scanner", "arms": ["A", "B"]}
    assert sum(metrics["overlap"]["arms"].values()) == SUBJECTS
    assert 0 <= metrics["overlap"]["outside"] <= 1
    region = metrics["effects"]["B"]["region"]
    assert region["all"]["low"] < region["all"]["high"]
    assert (
        region["inside"]["subjects"] + region["outside"]["subjects"] == metrics["subjects"]["test"]
    )
    assert {"difference of means", "ComBat"} <= metrics["effects"]["B"]["simple"].keys()
    axes = {"composition", "reversibility", "effectiveness", "realism", "minimality"}
    assert axes == metrics["quality"].keys()
    assert metrics["quality"]["effectiveness"]["chance"] == 0.5
    choice = json.loads((root / "models" / "beta.json").read_text())
    assert metrics["beta"] == choice["beta"]
    assert {score["beta"] for score in choice["scores"]} == {2, 4}
    cells = pd.read_csv(root / "eval" / "effects.csv")
    assert len(cells) == metrics["subjects"]["test"]
    assert cells["effect_B"].mean() == pytest.approx(region["all"]["ate"])
    history = pd.read_csv(root / "eval" / "history.csv")
    terms = ["nll", "kl", "balance"] if spatial_dims == 3 else ["nll", "kl"]
    np.testing.assert_allclose(history[terms].sum(axis=1), history["loss"], rtol=1e-4)
    mean = nib.load(root / "eval" / "effect_B" / "effect_B_mean.nii.gz")
    assert mean.header.get_zooms()[:spatial_dims] == (6.0,) * spatial_dims
    for plot in ("curves.png", "counterfactuals.png"):
        assert (root / "eval" / plot).stat().st_size > 3000
    assert "outside the overlap" in (root / "eval" / "metrics.md").read_text()
    html = (root / "eval" / "report.html").read_text()
    for words in (">Effects</h2>", "T-learner", "B instead of A", "Who can be compared"):
        assert words in html
    assert f"{region['all']['ate']:.4f}" in html
    assert "not as expected" not in html
    if spatial_dims == 3:
        assert len(list((root / "eval" / "examples").rglob("*_reconstruction.nii.gz"))) == 3
        assert 'class="volumes"' in html


ABLATIONS = sorted((REPOSITORY / "configs" / "ablations").glob("intact_*.yaml"))


@pytest.mark.parametrize("path", ABLATIONS, ids=lambda p: p.stem)
@pytest.mark.parametrize("trained", [2], indirect=True)
def test_ablations_switch_prior_and_loss_and_run(trained, tmp_path, path):
    root, _ = trained
    train = yaml.safe_load((CONFIGS / "train.yaml").read_text())
    changes = yaml.safe_load(path.read_text())
    assert changes.keys() <= train.keys()
    places = {"ckpt_dir": str(tmp_path / "models"), "output_dir": str(tmp_path / "eval")}
    settings = training(root, 2, max_epochs=1) | places
    flow = test_bundles.run([CONFIGS / "train.yaml", path], settings)
    network = flow.parser.get_parsed_content("network")
    assert not network.learned_prior
    assert not any(p.requires_grad for p in network.prior_net.parameters())
    history = pd.read_csv(tmp_path / "eval" / "history.csv")
    terms = ["mse", "kl"] if "loss" in changes else ["nll", "kl"]
    np.testing.assert_allclose(history[terms].sum(axis=1), history["loss"], rtol=1e-4)
    metrics = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    assert metrics["beta"] == changes.get("beta", metrics["beta"])
    some(root, tmp_path)
    used = {"ckpt_dir": places["ckpt_dir"], "samples": 0}
    with pytest.raises(SystemExit, match="learned_prior is True here and was False"):
        inference(root, 2, tmp_path, **used)
    _, rows = inference(root, 2, tmp_path, **used, learned_prior=False)
    assert len(rows) == 4


def test_evaluating_again_gives_the_same_numbers(trained, tmp_path):
    root, spatial_dims = trained
    run(["train.yaml", "evaluate.yaml"], training(root, spatial_dims, output_dir=str(tmp_path)))
    first, again = (
        json.loads((folder / "metrics.json").read_text()) for folder in (root / "eval", tmp_path)
    )
    assert first == again


def some(root, tmp_path, **columns):
    table = pd.read_csv(root / "data" / "subjects.csv").head(4)
    for column in ("image", "mask"):
        table[column] = [str(root / "data" / cell) for cell in table[column]]
    table.assign(**columns).to_csv(tmp_path / "new.csv", index=False)
    return table


@pytest.mark.parametrize("trained", [3], indirect=True)  # with balance, its memory, and flips
def test_an_interrupted_training_goes_on_to_the_same_bits(trained, tmp_path):
    root, spatial_dims = trained
    settings = training(root, spatial_dims)
    train = partial(run, ["train.yaml"])
    left = test_bundles.left_and_resumed(train, settings, root, tmp_path)
    assert any(name.endswith("past") and held.any() for name, held in left["loss"].items())


def test_training_images_alone_are_augmented_and_after_the_truth():
    flip = {"_target_": "RandFlipd", "keys": "image", "prob": 0.5, "spatial_axis": 0}
    parser = ConfigParser()
    parser.read_config(str(CONFIGS / "train.yaml"))
    parser["truth"] = [{"_target_": "CopyItemsd", "keys": "image", "names": "counterfactual"}]
    parser["augmentation"] = [flip]
    names = {
        where: [type(step).__name__ for step in parser.get_parsed_content(where).transforms]
        for where in ("with_truth", "train#preprocessing")
    }
    assert names["train#preprocessing"] == [*names["with_truth"], "RandFlipd"]
    assert names["with_truth"][-1] == "CopyItemsd"
    assert parser["train"]["dataset"]["transform"] == "@train::preprocessing"
    assert parser["validate"]["dataset"]["transform"] == "@with_truth"


def test_counterfactuals_lie_on_the_subjects_grid_in_its_unit(trained, tmp_path):
    root, spatial_dims = trained
    table = some(root, tmp_path)
    flow, rows = inference(root, spatial_dims, tmp_path, target="B", samples=2, keep_noise=True)
    assert list(rows["id"]) == list(table["id"])
    assert list(rows["own"]) == list(table["scanner"])
    assert set(rows["target"]) == {"B"}
    assert not rows["extrapolated"].any()
    weights = torch.load(root / "models" / "model.pt", weights_only=True)
    network = flow.parser.get_parsed_content("network_def")
    assert isinstance(network, IntactVAEReconstruction)
    network.load_state_dict(weights)
    for name, path, arm in zip(table["id"], table["image"], table["scanner"], strict=True):
        image = nib.load(path)
        found = {
            kind: nib.load(tmp_path / "out" / name / f"{name}_{kind}_B.nii.gz")
            for kind in ("counterfactual", "difference", "uncertainty")
        }
        for volume in found.values():
            assert volume.shape == image.shape
            np.testing.assert_allclose(volume.affine, image.affine, atol=1e-4)
        assert found["uncertainty"].get_fdata().min() >= -1e-4
        moved = np.abs(found["difference"].get_fdata()).max()
        assert moved == 0 if arm == "B" else moved > 0
        kept = found["counterfactual"].get_fdata() - found["difference"].get_fdata()
        # the image itself, but for what resampling to the network's grid blurs
        assert np.corrcoef(kept.ravel(), image.get_fdata().ravel())[0, 1] > 0.9


def test_a_strength_without_an_image_is_drawn_as_the_table_says(trained, tmp_path):
    root, spatial_dims = trained
    table = some(root, tmp_path)
    drawn = {}
    for strength in (0.5, 1.0):
        options = {"strength": strength, "alone": True, "samples": 0, "overwrite": True}
        _, rows = inference(root, spatial_dims, tmp_path, target="B", **options)
        assert set(rows["strength"]) == {strength}
        assert set(rows["grid"]) == {"subject"}
        drawn[strength] = [
            nib.load(tmp_path / "out" / name / f"{name}_difference_B.nii.gz").get_fdata()
            for name in table["id"]
        ]
    for half, whole in zip(*drawn.values(), strict=True):
        assert np.abs(half - whole).max() > 1e-3 * np.abs(whole).max() > 0


def test_subjects_without_image_and_treatment_are_drawn_on_the_networks_grid(trained, tmp_path):
    root, spatial_dims = trained
    some(root, tmp_path)
    table = pd.read_csv(tmp_path / "new.csv")
    bare = table.index[:2]
    table.loc[bare, ["image", "mask", "scanner"]] = np.nan
    table.to_csv(tmp_path / "new.csv", index=False)
    with pytest.raises(SystemExit, match="'image' of .* is empty in row"):
        inference(root, spatial_dims, tmp_path)
    _, rows = inference(root, spatial_dims, tmp_path, target="B", alone=True, samples=2)
    assert list(rows["grid"]) == ["network", "network", "subject", "subject"]
    assert rows["own"].isna().tolist() == [True, True, False, False]
    assert not rows["mean_difference"].isna().any()
    for number, name in enumerate(table["id"]):
        found = nib.load(tmp_path / "out" / name / f"{name}_counterfactual_B.nii.gz")
        values = found.get_fdata()
        assert np.isfinite(values).all()
        assert values.std() > 0
        if number in bare:
            assert found.shape == (16,) * spatial_dims
            np.testing.assert_allclose(
                found.affine, np.diag([*[6.0] * spatial_dims, *[1.0] * (4 - spatial_dims)])
            )
        else:
            assert found.shape == nib.load(table["image"][number]).shape
    columns = ["id", "age", "sex", "diagnosis", "wall_thickness_mm", "ejection_fraction"]
    table[columns].assign(scanner=np.nan).to_csv(tmp_path / "new.csv", index=False)
    options = {"alone": True, "center_on_mask": True, "samples": 0, "overwrite": True}
    record = root / "models" / "run.json"
    kept = record.read_text()
    record.unlink()  # the grid's centre is not that of the training
    try:
        _, rows = inference(root, spatial_dims, tmp_path, **options)
    finally:
        record.write_text(kept)
    assert set(rows["grid"]) == {"network"}


@pytest.mark.parametrize("trained", [2], indirect=True)
def test_an_ensemble_is_the_mean_of_its_members_and_their_spread(trained, tmp_path):
    root, spatial_dims = trained
    some(root, tmp_path)
    weights = torch.load(root / "models" / "model.pt", weights_only=True)
    others = []
    for seed in (1, 2):
        generator = torch.Generator().manual_seed(seed)
        moved = {
            name: value + 0.05 * torch.randn(value.shape, generator=generator)
            for name, value in weights.items()
        }
        others.append(str(tmp_path / f"member{seed}.pt"))
        torch.save(moved, others[-1])

    def drawn(members, folder):
        options = {"members": members, "samples": 0, "output_dir": str(tmp_path / folder)}
        places = {"subjects": str(tmp_path / "new.csv"), "target": "B"}
        run(["inference.yaml"], tiny(root, spatial_dims) | places | options, "infer")
        kinds = ("difference", "uncertainty")
        files = [sorted((tmp_path / folder).rglob(f"*_{kind}_B.nii.gz")) for kind in kinds]
        return [np.concatenate([nib.load(p).get_fdata().ravel() for p in ps]) for ps in files]

    single, none = drawn([], "one")
    together, spread = drawn(others, "three")
    assert not none.any()
    parts = [single, *(2 * drawn([path], Path(path).stem)[0] - single for path in others)]
    for found, expected in ((together, np.mean(parts, 0)), (spread, np.std(parts, 0))):
        scale = np.abs(expected).max()
        assert scale > 0
        np.testing.assert_allclose(found, expected, atol=0.05 * scale)
    with pytest.raises(SystemExit, match="The model '.*nobody.pt' does not exist"):
        drawn([str(tmp_path / "nobody.pt")], "refused")


def test_what_lies_beyond_the_data_is_refused_or_marked(trained, tmp_path):
    root, spatial_dims = trained
    some(root, tmp_path)
    with pytest.raises(SystemExit, match="extrapolate=True"):
        inference(root, spatial_dims, tmp_path, strength=2.0)
    with pytest.raises(SystemExit, match="The arm 'C' .* was not seen in training"):
        inference(root, spatial_dims, tmp_path, target="C")
    with pytest.raises(SystemExit, match="keep_noise needs the image"):
        inference(root, spatial_dims, tmp_path, alone=True, keep_noise=True)
    _, rows = inference(
        root, spatial_dims, tmp_path, strength=2.0, extrapolate=True, samples=0, alone=True
    )
    assert rows["extrapolated"].all()
    some(root, tmp_path, scanner="D")
    with pytest.raises(SystemExit, match="'D' in row .* a class that no training row has"):
        inference(root, spatial_dims, tmp_path, overwrite=True)


@pytest.mark.parametrize("trained", [2], indirect=True)
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"treatment": "scaner"}, "Column 'scaner' of the factor"),
        ({"descendants": ["age"]}, "'age' is declared as a descendant"),
        ({"covariates": {"scanner": {}}}, "The covariate 'scanner' is the treatment"),
        ({"min_arm": 100}, "training row\\(s\\); expected at least 100"),
        ({"control": "C"}, "The control is 'C'"),
        ({"batch_size": 1000}, "batch_size is 1000"),
        ({"strides": [2]}, "strides must have one entry"),
        ({"groups": ["sexx"]}, "Column 'sexx' of groups is not in the table"),
        ({"groups": ["age"]}, "Column 'age' of groups has [0-9]+ values; expected at most 12"),
        ({"window": "$None", "percentiles": [1, 99]}, "percentiles is .* expected null"),
        ({"descendants": ["lesion_load"]}, "The descendant 'lesion_load' .* is not in the table"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(trained, tmp_path, overrides, message):
    root, _ = trained
    places = {"ckpt_dir": str(tmp_path / "models"), "output_dir": str(tmp_path / "eval")}
    with pytest.raises(SystemExit, match=message):
        run(["train.yaml"], training(root, 2) | places | overrides)
    assert not (tmp_path / "models" / "model.pt").exists()


@pytest.mark.parametrize("trained", [2], indirect=True)
@pytest.mark.parametrize(
    ("overrides", "masks", "message"),
    [
        ({}, 79, "Column 'mask' has none for .* expected a mask of every subject, or of none"),
        ({"region": [2]}, 79, "has no mask"),
        ({"region": [2]}, 0, "Column 'mask' is not in the table; expected one .*region"),
        ({"truth": "dilation"}, 79, "has no mask"),
        ({"truth": "intensity"}, 0, "Column 'mask' is not in the table; expected one .*truth"),
        ({"measured": ["pixel_area_mm2"], "mask_labels": None}, 79, "has no mask"),
    ],
)
def test_a_missing_mask_is_said_before_training(trained, tmp_path, overrides, masks, message):
    root, _ = trained
    table = pd.read_csv(root / "data" / "subjects.csv")
    for column in ("image", "mask"):
        table[column] = [str(root / "data" / cell) for cell in table[column]]
    table["mask"] = table["mask"].where(table.index < masks)
    if not masks:
        del table["mask"]
    table.to_csv(tmp_path / "new.csv", index=False)
    if "truth" in overrides:
        effect = {"_target_": "medvae.transforms.KnownEffectd", "keys": "image"}
        effect |= {"operation": overrides["truth"], "amount": 6.0, "spacing_mm": 6.0}
        overrides = {"truth": [effect]}
    places = {"ckpt_dir": str(tmp_path / "models"), "output_dir": str(tmp_path / "eval")}
    places["subjects"] = str(tmp_path / "new.csv")
    with pytest.raises(SystemExit, match=message):
        run(["train.yaml"], training(root, 2) | places | overrides)
    assert not (tmp_path / "models" / "model.pt").exists()


@pytest.mark.parametrize("trained", [2], indirect=True)
@pytest.mark.parametrize(
    ("operation", "needed"), [("slice_thickness", None), ("intensity", True), ("dilation", True)]
)
def test_masks_are_needed_by_the_operations_that_read_them(trained, operation, needed):
    root, _ = trained
    parser = ConfigParser(yaml.safe_load((CONFIGS / "train.yaml").read_text()))
    effect = {"_target_": "medvae.transforms.KnownEffectd", "keys": "image"}
    effect |= {"operation": operation, "amount": 6.0, "spacing_mm": 6.0}
    parser.update(training(root, 2, truth=[effect]))
    assert parser.get_parsed_content("cohort::needs_mask") is needed


@pytest.mark.parametrize("trained", [2], indirect=True)
def test_a_given_beta_is_not_searched_for(trained):
    root, _ = trained
    parser = ConfigParser(yaml.safe_load((CONFIGS / "train.yaml").read_text()))
    parser.update(training(root, 2, beta=7.0))
    assert parser.get_parsed_content("chosen_beta") == 7.0


@pytest.mark.parametrize("trained", [2], indirect=True)
def test_metadata_and_the_networks_shapes(trained):
    root, _ = trained
    overrides = tiny(root, 2) | {"image_size": [48, 48]}
    test_bundles.check_definition(CONFIGS, overrides)


def test_the_bundle_runs_on_two_processes(tmp_path):
    phantoms(tmp_path / "data", 48, spatial_dims=2)
    settings = training(tmp_path, 2, max_epochs=1, batch_size=4, beta=4.0, min_arm=3)
    said_by_two_ranks(lambda: test_bundles.run(multi_gpu(CONFIGS), settings), tmp_path)
    for written in ("models/model.pt", "models/roles.json", "models/overlap.json"):
        assert (tmp_path / written).exists()
    assert json.loads((tmp_path / "eval" / "metrics.json").read_text())["beta"] == 4
    weights = torch.load(tmp_path / "models" / "model.pt", weights_only=True)
    assert not any(name.startswith("module.") for name in weights)


@pytest.mark.parametrize("trained", [2], indirect=True)
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"measured": ["pixel_area_mm2"]}, "measured is given and outcome is .* no image"),
        ({"region": [2]}, "region is given and outcome is"),
        ({"truth": [{"_target_": "ToTensord", "keys": "image"}]}, "truth is given and outcome is"),
        (
            {
                "image_covariate": False,
                "augmentation": [{"_target_": "RandFlipd", "keys": "image"}],
            },
            "augmentation is given and outcome is .* no image is read",
        ),
        ({"outcome": None, "image_covariate": False}, "image_covariate is false and outcome is n"),
        ({"outcome": None, "true_outcomes": {"A": ["age"]}}, "true_outcomes is given and outcome"),
        ({"true_outcomes": {"A": ["age"]}}, "true_outcomes is .* each of the arms"),
        ({"outcome": ["sex"]}, "Column 'sex' holds 'F' in row"),
        ({"outcome": "agee"}, "The outcome 'agee' is not in the table; did you mean 'age'"),
    ],
)
def test_keys_that_contradict_an_outcome_of_columns_are_refused(
    trained, tmp_path, overrides, message
):
    root, _ = trained
    places = {"ckpt_dir": str(tmp_path / "models"), "output_dir": str(tmp_path / "eval")}
    settings = training(root, 2, outcome=["age"], covariates={"diagnosis": {}})
    with pytest.raises(SystemExit, match=message):
        run(["train.yaml"], settings | places | overrides)
    assert not (tmp_path / "models" / "model.pt").exists()


def test_train_and_inference_mean_the_same_by_a_key():
    train, inference = (
        yaml.safe_load((CONFIGS / name).read_text()) for name in ("train.yaml", "inference.yaml")
    )
    own = {
        "imports",
        "output_dir",
        "subjects",
        "batch_size",
        "cohort",
        "roles",
        "initialize",
        "run",
    }
    own |= {"network", "network_def"}
    for key in train.keys() & inference.keys() - own:
        assert train[key] == inference[key], key
    definitions = train["network_def"], inference["network_def"]
    noise = definitions[0].pop("noise_log_var")  # learned: the weights have it
    assert noise == "@noise_log_var"
    components = [part.pop("component") for part in definitions]
    assert components == ["$medvae.networks.IntactVAE", "$medvae.networks.IntactVAEReconstruction"]
    assert definitions[0] == definitions[1]


def test_the_semisynthetic_overlay_is_judged_by_its_truth(tmp_path):
    overlay = REPOSITORY / "configs" / "datasets" / "phantoms_semisynthetic.yaml"
    quick = {"phantoms": 60, "max_epochs": 1, "beta": 4.0, "instrument_steps": 3}
    name = "myocardium_pixel_area_mm2"
    overrides = training(tmp_path, 2, **quick, measured=[name], groups=["sex"])
    del overrides["subjects"]
    test_bundles.run([CONFIGS / "train.yaml", overlay], overrides)
    metrics = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    html = (tmp_path / "eval" / "report.html").read_text()
    truth = metrics["truth"]
    # 0.15 within the myocardium, a little less where it fades at the edge
    assert 0.05 < truth["true_ate"] < 0.15
    assert truth["no change"]["ate"] == 0
    everywhere, inside = (
        truth["no change"][f"{kind}_mae"] for kind in ("counterfactual", "region")
    )
    assert 0 < everywhere < inside  # what grows, grows in the region
    simple = {"difference of means", "inverse propensity", "linear regression", "T-learner"}
    assert {"network", "ComBat", *simple} <= truth.keys()
    effect = metrics["effects"]["1"]
    assert {n for n, e in effect["simple"].items() if e["split"] == "test"} == {
        "linear regression",
        "T-learner",
        "ComBat",
    }
    assert effect["region"]["all"]["true_ate"] == pytest.approx(truth["true_ate"])
    assert effect["region"]["all"]["pehe"] == pytest.approx(truth["network"]["pehe"], rel=1e-4)
    assert metrics["region"] == "the values 2 of the mask"
    assert "averaged over the values 2 of the mask" in html
    assert "what another training would have found is not in them" in html
    assert (
        sum(e["subjects"] for e in effect["groups"]["sex"].values())
        <= effect["region"]["all"]["subjects"]
    )
    for level in effect["groups"]["sex"]:
        assert (tmp_path / "eval" / "effect_1" / f"effect_1_mean_sex_{level}.nii.gz").exists()
    assert "Against the known truth" in html
    (entries,) = metrics["measured"]["arms"].values()
    assert {"ate", "low", "linear regression", "truth"} <= entries[name].keys()
    assert metrics["measured"]["instrument"].keys() == {name}
    assert "measured again on decoded images" in html
    assert name in (tmp_path / "eval" / "metrics.md").read_text()
    assert f"True effect {truth['true_ate']:.4f}" in html


@pytest.mark.parametrize(
    ("name", "patients"),
    [("acdc_semisynthetic", 20), ("nodules_semisynthetic", 40), ("nodules_slices", 60)],
)
def test_the_overlays_of_real_cohorts_run(name, patients, tmp_path):
    data = REPOSITORY.parent / "shared" / "data" / name.split("_")[0]
    if not data.exists():
        pytest.skip(f"the cohort is not beside the repository ({data})")
    table = pd.read_csv(data / "subjects.csv")
    if "rad_texture" in table:  # so few subjects have no room for rare classes
        table = table[(table["rad_texture"] > 3) & (table["rad_spiculation"] < 3)]
        table = table.drop_duplicates("patient")
    chosen = table["patient"].unique()[:: table["patient"].nunique() // patients]
    part = table[table["patient"].isin(chosen)].copy()
    for column in ("image", "mask"):
        part[column] = [str(data / path) for path in part[column]]
    part.to_csv(tmp_path / "subjects.csv", index=False)
    overlay = REPOSITORY / "configs" / "datasets" / f"{name}.yaml"
    choices = yaml.safe_load(overlay.read_text())
    overrides = training(tmp_path, 3, dataset_dir=str(tmp_path), max_epochs=1, beta=4.0)
    del overrides["subjects"], overrides["balance_weight"], overrides["augmentation"]
    overrides |= {
        "spacing_mm": choices["spacing_mm"],  # coarser ones would not show the effect
        "image_size": [count // 2 for count in choices["image_size"]],
        "channels": [4, 4, 4],
        "strides": [2, 2, 2],
        "min_arm": 3,
        "instrument_steps": 3,
        "batch_size": 16,
    }
    test_bundles.run([CONFIGS / "train.yaml", overlay], overrides)
    metrics = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    assert metrics["treatment"]["column"] == choices["treatment"]
    assert str(metrics["treatment"]["arms"][0]) == str(choices["control"])
    others = [str(arm) for arm in metrics["treatment"]["arms"][1:]]
    assert set(metrics["effects"]) == set(others)
    assert all(np.isfinite(found["region"]["all"]["ate"]) for found in metrics["effects"].values())
    if "measured" in choices:
        assert {*metrics["measured"]["instrument"]} == {*choices["measured"]}
    else:
        assert metrics["truth"]["true_ate"] != 0
