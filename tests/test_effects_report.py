"""The evaluation of effects, where both arms of subjects and the network's drawings are known."""

import json
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch

from medvae.data import Cohort, CohortError, Roles
from medvae.metrics import (
    combat,
    difference_of_means,
    inverse_propensity,
    regression,
    t_learner,
)
from medvae.report import EffectEvaluation, check_evaluation, effects

SIZE, N, SHARE, ERROR = 8, 80, 0.5, 0.03  # the network draws a share of the effect, and an error
BARE = 79  # the test subject without the region


def images_of_both_arms():
    """Images (N, 2, 1, *S), regions (N, *S), effects (N,) in them, and the table."""
    rng = np.random.default_rng(0)
    split = np.array(["train"] * 44 + ["val"] * 8 + ["test"] * 28)
    x = rng.normal(size=N) + (split == "test")  # test subjects differ: so does their mean effect
    tau = 0.3 + 0.1 * x
    regions = np.zeros((N, SIZE, SIZE), bool)
    for row, region in enumerate(regions):
        region[: 2 + row % 2] = row != BARE
    control = 0.5 + 0.1 * x[:, None, None] + 0.01 * rng.normal(size=(N, SIZE, SIZE))
    both = np.stack([control, control + tau[:, None, None] * regions], 1)[:, :, None]
    arms = (rng.random(N) < 1 / (1 + np.exp(-x))).astype(int)
    table = {"id": [f"s{n}" for n in range(N)], "split": split, "x": x, "arm": arms}
    return both, regions, tau, pd.DataFrame(table | {"sex": rng.choice(["f", "m"], N)})


@pytest.fixture(scope="module")
def known():
    return images_of_both_arms()


@pytest.fixture
def evaluated(known, tmp_path, monkeypatch):
    """What the evaluation returns of the known network, and its folder."""
    both, regions, tau, table = known
    evaluation = evaluation_of(known, tmp_path, monkeypatch)
    return evaluation.run(), tmp_path / "eval"


def evaluation_of(known, root, monkeypatch, region=(2,), masks=True, **options):
    both, regions, tau, table = known
    (root / "image.nii.gz").touch()
    files = {"image": "image.nii.gz"} | ({"mask": "image.nii.gz"} if masks else {})
    table = table.assign(**files)
    table.to_csv(root / "subjects.csv", index=False)
    cohort = Cohort(
        root / "subjects.csv", fractions=None, split_column="split", spatial_dims=2, check=False
    )
    covariates = {"x": {"kind": "continuous"}, "sex": {}}
    roles = Roles(cohort, "arm", covariates, min_arm=5)
    arms, columns = roles.values(cohort.subjects)
    rows = np.arange(N)
    pair = torch.from_numpy(both).float()
    batch = {
        "image": pair[rows, arms],
        "counterfactual": pair[rows, 1 - arms],
        "treatment": torch.from_numpy(arms),
        "covariates": torch.from_numpy(columns),
        "control_mask": 2.0 * torch.from_numpy(regions)[:, None],
        "mask": torch.full((N, 1, SIZE, SIZE), 2.0),  # what the treatment made of it
    }
    drawn = drawings(both, arms)

    def decoded(_, data, arm, __="cpu"):
        return torch.stack(
            [drawn[y.numpy().tobytes()][a] for y, a in zip(data.outcome, arm, strict=True)]
        )

    monkeypatch.setattr(effects, "decoded", decoded)
    value = {"value": 0.0, "low": 0.0, "high": 0.0}
    axes = {"composition": {"one_pass": value}, "reversibility": value}
    monkeypatch.setattr(
        effects, "quality_report", lambda *_: axes | {"minimality": {"change": value}}
    )
    balance = {"predictability": 0.0, "chance": 0.0}
    monkeypatch.setattr(effects, "balance_report", lambda *_: balance)
    monkeypatch.setattr(EffectEvaluation, "_plot", lambda *_: None)
    keys = ("treatment", "covariates")
    return EffectEvaluation(
        SimpleNamespace(image_size=(SIZE, SIZE)),
        roles,
        [batch],
        lambda batch, _: (batch["image"], {key: batch[key] for key in keys}),
        root / "eval",
        region=region,
        n_resamples=20,
        **options,
    )


