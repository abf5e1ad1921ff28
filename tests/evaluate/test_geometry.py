"""Masks and boxes lie on the pixels that the model sees."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from vitrail.datasets import Sample
from vitrail.datasets.geometry import as_seen, boxes_as_mask, seen
from vitrail.errors import ImageError
from vitrail.models import Preprocess

WAYS = [
    Preprocess(size=(32, 32), resize=36, interpolation="bilinear"),
    Preprocess(size=(24, 40), resize=None, interpolation="bilinear"),
    Preprocess(size=(32, 32), resize=(36, 36), crop_mode="border", interpolation="bilinear"),
    Preprocess(size=(32, 32), resize=(40, 36), crop_mode="squash", interpolation="bilinear"),
    Preprocess(size=(48, 48), resize=40, interpolation="bilinear"),
]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(WAYS), st.integers(40, 120), st.integers(40, 120), st.data())
def test_a_mask_agrees_with_the_picture_it_was_drawn_on(preprocess, height, width, data):
    top, left = data.draw(st.integers(0, height - 10)), data.draw(st.integers(0, width - 10))
    bottom, right = data.draw(st.integers(top + 8, height)), data.draw(st.integers(left + 8, width))
    _agrees(preprocess, (height, width), (left, top, right, bottom))


def test_a_mask_agrees_where_its_edge_halves_the_last_row_of_the_view():
    """The last row is blended 139 of 255 of the box and 116 of what lies below, and its middle lies below."""
    _agrees(WAYS[1], (46, 52), (6, 32, 52, 45))


def _agrees(preprocess: Preprocess, size: tuple[int, int], box: tuple[int, int, int, int]) -> None:
    left, top, right, bottom = box
    mask = boxes_as_mask([(float(left), float(top), float(right), float(bottom))], size)
    assert mask.sum() == (bottom - top) * (right - left)
    picture = Image.fromarray(np.repeat(mask[..., None], 3, axis=2).astype(np.uint8) * 255)
    drawn = np.array(preprocess.view(picture))[..., 0]
    placed = as_seen(mask, preprocess).numpy()
    assert placed.shape == preprocess.size
    # Antialiasing and nearest may differ where an edge runs through what a pixel is blended of, and nowhere else.
    assert placed[drawn == 255].all()
    assert not placed[drawn == 0].any()


@settings(max_examples=40, deadline=None)
@given(st.integers(8, 60), st.integers(8, 60))
def test_nearest_on_pictures_is_the_mask_itself(height, width):
    """With nearest for the picture too there is no edge to disagree about."""
    assume(max(height, width) < 6 * min(height, width))
    preprocess = Preprocess(size=(16, 16), resize=20, interpolation="nearest")
    mask = np.random.default_rng(height * 61 + width).random((height, width)) > 0.5
    picture = Image.fromarray(np.repeat(mask[..., None], 3, axis=2).astype(np.uint8) * 255)
    assert (as_seen(mask, preprocess).numpy() == (np.array(preprocess.view(picture))[..., 0] > 127)).all()


def test_everything_of_a_sample_is_placed_alike():
    preprocess = Preprocess(size=(32, 32), resize=36)
    mask = np.zeros((64, 96), dtype=bool)
    mask[16:48, 40:60] = True
    rng = np.random.default_rng(0)
    sample = Sample(
        picture=Image.fromarray(rng.integers(0, 256, (64, 96, 3), dtype=np.uint8)),
        label=1,
        boxes=[(40.0, 16.0, 60.0, 48.0)],
        mask=mask,
        regions={1: mask, 2: np.roll(mask, -40, axis=1) & False},
    )
    placed = seen(sample, preprocess)
    assert torch.equal(placed.image, preprocess(sample.picture))
    assert placed.image.dtype == torch.float32
    assert torch.equal(placed.boxes, placed.mask)
    assert torch.equal(placed.mask, as_seen(mask, preprocess))
    assert list(placed.regions) == [1]  # an empty region is not known to be there


def test_what_lies_outside_the_view_is_not_known():
    sample = Sample(picture=Image.new("RGB", (100, 20)), boxes=[(0.0, 0.0, 5.0, 5.0)])
    assert seen(sample, Preprocess(size=(20, 20), resize=20)).boxes is None
    assert seen(sample, Preprocess(size=(20, 20), resize=None)).boxes is not None


def test_a_fitted_picture_is_taken_as_it_is():
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    region = np.zeros((32, 32), dtype=bool)
    region[:, :16] = True
    sample = Sample(picture=picture, regions={3: region}, fitted=True)
    preprocess = Preprocess(size=(32, 32), resize=36)
    assert torch.equal(seen(sample, preprocess).image, preprocess.normalise(picture))
    assert (seen(sample, preprocess).regions[3].numpy() == region).all()
    with pytest.raises(ImageError, match="an input of 32 x 32 pixels, and the model's is 24 x 24"):
        seen(sample, Preprocess(size=(24, 24)))
    with pytest.raises(ImageError, match="a mask of 16 x 32 pixels does not fit its picture of 32 x 32"):
        seen(Sample(picture=picture, mask=region[:, :16]), preprocess)
