"""A link brings back what was seen, and a mad one harms nobody."""

from urllib.parse import parse_qsl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitrail.app.question import VIEWS, Question
from vitrail.app.service import read

WHOLE = Question(
    view="rewrite", model="bestiary/label-errors", example="pair", picture="1f", target=3, against=0, method="gae",
    gradient="libra", resolution="4", row=0, col=5, layer=2, head=1, methods="signed", layout="stack", steps=35,
    until=0.7, budget=0.5, vlm="hf/owner/name", prompt="Où? & why=", answer="a\n“b” 猫", other="murlo",
    word_method="gae", word_gradient="leaf", vision="tokens", most=9,
)  # fmt: skip


def test_every_part_of_a_question_comes_back():
    assert read(WHOLE.query()) == WHOLE
    assert read(Question(view="map").query()) == Question()


@pytest.mark.parametrize(
    "query",
    ["view=../../etc/passwd", "target=-1", "target=1e9", "row=nan", "until=7", "budget=inf", "x" * 5000,
     "model=" + "m" * 500, "target=%00", "layer[]=1", "prompt=" + "p" * 3001, "answer=" + "%E7%8C%AB" * 334, "most=x",
     "resolution=0", "resolution=fine", "resolution=-4", "resolution=1e9"],
)  # fmt: skip
def test_what_a_link_cannot_mean_counts_as_not_said(query):
    assert read(query) == Question()


@given(st.dictionaries(st.text(max_size=8) | st.sampled_from(sorted(Question.__dataclass_fields__)), st.text()))
def test_no_link_is_too_mad(query):
    question = Question.from_query(query)
    assert question.view in VIEWS
    assert dict(parse_qsl(question.query())).get("view") == question.view


def test_another_picture_or_model_forgets_the_patch_but_not_what_was_chosen_with_it():
    assert WHOLE.changed(example="single") == WHOLE.changed(
        example="single", target=None, against=None, row=None, col=None, layer=None, head=None
    )
    kept = WHOLE.changed(model="bestiary", target=3, against=0)
    assert (kept.target, kept.against, kept.row, kept.layer) == (3, 0, None, None)


def test_clicks_on_classes():
    """A second class is held against the one that is explained, be that chosen or predicted; never in its place."""
    both = Question().choose(7, explained=4)
    assert (both.target, both.against) == (4, 7)
    assert both.choose(9, explained=4) == Question(target=4, against=9)
    assert both.choose(4, explained=4) == both.choose(7, explained=4) == Question(target=4)
    assert Question().choose(4, explained=4) == Question(target=4)
    assert both.swapped(explained=4) == Question(target=7, against=4)
    assert Question().swapped(explained=4) == Question()


def test_a_drawing_is_of_its_picture_classes_and_options_and_of_nothing_else():
    for view, change in (
        ("transfer", {"steps": 5}), ("guide", {"layout": "side"}), ("methods", {"methods": "all"}),
        ("map", {"resolution": "pixel"}),
    ):  # fmt: skip
        asked = WHOLE.changed(view=view)
        assert view == "map" or asked.changed(resolution="1").essence() == asked.essence()
        assert asked.changed(row=3, col=3).essence() == asked.essence()
        for other in (change, {"target": 1}, {"against": None}, {"example": "single"}, {"picture": "abc"}):
            assert asked.changed(**other).essence() != asked.essence(), (view, other)
