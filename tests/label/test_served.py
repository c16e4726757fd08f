"""What the MONAI Label app does for a request, without MONAI Label."""

import json
import shutil
import sys
import threading

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
import torch
import yaml
from bodies_of_label import (
    CONFIGS,
    MODEL,
    encoder_bundle,
    gan_bundle,
    inferred,
    intact_bundle,
    oblique,
    stylex_bundle,
)
from matplotlib.image import imread
from picture import draw_answers

from medvae.data import AttributeScaler, CohortError
from medvae.label import (
    Asked,
    ServedBundle,
    bin_edges,
    clamped,
    disagreement,
    distances,
    find_bundles,
    loaded,
    quantise,
    training_codes,
)
from medvae.label.__main__ import main
from medvae.label.bins import bin_names
from medvae.label.files import write_volume

NAMES = ("volume_ml", "thickness_mm")
pytestmark = pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning")


def test_bins_are_steps_of_the_peak():
    values = np.array([[0.0, 0.199, 0.2, 0.399], [0.4, 0.6, 0.8, 1.0]])
    np.testing.assert_array_equal(quantise(values * 7), [[0, 0, 1, 1], [2, 3, 4, 4]])
    np.testing.assert_allclose(bin_edges(7.0), np.array([0.2, 0.4, 0.6, 0.8, 1.0]) * 7)
    assert quantise(values, 254).max() == 254
    assert list(bin_names(4)) == [f"{s}-{s + 20} % of peak" for s in (20, 40, 60, 80)]


def test_bins_agree_with_their_edges():
    values = np.random.default_rng(0).random((9, 8, 7)).astype(np.float32)
    for bins in (1, 4, 10):
        edges = bin_edges(float(values.max()), bins)
        expected = np.digitize(values.astype(np.float64), edges[:-1])
        np.testing.assert_array_equal(quantise(values, bins), expected)


@pytest.mark.parametrize("value", [0.0, np.nan, -1.0])
def test_a_map_of_nothing_is_background(value):
    assert not quantise(np.full((3, 3), value)).any()


def test_parameters_have_defaults_and_other_keys_pass():
    assert Asked.of({"device": "cuda", "value": "", "attribute": None}, NAMES) == Asked(NAMES[0])
    asked = {"attribute": NAMES[1], "output": "traversal", "value": [1, "2.5"], "bins": "7"}
    expected = Asked(NAMES[1], "traversal", (1.0, 2.5), 7, ".nrrd")
    assert Asked.of(asked | {"result_extension": ".nrrd"}, NAMES) == expected
    assert Asked.of({"value": "3, 4"}, NAMES).values == (3.0, 4.0)
    shares = Asked.of({"value": "0 %, 50 %"}, NAMES)
    assert (shares.values, shares.shares) == ((), (0.0, 0.5))
    assert not Asked.of({"result_compress": False}, NAMES).compress


@pytest.mark.parametrize(
    ("params", "sentence"),
    [
        ({"attribute": "volume"}, "The attribute 'volume' is unknown; did you mean 'volume_ml'"),
        ({"attribute": ["volume_ml"]}, "The attribute '\\['volume_ml'\\]' is unknown"),
        ({"attribute": "all"}, "The attribute 'all' is unknown"),
        ({"output": "probability"}, "The output 'probability' is unknown; known: 'bins', 'map'"),
        ({"value": "much"}, "The value is 'much'; expected a finite number"),
        ({"value": "nan"}, "expected a finite number"),
        ({"value": [1, None]}, "expected a finite number"),
        ({"value": {"a": 1}}, "expected a finite number"),
        ({"value": True}, "expected a finite number"),
        ({"value": "many %"}, "expected a finite number"),
        ({"value": "101 %"}, "The value is 101 %; expected 0 to 100 % of the range"),
        ({"value": "5, 10 %"}, "The value holds numbers and per cent"),
        ({"value": [1.0] * 17}, "The value holds 17 numbers; expected at most 16"),
        ({"bins": 0}, "The bins are 0; expected a whole number, 1 to 254"),
        ({"bins": 2.5}, "expected a whole number"),
        ({"result_extension": "/../../x"}, "The result_extension '/../../x' is unknown"),
    ],
)
def test_a_parameter_that_cannot_be_used_is_refused(params, sentence):
    with pytest.raises(CohortError, match=sentence):
        Asked.of(params, NAMES)


