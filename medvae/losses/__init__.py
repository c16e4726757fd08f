"""Losses: one definition of each term, and the objective that adds them up."""

from medvae.losses.attribute import (
    AttributeRegularizationLoss,
    attribute_correlation,
    attribute_leakage,
    attribute_ranking,
    attribute_regression,
    attribute_regularization,
)
from medvae.losses.control import ControlLoss, StructureLoss
from medvae.losses.elbo import (
    bernoulli_reconstruction,
    gaussian_reconstruction,
    kl_divergence,
    kl_normal,
)
from medvae.losses.objective import AttriVAELoss, classification_loss

__all__ = [
    "AttriVAELoss",
    "ControlLoss",
    "StructureLoss",
    "AttributeRegularizationLoss",
    "attribute_correlation",
    "attribute_leakage",
    "attribute_ranking",
    "attribute_regression",
    "attribute_regularization",
    "bernoulli_reconstruction",
    "classification_loss",
    "gaussian_reconstruction",
    "kl_divergence",
    "kl_normal",
]
