"""The measuring instrument, and the evaluation of manipulation on a decoder that is known."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import ndimage
from torch import Tensor, nn

from medvae.attributes import measure_labels
from medvae.data import AttributeScaler, CohortError
from medvae.engines import PrepareAttributes, segmentation, train_segmentation
from medvae.engines.segmentation import _augmented, _blurred
from medvae.explain import Instrument, Readout
from medvae.metrics import grain
from medvae.report import ManipulationEvaluation, remeasured

LABELS = {"lv": 3, "heart": [1, 2, 3]}
SIZE = 24


class Thresholds(nn.Module):
    """Segments an image whose intensity is 0.1 + 0.2 times the class."""

    def forward(self, image: Tensor) -> Tensor:
        centres = 0.1 + 0.2 * torch.arange(4.0).view(1, 4, *[1] * (image.ndim - 2))
        return -(image - centres).abs()


def nested(spatial_dims: int) -> tuple[Tensor, Tensor]:
    """Two masks (2, 1, *S) of nested cubes 1, 2, 3 and the images that `Thresholds` reads."""
    axis = torch.arange(12) - 5.5
    radius = torch.stack(torch.meshgrid(*[axis] * spatial_dims, indexing="ij")).abs().amax(0)
    first = (radius < 5).long() + (radius < 4).long() + (radius < 2).long()
    second = (radius < 4).long() + (radius < 3).long() + (radius < 1).long()
    masks = torch.stack([first, second])[:, None]
    return masks.float(), 0.1 + 0.2 * masks.float()


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_what_is_segmented_is_measured_as_masks_are(spatial_dims: int) -> None:
    """With overlapping regions, on the grid's spacing, in native intensities."""
    size = "pixel_area_mm2" if spatial_dims == 2 else "voxel_volume_ml"
    names = [f"lv_{size}", "heart_sphericity", "heart_intensity_mean"]
    spacing = [1.5, 2.0, 4.0][:spatial_dims]
    instrument = Instrument(names, (12,) * spatial_dims, spacing, LABELS, window=(-100, 300))
    instrument.network = Thresholds()
    masks, images = nested(spatial_dims)
    found = instrument.measure(images)
    for row, mask, image in zip(found, masks[:, 0].numpy(), images[:, 0].numpy(), strict=True):
        expected = measure_labels(image * 400.0 - 100, mask.astype(int), spacing, LABELS, names)
        np.testing.assert_allclose(row, [expected[name] for name in names], rtol=1e-5)
    np.testing.assert_array_equal(instrument.segment(images), masks[:, 0])
    region = instrument.region("heart_sphericity", masks[:, 0].numpy())
    np.testing.assert_array_equal(region, masks[:, 0] > 0)


def test_classes_of_masks() -> None:
    mask = torch.tensor([[[[0.0, 1.0], [3.0, 7.0]]]])
    only = Instrument(["lv_elongation"], (8, 8), 1.0, {"lv": 3, "both": [3, 7]})
    assert only.classes(mask).tolist() == [[[0, 0], [1, 2]]]
    anything = Instrument(["elongation"], (8, 8), 1.0)
    assert anything.classes(mask).tolist() == [[[0, 1], [1, 1]]]


def test_specks_are_left_out_and_nothing_is_nan() -> None:
    instrument = Instrument(["lv_pixel_area_mm2", "heart_pixel_area_mm2"], (12, 12), 1.0, LABELS)
    instrument.network = Thresholds()
    masks, images = nested(2)
    clean = instrument.measure(images)
    images[0, 0, 0, 0] = 0.7  # one voxel of class 3 far from the others
    np.testing.assert_array_equal(instrument.measure(images), clean)
    assert np.isnan(instrument.measure(torch.zeros(1, 1, 12, 12))).all()


