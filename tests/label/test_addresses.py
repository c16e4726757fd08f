"""Which addresses are answered, without a server."""

import pytest

from medvae.label.addresses import refusal


@pytest.mark.parametrize(
    "path",
    [
        "/proxy/dicom/studies/1.2/series",
        "/proxy/dicom/qido/studies",
        "/proxy/dicom/wado/studies/1.2/series/3.4/instances/5.6/frames/1,2",
    ],
)
def test_dicomweb_is_read_by_clients_that_have_it(path):
    assert refusal("GET", path, "", dicomweb=True) is None
    assert refusal("POST", path, "", dicomweb=True)[0] == 405
    assert "expected a DICOMweb server" in refusal("GET", path, "", dicomweb=False)[1]


@pytest.mark.parametrize(
    "path",
    [
        "/proxy",
        "/proxy/dicom/",
        "/proxy/dicom/system",
        "/proxy/dicom/stow/studies",
        "/proxy/dicom//studies",
        "/proxy/dicom/studies?x",
        "/proxy/dicom/studies/a%2fb",
        "/proxy/dicom/studies/../system",
        "/proxy/dicom/studies/..\\system",
        "/ohif/..",
        "/a/%2e%2e/b",
        "/a/%252e%252e",
        "/a/%25252e%25252e",
        "/a/%2525252525252e/b",
        "/a/\0",
        "/reload",
        "/reload/",
        "/logs/gpu",
        "/model/hearts",
        "/model/info/hearts",
        "/infer/wsi/hearts",
        "/infer/wsi_v2/hearts",
    ],
)
def test_what_no_client_needs_is_refused(path):
    assert refusal("GET", path, "", dicomweb=True) is not None


@pytest.mark.parametrize("query", ["image=../a", "id=a%2Fb", "label=%5Ca", "tag=..", "tag=.a"])
def test_names_hold_no_paths(query):
    status, sentence = refusal("GET", "/datastore/image", query, dicomweb=False)
    assert status == 404
    assert "expected a name without a path" in sentence


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("/", ""),
        ("/info/", ""),
        ("/infer/hearts", "image=phantom0001&output=image"),
        ("/infer/wsi", "image=a"),  # a model may be called so
        ("/infer/50%", "image=ein+Herz+(1)"),
        ("/models", ""),
        ("/train/hearts", "run_sync=true"),
        ("/datastore/label", "image=1.2.840&tag="),
        ("/ohif/app.bundle.3f.js", ""),
        ("/session/1842f59e-ea4c", ""),
    ],
)
def test_clients_are_answered(path, query):
    assert refusal("POST", path, query, dicomweb=True) is None
