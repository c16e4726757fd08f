"""The label server with a DICOMweb server as its studies: Orthanc, on loopback.

Runs where Orthanc and its DICOMweb plugin are installed (Debian: orthanc, orthanc-dicomweb) and
MEDVAE_LABEL_PYTHON names the Python of requirements-label.txt.
"""

import gzip
import http.client
import io
import json
import shutil
import socket
import subprocess
import time
from contextlib import closing
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from bodies_of_label import MODEL, oblique_phantom
from browsing import done, headless_chromium, waited
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from serving import FIRST, SERVED, Server

from medvae.label import Asked, ServedBundle, quantise

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
pytestmark = [
    *SERVED,
    pytest.mark.skipif(
        not (shutil.which("Orthanc") and PLUGIN.exists()),
        reason="Orthanc and its DICOMweb plugin are not installed",
    ),
]


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def dicom_series(image, folder):
    """Write a volume as a CT series, and return its UID and the volume as DICOM can hold it."""
    folder.mkdir()
    voxels = np.asarray(image.dataobj).round().astype(np.int16)
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ image.affine
    steps = np.linalg.norm(lps[:3, :3], axis=0)
    directions = lps[:3, :3] / steps
    series, study, frame = generate_uid(), generate_uid(), generate_uid()
    for k in range(voxels.shape[2]):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        item = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
        item.SOPClassUID, item.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        item.StudyInstanceUID, item.SeriesInstanceUID = study, series
        item.FrameOfReferenceUID = frame
        item.PatientID, item.PatientName = "phantom", "Phantom^One"
        item.PatientBirthDate, item.PatientSex = "", "O"
        item.Modality, item.StudyDate, item.StudyTime = "CT", "20260101", "120000"
        item.SeriesDate, item.SeriesTime, item.InstanceNumber = "20260101", "120000", k + 1
        item.StudyID, item.AccessionNumber, item.SeriesNumber = "1", "", 1
        item.ReferringPhysicianName = ""
        item.Rows, item.Columns = voxels.shape[1], voxels.shape[0]
        item.PixelSpacing = [float(steps[1]), float(steps[0])]
        item.SliceThickness = float(steps[2])
        item.ImageOrientationPatient = [
            *map(float, directions[:, 0]),
            *map(float, directions[:, 1]),
        ]
        item.ImagePositionPatient = [float(x) for x in (lps @ [0, 0, k, 1])[:3]]
        item.SamplesPerPixel, item.PhotometricInterpretation = 1, "MONOCHROME2"
        item.BitsAllocated, item.BitsStored, item.HighBit = 16, 16, 15
        item.PixelRepresentation, item.RescaleSlope, item.RescaleIntercept = 1, 1, 0
        item.PixelData = np.ascontiguousarray(voxels[:, :, k].T).tobytes()
        item.save_as(folder / f"{k:03d}.dcm", enforce_file_format=True)
    return str(series), nib.Nifti1Image(voxels.astype(np.float32), image.affine)


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory):
    """The port of an Orthanc that keeps its studies in a folder of its own."""
    root, port = tmp_path_factory.mktemp("orthanc"), free_port()
    settings = {
        "StorageDirectory": str(root / "storage"),
        "IndexDirectory": str(root / "index"),
        "HttpPort": port,
        "DicomServerEnabled": False,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "Plugins": [str(PLUGIN)],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    (root / "orthanc.json").write_text(json.dumps(settings))
    with (root / "log").open("w") as log:
        process = subprocess.Popen(
            ["Orthanc", str(root / "orthanc.json")], stdout=log, stderr=subprocess.STDOUT
        )
    try:
        for _ in range(120):
            try:
                if asked(port, "GET", "/system")[0] == 200:
                    break
            except OSError:
                time.sleep(0.25)
        else:
            raise AssertionError((root / "log").read_text()[-2000:])
        yield port
    finally:
        process.terminate()
        process.wait(30)


def asked(port, method, path, body=b""):
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        connection.request(method, path, body)
        with connection.getresponse() as response:
            return response.status, response.read()


@pytest.fixture(scope="module")
def served(orthanc, trained, pictured, tmp_path_factory):
    """The server, the bundle, the UID of an oblique phantom's series and the phantom."""
    root, trained = tmp_path_factory.mktemp("dicomweb"), pictured or trained
    oblique_phantom(trained, root / "oblique.nii.gz")
    series, image = dicom_series(nib.load(root / "oblique.nii.gz"), root / "series")
    for file in sorted((root / "series").glob("*.dcm")):
        assert asked(orthanc, "POST", "/instances", file.read_bytes())[0] == 200
    image.to_filename(root / "expected.nii.gz")
    address = f"http://127.0.0.1:{orthanc}/dicom-web"
    with Server(root, address, trained) as running:
        yield running, trained, series, root / "expected.nii.gz"


def test_a_float_map_of_a_series_lies_where_the_series_does(served, tmp_path):
    server, bundle, series, image = served
    status, content, _ = server.infer(series, {"attribute": FIRST, "output": "map"})
    assert status == 200, content
    (tmp_path / "map.nii.gz").write_bytes(content)
    found = nib.load(tmp_path / "map.nii.gz")
    answer = ServedBundle(bundle, "cpu").answer(
        {"image": str(image)}, Asked.of({"output": "map"}, [FIRST])
    )
    # as SimpleITK sorts the slices: along the normal, whichever way they were stored
    expected = nib.Nifti1Image(answer.channels[0], answer.affine)
    centre = [(n - 1) / 2 for n in found.shape[:3]]
    np.testing.assert_allclose(
        (found.affine @ [*centre, 1])[:3], (expected.affine @ [*centre, 1])[:3], atol=1e-2
    )
    one = nib.as_closest_canonical(found)
    two = nib.as_closest_canonical(expected)
    np.testing.assert_allclose(one.affine, two.affine, atol=1e-2)
    values = np.asarray(one.dataobj).squeeze()
    assert np.abs(values - np.asarray(two.dataobj).squeeze()).max() <= 1e-3 * values.max()
    assert values.max() > 0


def test_what_ohif_sends_of_a_series(served, tmp_path):
    server, _, series, _ = served
    params = {"result_extension": ".nrrd", "result_dtype": "uint8", "result_compress": False}
    status, content, _ = server.infer(series, params, output="image")
    assert status == 200
    (tmp_path / "a.nrrd").write_bytes(content)
    bins = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "a.nrrd")))
    assert set(np.unique(bins)) <= {0, 1, 2, 3, 4}
    _, content, _ = server.infer(series, {"output": "map"})
    (tmp_path / "b.nii.gz").write_bytes(content)
    floats = np.asarray(nib.load(tmp_path / "b.nii.gz").dataobj).squeeze()
    np.testing.assert_array_equal(bins.swapaxes(0, 2), quantise(floats))


