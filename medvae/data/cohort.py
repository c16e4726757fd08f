"""The one object a bundle builds from a user's table."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from medvae.attributes import feature_names
from medvae.data.errors import CohortError, listing, or_exit, suggestion
from medvae.data.measured import MaskLabels, check_and_measure
from medvae.data.output import write_text
from medvae.data.scaler import AttributeScaler
from medvae.data.split import patient_of, split_subjects
from medvae.data.subjects import (
    class_numbers,
    datalist,
    load_subjects,
    numeric_column,
    sorted_classes,
)

__all__ = ["Cohort", "CohortState", "cohort_or_exit"]

RESERVED = ("id", "image", "mask", "split", "label")


@dataclass(frozen=True)
class CohortState:
    """What travels with a model's weights, so that it can be used without its cohort.

    Attributes:
        scaler: fitted on the training rows; its names are the trained attributes, in the order of
            their latent axes.
        classes: class values in the order of their numbers; empty without a label.
        splits: the split of every subject by id.
        patient: the column that names the patient.
        label: the class column.
    """

    scaler: AttributeScaler
    classes: tuple[int | str, ...] = ()
    splits: dict[str, str] | None = None
    patient: str | None = None
    label: str | None = None

    @property
    def attributes(self) -> tuple[str, ...]:
        """The trained attributes, in the order of their latent axes."""
        return self.scaler.names

    @property
    def num_classes(self) -> int:
        """Outputs of a classification head: 0 without a label, 1 for two classes, else one each."""
        return len(self.classes) if len(self.classes) > 2 else max(len(self.classes) - 1, 0)

    def to_dict(self) -> dict[str, Any]:
        """The state as JSON knows it."""
        return {
            "attributes": list(self.attributes),
            "log": list(self.scaler.log),
            "scaler": self.scaler.state_dict(),
            "classes": list(self.classes),
            "splits": dict(self.splits or {}),
            "patient": self.patient,
            "label": self.label,
        }

    @classmethod
    def load(cls, path: str | Path) -> CohortState:
        """Read what :meth:`Cohort.save` wrote.

        Raises:
            CohortError: no such file, or not one that :meth:`Cohort.save` wrote.
        """
        try:
            state = json.loads(Path(path).read_text(encoding="utf-8"))
            return cls(
                scaler=AttributeScaler.from_state_dict(state["scaler"]),
                classes=tuple(state["classes"]),
                splits=dict(state["splits"]),
                patient=state["patient"],
                label=state["label"],
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CohortError(
                f"The cohort state '{path}' cannot be read ({type(error).__name__}); "
                "expected the file that training wrote beside its model."
            ) from error


class Cohort:
    """Subjects that were checked, measured, split and scaled before anything is trained.

    Args:
        subjects: a CSV or table, see :func:`medvae.data.load_subjects`.
        attributes: columns of the table, or else features measured from image and mask, see
            :func:`medvae.attributes.feature_names`.
        label: the class column, whole numbers or text; a missing cell keeps its subject.
        log: attributes whose logarithm is standardised.
        num_classes: outputs of the head that is to learn the label, see :attr:`num_classes`;
            ``None``: not compared. 0: no head, the label serves the split alone.
        mask_labels: names for integers of the mask, such as ``{"lv": 3, "heart": [1, 2, 3]}``;
            measured attributes are then named ``lv_voxel_volume_ml``.
        patient: the column whose rows share a split, see :func:`medvae.data.split_subjects`.
        fractions: shares of the patients for train, val and test. ``None``: every subject is in
            test and nothing is fitted.
        split_column: a column that already says train, val or test.
        seed: of the split.
        spatial_dims: 2 or 3.
        in_channels: channels that every image must have.
        needs_mask: whether every subject must have a mask, see
            :func:`medvae.data.check_and_measure`.
        bin_count: grey levels of measured texture, see :func:`medvae.attributes.measure`.
        needs_image: False: no image is read, and none need be there; attributes are columns then.
        check: read every file before training. What is measured is read, and so checked, anyway.
        progress: show a bar meanwhile.
        state: a trained model's state, or its file. Scaler, classes and splits are taken from it;
            subjects it does not know join their patient's split, or else test.

    Attributes:
        subjects: the table with a column ``split`` and a column of floats for every attribute.
        attribute_names: the attributes, in order.
        classes: class values in the order of their numbers, sorted; those of the training rows.
        scaler: fitted on the training rows.

    Raises:
        CohortError: bad input, in one sentence.
    """

    def __init__(
        self,
        subjects: str | Path | pd.DataFrame,
        attributes: Sequence[str] = (),
        label: str | None = None,
        log: Sequence[str] = (),
        num_classes: int | None = None,
        mask_labels: MaskLabels | None = None,
        patient: str | None = "patient",
        fractions: Sequence[float] | None = (0.6, 0.15, 0.25),
        split_column: str | None = None,
        seed: int = 0,
        spatial_dims: int = 3,
        in_channels: int = 1,
        needs_mask: bool | None = None,
        bin_count: int | None = None,
        needs_image: bool = True,
        check: bool = True,
        progress: bool = True,
        state: CohortState | str | Path | None = None,
    ) -> None:
        if spatial_dims not in (2, 3):
            raise CohortError(f"spatial_dims is {spatial_dims}; expected 2 or 3.")
        self.attribute_names = tuple(attributes)
        self.label = label
        self.patient = patient
        self._trained = state if isinstance(state, CohortState | None) else CohortState.load(state)

        table = load_subjects(subjects, needs_image)
        self._check_names(log)
        known = feature_names(spatial_dims, mask_labels) if needs_image else ()
        measured = _to_measure(table, self.attribute_names, known)
        columns = [name for name in self.attribute_names if name not in measured]
        table = table.assign(**{name: numeric_column(table, name) for name in columns})
        table = self._split(table, fractions, split_column, seed)
        self.classes = self._classes(table)
        expected = CohortState(AttributeScaler(()), self.classes).num_classes
        if num_classes is not None and num_classes not in (0, expected):
            raise CohortError(
                f"The label column '{label}' holds the classes {list(self.classes)} and "
                f"num_classes is {num_classes}; expected num_classes {expected}."
            )
        # Everything that needs no file is refused before the first is read.
        self._fitted(table, columns, [name for name in log if name not in measured])
        if (check and needs_image) or measured:
            table = check_and_measure(
                table,
                measured,
                spatial_dims=spatial_dims,
                in_channels=in_channels,
                mask_labels=mask_labels,
                needs_mask=needs_mask,
                bin_count=bin_count,
                progress=progress,
            )
        self.subjects = table
        self.scaler = self._fitted(table, self.attribute_names, log)

    @property
    def num_classes(self) -> int:
        """Outputs of a classification head: 0 without a label, 1 for two classes, else one each."""
        return self._state().num_classes

    @property
    def binary(self) -> tuple[bool, ...]:
        """For each attribute whether its known values are two, as the losses treat it."""
        return tuple(self.subjects[name].nunique() == 2 for name in self.attribute_names)

    def datalist(self, split: str | None = None, copies: int = 1) -> list[dict[str, Any]]:
        """The subjects of a split, or all, as MONAI's datasets take them.

        Args:
            split: only these subjects.
            copies: how often each is listed; more than once, the key ``copy`` counts from 0, for
                :class:`medvae.transforms.DeformedCopyd`.

        Returns:
            Dictionaries, see :func:`medvae.data.datalist`; attributes in their own units.

        Raises:
            CohortError: fewer than one copy.
        """
        rows = datalist(self.subjects, self.attribute_names, self.label, split, self.classes)
        if not isinstance(copies, int) or copies < 1:
            raise CohortError(f"copies is {copies!r}; expected a whole number, 1 or more.")
        if copies == 1:
            return rows
        return [row | {"copy": number} for number in range(copies) for row in rows]

    def item(self, name: str) -> dict[str, Any]:
        """One subject, as in :meth:`datalist`.

        Raises:
            CohortError: no such id.
        """
        items = {str(item["id"]): item for item in self.datalist()}
        if str(name) not in items:
            raise CohortError(f"Subject '{name}' is not in the table; {suggestion(name, items)}")
        return items[str(name)]

    def chosen(self, rows: Sequence[bool]) -> Cohort:
        """The same cohort without the other rows; what was fitted stays."""
        part = copy.copy(self)
        part.subjects = self.subjects[np.asarray(rows)].reset_index(drop=True)
        return part

    def state(self) -> dict[str, Any]:
        """What :class:`CohortState` holds, as JSON knows it."""
        return self._state().to_dict()

    def save(self, path: str | Path) -> None:
        """Write :meth:`state` as JSON, whole or not at all."""
        write_text(path, json.dumps(self.state(), indent=1, allow_nan=False) + "\n")

    @staticmethod
    def load_state(path: str | Path) -> CohortState:
        """Read what :meth:`save` wrote."""
        return CohortState.load(path)

    def _state(self) -> CohortState:
        splits = dict(zip(self.subjects["id"], self.subjects["split"], strict=True))
        return CohortState(self.scaler, self.classes, splits, self.patient, self.label)

    def _check_names(self, log: Sequence[str]) -> None:
        AttributeScaler(self.attribute_names, log)
        if self._trained and self.attribute_names not in ((), self._trained.attributes):
            raise CohortError(
                f"The attributes {list(self.attribute_names)} are asked for, but the trained model "
                f"has others; expected {list(self._trained.attributes)}."
            )

    def _split(
        self,
        table: pd.DataFrame,
        fractions: Sequence[float] | None,
        split_column: str | None,
        seed: int,
    ) -> pd.DataFrame:
        if self._trained is not None:
            known = self._trained.splits or {}
            patients = patient_of(table, self.patient)
            ids = list(table["id"])
            split_of = {
                patient: known[name]
                for patient, name in zip(patients, ids, strict=True)
                if name in known
            }
            splits = [
                known.get(name, split_of.get(patient, "test"))
                for patient, name in zip(patients, ids, strict=True)
            ]
            return table.assign(split=splits)
        if fractions is None and split_column is None:
            return table.assign(split="test")
        if self.label is not None:
            sorted_classes(table, self.label)
        return split_subjects(table, fractions or (), self.patient, self.label, seed, split_column)

    def _classes(self, table: pd.DataFrame) -> tuple[int | str, ...]:
        if self.label is None:
            return self._trained.classes if self._trained else ()
        if self._trained is not None:
            classes = self._trained.classes
        else:
            train = table[table["split"] == "train"]
            classes = sorted_classes(table if train.empty else train, self.label)
            if len(classes) < 2 and not train.empty:
                raise CohortError(
                    f"The label column '{self.label}' holds {list(classes)} in the training rows; "
                    "expected at least two classes."
                )
        class_numbers(table, self.label, classes)
        return classes

    def _fitted(
        self, table: pd.DataFrame, names: Sequence[str], log: Sequence[str]
    ) -> AttributeScaler:
        if self._trained is not None:
            return self._trained.scaler
        scaler = AttributeScaler(names, log)
        train = table[table["split"] == "train"]
        if train.empty:
            return scaler
        for name in log:
            row = table[table[name] <= 0].head(1)
            if len(row):
                raise CohortError(
                    f"Attribute '{name}' is {row[name].item():g} in row '{row['id'].item()}'; "
                    "expected numbers above 0, as its logarithm is used."
                )
        return scaler.fit(train)


def cohort_or_exit(**kwargs: Any) -> Cohort:
    """:class:`Cohort` for a bundle's configuration: bad input ends the program with its sentence.

    Raises:
        SystemExit: in place of :class:`medvae.data.CohortError`.
    """
    return or_exit(Cohort, **kwargs)


def _to_measure(table: pd.DataFrame, attributes: Sequence[str], known: Sequence[str]) -> list[str]:
    """The attributes that are no columns, and so must be measured."""
    for name in attributes:
        if list(attributes).count(name) > 1:
            raise CohortError(f"Attribute '{name}' is asked for twice; expected every one once.")
        if name in RESERVED:
            raise CohortError(
                f"Attribute '{name}' has a name that means something else in a table; "
                f"expected another than {listing(RESERVED)}."
            )
        if name not in table and name not in known:
            raise CohortError(
                f"Attribute '{name}' is neither a column of the table nor can it be measured; "
                f"{suggestion(name, [*(c for c in table.columns if c not in RESERVED), *known])}"
            )
    return [name for name in attributes if name not in table]
