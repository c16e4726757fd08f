"""Settings of every process that runs tests; read before torch is."""

import os

# One thread in each: the suite runs in as many processes as there are cores, and a training that
# is compared to the bit with one in a process of its own must add in the same order.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
