"""compare(): every method asked the same as explain() asks it, failures kept in their place, and the sheet."""

from dataclasses import replace
from pathlib import Path

import families
import numpy as np
import pytest
import torch
from PIL import Image

import vitrail
from vitrail.errors import ImageError, OptionError, TargetCountError, UnsupportedOperationError
from vitrail.methods import METHODS
from vitrail.methods.registry import MethodInfo
from vitrail.plotting.canvas import number
from vitrail.plotting.comparison import _bands, draw_comparison


@pytest.fixture(scope="module")
def model() -> vitrail.VisionModel:
    family = families.FAMILIES["timm_vit"]
    preprocess = vitrail.Preprocess(size=family.image_size, mean=(0.5,) * 3, std=(0.5,) * 3)
    names = ("kite", "bald eagle", "zebra", "snail", "conch", "slug", "coil")
    return vitrail.wrap(family.build(), preprocess=preprocess, class_names=names)


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (50, 60, 3), dtype=np.uint8))


def _method(name, function, **traits) -> MethodInfo:
    return replace(METHODS["complete"], name=name, aliases=(), function=function, **traits)


@pytest.fixture
def _broken(monkeypatch):
    def broken(run):
        """A method without a rule."""
        raise UnsupportedOperationError("no rule for Conv2d in stem.conv; use complete, which needs none " * 12)

    monkeypatch.setitem(METHODS, "broken", _method("broken", broken))


@pytest.fixture
def _pixels(monkeypatch):
    def pixels(run, *, seed: int = 3):
        """A method of pixels, with a rounding error below zero."""
        run.record()
        maps = torch.rand(len(run.images), 1, *run.images.shape[2:], generator=torch.Generator().manual_seed(seed))
        return (maps - 0.01).expand(-1, run.targets.index.shape[1], -1, -1)

    traits = {"level": "pixel", "signed": False, "uses_gradient": False, "passes": "1F"}
    traits |= {"gradient": "full", "competes": False}
    monkeypatch.setitem(METHODS, "pixels", _method("pixels", pixels, **traits))


def test_the_maps_are_those_of_explain(model, photo):
    found = vitrail.compare(
        model, photo, ["zebra", 3], against="kite", objective="difference", methods="raw,gae,complete,complete:full"
    )
    assert list(found.maps) == ["raw", "gae", "complete", "complete:full"]
    for label, maps in found.maps.items():
        name, _, gradient = label.partition(":")
        question = {"method": name, "gradient": gradient or None}
        if name != "raw":  # which is the same for every class
            question |= {"against": [["kite", "kite"]], "objective": "difference"}
        expected = vitrail.explain(model, [photo], [[2, 3]], **question)
        assert torch.equal(maps, expected.scores[0])
    assert found.target.tolist() == [2, 3]
    assert found.against is not None
    assert found.against.tolist() == [0, 0]
    assert not found.failures
    assert all(one.seconds > 0 for one in found.answers)
    assert torch.equal(found.logits, expected.logits[0])


def test_without_a_target_it_is_the_predicted_class(model, photo):
    found = vitrail.compare(model, photo, methods=["complete"])
    assert found.target.tolist() == [int(found.logits.argmax())]
    assert found.question() == vitrail.explain(model, photo).question()


def test_options_reach_their_method_alone(model, photo):
    given = {"rollout": {"row_normalise": False}, "positive": {"gradient": "leaf", "start_layer": 1}}
    found = vitrail.compare(model, photo, 3, methods="rollout,gae,complete", options=given, gradient="libra")
    maps = found.maps
    assert torch.equal(
        maps["rollout"][0], vitrail.explain(model, photo, method="rollout", row_normalise=False).scores[0]
    )
    expected = vitrail.explain(model, photo, 3, method="gae", gradient="leaf", start_layer=1)
    assert torch.equal(maps["gae"][0], expected.scores[0])
    assert torch.equal(maps["complete"][0], vitrail.explain(model, photo, 3, gradient="libra").scores[0])
    assert found.answers[1].options == {"gradient": "leaf", "start_layer": 1}


@pytest.mark.usefixtures("_broken", "_pixels")
def test_a_method_that_fails_keeps_its_place_and_spoils_nothing(model, photo):
    said = []
    found = vitrail.compare(
        model, photo, methods="broken,pixels,complete", seed=9, progress=lambda *given: said.append(given)
    )
    assert list(found.failures) == ["broken"]
    assert isinstance(found.failures["broken"], UnsupportedOperationError)
    assert list(found.maps) == ["pixels", "complete"]
    assert found.maps["pixels"].shape == (1, *model.preprocess.size)
    assert found.answers[1].options == {"seed": 9}
    assert said == [("broken", 0, 3), ("pixels", 1, 3), ("complete", 2, 3), ("", 3, 3)]
    told = found.record()["methods"]
    assert told[0]["error"] == "UnsupportedOperationError"
    assert "no rule for Conv2d" in told[0]["message"]
    assert "maps" not in told[0]
    assert told[1]["grid"] == list(model.preprocess.size)
    assert told[2]["maps"][0]["highest"] == found.maps["complete"].max().item()


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"options": {"gae": {"samples": 3}}}, OptionError, "method 'gae' does not know samples"),
        ({"options": {"absolute": {}}}, OptionError, "not among the methods compared: raw, gae"),
        ({"options": {"gae": {"gradient": "half"}}}, OptionError, "'half' is not a gradient mode"),
        ({"gradient": "auto"}, OptionError, "'auto' is not a gradient mode"),
        ({"target": [1, 2], "against": [3, 4, 5]}, TargetCountError, "held against 3"),
    ],
)
def test_a_question_at_fault_is_refused_at_once(model, photo, given, error, message):
    with pytest.raises(error, match=message):
        vitrail.compare(model, photo, methods="raw,gae", **given)


