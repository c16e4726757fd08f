"""What a classifier has learned: AttFind on a trained StylEx, its attributes and what they do."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from medvae.data import Factors, write_text
from medvae.explain import (
    Edit,
    StyleEffects,
    artefacts,
    attfind,
    class_deficits,
    class_gains,
    merge_classes,
    screened_attfind,
    select,
)
from medvae.metrics import associations, co_acting
from medvae.networks import StylEx
from medvae.networks.checkpoint import load_weights
from medvae.networks.stylex import Shown
from medvae.report.stylex import patients_of
from medvae.report.stylex_checks import check_explanation
from medvae.report.stylex_effects import edit_report
from medvae.report.stylex_flags import flag_confounders
from medvae.report.stylex_flips import flip_report
from medvae.report.stylex_images import Encoded, encode_images, in_batches
from medvae.report.stylex_judge import Judge
from medvae.report.stylex_measured import MeasuredEdits
from medvae.report.stylex_pairs import write_pairs
from medvae.report.stylex_stability import changes_of, remove_changes, write_changes

__all__ = ["StylexSearch"]

Prepare = Callable[..., tuple[Tensor, Mapping[str, Tensor]]]
logger = logging.getLogger("medvae")


class StylexSearch:
    """Find the style coordinates that move a classifier, on some images, and judge them on others.

    Writes `attributes.json`, one entry for each attribute found, `changes.npz`, by which runs are
    compared (see `medvae.report.compare_attributes`), `flips.json`, the effects under
    `search/` (a search that was killed goes on), and under `pairs/` pictures and NIfTI of subjects
    before and after.

    Args:
        network: a trained `StylEx`.
        classifier: frozen, that it was trained with.
        factors: of the cohort.
        train: batches of the training subjects, for the judge of the covariates.
        search: batches of the subjects to search on.
        test: batches of the subjects that edits are judged on.
        prepare_batch: as in training.
        output_dir: where results go.
        checkpoint: weights to load first; None: those that it has.
        task: head to explain; None: the first.
        covariates: columns of the cohort's table to compare with, beside all measured attributes.
        confounders: those of them, and heads, that should not decide; found ones are flagged.
        count: attributes to find.
        explained_at: gain in log odds from which on an image is explained, 1 as published; None:
            what it lacks to be of the class.
        images: subjects to search on, at most; drawn by the seed where there are more.
        quantiles: see `medvae.explain.attfind`.
        keep: share of the coordinates that gradients select for the search; 1: all are searched.
        audit: see `medvae.explain.screened_attfind`.
        artefact_limit: change of the discriminator's score that rejects a coordinate, whichever way
            it is moved; None: none is.
        shown_change: of the probability, for a pair of images to be shown.
        judge_steps: batches that the judge is trained on.
        measuring: measures attributes in edited images, too; None: none. It needs masks.
        batch_size: see `medvae.explain.attfind`.
        window: intensities that are 0 and 1 in the images; None: unknown.
        device: where to compute.
        n_resamples: for intervals.
        n_permutations: for chance.
        seed: of the subjects that are searched, judge, baselines and resamples.
    """

    def __init__(
        self,
        network: StylEx,
        classifier: nn.Module,
        factors: Factors,
        train: Iterable[Mapping[str, Any]],
        search: Iterable[Mapping[str, Any]],
        test: Any,
        prepare_batch: Prepare,
        output_dir: str | Path,
        checkpoint: str | Path | None = None,
        task: str | None = None,
        covariates: Sequence[str] = (),
        confounders: Sequence[str] = (),
        count: int = 10,
        explained_at: float | None = None,
        images: int = 100,
        quantiles: Sequence[float] = (0.0, 1.0),
        keep: float = 1.0,
        audit: int = 2,
        artefact_limit: float | None = None,
        shown_change: float = 0.1,
        judge_steps: int = 600,
        measuring: MeasuredEdits | None = None,
        batch_size: int = 8,
        window: Sequence[float] | None = None,
        device: str | torch.device = "cpu",
        n_resamples: int = 500,
        n_permutations: int = 200,
        seed: int = 0,
    ) -> None:
        self.network, self.classifier, self.factors = network, classifier, factors
        self.train, self.search, self.test = train, search, test
        self.prepare_batch, self.device = prepare_batch, device
        self.output_dir, self.checkpoint = Path(output_dir), checkpoint
        self.task = task or next(iter(network.heads))
        every = (*covariates, *factors.cohort.attribute_names)
        self.covariates, self.confounders = tuple(dict.fromkeys(every)), tuple(confounders)
        self.count, self.explained_at, self.images = count, explained_at, images
        self.quantiles, self.keep, self.audit = (quantiles[0], quantiles[1]), keep, audit
        self.artefact_limit, self.judge_steps = artefact_limit, judge_steps
        self.shown_change, self.measuring = shown_change, measuring
        self.batch_size, self.window = batch_size, window
        self.n_resamples, self.n_permutations, self.seed = n_resamples, n_permutations, seed
        self.drawn = Shown(classifier)

    def run(self) -> dict[str, Any]:
        """Search, judge, write everything and return what `attributes.json` holds.

        Raises:
            CohortError: see `check_explanation`, which is to be asked before a training.
        """
        heads = self.network.heads
        measured = () if self.measuring is None else self.measuring.names
        check_explanation(
            self.factors, heads, self.task, self.covariates, self.confounders, measured
        )
        if self.checkpoint is not None:
            load_weights(self.network, self.checkpoint, self.device)
        found = self._encoded(self.search).some(self.images, self.seed)
        effects, screening = self._effects(found.styles)
        lists = self._edits(effects, found)
        attributes = self._attributes(effects, lists)
        tested = self._encoded(self.test)
        judge = Judge(self, tested)
        if self.measuring is not None:
            self.measuring.learn(self, tested)
        report: dict[str, Any] = {
            "task": self.task,
            "classes": self._class_names(),
            "searched": {
                "images": len(found.ids),
                "coordinates": int(effects.evaluated.sum()),
                "of": len(effects.evaluated),
                "screening": screening,
                "shift": effects.shift,
                "quantiles": list(self.quantiles),
            },
            "judge": judge.quality,
            "instrument": {} if self.measuring is None else self.measuring.quality,
            "attributes": [
                edit_report(self, effects, tested, judge, edit, target)
                for edit, target in attributes
            ],
        }
        self._compare(report, effects, tested, attributes)
        flag_confounders(report, self.confounders)
        write_text(self.output_dir / "attributes.json", json.dumps(report, indent=1) + "\n")
        flips = flip_report(self, effects, found, tested, judge, lists)
        write_text(self.output_dir / "flips.json", json.dumps(flips, indent=1) + "\n")
        return report

    def enough(self, effects: StyleEffects, target: int) -> npt.NDArray[np.float32]:
        """Return the gains that explain the images which are not of a class, (N',)."""
        lacking = class_deficits(effects, self.task, target)
        if self.explained_at is None:
            return lacking
        return np.full_like(lacking, self.explained_at)

    def images_of(self, styles: Tensor) -> Tensor:
        """Return images in [0, 1], on the CPU, of styles (N, S')."""
        return in_batches(self.network.images, styles, self.batch_size)

    def logits_of(self, images: Tensor) -> npt.NDArray[np.float32]:
        """Return logits (N, O) of images in [0, 1]."""
        found = in_batches(lambda part: self.classifier(part.to(self.device)), images)
        logits: npt.NDArray[np.float32] = found.float().numpy()
        return logits

    def _encoded(self, data: Iterable[Mapping[str, Any]]) -> Encoded:
        return encode_images(self.network, self.classifier, data, self.prepare_batch, self.device)

    def _effects(self, styles: Tensor) -> tuple[StyleEffects, dict[str, Any] | None]:
        options: dict[str, Any] = {
            "quantiles": self.quantiles,
            "batch_size": self.batch_size,
            "folder": self.output_dir / "search",
        }
        arguments = (self.network.generator, self.drawn, styles, self.network.heads)
        if self.keep >= 1:
            return attfind(*arguments, **options), None
        effects, screening = screened_attfind(
            *arguments, keep=self.keep, audit=self.audit, seed=self.seed, **options
        )
        return effects, screening._asdict()

    def _edits(self, effects: StyleEffects, found: Encoded) -> dict[int, list[Edit]]:
        """Return by class the edits that lead to it, the best first.

        A coordinate that is rejected is so for all classes and both ways; what comes in its place
        is judged as well.
        """
        classes = effects.head(effects.base, self.task).shape[1]
        given = effects.predicted(self.task)
        for target in range(classes):
            if (given == target).all():
                logger.warning(
                    "All %d reconstructions that are searched are of class %d of '%s': nothing "
                    "leads to it. The generator may not show yet what the classifier sees.",
                    *(len(found.ids), target, self.task),
                )
        rejected: set[int] = set()
        while True:
            excluded = [(direction, k) for k in sorted(rejected) for direction in (0, 1)]
            lists = {
                target: select(
                    class_gains(effects, self.task, target),
                    self.count,
                    self.enough(effects, target),
                    excluded,
                )
                for target in range(classes)
            }
            wrong = {
                edit.coordinate
                for target, edits in lists.items()
                for edit in self._artefacts(effects, found, edits, target)
            }
            if not wrong:
                break
            rejected |= wrong
        if classes == 2:
            merged = merge_classes(effects, self.task, lists[1], 1, lists[0])[: self.count]
            back = [edit._replace(direction=1 - edit.direction) for edit in merged]
            return {0: back, 1: merged}
        return lists

    def _artefacts(
        self, effects: StyleEffects, found: Encoded, edits: Sequence[Edit], target: int
    ) -> list[Edit]:
        if self.artefact_limit is None or not edits:
            return []

        def score(styles: Tensor, _: Any) -> Tensor:
            images = self.network.generator.synthesis_from_styles(styles)
            shares = self.network.probabilities(self.drawn(images))
            return self.network.discriminator(images, shares)[:, 0]

        return artefacts(
            effects,
            found.styles,
            edits,
            score,
            self.artefact_limit,
            head=self.task,
            target=target,
        )

    def _attributes(
        self, effects: StyleEffects, lists: Mapping[int, list[Edit]]
    ) -> list[tuple[Edit, int]]:
        """Return the attributes, each with the class that it leads to; a coordinate comes once.

        Of two classes the rarer one is led to: more images can take it.
        """
        if len(lists) == 2:
            counts = np.bincount(effects.predicted(self.task), minlength=2)
            rarer = 0 if counts[0] < counts[1] else 1
            return [(edit, rarer) for edit in lists[rarer]]
        every = [(edit, target) for target, edits in lists.items() for edit in edits]
        every.sort(key=lambda pair: -pair[0].score)
        first: dict[int, tuple[Edit, int]] = {}
        for edit, target in every:
            first.setdefault(edit.coordinate, (edit, target))
        return list(first.values())[: self.count]

    def _compare(
        self,
        report: dict[str, Any],
        effects: StyleEffects,
        tested: Encoded,
        attributes: Sequence[tuple[Edit, int]],
    ) -> None:
        """Add groups, associations and pairs to the attributes."""
        entries = report["attributes"]
        if not entries:
            remove_changes(self)
            return
        columns = [edit.coordinate for edit, _ in attributes]
        values = tested.styles[:, columns].cpu().numpy()
        given = effects.head(tested.logits, self.task).argmax(1)
        patients = patients_of(self.factors, tested.ids)
        table = self.factors.cohort.subjects.set_index(
            self.factors.cohort.subjects["id"].astype(str)
        ).loc[tested.ids]
        covariates = {name: list(table[name]) for name in self.covariates}
        alone, within = (
            associations(values, covariates, classes, patients, self.n_permutations, seed=self.seed)
            for classes in (None, given)
        )
        for number, (edit, target) in enumerate(attributes):
            entry = entries[number]
            entry["associations"] = {
                name: {
                    "value": alone["values"][name][number],
                    "given_class": within["values"][name][number],
                }
                for name in covariates
            }
            name = f"attribute{number + 1:02d}"
            entry["pairs"] = write_pairs(
                self, effects, tested, edit, target, self.output_dir / "pairs" / name
            )
        report["association_chance"] = {
            "value": alone["chance"],
            "given_class": within["chance"],
        }
        changes = changes_of(self, effects, tested, [edit for edit, _ in attributes])
        write_changes(self, effects, tested, changes, attributes[0][1])
        groups = co_acting(*changes)
        for entry, group in zip(entries, groups, strict=True):
            entry["group"] = group + 1

    def _class_names(self) -> list[str]:
        names = self.factors.classes.get(self.task, ())
        return [str(name) for name in names]
