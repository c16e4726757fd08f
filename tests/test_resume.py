"""A training that is killed goes on to the same bits, and contradictions are said in a sentence."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import warnings
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser
from test_bundles import CONFIGS, UNEVALUATED, run, tiny, training

from medvae.data import CohortError, phantoms, write_text
from medvae.data import record as run_record
from medvae.data.record import data_fingerprint, settings_difference
from medvae.engines import checkpoint
from medvae.engines.checkpoint import Checkpoint, _write, check_run
from medvae.report.evaluation import Evaluation

pytestmark = pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def run_and_die(where: str, settings: dict[str, Any]) -> None:
    """Run the bundle, in a process that kills itself, as power does, when it comes to `where`."""
    warnings.simplefilter("ignore")
    seed, save, write, count = Checkpoint._seed, torch.save, checkpoint._write, [0]

    def with_a_death(self: Checkpoint, engine: Engine) -> None:
        seed(self, engine)
        if engine.state.epoch == 3:
            engine.add_event_handler(Events.ITERATION_COMPLETED(once=15), die)

    def half(content: Any, file: Any) -> None:
        save(content, file)
        count[0] += "optimizer" in content
        if count[0] == 2 and "optimizer" in content:
            file.flush()
            os.truncate(file.name, 500)
            die()

    def second(content: Any, path: Path) -> None:
        count[0] += path.name == "checkpoint.pt"
        if count[0] == 2 and path.name == "checkpoint.pt":
            die()
        write(content, path)

    owner, name, change = {
        WHERE[0]: (Checkpoint, "_seed", with_a_death),
        WHERE[1]: (torch, "save", half),
        WHERE[2]: (checkpoint, "_write", second),
        WHERE[3]: (Evaluation, "_plot", lambda *_: die()),
    }[where]
    setattr(owner, name, change)
    run([CONFIGS / "train.yaml"], settings)


WHERE = (
    "in the middle of an epoch",
    "while a checkpoint is written",
    "between the model and the checkpoint",
    "during the evaluation",
)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: Any) -> Path:
    root = tmp_path_factory.mktemp("cohort")
    phantoms(root / "data", 40, spatial_dims=2)
    return root


def overrides(cohort: Path, folder: Path, **settings: Any) -> dict[str, Any]:
    flips = [
        {"_target_": "DeleteItemsd", "keys": "mask"},
        {"_target_": "RandFlipd", "keys": "image", "prob": 0.5, "spatial_axis": 0},
        {"_target_": "RandGaussianNoised", "keys": "image", "prob": 0.5},
    ]
    return training(cohort, 2) | {
        "ckpt_dir": str(folder / "models"),
        "output_dir": str(folder / "eval"),
        "max_epochs": 4,
        "warmup_epochs": 3,
        "augmentation": flips,
        "dropout": 0.2,
        **settings,
    }


@pytest.fixture(scope="module")
def uninterrupted(cohort: Path, tmp_path_factory: Any) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    run([CONFIGS / "train.yaml"], overrides(cohort, folder))
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(torch.load(folder / "models" / "model.pt", weights_only=True))


@pytest.mark.parametrize("where", WHERE)
def test_killed_training_resumes_to_the_same_bits(cohort, uninterrupted, tmp_path, where):
    arguments = where, overrides(cohort, tmp_path)
    # forked: a process of its own would import torch and MONAI for ten seconds
    killed = get_context("fork").Process(target=run_and_die, args=arguments)
    killed.start()
    killed.join(300)
    assert killed.exitcode == -signal.SIGKILL
    left = torch.load(tmp_path / "models" / "checkpoint.pt", weights_only=True)
    epochs = dict(zip(WHERE, (2, 0, 0, 4), strict=True))  # the first save is of epoch 0
    assert left["epoch"] == epochs[where]
    evaluated = where == "during the evaluation"
    # the training is what is resumed: what follows it is run where it was cut off
    run([CONFIGS / "train.yaml"], overrides(cohort, tmp_path) | ({} if evaluated else UNEVALUATED))
    expected, found = weights(uninterrupted), weights(tmp_path)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    for name in ("history.csv", *(("predictions.csv", "metrics.json") if evaluated else ())):
        one, two = ((f / "eval" / name).read_text() for f in (uninterrupted, tmp_path))
        assert one == two, name
    assert not (tmp_path / "models" / "checkpoint.pt").exists()
    assert not list((tmp_path / "models").glob(".*"))


def test_an_interrupted_run_is_not_continued_with_other_settings(cohort, tmp_path, capsys):
    first = overrides(cohort, tmp_path, max_epochs=1)
    run([CONFIGS / "train.yaml"], first | {"run": ["$@train::trainer.run()"]})
    assert (tmp_path / "models" / "checkpoint.pt").exists()
    with pytest.raises(SystemExit, match="latent_dim is 7 here and was 6.*overwrite"):
        run([CONFIGS / "train.yaml"], first | {"latent_dim": 7})
    with pytest.raises(SystemExit, match="resume is false"):
        run([CONFIGS / "train.yaml"], first | {"resume": False})
    run([CONFIGS / "train.yaml"], first | {"latent_dim": 7, "overwrite": True})
    with pytest.raises(SystemExit, match="already there"):
        run([CONFIGS / "train.yaml"], first | {"latent_dim": 7})


def test_a_run_that_no_epoch_of_was_done_is_begun_anew_with_other_settings(cohort, tmp_path):
    settings = overrides(cohort, tmp_path, max_epochs=1, run=["$@train::trainer.run()"])
    stopped = {
        "train::trainer::epoch_length": 0,
        "run": ["$@train::handlers[0]._start(@train::trainer)"],
    }
    run([CONFIGS / "train.yaml"], settings | stopped)
    assert torch.load(tmp_path / "models" / "checkpoint.pt", weights_only=True)["epoch"] == 0
    run([CONFIGS / "train.yaml"], settings | {"latent_dim": 7})
    assert weights(tmp_path)["log_var.bias"].shape == (7,)


def test_parts_of_an_earlier_run_go_where_one_begins_anew(tmp_path):
    models, part = tmp_path / "models", tmp_path / "models" / "classifier.pt"
    models.mkdir()
    check = partial(check_run, models, tmp_path, parts=[(models, "classifier.*")])
    part.touch()
    with pytest.raises(CohortError, match="classifier.pt' are already there"):
        check()  # whoever put it there
    (models / "run.json").touch()
    check()  # a run that was killed before its first checkpoint
    assert not part.exists()
    for name in ("classifier.pt", "model.pt"):
        (models / name).touch()
    with pytest.raises(CohortError, match="model.pt', .*classifier.pt' are already there"):
        check()
    assert part.exists()
    check(overwrite=True)
    assert not part.exists()
    assert (models / "model.pt").exists()


def test_select_last_keeps_the_last_epoch(cohort, tmp_path):
    settings = overrides(cohort, tmp_path, select="last", max_epochs=3)
    run([CONFIGS / "train.yaml"], settings | {"run": ["$@train::trainer.run()"]})
    last = torch.load(tmp_path / "models" / "checkpoint.pt", weights_only=True)["network"]
    assert all(torch.equal(value, last[name]) for name, value in weights(tmp_path).items())
    with pytest.raises(SystemExit, match="select is 'newest'; expected 'best' or 'last'"):
        run([CONFIGS / "train.yaml"], settings | {"select": "newest", "overwrite": True})


def test_the_record_says_what_was_run(cohort, uninterrupted):
    record = json.loads((uninterrupted / "models" / "run.json").read_text())
    assert record["settings"]["latent_dim"] == 6
    assert record["settings"]["max_epochs"] == 4
    assert record["seed"] == 0
    assert record["versions"]["torch"] == torch.__version__
    assert record["data"]["rows"] == 40
    assert len(record["data"]["sha256"]) == 64


def test_the_fingerprint_follows_the_data_and_not_its_place(tmp_path):
    one = phantoms(tmp_path / "one", 5, spatial_dims=2)
    two = phantoms(tmp_path / "two", 5, spatial_dims=2)
    other = phantoms(tmp_path / "three", 5, spatial_dims=2, seed=1)
    assert data_fingerprint(one) == data_fingerprint(two) != data_fingerprint(other)
    assert data_fingerprint(one) != data_fingerprint(one.assign(new=1))
    before, image = data_fingerprint(one), Path(one["image"][0])
    content = bytearray(image.read_bytes())
    content[-1] ^= 1
    image.write_bytes(content)  # of the same length
    assert data_fingerprint(one) != before


def test_the_revision_is_that_of_the_clone_or_of_where_the_run_lies(tmp_path, monkeypatch):
    monkeypatch.setattr(
        run_record, "__file__", str(tmp_path / "site-packages" / "a" / "b" / "c.py")
    )
    run = tmp_path / "clone" / "models"
    run.mkdir(parents=True)
    assert run_record._revision(run) is None
    author = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for arguments in (["init", "-q"], [*author, "commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run(["git", "-C", str(run.parent), *arguments], check=True)
    revision = run_record._revision(run)
    assert re.fullmatch("[0-9a-f]{40}", revision)
    (run / "new.txt").touch()
    assert run_record._revision(run) == f"{revision}+"


def test_inference_refuses_a_configuration_that_contradicts_the_training(
    cohort, uninterrupted, tmp_path
):
    folders = {"ckpt_dir": str(uninterrupted / "models"), "output_dir": str(tmp_path / "out")}
    settings = tiny(cohort, 2, **folders, dropout=0.2)
    for name, value in (("spacing_mm", 5.0), ("window", [0, 900]), ("latent_dim", 9)):
        with pytest.raises(SystemExit, match=f"{name} is .* here and was"):
            run([CONFIGS / "inference.yaml"], settings | {name: value}, "infer")
    assert not (tmp_path / "out").exists()
    run([CONFIGS / "inference.yaml"], settings | {"batch_size": 3}, "infer")
    assert len(pd.read_csv(tmp_path / "out" / "predictions.csv")) == 40


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("batch_size", 5),
        ("autocast", "$torch.bfloat16"),
        ("attribute_loss", {"_target_": "medvae.losses.AttributeRegularizationLoss"}),
        ("augmentation", []),
        ("seed", 1),
    ],
)
def test_a_continuation_has_every_setting_of_its_beginning(key, value):
    config = ConfigParser.load_config_file(str(CONFIGS / "train.yaml"))
    assert settings_difference(config, config) is None
    assert settings_difference(config | {key: value}, config).startswith(f"{key} is ")
    moved = {"subjects": "elsewhere.csv", "ckpt_dir": "elsewhere", "overwrite": True}
    assert settings_difference(config | moved, config) is None


def test_an_interrupted_run_is_not_continued_on_other_data(cohort, tmp_path):
    first = overrides(cohort, tmp_path, max_epochs=1)
    run([CONFIGS / "train.yaml"], first | {"run": ["$@train::trainer.run()"]})
    table = pd.read_csv(cohort / "data" / "subjects.csv")
    for column in ("image", "mask"):
        table[column] = [str(cohort / "data" / cell) for cell in table[column]]
    table.assign(new=1).to_csv(tmp_path / "other.csv", index=False)
    with pytest.raises(SystemExit, match="was of other data"):
        run([CONFIGS / "train.yaml"], first | {"subjects": str(tmp_path / "other.csv")})


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device without space")
def test_a_full_disk_ends_in_a_sentence_and_keeps_the_last_file(tmp_path, monkeypatch):
    path = tmp_path / "model.pt"
    _write({"a": torch.zeros(3)}, path)
    save = torch.save
    monkeypatch.setattr(torch, "save", lambda content, _: save(content, "/dev/full"))
    with pytest.raises(CohortError, match="model.pt' cannot be written.*last good one is kept"):
        _write({"a": torch.ones(100_000)}, path)
    monkeypatch.undo()
    assert torch.load(path, weights_only=True)["a"].sum() == 0
    assert [p.name for p in tmp_path.iterdir()] == ["model.pt"]


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"needs the right to mount a small disk ({error})")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_disk_that_fills_up_during_training_leaves_the_last_good_checkpoint(tiny_disk):
    """Something else takes the space for a second model beside the first one."""

    def train(epochs: int) -> Any:
        network = torch.nn.Linear(50, 50)
        optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
        handler = Checkpoint(tiny_disk, network, optimizer)

        def step(engine: Engine, __: Any) -> None:
            network(torch.ones(1, 50)).sum().backward()
            optimizer.step()
            if engine.state.epoch == 2:
                with (tiny_disk / "other").open("wb", buffering=0) as file, suppress(OSError):
                    while file.write(bytes(4096)):
                        pass

        engine = Engine(step)
        handler.attach(engine)
        engine.run([0], max_epochs=epochs)

    with pytest.raises(CohortError) as caught:
        train(3)
    message = str(caught.value)
    assert "cannot be written" in message
    assert "No space left on device" in message
    assert "\n" not in message
    left = torch.load(tiny_disk / "checkpoint.pt", weights_only=True)
    model = torch.load(tiny_disk / "model.pt", weights_only=True)
    assert left["epoch"] == 1
    assert torch.equal(left["network"]["weight"], model["weight"])
    assert sorted(p.name for p in tiny_disk.iterdir()) == ["checkpoint.pt", "model.pt", "other"]


@pytest.mark.parametrize("maps", [True, False])
def test_a_disk_that_fills_up_during_inference_ends_in_a_sentence(
    cohort, uninterrupted, tiny_disk, maps
):
    folders = {"ckpt_dir": str(uninterrupted / "models"), "output_dir": str(tiny_disk / "out")}
    with pytest.raises(SystemExit) as stopped:
        run(
            [CONFIGS / "inference.yaml"],
            tiny(cohort, 2, **folders, dropout=0.2, maps=maps),
            "infer",
        )
    message = str(stopped.value)
    assert message.startswith(f"Error: The file '{tiny_disk}/out/")
    assert "No space left on device" in message
    assert "\n" not in message
    left = [path for path in (tiny_disk / "out").rglob("*") if path.is_file()]
    assert not [path for path in left if path.name.startswith(".")]
    for path in left:
        if path.suffix == ".gz":
            assert np.isfinite(nib.load(path).get_fdata()).all()  # whole


def test_the_best_score_so_far_survives_the_interruption(tmp_path):
    """Else the first epoch after it would count as the best, whatever its score."""

    def trainer(score: float, epochs: int) -> Any:
        network = torch.nn.Linear(1, 1)
        state = SimpleNamespace(best_metric=-1, best_metric_epoch=-1)
        engine = Engine(lambda *_: torch.nn.init.constant_(network.weight, score))
        optimizer = torch.optim.SGD(network.parameters())
        Checkpoint(tmp_path, network, optimizer, evaluator=SimpleNamespace(state=state)).attach(
            engine
        )

        @engine.on(Events.EPOCH_COMPLETED)
        def validate(engine: Engine) -> None:
            if score > state.best_metric:
                state.best_metric, state.best_metric_epoch = score, engine.state.epoch

        engine.run([0], max_epochs=epochs)
        return state

    trainer(0.7, 2)
    assert trainer(0.5, 4).best_metric == 0.7
    assert torch.load(tmp_path / "model.pt", weights_only=True)["weight"] == pytest.approx(0.7)
    assert trainer(0.9, 6).best_metric_epoch == 5
    assert torch.load(tmp_path / "model.pt", weights_only=True)["weight"] == pytest.approx(0.9)


def test_a_file_is_replaced_and_not_written_over(tmp_path):
    """Who holds the old file, as a kill in the middle would, still has all of it."""
    path, held = tmp_path / "a.txt", tmp_path / "held.txt"
    write_text(path, "old")
    held.hardlink_to(path)
    write_text(path, "new")
    assert (path.read_text(), held.read_text()) == ("new", "old")