def test_files_are_used_if_they_fit(tmp_path) -> None:
    def new(seed: int, labels: dict | None = LABELS) -> Instrument:
        return Instrument(
            ["lv_elongation"] if labels else ["elongation"], (8, 8), 1.0, labels, seed=seed
        )

    path, first = tmp_path / "instrument.pt", new(0)
    assert not first.load(path, "a")
    first.save(path, "a")
    image = torch.rand(1, 1, 8, 8)
    other = new(1)
    assert not torch.equal(other.network(image), first.network(image))
    assert not other.load(path, "b")
    assert other.load(path, "a")
    assert torch.equal(other.network(image), first.network(image))
    with pytest.raises(CohortError, match="instrument .* cannot be read"):
        new(0, None).load(path, "a")
    path.write_bytes(b"nothing")
    with pytest.raises(CohortError, match="instrument .* cannot be read"):
        other.load(path, "a")


class Drawer(nn.Module):
    """A generative model that is known: code 0 is a disc's radius, code 1 its brightness.

    With `leak` the radius also follows code 2, as where axes that belong to no attribute know it.
    """

    image_size, in_channels, latent_dim = (SIZE, SIZE), 1, 3
    attribute_names = ("area", "brightness")

    def __init__(self, share: float = 1.0) -> None:
        super().__init__()
        self.share = nn.Parameter(torch.tensor(share), requires_grad=False)
        axis = torch.arange(SIZE) - (SIZE - 1) / 2
        self.distance = (axis[:, None] ** 2 + axis**2).sqrt()

    def decode(self, z: Tensor) -> Tensor:
        radius = 6.0 + 1.3 * (self.share * z[:, 0] + (1 - self.share) * z[:, 2])
        bright = 0.6 + 0.1 * z[:, 1]
        disc = torch.sigmoid(4 * (radius[:, None, None] - self.distance))
        return (bright[:, None, None] * disc)[:, None]

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        bright = image.flatten(1).amax(1)
        radius = (image.flatten(1).sum(1) / bright / torch.pi).sqrt()
        size = (radius - 6.0) / 1.3
        codes = torch.stack([size, (bright - 0.6) / 0.1, size], 1)
        return codes, torch.zeros_like(codes)

    def classify(self, z: Tensor) -> Tensor:
        return z[:, :0]


def evaluation(folder, share: float = 1.0, **options: object) -> ManipulationEvaluation:
    """Sixty drawn discs with columns `area` (mm2 of a grid of 2 mm) and `age`, which none shows."""
    drawer, rng = Drawer(share), np.random.default_rng(0)
    codes = torch.tensor(rng.uniform(-2, 2, (60, 3)), dtype=torch.float32)
    codes[:, 2] = codes[:, 0]
    images = drawer.decode(codes)
    masks = (images > 0.5 * images.flatten(1).amax(1).view(-1, 1, 1, 1)).float()
    table = pd.DataFrame(
        {
            "id": [f"s{i}" for i in range(60)],
            "mask": "somewhere.nii.gz",
            "split": ["train"] * 40 + ["test"] * 20,
            "area": masks.sum((1, 2, 3)).numpy() * 4.0,
            "intensity_mean": 1000 * (0.6 + 0.1 * codes[:, 1].numpy()),
            "age": rng.normal(60, 9, 60),
        }
    )
    names = ("area", "intensity_mean", "age")
    cohort = SimpleNamespace(
        attribute_names=names, subjects=table, patient="patient",
        scaler=AttributeScaler(names).fit(table[table["split"] == "train"]),
    )  # fmt: skip
    data = [
        {"image": images[i : i + 20], "mask": masks[i : i + 20]}
        | {name: torch.tensor(table[name].to_numpy()[i : i + 20]) for name in names}
        for i in range(0, 60, 20)
    ]
    settings = {
        "instrument_steps": 150, "measured_as": {"area": "pixel_area_mm2", "lv": "x"},
        "sweep_steps": 5, "n_resamples": 10, "progress": False,
    }  # fmt: skip
    return ManipulationEvaluation(
        drawer, cohort, data, PrepareAttributes(cohort.scaler, label=False), folder / "eval",
        folder / "instrument.pt", None, 2.0, (0, 1000), **(settings | options),
    )  # fmt: skip


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    folder = tmp_path_factory.mktemp("known")
    return evaluation(folder).run(), folder


