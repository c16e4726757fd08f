"""What every table of an inference has in common."""

from __future__ import annotations

import csv
import io
from abc import ABC, abstractmethod
from pathlib import Path

from ignite.engine import Engine, Events
from ignite.engine.events import EventEnum
from monai.engines.utils import IterationEvents

from medvae.data.errors import or_exit
from medvae.data.output import check_overwrite, write_text

__all__ = ["TableWriter"]

Row = dict[str, object]


class TableWriter(ABC):
    """Handler that collects rows batch by batch and writes them as a CSV after the last.

    A subclass says what the rows of a batch are.

    Args:
        path: the CSV.
        overwrite: replace an existing file.

    Attributes:
        made_at: the event at which rows are made: before a batch is decollated and its images are
            brought to the subjects' grids.
    """

    made_at: EventEnum | Events = IterationEvents.FORWARD_COMPLETED

    def __init__(self, path: str | Path, overwrite: bool = False) -> None:
        self.path, self.overwrite = Path(path), overwrite
        self._rows: list[Row] = []

    def attach(self, engine: Engine) -> None:
        """Register with the evaluator."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(self.made_at, self._add)
        engine.add_event_handler(Events.COMPLETED, self._write)

    @abstractmethod
    def rows(self, engine: Engine) -> list[Row]:
        """Return the rows of a batch, all with the same columns."""

    def _start(self, engine: Engine) -> None:
        or_exit(check_overwrite, [self.path], self.overwrite)
        self._rows = []

    def _add(self, engine: Engine) -> None:
        self._rows += self.rows(engine)

    def _write(self, engine: Engine) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, self._rows[0] if self._rows else ["id"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._rows)
        write_text(self.path, text.getvalue())
