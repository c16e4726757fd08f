"""What a run leaves behind for people: metrics, tables, plots and a page that shows them all."""

from medvae.report.effects import EffectEvaluation
from medvae.report.effects_checks import check_evaluation, check_numbers, check_outcome
from medvae.report.effects_measured import MeasuredEffects
from medvae.report.effects_numbers import NumberEvaluation
from medvae.report.effects_table import effects_table
from medvae.report.evaluation import Evaluation, Predictions, predict
from medvae.report.examples import Examples
from medvae.report.leakage_plots import plot_embeddings, plot_leakage
from medvae.report.manipulation import ManipulationEvaluation
from medvae.report.map_montage import MapMontaged, plot_maps
from medvae.report.overlap import (
    announce_overlap,
    load_propensity,
    network_propensity,
    patients_of,
)
from medvae.report.page import (
    Page,
    Run,
    Section,
    write_comparison,
    write_page,
    write_panel,
    write_report,
)
from medvae.report.panel_answers import merge_answers
from medvae.report.panel_pdf import write_panel_pdf
from medvae.report.plots import (
    plot_codes,
    plot_curves,
    plot_reconstructions,
    plot_series,
)
from medvae.report.quality import quality_report
from medvae.report.samples import write_samples
from medvae.report.stylex import ClassifierEvaluation, StylexEvaluation
from medvae.report.stylex_checks import check_explanation
from medvae.report.stylex_measured import MeasuredEdits
from medvae.report.stylex_search import StylexSearch
from medvae.report.stylex_stability import compare_attributes
from medvae.report.subspaces import SubspaceEvaluation, leakage_table
from medvae.report.swaps import GanEvaluation, SwapsMontaged
from medvae.report.sweeps import manipulation_table, plot_sweeps
from medvae.report.tables import metrics_table
from medvae.report.traversals import TraversalMontaged, plot_traversals, write_gif

__all__ = [
    "ClassifierEvaluation",
    "EffectEvaluation",
    "Evaluation",
    "Examples",
    "GanEvaluation",
    "ManipulationEvaluation",
    "MapMontaged",
    "MeasuredEdits",
    "MeasuredEffects",
    "NumberEvaluation",
    "Page",
    "Predictions",
    "Run",
    "Section",
    "StylexEvaluation",
    "StylexSearch",
    "SubspaceEvaluation",
    "SwapsMontaged",
    "TraversalMontaged",
    "announce_overlap",
    "check_evaluation",
    "check_explanation",
    "check_numbers",
    "check_outcome",
    "compare_attributes",
    "effects_table",
    "leakage_table",
    "load_propensity",
    "manipulation_table",
    "merge_answers",
    "metrics_table",
    "network_propensity",
    "patients_of",
    "plot_codes",
    "plot_curves",
    "plot_embeddings",
    "plot_leakage",
    "plot_maps",
    "plot_reconstructions",
    "plot_series",
    "plot_sweeps",
    "plot_traversals",
    "predict",
    "quality_report",
    "write_comparison",
    "write_gif",
    "write_page",
    "write_panel",
    "write_panel_pdf",
    "write_report",
    "write_samples",
]
