"""Explainable generative models of medical images, as MONAI bundles."""

__version__ = "0.1.0"
