"""Attributes measured again in edited images: of balls whose every size and brightness is known."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from test_attfind import seeded
from test_effects_measured import SIZE, balls
from test_stylex_report import Stub
from torch import nn

from medvae.data import CohortError
from medvae.metrics import mean_with_interval
from medvae.report import MeasuredEdits, StylexSearch, stylex_measured
from medvae.report.page.panel import flip_tables, panel_page
from medvae.report.panel_pdf import write_panel_pdf

STEP = 2.0  # mm
NAMES = {2: "pixel_area_mm2", 3: "voxel_volume_ml"}
BRIGHTNESS = "intensity_mean"


def sizes(images, spatial_dims):
    """Areas or volumes of what is brighter than half, NaN where nothing is."""
    count = (images > 0.5).flatten(1).sum(1).double().numpy()
    unit = STEP**2 if spatial_dims == 2 else STEP**3 / 1000
    return np.where(count > 0, count * unit, np.nan)


def knowing(monkeypatch, spatial_dims, names):
    """Measured edits that need no training, and what they were to learn from."""
    learned: list[Any] = []

    def learn(instrument, images, classes, steps, seed=0, progress=True):
        learned.append((images, classes))
        instrument.segment = lambda part: (part[:, 0] > 0.5).long().numpy()

    monkeypatch.setattr(stylex_measured, "train_instrument", learn)
    return MeasuredEdits(names, [SIZE] * spatial_dims, STEP), learned


def batches(images):
    masks = (images > 0.5).float()
    return [{"image": i, "mask": m} for i, m in zip(images.split(7), masks.split(7), strict=True)]


def judged(edits, train, images, again):
    """Let it learn as a search does."""
    run: Any = SimpleNamespace(
        train=batches(train),
        test=batches(images),
        prepare_batch=lambda batch, device: (batch["image"], {}),
    )
    edits.learn(run, SimpleNamespace(images=images, again=again))
    return edits


RADII = np.linspace(4, 6, 24)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_a_scaled_ball_is_measured_as_larger_by_what_it_grew(monkeypatch, spatial_dims):
    name, images = NAMES[spatial_dims], balls(RADII, spatial_dims)
    edits, _ = knowing(monkeypatch, spatial_dims, [name])
    judged(edits, images, images, images)
    rows = np.arange(3, 20)
    edited = balls(1.2 * RADII[rows], spatial_dims)
    before = sizes(images, spatial_dims)
    expected = (sizes(edited, spatial_dims) - before[rows]) / before.std()
    assert expected.min() > 0.5
    np.testing.assert_allclose(edits.moves(edited, rows)[name], expected)
    assert edits.quality[name]["sd"] == pytest.approx(before.std())


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_brightness_alone_leaves_the_size(monkeypatch, spatial_dims):
    name, levels = NAMES[spatial_dims], torch.linspace(0.8, 1, len(RADII))
    images = balls(RADII, spatial_dims) * levels.reshape(-1, 1, *[1] * spatial_dims)
    edits, _ = knowing(monkeypatch, spatial_dims, [name, BRIGHTNESS])
    judged(edits, images, images, images)
    found = edits.moves(0.9 * images, np.arange(len(RADII)))
    assert (found[name] == 0).all()
    expected = -0.1 * levels.numpy() / levels.numpy().std()
    np.testing.assert_allclose(found[BRIGHTNESS], expected, rtol=1e-5)


def test_what_is_not_found_or_never_differs_is_unknown(monkeypatch):
    images = balls(RADII, 2)
    blank = images.clone()
    blank[4] = 0.1
    edits, _ = knowing(monkeypatch, 2, [NAMES[2], BRIGHTNESS])
    judged(edits, images, images, blank)  # one reconstruction shows nothing
    edited = balls(1.1 * RADII, 2)
    edited[[2, 9]] = 0.1
    found = edits.moves(edited, np.arange(len(RADII)))
    assert np.flatnonzero(np.isnan(found[NAMES[2]])).tolist() == [2, 4, 9]
    assert mean_with_interval(found[NAMES[2]])["images"] == len(RADII) - 3
    assert np.isnan(found[BRIGHTNESS]).all()
    assert edits.quality[BRIGHTNESS]["sd"] is None
    assert edits.quality[NAMES[2]]["images"]["subjects"] == len(RADII)
    assert edits.quality[NAMES[2]]["reconstructions"]["subjects"] == len(RADII) - 1


def test_it_learns_from_real_images_alone_and_says_how_it_measures_both(monkeypatch):
    name, train, images = NAMES[2], balls(RADII + 1, 2), balls(RADII, 2)
    again = balls(RADII - 0.5, 2)
    edits, learned = knowing(monkeypatch, 2, [name])
    judged(edits, train, images, again)
    ((given, classes),) = learned
    assert torch.equal(given, train)
    assert torch.equal(classes, (train[:, 0] > 0.5).long())
    quality = edits.quality[name]
    assert quality["images"] == {"r2": 1, "bias": 0, "error_sd": 0, "subjects": len(RADII)}
    errors = sizes(again, 2) - sizes(images, 2)
    assert quality["reconstructions"]["bias"] == pytest.approx(errors.mean())
    assert quality["reconstructions"]["error_sd"] == pytest.approx(errors.std())
    variance = sizes(images, 2).var()
    assert quality["reconstructions"]["r2"] == pytest.approx(1 - (errors**2).mean() / variance)


def test_a_trained_network_measures_what_an_edit_adds():
    name, images = NAMES[2], balls(RADII, 2)
    edits = MeasuredEdits([name], [SIZE] * 2, STEP, steps=150)
    judged(edits, images, images, images)
    found = edits.moves(balls(1.2 * RADII, 2), np.arange(len(RADII)))[name]
    before = sizes(images, 2)
    expected = (sizes(balls(1.2 * RADII, 2), 2) - before) / before.std()
    assert found.mean() == pytest.approx(expected.mean(), rel=0.1)
    assert edits.quality[name]["images"]["r2"] > 0.95


def test_a_name_that_is_not_measured_is_refused():
    with pytest.raises(CohortError, match="'voxel_volume' of measured.*voxel_volume_ml"):
        MeasuredEdits(["voxel_volume"], [8, 8, 8], 1.0)


COORDINATES = 12  # the radius, the brightness, and others that show nowhere


class Drawing(nn.Module):
    """Balls of a radius and a brightness; all coordinates are in dark voxels of a corner, too.

    Of a brightness below -0.5 the ball is darker than half, and nobody finds it.
    """

    style_sizes = (8, 4)

    def __init__(self, spatial_dims):
        super().__init__()
        self.spatial_dims = spatial_dims

    def styles(self, w):
        return w[:, :COORDINATES]

    def synthesis(self, w):
        return self.synthesis_from_styles(self.styles(w))

    def synthesis_from_styles(self, styles):
        shape = (-1, 1, *[1] * self.spatial_dims)
        inside = balls(5 + styles[:, 0], self.spatial_dims) > 0.5
        image = torch.where(inside, (0.7 + 0.4 * styles[:, 1]).reshape(shape), 0.1).flatten(1)
        image = torch.cat([0.25 + 0.1 * styles, image[:, COORDINATES:]], 1)
        return 2 * image.reshape(inside.shape) - 1


class BallStub(Stub):
    """A network whose reconstruction is exact."""

    latent_dim = COORDINATES

    def __init__(self, heads, spatial_dims):
        super().__init__(heads)
        self.generator = Drawing(spatial_dims)

    def encode(self, image, shares):
        return torch.cat([(image.flatten(1)[:, :COORDINATES] - 0.25) / 0.1, shares], 1)


@pytest.fixture(scope="module", params=[2, 3])
def searched(request, tmp_path_factory):
    """A search of a classifier that reads the radius and, a little, the brightness."""
    dims, counts = request.param, (40, 80)
    network = BallStub({"task": 1}, dims)
    values = [torch.rand(n, COORDINATES, generator=seeded(n)) * 2 - 1 for n in counts]
    weights = torch.zeros(COORDINATES, 1)
    weights[0], weights[1] = 3.0, -1.0
    table = pd.DataFrame(
        {
            "id": [f"s{n}" for n in range(sum(counts))],
            "mask": "mask.nii.gz",
            "split": ["val"] * counts[0] + ["test"] * counts[1],
        }
    )
    cohort = SimpleNamespace(subjects=table, patient=None, attribute_names=())
    factors = SimpleNamespace(cohort=cohort, pool=cohort, classes={}, names=())
    names, data = table["id"].tolist(), []
    for ids, codes in zip((names[: counts[0]], names[counts[0] :]), values, strict=True):
        images = network.images(codes)
        mask = balls(5 + codes[:, 0], dims) > 0.5  # also of what is too dark to be found
        data.append([{"id": ids, "image": images, "mask": mask.float()}])
    with pytest.MonkeyPatch.context() as patch:
        measuring, _ = knowing(patch, dims, [NAMES[dims], BRIGHTNESS])
        run = StylexSearch(
            network,
            lambda image: network.encode(image, image[:, :0].flatten(1)) @ weights,
            factors,
            data[0],
            *data,
            lambda batch, device: (batch["image"], {}),
            tmp_path_factory.mktemp(f"balls{dims}d"),
            measuring=measuring,
            explained_at=100.0,
            count=2,
            n_resamples=20,
            n_permutations=0,
        )
        if dims == 3:  # pairs are written on subjects' grids, which these have not
            patch.setattr("medvae.report.stylex_pairs._volumes", lambda *_: [])
        report = run.run()
    return run, report, values, weights.numpy()


def known_changes(searched, rows, coordinate, direction):
    """How far an edit moves the size of some tested balls, by their codes: in SD, NaN if dark."""
    run, _, (codes, tested), _ = searched
    dims = run.network.generator.spatial_dims
    edited = tested[rows].clone()
    ends = (codes.amin(0), codes.amax(0))
    edited[:, coordinate] = ends[direction == "up"][coordinate]
    before, after = (sizes(run.network.images(part), dims) for part in (tested[rows], edited))
    return (after - before) / sizes(balls(5 + tested[:, 0], dims), dims).std()


def test_every_attribute_says_what_it_moves_when_it_is_measured_again(searched):
    run, report, (_, tested), _ = searched
    name, every = NAMES[run.network.generator.spatial_dims], np.arange(len(tested))
    assert {e["coordinate"] for e in report["attributes"]} == {0, 1}
    for entry in report["attributes"]:
        change = known_changes(searched, every, entry["coordinate"], entry["direction"])
        moved = entry["measured"][name]
        assert moved["images"] == np.isfinite(change).sum() < len(tested)
        if np.isnan(change).all():  # darkened, no ball is found
            assert (moved["value"], moved["beyond_random"]) == (None, False)
            continue
        assert moved["value"] == pytest.approx(np.nanmean(change), abs=1e-6)
        assert moved["beyond_random"] == (entry["coordinate"] == 0)
        if entry["coordinate"] == 0:
            assert moved["low"] < moved["value"] < moved["high"]
            assert entry["measured"][BRIGHTNESS]["value"] == pytest.approx(0, abs=1e-6)
        assert moved["chance"] < abs(np.nanmean(known_changes(searched, every, 0, "up")))
    assert json.loads((run.output_dir / "attributes.json").read_text()) == report


def test_edits_together_say_what_they_leave_as_it_was(searched):
    run, report, (_, tested), weights = searched
    name = NAMES[run.network.generator.spatial_dims]
    entry = report["attributes"][0]
    assert entry["coordinate"] == 0
    predicted = (tested.numpy() @ weights)[:, 0] > 0
    other = {"up": "down", "down": "up"}[entry["direction"]]
    ways = {entry["target"]: entry["direction"], 1 - entry["target"]: other}
    changes = np.concatenate(
        [known_changes(searched, predicted != target, 0, way) for target, way in ways.items()]
    )
    top = json.loads((run.output_dir / "flips.json").read_text())["top"]
    moved = top["1"]["identity"][name]
    assert moved["value"] == pytest.approx(np.nanmean(np.abs(changes)))
    assert moved["images"] == np.isfinite(changes).sum()
    assert moved["low"] < moved["value"] < moved["high"]
    assert moved["random"]["value"] < 0.5 * moved["value"]  # eleven of twelve do not move it
    assert top["1"]["identity"][BRIGHTNESS]["value"] == pytest.approx(0, abs=1e-6)


def test_pages_show_what_was_measured_and_older_results_have_none(searched):
    run, report, *_ = searched
    name = NAMES[run.network.generator.spatial_dims]
    page = panel_page(run.output_dir)
    for number, entry in enumerate(report["attributes"], start=1):
        (section,) = [s for s in page.sections if s.key == f"attribute{number}"]
        (table,) = [b for b in section.blocks if "measured again" in getattr(b, "title", "")]
        (row,) = [row for row in table.rows if row[0] == name]
        moved = entry["measured"][name]
        if moved["value"] is None:
            assert row[1] == ""
        else:
            assert row[1].startswith(f"{moved['value']:+.2f} (")
        assert row[4] == str(moved["images"])
    identity, overview = flip_tables(run.output_dir)[1:]
    assert [row[0] for row in identity.rows] == [name, BRIGHTNESS]
    assert "random" in identity.rows[0][1]
    assert overview.rows[0][-1].startswith(name)
    assert write_panel_pdf(run.output_dir).is_file()
    older = {key: value for key, value in report.items() if key != "instrument"}
    older["attributes"] = [
        {key: value for key, value in entry.items() if key != "measured"}
        for entry in report["attributes"]
    ]
    flips = json.loads((run.output_dir / "flips.json").read_text())
    for entry in flips["top"].values():
        del entry["identity"]
    folder = run.output_dir / "older"
    folder.mkdir()
    (folder / "attributes.json").write_text(json.dumps(older))
    (folder / "flips.json").write_text(json.dumps(flips))
    assert len(flip_tables(folder)) == 2
    assert "measured again" not in repr(panel_page(folder))
