"""What the tests of every method on every family must know of single methods."""

from collections.abc import Callable, Iterable
from typing import Any

import cam_reference
import integrated_reference
import lrp_reference
import perturbation_reference
import pytest
import reference

# Options that make a costly method cheap on the tiny models, or that keep what random weights would leave nothing of:
# (method) -> keyword options of `explain`.
OPTIONS: dict[str, dict[str, object]] = {
    "tis": {"masks": 8},
    "tam": {"samples": 4},
    "bi_head": {"samples": 4},
    "bi_token": {"samples": 4},
    "dix": {"samples": 2},
    "iia": {"samples": 2},
    "grad_eclip": {"relu": False},
    # Clamped at zero, the maps of some tiny random models are zero everywhere.
    "attn_gradcam": {"relu": False},
    "partial_lrp": {"rules": "tattr"},
    "dave": {"samples": 3},
    "var": {"classes": 1, "threshold": 0.0, "gradient": "full"},
    "mda": {"candidates": 2},
}

# The methods under which all families are met at every `make test`; the others meet there those that differ most in
# what they compute, the costly ones two of them, and all the rest in `make test-slow`.
EVERYWHERE = {"raw", "gae", "complete", "gmar_l2"}
VARIED = {
    "timm_vit",
    "timm_eva02",
    "timm_beit",
    "hf_dinov2_registers",
    "open_clip_average",
    "user_written_out",
}
COSTLY = {"tattr", "lrp", "attn_lrp", "partial_lrp", "tis", "dix", "iia", "vit_cx", "pa_lrp", "dave"}
MOST_VARIED = VARIED - {"timm_beit", "open_clip_average"}
TWO = {"timm_vit", "hf_dinov2_registers"}


def varied(families: Iterable[str]) -> list[Any]:
    """The families as parameters of a test that is no method's; `slow` but for those that differ most."""
    return [pytest.param(one, marks=slow_unless_varied(one)) for one in families]


def slow_unless_varied(family: str) -> Any:
    """The marks of a family in a test that only those that differ most meet at every `make test`."""
    return () if family in VARIED else pytest.mark.slow


def pairs(methods: Iterable[str], families: Iterable[str]) -> list[Any]:
    """Every method with every family, as parameters of a test; `slow` where both are left to the slow tests."""
    every = set(families)
    assert every >= VARIED > MOST_VARIED > TWO

    def quick(method: str) -> set[str]:
        if method == "mda":  # hundreds of passes
            return {"timm_vit"}
        return every if method in EVERYWHERE else TWO if method in COSTLY else MOST_VARIED

    return [
        pytest.param(method, family, marks=() if family in quick(method) else pytest.mark.slow)
        for method in methods
        for family in families
    ]


# Methods that divide by a sum of features of either sign, where float32 leaves fewer digits.
TOLERANCE: dict[str, float] = {"gradcam_plus_plus": 1e-3, "xgradcam": 1e-3}

# Pairs that a method cannot serve, and what its error says: (method, family) -> a regular expression.
UNSERVED: dict[tuple[str, str], str] = {
    ("mda", "hf_dinov2"): "no order of the patches of image 0 raises the score of class 1 above that of the blurred",
    **{
        ("pa_lrp", family): "pa_lrp found no embedding of positions that the model adds"
        for family in ("timm_beit", "timm_dinov3", "timm_dinov3_class", "hf_beit")
    },
    ("grad_eclip", "user_written_out"): r"blocks\.2\.attention \(WrittenOutAttention\) writes it out as a softmax",
}

# The slow float64 reference that each method is held to: (method) -> its function.
REFERENCES: dict[str, Callable[..., Any]] = {
    **{name: getattr(reference, name) for name in ("raw", "rollout", "gae", "complete", "absolute")},
    "norm_rollout": integrated_reference.norm_rollout,
    "tokentm": integrated_reference.tokentm,
    "gmar_l1": reference.gmar,
    "gmar_l2": reference.gmar,
    "attention_flow": perturbation_reference.flow_map,
    "tis": perturbation_reference.tis_map,
    "vit_cx": perturbation_reference.complete_linkage,
    "tattr": lrp_reference.tattr,
    "partial_lrp": lrp_reference.relevance,
    "lrp": lrp_reference.relevance,
    "attn_lrp": lrp_reference.attn_lrp,
    "attn_gradcam": lrp_reference.attn_gradcam,
    **{name: getattr(integrated_reference, name) for name in ("tam", "bi_head", "bi_token", "dix", "iia")},
    **{name: getattr(cam_reference, name) for name in ("gradcam", "gradcam_plus_plus", "xgradcam", "hirescam")},
    **{name: getattr(cam_reference, name) for name in ("layercam", "eigencam", "grad_eclip", "legrad", "bicam")},
    **{name: getattr(cam_reference, name) for name in ("cdam", "finercam", "caap", "var", "dave")},
    "pa_lrp": lrp_reference.pa_lrp,
    "mda": perturbation_reference.mda_map,
    "attcat": cam_reference.block_inputs,
    "fullgrad_plus": cam_reference.block_inputs,
}
