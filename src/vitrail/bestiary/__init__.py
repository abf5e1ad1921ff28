"""The bestiary: a world of creatures drawn by code, whose every part is known."""

from vitrail.bestiary.causal import CausalTruth, CellTruth, causal_truth, cell_truth
from vitrail.bestiary.dataset import Bestiary, LabelErrors
from vitrail.bestiary.draw import CreatureView, Rendered, render
from vitrail.bestiary.scene import Creature, Scene, sample_scene
from vitrail.bestiary.species import (
    CLASS_NAMES,
    FAMILIES,
    PARTS,
    SPECIES,
    VARIANTS,
    BestiaryError,
    Family,
    ImpossibleCreatureError,
    Species,
    UnknownNameError,
)

__all__ = [
    "CLASS_NAMES",
    "FAMILIES",
    "PARTS",
    "SPECIES",
    "VARIANTS",
    "Bestiary",
    "BestiaryError",
    "CausalTruth",
    "CellTruth",
    "Creature",
    "CreatureView",
    "Family",
    "ImpossibleCreatureError",
    "LabelErrors",
    "Rendered",
    "Scene",
    "Species",
    "UnknownNameError",
    "causal_truth",
    "cell_truth",
    "render",
    "sample_scene",
]
