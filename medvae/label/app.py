"""The MONAI Label app: every trained bundle of a folder as a model that its clients can ask."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Any

import torch
from fastapi import HTTPException
from monailabel.config import settings
from monailabel.interfaces import app as monai_app
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag
from monailabel.interfaces.tasks.infer_v2 import InferTask
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.interfaces.tasks.strategy import Strategy
from monailabel.interfaces.tasks.train import TrainTask
from monailabel.tasks.activelearning.random import Random

from medvae.data.errors import CohortError
from medvae.label.edits import EditReading
from medvae.label.guard import PrivateSessions, guard_server, refused
from medvae.label.masks import mask_names
from medvae.label.private import private_folder, sweep
from medvae.label.served import find_bundles, loaded
from medvae.label.strategies import Disagreement, Distance, HighestScore
from medvae.label.studies import SeriesDatastore, StudiesDatastore, known
from medvae.label.tasks import BundleTask, BundleTraining
from medvae.label.training import finish_training
from medvae.label.uploads import check_upload

__all__ = ["MyApp"]

logger = logging.getLogger(__name__)

SESSIONS = "sessions"
DEFAULTS = {"bundles": "", "models": "", "device": "", "mask_tag": "final"}
DEFAULTS |= {"max_upload_mb": "2000", "skip_trainers": "false"}


class MyApp(MONAILabelApp):
    """The app, see docs/label.md.

    Args:
        app_dir: this folder, or one with a `main.py` that imports this class.
        studies: a folder of images, or the address of a DICOMweb server.
        conf: `bundles`, a folder of trained bundles; `models`, names of those to be served, by
            commas, or empty for all; `device`; `mask_tag`, the tag of labels that are masks;
            `max_upload_mb`; `skip_trainers`.

    Raises:
        CohortError: no trained bundle, an unknown model or key.
    """

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]) -> None:
        self.settings = DEFAULTS | {k: str(v) for k, v in (conf or {}).items()}
        self.private = private_folder()
        self.broken: dict[str, str] = {}
        self.longest = int(1e6 * self._number("max_upload_mb"))
        guard_server(self.longest, _is_address(studies))
        super().__init__(
            app_dir,
            studies,
            conf,
            name="medvae",
            description="Where in an image a model reads an attribute; the same subject, but",
            version="0.1.0",
        )
        # else every request for a study starts a process that scores all of them again; the
        # strategies score what has no score yet
        self._auto_update_scoring = False

    def init_datastore(self) -> Datastore:
        """Return the studies."""
        if _is_address(self.studies):
            monai_app.DICOMWebDatastore = SeriesDatastore  # MONAI Label makes it by this name
            return super().init_datastore()
        return StudiesDatastore(
            self.studies,
            extensions=settings.MONAI_LABEL_DATASTORE_FILE_EXT,
            auto_reload=settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD,
            read_only=settings.MONAI_LABEL_DATASTORE_READ_ONLY,
        )

    def _download_dcmqi_tools(self) -> None:
        """Download nothing: `dcmqi`, which writes segmentations for DICOMweb, is a requirement."""
        beside = str(Path(sys.executable).parent)  # also where the environment is not activated
        if beside not in os.environ["PATH"].split(os.pathsep):
            os.environ["PATH"] = beside + os.pathsep + os.environ["PATH"]

    def init_infers(self) -> dict[str, InferTask]:
        """Return a task for every model that loads; what is wrong with others is said when asked.

        Raises:
            CohortError: there is none that could load, or not one that was named.
        """
        folder = self.settings["bundles"]
        for path in [Path(folder), *Path(folder).glob("*/")] if folder else []:
            try:
                finish_training(path)
            except OSError as error:
                logger.error("The training in '%s' cannot be finished: %s", path.name, error)
        found = find_bundles(folder) if folder else {}
        if not found:
            raise CohortError(
                f"No trained bundle is in '{folder}'; expected --conf bundles FOLDER of bundles "
                "with models/model.pt and configs/inference.yaml."
            )
        wanted = [n.strip() for n in self.settings["models"].split(",") if n.strip()] or list(found)
        device = self.settings["device"] or None
        tasks: dict[str, InferTask] = {}
        for name in wanted:
            path = found[known(name, found, "model")]
            try:
                bundle = loaded(path, device)
            except CohortError as error:
                logger.error("The model '%s' is not served: %s", name, error)
                self.broken[name] = str(error).replace(str(path), name)
            else:
                tasks[name] = BundleTask(bundle, self.settings["mask_tag"], device)
        labelled: dict[str, Any] = next(
            (t.bundle.mask_labels for t in tasks.values() if t.bundle.mask_labels), {}
        )
        self.labels = mask_names(labelled)  # what clients offer to draw; else the bins of the maps
        return tasks

    def init_trainers(self) -> dict[str, TrainTask]:
        """Return a training for every model but a StylEx, which also needs a search.

        None with `--conf skip_trainers true`.
        """
        if self.settings["skip_trainers"].lower() == "true":
            return {}
        tag, device = self.settings["mask_tag"], self.settings["device"] or None
        return {
            name: BundleTraining(task.bundle.folder, tag, device)
            for name, task in self._infers.items()
            if not isinstance(task.bundle.reading, EditReading)
        }

    def init_scoring_methods(self) -> dict[str, ScoringMethod]:
        """Return the scores that studies are ranked by."""
        tag = self.settings["mask_tag"]
        return {
            "disagreement": Disagreement(self._infers, self.broken, tag),
            "distance": Distance(self._infers, self.broken),
        }

    def init_strategies(self) -> dict[str, Strategy]:
        """Return the highest score of each kind, and a random study."""
        methods = self.init_scoring_methods()
        return {"random": Random()} | {n: HighestScore(n, m) for n, m in methods.items()}

    def infer(self, request: dict[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        """Answer a client for one image: of the studies, or one that it has just uploaded.

        Raises:
            HTTPException: 404 for an unknown model or study, 503 for a model that does not load,
                400 for all else that cannot be done.
        """
        datastore = datastore or self.datastore()
        with refused():
            task = self._task(request.get("model"))
            study, image = self._image(request.get("image"), datastore)
            try:
                item = task.item(study, image, datastore)
                file, params = task({**request, "item": item})
            except CohortError as error:  # of the server's folders a client learns nothing
                raise CohortError(str(error).replace(image, study or "upload")) from error
            label = file
            if study and request.get("save_label") in (True, "true"):
                tag = request.get("label_tag") or DefaultLabelTag.ORIGINAL
                saved = {"model": task.bundle.name, "params": params}
                label = datastore.save_label(study, file, str(getattr(tag, "value", tag)), saved)
        return {"label": label, "tag": DefaultLabelTag.ORIGINAL, "file": file, "params": params}

    def batch_infer(
        self, request: dict[str, Any], datastore: Datastore | None = None
    ) -> dict[str, Any]:
        """Answer for many studies; one that cannot be used does not stop the others."""

        def infer(one: dict[str, Any], store: Datastore) -> dict[str, Any]:
            try:
                return self.infer(one, store)
            except HTTPException as error:
                return {"error": error.detail}

        with refused():
            self._task(request.get("model"))
        # MONAI Label divides by the number of GPUs where this is not said
        several = bool(request.get("multi_gpu", True)) and torch.cuda.device_count() > 1
        return dict(
            self._batch_infer(
                request | {"multi_gpu": several}, datastore or self.datastore(), infer
            )
        )

    def scoring(self, request: dict[str, Any], datastore: Datastore | None = None) -> Any:
        """Score all studies.

        Raises:
            HTTPException: an unknown method or model.
        """
        with refused():
            known(request.get("method"), self._scoring_methods, "scoring method")
            return super().scoring(request, datastore)

    def train(self, request: dict[str, Any]) -> dict[str, Any]:
        """Train a model again.

        Raises:
            HTTPException: an unknown model, or what cannot be used.
        """
        with refused():
            known(request.get("model"), self._trainers, "model to be trained")
            return dict(super().train(request))

    def next_sample(self, request: dict[str, Any]) -> Any:
        """Return the study to look at next.

        Raises:
            HTTPException: an unknown strategy or model.
        """
        with refused():
            known(request.get("strategy"), self._strategies, "strategy")
            return super().next_sample(request)

    def on_save_label(self, image_id: str, label_id: str) -> None:
        """Forget a score that the new label changes."""
        with refused():
            self.datastore().update_image_info(image_id, {"disagreement": {}})

    def cleanup_sessions(self) -> None:
        """Remove what requests left behind, with the sessions that have expired."""
        super().cleanup_sessions()
        sweep(self.private, SESSIONS)

    def _load_sessions(self, load: bool = False) -> PrivateSessions | None:
        if not load:
            return None
        expiry_s = settings.MONAI_LABEL_SESSION_EXPIRY
        return PrivateSessions(str(self.private / SESSIONS), expiry_s, self.longest)

    def _number(self, key: str) -> float:
        try:
            return float(self.settings[key])
        except ValueError as error:
            found = self.settings[key]
            raise CohortError(f"--conf {key} is '{found}'; expected a number.") from error

    def _task(self, model: Any) -> BundleTask:
        name = known(model, [*self._infers, *self.broken], "model")
        if name in self.broken:
            raise HTTPException(503, self.broken[name])
        return self._infers[name]

    def _image(self, image: Any, datastore: Datastore) -> tuple[str | None, str]:
        """Return the study, None for an upload, and the path of its image.

        A path that a client names itself is taken only within the folder of uploads.
        """
        if isinstance(image, str) and image.startswith(str(self.private)):
            path = Path(image).resolve()
            if path.is_relative_to(self.private) and path.exists():
                check_upload(path)
                return None, str(path)
        return known(image, datastore.list_images()), str(datastore.get_image_uri(image))


def _is_address(studies: str) -> bool:
    return studies.startswith(("http://", "https://"))
