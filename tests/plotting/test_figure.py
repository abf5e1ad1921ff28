"""The picture as a whole: what it says, that it shows, and that its files never change without a reason."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from vitrail.errors import OptionError, OutputFileError
from vitrail.explanation import Explanation
from vitrail.objectives import Rivals
from vitrail.plotting import draw, save_figure, save_picture
from vitrail.plotting.canvas import number
from vitrail.plotting.overlay import colour, overlay
from vitrail.provenance import from_metadata

NAMES = ("zebra", "African elephant, Loxodonta africana", "kite")


def make(*, batch: int = 1, targets: int | None = None, against: bool = False, **changes: Any) -> Explanation:
    generator = torch.Generator().manual_seed(1)
    leading = (batch,) if targets is None else (batch, targets)
    fields: dict[str, Any] = {
        "scores": torch.randn(*leading, 4, 4, generator=generator) * 0.01,
        "logits": torch.tensor([[3.0, 1.0, 0.0]]).repeat(batch, 1),
        "target": torch.zeros(leading, dtype=torch.long) if targets is None else torch.arange(targets).repeat(batch, 1),
        "against": torch.full(leading, 2) if against else None,
        "method": "complete",
        "objective": "normalized_difference" if against else "logit",
        "class_names": NAMES,
        "images": torch.randint(0, 256, (batch, 32, 32, 3), dtype=torch.uint8, generator=generator),
        "metadata": {"model": "timm/tiny", "sources": [f"zoo{i}.jpg" for i in range(batch)]},
    }
    fields |= changes
    return Explanation(provenance=from_metadata(fields.pop("metadata")), **fields)


def words(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.texts]


def test_the_question_is_the_title_and_the_range_is_true() -> None:
    ex = make(against=True)
    said = words(ex.plot())
    assert "zebra 84.4 %" in said
    assert "against kite 4.2 %" in said
    low, high = ex.scores.min().item(), ex.scores.max().item()
    assert f"{number(low)}  against" in said
    assert f"for  {number(high, sign=True)}" in said
    assert {"zoo0.jpg", "timm/tiny", "complete · normalized difference", "what the model saw"} <= set(said)


def test_targets_are_columns_and_images_are_rows() -> None:
    one, wide, tall = (draw(make(batch=b, targets=t)).get_size_inches() for b, t in ((1, 1), (1, 3), (2, 1)))
    assert wide[0] > 1.9 * one[0] - 0.5
    assert wide[1] == one[1]
    assert tall[0] == one[0]
    assert tall[1] > 1.9 * one[1]
    figure = draw(make(batch=2, targets=3))
    assert len(figure.axes) == 2 * (1 + 3 * 2)  # a photograph, and a map with its bar for each target
    assert [text for text in words(figure) if text.endswith("%")] == [
        "zebra 84.4 %",
        "African elephant 11.4 %",
        "kite 4.2 %",
    ] * 2


def test_several_methods_stand_side_by_side() -> None:
    ex = make()
    said = words(draw([ex, replace(ex, method="gae", signed=False, scores=ex.scores.clamp(min=0))]))
    assert "complete · logit" in said
    assert "gae · logit · unsigned" in said
    assert said.count("zoo0.jpg") == 1


def test_how_the_map_was_made_is_said() -> None:
    ex = make(metadata={"gradient": "libra", "centred": True, "notes": ["Two logits were negative."]})
    said = words(draw(ex))
    assert "complete · logit · libra gradient · centred" in said
    assert "Two logits were negative." in said
    agnostic = make(method="rollout", signed=False, metadata={"class_specific": False})
    assert "rollout · the same for every class · unsigned" in words(draw(agnostic))


def pixels(ex: Explanation, **look: Any) -> list[np.ndarray]:
    return [np.asarray(axes.images[0].get_array()) for axes in draw(ex, **look).axes]


def test_zero_is_white_in_the_bar_and_the_map() -> None:
    scores = torch.tensor([[[-1.0, 0.0], [0.0, 4.0]]])
    photograph, shown, bar = pixels(
        make(scores=scores, images=torch.full((1, 32, 32, 3), 255, dtype=torch.uint8)), smooth=False
    )
    middle = shown.shape[0] // 4
    assert (shown[middle, 3 * middle] == 255).all()  # the upper right patch
    assert shown[middle, middle, 2] > shown[middle, middle, 0]  # the upper left is against: blue
    assert shown[3 * middle, 3 * middle, 0] > shown[3 * middle, 3 * middle, 2]  # the lower right is for: red
    assert (photograph == 255).all()
    whitest = bar[0].astype(int).sum(axis=1).argmax()
    assert abs(whitest / bar.shape[1] - 1 / 5) < 0.01  # zero lies a fifth of the way from -1 to 4
    assert bar[0, -1].tolist() == shown[-1, -1].tolist()


def test_one_scale_over_images_only_when_asked() -> None:
    scores = torch.stack([torch.full((2, 2), 1.0), torch.full((2, 2), 10.0)])
    ex = make(batch=2, scores=scores, images=torch.full((2, 32, 32, 3), 255, dtype=torch.uint8))
    own, shared = pixels(ex), pixels(ex, shared_scale=True)
    assert (own[1] == own[4]).all()
    assert shared[1].mean() > shared[4].mean() + 50
    spoilt = replace(ex, scores=torch.stack([scores[0], torch.full((2, 2), torch.nan)]))
    assert (pixels(spoilt, shared_scale=True)[1] == own[1]).all()


@pytest.mark.parametrize(
    ("value", "reason"), [(0.0, "the map is zero everywhere"), (torch.nan, "the map holds NaN or infinity")]
)
def test_no_signal_is_said_and_not_stretched(value: float, reason: str) -> None:
    figure = draw(make(scores=torch.full((1, 4, 4), value)))
    assert "no signal" in words(figure)
    assert f"no signal: {reason}" in words(figure)
    assert len(figure.axes) == 2  # no bar, for there is no range
    shown = np.asarray(figure.axes[1].images[0].get_array())
    assert (shown[..., 0] == shown[..., 2]).all()


@pytest.mark.parametrize("value", [2.5, -2.5])
def test_a_map_of_one_value_has_a_bar_from_zero(value: float) -> None:
    figure = draw(make(scores=torch.full((1, 4, 4), value)))
    said = " ".join(words(figure))
    assert number(value) in said
    assert "no signal" not in said


@pytest.mark.parametrize(
    "changes",
    [
        {"images": None, "metadata": {}},
        {"scores": torch.randn(1, 2, 30), "images": torch.zeros(1, 32, 480, 3, dtype=torch.uint8)},
        {"scores": torch.randn(1, 30, 1) * 1e9, "images": torch.zeros(1, 480, 16, 3, dtype=torch.uint8)},
        {"scores": torch.randn(1, 1, 1)},
        {
            "class_names": ("a name " * 30, "$x$", "\n"),
            "metadata": {"sources": ["猫" * 200], "model": "m" * 300, "notes": ["n " * 400]},
        },
    ],
    ids=["no image", "wide", "tall", "one patch", "long words"],
)
def test_every_shape_is_drawn_inside_its_figure(tmp_path: Path, changes: dict[str, Any]) -> None:
    ex = make(against=True, **changes)
    figure = draw(ex)
    save_figure(figure, tmp_path / "map.png")
    inches = figure.get_size_inches()
    for text in figure.texts:
        box = text.get_window_extent()
        assert box.x0 >= -1
        assert box.x1 <= inches[0] * figure.dpi + 1
        assert box.y0 >= -1
        assert box.y1 <= inches[1] * figure.dpi + 1


def test_refusals() -> None:
    with pytest.raises(OptionError, match="nothing to draw"):
        draw([])
    with pytest.raises(OptionError, match=r"hold \[1, 2\] of them"):
        draw([make(), make(batch=2)])
    with pytest.raises(OptionError, match=r"opacity=2 must lie between 0"):
        draw(make(), opacity=2)
    with pytest.raises(OptionError, match="max_images=0 must be 1 or more, or None"):
        draw(make(), max_images=0)
    with pytest.raises(OptionError, match="colormap='jett' is unknown to Matplotlib"):
        draw(make(), colormap="jett")
    with pytest.raises(OptionError, match="side=0.5 must lie between 1 and 20 inches"):
        draw(make(), side=0.5)
    for share in (-0.1, 1, float("nan")):
        with pytest.raises(OptionError, match="threshold=.* must lie between 0"):
            draw(make(), threshold=share)


def test_many_images_fill_a_grid_and_say_what_they_share_once() -> None:
    ex = make(batch=32, metadata={"gradient": "libra", "sources": [f"zoo{i}.jpg" for i in range(32)]})
    figure = draw(ex)
    said = words(figure)
    width, height = figure.get_size_inches()
    assert 1 < width / height < 2
    assert len(figure.axes) == 32 * 2  # a map and its bar, no photograph
    assert said.count("complete · logit · libra gradient.") == 1
    assert {f"zoo{i}.jpg" for i in range(32)} <= set(said)
    assert len(draw(ex[:8], photograph=True).axes) == 8 * 3


def test_what_competed_is_named_below_the_map() -> None:
    ex = make(batch=2, metadata={"gradient": "libra"})
    classes, weights = torch.tensor([[2, 1]] * 2), torch.tensor([[1.0, 0.0]] * 2)
    ex = replace(ex, rivals=Rivals(classes, weights, torch.zeros_like(ex.scores)))
    said = words(draw(ex))
    assert said.count("complete · logit · libra gradient, class competition") == 2
    assert said.count("less what argues for kite") == 2


def test_the_figure_says_how_many_images_it_leaves_out() -> None:
    ex = make(batch=38, metadata={"image_notes": [["said"]] * 38})
    figure = draw(ex)
    assert len(figure.axes) == 36 * 2
    assert "The first 36 of 38 images; max_images=38 draws all." in words(figure)
    assert "All images: said" in words(figure)
    assert len(draw(ex[:8], max_images=None).axes) == 8 * 2
    two = draw(ex, max_images=2)
    assert len(two.axes) == 2 * 3
    assert "The first 2 of 38 images; max_images=38 draws all." in words(two)


def test_panels_of_another_size() -> None:
    small, large = (draw(make(), side=side).get_size_inches() for side in (2, 4))
    assert large[1] - small[1] == pytest.approx(2)
    assert large[0] - small[0] == pytest.approx(4)  # the photograph and the map


def test_another_colormap_and_a_threshold() -> None:
    scores = torch.tensor([[[-1.0, 0.0], [0.1, 2.0]]])
    white = torch.full((1, 32, 32, 3), 255, dtype=torch.uint8)
    ex = make(scores=scores, images=white)
    _, shown, bar = pixels(ex, smooth=False, colormap="PiYG", threshold=0.1)
    middle, end = shown.shape[0] // 4, 3 * shown.shape[0] // 4
    ends = [round(255 * value) for value in matplotlib.colormaps["PiYG"](1.0)[:3]]
    zero = [round(255 * value) for value in matplotlib.colormaps["PiYG"](0.5)[:3]]
    assert shown[end, end].tolist() == ends
    assert shown[middle, end].tolist() == shown[end, middle].tolist() == zero  # 0.1 is below a tenth of 2
    assert bar[0, -1].tolist() == ends
    assert all(
        (one == other).all()
        for one, other in zip(
            pixels(ex, colormap="PiYG"), pixels(ex, colormap=matplotlib.colormaps["PiYG"]), strict=True
        )
    )
    said = words(draw(ex, threshold=0.1))
    assert "Scores below 10 % of a map's largest are drawn as zero." in said
    unsigned = make(scores=scores.abs(), images=white, signed=False)
    _, shown, bar = pixels(unsigned, smooth=False, colormap="viridis")
    first = [round(255 * value) for value in matplotlib.colormaps["viridis"](0.0)[:3]]
    assert shown[middle, end].tolist() == bar[0, 0].tolist() == first


@pytest.mark.parametrize(("lowest", "ends"), [(-0.001, False), (-0.8, True)])
def test_below_zero_an_unsigned_map_is_drawn_where_it_has_two_ends(lowest: float, ends: bool) -> None:
    """On every surface: rounding is no evidence against; of an axis (eigencam) both ends are drawn, without a side."""
    from vitrail.app.fragments import bar, scores_of

    scores = torch.tensor([[[1.0, 0.0], [0.0, lowest]]])
    ex = make(scores=scores, images=torch.full((1, 64, 64, 3), 255, dtype=torch.uint8), signed=False)
    expected = [round(255 * value) for value in colour(np.array(lowest if ends else 0.0)).tolist()]
    glass = np.asarray(ex.overlay(smooth=False))[-1, -1]
    _, figure, _ = pixels(ex, smooth=False)
    page = overlay(scores_of(ex), np.full((64, 64, 3), 255, dtype=np.uint8), smooth=False)[-1, -1]
    assert glass.tolist() == figure[-1, -1].tolist() == page.tolist() == expected
    low = number(lowest, sign=True)
    told, below = words(draw(ex)), bar(scores[0].numpy().astype(np.float64), signed=False)
    assert ((low in told), (low in below)) == (ends, ends)
    assert "against" not in "".join(told) + below.replace("vt-against", "")


# -- files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "pdf", "svg"])
def test_files_are_whole_and_always_the_same(tmp_path: Path, kind: str) -> None:
    ex = make(against=True)
    path = save_picture(ex, tmp_path / "new" / f"zebra.{kind}")
    again = ex.plot()
    again_path = save_figure(again, tmp_path / f"again.{kind}")
    assert path.read_bytes() == again_path.read_bytes()
    assert {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xm"}[kind.lower()] == path.read_bytes()[:4]
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    assert b"CreationDate" not in path.read_bytes()
    assert b"<dc:date>" not in path.read_bytes()


def test_png_is_readable_and_sharp(tmp_path: Path) -> None:
    with Image.open(save_picture(make(), tmp_path / "zebra.png")) as picture:
        picture.load()
        assert picture.size == (1360, 848)
        assert picture.info["Software"] == "Vitrail"


def test_unknown_formats_and_places(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"zebra\.bmp: name it \.png, \.jpg, \.pdf or \.svg"):
        save_picture(make(), tmp_path / "zebra.bmp")
    (tmp_path / "file").touch()
    with pytest.raises(OutputFileError, match="cannot write"):
        save_picture(make(), tmp_path / "file" / "zebra.png")


def test_a_style_sheet_of_the_reader_changes_nothing(tmp_path: Path) -> None:
    plain = save_picture(make(), tmp_path / "plain.png").read_bytes()
    style: Any = {
        "savefig.dpi": 30,
        "savefig.bbox": "tight",
        "font.size": 30,
        "font.family": "serif",
        "axes.grid": True,
    }
    with matplotlib.rc_context({**style, "image.cmap": "jet", "image.origin": "lower", "savefig.facecolor": "black"}):
        assert save_picture(make(), tmp_path / "styled.png").read_bytes() == plain


def test_notebooks_show_it_and_pyplot_is_left_alone() -> None:
    before = "matplotlib.pyplot" in sys.modules
    figure: Any = make().plot()
    assert figure._repr_png_()[:4] == b"\x89PNG"
    assert ("matplotlib.pyplot" in sys.modules) == before
