"""The server as its users know it: what `/info/` lists, maps, codes, scores, batches."""

import gzip
import json
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import nibabel as nib
import numpy as np
import pytest
from bodies_of_label import MODEL
from serving import FIRST, SECOND, SERVED, STUDIES, volume

pytestmark = SERVED


def test_info_says_what_the_clients_look_for(server):
    status, info = server.json("GET", "/info/")
    assert status == 200
    assert list(info["models"]) == [MODEL]
    model = info["models"][MODEL]
    assert model["type"] == "segmentation"
    assert model["dimension"] == 3
    assert sorted(model["labels"].values()) == [1, 2, 3, 4]
    assert model["config"]["attribute"] == [FIRST, SECOND]
    assert model["config"]["value"] == ["", "0 %", "25 %", "50 %", "75 %", "100 %"]
    assert set(model["attributes"]) == {FIRST, SECOND}
    assert info["labels"] == ["rv", "myocardium", "lv"]  # Slicer offers them to be drawn
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


def test_json_alone_and_a_clamped_value(server):
    asked = {"attribute": FIRST, "output": "traversal", "value": "1e6"}
    status, content, _ = server.infer("phantom0001", asked, output="json")
    said = json.loads(content)
    assert status == 200
    assert said["values"] == [said["range"][1]]
    assert "outside" in said["warnings"][0]


def test_an_upload_is_answered_and_not_kept(server, own, tmp_path):
    content, before = Path(own[0]).read_bytes(), server.kept()
    status, found, _ = server.infer("", {"output": "map"}, file=("case.nii.gz", content))
    assert status == 200
    _, expected, _ = server.infer("oblique", {"output": "map"})
    np.testing.assert_array_equal(
        volume(found, tmp_path).dataobj, volume(expected, tmp_path, "b.nii.gz").dataobj
    )
    assert not list(server.studies.glob("case*"))
    assert server.forgets(before)


def test_a_bundle_of_a_kind_that_is_not_served_keeps_nobody_waiting(server):
    """The log says why, and so does an answer; the others are served."""
    sentence = "needs the treatment and the covariates of a subject"
    assert sentence in server.log.read_text()
    status, said = server.refused("phantom0001", model="intact_vae")
    assert status == 503
    assert sentence in said


def test_eight_at_once_are_answered_without_mixing(server):
    asked = [(study, a) for study in (*STUDIES, "oblique") for a in (FIRST, SECOND)]

    def answer(pair):
        status, content, _ = server.infer(pair[0], {"attribute": pair[1], "output": "map"})
        return status, gzip.decompress(content)[352:]

    alone = [answer(pair) for pair in asked]
    most = server.memory("VmHWM")
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(answer, asked))
    assert server.memory("VmHWM") <= 1.05 * most  # they wait for each other
    assert [status for status, _ in together] == [200] * 8
    assert together == alone
    assert len({voxels for _, voxels in alone}) == 8


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
            resident.append(server.memory("VmRSS"))
    assert resident[1] <= 1.05 * resident[0]
