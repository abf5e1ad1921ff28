"""On the real ViT-Ti/16: the maps of the official and common code of the CAM family, Grad-ECLIP and LeGrad."""

from functools import cache

import numpy as np
import pytest
import torch

import vitrail

CASES = [
    ("catdog", 243),
    *(pytest.param(*case, marks=pytest.mark.slow) for case in [("catdog", 282), ("snail", 113), ("snail", 112)]),
]
CAMS = ["gradcam", "hirescam", "layercam"]


@pytest.fixture(scope="module")
def oracle(shared):
    @cache
    def read(name: str) -> dict[str, np.ndarray]:
        with np.load(shared / "oracles" / f"{name}.npz") as file:
            return {key: file[key] for key in file.files if not name.startswith("inputs") or key.endswith("/x")}

    return read


@pytest.fixture(scope="module")
def vit_tiny_64(shared):
    weights = shared / "models" / "vit_tiny_patch16_224.augreg_in21k_ft_in1k.safetensors"
    return vitrail.load("timm/vit_tiny_patch16_224", checkpoint=weights, dtype=torch.float64)


def relative(ours: torch.Tensor, official: np.ndarray) -> float:
    expected = torch.from_numpy(np.asarray(official)).reshape(ours.shape).double()
    return float((ours.double() - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize(("image", "target"), CASES)
def test_the_cam_family(vit_tiny, vit_tiny_64, oracle, image, target):
    tensor = torch.from_numpy(oracle("inputs")[f"{image}/x"])
    for method, name in [(m, m) for m in CAMS] + [("gradcam_plus_plus", "gradcampp"), ("xgradcam", "xgradcam")]:
        exact = vitrail.explain(vit_tiny_64, tensor, target, method=method).scores[0]
        assert relative(exact, oracle(f"{name}.f64")[f"{image}/{target}"]) < 1e-10
        if method in CAMS:  # the others' own float32 run is off by up to 4e-3
            ours = vitrail.explain(vit_tiny, tensor, target, method=method).scores[0]
            assert relative(ours, oracle(name)[f"{image}/{target}"]) < 1e-4


@pytest.mark.parametrize("image", ["catdog", "snail"])
def test_eigencam_up_to_the_sign_of_a_singular_vector(vit_tiny, oracle, image):
    ours = vitrail.explain(vit_tiny, torch.from_numpy(oracle("inputs")[f"{image}/x"]), method="eigencam").scores[0]
    official = next(value for key, value in oracle("eigencam").items() if key.startswith(image))
    assert min(relative(ours, official), relative(-ours, official)) < 1e-4


@pytest.mark.parametrize("method", ["gradcam", "layercam"])
def test_after_the_common_codes_display_steps(vit_tiny, oracle, method):
    """max(·, 0), min-max, bilinear to 224 pixels; stored in half precision."""
    ex = vitrail.explain(vit_tiny, torch.from_numpy(oracle("inputs")["catdog/x"]), 243, method=method, relu=True)
    low, high = ex.scores.min(), ex.scores.max()
    shown = (ex.upsample((224, 224))[0] - low) / (high - low + 1e-7)
    official = torch.from_numpy(oracle(method)["catdog/243/final224"]).float()
    # Their last step stretches the enlarged map to 0…1 once more; bilinear peaks lie inside.
    stretched = (shown - shown.min()) / (shown.max() - shown.min())
    assert min(float((shown - official).abs().max()), float((stretched - official).abs().max())) < 2e-3


@pytest.mark.parametrize(("image", "target"), CASES)
@pytest.mark.parametrize(
    ("name", "part", "options"),
    [
        ("own_grad_eclip_true_heads", "", {}),
        ("own_grad_eclip_true_heads", "/signed", {"relu": False}),
        ("own_grad_eclip_true_heads", "/no_ksim", {"similarity": "none"}),
        ("own_grad_eclip_true_heads", "/per_head_lambda", {"similarity": "per_head"}),
        ("grad_eclip_merged", "", {"heads": "merged"}),
        ("grad_eclip_merged", "/no_ksim", {"heads": "merged", "similarity": "none"}),
    ],
)
def test_grad_eclip(vit_tiny, oracle, image, target, name, part, options):
    tensor = torch.from_numpy(oracle("inputs")[f"{image}/x"])
    ours = vitrail.explain(vit_tiny, tensor, target, method="grad_eclip", **options).scores[0]
    assert relative(ours, oracle(name)[f"{image}/{target}{part}"]) < 1e-4


@pytest.mark.parametrize(("image", "target"), CASES)
def test_legrad(vit_tiny, oracle, image, target):
    tensor = torch.from_numpy(oracle("inputs")[f"{image}/x"])
    for last in (2, 6, 12):
        ours = vitrail.explain(vit_tiny, tensor, target, method="legrad", variant="released", start_layer=12 - last)
        assert relative(ours.scores[0], oracle("legrad_clipform")[f"{image}/{target}/last{last}"]) < 1e-4
    plain = vitrail.explain(vit_tiny, tensor, target, method="legrad").scores[0].flatten()
    released = torch.from_numpy(oracle("legrad_clipform")[f"{image}/{target}/last2"]).flatten()
    assert 20 < plain.max() / released.max() < 200
    assert torch.corrcoef(torch.stack([plain, released]))[0, 1] > 0.9