def test_bins_become_a_dicom_segmentation_of_the_series(served, tmp_path):
    from pydicom import dcmread

    server, _, series, _ = served
    info = [{"name": f"bin {n}", "model_name": MODEL} for n in range(1, 5)]
    status, content, _ = server.infer(series, {"label_info": info}, output="dicom_seg")
    assert status == 200, server.log.read_text()[-3000:]
    (tmp_path / "a.dcm").write_bytes(content)
    found = dcmread(tmp_path / "a.dcm")
    assert found.Modality == "SEG"
    assert found.ReferencedSeriesSequence[0].SeriesInstanceUID == series
    assert 1 <= len(found.SegmentSequence) <= 4


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    "path",
    [
        "../system",
        "%2e%2e/system",
        "studies/%2e%2e/%2e%2e/system",
        "studies/..%2F..%2Fsystem",
        "studies/%252e%252e/%252e%252e/system",
        "studies/..%5c..%5csystem",
        "wado/%2e%2e/system",
        "qido/studies/%2e%2e/%2e%2e/instances",
        "stow/studies",
        "system",
        "studies%3f/../../system",
        "/system",
    ],
)
def test_nothing_but_dicomweb_is_reached_through_the_proxy(served, method, path):
    server = served[0]
    status, content, _ = server.ask(method, f"/proxy/dicom/{path}", b"")
    assert status in (404, 405)
    assert b"DicomAet" not in content
    assert isinstance(json.loads(content)["detail"], str)


def test_ohif_reads_studies_through_the_proxy_and_writes_none(served, orthanc):
    """As its data source in MONAI Label's app-config.js asks: qido and wado."""
    server, _, series, _ = served

    def read(path):  # as Orthanc sends it, packed
        status, content, _ = server.ask("GET", f"/proxy/dicom/{path}")
        assert status == 200
        return json.loads(gzip.decompress(content) if content[:1] == b"\x1f" else content)

    found = read("qido/studies?limit=101")
    study = found[0]["0020000D"]["Value"][0]
    path = f"studies/{study}/series/{series}"
    instance = read(f"wado/{path}/metadata")[0]["00080018"]["Value"][0]
    frame = f"/proxy/dicom/wado/{path}/instances/{instance}/frames/1"
    assert server.ask("GET", frame)[0] == 200
    before = asked(orthanc, "GET", "/instances")[1]
    assert server.ask("POST", "/proxy/dicom/wado/studies", b"DICM")[0] == 405
    assert asked(orthanc, "GET", "/instances")[1] == before


