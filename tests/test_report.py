"""The page of a run: what it holds, what it refuses, and how it behaves in a browser."""

import base64
import gzip
import json
import re
import shutil
import sys
import time
import warnings
from io import BytesIO
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from browsing import headless_chromium, waited
from matplotlib import colormaps
from PIL import Image
from skimage.color import deltaE_ciede2000, rgb2lab
from test_bundles import CONFIGS, REPOSITORY, run, tiny, training

from medvae.data import CohortError, phantoms
from medvae.engines import TreatmentData
from medvae.report import (
    EffectEvaluation,
    GanEvaluation,
    Run,
    colours,
    plots,
    write_comparison,
    write_report,
)
from medvae.report.__main__ import main
from medvae.report.examples import best_median_worst, write_examples
from medvae.report.page import Finding, Heat, Note, Page, Picture, Section, Table, figures, render
from medvae.report.page.compare import difference
from medvae.report.page.effects import effect_findings
from medvae.report.page.figures import _spans_decades
from medvae.report.page.latent import r2_chance_p95, shared
from medvae.report.page.packing import packed_below
from medvae.report.page.run import label_of
from medvae.report.page.scores import Score, all_scores
from medvae.report.page.swaps import swap_findings
from medvae.report.page.verdict import verdict
from medvae.report.page.volumes import volume_colours
from medvae.report.page.words import beyond_chance
from medvae.report.swaps import donor_rows

pytestmark = pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning")

