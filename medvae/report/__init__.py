"""What a run leaves behind for people: metrics, tables and plots."""

from medvae.report.evaluation import Evaluation, Predictions, predict
from medvae.report.plots import plot_codes, plot_curves, plot_reconstructions
from medvae.report.tables import metrics_table

__all__ = [
    "Evaluation",
    "Predictions",
    "metrics_table",
    "plot_codes",
    "plot_curves",
    "plot_reconstructions",
    "predict",
]
