"""Losses: one definition of each term, and the objective that adds them up."""

from medvae.losses.attribute import (
    AttributeRegularizationLoss,
    attribute_correlation,
    attribute_leakage,
    attribute_ranking,
    attribute_regression,
    attribute_regularization,
)
from medvae.losses.control import ControlLoss
from medvae.losses.dependence import SubspaceDependenceLoss, effective_rank
from medvae.losses.distance import (
    distance_correlation,
    distance_correlation_sqr,
    u_distance_correlation_sqr,
)
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
    "AttributeRegularizationLoss",
    "SubspaceDependenceLoss",
    "attribute_correlation",
    "attribute_leakage",
    "attribute_ranking",
    "attribute_regression",
    "attribute_regularization",
    "bernoulli_reconstruction",
    "classification_loss",
    "distance_correlation",
    "distance_correlation_sqr",
    "effective_rank",
    "gaussian_reconstruction",
    "kl_divergence",
    "kl_normal",
    "u_distance_correlation_sqr",
]