def test_names_with_paths_reach_nothing_beside_the_copies(served):
    server, _, series, image = served
    content = image.read_bytes()
    before = sorted(p for p in server.root.rglob("*") if p.suffix != ".log")
    outside = image.relative_to(server.root).with_suffix("").stem
    for name in (f"../../{outside}", "..", f"..%2f..%2f{outside}"):
        assert server.ask("GET", f"/datastore/image?image={name}")[0] == 404
    label = ("a.nii.gz", content)
    for query in (f"image={series}&tag=../../x", "image=../x&tag=final", "image=1.2&tag=final"):
        assert server.form("PUT", f"/datastore/label?{query}", label=label)[0] in (400, 404)
    for query in ("image=../../x", "image=1.2.3"):
        assert server.form("PUT", f"/datastore/image?{query}", file=label)[0] in (400, 404)
    assert sorted(p for p in server.root.rglob("*") if p.suffix != ".log") == before


def test_ohif_saves_a_label(served, orthanc):
    """Voxels alone in label.bin, without a tag: a DICOM segmentation is kept by the server."""
    server, _, series, image = served
    size = np.prod(nib.load(image).shape)
    voxels = np.zeros(size, np.uint8)
    path = f"/datastore/label?image={series}"

    def saved(voxels, info):
        fields = {"params": json.dumps({"label_info": info})}
        status, said, _ = server.form("PUT", path, fields, label=("label.bin", voxels.tobytes()))
        return status, json.loads(said)

    mask, bins = [{"name": "lv"}], [{"name": "20-40 % of peak"}]
    before = json.loads(asked(orthanc, "GET", "/series")[1])
    status, said = saved(voxels, mask)
    assert status == 400
    assert "The label is empty" in said["detail"]
    voxels[size // 2 : size // 2 + 99] = 1
    assert saved(voxels[:-1], mask)[0] == 400
    status, said = saved(voxels, bins)
    assert status == 400
    assert "a bin of a map; expected a mask" in said["detail"]
    assert json.loads(asked(orthanc, "GET", "/series")[1]) == before
    assert saved(voxels, mask) == (200, {"image": series, "label": series})
    assert len(json.loads(asked(orthanc, "GET", "/series")[1])) == len(before) + 1
    status, content, _ = server.ask("GET", f"/datastore/label?label={series}&tag=original")
    assert status == 404


def test_a_series_that_is_not_there(served):
    server, _, series, _ = served
    assert server.refused("1.2.3.4")[0] == 404
    assert server.refused(series, {"attribute": "nobody"})[0] == 400
    assert server.infer(series, output="json")[0] == 200


# ---- OHIF itself, which MONAI Label brings along, in a browser


def coloured(browser):
    """How many pixels of the first of OHIF's planes are neither grey nor of its writing."""
    plane = browser.find_element("css selector", "canvas.cornerstone-canvas")
    pixels = np.asarray(Image.open(io.BytesIO(plane.screenshot_as_png)).convert("RGB"), float)
    return int((np.ptp(pixels, axis=-1) > 40).sum())


def test_ohif_shows_the_bins(served, orthanc, picture_folder):
    server, bundle, *_ = served
    found = json.loads(asked(orthanc, "GET", "/dicom-web/studies")[1])[0]
    study = found["0020000D"]["Value"][0]
    with headless_chromium() as browser:
        from selenium.webdriver.common.keys import Keys

        browser.set_window_size(1300, 760)
        browser.get(f"http://127.0.0.1:{server.port}/ohif/monai-label?StudyInstanceUIDs={study}")

        def named(text, tag="*"):
            return browser.find_elements("xpath", f"//{tag}[normalize-space(text())='{text}']")

        address = "input.actionInput"
        assert waited(lambda: browser.find_elements("css selector", address), 120)
        assert waited(lambda: browser.find_elements("css selector", "canvas.cornerstone-canvas"))
        for hide in named("Confirm and Hide"):
            hide.click()

        def connect():
            field = browser.find_element("css selector", address)
            field.send_keys(Keys.CONTROL, "a")
            field.send_keys(f"http://127.0.0.1:{server.port}/")
            field.find_element("xpath", "following::button").click()

        assert waited(lambda: done(connect))
        assert waited(lambda: named(bundle.name, "option"))
        before = coloured(browser)
        buttons = browser.find_elements("css selector", "button.actionButton")
        run = next(button for button in buttons if button.text.strip() == "Run")
        browser.execute_script("arguments[0].click()", run)
        assert waited(lambda: coloured(browser) > before + 500)
        browser.save_screenshot(str(picture_folder / "phantom_ohif.png"))
        named("Options / Configurations")[0].click()
        *_, last = server.json("GET", "/info/")[1]["models"][bundle.name]["attributes"]
        assert waited(lambda: named(last, "option"))  # what else can be asked for
