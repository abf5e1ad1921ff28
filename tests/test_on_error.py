"""on_error="skip": the images that can be explained are returned as if alone, the others are named with their cause."""

from pathlib import Path

import pytest
import texts
import torch
from families import FAMILIES
from PIL import Image

import vitrail
from vitrail.errors import ImageError, NonFiniteError, NoSignalError, OptionError, SameClassError, UnknownClassError

FAMILY = FAMILIES["timm_vit"]


@pytest.fixture(scope="module")
def model():
    preprocess = vitrail.Preprocess(size=(64, 64), resize=72, mean=(0.5,) * 3, std=(0.5,) * 3)
    return vitrail.wrap(FAMILY.build(), preprocess=preprocess)


def test_the_others_are_explained_as_if_alone_and_the_failed_ones_named(model):
    images = FAMILY.images(5)
    images[3, 0, 0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match="image 3 hold NaN") as refused:
        vitrail.explain(model, images, [0, 1, 2, 3, 4])
    assert refused.value.images == (3,)
    ex = vitrail.explain(model, images, [0, 1, 2, 3, 4], on_error="skip")
    assert torch.equal(ex.scores, vitrail.explain(model, images[[0, 1, 2, 4]], [0, 1, 2, 4]).scores)
    assert ex.metadata["positions"] == [0, 1, 2, 4]
    assert [(one["image"], one["error"]) for one in ex.failures] == [(3, "NonFiniteError")]
    (note,) = ex.notes()
    assert note.startswith("1 of 5 could not be explained and is left out (number 3): the logits of the image hold NaN")
    assert repr(ex).endswith("1 failed)")
    assert ex[0].failures == ()
    assert ex[0].metadata["positions"] == [0]
    assert ex[3].metadata["positions"] == [4]


def test_files_that_cannot_be_read_are_named(model, tmp_path: Path):
    Image.new("RGB", (80, 80), "red").save(tmp_path / "red.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    files = [tmp_path / "absent.png", tmp_path / "red.png", tmp_path / "broken.png"]
    with pytest.raises(ImageError):
        vitrail.explain(model, files)
    ex = vitrail.explain(model, files, on_error="skip")
    assert ex.metadata["sources"] == ["red.png"]
    assert [one["source"] for one in ex.failures] == ["absent.png", "broken.png"]
    assert torch.equal(ex.scores, vitrail.explain(model, files[1]).scores)


def test_a_class_held_against_itself_on_some_images(model):
    images = FAMILY.images(6)
    best = vitrail.explain(model, images).target
    other = int(best[0])
    kept = (best != other).nonzero()[:, 0].tolist()
    assert 0 < len(kept) < 6
    with pytest.raises(SameClassError):
        vitrail.explain(model, images, against=other)
    ex = vitrail.explain(model, images, against=other, on_error="skip")
    assert ex.metadata["positions"] == kept
    assert {one["error"] for one in ex.failures} == {"SameClassError"}


@pytest.mark.parametrize("question", [{"guide": "auto"}, {"compete": True}, {"target": [[0, 1]] * 3}])
def test_it_holds_for_every_kind_of_question(model, question):
    images = FAMILY.images(3)
    images[1] = torch.inf
    ex = vitrail.explain(model, images, **question, on_error="skip")
    assert [one["image"] for one in ex.failures] == [1]
    assert len(ex) == 2
    assert ex.scores.isfinite().all()


def test_an_error_that_does_not_tell_its_image_is_found(model, monkeypatch):
    """What a method raises inside a pass names no position in the whole batch: each image is asked alone."""
    images = FAMILY.images(4)
    images[2] *= 0

    from vitrail.methods import gmar

    whole = gmar.all_head_weights

    def refusing(norms):
        if len(next(iter(norms.values()))) in (1, 4) and refusing.bad(norms):
            raise NoSignalError("the objective has no gradient at attention 0")
        return whole(norms)

    totals = []
    monkeypatch.setattr(gmar, "all_head_weights", lambda norms: totals.append(norms) or whole(norms))
    vitrail.explain(model, images[2:3], 0, method="gmar_l1")
    mark = next(iter(totals[0].values()))
    refusing.bad = lambda norms: any(torch.allclose(row, mark[0]) for row in next(iter(norms.values())))
    monkeypatch.setattr(gmar, "all_head_weights", refusing)
    ex = vitrail.explain(model, images, 0, method="gmar_l1", on_error="skip")
    assert ex.metadata["positions"] == [0, 1, 3]
    assert [one["image"] for one in ex.failures] == [2]


def test_errors_of_the_question_are_raised_all_the_same(model):
    with pytest.raises(UnknownClassError):
        vitrail.explain(model, FAMILY.images(2), 99, on_error="skip")
    with pytest.raises(OptionError, match=r"on_error='ignore' is unknown"):
        vitrail.explain(model, FAMILY.images(2), on_error="ignore")
    with pytest.raises(NonFiniteError):
        vitrail.explain(model, FAMILY.images(2) * torch.nan, on_error="skip")
    ex = vitrail.explain(model, FAMILY.images(2), on_error="skip")
    assert ex.failures == ()
    assert ex.notes() == []


def test_texts_are_skipped_likewise():
    family = texts.FAMILIES["bert"]
    module, tokenizer = family.build(), family.tokenizer()
    several = [texts.TEXTS[0], "", texts.TEXTS[1]]
    ex = vitrail.explain_text(module, tokenizer, several, target=[0, 1, 1], on_error="skip")
    alone = vitrail.explain_text(module, tokenizer, several[::2], target=[0, 1])
    assert torch.equal(ex.scores, alone.scores)
    assert [(one["image"], one["message"]) for one in ex.failures] == [
        (1, "the text is empty: there is no word to explain")
    ]
    assert ex.texts == tuple(several[::2])


def test_one_photograph_without_signal_does_not_lose_the_others(vit_tiny, shared):
    files = sorted((shared / "images" / "imagenet-val").glob("*.JPEG"))[:24]
    with pytest.raises(NoSignalError):
        vitrail.explain(vit_tiny, files, method="attn_gradcam")
    ex = vitrail.explain(vit_tiny, files, method="attn_gradcam", on_error="skip")
    assert len(ex) + len(ex.failures) == 24
    assert [one["image"] for one in ex.failures] == [4, 14, 19, 21]
    kept = [files[position] for position in ex.metadata["positions"]]
    torch.testing.assert_close(
        ex.scores, vitrail.explain(vit_tiny, kept, method="attn_gradcam").scores, rtol=1e-5, atol=1e-8
    )