BUNDLES = REPOSITORY / "bundles"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A bundle root after a training of seconds."""
    folder = tmp_path_factory.mktemp("run") / "hearts"
    phantoms(folder / "data", 40)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "parsing config_file", UserWarning)
        run([CONFIGS / "train.yaml"], training(folder))
    return folder


@pytest.fixture
def copied(root, tmp_path):
    """A copy of the run that a test may break."""
    folder = tmp_path / "hearts"
    shutil.copytree(root / "eval", folder / "eval")
    shutil.copytree(root / "models", folder / "models")
    return folder


def page(folder):
    return write_report(folder).read_text()


def viewer_data(html):
    (found,) = re.findall(r'class="volumes">(.*?)</script>', html, re.DOTALL)
    return json.loads(found)


def test_training_ends_with_a_page_that_loads_nothing(root):
    html = (root / "eval" / "report.html").read_text()
    for section in ("Verdict", "Metrics", "Latent space", "Images", "3D viewer", "Training"):
        assert f">{section}</h2>" in html
    own = re.sub(r"<pre.*?</pre>|<script type=.*?</script>", "", html, flags=re.DOTALL)
    assert not re.findall(r"(?:src|href)=[\"'](?!data:|#)", own)
    loaded = re.sub(r'xmlns(:xlink)?="[^"]*"', "", own)
    assert not re.findall(r"https?://|@import|url\((?!#|&quot;#|'#)", loaded)
    assert "default-src 'none'" in html
    assert len(html) < 6 * 2**20
    assert str(root) not in html  # the places of a machine are nobody's business
    for what in ("lv voxel volume (ml)", "chance", "seed", "phantom"):
        assert what in html


def test_rebuilt_page_is_the_same(root):
    path = root / "eval" / "report.html"
    before = path.read_bytes()
    main([str(root)])
    assert path.read_bytes() == before
    main([str(root / "eval")])
    assert path.read_bytes() == before


def test_best_median_and_worst_are_shown_as_written(root):
    html = page(root)
    shown = viewer_data(html)["subjects"]
    assert [s["why"].split()[0] for s in shown] == ["best", "median", "worst"]
    one = shown[0]
    assert [a["label"] for a in one["attributes"]][0] == "lv voxel volume (ml)"
    folder = root / "eval" / "examples" / one["id"]
    volumes = {k: base64.b64decode(v) for k, v in one["volumes"].items()}
    kinds = {"image", "reconstruction"} | {
        f"{kind}_{name['name']}" for name in one["attributes"] for kind in ("map", "change")
    }
    assert volumes.keys() <= kinds
    for kind in ("image", "reconstruction"):
        packed = nib.Nifti1Image.from_bytes(gzip.decompress(volumes[kind]))
        written = nib.load(folder / f"{one['id']}_{kind}.nii.gz")
        np.testing.assert_allclose(packed.affine, written.affine)
        step = packed.dataobj.slope
        np.testing.assert_allclose(packed.get_fdata(), written.get_fdata(), atol=step)
    for name in one["attributes"]:
        if f"change_{name['name']}" not in volumes:
            continue
        change = nib.Nifti1Image.from_bytes(
            gzip.decompress(volumes[f"change_{name['name']}"])
        ).get_fdata()
        start = nib.load(folder / f"{one['id']}_reconstruction.nii.gz").get_fdata()
        series = nib.load(folder / f"{one['id']}_traversal_{name['name']}.nii.gz").get_fdata()
        assert len(name["values"]) == series.shape[-1] == 5
        np.testing.assert_allclose(start[..., None] + change, series, atol=1.1 * step)


def test_inference_takes_the_place_of_the_examples(root, copied):
    chosen = json.loads((copied / "eval" / "examples" / "examples.json").read_text())["subjects"]
    table = pd.read_csv(root / "data" / "subjects.csv")
    table = table[table["id"].isin([*chosen, "phantom0003"])]
    for column in ("image", "mask"):
        table[column] = [str(root / "data" / cell) for cell in table[column]]
    table.to_csv(copied / "four.csv", index=False)
    settings = {"traversals": True, "map_steps": 1, "ckpt_dir": str(root / "models")}
    settings |= {"subjects": str(copied / "four.csv")}
    folders = {"output_dir": str(copied / "eval" / "inference")}
    run([CONFIGS / "inference.yaml"], tiny(root, 3) | settings | folders, "infer")
    shown = viewer_data(page(copied))["subjects"]
    assert [s["id"] for s in shown] == list(chosen)
    assert "original" in shown[0]["volumes"]  # found by subjects.csv
    other = write_report(copied, subjects=("phantom0003",))
    assert [s["id"] for s in viewer_data(other.read_text())["subjects"]] == ["phantom0003"]


def test_absent_parts_are_said_with_their_commands(copied):
    for path in (copied / "eval").iterdir():
        if path.name != "history.csv":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.rmtree(copied / "models")
    html = page(copied)
    assert "interrupted" not in html
    for words in (
        "no results of an evaluation",
        "run evaluating",
        "inference.yaml",
        "run training",
    ):
        assert words in html
    assert "Nothing has been measured" in html
    assert "NiiVue" not in html


def test_broken_files_are_said_and_the_rest_is_there(copied):
    (copied / "eval" / "manipulation.json").write_text("{")
    (copied / "models" / "run.json").write_text("[]")
    html = page(copied)
    assert "manipulation.json could not be read (JSONDecodeError)" in html
    assert "run.json could not be read" in html
    assert ">Metrics</h2>" in html


def test_an_interrupted_training_is_said(copied):
    history = copied / "eval" / "history.csv"
    history.write_text("\n".join([*history.read_text().splitlines()[:2], ""]))
    assert "interrupted, or is still going on: 1 of 2 epochs are there" in page(copied)


def test_what_was_skipped_is_said(copied):
    path = copied / "eval" / "metrics.json"
    metrics = json.loads(path.read_text())
    metrics["disentanglement"]["excluded"] = {"age_years": "3 rows observed, expected at least 5"}
    metrics["classification"]["auc"] = {"value": None}
    metrics["classification"]["reason"] = "AUC is undefined: all 10 labels are class 0"
    path.write_text(json.dumps(metrics))
    html = page(copied)
    assert "age (years)" in html
    assert "3 rows observed" in html
    assert "all 10 labels are class 0" in html


def test_metrics_of_another_form_cost_a_section_and_not_the_page(copied):
    path = copied / "eval" / "metrics.json"
    metrics = json.loads(path.read_text())
    metrics["disentanglement"]["scores"]["sap"] = {"attributes": {}}
    path.write_text(json.dumps(metrics))
    html = page(copied)
    assert "not as expected (KeyError" in html
    assert ">Latent space</h2>" in html


def test_another_systems_run_has_its_pictures_and_no_foreign_sections(copied):
    (copied / "eval" / "metrics.json").write_text('{"split": "test", "leakage": {}}')
    shutil.rmtree(copied / "eval" / "examples")
    shutil.copy(copied / "eval" / "curves.png", copied / "eval" / "swaps.png")
    html = page(copied)
    assert ">Swaps</h3>" in html
    assert ">Training</h2>" in html
    assert ">Metrics</h2>" not in html
    assert "attri_vae" not in html.split("<main")[1].split('id="run"')[0]


@pytest.mark.parametrize(
    ("network", "bundle"),
    [
        ("IntactVAE", "intact_vae"),
        ("DisentangledGAN", "disentangled_gan_3d"),
        ("SubspaceEncoder", "disentangled_encoder"),
        ("StylEx", "stylex"),
        ("AttriVAE", "attri_vae"),
    ],
)
def test_commands_are_of_the_bundle_that_was_run(copied, network, bundle):
    path = copied / "models" / "run.json"
    record = json.loads(path.read_text())
    record["settings"]["network_def"]["component"] = f"$medvae.networks.{network}"
    path.write_text(json.dumps(record))
    (copied / "eval" / "metrics.json").unlink()  # as after an interrupted training
    shutil.rmtree(copied / "eval" / "examples")
    html = page(copied)
    commands = re.findall(r"bundles/(\w+)/configs/(\w+)\.yaml", html.split('id="missing"')[1])
    assert {name for name, _ in commands} == {bundle}
    files = {file for _, file in commands}
    assert files <= {f.stem for f in (BUNDLES / bundle / "configs").iterdir()}
    assert "evaluate" in files


def effects(low=0.1, predictability=0.0, outside=0.0, followed=0.9, undefined=0):
    """Metrics of a treatment with one arm beside the control."""
    entry = {"subjects": 30, "ate": 0.2, "low": low, "high": 0.3}
    judged = {"chance": 0.5, "real": 0.9, "reconstruction": 0.9, "counterfactual": followed}
    return {
        "treatment": {"column": "scanner", "arms": ["A", "B"]},
        "overlap": {"outside": outside},
        "balance": {"predictability": predictability},
        "effects": {"B": {"region": {"all": entry, "undefined": undefined}}},
        "quality": {"effectiveness": judged},
    }


@pytest.mark.parametrize(
    ("changed", "status", "words"),
    [
        ({}, "beyond", "no effect is outside the interval"),
        ({"low": -0.1}, "short", "no effect is inside the interval"),
        ({"low": None}, "unknown", "too few subjects"),
        ({"outside": 0.3}, "unknown", "30 % of the subjects have none like them"),
        ({"predictability": 0.03}, "short", "AUC 0.030 more; 0.02 is tolerated"),
        ({"undefined": 2}, "unknown", "2 test subject(s) without the region are left out"),
        ({"followed": 0.6}, "short", "balanced accuracy 0.60"),
        ({"followed": 0.8}, "beyond", "balanced accuracy 0.80"),
    ],
)
def test_effects_in_words(changed, status, words):
    (found,) = [f for f in effect_findings(effects(**changed)) if words in f.text]
    assert found.status == status


def test_runs_of_other_systems_compare_by_scores_of_their_own():
    error = {"value": 0.1, "low": 0.0, "high": 0.2}
    metrics = effects() | {
        "heads": {"scanner": {"score": 0.9, "chance": 0.5}},
        "leakage": {"matrix": {"balanced": {"scanner": {"sex": {"best": {"points": 4.2}}}}}},
    }
    metrics["quality"] |= {"composition": {"one_pass": error}, "reversibility": error}
    found = {score.name: score for score in all_scores(metrics)}
    assert found["head of scanner"].text == "0.90"
    assert found["sex from scanner, points"].text == "4"
    assert not found["sex from scanner, points"].higher_is_better
    assert found["effect of B"].text == "0.2000 (0.1000 to 0.3000)"
    assert found["composition: error"].text == "0.1000 (0.0000 to 0.2000)"


def test_nothing_is_said_against_an_effect_without_doubts():
    assert {f.status for f in effect_findings(effects())} == {"beyond"}


def test_swaps_in_words():
    """A share whose interval holds the chance level is not beyond it; what no image tells, left."""
    known = {"value": 0.8, "low": 0.7, "high": 0.9, "chance": 0.5}
    swaps = {
        "walls": {"follows": known, "keeps": {"scanner": known | {"low": 0.45}}},
        "scanner": {"follows": known | {"low": 0.4}, "keeps": {"walls": known}},
        "side": {"follows": dict.fromkeys(known), "keeps": {}},
    }
    found = swap_findings({"swaps": swaps})
    assert [f.status for f in found] == ["beyond", "short", "beyond", "short"]
    words = [" ".join(f.items) for f in found]
    assert [w.split(" 0.80")[0] for w in words] == [
        "walls",
        "scanner",
        "walls when scanner is swapped",
        "scanner when walls is swapped",
    ]
    assert all("chance 0.50" in w for w in words)


def test_names_are_escaped(copied):
    evil = "<script>alert(1)</script>$x$"
    for name in ("predictions.csv", "subjects.csv"):
        path = copied / "eval" / name
        path.write_text(path.read_text().replace("phantom0000", evil))
    html = page(copied)
    assert "alert(1)" in html
    assert "<script>alert" not in html


@pytest.mark.parametrize("folder", ["nowhere", "."])
def test_a_folder_without_a_run_is_refused(tmp_path, folder):
    with pytest.raises(CohortError, match="expected the folder of a run"):
        write_report(tmp_path / folder)
    with pytest.raises(SystemExit, match="Error: The folder"):
        main([str(tmp_path / folder)])


def test_runs_side_by_side(root, copied, tmp_path):
    path = copied / "eval" / "metrics.json"
    metrics = json.loads(path.read_text())
    mean = metrics["disentanglement"]["scores"]["interpretability"]["mean"]
    mean |= {"value": 0.99, "low": 0.98, "high": 1.0}
    path.write_text(json.dumps(metrics))
    record = copied / "models" / "run.json"
    content = json.loads(record.read_text())
    content["settings"]["beta"] = 7.5
    record.write_text(json.dumps(content))
    out = tmp_path / "both.html"
    main([str(root), str(copied), "--output", str(out)])
    html = out.read_text()
    assert "0.99 (0.98 to 1.00)" in html
    assert "▲ higher" in html
    assert "7.5" in html
    assert "do not compare" not in html
    state = copied / "models" / "cohort.json"
    state.write_text(state.read_text().replace('"test"', '"val"', 1))
    write_comparison([root, copied], out)
    assert "another split" in out.read_text()
    path.unlink()
    with pytest.raises(CohortError, match=r"has no metrics\.json"):
        write_comparison([root, copied], out)
    with pytest.raises(CohortError, match="Found 1"):
        write_comparison([root], out)


@pytest.mark.parametrize(
    ("one", "other", "mark"),
    [
        ((0.1, 0.2), (0.3, 0.4), "▲ higher"),
        ((0.3, 0.4), (0.1, 0.2), "▼ lower"),
        ((0.1, 0.3), (0.2, 0.4), ""),
        ((0.1, None), (0.2, 0.4), ""),
    ],
)
def test_differences_are_marked_where_intervals_do_not_overlap(one, other, mark):
    first, second = (Score("s", {"value": 0, "low": a, "high": b}) for a, b in (one, other))
    assert difference(first, second) == mark


def test_verdict_asks_the_interval_and_the_top_of_chance():
    chance = {"chance": 0.0, "chance_p95": 0.1}
    assert beyond_chance({"value": 0.5, "low": 0.05, **chance})
    assert not beyond_chance({"value": 0.5, "low": -0.05, **chance})
    assert not beyond_chance({"value": 0.08, "low": 0.05, **chance})
    assert not beyond_chance({"value": 0.6, "low": 0.5, "chance": 0.4, "chance_high": 0.65})
    assert beyond_chance({"value": 0.6, "low": None, "chance": 0.4})
    assert beyond_chance({"value": 0.5}) is None
    assert beyond_chance({"value": None, **chance}) is None


@pytest.mark.parametrize(
    ("value", "low", "words"),
    [
        (0.3, 0.1, "Told best by their own axis"),
        (0.3, -0.1, "Another axis may tell as much"),
        (-0.3, -0.5, "Another axis tells more"),
    ],
)
def test_verdict_on_the_gap_to_other_axes(copied, value, low, words):
    path = copied / "eval" / "metrics.json"
    metrics = json.loads(path.read_text())
    entries = metrics["disentanglement"]["scores"]["sap"]["attributes"]
    for entry in entries.values():
        entry |= {"value": value, "low": low, "high": 1.0}
    path.write_text(json.dumps(metrics))
    (found,) = [f for f in verdict(Run(copied)) if "(SAP)" in f.text]
    assert words in found.text
    assert len(found.items) == len(entries)


def test_shared_is_the_squared_correlation():
    rng = np.random.default_rng(0)
    left, right = rng.normal(size=(50, 2)), rng.normal(size=(50, 3))
    left[:5, 0] = np.nan
    right[:, 2] = 1.0
    found = shared(left, right)
    expected = np.corrcoef(left[5:, 0], right[5:, 1])[0, 1] ** 2
    np.testing.assert_allclose(found[0, 1], expected)
    assert np.isnan(found[:, 2]).all()
    unrelated = rng.normal(size=(2000, 2, 30))
    unrelated -= unrelated.mean(axis=2, keepdims=True)
    r2 = (unrelated[:, 0] * unrelated[:, 1]).sum(1) ** 2 / (unrelated**2).sum(2).prod(1)
    assert np.mean(r2 < r2_chance_p95(30)) == pytest.approx(0.95, abs=0.02)


# ---- volumes of every system


GRID = np.diag([3.0, 3.0, 4.0, 1.0])


def written(folder, volumes, affine=GRID):
    """Write volumes by kind into a subject's folder, named as all bundles name them."""
    folder.mkdir(parents=True, exist_ok=True)
    for kind, values in volumes.items():
        image = nib.Nifti1Image(np.asarray(values, np.float32), affine)
        nib.save(image, folder / f"{folder.name}_{kind}.nii.gz")


