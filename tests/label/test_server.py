"""A real MONAI Label server on loopback, in its own environment, asked as its clients ask it.

Runs where MEDVAE_LABEL_PYTHON names the Python of requirements-label.txt; .ci/run makes it.
"""

import email
import email.policy
import gzip
import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from bodies_of_label import MODEL, inferred

from medvae.data import phantoms
from medvae.label import quantise

PYTHON = os.environ.get("MEDVAE_LABEL_PYTHON", "")
pytestmark = [
    pytest.mark.skipif(
        not (PYTHON and os.path.exists(PYTHON)),
        reason="MEDVAE_LABEL_PYTHON does not name the Python of requirements-label.txt",
    ),
    pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning"),
]
SLICER = {"result_extension": ".nrrd", "result_dtype": "uint8", "client_id": "slicer"}
STUDIES = ["phantom0001", "phantom0002", "phantom0003"]
FIRST, SECOND = "lv_voxel_volume_ml", "myocardium_wall_thickness_mm"


class Server:
    """A server and what a client needs to talk to it: the standard library alone."""

    def __init__(self, root, studies, log, bundles, cwd=None):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.root, self.studies, self.log = root, studies, log
        arguments = ["--studies", str(studies), "--bundles", str(bundles), "--port", str(self.port)]
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        environment |= {
            "OMP_NUM_THREADS": "1",
            "MONAI_LABEL_DICOMWEB_CACHE_PATH": str(root / "dcm"),
        }
        command = [PYTHON, "-m", "medvae.label", *arguments]
        with log.open("w") as output:
            self.process = subprocess.Popen(
                [*command, "--device", "cpu", "--max_upload_mb", "5"],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=cwd or studies.parent,
            )

    def __enter__(self):
        try:
            self.ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(30)

    def ready(self, seconds=300):
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.process.poll() is None:
            try:
                return self.json("GET", "/info/")[1]
            except OSError:
                time.sleep(0.5)
        raise AssertionError(f"the server did not start:\n{self.log.read_text()[-3000:]}")

    def ask(self, method, path, body=b"", headers=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        content = response.read()
        connection.close()
        return response.status, content, response.getheader("content-type", "")

    def json(self, method, path, value=None):
        body = b"" if value is None else json.dumps(value).encode()
        status, content, _ = self.ask(method, path, body, {"content-type": "application/json"})
        return status, json.loads(content) if content else None

    def form(self, method, path, fields=None, **files):
        """Send multipart/form-data as the clients do; files are (name, bytes)."""
        edge, parts = "----edge", []
        for name, value in (fields or {}).items():
            parts.append(f'name="{name}"\r\n\r\n'.encode() + value.encode())
        for name, (filename, content) in files.items():
            head = f'name="{name}"; filename="{filename}"\r\n\r\n'
            parts.append(head.encode() + content)
        start = f"--{edge}\r\nContent-Disposition: form-data; ".encode()
        body = b"".join(start + part + b"\r\n" for part in parts) + f"--{edge}--\r\n".encode()
        return self.ask(
            method, path, body, {"content-type": f"multipart/form-data; boundary={edge}"}
        )

    def infer(self, image, params=None, output="image", model=MODEL, **files):
        path = f"/infer/{model}?image={image}" + (f"&output={output}" if output else "")
        return self.form("POST", path, {"params": json.dumps(params or {})}, **files)

    def refused(self, *args, **kwargs):
        """Return status and sentence of an answer to `infer`."""
        status, content, _ = self.infer(*args, **kwargs)
        return status, json.loads(content)["detail"]


@pytest.fixture(scope="module")
def own(trained, tmp_path_factory):
    """The oblique phantom, and the folder of what the bundle's own inference says of it."""
    return inferred(trained, tmp_path_factory.mktemp("own"))


@pytest.fixture(scope="module")
def server(trained, own, tmp_path_factory):
    root = tmp_path_factory.mktemp("served")
    studies = root / "studies"
    (studies / "labels" / "final").mkdir(parents=True)
    for name in STUDIES:
        shutil.copy(trained / "data" / "images" / f"{name}.nii.gz", studies)
    masks = trained / "data" / "masks"
    shutil.copy(masks / f"{STUDIES[0]}.nii.gz", studies / "labels" / "final")
    shutil.copy(own[0], studies / "oblique.nii.gz")
    rng = np.random.default_rng(0)
    for name, shape in (("flat", (12, 12)), ("colours", (12, 12, 9, 3))):
        image = nib.Nifti1Image(rng.random(shape).astype(np.float32), np.eye(4))
        image.to_filename(studies / f"{name}.nii.gz")
    (root / "secret.nii.gz").write_bytes((studies / "oblique.nii.gz").read_bytes())
    broken = root / "bundles" / "broken"
    for part in ("configs", "models"):
        shutil.copytree(trained / part, broken / part)
    (broken / "models" / "run.json").write_text('{"settings": {"latent_dim": 7}}')
    (root / "bundles" / MODEL).symlink_to(trained)
    with Server(root, studies, root / "server.log", root / "bundles") as running:
        yield running


def volume(content, folder, name="answer.nii.gz"):
    (folder / name).write_bytes(content)
    return nib.load(folder / name)


def test_info_says_what_the_clients_look_for(server):
    status, info = server.json("GET", "/info/")
    assert status == 200
    assert list(info["models"]) == [MODEL]
    model = info["models"][MODEL]
    assert model["type"] == "segmentation"
    assert model["dimension"] == 3
    assert sorted(model["labels"].values()) == [1, 2, 3, 4]
    assert model["config"]["attribute"] == [FIRST, SECOND]
    assert set(model["attributes"]) == {FIRST, SECOND}
    assert {"disagreement", "distance"} <= set(info["strategies"])
    status, store = server.json("GET", "/datastore/?output=all")
    assert status == 200
    assert set(STUDIES) <= set(store["objects"])


@pytest.mark.parametrize("attribute", [FIRST, SECOND])
def test_float_map_is_the_bundles_own(server, own, attribute, tmp_path):
    status, content, _ = server.infer("oblique", {"attribute": attribute, "output": "map"})
    assert status == 200
    found = volume(content, tmp_path)
    expected = nib.load(own[1] / f"oblique_map_{attribute}.nii.gz")
    assert found.get_data_dtype() == np.float32
    values = np.asarray(found.dataobj)
    assert np.abs(values - np.asarray(expected.dataobj)).max() <= 1e-5
    assert values.max() > 0
    np.testing.assert_array_equal(found.affine, expected.affine)
    np.testing.assert_allclose(found.affine, nib.load(own[0]).affine, atol=1e-3)


def test_traversal_is_the_bundles_own(server, own, tmp_path):
    status, content, _ = server.infer("oblique", {"output": "traversal"})
    assert status == 200
    found = np.asarray(volume(content, tmp_path).dataobj)
    expected = np.asarray(nib.load(own[1] / f"oblique_traversal_{FIRST}.nii.gz").dataobj)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < 1e-2  # of 1200


def test_what_slicer_sends(server, tmp_path):
    """Its plugin asks without output, for NRRD in uint8, and takes the multipart answer apart."""
    status, content, kind = server.infer("oblique", SLICER, output=None)
    assert status == 200
    head = f"Content-Type: {kind}\r\n\r\n".encode()
    message = email.message_from_bytes(head + content, policy=email.policy.HTTP)
    parts = {p.get_param("name", header="content-disposition"): p for p in message.iter_parts()}
    params = json.loads(parts["params"].get_content())
    (tmp_path / "a.nrrd").write_bytes(parts["image"].get_payload(decode=True))
    bins = sitk.ReadImage(str(tmp_path / "a.nrrd"))
    assert bins.GetPixelID() == sitk.sitkUInt8
    _, content, _ = server.infer("oblique", {"output": "map"})
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


def test_what_slicers_own_client_class_does(server, tmp_path):
    script = """
import json, sys
from monailabel.client import MONAILabelClient
client = MONAILabelClient(sys.argv[1], sys.argv[3])
params = {"result_extension": ".nrrd", "result_dtype": "uint8"}
file, said = client.infer("hearts", "phantom0001", params)
session = client.create_session(sys.argv[2])["session_id"]
other, again = client.infer("hearts", "", params, session_id=session)
client.remove_session(session)
print(json.dumps([file, said["codes"], again["codes"], client.next_sample("distance", {})]))
"""
    image = str(server.studies / "phantom0001.nii.gz")
    url = f"http://127.0.0.1:{server.port}"
    done = subprocess.run(
        [PYTHON, "-c", script, url, image, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    file, codes, again, sample = json.loads(done.stdout.splitlines()[-1])
    assert file.endswith(".nrrd")
    assert codes == again
    assert sample["id"] in {"oblique", *STUDIES}


def test_what_ohif_sends(server, tmp_path):
    """It asks for the image alone; dicom_seg is for DICOMweb, and says so."""
    params = {"result_extension": ".nrrd", "result_dtype": "uint8", "result_compress": False}
    status, content, _ = server.infer("phantom0002", params, output="image")
    assert status == 200
    (tmp_path / "a.nrrd").write_bytes(content)
    assert sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "a.nrrd"))).max() == 4
    status, sentence = server.refused("phantom0002", params, output="dicom_seg")
    assert "DICOM" in sentence