def test_a_faithful_decoder_is_found_faithful(known) -> None:
    result, folder = known
    assert json.loads((folder / "eval" / "manipulation.json").read_text()) == result
    area, mean = (result["attributes"][name] for name in ("area", "intensity_mean"))
    for entry in (area, mean):
        assert entry["control"]["value"] > 0.99
        assert entry["span"]["value"] == pytest.approx(1, abs=0.12)
        assert entry["return_error"] < 0.1
        for kind in ("image", "reconstruction"):
            assert entry["instrument"][kind]["r2"] > 0.95
    assert area["effects"]["intensity_mean"]["absolute"] < 0.2  # the soft edge of a small disc
    assert mean["effects"]["area"]["absolute"] < 0.1
    assert mean["outside"] < 0.05 < area["outside"]  # a disc that grows leaves its own mask
    assert area["outside_chance"] > 0.5
    assert result["not_measurable"] == ["age"]
    for name in ("manipulation.md", "sweeps.png", "traversals.png"):
        assert (folder / "eval" / name).stat().st_size > 500


def test_half_the_attribute_on_another_axis_is_half_the_span_unless_calibrated(known, tmp_path):
    before = evaluation(tmp_path, 0.5).run()["attributes"]["area"]
    assert before["control"]["value"] > 0.99
    assert before["span"]["value"] == pytest.approx(0.5, abs=0.12)
    for follow in (0.5, 1.0):  # the other half is on age's axis, which goes with area's
        also = evaluation(tmp_path, 0.5, follow=follow, overwrite=True).run()["attributes"]["area"]
        assert also["span"]["value"] == pytest.approx(0.5 + 0.5 * follow, abs=0.12)
    options = {"follow": 0.3, "follow_of": {"area": 1.0, "nothing": 0.5}, "overwrite": True}
    same = evaluation(tmp_path, 0.5, **options).run()["attributes"]
    assert same["area"]["span"] == also["span"]
    assert [entry["follow"] for entry in same.values()] == [1.0, 0.3]
    assert also["return_error"] < 0.1 < before["return_error"]
    trained = (tmp_path / "instrument.pt").stat().st_mtime_ns
    options = {"calibrated": True, "gif": True, "overwrite": True, "shown": "s3"}
    after = evaluation(tmp_path, 0.5, **options).run()
    assert (tmp_path / "instrument.pt").stat().st_mtime_ns == trained  # the same instrument
    assert after["attributes"]["area"]["span"]["value"] == pytest.approx(1, abs=0.15)
    assert (tmp_path / "eval" / "traversals.gif").read_bytes()[:6] == b"GIF89a"
    rendered = Readout.load(tmp_path / "traversal.json")
    wide = rendered.codes([[600.0, 600.0, 60.0]]) - rendered.codes([[400.0, 600.0, 60.0]])
    drawn = (np.sqrt(600 / 4 / np.pi) - np.sqrt(400 / 4 / np.pi)) / (0.5 * 1.3)
    assert wide[0, 0] == pytest.approx(drawn, rel=0.25)


def test_a_long_tail_is_regressed_on_as_the_model_has_it(tmp_path) -> None:
    made = evaluation(tmp_path, n_resamples=0)
    made.cohort.scaler = AttributeScaler(made.cohort.attribute_names, log=["area"])
    size = np.random.default_rng(0).lognormal(3.0, 1.0, 200)
    training = np.stack([size, np.log(size)], 1)
    found = made._report(np.ones((2, 3, 5, 2)), training, np.arange(3))["attributes"]["area"]
    assert found["effects"]["intensity_mean"]["predicted"] == pytest.approx(1)
    made.cohort.scaler = AttributeScaler(made.cohort.attribute_names)
    raw = made._report(np.ones((2, 3, 5, 2)), training, np.arange(3))["attributes"]["area"]
    assert raw["effects"]["intensity_mean"]["predicted"] < 0.9


def test_an_axis_that_carries_nothing_is_not_moved(known, tmp_path) -> None:
    made = evaluation(tmp_path, 0.0, instrument_steps=5)
    made.network.encode = lambda image: (torch.zeros(len(image), 3),) * 2
    entry = made.run()["attributes"]["area"]
    assert entry["control"]["value"] == entry["span"]["value"] == 0
    assert entry["outside"] is None


