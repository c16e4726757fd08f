"""The bundle, end to end on a tiny phantom cohort, in 2D and 3D, as a user runs it."""

import json
import shutil
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path
from unittest import mock

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from monai.bundle import (
    ConfigParser,
    ConfigWorkflow,
    ckpt_export,
    onnx_export,
    verify_metadata,
    verify_net_in_out,
)
from monai.data import load_net_with_metadata

from medvae.data import CohortState, phantoms
from medvae.explain import Readout
from medvae.metrics import dci
from medvae.networks import AttriVAEReconstruction

REPOSITORY = Path(__file__).parents[1]
BUNDLE = REPOSITORY / "bundles" / "attri_vae"
CONFIGS = BUNDLE / "configs"
DATASETS = sorted((REPOSITORY / "configs" / "datasets").glob("*.yaml"))
SUBJECTS = 40
ATTRIBUTES = {
    2: ["lv_pixel_area_mm2", "myocardium_pixel_area_mm2"],
    3: ["lv_voxel_volume_ml", "myocardium_wall_thickness_mm"],
}
pytestmark = [
    # MONAI says so at every run of every bundle (GHSA-873f-pvrv-4x83)
    pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning"),
    # verify_metadata, of the schema that it cannot download here
    pytest.mark.filterwarnings("ignore:No hash value provided:UserWarning"),
    # torch within its own ONNX export
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated"),
    # mlflow's use of SQLAlchemy
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated"),
]


def tiny(root, spatial_dims=3, **overrides):
    """Overrides that make a run of seconds."""
    return {
        "bundle_root": str(root),
        "subjects": str(root / "data" / "subjects.csv"),
        "attributes": ATTRIBUTES[spatial_dims],
        "spatial_dims": spatial_dims,
        "spacing_mm": 6.0,
        "image_size": [16] * spatial_dims,
        "latent_dim": 6,
        "channels": [4, 8],
        "strides": [2, 2],
        "decoder_channels": [8, 4, 4],
        "hidden_channels": [16],
        "regions": False,
        **overrides,
    }


def training(root, spatial_dims=3, **overrides):
    quick = {"max_epochs": 2, "batch_size": 4, "n_permutations": 2, "n_resamples": 4}
    return tiny(root, spatial_dims, **quick, **overrides)


# the key `run` of a training whose evaluation nobody looks at
UNEVALUATED = {"run": ["$@train::trainer.run()", "$medvae.engines.finish_run(@ckpt_dir)"]}


def workflow(configs, overrides, workflow_type="train", **kwargs):
    """Of the bundle in whose folder the first of the files lies."""
    folder = Path(configs[0]).parent
    return ConfigWorkflow(
        config_file=[str(c) for c in configs],
        meta_file=str(folder / "metadata.json"),
        logging_file=str(folder / "logging.conf"),
        workflow_type=workflow_type,
        **overrides,
        **kwargs,
    )


def check_metadata(configs):
    """Check metadata against MONAI's schema."""
    schema = REPOSITORY / "tests" / "schemas" / "bundle_metadata.json"
    verify_metadata(meta_file=str(Path(configs) / "metadata.json"), filepath=str(schema))


def check_definition(configs, overrides):
    """Check metadata, and the network's shapes against it."""
    check_metadata(configs)
    verify_net_in_out(
        net_id="network_def",
        meta_file=str(Path(configs) / "metadata.json"),
        config_file=str(Path(configs) / "inference.yaml"),
        device="cpu",
        **overrides,
    )


def check_traced_export(configs, overrides, shape, folder):
    """Check that the traced network gives what the network gives, for an image of a shape."""
    inference, root = str(Path(configs) / "inference.yaml"), Path(overrides["bundle_root"])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        ckpt_export(
            net_id="network_def",
            filepath=str(folder / "model.ts"),
            ckpt_file=str(root / "models" / "model.pt"),
            meta_file=str(Path(configs) / "metadata.json"),
            config_file=inference,
            use_trace=True,
            input_shape=shape,
            **overrides,
        )
        exported = torch.jit.load(str(folder / "model.ts"))
    parser = ConfigParser(ConfigParser.load_config_file(inference))
    parser.update(overrides)
    network = parser.get_parsed_content("network_def").eval()
    network.load_state_dict(torch.load(root / "models" / "model.pt", weights_only=True))
    image = torch.rand(shape)
    with torch.no_grad():
        torch.testing.assert_close(exported(image), network(image), rtol=1e-4, atol=1e-5)


