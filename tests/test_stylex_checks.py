"""What StylEx refuses to explain, or says of it, and how it names what a classifier says."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from medvae.data import Cohort, CohortError, Factors
from medvae.engines import EditWriter, PrepareAttributes
from medvae.networks import FrozenClassifier
from medvae.networks.stylex import log_probabilities
from medvae.report import ClassifierEvaluation, check_explanation

ROWS = 48


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    names = [f"s{n}" for n in range(ROWS)]
    return pd.DataFrame(
        {
            "id": names,
            "image": __file__,  # which is not read
            "set": ["train", "val", "test"] * (ROWS // 3),
            "dx": ["a", "a", "a", "b", "b", "b"] * (ROWS // 6),
            "grade": [1] * (ROWS // 3) + [2] * (ROWS // 3) + [3] * (ROWS // 3),
            "age": range(ROWS),
        }
    )


@pytest.fixture
def factors(table: pd.DataFrame) -> Factors:
    return labelled(table, {"dx": {}, "grade": {}})


def labelled(table: pd.DataFrame, definitions: dict[str, Any]) -> Factors:
    cohort = Cohort(table, patient=None, split_column="set", check=False, progress=False)
    return Factors(cohort, definitions)


class Stub(nn.Module):
    """A classifier that says what it is told to of the images, by their first pixel's number."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, image: Tensor) -> Tensor:
        return self.logits[(image[:, 0, 0, 0] * 1000).round().long()]


def evaluation(
    factors: Factors, logits: Tensor, heads: dict[str, int], folder: Any, **options: Any
) -> ClassifierEvaluation:
    """Of the test subjects, in two batches."""
    table = factors.cohort.subjects
    images = (torch.arange(int((table["split"] == "test").sum())) / 1000).reshape(-1, 1, 1, 1)
    batches = [{"image": part} for part in images.expand(-1, 1, 4, 4).split(10)]
    return ClassifierEvaluation(
        FrozenClassifier(Stub(logits), heads, "logits"),
        factors,
        batches,
        PrepareAttributes(label=False),
        folder,
        n_resamples=20,
        n_permutations=20,
        **options,
    )


def truth(factors: Factors, name: str) -> Tensor:
    table = factors.cohort.subjects
    values = factors.values(table[table["split"] == "test"])[:, factors.names.index(name)]
    return torch.tensor(values).long()


def noise(rows: int, columns: int) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))


def test_a_weak_classifier_is_told_from_a_good_one(factors: Factors, tmp_path: Any) -> None:
    classes = truth(factors, "dx")
    good = nn.functional.one_hot(classes, 2) * 4.0 + 0.1 * noise(len(classes), 2)
    entry = evaluation(factors, good, {"dx": 2}, tmp_path).run()["heads"]["dx"]
    assert entry["worth_explaining"]
    assert entry["auc"]["value"] == 1
    assert "weak" not in entry["verdict"]
    swapped = good.clone()  # right of three in four, of both classes: 0.75
    for number in (0, 1):
        rows = torch.nonzero(classes == number)[:, 0]
        swapped[rows[::4]] = good[rows[::4]].flip(1)
    entry = evaluation(factors, swapped, {"dx": 2}, tmp_path).run()["heads"]["dx"]
    assert 0.5 < entry["auc"]["value"] < 0.8
    assert not entry["worth_explaining"]
    assert "below 0.8: it is too weak to be worth explaining" in entry["verdict"]
    assert "classifier_scale" in entry["verdict"]


def test_the_head_to_explain_must_predict_two_classes(factors: Factors, tmp_path: Any) -> None:
    classes = truth(factors, "dx")
    varied = nn.functional.one_hot(classes, 2) * 4.0 + 0.1 * noise(len(classes), 2)
    constant = torch.tensor([[0.0, 9.0, 0.0]]) + noise(len(classes), 3)
    heads = {"dx": 2, "grade": 3}
    report = evaluation(factors, torch.cat([varied, constant], 1), heads, tmp_path).run()
    assert report["heads"]["grade"]["predicted"] == [0, len(classes), 0]  # said of another head
    (tmp_path / "classifier.json").unlink()
    asked = evaluation(factors, torch.cat([varied, constant], 1), heads, tmp_path, task="grade")
    with pytest.raises(CohortError, match=f"class 1 of 'grade' for all {len(classes)} test images"):
        asked.run()
    first = evaluation(factors, torch.cat([constant[:, :2], constant], 1), heads, tmp_path)
    with pytest.raises(CohortError, match="class 1 of 'dx' for all"):
        first.run()
    assert not (tmp_path / "classifier.json").exists()


