"""The numbers of a search's report, on generators whose causes are planted and known exactly."""

from __future__ import annotations

import json
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from test_attfind import COORDINATES, Planted, seeded
from torch import nn

from medvae.data import CohortError
from medvae.metrics import EditChanges, associations, attribute_stability, roc_auc
from medvae.networks.stylex import log_probabilities
from medvae.report import ClassifierEvaluation, StylexSearch, compare_attributes
from medvae.report.__main__ import main
from medvae.report.page.panel import chosen_pairs, panel_page
from medvae.report.panel_pdf import write_panel_pdf
from medvae.report.stylex_effects import random_edits
from medvae.report.stylex_flips import flip_report
from medvae.report.stylex_judge import Judge

SCALE = 0.15  # of the patterns in images: none leaves [0, 1]
TWO = {7: 3.0, 40: -1.5, 3: 0.8}  # weights of a binary head


class Planting(Planted):
    """`Planted` with a code that is the styles, in [0, 1] after `shown`."""

    def styles(self, w):
        return w[:, :COORDINATES]

    def synthesis(self, w):
        return self.synthesis_from_styles(self.styles(w))

    def synthesis_from_styles(self, styles):
        return 2 * SCALE * super().synthesis_from_styles(styles)


class Stub(nn.Module):
    """What a search asks of `StylEx`; the reconstruction is exact."""

    latent_dim = COORDINATES

    def __init__(self, heads):
        super().__init__()
        self.heads, self.generator = heads, Planting(2)
        self.discriminator = lambda image, shares: image.flatten(1).mean(1, keepdim=True)

    def probabilities(self, logits):
        parts = logits.split(list(self.heads.values()), 1)
        return torch.cat([log_probabilities(part).exp() for part in parts], 1)

    def encode(self, image, shares):
        code = (image - 0.5).flatten(1) @ self.generator.patterns.flatten(1).T / SCALE
        return torch.cat([code, shares], 1)

    def images(self, styles):
        return (self.generator.synthesis_from_styles(styles) + 1) / 2

    def decode(self, w):
        return self.images(self.generator.styles(w))


def codes(count, seed):
    return torch.rand(count, COORDINATES, generator=seeded(seed)) * 2 - 1


class Case:
    """A search on 60 subjects and 150 others; the classifier reads `weights` (O, S) of the code."""

    def __init__(self, heads, weights, folder, seed=0, generator_seed=None, **options):
        self.weights = weights
        network = Stub(heads)
        if generator_seed is not None:  # the same images by other coordinates
            order = torch.randperm(COORDINATES, generator=seeded(generator_seed))
            network.generator.patterns = network.generator.patterns[order]
        patterns = Planted(2).patterns.flatten(1)
        self.classifier = lambda image: (image - 0.5).flatten(1) @ patterns.T / SCALE @ weights.T
        self.searched, self.tested = codes(60, 5).numpy(), codes(150, 6).numpy()
        table = pd.DataFrame(
            {
                "id": [f"s{n}" for n in range(210)],
                "split": ["val"] * 60 + ["test"] * 150,
                "size": np.concatenate([self.searched, self.tested])[:, 7],
            }
        )
        cohort = SimpleNamespace(subjects=table, patient=None, attribute_names=())
        factors = SimpleNamespace(cohort=cohort, pool=cohort, classes={}, names=())
        drawn = Stub(heads)
        data = [
            [{"id": list(table["id"][rows]), "image": drawn.images(torch.tensor(values))}]
            for rows, values in ((slice(0, 60), self.searched), (slice(60, 210), self.tested))
        ]
        self.run = StylexSearch(
            network,
            self.classifier,
            factors,
            [],
            *data,
            lambda batch, device: (batch["image"], {}),
            folder,
            **{"n_resamples": 0, "n_permutations": 0, "count": 3, "seed": seed, **options},
        )

    def odds(self, values):
        return values @ self.weights.numpy().T

    def ends(self):
        return self.searched.min(0), self.searched.max(0)

    def edited(self, values, edits):
        changed = values.copy()
        for direction, k in edits:
            changed[:, k] = self.ends()[direction][k]
        return changed

    def flipped(self, predicted, edits):
        """Share of images that take the class that edits lead to, by class, from the codes."""
        parts = []
        for target, chosen in edits.items():
            others = self.tested[predicted(self.odds(self.tested)) != target]
            parts.append(predicted(self.odds(self.edited(others, chosen))) == target)
        return np.concatenate(parts).mean()


