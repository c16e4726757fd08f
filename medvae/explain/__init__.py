"""Looking through a trained model: what its latent axes say about a subject."""

from medvae.explain.attfind import (
    Screening,
    StyleSpace,
    attfind,
    screened_attfind,
    style_range,
)
from medvae.explain.counterfactual import (
    Counterfactual,
    CounterfactualInferer,
    counterfactual,
    from_covariates,
)
from medvae.explain.curve import MonotoneCurve
from medvae.explain.eigenfind import eigen_directions, eigenfind
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
from medvae.explain.style_edits import StyleEdit, StyleEditInferer, load_edits
from medvae.explain.style_effects import StyleEffects, class_log_odds
from medvae.explain.style_selection import (
    Edit,
    apply_edits,
    artefacts,
    class_deficits,
    class_gains,
    explain_image,
    merge_classes,
    select,
    stable_images,
)
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
    "Edit",
    "Instrument",
    "MonotoneCurve",
    "Readout",
    "Screening",
    "StyleEdit",
    "StyleEditInferer",
    "StyleEffects",
    "StyleSpace",
    "SwapInferer",
    "TraversalInferer",
    "apply_edits",
    "artefacts",
    "attfind",
    "attribute_maps",
    "class_deficits",
    "class_gains",
    "class_log_odds",
    "counterfactual",
    "eigen_directions",
    "eigenfind",
    "explain_image",
    "from_covariates",
    "interpolate",
    "interpolate_subspaces",
    "load_edits",
    "merge_classes",
    "reconstruct",
    "replace_axes",
    "sample",
    "sample_subspace",
    "screened_attfind",
    "select",
    "stable_images",
    "style_range",
    "swap_subspaces",
    "there_and_back",
    "traverse",
]
