"""The folder of studies: nothing beside it is read or written through it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from filelock import FileLock
from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.datastore.local import LocalDatastore

from medvae.data import write_text
from medvae.data.errors import CohortError, suggestion
from medvae.data.files import read_mask
from medvae.label.masks import check_is_mask
from medvae.label.uploads import check_upload

__all__ = ["NotThereError", "SeriesDatastore", "StudiesDatastore", "known", "mask_of"]

# the first character keeps `..`, hidden files and MONAI Label's own out
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_. +=@-]{0,199}")


class NotThereError(CohortError):
    """What was asked for is not there; the message is one sentence."""


class StudiesDatastore(LocalDatastore):
    """MONAI Label's folder of images and labels, which takes names for what they are.

    MONAI Label joins the ids and tags that a client sends to the folder's path as they come, and
    writes its list of studies in place, so that a kill leaves a half of it.

    Args:
        folder: of the studies, an attribute, too.
        kwargs: of MONAI Label's datastore.
    """

    def __init__(self, folder: str, **kwargs: Any) -> None:
        super().__init__(folder, **kwargs)
        self.folder = Path(folder)
        if kwargs.get("auto_reload"):
            self._handler.on_moved = self._replaced

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Add an image under an id that is a file's name.

        Raises:
            CohortError: an id with a path in it, a file of a kind that is no image, or an id that
                is there already.
        """
        found, extension = self._to_id(image_filename)
        _check_name("id", image_id)
        self._check_kind(extension)
        check_upload(image_filename)
        if image_id in self.list_images():
            raise CohortError(f"The study '{image_id}' is there already; expected a new id.")
        return str(super().add_image(image_id, image_filename, image_info))

    def save_label(
        self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]
    ) -> str:
        """Save a label of a study under a tag that is a folder's name.

        Raises:
            CohortError: an unknown study, a tag with a path in it, a file that is no image, or bins
                of a map in place of a mask.
        """
        known(image_id, self.list_images())
        _check_name("tag", label_tag)
        check_is_mask(label_info)
        self._check_kind(self._to_id(label_filename)[1])
        check_upload(label_filename)
        return str(super().save_label(image_id, label_filename, label_tag, label_info))

    def _update_datastore_file(self, lock: bool = True) -> None:
        """Write the list of studies, whole or not at all."""
        with FileLock(self._lock_file) if lock else nullcontext():
            state = self._datastore.model_dump(exclude={"base_path"})
            write_text(self._datastore_config_path, json.dumps(state, indent=2, default=str))
            self._config_ts = Path(self._datastore_config_path).stat().st_mtime

    def _replaced(self, event: Any) -> None:
        """Read the list of studies that another process has written."""
        if event.dest_path == self._datastore_config_path:
            self._init_from_datastore_file()

    def _check_kind(self, extension: str) -> None:
        kinds = [pattern.removeprefix("*") for pattern in self._extensions]
        if extension not in kinds:
            raise CohortError(
                f"A file of the kind '{extension[:20]}' was sent; expected one of {kinds}."
            )


class SeriesDatastore(DICOMWebDatastore):
    """MONAI Label's DICOMweb server and its local copies, which takes names for what they are."""

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Refuse: what is no series of the DICOMweb server would be listed nowhere.

        Raises:
            CohortError: always.
        """
        raise CohortError("Studies are on the DICOMweb server; expected new ones to be sent there.")

    def save_label(
        self,
        image_id: str,
        label_filename: str,
        label_tag: str,
        label_info: dict[str, Any],
        label_id: str = "",
    ) -> str:
        """Save a label of a series; a final one goes to the server as a DICOM segmentation.

        Raises:
            CohortError: an unknown series, a tag with a path in it, a label that is empty or cannot
                be read, or bins of a map in place of a mask.
        """
        known(image_id, self.list_images(), "series")
        _check_name("tag", label_tag)
        check_is_mask(label_info)
        if not label_filename.endswith(".bin"):
            check_upload(label_filename)
            read_mask(label_filename)
        elif not any(Path(label_filename).read_bytes()):  # voxels alone, as OHIF sends them
            raise CohortError("The label is empty; expected at least one voxel of a segment.")
        return str(super().save_label(image_id, label_filename, label_tag, label_info))


def mask_of(study: str, tag: str, datastore: LocalDatastore) -> str:
    """Return the path of a study's label, empty where there is none.

    Of a DICOMweb server these are the labels in its local copy: its own method takes the UID of a
    segmentation in place of the study's.
    """
    return str(LocalDatastore.get_label_uri(datastore, study, tag) or "")


def known(name: object, names: Iterable[str], what: str = "study") -> str:
    """Return a name that is among those known.

    Raises:
        NotThereError: there is none.
    """
    names = list(names)
    if isinstance(name, str) and name in names:
        return name
    asked = str(name)[:80]
    raise NotThereError(f"The {what} '{asked}' is not there; {suggestion(asked, names)}")


def _check_name(what: str, name: object) -> None:
    if not (isinstance(name, str) and NAME.fullmatch(name)):
        raise CohortError(
            f"The {what} '{str(name)[:80]}' is no name of a file; expected letters, digits and "
            "any of _ . + = @ - within it."
        )
