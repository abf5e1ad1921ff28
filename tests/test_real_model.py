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
        ("own_complete_eq5", {"method": "complete", "gradient": "full"}),
        ("own_absolute_eq6", {"method": "absolute"}),
        ("own_centred_signed", {"method": "complete", "gradient": "full", "centred": True}),
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
    ours = vitrail.explain(
        vit_tiny, tensors(image), target, against=against, objective="normalized_difference", gradient="full"
    )
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


TATTR = {"method": "tattr", "precision": "float64"}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("tattr_start0.f64", {"method": "tattr"}),
        pytest.param("tattr_start0.f64", TATTR, marks=pytest.mark.slow),
        pytest.param("tattr_start1.f64", TATTR | {"start_layer": 1}, marks=pytest.mark.slow),
        pytest.param("lrp_rollout_start0.f64", TATTR | {"weighted": False}, marks=pytest.mark.slow),
        pytest.param(
            "lrp_second_layer.f64", {"method": "partial_lrp", "layer": 1, "rules": "tattr"}, marks=pytest.mark.slow
        ),
        ("lrp_partial.f64", {"method": "partial_lrp"}),
        ("lrp_partial_ablation.f64", {"method": "partial_lrp", "ablation": True}),
        ("lrp_full.f64", {"method": "lrp"}),
    ],
)
def test_lrp_family_in_float64(vit_tiny, oracle, tensors, name, options):
    for image, targets in (("catdog", [243, 282]), ("snail", [113, 112])):
        ours = vitrail.explain(vit_tiny, tensors(image), [targets], **options).scores[0]
        for scores, target in zip(ours, targets, strict=True):
            # T-Attr's own default multiplies in float32 on the way back.
            tolerance = 1e-5 if options == {"method": "tattr"} else 1e-6
            assert relative(scores, oracle(name)[f"{image}/{target}"]) < tolerance


@pytest.mark.parametrize("name", ["attn_gradcam", "attn_gradcam.f64"])
def test_attention_gradcam(vit_tiny, oracle, tensors, name):
    for image, target in CASES:
        scores = vitrail.explain(vit_tiny, tensors(image), target, method="attn_gradcam").scores[0]
        ours = (scores - scores.min()) / (scores.max() - scores.min())
        assert relative(ours, oracle(name)[f"{image}/{target}"]) < 1e-4


CP, PLAIN = {"rules": "cp_lrp"}, {"conv_gamma": None, "linear_gamma": None}


@pytest.mark.parametrize(
    ("name", "key", "options"),
    [
        ("lxt_cplrp_gamma_conv0.25_lin0.05.f64", "", CP),
        ("own_attnlrp_lxt_rules.f64", "/gamma_conv0.25_lin0.05", {}),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ("lxt_cplrp_plain_no_zennit.f64", "", CP | PLAIN),
                ("lxt_cplrp_eps_conv0_lin0.f64", "", CP | {"conv_gamma": 0.0, "linear_gamma": 0.0}),
                ("lxt_cplrp_gamma_conv0.1_lin0.01.f64", "", CP | {"conv_gamma": 0.1, "linear_gamma": 0.01}),
                ("lxt_cplrp_gamma_conv100_lin1.f64", "", CP | {"conv_gamma": 100.0, "linear_gamma": 1.0}),
                ("own_attnlrp_lxt_rules.f64", "/plain", PLAIN),
            )
        ),
    ],
)
def test_attn_lrp(vit_tiny, oracle, tensors, name, key, options):
    for image, targets in (("catdog", [243, 282]), ("snail", [113, 112])):
        ours = vitrail.explain(vit_tiny, tensors(image), [targets], method="attn_lrp", **options).scores[0]
        for pixels, target in zip(ours, targets, strict=True):
            patches = pixels.double().unfold(0, 16, 16).unfold(1, 16, 16).sum(dim=(2, 3))
            assert relative(patches, oracle(name)[f"{image}/{target}{key}"]) < 1e-4
