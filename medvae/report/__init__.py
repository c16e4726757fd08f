"""What a run leaves behind for people: metrics, tables and plots."""

from medvae.report.evaluation import Evaluation, Predictions, predict
from medvae.report.manipulation import ManipulationEvaluation
from medvae.report.plots import (
    MapMontaged,
    TraversalMontaged,
    plot_codes,
    plot_curves,
    plot_maps,
    plot_reconstructions,
    plot_traversals,
)
from medvae.report.sweeps import manipulation_table, plot_sweeps, write_gif
from medvae.report.tables import metrics_table

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
]