def binary(odds):
    return (odds[:, 0] > 0).astype(int)


def multiple(odds):
    return odds.argmax(1)


def weights(*planted):
    table = torch.zeros(len(planted), COORDINATES)
    for row, causes in enumerate(planted):
        for k, weight in causes.items():
            table[row, k] = weight
    return table


def case_of_two(folder, planted=TWO, **options):
    heads = {"task": 1, "sex": 1}
    return Case(heads, weights(planted, {11: 2.0}), folder, **options)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    case = case_of_two(tmp_path_factory.mktemp("two"), explained_at=100.0)
    return case, *outputs(case)


def outputs(case):
    report = case.run.run()
    return report, json.loads((case.run.output_dir / "flips.json").read_text())


def towards(planted, class_1):
    """Edits that lead to class 1, or to class 0, by the signs of the planted weights."""
    order = sorted(planted, key=lambda k: -abs(planted[k]))
    return [(int((planted[k] > 0) == class_1), k) for k in order]


def test_flips_of_two_classes_are_those_of_the_planted_causes(two):
    case, _, flips = two
    assert list(flips["top"]) == ["1", "3"]
    for count in (1, 3):
        edits = {target: towards(TWO, target)[:count] for target in (0, 1)}
        entry = flips["top"][str(count)]
        assert entry["flip_rate"]["value"] == pytest.approx(case.flipped(binary, edits))
        assert entry["flip_rate"]["images"] == len(case.tested)
        assert entry["flip_rate"]["value"] > 0.6
        assert entry["random"]["value"] < 0.4  # 61 of 64 coordinates do nothing


def test_the_direction_of_the_code_is_that_between_the_classes(two):
    case, _, flips = two
    classes, flipped = binary(case.odds(case.searched)), []
    for target in (0, 1):
        of_class = classes == target
        way = case.searched[of_class].mean(0) - case.searched[~of_class].mean(0)
        way /= np.linalg.norm(way)
        others = case.tested[binary(case.odds(case.tested)) != target]
        steps = (case.searched @ way).max() - others @ way
        flipped.append(binary(case.odds(others + steps[:, None] * way)) == target)
    expected = np.concatenate(flipped).mean()
    assert expected > 0.3
    assert flips["latent_direction"]["value"] == pytest.approx(expected)


def test_attributes_of_two_classes_lead_where_they_were_planted_to(two):
    case, report, _ = two
    before = case.odds(case.tested)
    predicted, target = binary(before), report["attributes"][0]["target"]
    found = {(e["coordinate"], e["direction"]) for e in report["attributes"]}
    ways = ("down", "up")
    assert found == {(k, ways[side]) for side, k in towards(TWO, target)}
    for entry in report["attributes"]:
        assert entry["target"] == target
        k, side = entry["coordinate"], ways.index(entry["direction"])
        assert (entry["min"], entry["max"]) == pytest.approx([end[k] for end in case.ends()])
        after = case.odds(case.edited(case.tested, [(side, k)]))
        rows = predicted != target
        sign = 2 * target - 1
        head = entry["heads"]["task"]
        change = sign * (after - before)[rows, 0]  # one logit is the log odds
        assert head["class"] == target
        assert head["log_odds_change"]["value"] == pytest.approx(change.mean(), rel=1e-4)
        assert head["flip_rate"]["value"] == pytest.approx((binary(after)[rows] == target).mean())
        assert not entry["heads"]["sex"]["beyond_random"]
        assert entry["heads"]["sex"]["log_odds_change"]["value"] == pytest.approx(0, abs=1e-4)


def test_random_edits_go_the_way_that_gains_and_their_chance_is_known(tmp_path):
    every = {k: 0.5 if k % 3 else -0.5 for k in range(COORDINATES)}
    case = case_of_two(tmp_path, every, n_resamples=50)
    report, flips = outputs(case)
    alone = [
        case.flipped(binary, {t: [(int((w > 0) == t), k)] for t in (0, 1)})
        for k, w in every.items()
    ]
    random = flips["top"]["1"]["random"]
    assert abs(random["value"] - np.mean(alone)) < 3 * np.std(alone) / np.sqrt(5)
    assert random["value"] > 1.5 * np.mean(alone) / 2 > 0  # a coin would halve it
    entry = report["attributes"][0]
    before, target = case.odds(case.tested), entry["target"]
    rows = binary(before) != target
    shifts = [
        abs((case.odds(case.edited(case.tested, [(int((w > 0) == target), k)])) - before)[rows, 0])
        for k, w in every.items()
    ]
    shifts = np.array([s.mean() for s in shifts]) / before[:, 0].std()
    chance = entry["heads"]["task"]["chance_sd"]
    assert np.quantile(shifts, 0.5) * 0.9 < chance < shifts.max() * 1.1


