"""Class against class: which pairs are asked, and that each map is the one that explain() gives alone."""

import math
from pathlib import Path

import families
import numpy as np
import pytest
import torch
from PIL import Image

import vitrail
from vitrail.errors import (
    NotAnImageError,
    OptionError,
    SameClassError,
    TargetError,
    TrainingModeError,
    UnknownClassError,
)
from vitrail.guidance import LOSSES, detail, ordered, picture_files, top_pairs, typical_pictures
from vitrail.plotting.class_pair import draw_pair

NAMES = ("kite", "bald eagle, American eagle", "zebra", "snail", "conch", "slug", "coil")


@pytest.fixture(scope="module")
def model() -> vitrail.VisionModel:
    family = families.FAMILIES["timm_vit"]
    preprocess = vitrail.Preprocess(size=family.image_size, mean=(0.5,) * 3, std=(0.5,) * 3)
    return vitrail.wrap(family.build(), preprocess=preprocess, class_names=NAMES)


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(3).integers(0, 256, (48, 48, 3), dtype=np.uint8))


def raised(model: vitrail.VisionModel, by: float) -> vitrail.VisionModel:
    """The same model with all logits higher, so that quotients of them mean something (or, lower, mean nothing)."""
    return vitrail.wrap(
        model.module, preprocess=model.preprocess, class_names=NAMES, logits_from=lambda output: output + by
    )


def test_each_map_is_the_one_of_explain(model, picture):
    high = raised(model, 50.0)
    found = detail(high, picture, "snail", ["conch", 5])
    assert found.pairs == ((3, 4), (3, 5))
    assert found.losses == LOSSES
    for one, other in [(3, 4), (4, 3), (3, 5), (5, 3)]:
        alone = vitrail.explain(high, picture, one, compete=False)
        torch.testing.assert_close(found.view("logit", one, other).scores, alone.scores)
        for loss in LOSSES[1:]:
            expected = vitrail.explain(high, picture, one, against=other, objective=loss)
            view = found.view(loss, one, other)
            torch.testing.assert_close(view.scores, expected.scores)
            assert view.question() == expected.question()
            assert view.notes() == expected.notes() == []


def test_one_forward_for_each_loss_and_one_to_choose(model, picture):
    calls = []
    handle = model.module.register_forward_hook(lambda *_: calls.append(1))
    detail(model, picture, 3, [4, 5, 6, 0])  # first call: the layout of the tokens is worked out too
    calls.clear()
    detail(model, picture, 3, [4, 5, 6, 0])
    handle.remove()
    assert len(calls) == 1 + len(LOSSES)


def test_values_are_the_losses_in_double_precision(model, picture):
    found = detail(raised(model, 50.0), picture, 3, 4)
    logits = found.logits.double()
    own, other = float(logits[3]), float(logits[4])
    expected = {"logit": own, "normalized_difference": (own - other) / own, "difference": own - other}
    expected["ratio"] = own / other
    for loss, value in expected.items():
        assert found.value(loss, 3, 4) == pytest.approx(value, rel=1e-4)


def test_without_classes_the_models_best_are_paired(model, picture):
    logits = vitrail.explain(model, picture).logits[0]
    first, second, third, *_ = logits.argsort(descending=True).tolist()
    assert detail(model, picture, losses=["logit"]).pairs == ((first, second), (first, third), (second, third))
    assert detail(model, picture, top=2, losses=["logit"]).pairs == ((first, second),)
    assert detail(model, picture, second, losses=["logit"]).pairs == ((second, first), (second, third))
    assert detail(model, picture, None, third, losses=["logit"]).pairs == ((first, third),)


def test_pairs_are_pure():
    assert top_pairs(torch.tensor([5.0, 1.0, 9.0]), 2) == [(2, 0)]
    assert ordered([(1, 2), (2, 1)]) == [(1, 2), (2, 1)]


def test_a_class_named_twice_is_one_pair(model, picture):
    assert detail(model, picture, "snail", ["conch", 4, "conch"], losses=["logit"]).pairs == ((3, 4),)


def test_where_a_logit_is_negative_the_difference_stands_in_and_says_so(model, picture):
    low = raised(model, -1000.0)
    found = detail(low, picture, 3, 4)
    difference = vitrail.explain(low, picture, 3, against=4, objective="difference")
    for loss in ("normalized_difference", "ratio"):
        view = found.view(loss, 3, 4)
        torch.testing.assert_close(view.scores, difference.scores)
        assert view.notes() == [f"A logit is not above zero, where {loss} means nothing: the difference is shown."]
        assert found.value(loss, 3, 4) == found.value("difference", 3, 4)
    assert found.view("difference", 3, 4).notes() == []
    texts = " ".join(text.get_text() for text in draw_pair(found, 3, 4).texts)
    assert "ratio: difference instead" in texts
    assert "where normalized_difference means nothing" in texts