def test_values_are_moved_into_the_range():
    assert clamped([2.0, 3.0], 1.0, 5.0, "a") == ([2.0, 3.0], [])
    values, warnings = clamped([-1.0, 2.0, 9.0], 1.0, 5.0, "a")
    assert values == [1.0, 2.0, 5.0]
    assert len(warnings) == 2
    assert "'a' was asked for at -1" in warnings[0]
    assert "set to 5" in warnings[1]


def test_disagreement_is_in_standard_deviations():
    scaler = AttributeScaler(["a", "b"], log=["b"])
    scaler.mean, scaler.sd = np.array([10.0, 0.0]), np.array([2.0, 1.0])
    assert disagreement(scaler, [14.0, np.e], [10.0, np.e]) == pytest.approx(np.sqrt(2.0))
    assert disagreement(scaler, [14.0, 1.0], [10.0, np.nan]) == pytest.approx(2.0)
    assert np.isfinite(disagreement(scaler, [14.0, -1.0], [10.0, 1.0]))
    assert np.isnan(disagreement(scaler, [1.0, 1.0], [np.nan, np.nan]))


def test_distance_is_that_of_the_training(tmp_path):
    rng = np.random.default_rng(0)
    training = rng.normal(size=(5000, 3)) * [1.0, 5.0, 0.1] + [0.0, 2.0, 1.0]
    near, far = distances([[0.0, 2.0, 1.0], [0.0, 2.0, 1.4]], training)
    assert near == pytest.approx(0.0, abs=0.1)
    assert far == pytest.approx(4 / np.sqrt(3), rel=0.05)
    assert distances([[1.0, 1.0]])[0] == pytest.approx(1.0)
    assert training_codes(tmp_path / "absent.csv") is None
    (tmp_path / "p.csv").write_text("id,split,z0,z1\na,train,1,2\nb,test,3,4\n")
    np.testing.assert_array_equal(training_codes(tmp_path / "p.csv"), [[1.0, 2.0]])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(4, 5, 6), (4, 5)])
def test_nrrd_lies_where_nifti_does(tmp_path, channels, shape):
    voxels = np.random.default_rng(0).random((channels, *shape)).astype(np.float32)
    affine = oblique((1.0, 2.0, 3.0))
    for name in ("a.nrrd", "a.nii"):
        write_volume(tmp_path / name, voxels, affine)
    nifti = nib.load(tmp_path / "a.nii")
    np.testing.assert_allclose(nifti.affine, affine, atol=1e-5)
    image = sitk.ReadImage(str(tmp_path / "a.nrrd"))
    index = (1, 2, 3) if len(shape) == 3 else (1, 2, 0)
    place = np.array(image.TransformIndexToPhysicalPoint(index)) * [-1, -1, 1]
    np.testing.assert_allclose(place, (affine @ [*index, 1])[:3], atol=1e-5)
    found = np.ravel(image.GetPixel(index))
    np.testing.assert_array_equal(found, voxels[(slice(None), *index[: len(shape)])])


def test_starting_says_what_is_missing(monkeypatch):
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.setitem(sys.modules, "monailabel.main", None)
    with pytest.raises(SystemExit, match="--studies and --bundles are not both given"):
        main([])
    with pytest.raises(SystemExit, match="MONAI Label cannot be imported"):
        main(["--studies", "a", "--bundles", "b", "--models", "c", "--ssl_keyfile", "d"])
    assert sys.argv[-4:] == ["models", "c", "--ssl_keyfile", "d"]
    assert sys.argv[sys.argv.index("--host") + 1] == "127.0.0.1"


