"""Agreement of raters beside published examples, and at chance."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from medvae.data import CohortError
from medvae.metrics import (
    agreement_report,
    associations,
    co_acting,
    fleiss_kappa,
    krippendorff_alpha,
    mean_with_interval,
)
from medvae.report import merge_answers
from medvae.report.__main__ import main
from medvae.report.stylex_flags import flag_confounders
from medvae.report.stylex_judge import covariate_classes

FLEISS = [  # 14 raters, 10 items, 5 categories (Fleiss 1971)
    [0, 0, 0, 0, 14],
    [0, 2, 6, 4, 2],
    [0, 0, 3, 5, 6],
    [0, 3, 9, 2, 0],
    [2, 2, 8, 1, 1],
    [7, 7, 0, 0, 0],
    [3, 2, 6, 3, 0],
    [2, 5, 3, 2, 2],
    [6, 5, 2, 1, 0],
    [0, 2, 2, 3, 7],
]
_ = np.nan
KRIPPENDORFF = [  # 4 raters, 12 items (Krippendorff 2011)
    [1, 2, 3, 3, 2, 1, 4, 1, 2, _, _, _],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, _, 3],
    [_, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, _],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, _],
]


def test_kappa_is_that_of_the_published_example():
    assert fleiss_kappa(FLEISS) == pytest.approx(0.210, abs=5e-4)
    assert fleiss_kappa([[3, 0], [0, 3]]) == 1
    assert np.isnan(fleiss_kappa([[3, 0], [3, 0]]))
    with pytest.raises(ValueError, match="from 1 to 3 ratings"):
        fleiss_kappa([[3, 0], [0, 1]])


@pytest.mark.parametrize(
    ("level", "expected"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)]
)
def test_alpha_is_that_of_the_published_example(level, expected):
    assert krippendorff_alpha(KRIPPENDORFF, level) == pytest.approx(expected, abs=5e-4)
    same = np.tile(np.arange(6.0), (3, 1))
    assert krippendorff_alpha(same, level) == 1
    assert np.isnan(krippendorff_alpha(np.ones((2, 4)), level))


def test_alpha_and_kappa_are_0_by_chance_and_the_report_says_so():
    rng = np.random.default_rng(0)
    ratings = rng.integers(0, 4, size=(5, 400)).astype(float)
    assert abs(krippendorff_alpha(ratings)) < 0.05
    report = agreement_report(ratings[:, :40], n_resamples=50, n_permutations=50)
    for name in ("alpha", "kappa"):
        entry = report[name]
        assert entry["low"] < 0.1
        assert entry["value"] < entry["chance_high"] + 0.1
    ratings[0, 0] = np.nan
    assert agreement_report(ratings, n_resamples=3, n_permutations=3)["kappa"] is None


def answers(expert, judgements, **changes):
    rows = [
        {"attribute": n, "coordinate": 10 * n, "direction": "up", "judgement": word}
        | {"confidence": 3, "hypothesis": "h", "notes": ""}
        for n, word in enumerate(judgements, start=1)
    ]
    return {"report": "abc", "expert": expert, "field": "", "answers": rows} | changes


def test_answers_are_merged_with_their_agreement(tmp_path):
    words = ["known", "confounder", "novel", "artefact"]
    paths = []
    for expert, given in {"A": words, "B": words, "C": [*words[:3], None]}.items():
        paths.append(tmp_path / f"{expert}.json")
        paths[-1].write_text(json.dumps(answers(expert, given)))
    main(["--answers", *map(str, paths), "--output", str(tmp_path / "merged")])
    merged = json.loads((tmp_path / "merged.json").read_text())
    assert merged["experts"] == ["A", "B", "C"]
    assert merged["attributes"]["4"] == {"known": 0, "confounder": 0, "artefact": 2, "novel": 0}
    assert merged["agreement"]["judgement"]["alpha"]["value"] == 1
    assert merged["agreement"]["judgement"]["kappa"] is None  # one has not answered all
    assert len((tmp_path / "merged.csv").read_text().splitlines()) == 13
    one = merge_answers(paths[:1], tmp_path / "one")
    assert one["agreement"]["judgement"] is None


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"report": "xyz"}, "of another report"),
        ({"expert": "A"}, "comes twice"),
        ({"answers": [{"attribute": 1}]}, "cannot be read"),
        ({"answers": answers("B", ["sign"])["answers"]}, "cannot be read .ValueError: sign"),
    ],
)
def test_answers_that_do_not_belong_together_are_refused(change, sentence, tmp_path):
    first, second = tmp_path / "a.json", tmp_path / "b.json"
    first.write_text(json.dumps(answers("A", ["known"])))
    second.write_text(json.dumps(answers("B", ["known"]) | change))
    with pytest.raises(CohortError, match=sentence):
        merge_answers([first, second], tmp_path / "out")


def test_associations_find_what_goes_along_and_not_what_only_goes_with_the_class():
    rng = np.random.default_rng(0)
    n = 300
    label = rng.integers(0, 2, n)
    size = rng.normal(size=n) + 2 * label
    noise = rng.normal(size=n)
    x = np.stack([np.exp(size + 0.3 * rng.normal(size=n)), label + rng.normal(size=n), noise], 1)
    site = np.array(["a", "b", "c"])[np.digitize(noise, [-0.5, 0.5])]
    missing = [None if k % 7 == 0 else v for k, v in enumerate(size)]
    covariates = {"size": missing, "site": list(site), "constant": [1.0] * n}
    alone = associations(x, covariates, n_permutations=50)
    within = associations(x, covariates, label, n_permutations=50)
    assert alone["values"]["size"][0] > 0.9
    assert within["values"]["size"][0] > 0.8
    assert alone["values"]["size"][1] > alone["chance"]  # by the class alone
    assert abs(within["values"]["size"][1]) < within["chance"]
    assert alone["values"]["site"][2] > 0.8
    assert alone["values"]["constant"] == [None] * 3
    turned = associations(-x, covariates, n_permutations=0)
    assert turned["values"]["size"][0] == pytest.approx(-alone["values"]["size"][0])


def test_coordinates_that_do_the_same_are_one_group():
    rng = np.random.default_rng(0)
    places, logits = rng.normal(size=(3, 64)), rng.normal(size=(3, 40))
    maps = np.stack([places[0], -2 * places[0], places[1], places[0]])
    changes = np.stack([logits[0], -logits[0], logits[1], logits[2]])
    assert co_acting(maps, changes) == [0, 0, 1, 2]


def test_means_have_an_interval_over_patients():
    values = np.repeat([0.0, 1.0], 50)
    report = mean_with_interval(values, np.arange(100), 200)
    assert report["low"] < 0.5 < report["high"]
    two = mean_with_interval(values, values, 200)  # two patients: wide
    assert two["high"] - two["low"] == 1
    assert mean_with_interval([np.nan])["value"] is None


def entry(moved, shift, association):
    def said(value):
        return {"value": value, "low": value - 0.1, "high": value + 0.1, "chance": 0.2}

    return {
        "moves": {"site": said(moved) | {"beyond_random": moved > 0.2}},
        "heads": {
            "dx": {"task": True, "shift_sd": said(2.0), "chance_sd": 0.2, "beyond_random": True},
            "sex": {"task": False, "shift_sd": said(shift), "chance_sd": 0.2}
            | {"beyond_random": shift > 0.2},
        },
        "associations": {"site": {"value": 0.9, "given_class": association}},
    }


def test_a_confounder_is_flagged_with_its_evidence_and_the_task_is_not():
    report = {
        "task": "dx",
        "judge": {"site": {"images": 0.5, "reconstructions": 0.9}},
        "association_chance": {"value": 0.1, "given_class": 0.2},
        "attributes": [entry(0.8, 0.0, 0.0), entry(0.0, 0.9, 0.5), entry(0.0, 0.0, 0.1)],
    }
    flag_confounders(report, ["site", "sex", "dx"])
    first, second, third = (e["confounder_candidates"] for e in report["attributes"])
    assert [(f["name"], f["strong"]) for f in first] == [("site", True)]
    assert "+0.80 SD" in first[0]["evidence"][0]
    assert [(f["name"], f["strong"]) for f in second] == [("site", False), ("sex", True)]
    assert third == []  # what goes along with the class alone is no evidence
    report["judge"]["site"] = {"images": 0.9, "reconstructions": 0.6}  # a judge that cannot read it
    flag_confounders(report, ["site"])
    assert report["attributes"][0]["confounder_candidates"] == []


def test_the_judge_knows_the_rows_that_made_confounding_leaves_out():
    pool = pd.DataFrame(
        {
            "id": list("abcdefgh"),
            "split": ["train"] * 6 + ["test"] * 2,
            "site": ["x", "y", "x", "y", None, "x", "y", "x"],
            "age": [10.0, 20.0, 30.0, 40.0, 50.0, 60.0, np.nan, 70.0],
            "constant": [1.0] * 8,
        }
    )
    factors = SimpleNamespace(
        pool=SimpleNamespace(subjects=pool), cohort=SimpleNamespace(subjects=pool[::2])
    )
    run = SimpleNamespace(factors=factors, covariates=("site", "age", "constant"))
    labels = covariate_classes(run)
    assert list(labels) == ["site", "age"]
    np.testing.assert_array_equal(labels["site"].to_numpy(), [0, 1, 0, 1, np.nan, 0, 1, 0])
    np.testing.assert_array_equal(labels["age"].to_numpy(), [0, 1, 2, 3, 4, 4, np.nan, 4])
