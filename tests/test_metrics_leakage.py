"""Leakage on codes whose content is known."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score, r2_score, recall_score
from sklearn.neighbors import KNeighborsClassifier

from medvae.metrics import Sample, dependence_report, knn_leakage, leakage_matrix, leakage_report
from medvae.metrics.balance import balanced_draws, balanced_weights, cells, levels
from medvae.metrics.probes import PROBES, mean_recall, r2
from medvae.report import plot_embeddings, plot_leakage

PARTS = {"a": slice(0, 3), "c": slice(3, 6), "free": slice(6, 8)}
KINDS = {"a": "categorical", "c": "categorical"}
FAST = {"n_permutations": 20, "n_resamples": 50, "draws": 1}


@pytest.fixture
def _without_boosting(monkeypatch):
    """Most of the time is its; what is not about probes does not need it."""
    monkeypatch.delitem(PROBES, "nonlinear")


def cohort(rows, confounding, leak, seed):
    """Two factors of three classes; c = a with a given probability, and a's subspace leaks c."""
    rng = np.random.default_rng(seed)
    a = rng.integers(3, size=rows)
    c = np.where(rng.random(rows) < confounding, a, rng.integers(3, size=rows))
    codes = 0.5 * rng.normal(size=(rows, 8))
    corners = np.eye(3)
    codes[:, :3] += 2 * corners[a] + leak * corners[c]
    codes[:, 3:6] += 2 * corners[c]
    return Sample(codes, np.column_stack([a, c]).astype(float))


# neighbours


@given(
    rows=st.integers(2, 40), dims=st.integers(1, 5), k=st.integers(1, 12), seed=st.integers(0, 99)
)
@settings(max_examples=30, deadline=None)
def test_knn_equals_scikit_learn(rows, dims, k, seed):
    rng = np.random.default_rng(seed)
    bank, codes = rng.normal(size=(rows, dims)), rng.normal(size=(25, dims))
    votes, labels = rng.integers(3, size=rows), rng.integers(3, size=25)
    said = KNeighborsClassifier(min(k, rows), algorithm="brute").fit(bank, votes).predict(codes)
    found = knn_leakage(bank, votes, codes, labels, k, n_permutations=0)
    assert found.accuracy == pytest.approx(np.mean(said == labels))
    assert found.neighbours == min(k, rows)
    if np.unique(labels).size > 1:
        assert found.kappa == pytest.approx(cohen_kappa_score(labels, said))
        recall = recall_score(labels, said, labels=np.unique(labels), average="macro")
        assert found.balanced_accuracy == pytest.approx(recall)


def test_knn_remembers_the_bank_breaks_ties_and_ignores_missing_labels():
    rng = np.random.default_rng(0)
    codes, labels = 1e6 + rng.normal(size=(50, 3)), rng.integers(4, size=50).astype(float)
    assert knn_leakage(codes, labels, codes, labels, k=1).accuracy == 1
    # a point with a masked label is nearest, and must neither vote nor count
    bank, votes = [[0.0], [1.0], [2.0]], [np.nan, 1, -1]
    found = knn_leakage(bank, votes, [[0.0], [2.0], [2.0]], [1, 1, np.nan], k=1)
    assert (found.accuracy, found.neighbours, found.chance) == (1, 1, 1)
    tie = knn_leakage([[-1.0], [1.0]], [3, 2], [[0.0], [0.0]], [2, 3], k=2)
    assert tie.accuracy == 0.5
    assert tie.chance == 0.5  # of the bank's most frequent class, the lowest: 2


def test_knn_of_independent_codes_is_chance():
    rng = np.random.default_rng(1)
    found = knn_leakage(
        rng.normal(size=(500, 4)),
        rng.random(500) < 0.8,
        rng.normal(size=(500, 4)),
        rng.random(500) < 0.8,
    )
    assert abs(found.accuracy - found.chance) < 0.02
    assert abs(found.kappa) < 0.1
    assert found.accuracy <= found.permuted_p95
    assert found.balanced_chance == 0.5


