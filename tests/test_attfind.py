"""AttFind on generators whose causes are planted, and beside one synthesis per coordinate."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from medvae.data import CohortError
from medvae.explain import (
    apply_edits,
    artefacts,
    attfind,
    class_log_odds,
    eigenfind,
    explain_image,
    merge_classes,
    screened_attfind,
    select,
    stable_images,
)
from medvae.explain.style_selection import class_deficits, class_gains
from medvae.networks import StyleGenerator

both = pytest.mark.parametrize("spatial_dims", [2, 3])
IMAGES, COORDINATES = 40, 64
HEADS = {"task": 1, "sex": 1}


class Planted(nn.Module):
    """Images that are a sum of orthonormal patterns, one for every style coordinate."""

    style_sizes = (40, 24)

    def __init__(self, spatial_dims):
        super().__init__()
        size = (16,) * 2 if spatial_dims == 2 else (4, 4, 4)
        draw = torch.randn(int(np.prod(size)), COORDINATES, generator=seeded(1))
        self.register_buffer("patterns", torch.linalg.qr(draw).Q.T.reshape(-1, *size))

    def synthesis_from_styles(self, styles):
        return torch.tensordot(styles, self.patterns, 1)[:, None]


class Reader:
    """A classifier that reads some patterns of an image."""

    def __init__(self, generator, task, sex=None):
        weights = torch.zeros(2, COORDINATES)
        for head, planted in enumerate((task, sex or {})):
            for coordinate, weight in planted.items():
                weights[head, coordinate] = weight
        self.weights = weights @ generator.patterns.flatten(1)
        self.calls = 0

    def __call__(self, image):
        self.calls += 1
        return image.flatten(1) @ self.weights.T


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def planted(spatial_dims, task, sex=None, images=IMAGES):
    generator = Planted(spatial_dims)
    styles = torch.rand(images, COORDINATES, generator=seeded(2)) * 2 - 1
    return generator, Reader(generator, task, sex), styles


def search(spatial_dims=2, task=None, sex=None, **options):
    generator, reader, styles = planted(spatial_dims, task or {7: 3.0, 40: -1.5}, sex)
    return attfind(generator, reader, styles, HEADS, progress=False, **options)


def pairs(edits):
    return [(edit.direction, edit.coordinate) for edit in edits]


@both
def test_the_planted_causes_come_first_and_nothing_else_has_an_effect(spatial_dims):
    effects = search(spatial_dims)
    towards = select(class_gains(effects, "task", 1), 2, np.inf)
    assert pairs(towards) == [(1, 7), (0, 40)]
    assert pairs(select(class_gains(effects, "task", 0), 2, np.inf)) == [(0, 7), (1, 40)]
    change = np.delete(effects.change("task"), [7, 40], axis=2)
    assert np.abs(change).max() < 1e-4
    merged = merge_classes(effects, "task", towards, 1, towards[::-1])
    assert [edit.coordinate for edit in merged] == [7, 40]


def test_one_cause_flips_every_image():
    effects = search(task={7: 3.0})
    for target in (0, 1):
        rows = effects.predicted("task") != target
        (edit,) = select(class_gains(effects, "task", target), 10, np.inf)
        assert effects.flips("task")[rows, edit.direction, edit.coordinate].all()


def test_the_list_ends_where_nothing_is_left_to_explain():
    effects = search(task={7: 30.0})
    edits = select(class_gains(effects, "task", 1), 10, 1.0)
    assert pairs(edits) == [(1, 7)]  # no padding with (0, 0)
    assert np.isfinite(edits[0].score)
    assert select(np.zeros((5, 2, 4)), 3) == []  # nor with edits of no effect
    assert select(np.zeros((0, 2, 4)), 3) == []
    with pytest.raises(ValueError, match="finite"):
        select(np.full((5, 2, 4), np.nan))


def test_coordinate_0_is_found_with_and_without_a_discriminator():
    generator, reader, styles = planted(2, {0: 3.0})
    effects = attfind(generator, reader, styles, HEADS, progress=False)
    edits = select(class_gains(effects, "task", 1), 3, np.inf)
    assert pairs(edits) == [(1, 0)]
    score = {"scale": 0.0}

    def judge(changed, rows):
        return score["scale"] * changed[:, 0]

    assert artefacts(effects, styles, edits, judge) == []
    score["scale"] = 1.0
    rejected = artefacts(effects, styles, edits, judge)
    assert rejected == edits
    assert select(class_gains(effects, "task", 1), 3, np.inf, excluded=pairs(rejected)) == []


def test_explained_images_do_not_vote_again():
    gains = np.zeros((10, 2, 3))
    gains[:5, 1, 0], gains[:5, 1, 1], gains[5:, 1, 2] = 2.0, 1.9, 1.5
    edits = select(gains, 10, 1.0)
    assert [edit.coordinate for edit in edits] == [0, 2]
    assert [edit.images for edit in edits] == [10, 5]
    assert [edit.coordinate for edit in select(gains, 2, np.inf)] == [0, 1]
    lacking = np.where(np.arange(10) == 0, 3.0, 1.0)  # the first needs both A and B
    assert [edit.coordinate for edit in select(gains, 10, lacking)] == [0, 2, 1]


def test_what_an_image_lacks_is_what_flips_it():
    effects = search(task={7: 3.0})
    lacking = class_deficits(effects, "task", 1)
    assert (lacking > 0).all()
    rows = effects.predicted("task") == 0
    gains = class_gains(effects, "task", 1)
    assert np.array_equal(gains[:, 1, 7] > lacking, effects.flips("task")[rows, 1, 7])


def style_generator(spatial_dims, noise=0.3):
    torch.manual_seed(0)
    size = (16, 8) if spatial_dims == 2 else (8, 8, 4)
    sizes = {"code": 6}
    network = StyleGenerator(spatial_dims, sizes, size, (6, 5, 4), 1, mapping_layers=2, joined=2)
    for conv in network.convs:
        nn.init.constant_(conv.noise.strength, noise)
        nn.init.normal_(conv.bias)
    head = nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(size)), 3), nn.Tanh())
    return network, head, network.styles(torch.randn(5, 8, generator=seeded(3))).detach()


@both
def test_the_sweep_equals_one_synthesis_per_coordinate(spatial_dims):
    network, head, styles = style_generator(spatial_dims)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network.train()
    effects = attfind(network, head, styles, {"dx": 3}, batch_size=6, progress=False)
    again = attfind(network, head, styles, {"dx": 3}, batch_size=6, progress=False)
    assert np.array_equal(effects.edited, again.edited)
    assert network.training
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    network.eval()
    searched = sum(network.style_sizes)
    assert effects.edited.shape == (5, 2, searched, 3)
    for n in range(len(styles)):
        for direction, end in enumerate((effects.low, effects.high)):
            for k in range(searched):
                changed = styles[n : n + 1].clone()
                changed[0, k] = float(end[k])
                with torch.no_grad():
                    expected = head(network.synthesis_from_styles(changed))[0].numpy()
                assert np.abs(effects.edited[n, direction, k] - expected).max() < 1e-5
    with pytest.raises(ValueError, match="several"):
        network.sweep(styles[0]).edited(torch.tensor([0, searched - 1]), torch.zeros(2, 1))


def test_styles_are_those_of_the_synthesis():
    network, _, _ = style_generator(2)
    network.eval()
    w = torch.randn(3, network.layers, 8, generator=seeded(4))
    styles = network.styles(w)
    assert torch.equal(network.synthesis(w), network.synthesis_from_styles(styles))
    assert styles.shape[1] == sum(network.style_sizes) + 6 + 5 + 4
    assert network.style_sizes == (6, 6, 5, 5, 4)


def test_no_shift_has_no_effect_and_a_whole_one_reaches_the_ends():
    assert np.abs(search(shift=0.0).change("task")).max() == 0
    effects = search()
    generator, _, styles = planted(2, {7: 1.0})
    for direction, end in enumerate((styles.min(0).values, styles.max(0).values)):
        edit = [select(np.ones((1, 2, COORDINATES)), 1)[0]._replace(coordinate=9)]
        edit = [edit[0]._replace(direction=direction)]
        changed = apply_edits(effects, styles[[3, 5]], edit)
        assert torch.equal(changed[:, 9], end[9].expand(2))
        others = np.delete(np.arange(COORDINATES), 9)
        assert torch.equal(changed[:, others], styles[[3, 5]][:, others])


def test_one_outlier_does_not_set_a_quantile_range():
    generator, reader, styles = planted(2, {7: 3.0})
    styles[0, 7] = 1000.0
    wide = attfind(generator, reader, styles, HEADS, progress=False)
    robust = attfind(generator, reader, styles, HEADS, (0.05, 0.95), progress=False)
    assert wide.high[7] == 1000
    assert robust.high[7] < 1.1


def test_a_coordinate_without_range_is_left_out():
    generator, reader, styles = planted(2, {7: 3.0})
    styles[:, 7] = 0.5
    effects = attfind(generator, reader, styles, HEADS, progress=False)
    assert not effects.evaluated[7]
    assert np.abs(effects.change("task")).max() < 1e-5


def test_every_head_has_its_own_effects():
    effects = search(task={7: 3.0, 9: 2.0}, sex={9: 2.0})
    assert np.abs(effects.change("sex")[:, :, 7]).max() < 1e-6
    assert np.abs(effects.change("sex")[:, :, 9]).max() > 0.5
    with pytest.raises(ValueError, match="no head 'age'"):
        effects.change("age")


def test_a_killed_search_goes_on(tmp_path):
    generator, reader, styles = planted(2, {7: 3.0})
    whole = attfind(generator, reader, styles, HEADS, progress=False)

    class Killed(Reader):
        def __call__(self, image):
            if self.calls == 150:
                raise KeyboardInterrupt
            return super().__call__(image)

    killed = Killed(generator, {7: 3.0})
    with pytest.raises(KeyboardInterrupt):
        attfind(generator, killed, styles, HEADS, folder=tmp_path, progress=False)
    done = len(list(tmp_path.glob("image*.npy")))
    assert 0 < done < IMAGES
    after = Reader(generator, {7: 3.0})
    resumed = attfind(generator, after, styles, HEADS, folder=tmp_path, progress=False)
    assert after.calls == (IMAGES - done) * (1 + 16)
    assert np.array_equal(whole.edited, resumed.edited)
    with pytest.raises(CohortError, match="another search"):
        attfind(generator, after, styles + 1, HEADS, folder=tmp_path, progress=False)


def test_a_search_with_other_weights_is_another_search(tmp_path):
    generator, classifier, styles = style_generator(2)
    arguments = (generator, classifier, styles[:2], {"dx": 3})
    options = {"folder": tmp_path, "coordinates": [0, 1], "progress": False}
    first = attfind(*arguments, **options)
    assert np.array_equal(first.edited, attfind(*arguments, **options).edited)
    for network in (generator, classifier):
        parameter = next(network.parameters())
        before = parameter.detach().clone()
        with torch.no_grad():
            parameter += 1
        with pytest.raises(CohortError, match="another search"):
            attfind(*arguments, **options)
        with torch.no_grad():
            parameter.copy_(before)


def test_screening_keeps_what_matters_and_says_what_it_missed():
    generator, reader, styles = planted(2, {7: 3.0, 40: -1.5, 3: 0.5})
    effects, screening = screened_attfind(
        generator, reader, styles, HEADS, keep=0.05, audit=3, progress=False
    )
    assert screening.kept == effects.evaluated.sum() == 4
    assert effects.evaluated[[3, 7, 40]].all()
    assert screening.missed == 0
    full = attfind(generator, reader, styles, HEADS, progress=False)
    kept = [3, 7, 40]
    np.testing.assert_allclose(effects.edited[:, :, kept], full.edited[:, :, kept], atol=1e-5)
    # a step has no slope: what a gradient says there is wrong, and the audit tells

    def steps(image):
        return (reader(image) > 0) * 3.0 + 0 * reader(image)

    _, screening = screened_attfind(
        generator, steps, styles, HEADS, keep=0.02, audit=8, progress=False
    )
    assert screening.missed == 1
    with pytest.raises(ValueError, match="keep"):
        screened_attfind(generator, reader, styles, HEADS, keep=0)


def test_an_image_is_explained_by_one_edit_or_by_a_set():
    generator, reader, styles = planted(2, {7: 1.0, 40: -1.0, 3: 1.0})
    styles[0, [7, 40, 3]] = torch.tensor([-0.9, 0.9, -0.2])
    effects = attfind(generator, reader, styles, HEADS, progress=False)
    assert effects.predicted("task")[0] == 0
    alone, flipped = explain_image(effects, 0, "task", 1)
    assert {edit.coordinate for edit in alone} == {3, 7, 40}
    assert not flipped

    def logits_of(changed):
        return reader(generator.synthesis_from_styles(changed))

    together, flipped = explain_image(effects, 0, "task", 1, logits_of, styles)
    assert flipped
    assert sorted(pairs(together)) == [(0, 40), (1, 7)]
    short, flipped = explain_image(effects, 0, "task", 1, logits_of, styles, count=1)
    assert len(short) == 1
    assert not flipped


def test_unstable_images_are_named_and_the_table_is_left_alone():
    effects = search(task={7: 3.0})
    before = effects.edited.copy()
    effects.edited[4] += 10
    stable = stable_images(effects)
    assert not stable[4]
    assert stable.sum() == IMAGES - 1
    effects.edited[4] -= 10
    assert np.allclose(before, effects.edited, atol=1e-5)


def test_eigenfind_reads_directions_like_coordinates():
    network, head, _ = style_generator(2)
    w = torch.randn(6, 8, generator=seeded(3))
    effects = eigenfind(network, head, w, {"dx": 3}, count=4, mapped=6)
    assert effects.edited.shape == (6, 2, 4, 3)
    again = eigenfind(network, head, w, {"dx": 3}, count=4, mapped=6)
    assert np.array_equal(effects.edited, again.edited)
    still = eigenfind(network, head, w, {"dx": 3}, count=4, mapped=6, shift=0.0)
    assert np.abs(still.change("dx")).max() < 1e-5
    assert len(select(class_gains(effects, "dx", 0), 3, np.inf)) > 0


def test_log_odds_are_the_same_for_logits_and_for_probabilities():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(5, 4))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(class_log_odds(logits), np.log(p / (1 - p)), atol=1e-5)
    np.testing.assert_allclose(class_log_odds(np.log(p)), class_log_odds(logits), atol=1e-5)
    one = rng.normal(size=(5, 1))
    two = np.concatenate([np.zeros_like(one), one], 1)
    np.testing.assert_allclose(class_log_odds(one), class_log_odds(two), atol=1e-6)


def test_logits_that_cannot_be_used_are_refused():
    generator, reader, styles = planted(2, {7: 3.0})
    with pytest.raises(ValueError, match="not finite"):
        attfind(generator, lambda image: reader(image) * np.nan, styles, HEADS, progress=False)
    with pytest.raises(ValueError, match="expected"):
        attfind(generator, reader, styles, {"task": 3}, progress=False)
    with pytest.raises(ValueError, match="quantiles"):
        attfind(generator, reader, styles, HEADS, (0.5, 0.5), progress=False)
