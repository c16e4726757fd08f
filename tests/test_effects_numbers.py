"""Numbers as the outcome, where both potential outcomes are known: roles to evaluation."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from known_effects import balls, tabular
from monai.data import DataLoader, list_data_collate

from medvae.data import Cohort, CohortError, Roles
from medvae.engines import (
    PrepareTreatment,
    TreatmentData,
    given_or_chosen,
    known_columns,
    train_intact,
)
from medvae.losses import IntactVAELoss
from medvae.metrics import pehe, treatment_predictability
from medvae.networks import IntactVAE
from medvae.report import NumberEvaluation, check_numbers

N, MEAN, SD = 600, 40.0, 5.0  # of the outcome's own unit
X = {f"x{k}": {"kind": "continuous"} for k in range(3)}
TRUE = {"old": ["y_old"], "new": ["y_new"]}


def confounded(n=N, overlap=1.5, seed=0):
    """A table whose effect on `y` is known: SD (2 + m / 2), of a score m that also decides."""
    truth = tabular(n, overlap, seed)
    both = MEAN + SD * truth.potential[:, :, 0].numpy()
    columns = dict(zip(X, truth.data.covariates.T.numpy(), strict=True))
    table = pd.DataFrame({"id": [f"s{row}" for row in range(n)], **columns})
    arms = np.array(["old", "new"])[truth.data.treatment]
    split = np.resize(["train", "train", "train", "val", "test"], n)
    y = MEAN + SD * truth.data.outcome[:, 0].numpy()
    return table.assign(y=y, y_old=both[:, 0], y_new=both[:, 1], drug=arms, part=split)


def roles_of(table, **changes):
    cohort = Cohort(table, fractions=None, split_column="part", needs_image=False)
    options = {"covariates": X, "control": "old", "outcome": "y"} | changes
    return Roles(cohort, "drug", **options)


def loader(roles, split=None):
    return DataLoader(roles.datalist(split), batch_size=50, collate_fn=list_data_collate)


def untrained(roles, in_channels=0):
    torch.manual_seed(0)
    return IntactVAE(
        2,
        in_channels,
        16,
        covariates=roles.classes,
        latent_dim=1,
        channels=(4, 8),
        strides=(2, 2),
        hidden_channels=(64, 64),
        prior_channels=(64, 64),
        outcome_dim=1,
    )


def fitted(batches, roles, in_channels=0, steps=350):
    data = TreatmentData.gathered(batches, PrepareTreatment())
    return train_intact(untrained(roles, in_channels), data, IntactVAELoss(1.0), steps, 100, 1e-2)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("numbers")
    table = confounded()
    roles = roles_of(table)
    network = fitted(loader(roles, "train"), roles)
    options = {"groups": ["half"], "true_outcomes": TRUE, "n_resamples": 50}
    roles.cohort.subjects["half"] = np.resize(["one", "other"], N)
    evaluation = NumberEvaluation(
        network, roles, loader(roles), PrepareTreatment(), folder, beta=1.0, **options
    )
    return roles, network, evaluation.run(), folder


def seen_in_images(n=N, seed=0, noise=0.3):
    """The confounder is the brightness of a disc, and no column; the effect on `y` is 2 SD."""
    generator = np.random.default_rng(seed)
    m = generator.normal(size=n)
    disc = balls(16, 2)[0]
    images = (m[:, None, None] * disc + noise * generator.normal(size=(n, 16, 16)))[:, None]
    arms = (generator.random(n) < 1 / (1 + np.exp(-1.5 * m))).astype(int)
    table = pd.DataFrame({"id": [f"s{row}" for row in range(n)], "x": generator.normal(size=n)})
    y = MEAN + SD * (m + 2 * arms + 0.5 * generator.normal(size=n))
    split = np.resize(["train", "train", "train", "val", "test"], n)
    table = table.assign(y=y, drug=np.array(["old", "new"])[arms], part=split)
    table["y_old"], table["y_new"] = MEAN + SD * m, MEAN + SD * (m + 2)
    return table, torch.from_numpy(images).float()


def with_images(roles, images, split=None):
    items = [item | {"image": images[item["subject"]]} for item in roles.datalist(split)]
    return DataLoader(items, batch_size=50, collate_fn=list_data_collate)


def test_the_effect_of_a_table_is_found_where_the_difference_of_means_is_wrong(evaluated):
    _, _, metrics, folder = evaluated
    effect = metrics["outcomes"]["y"]["effects"]["new"]
    truth, network = effect["truth"], effect["network"]["all"]
    exact = pd.read_csv(folder / "effects.csv").merge(confounded()[["id", "y_old", "y_new"]])
    exact = exact[exact["split"] == "test"]
    tau = exact["y_new"] - exact["y_old"]
    assert network["true_ate"] == pytest.approx(tau.mean(), rel=1e-6)
    assert truth["difference of means"]["error"] > SD  # of an effect of about 2 SD
    assert truth["network"]["error"] < 0.2 * SD
    assert truth["network"]["pehe"] < 0.5 * SD < truth["T-learner"]["pehe"]
    assert network["pehe"] == pytest.approx(pehe(exact["y_effect_new"], tau), rel=1e-6)
    assert network["low"] < network["ate"] < network["high"]
    assert metrics["balance"]["predictability"] < 0.02
    simple = effect["simple"]
    assert truth["linear regression"]["ate"] == pytest.approx(simple["linear regression"]["effect"])
    for level in ("one", "other"):
        assert effect["groups"]["half"][level]["subjects"] == 60
    low, high = effect["sensitivity"]["2"]
    assert low < simple["inverse propensity"]["effect"] < high


def test_prediction_is_of_new_subjects_by_what_is_known_before_the_outcome(evaluated):
    roles, network, metrics, folder = evaluated
    cells = pd.read_csv(folder / "effects.csv")
    assert list(cells["split"]) == list(roles.cohort.subjects["split"])
    moved = roles.cohort.chosen([True] * N)
    moved.subjects["y"] = moved.subjects["y"] + 100.0  # no outcome may enter
    other = roles_of(confounded())
    other.cohort = moved
    again = NumberEvaluation(
        network, other, loader(other), PrepareTreatment(), folder / "moved", n_resamples=2
    ).run()
    assert again["outcomes"]["y"]["factual"]["rmse"]["value"] > 90
    shifted = pd.read_csv(folder / "moved" / "effects.csv")
    columns = ["y_mean_old", "y_mean_new", "y_sd_old", "y_sd_new", "y_effect_new"]
    pd.testing.assert_frame_equal(shifted[columns], cells[columns])
    factual = metrics["outcomes"]["y"]["factual"]
    assert factual["r2"]["value"] > 0.9 > 0.05 > factual["r2"]["chance"]
    assert factual["rmse"]["low"] < factual["rmse"]["value"] < factual["rmse"]["high"]
    assert SD / 2 <= factual["rmse"]["value"] < factual["rmse"]["chance"] / 3  # the noise is SD / 2
    held = cells[cells["split"] == "test"]
    own = held["drug"] == "new"
    z = (held["y"] - held["y_mean_new"].where(own, held["y_mean_old"])) / held["y_sd_new"]
    assert 0.7 < z.std() < 1.4  # the sd is of code and noise together


def test_test_subjects_may_lack_the_outcome(evaluated, tmp_path):
    _, network, *_ = evaluated
    table = confounded()
    bare = table[table["part"] == "test"].index[:20]
    table.loc[bare, "y"] = np.nan
    roles = roles_of(table)
    options = {"true_outcomes": TRUE, "n_resamples": 2}
    evaluation = NumberEvaluation(
        network, roles, loader(roles), PrepareTreatment(), tmp_path, **options
    )
    outcome = evaluation.run()["outcomes"]["y"]
    assert outcome["factual"]["r2"]["rows"] == 100
    assert outcome["effects"]["new"]["network"]["all"]["subjects"] == 120
    cells = pd.read_csv(tmp_path / "effects.csv")
    assert cells["y"].isna().sum() == 20
    assert not cells["y_effect_new"].isna().any()


def test_a_confounder_that_only_the_image_shows_is_adjusted_for(tmp_path):
    table, images = seen_in_images()
    roles = roles_of(table, covariates={"x": {"kind": "continuous"}})
    errors = {}
    for name, channels in (("image", 1), ("columns", 0)):
        given = (roles, images) if channels else (roles,)
        batches = with_images if channels else loader
        network = fitted(batches(*given, "train"), roles, channels, steps=250)
        evaluation = NumberEvaluation(
            network,
            roles,
            batches(*given),
            PrepareTreatment(),
            tmp_path / name,
            true_outcomes=TRUE,
            n_resamples=2,
        )
        metrics = evaluation.run()
        truth = metrics["outcomes"]["y"]["effects"]["new"]["truth"]
        errors[name] = truth["network"]["error"]
        words = (tmp_path / name / "metrics.md").read_text()
        assert ("simple estimators know the columns alone" in words) == bool(channels)
    assert truth["true_ate"] == pytest.approx(2 * SD, rel=1e-5)
    assert errors["image"] < 0.2 * SD < 0.7 * SD < errors["columns"]
    assert truth["linear regression"]["error"] > 0.7 * SD
    # codes tell the arm as the image does, which the columns cannot explain, and the prior can
    data = TreatmentData.gathered(with_images(roles, images, "val"), PrepareTreatment())
    network = fitted(with_images(roles, images, "train"), roles, 1, steps=100)
    with torch.no_grad():
        codes = network.encode(*data)[0].numpy()
    columns = network.covariate_encoder(data.covariates).numpy()
    arms = data.treatment.numpy()
    assert treatment_predictability(codes, columns, arms) > 0.1
    assert treatment_predictability(codes, known_columns(network, data), arms) < 0.05


def test_the_choice_of_beta_reads_an_image_among_the_covariates(tmp_path):
    table, images = seen_in_images(200)
    roles = roles_of(table, covariates={"x": {"kind": "continuous"}})
    items = [
        [item | {"image": images[item["subject"]]} for item in roles.datalist(split)]
        for split in ("train", "val")
    ]
    path = tmp_path / "beta.json"
    options = {"grid": [1, 4], "steps": 5, "batch_size": 20}
    beta = given_or_chosen(None, path, untrained(roles, 1), *items, PrepareTreatment(), **options)
    assert beta in (1, 4)
    assert len(json.loads(path.read_text())["scores"]) == 2


@pytest.mark.parametrize(
    ("cells", "changes", "message"),
    [
        ({}, {"outcome": "yy"}, "The outcome 'yy' is not in the table; did you mean 'y'"),
        ({"y": "much"}, {}, "Column 'y' holds 'much' in row 's0'; expected a number"),
        ({}, {"outcome": "drug"}, "The outcome 'drug' is the treatment"),
        ({}, {"outcome": ["y", "x1"]}, "The outcome 'x1' is a covariate"),
        (
            {},
            {"covariates": {"other": {"column": "y", "kind": "continuous"}}},
            "'y' is a covariate",
        ),
        ({}, {"descendants": ["y"]}, "'y' is declared as a descendant of the treatment"),
        ({}, {"outcome": ["y", "y"]}, "'y' is named twice"),
        ({}, {"outcome": []}, "outcome is empty; expected null"),
        ({"y": 3.5}, {}, "The outcome 'y' is 3.5 in all 36 training rows"),
    ],
)
def test_an_outcome_that_cannot_be_is_refused_in_a_sentence(cells, changes, message):
    with pytest.raises(CohortError, match=message) as refused:
        roles_of(confounded(60).assign(**cells), min_arm=5, **changes)
    assert str(refused.value).count(". ") == 0


def test_a_missing_outcome_is_counted_where_it_is_learned_from():
    table = confounded(60)
    learned = table.index[table["part"].isin(["train", "val"])][:7]
    table.loc[learned, "y"] = np.nan
    with pytest.raises(CohortError, match="'y' is missing in 7 row.* leaving these rows out or c"):
        roles_of(table, min_arm=5)


def test_outcomes_are_standardised_by_the_training_rows_and_travel_with_the_model(tmp_path):
    table = confounded(60).assign(other=np.arange(60.0))
    table.loc[table["part"] != "train", "other"] = 1e6
    roles = roles_of(table, min_arm=5, outcome=["y", "other"])
    train = table[table["part"] == "train"]
    found = np.stack([item["outcome"] for item in roles.datalist("train")])
    np.testing.assert_allclose(found.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(found.std(0), 1, rtol=1e-5)
    np.testing.assert_allclose(roles.outcome.inverse(found), train[["y", "other"]], rtol=1e-5)
    assert "x0, x1, x2 -> y, other" in roles.graph()
    assert "image" not in roles.graph()
    roles.save(tmp_path / "roles.json")
    again = Roles(roles.cohort, state=tmp_path / "roles.json")
    assert again.outcomes == ("y", "other")
    np.testing.assert_array_equal(again.outcome.sd, roles.outcome.sd)
    again.check_encoded()
    state = json.loads((tmp_path / "roles.json").read_text())
    del state["outcome"]  # as a model of images from before there was a choice
    (tmp_path / "roles.json").write_text(json.dumps(state))
    assert Roles(roles.cohort, state=tmp_path / "roles.json").outcome is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": ["hal"]}, "'hal' of groups is not in the table"),
        ({"true_outcomes": {"old": ["y_old"]}}, "expected for each of the arms"),
        ({"true_outcomes": {"old": ["y_old"], "new": ["y_new", "y"]}}, "expected for each of the"),
        ({"true_outcomes": {"old": ["y_old"], "new": ["ynew"]}}, "did you mean 'y_new'"),
        ({"true_outcomes": TRUE, "missing": "y_old"}, "true outcome 'y_old' is missing"),
        ({"missing": "y"}, "2 test row.* of the arm .* have the outcome y; expected at least 5"),
    ],
)
def test_what_cannot_be_evaluated_is_said_before_training(options, message):
    table = confounded(120)
    if (name := options.pop("missing", None)) is not None:
        held = table.index[table["part"] == "test"]
        for arm in ("old", "new"):
            table.loc[held[table["drug"][held] == arm][2:], name] = np.nan
    with pytest.raises(CohortError, match=message):
        check_numbers(roles_of(table, min_arm=5), **options)


def test_a_table_without_images_is_a_cohort_that_reads_none(tmp_path):
    table = confounded(60)
    with pytest.raises(CohortError, match="Column 'image' is not in"):
        Cohort(table)
    cohort = Cohort(table.assign(image="nowhere.nii.gz"), needs_image=False)
    assert "image" not in cohort.subjects
    assert all("image" not in item for item in cohort.datalist())
