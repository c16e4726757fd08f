"""Preprocessing that keeps physical scale, and the dict transforms that MONAI lacks."""

from medvae.transforms.affines import PlanarAffined
from medvae.transforms.artefacts import RandArtefactd
from medvae.transforms.copies import DeformedCopyd
from medvae.transforms.grid import CenterOnMaskd, ResampleToGridd
from medvae.transforms.intervention import KnownEffectd
from medvae.transforms.loading import LoadSubjectd
from medvae.transforms.masks import MaskBackgroundd
from medvae.transforms.measuring import MeasureAttributesd
from medvae.transforms.n4 import N4BiasFieldCorrectiond
from medvae.transforms.pipeline import no_percentiles, preprocessing
from medvae.transforms.saving import SaveSubjectd

__all__ = [
    "CenterOnMaskd",
    "DeformedCopyd",
    "KnownEffectd",
    "LoadSubjectd",
    "MaskBackgroundd",
    "MeasureAttributesd",
    "N4BiasFieldCorrectiond",
    "PlanarAffined",
    "RandArtefactd",
    "ResampleToGridd",
    "SaveSubjectd",
    "no_percentiles",
    "preprocessing",
]
