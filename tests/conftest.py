"""Tests run side by side, one process for each core, so each of them computes with one thread."""

import os

os.environ["OMP_NUM_THREADS"] = "1"
