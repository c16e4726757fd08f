"""Cohorts: a table of subjects becomes checked, measured, split and scaled MONAI items."""

from medvae.data.cohort import Cohort, CohortState, cohort_or_exit
from medvae.data.confounding import confounded_rows, joint_classes
from medvae.data.errors import CohortError, FileError, configured, or_exit
from medvae.data.factor import Factor
from medvae.data.factors import Factors, balanced_sampler
from medvae.data.files import Volume, read_image, read_mask
from medvae.data.imageless import imageless, lend_grid
from medvae.data.measured import check_and_measure
from medvae.data.output import check_overwrite, check_results, check_writable, write_text
from medvae.data.phantom_cohort import phantoms
from medvae.data.record import check_settings, write_record
from medvae.data.run import (
    check_factor_training,
    check_groups,
    check_split_sizes,
    check_training,
)
from medvae.data.scaler import AttributeScaler
from medvae.data.split import SPLITS, split_subjects
from medvae.data.subjects import datalist, load_subjects
from medvae.data.treatment import Roles, assign_treatment

__all__ = [
    "SPLITS",
    "AttributeScaler",
    "Cohort",
    "CohortError",
    "CohortState",
    "Factor",
    "Factors",
    "FileError",
    "Roles",
    "Volume",
    "assign_treatment",
    "balanced_sampler",
    "check_and_measure",
    "check_factor_training",
    "check_groups",
    "check_overwrite",
    "check_results",
    "check_settings",
    "check_split_sizes",
    "check_training",
    "check_writable",
    "cohort_or_exit",
    "configured",
    "confounded_rows",
    "datalist",
    "imageless",
    "joint_classes",
    "lend_grid",
    "load_subjects",
    "or_exit",
    "phantoms",
    "read_image",
    "read_mask",
    "split_subjects",
    "write_record",
    "write_text",
]
