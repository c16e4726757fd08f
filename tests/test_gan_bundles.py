"""The GANs' bundles, end to end on a tiny phantom cohort, in 2D and 3D, as a user runs them."""

from __future__ import annotations

import json
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import test_bundles
import torch
import yaml

from medvae.data import phantoms
from medvae.networks import DisentangledGAN

BUNDLES = Path(__file__).parents[1] / "bundles"
pytestmark = [
    pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning"),
    # verify_metadata, of the schema that it cannot download here
    pytest.mark.filterwarnings("ignore:No hash value provided:UserWarning"),
]


def configs(spatial_dims: int) -> Path:
    return BUNDLES / f"disentangled_gan_{spatial_dims}d" / "configs"


def tiny(root: Path, spatial_dims: int, **overrides: Any) -> dict[str, Any]:
    """Overrides that make a run of seconds."""
    return {
        "bundle_root": str(root),
        "subjects": str(root / "data" / "subjects.csv"),
        "spacing_mm": 6.0,
        "image_size": [16] * spatial_dims,
        "channels": [8, 6, 4],
        "mapping_layers": 2,
        "batch_size": 8,
        **overrides,
    }


def run(names: list[str], overrides: dict[str, Any], spatial_dims: int, kind: str = "train") -> Any:
    return test_bundles.run([configs(spatial_dims) / name for name in names], overrides, kind)


def training(root: Path, spatial_dims: int, **overrides: Any) -> dict[str, Any]:
    sizes = {"factors": {"diagnosis": {"size": 2}, "scanner": {"size": 2}}, "free_size": 3}
    quick = {"n_permutations": 2, "n_resamples": 4, "drawn": 16, "judge_steps": 5}
    quick["fractions"] = [0.5, 0.2, 0.3]
    return tiny(root, spatial_dims, max_epochs=2, **sizes, **quick, **overrides)


@pytest.fixture(scope="module", params=[2, 3])
def trained(request: Any, tmp_path_factory: Any) -> tuple[Path, int]:
    root = tmp_path_factory.mktemp(f"gan{request.param}d")
    phantoms(root / "data", 32, spatial_dims=request.param)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "parsing config_file", UserWarning)
        run(["train.yaml"], training(root, request.param), request.param)
    return root, request.param


def test_training_leaves_model_numbers_and_pictures(trained):
    root, spatial_dims = trained
    metrics = json.loads((root / "eval" / "metrics.json").read_text())
    assert list(metrics["heads"]) == ["diagnosis", "scanner"]
    assert list(metrics["leakage"]["subspaces"]) == ["diagnosis", "scanner", "free", "whole"]
    images = json.loads((root / "eval" / "images.json").read_text())
    assert images["reconstruction"].keys() == {"psnr_db", "ssim"}
    assert images["swaps"]["scanner"]["follows"].keys() >= {"value", "chance"}
    assert images["diversity"]["real"].keys() == {"ms_ssim", "error"}
    assert images["judge"].endswith("trained on diagnosis, scanner")
    for picture in ("samples", "reconstructions", "swaps", "curves"):
        assert (root / "eval" / f"{picture}.png").stat().st_size > 5000
    history = pd.read_csv(root / "eval" / "history.csv")
    assert list(history["epoch"]) == [1, 2]
    parts = history[[name for name in history if name[:2] in ("d_", "g_")]].sum(axis=1)
    np.testing.assert_allclose(parts, history["loss"], rtol=1e-4)
    assert len(pd.read_csv(root / "eval" / "codes.csv")) == 32
    assert not (root / "models" / "checkpoint.pt").exists()
    saved = json.loads((root / "models" / "factors.json").read_text())
    assert [factor["name"] for factor in saved["factors"]] == ["diagnosis", "scanner"]
    html = (root / "eval" / "report.html").read_text()
    assert ('class="volumes"' in html) == (spatial_dims == 3)
    named = f"Features: {images['judge']}."
    for words in ("scanner follows the donor", "diagnosis swapped, scanner kept", "MS-SSIM", named):
        assert words in html


def test_evaluating_again_gives_the_same(trained):
    root, spatial_dims = trained
    before = json.loads((root / "eval" / "metrics.json").read_text())
    settings = training(root, spatial_dims, output_dir=str(root / "again"))
    run(["train.yaml", "evaluate.yaml"], settings, spatial_dims)
    assert json.loads((root / "again" / "metrics.json").read_text()) == before