def test_knn_names_bad_input():
    codes, labels = np.zeros((4, 2)), np.zeros(4)
    with pytest.raises(ValueError, match="equally many"):
        knn_leakage(codes, labels, codes[:, :1], labels)
    with pytest.raises(ValueError, match="k of 1 or more"):
        knn_leakage(codes, labels, codes, labels, k=0)
    with pytest.raises(ValueError, match="row 0 is NaN"):
        knn_leakage(codes * np.nan, labels, codes, labels)
    with pytest.raises(ValueError, match="0 of the test rows"):
        knn_leakage(codes, labels, codes, labels - 1)
    with pytest.raises(ValueError, match="whole numbers"):
        knn_leakage(codes, labels + 0.5, codes, labels)
    with pytest.raises(ValueError, match=r"expected \(N, D\)"):
        knn_leakage(codes, labels[:3], codes, labels)


# scores


@given(rows=st.integers(2, 30), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_weighted_scores_equal_scikit_learn(rows, seed):
    rng = np.random.default_rng(seed)
    labels, said = rng.integers(3, size=(2, rows)).astype(float)
    weights = rng.integers(0, 3, size=(1, rows)).astype(float)
    kept = np.repeat(np.arange(rows), weights[0].astype(int))
    found = mean_recall(labels, said[None], weights)[0]
    if np.unique(labels[kept]).size < 2:
        assert np.isnan(found)
    else:
        classes = np.unique(labels[kept])
        expected = recall_score(labels[kept], said[kept], labels=classes, average="macro")
        assert found == pytest.approx(expected)
    y, guess = rng.normal(size=(2, rows))
    if np.unique(kept).size > 1:
        assert r2(y, guess[None], weights)[0] == pytest.approx(r2_score(y[kept], guess[kept]))


@pytest.mark.parametrize("probe", PROBES)
def test_probes_are_deterministic_and_read_numbers_and_classes(probe):
    rng = np.random.default_rng(0)
    x, x_new = rng.normal(size=(2, 200, 3))
    read = PROBES[probe]
    said = read(x, (x[:, 0] > 0) * 2.0, x_new, False)
    assert np.mean(said == (x_new[:, 0] > 0) * 2) > 0.85
    np.testing.assert_array_equal(said, read(x, (x[:, 0] > 0) * 2.0, x_new, False))
    assert r2_score(x_new[:, 0], read(x, x[:, 0], x_new, True)) > 0.7


# balance


@given(rows=st.integers(1, 80), least=st.integers(1, 3), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_balanced_draws_make_factors_independent(rows, least, seed):
    rng = np.random.default_rng(seed)
    target, others = rng.integers(3, size=rows) * 1.0, rng.integers(2, size=(rows, 2)) * 1.0
    target[rng.random(rows) < 0.1] = np.nan
    others[rng.random((rows, 2)) < 0.1] = np.nan
    found = cells(target, others, least)
    for drawn in balanced_draws(found, 3, seed):
        table = np.column_stack([target, others])[drawn]
        assert not np.isnan(table).any()
        assert np.unique(drawn).size == drawn.size
        counts = np.unique(table, axis=0, return_counts=True)[1]
        assert len(counts) == len(found.rows)
        assert counts.min() == counts.max() >= least
    weights = balanced_weights(found, rows)
    assert weights.sum() == pytest.approx(len(found.rows))
    for label in np.unique(target[weights > 0]):
        assert weights[target == label].sum() == pytest.approx(found.strata)


def test_strata_without_a_class_are_left_out():
    target = np.array([0, 1, 0, 1, 0, 0, 1, np.nan])
    other = np.array([0, 0, 0, 0, 1, 1, np.nan, 0])
    found = cells(target, other[:, None])
    assert (found.strata, found.left_out) == (1, 1)
    assert sorted(np.concatenate(found.rows)) == [0, 1, 2, 3]
    assert not list(balanced_draws(cells(target, other[:, None], least=3), 5))
    np.testing.assert_array_equal(levels([1, 5, 9, np.nan], np.arange(9.0)), [0, 1, 2, np.nan])
    assert np.isnan(levels([1.0], [np.nan])).all()


# the matrix


@pytest.fixture(scope="module")
def planted():
    bank, test = cohort(600, 0.8, 1.0, 0), cohort(400, 0.0, 1.0, 1)
    site = ["north" if i % 3 else "south" for i in range(398)] + [None, "tiny"]
    return leakage_report(bank, test, PARTS, KINDS, groups={"site": site}, **FAST)


def test_planted_leakage_is_hidden_by_a_confounded_bank_and_found_by_a_balanced_one(planted):
    natural, balanced = (planted["matrix"][bank]["a"]["c"] for bank in ("natural", "balanced"))
    assert natural["knn"]["accuracy"] < balanced["knn"]["accuracy"] - 0.05
    assert natural["best"]["points"] < balanced["best"]["points"] - 4
    assert balanced["best"]["points"] > 20
    assert balanced["best"]["points"] > balanced["best"]["chance_p95"] + 15
    assert balanced["best"]["low"] < balanced["best"]["points"] < balanced["best"]["high"]
    for subspace in ("c", "free"):
        clean = planted["matrix"]["balanced"][subspace]["a"]["best"]
        assert abs(clean["points"]) < 8
    assert planted["banks"]["balanced"]["c"]["strata"] == 3


def test_summary_groups_and_ranks_name_the_worst(planted):
    summary = planted["summary"]["balanced"]
    assert summary["own"]["mean"]["points"] > 60
    worst = summary["cross"]["worst"]
    assert (worst["subspace"], worst["factor"]) == ("a", "c")
    both = [planted["matrix"]["balanced"][s][f]["best"]["points"] for s, f in ("ac", "ca")]
    assert summary["cross"]["mean"]["points"] == pytest.approx(np.mean(both))
    site = planted["groups"]["site"]
    assert site["levels"]["tiny"] == {"rows": 1, "too_small": True}
    assert (site["missing"], site["levels"]["south"]["rows"]) == (1, 133)
    assert site["worst"]["cross"]["level"] in ("north", "south")
    assert (site["worst"]["cross"]["subspace"], site["worst"]["cross"]["factor"]) == ("a", "c")
    assert planted["dependence"]["effective_rank"]["a"]["demand"] == 1.5
    assert planted["dependence"]["effective_rank"]["free"]["demand"] is None
    json.dumps(planted, allow_nan=False)


@pytest.mark.usefixtures("_without_boosting")
def test_weak_subgroup_is_found():
    bank, test = cohort(300, 0.0, 0.0, 0), cohort(300, 0.0, 0.0, 1)
    site = np.arange(300) % 2
    codes = np.array(test.codes)
    codes[site == 1, :3] = np.random.default_rng(3).permutation(codes[site == 1, :3])
    test = test._replace(codes=codes)
    report = leakage_matrix(bank, test, PARTS, KINDS, groups={"site": site}, **FAST)
    worst = report["groups"]["site"]["worst"]["own"]
    assert (worst["level"], worst["subspace"]) == ("1", "a")
    assert worst["points"] < 15


@pytest.mark.usefixtures("_without_boosting")
def test_same_seed_same_report_and_test_rows_can_be_balanced():
    bank, test = cohort(300, 0.5, 1.0, 0), cohort(200, 0.8, 1.0, 1)
    options = {"n_permutations": 0, "n_resamples": 0, "draws": 2, "balance_test": True}
    first = leakage_matrix(bank, test, PARTS, KINDS, **options)
    assert first == leakage_matrix(bank, test, PARTS, KINDS, **options)
    entry = first["matrix"]["balanced"]["a"]["c"]
    # with equal cells every class weighs the same
    assert entry["knn"]["accuracy"] == pytest.approx(entry["knn"]["balanced_accuracy"])
    assert first["chance"]["balanced"]["c"]["accuracy"] == pytest.approx(1 / 3)
    assert entry["best"]["low"] is None
    assert entry["best"]["chance"] is None


@pytest.mark.usefixtures("_without_boosting")
def test_continuous_factors_are_read_by_r2_and_balanced_by_thirds(tmp_path):
    samples = []
    for seed in (0, 1):
        sample = cohort(300, 0.8, 0.0, seed)
        volume = sample.codes[:, 6] + (sample.factors[:, 0] == 2)
        samples.append(sample._replace(factors=np.column_stack([sample.factors, volume])))
    kinds = {**KINDS, "volume": "continuous"}
    # a pool without confounding: the bank's own rare cells would be too small
    pool = cohort(900, 0.0, 0.0, 2)
    volume = pool.codes[:, 6] + np.random.default_rng(0).normal(size=900)
    pool = pool._replace(factors=np.column_stack([pool.factors, volume]))
    report = leakage_matrix(*samples, PARTS, kinds, pool=pool, **FAST)
    assert report["matrix"]["natural"]["free"]["volume"]["linear"]["r2"] > 0.1
    assert report["matrix"]["natural"]["a"]["volume"]["best"]["points"] > 25
    assert report["matrix"]["balanced"]["a"]["volume"]["best"]["points"] < 10
    assert report["chance"]["natural"]["volume"] == {"r2": 0.0}
    narrow = leakage_matrix(
        *samples, PARTS, kinds, balance={"a": ["c"], "c": [], "volume": ["a"]}, **FAST
    )
    assert narrow["banks"]["balanced"]["c"]["strata"] == 1
    picture = plot_leakage(report, tmp_path / "leakage.png")
    assert picture.stat().st_size > 5000


@pytest.mark.usefixtures("_without_boosting")
def test_what_cannot_be_measured_says_why():
    bank, test = cohort(120, 0.5, 0.0, 0), cohort(80, 0.0, 0.0, 1)
    factors = np.array(bank.factors)
    one, unknown, absent = factors.copy(), factors.copy(), factors.copy()
    one[:, 0], unknown[:, 0] = 2, np.nan
    absent[absent[:, 0] == 2, 0] = -1
    for table, message in ((one, "all labels of the bank are class 2"), (unknown, "no label")):
        report = leakage_matrix(bank._replace(factors=table), test, PARTS, KINDS, **FAST)
        for which in ("natural", "balanced"):
            entry = report["matrix"][which]["c"]["a"]
            assert message in entry["reason"]
            assert entry["best"]["points"] is entry["knn"] is report["chance"][which]["a"] is None
            assert report["summary"][which]["own"]["worst"]["factor"] == "c"
        json.dumps(report, allow_nan=False)
    report = leakage_matrix(bank._replace(factors=absent), test, PARTS, KINDS, **FAST)
    assert report["factors"]["a"]["absent_from_bank"] == ["2"]
    assert report["matrix"]["natural"]["a"]["a"]["knn"]["balanced_accuracy"] < 0.7
    report = leakage_matrix(bank, test, PARTS, KINDS, least_cell=1000, **FAST)
    assert "1000 row(s) of every class in the bank" in report["banks"]["balanced"]["a"]["reason"]
    assert report["summary"]["balanced"]["cross"]["mean"]["points"] is None


@pytest.mark.usefixtures("_without_boosting")
def test_few_rows_and_constant_codes_are_chance():
    bank, test = cohort(24, 0.0, 0.0, 0), cohort(30, 0.0, 0.0, 1)
    report = leakage_matrix(bank, test, PARTS, KINDS, least_cell=1, **FAST)
    assert report["banks"]["natural"]["a"]["neighbours"] == 24
    assert report["matrix"]["natural"]["a"]["a"]["knn"]["points"] == pytest.approx(0)
    constant = [s._replace(codes=np.ones((len(s.codes), 8))) for s in (bank, test)]
    report = leakage_report(*constant, PARTS, KINDS, least_cell=1, **FAST)
    assert report["matrix"]["natural"]["a"]["a"]["best"]["points"] == pytest.approx(0)
    assert report["dependence"]["effective_rank"]["a"]["value"] == 0
    assert report["dependence"]["effective_rank"]["a"]["met"] is False


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"subspaces": {}}, "found none"),
        ({"subspaces": {"a": slice(2, 2)}}, "not empty"),
        ({"subspaces": {"a": slice(0, 9)}}, "8 dimensions"),
        ({"subspaces": {"whole": slice(0, 2)}}, "another name"),
        ({"kinds": {"a": "categorical"}}, "the 1 factors"),
        ({"kinds": {"a": "nominal", "c": "ordinal"}}, "'a' is 'nominal'"),
        ({"balance": {"a": ["b"]}}, "expected others of the factors"),
        ({"balance": {"b": ["a"]}}, "expected others of the factors"),
        ({"groups": {"site": [1, 2]}}, "'site' has 2 values"),
        ({"test": cohort(30, 0, 0, 1)._replace(codes=np.ones((30, 7)))}, r"\[7, 8\] dimensions"),
        ({"test": cohort(30, 0, 0, 1)._replace(codes=np.full((30, 8), np.nan))}, "row 0 is NaN"),
        ({"bank": cohort(30, 0, 0, 1)._replace(factors=np.full((30, 2), 0.5))}, "class 0.5"),
        ({"bank": cohort(30, 0, 0, 1)._replace(factors=np.full((30, 2), np.inf))}, "infinite"),
    ],
)
def test_matrix_names_bad_input(change, message):
    given = {"bank": cohort(30, 0, 0, 0), "test": cohort(30, 0, 0, 1), "subspaces": PARTS}
    with pytest.raises(ValueError, match=message):
        leakage_matrix(**{**given, "kinds": KINDS, "n_permutations": 0, "draws": 1, **change})


