"""The labelled factors of a cohort, made confounding, and balanced sampling."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from medvae.data import (
    Cohort,
    CohortError,
    Factors,
    balanced_sampler,
    check_factor_training,
    confounded_rows,
    joint_classes,
)


@pytest.fixture
def cohort(tmp_path):
    """240 subjects of 2 x 3 classes in all combinations, with an age and missing cells."""
    (tmp_path / "image.nii.gz").touch()
    rng = np.random.default_rng(0)
    rows = [
        {
            "id": f"s{i:03d}",
            "image": "image.nii.gz",
            "patient": f"p{i:03d}",
            "dx": ["well", "ill"][i % 2],
            "camera": i % 3,
            "age": 20.0 + i % 60,
            "age_ok": int(i % 10 > 0),
            "size": float(rng.normal(50, 5)),
        }
        for i in range(240)
    ]
    table = pd.DataFrame(rows)
    table.loc[5, "dx"] = np.nan
    table.to_csv(tmp_path / "subjects.csv", index=False)
    return Cohort(tmp_path / "subjects.csv", check=False, progress=False)


DEFINITIONS = {
    "dx": {"size": 2},
    "camera": None,
    "age": {"kind": "ordinal", "bins": [40, 60], "valid": "age_ok"},
    "size": {"kind": "continuous", "size": 1},
}


def test_factors_number_classes_and_standardise_numbers(cohort):
    factors = Factors(cohort, DEFINITIONS, free_size=3)
    assert factors.sizes == {"dx": 2, "camera": 4, "age": 4, "size": 1, "free": 3}
    assert factors.outputs == {"dx": 2, "camera": 3, "age": 3, "size": 1}
    assert factors.classes["dx"] == ("ill", "well")
    assert factors.classes["age"] == ("below 40", "40 to 60", "60 and above")
    table = cohort.subjects
    values = factors.values()
    assert np.isnan(values[table["id"] == "s005", 0]).all()
    ages = pd.Series(values[:, 2])
    assert ages.isna().equals(table["age_ok"] == 0)
    assert (ages[table["age"] >= 60].dropna() == 2).all()
    assert (ages[table["age"] == 40].dropna() == 1).all()  # a limit belongs to the class above
    train = (table["split"] == "train").to_numpy()
    assert abs(values[train, 3].mean()) < 1e-9
    assert abs(values[train, 3].std() - 1) < 1e-9
    assert factors.own_unit("size", values[7, 3]) == pytest.approx(table["size"][7])


def test_items_carry_the_factors(cohort):
    factors = Factors(cohort, DEFINITIONS)
    items = factors.datalist("test")
    rows = (cohort.subjects["split"] == "test").to_numpy()
    np.testing.assert_allclose(
        np.stack([item["factors"] for item in items]), factors.values()[rows], rtol=1e-6
    )
    assert {"id", "image"} <= items[0].keys()
    ids = cohort.subjects["id"]
    assert [ids[item["subject"]] for item in items] == [item["id"] for item in items]


def test_a_trained_models_factors_come_back(cohort, tmp_path):
    factors = Factors(cohort, DEFINITIONS, free_size=0)
    factors.save(tmp_path / "factors.json")
    again = Factors(cohort, state=tmp_path / "factors.json")
    assert again.sizes == factors.sizes
    assert "free" not in again.sizes
    assert again.classes == factors.classes
    np.testing.assert_array_equal(again.values(), factors.values())
    (tmp_path / "broken.json").write_text(json.dumps({"free_size": 2}))
    with pytest.raises(CohortError, match="broken.json' cannot be read"):
        Factors(cohort, state=tmp_path / "broken.json")


@pytest.mark.parametrize(
    ("definitions", "message"),
    [
        ({}, "factors is empty"),
        ({"dz": None}, "Column 'dz' of the factor 'dz' is not in the table"),
        ({"dx": {"sise": 2}}, "setting 'sise'; did you mean 'size'"),
        ({"dx": {"size": 0}}, "size 0; expected at least 1"),
        ({"dx": {"kind": "nominal"}}, "of kind 'nominal'; expected one of"),
        ({"age": {"bins": [60, 40]}}, "expected rising ones"),
        ({"age": {"bins": [300]}}, r"class\(es\) \['below 300'\] in the training rows"),
        ({"dx": {"kind": "continuous"}}, "expected a number"),
        ({"whole": {"column": "dx"}}, "'whole', which means something else"),
        ({"free": {"column": "dx"}}, "'free', which means something else"),
        ({"dx": {"kind": "ordinal"}}, r"ordinal and its classes are text, \['ill', 'well'\]"),
        ({"dx": {"classes": ["well", "sick"]}}, "is 'ill' in a training row; expected one of"),
        ({"dx": {"classes": ["well", "ill", "ill"]}}, "expected every one once"),
        ({"age": {"bins": [40], "classes": [1, 2]}}, "none beside bins"),
        ({"size": {"kind": "continuous", "classes": [1, 2]}}, "or of a continuous factor"),
    ],
)
def test_bad_definitions_are_named(cohort, definitions, message):
    with pytest.raises(CohortError, match=message):
        Factors(cohort, definitions)


def test_classes_come_in_the_order_that_is_declared(cohort, tmp_path):
    grades = ["low", "medium", "high"]
    cohort.subjects["grade"] = [grades[i % 3] for i in range(240)]
    definition = {"grade": {"kind": "ordinal", "classes": [*grades, "highest"]}}
    factors = Factors(cohort, definition)
    assert factors.classes["grade"] == tuple(grades)  # those of the training rows
    np.testing.assert_array_equal(factors.values()[:, 0], np.arange(240) % 3)
    factors.save(tmp_path / "factors.json")
    again = Factors(cohort, state=tmp_path / "factors.json")
    np.testing.assert_array_equal(again.values(), factors.values())


def test_a_label_missing_for_everybody_is_named(cohort):
    cohort.subjects["dx"] = np.nan
    with pytest.raises(CohortError, match=r"factor 'dx' has the class\(es\) \[\]"):
        Factors(cohort, {"dx": None})


def test_a_class_that_training_lacks_is_named(cohort):
    test = cohort.subjects["split"] == "test"
    cohort.subjects.loc[test[test].index[0], "camera"] = 9
    with pytest.raises(CohortError, match="is 9 in row .* no training row has"):
        Factors(cohort, {"camera": None})


@pytest.mark.parametrize("strength", [0.0, 0.5, 0.9, 1.0])
def test_confounding_is_as_strong_as_asked_and_absent_in_the_test(strength):
    rng = np.random.default_rng(1)
    values = rng.integers(0, 2, (6000, 2)).astype(float)
    values[:50, 0] = np.nan
    splits = np.repeat(["train", "val", "test"], 2000)
    keep = confounded_rows(values, splits, strength, seed=3)
    for split in ("train", "val"):
        rows = values[keep & (splits == split)]
        agree = (rows[:, 0] == rows[:, 1]).mean()
        assert agree == pytest.approx((1 + strength) / 2, abs=0.01)
        assert rows[:, 0].mean() == pytest.approx(0.5, abs=0.02)
    cells = joint_classes(values[keep & (splits == "test")], [0, 1])
    assert len(set(np.bincount(cells))) == 1
    assert not keep[:50].any()
    np.testing.assert_array_equal(keep, confounded_rows(values, splits, strength, seed=3))


def test_confounding_of_more_classes():
    rng = np.random.default_rng(1)
    values = np.stack([rng.integers(0, 3, 9000), rng.integers(0, 2, 9000)], 1).astype(float)
    keep = confounded_rows(values, ["train"] * 9000, 0.8)
    rows = values[keep]
    agree = rows[:, 1] == rows[:, 0] % 2
    expected = 0.8 + 0.2 * 0.5
    assert agree.mean() == pytest.approx(expected, abs=0.02)


def test_what_cannot_be_confounded_is_named(cohort):
    values = np.array([[0, 0], [1, 1], [0, 0], [1, 1]] * 4, dtype=float)
    with pytest.raises(CohortError, match="No row of the split test has class 0"):
        confounded_rows(values, ["test"] * 16, 0.5)
    with pytest.raises(CohortError, match=r"strength is 1\.5; expected 0 to 1"):
        confounded_rows(values, ["train"] * 16, 1.5)
    with pytest.raises(CohortError, match="no factor 'dy'"):
        Factors(cohort, {"dx": None}, confounding={"between": ["dx", "dy"], "strength": 0.5})


def test_made_confounding_keeps_the_whole_cohort_as_pool(cohort):
    between = {"between": ["dx", "camera"], "strength": 0.9}
    factors = Factors(cohort, {"dx": None, "camera": None}, confounding=between)
    assert len(factors.cohort.subjects) < len(factors.pool.subjects) == 240
    assert len(factors.datalist("train")) == (factors.cohort.subjects["split"] == "train").sum()


def test_a_class_that_made_confounding_leaves_out_of_training_is_named(cohort):
    """It would number the pool's classes after the training."""
    train = np.flatnonzero(cohort.subjects["split"] == "train")
    between = {"between": ["dx", "camera"], "strength": 0.9}
    kept = Factors(cohort, {"dx": None, "camera": None}, confounding=between).cohort.subjects["id"]
    left_out = next(row for row in train if cohort.subjects["id"][row] not in set(kept))
    cohort.subjects["grade"] = ["mild" if row % 2 else "severe" for row in range(240)]
    cohort.subjects.loc[left_out, "grade"] = "rare"
    names = dict.fromkeys(["dx", "camera", "grade"])
    assert Factors(cohort, names).classes["grade"] == ("mild", "rare", "severe")
    with pytest.raises(CohortError, match="'grade' is 'rare' in row .* no training row has"):
        Factors(cohort, names, confounding=between)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ({"between": ["dx", "camera"], "strenght": 0.9}, "'strenght'; did you mean 'strength'"),
        ({"strength": 0.9}, "expected the names of two factors in 'between'"),
        ({"between": ["dx"], "strength": 0.9}, "expected the names of two factors"),
        ({"between": ["dx", "camera", "age"], "strength": 0.9}, "expected the names of two"),
        ({"between": "dx", "strength": 0.9}, "expected the names of two factors"),
        ({"between": ["dx", "camera"]}, "and a 'strength' of 0 to 1"),
        ({"between": ["dx", "size"], "strength": 0.9}, "'size' is continuous; expected .* between"),
    ],
)
def test_bad_settings_of_made_confounding_are_named(cohort, made, message):
    with pytest.raises(CohortError, match=message):
        Factors(cohort, DEFINITIONS, confounding=made)