def of_another_system(folder):
    """Leave of a run what is there of all systems."""
    (folder / "eval" / "metrics.json").write_text('{"split": "test", "leakage": {}}')
    shutil.rmtree(folder / "eval" / "examples")
    return folder / "eval"


def unpacked(subject, kind):
    return nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(subject["volumes"][kind])))


def drawn(seed, *shape):
    return np.random.default_rng(seed).uniform(0, 1200, shape or (8, 7, 6))


def test_a_counterfactual_is_shown_with_its_difference(copied):
    under, difference = drawn(0), drawn(1) - 600
    volumes = {"counterfactual_B": under, "difference_B": difference, "uncertainty_B": drawn(2)}
    written(of_another_system(copied) / "counterfactuals" / "p1", volumes)
    (shown,) = viewer_data(page(copied))["subjects"]
    assert shown["volumes"].keys() == {"change_B", "uncertainty_B", "reconstruction"}
    (arm,) = shown["attributes"]
    assert (arm["name"], arm["kinds"]) == ("B", ["counterfactual", "uncertainty"])
    change, start = unpacked(shown, "change_B"), unpacked(shown, "reconstruction")
    np.testing.assert_allclose(change.affine, GRID)
    step = change.dataobj.slope
    np.testing.assert_allclose(change.get_fdata()[..., 0], difference, atol=1.1 * step)
    np.testing.assert_allclose(start.get_fdata(), under - difference, atol=step)