def drawings(both, arms):
    """The known network's images under either arm, by the bytes of the subject's own."""
    pair = torch.from_numpy(both).float()
    change = pair[:, 1] - pair[:, 0]
    under = [pair[:, 0] + ERROR + SHARE * arm * change for arm in (0, 1)]
    return {
        pair[n, arm].numpy().tobytes(): (under[0][n], under[1][n]) for n, arm in enumerate(arms)
    }


def test_the_effect_is_that_of_the_test_subjects_who_have_the_region(known, evaluated):
    _, _, tau, table = known
    metrics, folder = evaluated
    test = (table["split"] == "test").to_numpy() & (np.arange(N) != BARE)
    region = metrics["effects"]["1"]["region"]
    assert region["undefined"] == 1
    assert region["all"]["subjects"] == test.sum() == 27
    assert region["inside"]["subjects"] + region["outside"]["subjects"] == 27
    # by the mask of arm 1 it would be diluted
    assert region["all"]["ate"] == pytest.approx(SHARE * tau[test].mean(), rel=1e-4)
    assert region["all"]["low"] < region["all"]["ate"] < region["all"]["high"]
    assert region["all"]["true_ate"] == pytest.approx(tau[test].mean(), rel=1e-4)
    errors = (1 - SHARE) * tau[test]
    assert region["all"]["pehe"] == pytest.approx(np.sqrt((errors**2).mean()), rel=1e-4)
    outside = pd.read_csv(folder / "effects.csv")["outside_overlap"].to_numpy()[:-1]
    if outside.any():
        expected = np.sqrt((errors[outside] ** 2).mean())
        assert region["outside"]["pehe"] == pytest.approx(expected, rel=1e-4)

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    json.loads((folder / "metrics.json").read_text(), parse_constant=refuse)
    words = (folder / "metrics.md").read_text("utf-8")
    assert "1 test subject(s) without the region are left out of the effect of 1" in words
    assert "what another training would have found is not in them" in " ".join(words.split())


def test_each_simple_estimator_says_whose_effects_it_is_the_mean_of(known, evaluated):
    _, _, tau, table = known
    metrics, folder = evaluated
    simple = metrics["effects"]["1"]["simple"]
    has = np.arange(N) != BARE
    test = (table["split"] == "test").to_numpy() & has
    assert abs(tau[test].mean() - tau[has].mean()) > 0.05  # or this would show nothing
    assert simple["linear regression"]["effect"] == pytest.approx(tau[test].mean(), abs=0.005)
    assert {(e["split"], e["subjects"]) for e in simple.values()} == {("test", 27), ("all", 79)}
    for name in ("difference of means", "inverse propensity"):
        assert simple[name]["split"] == "all"
    assert "linear regression, test subjects" in (folder / "metrics.md").read_text("utf-8")
    assert "inverse propensity, all splits" in (folder / "metrics.md").read_text("utf-8")


def row_of_truth(known, under, base=None):
    """ATE, PEHE and errors of images (N, 2, 1, *S) under both arms, subject by subject."""
    both, regions, tau, table = known
    found, errors, inside = [], [], []
    for n in np.flatnonzero(table["split"] == "test"):
        own = table["arm"][n]
        wanted, image = both[n, 1 - own, 0], both[n, own, 0] if base is None else base[n, own, 0]
        drawn = under[n, 1 - own, 0]
        treated, control = (drawn, image) if own == 0 else (image, drawn)
        errors.append(np.abs(drawn - wanted).mean())
        if n != BARE:
            found.append(((treated - control)[regions[n]].mean(), tau[n]))
            inside.append(np.abs(drawn - wanted)[regions[n]].mean())
    effect, exact = np.array(found).T
    return {
        "ate": effect.mean(),
        "pehe": np.sqrt(((effect - exact) ** 2).mean()),
        "counterfactual_mae": np.mean(errors),
        "region_mae": np.mean(inside),
    }


