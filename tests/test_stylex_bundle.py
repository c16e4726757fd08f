"""The StylEx bundle, end to end on a tiny phantom cohort, in 2D and 3D, as a user runs it."""

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
from browsing import waited
from test_report import browser, severe

from medvae.data import CohortError, phantoms
from medvae.explain import load_edits
from medvae.report import merge_answers

__all__ = ["browser"]  # a fixture

CONFIGS = Path(__file__).parents[1] / "bundles" / "stylex" / "configs"
pytestmark = [
    pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning"),
    # verify_metadata, of the schema that it cannot download here
    pytest.mark.filterwarnings("ignore:No hash value provided:UserWarning"),
]


def measured(spatial_dims: int) -> list[str]:
    return [{2: "lv_pixel_area_mm2", 3: "lv_voxel_volume_ml"}[spatial_dims], "lv_intensity_mean"]


def training(root: Path, spatial_dims: int, **overrides: Any) -> dict[str, Any]:
    """Overrides that make a run of seconds, of a classifier that reads how large the cavity is.

    In two classes in 2D and three in 3D.
    """
    column, bins = {2: ("lv_area_mm2", [600]), 3: ("lv_volume_ml", [15, 25])}[spatial_dims]
    return {
        "factors": {
            "size": {"column": column, "kind": "ordinal", "bins": bins},
            "scanner": {},
        },
        "bundle_root": str(root),
        "subjects": str(root / "data" / "subjects.csv"),
        "spatial_dims": spatial_dims,
        "spacing_mm": 6.0,
        "image_size": [16] * spatial_dims,
        "channels": [8, 6],
        "latent_dim": 4,
        "mapping_layers": 2,
        "batch_size": 8,
        "max_epochs": 2,
        "fractions": [0.5, 0.2, 0.3],
        "classifier_channels": [4, 4, 8, 8],
        "classifier_steps": 100,
        "judge_steps": 5,
        "measured": measured(spatial_dims),
        "mask_labels": {"rv": 1, "myocardium": 2, "lv": 3},
        "instrument_steps": 60,
        "n_permutations": 10,
        "n_resamples": 10,
        "search_images": 6,
        "found": 3,
        "shown_change": -1.0,
        **overrides,
    }


def run(names: list[str], overrides: dict[str, Any]) -> Any:
    return test_bundles.run([CONFIGS / name for name in names], overrides)


@pytest.fixture(scope="module", params=[2, 3])
def trained(request: Any, tmp_path_factory: Any) -> tuple[Path, int]:
    root = tmp_path_factory.mktemp(f"stylex{request.param}d")
    phantoms(root / "data", 40, spatial_dims=request.param)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "parsing config_file", UserWarning)
        run(["train.yaml"], training(root, request.param))
    return root, request.param


