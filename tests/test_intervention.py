"""Semi-synthetic truth: arms by real covariates, and effects that are known to the voxel."""

import numpy as np
import pandas as pd
import pytest
import torch
from monai.data import MetaTensor
from scipy.ndimage import distance_transform_edt

from medvae.data import Cohort, CohortError, Roles, assign_treatment, phantoms
from medvae.report.overlap import announce_overlap, covariate_columns, network_propensity
from medvae.transforms import KnownEffectd


def item(treatment=1, dims=3, size=12):
    generator = torch.Generator().manual_seed(0)
    image = MetaTensor(torch.rand(1, *[size] * dims, generator=generator))
    mask = torch.zeros(1, *[size] * dims)
    mask[(0, *[slice(4, 8)] * dims)] = 2
    return {"image": image, "mask": MetaTensor(mask), "treatment": treatment}


def intensity(**changes):
    return KnownEffectd(
        "image", **{"operation": "intensity", "amount": 0.5, "spacing_mm": 1.0} | changes
    )


@pytest.mark.parametrize("dims", [2, 3])
def test_both_arms_hold_the_same_two_images_the_other_way_round(dims):
    treated, control = (intensity()(item(arm, dims)) for arm in (1, 0))
    assert torch.equal(treated["image"], control["counterfactual"])
    assert torch.equal(treated["counterfactual"], control["image"])
    assert torch.equal(control["image"], item(0, dims)["image"])
    assert isinstance(treated["counterfactual"], MetaTensor)


@pytest.mark.parametrize("dims", [2, 3])
def test_intensity_is_added_inside_the_mask_and_fades_at_its_edge(dims):
    given = intensity()(item(1, dims))
    change = (given["image"] - given["counterfactual"]).as_tensor()
    assert change.max() <= 0.5 + 1e-5
    centre, corner = (0, *[5] * dims), (0, *[0] * dims)
    assert change[centre] == pytest.approx(0.5, rel=0.02 * dims)
    assert change[corner] == 0
    total = 0.5 * 4**dims  # blurring keeps the sum
    assert change.sum().item() == pytest.approx(total, rel=0.01)


def test_thick_slices_keep_the_mean_and_lose_detail_along_the_last_axis_alone():
    effect = KnownEffectd("image", "slice_thickness", 5.0, [1.0, 1.0, 1.0])
    image = item()["image"].as_tensor()
    thick = effect.changed(image)
    assert thick.shape == image.shape
    assert thick.mean() == pytest.approx(image.mean().item(), abs=0.02)
    assert thick.diff(dim=3).abs().mean() < 0.25 * image.diff(dim=3).abs().mean()
    flat = image[..., :1].expand_as(image)
    torch.testing.assert_close(effect.changed(flat), flat, atol=2e-4, rtol=0)  # nothing varies
    thin = KnownEffectd("image", "slice_thickness", 1.0, 1.0)
    assert torch.equal(thin.changed(image), image)
    point = torch.zeros(1, 3, 3, 41)
    point[0, 1, 1, 20] = 1
    profile = effect.changed(point)[0, 1, 1]
    # a slice's own width, and up to as much again by the interpolation between slices
    assert 5 <= (profile > profile.max() / 2).sum() <= 11
    assert not effect.changed(point)[0, 0].any()


def test_a_wall_grows_by_millimetres_into_what_it_may():
    spacing = [1.0, 1.0, 2.0]
    given = item()
    mask = given["mask"].as_tensor()
    effect = KnownEffectd("image", "dilation", 2.0, spacing, labels=[2])
    change = effect.changed(given["image"].as_tensor(), given["mask"]) - given["image"].as_tensor()
    distance = distance_transform_edt(mask[0].numpy() != 2, sampling=spacing)
    assert (effect._grown(mask == 2)[0].numpy() == (distance <= 2)).all()
    touched = change[0].abs().numpy() > 0.02
    assert not touched[distance > 5].any()
    mask[0, :4] = 3
    only = KnownEffectd("image", "dilation", 2.0, spacing, labels=[2], into=[3])
    change = only.changed(given["image"].as_tensor(), mask) - given["image"].as_tensor()
    assert not (change[0, 10:].abs() > 0.02).any()
    assert (change[0, 2:4, 4:8, 4:8].abs() > 0.02).any()


