"""Looking through a trained model: what its latent axes say about a subject."""

from medvae.explain.counterfactual import (
    Counterfactual,
    CounterfactualInferer,
    counterfactual,
    from_covariates,
)
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
from medvae.explain.swap import (
    SwapInferer,
    interpolate_subspaces,
    reconstruct,
    sample_subspace,
    swap_subspaces,
)

__all__ = [
    "AttributeMapInferer",
    "Counterfactual",
    "CounterfactualInferer",
    "Instrument",
    "MonotoneCurve",
    "Readout",
    "SwapInferer",
    "TraversalInferer",
    "attribute_maps",
    "counterfactual",
    "from_covariates",
    "interpolate",
    "interpolate_subspaces",
    "reconstruct",
    "replace_axes",
    "sample",
    "sample_subspace",
    "swap_subspaces",
    "there_and_back",
    "traverse",
]