def test_one_sentence_for_what_does_not_fit(tmp_path) -> None:
    with pytest.raises(CohortError, match="'pixel_area_mm3', which cannot be measured"):
        evaluation(tmp_path, measured_as={"area": "pixel_area_mm3"})
    with pytest.raises(CohortError, match="Subject 'x' to be shown"):
        evaluation(tmp_path, shown="x")
    with pytest.raises(CohortError, match="sweep_steps is 2"):
        evaluation(tmp_path, sweep_steps=2)
    made = evaluation(tmp_path)
    made.cohort.subjects.loc[7, "mask"] = np.nan
    with pytest.raises(CohortError, match="Subject 's7' has no mask"):
        made._check()
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "manipulation.json").write_text("{}")
    with pytest.raises(CohortError, match="already there"):
        evaluation(tmp_path).run()


def test_training_is_seeded_and_leaves_the_global_generator_alone() -> None:
    images, labels = torch.rand(4, 1, 8, 8), torch.randint(0, 2, (4, 8, 8))
    state = torch.get_rng_state()
    weights = []
    for seed in (0, 0, 1):
        network = Instrument(["elongation"], (8, 8), 1.0).network
        train_segmentation(network, images, labels, 3, 2, seed=seed, progress=False)
        weights.append(torch.cat([p.flatten() for p in network.parameters()]))
        assert not network.training
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(ValueError, match="images have shape"):
        train_segmentation(network, images, labels[:, :4], progress=False)


@pytest.mark.parametrize("dims", [2, 3])
def test_the_instrument_also_learns_from_blurred_images(dims) -> None:
    image = torch.zeros(2, 1, *[17] * dims)
    image[(0, 0, *[8] * dims)] = 1.0
    image[1] = 0.3  # an even image stays as it is, up to its edge
    blurred = _blurred(image, 1.2)
    expected = ndimage.gaussian_filter(image[0, 0].numpy(), 1.2, radius=4)
    np.testing.assert_allclose(blurred[0, 0], expected, atol=1e-7)
    torch.testing.assert_close(blurred[1], image[1])
    assert _blurred(image, 0.0) is image


def test_batches_are_blurred_at_random(monkeypatch) -> None:
    image, label = torch.rand(4, 1, 24, 24), torch.ones(4, 24, 24)
    monkeypatch.setattr(segmentation, "HAZE", 0.0)

    def grains(blur: float) -> list[float]:
        monkeypatch.setattr(segmentation, "BLUR", blur)
        generator = torch.Generator().manual_seed(0)
        return [grain(_augmented(image, label, generator)[0]) for _ in range(8)]

    sharp, blurred = np.array(grains(0.0)), np.array(grains(1.5))
    assert (blurred <= sharp).all()
    assert (blurred < 0.7 * sharp).any()


def test_an_instrument_is_taken_again_if_it_was_trained_alike_and_only_then(
    tmp_path, monkeypatch
) -> None:
    trained = []
    monkeypatch.setattr(remeasured, "train_instrument", lambda *call: trained.append(call))
    images, classes = torch.rand(4, 1, 8, 8), torch.zeros(4, 8, 8, dtype=torch.long)
    for given, steps, recipe, expected in (
        (images, 5, (1,), 1),
        (images, 5, (1,), 1),
        (images, 5, (2,), 2),
        (images, 6, (2,), 3),
        (images + 1, 6, (2,), 4),
        (images + 1, 6, (2,), 4),
    ):
        monkeypatch.setattr(remeasured, "AUGMENTATION", recipe)
        instrument = Instrument(["elongation"], (8, 8), 1.0)
        remeasured.ready_instrument(instrument, tmp_path / "i.pt", given, classes, steps, 0)
        assert len(trained) == expected


@pytest.mark.parametrize("dims", [2, 3])
def test_the_instrument_also_learns_from_faint_patches(dims) -> None:
    image, label = torch.full((4, 1, *[24] * dims), 0.5), torch.ones(4, *[24] * dims)
    changed, same = _augmented(image, label, torch.Generator().manual_seed(0))
    assert torch.equal(same[:, 0], label)
    spread = changed.flatten(1).std(1)
    assert (spread > 0.01).all()
    assert (spread < 0.1).all()
    assert grain(changed) < 0.5  # patches, not noise
