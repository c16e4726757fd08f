"""Two ranks of gloo on this machine, forked: each import of torch and MONAI would take seconds."""

from __future__ import annotations

import os
import socket
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def of_two_ranks(work: Callable[[int], Any], folder: Path) -> list[Any]:
    """What work(rank), tensors, returns on each of two ranks."""
    mp.start_processes(_grouped, (work, str(folder)), nprocs=2, start_method="fork")
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def said_by_two_ranks(run: Callable[[], Any], folder: Path) -> list[str]:
    """What each of two ranks prints that run what torchrun would start."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = int(free.getsockname()[1])
    mp.start_processes(_launched, (run, port, str(folder)), nprocs=2, start_method="fork")
    return [(folder / f"{rank}.log").read_text("utf-8") for rank in range(2)]


def _grouped(rank: int, work: Callable[[int], Any], folder: str) -> None:
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    torch.save(work(rank), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def _launched(rank: int, run: Callable[[], Any], port: int, folder: str) -> None:
    own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2}
    own |= {"MASTER_ADDR": "localhost", "MASTER_PORT": port}
    os.environ.update({key: str(value) for key, value in own.items()})
    warnings.resetwarnings()
    path = Path(folder, f"{rank}.log")
    with path.open("w", encoding="utf-8") as log, redirect_stdout(log), redirect_stderr(log):
        run()
