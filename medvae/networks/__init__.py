"""Networks for images (`spatial_dims=2`) and volumes (`spatial_dims=3`)."""

from medvae.networks.attri_vae import AttriVAE, AttriVAEOutput, AttriVAEReconstruction
from medvae.networks.checkpoint import load_weights
from medvae.networks.classifier import FactorClassifier
from medvae.networks.disentangled_gan import DisentangledGAN
from medvae.networks.style_sweep import StyleSweep
from medvae.networks.stylegan import (
    DiscriminatorOutput,
    MappingNetworks,
    StyleDiscriminator,
    StyleGenerator,
)
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
    "DisentangledGAN",
    "DiscriminatorOutput",
    "FactorClassifier",
    "MappingNetworks",
    "StyleDiscriminator",
    "StyleGenerator",
    "StyleSweep",
    "SubspaceClassifier",
    "SubspaceEncoder",
    "SubspaceHeads",
    "SubspaceOutput",
    "Subspaces",
    "load_weights",
]
