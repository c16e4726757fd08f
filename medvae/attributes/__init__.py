"""Attributes: an image and a mask become named numbers, with their unit in the name."""

from medvae.attributes.cardiac import ejection_fraction, wall_thickness_mm
from medvae.attributes.features import feature_names, measure
from medvae.attributes.labels import measure_labels

__all__ = [
    "ejection_fraction",
    "feature_names",
    "measure",
    "measure_labels",
    "wall_thickness_mm",
]