def test_random_sets_are_as_long_as_each_class_s_own(two):
    case, *_ = two
    run = case.run
    found, tested = run._encoded(run.search), run._encoded(run.test)
    effects, _ = run._effects(found.styles)
    lists = run._edits(effects, found)
    lists = {0: lists[0][:1], 1: lists[1]}
    asked = []
    original = random_edits

    def spy(effects, generator, count, head, target):
        edits = original(effects, generator, count, head, target)
        asked.append((target, len(edits)))
        return edits

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("medvae.report.stylex_flips.random_edits", spy)
        report = flip_report(run, effects, found, tested, Judge(run, tested), lists)
    assert set(asked) == {(0, 1), (1, 1), (1, 3)}
    assert list(report["top"]) == ["1", "3"]


def test_all_edits_are_tried_together_whatever_their_number(tmp_path):
    planted = {k: 1.0 for k in range(7)}
    case = case_of_two(tmp_path, planted, explained_at=100.0, count=7)
    _, flips = outputs(case)
    assert list(flips["top"]) == ["1", "3", "5", "7"]
    edits = {target: towards(planted, target) for target in (0, 1)}
    assert flips["top"]["7"]["flip_rate"]["value"] == pytest.approx(case.flipped(binary, edits))


THREE = ({1: 3.0, 10: 1.0}, {2: 3.0, 20: 1.0}, {3: 3.0, 30: 1.0})


def test_flips_of_three_classes_reach_the_class(tmp_path):
    case = Case({"task": 3}, weights(*THREE), tmp_path, explained_at=100.0, count=6)
    report, flips = outputs(case)
    for count in (1, 3):
        edits = {}
        base = multiple(case.odds(case.searched))
        for target in range(3):
            # the greedy choice from the codes: every image votes always
            others = case.searched[base != target]
            gains = np.stack(
                [
                    [gain(case, others, (side, k), target) for k in range(COORDINATES)]
                    for side in (0, 1)
                ]
            )
            order = np.argsort(-gains, axis=None, kind="stable")[:count]
            edits[target] = [divmod(int(n), COORDINATES) for n in order]
        entry = flips["top"][str(count)]
        assert entry["flip_rate"]["value"] == pytest.approx(case.flipped(multiple, edits))
        assert entry["flip_rate"]["images"] == 2 * len(case.tested)
    for entry in report["attributes"]:
        target, side = entry["target"], ("down", "up").index(entry["direction"])
        assert entry["coordinate"] in {k for causes in THREE for k in causes}
        assert (side == 1) == (entry["coordinate"] in THREE[target])
        after = case.odds(case.edited(case.tested, [(side, entry["coordinate"])]))
        rows = multiple(case.odds(case.tested)) != target
        reached = (multiple(after) == target)[rows]
        left = (multiple(after) != multiple(case.odds(case.tested)))[rows]
        rate = entry["heads"]["task"]["flip_rate"]["value"]
        assert rate == pytest.approx(reached.mean())
        if side == 0:  # down with another class: images go to a third one, too
            assert rate < left.mean()


def gain(case, values, edit, target):
    def own(odds):
        others = np.delete(odds, target, 1)
        return odds[:, target] - np.log(np.exp(others).sum(1))

    return (own(case.odds(case.edited(values, [edit]))) - own(case.odds(values))).mean()


def test_rows_are_drawn_by_the_seed_and_not_the_first(tmp_path):
    searches = []
    for seed in (0, 0, 1):
        case = case_of_two(tmp_path / f"{len(searches)}", seed=seed, images=20)
        ids = case.run._encoded(case.run.search).some(20, seed).ids
        _, flips = outputs(case)
        explained = [e["id"] for e in flips["per_image"]["explanations"]]
        assert explained == ids
        searches.append(ids)
    assert searches[0] == searches[1] != searches[2]
    numbers = [int(name[1:]) for name in searches[0]]
    assert all(a < b for a, b in pairwise(numbers))
    assert max(numbers) > 40  # of 60: the table may be sorted