def run(configs, overrides, workflow_type="train", **kwargs):
    flow = workflow(configs, overrides, workflow_type, **kwargs)
    # what these forests say is tested where they are; here they would take a third of the time
    small = partial(dci, trees=2)
    with (
        mock.patch.multiple("medvae.metrics.peer", TREES=2, STAGES=2),
        mock.patch("medvae.metrics.report.dci", small),
    ):
        flow.initialize()
        flow.run()
        flow.finalize()
    return flow


def left_and_resumed(train, settings, root, folder):
    """What a training that is cut off after an epoch leaves; it goes on to the bits of `root`.

    Args:
        train: runs train.yaml with the overrides it is given.
        settings: of the training in `root`, which nobody interrupted.
        folder: where the other one goes.
    """
    trainer = "$@train::trainer.run()"
    stop = ["$setattr(@train::trainer.state, 'max_epochs', 1)", trainer]
    settings = settings | {"ckpt_dir": f"{folder}/models", "output_dir": f"{folder}/eval"}
    train(settings | {"run": stop})
    left = torch.load(folder / "models" / "checkpoint.pt", weights_only=True)
    assert left["epoch"] == 1
    train(settings | {"run": [trainer]})
    whole, resumed = (torch.load(f / "models/model.pt", weights_only=True) for f in (root, folder))
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())
    return left


@pytest.fixture(scope="module", params=[2, 3])
def trained(request, tmp_path_factory):
    """A trained bundle root and its number of spatial dimensions."""
    root = tmp_path_factory.mktemp(f"bundle{request.param}d")
    phantoms(root / "data", SUBJECTS, spatial_dims=request.param)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "parsing config_file", UserWarning)
        run([CONFIGS / "train.yaml"], training(root, request.param))
    return root, request.param


def test_training_leaves_model_metrics_and_plots(trained):
    root, spatial_dims = trained
    metrics = json.loads((root / "eval" / "metrics.json").read_text())
    assert metrics["attributes"] == ATTRIBUTES[spatial_dims]
    assert sum(metrics["subjects"].values()) == SUBJECTS
    scores = metrics["disentanglement"]["scores"]
    for score in ("interpretability", "scc", "mig", "sap"):
        assert {"value", "chance", "low", "high"} <= scores[score]["mean"].keys()
    assert {"psnr_db", "ssim", "rbf_mmd", "grain"} <= metrics["reconstruction"].keys()
    assert metrics["latent_axes"]["total"] == 6
    assert metrics["latent_axes"]["free"] == 4
    assert metrics["classification"]["reference"]["auc"]["value"] is not None
    for plot in ("curves.png", "codes.png", "reconstructions.png"):
        assert (root / "eval" / plot).stat().st_size > 5000
    assert list((root / "eval").glob("events.out.tfevents*"))  # TensorBoard's
    history = pd.read_csv(root / "eval" / "history.csv")
    assert list(history["epoch"]) == [1, 2]
    terms = ["reconstruction", "kl", "attribute", "leakage", "classification", "control"]
    parts = history[terms].sum(axis=1)
    np.testing.assert_allclose(parts, history["loss"], rtol=1e-4)
    table = (root / "eval" / "metrics.md").read_text()
    assert "interpretability" in table
    assert "PSNR" in table


def test_what_lies_beside_the_model(trained):
    root, spatial_dims = trained
    state = CohortState.load(root / "models" / "cohort.json")
    assert list(state.attributes) == ATTRIBUTES[spatial_dims]
    assert set(state.splits.values()) == {"train", "val", "test"}
    assert Readout.load(root / "models" / "readout.json").axes == (0, 1)
    weights = torch.load(root / "models" / "model.pt", weights_only=True)
    network = AttriVAEReconstruction(
        spatial_dims,
        image_size=(16,) * spatial_dims,
        latent_dim=6,
        channels=(4, 8),
        strides=(2, 2),
        decoder_channels=(8, 4, 4),
        hidden_channels=(16,),
        head_channels=(),
        head_axes=2,
        smooth=True,
    )
    network.load_state_dict(weights)


def test_a_finished_run_is_not_overwritten(trained):
    root, spatial_dims = trained
    before = (root / "models" / "model.pt").read_bytes()
    with pytest.raises(SystemExit, match="already there"):
        run([CONFIGS / "train.yaml"], training(root, spatial_dims))
    assert (root / "models" / "model.pt").read_bytes() == before


