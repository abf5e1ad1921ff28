"""Faithfulness: does the prediction change as the map says when parts of the image are perturbed?"""

from . import (  # noqa: F401  (each registers itself)
    average_drop,
    funnybirds,
    idsds,
    insertion_deletion,
    log_odds,
    mif_lif,
    perturbation,
    region_perturbation,
    saco,
    stitched_perturbation,
)