def test_maps_of_an_encoder_lie_on_the_image(copied):
    volumes = {"image": drawn(0), "map_scanner": drawn(1), "map_sex": drawn(2)}
    written(of_another_system(copied) / "inference" / "p1", volumes)
    (shown,) = viewer_data(page(copied))["subjects"]
    assert shown["volumes"].keys() == volumes.keys()
    assert [a["label"] for a in shown["attributes"]] == ["scanner", "sex"]


def test_swaps_of_a_gan_are_shown_with_their_titles(copied):
    start, series = drawn(0), drawn(1, 8, 7, 6, 3)
    folder = of_another_system(copied) / "inference" / "p1"
    written(folder, {"reconstruction": start, "from_p2": series, "map_sex": drawn(2)})
    titles = {"from_p2": ["reconstruction", "sex", "all"]}
    (folder / "p1_swaps.json").write_text(json.dumps(titles))
    (shown,) = viewer_data(page(copied))["subjects"]
    by_name = {a["name"]: a for a in shown["attributes"]}
    assert by_name["from_p2"]["titles"] == titles["from_p2"]
    change = unpacked(shown, "change_from_p2")
    expected = series - start[..., None]
    np.testing.assert_allclose(change.get_fdata(), expected, atol=1.1 * change.dataobj.slope)


def test_edits_of_a_subject_come_from_every_pair_of_it(copied):
    pairs = of_another_system(copied) / "pairs"
    for attribute, seed in (("attribute01", 1), ("attribute02", 2)):
        written(pairs / attribute / "p1", {"before": drawn(0), "after": drawn(seed)})
    (shown,) = viewer_data(page(copied))["subjects"]
    assert shown["volumes"].keys() == {
        "reconstruction",
        "change_attribute01",
        "change_attribute02",
    }
    inferred = {"reconstruction": drawn(0)} | {f"attribute0{k}_up": drawn(k) for k in (1, 2, 3)}
    written(copied / "eval" / "inference" / "p1", inferred)  # more of the same subject
    (shown,) = viewer_data(page(copied))["subjects"]
    assert [a["label"] for a in shown["attributes"]] == [f"attribute0{k} up" for k in (1, 2, 3)]


def test_what_lies_on_another_grid_is_said_and_not_shown(copied):
    folder = of_another_system(copied) / "inference" / "p1"
    written(folder, {"image": drawn(0), "map_sex": drawn(1, 8, 7, 5)})
    written(folder, {"map_scanner": drawn(2)}, np.diag([1.0, 1, 1, 1]))
    html = page(copied)
    (shown,) = viewer_data(html)["subjects"]
    assert shown["volumes"].keys() == {"image"}
    for name in ("scanner", "sex"):
        assert f"p1_map_{name}.nii.gz lies on another grid" in html