def read(root: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((root / "eval" / name).read_text())
    return found


def test_training_leaves_model_search_and_numbers(trained):
    root, _ = trained
    assert (root / "models" / "model.pt").exists()
    assert not (root / "models" / "checkpoint.pt").exists()
    classifier = read(root, "classifier.json")
    assert list(classifier["heads"]) == ["size", "scanner"]
    assert classifier["heads"]["size"]["auc"].keys() >= {"value", "low", "chance_high"}
    assert "size" in classifier["heads"]["size"]["verdict"]
    quality = read(root, "stylex.json")
    for head in quality["heads"].values():
        assert head["agreement"].keys() >= {"value", "low", "high", "chance"}
        assert "auc_difference" in head["on_reconstructions"]
    assert len(list((root / "eval" / "search").glob("image*.npy"))) == 6
    history = pd.read_csv(root / "eval" / "history.csv")
    assert {"d_adversarial", "g_consistency", "g_voxels", "g_perceptual"} <= set(history)


def test_attributes_are_unique_sorted_and_complete(trained):
    root, spatial_dims = trained
    found = read(root, "attributes.json")
    entries = found["attributes"]
    assert 0 < len(entries) <= 3
    assert len({(e["direction"], e["coordinate"]) for e in entries}) == len(entries)
    scores = [entry["score"] for entry in entries]
    assert scores == sorted(scores, reverse=True)
    for entry in entries:
        assert entry["heads"].keys() == {"size", "scanner"}
        assert entry["min"] < entry["max"]
        assert entry["n_images"] > 0
        assert entry["shift"] == 1
        assert entry["associations"].keys() == entry["moves"].keys() == set(found["judge"])
        assert entry["measured"].keys() == set(measured(spatial_dims))
        assert entry["measured"]["lv_intensity_mean"].keys() >= {"value", "images", "chance"}
        assert entry["group"] >= 1
        pairs = entry["pairs"]
        assert pairs["qualifying"] >= 3
        assert len(pairs["files"]) >= 2
        for name in pairs["files"]:
            assert (root / "eval" / "pairs" / name).exists()
    for quality in found["instrument"].values():
        assert quality["sd"] > 0
        assert quality["images"]["subjects"] > 6  # of twelve: the cavity is found
    assert found["instrument"].keys() == set(measured(spatial_dims))
    flips = read(root, "flips.json")
    assert flips["top"]["1"]["identity"].keys() == set(measured(spatial_dims))
    assert flips["top"]["1"]["flip_rate"].keys() >= {"value", "low", "high"}
    assert "random" in flips["top"]["1"]
    assert 0 <= flips["coverage"] <= 1
    assert flips["per_image"]["images"] == 6
    assert (root / "eval" / "panel.pdf").read_bytes().startswith(b"%PDF")


def test_the_runs_page_says_what_was_found(trained):
    root, _ = trained
    html = (root / "eval" / "report.html").read_text()
    assert ">What the classifier goes by</h2>" in html
    for head in read(root, "classifier.json")["heads"].values():
        assert head["verdict"].replace("'", "&#39;") in html
    assert "What the edits together leave as it was" in html
    assert measured(trained[1])[0] in html
    assert "not as expected" not in html
    assert "no results" not in html


@pytest.mark.parametrize("trained", [2], indirect=True)
def test_searching_again_gives_the_same_without_another_search(trained):
    root, spatial_dims = trained
    before = read(root, "attributes.json")
    stamps = {p: p.stat().st_mtime_ns for p in (root / "eval" / "search").glob("image*.npy")}
    run(["train.yaml", "attfind.yaml"], training(root, spatial_dims))
    assert read(root, "attributes.json") == before
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())


@pytest.mark.parametrize("trained", [2], indirect=True)
@pytest.mark.parametrize("overlay", ["attfind.yaml", "evaluate.yaml"])
def test_only_the_trainings_classifier_is_explained_again(trained, overlay):
    root, spatial_dims = trained
    settings = training(root, spatial_dims, overwrite=True, run=["$None"])
    path, away = (root / "models" / name for name in ("classifier.pt", "away.pt"))
    for key, value in (
        ("classifier_file", str(path)),
        ("classifier_outputs", "probabilities"),
        ("classifier_scale", [2.0, -1.0]),
        ("heads", {"size": 1, "scanner": 2}),
        ("made_confounding", {"between": ["size", "scanner"]}),
        ("factors", {"size": settings["factors"]["size"]}),
    ):
        with pytest.raises(SystemExit, match=f"other settings: {key} is"):
            run(["train.yaml", overlay], settings | {key: value})
    with pytest.raises(SystemExit, match="task is 'sex', which is no head"):
        run(["train.yaml", overlay], settings | {"task": "sex"})
    run(["train.yaml", overlay], settings)
    path.rename(away)
    try:
        with pytest.raises(SystemExit, match="classifier.pt' does not exist"):
            run(["train.yaml", overlay], settings)
        assert not path.exists()  # none is trained in its place
    finally:
        away.rename(path)


def test_pairs_of_volumes_are_on_the_subjects_grid(trained):
    root, spatial_dims = trained
    volumes = list((root / "eval" / "pairs").rglob("*_after.nii.gz"))
    if spatial_dims == 2:
        assert not volumes
        return
    assert volumes
    table = pd.read_csv(root / "data" / "subjects.csv").set_index("id")
    for path in volumes:
        image = nib.load(root / "data" / table["image"][path.parent.name])
        np.testing.assert_allclose(nib.load(path).affine, image.affine, atol=1e-4)
        assert nib.load(path).shape == image.shape
        before, after, difference = (
            nib.load(str(path).replace("_after", f"_{kind}")).get_fdata()
            for kind in ("before", "after", "difference")
        )
        scale = max(np.abs(before).max(), 1.0)
        np.testing.assert_allclose(difference, after - before, atol=1e-5 * scale)
        assert np.abs(difference).max() > 0