def test_names_that_only_sampler_or_evaluation_would_ask_for_are_checked(cohort):
    factors = Factors(cohort, DEFINITIONS)
    check_factor_training(factors, 8, 1, groups=["age", "camera"], balance=["dx", "camera"])
    with pytest.raises(CohortError, match="groups has 'agee'.* did you mean 'age'"):
        check_factor_training(factors, 8, 1, groups=["agee"])
    with pytest.raises(CohortError, match="no factor 'dxx'; did you mean 'dx'"):
        check_factor_training(factors, 8, 1, balance=["dxx"])
    with pytest.raises(CohortError, match="'size' is continuous; expected .* balance by"):
        check_factor_training(factors, 8, 1, balance=["size"])


def test_balanced_sampling_makes_factors_independent():
    torch.manual_seed(0)
    cells = np.repeat([0, 1, 2, 3, -1], [900, 50, 30, 1000, 20])
    drawn = cells[list(balanced_sampler(cells))]
    assert len(drawn) == 2000
    counts = np.bincount(drawn[drawn >= 0])
    np.testing.assert_allclose(counts / counts.sum(), 0.25, atol=0.04)
    assert 0 < (drawn == -1).sum() < 60
    assert len(list(balanced_sampler(cells, processes=4))) == 500


def test_cells_are_of_factors_with_classes(cohort):
    factors = Factors(cohort, DEFINITIONS)
    cells = factors.cells(["dx", "camera"], "train")
    assert set(cells) <= {-1, 0, 1, 2, 3, 4, 5}
    with pytest.raises(CohortError, match="'size' is continuous"):
        factors.cells(["size"])