@pytest.fixture(scope="module")
def root(trained):
    return trained


@pytest.fixture(scope="module")
def served(root):
    return ServedBundle(root)


def test_bundles_are_found_in_a_folder_or_are_it(root, tmp_path):
    assert find_bundles(root) == find_bundles(root.parent) == {MODEL: root}
    assert find_bundles(tmp_path / "absent") == {}


def test_settings_are_those_of_the_training(served):
    assert served.attributes == ("lv_voxel_volume_ml", "myocardium_wall_thickness_mm")
    assert not served.needs_mask
    assert served.training.shape[1] == 6
    for low, high in served.ranges.values():
        assert low < high


def test_pictures_of_the_docs(served, root, pictured, picture_folder):
    """The four answers of a test phantom, as `docs/label.md` shows them."""
    name, root = "wall_thickness_mm", pictured or root
    name = name if pictured else f"myocardium_{name}"
    subjects = pd.read_csv(root / "eval" / "subjects.csv").query("split == 'test'")
    picture = picture_folder / "phantom_label.png"
    draw_answers(
        ServedBundle(root) if pictured else served, subjects["image"].iloc[0], name, picture
    )
    height, width, _ = imread(picture).shape
    assert (height, width) == (248, 880)


def test_answers_are_the_bundles_own(served, root, tmp_path):
    image, folder = inferred(root, tmp_path)
    for name in served.attributes:
        own = nib.load(folder / f"oblique_map_{name}.nii.gz")
        answer = served.answer({"image": image}, Asked(name, "map"))
        assert answer.channels.dtype == np.float32
        assert answer.channels.max() > 0
        assert np.abs(answer.channels[0] - np.asarray(own.dataobj)).max() < 1e-5
        np.testing.assert_array_equal(answer.affine, own.affine)
        bins = served.answer({"image": image}, Asked(name)).channels
        assert bins.dtype == np.uint8
        np.testing.assert_array_equal(bins, quantise(answer.channels))
        own = nib.load(folder / f"oblique_traversal_{name}.nii.gz")
        answer = served.answer({"image": image}, Asked(name, "traversal"))
        assert np.abs(np.moveaxis(answer.channels, 0, -1) - np.asarray(own.dataobj)).max() < 1e-2
    together = served.answer({"image": image}, Asked("all", "map")).channels
    for channel, name in zip(together, served.attributes, strict=True):
        alone = served.answer({"image": image}, Asked(name, "map")).channels[0]
        np.testing.assert_allclose(channel, alone, atol=1e-6)
    table = (folder.parent / "predictions.csv").read_text().splitlines()
    row = dict(zip(table[0].split(","), table[1].split(","), strict=True))
    said = served.read({"image": image})
    np.testing.assert_allclose(said["codes"], [float(row[f"z{d}"]) for d in range(6)], atol=1e-4)
    for name, value in said["attributes"].items():
        assert value == pytest.approx(float(row[f"read_{name}"]), rel=1e-4)
    for name, value in said["probabilities"].items():
        assert value == pytest.approx(float(row[f"probability_{name}"]), abs=1e-4)


def test_a_traversal_stays_within_the_range(served, root, tmp_path):
    name = served.attributes[0]
    answer = served.answer({"image": oblique_study(tmp_path)}, Asked(name, "traversal", (1e6,)))
    assert answer.params["values"] == [served.ranges[name][1]]
    assert "outside" in answer.params["warnings"][0]
    json.dumps(answer.params, allow_nan=False)
    assert len(answer.channels) == 1


def test_per_cent_are_those_of_the_range(served, tmp_path):
    name = served.attributes[0]
    image = {"image": oblique_study(tmp_path)}
    said = served.answer(image, Asked(name, "traversal", shares=(0.0, 1.0))).params
    assert said["values"] == pytest.approx(list(served.ranges[name]))
    assert said["warnings"] == []
    five = served.answer(image, Asked(name, "traversal")).params["values"]
    assert len(five) == 5
    assert five[::4] == said["values"]