def test_evaluation_again_keeps_the_split_of_the_training_and_its_numbers(trained, tmp_path):
    root, spatial_dims = trained
    overrides = training(root, spatial_dims, output_dir=str(tmp_path), split_seed=5)
    run([CONFIGS / "train.yaml", CONFIGS / "evaluate.yaml"], overrides)
    splits = pd.read_csv(tmp_path / "predictions.csv").set_index("id")["split"]
    assert splits.to_dict() == CohortState.load(root / "models" / "cohort.json").splits
    metrics = (root / "eval" / "metrics.json").read_text()
    assert (tmp_path / "metrics.json").read_text() == metrics
    with pytest.raises(SystemExit, match="metrics.json' are already there"):
        run([CONFIGS / "train.yaml", CONFIGS / "evaluate.yaml"], overrides)


def test_inference_writes_codes_and_reconstructions_on_the_subjects_grid(trained):
    root, spatial_dims = trained
    flow = workflow([CONFIGS / "inference.yaml"], tiny(root, spatial_dims), "infer")
    flow.initialize()
    assert flow.check_properties() == []
    flow.run()
    folder = root / "eval" / "inference"
    found = pd.read_csv(folder / "predictions.csv")
    expected = pd.read_csv(root / "eval" / "predictions.csv")
    assert list(found["id"]) == list(expected["id"])
    columns = [c for c in expected if c not in ("id", "split")]
    assert set(columns) <= set(found)
    np.testing.assert_allclose(found[columns], expected[columns], rtol=2e-3, atol=1e-4)
    probabilities = found[[c for c in found if c.startswith("probability_")]]
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    for name in found["id"][:3]:
        (written,) = folder.rglob(f"{name}_reconstruction.nii.gz")
        image = nib.load(root / "data" / "images" / f"{name}.nii.gz")
        result = nib.load(written)
        assert result.shape == image.shape
        np.testing.assert_allclose(result.affine, image.affine, atol=1e-3)
        values = np.asarray(result.dataobj)
        assert np.isfinite(values).all()
        assert values.std() > 0
        for attribute in ATTRIBUTES[spatial_dims]:
            (written,) = folder.rglob(f"{name}_map_{attribute}.nii.gz")
            result = nib.load(written)
            assert result.get_data_dtype() == np.float32
            assert result.shape == image.shape
            np.testing.assert_allclose(result.affine, image.affine, atol=1e-3)
            assert np.asarray(result.dataobj).min() >= 0
        assert (folder / name / f"{name}_maps.png").stat().st_size > 3000


def test_inference_without_maps(trained, tmp_path):
    root, spatial_dims = trained
    run(
        [CONFIGS / "inference.yaml"],
        tiny(root, spatial_dims, maps=False, output_dir=str(tmp_path)),
        "infer",
    )
    assert list(tmp_path.rglob("*_reconstruction.nii.gz"))
    assert not list(tmp_path.rglob("*map*"))


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ({"map_layer": "encoder.7"}, "unknown layer 'encoder.7'"),
        ({"map_method": "cam"}, "method must be one of gradcam"),
        ({"map_steps": 0}, "steps must be at least 1, found 0"),
        ({"traversals": True, "traversal_values": {"lv": [1.0]}}, "unknown attribute 'lv'"),
        ({"interpolate_to": "phantom"}, "Subject 'phantom' is not in the table; did you mean"),
        ({"replace": {"donor": "phantom0001"}}, "expected attributes and donor"),
    ],
)
def test_inference_refuses_an_option_before_it_writes(trained, tmp_path, option, sentence):
    root, spatial_dims = trained
    folder = {"output_dir": str(tmp_path / "out")}
    with pytest.raises(SystemExit, match=sentence):
        run([CONFIGS / "inference.yaml"], tiny(root, spatial_dims) | option | folder, "infer")
    assert not (tmp_path / "out").exists()


def test_inference_with_traversals(trained, tmp_path):
    root, spatial_dims = trained
    (first, second) = ATTRIBUTES[spatial_dims]
    settings = {"maps": False, "traversals": True, "traversal_values": {second: [3.0, 9.0, 12.0]}}
    subjects = pd.read_csv(root / "data" / "subjects.csv").head(2)
    for column in ("image", "mask"):
        subjects[column] = [str(root / "data" / cell) for cell in subjects[column]]
    subjects.to_csv(tmp_path / "two.csv", index=False)
    settings |= {"subjects": str(tmp_path / "two.csv"), "output_dir": str(tmp_path / "out")}
    run([CONFIGS / "inference.yaml"], tiny(root, spatial_dims) | settings, "infer")
    for name, image in zip(subjects["id"], subjects["image"], strict=True):
        original = nib.load(image)
        for attribute, count in ((first, 5), (second, 3)):
            (written,) = (tmp_path / "out").rglob(f"{name}_traversal_{attribute}.nii.gz")
            result = nib.load(written)
            assert result.shape[:spatial_dims] == original.shape[:spatial_dims]
            assert result.shape[-1] == count
            np.testing.assert_allclose(result.affine, original.affine, atol=1e-3)
            assert np.isfinite(np.asarray(result.dataobj)).all()
        assert (tmp_path / "out" / name / f"{name}_traversals.png").stat().st_size > 3000