def test_the_reverse_question_correlates_with_minus_one_at_first_order(model, picture):
    """Through one layer alone the map is linear in the gradient, so the difference turned round is its negative."""
    found = detail(model, picture, 3, 4, losses=["difference", "logit"], start_layer=-1)
    assert found.reversal("difference", 3, 4) == pytest.approx(-1.0, abs=1e-6)
    assert -1 < found.reversal("logit", 3, 4) < 1
    assert not math.isnan(found.reversal("logit", 3, 4))


@pytest.mark.parametrize(
    ("question", "error", "message"),
    [
        ({"target": "snail", "against": "snail"}, SameClassError, "snail (3) is held against itself"),
        ({"target": "snail", "against": ["conch", 3]}, SameClassError, "snail (3) is held against itself"),
        ({"target": "snial", "against": "conch"}, UnknownClassError, "'snial'; near it: 3 (snail)"),
        ({"target": "snail", "against": ["conch", 7]}, UnknownClassError, "no class 7: the model's 7 classes"),
        ({"target": "snail", "against": []}, TargetError, "against=[] names no class"),
        ({"target": ["snail", "slug"], "against": "conch"}, TargetError, "is no single class"),
        ({"top": 1}, OptionError, "top=1 must be 2 or more"),
        ({"top": 8}, OptionError, "at most the model's 7 classes"),
        ({"losses": ["nope"]}, OptionError, "losses=['nope'] must be some of logit"),
        ({"losses": []}, OptionError, "losses=[] must be some of logit"),
        ({"target": 3, "against": 4, "method": "raw"}, OptionError, "the same for every class"),
    ],
)
def test_refusals(model, picture, question, error, message):
    with pytest.raises(error) as refusal:
        detail(model, picture, **question)
    assert message in str(refusal.value)


def test_the_predicted_class_against_itself_is_named_as_such(model, picture):
    best = int(vitrail.explain(model, picture).logits[0].argmax())
    with pytest.raises(SameClassError, match="the predicted class"):
        detail(model, picture, against=best)


def test_several_images_and_models_in_training_are_refused(model, picture):
    with pytest.raises(OptionError, match="detail looks at one image, but 2 are given"):
        detail(model, [picture, picture], 3, 4)
    random = torch.nn.Sequential(families.FAMILIES["timm_vit"].build(), torch.nn.Dropout(0.5)).train()
    with pytest.raises(TrainingModeError):
        detail(random, torch.randn(1, 3, 64, 64), 3, 4)


def test_a_view_that_was_not_asked_is_refused(model, picture):
    found = detail(model, picture, 3, [4, 5], losses=["logit"])
    with pytest.raises(TargetError, match="class 4 against 5 was not asked for"):
        found.view("logit", 4, 5)
    with pytest.raises(OptionError, match="loss 'ratio' was not asked for; there are logit"):
        found.view("ratio", 3, 4)


# -- typical pictures ------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    generator = np.random.default_rng(5)
    for name, count in (("kite", 4), ("n01614925_bald_eagle", 2), ("zebra", 1), ("whatever", 1)):
        (tmp_path / name).mkdir()
        for number in range(count):
            pixels = generator.integers(0, 256, (30, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
    (tmp_path / "kite" / "notes.txt").write_text("not a picture")
    (tmp_path / "kite" / ".hidden.png").write_bytes(b"")
    return tmp_path


def test_subfolders_are_found_by_class_and_classified(model, folder):
    found = typical_pictures(model, folder, [1, 0])
    assert {index: len(one.pictures) for index, one in found.items()} == {0: 4, 1: 2}
    for one in found[0].pictures:
        expected = vitrail.explain(model, one.path).logits[0].softmax(0)
        torch.testing.assert_close(one.probabilities, expected, rtol=1e-4, atol=1e-6)
        assert one.predicted == int(expected.argmax())
    assert sum(found[0].predicted_as(index) for index in range(len(NAMES))) == 4


def test_half_of_the_chosen_are_most_typical_and_half_most_like_the_rival(model, folder):
    pictures = typical_pictures(model, folder, [0])[0]
    by_own = sorted(pictures.pictures, key=lambda one: -float(one.probabilities[0]))
    rest = sorted(by_own[1:], key=lambda one: -float(one.probabilities[1]))
    assert pictures.chosen(1, 2) == [by_own[0], rest[0]]
    assert pictures.chosen(1, 9) == by_own


def test_pictures_in_the_folder_itself_are_of_the_one_opposing_class(model, folder):
    assert list(typical_pictures(model, folder / "kite", [3, 0])) == [0]
    with pytest.raises(TargetError, match=r"could be of 2 classes \(conch, slug\): make one subfolder per class"):
        typical_pictures(model, folder / "kite", [3, 4, 5], [4, 5])


def test_a_damaged_picture_is_reported_and_the_others_are_used(model, folder):
    (folder / "kite" / "9.png").write_bytes(b"\x89PNG broken")
    found = typical_pictures(model, folder, [0])[0]
    assert len(found.pictures) == 4
    ((path, reason),) = found.failures
    assert path.name == "9.png"
    assert "damaged" in reason


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "missing", "is no folder"),
        (lambda folder: folder, "holds no pictures, and no subfolder of pictures named by one of: snail"),
    ],
)
def test_folders_without_the_class_are_refused(model, folder, make, message):
    with pytest.raises(NotAnImageError) as refusal:
        typical_pictures(model, make(folder), [3])
    assert message in str(refusal.value)