def oblique_study(folder):
    path = folder / "oblique.nii.gz"
    voxels = np.random.default_rng(1).random((20, 24, 16)).astype(np.float32) * 900
    nib.Nifti1Image(voxels, oblique((4.0, 4.0, 6.0))).to_filename(path)
    return str(path)


def test_threads_do_not_mix_their_answers(served, tmp_path):
    image = oblique_study(tmp_path)
    expected = {
        name: served.answer({"image": image}, Asked(name, "map")).channels
        for name in served.attributes
    }
    found = {}

    def ask(number):
        name = served.attributes[number % 2]
        found[number] = name, served.answer({"image": image}, Asked(name, "map")).channels

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    for name, channels in found.values():
        np.testing.assert_array_equal(channels, expected[name])


def test_an_image_that_cannot_be_used_is_refused(served, tmp_path):
    colours = np.random.default_rng(0).random((9, 9, 9, 3))
    nib.Nifti1Image(colours, np.eye(4)).to_filename(tmp_path / "rgb.nii.gz")
    with pytest.raises(CohortError, match="3 channels or time points; expected 1 channel in 3D"):
        served.read({"image": str(tmp_path / "rgb.nii.gz")})
    (tmp_path / "text.nii.gz").write_text("no image")
    with pytest.raises(CohortError, match="text.nii.gz"):
        served.read({"image": str(tmp_path / "text.nii.gz")})


def test_attributes_are_measured_in_a_mask(served, root):
    image, mask = (root / "data" / f / "phantom0001.nii.gz" for f in ("images", "masks"))
    measured = served.measured(str(image), str(mask))
    assert list(measured) == list(served.attributes)
    assert all(value > 0 for value in measured.values())


def test_disagreement_of_a_study(served, root):
    image, mask = (str(root / "data" / f / "phantom0001.nii.gz") for f in ("images", "masks"))
    read, measured = served.read({"image": image})["attributes"], served.measured(image, mask)
    expected = disagreement(
        served.reading.readout.scaler,
        [read[name] for name in served.attributes],
        [measured[name] for name in served.attributes],
    )
    assert served.disagreement({"image": image}, mask) == pytest.approx(expected)


def test_a_model_with_subspaces_says_what_its_heads_say(tmp_path):
    root = encoder_bundle(tmp_path)
    served = ServedBundle(root)
    assert served.attributes == ("diagnosis", "age")
    assert served.ranges == {}
    image = str(root / "data" / "images" / "phantom0001.nii.gz")
    answer = served.answer({"image": image}, Asked("diagnosis", "map"))
    assert answer.channels.shape == (1, *nib.load(image).shape[:2])
    assert sum(answer.params["probabilities"]["diagnosis"].values()) == pytest.approx(1, abs=1e-6)
    assert list(answer.params["attributes"]) == ["age"]
    assert 0 < answer.params["attributes"]["age"] < 150
    with pytest.raises(CohortError, match="A model with subspaces has no traversal"):
        served.answer({"image": image}, Asked("age", "traversal"))
    assert np.isnan(served.disagreement({"image": image}, image.replace("images", "masks")))


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_a_gan_is_served_as_a_model_with_subspaces(tmp_path, spatial_dims):
    root = gan_bundle(tmp_path, spatial_dims)
    served = loaded(root, "cpu")
    assert served.attributes == ("diagnosis",)
    assert served.outputs == ("bins", "map")
    image = str(root / "data" / "images" / "phantom0001.nii.gz")
    answer = served.answer({"image": image}, Asked("diagnosis", "map"))
    assert answer.channels.shape == (1, *nib.load(image).shape[:spatial_dims])
    assert sum(answer.params["probabilities"]["diagnosis"].values()) == pytest.approx(1, abs=1e-6)
    with pytest.raises(CohortError, match="A model with subspaces has no traversal"):
        served.answer({"image": image}, Asked("diagnosis", "traversal"))


