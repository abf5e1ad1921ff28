"""Maps over the token graph: against dense matrices written by hand, and what must hold whatever the model is."""

import pytest
import torch
from graph_families import FAMILIES, reference_maps

import vitrail
from vitrail.explanation import Explanation

SIGNED = ("complete", "gae", "absolute")
QUICK = [name for name, family in FAMILIES.items() if not family.slow]
EVERY = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]


def explained(model, images, target=3, method="complete", **options) -> Explanation:
    if method in SIGNED:
        options = {"gradient": "full", **options}
    if method == "complete":
        options = {"compete": False, **options}
    return vitrail.explain(model, images, target, method=method, **options)


def error(found: torch.Tensor, right: torch.Tensor) -> float:
    assert found.shape == right.shape
    return float((found - right).abs().max() / right.abs().max())


@pytest.mark.parametrize("name", EVERY)
def test_maps_are_those_of_dense_matrices(name):
    family = FAMILIES[name]
    module, images = family.build(), family.images()
    right = reference_maps(family, module, images, target=3)
    model = vitrail.wrap(module)
    found = {method: explained(model, images, method=method).scores for method in right}
    errors = {method: error(found[method], right[method]) for method in right}
    assert errors == pytest.approx(dict.fromkeys(right, 0), abs=1e-8)


@pytest.mark.parametrize(
    "name", ["swin", *(pytest.param(one, marks=pytest.mark.slow) for one in FAMILIES if one != "swin")]
)
def test_single_precision_is_as_good_as_it_can_be(name):
    family = FAMILIES[name]
    module, images = family.build(), family.images()
    found = explained(vitrail.wrap(module), images.float()).scores
    assert found.dtype == torch.float32
    assert error(found, reference_maps(family, module, images, target=3)["complete"]) < 1e-5
