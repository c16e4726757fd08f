"""What a run leaves behind for people: metrics, tables and plots."""

from medvae.report.evaluation import Evaluation, Predictions, predict
from medvae.report.manipulation import ManipulationEvaluation
from medvae.report.map_montage import MapMontaged, plot_maps
from medvae.report.plots import (
    plot_codes,
    plot_curves,
    plot_reconstructions,
)
from medvae.report.samples import write_samples
from medvae.report.sweeps import manipulation_table, plot_sweeps
from medvae.report.tables import metrics_table
from medvae.report.traversals import TraversalMontaged, plot_traversals, write_gif

__all__ = [
    "Evaluation",
    "ManipulationEvaluation",
    "MapMontaged",
    "Predictions",
    "TraversalMontaged",
    "manipulation_table",
    "metrics_table",
    "plot_codes",
    "plot_curves",
    "plot_maps",
    "plot_reconstructions",
    "plot_sweeps",
    "plot_traversals",
    "predict",
    "write_gif",
    "write_samples",
]
