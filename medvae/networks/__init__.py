"""Networks for images (`spatial_dims=2`) and volumes (`spatial_dims=3`)."""

from medvae.networks.attri_vae import AttriVAE, AttriVAEOutput, AttriVAEReconstruction
from medvae.networks.checkpoint import load_weights
from medvae.networks.classifier import FactorClassifier
from medvae.networks.covariates import CovariateEncoder
from medvae.networks.disentangled_gan import DisentangledGAN
from medvae.networks.frozen import FrozenClassifier, check_layers, load_classifier
from medvae.networks.intact_vae import IntactVAE, IntactVAEOutput, IntactVAEReconstruction
from medvae.networks.style_discriminator import (
    DiscriminatorOutput,
    StyleDiscriminator,
    StyleTrunk,
)
from medvae.networks.style_sweep import StyleSweep
from medvae.networks.stylegan import MappingNetworks, StyleGenerator
from medvae.networks.stylex import ConditionalDiscriminator, StyleEncoder, StylEx
from medvae.networks.subspaces import (
    SubspaceClassifier,
    SubspaceEncoder,
    SubspaceHeads,
    SubspaceOutput,
    Subspaces,
)

__all__ = [
    "AttriVAE",
    "AttriVAEOutput",
    "AttriVAEReconstruction",
    "ConditionalDiscriminator",
    "CovariateEncoder",
    "DiscriminatorOutput",
    "DisentangledGAN",
    "FactorClassifier",
    "FrozenClassifier",
    "IntactVAE",
    "IntactVAEOutput",
    "IntactVAEReconstruction",
    "MappingNetworks",
    "StylEx",
    "StyleDiscriminator",
    "StyleEncoder",
    "StyleGenerator",
    "StyleSweep",
    "StyleTrunk",
    "SubspaceClassifier",
    "SubspaceEncoder",
    "SubspaceHeads",
    "SubspaceOutput",
    "Subspaces",
    "check_layers",
    "load_classifier",
    "load_weights",
]
