"""Looking through a trained model: what its latent axes say about a subject."""

from medvae.explain.curve import MonotoneCurve
from medvae.explain.instrument import Instrument
from medvae.explain.manipulation import (
    TraversalInferer,
    interpolate,
    replace_axes,
    sample,
    there_and_back,
    traverse,
)
from medvae.explain.maps import AttributeMapInferer, attribute_maps
from medvae.explain.readout import Readout

__all__ = [
    "AttributeMapInferer",
    "Instrument",
    "MonotoneCurve",
    "Readout",
    "TraversalInferer",
    "attribute_maps",
    "interpolate",
    "replace_axes",
    "sample",
    "there_and_back",
    "traverse",
]
