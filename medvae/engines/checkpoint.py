"""Keeping the model, and all that a killed training needs to go on as if nothing had happened."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from monai.transforms import Compose
from monai.utils import set_determinism
from torch import nn

from medvae.data import CohortError, check_overwrite
from medvae.data.output import replacing
from medvae.data.record import data_fingerprint, run_settings, settings_difference

__all__ = ["Checkpoint", "check_run", "finish_run"]

MODEL, CHECKPOINT = "model.pt", "checkpoint.pt"


def check_run(
    ckpt_dir: str | Path,
    output_dir: str | Path,
    overwrite: bool = False,
    resume: bool = True,
    parts: Sequence[tuple[str | Path, str]] = (),
) -> None:
    """Refuse to replace the model or results of a finished run, unless asked to.

    A run that was interrupted has left a checkpoint, from which it goes on where it is started
    again with the same settings. With other settings, or without `resume`, it begins anew if
    `overwrite` allows it.

    Args:
        ckpt_dir: where the model goes.
        output_dir: where `metrics.json` goes.
        overwrite: replace what is there.
        resume: go on from a checkpoint.
        parts: folders with patterns in them, such as `search/*.npy`, of files that a later step
            of the run would take for its own; an earlier run's go when a run begins anew.

    Raises:
        CohortError: a finished run is there, or an interrupted one with other settings.
    """
    checkpoint = Path(ckpt_dir) / CHECKPOINT
    if checkpoint.exists():
        saved = _read(checkpoint)
        difference = settings_difference(run_settings(), json.loads(saved.get("settings", "{}")))
        if resume and difference is None:
            return
        if saved["epoch"] and not overwrite:  # before the first has ended there is nothing to lose
            reason = difference or "resume is false"
            raise CohortError(
                f"A training in '{ckpt_dir}' was interrupted, and this one is not its "
                f"continuation ({reason}); expected the same settings, another folder, or the "
                "option overwrite to begin anew."
            )
        _on_first_rank(lambda: checkpoint.unlink(missing_ok=True))
    model = Path(ckpt_dir) / MODEL
    left = [path for folder, pattern in parts for path in sorted(Path(folder).glob(pattern))]
    # a run that was killed before its first checkpoint has a record, and nothing to lose
    begun = (Path(ckpt_dir) / "run.json").exists() and not model.exists()
    others = [] if begun else left
    check_overwrite([model, Path(output_dir) / "metrics.json", *others], overwrite)
    for path in left:
        _on_first_rank(partial(path.unlink, missing_ok=True))


def finish_run(ckpt_dir: str | Path) -> None:
    """Remove the checkpoint of a run that is complete: there is nothing left to resume."""
    _on_first_rank(lambda: (Path(ckpt_dir) / CHECKPOINT).unlink(missing_ok=True))


class Checkpoint:
    """Handler of the trainer that writes `model.pt`, and after every epoch `checkpoint.pt`.

    Started in a folder with a checkpoint, the training goes on after its epoch, to the same bits
    as without the interruption: what is random in an epoch follows from the seed, the epoch and
    the rank alone, and the rest (weights, optimizer, schedules, best metric) is in the file. Files
    are replaced whole, so a kill at any moment leaves the last good ones. Of several ranks the
    first writes and all read. First in the list of handlers, so that the others see the epoch.

    Raises, when the training starts, a CohortError for a checkpoint of other data.

    Args:
        folder: where the two files go.
        network: what `model.pt` holds.
        optimizer: of the training.
        lr_scheduler: of the training.
        loss: with the weights that schedules have changed.
        evaluator: whose best key metric selects the model.
        transform: of the training images; its random transforms are seeded for each epoch.
        subjects: the cohort's table; a training is not continued on other data.
        seed: of the training.
        select: "best": the model of the epoch with the best key metric; "last": of the last.
        others: whatever else has a state_dict, by name, such as a second optimizer.
    """

    def __init__(
        self,
        folder: str | Path,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        lr_scheduler: Any = None,
        loss: nn.Module | None = None,
        evaluator: Any = None,
        transform: Compose | None = None,
        subjects: pd.DataFrame | None = None,
        seed: int = 0,
        select: Literal["best", "last"] = "best",
        others: Mapping[str, Any] | None = None,
    ) -> None:
        if select not in ("best", "last"):
            raise ValueError(f"select is '{select}'; expected 'best' or 'last'.")
        self.folder = Path(folder)
        self.network = getattr(network, "module", network)
        parts = {"network": self.network, "optimizer": optimizer}
        parts |= {"lr_scheduler": lr_scheduler, "loss": loss, **(others or {})}
        self.parts = {name: part for name, part in parts.items() if part is not None}
        self.evaluator, self.transform = evaluator, transform
        self.data = None if subjects is None else data_fingerprint(subjects)
        self.seed, self.select = seed, select
        self.settings = run_settings()

    def attach(self, engine: Engine) -> None:
        """Register with the trainer."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.EPOCH_STARTED, self._seed)

    def _start(self, engine: Engine) -> None:
        if (self.folder / CHECKPOINT).exists():
            self._load(engine, _read(self.folder / CHECKPOINT))
        else:  # of epoch 0: a kill in the first one must not leave a model that nobody goes on from
            saved = self._state(engine)
            _on_first_rank(lambda: _write(saved, self.folder / CHECKPOINT))
        # now, so that validation and schedules of the epoch come first
        if not engine.has_event_handler(self._save, Events.EPOCH_COMPLETED):
            engine.add_event_handler(Events.EPOCH_COMPLETED, self._save)

    def _seed(self, engine: Engine) -> None:
        rank = dist.get_rank() if dist.is_initialized() else 0
        sequence = np.random.SeedSequence([self.seed, engine.state.epoch, rank])
        seed = int(sequence.generate_state(1)[0])
        set_determinism(seed)
        if self.transform is not None:
            self.transform.set_random_state(seed)

    def _load(self, engine: Engine, saved: Mapping[str, Any]) -> None:
        if saved["data"] != self.data:
            raise CohortError(
                f"The interrupted training in '{self.folder}' was of other data ({saved['data']}) "
                f"than these ({self.data}); expected the same table and files, or the checkpoint "
                "removed to begin anew."
            )
        for name, part in self.parts.items():
            part.load_state_dict(saved[name])
        engine.state.epoch, engine.state.iteration = saved["epoch"], saved["iteration"]
        if self.evaluator is not None:
            self.evaluator.state.best_metric = saved["best_metric"]
            self.evaluator.state.best_metric_epoch = saved["best_metric_epoch"]
        engine.logger.info("Resuming after epoch %d", engine.state.epoch)

    def _state(self, engine: Engine) -> dict[str, Any]:
        state = None if self.evaluator is None else self.evaluator.state
        saved: dict[str, Any] = {name: part.state_dict() for name, part in self.parts.items()}
        saved |= {"epoch": engine.state.epoch, "iteration": engine.state.iteration}
        saved["best_metric"] = None if state is None else float(state.best_metric)
        saved["best_metric_epoch"] = None if state is None else state.best_metric_epoch
        saved["data"] = self.data
        saved["settings"] = json.dumps(self.settings)
        return saved

    def _save(self, engine: Engine) -> None:
        saved = self._state(engine)
        is_best = self.evaluator is None or saved["best_metric_epoch"] == engine.state.epoch

        def write() -> None:
            if self.select == "last" or is_best:
                _write(self.network.state_dict(), self.folder / MODEL)
            _write(saved, self.folder / CHECKPOINT)

        _on_first_rank(write)


def _on_first_rank(action: Any) -> None:
    if not dist.is_initialized() or dist.get_rank() == 0:
        action()


def write_weights(network: nn.Module, path: str | Path) -> None:
    """Write a network's weights, whole or not at all.

    Raises:
        CohortError: with the reason.
    """
    _write(network.state_dict(), Path(path))


def _write(content: Any, path: Path) -> None:
    try:
        with replacing(path) as temporary, temporary.open("wb") as file:
            torch.save(content, file)  # given a name, torch does not say that there is no space
    except (OSError, RuntimeError) as error:
        reason: BaseException = error
        while reason.__context__ is not None:  # torch's own error comes on top of the system's
            reason = reason.__context__
        raise CohortError(
            f"The file '{path}' cannot be written ({reason}); the last good one is kept, and the "
            "training goes on from it when it is started again."
        ) from error


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # torch raises half a dozen kinds, by the byte where a file ends
        raise CohortError(
            f"The checkpoint '{path}' cannot be read ({type(error).__name__}); remove it to begin "
            "anew."
        ) from error