@pytest.fixture
def opened(trained: tuple[Path, int], browser: Any, tmp_path: Path) -> Any:
    """The panel's page, freshly opened; what it saves goes to tmp_path."""
    where = {"behavior": "allow", "downloadPath": str(tmp_path)}
    browser.execute_cdp_cmd("Browser.setDownloadBehavior", where)
    browser.get("about:blank")
    browser.get((trained[0] / "eval" / "panel.html").as_uri())
    browser.get_log("browser")
    return browser


def written(path):
    """Whether a file is whole: the browser makes it before it has written it."""
    try:
        json.loads(path.read_text())
    except (OSError, ValueError):
        return False
    return True


def test_the_panels_page_in_a_browser(opened, trained, tmp_path):
    js = opened.execute_script
    titles = js("return [...document.querySelectorAll('[role=tab]')].map(t => t.textContent)")
    count = len(read(trained[0], "attributes.json")["attributes"])
    assert titles == ["Summary", *(f"Attribute {n + 1}" for n in range(count)), "Your answers"]
    opened.find_element("id", "tab-attribute1").click()
    pixels = (
        "const c = document.querySelector('#attribute1 canvas.' + arguments[0]);"
        "return [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]"
    )
    before, after = js(pixels, "before"), js(pixels, "after")
    assert js(pixels, "between") == before != after
    slide = (
        "const r = document.querySelector('#attribute1 [name=' + arguments[0] + ']');"
        "r.value = arguments[1]; r.dispatchEvent(new Event('input', {bubbles: true}))"
    )
    js(slide, "mix", "100")
    assert js(pixels, "between") == after
    slices = opened.find_element("css selector", "#attribute1 .slices")
    assert slices.is_displayed() == (trained[1] == 3)
    if trained[1] == 3:
        js(slide, "slice", "0")
        assert js(pixels, "before") != before
    js(slide, "mix", "0")
    plain, edited = (np.reshape(js(pixels, name), (-1, 4)) for name in ("before", "after"))
    layers = {}
    for layer in ("pair", "mean"):
        js(slide, "overlay", layer)
        red = np.reshape(js(pixels, "before"), (-1, 4)) - plain
        layers[layer] = red
        assert (red[:, 0] >= 0).all()
        assert (red[:, 1] <= 0).all()
    differs = np.abs(edited - plain).max(1)
    assert (layers["pair"][differs == 0] == 0).all()  # of this subject, not of all
    heat = -layers["pair"][:, 1] / np.maximum(plain[:, 1], 1)
    bright = plain[:, 1] > 60
    assert np.corrcoef(heat[bright], differs[bright])[0, 1] > 0.9
    assert not np.array_equal(layers["pair"], layers["mean"])
    js(slide, "overlay", "")
    assert js(pixels, "before") == plain.ravel().tolist()
    flicker = opened.find_element("css selector", "#attribute1 [name=flicker]")
    flicker.click()
    mix = "return document.querySelector('#attribute1 [name=mix]').value"
    assert waited(lambda: js(mix) == "0", 5)
    flicker.click()
    checked = js("return document.querySelectorAll('.judgement input:checked').length")
    assert checked == 0  # nothing is filled in by the software
    choose = "#attribute1 input[value=confounder]"
    opened.find_element("css selector", choose).click()
    opened.find_element("css selector", "#attribute1 [name=hypothesis]").send_keys("brighter")
    opened.find_element("id", "tab-answers").click()
    save = opened.find_element("css selector", ".answers [name=save]")
    save.click()
    state = opened.find_element("css selector", ".answers .state")
    assert "name or initials" in state.text
    opened.find_element("css selector", ".answers [name=expert]").send_keys("A B")
    assert f"1 of {count}" in state.text
    save.click()
    path = tmp_path / "answers_A_B.json"
    assert waited(lambda: written(path), 10)
    saved = json.loads(path.read_text())
    assert saved["answers"][0]["judgement"] == "confounder"
    assert saved["answers"][0]["hypothesis"] == "brighter"
    assert saved["answers"][0]["confidence"] is None
    merged = merge_answers([path], tmp_path / "merged")
    assert merged["attributes"]["1"]["confounder"] == 1
    opened.refresh()
    opened.find_element("css selector", ".answers [name=load]").send_keys(str(path))
    loaded = f"return document.querySelector('{choose}').checked"
    assert waited(lambda: js(loaded), 5)
    # the second is of this test, which reads the pixels
    assert [m for m in severe(opened) if "getImageData" not in m] == []