def test_inference_towards_other_subjects_and_from_the_prior(trained, tmp_path):
    root, spatial_dims = trained
    subjects = pd.read_csv(root / "data" / "subjects.csv").head(2)
    for column in ("image", "mask"):
        subjects[column] = [str(root / "data" / cell) for cell in subjects[column]]
    subjects.to_csv(tmp_path / "two.csv", index=False)
    one, other = subjects["id"]
    attribute = ATTRIBUTES[spatial_dims][0]
    settings = {
        "maps": False,
        "interpolate_to": other,
        "replace": {"attributes": [attribute], "donor": other},
        "traversal_gif": True,
        "samples": 3,
        "subjects": str(tmp_path / "two.csv"),
        "output_dir": str(tmp_path / "out"),
    }
    run([CONFIGS / "inference.yaml"], tiny(root, spatial_dims) | settings, "infer")
    folder = tmp_path / "out"
    written = {path.name.removesuffix(".nii.gz") for path in (folder / one).glob("*.nii.gz")}
    kinds = ["reconstruction", f"traversal_to_{other}", f"traversal_from_{other}"]
    assert written == {f"{one}_{kind}" for kind in kinds}

    def voxels(name, kind):
        return np.asarray(nib.load(folder / name / f"{name}_{kind}.nii.gz").dataobj)

    way = voxels(one, kinds[1])
    assert way.shape[-1] == 5
    np.testing.assert_allclose(way[..., 0], voxels(one, "reconstruction"), atol=1e-2)
    own = voxels(other, kinds[1])  # from itself to itself
    np.testing.assert_allclose(own[..., 0], own[..., 4], atol=1e-2)
    np.testing.assert_allclose(voxels(other, kinds[2]), own[..., 0], atol=1e-2)
    if spatial_dims == 2:  # two epochs leave the decoder in 3D with one image for all codes
        assert abs(way[..., 4] - way[..., 0]).max() > 0.05
        assert abs(voxels(one, kinds[2]) - way[..., 0]).max() > 0
    assert (folder / one / f"{one}_traversals.gif").read_bytes()[:6] == b"GIF89a"
    samples = nib.load(folder / "samples.nii.gz")
    assert samples.shape == (*(16,) * spatial_dims, *[1] * (3 - spatial_dims), 3)
    np.testing.assert_allclose(samples.header.get_zooms()[:spatial_dims], 6.0)
    values = np.asarray(samples.dataobj)
    assert 1 < values.max() <= 1200
    assert values.min() >= 0
    assert (folder / "samples.png").stat().st_size > 1000


def test_manipulation_is_evaluated(trained, tmp_path):
    root, spatial_dims = trained
    quick = {"instrument_steps": 3, "subjects_scored": 4, "sweep_steps": 3}
    folders = {"output_dir": str(tmp_path / "e")}
    configs = [CONFIGS / "train.yaml", CONFIGS / "manipulation.yaml"]
    labels = {"rv": 1, "myocardium": 2, "lv": 3, "wall": [2]}
    overrides = training(root, spatial_dims, **quick, **folders, mask_labels=labels)
    run(configs, overrides | {"calibrated": False, "follow": 0.0})
    result = json.loads((tmp_path / "e" / "manipulation.json").read_text())
    assert {entry["follow"] for entry in result["attributes"].values()} == {0.0}
    assert list(result["attributes"]) == ATTRIBUTES[spatial_dims]
    assert result["subjects"] == 4
    assert "Return error" in (tmp_path / "e" / "manipulation.md").read_text()
    for plot in ("sweeps.png", "traversals.png"):
        assert (tmp_path / "e" / plot).stat().st_size > 3000
    assert not (root / "models" / "traversal.json").exists()
    with pytest.raises(SystemExit, match="manipulation.json' are already there"):
        run(configs, overrides)
    overrides["overwrite"] = True
    written = (root / "models" / "instrument.pt").stat().st_mtime_ns
    run(configs, overrides | {"gif": True})
    result = json.loads((tmp_path / "e" / "manipulation.json").read_text())
    assert result["calibrated"]
    assert {entry["follow"] for entry in result["attributes"].values()} == {0.6}
    assert (root / "models" / "instrument.pt").stat().st_mtime_ns == written
    assert (root / "models" / "traversal.json").exists()
    assert (tmp_path / "e" / "traversals.gif").exists()
    with pytest.raises(SystemExit, match="Subject 'nobody' to be shown"):
        run(configs, overrides | {"shown": "nobody"})


