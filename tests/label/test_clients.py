"""What 3D Slicer and OHIF send, replayed to a server that was started as the docs say."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from bodies_of_label import MODEL
from serving import FIRST, PYTHON, SECOND, SERVED, SLICER, STUDIES, Server, parts_of, volume

from medvae.label import quantise

pytestmark = SERVED
BINS = [{"name": f"{n}-{n + 20} % of peak", "idx": n // 20} for n in (20, 40, 60, 80)]
MASK = [{"name": name, "idx": n} for n, name in enumerate(("rv", "myocardium", "lv"), 1)]


@pytest.fixture(scope="module")
def documented(trained, tmp_path_factory):
    """A server by MONAI Label's own command, as the page of the docs has it."""
    root = tmp_path_factory.mktemp("documented")
    (root / "studies").mkdir()
    (root / "bundles").mkdir()
    for name in STUDIES:
        shutil.copy(trained / "data" / "images" / f"{name}.nii.gz", root / "studies")
    for name in ("attri_vae", MODEL):
        (root / "bundles" / name).symlink_to(trained)
    page = (Path(__file__).parents[2] / "docs" / "label.md").read_text()
    (line,) = re.findall(r"^monailabel start_server .*$", page, re.MULTILINE)
    line = line.replace("STUDIES", "studies").replace("BUNDLES", "bundles")
    command = ["bash", "-c", f'exec {line} "$@"', "bash"]
    with Server(root, root / "studies", root / "bundles", command) as running:
        running.model = "attri_vae"
        yield running


def test_the_documented_command_serves_the_model_that_it_names(documented):
    status, info = documented.json("GET", "/info/")
    assert status == 200
    assert list(info["models"]) == ["attri_vae"]
    assert "127.0.0.1" in documented.log.read_text()


def test_what_slicer_sends(documented, tmp_path):
    """Its plugin asks without output, for NRRD in uint8, and takes the multipart answer apart."""
    # the first of each list of the model's config, in its table of options
    config = documented.json("GET", "/info/")[1]["models"][documented.model]["config"]
    options = {key: v[0] if isinstance(v, list) else v for key, v in config.items()}
    assert options == {"attribute": FIRST, "output": "bins", "value": ""}
    status, content, kind = documented.infer("phantom0001", options | SLICER, output=None)
    assert status == 200
    parts = parts_of(content, kind)
    params = json.loads(parts["params"])
    (tmp_path / "a.nrrd").write_bytes(parts["image"])
    bins = sitk.ReadImage(str(tmp_path / "a.nrrd"))
    assert bins.GetPixelID() == sitk.sitkUInt8
    _, content, _ = documented.infer("phantom0001", {"output": "map"})
    floats = volume(content, tmp_path)
    expected = quantise(np.asarray(floats.dataobj))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(bins).swapaxes(0, 2), expected)
    place = bins.TransformIndexToPhysicalPoint((2, 3, 4))
    np.testing.assert_allclose(
        np.array(place) * [-1, -1, 1], (floats.affine @ [2, 3, 4, 1])[:3], atol=1e-3
    )
    assert set(params["label_names"].values()) == {1, 2, 3, 4}
    assert len(params["codes"]) == 6
    assert set(params["attributes"]) == {FIRST, SECOND}
    assert sum(params["probabilities"].values()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(("value", "share"), [("0 %", 0), ("100 %", 1)])
def test_a_value_from_the_list_of_options(documented, value, share):
    asked = {"attribute": SECOND, "output": "traversal", "value": value}
    said = json.loads(documented.infer("phantom0001", asked, output="json")[1])
    assert said["values"] == pytest.approx([said["range"][share]])


def test_what_slicers_own_client_class_does(documented, trained, tmp_path):
    script = """
import json, sys
from monailabel.client import MONAILabelClient
url, model, image, mask, folder, segments = sys.argv[1:]
client = MONAILabelClient(url, folder, "slicer")
params = {"attribute": "", "value": "", "result_extension": ".nrrd", "result_dtype": "uint8"}
file, said = client.infer(model, "phantom0001", dict(params))
session = client.create_session(image)["session_id"]
other, again = client.infer(model, "", dict(params), session_id=session)
client.remove_session(session)
sample = client.next_sample("distance", {})
saved = client.save_label("phantom0001", mask, params={"label_info": json.loads(segments)})
kept = client.download_label(saved["label"], "final")
running = client.train_status(check_if_running=True)
client.train_stop()
print(json.dumps([file, said["codes"], again["codes"], sample, saved, kept, running]))
"""
    files = [trained / "data" / folder / "phantom0001.nii.gz" for folder in ("images", "masks")]
    url = f"http://127.0.0.1:{documented.port}"
    arguments = [url, documented.model, *map(str, files), str(tmp_path), json.dumps(MASK)]
    done = subprocess.run(
        [PYTHON, "-c", script, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    file, codes, again, sample, saved, kept, running = json.loads(done.stdout.splitlines()[-1])
    assert file.endswith(".nrrd")
    assert codes == again
    assert sample["id"] in STUDIES
    assert saved == {"image": "phantom0001", "label": "phantom0001"}
    assert Path(kept).read_bytes() == files[1].read_bytes()
    assert running is False
    listed = documented.json("GET", "/datastore/?output=all")[1]["objects"]["phantom0001"]
    assert listed["labels"]["final"]["info"]["label_info"] == MASK


def test_bins_that_a_user_submits_are_no_mask(documented):
    """Slicer submits all segments of a study, also those that it was shown."""
    _, content, _ = documented.infer("phantom0002")
    fields = {"params": json.dumps({"label_info": [*MASK, *BINS], "client_id": "slicer"})}
    path = "/datastore/label?image=phantom0002"
    status, said, _ = documented.form("PUT", path, fields, label=("a.nii.gz", content))
    assert status == 400
    assert "'20-40 % of peak', a bin of a map; expected a mask" in json.loads(said)["detail"]
    listed = documented.json("GET", "/datastore/?output=all")[1]["objects"]["phantom0002"]
    assert "final" not in listed["labels"]


def test_what_ohif_sends(documented, tmp_path):
    """It asks for the image alone; dicom_seg is for DICOMweb, and says so."""
    params = {"result_extension": ".nrrd", "result_dtype": "uint8", "result_compress": False}
    params["restore_label_idx"] = False
    status, content, _ = documented.infer("phantom0002", params, output="image")
    assert status == 200
    assert b"encoding: raw" in content[:1000]
    (tmp_path / "a.nrrd").write_bytes(content)
    found = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "a.nrrd")))
    assert found.max() == 4
    _, content, kind = documented.infer("phantom0002", params, output="all")
    (tmp_path / "b.nrrd").write_bytes(parts_of(content, kind)["image"])
    np.testing.assert_array_equal(
        sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "b.nrrd"))), found
    )
    status, sentence = documented.refused("phantom0002", params, output="dicom_seg")
    assert status == 400
    assert "DICOM" in sentence


def test_ohif_asks_whether_a_training_runs(documented):
    assert documented.json("GET", "/train/?check_if_running=true")[0] == 404