def test_json_alone_and_a_clamped_value(server):
    asked = {"attribute": FIRST, "output": "traversal", "value": "1e6"}
    status, content, _ = server.infer("phantom0001", asked, output="json")
    said = json.loads(content)
    assert status == 200
    assert said["values"] == [said["range"][1]]
    assert "outside" in said["warnings"][0]


def test_an_upload_is_answered_and_not_kept(server, own, tmp_path):
    content = Path(own[0]).read_bytes()
    status, found, _ = server.infer("", {"output": "map"}, file=("case.nii.gz", content))
    assert status == 200
    _, expected, _ = server.infer("oblique", {"output": "map"})
    np.testing.assert_array_equal(
        volume(found, tmp_path).dataobj, volume(expected, tmp_path, "b.nii.gz").dataobj
    )
    assert not list(server.studies.glob("case*"))


def test_eight_at_once_are_answered_without_mixing(server):
    asked = [(study, a) for study in (*STUDIES, "oblique") for a in (FIRST, SECOND)]

    def answer(pair):
        status, content, _ = server.infer(pair[0], {"attribute": pair[1], "output": "map"})
        return status, gzip.decompress(content)[352:]

    alone = [answer(pair) for pair in asked]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(answer, asked))
    assert [status for status, _ in together] == [200] * 8
    assert together == alone
    assert len({voxels for _, voxels in alone}) == 8


