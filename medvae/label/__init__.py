"""Trained bundles behind MONAI Label: maps and counterfactuals in 3D Slicer, OHIF and over REST.

What needs MONAI Label itself is in `medvae.label.app` and is imported by its server alone, so that
everything else runs, and is tested, without it.
"""

from medvae.label.asked import Asked, clamped
from medvae.label.bins import bin_edges, quantise
from medvae.label.ranking import disagreement, distances, training_codes
from medvae.label.served import Answer, ServedBundle, find_bundles, loaded
from medvae.label.training import (
    TrainingOptions,
    finish_training,
    needs_mask,
    studies_table,
    train_again,
)

__all__ = [
    "Answer",
    "Asked",
    "ServedBundle",
    "TrainingOptions",
    "bin_edges",
    "clamped",
    "disagreement",
    "distances",
    "find_bundles",
    "finish_training",
    "loaded",
    "needs_mask",
    "quantise",
    "studies_table",
    "train_again",
    "training_codes",
]
