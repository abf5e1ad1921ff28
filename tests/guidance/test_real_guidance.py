"""What guides do on the real ViT-Ti/16: they take the blue off the photograph's own object."""

import pytest
import torch

import vitrail
from vitrail.provenance import Box

FILES = {"bald eagle": "n01614925_bald_eagle", "snail": "n01944390_snail", "tusker": "n01871265_tusker"}


@pytest.fixture(scope="module")
def photographs(shared):
    return [shared / "images" / "one-per-class" / f"{stem}.JPEG" for stem in FILES.values()]


@pytest.fixture(scope="module")
def zebra(shared):
    return shared / "images" / "one-per-class" / "n02391049_zebra.JPEG"


def share(scores: torch.Tensor) -> float:
    """From −1 to 1: how far positive scores outweigh negative ones."""
    return float(scores.sum() / scores.abs().sum())


@pytest.mark.parametrize("layout", ["side", "wide"])
def test_a_zebra_takes_the_evidence_against(vit_tiny, photographs, zebra, layout):
    ex = vitrail.explain(vit_tiny, photographs, list(FILES), guide=vitrail.Guide(zebra, layout=layout))
    (part,) = ex.guided
    for own, whole in zip(ex.scores, part.scores, strict=True):
        theirs = whole[Box(**part.metadata["stitch"]["guide"]).slices()]
        assert share(theirs) < -0.5
        assert share(own) > 0.3


def test_the_eagle_is_blue_under_the_full_gradient_and_red_with_a_guide_or_by_default(vit_tiny, photographs, zebra):
    alone = vitrail.explain(vit_tiny, photographs[0], "bald eagle", gradient="full")
    assert share(alone.scores[0, 5:9, 5:9]) < -0.5  # its breast
    guided = vitrail.explain(vit_tiny, photographs[0], "bald eagle", guide=zebra)
    assert share(guided.scores) > 0.5
    default = vitrail.explain(vit_tiny, photographs[0], "bald eagle")
    assert share(default.scores[0, 5:9, 5:9]) > 0.5


@pytest.mark.slow
def test_a_guide_that_the_model_draws(vit_tiny, photographs):
    ex = vitrail.explain(vit_tiny, photographs[:1], "bald eagle", guide="auto")
    (guide,) = ex.metadata["guides"][0]
    assert guide["logit"] > 24
    assert guide["probability"] > 0.99
    assert guide["class_name"] not in FILES
    assert share(ex.scores) > 0.3