# dependence


def test_dependence_stands_beside_its_floor_and_ranks_beside_their_demand():
    rng = np.random.default_rng(0)
    codes = rng.normal(size=(70, 20))
    codes[:, 16:18] = codes[:, :2]
    parts = {"dx": slice(0, 4), "scanner": slice(4, 16), "copy": slice(16, 18)}
    parts["flat"] = slice(18, 19)
    report = dependence_report(codes, parts, {"dx": 4, "scanner": 2, "flat": 3}, 30)
    pair = report["pairs"]["dx|scanner"]
    assert pair["biased"]["floor"] == pytest.approx(0.512, abs=0.02)  # specification, 70 x 4 x 12
    assert pair["bias_corrected"]["floor"] == pytest.approx(0, abs=0.015)
    assert pair["biased"]["value"] < pair["biased"]["floor_p95"] + 0.05
    same = report["pairs"]["dx|copy"]["bias_corrected"]
    assert same["value"] > 5 * same["floor_p95"]
    ranks = report["effective_rank"]
    assert (ranks["dx"]["demand"], ranks["dx"]["met"]) == (2.25, True)
    assert (ranks["scanner"]["demand"], ranks["flat"]["met"]) == (None, False)
    with pytest.raises(ValueError, match="N >= 4"):
        dependence_report(codes[:3], parts)
    assert dependence_report(codes, parts, n_permutations=0)["pairs"]["dx|copy"]["biased"]


# pictures


@pytest.mark.parametrize("rows", [5, 60])
def test_every_subspace_is_drawn_whatever_its_size(rows, tmp_path):
    rng = np.random.default_rng(0)
    codes = rng.normal(size=(rows, 7))
    codes[:, 3:6] = 1.0
    parts = {"line": slice(0, 1), "plane": slice(0, 2), "flat": slice(3, 6), "free": slice(0, 7)}
    factors = np.column_stack([rng.integers(10, size=rows), rng.normal(size=rows)])
    factors[0] = np.nan
    kinds = {"site": "categorical", "age": "continuous"}
    path = plot_embeddings(codes, parts, factors, kinds, tmp_path / "codes.png")
    assert path.stat().st_size > 5000
    with pytest.raises(ValueError, match="N >= 5"):
        plot_embeddings(codes[:4], parts, factors[:4], kinds, path)