def inference(root, spatial_dims, output, **overrides):
    kept = ("bundle_root", "subjects", "spatial_dims", "spacing_mm", "image_size", "channels")
    kept += ("latent_dim", "mapping_layers", "classifier_channels")
    settings = {k: v for k, v in training(root, spatial_dims).items() if k in kept}
    settings |= {"output_dir": str(output), **overrides}
    return test_bundles.run([CONFIGS / "inference.yaml"], settings, "infer")


def test_inference_makes_the_edits_in_subjects_on_their_grid(trained, tmp_path):
    root, spatial_dims = trained
    flow = inference(root, spatial_dims, tmp_path / "out", edited=[2, 1])
    parser = flow.parser
    table = pd.read_csv(tmp_path / "out" / "predictions.csv")
    entries = read(root, "attributes.json")["attributes"]
    names = [f"attribute0{n}_{entries[n - 1]['direction']}" for n in (2, 1)]
    assert table["image"].tolist()[:4] == ["image", "reconstruction", *names]
    assert len(table) == 4 * table["id"].nunique() == 4 * 40
    heads = [c for c in table if c.startswith("probability_size_")]
    np.testing.assert_allclose(table[heads].sum(axis=1), 1, atol=1e-5)

    # the first subject by hand
    dataset, network, classifier = (
        parser.get_parsed_content(k) for k in ("dataset", "network", "classifier")
    )
    image = torch.as_tensor(dataset[0]["image"])[None].as_subclass(torch.Tensor)
    with torch.no_grad():
        w = network.encode(image, network.probabilities(classifier(image)))
        styles = network.generator.styles(w)
        entry = entries[1]
        styles[:, entry["coordinate"]] = entry["max" if entry["direction"] == "up" else "min"]
        edited = network.images(styles)
        said = network.probabilities(classifier(edited))[0]
    row = table[(table["id"] == dataset[0]["id"]) & (table["image"] == names[0])]
    found = row[[c for c in table if c.startswith("probability_")]].to_numpy()[0]
    np.testing.assert_allclose(found, said.numpy(), atol=1e-5)

    name = str(table["id"][0])
    (picture,) = (tmp_path / "out").rglob(f"{name}_edits.png")
    assert picture.stat().st_size > 1000
    own = nib.load(root / "data" / "images" / f"{name}.nii.gz")
    for part in ("reconstruction", *names):
        (path,) = (tmp_path / "out").rglob(f"{name}_{part}.nii.gz")
        written = nib.load(path)
        assert written.shape == own.shape
        np.testing.assert_allclose(written.affine, own.affine, atol=1e-3)
        assert np.isfinite(np.asarray(written.dataobj)).all()


@pytest.mark.parametrize("trained", [2], indirect=True)
def test_what_cannot_be_edited_is_said_before_anything_is_written(trained, tmp_path):
    root, spatial_dims = trained
    count = len(read(root, "attributes.json")["attributes"])
    for overrides, sentence in (
        ({"edited": [9]}, f"Attribute 9 is not in .* which has {count}"),
        ({"search_result": str(tmp_path / "none.json")}, "The attributes .* cannot be read"),
        ({"latent_dim": 5}, "other settings: latent_dim is 5"),
    ):
        with pytest.raises(SystemExit, match=sentence):
            inference(root, spatial_dims, tmp_path / "out", **overrides)
        assert not (tmp_path / "out" / "predictions.csv").exists()


def test_edits_are_read_as_they_are_asked_for(tmp_path):
    entry = {"coordinate": 4, "direction": "down", "min": -1.0, "max": 2.0, "shift": 1.0}
    path = tmp_path / "attributes.json"
    path.write_text(json.dumps({"attributes": [entry, entry | {"direction": "up"}, entry]}))
    assert [e.name[9:] for e in load_edits(path)] == ["01_down", "02_up", "03_down"]
    assert [e.name[9:] for e in load_edits(path, 2)] == ["01_down", "02_up"]
    (edit,) = load_edits(path, [2], shift=0.5)
    assert edit == ("attribute02_up", 4, 2.0, 0.5)
    path.write_text(json.dumps({"attributes": []}))
    with pytest.raises(CohortError, match="which has 0"):
        load_edits(path)