def test_a_stylex_answers_with_what_its_search_found(tmp_path):
    """The edit at its end is the bundle's own, the map how far it is from the reconstruction."""
    root = stylex_bundle(tmp_path)
    served = loaded(root, "cpu")
    first, second = "attribute01_up", "attribute02_up"
    assert served.attributes == (first, second)
    assert served.ranges[first] == (0.0, 1.0)
    path = str(root / "data" / "images" / "phantom0001.nii.gz")
    said = served.answer({"image": path}, Asked(first, "traversal", (0.0, 1.0, 7.0))).params
    assert said["values"] == [0.0, 1.0, 1.0]
    assert "outside of the way that was searched (0 to 1)" in said["warnings"][0]
    assert sum(said["probabilities"]["scanner"].values()) == pytest.approx(1, abs=1e-6)
    assert len(said["codes"]) == 4
    inferer = served._part("edit_inferer")
    image = served._input(served._prepared({"image": path}))
    base, *edits = inferer(image, served._network)[0]
    series, _ = served.reading.series(served._network, image, second, [0.0, 1.0])
    torch.testing.assert_close(series[0], base)
    torch.testing.assert_close(series[1], edits[1])
    maps = served.reading.maps(served._network, image, [first, second])
    torch.testing.assert_close(maps, torch.stack([(edit - base).abs() for edit in edits]))
    assert maps.max() > 0
    answer = served.answer({"image": path}, Asked(second))
    assert answer.channels.dtype == np.uint8
    assert answer.channels.max() == 4
    assert served.answer({"image": path}, Asked("all", "map")).channels.shape[0] == 2
    (root / "eval" / "attributes.json").unlink()
    with pytest.raises(CohortError, match="expected the file that the search of"):
        loaded(root, "cpu")


def test_a_bundle_that_is_not_served_says_why(root, tmp_path):
    with pytest.raises(CohortError, match="needs the treatment and the covariates of a subject"):
        loaded(intact_bundle(tmp_path))
    copy = damaged(root, tmp_path, "x", configs__inference_dot_yaml="readout: $1 / 0\n")
    with pytest.raises(CohortError, match="'x' fails while it is loaded .* the server's log"):
        loaded(copy)


def damaged(root, folder, name, **changes):
    """A copy of the bundle with some files replaced."""
    copy = folder / name
    for part in ("configs", "models"):
        shutil.copytree(root / part, copy / part)
    for path, text in changes.items():
        (copy / path.replace("__", "/").replace("_dot_", ".")).write_text(text)
    return copy


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"models__model_dot_pt": "no weights"}, "cannot be read"),
        ({"models__readout_dot_json": "{}"}, "readout .* cannot be read"),
        ({"models__run_dot_json": '{"settings": {"latent_dim": 7}}'}, "does not fit this network"),
        ({"models__run_dot_json": "{"}, "configuration of the bundle 'x' cannot be read"),
        ({"configs__inference_dot_yaml": "bundle_root: ."}, "reads neither attributes nor factors"),
    ],
)
def test_a_bundle_that_does_not_fit_is_refused(root, tmp_path, changes, sentence):
    with pytest.raises(CohortError, match=sentence):
        ServedBundle(damaged(root, tmp_path, "x", **changes))


def test_an_unknown_device_is_refused(root):
    with pytest.raises(CohortError, match="The device 'abacus' is unknown"):
        ServedBundle(root, "abacus")
    with pytest.raises(CohortError, match="This machine has no device 'meta'; expected cpu"):
        ServedBundle(root, "meta")  # as cuda on a machine without


def test_weights_are_data_alone(root, tmp_path):
    copy = damaged(root, tmp_path, "x")
    torch.save({"a": threading.Thread}, copy / "models" / "model.pt")
    with pytest.raises(CohortError, match="cannot be read"):
        ServedBundle(copy)


def test_the_configuration_is_yaml_of_the_repository(root):
    own = yaml.safe_load((root / "configs" / "inference.yaml").read_text())
    assert own == yaml.safe_load((CONFIGS / "inference.yaml").read_text())
