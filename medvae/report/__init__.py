"""What a run leaves behind for people: metrics, tables and plots."""

from medvae.report.evaluation import Evaluation, Predictions, predict
from medvae.report.map_montage import MapMontaged, plot_maps
from medvae.report.plots import (
    TraversalMontaged,
    plot_codes,
    plot_curves,
    plot_reconstructions,
    plot_traversals,
)
from medvae.report.tables import metrics_table

__all__ = [
    "Evaluation",
    "MapMontaged",
    "Predictions",
    "TraversalMontaged",
    "metrics_table",
    "plot_codes",
    "plot_curves",
    "plot_maps",
    "plot_reconstructions",
    "plot_traversals",
    "predict",
]
