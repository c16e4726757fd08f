"""Requests that no client should send: a status and a sentence, and the server goes on."""

import gzip
import io
import json
import socket
import zipfile

import nibabel as nib
import numpy as np
import pytest
from bodies_of_label import MODEL
from serving import SERVED

pytestmark = SERVED
PATH = f"/train/{MODEL}"


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
    assert server.form("PUT", "/datastore/image?image=../out", file=image)[0] == 404
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


JSON = {"content-type": "application/json"}


@pytest.mark.parametrize("path", ["/train/", PATH, "/scoring/distance", "/activelearning/distance"])
@pytest.mark.parametrize("body", [b"{not json", b"[1, 2]", b"\xff", b"[" * 100_000])
def test_a_body_that_is_no_json_object(server, path, body):
    status, content, _ = server.ask("POST", path, body, JSON)
    assert status == 400
    assert isinstance(json.loads(content)["detail"], str)


@pytest.mark.parametrize("params", ["{not json", "[1]", "null", "[" * 100_000])
def test_params_of_a_label_that_are_no_json_object(server, params):
    image = ("a.nii.gz", (server.studies / "phantom0001.nii.gz").read_bytes())
    path = "/datastore/label?image=phantom0002&tag=other"
    status, content, _ = server.form("PUT", path, {"params": params}, label=image)
    assert status == 400
    assert isinstance(json.loads(content)["detail"], str)
    assert not (server.studies / "labels" / "other").exists()


@pytest.mark.parametrize(
    ("method", "path", "sentence"),
    [
        ("POST", f"/infer/{MODEL}?output=json", "Neither Image nor File"),
        ("POST", f"/infer/{MODEL}?image=phantom0001&output=dicom_seg", "non-DICOM datastore"),
        ("PUT", f"/model/{MODEL}", "Weights are neither served nor replaced"),
        ("GET", "/proxy/dicom/studies", "The studies are files"),
        ("POST", "/reload", "restart the server"),
        ("GET", "/logs/?lines=100", "The log is not served"),
        ("POST", f"/infer/wsi/{MODEL}?image=phantom0001", "Whole slides are not served"),
        ("GET", "/ohif/%2e%2e/%2e%2e", "a path that leaves its folder"),
        ("GET", "/datastore/image?image=..%2Fsecret", "is not there"),
        ("GET", "/datastore/label?label=phantom0001&tag=..", "is not there"),
    ],
)
def test_what_no_client_needs_is_refused(server, method, path, sentence):
    status, content, _ = server.form(method, path, {"params": "{}"})
    assert 400 <= status < 500
    assert sentence in json.loads(content)["detail"]
    assert str(server.root) not in content.decode()


def test_an_upload_of_unsaid_length(server):
    status, content, _ = server.ask("POST", PATH, iter([b"{}"] * 3), JSON)  # chunked
    assert status == 411
    assert "Content-Length" in json.loads(content)["detail"]


def test_a_small_file_that_unpacks_to_a_huge_one_is_never_unpacked(server):
    """Of zeros: by its shape, and by what stands between its header and its voxels."""
    most = server.memory("VmHWM")
    header = nib.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4)).to_bytes()[:352]
    shape = np.frombuffer(header, nib.Nifti1Header.template_dtype, 1).copy()
    shape["dim"][0][1:4] = 30_000
    offset = np.frombuffer(header, nib.Nifti1Header.template_dtype, 1).copy()
    offset["vox_offset"] = 2**31
    size = np.array([2**31 - 16, 6], "<i4").tobytes()
    for content in (
        shape.tobytes() + bytes(4),
        offset.tobytes() + b"\1\0\0\0" + size + bytes(300_000_000),
    ):
        packed = gzip.compress(content, 1)
        assert len(packed) < 5_000_000
        status, sentence = server.refused("", file=("a.nii.gz", packed))
        assert status == 400
        assert "GB of memory" in sentence or "bytes of header" in sentence
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.dcm", bytes(100_000_000))
    path = "/session/?uncompress=true"
    status, content, _ = server.form("PUT", path, files=("a.zip", archive.getvalue()))
    assert status == 413
    assert "The archive holds 100000000 bytes" in json.loads(content)["detail"]
    assert server.memory("VmHWM") <= most + 100_000  # kB


def test_a_file_that_names_another_is_not_read(server):
    """NRRD and others may hold the path of their voxels."""
    header = b"NRRD0004\ntype: uint8\ndimension: 3\nsizes: 8 8 8\nencoding: raw\n"
    nrrd = ("a.nrrd", header + b"data file: /etc/passwd\n\n")
    assert server.refused("", file=nrrd)[0] == 400
    assert server.form("PUT", "/datastore/image?image=a", file=nrrd)[0] == 400
    status, sentence = server.refused("", file=("a.mhd", b"ElementDataFile = /etc/passwd\n"))
    assert status == 400
    assert "A file of the kind '.mhd' was sent" in sentence


def test_a_client_that_leaves_before_its_answer(server):
    body, before = b"params=%7B%7D", server.kept()
    head = (
        f"POST {PATH.replace('train', 'infer')}?image=oblique&output=image HTTP/1.1\r\nHost: a\r\n"
        "Content-Type: application/x-www-form-urlencoded\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    for _ in range(4):
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.sendall(head.encode() + body)
    assert server.infer("phantom0001", output="json")[0] == 200
    assert server.forgets(before)


def test_a_client_that_goes_away(server):
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(
            b"POST /infer/hearts HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nhalf"
        )
    assert server.infer("phantom0001", output="json")[0] == 200