@pytest.mark.parametrize("dims", [2, 3])
def test_a_wall_that_grows_grows_in_the_mask_as_well_and_the_control_mask_stays(dims):
    spacing = [1.0, 2.0, 1.5][:dims]
    given = {arm: item(arm, dims) for arm in (0, 1)}
    before = given[0]["mask"].as_tensor().clone()
    before[0, :3] = 3  # what it may not grow into
    before[(0, *[slice(6, 8)] * dims)] = 1  # a second label of the structure
    for each in given.values():
        each["mask"] = MetaTensor(before)
    options = {"labels": [1, 2], "into": [0]}
    effect = KnownEffectd("image", "dilation", 2.0, spacing, **options)
    treated, control = effect(given[1]), effect(given[0])
    for found in (treated, control):
        assert torch.equal(found["control_mask"], before)
        assert isinstance(found["mask"], MetaTensor)
    assert torch.equal(control["mask"], before)
    outside = ~np.isin(before[0].numpy(), [1, 2])
    distance = distance_transform_edt(outside, spacing)
    grown = outside & (distance <= 2) & (before[0].numpy() == 0)
    changed = (treated["mask"] != before)[0].numpy()
    np.testing.assert_array_equal(changed, grown)
    labels = treated["mask"][0].numpy()
    assert set(labels[grown]) == {1, 2}
    to_each = [distance_transform_edt(before[0].numpy() != n, spacing) for n in (1, 2)]
    closer = (labels - 1).astype(int)[grown]  # 0 where label 1 was given
    to_given = np.where(closer == 0, to_each[0][grown], to_each[1][grown])
    np.testing.assert_allclose(to_given, distance[grown])
    # what is drawn is what the mask says: half a voxel's blur apart
    drawn = (treated["image"] - treated["counterfactual"])[0].abs().numpy() > 1e-6
    assert not drawn[distance > 2 + 3 * max(spacing)].any()


def test_only_operations_that_read_a_mask_need_one():
    assert intensity().needs_mask
    assert KnownEffectd("image", "dilation", 1.0, 1.0).needs_mask
    thick = KnownEffectd("image", "slice_thickness", 5.0, 1.0)
    assert not thick.needs_mask
    given = item()
    del given["mask"]
    assert {"image", "counterfactual"} == thick(given).keys() - {"treatment"}


def test_what_a_known_effect_needs_is_said():
    with pytest.raises(ValueError, match="expected one of"):
        KnownEffectd("image", "melting", 1.0, 1.0)
    with pytest.raises(ValueError, match="expected 0 or 1"):
        intensity()(item(2))
    lacking = item()
    del lacking["mask"]
    with pytest.raises(ValueError, match="needs a mask"):
        intensity()(lacking)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return phantoms(tmp_path_factory.mktemp("cohort"), 120, spatial_dims=2, confounding=0.5)


def test_arms_follow_the_covariates_as_strongly_as_asked(table):
    def association(strength):
        given = assign_treatment(table, ["age", "sex"], strength)
        assert set(given["assigned"]) == {0, 1}
        return abs(np.corrcoef(given["assigned"], given["age"])[0, 1]), given

    free, trial = association(0.0)
    assert (trial["assigned_propensity"] == 0.5).all()
    strong, _ = association(4.0)
    assert free < 0.25 < 0.4 < strong
    again = assign_treatment(table, ["age", "sex"], 4.0)
    pd.testing.assert_frame_equal(again, association(4.0)[1])
    with pytest.raises(CohortError, match="'agee' is not in the table"):
        assign_treatment(table, ["agee"])
    with pytest.raises(CohortError, match="expected 0 or more"):
        assign_treatment(table, ["age"], -1.0)
    with pytest.raises(CohortError, match="does not vary"):
        assign_treatment(table.assign(age=3), ["age"])


