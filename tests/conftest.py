"""Settings of every process that runs tests; read before torch is."""

import os

# One thread in each: the suite runs in as many processes as there are cores, and a training that
# is compared to the bit with one in a process of its own must add in the same order.
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
os.environ.setdefault("MPLBACKEND", "Agg")


def pytest_runtest_setup():
    """Undo what a library has set: two pools of two threads on two cores wait for each other."""
    import torch

    torch.set_num_threads(1)


def pytest_collection_finish():
    """Spare the trainings a search for margins in every figure: half of the time of a plot."""
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    ConstrainedLayoutEngine.execute = lambda self, figure: {}