def test_examples_are_the_best_the_median_and_the_worst(copied):
    folder = of_another_system(copied) / "examples"
    reasons = best_median_worst(["a", "b", "c/1"], np.array([10.0, 30.0, 20.0]))
    assert reasons == {
        "b": "best reconstruction",
        "c/1": "median reconstruction",
        "a": "worst reconstruction",
    }
    unit = {"image": drawn(0, 1, 8, 7, 6) / 1200, "reconstruction": drawn(1, 1, 8, 7, 6) / 1200}
    unit["counterfactual_B"] = drawn(2, 1, 8, 7, 6) / 1200
    write_examples(folder, dict.fromkeys(reasons, unit), reasons, [3, 3, 4], [100, 900])
    saved = nib.load(folder / "c_1" / "c_1_image.nii.gz")
    np.testing.assert_allclose(saved.affine, GRID)
    np.testing.assert_allclose(saved.get_fdata(), 100 + 800 * unit["image"][0], rtol=1e-5)
    shown = viewer_data(page(copied))["subjects"]
    assert [(s["id"], s["why"].split()[0]) for s in shown] == [
        ("b", "best"),
        ("c_1", "median"),
        ("a", "worst"),
    ]


def test_a_gans_evaluation_writes_what_its_viewer_shows(copied, monkeypatch):
    monkeypatch.setattr("medvae.report.swaps.swap_subspaces", lambda _, image, donor, name: donor)
    donors = donor_rows(["a", "b", "b", "d", "e"])
    network = SimpleNamespace(subspaces=SimpleNamespace(names=["sex", "free"]))
    results = of_another_system(copied)
    images = torch.rand(5, 1, 8, 7, 6)
    errors = torch.tensor([3.0, 1, 5, 2, 4]).reshape(5, 1, 1, 1, 1) / 50
    evaluation = GanEvaluation(network, None, [], [], None, results, window=(0, 1200))
    evaluation._show_examples(images, images + errors, ["a", "b", "c", "d", "e"], donors)
    shown = viewer_data(page(copied))["subjects"]
    assert [s["id"] for s in shown] == ["b", "a", "c"]
    (swap,) = shown[0]["attributes"]
    assert (swap["name"], swap["titles"]) == ("from_a", ["its sex", "its free"])
    change = unpacked(shown[0], "change_from_a").get_fdata()
    expected = 1200 * (images[0] - images[1] - errors[1])[0].numpy()
    np.testing.assert_allclose(change[..., 1], expected, atol=12)


def test_donors_are_other_patients():
    assert donor_rows(["a", "b", "c"]).tolist() == [2, 0, 1]
    eyes = ["a", "a", "b", "c", "c", "a"]
    assert donor_rows(eyes).tolist() == [4, 4, 1, 2, 2, 4]
    assert donor_rows(["a", "a"]).tolist() == [0, 1]  # nobody else
    patients = np.random.default_rng(0).integers(5, size=40)
    assert (patients[donor_rows(patients)] != patients).all()


def test_an_intact_evaluation_writes_what_its_viewer_shows(copied, monkeypatch):
    own = torch.tensor([0, 1, 2, 0])
    # decoding gives the arm, and the best reconstruction is that of the arm 2
    monkeypatch.setattr(
        "medvae.report.effects.decoded",
        lambda _, data, arms, __: arms.reshape(-1, 1, 1, 1, 1).float().expand(-1, 1, 8, 7, 6) / 2,
    )
    light = torch.tensor([0.3, 0.2, 0.9, 0.5]).reshape(4, 1, 1, 1, 1)
    images = torch.rand(4, 1, 8, 7, 6) * 0.1 + light
    table = pd.DataFrame({"id": ["a", "b", "c", "d", "e"]})
    roles = SimpleNamespace(cohort=SimpleNamespace(subjects=table), arms=["A", "B", "C/D"])
    results = of_another_system(copied)
    evaluation = EffectEvaluation(None, roles, [], None, results, window=(0, 1000))
    test = torch.tensor([True, True, False, True, True])
    evaluation._show_examples(TreatmentData(images, own, torch.zeros(4, 1)), test)
    shown = {s["id"]: s for s in viewer_data(page(copied))["subjects"]}
    assert list(shown)[0] == "d"
    assert [a["name"] for a in shown["d"]["attributes"]] == ["A", "B"]
    change = unpacked(shown["d"], "change_B")
    np.testing.assert_allclose(change.get_fdata(), -500, atol=2 * change.dataobj.slope)


def test_reconstructions_are_ranked(monkeypatch, tmp_path):
    plotted = []
    monkeypatch.setattr(plots, "plot_reconstructions", lambda *args: plotted.append(args))
    images = np.full((20, 1, 8, 8), 0.5, np.float32)
    errors = np.random.default_rng(0).permutation(20) / 40 + 0.01
    plots.plot_ranked(
        images,
        images + errors[:, None, None, None],
        [f"s{k}" for k in range(20)],
        tmp_path / "r.png",
    )
    ((_, _, titles, _),) = plotted
    assert len(titles) == 8
    order = [int(title.split("\n")[0][1:]) for title in titles]
    assert list(errors[order]) == sorted(errors[order])
    assert {errors[order].min(), errors[order].max()} == {errors.min(), errors.max()}
    assert titles[0].endswith(f"{-20 * np.log10(0.01):.1f} dB")


# ---- colours


SCALES = {getattr(colours, name) for name in ("GREY", "EVIDENCE", "SHARE", "SIGNED")}
# Machado 2009: how strong a deuteranopia and a protanopia see linear RGB
COLOUR_BLIND = {
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
}


def seen_as(name, seen):
    """What an eye sees of 101 steps of a scale, as CIELAB."""
    rgb = colormaps[name](np.linspace(0, 1, 101))[:, :3]
    linear = np.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    linear = np.clip(linear @ np.asarray(seen).T, 0, 1)
    return rgb2lab(
        np.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear)
    )


@pytest.mark.parametrize("name", sorted(SCALES))
def test_scales_are_uniform_and_safe_for_the_colour_blind(name):
    lab = seen_as(name, np.eye(3))
    tenths = deltaE_ciede2000(lab[1:], lab[:-1]).reshape(-1, 10).sum(1)
    assert tenths.max() < 2.5 * tenths.min()  # of hot it is 2.7 times, of jet 3.3
    for eye in (np.eye(3), *COLOUR_BLIND.values()):
        steps = np.diff(seen_as(name, eye)[:, 0])
        if name == colours.SIGNED:  # the farther from 0 the lighter, on either side
            assert (steps[:47] < 0).all()
            assert (steps[53:] > 0).all()
        else:
            assert (steps > 0).all()