@pytest.mark.parametrize(
    ("image", "params", "status", "sentence"),
    [
        ("nobody", {}, 404, "The study 'nobody' is not there"),
        ("phantom001", {}, 404, "did you mean 'phantom0001'"),
        ("../secret", {}, 404, "is not there"),
        ("SECRET", {}, 404, "is not there"),
        ("phantom0001", {"image": "SECRET"}, 404, "is not there"),
        ("phantom0001", {"image": ["a"]}, 404, "is not there"),
        ("phantom0001", {"image": "/a\0b"}, 404, "is not there"),
        ("phantom0001", {"model": ["a"]}, 404, "The model '['a']' is not there"),
        ("phantom0001", {"attribute": "lv_volume"}, 400, "The attribute 'lv_volume' is unknown"),
        ("phantom0001", {"output": "heat"}, 400, "The output 'heat' is unknown"),
        ("phantom0001", {"output": "traversal", "value": "much"}, 400, "expected a finite number"),
        ("phantom0001", {"result_extension": "/../../x.nii"}, 400, "result_extension"),
        ("flat", {}, 400, "expected"),
        ("colours", {}, 400, "'colours' has the shape"),
    ],
)
def test_a_bad_request_is_told_in_a_sentence(server, image, params, status, sentence):
    secret = str(server.root / "secret.nii.gz")
    params = {key: secret if value == "SECRET" else value for key, value in params.items()}
    found = server.refused(secret if image == "SECRET" else image, params)
    assert found[0] == status
    assert sentence in found[1]
    assert str(server.studies) not in found[1]
    assert server.infer("phantom0001", output="json")[0] == 200


def test_models_that_are_not_there_or_do_not_fit(server):
    assert server.refused("phantom0001", model="nobody")[0] == 404
    status, sentence = server.refused("phantom0001", model="broken")
    assert status == 503
    assert "does not fit this network" in sentence
    assert str(server.root) not in sentence
    weights = (server.root / "bundles" / MODEL / "models" / "model.pt").read_bytes()
    for name in (MODEL, "broken"):
        assert server.form("PUT", f"/model/{name}", file=("model.pt", b"x"))[0] >= 400
        assert server.ask("DELETE", f"/model/{name}")[0] == 404
        assert server.ask("GET", f"/model/{name}")[0] == 404
    assert (server.root / "bundles" / MODEL / "models" / "model.pt").read_bytes() == weights