def test_attributes_of_the_same_generators_are_the_same_and_of_others_are_not(tmp_path, caplog):
    first = case_of_two(tmp_path / "a" / "eval", explained_at=100.0)
    again = case_of_two(tmp_path / "b" / "eval", explained_at=100.0, seed=1, generator_seed=3)
    other = case_of_two(tmp_path / "c" / "eval", {50: 3.0, 51: -1.5, 52: 0.8}, explained_at=100.0)
    for case in (first, again, other):
        outputs(case)
    folders = [case.run.output_dir for case in (first, again, other)]
    same = compare_attributes(*folders[:2])
    assert {k: entry["matched"] for k, entry in same["top"].items()} == {"1": 1, "3": 1}
    assert all(entry["chance"] < 0.35 for entry in same["top"].values())
    assert [(p["first"], p["second"]) for p in same["pairs"]] == [(1, 1), (2, 2), (3, 3)]
    different = compare_attributes(folders[0], folders[2])
    assert {entry["matched"] for entry in different["top"].values()} == {0}
    assert different["pairs"] == []

    main([str(folder.parent) for folder in folders] + ["--output", str(tmp_path / "all.html")])
    html = (tmp_path / "all.html").read_text()
    assert "a and b" in html
    assert "flips by the first 3" in html
    (folders[2] / "changes.npz").unlink()
    with pytest.raises(CohortError, match=r"changes\.npz' cannot be read"):
        compare_attributes(folders[0], folders[2])
    stored = dict(np.load(folders[1] / "changes.npz"))
    np.savez(folders[1] / "changes.npz", **stored | {"judged": "[]"})
    with pytest.raises(CohortError, match="not judged on the same"):
        compare_attributes(*folders[:2])
    main([str(folder.parent) for folder in folders] + ["--output", str(tmp_path / "all.html")])
    assert "not judged on the same" in (tmp_path / "all.html").read_text()


def test_stability_of_independent_edits_is_chance():
    rng = np.random.default_rng(0)

    def edits(count):  # 2 values of a map are often alike by luck
        return EditChanges(rng.normal(size=(count, 3)), rng.normal(size=(count, 3)))

    shares, lucks = [], []
    for _ in range(60):
        found = attribute_stability(edits(3), edits(3), edits(20), edits(20), (3,))
        shares.append(found["top"]["3"]["matched"])
        lucks.append(found["top"]["3"]["chance"])
    assert np.mean(lucks) > 0.05
    assert abs(np.mean(shares) - np.mean(lucks)) < 0.1
    one = edits(2)
    turned = EditChanges(-np.asarray(one.maps), -np.asarray(one.logits))
    opposite = EditChanges(-np.asarray(one.maps), one.logits)
    assert attribute_stability(one, turned, one, one, (2,))["top"]["2"]["matched"] == 1
    assert attribute_stability(one, opposite, one, one, (2,), 0.99)["top"]["2"]["matched"] == 0
    twice = EditChanges(np.asarray(one.maps)[[0, 0]], np.asarray(one.logits)[[0, 0]])
    assert attribute_stability(one, twice, one, one, (2,), 0.99)["top"]["2"]["matched"] == 0.5
    with pytest.raises(ValueError, match="widths"):
        attribute_stability(one, EditChanges(np.zeros((1, 4)), one.logits), one, one)


def test_alike_images_of_a_patient_are_not_an_association():
    """False positives of independent columns, two images of each patient, correlated by 0.8."""
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(40), 2)
    counts = {"patients": 0, "images": 0}
    trials = 150
    for seed in range(trials):

        def column():
            return np.sqrt(0.8) * rng.normal(size=40)[patients] + np.sqrt(0.2) * rng.normal(size=80)

        x, covariate = column()[:, None], column()
        for name, given in (("patients", patients), ("images", None)):
            found = associations(x, {"c": covariate}, None, given, 60, seed=seed)
            counts[name] += abs(found["values"]["c"][0]) > found["chance"]
    assert counts["patients"] / trials < 0.1  # 0.05, with an error of 0.02
    assert counts["images"] / trials > 0.1  # as images were no clusters


def test_what_differs_within_a_patient_is_found_beyond_chance():
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(30), 2)
    side = np.tile(["left", "right"], 30)
    x = (side == "right") + 0.5 * rng.normal(size=60)
    found = associations(x[:, None], {"side": list(side)}, patients=patients, n_permutations=50)
    assert found["values"]["side"][0] > found["chance"] + 0.2


