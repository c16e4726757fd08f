"""Networks for images (`spatial_dims=2`) and volumes (`spatial_dims=3`)."""

from medvae.networks.attri_vae import AttriVAE, AttriVAEOutput, AttriVAEReconstruction
from medvae.networks.checkpoint import load_weights

__all__ = ["AttriVAE", "AttriVAEOutput", "AttriVAEReconstruction", "load_weights"]