def test_a_table_that_is_sorted_by_class_is_checked_throughout(
    table: pd.DataFrame, tmp_path: Any
) -> None:
    factors = labelled(table.sort_values("dx"), {"dx": {}})
    logits = 4.0 * truth(factors, "dx")[:, None] + 0.5  # 0.5 of the first half, in [0, 1]
    logits = logits + torch.linspace(0, 0.4, len(logits))[:, None] - 2 * (logits > 1)
    logits[-1] = -1.0
    assert evaluation(factors, logits, {"dx": 1}, tmp_path).run()["images"] == len(logits)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"task": "dxx"}, "^task is 'dxx', which is no head; did you mean 'dx'"),
        ({"covariates": ["sex"]}, "^The covariate 'sex' is not in the table; expected cov.*'age'"),
        ({"confounders": ["age"]}, "^The confounder 'age' is neither a covariate nor a head; exp"),
        ({"heads": {"grade": 2}}, r"'grade' has 2 output\(s\) and its labels are the 3 classes"),
        ({"heads": {"grade": 1}}, r"'grade' has 1 output\(s\) and its labels are the 3 classes"),
        (
            {"heads": {"dx": 3}},
            r"'dx' has 3 output\(s\) and its labels are the 2 classes \['a', 'b",
        ),
        ({"factors": {"age": {"kind": "continuous"}}, "heads": {"age": 1}}, "'age' is continuous"),
        ({"measured": ["sphericity"]}, "^Column 'mask' has none for 's0'.*measured.*'sphericity'"),
        ({"task": "grade", "covariates": ["age"], "confounders": ["age", "dx"]}, None),
        ({"heads": {"dx": 1, "unlabelled": 5}, "task": "unlabelled"}, None),
    ],
)
def test_what_cannot_be_explained_is_said_in_a_sentence(
    table: pd.DataFrame, options: dict[str, Any], sentence: str | None
) -> None:
    options = {"heads": {"dx": 2, "grade": 3}} | options
    factors = labelled(table, options.pop("factors", {"dx": {}, "grade": {}}))
    if sentence is None:
        check_explanation(factors, **options)
        return
    with pytest.raises(CohortError, match=sentence):
        check_explanation(factors, **options)


def test_probabilities_stand_under_their_own_heads(tmp_path: Any) -> None:
    # the classifier's order is not that of the labels, and one of its heads has none
    heads = {"grade": 3, "unlabelled": 2, "dx": 1}
    classes: dict[str, tuple[str | int, ...]] = {"dx": ("a", "b"), "grade": (1, 2, 5), "other": ()}
    image = noise(2, 16).reshape(2, 1, 4, 4)
    logits = noise(2, 6)
    writer = EditWriter(
        tmp_path / "p.csv", lambda x: x.flatten(1)[:, :6], heads, classes, ["again"]
    )
    state = SimpleNamespace(output={"edits": image, "logits": logits}, batch={"id": ["x", "y"]})

    def probabilities(logits: Tensor) -> Tensor:
        return torch.cat(
            [log_probabilities(p).exp() for p in logits.split(list(heads.values()), 1)], 1
        )

    engine: Any = SimpleNamespace(state=state, network=SimpleNamespace(probabilities=probabilities))
    rows = writer.rows(engine)
    names = ["grade_1", "grade_2", "grade_5", "unlabelled_0", "unlabelled_1", "dx_a", "dx_b"]
    assert list(rows[0]) == ["id", "image", *(f"probability_{name}" for name in names)]
    assert [(row["id"], row["image"]) for row in rows[:2]] == [("x", "image"), ("x", "again")]
    assert rows[0]["probability_dx_b"] == pytest.approx(logits[0, 5].sigmoid().item(), abs=1e-6)
    grade = logits[0, :3].softmax(0)[2].item()
    assert rows[0]["probability_grade_5"] == pytest.approx(grade, abs=1e-6)


def test_subjects_without_a_mask_are_named_where_attributes_are_measured(
    table: pd.DataFrame,
) -> None:
    masked = table.assign(mask=table["image"])
    factors = labelled(masked, {"dx": {}})
    check_explanation(factors, {"dx": 2}, measured=["sphericity"])
    masked.loc[7, "mask"] = None
    with pytest.raises(CohortError, match="has none for 's7'; expected a mask of every subject"):
        check_explanation(labelled(masked, {"dx": {}}), {"dx": 2}, measured=["sphericity"])
