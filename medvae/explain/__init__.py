"""Looking through a trained model: what its latent axes say about a subject."""

from medvae.explain.readout import Readout

__all__ = ["Readout"]
