"""Uploads: decoded from memory within limits, refused in words that help."""

import numpy as np
import pytest
from app.conftest import LIMITS, encoded

from vitrail.app.pictures import EXAMPLES, Limits, example_picture, look, safe_name, uploaded
from vitrail.errors import ImageTooLargeError, NotAnImageError, TruncatedImageError
from vitrail.models import load


def test_an_upload_is_the_picture_that_was_sent():
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    found = uploaded("C:\\photos\\my zoo.png", encoded(pixels), LIMITS)
    assert np.array_equal(np.asarray(found.open()), pixels)
    assert found.name == "my_zoo.png"


def test_uploads_that_are_refused():
    good = encoded(np.zeros((20, 20, 3), dtype=np.uint8))
    with pytest.raises(ImageTooLargeError, match="larger than this page takes"):
        uploaded("a.png", None, LIMITS)  # the browser kept it back
    with pytest.raises(NotAnImageError, match="no image that Pillow can read"):
        uploaded("a.png", b"#!/bin/sh\nrm -rf /", LIMITS)
    with pytest.raises(TruncatedImageError, match="ends before its pixels do"):
        uploaded("a.png", encoded(np.random.default_rng(0).integers(0, 256, (90, 90, 3), np.uint8))[:900], LIMITS)
    with pytest.raises(ImageTooLargeError, match=r"0\.0001 MB"):
        uploaded("a.png", good * 9, Limits(bytes=100))
    with pytest.raises(ImageTooLargeError, match="20 x 20 = 400 pixels"):
        uploaded("a.png", good, Limits(pixels=399))


@pytest.mark.parametrize("name", ["../../etc/passwd", "a\x00b.png", "<script>.png", "", "." * 300, "ñandú 🦙.jpg"])
def test_names_are_fit_to_be_shown_and_saved(name):
    made = safe_name(name)
    assert 0 < len(made) <= 80
    assert not set(made) & set("/\\<>&\"' \x00")
    assert not made.startswith(".")


def test_the_page_shows_more_pixels_of_the_same_view():
    model = load("bestiary")
    seen = look(model, example_picture("pair"))
    assert tuple(seen.tensor.shape) == (3, 96, 96)
    assert seen.shown.shape == (480, 480, 3)
    small = seen.shown.reshape(96, 5, 96, 5, 3).mean(axis=(1, 3))
    assert model.preprocess is not None
    assert np.abs(small - model.preprocess.denormalise(seen.tensor)).mean() < 6  # two filters for one view


def test_examples_show_what_their_names_say():
    model = load("bestiary")
    for key, example in EXAMPLES.items():
        if not example.kind:
            continue
        best = model.logits(look(model, example_picture(key)).tensor[None])[0].topk(len(example.species)).indices
        assert {model.class_name(int(index)) for index in best} == set(example.species), key