def test_bodies_that_are_no_request(server):
    path = f"/infer/{MODEL}?image=phantom0001&output=json"
    status, content, _ = server.form("POST", path, {"params": "{not json"})
    assert status == 400
    assert "not JSON" in json.loads(content)["detail"]
    status, content, _ = server.form("POST", path, {"params": "[1, 2]"})
    assert status == 400
    assert "cannot be used" in json.loads(content)["detail"]
    assert server.refused("", file=("a.nii.gz", b"no image"))[0] == 400
    status, sentence = server.refused("", file=("a.nii.gz", b"0" * 6_000_000))
    assert status == 413
    assert "expected 5000000 at most" in sentence
    assert server.infer("phantom0001", output="json")[0] == 200


def test_nothing_beside_the_studies_is_written_or_removed(server):
    image = ("a.nii.gz", (server.studies / "phantom0001.nii.gz").read_bytes())
    before = sorted(p for p in server.root.rglob("*") if p.suffix != ".log")
    assert server.form("PUT", "/datastore/image?image=../out", file=image)[0] == 400
    assert server.form("PUT", "/datastore/image?image=phantom0001", file=image)[0] == 400
    config = ("a.json", b"{}")
    assert server.form("PUT", "/datastore/image?image=datastore_v2", file=config)[0] == 400
    for path in ("image=phantom0001&tag=../../x", "image=nobody&tag=final"):
        assert server.form("PUT", f"/datastore/label?{path}", label=image)[0] in (400, 404)
    assert server.ask("DELETE", "/datastore/image?id=../secret")[0] == 404
    assert server.ask("GET", "/datastore/image?image=../secret")[0] == 404
    assert server.ask("GET", "/datastore/label?label=../secret&tag=..")[0] == 404
    assert server.ask("DELETE", "/session/..")[0] in (404, 405)
    tar = ("a.tar", b"no archive")
    assert server.form("PUT", "/session/?uncompress=true", files=tar)[0] == 400
    assert sorted(p for p in server.root.rglob("*") if p.suffix != ".log") == before


def test_scores_and_strategies(server):
    status, scored = server.json("POST", "/scoring/distance?run_sync=true")
    assert status == 200
    assert set(scored["scores"]) == {"oblique", *STUDIES}
    assert set(scored["skipped"]) == {"flat", "colours"}
    status, scored = server.json("POST", "/scoring/disagreement?run_sync=true")
    assert status == 200
    assert list(scored["scores"]) == [STUDIES[0]]
    assert "no mask with the tag 'final'" in scored["skipped"][STUDIES[1]]
    status, sample = server.json("POST", "/activelearning/distance", {"client_id": "a"})
    assert status == 200
    unlabelled = {"oblique", *STUDIES[1:]}
    distances = server.json("GET", "/datastore/?output=all")[1]["objects"]
    kept = {n: distances[n]["image"]["info"]["distance"][MODEL] for n in unlabelled}
    assert sample["id"] == max(kept, key=kept.get)
    assert server.json("POST", "/activelearning/disagreement", {})[1]["id"] == STUDIES[0]
    assert server.json("POST", "/activelearning/nobody", {})[0] == 404
    assert server.json("POST", "/activelearning/distance", {"model": "nobody"})[0] == 404


def test_scores_by_another_process_arrive(server):
    """Without run_sync MONAI Label scores in a process of its own, which writes the list."""
    listed = server.studies / "datastore_v2.json"
    forgotten = {"info": json.dumps({"distance": {}})}
    assert server.form("PUT", f"/datastore/image/info?image={STUDIES[0]}", forgotten)[0] == 200
    assert server.json("POST", "/scoring/distance", {})[0] == 200
    for _ in range(240):
        info = server.json("GET", f"/datastore/image/info?image={STUDIES[0]}")[1]
        if MODEL in info["distance"]:
            break
        time.sleep(0.5)
    assert MODEL in info["distance"]
    json.loads(listed.read_text())


def test_many_at_a_time(server):
    asked = {"save_label": True, "label_tag": "bins", "device": "cpu"}
    path = f"/batch/infer/{MODEL}?images=all&run_sync=true"
    status, found = server.json("POST", path, asked)
    assert status == 200
    assert set(found) == {"oblique", "flat", "colours", *STUDIES}
    assert "error" in found["flat"]
    assert found["oblique"]["label"] == "oblique"
    written = nib.load(server.studies / "labels" / "bins" / "oblique.nii.gz")
    assert written.get_data_dtype() == np.uint8


def test_a_client_that_goes_away(server):
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(
            b"POST /infer/hearts HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nhalf"
        )
    assert server.infer("phantom0001", output="json")[0] == 200