def test_every_drawing_takes_its_scale_from_the_list():
    scale = re.compile(r"""(?:cmap=|colormaps\[|colormap: )["']([^"']+)""")
    found = {
        (path.name, name)
        for path in (REPOSITORY / "medvae" / "report").rglob("*.[pj][ys]")
        for name in scale.findall(path.read_text())
    }
    of_the_viewer = {("viewer.js", name) for name in ("gray", "evidence", "more")}
    assert found == of_the_viewer
    data = {"evidence": colours.EVIDENCE, "more": colours.SIGNED, "less": colours.SIGNED}
    for name, scale_of in data.items():
        ends = volume_colours()[name]
        last = [ends[channel][-1] for channel in "RGB"]
        table = colormaps[scale_of]([0.0, 1.0], bytes=True)[:, :3].tolist()
        assert last in table


@pytest.mark.parametrize(
    ("values", "logarithmic"),
    [([1, 11], True), ([1, 9], False), ([-1, 20], False), ([0, 20], False), ([np.nan], False)],
)
def test_a_curve_is_logarithmic_where_it_has_numbers_for_it(values, logarithmic):
    html = figures.curves({"run": {"epoch": list(range(len(values))), "loss": values}})
    assert _spans_decades([np.asarray(values, float)]) == logarithmic
    assert "<svg" in html


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("lv_voxel_volume_ml", "lv voxel volume (ml)"),
        ("surface_to_volume_per_mm", "surface to volume (1/mm)"),
        ("mesh_area_mm2", "mesh area (mm²)"),
        ("age", "age"),
    ],
)
def test_labels_have_units(name, label):
    assert label_of(name) == label


def test_large_volumes_become_coarser_in_place(tmp_path):
    rng = np.random.default_rng(0)
    affine = np.diag([2.0, 1.0, 1.0, 1.0])
    voxels = rng.normal(size=(21, 16, 16)).astype(np.float32)
    files = {}
    for kind in ("reconstruction", "map_a"):
        files[kind] = tmp_path / f"{kind}.nii.gz"
        nib.save(nib.Nifti1Image(voxels, affine), files[kind])
    files["traversal_a"] = tmp_path / "t.nii.gz"
    nib.save(nib.Nifti1Image(np.stack([voxels] * 3, -1), affine), files["traversal_a"])
    packed, factor = packed_below(files, 4000)
    assert factor > 1
    assert sum(map(len, packed.values())) <= 4000
    image = nib.Nifti1Image.from_bytes(gzip.decompress(packed["reconstruction"]))
    assert image.shape == (21 // factor, 16 // factor, 16 // factor)
    middle = affine @ [*[(factor - 1) / 2] * 3, 1]
    np.testing.assert_allclose(image.affine @ [0, 0, 0, 1], middle)
    block = voxels[:factor, :factor, :factor].mean()
    np.testing.assert_allclose(image.get_fdata()[0, 0, 0], block, atol=0.05)


def test_a_new_system_needs_no_new_template():
    heat = Heat(["a"], ["x", "y"], [[0.2, float("nan")]], high=0.1)
    blocks = [Note("n"), heat, Picture("<svg></svg>", "drawn"), Table(["h"], [["cell"]])]
    html = render(Page("P", "", [Section("swaps", "Swaps", blocks, "lead")]))
    assert 'id="swaps"' in html
    assert "▲" in html
    assert 'aria-label="drawn"' in html
    assert Finding("short", "x").status == "short"


def test_long_names_of_rows_are_broken_behind_underscores(monkeypatch):
    name = "myocardium_surface_to_volume_per_mm"
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: figure)
    figure = plots.plot_series({name: np.zeros((2, 4, 4))}, {name: ["1", "2"]}, "none.png")
    lines = figure.axes[0].get_ylabel().split("\n")
    assert "".join(lines) == name
    assert max(map(len, lines)) <= 18
    assert all(line.endswith("_") for line in lines[:-1])
    assert plots.broken("sphericity") == "sphericity"


# ---- in a browser


@pytest.fixture(scope="module")
def browser():
    with headless_chromium() as opened:
        yield opened


@pytest.fixture
def opened(root, browser):
    """The page, freshly opened."""
    browser.get("about:blank")
    browser.get((root / "eval" / "report.html").as_uri())
    browser.get_log("browser")
    return browser


# the viewer, or the planes in its place
STARTED = """
return document.querySelector('.viewer').dataset.ready || !!document.querySelector('.stills img')
"""
# what is chosen in a menu that is too narrow for it, and text beyond the window's edge
CUT = """
const texts = document.querySelectorAll('main table:not(.numbers) td, main figcaption, main label');
const beyond = [...texts].filter((e) => e.getBoundingClientRect().right > innerWidth);
const narrow = [...document.querySelectorAll('main select')].filter((menu) => {
  const text = document.createElement('span');
  text.style.cssText = 'position: absolute; white-space: pre; font: inherit';
  text.textContent = menu.selectedOptions[0]?.textContent || '';
  menu.parentElement.append(text);
  const width = text.getBoundingClientRect().width + 24;
  text.remove();
  return menu.offsetWidth && width > menu.offsetWidth;
});
return [...beyond, ...narrow].map((e) => e.textContent.slice(0, 80));
"""
SHOWN = "return [...document.querySelectorAll('main > section:not([hidden])')].map(s => s.id)"


def severe(browser):
    return [e["message"] for e in browser.get_log("browser") if e["level"] != "INFO"]