@pytest.fixture(scope="module")
def root3d(tmp_path_factory):
    root = tmp_path_factory.mktemp("bundle")
    phantoms(root / "data", SUBJECTS)
    return root


def test_training_properties(root3d, tmp_path):
    flow = workflow([CONFIGS / "train.yaml"], training(root3d, ckpt_dir=str(tmp_path)))
    flow.initialize()
    assert flow.check_properties() == []


def test_same_seed_same_bits(root3d, tmp_path):
    histories, weights = [], []
    for name in ("one", "two"):
        folders = {"ckpt_dir": str(tmp_path / name), "output_dir": str(tmp_path / name)}
        overrides = training(root3d, **folders) | {"run": ["$@train::trainer.run()"]}
        run([CONFIGS / "train.yaml"], overrides)
        histories.append((tmp_path / name / "history.csv").read_text())
        weights.append(torch.load(tmp_path / name / "model.pt", weights_only=True))
    assert histories[0] == histories[1]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


@pytest.mark.parametrize("mask_labels", [None, {"heart": [2, 3], "lv": 3}])
def test_regions_from_training_to_inference(root3d, tmp_path, mask_labels):
    folders = {"ckpt_dir": str(tmp_path / "m"), "output_dir": str(tmp_path / "e")}
    regions = {
        "regions": True,
        "mask_labels": mask_labels,
        "attributes": ["true_lv_intensity_mean"],
    }
    overrides = training(root3d, **folders) | regions | {"seed": 3}  # not of inference
    run([CONFIGS / "train.yaml"], overrides)
    history = pd.read_csv(tmp_path / "e" / "history.csv")
    assert history["region"].iloc[1] < history["region"].iloc[0]
    weights = torch.load(tmp_path / "m" / "model.pt", weights_only=True)
    count = 1 if mask_labels is None else len(mask_labels)
    assert weights["branch.logits.bias"].shape == (count,)
    # as after a kill in the evaluation, when the axes have been fitted before
    run([CONFIGS / "train.yaml"], overrides | {"run": ["$@fit()"], "overwrite": True})
    again = torch.load(tmp_path / "m" / "model.pt", weights_only=True)
    assert all(torch.equal(again[name], value) for name, value in weights.items())
    predictions, truth = (
        pd.read_csv(tmp_path / "e" / name) for name in ("predictions.csv", "subjects.csv")
    )
    train = (truth["split"] == "train").to_numpy()
    found = np.corrcoef(predictions["z0"][train], truth["true_lv_intensity_mean"][train])[0, 1]
    assert found > 0.8  # two epochs of steps alone are far from it
    overrides = tiny(root3d) | folders | regions | {"output_dir": str(tmp_path / "i")}
    run([CONFIGS / "inference.yaml"], overrides, "infer")
    table = pd.read_csv(tmp_path / "i" / "predictions.csv")
    assert np.isfinite(table["read_true_lv_intensity_mean"]).all()
    assert len(list((tmp_path / "i").glob("*/*_map_true_lv_intensity_mean.nii.gz"))) == len(table)
    with pytest.raises(SystemExit, match="other settings"):
        run([CONFIGS / "inference.yaml"], overrides | {"regions": False}, "infer")


def test_regions_need_masks(root3d, tmp_path):
    table = pd.read_csv(root3d / "data" / "subjects.csv").drop(columns="mask")
    table["image"] = [str(root3d / "data" / name) for name in table["image"]]
    table.to_csv(tmp_path / "subjects.csv", index=False)
    columns = {"subjects": str(tmp_path / "subjects.csv"), "attributes": ["true_lv_intensity_mean"]}
    flow = workflow([CONFIGS / "train.yaml"], training(root3d) | columns | {"regions": True})
    with pytest.raises(SystemExit, match="Column 'mask' is not in the table.*regions"):
        flow.initialize()


@pytest.mark.parametrize("overlay", [(), ("phantoms.yaml",)])
def test_phantoms_are_made_as_the_keys_say(tmp_path, overlay):
    configs = [CONFIGS / "train.yaml", *(REPOSITORY / "configs" / "datasets" / o for o in overlay)]
    keys = {"bundle_root": str(tmp_path), "spatial_dims": 2, "phantoms": 6, "confounding": 0.5}
    flow = workflow(configs, keys)
    table = flow.parser.get_parsed_content("subjects")
    assert nib.load(table["image"][0]).shape[2:] in ((), (1,))
    made = json.loads((tmp_path / "data" / "phantoms" / "phantoms.json").read_text())
    assert (made["n"], made["spatial_dims"], made["confounding"]) == (6, 2, 0.5)