COVARIATES = {"age": {"kind": "continuous"}, "sex": {}, "ejection_fraction": {"kind": "continuous"}}


def roles(table, **changes):
    cohort = Cohort(table, spatial_dims=2, check=False)
    options = {"treatment": "scanner", "covariates": COVARIATES, "min_arm": 5} | changes
    return Roles(cohort, **options)


def test_roles_give_numbers_with_missing_cells_left_missing_and_travel_with_the_model(
    table, tmp_path
):
    given = roles(table)
    assert given.arms == ("A", "B")
    assert given.classes == (0, 2, 0)
    arms, covariates = given.values(table)
    assert (arms == (table["scanner"] == "B")).all()
    missing = table["ejection_fraction"].isna().to_numpy()
    assert missing.any()
    assert (np.isnan(covariates[:, 2]) == missing).all()
    columns = covariate_columns(given, covariates)
    assert columns.shape == (120, 2 + 3 + 2)
    assert np.isfinite(columns).all()
    given.save(tmp_path / "roles.json")
    again = Roles(given.cohort, state=tmp_path / "roles.json")
    np.testing.assert_array_equal(again.values(table)[1], covariates)
    assert again.graph() == given.graph()
    assert roles(table, control="B").arms == ("B", "A")
    first = given.datalist("train")[0]
    assert first["covariates"].shape == (3,)
    assert isinstance(first["treatment"], int)
    subjects = given.cohort.subjects
    assert [item["id"] for item in given.datalist("test")] == [
        subjects["id"][item["subject"]] for item in given.datalist("test")
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"treatment": "age", "covariates": {}},
            "has [0-9] training row|class that no training row",
        ),
        ({"treatment": "wall_thickness_mm"}, "expected classes"),
        ({"descendants": ["age"]}, "declared as a descendant"),
        ({"descendants": ["ejection_fracton"]}, "descendant .* did you mean 'ejection_fraction'"),
        ({"covariates": {"machine": {"column": "scanner"}}}, "'machine' is the treatment"),
        ({"min_arm": 1000}, "expected at least 1000"),
        ({"covariates": {"nothing": {"kind": "continuous"}}}, "'nothing' has 0 known"),
        ({"covariates": {"height": {}}}, "'height' of the factor"),
    ],
)
def test_roles_that_cannot_be_are_refused(table, changes, message):
    with pytest.raises(CohortError, match=message):
        roles(table.assign(nothing=np.nan), **changes)


def test_an_arm_that_a_split_cannot_be_judged_by_is_refused_before_training(table):
    for split in ("val", "test"):
        given = roles(table)
        subjects = given.cohort.subjects
        held = (subjects["split"] == split) & (subjects["scanner"] == "B")
        assert held.sum() > 2
        for left in (0, 1, 2):
            splits = subjects["split"].where(~held | (held.cumsum() <= left), "train")
            options = {"split_column": "part", "spatial_dims": 2, "check": False}
            part = subjects.drop(columns=["split", "patient"]).assign(part=splits)
            cohort = Cohort(part, **options)
            if left == 2:
                Roles(cohort, "scanner", COVARIATES, min_arm=5)
                continue
            with pytest.raises(
                CohortError, match=f"arm 'B' .* has {left} patient\\(s\\) in the split '{split}'"
            ):
                Roles(cohort, "scanner", COVARIATES, min_arm=5)


def test_one_wild_cell_leaves_the_standardisation_of_the_others_as_it_is(table):
    plain = roles(table)
    age = plain.cohort.subjects["age"]
    train = (plain.cohort.subjects["split"] == "train").to_numpy()
    expected = plain.values(plain.cohort.subjects)[1][:, 0]
    np.testing.assert_array_equal(expected, (age - age[train].mean()) / age[train].std(ddof=0))
    for sentinel in (9999.0, -999.0):
        wild = np.flatnonzero(train)[:2]
        found = roles(table.assign(age=age.where(~age.index.isin(wild), sentinel)))
        columns = found.values(found.cohort.subjects)[1]
        rest = ~age.index.isin(wild)
        kept = age[train & rest]
        np.testing.assert_allclose(
            columns[rest, 0], (age[rest] - kept.mean()) / kept.std(ddof=0), atol=1e-9
        )
        assert (covariate_columns(found, columns)[wild, 0] == np.sign(sentinel) * 8).all()