def test_every_method_is_compared_with_the_truth_by_its_own_images(known, evaluated):
    both, regions, tau, table = known
    truth = evaluated[0]["truth"]
    change = both[:, 1] - both[:, 0]
    drawn = np.stack([both[:, 0] + ERROR, both[:, 0] + ERROR + SHARE * change], 1)
    rows, arms = np.arange(N), table["arm"].to_numpy()
    image = both[rows, arms]
    change_asked = SHARE * np.where((arms == 0)[:, None, None, None], change, -change)
    added = np.stack([image + change_asked] * 2, 1)
    train = table["split"] == "train"
    standard = (table["x"] - table["x"][train].mean()) / table["x"][train].std(ddof=0)
    columns = np.stack([standard, np.zeros(N), table["sex"] == "f", table["sex"] == "m"], 1)
    expected = {
        "network": row_of_truth(known, drawn, drawn),
        "image + network's difference": row_of_truth(known, added),
        "no change": row_of_truth(known, np.stack([image] * 2, 1)),
        "ComBat": row_of_truth(known, np.stack(combat(image, arms, columns), 1)),
    }
    for name, entry in expected.items():
        assert truth[name] == pytest.approx(entry, rel=1e-3, abs=1e-6), name
    assert truth["no change"]["ate"] == 0
    test = (table["split"] == "test").to_numpy() & (rows != BARE)
    assert truth["true_ate"] == pytest.approx(tau[test].mean(), rel=1e-4)
    patients = table["id"].to_numpy()
    effects_of = {
        "difference of means": difference_of_means(image, arms),
        "inverse propensity": inverse_propensity(image, arms, columns, patients),
        "linear regression": regression(image, arms, columns),
        "T-learner": t_learner(image, arms, columns),
    }
    for name, effect in effects_of.items():
        moved = np.stack([image - effect, image + effect], 1)
        assert truth[name] == pytest.approx(row_of_truth(known, moved), rel=1e-3), name
        assert truth[name]["ate"] > 0.1


def test_a_map_is_written_for_every_value_of_a_group(known, tmp_path, monkeypatch):
    _, regions, tau, table = known
    metrics = evaluation_of(known, tmp_path, monkeypatch, groups=["sex"]).run()
    levels = metrics["effects"]["1"]["groups"]["sex"]
    assert levels.keys() == {"f", "m"}
    for level, entry in levels.items():
        rows = ((table["split"] == "test") & (table["sex"] == level)).to_numpy()
        path = tmp_path / "eval" / "effect_1" / f"effect_1_mean_sex_{level}.nii.gz"
        expected = (SHARE * tau[rows, None, None] * regions[rows]).mean(0)
        np.testing.assert_allclose(nib.load(path).get_fdata().squeeze(), expected, atol=1e-5)
        rows = rows & (np.arange(N) != BARE)
        assert entry["subjects"] == rows.sum()
        assert entry["ate"] == pytest.approx(SHARE * tau[rows].mean(), rel=1e-4)


def test_attributes_are_measured_in_the_mask_of_the_own_arm(known, tmp_path, monkeypatch):
    given = []

    def report(network, subjects, masks, *_):
        given.append(masks)
        return {"instrument": {}, "arms": {}}

    evaluation_of(known, tmp_path, monkeypatch, measuring=SimpleNamespace(report=report)).run()
    assert torch.equal(given[0], torch.full((N, 1, SIZE, SIZE), 2.0))


def test_a_region_that_nobody_has_is_refused(known, tmp_path, monkeypatch):
    with pytest.raises(CohortError, match=r"region is \[7\], and no mask of the arm 0 has it"):
        evaluation_of(known, tmp_path, monkeypatch, region=[7]).run()
    with pytest.raises(CohortError, match=r"averaged in region \[2\] of the mask"):
        evaluation_of(known, tmp_path, monkeypatch, masks=False).run()


def test_masks_are_everybodys_or_nobodys():
    table = pd.DataFrame({"id": ["a", "b", "c"], "mask": ["m", np.nan, "m"]})
    for region in (None, [2]):
        with pytest.raises(CohortError, match="'mask' has none for 'b'"):
            check_evaluation(table, region)
    check_evaluation(table.assign(mask="m"), [2])
    check_evaluation(table.assign(mask=np.nan))  # the whole image
    check_evaluation(table[["id"]])
    with pytest.raises(CohortError, match="expected a mask of every subject."):
        check_evaluation(table[["id"]], [2])