def test_binary_attributes_are_recognised(root3d, tmp_path):
    attributes = [*ATTRIBUTES[3], "diagnosis"]
    overrides = training(root3d, ckpt_dir=str(tmp_path), attributes=attributes)
    flow = workflow([CONFIGS / "train.yaml"], overrides)
    flow.initialize()
    assert flow.parser.get_parsed_content("attribute_loss").binary == (False, False, True)


def test_control_and_beta_rise_from_nothing(root3d, tmp_path):
    folders = {"ckpt_dir": str(tmp_path), "output_dir": str(tmp_path)}
    settings = {"max_epochs": 2, "control_weight": 20.0, "beta": 3.0, "warmup_epochs": 1}
    overrides = training(root3d, **folders) | settings | UNEVALUATED
    flow = workflow([CONFIGS / "train.yaml"], overrides)
    flow.initialize()
    control, loss = map(flow.parser.get_parsed_content, ("control", "loss"))
    assert control.weight == loss.beta == 0
    flow.run()
    assert control.weight == 20
    assert loss.beta == 3
    flow.finalize()


def test_half_precision_and_mlflow(root3d, tmp_path):
    folders = {"ckpt_dir": str(tmp_path), "output_dir": str(tmp_path)}
    precision = {"autocast": "$torch.bfloat16", "max_epochs": 1}
    overrides = training(root3d, **folders) | precision | UNEVALUATED
    run([CONFIGS / "train.yaml"], overrides, tracking="mlflow")
    history = pd.read_csv(tmp_path / "history.csv")
    assert np.isfinite(history["loss"]).all()
    assert list(tmp_path.glob("mlruns*"))