def test_tabs_by_mouse_and_keyboard(opened):
    js, keys = opened.execute_script, sys.modules["selenium.webdriver.common.keys"].Keys
    tabs = js("return [...document.querySelectorAll('[role=tab]')].map(t => t.textContent)")
    assert tabs[:2] == ["Verdict", "Metrics"]
    assert js(SHOWN) == ["verdict"]
    opened.find_element("id", "tab-codes").click()
    assert js(SHOWN) == ["codes"]
    for key, section in (
        (keys.ARROW_LEFT, "metrics"),
        (keys.END, "missing"),
        (keys.ARROW_RIGHT, "verdict"),
    ):
        opened.switch_to.active_element.send_keys(key)
        assert js(SHOWN) == [section]
    chosen = "return document.querySelector('[aria-selected=true]').id + document.activeElement.id"
    assert js(chosen) == "tab-verdicttab-verdict"
    assert severe(opened) == []


def test_points_are_drawn_and_named(opened):
    js = opened.execute_script
    opened.find_element("id", "tab-codes").click()
    names = js("return [...document.querySelectorAll('#codes use title')].map(t => t.textContent)")
    assert len(set(names)) == 40
    assert js("return document.querySelector('#codes use').getBoundingClientRect().width") > 0
    ids = js("return [...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize(("width", "height"), [(8.27, 11.69), (8.5, 11)])
def test_the_page_prints(opened, width, height):
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    size = {"paperWidth": width, "paperHeight": height}
    printed = base64.b64decode(opened.execute_cdp_cmd("Page.printToPDF", size)["data"])
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert printed.startswith(b"%PDF")
    assert len(re.findall(rb"/Type\s*/Page\b", printed)) >= 5
    assert severe(opened) == []


def test_a_comparison_opens_without_errors(root, copied, tmp_path, browser):
    path = write_comparison([root, copied], tmp_path / "compare.html")
    browser.get("about:blank")
    browser.get_log("browser")
    browser.get(path.as_uri())
    for tab in browser.find_elements("css selector", "[role=tab]"):
        tab.click()
        (section,) = browser.execute_script(SHOWN)
        assert section == tab.get_attribute("id").removeprefix("tab-")
        assert browser.find_element("id", section).size["height"] > 50
    assert severe(browser) == []


def test_print_shows_every_section_and_dark_mode_is_dark(opened):
    js = opened.execute_script
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    heights = "return [...document.querySelectorAll('main > section')].map(s => s.offsetHeight)"
    assert min(js(heights)) > 20
    assert js("return document.querySelector('nav').offsetHeight") == 0
    paper = "return getComputedStyle(document.body).backgroundColor"
    dark = [{"name": "prefers-color-scheme", "value": "dark"}]
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": dark})
    assert max(map(int, re.findall(r"\d+", js(paper)))) < 40
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})
    assert js(paper) == "rgb(255, 255, 255)"


@pytest.mark.parametrize("width", [400, 900, 1400])
def test_nothing_is_wider_than_the_window(opened, width):
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    for tab in opened.find_elements("css selector", "[role=tab]"):
        tab.click()
        if tab.get_attribute("id") == "tab-viewer":
            assert waited(lambda: opened.execute_script(STARTED))
        assert opened.execute_script("return document.documentElement.scrollWidth") <= width
        assert opened.execute_script(CUT) == []
    opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def needs_webgl(browser):
    """Skip what cannot be drawn: a machine may lack even the software that takes a GPU's place."""
    if not browser.execute_script("return !!document.createElement('canvas').getContext('webgl2')"):
        pytest.skip("the browser has no WebGL 2, not even in software")


@pytest.fixture
def viewed(opened):
    """The page at its viewer, once that has started."""
    needs_webgl(opened)
    opened.find_element("id", "tab-viewer").click()
    assert waited(lambda: opened.execute_script(STARTED))
    return opened


def test_viewer_shows_volumes_with_overlay_and_sliders(viewed):
    opened, js = viewed, viewed.execute_script
    assert not js("return document.querySelector('.controls').hidden")

    def set_to(name, value, event="input"):
        field = f"document.querySelector('.controls').elements['{name}']"
        key = "checked" if isinstance(value, bool) else "value"
        js(f"{field}.{key} = arguments[0]; {field}.dispatchEvent(new Event('{event}'))", value)

    def seen(canvas):
        """How coloured, and how light, a canvas is on average, without its colour bars."""
        time.sleep(0.5)
        picture = opened.find_element("css selector", f"canvas.{canvas}").screenshot_as_png
        pixels = np.asarray(Image.open(BytesIO(picture)).convert("RGB")).astype(float)
        pixels = pixels[: int(0.85 * len(pixels))]
        return np.abs(np.diff(pixels)).mean(), pixels.mean()

    text = "return document.querySelectorAll('.viewer figcaption')[arguments[0]].textContent"
    set_to("opacity", 100)
    on = seen("left")
    assert on[1] > 1
    assert seen("right")[1] > 1
    set_to("overlay", False)
    assert waited(lambda: js("return document.querySelector('[name=shown]').value") == "off")
    assert seen("left")[0] < on[0]
    set_to("overlay", True)
    set_to("value", 4)
    assert waited(lambda: js("return document.querySelector('[name=asked]').value").endswith("ml"))
    last = js(text, 1)
    set_to("value", 0)
    assert waited(lambda: js(text, 1) != last)
    for name, index in (("attribute", 1), ("subject", 2)):
        before = js(text, 0)
        field = f"document.querySelector('.controls').elements['{name}']"
        js(f"{field}.selectedIndex = {index}; {field}.dispatchEvent(new Event('change'))")
        assert waited(lambda seen=before: js(text, 0) != seen)
    opened.find_element("id", "tab-verdict").click()
    opened.find_element("id", "tab-viewer").click()
    assert seen("left")[1] > 1
    foreign = "performance.getEntriesByType('resource').filter(r => !/^(data|blob):/.test(r.name))"
    assert js(f"return {foreign}.length") == 0
    assert severe(opened) == []


