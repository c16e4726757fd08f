"""The beta-Intact-VAE's bundle with numbers as the outcome, with and without the image."""

import json
import warnings

import numpy as np
import pandas as pd
import pytest
from intact_runs import SUBJECTS, inference, run, training

from medvae.data import phantoms

# MONAI says so at every run of every bundle (GHSA-873f-pvrv-4x83)
pytestmark = pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning")

NUMBERS = ["wall_thickness_mm", "size_ml"]
OF_NUMBERS = {"outcome": NUMBERS, "covariates": {"diagnosis": {}, "age": {"kind": "continuous"}}}
TRUE_NUMBERS = {"A": ["thick_a", "size_a"], "B": ["thick_b", "size_b"]}


@pytest.fixture(scope="module", params=[True, False], ids=["image", "columns"])
def numbers(request, tmp_path_factory):
    """A trained bundle root whose outcome is columns, with or without the image as a covariate."""
    root = tmp_path_factory.mktemp("numbers")
    phantoms(root / "data", SUBJECTS, spatial_dims=2, confounding=0.5)
    table = pd.read_csv(root / "data" / "subjects.csv")
    given = (table["scanner"] == "B").to_numpy()
    table["wall_thickness_mm"] = 8 + 0.1 * table["age"]  # phantoms leave cells of it empty
    for name, column, effect in (("thick", NUMBERS[0], 3.0), ("size", NUMBERS[1], 20.0)):
        start = table["wall_thickness_mm"] if name == "thick" else 100 + 2 * table["age"]
        table[f"{name}_a"], table[f"{name}_b"] = start, start + effect
        table[column] = start + effect * given
    if not request.param:
        table = table.drop(columns=["image", "mask"])
    table.to_csv(root / "data" / "subjects.csv", index=False)
    settings = {"image_covariate": request.param, "true_outcomes": TRUE_NUMBERS}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "parsing config_file", UserWarning)
        run(["train.yaml"], of_numbers(root, request.param, **settings))
    return root, request.param


def of_numbers(root, image, **overrides):
    return training(root, 2, groups=["sex"], image_covariate=image, **OF_NUMBERS) | overrides


def test_numbers_leave_effects_and_predictions_in_their_own_units(numbers):
    root, image = numbers
    metrics = json.loads((root / "eval" / "metrics.json").read_text())
    assert metrics["covariates"] == ["diagnosis", "age", *(["image"] if image else [])]
    assert metrics["outcomes"].keys() == set(NUMBERS)
    assert {"region", "quality", "measured", "effects"}.isdisjoint(metrics)
    effect = metrics["outcomes"]["size_ml"]["effects"]["B"]
    assert effect["truth"]["true_ate"] == pytest.approx(20, rel=1e-5)
    assert {"network", "T-learner", "inverse propensity"} <= effect["truth"].keys()
    assert effect["truth"]["linear regression"]["error"] < 1e-2  # it assumes what is true here
    assert {"1", "1.5", "2"} == effect["sensitivity"].keys()
    assert sum(e["subjects"] for e in effect["groups"]["sex"].values()) > 0
    factual = metrics["outcomes"]["size_ml"]["factual"]
    table, cells = (pd.read_csv(root / p / n) for p, n in FILES)
    assert len(cells) == SUBJECTS
    test = cells["split"] == "test"
    own = np.where(cells["scanner"] == "B", cells["size_ml_mean_B"], cells["size_ml_mean_A"])
    squares = (own - cells["size_ml"])[test] ** 2
    assert factual["rmse"]["value"] == pytest.approx(np.sqrt(squares.mean()), rel=1e-4)
    train = cells["size_ml"][cells["split"] == "train"].mean()
    naive = np.sqrt(((cells["size_ml"][test] - train) ** 2).mean())
    assert factual["rmse"]["chance"] == pytest.approx(naive, rel=1e-4)
    np.testing.assert_allclose(cells["size_ml"], table["size_ml"])
    assert effect["network"]["all"]["ate"] == pytest.approx(cells["size_ml_effect_B"][test].mean())
    for written in ("effects.png", "predictions.png", "curves.png"):
        assert (root / "eval" / written).stat().st_size > 3000
    assert not list((root / "eval").rglob("*.nii.gz"))
    choice = json.loads((root / "models" / "beta.json").read_text())
    assert {score["beta"] for score in choice["scores"]} == {2, 4}
    html = (root / "eval" / "report.html").read_text()
    for words in (">Effects</h2>", "B instead of A", "T-learner", "Against the known truth"):
        assert words in html
    assert ("The network also reads the image" in html) is image
    assert "not as expected" not in html


