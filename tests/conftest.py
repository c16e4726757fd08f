"""Settings of every process that runs tests; read before torch is."""

import os
from pathlib import Path

import pytest

# One thread in each: the suite runs in as many processes as there are cores, and a training that
# is compared to the bit with one in a process of its own must add in the same order.
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
os.environ.setdefault("MPLBACKEND", "Agg")


def pytest_addoption(parser):
    """Let the pictures of the docs be taken: of a model worth looking at, and to stay."""
    group = parser.getgroup("pictures of the docs")
    group.addoption("--pictures", type=Path, help="folder that they are written to")
    group.addoption(
        "--of", type=Path, help="an Attri-VAE trained on phantoms, such as bundles/attri_vae"
    )


@pytest.fixture
def picture_folder(request, tmp_path):
    """Where a test leaves a picture of the docs: nowhere that stays, unless it is asked for."""
    return request.config.getoption("pictures") or tmp_path


@pytest.fixture(scope="session")
def pictured(request):
    """The bundle root to take pictures of, None for the tests' own model of seconds."""
    return request.config.getoption("of")


def pytest_runtest_setup():
    """Undo what a library has set: two pools of two threads on two cores wait for each other."""
    import torch

    torch.set_num_threads(1)


def pytest_collection_finish():
    """Spare the trainings a search for margins in every figure, which draws it once more."""
    from matplotlib.figure import Figure

    Figure.get_layout_engine = lambda self: None