def test_sliders_and_menus_work_from_the_keyboard(viewed):
    js, keys = viewed.execute_script, sys.modules["selenium.webdriver.common.keys"].Keys

    def pressed(name, *what):
        field = viewed.find_element("css selector", f".controls [name={name}]")
        js("arguments[0].focus()", field)
        viewed.switch_to.active_element.send_keys(*what)

    said = "return document.querySelector(`.controls [name=${arguments[0]}]`).value"
    caption = "return document.querySelectorAll('.viewer figcaption')[1].textContent"
    pressed("value", keys.HOME)
    assert waited(lambda: js(said, "asked") in js(caption))
    first, decoded = js(said, "asked"), js(caption)
    pressed("value", keys.ARROW_RIGHT, keys.ARROW_RIGHT)
    assert waited(lambda: js(said, "asked") != first and js(caption) != decoded)
    assert js(said, "value") == "2"
    pressed("opacity", keys.HOME)
    assert waited(lambda: js(said, "shown") == "0 %")
    pressed("opacity", keys.ARROW_RIGHT)
    assert waited(lambda: js(said, "shown") == "5 %")
    pressed("overlay", keys.SPACE)
    assert waited(lambda: js(said, "shown") == "off")
    before = js(caption)
    pressed("attribute", keys.ARROW_DOWN)
    assert waited(lambda: js(caption) != before)
    assert severe(viewed) == []


def lines(browser, canvas):
    """Where, as shares of a canvas, the column and the row of its crosshair are."""
    picture = browser.find_element("css selector", f"canvas.{canvas}").screenshot_as_png
    pixels = np.asarray(Image.open(BytesIO(picture)).convert("RGB")).astype(int)
    found = np.abs(pixels - [87, 181, 232]).max(2) < 60
    found[int(0.85 * len(pixels)) :] = False  # the scales have a frame of the same colour
    assert found.sum() > 100
    return found.sum(0).argmax() / found.shape[1], found.sum(1).argmax() / found.shape[0]


def test_crosshairs_are_linked(viewed):
    """A click in either picture moves the lines of both to where the click was."""
    actions = pytest.importorskip("selenium.webdriver").ActionChains
    viewed.execute_script(
        "const f = document.querySelector('.controls').elements;"
        "f.overlay.click(); f.view.value = '0'; f.view.dispatchEvent(new Event('change'));"
        "document.querySelector('.canvases').scrollIntoView()"
    )
    time.sleep(0.5)  # it has scrolled
    for clicked, x, y in (("left", -60, -60), ("right", 50, -90), ("left", 20, 30)):
        canvas = viewed.find_element("css selector", f"canvas.{clicked}")
        actions(viewed).move_to_element_with_offset(canvas, x, y).click().perform()
        wanted = [0.5 + x / canvas.size["width"], 0.5 + y / canvas.size["height"]]
        for each in ("left", "right"):
            assert waited(lambda e=each, w=wanted: np.allclose(lines(viewed, e), w, atol=0.04), 10)
    assert severe(viewed) == []


def test_a_counterfactual_is_drawn_with_its_difference(copied, browser):
    needs_webgl(browser)
    blob = np.zeros((8, 7, 6))
    blob[2:6, 2:5, 1:5] = 300
    volumes = {"counterfactual_B": drawn(0) / 3 + blob, "difference_B": blob}
    written(of_another_system(copied) / "counterfactuals" / "p1", volumes)
    browser.get("about:blank")
    browser.get_log("browser")
    browser.get(write_report(copied).as_uri() + "#viewer")
    assert waited(lambda: browser.execute_script(STARTED))
    texts = browser.find_elements("css selector", ".viewer figcaption")
    assert "The counterfactual under B." in texts[1].text
    time.sleep(0.5)
    picture = browser.find_element("css selector", "canvas.right").screenshot_as_png
    pixels = np.asarray(Image.open(BytesIO(picture)).convert("RGB")).astype(int)
    red, blue = (pixels[: int(0.85 * len(pixels)), :, c] for c in (0, 2))
    assert (red - blue > 30).mean() > 0.02  # where it is brighter
    assert severe(browser) == []


def test_pictures_of_the_docs(root, pictured, browser, picture_folder):
    """The verdict beside the 3D viewer, as `docs/report.md` shows them."""
    js = browser.execute_script
    size = {"width": 1000, "height": 1100, "deviceScaleFactor": 0.64, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get((pictured or root).joinpath("eval", "report.html").absolute().as_uri())
    needs_webgl(browser)
    both = Image.new("RGB", (2 * 640, 704))
    for column, tab in enumerate(("verdict", "viewer")):
        browser.find_element("id", f"tab-{tab}").click()
        if tab == "viewer":
            assert waited(lambda: js(STARTED))
            slider = "document.querySelector('.controls').elements['value']"
            js(f"{slider}.value = {slider}.max; {slider}.dispatchEvent(new Event('input'))")
            time.sleep(1)  # it draws what the slider asks for
        shot = Image.open(BytesIO(browser.get_screenshot_as_png())).convert("RGB")
        assert shot.size == (640, 704)
        assert len(np.unique(shot)) > 50  # it is not blank
        both.paste(shot, (640 * column, 0))
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    both.save(picture_folder / "phantom_report.png", optimize=True)


def test_planes_take_the_viewers_place_without_webgl(opened):
    js = opened.execute_script
    js("HTMLCanvasElement.prototype.getContext = () => null")
    opened.find_element("id", "tab-viewer").click()
    assert waited(lambda: js("return document.querySelectorAll('.stills img').length"))
    assert "no WebGL 2" in js("return document.querySelector('.nowebgl').textContent")
    assert js("return document.querySelector('.controls').hidden")
    assert severe(opened) == []
