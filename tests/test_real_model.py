"""On the real ViT-Ti/16: the authors' own maps, to 1e-4 of the maximum, and what the paper's figures show."""

from functools import cache

import numpy as np
import pytest
import torch

import vitrail

CASES = [("catdog", 243), ("catdog", 282), ("snail", 113), ("snail", 112)]


@pytest.fixture(scope="module")
def oracle(shared):
    def read(name: str) -> dict[str, np.ndarray]:
        with np.load(shared / "oracles" / f"{name}.npz") as file:
            return {key: file[key] for key in file.files if not name.startswith("inputs") or key.endswith("/x")}

    return cache(read)


@pytest.fixture(scope="module")
def tensors(oracle):
    inputs = oracle("inputs")
    return lambda image: torch.from_numpy(inputs[f"{image}/x"])


def relative(ours: torch.Tensor, official: np.ndarray) -> float:
    expected = torch.from_numpy(np.asarray(official)).reshape(ours.shape).double()
    return float((ours.double() - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize(("image", "target"), CASES)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("gae", {"method": "gae"}),
        ("gae.f64", {"method": "gae"}),
        ("own_complete_eq5", {"method": "complete"}),
        ("own_absolute_eq6", {"method": "absolute"}),
        ("own_centred_signed", {"method": "complete", "centred": True}),
    ],
)
def test_gradient_maps(vit_tiny, oracle, tensors, image, target, name, options):
    ours = vitrail.explain(vit_tiny, tensors(image), target, **options)
    assert relative(ours.scores[0], oracle(name)[f"{image}/{target}"]) < 1e-4


@pytest.mark.parametrize("image", ["catdog", "snail"])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("raw_attention", {"method": "raw"}),
        ("rollout_chefer_start0", {"method": "rollout"}),
        ("rollout_chefer_start1", {"method": "rollout", "start_layer": 1}),
        ("own_rollout_eq1to3_unnormalised", {"method": "rollout", "row_normalise": False}),
    ],
)
def test_attention_maps(vit_tiny, oracle, tensors, image, name, options):
    assert relative(vitrail.explain(vit_tiny, tensors(image), **options).scores[0], oracle(name)[image]) < 1e-4


@pytest.mark.parametrize(("image", "target", "against"), [("catdog", 243, 282), ("snail", 113, 112)])
def test_eq_8(vit_tiny, oracle, tensors, image, target, against):
    ours = vitrail.explain(vit_tiny, tensors(image), target, against=against)
    assert relative(ours.scores[0], oracle("own_eq8_loss")[f"{image}/{target}_vs_{against}"]) < 1e-4


def test_the_zebra_is_red_and_the_elephant_blue(vit_tiny, shared):
    found = vitrail.explain(vit_tiny, shared / "images" / "pairs" / "el2.png", [["zebra", "tusker"]])
    zebra, tusker = found.scores[0]
    on_zebra, on_elephant = (slice(7, 11), slice(6, 11)), (slice(1, 7), slice(3, 9))
    assert zebra[on_zebra].mean() > 0 > zebra[on_elephant].mean()
    assert tusker[on_elephant].mean() > 0 > tusker[on_zebra].mean()


def test_class_names_are_imagenets(vit_tiny):
    for name, index in [("zebra", 340), ("tusker", 101), ("bald eagle", 22), ("kite", 21), ("bull mastiff", 243)]:
        assert vit_tiny.class_index(name) == index