def test_one_image_at_a_time(model, photo):
    with pytest.raises(ImageError, match="one image at a time, and 2 are given"):
        vitrail.compare(model, [photo, photo], methods="raw")


# -- the sheet --------------------------------------------------------------------------------------------------------


def _words(figure) -> list[str]:
    return [text.get_text() for text in figure.texts]


@pytest.mark.usefixtures("_broken", "_pixels")
def test_the_sheet_says_what_each_panel_is_and_took(model, photo):
    found = vitrail.compare(model, photo, "zebra", methods="broken,raw,pixels,complete:libra")
    words = _words(found.plot())
    for name in ("broken", "raw", "pixels", "complete · libra", "no map", "UnsupportedOperationError"):
        assert name in words
    assert any(text.startswith("zebra ") for text in words)
    assert sum(text.startswith("1F") for text in words) == 3
    assert "unsigned · any class" in words
    assert any(text.startswith("1F 1B · ") and text.endswith(" s") for text in words)
    assert any(text.startswith("no rule for Conv2d") for text in words)
    assert any(text.endswith(" …") for text in words)  # the reason is cut where its panel ends


def test_the_sheet_says_where_classes_compete(model, photo):
    found = vitrail.compare(model, photo, "zebra", methods="complete,complete:full")
    assert [one.passes for one in found.answers] == ["1F 2B", "1F 1B"]
    assert "libra gradient · class competition" in _words(found.plot())
    alone = vitrail.compare(model, photo, "zebra", methods="complete", options={"complete": {"compete": False}})
    assert alone.answers[0].passes == "1F 1B"


@pytest.mark.usefixtures("_pixels")
def test_an_unsigned_method_uses_the_red_half_alone(model, photo):
    found = vitrail.compare(model, photo, methods="pixels,complete")
    assert found.maps["pixels"].min() < 0
    bars = [text for text in _words(found.plot()) if text.startswith("−")]
    assert len(bars) == 1  # of complete


def test_a_map_with_two_ends_is_drawn_with_both(model, photo):
    """EigenCAM's lowest score was −9.18 in the table, and 0 on the sheet."""
    found = vitrail.compare(model, photo, methods="eigencam")
    lowest = float(found.maps["eigencam"].min())
    assert lowest < -0.02 * float(found.maps["eigencam"].max())
    assert number(lowest) in _words(found.plot())


def test_targets_are_rows_and_columns_are_methods(model, photo):
    found = vitrail.compare(model, photo, [1, 2, 3], methods="raw,gae,complete")
    figure = draw_comparison([found, found])
    assert _words(figure).count("complete") == 6
    assert _words(figure).count("what the model saw") == 6
    assert sum(text.endswith(" s for 3") for text in _words(figure)) == 18
    lefts = sorted({round(axes.get_position().x0, 3) for axes in figure.axes})
    assert len(lefts) == 4
    folded = draw_comparison(found, columns=3)
    assert len({round(axes.get_position().x0, 3) for axes in folded.axes}) == 3


@pytest.mark.parametrize(("methods", "rows", "bands"), [(1, 5, 1), (7, 2, 1), (22, 2, 2), (30, 2, 2)])
def test_methods_in_columns_fold_into_bands(methods, rows, bands):
    assert _bands(methods, rows) == bands


@pytest.mark.parametrize(("count", "lines"), [(3, 1), (7, 2), (30, 4)])
def test_many_panels_flow_over_lines(model, photo, count, lines):
    found = vitrail.compare(model, photo, methods="complete")
    many = replace(found, answers=tuple(replace(found.answers[0], label=f"m{i}") for i in range(count)))
    figure = many.plot(smooth=False)
    tops = {round(axes.get_position().y1, 3) for axes in figure.axes if axes.get_position().height > 0.05}
    assert len(tops) == lines
    wide, high = figure.get_size_inches()
    assert 0.8 < wide / high < 2.5
    for text in figure.texts:
        box = text.get_window_extent(figure.canvas.get_renderer())
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.x1


def test_sheets_that_cannot_be_drawn_are_refused(model, photo, tmp_path: Path):
    one = vitrail.compare(model, photo, methods="raw")
    other = vitrail.compare(model, photo, methods="gae")
    with pytest.raises(OptionError, match="must be of the same methods"):
        draw_comparison([one, other])
    with pytest.raises(OptionError, match="nothing to draw"):
        draw_comparison([])
    with pytest.raises(OptionError, match="columns=1 leaves no place"):
        draw_comparison(one, columns=1)
    with pytest.raises(OptionError, match=r"name it \.png, \.jpg, \.pdf or \.svg"):
        one.save_picture(tmp_path / "sheet.bmp")
    assert one.save_picture(tmp_path / "sheet.png").stat().st_size > 5000