FILES = (("data", "subjects.csv"), ("eval", "effects.csv"))


def test_numbers_are_evaluated_again_to_the_same(numbers, tmp_path):
    root, image = numbers
    settings = of_numbers(root, image, true_outcomes=TRUE_NUMBERS, output_dir=str(tmp_path))
    run(["train.yaml", "evaluate.yaml"], settings)
    first, again = (
        json.loads((folder / "metrics.json").read_text()) for folder in (root / "eval", tmp_path)
    )
    assert first == again


def infer_numbers(numbers, tmp_path, table, **overrides):
    root, image = numbers
    if image:
        table = table.assign(image=[str(root / "data" / cell) for cell in table["image"]])
    table.drop(columns="mask", errors="ignore").to_csv(tmp_path / "new.csv", index=False)
    settings = {"outcome": NUMBERS, "image_covariate": image} | overrides
    return inference(root, 2, tmp_path, **settings)[1]


def test_counterfactual_numbers_are_a_table_alone(numbers, tmp_path):
    root, image = numbers
    table = pd.read_csv(root / "data" / "subjects.csv").head(12)
    rows = infer_numbers(numbers, tmp_path, table, target="B", samples=2)
    assert list(rows["own"]) == list(table["scanner"])
    assert not rows["extrapolated"].any()
    assert rows["outside_overlap"].dtype == bool
    assert "grid" not in rows
    change = rows["size_ml_target"] - rows["size_ml_own"]
    np.testing.assert_allclose(change, rows["size_ml_difference"], atol=1e-3)
    moved = rows["size_ml_difference"].abs() > 0
    assert (moved == (rows["own"] == "A")).all()
    assert (rows["size_ml_sd"] >= 0).all()
    assert rows["size_ml_own"].between(0, 1000).all()  # its own unit, about 200
    assert not list((tmp_path / "out").rglob("*.nii*"))
    bare = table.assign(size_ml=table["size_ml"].where(table.index != 3))
    with pytest.raises(SystemExit, match="'size_ml' is missing in 1 row"):
        infer_numbers(numbers, tmp_path, bare, target="B", overwrite=True)
    with pytest.raises(SystemExit, match="outcome is None here and was"):
        infer_numbers(numbers, tmp_path, table, outcome=None, overwrite=True)


def test_numbers_of_new_subjects_need_neither_outcome_nor_treatment(numbers, tmp_path):
    root, image = numbers
    table = pd.read_csv(root / "data" / "subjects.csv").head(5)
    bare = table.drop(columns=NUMBERS).assign(scanner=np.nan)
    options = {"alone": True, "samples": 4, "strength": 1.5, "extrapolate": True}
    rows = infer_numbers(numbers, tmp_path, bare, target="B", **options)
    assert rows["own"].isna().all()
    assert rows["extrapolated"].all()
    change = rows["size_ml_target"] - rows["size_ml_control"]
    np.testing.assert_allclose(change, rows["size_ml_difference"], atol=1e-3)
    again = infer_numbers(numbers, tmp_path, bare, target="A", overwrite=True, alone=True)
    np.testing.assert_allclose(again["size_ml_target"], rows["size_ml_control"], rtol=1e-5)
    expected = pd.read_csv(root / "eval" / "effects.csv").set_index("id")["size_ml_mean_A"]
    np.testing.assert_allclose(again["size_ml_target"], expected[bare["id"].tolist()], rtol=1e-5)
