"""Which addresses are answered: those that the clients need, with names in them and no paths."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, unquote

__all__ = ["refusal"]

# what no client needs, by the start of its address; MONAI Label asks nobody who they are
CLOSED = {
    "/reload": "The app is not rebuilt on demand; restart the server.",
    "/logs": "The log is not served; it is in the server's terminal.",
    "/model": "Weights are neither served nor replaced; expected a training, /train/MODEL.",
    "/infer/wsi/": "Whole slides are not served; expected /infer/MODEL.",
    "/infer/wsi_v2/": "Whole slides are not served; expected /infer/MODEL.",
}
NAMED = {"image": "study", "id": "study", "label": "study", "tag": "tag"}
# OHIF reads studies through MONAI Label: searches, metadata, frames, bulk data, pictures
DICOMWEB = re.compile(
    r"/proxy/dicom/((wado|qido)/)?(studies|series|instances)(/[A-Za-z0-9._,-]{1,128})*/?"
)


def refusal(method: str, path: str, query: str, dicomweb: bool) -> tuple[int, str] | None:
    """Return the status and the sentence that refuse a request; None: it is one of a client.

    Args:
        method: of HTTP.
        path: decoded once, as a server hands it on, without the prefix that it is served under.
        query: as it was sent.
        dicomweb: whether the studies are those of a DICOMweb server.
    """
    if _leaves(path):
        return 404, "The address holds a path that leaves its folder; expected names alone."
    for start, sentence in CLOSED.items():
        if path.startswith(start) and path[len(start.rstrip("/")) :][:1] in ("", "/"):
            return 404, sentence
    if path.startswith("/proxy"):
        return _of_proxy(method, path, dicomweb)
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key in NAMED and not _is_name(value):
            what = NAMED[key]
            return 404, f"The {what} '{value[:80]}' is not there; expected a name without a path."
    return None


def _of_proxy(method: str, path: str, dicomweb: bool) -> tuple[int, str] | None:
    if not dicomweb:
        return 404, "The studies are files; expected a DICOMweb server for /proxy."
    if method != "GET":
        return 405, "Nothing is written through /proxy; expected GET."
    if not DICOMWEB.fullmatch(path):
        return 404, "Only DICOMweb's studies, series and instances are read through /proxy."
    return None


def _leaves(path: str) -> bool:
    """Whether a segment is `.` or `..` or may hide one, as what is still encoded may."""
    hidden = "\\" in path or "\0" in path or unquote(path) != path
    return hidden or bool({".", ".."} & set(path.split("/")))


def _is_name(value: str) -> bool:
    return len(value) <= 255 and not value.startswith(".") and not set("/\\\0") & set(value)