def test_a_folder_of_damaged_pictures_alone_is_refused(model, tmp_path):
    (tmp_path / "a.png").write_bytes(b"nothing")
    with pytest.raises(NotAnImageError, match="none of its 1 pictures can be read"):
        typical_pictures(model, tmp_path, [3])
    assert [path.name for path in picture_files(tmp_path)] == ["a.png"]


def test_imagenet_identifiers_name_the_folders_of_its_thousand_classes(tmp_path):
    from timm.data.imagenet_info import ImageNetInfo

    info = ImageNetInfo("imagenet-1k")
    names = tuple(info.label_descriptions())
    assert len(names) == 1000

    class Thousand(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.vit, self.head = families.FAMILIES["timm_vit"].build(), torch.nn.Linear(7, 1000)

        def forward(self, images):
            return self.head(self.vit(images))

    size = families.FAMILIES["timm_vit"].image_size
    model = vitrail.wrap(Thousand().eval(), preprocess=vitrail.Preprocess(size=size), class_names=names)
    (tmp_path / "n01608432").mkdir()
    Image.new("RGB", (40, 40), "red").save(tmp_path / "n01608432" / "1.png")
    assert list(typical_pictures(model, tmp_path, [21, 22])) == [21]


# -- the sheet -------------------------------------------------------------------------------------------------------


def test_the_sheet_says_the_question_both_ways_with_probabilities_and_ranges(model, picture, folder):
    found = detail(raised(model, 50.0), picture, "kite", "bald eagle")
    typical = typical_pictures(model, folder, [0, 1])
    figure = draw_pair(found, 0, 1, typical=typical)
    texts = [text.get_text() for text in figure.texts]
    ex = found.view("ratio", 0, 1)
    assert f"kite {ex.sides()[0][1]}" in texts
    assert f"against bald eagle {ex.sides()[1][1]}" in texts
    assert {"kite", "against bald eagle", "bald eagle", "against kite"} <= set(texts)
    assert sum("l₁ / l₂ = " in text for text in texts) == 2
    assert "pictures of kite (4 in kite)" in texts
    assert "pictures of bald eagle (2 in n01614925_bald_eagle)" in texts
    low = f"{abs(float(ex.scores.min())):.3g}".removeprefix("0")
    assert any(low in text for text in texts)
    images = [axes for axes in figure.axes if axes.images]
    # one photograph; 4 losses both ways, each with its bar; 4 + 2 typical pictures
    assert len(images) == 1 + 2 * 4 * 2 + 6


def test_the_sheet_keeps_its_words_inside(model, picture):
    names = ("a" * 60, *NAMES[1:])
    long = vitrail.wrap(model.module, preprocess=model.preprocess, class_names=names)
    figure = draw_pair(detail(long, picture, 0, 1), 0, 1)
    width = figure.get_window_extent().width
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    assert all(text.get_window_extent(renderer).x1 <= width for text in figure.texts)


def test_the_snail_on_the_real_model(vit_tiny, shared):
    """Turned round, Eq. 8 gives nearly the opposite map; the plain logit does not tell snail from conch."""
    found = detail(vit_tiny, shared / "images/one-per-class/n01944390_snail.JPEG", "snail", ["conch", "slug"])
    for pair in found.pairs:
        assert found.reversal("normalized_difference", *pair) < -0.95
        assert found.reversal("logit", *pair) > 0.3