def test_metadata():
    test_bundles.check_metadata(CONFIGS)


@pytest.mark.parametrize("trained", [2], indirect=True)
def test_an_interrupted_training_goes_on_to_the_same_bits(trained, tmp_path):
    root, spatial_dims = trained
    settings = training(root, spatial_dims)
    train = partial(run, ["train.yaml"])
    left = test_bundles.left_and_resumed(train, settings, root, tmp_path)
    assert {"trained", "optimizer_d", "loss"} <= left.keys()


def test_what_cannot_be_explained_is_said_before_a_training(tmp_path):
    phantoms(tmp_path / "data", 40, spatial_dims=2)
    table, without = pd.read_csv(tmp_path / "data" / "subjects.csv"), tmp_path / "data" / "bare.csv"
    table.drop(columns="mask").to_csv(without, index=False)
    script = tmp_path / "classifier.ts"
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(256, 4))
    torch.jit.trace(network, torch.zeros(2, 1, 16, 16)).save(script)
    given = {"classifier_file": str(script)}
    for overrides, sentence in (
        ({"covariates": ["agee"]}, "The covariate 'agee' is not in the table"),
        ({"confounders": ["side"]}, "The confounder 'side' is neither"),
        ({"task": "diagnosis"}, "task is 'diagnosis', which is no head"),
        (given, "shows no layer.* perceptual: none"),
        ({"perceptual": "vgg"}, "perceptual is 'vgg', expected 'classifier'"),
        (given | {"heads": {"size": 3, "scanner": 1}}, "The head 'size' has 3 output"),
        ({"classifier_file": str(tmp_path / "none.pt")}, "none.pt' does not exist"),
        ({"measured": ["lv_area"]}, "'lv_area' of measured cannot be measured"),
        ({"subjects": str(without)}, "Column 'mask' is not in the table; .* measured"),
    ):
        with pytest.raises(SystemExit, match=sentence):
            run(["train.yaml"], training(tmp_path, 2, **overrides))
        assert not (tmp_path / "models").exists()
    settings = training(tmp_path, 2, perceptual="none", max_epochs=1, **given)
    run(["train.yaml"], settings | {"run": ["$@train::trainer.run()"]})
    assert (tmp_path / "models" / "model.pt").exists()


def test_a_run_that_begins_anew_leaves_nothing_of_an_earlier_one(tmp_path):
    phantoms(tmp_path / "data", 40, spatial_dims=2)
    first = training(tmp_path, 2, classifier_steps=2, run=["$@classifier"])
    run(["train.yaml"], first)
    path = tmp_path / "models" / "classifier.pt"
    weights = torch.load(path, weights_only=True)
    mine = tmp_path / "eval" / "pairs" / "notes.txt"
    searched = tmp_path / "eval" / "search" / "audit" / "search.json"
    picture = tmp_path / "eval" / "pairs" / "attribute01" / "a" / "a_after.nii.gz"
    for made in (mine, searched, picture, tmp_path / "models" / "model.pt"):
        made.parent.mkdir(parents=True, exist_ok=True)
        made.touch()
    with pytest.raises(SystemExit, match="model.pt.*search.json.*already there"):
        run(["train.yaml"], first | {"seed": 1})
    with pytest.raises(SystemExit, match="task is 'sex'"):
        run(["train.yaml"], first | {"task": "sex", "overwrite": True})
    assert searched.exists()  # what is refused removes nothing
    made = "$torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(256, 4))"
    given = {"classifier_file": str(path), "classifier_def": made}
    torch.save({"1.weight": torch.ones(4, 256), "1.bias": torch.ones(4)}, path)
    run(["train.yaml"], first | given | {"run": ["$None"], "overwrite": True})
    assert path.exists()  # as it was given
    assert mine.exists()
    assert not searched.exists()
    assert not picture.exists()
    run(["train.yaml"], first | {"seed": 1, "overwrite": True})
    again = torch.load(path, weights_only=True)
    assert not all(torch.equal(again[name], value) for name, value in weights.items())
