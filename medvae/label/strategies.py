"""Scores of studies, and the study with the highest: what MONAI Label calls active learning."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.interfaces.tasks.strategy import Strategy

from medvae.data.errors import CohortError
from medvae.label.edits import EditReading
from medvae.label.ranking import distances
from medvae.label.studies import known, mask_of

__all__ = ["BundleScore", "Disagreement", "Distance", "HighestScore"]


class BundleScore(ScoringMethod):
    """A number for every study that says how much it deserves a look.

    It is kept in the study's info, under the method's name and the model's.

    Args:
        tasks: of the models, by name; a request may say which, the first is the default.
        broken: models that do not load, and why.
    """

    name = ""
    description = ""

    def __init__(self, tasks: Mapping[str, Any], broken: Mapping[str, str]) -> None:
        super().__init__(self.description)
        self.tasks = tasks
        self.broken = broken

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Score all studies anew.

        Returns:
            How many were scored, and by study why others were not.

        Raises:
            CohortError: an unknown model.
        """
        scores, skipped = self.scores(request, datastore, anew=True)
        return {"executed": len(scores), "scores": scores, "skipped": skipped}

    def scores(
        self, request: Mapping[str, Any], datastore: Datastore, anew: bool = False
    ) -> tuple[dict[str, float], dict[str, str]]:
        """Return the scores by study, and why others have none.

        Args:
            request: of a client; `model` may say which.
            datastore: the studies.
            anew: whether scores that are there are replaced.

        Raises:
            CohortError: an unknown model.
        """
        if not self.tasks:
            raise CohortError(f"No model is served: {' '.join(self.broken.values())}")
        model = known(request.get("model") or next(iter(self.tasks)), self.tasks, "model")
        scores: dict[str, float] = {}
        skipped: dict[str, str] = {}
        for study in datastore.list_images():
            kept = datastore.get_image_info(study).get(self.name)
            kept = kept if isinstance(kept, dict) else {}  # clients may write what they like there
            if not anew and isinstance(kept.get(model), float):
                scores[study] = kept[model]
                continue
            image = datastore.get_image_uri(study)
            try:
                scores[study] = self.score(self.tasks[model], study, image, datastore)
            except CohortError as error:
                skipped[study] = str(error).replace(image, study)
            else:
                datastore.update_image_info(study, {self.name: kept | {model: scores[study]}})
        return scores, skipped

    @abstractmethod
    def score(self, task: Any, study: str, image: str, datastore: Datastore) -> float:
        """Return a study's score.

        Raises:
            CohortError: it has none.
        """


class Disagreement(BundleScore):
    """How far what the model reads lies from what is measured in the study's mask.

    Args:
        tasks: see `BundleScore`.
        broken: see there.
        tag: of the labels that are masks.
    """

    name = "disagreement"
    description = "RMS difference of attributes read and measured, in SD of the training subjects"

    def __init__(self, tasks: Mapping[str, Any], broken: Mapping[str, str], tag: str) -> None:
        super().__init__(tasks, broken)
        self.tag = tag

    def score(self, task: Any, study: str, image: str, datastore: Datastore) -> float:
        """Return `medvae.label.disagreement`."""
        mask = mask_of(study, self.tag, datastore)
        if not mask:
            raise CohortError(f"The study '{study}' has no mask with the tag '{self.tag}'.")
        score = float(task.bundle.disagreement(task.item(study, image, datastore), mask))
        if not np.isfinite(score):
            raise CohortError(f"No attribute can be measured in the mask of the study '{study}'.")
        return score


class Distance(BundleScore):
    """How far a study's code lies from those that the model was trained with."""

    name = "distance"
    description = "Mahalanobis distance of the code from the training subjects', 1 is usual"

    def score(self, task: Any, study: str, image: str, datastore: Datastore) -> float:
        """Return `medvae.label.distances`."""
        if task.bundle.training is None and isinstance(task.bundle.reading, EditReading):
            raise CohortError("The codes of a StylEx have no prior that a study could be far from.")
        codes = task.bundle.read(task.item(study, image, datastore))["codes"]
        return float(distances(codes, task.bundle.training)[0])


class HighestScore(Strategy):
    """The study with the highest score of those without a final label.

    Where all that have a score have a final label too, as with the disagreement with final masks,
    the highest of these: it is the one to review.

    Args:
        name: of the score.
        method: it.
    """

    def __init__(self, name: str, method: BundleScore) -> None:
        super().__init__(f"Highest {name}: {method.description}")
        self.method = method

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Return the study's id and score; empty where there is no score.

        Raises:
            CohortError: an unknown model.
        """
        scores, _ = self.method.scores(request, datastore)
        unlabelled = set(datastore.get_unlabeled_images())
        candidates = {study: s for study, s in scores.items() if study in unlabelled} or scores
        if not candidates:
            return {}
        study = max(candidates, key=lambda name: candidates[name])
        return {"id": study, "score": candidates[study]}