def test_inference(trained):
    root, spatial_dims = trained
    table = pd.read_csv(root / "data" / "subjects.csv").head(3)
    for column in ("image", "mask"):
        table[column] = [str(root / "data" / cell) for cell in table[column]]
    table.drop(columns=["scanner", "diagnosis"]).to_csv(root / "new.csv", index=False)
    settings = tiny(
        root, spatial_dims, subjects=str(root / "new.csv"), output_dir=str(root / "out")
    )
    swaps = {"donor": "phantom0001", "interpolate": True, "resample": 2, "samples": 2}
    run(["inference.yaml"], settings | swaps, spatial_dims, "infer")
    rows = pd.read_csv(root / "out" / "predictions.csv")
    assert list(rows)[:8] == ["id", *(f"z{d}" for d in range(7))]
    assert list(rows)[8:] == [
        f"probability_{name}" for name in ("diagnosis_0", "diagnosis_1", "scanner_A", "scanner_B")
    ]
    image = nib.load(table["image"][0])
    found = {}
    for name, count in (
        ("reconstruction", 1),
        ("map_diagnosis", 1),
        ("from_phantom0001", 5),
        ("to_phantom0001", 5),
        ("sampled_scanner", 2),
        ("sampled_free", 2),
    ):
        file = nib.load(root / "out" / "phantom0000" / f"phantom0000_{name}.nii.gz")
        np.testing.assert_allclose(file.affine, image.affine, atol=1e-4)
        assert file.shape[: image.ndim] == image.shape
        assert np.prod(file.shape) == count * np.prod(image.shape)
        found[name] = file.get_fdata().reshape(*image.shape, count)
    swapped, moved = found["from_phantom0001"], found["to_phantom0001"]
    np.testing.assert_allclose(swapped[..., 0], found["reconstruction"][..., 0], atol=0.05)
    np.testing.assert_allclose(moved[..., 0], swapped[..., 0], atol=0.05)
    np.testing.assert_allclose(moved[..., -1], swapped[..., -1], atol=0.05)
    assert (root / "out" / "phantom0000" / "phantom0000_swaps.png").stat().st_size > 5000
    assert (root / "out" / "samples.png").stat().st_size > 2000


@pytest.mark.parametrize("trained", [2], indirect=True)
def test_an_interrupted_training_goes_on_to_the_same_bits(trained, tmp_path):
    root, spatial_dims = trained
    settings = training(root, spatial_dims)
    train = partial(run, ["train.yaml"], spatial_dims=spatial_dims)
    left = test_bundles.left_and_resumed(train, settings, root, tmp_path)
    assert {"trained", "optimizer_d", "loss"} <= left.keys()


def test_the_published_system_is_one_switch(tmp_path):
    phantoms(tmp_path / "data", 32, spatial_dims=2)
    flow = run(["train.yaml"], training(tmp_path, 2, faithful=True), 2)
    step = flow.parser.get_parsed_content("train::trainer").state
    assert step.epoch == 2
    network = flow.parser.get_parsed_content("network")
    assert network.generator.layers == 8
    trained = flow.parser.get_parsed_content("trained")
    for mean, value in zip(network.parameters(), trained.parameters(), strict=True):
        assert torch.equal(mean, value)  # no running average
    dependence = flow.parser.get_parsed_content("dependence")
    assert not dependence.unbiased
    assert dependence.memory == 32
    assert dependence.target_weight == 0
    assert flow.parser.get_parsed_content("voxel_weight") == 0
    assert flow.parser.get_parsed_content("optimizer").defaults["betas"] == (0.0, 0.99)