def test_the_lines_for_slicer_run(server, monkeypatch, tmp_path):
    page = Path(__file__).parents[2] / "docs" / "label.md"
    (code,) = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    code = code.replace("phantom0008", "oblique").replace("wall_thickness_mm", FIRST)
    code = code.replace("127.0.0.1:8000", f"127.0.0.1:{server.port}")
    slicer = mock.MagicMock()
    slicer.app.temporaryPath = str(tmp_path)
    shown = []

    def load(path, properties):
        shown.append(np.asarray(nib.load(path).dataobj))
        return mock.MagicMock()

    slicer.util.loadVolume.side_effect = load
    slicer.util.arrayFromVolume.side_effect = lambda _: shown[0]
    monkeypatch.setitem(sys.modules, "slicer", slicer)
    exec(code, {})
    _, content, _ = server.infer("oblique", {"output": "map"})
    np.testing.assert_array_equal(shown[0], volume(content, tmp_path).dataobj)


def test_memory_stays_where_it_is(server):
    """After 10 requests, 40 more may add 5 % at most; the issue's 200 take too long for a test."""
    resident = []
    for number in range(50):
        assert server.infer("oblique", {"output": "map"})[0] == 200
        if number in (9, 49):
            pages = Path(f"/proc/{server.process.pid}/statm").read_text().split()[1]
            resident.append(int(pages))
    assert resident[1] <= 1.05 * resident[0]


@pytest.fixture(scope="module")
def teaching(trained, tmp_path_factory):
    """A server whose studies have masks and a table, and whose model may be replaced."""
    root = tmp_path_factory.mktemp("teaching")
    studies = root / "studies"
    table = phantoms(root / "data", 30, seed=5)
    (studies / "labels" / "final").mkdir(parents=True)
    for row in table.itertuples():
        shutil.copy(row.image, studies)
        if not pd.isna(row.mask):
            shutil.copy(row.mask, studies / "labels" / "final" / Path(row.image).name)
    table[["id", "diagnosis", "patient"]].to_csv(studies / "subjects.csv", index=False)
    ignored = shutil.ignore_patterns("data")
    shutil.copytree(trained, root / "bundles" / MODEL, ignore=ignored)
    with Server(root, studies, root / "server.log", root / "bundles") as running:
        yield running


def awaited(server, done, seconds=240):
    """Ask for the training's status until `done` of it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        status, task = server.json("GET", "/train/")
        if status == 200 and done(task):
            return task
        time.sleep(0.5)
    raise AssertionError(f"{task}\n{server.log.read_text()[-3000:]}")


def codes(server):
    return json.loads(server.infer("phantom0001", output="json")[1])["codes"]


def test_a_training_that_is_stopped_or_cannot_be_leaves_the_model(teaching):
    before = codes(teaching)
    path = f"/train/{MODEL}"
    for asked, sentence in (({"max_epochs": 0}, "max_epochs is 0"), ({"pretrained": 1}, "is 1")):
        status, said = teaching.json("POST", f"{path}?run_sync=true", asked)
        assert status == 400
        assert sentence in said["detail"]
    status, said = teaching.json("POST", "/train/nobody?run_sync=true", {})
    assert status == 404
    assert teaching.json("POST", path, {"max_epochs": 5000})[0] == 200
    task = awaited(
        teaching,
        lambda t: t["status"] == "ERROR" or "training:" in " ".join(t.get("details", ())),
    )
    assert task["status"] == "RUNNING", task
    assert teaching.json("POST", path, {"max_epochs": 1})[0] == 429  # one at a time
    assert codes(teaching) == before  # it answers meanwhile
    assert teaching.json("DELETE", "/train/")[1]["status"] == "STOPPED"
    assert codes(teaching) == before
    json.loads((teaching.studies / "datastore_v2.json").read_text())


def test_a_training_from_the_client_replaces_the_model(teaching):
    assert MODEL in teaching.json("GET", "/info/")[1]["trainers"]
    before = codes(teaching)
    assert teaching.json("POST", f"/train/{MODEL}", {"max_epochs": 1})[0] == 200
    task = awaited(teaching, lambda t: t["status"] not in ("SUBMITTED", "RUNNING"))
    assert task["status"] == "DONE", teaching.log.read_text()[-3000:]
    assert codes(teaching) != before
    assert (teaching.root / "bundles" / MODEL / "previous" / "models" / "model.pt").is_file()
