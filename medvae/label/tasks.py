"""A bundle as MONAI Label's tasks: what its clients ask, and train again."""

from __future__ import annotations

import logging
import os
import tempfile
import threading
from pathlib import Path
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType
from monailabel.interfaces.tasks.train import TrainTask

from medvae.data.errors import CohortError
from medvae.label.asked import SHARES, Asked
from medvae.label.bins import bin_names
from medvae.label.files import write_volume
from medvae.label.served import ServedBundle, loaded
from medvae.label.studies import StudiesDatastore, mask_of
from medvae.label.training import TrainingOptions, needs_mask, studies_table, train_again

__all__ = ["BundleTask", "BundleTraining"]

logger = logging.getLogger(__name__)


class BundleTask(InferTask):
    """One trained bundle as MONAI Label's clients see it: a segmentation into bins of a map.

    Args:
        bundle: the bundle.
        mask_tag: of the labels that are masks, for a bundle whose preprocessing needs them.
        device: that the bundle was loaded on; None: as it says itself.
    """

    def __init__(self, bundle: ServedBundle, mask_tag: str, device: str | None = None) -> None:
        config = {"attribute": list(bundle.attributes), "output": list(bundle.outputs)}
        if bundle.ranges:  # clients show a list as a choice, whose first entry is the default
            config["value"] = ["", *(f"{100 * share:g} %" for share in SHARES)]
        super().__init__(
            type=InferType.SEGMENTATION,
            labels=bin_names(),
            dimension=bundle.spatial_dims,
            description=f"Where the model '{bundle.name}' reads an attribute",
            config=config,
        )
        self._bundle, self._device = bundle, device
        self.mask_tag = mask_tag
        self._lock = threading.Lock()

    @property
    def bundle(self) -> ServedBundle:
        """The bundle, read again where a training has replaced its model."""
        with self._lock:
            if self._bundle.is_replaced():
                try:
                    self._bundle = loaded(self._bundle.folder, self._device)
                except CohortError as error:
                    logger.error(
                        "The new model of '%s' is not served: %s", self._bundle.name, error
                    )
            return self._bundle

    def info(self) -> dict[str, Any]:
        """Return what `/info/` says, with the range of every attribute, for a client's sliders."""
        ranges = {n: list(self.bundle.ranges.get(n, ())) for n in self.bundle.attributes}
        return {**super().info(), "attributes": ranges}

    def is_valid(self) -> bool:
        """Return that it can be asked."""
        return True

    def item(self, study: str | None, image: str, datastore: Datastore) -> dict[str, str]:
        """Return an image, with its mask where the preprocessing needs one.

        Raises:
            CohortError: it needs one that is not there.
        """
        if not self.bundle.needs_mask:
            return {"image": image}
        mask = mask_of(study, self.mask_tag, datastore) if study else ""
        if not mask:
            raise CohortError(
                f"The model '{self.bundle.name}' needs a mask and the study has none with the tag "
                f"'{self.mask_tag}'; expected one to be submitted first."
            )
        return {"image": image, "mask": mask}

    def __call__(self, request: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """Return the file of the result and what else is said.

        Args:
            request: `item` of the method of this name, and the client's parameters.

        Raises:
            CohortError: what cannot be answered.
        """
        asked = Asked.of(request, self.bundle.attributes)
        answer = self.bundle.answer(request["item"], asked)
        handle, path = tempfile.mkstemp(suffix=asked.extension)
        os.close(handle)
        write_volume(path, answer.channels, answer.affine, asked.compress)
        return path, answer.params


class BundleTraining(TrainTask):
    """Training a bundle again on the studies that have a mask, or need none.

    MONAI Label runs it in a process of its own: its status holds the progress bar's last lines, and
    to stop it is to kill it.

    Args:
        folder: the bundle.
        mask_tag: of the labels that are masks.
        device: where a client names none; None: as the bundle says.
    """

    def __init__(self, folder: Path, mask_tag: str, device: str | None = None) -> None:
        super().__init__("As the model was trained, on the studies that have what it needs")
        self.folder = folder
        self.mask_tag = mask_tag
        self.device = device

    def config(self) -> dict[str, Any]:
        """Return what a client may choose; other options are the model's own if left out."""
        return {"pretrained": True}

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Train, put the new model in place and return its metrics.

        Raises:
            CohortError: options, studies or bundle cannot be used.
        """
        options = TrainingOptions(request, self.device)
        folder = datastore.folder if isinstance(datastore, StudiesDatastore) else None
        items = {}
        for study in datastore.list_images():
            mask = mask_of(study, self.mask_tag, datastore)
            if mask or folder:  # else nothing is known of it, and a DICOMweb server must send it
                items[study] = (str(datastore.get_image_uri(study)), mask)
        table = studies_table(items, folder, needs_mask(self.folder))
        return train_again(self.folder, table, options)