def test_pairs_and_where_an_edit_acts(two):
    case, report, _ = two
    entry, place = report["attributes"][0], case.run.output_dir / "pairs"
    target, side = entry["target"], ("down", "up").index(entry["direction"])
    before = case.tested[binary(case.odds(case.tested)) != target]
    after = case.edited(before, [(side, entry["coordinate"])])
    images = [
        Stub({"task": 1}).images(torch.tensor(part))[:, 0].numpy() for part in (before, after)
    ]
    with np.load(place / "attribute01.npz") as stored:
        np.testing.assert_allclose(
            stored["difference"], np.abs(images[1] - images[0]).mean(0), atol=1e-6
        )
    shares = [
        1 / (1 + np.exp(-(2 * target - 1) * case.odds(part)[:, 0])) for part in (before, after)
    ]
    pairs = entry["pairs"]
    assert pairs["of"] == len(before)
    assert pairs["qualifying"] == (shares[1] - shares[0] >= 0.1).sum()
    words = chosen_pairs(entry)
    assert words.startswith(f"Of {pairs['of']} test images that are not of the class")
    assert f"{pairs['qualifying']} gain 0.10 or more" in words


def test_too_few_pairs_leave_the_map_alone_and_an_earlier_search_s_pictures_out(tmp_path):
    case = case_of_two(tmp_path, shown_change=2.0)
    (tmp_path / "pairs").mkdir()
    for n in (1, 2, 3):
        (tmp_path / "pairs" / f"attribute0{n}.png").write_bytes(b"not a picture of this search")
    report, _ = outputs(case)
    entry = report["attributes"][0]
    assert entry["pairs"]["shown"] == []
    assert entry["pairs"]["files"] == ["attribute01.npz", "attribute01_where.png"]
    with np.load(tmp_path / "pairs" / "attribute01.npz") as stored:
        assert stored["difference"].max() > 0
    assert write_panel_pdf(tmp_path).is_file()  # would not read them
    (section,) = [s for s in panel_page(tmp_path).sections if s.key == "attribute1"]
    kinds = [block.kind for block in section.blocks]
    assert "comparison" not in kinds
    assert {"absent", "picture"} <= set(kinds)
    assert "fewer than three" in section.blocks[1].why


def test_measured_attributes_are_covariates(tmp_path):
    case = case_of_two(tmp_path)
    case.run.factors.cohort.attribute_names = ("sphericity", "size")
    run = StylexSearch(
        case.run.network, case.classifier, case.run.factors, [], [], [], None, tmp_path,
        covariates=["size"],
    )  # fmt: skip
    assert run.covariates == ("size", "sphericity")


class Told(nn.Module):
    """A frozen classifier whose logit is the mean of the image, scaled."""

    heads = {"dx": 1}

    def __init__(self, scale=1.0, start=0.0):
        super().__init__()
        self.scale, self.start = scale, start

    def check(self, images):
        self.checked = len(images)

    def forward(self, image):
        return self.scale * (image.flatten(1).mean(1, keepdim=True) - 0.5) + self.start


def judged_classifier(folder, classifier, brightness, labels):
    table = pd.DataFrame({"id": range(len(labels)), "split": "test"})
    factors = SimpleNamespace(
        cohort=SimpleNamespace(subjects=table, patient=None),
        names=("dx",),
        values=lambda rows: np.asarray(labels, float)[:, None],
    )
    data = [{"image": torch.as_tensor(brightness).float()[:, None, None, None].expand(-1, 1, 8, 8)}]

    def prepare(batch, device):
        return batch["image"], {}

    return ClassifierEvaluation(classifier, factors, data, prepare, folder, "cpu", 50, 20).run()


def test_a_classifier_is_judged_by_its_auc_and_a_constant_one_refused(tmp_path):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 80)
    noisy = np.clip(0.5 + 0.1 * (labels - 0.5) + 0.1 * rng.normal(size=80), 0, 1)
    report = judged_classifier(tmp_path, Told(), noisy, labels)
    head = report["heads"]["dx"]
    assert head["auc"]["value"] == pytest.approx(roc_auc(noisy, labels))
    assert not head["worth_explaining"]
    assert "below 0.8" in head["verdict"]
    assert head["predicted"] == [int((noisy <= 0.5).sum()), int((noisy > 0.5).sum())]
    assert json.loads((tmp_path / "classifier.json").read_text()) == report
    good = judged_classifier(tmp_path, Told(), 0.25 + 0.5 * labels, labels)
    assert good["heads"]["dx"]["auc"]["value"] == 1
    assert good["heads"]["dx"]["worth_explaining"]
    with pytest.raises(CohortError, match="class 1 of 'dx' for all 80"):
        judged_classifier(tmp_path, Told(start=9.0), noisy, labels)