def test_command_line_from_another_folder(root3d, tmp_path):
    """One run as users start it: a new process, another working directory, both ids known."""
    overrides = training(root3d, ckpt_dir=str(tmp_path / "m"), output_dir=str(tmp_path / "e"))
    arguments = [f"--{key}={value}" for key, value in (overrides | {"max_epochs": 1}).items()]
    command = [sys.executable, "-m", "monai.bundle", "run", "training"]
    files = ["train.yaml", "logging.conf", "metadata.json"]
    for option, file in zip(("config_file", "logging_file", "meta_file"), files, strict=True):
        arguments.append(f"--{option}={CONFIGS / file}")
    result = subprocess.run(
        [*command, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert "training: 100%" in result.stderr
    assert str(tmp_path / "e") in result.stdout.splitlines()[-1]
    assert (tmp_path / "m" / "model.pt").exists()
    config = yaml.safe_load((CONFIGS / "train.yaml").read_text())
    assert config["training"] == "@run"


def test_bad_input_is_one_sentence(root3d, tmp_path):
    overrides = training(root3d, ckpt_dir=str(tmp_path / "m"), output_dir=str(tmp_path / "e"))
    with pytest.raises(SystemExit, match="lv_voxel_volume"):
        run([CONFIGS / "train.yaml"], overrides | {"attributes": ["lv_voxel_volume"]})
    with pytest.raises(SystemExit, match="num_classes"):
        run([CONFIGS / "train.yaml"], overrides | {"num_classes": 3})
    assert not (tmp_path / "m").exists()
    assert not (tmp_path / "e").exists()


WRONG = {
    "image_size 15 along axis 0": {"image_size": [15, 16, 16]},
    "image_size must have 3": {"image_size": [16, 16]},
    "spacing_mm is .6, 6.": {"spacing_mm": [6, 6]},
    "spatial_dims must be 2 or 3": {"spatial_dims": 4},
    "decoder_channels must have 3": {"decoder_channels": [8, 4]},
    "latent_dim 1": {"latent_dim": 1},
    "window is 'null'": {"window": "null"},
    "window and percentiles": {"percentiles": [1, 99]},
    "batch_size is 500": {"batch_size": 500},
    "batch_size is 1": {"batch_size": 1},
    "max_epochs is 0": {"max_epochs": 0},
    "val_interval is 3": {"val_interval": 3},
    "n_permutations is 0": {"n_permutations": 0},
    "attributes is empty": {"attributes": []},
    "split 'val' has 1 row": {"fractions": [0.7, 0.03, 0.27]},
    "split 'val' has 4 row": {"fractions": [0.65, 0.1, 0.25]},
    "split 'test' has 0 row": {"fractions": [0.8, 0.2, 0.0]},
}


@pytest.mark.parametrize("sentence", WRONG)
def test_settings_that_do_not_fit_end_in_one_sentence(root3d, tmp_path, sentence):
    overrides = training(root3d, ckpt_dir=str(tmp_path / "m"), output_dir=str(tmp_path / "e"))
    with pytest.raises(SystemExit, match=sentence) as stopped:
        run([CONFIGS / "train.yaml"], overrides | WRONG[sentence])
    assert "\n" not in str(stopped.value)
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("what", ["does not exist", "cannot be read", "does not fit"])
def test_a_model_that_cannot_be_used_ends_in_one_sentence(trained, tmp_path, what):
    root, spatial_dims = trained
    shutil.copytree(root / "models", tmp_path / "m")
    model, folders = tmp_path / "m" / "model.pt", {"ckpt_dir": str(tmp_path / "m")}
    if what == "does not exist":
        model.unlink()
    if what == "cannot be read":
        model.write_bytes(model.read_bytes()[:1000])
    if what == "does not fit":
        folders["latent_dim"] = 8
        (tmp_path / "m" / "run.json").unlink()  # else it says what differs, see test_resume
    folders["output_dir"] = str(tmp_path / "e")
    evaluate = [CONFIGS / "train.yaml", CONFIGS / "evaluate.yaml"]
    with pytest.raises(SystemExit, match=what):
        run(evaluate, training(root, spatial_dims) | folders)
    with pytest.raises(SystemExit, match=what):
        run([CONFIGS / "inference.yaml"], tiny(root, spatial_dims) | folders, "infer")
    assert not (tmp_path / "e").exists()


def test_reconstructions_of_equally_named_images(trained, tmp_path):
    root, spatial_dims = trained
    table = pd.read_csv(root / "data" / "subjects.csv")[:3]
    rows = []
    for name, image in zip(table["id"], table["image"], strict=True):
        (tmp_path / name).mkdir()
        shutil.copy(root / "data" / image, tmp_path / name / "image.nii.gz")
        rows.append({"id": f"{name}.1", "image": f"{name}/image.nii.gz"})
    pd.DataFrame(rows).to_csv(tmp_path / "subjects.csv", index=False)
    new = {"subjects": str(tmp_path / "subjects.csv"), "output_dir": str(tmp_path / "out")}
    run([CONFIGS / "inference.yaml"], tiny(root, spatial_dims) | new, "infer")
    written = {path.name for path in (tmp_path / "out").rglob("*.nii.gz")}
    kinds = ["reconstruction", *(f"map_{name}" for name in ATTRIBUTES[spatial_dims])]
    assert written == {f"{row['id']}_{kind}.nii.gz" for row in rows for kind in kinds}
    (tmp_path / "out" / "predictions.csv").unlink()  # as an interrupted inference leaves it
    with pytest.raises(SystemExit, match=f"{rows[0]['id']}'.* are already there"):
        run([CONFIGS / "inference.yaml"], tiny(root, spatial_dims) | new, "infer")


def test_metadata(tmp_path):
    schema = tmp_path / "schema.json"
    shutil.copy(REPOSITORY / "tests" / "schemas" / "bundle_metadata.json", schema)
    verify_metadata(meta_file=str(CONFIGS / "metadata.json"), filepath=str(schema))
    metadata = json.loads((CONFIGS / "metadata.json").read_text())
    wrong = tmp_path / "wrong.json"
    wrong.write_text(json.dumps(metadata | {"version": "x"}))
    with pytest.raises(ValueError, match="does not match"):
        verify_metadata(meta_file=str(wrong), filepath=str(schema))


def test_network_in_out(tmp_path):
    verify_net_in_out(
        net_id="network_def",
        meta_file=str(CONFIGS / "metadata.json"),
        config_file=str(CONFIGS / "inference.yaml"),
    )


def test_exports_give_equal_outputs(trained, tmp_path):
    root, spatial_dims = trained
    config = ConfigParser.load_config_files(str(CONFIGS / "inference.yaml"))
    config = {**config, **tiny(root, spatial_dims)}
    config["spacing_mm"] = [6.0] * spatial_dims
    inference = tmp_path / "inference.yaml"
    inference.write_text(yaml.safe_dump(config))
    metadata = json.loads((CONFIGS / "metadata.json").read_text())
    for side, name in (("inputs", "image"), ("outputs", "pred")):
        metadata["network_data_format"][side][name]["spatial_shape"] = [16] * spatial_dims
    meta = tmp_path / "metadata.json"
    meta.write_text(json.dumps(metadata))
    common = {
        "net_id": "network_def",
        "ckpt_file": str(root / "models" / "model.pt"),
        "meta_file": str(meta),
        "config_file": str(inference),
    }
    parser = ConfigParser(config)
    parser.globals["medvae"] = __import__("medvae")
    network = parser.get_parsed_content("network_def")
    network.load_state_dict(torch.load(common["ckpt_file"], weights_only=True))
    network.eval()
    image = torch.rand(1, 1, *(16,) * spatial_dims)
    with torch.no_grad():
        expected = network(image)
        ckpt_export(filepath=str(tmp_path / "model.ts"), **common)
        scripted, _, _ = load_net_with_metadata(str(tmp_path / "model.ts"))
        torch.testing.assert_close(scripted(image), expected, atol=1e-6, rtol=1e-5)
        program = torch.export.export(network, (image,))
        torch.testing.assert_close(program.module()(image), expected, atol=1e-6, rtol=1e-5)
    onnx_export(
        filepath=str(tmp_path / "model.onnx"),
        input_shape=[1, 1, *(16,) * spatial_dims],
        use_trace=True,
        **common,
    )
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    (output,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    np.testing.assert_allclose(output, expected.numpy(), atol=1e-5)


def test_train_and_inference_agree():
    train, inference = (
        yaml.safe_load((CONFIGS / f).read_text()) for f in ("train.yaml", "inference.yaml")
    )
    own = {
        "imports",
        "output_dir",
        "subjects",
        "batch_size",
        "cohort",
        "initialize",
        "run",
        "network",
    }
    for key in train.keys() & inference.keys() - own:
        if key == "network_def":
            target = train[key].pop("component"), inference[key].pop("component")
            assert target == (
                "$medvae.networks.AttriVAE",
                "$medvae.networks.AttriVAEReconstruction",
            )
        assert train[key] == inference[key], key


@pytest.mark.parametrize("path", DATASETS, ids=lambda p: p.stem)
def test_overlays_only_set_keys_that_exist(path):
    overlay = yaml.safe_load(path.read_text())
    ends = {
        "_factors": "disentangled_encoder",
        "_semisynthetic": "intact_vae",
        "_slices": "intact_vae",
        "_stylex": "stylex",
    }
    bundle = next((name for end, name in ends.items() if path.stem.endswith(end)), "attri_vae")
    if "factors" in overlay and bundle != "stylex":
        bundle = "disentangled_encoder"
    configs = REPOSITORY / "bundles" / bundle / "configs"
    train = yaml.safe_load((configs / "train.yaml").read_text())
    assert {key.split("::")[0] for key in overlay} <= train.keys()
    if path.stem == "phantoms":
        assert {key: train[key] for key in overlay} == overlay


def _targets(node):
    if isinstance(node, dict):
        yield from ([node["_target_"]] if "_target_" in node else [])
        node = list(node.values())
    if isinstance(node, list):
        for item in node:
            yield from _targets(item)


BUNDLED = ["train.yaml", "inference.yaml", "evaluate.yaml", "manipulation.yaml"]


@pytest.mark.parametrize("name", BUNDLED)
def test_targets_are_monai_torch_or_medvae(name):
    for target in _targets(yaml.safe_load((CONFIGS / name).read_text())):
        assert "." not in target or target.split(".")[0] in ("monai", "torch", "medvae")
    assert not list(BUNDLE.rglob("*.py"))


@pytest.mark.parametrize(("name", "size"), [("nodules", 30), ("acdc", 20)])
def test_overlays_run_on_the_real_cohorts(name, size, tmp_path):
    data = REPOSITORY.parent / "shared" / "data" / name
    if not data.exists():
        pytest.skip(f"the cohort {name} is not beside the repository ({data})")
    table = pd.read_csv(data / "subjects.csv")
    patients = table["patient"].unique()[:: table["patient"].nunique() // size]
    part = table[table["patient"].isin(patients)].copy()
    for column in ("image", "mask"):
        part[column] = [str(data / path) for path in part[column]]
    part.to_csv(tmp_path / "subjects.csv", index=False)
    overrides = {
        "bundle_root": str(tmp_path),
        "subjects": str(tmp_path / "subjects.csv"),
        "max_epochs": 1,
        "n_permutations": 2,
        "n_resamples": 4,
        "channels": [4, 8, 8, 8],
        "decoder_channels": [8, 8, 8, 4, 4],
        "norm": "BATCH",
    }
    if name == "acdc":
        overrides["copies"] = 5  # the first four of which are the subject itself
    overlay = REPOSITORY / "configs" / "datasets" / f"{name}.yaml"
    choices = yaml.safe_load(overlay.read_text())
    overrides["spacing_mm"] = [2 * step for step in choices["spacing_mm"]]
    overrides["image_size"] = [count // 2 for count in choices["image_size"]]
    run([CONFIGS / "train.yaml", overlay], overrides)
    metrics = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    assert metrics["attributes"] == choices["attributes"]