def test_without_classes_there_is_no_judge_and_the_page_says_so(tmp_path):
    phantoms(tmp_path / "data", 32, spatial_dims=2)
    factors = {"age": {"kind": "continuous", "size": 2}}
    run(["train.yaml"], training(tmp_path, 2) | {"factors": factors, "max_epochs": 1}, 2)
    images = json.loads((tmp_path / "eval" / "images.json").read_text())
    assert (images["judge"], images["swaps"]) == (None, {})
    assert images["diversity"]["drawn"]["ms_ssim"] <= 1
    html = (tmp_path / "eval" / "report.html").read_text()
    assert f"It is missing here: {images['reason']}." in html


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"balance": ["sexx"]}, "There is no factor 'sexx'"),
        ({"given": ["sexx"]}, "given has 'sexx'; expected factors among"),
        ({"groups": ["sexx"]}, "groups has 'sexx', which is not a column"),
        ({"factors": {"scanner": None}, "free_size": 0}, "expected sizes of two subspaces or more"),
    ],
)
@pytest.mark.parametrize("trained", [2], indirect=True)
def test_what_is_wrong_is_said_before_anything_is_written(trained, tmp_path, overrides, message):
    places = {"ckpt_dir": str(tmp_path / "models"), "output_dir": str(tmp_path / "eval")}
    with pytest.raises(SystemExit, match=message):
        run(["train.yaml"], training(trained[0], 2) | places | overrides, 2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["gan_2d_256", "gan_3d_128"])
def test_finer_grids_are_those_that_the_docs_count(name):
    """Built without memory from the configuration, with the docs' 32 dimensions and one channel."""
    spatial_dims = int(name[4])
    overlay = yaml.safe_load((BUNDLES.parent / "configs" / "sizes" / f"{name}.yaml").read_text())
    train = yaml.safe_load((configs(spatial_dims) / "train.yaml").read_text())
    assert overlay.keys() <= train.keys()
    keys = {"spatial_dims", "image_size", "channels", "in_channels", "mapping_layers", "faithful"}
    settings = {key: value for key, value in (train | overlay).items() if key in keys}
    with torch.device("meta"):
        network = DisentangledGAN(
            sizes={"a": 4, "b": 12, "free": 16}, outputs={"a": 3, "b": 14}, **settings
        )
    millions = [
        f"{sum(p.numel() for p in part.parameters()) / 1e6:.2f}"
        for part in (network.generator, network.discriminator)
    ]
    shape = f"{spatial_dims}D, {overlay['image_size'][0]}{'²³'[spatial_dims - 2]}"
    row = (
        f"| {shape}, channels {', '.join(map(str, overlay['channels']))} | {', '.join(millions)} |"
    )
    docs = (BUNDLES.parent / "docs" / "disentangled_gan.md").read_text("utf-8")
    assert row in docs
    assert "batches of 16 at 256² and of 3 at 128³" in docs
    assert overlay["batch_size"] == {2: 16, 3: 3}[spatial_dims]


@pytest.mark.parametrize("name", ["gan_published", "gan_no_voxels", "encoder_plain"])
def test_ablations_only_set_keys_that_exist(name):
    train = yaml.safe_load((configs(2) / "train.yaml").read_text())
    path = BUNDLES.parent / "configs" / "ablations" / f"{name}.yaml"
    assert yaml.safe_load(path.read_text()).keys() <= train.keys()


def test_the_bundles_differ_in_a_few_values():
    for name in ("train.yaml", "inference.yaml", "evaluate.yaml", "multi_gpu_train.yaml"):
        two, three = ((configs(d) / name).read_text().splitlines() for d in (2, 3))
        assert len(two) == len(three)
        for left, right in zip(two, three, strict=True):
            if left.replace("gan_2d", "gan_3d") != right and not left.startswith("#"):
                key = left.split(":")[0]
                assert key == right.split(":")[0]
                assert key in (
                    ("spatial_dims", "spacing_mm", "image_size", "channels", "phantoms")
                    + ("max_epochs", "batch_size")
                )


def test_metadata_and_the_networks_shapes(trained):
    root, spatial_dims = trained
    meta_file = configs(spatial_dims) / "metadata.json"
    image = json.loads(meta_file.read_text())["network_data_format"]["inputs"]["image"]
    overrides = tiny(root, spatial_dims, image_size=image["spatial_shape"])
    test_bundles.check_definition(configs(spatial_dims), overrides)


def test_the_traced_export_reconstructs_the_same(trained, tmp_path):
    root, spatial_dims = trained
    shape = [1, 1, *[16] * spatial_dims]
    test_bundles.check_traced_export(
        configs(spatial_dims), tiny(root, spatial_dims), shape, tmp_path
    )
