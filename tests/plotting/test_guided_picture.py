"""The picture of a guided question."""

from dataclasses import replace

import pytest
import torch

from vitrail.errors import OptionError
from vitrail.explanation import Explanation
from vitrail.guidance.stitching import plan_stitch
from vitrail.plotting.figure import draw_guided
from vitrail.provenance import GuideFacts, Provenance, from_metadata


def explanation(rows: int, cols: int, **more) -> Explanation:
    generator = torch.Generator().manual_seed(rows * cols)
    return Explanation(
        scores=torch.randn(1, rows, cols, generator=generator),
        logits=torch.tensor([[1.0, 3.0]]),
        target=torch.tensor([1]),
        method="complete",
        objective="logit",
        class_names=("horse", "zebra"),
        images=torch.randint(0, 256, (1, rows * 8, cols * 8, 3), dtype=torch.uint8, generator=generator),
        **more,
    )


def guided(count: int = 1) -> Explanation:
    plan = plan_stitch("wide", "left", "squash", grid=(4, 4))
    kite = GuideFacts("kite.jpg", False, 2, "kite", 3.0, 0.9)
    part = explanation(4, 8, provenance=Provenance(stitch=plan, beside=(kite,), sources=("a.png",)))
    notes = {"image_notes": [["Beside kite.jpg."]], "sources": ["a.png"]}
    return explanation(4, 4, provenance=from_metadata(notes), guided=(part,) * count)


def words(figure) -> list[str]:
    return [text.get_text() for text in figure.texts]


def test_everything_is_there_and_inside_the_picture():
    unguided = explanation(4, 4, provenance=from_metadata({"image_notes": [["One class dominates."]]}))
    figure = draw_guided(guided(), unguided)
    said = words(figure)
    for text in (
        "with the guide: the photograph's own patches",
        "without a guide",
        "wide, original left; guide: kite.jpg",
        "Beside kite.jpg.",
        "Without a guide: One class dominates.",
    ):
        assert text in said
    images = [axes for axes in figure.axes if axes.images]
    assert len(images) == 1 + 2 * 2 + 3  # the photograph, two maps with bars, the stitched picture, its map and bar
    for axes in figure.axes:
        box = axes.get_position()
        assert min(box.x0, box.y0) >= 0
        assert max(box.x1, box.y1) <= 1


def test_a_guided_map_is_titled_with_what_the_model_says_beside_the_guide():
    """Not with the probability of the photograph alone, which is not the input that the map is of."""
    part = guided().guided[0]
    low, high = (replace(part, logits=torch.tensor([[2.0, other]])) for other in (-2.0, 1.0))
    one, two = (explanation(4, 4, guided=parts) for parts in ((low,), (high, low)))
    assert one.sides() == [("zebra", "1.8 % beside the guide")]
    assert two.question() == "zebra 1.8 %…26.9 % beside the guide"
    assert words(draw_guided(two)).count("zebra 1.8 %…26.9 % beside the guide") == 1
    assert "zebra 88.1 %" not in words(draw_guided(two))
    assert words(two.plot()).count("zebra 1.8 %…26.9 % beside the guide") == 1


def test_more_than_fit_are_counted():
    assert "4 of 6 stitched inputs shown." in words(draw_guided(guided(6)))


def test_what_it_does_not_draw():
    plain = explanation(4, 4)
    with pytest.raises(OptionError, match=r"shows explanations with guide=; this one has none"):
        draw_guided(plain)
    two = replace(plain, scores=plain.scores.expand(2, -1, -1), logits=plain.logits.expand(2, -1), images=None,
                  target=plain.target.expand(2), guided=(replace(plain, scores=plain.scores.expand(2, -1, -1),
                  logits=plain.logits.expand(2, -1), images=None, target=plain.target.expand(2)),))  # fmt: skip
    with pytest.raises(OptionError, match="one photograph and one target, not 2 with 1"):
        draw_guided(two)
