"""Losses: one definition of each term, and the objective that adds them up."""

from medvae.losses.adversarial import (
    PathLength,
    discriminator_loss,
    generator_loss,
    r1_penalty,
)
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
from medvae.losses.factors import FactorLoss, factor_predictions
from medvae.losses.intact import IntactVAELoss, PublicCodeLoss, gaussian_nll
from medvae.losses.objective import AttriVAELoss, classification_loss
from medvae.losses.rivals import AdversarialLeakageLoss, HSICLoss, reverse_gradient
from medvae.losses.stylex import (
    ClassConsistency,
    FeatureDistance,
    ReconstructionLoss,
    class_divergence,
    perceptual_term,
    reads_classifier,
)
from medvae.losses.subspaces import LabelledDependence, SubspaceLoss, encode_factors

__all__ = [
    "AdversarialLeakageLoss",
    "AttriVAELoss",
    "AttributeRegularizationLoss",
    "ClassConsistency",
    "ControlLoss",
    "FactorLoss",
    "FeatureDistance",
    "HSICLoss",
    "IntactVAELoss",
    "LabelledDependence",
    "PathLength",
    "PublicCodeLoss",
    "ReconstructionLoss",
    "SubspaceDependenceLoss",
    "SubspaceLoss",
    "attribute_correlation",
    "attribute_leakage",
    "attribute_ranking",
    "attribute_regression",
    "attribute_regularization",
    "bernoulli_reconstruction",
    "class_divergence",
    "classification_loss",
    "discriminator_loss",
    "distance_correlation",
    "distance_correlation_sqr",
    "effective_rank",
    "encode_factors",
    "factor_predictions",
    "gaussian_nll",
    "gaussian_reconstruction",
    "generator_loss",
    "kl_divergence",
    "kl_normal",
    "perceptual_term",
    "r1_penalty",
    "reads_classifier",
    "reverse_gradient",
    "u_distance_correlation_sqr",
]