def test_an_ordinal_covariate_is_one_for_the_network(table):
    stage = pd.cut(table["age"], 4, labels=False)
    given = roles(table.assign(stage=stage), covariates={"stage": {"kind": "ordinal"}})
    assert given.classes == (-4,)
    columns = covariate_columns(given, given.values(given.cohort.subjects)[1])
    np.testing.assert_array_equal(columns[:, :3].sum(1), given.cohort.subjects["stage"])


def test_a_treatment_that_is_constant_or_missing_is_refused(table):
    with pytest.raises(CohortError, match="expected at least two"):
        roles(table.assign(scanner="A"))
    cells = table["scanner"].where(table.index != 3)
    with pytest.raises(CohortError, match=f"missing in '{table['id'][3]}'"):
        roles(table.assign(scanner=cells))


def test_the_overlap_is_said_and_written(table, tmp_path, caplog):
    given = roles(table)
    with caplog.at_level("INFO", "medvae"):
        report = announce_overlap(given, tmp_path / "overlap.json")
    graph, overlap = (record.getMessage() for record in caplog.records)
    assert graph == given.graph()
    counts = table["scanner"].value_counts()
    assert f"Arms of scanner: A: {counts['A']}, B: {counts['B']}. " in overlap
    assert f"with AUC {report['auc']:.2f} (chance 0.5)" in overlap
    assert f"{100 * report['outside']:.0f} % of the subjects lie outside the overlap" in overlap
    assert report["arms"] == table["scanner"].value_counts().to_dict()
    covariates = torch.from_numpy(given.values(table)[1].astype(np.float32))
    found = network_propensity(tmp_path / "overlap.json", given)(covariates)
    assert found.shape == (120, 2)
    torch.testing.assert_close(found.sum(1), torch.ones(120))
    with pytest.raises(CohortError, match="cannot be read"):
        network_propensity(tmp_path / "none.json", given)


def confounded(table, strength, n):
    """Subjects whose `x` decides the arm: None, its sign, else with that weight in the logit."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=n)
    probability = x > 0 if strength is None else 1 / (1 + np.exp(-strength * x))
    arms = generator.random(n) < probability
    rows = table.drop(columns="patient", errors="ignore").iloc[np.arange(n) % len(table)]
    ids = [f"subject{number}" for number in range(n)]
    return rows.assign(id=ids, x=x, scanner=np.where(arms, "B", "A")).reset_index(drop=True)


@pytest.mark.parametrize("n", [40, 200])
def test_a_treatment_that_covariates_say_is_refused(table, tmp_path, n):
    copied = confounded(table, 0.0, n)
    copied["code"] = (copied["scanner"] == "B").astype(int) * 100
    for cohort, name in ((copied, "code"), (confounded(table, None, n), "x")):
        given = roles(cohort, covariates={name: {"kind": "continuous"}})
        with pytest.raises(
            CohortError, match=f"'{name}'.* predict the treatment 'scanner' .*no overlap at all"
        ):
            announce_overlap(given, tmp_path / "overlap.json")
        assert not (tmp_path / "overlap.json").exists()


@pytest.mark.parametrize("n", [80, 200])
def test_strong_confounding_with_some_overlap_is_not_refused(table, tmp_path, n):
    given = roles(confounded(table, 6.0, n), covariates={"x": {"kind": "continuous"}})
    report = announce_overlap(given, tmp_path / "overlap.json")
    assert report["auc"] > 0.9
    assert 0.2 < report["outside"] < 0.8
